"""The compose file and the Procfile name settings and commands that exist, and the same ones."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import yaml

from orchestrator.settings import PREFIX, Settings

HOUSE = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((HOUSE / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
ONE_SHOT = {"migrate"}
OURS = {name: service for name, service in SERVICES.items() if service["image"] == "checkout-orchestrator"}
PROCFILE = dict(line.split(": ", 1) for line in (HOUSE / "Procfile").read_text().splitlines())
COMMANDS = sorted(
    {tuple(service["command"]) for service in OURS.values()}
    | {tuple(shlex.split(command)) for command in PROCFILE.values()}
    | {
        tuple(test[1:])
        for service in OURS.values()
        if (test := service.get("healthcheck", {}).get("test", ["", ""]))[1] == "orchestrator"
    }
)


def test_the_processes_of_the_contract_are_there() -> None:
    assert set(SERVICES) == {
        "postgres",
        "redis",
        "migrate",
        "api",
        "worker",
        "worker2",
        "scheduler",
        "sandbox",
    }


def test_every_variable_is_a_setting() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    named = set(re.findall(rf"\b{PREFIX}[A-Z_]+", (HOUSE / "docker-compose.yml").read_text()))
    assert named
    assert named <= known
    for name, service in OURS.items():
        assert set(service["environment"]) <= known, name


def test_the_sandbox_is_the_gateway_only_where_that_is_said() -> None:
    assert SERVICES["sandbox"]["profiles"] == ["sandbox"]
    for name, service in OURS.items():
        for variable in ("GATEWAY_URL", "GATEWAY_USERNAME", "GATEWAY_PASSWORD", "PUBLIC_URL"):
            # `:?` ends `docker compose up` with the sentence behind it.
            assert service["environment"][PREFIX + variable].startswith("${" + PREFIX + variable + ":?"), name


def test_every_secret_comes_from_outside() -> None:
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|AUTH|KEYS|_URL", variable):
                assert "${" in value, f"{name}: {variable} is written down"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_is_one_of_the_command_line(command: tuple[str, ...]) -> None:
    from orchestrator import cli

    program, *rest = command
    assert program == "orchestrator"
    current: click.Command = cli.main if isinstance(cli.main, click.Group) else cli.cli
    context = click.Context(current, info_name=program)
    while isinstance(current, click.Group):
        assert rest, f"{current.name} wants a command"
        name, found, rest = current.resolve_command(context, rest)
        assert found, name
        current = found
    current.make_context(current.name, list(rest), parent=context)  # parses the options, runs nothing


@pytest.mark.parametrize("name", sorted(set(SERVICES) - ONE_SHOT))
def test_every_long_running_service_has_a_health_check_and_comes_back(name: str) -> None:
    service = SERVICES[name]
    assert service["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}
    assert service["healthcheck"]["interval"]
    assert service["restart"] == "unless-stopped"


def test_whoever_needs_the_schema_waits_for_the_migrations() -> None:
    for name in ("api", "worker", "worker2", "scheduler"):
        waits = {other: how["condition"] for other, how in SERVICES[name]["depends_on"].items()}
        assert waits["migrate"] == "service_completed_successfully"
        assert waits["postgres"] == "service_healthy"
        for other, condition in waits.items():
            assert condition == ("service_completed_successfully" if other in ONE_SHOT else "service_healthy")


def test_workers_get_the_time_a_warm_shutdown_takes() -> None:
    for name in ("worker", "worker2"):
        assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) >= 75


def test_redis_keeps_what_it_has_and_evicts_nothing() -> None:
    command = SERVICES["redis"]["command"][-1]
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command


def test_the_procfile_names_the_same_commands() -> None:
    of_compose = {name: tuple(service["command"]) for name, service in OURS.items() if name not in ONE_SHOT}
    assert {name: tuple(shlex.split(command)) for name, command in PROCFILE.items()} == of_compose


def test_ports_are_published_on_the_loopback_only() -> None:
    for name, service in SERVICES.items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name


def test_the_image_installs_only_what_is_pinned() -> None:
    lines = (HOUSE / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    installs = [line for line in lines if "pip install" in line]
    assert installs
    assert all(
        "--require-hashes" in line or ("--no-deps" in line and "--no-build-isolation" in line)
        for line in installs
    )
    assert any(line.startswith("USER ") and line != "USER root" for line in lines)

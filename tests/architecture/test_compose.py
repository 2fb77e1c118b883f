"""The compose file and the Procfile name settings and commands that exist, and the same settings."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import click
import pytest
import yaml
from jsonschema import Draft7Validator

from orchestrator.devkit.local.servers.redis import ACCESS
from orchestrator.settings import PREFIX, Settings
from orchestrator.settings.secrets import SECRET, SECRETS

HOUSE = Path(__file__).parents[2]
VENDOR = Path(__file__).parent / "vendor"
COMPOSE = yaml.safe_load((HOUSE / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
# An installation without an identity provider, or without a collector of traces, has none.
OPTIONAL = {"ORCHESTRATOR_CONSOLE_OIDC_CLIENT_SECRET", "ORCHESTRATOR_TRACES_URL"}
ONE_SHOT = {"migrate", "roles"}
OURS = {
    name: service
    for name, service in SERVICES.items()
    if service["image"].startswith("checkout-orchestrator:")
}
STAGES = re.findall(
    r"^FROM (\S+) AS (\S+)$(.*?)(?=^FROM |\Z)", (HOUSE / "Dockerfile").read_text(), re.MULTILINE | re.DOTALL
)
BASE = STAGES[0][0]
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
        "roles",
        "migrate",
        "api",
        "worker",
        "worker2",
        "scheduler",
        "deliverer",
        "sandbox",
    }


def test_every_variable_is_a_setting() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    named = set(re.findall(rf"\b{PREFIX}[A-Z_]+", (HOUSE / "docker-compose.yml").read_text()))
    assert named
    assert named <= known
    for name, service in OURS.items():
        assert set(service["environment"]) <= known, name


def test_the_settings_of_the_go_live_checklist_reach_their_processes() -> None:
    page = (HOUSE / "docs/go-live.md").read_text()
    named = set(re.findall(rf"`({PREFIX}[A-Z_]+)`", page)) & {
        PREFIX + name.upper() for name in Settings.model_fields
    }
    assert len(named) > 6
    given = {variable for service in OURS.values() for variable in service["environment"]}
    assert named <= given
    # Those of requests are the API's.
    for name in ("TRUSTED_PROXIES", "HSTS_MAX_AGE", "BROWSER_ORIGINS", "METRICS_TOKEN", "GATEWAY_NETWORKS"):
        assert PREFIX + name in OURS["api"]["environment"], name
    for process in ("api", "worker", "deliverer"):
        assert PREFIX + "TRACES_URL" in OURS[process]["environment"], process


def test_the_sandbox_is_the_gateway_only_where_that_is_said() -> None:
    assert SERVICES["sandbox"]["profiles"] == ["sandbox"]


def test_every_secret_comes_from_outside_and_none_has_a_default() -> None:
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|AUTH|KEYS|_URL|PGOPTIONS", variable):
                assert "${" in value, f"{name}: {variable} is written down"
                if variable in OPTIONAL:
                    assert re.fullmatch(r"\$\{[A-Z_]+:-}", value), f"{name}: {variable}"
                    continue
                assert all(":?" in reference for reference in re.findall(r"\$\{[^}]*}", value)), (
                    f"{name}: {variable}"
                )


@pytest.mark.parametrize("name", sorted(OURS))
def test_each_process_is_given_the_secrets_that_it_needs_and_no_others(name: str) -> None:
    process = name.rstrip("0123456789")
    given = {variable.removeprefix(PREFIX).lower() for variable in OURS[name]["environment"]}
    assert given & SECRET == SECRETS[process]


def test_only_migrations_can_change_tables_and_only_the_roles_are_made_by_the_superuser() -> None:
    for name, service in SERVICES.items():
        told = yaml.safe_dump(service.get("environment", {}))
        assert ("${POSTGRES_PASSWORD" in told) is (name in {"postgres", "roles"}), name
        assert ("${POSTGRES_OWNER_PASSWORD" in told) is (name in {"migrate", "roles"}), name
        assert ("${POSTGRES_APP_PASSWORD" in told) is (
            name in {"api", "worker", "worker2", "scheduler", "deliverer", "roles"}
        ), name


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_no_service_can_write_its_files_or_gain_a_right(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert any(place.startswith("/tmp:") for place in service["tmpfs"])  # noqa: S108 - in a container
    assert "privileged" not in service
    # Ours run under the image's own account.
    assert service.get("user", "orchestrator") not in {"root", "0"}
    assert name in OURS or "user" in service
    assert re.fullmatch(r"[1-9]\d*s", service["stop_grace_period"])
    for volume in service.get("volumes", []):
        assert volume.partition(":")[0] in COMPOSE["volumes"] or volume.endswith(":ro"), name


@pytest.mark.parametrize("image", sorted({service["image"] for service in SERVICES.values()} | {BASE}))
def test_every_image_is_named_with_its_whole_version_or_digest(image: str) -> None:
    assert re.search(r"@sha256:[0-9a-f]{64}$|:\d+\.\d+(\.\d+)?(-[a-z0-9.-]+)?$", image)


def test_the_broker_refuses_in_compose_what_it_refuses_when_it_is_embedded() -> None:
    assert f"~* &* {ACCESS}\n" in SERVICES["redis"]["command"][-1]


@pytest.mark.parametrize("name", ["docker-compose.yml", "docker-compose.rabbitmq.yml"])
def test_the_file_is_valid_by_the_schema_of_the_compose_specification(name: str) -> None:
    schema = json.loads((VENDOR / "compose-spec.json").read_text())
    found = Draft7Validator(schema).iter_errors(yaml.safe_load((HOUSE / name).read_text()))
    assert [(list(error.absolute_path), error.message) for error in found] == []


def test_the_schema_finds_a_wrong_key() -> None:
    schema = json.loads((VENDOR / "compose-spec.json").read_text())
    wrong = {"services": {"api": {"image": "a", "comand": ["b"]}}}
    assert list(Draft7Validator(schema).iter_errors(wrong))


def test_with_rabbitmq_every_process_that_has_a_broker_gets_that_one() -> None:
    changed = yaml.safe_load((HOUSE / "docker-compose.rabbitmq.yml").read_text())["services"]
    variable = f"{PREFIX}BROKER_URL"
    with_broker = {name for name, service in OURS.items() if variable in service["environment"]}
    assert set(changed) == with_broker | {"rabbitmq"}
    assert {changed[name]["environment"][variable].partition("@")[2] for name in with_broker} == {
        "rabbitmq:5672//"
    }
    assert all("${RABBITMQ_PASSWORD:?" in changed[name]["environment"][variable] for name in with_broker)
    server = changed["rabbitmq"]
    assert (server["read_only"], server["cap_drop"], server["user"]) == (True, ["ALL"], "rabbitmq")
    assert re.fullmatch(r"rabbitmq:4\.\d+\.\d+", server["image"])


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_exists_on_the_command_line(command: tuple[str, ...]) -> None:
    from orchestrator import cli

    program, *rest = command
    assert program == "orchestrator"
    current: click.Command = cli.main if isinstance(cli.main, click.Group) else cli.cli
    context = click.Context(current, info_name=program)
    while isinstance(current, click.Group):
        assert rest, f"{current.name} needs a command"
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


def test_every_service_that_needs_the_schema_waits_for_the_migrations() -> None:
    for name in ("api", "worker", "worker2", "scheduler"):
        waits = {other: how["condition"] for other, how in SERVICES[name]["depends_on"].items()}
        assert waits["migrate"] == "service_completed_successfully"
        assert waits["postgres"] == "service_healthy"
        assert SERVICES["migrate"]["depends_on"] == {"roles": {"condition": "service_completed_successfully"}}
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
    # It has no network of its own: the sandbox is for this machine alone.
    of_compose["sandbox"] = tuple(
        "127.0.0.1" if word == "0.0.0.0" else word  # noqa: S104 - what Compose has inside its network
        for word in of_compose["sandbox"]
    )
    assert {name: tuple(shlex.split(command)) for name, command in PROCFILE.items()} == of_compose


def test_ports_are_published_on_the_loopback_only() -> None:
    for name, service in SERVICES.items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name


def test_the_image_installs_only_what_is_pinned() -> None:
    lines = (HOUSE / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    installs = [line for line in lines if re.search(r"\bpip\b.* install ", line)]
    assert installs
    assert all(
        "--no-deps" in line and ("--require-hashes" in line or "--no-index" in line) for line in installs
    )
    assert [line for line in lines if "hatchling build" in line] == [
        "RUN /venv/bin/python -m hatchling build -t wheel"
    ]
    texts = {stage: text for _, stage, text in STAGES}
    assert re.findall(r"^USER (\S+)$", texts["runtime"], re.MULTILINE) == ["10001"]
    assert not any("USER" in texts[stage] for stage in ("production", "devkit"))


def test_only_the_sandbox_runs_in_the_image_with_the_packages_for_development() -> None:
    parents = {stage: parent for parent, stage, _ in STAGES}
    # `docker build` makes the last stage where none is named.
    assert STAGES[-1][1] == "production"
    assert (parents["base"], parents["production"], parents["devkit"]) == (BASE, "runtime", "runtime")
    texts = {stage: text for _, stage, text in STAGES}
    installed = {"packages": {"requirements.txt"}, "packages-devkit": {"requirements-devkit.txt"}}
    assert {
        stage: found for stage, text in texts.items() if (found := set(re.findall(r"-r (\S+)", text)))
    } == installed
    # What is in an image is copied from one environment; nothing is installed, built or downloaded in it.
    for image, environment in (("production", "installed"), ("devkit", "installed-devkit")):
        lineage = [image, parents[image], parents[parents[image]]]
        assert lineage == [image, "runtime", "base"]
        copies = [line for stage in lineage for line in texts[stage].splitlines() if line.startswith("COPY")]
        assert copies == [f"COPY --from={environment} /venv /venv"]
        assert not re.search(r"pip|apt|curl|wget", "".join(texts[stage] for stage in lineage))
    assert (parents["installed"], parents["installed-devkit"]) == ("packages", "packages-devkit")
    built = {name: service["build"]["target"] for name, service in OURS.items() if "build" in service}
    assert built == {"migrate": "production", "sandbox": "devkit"}
    images = {name: service["image"] for name, service in OURS.items()}
    assert [name for name in images if images[name] != images["migrate"]] == ["sandbox"]

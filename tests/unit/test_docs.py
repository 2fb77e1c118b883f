"""What the documents say is what the code does."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator import intents
from orchestrator.domain.states import diagram
from orchestrator.settings import SECRETS
from orchestrator.settings.reference import reference

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_readme_shows_the_state_machine_of_the_code():
    assert f"```mermaid\n{diagram()}```" in (ROOT / "README.md").read_text()


def test_the_settings_page_is_the_settings_object():
    assert (ROOT / "docs/settings.md").read_text() == reference()


def test_the_example_intent_is_accepted():
    assert intents.parse((ROOT / "docs/intent.json").read_bytes()).order_ref == "A-1001"


def test_every_test_that_the_readme_names_exists():
    named = {
        word.strip("`|,;") for word in (ROOT / "README.md").read_text().split() if word.startswith("`test_")
    }
    assert named
    everything = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    missing = [name for name in named if f"def {name}(" not in everything]
    assert missing == []


def test_the_architecture_page_names_modules_and_functions_that_exist():
    import re

    page = (ROOT / "docs/architecture.md").read_text().partition("## The way")[2]
    named = re.findall(r"`([\w/]+\.py)`(?:\s+`(?:\w+\.)?(\w+)`)?", page)
    assert len(named) > 15
    for path, function in named:
        source = (ROOT / "orchestrator" / path).read_text()
        assert not function or re.search(rf"(def|class) {function}\b", source), (path, function)


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "CHANGELOG.md",
        "docs/architecture.md",
        "docs/settings.md",
        "docs/security.md",
        "docs/archive.md",
        "docs/postgres.md",
        "docs/privacy.md",
        "docs/health.md",
        "docs/events.md",
        "docs/jobs.md",
        "docs/merchants.md",
        "docs/money.md",
        "docs/runbook.md",
        "docs/runbook-alerts.md",
        "docs/metrics.md",
        "docs/traces.md",
        "docs/logs.md",
        "docs/webhooks.md",
        "docs/tasks.md",
        "docs/access.md",
        "docs/cli.md",
        "docs/idempotency.md",
    ],
)
def test_no_document_names_a_path_that_is_not_there(name: str):
    import re

    for target in re.findall(r"\]\(([\w./-]+)\)", (ROOT / name).read_text()):
        assert (ROOT / name).parent.joinpath(target).exists(), target


def test_every_command_that_the_page_about_the_command_line_names_exists():
    import re

    import click

    from orchestrator.cli import cli

    lines = re.findall(
        r"^ {4}(?:\$ )?orchestrator (.+?)(?: #.*)?$", (ROOT / "docs/cli.md").read_text(), re.MULTILINE
    )
    assert len(lines) > 10
    for line in lines:
        found, words = cli, line.split()
        while isinstance(found, click.Group):
            named = found.get_command(click.Context(found), words.pop(0))
            assert named is not None, line
            found = named
        options = {option for parameter in found.params for option in (*parameter.opts, "--help")}
        assert {word for word in words if word.startswith("--")} <= options, line


def test_the_security_page_names_the_secrets_of_each_process():
    rows = {
        cells[1].strip().strip("`").lower(): set(
            cells[2].replace("`", "").replace(" ", "").lower().split(",")
        )
        for line in (ROOT / "docs/security.md").read_text().splitlines()
        if len(cells := line.split("|")) == 4 and cells[1].strip().strip("`").lower() in SECRETS
    }
    assert rows == {name: set(names) for name, names in SECRETS.items() if name != "sandbox"}

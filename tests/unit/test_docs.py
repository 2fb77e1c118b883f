"""What the documents say is what the code does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
import pytest

from orchestrator import intents
from orchestrator.cli import cli
from orchestrator.domain.events import EventType
from orchestrator.domain.payment_status import PaymentStatus
from orchestrator.domain.states import State, diagram
from orchestrator.settings.reference import reference
from orchestrator.settings.secrets import SECRETS
from tests.support import diagrams, references

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_page_of_concepts_shows_the_state_machine_of_the_code():
    text = (ROOT / "docs/concepts.md").read_text()
    assert f"```mermaid\n{diagram()}```" in text
    described = set(re.findall(r"`([a-z_]+)`", text.partition("| state | what")[2].partition("\n\n")[0]))
    assert described == {str(state) for state in State}
    assert {f"`{status}`" for status in PaymentStatus} <= set(re.findall(r"`[a-z_]+`", text))


def test_each_drawn_picture_is_of_the_diagram_on_its_page():
    found = diagrams.diagrams()
    assert {"states.svg", "processes.svg"} <= set(found)
    for name, text in found.items():
        drawn = (ROOT / "docs" / name).read_text()
        assert drawn.startswith(diagrams.mark(text)), f"draw {name} again: tests/support/diagrams.py"
        # No picture runs a script or loads anything.
        assert not re.search(r"<script|<foreignObject|href=|url\((?!#)|@import", drawn), name


def test_the_table_of_upgrades_says_of_each_schema_what_its_migration_needs():
    page = (ROOT / "CHANGELOG.md").read_text().partition("### Upgrade")[2].partition("###")[0]
    said = {}
    for names, stop, keys in re.findall(r"^\| (\d[^|]*?) \| (yes|no) \| (yes|no) \|", page, re.MULTILINE):
        for first, last in re.findall(r"(\d{4})(?:–(\d{4}))?", names):
            for number in range(int(first), int(last or first) + 1):
                said[f"{number:04}"] = (stop == "yes", keys == "yes")
    modules = {path.name[:4]: path.read_text() for path in (ROOT / "migrations/versions").glob("*.py")}
    assert said == {
        name: ("SERVES_EARLIER = True" not in text, "orchestrator.crypto" in text)
        for name, text in modules.items()
        if name != "0001"
    }


def test_the_settings_page_is_the_settings_object():
    assert (ROOT / "docs/settings.md").read_text() == reference()


def test_the_example_intent_is_accepted():
    assert intents.parse((ROOT / "docs/intent.json").read_bytes()).order_ref == "A-1001"


def test_every_test_that_the_guarantees_name_exists():
    text = (ROOT / "docs/guarantees.md").read_text()
    named = {word.strip("`|,;") for word in text.split() if word.startswith("`test_")}
    assert named
    everything = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    missing = [name for name in named if f"def {name}(" not in everything]
    assert missing == []


def test_the_architecture_page_names_modules_and_functions_that_exist():
    page = (ROOT / "docs/architecture.md").read_text().partition("## The way")[2]
    named = re.findall(r"`([\w/]+\.py)`(?:\s+`(?:\w+\.)?(\w+)`)?", page)
    assert len(named) > 15
    for path, function in named:
        source = (ROOT / "orchestrator" / path).read_text()
        assert not function or re.search(rf"(def|class) {function}\b", source), (path, function)


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    found: list[str] = []
    for heading in re.findall(r"^#{1,6} (.+)$", prose, re.MULTILINE):
        name = slug(heading)
        found.append(name if name not in found else f"{name}-{found.count(name)}")
    return set(found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading_that_is_there(page: Path):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent.joinpath(path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def test_every_page_is_listed_on_the_page_of_all_documents():
    listed = set(re.findall(r"\]\(([\w./-]+\.md)\)", (ROOT / "docs/README.md").read_text()))
    here = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert here - {"README.md"} <= listed


def test_the_readme_can_be_read_in_three_minutes():
    assert len((ROOT / "README.md").read_text().split()) <= 500


def test_the_pages_of_commands_and_calls_are_made_of_the_code():
    assert (ROOT / "docs/cli.md").read_text() == references.command_line()
    assert (ROOT / "docs/api.md").read_text() == references.api()


def test_every_app_of_a_process_has_the_same_openapi_document():
    first = json.dumps(references.document())
    assert json.dumps(references.document()) == first


def test_every_type_of_event_is_described():
    described = set(
        re.findall(r"`((?:checkout|payment|intent)\.\w+)`", (ROOT / "docs/events.md").read_text())
    )
    assert described == {str(kind) for kind in EventType}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_that_a_page_names_exists(page: Path):
    names = {path for path, _ in references.commands()}
    groups = {path[:1] for path in names if len(path) > 1}
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = page.read_text()
    for words in re.findall(
        r"(?<![\w./-])orchestrator ((?:[a-z][a-z-]*)(?: [a-z][a-z-]*)?)(?=[ `\n\])]|$)", text
    ):
        first, *rest = words.split()
        if (first,) in groups and rest:
            assert (first, rest[0]) in names, words
        elif (first,) not in names | groups:
            assert f"`orchestrator {first}" not in text, words
    for target in re.findall(r"`make ([a-z]+)", text):
        assert target in targets, target


def shown_commands(text: str) -> list[str]:
    """Return the commands of ours that a page shows, in code within a sentence and in blocks, without the
    name of the program.
    """
    spans = re.findall(r"(?<!`)`orchestrator ([^`\n]+)`", text)
    fenced = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
    blocks = [block for language, block in fenced.findall(text) if language in {"", "sh", "console"}]
    blocks += re.findall(r"(?:^ {4,}.*\n?)+", fenced.sub("", text), re.MULTILINE)
    lines = [
        line.partition(" #")[0]
        for block in blocks
        for line in re.findall(
            r"(?:^|[\s(/;])orchestrator ([a-z].*)$", block.replace("\\\n", " "), re.MULTILINE
        )
    ]
    # Another command may follow in the same line.
    return [re.split(r"[|;>]|\$\(|&&| `", line)[0].strip() for line in spans + lines]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_and_option_that_a_page_shows_exists(page: Path):
    lines = [] if page.name == "CHANGELOG.md" else shown_commands(page.read_text())
    assert len(lines) > 10 or page.name != "commands.md"
    for line in lines:
        found, words = cli, line.split()
        while isinstance(found, click.Group) and words and re.fullmatch(r"[a-z][a-z-]*", words[0]):
            named = found.get_command(click.Context(found), words.pop(0))
            assert named is not None, line
            found = named
        options = {
            option
            for parameter in found.params
            for option in (*parameter.opts, *parameter.secondary_opts, "--help")
        }
        given = {
            re.split(r"[=\])]", word.strip("[]()\"',"))[0] for word in words if re.match(r"[\[(]?--\w", word)
        }
        assert given <= options, line


def test_the_security_page_names_the_secrets_of_each_process():
    rows = {
        cells[1].strip().strip("`").lower(): set(
            cells[2].replace("`", "").replace(" ", "").lower().split(",")
        )
        for line in (ROOT / "docs/security.md").read_text().splitlines()
        if len(cells := line.split("|")) == 4 and cells[1].strip().strip("`").lower() in SECRETS
    }
    assert rows == {name: set(names) for name, names in SECRETS.items() if name != "sandbox"}

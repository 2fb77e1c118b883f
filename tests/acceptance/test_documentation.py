"""Every snippet of README, tutorial and integration guide does what the page says, against one running
installation.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import running
from tests.support.snippets import Terminal, snippets, without_fences
from tests.support.world import free_port

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "docs/tutorial.md", ROOT / "docs/integrate.md"]
PROGRAMS = {"python", "javascript", "php"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_snippet_is_one_that_is_run(page: Path):
    found = list(snippets(page))
    assert found
    for snippet in found:
        assert snippet.language in {"sh", *PROGRAMS}, snippet
        assert set(snippet.notes) <= {"file", "background", "started", "needs", "shows"}, snippet
        assert ("file" in snippet.notes) == (snippet.language in PROGRAMS), snippet
    assert not re.search(r"^ {4}\S", without_fences(page), re.MULTILINE), "code stands in fences"


def test_what_starts_everything_is_a_command_that_exists():
    for snippet in (each for page in PAGES for each in snippets(page) if "started" in each.notes):
        for line in snippet.text.splitlines():
            if line.startswith("make "):
                subprocess.run(["make", "-n", *line.split()[1:]], cwd=ROOT, check=True, capture_output=True)
            else:
                assert line == ".venv/bin/orchestrator up" or line.startswith("export ORCHESTRATOR_"), line


def variables(page: Path, terminal: Terminal) -> dict[str, str]:
    """Return the settings that a page exports before it starts everything, without their prefix."""
    started = "".join(terminal.here(each.text) for each in snippets(page) if "started" in each.notes)
    return dict(re.findall(r"^export ORCHESTRATOR_(\w+)='?(.*?)'?$", started, re.MULTILINE))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.embedded_broker("it reads what `up` itself started")
@pytest.mark.direct("it reads what `up` itself started")
def test_all_snippets_do_what_the_pages_say(tmp_path: Path):
    (tmp_path / ".venv/bin").mkdir(parents=True)
    command = tmp_path / ".venv/bin/orchestrator"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m orchestrator "$@"\n')
    command.chmod(0o755)
    (tmp_path / "docs").mkdir()
    port, shop = free_port(), free_port()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ORCHESTRATOR_")}
    places = {
        "127.0.0.1:8000": f"127.0.0.1:{port}",
        ":5000": f":{shop}",
        '"127.0.0.1", 5000': f'"127.0.0.1", {shop}',
    }
    first = Terminal(tmp_path, places, kept)
    settings = variables(PAGES[1], first)
    skipped = []
    with running("up", "--port", str(port), data_dir=tmp_path / ".orchestrator", **settings) as up:
        up.until_said("The orchestrator is up.", seconds=120)
        up.until_up()
        exported = {f"ORCHESTRATOR_{name}": value for name, value in settings.items()}
        for page in PAGES:
            # A reader of one page has not sent the example of another page.
            number = f"A-{page.stem}"
            (tmp_path / "docs/intent.json").write_text(
                (ROOT / "docs/intent.json").read_text().replace("A-1001", number)
            )
            environment = {**kept, **exported, "PATH": f"{command.parent}:{kept['PATH']}"}
            terminal = Terminal(tmp_path, {**places, "A-1001": number}, environment)
            try:
                reasons = [terminal.run(each) for each in snippets(page) if "started" not in each.notes]
                skipped += [reason for reason in reasons if reason]
            finally:
                terminal.close()
        assert up.end() == 0, up.said
    for reason in skipped:
        print(f"not run: {reason}")
    assert all(reason.endswith("php is not installed") for reason in skipped), skipped

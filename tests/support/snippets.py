"""Snippets of Markdown pages, and how they are run: as a reader does, in sequence, in one terminal.

A comment before a fence says what a reader does with it: `file: NAME` (it is saved), `background: URL` (it
goes on, once the URL answers), `started` (it started what runs), `needs: PROGRAM`, `shows: WORDS` (in what it
prints).
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_FENCE = re.compile(
    r"^(?P<notes>(?:<!-- [^\n]* -->\n)*)```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
_NOTE = re.compile(r"<!-- (\w+)(?:: (.*))? -->")
_SECONDS = 120


@dataclass(frozen=True)
class Snippet:
    """A fence of a page: its language, its text, and what is said about it."""

    page: str
    line: int
    language: str
    text: str
    notes: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def snippets(page: Path) -> Iterator[Snippet]:
    """Yield the fences of a page, in their order."""
    text = page.read_text()
    for found in _FENCE.finditer(text):
        notes = {name: value or "" for name, value in _NOTE.findall(found["notes"])}
        line = text.count("\n", 0, found.start("text"))
        yield Snippet(page.name, line, found["language"], found["text"], notes)


def without_fences(page: Path) -> str:
    """Return the prose of a page."""
    return _FENCE.sub("", page.read_text())


class Terminal:
    """A shell whose exported variables go on from command to command; `replaced` stands in for what is
    another on this machine, such as ports.
    """

    def __init__(self, place: Path, replaced: Mapping[str, str], environment: Mapping[str, str]) -> None:
        self.place, self._replaced = place, replaced
        self._environment = dict(environment)
        self._background: list[subprocess.Popen[bytes]] = []
        (place / "variables").write_text("")

    def here(self, text: str) -> str:
        for written, ours in self._replaced.items():
            text = text.replace(written, ours)
        return text

    def run(self, snippet: Snippet) -> str | None:
        """Do what a reader does with a snippet; return why it was not done, where a program is missing."""
        missing = snippet.notes.get("needs")
        if missing and shutil.which(missing) is None:
            return f"{snippet}: {missing} is not installed"
        text = self.here(snippet.text)
        if "file" in snippet.notes:
            (self.place / snippet.notes["file"]).write_text(text)
        elif "background" in snippet.notes:
            self._start(snippet, text)
        else:
            self._finish(snippet, text)
        return None

    def _command(self, text: str) -> list[str]:
        return ["bash", "-e", "-o", "pipefail", "-c", f". ./variables\n{text}\nexport -p > variables\n"]

    def _finish(self, snippet: Snippet, text: str) -> None:
        done = subprocess.run(
            self._command(text),
            cwd=self.place,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{snippet}: {done.stdout}{done.stderr}"
        assert snippet.notes.get("shows", "") in done.stdout, f"{snippet}: {done.stdout}{done.stderr}"

    def _start(self, snippet: Snippet, text: str) -> None:
        with (self.place / "background.log").open("ab") as log:
            process = subprocess.Popen(
                self._command(text),
                cwd=self.place,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._background.append(process)
        end = time.monotonic() + _SECONDS
        while True:
            with suppress(httpx.HTTPError):
                httpx.get(self.here(snippet.notes["background"]), timeout=2)
                return
            said = (self.place / "background.log").read_text()
            assert process.poll() is None, f"{snippet}: {said}"
            assert time.monotonic() < end, f"{snippet}: {said}"
            time.sleep(0.1)

    def close(self) -> None:
        for process in self._background:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

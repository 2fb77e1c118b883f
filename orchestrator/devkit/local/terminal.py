"""What `up` and `demo` show: lines for people, and the warnings of the child processes among them, never in
floods.

A child's log line is JSON from our own logging, already without secrets; anything else it writes (a traceback
before logging was set up, a library's own complaint) is passed through the same scrubbing before it is shown.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.live import Live
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from orchestrator.log import scrub
from orchestrator.text import neutralised, neutralised_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from rich.console import ConsoleOptions, RenderableType

    from orchestrator.devkit.local.child import Child

NAME: Final = "orchestrator"
_STYLES: Final = {"warning": "yellow", "error": "red", "critical": "bold red"}
_RANK: Final = {"debug": 0, "info": 1, "warning": 2, "error": 3, "critical": 4}
_FILE_WIDTH: Final = 120
LINE_EVERY: Final = 2.0
"""Seconds between two lines about what cannot be drawn again."""
_BAR: Final = 40
"""Columns of the longest bar."""
_WINDOW: Final = 10.0
_SHOWN: Final = 3
_KEPT: Final = 1000
_UNSAID: Final = frozenset({"event", "level", "logger", "timestamp", "exception"})


def program() -> str:
    """Return how commands are started from here: by name where the shell finds it, otherwise by its path."""
    started, known = Path(sys.argv[0]), shutil.which(NAME)
    if started.name != NAME or (known is not None and Path(known).resolve() == started.resolve()):
        return NAME
    shown = os.path.relpath(started)
    return shlex.quote(str(started) if shown.startswith("..") else shown)


class PlainConsole(Console):
    """The console of everything that is drawn here: a `str` is one line of text, whatever it holds, and never
    markup.

    Styles come from `Text` objects alone. Whatever is drawn, no control character and no bidirectional
    control of its content reaches the terminal.
    """

    def __init__(self, *, stderr: bool = False, **options: Any) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Make text of a `str`: of a table's cell, too, and so that its width is that of what is shown."""
        return super().render_str(neutralised(text), **(options | {"markup": False, "emoji": False}))

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Draw anything; `Text` objects come past `render_str`."""
        for segment in super().render(renderable, options):
            clean = segment.text if segment.control else neutralised_lines(segment.text)
            yield segment if clean is segment.text else Segment(clean, segment.style)


class Terminal:
    """Where everything is shown; `least` is the level from which on children's lines are.

    `aside`: stdout is kept for a result.
    """

    def __init__(self, *, least: str = "warning", raw: bool = False, aside: bool = False) -> None:
        self.console = PlainConsole(stderr=aside)
        if not self.console.is_terminal:
            self.console.width = _FILE_WIDTH
        self._least, self._raw = _RANK[least], raw
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}
        self.counted: dict[str, int] = {}
        """Warnings and errors of all children so far, by level, shown or not."""

    @property
    def live(self) -> bool:
        """Say whether a person watches on a terminal that can redraw."""
        return self.console.is_terminal

    def say(self, line: RenderableType = "", *, style: str | None = None) -> None:
        """Show a line or a drawing."""
        self.console.print(line, style=style)

    def facts(self, *rows: tuple[str, str]) -> None:
        """Show names with what they stand for, a line each, whole, so that it can be copied."""
        width = max(len(name) for name, _ in rows)
        for name, fact in rows:
            self.line(Text.assemble((f"  {name:<{width}}  ", "dim"), fact))

    def line(self, line: Text | str, *, style: str | None = None) -> None:
        """Show a line whole, however narrow the terminal is."""
        self.console.print(line, style=style, soft_wrap=True)

    def step(self, line: str) -> None:
        self.line(Text(f"  {line}", style="dim"))

    def trouble(self, line: str) -> None:
        """Show a line that a person should see."""
        self.line(Text(f"  ! {line}", style="yellow"))

    @contextmanager
    def watching(
        self, *, transient: bool = False
    ) -> Iterator[Callable[[Callable[[], RenderableType], Callable[[], str]], None]]:
        """Give what shows something that changes: in place where that can be done, else in lines."""
        if self.live:
            with Live(console=self.console, auto_refresh=False, transient=transient) as live:
                yield lambda drawn, _: live.update(drawn(), refresh=True)
            return
        told = time.monotonic()

        def show(_: Callable[[], RenderableType], line: Callable[[], str]) -> None:
            nonlocal told
            if time.monotonic() - told >= LINE_EVERY:
                told = time.monotonic()
                self.step(line())

        yield show

    def relay(self, child: Child) -> None:
        """Show what a child has written since, as far as it is a warning or worse."""
        for line in child.news():
            record = _record(line)
            level = str(record.get("level", "warning"))
            rank = _RANK.get(level, 2)
            if rank >= _RANK["warning"]:
                self.counted[level] = self.counted.get(level, 0) + 1
            if rank < self._least:
                continue
            event = str(record.get("event", ""))
            if self._flooded(child, event):
                continue
            said = line if self._raw else _sentence(child, record)
            self.line(Text(said, style=_STYLES.get(level, "")))

    def _flooded(self, child: Child, event: str) -> bool:
        """Say whether the same line of the same child has been shown often enough for now."""
        now, key = time.monotonic(), (child.name, event)
        since, count = self._seen.get(key, (now, 0))
        if now - since > _WINDOW:
            since, count = now, 0
        if len(self._seen) >= _KEPT:  # a child may write ever other lines
            self._seen.clear()
        self._seen[key] = since, count + 1
        if count == _SHOWN:
            self.step(f"… more of {event or 'this'} from {child.name}: see {child.log}")
        return count >= _SHOWN


def said(line: str) -> str:
    """Return the words of a child's line: what it printed, or the event that it logged."""
    record = _record(line)
    return str(record.get("line") or record["event"])


def _record(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    return record if isinstance(record, dict) and "event" in record else {"event": scrub(line)}


def _sentence(child: Child, record: dict[str, Any]) -> str:
    at = str(record.get("timestamp", ""))[11:19]
    facts = " ".join(f"{name}={value}" for name, value in sorted(record.items()) if name not in _UNSAID)
    said = neutralised(f"  {at:8} {child.name}: {record['event']} {facts}".rstrip())
    # Indented, so that no line of it can be taken for a log line.
    trace = "".join(f"\n      {line}" for line in str(record.get("exception", "")).splitlines())
    return said + trace


def bars(rows: Iterable[tuple[str, int, str]], *, most: int) -> Table:
    """Draw numbers, each with its name, as bars of a style; `most` is as long as a bar can be."""
    table = Table(box=None, padding=(0, 1, 0, 1), show_header=False, pad_edge=False)
    table.add_column(min_width=18)
    table.add_column(justify="right", min_width=len(str(most)))
    table.add_column(min_width=_BAR)
    for name, number, style in rows:
        size = round(number / most * _BAR) or int(number > 0)
        table.add_row(
            Text(name, style=style if number else "bright_black"),
            Text(str(number) if number else "·", style="bold" if number else "bright_black"),
            Text("━" * size, style=style),
        )
    return table

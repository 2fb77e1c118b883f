"""Check the installation, as `orchestrator doctor` prints it.

Each check is a line: what was checked, the result, and how to fix a fault.

`doctor worker`, `doctor scheduler` and `doctor deliverer` are health checks for containers: they read the
heartbeat of that process on this very host from Postgres, because a live process proves nothing.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import click

from orchestrator import log
from orchestrator.cli.attached import data_dir, data_dir_option, nothing_runs, on_database, whisper
from orchestrator.cli.output import json_flag, say, say_document
from orchestrator.text import duration

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.store.database import Database


@click.command(short_help="Check the installation; exit 1 if something is not well.")
@data_dir
@click.argument("process", required=False, type=click.Choice(["worker", "scheduler", "deliverer"]))
@json_flag("Print JSON: each check, whether it is well, and what was found.")
def doctor(*, data_dir: Path, process: str | None, as_json: bool) -> int:
    """Check the installation, or the heartbeat of the worker, scheduler or deliverer on this host; exit 1 if
    something is not well.
    """
    if process is not None:
        return on_database(data_dir, lambda here: _heartbeat(here.db, process, as_json=as_json))
    from orchestrator.cli import checks
    from orchestrator.devkit.local.runtime_file import attach

    # Its Postgres is then started for the checks alone, and what else `up` would start cannot be there.
    stopped = nothing_runs(data_dir)
    with attach(data_dir, say=whisper) as settings:
        # What a check finds wrong is its own line; logs would say it twice.
        log.configure(style=settings.log_format, level="error")
        report = Report(as_json=as_json)
        if stopped:
            command = f"orchestrator up{data_dir_option(data_dir)}"
            report.ill("up", f"it is not running: `{command}` starts it and continues open work")
        asyncio.run(checks.examine(settings, report, stopped=stopped))
    report.end()
    return int(report.problems > 0)


class Report:
    """Tells each finding as it comes, or all in one JSON document at the end, and counts what is not well."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.problems = 0
        self._found: list[dict[str, object]] | None = [] if as_json else None

    def well(self, what: str, found: str) -> None:
        self._tell(what, found, ok=True)

    def ill(self, what: str, found: str) -> None:
        self.problems += 1
        self._tell(what, found, ok=False)

    def _tell(self, what: str, found: str, *, ok: bool) -> None:
        if self._found is not None:
            self._found.append({"check": what, "ok": ok, "found": found})
        elif ok:
            say(f"       {what:<11} {found}", lead=click.style("ok", fg="green"))
        else:
            say(f"  {what:<11} {found}", lead=click.style("problem", fg="red", bold=True))

    def end(self) -> None:
        """Say how many problems there are; with JSON, everything."""
        if self._found is not None:
            say_document({"problems": self.problems, "checks": self._found})
        elif self.problems:
            say(f"{self.problems} problem{'s' if self.problems > 1 else ''} found.", err=True)


async def _heartbeat(db: Database, kind: str, *, as_json: bool) -> int:
    from orchestrator.store import readiness

    here = socket.gethostname()
    ages = (
        process.age
        for process in await readiness.processes(db)
        if process.kind == kind and process.name.startswith(f"{here}:")
    )
    age = min(ages, default=None)
    well = age is not None and age <= readiness.SEEN_WITHIN
    if as_json:
        say_document({"process": kind, "host": here, "ok": well, "secondsSinceHeartbeat": age})
    elif well:
        say(f"a {kind} on {here} gave its last heartbeat {age:.0f} s ago")
    else:
        found = "none was ever seen" if age is None else f"the last one was {duration(age)} ago"
        say(f"no heartbeat of a {kind} on {here}: {found}", err=True)
    return int(not well)

"""`orchestrator status`: how the installation stands, on one screen.

It says what there is; `doctor` checks whether everything works, and says what to do.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from orchestrator.cli.attached import Installation, database_command
from orchestrator.cli.listings import NOTHING_WAITS
from orchestrator.cli.lookup import price, table
from orchestrator.cli.output import flag, json_option, printer, say, say_document
from orchestrator.text import duration

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Group, RenderableType

    from orchestrator.store.status import Money, Status, Waiting


@click.command(short_help="Show how the installation stands, on one screen.")
@database_command
@flag("--watch", told="Show it again and again, until it is interrupted.")
@click.option(
    "--interval",
    type=click.FloatRange(0.5, 3600),
    default=2.0,
    metavar="SECONDS",
    help="Between two readings, with --watch.",
)
@json_option
async def status(here: Installation, *, watch: bool, interval: float, as_json: bool) -> None:
    """Show how the installation stands: what waits for a decision, money under way, open checkouts, queues,
    processes, gateways, and what is wrong.

    A number with a plus is a lower bound. With --json, amounts are in minor units and ages in seconds; with
    --watch too, each reading is one line.
    """
    if watch:
        await _watch(here, interval=interval, as_json=as_json)
        return
    reading = await _read(here)
    if as_json:
        say_document(reading.document)
    else:
        printer().print(reading.drawn)


async def _watch(here: Installation, *, interval: float, as_json: bool) -> None:
    from rich.live import Live

    from orchestrator.store import readiness
    from orchestrator.store.database import is_away

    console = printer()
    redrawn = console.is_terminal and not as_json
    live = Live(console=console, auto_refresh=False, screen=True) if redrawn else None
    with live or nullcontext():
        while True:
            try:
                reading = await _read(here)
            except Exception as error:
                if not is_away(error):
                    raise
                say(f"{readiness.reason(error)}; it is read again in {interval:g} s", err=True)
            else:
                if as_json:
                    say_document(reading.document)
                elif live is not None:
                    live.update(reading.drawn, refresh=True)
                else:
                    console.print(reading.drawn)
                    console.print()
            await asyncio.sleep(interval)


async def _read(here: Installation) -> _Reading:
    from orchestrator.cli import gateways
    from orchestrator.processing import lookup_budget
    from orchestrator.store import status as stored

    began = time.monotonic()
    found = await stored.read(here.db, grace=here.settings.hint_grace)
    queues = await lookup_budget.queues(here.db)
    took = time.monotonic() - began
    circuits = await gateways.shared_circuits(here.settings) or {}
    problems = [*found.problems, *(queue.summary for queue in queues if queue.overdue)]
    if isinstance(circuits, str):
        problems.append(
            f"Redis does not answer ({circuits}): which gateways are not called is not known here"
        )
        circuits = {}
    return _Reading(found, problems, circuits, took, stored.AT_MOST)


@dataclass(frozen=True, slots=True)
class _Reading:
    """A reading, drawn or as data: gateways that are not called with the seconds for which, the seconds that
    the statements took, and the bound of numbers.
    """

    found: Status
    problems: Sequence[str]
    circuits: Mapping[str, float]
    took: float
    most: int

    @property
    def document(self) -> dict[str, object]:
        found = self.found
        return {
            "at": found.at,
            "milliseconds": round(self.took * 1000),
            "countedAtMost": self.most,
            "decisions": [{"code": one.name, **_money_facts(one)} for one in found.decisions],
            "operations": [
                {"kind": one.name, "state": one.state, **_money_facts(one)} for one in found.operations
            ],
            "open": {
                one.name: {"number": one.number, "failing": one.failing, "age": round(one.age, 1)}
                for one in found.open
            },
            "queues": {one.name: {"number": one.number, "age": round(one.age, 1)} for one in found.queues},
            "createdInLastMinute": found.created,
            "processes": {
                kind: {"alive": number, "heartbeatAge": round(age, 1)}
                for kind, (number, age) in found.alive.items()
            },
            "gatewaysNotCalled": [
                {"gateway": name, "seconds": round(seconds, 1)} for name, seconds in self.circuits.items()
            ],
            "problems": list(self.problems),
        }

    @property
    def drawn(self) -> Group:
        from rich.console import Group
        from rich.text import Text

        found = self.found
        processes = ", ".join(
            f"{number} {kind}{'' if number == 1 else 's'}" for kind, (number, _) in found.alive.items()
        )
        problems = [Text(f"  - {problem}", style="red") for problem in self.problems]
        gateways = [
            Text(f"  - {name} is not called for another {seconds:.0f} s", style="yellow")
            for name, seconds in self.circuits.items()
        ]
        return Group(
            f"{found.at:%Y-%m-%d %H:%M:%S} UTC, read in {self.took * 1000:.0f} ms",
            "",
            *self._money("Decisions", NOTHING_WAITS, found.decisions, "reason"),
            *self._money("Money under way", "No money is under way.", found.operations, "operation"),
            *self._numbers(
                f"Open checkouts ({self._count(found.created)} new in the last minute)",
                "No checkout is open.",
                found.open,
                "state",
            ),
            *self._numbers("Queues", "Nothing waits.", [one for one in found.queues if one.number], "queue"),
            f"Processes  {processes or 'none is alive'}",
            "Gateways   " + ("" if gateways else "no circuit is open"),
            *gateways,
            "Problems   " + ("" if problems else "none found; `orchestrator doctor` checks more"),
            *problems,
        )

    def _count(self, number: int) -> str:
        return f"{number:,}{'+' if number >= self.most else ''}"

    def _money(self, title: str, nothing: str, rows: Sequence[Money], what: str) -> list[RenderableType]:
        shown = table(what, "number", "amount", "oldest")
        for row in rows:
            name = row.name if row.state is None else f"{row.name} {row.state}"
            amount = price(row.amount, row.currency)
            shown.add_row(name, self._count(row.number), amount, duration(row.age))
        return [title, shown if rows else f"  {nothing}", ""]

    def _numbers(self, title: str, nothing: str, rows: Sequence[Waiting], what: str) -> list[RenderableType]:
        failing = any(row.failing for row in rows)
        shown = table(what, "number", *(["failing"] if failing else []), "oldest")
        for row in rows:
            more = [self._count(row.failing)] if failing else []
            shown.add_row(row.name, self._count(row.number), *more, duration(row.age))
        return [title, shown if rows else f"  {nothing}", ""]


def _money_facts(row: Money) -> dict[str, object]:
    return {
        "number": row.number,
        "currency": row.currency,
        "amount": row.amount,
        "age": round(row.age, 1),
    }

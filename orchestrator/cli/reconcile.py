"""Lookups of many checkouts: some by name, or all of a period.

They are requested in lists, a few lists at a time; workers and each merchant's budget of lookups decide how
fast they are answered. The output at the end is what changed between request and answer.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import click

from orchestrator.cli.attached import data_dir, on_database
from orchestrator.cli.confirmation import as_option
from orchestrator.cli.lookup import ID_SLACK, Span, find_checkout, first_id, merchant_id, table
from orchestrator.cli.output import json_option, printer, say, say_document
from orchestrator.domain.command_result import REFUSED
from orchestrator.domain.records import CommandKind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from pathlib import Path
    from uuid import UUID

    from rich.table import Table

    from orchestrator.crypto import Encryptor
    from orchestrator.domain.attention import Attention
    from orchestrator.settings import Settings
    from orchestrator.store.database import Database

SIZE: Final = 200
"""Checkouts in one list."""
OUTSTANDING: Final = 5 * SIZE
"""Checkouts that may wait for their answer before more are asked for."""
_PAUSE: Final = 0.25
_BETWEEN: Final = 1.0
"""Seconds between two lists where the command does not wait for the answers."""
_LINE_EVERY: Final = 5.0


@click.command(short_help="Look checkouts up at the gateway: some, or all of a period.")
@data_dir
@click.argument("checkouts", nargs=-1)
@click.option(
    "--since", type=Span(), metavar="SPAN", help="All that were taken within this time: 90m, 24h, 7d."
)
@click.option("--merchant", metavar="NAME", help="Only this merchant's; with --since.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait for the answers, or only ask.")
@click.option(
    "--timeout", type=click.FloatRange(1, 86_400), default=600.0, show_default=True, metavar="SECONDS",
    help="Give up when nothing has been answered for so long.",
)  # fmt: skip
@as_option
@json_option
def reconcile(
    *,
    data_dir: Path,
    checkouts: Sequence[str],
    since: float | None,
    merchant: str | None,
    wait: bool,
    timeout: float,
    actor: str,
    as_json: bool,
) -> int:
    """Have the gateway asked about CHECKOUTS (ids or order numbers), or about all of a period (--since)."""
    if bool(checkouts) == (since is not None):
        raise click.UsageError("name checkouts, or a period with --since, and not both")
    if merchant is not None and since is None:
        raise click.UsageError("--merchant goes with --since: checkouts that are named need no merchant")

    async def ask(settings: Settings, db: Database) -> int:
        from orchestrator.crypto import Encryptor  # noqa: PLC0415 - each command imports what it needs

        asking = _Asking(db, Encryptor(settings.secret_keys), actor)
        if since is None:
            rows = [await find_checkout(db, name) for name in dict.fromkeys(checkouts)]
            lists, total = _lists(rows), len(rows)
        else:
            period = await _period(db, since, merchant)
            (counted,) = await db.read(_count(), period)
            lists, total = _pages(db, period), int(counted.number)
        return await _reconcile(asking, lists, total, wait=wait, timeout=timeout, as_json=as_json)

    return on_database(data_dir, ask)


@dataclass(frozen=True, slots=True)
class _Stand:
    """What a lookup may change of a checkout."""

    state: str
    money: tuple[int, int, int, int]
    attention: Attention | None


@dataclass(slots=True)
class _Tally:
    """What has come of it so far; `waiting` has the command of each that is not answered yet."""

    asked: int = 0
    looked: int = 0
    refused: int = 0
    completed: int = 0
    money: int = 0
    attention: int = 0
    waiting: dict[UUID, _Stand] = field(default_factory=dict)
    heard_at: float = field(default_factory=time.monotonic)

    def note(self, row: Any) -> None:
        """Record one answer."""
        before, after = self.waiting.pop(row.id), _stand(row)
        self.heard_at = time.monotonic()
        if row.result in REFUSED:
            self.refused += 1
            return
        self.looked += 1
        self.completed += after.state == "completed" != before.state
        self.money += after.money != before.money
        self.attention += after.attention is not None and after.attention.is_news(before.attention)


@dataclass(frozen=True, slots=True)
class _Asking:
    """What a request needs: where it is stored, under which keys, and who asks."""

    db: Database
    encryptor: Encryptor
    actor: str


async def _reconcile(
    asking: _Asking,
    lists: AsyncIterator[Sequence[Any]],
    total: int,
    *,
    wait: bool,
    timeout: float,
    as_json: bool,
) -> int:
    tally, db = _Tally(), asking.db
    with _progress(tally, total) as show:
        async for rows in lists:
            if tally.asked and not wait:
                await asyncio.sleep(_BETWEEN)
            await _ask(asking, rows, tally)
            show()
            if wait and not await _settle(db, tally, most=OUTSTANDING - SIZE, timeout=timeout, show=show):
                break
        answered = wait and await _settle(db, tally, most=0, timeout=timeout, show=show)
    numbers = _numbers(tally, waited=wait)
    if as_json:
        say_document({name: number for name, _, number in numbers})
    else:
        printer().print(_summary(numbers))
    if wait and not answered:
        say(
            f"Not all were answered: nothing came for {timeout:g} s. Are workers running, and is the gateway within reach "
            "(`orchestrator doctor`)? The requests stay stored.",
            err=True,
        )
    return int(wait and not answered)


async def _ask(asking: _Asking, rows: Sequence[Any], tally: _Tally) -> None:
    from orchestrator.store import inbox  # noqa: PLC0415 - each command imports what it needs

    ids = [row.id for row in rows]
    commands = await inbox.request_all(
        asking.db, asking.encryptor, ids, kind=CommandKind.RECONCILE, actor=asking.actor, grace=0.0
    )
    tally.asked += len(commands)
    tally.waiting |= {commands[row.id]: _stand(row) for row in rows if row.id in commands}


async def _settle(
    db: Database, tally: _Tally, *, most: int, timeout: float, show: Callable[[], None]
) -> bool:
    """Wait until at most so many are unanswered; False if nothing was answered for `timeout` seconds."""
    tally.heard_at = time.monotonic()
    while len(tally.waiting) > most:
        rows = await db.read(_answers(), {"ids": list(tally.waiting)})
        for row in rows:
            tally.note(row)
        show()
        if not rows:
            if time.monotonic() - tally.heard_at > timeout:
                return False
            await asyncio.sleep(_PAUSE)
    return True


def _stand(row: Any) -> _Stand:
    from orchestrator.store.columns import coded  # noqa: PLC0415
    from orchestrator.store.read_model import CheckoutRecord  # noqa: PLC0415

    asked = row.attention if isinstance(row, CheckoutRecord) else coded(row, "attention")["attention"]
    return _Stand(row.state, (row.reserved, row.captured, row.refunded, row.charged_back), asked)


async def _lists(rows: Sequence[Any]) -> AsyncIterator[Sequence[Any]]:
    for start in range(0, len(rows), SIZE):
        yield rows[start : start + SIZE]


async def _pages(db: Database, period: dict[str, object]) -> AsyncIterator[Sequence[Any]]:
    """Yield the checkouts of a period, the oldest first; each page begins after the last id of the previous
    page.
    """
    after = period["after"]
    while rows := await db.read(_page(), {**period, "after": after, "most": SIZE}):
        yield rows
        after = rows[-1].id


async def _period(db: Database, since: float, merchant: str | None) -> dict[str, object]:
    """Return what the checkouts of a period have in common: a time of creation, and ids that begin with about
    that time.
    """
    from sqlalchemy import text  # noqa: PLC0415

    moment = text("SELECT clock() - make_interval(secs => :span) AS since, now() AS now")
    (row,) = await db.read(moment, {"span": since})
    return {
        "since": row.since,
        "after": first_id(row.now, since + ID_SLACK),
        "merchant_id": None if merchant is None else await merchant_id(db, merchant),
    }


# ── Showing ───────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def _progress(tally: _Tally, total: int) -> Iterator[Callable[[], None]]:
    """Show how far it is: a bar on a terminal, now and then a line anywhere else."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    console = printer(err=True)
    if console.is_terminal:
        columns = (TextColumn("Answered"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("", total=total)
            yield lambda: bar.update(task, completed=tally.looked + tally.refused)
        return
    said_at = float("-inf")

    def line() -> None:
        nonlocal said_at
        if time.monotonic() - said_at >= _LINE_EVERY:
            said_at = time.monotonic()
            say(f"asked {tally.asked} of {total}, answered {tally.looked + tally.refused}", err=True)

    yield line


def _numbers(tally: _Tally, *, waited: bool) -> list[tuple[str, str, int]]:
    """Return what came of it: the name in JSON, the words of the table, and the number."""
    numbers = [("asked", "asked", tally.asked)]
    if waited:
        numbers += [
            ("lookedAt", "looked at", tally.looked),
            ("completed", "completed", tally.completed),
            ("moneyChanged", "money changed", tally.money),
            ("attentionRaised", "attention raised", tally.attention),
            *([("refused", "refused", tally.refused)] if tally.refused else []),
            ("stillWaiting", "still waiting", len(tally.waiting)),
        ]
    return numbers


def _summary(numbers: Sequence[tuple[str, str, int]]) -> Table:
    shown = table("checkouts", "amount")
    shown.show_header = False
    for _, words, number in numbers:
        shown.add_row(words, f"{number:,}")
    return shown


# ── Reading ───────────────────────────────────────────────────────────────────────────────────────────────

_MATCHES: Final = """
    id > :after AND created_at >= :since AND merchant_id = coalesce(CAST(:merchant_id AS int), merchant_id)
"""


def _count() -> Any:
    from sqlalchemy import text  # noqa: PLC0415

    return text(f"SELECT count(*) AS number FROM checkouts WHERE {_MATCHES}")  # noqa: S608 - our own words


def _page() -> Any:
    from sqlalchemy import text  # noqa: PLC0415

    return text(f"""
        SELECT id, state, reserved, captured, refunded, charged_back, attention, attention_details FROM checkouts
         WHERE {_MATCHES} ORDER BY id LIMIT :most
    """)  # noqa: S608 - our own words


def _answers() -> Any:
    from sqlalchemy import text  # noqa: PLC0415

    return text("""
        SELECT k.id, k.result, c.state, c.reserved, c.captured, c.refunded, c.charged_back, c.attention, c.attention_details
          FROM commands k JOIN checkouts c ON c.id = k.checkout_id
         WHERE k.id = ANY(CAST(:ids AS uuid[])) AND k.handled_at IS NOT NULL
    """)

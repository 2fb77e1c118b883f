"""Lookups of many checkouts: some by name, or all of a period.

They are requested in lists, a few lists at a time; workers and each merchant's budget of lookups decide how
fast they are answered. The output at the end is what changed between request and answer. After a database was
restored to an earlier point in time (`restored`), all that may have changed since is looked up.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import click

from orchestrator.cli.attached import Installation, data_dir, on_database, query
from orchestrator.cli.lookup import ID_SLACK, find_checkout, first_id, merchant_id, span, table, words_of
from orchestrator.cli.merchant_changes import find
from orchestrator.cli.output import json_option, printer, say, say_document
from orchestrator.cli.questions import as_option
from orchestrator.domain.command_result import REFUSED
from orchestrator.domain.records import CommandKind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence

    from rich.table import Table

    from orchestrator.domain.attention import Attention
    from orchestrator.store.database import Database

SIZE: Final = 200
"""Checkouts in one list."""
OUTSTANDING: Final = 5 * SIZE
"""Checkouts that may wait for their answer before more are asked for."""
_PAUSE: Final = 0.25
_MOST_NAMED: Final = 50
POSITIONS_SKIPPED: Final = 1_000_000
"""Positions of each feed that are left free beyond those that were given and lost: more events than a
merchant has between a backup and its use."""
LARGEST_FILE: Final = 64 * 1024 * 1024
_BETWEEN: Final = 1.0
"""Seconds between two lists where the command does not wait for the answers."""
_LINE_EVERY: Final = 5.0
_CLOCK_SLACK: Final = 60.0
_REACH: Final = 90 * 86_400.0
"""Seconds: without --reach."""


def _past_moment(value: str) -> datetime:
    """Read a moment as RFC 3339 has it, with its offset, in the past: 2026-11-27T08:00:00Z."""
    try:
        read = datetime.fromisoformat(value.strip())
    except ValueError:
        read = datetime.min  # noqa: DTZ901 - it has no offset, and so is refused
    if read.tzinfo is None:
        raise click.BadParameter(f"{value!r} is not a moment with its offset, such as 2026-11-27T08:00:00Z")
    if (read - datetime.now(UTC)).total_seconds() > _CLOCK_SLACK:
        raise click.BadParameter(f"{value!r} lies in the future")
    return read


@click.command(short_help="Look checkouts up at the gateway: some, or all of a period.")
@data_dir
@click.argument("checkouts", nargs=-1)
@click.option(
    "--since", type=span, metavar="SPAN", help="All that were taken within this time: 90m, 24h, 7d."
)
@click.option(
    "--restored-to",
    type=_past_moment,
    metavar="MOMENT",
    help="The database was restored to this moment: all that may have changed since, and feeds beyond lost positions.",
)
@click.option(
    "--reach",
    type=span,
    metavar="SPAN",
    help="With --restored-to: settled checkouts too whose last change is at most this old at that moment (default: 90d).",
)
@click.option(
    "--orders",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="With --restored-to: order numbers of the time since, one a line; their payments are looked for.",
)
@click.option("--merchant", metavar="NAME", help="Only this merchant's; of --orders: whose they are.")
@click.option("--wait/--no-wait", default=True, help="Wait for the answers, or only ask.")
@click.option(
    "--timeout",
    type=click.FloatRange(1, 86_400),
    default=600.0,
    metavar="SECONDS",
    help="Give up when nothing has been answered for so long.",
)
@as_option
@json_option
def reconcile(  # noqa: PLR0913 - one for each option
    *,
    data_dir: Path,
    checkouts: Sequence[str],
    since: float | None,
    restored_to: datetime | None,
    reach: float | None,
    orders: Path | None,
    merchant: str | None,
    wait: bool,
    timeout: float,
    actor: str,
    as_json: bool,
) -> int:
    """Have the gateway asked about CHECKOUTS (ids or order numbers), about all of a period (--since), or
    about all that may have changed since the moment to which the database was restored (--restored-to).
    """
    if bool(checkouts) + (since is not None) + (restored_to is not None) != 1:
        raise click.UsageError("name checkouts, or a period with --since or --restored-to, and not both")
    if merchant is not None and checkouts:
        raise click.UsageError("--merchant goes with --since: checkouts that are named need no merchant")
    if orders is not None and (restored_to is None or merchant is None):
        raise click.UsageError("--orders goes with --restored-to and --merchant")
    if reach is not None and restored_to is None:
        raise click.UsageError("--reach goes with --restored-to")
    names = [] if orders is None else _order_numbers(orders)

    async def ask(here: Installation) -> int:
        from orchestrator.store import inbox

        # Without a secret key nothing is prepared either.
        request = partial(
            inbox.request_all,
            here.db,
            here.encryptor,
            kind=CommandKind.RECONCILE,
            actor=actor,
            grace=0.0,
        )
        complete = True
        if checkouts:
            ids = [(await find_checkout(here.db, name)).id for name in dict.fromkeys(checkouts)]
            matches, values = _NAMED, {"after": UUID(int=0), "ids": ids}
        else:
            if restored_to is not None:
                complete = await _prepare(here, merchant=merchant, names=names, as_json=as_json)
            values = await _period(
                here.db, since=since, restored_to=restored_to, reach=reach or _REACH, merchant=merchant
            )
            matches = _OF_PERIOD if restored_to is None else _MAY_HAVE_CHANGED
        count = f"SELECT count(*) AS number FROM checkouts WHERE {matches}"  # noqa: S608 - our own words
        (counted,) = await query(here.db, count, **values)
        lists, total = _pages(here.db, matches, values), int(counted.number)
        ended = await _reconcile(here.db, request, lists, total, wait=wait, timeout=timeout, as_json=as_json)
        return ended or int(not complete)

    return on_database(data_dir, ask)


def _order_numbers(file: Path) -> list[str]:
    """Read the order numbers of a file, one a line, each once; a sentence for what is none."""
    from orchestrator import intents

    if file.stat().st_size > LARGEST_FILE:
        raise click.UsageError(f"{file} is larger than {LARGEST_FILE // 1024**2} MB: split it")
    try:
        lines = file.read_text("utf-8").splitlines()
    except UnicodeDecodeError:
        raise click.UsageError(f"{file} is not a text file in UTF-8") from None
    found: dict[str, None] = {}
    for number, line in enumerate(lines, 1):
        if name := line.strip():
            if not intents.may_be_order(name):
                raise click.UsageError(f"line {number} of {file} is not an order number")
            found[name] = None
    return list(found)


async def _prepare(here: Installation, *, merchant: str | None, names: Sequence[str], as_json: bool) -> bool:
    """Prepare a database that was restored; return whether every order number was answered."""
    from orchestrator.cli import restored
    from orchestrator.store import events

    record = None if merchant is None else await find(here, merchant)
    feeds = await events.skip(here.db, POSITIONS_SKIPPED)
    say(f"{feeds} feeds go on beyond the positions that were lost.", err=True)
    if record is None or not names:
        return True
    lost = await restored.find_lost(here, merchant=record, orders=names)
    numbers = {
        "orders with a checkout": lost.known,
        "created from their payment": lost.created,
        "without a payment": len(lost.unpaid),
        **({"not answered": len(lost.unanswered)} if lost.unanswered else {}),
    }
    printer(err=as_json).print(_figures(numbers))
    for title, orders in (("No payment at the gateway", lost.unpaid), ("Not answered", lost.unanswered)):
        if orders:
            more = f" … ({len(orders) - _MOST_NAMED} more)" if len(orders) > _MOST_NAMED else ""
            say(f"{title}: {', '.join(orders[:_MOST_NAMED])}{more}", err=True)
    return not lost.unanswered


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

    def expect(self, rows: Sequence[Any], commands: Mapping[UUID, UUID]) -> None:
        """Record what was asked for: the command of each checkout that got one."""
        self.asked += len(commands)
        self.heard_at = time.monotonic()
        self.waiting |= {commands[row.id]: _stand(row) for row in rows if row.id in commands}

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


async def _reconcile(
    db: Database,
    request: Callable[[Sequence[UUID]], Awaitable[Mapping[UUID, UUID]]],
    lists: AsyncIterator[Sequence[Any]],
    total: int,
    *,
    wait: bool,
    timeout: float,
    as_json: bool,
) -> int:
    tally = _Tally()
    with _progress(tally, total) as show:
        async for rows in lists:
            if tally.asked and not wait:
                await asyncio.sleep(_BETWEEN)
            tally.expect(rows, await request([row.id for row in rows]))
            show()
            if wait and not await _settle(db, tally, most=OUTSTANDING - SIZE, timeout=timeout, show=show):
                break
        answered = wait and await _settle(db, tally, most=0, timeout=timeout, show=show)
    numbers = _numbers(tally, waited=wait)
    if as_json:
        say_document(numbers)
    else:
        printer().print(_figures(numbers))
    if wait and not answered:
        say(
            f"Not all were answered: nothing came for {timeout:g} s. Are workers running, and is the gateway within reach "
            "(`orchestrator doctor`)? The requests stay stored.",
            err=True,
        )
    return int(wait and not answered)


async def _settle(
    db: Database, tally: _Tally, *, most: int, timeout: float, show: Callable[[], None]
) -> bool:
    """Wait until at most so many are unanswered; False if nothing was asked or answered for `timeout`
    seconds.
    """
    while len(tally.waiting) > most:
        rows = await query(db, _ANSWERS, ids=list(tally.waiting))
        for row in rows:
            tally.note(row)
        show()
        if not rows:
            if time.monotonic() - tally.heard_at > timeout:
                return False
            await asyncio.sleep(_PAUSE)
    return True


def _stand(row: Any) -> _Stand:
    from orchestrator.store.columns import coded

    money = (row.reserved, row.captured, row.refunded, row.charged_back)
    return _Stand(row.state, money, coded(row, "attention")["attention"])


async def _pages(db: Database, matches: str, values: dict[str, Any]) -> AsyncIterator[Sequence[Any]]:
    """Yield checkouts, the oldest first; each page begins after the last id of the previous page."""
    page = f"""
        SELECT id, state, reserved, captured, refunded, charged_back, attention, attention_details FROM checkouts
         WHERE {matches} ORDER BY id LIMIT :most
    """  # noqa: S608 - our own words
    after = values["after"]
    while rows := await query(db, page, **(values | {"after": after, "most": SIZE})):
        yield rows
        after = rows[-1].id


async def _period(
    db: Database, *, since: float | None, restored_to: datetime | None, reach: float, merchant: str | None
) -> dict[str, Any]:
    """Return what the checkouts of a period have in common: a time of creation, and ids that begin with about
    that time; or, where the database was restored, a time of their last change.
    """
    moment = """
        SELECT coalesce(CAST(:moment AS timestamptz), clock()) - make_interval(secs => :span) AS since, now() AS now
    """
    (row,) = await query(db, moment, moment=restored_to, span=reach if since is None else since)
    return {
        "since": row.since,
        "after": UUID(int=0) if since is None else first_id(row.now, since + ID_SLACK),
        "merchant_id": None if merchant is None else await merchant_id(db, merchant),
    }


# ── Showing ───────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def _progress(tally: _Tally, total: int) -> Iterator[Callable[[], None]]:
    """Show how far it is: a bar on a terminal, now and then a line anywhere else."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = printer(err=True)
    if console.is_terminal:
        columns = (TextColumn("Answered"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("", total=total)
            yield lambda: bar.update(task, completed=tally.looked + tally.refused)
        return
    # What one list asks for is mostly answered at once: a line only if it takes long.
    said_at = float("-inf") if total > SIZE else time.monotonic()

    def line() -> None:
        nonlocal said_at
        if time.monotonic() - said_at >= _LINE_EVERY:
            said_at = time.monotonic()
            say(f"asked {tally.asked} of {total}, answered {tally.looked + tally.refused}", err=True)

    yield line


def _numbers(tally: _Tally, *, waited: bool) -> dict[str, int]:
    """Return what came of it, by the names of the JSON."""
    numbers = {"asked": tally.asked}
    if waited:
        numbers |= {
            "lookedAt": tally.looked,
            "completed": tally.completed,
            "moneyChanged": tally.money,
            "attentionRaised": tally.attention,
            **({"refused": tally.refused} if tally.refused else {}),
            "stillWaiting": len(tally.waiting),
        }
    return numbers


def _figures(numbers: Mapping[str, int]) -> Table:
    shown = table("", "amount")
    shown.show_header = False
    for name, number in numbers.items():
        shown.add_row(words_of(name), f"{number:,}")
    return shown


# ── Reading ───────────────────────────────────────────────────────────────────────────────────────────────

_NAMED: Final = "id > :after AND id = ANY(CAST(:ids AS uuid[]))"
_OF_PERIOD: Final = """
    id > :after AND created_at >= :since AND merchant_id = coalesce(CAST(:merchant_id AS int), merchant_id)
"""
# What was settled long before has hardly changed since; `--reach` says how long a refund may come after.
_MAY_HAVE_CHANGED: Final = """
    id > :after AND (due_at IS NOT NULL OR updated_at >= :since)
    AND merchant_id = coalesce(CAST(:merchant_id AS int), merchant_id)
"""
_ANSWERS: Final = """
    SELECT k.id, k.result, c.state, c.reserved, c.captured, c.refunded, c.charged_back, c.attention, c.attention_details
      FROM commands k JOIN checkouts c ON c.id = k.checkout_id
     WHERE k.id = ANY(CAST(:ids AS uuid[])) AND k.handled_at IS NOT NULL
"""

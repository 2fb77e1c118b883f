"""The events of merchants, listed, or followed as they come (`follow`, also named `tail`); straight from the
database, for the operators of the installation.
"""

from __future__ import annotations

import asyncio
from decimal import Decimal
from itertools import count
from typing import TYPE_CHECKING, Any, Final

import click

from orchestrator.cli.attached import Installation, data_dir, database_command, on_database, options
from orchestrator.cli.lookup import find_checkout, merchant_id, merchant_option, table, types_option, words_of
from orchestrator.cli.output import flag, json_flag, say, say_document, say_more, say_table

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from orchestrator.domain.events import StoredEvent
    from orchestrator.store.database import Database

INTERVAL: Final = 0.2
"""Seconds between two queries of `follow`."""
MOST: Final = 500
"""Events of a merchant that `follow` reads at once."""
NEWCOMERS: Final = 25
"""Queries after which `follow` reads the list of merchants again."""
_SAID: Final = frozenset({"checkoutId", "orderId", "state", "paymentStatus", "money"})
"""Of an event's data, what its line says already, or what the checkout shows as well."""

_NAMES: Final = {"transactionId": "transaction", "transactionIds": "transactions"}

_printed = options(
    json_flag("One CloudEvent in each line."),
    flag("--full", told="With the sentences of full documents (with --json)."),
)


@click.group()
def events() -> None:
    """List or follow the events of merchants."""


@events.command("list", short_help="List the newest events, or those after a position.")
@database_command
@merchant_option("The merchant whose feed it is.")
@click.option("--checkout", metavar="ID", help="Only this checkout's (id or order number), of any merchant.")
@click.option(
    "--after",
    type=click.IntRange(0),
    metavar="POSITION",
    help="The first events after this position of the feed; without it the newest.",
)
@types_option()
@click.option("--limit", type=click.IntRange(1, 10_000), default=100)
@_printed
async def list_events(
    here: Installation,
    *,
    merchant: str,
    checkout: str | None,
    after: int | None,
    kinds: Sequence[str],
    limit: int,
    as_json: bool,
    full: bool,
) -> None:
    """List the newest events of a feed or of a checkout, or the first after a position; the oldest first."""
    from orchestrator.store import events as feeds

    wanted = frozenset(kinds) or None
    if checkout is not None:
        found = (await find_checkout(here.db, checkout)).id
        rows = await feeds.history(here.db, found, limit=limit + 1, kinds=wanted, after=after)
    else:
        rows = await _of_feed(here.db, merchant, after=after, limit=limit + 1, kinds=wanted)
    if len(rows) > limit and after is None:
        rows = rows[1:]
        say_more(limit, "these are the newest; --after 0 begins with the oldest, --limit shows more")
    elif len(rows) > limit:
        rows = rows[:limit]
        say_more(limit, f"go on with --after {rows[-1].position}, or ask for more with --limit")
    if as_json:
        for row in rows:
            _say_json(row, full=full)
        return
    shown = table("position", "at", "checkout", "#", "event", "order", "state", "payment", "facts")
    for row in rows:
        shown.add_row(*_cells(row))
    say_table(shown, empty="No event matches.")


async def _of_feed(
    db: Database, merchant: str, *, after: int | None, limit: int, kinds: frozenset[str] | None
) -> list[StoredEvent]:
    from orchestrator.store import events as feeds

    number = await merchant_id(db, merchant)
    if after is None:
        return list(await feeds.newest(db, number, limit=limit, kinds=kinds))
    feed = await feeds.feed(db, number)
    rows: list[StoredEvent] = []
    while len(rows) < limit and after < feed.last:
        page = await feeds.page(
            db, number, after=after, until=feed.last, limit=limit - len(rows), kinds=kinds
        )
        rows += page.events
        after = page.until
    return rows


@events.command("follow")
@data_dir
@click.option("--merchant", metavar="NAME", help="Only this merchant's.")
@click.option(
    "--after",
    type=click.IntRange(0),
    metavar="POSITION",
    help="Begin after this position of --merchant's feed; from now on where it is left out.",
)
@types_option()
@click.option("--limit", type=click.IntRange(1), metavar="NUMBER", help="End after so many events.")
@_printed
def follow_events(
    *,
    data_dir: Path,
    merchant: str | None,
    after: int | None,
    kinds: Sequence[str],
    limit: int | None,
    as_json: bool,
    full: bool,
) -> int:
    """Print events as they come, until it is interrupted."""
    if after is not None and merchant is None:
        raise click.UsageError("--after is a position in the feed of one merchant: name it with --merchant")

    async def show(here: Installation) -> None:
        only = None if merchant is None else await merchant_id(here.db, merchant)
        shown = 0
        async for row in _coming(here.db, only, after=after):
            if kinds and row.kind not in kinds:
                continue
            if as_json:
                _say_json(row, full=full)
            else:
                say("  ".join((f"{row.merchant:12}", *_cells(row))))
            shown += 1
            if shown == limit:
                break

    return on_database(data_dir, show)


events.add_command(follow_events, "tail")  # the name that log tools have for it


async def _coming(db: Database, only: int | None, *, after: int | None) -> AsyncIterator[StoredEvent]:
    """Give events as they come: of all merchants, or of one merchant after a position of its feed."""
    from orchestrator.store import events as feeds

    cursors: dict[int, int] = {}
    for query in count():
        if query % NEWCOMERS == 0:
            for number, feed in (await feeds.all_feeds(db)).items():
                if only in {None, number} and number not in cursors:
                    # Of a merchant that came meanwhile everything is new.
                    cursors[number] = (feed.last if query == 0 else 0) if after is None else after
        found = await feeds.since(db, cursors, most=MOST)
        for number, rows in found.items():
            for row in rows:
                yield row
            cursors[number] = rows[-1].position
        if not found:
            await asyncio.sleep(INTERVAL)


def _say_json(row: StoredEvent, *, full: bool) -> None:
    """Print an event's document; a note on stderr where another version wrote an event that this version
    cannot show.
    """
    from orchestrator.domain.events import document

    try:
        made = document(row, content="full" if full else "thin")
    except (ValueError, KeyError):
        say(f"event {row.sequence} of checkout {row.checkout_id} is not readable: {row.kind}", err=True)
        return
    say_document(made)


def _cells(row: StoredEvent) -> tuple[str, ...]:
    """Return an event as the cells of a line."""
    import msgspec

    from orchestrator.domain.events import document

    try:
        data: dict[str, Any] = msgspec.to_builtins(document(row, content="full").data)
        details = data.pop("details", {})
        facts = data | details
    except (ValueError, KeyError):
        data, facts = {}, {"not readable": msgspec.json.encode(row.payload).decode()}
    return (
        "" if row.position is None else str(row.position),
        f"{row.created_at:%Y-%m-%d %H:%M:%S.%f}"[:-3],
        str(row.checkout_id),
        str(row.sequence),
        row.kind,
        str(data.get("orderId", "")),
        str(data.get("state", "")),
        str(data.get("paymentStatus", "")),
        "; ".join(
            f"{_NAMES.get(name, words_of(name))}: {_told(value)}"
            for name, value in facts.items()
            if value is not None and name not in _SAID
        ),
    )


def _told(value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case {"value": amount, "currency": currency}:
            return f"{Decimal(amount):,} {currency}"
        case [*several]:
            return ", ".join(map(_told, several))
        case _:
            return str(value)

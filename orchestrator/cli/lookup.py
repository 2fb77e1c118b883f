"""What the commands about checkouts share: a checkout by id or order number, time spans and moments, tables
and amounts.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final
from uuid import UUID

import click

from orchestrator.cli.attached import query
from orchestrator.cli.output import F, say
from orchestrator.domain.events import EventType

if TYPE_CHECKING:
    from collections.abc import Callable
    from enum import StrEnum

    from rich.table import Table

    from orchestrator.store.database import Database
    from orchestrator.store.read_model import CheckoutRecord

ID_SLACK: Final = 600.0
"""Seconds by which the clock of the process that made an id may differ from Postgres's."""
MOST_CORRELATED: Final = 50
"""Checkouts of one request that are listed."""
_NAMED: Final = 5
"""Merchants that a sentence names."""
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_YEAR: Final = 366
"""Days."""
_AMOUNTS: Final = frozenset(
    {"amount", "number", "failing", "oldest", "held", "reserved", "captured", "refunded", "charged back"}
)
_WHOLE: Final = frozenset({"id", "checkout", "at", "event", "#", "payment", "operation", "command"})
"""What is copied from a table must not be folded."""


def merchant_option(whose: str) -> Callable[[F], F]:
    """Return the option --merchant of a command that is about one merchant, by default `default`."""
    return click.option("--merchant", metavar="NAME", default="default", help=whose)


def one_of(words: type[StrEnum]) -> click.Choice[str]:
    """Return the type of an option that takes a word of a closed set."""
    return click.Choice([word.value for word in words])


def types_option(told: str = "Only these; may be repeated.") -> Callable[[F], F]:
    """Return the option that chooses types of events."""
    return click.option("--type", "kinds", multiple=True, metavar="TYPE", type=one_of(EventType), help=told)


def span_to(days: int) -> Callable[[str], float]:
    """Return what reads a time span such as 90m, 24h or 7d as seconds: a type of options."""
    most = "a year" if days == _YEAR else f"{days} days"

    def span(value: str) -> float:
        found = re.fullmatch(r"(\d{1,9})([smhd])", value.strip())
        seconds = int(found[1]) * _UNITS[found[2]] if found else 0
        if not 1 <= seconds <= days * _UNITS["d"]:
            raise click.BadParameter(
                f"{value!r} is not a time span such as 90m, 24h or 7d, of at most {most}"
            )
        return float(seconds)

    return span


span = span_to(_YEAR)


def read_moment(value: str) -> datetime:
    """Read a day or a moment: 2026-01-31, 2026-01-31T12:00:00Z; UTC where it names no zone."""
    try:
        found = datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is not a time such as 2026-01-31 or 2026-01-31T12:00:00Z"
        ) from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def span_or_moment(value: str) -> float | datetime:
    """Read a time span before now, as seconds, or a moment."""
    return span(value) if re.fullmatch(r"\d+[a-z]?", value.strip()) else read_moment(value)


def first_id(now: datetime, before: float) -> UUID:
    """Return the lowest UUIDv7 of the millisecond `before` seconds ago (below 0: of a time to come)."""
    from orchestrator.domain import ids

    ago = min(max(before, -_YEAR * _UNITS["d"]), now.timestamp())
    return ids.first_id(now - timedelta(seconds=ago))


async def find_checkout(db: Database, wanted: str) -> CheckoutRecord:
    """Return the checkout with this id, or the youngest with this order number (which may look like an id,
    too).

    An order number that several merchants have is refused: it may mean the money of either.
    """
    from orchestrator import intents
    from orchestrator.store import read_model

    number = uuid_of(wanted)
    found = await read_model.checkout(db, number) if number else None
    if found is None and intents.may_be_order(wanted):
        rows = await read_model.of_order(db, wanted)
        merchants = list(dict.fromkeys(row.merchant for row in rows))
        if len(merchants) > 1:
            more = f" and {len(merchants) - _NAMED} more" if len(merchants) > _NAMED else ""
            raise click.UsageError(
                f"order number {wanted!r} belongs to several merchants "
                f"({', '.join(merchants[:_NAMED])}{more}): name the checkout "
                f"by its id, which `orchestrator checkouts list --order {wanted}` shows"
            )
        found = await read_model.checkout(db, rows[0].id) if rows else None
    if found is None:
        raise click.UsageError(f"there is no checkout with the id or order number {wanted!r}")
    return found


async def find_correlated(db: Database, correlation: str) -> CheckoutRecord | None:
    """Return the checkout of the request with this correlation id; where several came with it, list them and
    return None.

    No index has it, so that intake need not keep one: the statement reads all checkouts, a second for some
    millions.
    """
    from orchestrator.store import read_model

    asked = """
        SELECT id, order_ref, state FROM checkouts WHERE correlation_id = :correlation ORDER BY created_at DESC LIMIT :most
    """
    rows = await query(db, asked, correlation=correlation, most=MOST_CORRELATED + 1)
    if not rows:
        raise click.UsageError(f"no checkout came with the correlation id {correlation!r}")
    if len(rows) == 1:
        return await read_model.checkout(db, rows[0].id)
    for row in rows[:MOST_CORRELATED]:
        say(f"{row.id}  {row.order_ref}  {row.state}")
    number = f"more than {MOST_CORRELATED}" if len(rows) > MOST_CORRELATED else len(rows)
    say(f"{number} checkouts came with this id: show one of them by its own.", err=True)
    return None


async def merchant_names(db: Database) -> dict[int, str]:
    """Return the names of all merchants, by their numbers."""
    return {row.id: row.name for row in await query(db, "SELECT id, name FROM merchants")}


async def merchant_id(db: Database, name: str, *, enabled: bool = False) -> int:
    """Return the number of a merchant, or say that there is none of this name, or that it is disabled where
    it has to be `enabled`.
    """
    for row in await query(
        db, "SELECT id, disabled_at IS NOT NULL AS disabled FROM merchants WHERE name = :name", name=name
    ):
        if enabled and row.disabled:
            raise click.UsageError(
                f"merchant {name!r} is disabled and takes no orders: `orchestrator merchants enable {name}` lets it in again"
            )
        return int(row.id)
    raise click.UsageError(f"there is no merchant {name!r}: `orchestrator merchants list` shows them all")


def uuid_of(text: str) -> UUID | None:
    """Read an id; None for what is none."""
    try:
        return UUID(text)
    except ValueError:
        return None


def moment(at: datetime | None) -> str:
    """Return a time for people; nothing for none."""
    return "" if at is None else f"{at:%Y-%m-%d %H:%M:%S}"


def words_of(name: str) -> str:
    """Write a name of a document in words: `operationId` is "operation id"."""
    return re.sub("(?<=[a-z])[A-Z]", lambda found: f" {found[0].lower()}", name)


def table(*columns: str) -> Table:
    """Return an empty table: amounts to the right, what is copied unfolded."""
    from rich.table import Table

    made = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for column in columns:
        made.add_column(
            column,
            justify="right" if column in _AMOUNTS else "left",
            no_wrap=column in _WHOLE,
            overflow="fold",
        )
    return made


def price(minor: int, currency: str) -> str:
    """Write a stored amount for people, whatever its currency is."""
    from orchestrator.explain import timeline

    return timeline.price(minor, currency)

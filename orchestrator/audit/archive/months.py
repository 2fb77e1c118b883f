"""The months of the trail: made ahead, and dropped when they are empty. Neither stops a writer.

An entry of a month that has no partition goes into `audit_entries_rest`, so an insert never fails; nothing
else goes there. A new month is attached, which only blocks other changes of the schema; an empty one is
detached within a lock timeout of a moment.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from orchestrator import log
from orchestrator.audit.archive.errors import ArchiveBusy
from orchestrator.audit.archive.lock_timeout import patiently, set_lock_timeout
from orchestrator.domain.ids import first_id

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from orchestrator.store.database import Database

_log = log.get(__name__)

AHEAD: Final = 12
_TRIES: Final = 5
_LAST: Final = datetime.max.replace(tzinfo=UTC).timestamp() - 1
_NAME: Final = re.compile(r"audit_entries_\d{4,}_\d{2}")
_BOUND: Final = re.compile(r"TO \('([0-9a-f-]{36})'\)")
_MONTHS = text("""
    SELECT c.relname AS name, pg_get_expr(c.relpartbound, c.oid) AS bound, pg_relation_size(c.oid) AS size, clock() AS now
      FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
     WHERE i.inhparent = CAST('audit_entries' AS regclass)
""")


@dataclass(frozen=True, slots=True)
class Month:
    """A partition of the trail: ids below `until` (None: the rest), and how many bytes its table has."""

    name: str
    until: UUID | None
    size: int


async def months_of(db: Database) -> list[Month]:
    """Return the partitions of the trail, the oldest first, the rest at the end."""
    return (await _known(db))[0]


async def make_ahead(db: Database, *, ahead: int = AHEAD) -> list[str]:
    """Make the missing months, up to so many after the present one; return which were made."""
    known, now = await _known(db)
    covered = max((month.until for month in known if month.until is not None), default=UUID(int=0))
    made = []
    for later in range(ahead + 1):
        first = _start(now, later)
        if first < covered:
            continue
        name = "audit_entries_{}_{:02}".format(*_month(now, later))
        if await _unless_busy(name, partial(_make, db, name, first, _start(now, later + 1))):
            made.append(name)
    return made


async def drop_empty(db: Database, *, before: UUID) -> list[str]:
    """Drop months that lie wholly before an id and have no page left; return which."""
    dropped = []
    for month in await months_of(db):
        if month.until is None or month.until > before or not _NAME.fullmatch(month.name):
            continue
        if month.size:
            # Gives the pages behind the last row back; while a transaction reads the month, another run does.
            await db.maintain(f"VACUUM (SKIP_LOCKED) {month.name}")
        if await _unless_busy(month.name, partial(_drop, db, month.name)):
            dropped.append(month.name)
    return dropped


async def _unless_busy(name: str, change: Callable[[], Awaitable[bool]]) -> bool:
    """Change something about a month; where a transaction holds the trail for long, another run does."""
    try:
        return await patiently(change, tries=_TRIES)
    except ArchiveBusy:
        _log.warning("month_busy", month=name)
        return False


async def _known(db: Database) -> tuple[list[Month], datetime]:
    rows = await db.read(_MONTHS)
    found = [
        Month(row.name, UUID(bound[1]) if (bound := _BOUND.search(row.bound)) else None, row.size)
        for row in rows
    ]
    return sorted(found, key=lambda month: (month.until is None, month.until)), rows[0].now


async def _make(db: Database, name: str, first: UUID, until: UUID) -> bool:
    """Make a month beside the trail, then attach it."""
    try:
        async with db.transaction() as tx:
            await set_lock_timeout(tx)
            for statement in (
                f"CREATE TABLE {name} (LIKE audit_entries INCLUDING ALL)",
                f"CREATE TRIGGER audit_entries_append_only BEFORE UPDATE OR TRUNCATE ON {name} FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()",
                f"ALTER TABLE audit_entries ATTACH PARTITION {name} FOR VALUES FROM ('{first}') TO ('{until}')",
            ):
                await tx.execute(text(statement))
    except IntegrityError:
        # Entries of that month are in the rest already, and stay there.
        _log.warning("month_in_the_rest", month=name)
        return False
    return True


async def _drop(db: Database, name: str) -> bool:
    async with db.transaction() as tx:
        await set_lock_timeout(tx)
        # In the order in which writers take them, so that no deadlock occurs.
        await tx.execute(text("LOCK TABLE ONLY audit_entries IN ACCESS EXCLUSIVE MODE"))
        await tx.execute(text(f"LOCK TABLE {name} IN ACCESS EXCLUSIVE MODE NOWAIT"))
        # Without a page it has no row, and while the lock is held no row can be added.
        size = text(f"SELECT pg_relation_size(CAST('{name}' AS regclass)) AS size")
        if (await tx.execute(size)).one().size:
            return False
        await tx.execute(text(f"ALTER TABLE audit_entries DETACH PARTITION {name}"))
        await tx.execute(text(f"DROP TABLE {name}"))
    return True


def moment_of(checkout_id: UUID) -> datetime:
    """Return when an id was made; the end of the calendar for a time that no calendar has."""
    return datetime.fromtimestamp(min((checkout_id.int >> 80) / 1000, _LAST), UTC)


def _month(now: datetime, later: int) -> tuple[int, int]:
    number = now.year * 12 + now.month - 1 + later
    return number // 12, number % 12 + 1


def _start(now: datetime, later: int) -> UUID:
    return first_id(datetime(*_month(now, later), 1, tzinfo=UTC))

"""Replays: events sent again to an endpoint, with the same ids, in streams of their own.

A stream of a replay is delivered as any other one (`store.deliveries`), beside the stream of what is new.
What the latter has still to send is no part of a replay: sent beside it, it would overtake the events before
it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from orchestrator.domain.ids import FIRST
from orchestrator.errors import OrchestratorError
from orchestrator.store import events
from orchestrator.store.columns import record
from orchestrator.store.database import run
from orchestrator.store.notifications import notify

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import TextClause

    from orchestrator.store.database import Database

REPLAYED_AT_ONCE: Final = 10_000
"""Positions, or events that were given up, that one statement of a replay reads."""
MOST_REPLAYED: Final = 200_000
"""Events of a period that is replayed, of all types."""
DISORDER: Final = 60.0
"""Seconds by which an event may be older than an event with a lower position."""

# A replay that is under way begins anew: the present holder of its stream writes nothing of it.
_REPLAYED: Final = """
    replayed AS (
        INSERT INTO delivery_streams AS s (endpoint_id, checkout_id, purpose, next_sequence, last_sequence, due_at)
        SELECT CAST(:endpoint_id AS uuid), checkout_id, 'replay', min(sequence), max(sequence), clock()
          FROM chosen GROUP BY checkout_id ORDER BY checkout_id
        ON CONFLICT (endpoint_id, checkout_id, purpose) DO UPDATE
           SET next_sequence = least(s.next_sequence, excluded.next_sequence), last_sequence = greatest(s.last_sequence, excluded.last_sequence),
               due_at = clock(), lease = NULL, attempts = 0, failing_since = NULL
    )"""
_COUNTED: Final = "(SELECT count(*) FROM (SELECT DISTINCT checkout_id, sequence FROM chosen) c)"
# An event that the stream itself has still to send is sent by it, at once: sent beside it, it would overtake
# those before it.
_REPLAY_ONE = text(f"""
    WITH wanted AS MATERIALIZED (
        SELECT v.checkout_id, v.sequence FROM events v JOIN webhook_endpoints w ON w.id = :endpoint_id AND w.deleted_at IS NULL
         WHERE v.checkout_id = :checkout_id AND v.sequence = :sequence AND v.merchant_id = :merchant_id AND v.position IS NOT NULL
           AND (w.kinds IS NULL OR v.kind = ANY(w.kinds))
    ),
    unsent AS (
        UPDATE delivery_streams s SET due_at = CASE WHEN s.lease IS NULL THEN least(s.due_at, clock()) ELSE s.due_at END
          FROM wanted w
         WHERE s.endpoint_id = :endpoint_id AND s.checkout_id = w.checkout_id AND s.purpose = 'event'
           AND s.next_sequence <= w.sequence AND s.last_sequence >= w.sequence
        RETURNING s.checkout_id
    ),
    chosen AS MATERIALIZED (SELECT * FROM wanted WHERE NOT EXISTS (SELECT FROM unsent)), {_REPLAYED}
    SELECT {_COUNTED} + (SELECT count(*) FROM unsent) AS events
""")  # noqa: S608 - made of our own constants
_REPLAY_PERIOD = text(f"""
    WITH chosen AS MATERIALIZED (
        SELECT e.checkout_id, e.sequence FROM events e JOIN webhook_endpoints w ON w.id = :endpoint_id AND w.deleted_at IS NULL
         WHERE e.merchant_id = :merchant_id AND e.position > :after AND e.position <= :until
           AND e.created_at >= :since AND e.created_at < :before AND (w.kinds IS NULL OR e.kind = ANY(w.kinds))
           AND NOT EXISTS (SELECT FROM delivery_streams s
                            WHERE s.endpoint_id = :endpoint_id AND s.checkout_id = e.checkout_id AND s.purpose = 'event'
                              AND s.next_sequence <= e.sequence AND s.last_sequence >= e.sequence)
    ), {_REPLAYED}
    SELECT {_COUNTED} AS events
""")  # noqa: S608 - made of our own constants
_REPLAY_FAILED = text(f"""
    WITH chosen AS MATERIALIZED (
        SELECT a.checkout_id, a.sequence FROM delivery_attempts a
          JOIN webhook_endpoints w ON w.id = a.endpoint_id AND w.deleted_at IS NULL
          JOIN events v ON v.checkout_id = a.checkout_id AND v.sequence = a.sequence AND (w.kinds IS NULL OR v.kind = ANY(w.kinds))
         WHERE a.endpoint_id = :endpoint_id AND a.result = 'given_up' AND a.id > :after AND a.id <= :until
    ), {_REPLAYED}
    SELECT {_COUNTED} AS events
""")  # noqa: S608 - made of our own constants
_OLDER = text("""
    SELECT created_at < CAST(:moment AS timestamptz) + make_interval(secs => :seconds) AS older FROM events
     WHERE merchant_id = :merchant_id AND position > :after ORDER BY position LIMIT 1
""")
_FAILED = text("""
    SELECT id FROM delivery_attempts WHERE endpoint_id = :endpoint_id AND result = 'given_up' AND id > :after ORDER BY id LIMIT :most
""")
_OF_ATTEMPT = text("""
    SELECT a.endpoint_id AS webhook, a.checkout_id AS checkout, a.sequence
      FROM delivery_attempts a JOIN webhook_endpoints e ON e.id = a.endpoint_id AND e.merchant_id = :merchant_id AND e.deleted_at IS NULL
     WHERE a.id = :id
""")


class PeriodTooLong(OrchestratorError):  # noqa: N818 - named for the fact
    """A period has more events than are sent again at a time."""

    def __init__(self) -> None:
        super().__init__(
            f"more than {MOST_REPLAYED} events were written in the period: name a shorter one, or read them from the feed"
        )


@dataclass(frozen=True, slots=True)
class Sent:
    """The webhook that an event went to, and the event."""

    webhook: UUID
    checkout: UUID
    sequence: int


async def of_attempt(db: Database, attempt: UUID, *, merchant_id: int) -> Sent | None:
    """Return what an attempt was of; None if the merchant has none of this id."""
    rows = await db.read(_OF_ATTEMPT, {"id": attempt, "merchant_id": merchant_id})
    return record(Sent, rows[0]) if rows else None


async def event(db: Database, endpoint: UUID, *, merchant_id: int, checkout: UUID, sequence: int) -> int:
    """Send one event again, or at once if it is still to be sent; return how many: 0 if the endpoint does not
    want it, or the feed has it no more.
    """
    return await _replay(
        db, _REPLAY_ONE, endpoint, merchant_id=merchant_id, checkout_id=checkout, sequence=sequence
    )


async def period(db: Database, endpoint: UUID, *, merchant_id: int, since: datetime, before: datetime) -> int:
    """Send again what was written in a period, as far as the endpoint wants it and the feed still has it;
    return how many events. Events still to be sent are left out. Raises `PeriodTooLong`.
    """
    feed = await events.feed(db, merchant_id)
    after = await _until(db, merchant_id, (feed.kept_after, feed.last), moment=since)
    last = await _until(db, merchant_id, (after, feed.last), moment=before)
    if last - after > MOST_REPLAYED:
        raise PeriodTooLong
    asked, number = {"merchant_id": merchant_id, "since": since, "before": before}, 0
    after = await _until(db, merchant_id, (feed.kept_after, after), moment=since, seconds=-DISORDER)
    last = await _until(db, merchant_id, (last, feed.last), moment=before, seconds=DISORDER)
    while after < last:
        until = min(after + REPLAYED_AT_ONCE, last)
        number += await _replay(db, _REPLAY_PERIOD, endpoint, **asked, after=after, until=until)
        after = until
    return number


async def given_up(db: Database, endpoint: UUID) -> int:
    """Send again what was given up, as far as the feed still has it; return how many events."""
    after, number = FIRST, 0
    while rows := await db.read(_FAILED, {"endpoint_id": endpoint, "after": after, "most": REPLAYED_AT_ONCE}):
        until = rows[-1].id
        number += await _replay(db, _REPLAY_FAILED, endpoint, after=after, until=until)
        after = until
    return number


async def _replay(db: Database, statement: TextClause, endpoint: UUID, **asked: object) -> int:
    async with db.transaction() as tx:
        rows = await run(tx, statement, {"endpoint_id": endpoint, **asked})
        await notify(tx, str(endpoint))
    return int(rows[0].events)


async def _until(
    db: Database, merchant_id: int, between: tuple[int, int], *, moment: datetime, seconds: float = 0.0
) -> int:
    """Return a position up to which events were written before a moment, so many seconds later."""
    low, high = between
    while low < high:
        middle = (low + high) // 2
        asked = {"merchant_id": merchant_id, "after": middle, "moment": moment, "seconds": seconds}
        rows = await db.read(_OLDER, asked)
        if rows and rows[0].older:
            low = middle + 1
        else:
            high = middle
    return low

"""The feed of events: positions given after the commit, pages read by position, and retention.

An event is written without a position, in its move's own transaction, and transactions do not commit in the
order in which they began. So one sequencer at a time, under an advisory lock, numbers what is committed:
contiguously for each merchant, and for each checkout in the order of its sequence. A client that reads on
after a position therefore gets each event once and skips none. Retention removes a feed's beginning only, and
records up to where.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from orchestrator.domain.events import StoredEvent
from orchestrator.store.columns import json_text, record
from orchestrator.store.database import run
from orchestrator.store.notifications import TOLD

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from uuid import UUID

    from orchestrator.store.database import Database

PLACED_AT_ONCE: Final = 1000
"""Events that get their positions in one statement, and some more of the same checkouts."""
FORGOTTEN_AT_ONCE: Final = 2000
SCANNED_AT_ONCE: Final = 5000
"""Positions that one statement reads for events of some types only."""

# In an order, or the planner may read the whole table for a single row, where its statistics are of a moment
# at which many waited.
_WAITING = text("SELECT created_at FROM events WHERE position IS NULL ORDER BY created_at LIMIT 1")
LOCK: Final = "orchestrator.events"
# All waiting events of a checkout are numbered together, so that none is numbered after a later one of its
# own, also where clocks went back. Rows are named by arrays: for a join alone the planner may expect so many
# rows that it reads the whole table. The condition on events beside the oldest is written so that the planner
# does not use the index of all waiting events, which is long under load.
_PLACE = text(f"""
    WITH oldest AS MATERIALIZED (
        SELECT checkout_id FROM events WHERE position IS NULL ORDER BY created_at LIMIT :most
    ),
    waiting AS MATERIALIZED (
        SELECT e.checkout_id, e.sequence, e.merchant_id, e.kind,
               max(e.created_at) OVER (PARTITION BY e.checkout_id ORDER BY e.sequence) AS at
          FROM events e
         WHERE e.checkout_id = ANY(ARRAY(SELECT checkout_id FROM oldest)) AND coalesce(e.position, 0) = 0
    ),
    numbered AS MATERIALIZED (
        SELECT checkout_id, sequence, merchant_id, kind,
               row_number() OVER (PARTITION BY merchant_id ORDER BY at, checkout_id, sequence) AS number,
               count(*) OVER (PARTITION BY merchant_id) AS total
          FROM waiting
    ),
    feeds AS (
        INSERT INTO event_feeds AS f (merchant_id, last_position)
        SELECT merchant_id, total FROM numbered WHERE number = 1 ORDER BY merchant_id
        ON CONFLICT (merchant_id) DO UPDATE SET last_position = f.last_position + excluded.last_position
        RETURNING merchant_id, last_position
    ),
    placed AS (
        UPDATE events e SET position = f.last_position - n.total + n.number
          FROM numbered n JOIN feeds f USING (merchant_id)
         WHERE e.checkout_id = n.checkout_id AND e.sequence = n.sequence
           AND e.checkout_id = ANY(ARRAY(SELECT checkout_id FROM oldest))
        RETURNING 1
    ),
    opened AS (
        INSERT INTO delivery_streams AS s (endpoint_id, checkout_id, next_sequence, last_sequence, due_at)
        SELECT w.id, n.checkout_id, min(n.sequence), max(n.sequence), clock()
          FROM numbered n JOIN webhook_endpoints w ON w.merchant_id = n.merchant_id
         WHERE w.deleted_at IS NULL AND w.pause_reason IS DISTINCT FROM 'gone' AND (w.kinds IS NULL OR n.kind = ANY(w.kinds))
         GROUP BY w.id, n.checkout_id ORDER BY w.id, n.checkout_id
        ON CONFLICT (endpoint_id, checkout_id, purpose) DO UPDATE SET last_sequence = greatest(s.last_sequence, excluded.last_sequence)
        RETURNING endpoint_id
    )
    SELECT (SELECT count(*) FROM placed) AS placed,
           (SELECT {TOLD}
              FROM (SELECT string_agg(DISTINCT CAST(endpoint_id AS text), ' ') AS said FROM opened) o
             WHERE said IS NOT NULL)
""")  # noqa: S608 - made of our own constants
# The beginning of each feed that is older than what is kept, up to the first event that is young enough.
_FORGET = text("""
    WITH old AS MATERIALIZED (
        SELECT f.merchant_id, o.checkout_id, o.sequence, o.position FROM event_feeds f CROSS JOIN LATERAL (
            SELECT e.created_at FROM events e WHERE e.merchant_id = f.merchant_id AND e.position > f.kept_after
             ORDER BY e.position LIMIT 1) first CROSS JOIN LATERAL (
            SELECT e.checkout_id, e.sequence, e.position,
                   bool_and(e.created_at < clock() - make_interval(secs => :seconds)) OVER (ORDER BY e.position) AS gone
              FROM events e WHERE e.merchant_id = f.merchant_id AND e.position > f.kept_after
             ORDER BY e.position LIMIT :most) o
         WHERE first.created_at < clock() - make_interval(secs => :seconds) AND o.gone
    ),
    feeds AS (
        UPDATE event_feeds f SET kept_after = o.last
          FROM (SELECT merchant_id, max(position) AS last FROM old GROUP BY merchant_id) o
         WHERE f.merchant_id = o.merchant_id
    ),
    forgotten AS (
        DELETE FROM events e USING old o
         WHERE e.checkout_id = o.checkout_id AND e.sequence = o.sequence AND e.checkout_id = ANY(ARRAY(SELECT checkout_id FROM old))
        RETURNING 1
    )
    SELECT count(*) AS forgotten FROM forgotten
""")
_WAIT_FOR_TURN = text(f"SELECT pg_advisory_xact_lock(hashtext('{LOCK}'))")
# A merchant whose first event came after the moment of a restore has no row of its own yet.
_SKIP = text("""
    INSERT INTO event_feeds AS f (merchant_id, last_position) SELECT id, :positions FROM merchants ORDER BY id
    ON CONFLICT (merchant_id) DO UPDATE SET last_position = f.last_position + excluded.last_position
    RETURNING merchant_id
""")
_FEED = text("SELECT last_position AS last, kept_after FROM event_feeds WHERE merchant_id = :merchant_id")
_COLUMNS: Final = """e.checkout_id, e.sequence, e.merchant_id, e.kind, e.payload, e.correlation_id, e.created_at, e.position,
    (SELECT m.name FROM merchants m WHERE m.id = e.merchant_id) AS merchant"""
_OF_KINDS: Final = "(CAST(:kinds AS text[]) IS NULL OR e.kind = ANY(CAST(:kinds AS text[])))"
# Positions have no gaps but that of `skip`, so a range of positions limits the work, however rare the wanted
# events are.
_FORWARDS, _BACKWARDS, _OF_CHECKOUT = (
    text(f"""
        SELECT {_COLUMNS} FROM events e
         WHERE e.merchant_id = :merchant_id AND e.position > :after AND e.position <= :until AND {which} AND {_OF_KINDS}
         ORDER BY {order} LIMIT :most
    """)  # noqa: S608 - made of our own constants
    for which, order in (
        ("true", "e.position"),
        ("true", "e.position DESC"),
        ("e.checkout_id = :checkout_id", "e.sequence"),
    )
)
_NEXT = text("""
    SELECT position FROM events WHERE merchant_id = :merchant_id AND position > :after ORDER BY position LIMIT 1
""")
_LAST = text("""
    SELECT position FROM events WHERE merchant_id = :merchant_id AND position <= :until ORDER BY position DESC LIMIT 1
""")
_HISTORY = text(f"""
    SELECT {_COLUMNS} FROM events e
     WHERE e.checkout_id = :checkout_id AND {_OF_KINDS}
       AND (CAST(:after AS int8) IS NULL OR e.position > :after)
     ORDER BY CASE WHEN CAST(:after AS int8) IS NULL THEN -e.sequence ELSE e.sequence END LIMIT :most
""")  # noqa: S608 - made of our own constant
_FEEDS = text("""
    SELECT m.id, coalesce(f.last_position, 0) AS last, coalesce(f.kept_after, 0) AS kept_after
      FROM merchants m LEFT JOIN event_feeds f ON f.merchant_id = m.id ORDER BY m.id
""")
_SINCE = text(f"""
    SELECT {_COLUMNS} FROM json_to_recordset(CAST(:cursors AS json)) AS w(merchant_id int, after int8) CROSS JOIN LATERAL (
        SELECT * FROM events e WHERE e.merchant_id = w.merchant_id AND e.position > w.after ORDER BY e.position LIMIT :most) e
     ORDER BY e.merchant_id, e.position
""")  # noqa: S608 - made of our own constant


@dataclass(frozen=True, slots=True)
class Feed:
    """The last position of a merchant's feed, and the last one that is not kept any more; 0: none."""

    last: int = 0
    kept_after: int = 0


class FeedRow(StoredEvent, frozen=True, kw_only=True):
    """An event that has its position in the feed."""

    position: int


@dataclass(frozen=True, slots=True)
class Page:
    """Events after a position, and the position up to which the feed was read for them."""

    events: Sequence[FeedRow]
    until: int


async def waiting(db: Database) -> bool:
    """Say whether an event that is committed has no position yet."""
    return bool(await db.read(_WAITING))


async def place(db: Database, *, most: int = PLACED_AT_ONCE) -> int | None:
    """Give events that are committed their positions, and have them sent to the endpoints that want them;
    return how many, or None where another process does so at this moment.
    """
    rows = await db.locked(LOCK, _PLACE, {"most": most})
    return None if rows is None else int(rows[0].placed)


async def forget(db: Database, *, older_than: float, most: int = FORGOTTEN_AT_ONCE) -> int | None:
    """Delete older events at the beginning of feeds; return how many, or None as `place` does."""
    rows = await db.locked(LOCK, _FORGET, {"seconds": older_than, "most": most})
    return None if rows is None else int(rows[0].forgotten)


async def skip(db: Database, positions: int) -> int:
    """Leave so many positions of every merchant's feed free, and return how many feeds there are: a database
    that was restored would give new events positions that consumers have read already.
    """
    async with db.transaction() as tx:
        await run(tx, _WAIT_FOR_TURN, {})
        return len(await run(tx, _SKIP, {"positions": positions}))


async def feed(db: Database, merchant_id: int) -> Feed:
    rows = await db.read(_FEED, {"merchant_id": merchant_id})
    return record(Feed, rows[0]) if rows else Feed()


async def all_feeds(db: Database) -> dict[int, Feed]:
    """Return the feed of every merchant, by id."""
    return {row.id: record(Feed, row) for row in await db.read(_FEEDS)}


async def history(
    db: Database,
    checkout: UUID,
    *,
    limit: int,
    kinds: Collection[str] | None = None,
    after: int | None = None,
) -> list[StoredEvent]:
    """Return a checkout's first events after a position, or else its newest, also unplaced, in order."""
    asked = {"checkout_id": checkout, "most": limit, "kinds": _listed(kinds), "after": after}
    rows = [record(StoredEvent, row) for row in await db.read(_HISTORY, asked)]
    return rows[::-1] if after is None else rows


async def newest(
    db: Database, merchant_id: int, *, limit: int, kinds: Collection[str] | None = None
) -> list[FeedRow]:
    """Return the newest events of a merchant's feed, at most `limit`, of some types only; the oldest first.
    With types it reads backwards, `SCANNED_AT_ONCE` positions at a time.
    """
    known = await feed(db, merchant_id)
    asked = {"merchant_id": merchant_id, "kinds": _listed(kinds)}
    found: list[FeedRow] = []
    until = known.last
    while len(found) < limit and until > known.kept_after:
        after = known.kept_after if kinds is None else max(known.kept_after, until - SCANNED_AT_ONCE)
        rows = await db.read(
            _BACKWARDS, {**asked, "after": after, "until": until, "most": limit - len(found)}
        )
        found += [record(FeedRow, row) for row in rows]
        if not rows and after > known.kept_after:
            # Beyond positions that `skip` left free.
            before = await db.read(_LAST, {"merchant_id": merchant_id, "until": after})
            after = before[0].position if before else known.kept_after
        until = after
    return found[::-1]


async def page(
    db: Database,
    merchant_id: int,
    *,
    after: int,
    until: int,
    limit: int,
    kinds: Collection[str] | None = None,
    checkout: UUID | None = None,
) -> Page:
    """Return a merchant's events after one position and up to another, at most `limit`, of some types or of
    one checkout only.

    With types it reads `SCANNED_AT_ONCE` positions at the most, so a page may be empty and end before
    `until`; positions that `skip` left free count for nothing.
    """
    asked = {
        "merchant_id": merchant_id,
        "after": after,
        "until": until,
        "most": limit,
        "kinds": _listed(kinds),
    }
    if checkout is not None:
        rows = await db.read(_OF_CHECKOUT, {**asked, "checkout_id": checkout})
    else:
        last = until
        if kinds is not None:
            asked["until"] = until = min(last, after + SCANNED_AT_ONCE)
        rows = await db.read(_FORWARDS, asked)
        if not rows and until < last:
            beyond = await db.read(_NEXT, {"merchant_id": merchant_id, "after": until})
            until = min(last, beyond[0].position - 1) if beyond else last
    found = [record(FeedRow, row) for row in rows]
    return Page(found, found[-1].position if len(found) == limit else max(until, after))


async def since(db: Database, cursors: Mapping[int, int], *, most: int) -> dict[int, list[FeedRow]]:
    """Return, by merchant, the next events after each merchant's position, at most so many of each."""
    asked = [{"merchant_id": merchant, "after": after} for merchant, after in sorted(cursors.items())]
    found: dict[int, list[FeedRow]] = {}
    for row in await db.read(_SINCE, {"cursors": json_text(asked), "most": most}):
        found.setdefault(row.merchant_id, []).append(record(FeedRow, row))
    return found


def _listed(kinds: Collection[str] | None) -> list[str] | None:
    return None if kinds is None else sorted(kinds)

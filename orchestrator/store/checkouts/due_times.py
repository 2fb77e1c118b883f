"""Due times: waking a checkout from outside its lease, and the sweep that turns due checkouts into hints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from orchestrator.store.database import run

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from uuid import UUID

    from sqlalchemy import Row
    from sqlalchemy.ext.asyncio import AsyncConnection

    from orchestrator.store.database import Database

# Rows are locked in id order, so that two transactions that wake cannot deadlock; each waits for a mover's
# short transaction, since no wake-up may be lost. The caller hints too: the due time is `grace` later.
_WAKE = text("""
    WITH t AS MATERIALIZED (SELECT clock() AS now),
    locked AS MATERIALIZED (
        SELECT id FROM checkouts WHERE id = ANY(CAST(:ids AS uuid[])) ORDER BY id FOR NO KEY UPDATE
    )
    UPDATE checkouts c
       SET wake = c.wake + 1,
           lookups = CASE WHEN c.lease IS NULL THEN 0 ELSE c.lookups END,
           hinted = c.hinted OR c.lease IS NULL,
           due_at = CASE WHEN c.lease IS NULL
                         THEN least(coalesce(c.due_at, 'infinity'), t.now + make_interval(secs => :grace))
                         ELSE c.due_at END
      FROM locked, t
     WHERE c.id = locked.id
""")
# However many checkouts of one merchant are due, those of the others are swept too: each merchant that has
# any gets an equal part of the sweep; a paused one gets none. The time as a sub-select is a bound of the
# index scans; as a join it would be a filter on every due time of the future.
_DUE_FIRST = """
    t AS MATERIALIZED (SELECT clock() AS now),
    crowd AS MATERIALIZED (
        -- One look into the index for each merchant, whatever the planner believes of how many are due.
        SELECT m.id, m.id = ANY(CAST(:overloaded AS int[])) AS overloaded FROM merchants m CROSS JOIN LATERAL (
            SELECT FROM checkouts c WHERE c.merchant_id = m.id AND c.due_at <= (SELECT now FROM t)
             ORDER BY c.due_at LIMIT 1) first
         WHERE m.paused_at IS NULL
    ),
    part AS MATERIALIZED (SELECT CAST(ceil(CAST(:most AS float8) / greatest(count(*), 1)) AS int) AS each FROM crowd)
"""
_SWEEP = text(f"""
    WITH {_DUE_FIRST},
    due_now AS MATERIALIZED (
        SELECT r.id, (SELECT now FROM t) - r.due_at AS lag FROM crowd m CROSS JOIN part p CROSS JOIN LATERAL (
            SELECT c.id, c.due_at FROM checkouts c
             WHERE c.merchant_id = m.id AND c.due_at <= (SELECT now FROM t)
             ORDER BY c.due_at LIMIT CASE WHEN m.overloaded THEN least(p.each, :few) ELSE p.each END
               FOR NO KEY UPDATE OF c SKIP LOCKED) r
    ),
    put_off AS (
        -- By their ids as an array: as a join the planner, who cannot know how many are due, may read all checkouts.
        UPDATE checkouts c SET hinted = true, due_at = t.now + make_interval(secs => :grace),
               -- What is hinted at was due a grace before; what no holder has written since keeps its time.
               due_since = CASE WHEN c.due_since >= c.updated_at THEN c.due_since
                                ELSE c.due_at - CASE WHEN c.hinted THEN make_interval(secs => :grace) ELSE interval '0' END END
          FROM t WHERE c.id = ANY(ARRAY(SELECT id FROM due_now))
        RETURNING c.id, c.wake > 0 AS woken, c.claims > 1 AS suspect
    )
    SELECT p.id, p.woken, p.suspect, extract(epoch FROM r.lag)::float8 AS lag FROM put_off p JOIN due_now r USING (id)
""")  # noqa: S608 - made of our own constants
_DUE = text(f"""
    WITH {_DUE_FIRST}
    SELECT r.id, r.wake > 0 AS woken, r.claims > 1 AS suspect, 0.0 AS lag FROM crowd m CROSS JOIN part p CROSS JOIN LATERAL (
        SELECT c.id, c.due_at, c.wake, c.claims FROM checkouts c
         WHERE c.merchant_id = m.id AND c.due_at <= (SELECT now FROM t) ORDER BY c.due_at LIMIT p.each) r
     ORDER BY r.due_at LIMIT :most
""")  # noqa: S608 - made of our own constants


# Slots are given again in their order, the first one now, and none becomes a later one. What a worker holds
# has had its slot. Slots used ahead count as a burst at the most: else others would have to wait for it.
_RESPACE = text("""
    WITH t AS MATERIALIZED (SELECT clock() AS now),
    budget AS MATERIALIZED (
        SELECT b.merchant_id FROM lookup_budgets b JOIN merchants m ON m.id = b.merchant_id WHERE m.name = :merchant FOR UPDATE OF b
    ),
    waiting AS MATERIALIZED (
        SELECT c.id, c.due_at FROM checkouts c JOIN budget b USING (merchant_id)
         WHERE c.slot_reserved AND c.lease IS NULL AND c.due_at > (SELECT now FROM t) ORDER BY c.id FOR NO KEY UPDATE OF c
    ),
    place AS MATERIALIZED (SELECT id, (row_number() OVER (ORDER BY due_at, id) - 1) * CAST(:apart AS float8) AS away FROM waiting),
    moved AS (
        UPDATE checkouts c SET due_at = least(c.due_at, t.now + make_interval(secs => p.away)) FROM place p, t WHERE c.id = p.id
    )
    UPDATE lookup_budgets b
       SET taken_until = least(b.taken_until, t.now + make_interval(secs => (SELECT count(*) FROM place) * CAST(:apart AS float8))),
           made_until = least(b.made_until, t.now + make_interval(secs => :at_once))
      FROM t WHERE b.merchant_id IN (SELECT merchant_id FROM budget)
""")


@dataclass(frozen=True, slots=True)
class DueCheckout:
    """A checkout that is due: hint it. `lag` is how many seconds late the sweep was. A `suspect` was claimed
    before without a result, maybe because it ends the worker's process: it is claimed alone.
    """

    id: UUID
    woken: bool
    suspect: bool
    lag: float


async def wake(tx: AsyncConnection, ids: Sequence[UUID], *, grace: float) -> None:
    """Wake checkouts from outside their lease, in the transaction that stores the reason. The caller
    publishes the hint after the commit; without it they become due after `grace` seconds.
    """
    await run(tx, _WAKE, {"ids": list(ids), "grace": grace})


async def sweep(
    db: Database, *, most: int, grace: float, overloaded: Collection[int] = (), few: int = 0
) -> list[DueCheckout]:
    """Take due checkouts, about `most`, put each off by `grace` seconds and return them, to be hinted at.

    Every merchant gets an equal part. Of the `overloaded`, whose work the workers find by themselves, it
    takes only a `few`. Several sweepers are harmless: each takes what the others have not locked.
    """
    asked = {"most": most, "grace": grace, "overloaded": list(overloaded), "few": few}
    return _due(await db.write(_SWEEP, asked))


async def due(db: Database, *, most: int) -> list[DueCheckout]:
    """Return checkouts that are due, in equal parts of every merchant, for a worker that sweeps itself."""
    return _due(await db.read(_DUE, {"most": most, "overloaded": []}))


def _due(rows: Sequence[Row[Any]]) -> list[DueCheckout]:
    return [DueCheckout(row.id, row.woken, row.suspect, row.lag) for row in rows]


async def respace(db: Database, merchant: str, *, apart: float, at_once: float) -> None:
    """Bring the lookups of a merchant that wait for their places (`slot_reserved`) nearer, `apart` seconds
    from each other. `at_once`: how many seconds before its place a lookup may be made.
    """
    await db.write(_RESPACE, {"merchant": merchant, "apart": apart, "at_once": at_once})

"""Renewing: a process that lives has its leases last on, so that they can be short."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

from orchestrator.domain.claimed_checkout import tick
from orchestrator.store.columns import json_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.domain.claimed_checkout import ClaimedCheckout
    from orchestrator.store.database import Database

# A row that a move has locked is left out: the next renewal comes soon. An expired lease that no other worker
# took is still valid.
_RENEW = text("""
    WITH t AS MATERIALIZED (SELECT clock() AS now),
    i AS MATERIALIZED (SELECT * FROM json_to_recordset(CAST(:held AS json)) AS i(id uuid, lease uuid)),
    mine AS MATERIALIZED (
        SELECT c.id FROM checkouts c JOIN i ON i.id = c.id AND i.lease = c.lease
         WHERE c.id = ANY(ARRAY(SELECT id FROM i)) ORDER BY c.id FOR NO KEY UPDATE OF c SKIP LOCKED
    )
    UPDATE checkouts c
       SET leased_until = greatest(c.leased_until, t.now + make_interval(secs => :seconds)),
           due_at = greatest(c.due_at, t.now + make_interval(secs => :seconds))
      FROM t
     WHERE c.id = ANY(ARRAY(SELECT id FROM mine))
    RETURNING c.id, c.lease
""")


async def renew(db: Database, held: Sequence[ClaimedCheckout], *, lease_seconds: float) -> None:
    """Renew the leases on these for so many seconds from now, where they are still held, in one statement."""
    began = tick()
    named = [{"id": checkout.id, "lease": checkout.lease} for checkout in held]
    rows = await db.write(_RENEW, {"held": json_text(named), "seconds": lease_seconds})
    renewed = {(row.id, row.lease) for row in rows}
    for checkout in held:
        if (checkout.id, checkout.lease) in renewed:
            checkout.renewal.ends = max(checkout.renewal.ends, began + lease_seconds)

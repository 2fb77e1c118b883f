"""Work that is due and that no worker has taken: since when, and how many workers it calls for.

Sweeps move `due_at`, so an age is that of `due_since`, which only a sweep writes. What a paused merchant has
waits on purpose, and is no backlog. The figures of metrics, of `orchestrator status`, of `/autoscale` and of
KEDA's query (deploy/kubernetes/keda) are made of this one statement.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import text

if TYPE_CHECKING:
    from orchestrator.store.database import Database

CHECKOUTS_PER_WORKER: Final = 500
"""Waiting checkouts for which there should be a worker."""
SECONDS_PER_WORKER: Final = 15
"""Seconds of the oldest one's wait for which there should be a worker."""
YOUNG: Final = 5
"""Seconds for which a checkout may wait, and calls for no worker."""
AT_MOST: Final = 20_000
"""Checkouts that are counted: enough for any number of workers."""


@dataclass(frozen=True, slots=True)
class Demand:
    """How many workers the waiting work calls for; `oldest` in seconds."""

    workers: int
    waiting: int
    """Checkouts that have waited for more than `YOUNG` seconds, at most `AT_MOST`."""
    oldest: float


def waiting(grace: str, *, most: int | None = None, where: str = "") -> str:
    """Return the SELECT of the checkouts that a worker could take now: `merchant`, `woken`, `hinted` and
    `age` in seconds.

    `grace` is the SQL of the seconds between a hint and its due time, `most` how many of each merchant are
    read, `where` one more condition on the merchant `m`. The query around it has `t (now)`.
    """
    limit = "" if most is None else f"ORDER BY o.due_at LIMIT {most}"
    # The time as a sub-select is a bound of the index scan; as a join it would be a filter.
    return f"""
        SELECT m.name AS merchant, c.wake > 0 AS woken, c.hinted,
               extract(epoch FROM (SELECT now FROM t) - least((SELECT now FROM t),
                   CASE WHEN c.due_since >= c.updated_at THEN c.due_since
                        WHEN c.hinted THEN greatest(c.due_at - make_interval(secs => {grace}), c.updated_at)
                        ELSE c.due_at END))::float8 AS age
          FROM merchants m CROSS JOIN LATERAL (
              SELECT * FROM checkouts o
               WHERE o.merchant_id = m.id AND o.due_at <= (SELECT now FROM t) + make_interval(secs => {grace}) {limit}) c
         WHERE m.paused_at IS NULL AND (c.lease IS NULL OR c.leased_until <= (SELECT now FROM t))
           AND (c.hinted OR c.due_at <= (SELECT now FROM t)) {where}
    """  # noqa: S608 - made of our own words


def scale(grace: str, *, where: str = "") -> str:
    """Return the statement of `Demand`: `waiting`, `oldest`, and `workers` as a fraction."""
    return f"""
        WITH t AS MATERIALIZED (SELECT clock() AS now)
        SELECT count(*) AS waiting, coalesce(max(age), 0)::float8 AS oldest,
               greatest(count(*) / {CHECKOUTS_PER_WORKER:.1f}, coalesce(max(age), 0) / {SECONDS_PER_WORKER:.1f})::float8 AS workers
          FROM (SELECT age FROM ({waiting(grace, most=AT_MOST, where=where)}) w WHERE age > {YOUNG} LIMIT {AT_MOST}) d
    """  # noqa: S608 - made of our own words


_SCALE = text(scale(":grace", where="AND m.id = coalesce(CAST(:merchant_id AS int), m.id)"))


async def demand(db: Database, *, grace: float, merchant_id: int | None = None) -> Demand:
    """Return how many workers the waiting work calls for: of all merchants, or of one."""
    (row,) = await db.read(_SCALE, {"grace": grace, "merchant_id": merchant_id})
    return Demand(math.ceil(row.workers), row.waiting, row.oldest)

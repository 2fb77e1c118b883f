"""The budget of looks: how many an installation makes at a merchant's gateway for no reason but that an alarm rang.

The gateway's lookup is no listing service. Each merchant has a queue of evenly spaced places, `looks_per_minute`, kept in Postgres, so that all workers share it. A look that a callback, a command or a money operation asks for goes at once and takes a
place; the others get the next places in turn, so that what is looked at is spread evenly however many alarms ring together. Nothing
starves: a place once given is kept (`booked`), and at least a quarter of the places is for looks that nobody asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
from sqlalchemy import text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from orchestrator.db import Database

AT_ONCE: Final = 5.0
"""Seconds: a place this near is as good as now. An idle merchant's queue so takes a small crowd at once."""
LATE: Final = 5.0
"""Seconds that a look may come after its place, because the process had other work, and still find its minute not full."""
SHARE: Final = 0.75
"""The most of all places that looks which somebody asked for may take."""

_TAKE = text("""
    WITH t AS MATERIALIZED (SELECT clock() AS now),
    i AS MATERIALIZED (
        SELECT * FROM json_to_recordset(CAST(:asked AS json)) AS i(merchant_id int, apart float8, asked int, quiet int)
    ),
    held AS MATERIALIZED (
        SELECT b.merchant_id, i.apart, i.quiet, t.now,
               greatest(b.taken_until, t.now) + make_interval(secs => least(
                   i.asked * i.apart, :share * extract(epoch FROM greatest(t.now - b.charged_at, interval '0'))::float8)) AS free_from
          FROM look_budgets b JOIN i USING (merchant_id), t ORDER BY b.merchant_id FOR UPDATE OF b
    )
    UPDATE look_budgets b
       SET taken_until = h.free_from + make_interval(secs => h.quiet * h.apart), charged_at = h.now
      FROM held h WHERE b.merchant_id = h.merchant_id
    RETURNING b.merchant_id, extract(epoch FROM h.free_from - h.now)::float8 AS wait
""")
_OPEN = text("""
    INSERT INTO look_budgets (merchant_id) SELECT unnest(CAST(:merchants AS int[])) ON CONFLICT DO NOTHING
""")


@dataclass(frozen=True, slots=True)
class Demand:
    """What one merchant's looks want: seconds between two places, looks that somebody asked for, looks of alarms alone."""

    merchant_id: int
    apart: float
    asked: int
    quiet: int


def apart(looks_per_minute: int) -> float:
    """Return the seconds between two places, such that no minute has more looks than that, early and late ones counted."""
    return (60.0 + AT_ONCE + LATE) / looks_per_minute


async def take(db: Database, demands: Sequence[Demand]) -> Mapping[int, float]:
    """Take places for all; return by merchant the seconds until the first of its quiet ones, the others follow `apart`."""
    wanted = sorted(demands, key=lambda one: one.merchant_id)
    waits = await _take(db, wanted)
    new = [one for one in wanted if one.merchant_id not in waits]
    if new:
        await db.write(_OPEN, {"merchants": [one.merchant_id for one in new]})
        waits |= await _take(db, new)
    return waits


async def _take(db: Database, wanted: Sequence[Demand]) -> dict[int, float]:
    asked = [
        {"merchant_id": one.merchant_id, "apart": one.apart, "asked": one.asked, "quiet": one.quiet}
        for one in wanted
    ]
    rows = await db.write(_TAKE, {"asked": msgspec.json.encode(asked).decode(), "share": SHARE})
    return {row.merchant_id: row.wait for row in rows}

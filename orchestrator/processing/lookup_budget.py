"""The budget of lookups: how many lookups of due checkouts an installation makes at a merchant's gateway.

The gateway's lookup is no listing service, and no document of the gateway names a rate that it accepts. Each
merchant has a queue of evenly spaced slots, `lookups_per_minute`, kept in Postgres, so that all workers share
it. A lookup is made at once, and counted, where a callback, a command, a money operation or a shopper who has
just come back from the payment page requires it. The others get the next slots in order, those that may hold
money first (`rank`). A slot once given is kept (`slot_reserved`), and at least a quarter of the slots is for
lookups that are only due.

Only lookups that are made count. A lookup whose slot has come is made as long as no 60 seconds get more of
such than the budget; after workers were away, when many come at once, the others take new slots at the end of
the queue. Lookups for a callback, command or shopper delay the slots that are given after them, and none that
was given. Each lookup is made in the end: while fewer are made than the budget allows, the next one is made
at once, however late it is.

A lookup that is due waits for at most `Q × apart`, with Q lookups due before it; up to four times that (`1 /
(1 - SHARE)`) where shoppers, callbacks and commands require many others meanwhile.

The default budget, 3,000 a minute, is 42 slots a second: early and late lookups of a minute fit into it. So
many are due where a gateway sends no callback at all at 42 orders a second, since a paid order needs one
lookup; 50 orders a second for a minute leave a queue of 10 s. This adds little to the load of the gateway:
one lookup beside the four calls of each paid order. In quiet times next to none of it is used, because
lookups are seldom due (an abandoned checkout needs about ten a day).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from orchestrator.domain.states import State
from orchestrator.store import readiness
from orchestrator.store.checkouts import due_times
from orchestrator.store.columns import json_text
from orchestrator.text import duration

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from orchestrator.domain.claimed_checkout import ClaimedCheckout
    from orchestrator.store.database import Database

AT_ONCE: Final = 5.0
"""Seconds: a slot this near counts as now. So an idle merchant's queue accepts a small burst at once."""
BEHIND: Final = 3.0
"""Seconds of unused slots that are made up for: lookups come to their slots in lists, and late. Where sweeps
are further apart than this and `AT_ONCE`, slots stay unused."""
LATE: Final = 2.0
"""Seconds between a lookup's slot and its call, because the process has other work; later its minute may be
full."""
SPAN: Final = 60.0 + AT_ONCE + BEHIND + LATE
"""Seconds over which the lookups of a minute are spread, early and late ones counted."""
WAITED_FOR: Final = frozenset({State.AWAITING_PAYMENT, State.CALLBACK_RECEIVED})
SHARE: Final = 0.75
"""The largest part of all slots for lookups that a callback, command or shopper requires."""

# In seconds from now: from when on a lookup may be made (`ahead`), where the queue ends (`tail`). `go`:
# lookups whose slot has come and that are made now; the others, and those without a slot, take new ones.
_TAKE = text("""
    WITH t AS MATERIALIZED (SELECT clock() AS now),
    i AS MATERIALIZED (
        SELECT * FROM json_to_recordset(CAST(:asked AS json)) AS i(merchant_id int, apart float8, asked int, with_slot int, quiet int)
    ),
    held AS MATERIALIZED (
        -- The budget as it stands: what a worker knows of it may be older than the places that were given anew.
        SELECT i.merchant_id, i.asked, i.with_slot, i.quiet, a.apart, t.now,
               greatest(extract(epoch FROM b.made_until - t.now)::float8, -:behind) AS ahead,
               greatest(extract(epoch FROM b.taken_until - t.now)::float8, 0) AS taken,
               least(i.asked * a.apart, :share * greatest(extract(epoch FROM t.now - b.charged_at)::float8, 0)) AS charge
          FROM lookup_budgets b JOIN i USING (merchant_id) JOIN merchants m ON m.id = i.merchant_id
               CROSS JOIN LATERAL (SELECT coalesce(
                   CASE jsonb_typeof(m.policies -> 'lookups_per_minute')
                        WHEN 'number' THEN :span / greatest((m.policies ->> 'lookups_per_minute')::float8, 1) END,
                   i.apart) AS apart) a, t
         ORDER BY b.merchant_id FOR UPDATE OF b
    ),
    going AS MATERIALIZED (
        SELECT held.*, least(with_slot, greatest(floor((:at_once - ahead) / apart)::int + 1, 0)) AS go FROM held
    ),
    queued AS MATERIALIZED (
        SELECT going.*, with_slot - go + quiet AS more, greatest(taken, ahead + go * apart) + charge AS tail FROM going
    )
    UPDATE lookup_budgets b
       SET taken_until = q.now + make_interval(secs => q.tail + q.more * q.apart),
           made_until = q.now + make_interval(secs =>
               q.ahead + q.apart * (q.go + least(q.more, greatest(floor((:at_once - q.tail) / q.apart)::int + 1, 0)))),
           charged_at = q.now
      FROM queued q WHERE b.merchant_id = q.merchant_id
    RETURNING b.merchant_id, q.go, q.tail, q.apart
""")
_OPEN = text("""
    INSERT INTO lookup_budgets (merchant_id) SELECT unnest(CAST(:merchants AS int[])) ON CONFLICT DO NOTHING
""")

BACK_FOR: Final = 300.0
"""Seconds after the offer for which a shopper who showed up may be waiting at the shop's page."""

_QUEUES = text("""
    SELECT m.name AS merchant, b.merchant_id, extract(epoch FROM b.taken_until - clock())::float8 AS wait,
           q.waiting, coalesce(extract(epoch FROM clock() - q.since), 0)::float8 AS age
      FROM lookup_budgets b JOIN merchants m ON m.id = b.merchant_id CROSS JOIN LATERAL (
        SELECT count(*) AS waiting, min(c.updated_at) AS since FROM checkouts c
         WHERE c.merchant_id = b.merchant_id AND c.slot_reserved AND c.due_at <= b.taken_until + interval '10 s') q
     WHERE b.taken_until > clock() + make_interval(secs => :at_once)
     ORDER BY wait DESC
""")


@dataclass(frozen=True, slots=True)
class Queue:
    """The queue of one merchant's lookups: how many wait, for how long the oldest has (seconds), and how long
    a new one will.
    """

    merchant: str
    waiting: int
    age: float
    wait: float

    @property
    def overdue(self) -> bool:
        """Whether the oldest lookup has waited for so long that it is a problem."""
        return self.age > readiness.LOOKUPS_OVERDUE

    @property
    def summary(self) -> str:
        """A sentence about the queue, and what to do."""
        return (
            f"{self.waiting} lookups of merchant {self.merchant} wait for their slot, the oldest for {duration(self.age)}, and a new one would "
            f"for {duration(self.wait)}: see whether its callbacks arrive, or raise its budget: orchestrator merchants set {self.merchant} "
            "lookups_per_minute=…"
        )


@dataclass(frozen=True, slots=True)
class Demand:
    """The lookups that one merchant needs.

    `apart`: seconds between two slots, where the merchant has no budget of its own. Numbers of lookups:
    `asked` for a callback, command or shopper, which are made in any case; `with_slot`, whose slots have
    come; `quiet`, without a slot.
    """

    merchant_id: int
    apart: float
    asked: int
    with_slot: int
    quiet: int


@dataclass(frozen=True, slots=True)
class Places:
    """The slots that one merchant's lookups got: how many of those with a slot are made now, and the seconds
    until the first slot of all others.

    `apart`: seconds between two of these.
    """

    go: int
    wait: float
    apart: float

    def waits(self, demand: Demand) -> list[float]:
        """Return the seconds for each of `with_slot`, then for each of `quiet`."""
        more = demand.with_slot - self.go + demand.quiet
        return [0.0] * self.go + [self.wait + place * self.apart for place in range(more)]


def waited_for(held: ClaimedCheckout) -> bool:
    """Return whether a callback, command or shopper requires the lookup: it is made at once, and counted."""
    return held.eventful or (
        # A callback or the shopper's return has woken it; it was read, and the gateway has not confirmed
        # it yet.
        held.wake > 0
        and held.state in WAITED_FOR
        and held.offered_at is not None
        and (held.now() - held.offered_at).total_seconds() < BACK_FOR
    )


def rank(held: ClaimedCheckout) -> tuple[bool, bool, int, datetime, int]:
    """Return the key by which lookups take their slots, the least first.

    Checkouts that may still be paid come before ended ones, woken ones before others, those with fewer
    lookups before those with more; then the older one, then the greater amount.
    """
    return (
        held.state not in WAITED_FOR,
        not held.wake,
        held.lookups,
        held.offered_at or held.deadline,
        -held.amount,
    )


async def queues(db: Database) -> list[Queue]:
    """Return the merchants whose lookups wait for their slot, the longest wait first.

    Only lookups due within the queue are read.
    """
    rows = await db.read(_QUEUES, {"at_once": AT_ONCE})
    return [Queue(row.merchant, row.waiting, row.age, row.wait) for row in rows]


def apart(lookups_per_minute: int) -> float:
    """Return the seconds between two slots, such that no minute has more lookups than that."""
    return SPAN / lookups_per_minute


async def take(db: Database, demands: Sequence[Demand]) -> Mapping[int, Places]:
    """Take slots for all; return what each merchant got."""
    wanted = sorted(demands, key=lambda demand: demand.merchant_id)
    got = await _take(db, wanted)
    new = [demand for demand in wanted if demand.merchant_id not in got]
    if new:
        await db.write(_OPEN, {"merchants": [demand.merchant_id for demand in new]})
        got |= await _take(db, new)
    return got


async def respace(db: Database, merchant: str, *, lookups_per_minute: int) -> None:
    """Move the lookups that wait to the slots of another budget, where these are nearer; `merchant` is a
    name.
    """
    await due_times.respace(db, merchant, apart=apart(lookups_per_minute), at_once=AT_ONCE)


async def _take(db: Database, wanted: Sequence[Demand]) -> dict[int, Places]:
    parameters = {
        "asked": json_text(wanted),
        "share": SHARE,
        "behind": BEHIND,
        "at_once": AT_ONCE,
        "span": SPAN,
    }
    return {row.merchant_id: Places(row.go, row.tail, row.apart) for row in await db.write(_TAKE, parameters)}

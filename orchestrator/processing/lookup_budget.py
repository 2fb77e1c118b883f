"""The budget of lookups: how many an installation makes at a merchant's gateway for no reason but that one is
due.

The gateway's lookup is no listing service, and no document of the gateway names a rate that it takes. Each
merchant has a queue of evenly spaced places, `lookups_per_minute`, kept in Postgres, so that all workers
share it. A lookup goes at once, and is charged for, where somebody waits for it: a callback, a command or a
money operation asks for it, or a shopper has come back from the payment page a moment ago. The others get the
next places in turn, those first behind which money may be (`rank`). A place once given is kept
(`slot_reserved`), and at least a quarter of the places is for lookups that are only due.

What is counted is what is made. A lookup whose place has come is made as long as no 60 seconds get more of
such than the budget; after workers were away, when many come at once, the others take new places behind the
queue. Lookups that a callback, command or shopper waits for put off the places that are given after them, and
none that was given. Each lookup is made in the end: only those that are made count, so while fewer are made
than the budget allows, the next one goes at once, however late it is.

A lookup that is due waits for at most `Q × apart`, with Q lookups due before it; up to four times that (`1 /
(1 - SHARE)`) where shoppers, callbacks and commands ask for many others meanwhile.

The default budget, 3,000 a minute, is 42 places a second: early and late lookups of a minute fit into it. So
much is due where a gateway sends no callback at all at 42 orders a second, since a paid order needs one
lookup; 50 orders a second for a minute leave a queue of 10 s. It asks the gateway for no more than is asked
anyhow at that rate: a lookup beside the four calls that each paid order costs. In quiet times next to none of
it is used, because lookups are due so seldom (an abandoned checkout costs about ten a day).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from orchestrator.domain.states import State
from orchestrator.store.checkouts import due_times
from orchestrator.store.columns import json_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from orchestrator.store.checkouts import ClaimedCheckout
    from orchestrator.store.database import Database

AT_ONCE: Final = 5.0
"""Seconds: a place this near is as good as now. An idle merchant's queue so takes a small burst at once."""
BEHIND: Final = 3.0
"""Seconds of places in which no lookup was made and that are made up for: those who come to their places come
in lists, and late. Where sweeps are further apart than this and `AT_ONCE`, places stay unused."""
LATE: Final = 2.0
"""Seconds from a lookup's turn to its call, because the process has other work, after which its minute may be
full."""
SPAN: Final = 60.0 + AT_ONCE + BEHIND + LATE
"""Seconds over which the lookups of a minute are spread, early and late ones counted."""
WAITED_FOR: Final = frozenset({State.AWAITING_PAYMENT, State.CALLBACK_RECEIVED})
SHARE: Final = 0.75
"""The most of all places that lookups which somebody asked for may take."""

# In seconds from now: from when on a lookup may be made (`ahead`), where the queue ends (`tail`). `go`: those
# who come to their places and have their turn; the others, and those without a place, take new ones.
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
    def told(self) -> str:
        """What is to be said of it, and done."""
        return (
            f"{self.waiting} lookups of merchant {self.merchant} wait for their turn, the oldest for {self.age:.0f} s, and a new one would "
            f"for {self.wait:.0f} s: see whether its callbacks arrive, or raise its budget: orchestrator merchants set {self.merchant} "
            "lookups_per_minute=…"
        )


@dataclass(frozen=True, slots=True)
class Demand:
    """What one merchant's lookups want.

    `apart`: seconds between two places, where the merchant has no budget of its own. Numbers of lookups:
    `asked` by a callback, command or shopper, which are made in any case; `with_slot`, whose places have
    come; `quiet`, without a place.
    """

    merchant_id: int
    apart: float
    asked: int
    with_slot: int
    quiet: int


@dataclass(frozen=True, slots=True)
class Places:
    """What one merchant's lookups got: how many of those with a place go now, and the seconds until the first
    place of all others.

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
    """Say whether somebody waits for the lookup: it goes at once, and is charged for."""
    return held.eventful or (
        # A callback or the shopper's return has woken it; what it said was read, and the gateway did not
        # confirm it yet.
        held.wake > 0
        and held.state in WAITED_FOR
        and held.offered_at is not None
        and (held.now() - held.offered_at).total_seconds() < BACK_FOR
    )


def rank(held: ClaimedCheckout) -> tuple[bool, bool, int, datetime, int]:
    """Return by what lookups take their places, the least first.

    Checkouts that may still be paid come before ended ones, those that were woken before those that were not,
    those that were looked at less before those that were looked at more; then the older one, then the greater
    amount.
    """
    return (
        held.state not in WAITED_FOR,
        not held.wake,
        held.lookups,
        held.offered_at or held.deadline,
        -held.amount,
    )


async def queues(db: Database) -> list[Queue]:
    """Return the merchants whose lookups wait for their turn, the longest wait first.

    Only what is due within the queue is read.
    """
    rows = await db.read(_QUEUES, {"at_once": AT_ONCE})
    return [Queue(row.merchant, row.waiting, row.age, row.wait) for row in rows]


def apart(lookups_per_minute: int) -> float:
    """Return the seconds between two places, such that no minute has more lookups than that."""
    return SPAN / lookups_per_minute


async def take(db: Database, demands: Sequence[Demand]) -> Mapping[int, Places]:
    """Take places for all; return what each merchant got."""
    wanted = sorted(demands, key=lambda one: one.merchant_id)
    got = await _take(db, wanted)
    new = [one for one in wanted if one.merchant_id not in got]
    if new:
        await db.write(_OPEN, {"merchants": [one.merchant_id for one in new]})
        got |= await _take(db, new)
    return got


async def respace(db: Database, merchant: str, *, lookups_per_minute: int) -> None:
    """Give the lookups that wait the places of another budget, where these are nearer; `merchant`
    is a name.
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

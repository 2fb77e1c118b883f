"""Claiming: taking the lease on checkouts, with the data that its holder needs, and renewing it.

A process that lives has its leases last on, so that they can be short.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import UUID, uuid4

import msgspec
from sqlalchemy import text

from orchestrator.domain.claimed_checkout import ClaimedCheckout, tick
from orchestrator.domain.records import Callback
from orchestrator.domain.states import UNOFFERED, State
from orchestrator.errors import OrchestratorError
from orchestrator.store.columns import (
    OPERATION,
    PAYMENT,
    coded,
    command,
    json_text,
    listed,
    operation,
    payments,
    payments_of,
    picked,
    without,
)
from orchestrator.store.database import run
from orchestrator.store.tables import IS_LIVE, IS_UNCONFIRMED, checkouts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy import TextClause
    from sqlalchemy.ext.asyncio import AsyncConnection

    from orchestrator.store.database import Database

T = TypeVar("T")


class LeaseLost(OrchestratorError):  # noqa: N818 - named for the fact
    """Another worker holds or moved this checkout: the result is dropped; the new holder looks it up."""

    def __init__(self, checkout: UUID) -> None:
        super().__init__(f"the lease on checkout {checkout} is no longer ours")
        self.checkout = checkout


# The claim takes checkouts that are due or hinted and not under a valid lease. A hint allows one claim. The
# condition on the due time keeps the planner from the index of due times: where nearly all checkouts are
# finished it would prefer it, and each claim would read the due times of all checkouts under way.
_FREE = (
    "coalesce(c.due_at < 'infinity', false) AND (c.hinted OR c.due_at <= t.now) "
    "AND (c.lease IS NULL OR c.leased_until <= t.now)"
)
# By an array, which the planner takes for short; for a join it may read all checkouts.
_TAKE = """
    UPDATE checkouts c
       SET lease = :lease, leased_until = t.now + make_interval(secs => :seconds),
           due_at = t.now + make_interval(secs => :seconds), hinted = false, claims = c.claims + 1
      FROM t
     WHERE c.id = ANY(ARRAY(SELECT id FROM free))
    RETURNING c.*, t.now
"""
_CLAIM = text(f"""
    WITH t AS MATERIALIZED (SELECT clock() AS now),
    free AS MATERIALIZED (
        SELECT c.id FROM checkouts c, t WHERE c.id = ANY(CAST(:ids AS uuid[])) AND {_FREE}
         ORDER BY c.id FOR NO KEY UPDATE OF c SKIP LOCKED
    )
    {_TAKE}
""")  # noqa: S608 - made of our own constants
# What waits is due, or hinted at and then due within the grace; so the due times of the future are not read.
# A suspect is left to the sweep, which has it go alone.
_CLAIM_WAITING = text(f"""
    WITH t AS MATERIALIZED (SELECT clock() AS now),
    free AS MATERIALIZED (
        SELECT f.id FROM json_to_recordset(CAST(:shares AS json)) AS s(merchant_id int, most int) CROSS JOIN LATERAL (
            SELECT c.id FROM checkouts c, t
             WHERE c.merchant_id = s.merchant_id AND c.claims <= 1 AND {_FREE}
               AND c.due_at <= (SELECT now FROM t) + make_interval(secs => :grace)
             ORDER BY c.due_at LIMIT s.most FOR NO KEY UPDATE OF c SKIP LOCKED) f
    )
    {_TAKE}
""")  # noqa: S608 - made of our own constants
_MERCHANTS = text(f"""
    WITH t AS MATERIALIZED (SELECT clock() AS now)
    SELECT c.id, c.merchant_id FROM checkouts c, t WHERE c.id = ANY(CAST(:ids AS uuid[])) AND {_FREE} ORDER BY c.due_at, c.id
""")  # noqa: S608 - made of our own constants
# What a step needs of a payment.
_KNOWN: Final = without(PAYMENT, "payment_id", "order_ref", "raw_amounts", "first_seen_at", "updated_at")
_BESIDE = text(f"""
    SELECT i.checkout_id AS id, i.data_key,
           CASE WHEN i.checkout_id = ANY(CAST(:opening AS uuid[])) THEN i.body END AS intent,
           s.token, s.token_expires_at, s.session_id, s.methods, coalesce(s.outdated, false) AS outdated,
           {payments_of("i.checkout_id", _KNOWN)} AS known,
           EXISTS (SELECT 1 FROM money_operations o WHERE o.checkout_id = i.checkout_id) AS operating
      FROM intents i LEFT JOIN sessions s USING (checkout_id)
     WHERE i.checkout_id = ANY(CAST(:ids AS uuid[]))
""")  # noqa: S608 - made of our own names
_OPERATIONS = text(f"""
    SELECT checkout_id, {listed(OPERATION)}
      FROM money_operations WHERE checkout_id = ANY(CAST(:ids AS uuid[])) ORDER BY requested_at, id
""")  # noqa: S608 - made of our own names
# Two partial indexes cover live and closed checkouts, of which a merchant may have many of the number.
_SHARED = text(f"""
    SELECT 1 FROM unnest(CAST(:merchants AS int[])) AS m(id)
     WHERE EXISTS (SELECT 1 FROM checkouts o WHERE o.merchant_id = m.id AND o.order_ref = :order_ref AND o.id <> :id
                      AND {IS_LIVE})
        OR EXISTS (SELECT 1 FROM checkouts o WHERE o.merchant_id = m.id AND o.order_ref = :order_ref AND o.id <> :id
                      AND NOT ({IS_LIVE})
                      -- Created from the payment itself, which it was not found to hold.
                      AND NOT ({IS_UNCONFIRMED}))
     LIMIT 1
""")  # noqa: S608 - made of our own constants
_PAYING_OTHERS = text("""
    SELECT transaction_id FROM payments
     WHERE merchant_id = ANY(CAST(:merchants AS int[])) AND transaction_id = ANY(CAST(:transactions AS text[]))
       AND checkout_id <> :id AND role = 'accepted'
""")
_INTENT = text("SELECT body FROM intents WHERE checkout_id = :id")
_RIVAL = text(f"""
    SELECT o.id FROM checkouts o WHERE o.merchant_id = :merchant_id AND o.order_ref = :order_ref AND o.id <> :id AND {IS_LIVE}
""")  # noqa: S608 - made of our own constants
CALLBACKS_PER_CLAIM: Final = 20
"""Callbacks of a checkout that a claim takes; with so many, more may wait: it is due at once again."""
# A statement of its own, after the claim: its snapshot is younger than the row locks, so every wake-up that
# `wake` counts is seen. A few at a time: their bodies are large, and any sender who has a link may send many.
_CALLBACKS = text(f"""
    SELECT b.* FROM unnest(CAST(:ids AS uuid[])) AS c(id) CROSS JOIN LATERAL (
        SELECT id, checkout_id, kind, grade, network, sender, digest, received_at,
               CASE WHEN octet_length(body) <= 65536 THEN body END AS body FROM callbacks
         WHERE checkout_id = c.id AND handled_at IS NULL ORDER BY received_at, id LIMIT {CALLBACKS_PER_CLAIM}) b
""")  # noqa: S608 - made of our own constant
_COMMANDS = text("""
    SELECT id, checkout_id, kind, actor, reason, expected_version, arguments, mac,
           EXISTS (SELECT FROM audit_entries a
                    WHERE a.checkout_id = k.checkout_id AND strpos(a.entry, CAST(k.id AS text)) > 0) AS taken
      FROM commands k WHERE checkout_id = ANY(CAST(:ids AS uuid[])) AND handled_at IS NULL ORDER BY requested_at, id
""")
# A row that a move has locked is left out until the next renewal. An expired lease may still be ours.
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


async def claim(db: Database, ids: Sequence[UUID], *, lease_seconds: float) -> list[ClaimedCheckout]:
    """Take the lease on those of `ids` that are due or hinted at and free; return them with their inbox. The
    claim counts itself (`claims`), so that a checkout whose holders die is known for it.
    """
    return await _claim(db, _CLAIM, {"ids": list(ids)}, lease_seconds) if ids else []


async def claim_waiting(
    db: Database, shares: Mapping[int, int], *, lease_seconds: float, grace: float
) -> list[ClaimedCheckout]:
    """Take the lease, like `claim`, on the longest waiting of each merchant, as many as its share at most.
    What is hinted at waits too: its due time is at most `grace` seconds away.
    """
    asked = [{"merchant_id": merchant, "most": most} for merchant, most in shares.items()]
    parameters = {"shares": json_text(asked), "grace": grace}
    return await _claim(db, _CLAIM_WAITING, parameters, lease_seconds)


async def merchants_of(db: Database, ids: Sequence[UUID]) -> dict[UUID, int]:
    """Return whose those of `ids` are that a claim would take, the longest waiting first."""
    return {row.id: row.merchant_id for row in await db.read(_MERCHANTS, {"ids": list(ids)})}


async def _claim(
    db: Database, statement: TextClause, chosen: Mapping[str, object], lease_seconds: float
) -> list[ClaimedCheckout]:
    began, lease = tick(), uuid4()
    async with db.transaction() as tx:
        rows = await run(tx, statement, {**chosen, "lease": lease, "seconds": lease_seconds})
        # Postgres's clock is read now; the lease is counted from before, so that any wait shortens it.
        read = tick()
        if not rows:
            return []
        claimed = [row.id for row in rows]
        opening = [row.id for row in rows if row.state in UNOFFERED]
        beside = {row.id: row for row in await run(tx, _BESIDE, {"ids": claimed, "opening": opening})}
        woken = [row.id for row in rows if row.wake > 0]
        callbacks = await _of_each(tx, _CALLBACKS, woken, lambda row: msgspec.convert(row, Callback))
        commands = await _of_each(tx, _COMMANDS, woken, command)
        operating = [row.id for row in beside.values() if row.operating]
        operations = await _of_each(tx, _OPERATIONS, operating, operation)
    return [
        ClaimedCheckout(
            **picked(row, _ROW),
            **picked(beside[row.id], _BESIDE_ROW),
            state=State(row.state),
            **coded(row, "attention", "last_error"),
            audit_head=bytes(row.audit_head),
            known=payments(beside[row.id].known),
            operations=tuple(operations[row.id]),
            callbacks=tuple(callbacks[row.id]),
            commands=tuple(commands[row.id]),
            claimed_at=row.now,
            claimed_tick=read,
            lease_ends=began + lease_seconds,
        )
        for row in rows
    ]


async def _of_each(
    tx: AsyncConnection, statement: TextClause, ids: Sequence[UUID], make: Callable[[dict[str, Any]], T]
) -> defaultdict[UUID, list[T]]:
    """Return what a statement finds of these checkouts, in its order."""
    found: defaultdict[UUID, list[T]] = defaultdict(list)
    if ids:
        for row in await run(tx, statement, {"ids": ids}):
            found[row.checkout_id].append(make(row._asdict()))
    return found


_ROW: Final = without(
    (name for name in ClaimedCheckout.__struct_fields__ if name in checkouts.c),
    "state", "audit_head", "attention", "last_error",
)  # fmt: skip
_BESIDE_ROW: Final = tuple("token token_expires_at session_id methods outdated intent data_key".split())
"""Columns that are taken as they stand, of the checkout and of what stands beside it."""


async def intent_of(db: Database, held: ClaimedCheckout) -> bytes | None:
    """Return the sealed intent, which a claim brings along only where a session is to be opened."""
    rows = await db.read(_INTENT, {"id": held.id})
    return bytes(rows[0].body) if rows else None


async def paying_others(
    db: Database, held: ClaimedCheckout, merchants: Sequence[int], transactions: Sequence[str]
) -> frozenset[str]:
    """Return those of the gateway's transactions that pay other checkouts of these merchants."""
    asked = {"id": held.id, "merchants": list(merchants), "transactions": list(transactions)}
    return frozenset(row.transaction_id for row in await db.read(_PAYING_OTHERS, asked))


async def order_is_shared(db: Database, held: ClaimedCheckout, merchants: Sequence[int]) -> bool:
    """Say whether other checkouts of these merchants have its order number: a payment may be theirs."""
    asked = {"id": held.id, "order_ref": held.order_ref, "merchants": list(merchants)}
    return bool(await db.read(_SHARED, asked))


async def rival_of(db: Database, held: ClaimedCheckout) -> UUID | None:
    """Return the live checkout that has this one's order number now, if there is one."""
    asked = {"id": held.id, "order_ref": held.order_ref, "merchant_id": held.merchant_id}
    rows = await db.read(_RIVAL, asked)
    return rows[0].id if rows else None


async def renew(db: Database, held: Sequence[ClaimedCheckout], *, lease_seconds: float) -> None:
    """Renew the leases on these for so many seconds from now, where they are still held, in one statement."""
    began = tick()
    named = [{"id": checkout.id, "lease": checkout.lease} for checkout in held]
    rows = await db.write(_RENEW, {"held": json_text(named), "seconds": lease_seconds})
    renewed = {(row.id, row.lease) for row in rows}
    for checkout in held:
        if (checkout.id, checkout.lease) in renewed:
            checkout.renewal.ends = max(checkout.renewal.ends, began + lease_seconds)

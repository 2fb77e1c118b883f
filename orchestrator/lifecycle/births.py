"""Births: the first row of a checkout, with its intent, its first audit entry and its first alarm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
from sqlalchemy import text

from orchestrator import audit
from orchestrator.states import State

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy.ext.asyncio import AsyncConnection

    from orchestrator.vault import Vault

# Sorted by the unique key, so that two batches with the same order numbers wait for each other in one order.
_CREATE = text("""
    WITH t AS MATERIALIZED (SELECT clock() AS now),
    i AS MATERIALIZED (
        SELECT * FROM json_to_recordset(CAST(:births AS json)) AS i(
            id uuid, merchant_id int, order_ref text, currency text, amount int8, expires_in float8,
            correlation_id text, fingerprint text, body text, data_key text, at timestamptz, action text, entry text,
            key_id text, mac text, idempotency_key text, idempotency_print text)
    ),
    -- Before the checkouts: whoever holds an order number has all of its keys already, so no two batches wait in a circle.
    keyed AS (
        INSERT INTO idempotency_keys (merchant_id, key, fingerprint, checkout_id)
        SELECT i.merchant_id, i.idempotency_key, decode(i.idempotency_print, 'hex'), i.id FROM i
         WHERE i.idempotency_key IS NOT NULL ORDER BY i.merchant_id, i.idempotency_key
        ON CONFLICT (merchant_id, key) DO NOTHING
        RETURNING checkout_id
    ),
    born AS (
        INSERT INTO checkouts (id, merchant_id, order_ref, state, due_at, hinted, deadline, currency, amount,
                               audit_sequence, audit_head, correlation_id, created_at, updated_at)
        SELECT i.id, i.merchant_id, i.order_ref, 'received', t.now + make_interval(secs => :grace), true,
               t.now + make_interval(secs => i.expires_in), i.currency, i.amount, 1, decode(i.mac, 'hex'),
               i.correlation_id, t.now, t.now
          FROM i, t
         WHERE i.idempotency_key IS NULL OR i.id IN (SELECT checkout_id FROM keyed)
         ORDER BY i.merchant_id, i.order_ref
        ON CONFLICT (merchant_id, order_ref) WHERE state NOT IN ('cancelled', 'expired', 'failed') AND NOT late DO NOTHING
        RETURNING id, created_at, deadline
    ),
    asked AS (
        INSERT INTO intents (checkout_id, fingerprint, body, data_key)
        SELECT i.id, decode(i.fingerprint, 'hex'), decode(i.body, 'hex'), decode(i.data_key, 'hex')
          FROM i JOIN born USING (id) ORDER BY i.id
    ),
    audited AS (
        INSERT INTO audit_entries (checkout_id, sequence, at, action, entry, key_id, mac)
        SELECT i.id, 1, i.at, i.action, i.entry, i.key_id, decode(i.mac, 'hex') FROM i JOIN born USING (id) ORDER BY i.id
    )
    SELECT id, created_at, deadline FROM born
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Birth:
    """A checkout to be created. `body` is sealed already; `expires_in` is seconds from now; `amount` minor units."""

    id: UUID
    merchant_id: int
    order_ref: str
    currency: str
    amount: int
    expires_in: float
    correlation_id: str
    actor: str
    fingerprint: bytes
    # A MAC of the content under the checkout's own data key: it proves what was asked for while that key exists, and says
    # nothing once the customer is erased. A plain hash would let anybody confirm a guess for ever.
    proof: bytes
    body: bytes
    data_key: bytes
    idempotency_key: str | None = None
    idempotency_print: bytes = b""


@dataclass(frozen=True, slots=True)
class Born:
    """A checkout that was created just now."""

    id: UUID
    created_at: datetime
    deadline: datetime


async def create(
    tx: AsyncConnection, vault: Vault, births: Sequence[Birth], *, at: datetime, grace: float
) -> dict[UUID, Born]:
    """Create those whose order number and idempotency key are free; return them by id.

    The others meet a live checkout or a used key and are left out; a key of theirs that was free now names the id that was
    not born, and the caller has to point it at the checkout that it met (`inbox`).

    The first alarm stands `grace` seconds away, behind the hint that the caller publishes after the commit.
    """
    rows = []
    for birth in births:
        entry = audit.make(
            vault,
            checkout=birth.id,
            sequence=1,
            before=audit.START,
            at=at,
            action=audit.Action.CHECKOUT_RECEIVED,
            actor=birth.actor,
            correlation_id=birth.correlation_id,
            state=None,
            to=State.RECEIVED,
            evidence={"orderId": birth.order_ref, "amount": birth.amount, "currency": birth.currency,
                      "intent": birth.proof.hex()},
        )  # fmt: skip
        rows.append(
            {
                "id": birth.id,
                "merchant_id": birth.merchant_id,
                "order_ref": birth.order_ref,
                "currency": birth.currency,
                "amount": birth.amount,
                "expires_in": birth.expires_in,
                "correlation_id": birth.correlation_id,
                "fingerprint": birth.fingerprint.hex(),
                "body": birth.body.hex(),
                "data_key": birth.data_key.hex(),
                "at": entry.at,
                "action": entry.action,
                "entry": entry.text,
                "key_id": entry.key_id,
                "mac": entry.mac.hex(),
                "idempotency_key": birth.idempotency_key,
                "idempotency_print": birth.idempotency_print.hex(),
            }
        )
    born = await tx.execute(_CREATE, {"births": msgspec.json.encode(rows).decode(), "grace": grace})
    return {row.id: Born(row.id, row.created_at, row.deadline) for row in born}

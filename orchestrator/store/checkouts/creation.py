"""Creating: the first row of a checkout, with its intent, its first audit entry and its first due time.

A checkout is created from an intent or, where a payment arrives for an order number without an intent, from
that payment (`create_from_payment`), so that it too has a lease, a due time, lookups, a trail and a policy.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

from sqlalchemy import text

from orchestrator import audit
from orchestrator.domain.ids import uuid7
from orchestrator.domain.last_error import ErrorCode
from orchestrator.domain.states import State
from orchestrator.intents import Content
from orchestrator.store import email_search
from orchestrator.store.checkouts.matching import NO_INTENT, NO_INTENT_PRINT
from orchestrator.store.columns import by_order, json_text, named, picked
from orchestrator.store.database import run
from orchestrator.store.tables import IS_LIVE, IS_UNCONFIRMED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import Row
    from sqlalchemy.ext.asyncio import AsyncConnection

    from orchestrator.crypto import Encryptor
    from orchestrator.intents import Intent

# Sorted by the unique key, so that two batches with the same order numbers wait for each other in one order.
_CREATE = text(f"""
    WITH t AS MATERIALIZED (SELECT clock() AS now),
    i AS MATERIALIZED (
        SELECT * FROM json_to_recordset(CAST(:new_checkouts AS json)) AS i(
            id uuid, merchant_id int, order_ref text, state text, last_error text, currency text, amount int8, expires_in float8,
            auto_capture boolean, correlation_id text, fingerprint text, body text, data_key text, sequence int, at timestamptz,
            action text, entry text, key_id text, mac text, idempotency_key text, email_tag text)
    ),
    -- Before the checkouts: a transaction that holds an order number has all of its keys already, so no two batches deadlock.
    keyed AS (
        INSERT INTO idempotency_keys (merchant_id, key, fingerprint, checkout_id)
        SELECT i.merchant_id, i.idempotency_key, decode(i.fingerprint, 'base64'), i.id FROM i
         WHERE i.idempotency_key IS NOT NULL ORDER BY i.merchant_id, i.idempotency_key
        ON CONFLICT (merchant_id, key) DO NOTHING
        RETURNING checkout_id
    ),
    created AS (
        INSERT INTO checkouts (id, merchant_id, order_ref, state, due_at, hinted, deadline, currency, amount, auto_capture,
                               last_error, audit_sequence, audit_head, correlation_id, created_at, updated_at, ended_at)
        SELECT i.id, i.merchant_id, i.order_ref, i.state, t.now + make_interval(secs => :grace), true,
               t.now + make_interval(secs => i.expires_in), i.currency, i.amount, i.auto_capture,
               i.last_error, i.sequence, decode(i.mac, 'base64'), i.correlation_id, t.now, t.now,
               CASE WHEN i.state <> 'received' THEN t.now END
          FROM i, t
         WHERE i.idempotency_key IS NULL OR i.id IN (SELECT checkout_id FROM keyed)
         ORDER BY i.merchant_id, i.order_ref
        ON CONFLICT (merchant_id, order_ref) WHERE {IS_LIVE} DO NOTHING
        RETURNING id, deadline
    ),
    asked AS (
        INSERT INTO intents (checkout_id, fingerprint, body, data_key, email_tag)
        SELECT i.id, decode(i.fingerprint, 'base64'), decode(i.body, 'base64'), decode(i.data_key, 'base64'),
               decode(i.email_tag, 'base64')
          FROM i JOIN created USING (id) ORDER BY i.id
    ),
    audited AS (
        INSERT INTO audit_entries (checkout_id, sequence, at, action, entry, key_id, mac)
        SELECT i.id, i.sequence, i.at, i.action, i.entry, i.key_id, decode(i.mac, 'base64') FROM i JOIN created USING (id)
         ORDER BY i.id
    )
    SELECT id, deadline FROM created
""")  # noqa: S608 - made of our own constant


@dataclass(frozen=True, slots=True, kw_only=True)
class Intake(Content):
    """A valid intent on its way in; `expires_in` is seconds from now. `auto_capture`: the gateway had no such
    request for a payment that came before its intent, so a worker captures that.
    """

    merchant_id: int
    expires_in: float
    actor: str
    correlation_id: str
    idempotency_key: str | None = None
    id: UUID = field(default_factory=uuid7)

    @classmethod
    def of(
        cls,
        intent: Intent,
        *,
        merchant_id: int,
        actor: str,
        correlation_id: str,
        default_expires_in: float,
        idempotency_key: str | None = None,
    ) -> Self:
        """Return the intake of a valid intent; `default_expires_in`: seconds, where the intent names none."""
        return cls(
            **picked(intent, _CONTENT),
            expires_in=default_expires_in if intent.expires_in is None else intent.expires_in,
            merchant_id=merchant_id,
            actor=actor,
            correlation_id=correlation_id,
            idempotency_key=idempotency_key,
        )


_CONTENT: Final = named(Content)
_WRITTEN: Final = named(Intake, "document", "email", "actor")
"""What is written as it is."""

MOST_UNCONFIRMED: Final = 100
"""Checkouts of a merchant, created within a day from callbacks that prove nothing, which no lookup has shown
to hold money. Any sender who has the merchant's address can send such callbacks, and each would need lookups
for weeks."""
_UNCONFIRMED: Final = text(f"""
    SELECT m.id, (SELECT count(*) FROM (
                    SELECT FROM checkouts c WHERE c.merchant_id = m.id AND {IS_UNCONFIRMED}
                       AND c.created_at > clock() - interval '1 day' AND c.attention IS NULL LIMIT :most) AS found) AS number
      FROM unnest(CAST(:merchants AS int[])) AS m(id)
""")  # noqa: S608 - made of our own constant
# In one order, so that two transactions that create checkouts from the same payments do not deadlock.
_LOCK_IN_ORDER = text("""
    SELECT pg_advisory_xact_lock(turn)
      FROM (SELECT turn FROM unnest(CAST(:turns AS bigint[])) AS t(turn) ORDER BY turn) AS turns
""")
# A checkout is matched by the id in the payment, else by the order number. Whether an id is used is queried
# in a form that goes by index: for EXISTS the planner may build a table of all ids.
_MATCHES = text(f"""
    SELECT c.id, (SELECT o.id FROM checkouts o WHERE o.id = s.named LIMIT 1) IS NOT NULL AS named_is_used, clock() AS now
      FROM json_to_recordset(CAST(:payments AS json)) AS s(number int, merchant_id int, named uuid, order_ref text)
      LEFT JOIN LATERAL (
            (SELECT id FROM checkouts WHERE id = s.named AND merchant_id = s.merchant_id)
            UNION ALL {by_order("id", "s")}
            LIMIT 1) c ON true
     ORDER BY s.number
""")  # noqa: S608 - made of our own names
_NUMBERED: Final = 7
"""The version of the ids that we give."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnmatchedPayment:
    """A payment that a callback to a merchant's own address reports.

    `amount` is in minor units, only for comparison. `named` is the checkout that the callback names: an id of
    any version, which may belong to any merchant. Without an amount and a currency, or without a transaction,
    the payment can be matched with a checkout, but none is created from it.
    """

    merchant_id: int
    order_ref: str | None
    transaction_id: str | None
    currency: str | None
    amount: int | None
    named: UUID | None
    correlation_id: str
    # False where nothing may be created of it: its status says that there is no payment yet.
    may_create: bool = True
    # The callback proves that the gateway sent it: such payments are not counted.
    proven: bool = True

    @property
    def complete(self) -> bool:
        """Say whether a checkout can be created of it."""
        return bool(
            self.may_create and self.order_ref and self.transaction_id and self.currency and self.amount
        )


@dataclass(frozen=True, slots=True)
class PaymentMatch:
    """The checkout that an unmatched payment belongs to; `created`: it was created of it just now."""

    id: UUID
    created: bool


async def create(
    tx: AsyncConnection, encryptor: Encryptor, asked: Sequence[Intake], *, at: datetime, grace: float
) -> dict[UUID, datetime]:
    """Create those whose order number and idempotency key are free; return their deadlines by their ids.

    The others meet a live checkout or a used key and are left out; a key of theirs that was free now
    names the id that was not created, and the caller has to point it at the checkout that it met
    (`inbox`). The first due time stands `grace` seconds away, behind the hint that follows the commit.
    """
    rows = [_row(encryptor, intake, at=at) for intake in asked]
    created = await run(tx, _CREATE, {"new_checkouts": json_text(rows), "grace": grace})
    return {row.id: row.deadline for row in created}


def _row(
    encryptor: Encryptor,
    intake: Intake,
    *,
    at: datetime,
    state: State = State.RECEIVED,
    evidence: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """Return the row of a new checkout; `evidence` is what it rests on, if not on an intent."""
    key, wrapped = encryptor.new_data_key(intake.id)
    if evidence is None:
        # A MAC under the checkout's own data key: it proves what was requested while that key exists, and
        # nothing once the customer is erased. A plain hash would allow a guess to be confirmed for ever.
        evidence = {"intent": key.mac(intake.fingerprint).hex()}
    entry = audit.make(
        encryptor,
        checkout=intake.id,
        sequence=1,
        before=audit.START,
        at=at,
        action=audit.Action.CHECKOUT_RECEIVED,
        actor=intake.actor,
        correlation_id=intake.correlation_id,
        state=None,
        to=state,
        evidence={
            "orderId": intake.order_ref,
            "amount": intake.amount,
            "currency": intake.currency,
            **evidence,
        },
    )
    return {
        **picked(intake, _WRITTEN),
        "state": state,
        "body": key.encrypt(intake.document, purpose="intent"),
        "data_key": wrapped,
        **entry.row,
        "email_tag": email_search.tag(encryptor, intake.email),
    }


async def create_from_payment(
    tx: AsyncConnection, encryptor: Encryptor, unmatched: Sequence[UnmatchedPayment], *, grace: float
) -> list[PaymentMatch | None]:
    """Return the merchant's checkout with the id or the order number of each payment, or a new one; None
    where there is neither a checkout nor enough data to create one.

    A repeat of a payment, also at the same moment in another process, gets the checkout that the first
    created: creation for an order number is serialised. A checkout keeps the id that the payment names,
    if that is of the version that this system gives and free (a database restored from an older backup).
    It begins as failed, since it has no intent, with a due time: the monitoring looks it up and policy
    decides.
    """
    matches = [
        None if met.id is None else PaymentMatch(met.id, created=False)
        for met in await _matches_of(tx, unmatched)
    ]
    orphans = [
        number for number, payment in enumerate(unmatched) if matches[number] is None and payment.complete
    ]
    if not orphans:
        return matches
    asked = [unmatched[number] for number in orphans]
    slots = {turn for payment in asked for turn in _slots(payment)}
    await tx.execute(_LOCK_IN_ORDER, {"turns": sorted(slots)})
    room = await _left_to_create(tx, asked)
    rows: list[dict[str, object]] = []
    created: dict[tuple[int, str], UUID] = {}
    # A younger snapshot shows the rows of the transactions that were earlier in the queue.
    for number, payment, met in zip(orphans, asked, await _matches_of(tx, asked), strict=True):
        order = (payment.merchant_id, payment.order_ref or "")
        if (found := met.id or created.get(order)) is not None:
            matches[number] = PaymentMatch(found, created=False)
            continue
        if not payment.proven:
            if room[payment.merchant_id] <= 0:
                continue
            room[payment.merchant_id] -= 1
        named = payment.named
        free = named is not None and not met.named_is_used and named not in created.values()
        checkout_id = named if named is not None and free and named.version == _NUMBERED else uuid7()
        created[order] = checkout_id
        rows.append(_row_from_payment(encryptor, checkout_id, payment, at=met.now))
        matches[number] = PaymentMatch(checkout_id, created=True)
    if rows:
        await run(tx, _CREATE, {"new_checkouts": json_text(rows), "grace": grace})
    return matches


async def _left_to_create(tx: AsyncConnection, unmatched: Sequence[UnmatchedPayment]) -> dict[int, int]:
    """Return for each merchant how many payments may be added on the word of callbacks that prove nothing."""
    merchants = sorted({payment.merchant_id for payment in unmatched if not payment.proven})
    if not merchants:
        return {}
    rows = await tx.execute(_UNCONFIRMED, {"merchants": merchants, "most": MOST_UNCONFIRMED})
    return {row.id: MOST_UNCONFIRMED - row.number for row in rows}


def _slots(payment: UnmatchedPayment) -> list[int]:
    """Return the advisory locks of what a payment may take: an order number of a merchant, and an id."""
    names = [f"order/{payment.merchant_id}/{payment.order_ref}"]
    if payment.named is not None:
        names.append(f"id/{payment.named}")
    digests = (hashlib.sha256(f"orchestrator.unmatched-payment/{name}".encode()).digest() for name in names)
    return [int.from_bytes(digest[:8], signed=True) for digest in digests]


async def _matches_of(tx: AsyncConnection, unmatched: Sequence[UnmatchedPayment]) -> Sequence[Row[Any]]:
    """Return the checkout that each payment meets, if any, in their order."""
    asked = [
        {"number": number, **picked(payment, ("merchant_id", "named", "order_ref"))}
        for number, payment in enumerate(unmatched)
    ]
    return await run(tx, _MATCHES, {"payments": json_text(asked)})


def _row_from_payment(
    encryptor: Encryptor, checkout_id: UUID, payment: UnmatchedPayment, *, at: datetime
) -> dict[str, object]:
    intake = Intake(
        id=checkout_id,
        merchant_id=payment.merchant_id,
        order_ref=payment.order_ref or "",
        currency=payment.currency or "",
        amount=payment.amount or 0,
        expires_in=0.0,  # it has no shopper who may still pay: its deadline is now (`IS_UNCONFIRMED`)
        document=NO_INTENT,
        fingerprint=NO_INTENT_PRINT,
        actor=audit.SYSTEM,
        correlation_id=payment.correlation_id,
    )
    evidence = {audit.FROM_PAYMENT[0]: True, "transaction": payment.transaction_id}
    row = _row(encryptor, intake, at=at, state=State.FAILED, evidence=evidence)
    return {**row, "last_error": ErrorCode.UNKNOWN_ORDER}

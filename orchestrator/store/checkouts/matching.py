"""An intent that comes after its payment: the payment was found for an order number without an intent.

Such a payment has a checkout of its own (`create_from_payment`). The intent becomes its order, so that
the shopper does not pay twice: once, under the row's lock and never under a worker's lease, with an entry
in the trail. Where payment and intent do not fit, nothing is written, and the caller gets the payment.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from orchestrator import audit
from orchestrator.domain import decisions, events, money
from orchestrator.domain.attention import PROBLEMS, AttentionCode
from orchestrator.domain.payment_meaning import PaymentMeaning
from orchestrator.domain.records import OPEN_OPERATIONS, Role
from orchestrator.domain.states import State
from orchestrator.store import email_search
from orchestrator.store.checkouts.change import event_rows
from orchestrator.store.columns import coded, json_text, payments, payments_of
from orchestrator.store.database import run
from orchestrator.store.tables import quoted

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import Row
    from sqlalchemy.ext.asyncio import AsyncConnection

    from orchestrator.crypto import Encryptor
    from orchestrator.store.checkouts.creation import Intake
    from orchestrator.store.database import Database

NO_INTENT: Final = b"{}"
"""The stored content of a checkout that has no intent."""
NO_INTENT_PRINT: Final = hashlib.sha256(NO_INTENT).digest()

_HARMLESS: Final = frozenset({AttentionCode.UNKNOWN_ORDER, AttentionCode.RESERVATION_LAPSES})
"""Attention beside which the payment counts as the order's: the first is answered by the intent itself."""

LOOKUP_WAIT: Final = 2.0
"""Seconds for which an intent waits for the lookup of its payment, which takes less than one."""

# A statement of its own, before rows are read: what is read beside a row that was waited for is that old.
LOCK: Final = text("""
    SELECT id FROM checkouts WHERE id = ANY(CAST(:ids AS uuid[])) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
""")
STANDING: Final = f"""
    clock() AS now, c.lease IS NOT NULL AND c.leased_until > clock() AS leased,
    EXISTS (SELECT FROM commands k WHERE k.checkout_id = c.id AND k.handled_at IS NULL) AS asked,
    EXISTS (SELECT FROM money_operations o WHERE o.checkout_id = c.id
               AND o.state IN ({quoted(sorted(OPEN_OPERATIONS))})) AS operating
"""  # noqa: S608 - made of our own constants
"""SQL: what a checkout `c` waits for."""
_READ = text(f"""
    SELECT c.id, c.state, c.version, c.currency, c.amount, c.attention, c.attention_details, c.audit_sequence, c.audit_head, c.deadline,
           c.order_ref, c.merchant_id, c.correlation_id, c.event_sequence, c.reserved, c.captured, c.refunded, c.charged_back,
           i.fingerprint, i.data_key, {STANDING}, {payments_of("c.id")} AS payments
      FROM checkouts c JOIN intents i ON i.checkout_id = c.id
     WHERE c.id = :id
""")  # noqa: S608 - made of our own constants
# The lease goes with the version: a holder that is late finds neither.
_MATCH = text("""
    WITH ordered AS (
        UPDATE intents SET fingerprint = :fingerprint, body = :body, data_key = :data_key, email_tag = :email_tag, erased_at = NULL WHERE checkout_id = :id
    ),
    audited AS (
        INSERT INTO audit_entries (checkout_id, sequence, at, action, entry, key_id, mac)
        VALUES (:id, :sequence, :at, :action, :entry, :key_id, :mac)
    ),
    announced AS (
        INSERT INTO events (checkout_id, sequence, merchant_id, kind, payload, correlation_id, created_at)
        SELECT CAST(:id AS uuid), e.sequence, CAST(:merchant_id AS int), e.kind, e.payload, CAST(:correlation_id AS text), clock()
          FROM json_to_recordset(CAST(:events AS json)) AS e(sequence int, kind text, payload jsonb)
    )
    UPDATE checkouts
       SET version = version + 1, late = false, auto_capture = :auto_capture, require_capture = :auto_capture,
           attention = CASE WHEN CAST(:answered AS bool) THEN NULL ELSE attention END,
           attention_details = CASE WHEN CAST(:answered AS bool) THEN NULL ELSE attention_details END,
           attention_since = CASE WHEN CAST(:answered AS bool) THEN NULL ELSE attention_since END, last_error = NULL, last_error_details = NULL, event_sequence = :event_sequence,
           audit_sequence = :sequence, audit_head = :mac, wake = wake + 1, lookups = 0, lease = NULL, leased_until = NULL,
           due_at = clock(), updated_at = clock()
     WHERE id = :id
""")


@dataclass(frozen=True, slots=True)
class Matched:
    """The intent is the order of the checkout now."""

    state: str
    deadline: datetime


@dataclass(frozen=True, slots=True)
class Unsuited:
    """`payment`, with its amount, is not simply this order's; `undecided`: a person is to decide on it."""

    payment: str
    undecided: bool


@dataclass(frozen=True, slots=True)
class Undecided:
    """The payment has not been looked up, holds no money, or is in the hands of another process. `wait`:
    seconds since the intent came until it is an order like any other; without end while there may be money.
    """

    wait: float


Match = Matched | Unsuited | Undecided
_BUSY: Final = Undecided(math.inf)


async def match(db: Database, encryptor: Encryptor, checkout: UUID, asked: Intake) -> Match:
    """Make an intent the order of the checkout that was created from its payment, or say why not. Repeated
    after a lost connection, it meets a checkout that has the content of the intent.
    """
    try:
        async with db.transaction() as tx:
            if not await run(tx, LOCK, {"ids": [checkout]}):
                return _BUSY
            (row,) = await run(tx, _READ, {"id": checkout})
            found = _judged(row, asked)
            if isinstance(found, Matched):
                await _write(tx, encryptor, asked, row)
            return found
    except IntegrityError:
        # Another checkout took the order number meanwhile: the caller gets that checkout.
        return _BUSY


def _judged(row: Row[Any], asked: Intake) -> Match:
    if bytes(row.fingerprint) != NO_INTENT_PRINT:
        return _BUSY
    known = payments(row.payments)
    holding = [payment for payment in known if payment.meaning == PaymentMeaning.OPEN or payment.left > 0]
    if row.leased or row.asked or row.version == 1:
        return _BUSY if holding else Undecided(LOOKUP_WAIT)
    if not holding and row.attention not in PROBLEMS:
        return Undecided(-math.inf)
    fits = (
        row.state == State.COMPLETED
        and [payment.role for payment in holding] == [Role.ACCEPTED]
        and (row.currency, row.amount) == (asked.currency, asked.amount)
        and not row.operating
        and row.attention in {None, *_HARMLESS}
    )
    if fits:
        return Matched(row.state, row.deadline)
    named = ", ".join(
        f"{payment.transaction_id} ({money.spelled(decisions.whole(payment), payment.currency)})"
        for payment in holding or known
    )
    return Unsuited(named or "a payment that cannot be read", undecided=row.attention is not None)


async def _write(tx: AsyncConnection, encryptor: Encryptor, asked: Intake, row: Row[Any]) -> None:
    if row.data_key is None:
        key, wrapped = encryptor.new_data_key(row.id)
    else:
        # Callbacks of the checkout are encrypted under it.
        key, wrapped = encryptor.data_key(row.id, row.data_key), bytes(row.data_key)
    state = State(row.state)
    before = coded(row, "attention")["attention"]
    answered = row.attention == AttentionCode.UNKNOWN_ORDER
    amounts = events.Totals(row.reserved, row.captured, row.refunded, row.charged_back)
    announced = event_rows(
        row, events.attention_changed(before, None if answered else before), state, amounts
    )
    entry = audit.make(
        encryptor,
        checkout=row.id,
        sequence=row.audit_sequence + 1,
        before=bytes(row.audit_head),
        at=row.now,
        action=audit.Action.INTENT_MATCHED,
        actor=asked.actor,
        correlation_id=asked.correlation_id,
        state=state,
        to=state,
        evidence={
            "amount": asked.amount,
            "currency": asked.currency,
            "autoCapture": asked.auto_capture,
            "intent": key.mac(asked.fingerprint).hex(),
            "attention": row.attention,
        },
    )
    await run(
        tx,
        _MATCH,
        {
            "id": row.id,
            "fingerprint": asked.fingerprint,
            "body": key.encrypt(asked.document, purpose="intent"),
            "data_key": wrapped,
            "email_tag": email_search.tag(encryptor, asked.email),
            "auto_capture": asked.auto_capture,
            "answered": answered,
            **entry.row,
            "at": row.now,
            "merchant_id": row.merchant_id,
            "correlation_id": row.correlation_id,
            "event_sequence": row.event_sequence + len(announced),
            "events": json_text(announced),
        },
    )

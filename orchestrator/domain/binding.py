"""Which transactions belong to a checkout, and what is recorded of each."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from orchestrator.domain import decisions, money
from orchestrator.domain.payment_meaning import MONEY, UNREADABLE, PaymentMeaning, Shape, held, read, shape
from orchestrator.domain.records import Binding, PaymentRecord, Role
from orchestrator.domain.schedule import made_at

if TYPE_CHECKING:
    from uuid import UUID

    from orchestrator.domain.claimed_checkout import ClaimedCheckout
    from orchestrator.domain.transaction import Found, Transaction


def meaning_of(checkout: ClaimedCheckout, transaction: Transaction) -> PaymentMeaning:
    """Read a transaction; by its amounts where a person decided to keep it although its status is
    not clear.
    """
    meaning, before = read(transaction), known_record(checkout, transaction)
    if (
        meaning is not PaymentMeaning.UNKNOWN
        or before is None
        or before.role != Role.ACCEPTED
        or not decisions.kept(before)
        or not UNREADABLE.isdisjoint(transaction.raw_flags)
    ):
        return meaning
    return {
        Shape.HELD: PaymentMeaning.RESERVED,
        Shape.TAKEN: PaymentMeaning.CAPTURED,
        Shape.RETURNED: PaymentMeaning.REFUNDED,
    }.get(shape(transaction), meaning)


def known_record(checkout: ClaimedCheckout, transaction: Transaction) -> PaymentRecord | None:
    return next(
        (payment for payment in checkout.known if payment.transaction_id == transaction.transaction_id), None
    )


def bind(checkout: ClaimedCheckout, transaction: Transaction) -> Binding | None:
    """Return how a transaction belongs to this checkout, or None if it belongs to another.

    A blank PaymentInfo names no checkout.
    """
    if transaction.order_ref != checkout.order_ref:
        return None
    ours = transaction.payment_infos.get("checkout", "").strip()
    if not ours:
        return Binding.ORDER_REF
    return Binding.BOUND if ours == str(checkout.id) else None


def unbound_money(checkout: ClaimedCheckout, found: Found) -> list[str]:
    """Return the money in this answer that is tied to the checkout by the order number alone, so that sharing
    it matters.
    """
    return [
        transaction.transaction_id
        for transaction in found.transactions
        if bind(checkout, transaction) is Binding.ORDER_REF
        and read(transaction) in MONEY
        and transaction.transaction_id not in checkout.accepted
    ]


def seen_alone(checkout: ClaimedCheckout, transaction: Transaction) -> PaymentRecord:
    """Return one transaction of the checkout as a lookup of it alone shows it; its role stays as stored."""
    before = known_record(checkout, transaction)
    seen = record(checkout, transaction, bind(checkout, transaction) or Binding.ORDER_REF)
    return replace(seen, role=before.role) if before is not None else seen


def is_older(checkout: UUID, transaction: Transaction) -> bool:
    """Say whether a transaction was made long before a checkout existed, for another order of its number."""
    made = made_at(transaction.created_at)
    # An id of ours begins with the milliseconds of its making; the gateway's dates have no offset, hence the
    # day.
    created = datetime.fromtimestamp((checkout.int >> 80) / 1000, UTC)
    return made is not None and made < created - timedelta(days=1)


def is_anothers(checkout: ClaimedCheckout, transaction: Transaction) -> bool:
    """Say whether a transaction that names no checkout is no business of ours, because it was made long
    before.

    A checkout that was made of a payment is younger than that payment. What was taken for ours before stays
    ours.
    """
    ours = checkout.session_count == 0 or transaction.transaction_id in checkout.accepted
    return not ours and is_older(checkout.id, transaction)


def record(checkout: ClaimedCheckout, transaction: Transaction, binding: Binding) -> PaymentRecord:
    reserved, captured, refunded = held(transaction)
    return PaymentRecord(
        transaction_id=transaction.transaction_id,
        payment_id=transaction.payment_id or None,
        order_ref=transaction.order_ref,
        role=Role.ATTEMPT,
        binding=binding,
        status=transaction.status,
        meaning=meaning_of(checkout, transaction),
        currency=transaction.currency,
        reserved=reserved,
        captured=captured,
        refunded=refunded,
        charged_back=transaction.charged_back,
        surcharge=transaction.surcharge,
        flags=(*transaction.raw_flags, *_notes(transaction)),
        raw_amounts=transaction.raw_amounts or None,
    )


MOST_NOTES: Final = 10
"""Events of a payment that are written in words; the gateway has all of them."""


def _notes(transaction: Transaction) -> list[str]:
    """Return what the gateway reports beside the amounts of a payment, for a person: uncounted chargeback
    events, and a credit.
    """
    notes = []
    for event in transaction.chargeback_events:
        if event.counted is None:
            told = " ".join(filter(None, (event.kind, event.amount, event.currency, event.date)))
            notes.append(f"{decisions.EVENT}{told or 'without a type and an amount'}")
    if transaction.credited:
        notes.append(f"{decisions.CREDIT}{money.spelled(transaction.credited, transaction.currency)}")
    return notes[:MOST_NOTES]

"""What the gateway's own answer means for a checkout, and the money it proves.

A lookup is one call to the Merchant API's `payments`; judging its answer is a pure function. A transaction
counts for a checkout when the checkout's own id comes back in its PaymentInfo (bound), or, weaker, when it
names no checkout at all and order number, amount and currency match. Nothing is concluded from a callback,
and no absence from an answer of the maximum length.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, StrEnum
from typing import TYPE_CHECKING

import msgspec

from orchestrator.domain import decisions
from orchestrator.domain.attention import (
    IRREGULAR,
    LATE,
    PROBLEMS,
    RETURNABLE,
    SHOWN_BY_LOOKUPS,
    Attention,
    AttentionCode,
)
from orchestrator.domain.binding import bind, is_anothers, record
from orchestrator.domain.payment_meaning import PaymentMeaning
from orchestrator.domain.records import Binding, Decision, OperationKind, OperationState, PaymentRecord, Role
from orchestrator.domain.schedule import valid_until
from orchestrator.domain.states import State

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from datetime import datetime

    from orchestrator.domain.claimed_checkout import ClaimedCheckout
    from orchestrator.domain.transaction import Found, Transaction


class LookupOutcome(StrEnum):
    """What a lookup shows of a checkout as a whole."""

    PAID = "paid"
    """Money is or was held for it: the checkout is worth completing."""
    OPEN = "open"
    """Something is under way that may still become money."""
    DECLINED = "declined"
    """There were attempts, and all are over without money."""
    NOTHING = "nothing"
    """The gateway has no attempt."""
    RELEASED = "released"
    """The payment that completed it was given back before its capture. What else may hold money for it is a
    person's business."""
    UNSURE = "unsure"
    """The answer contradicts itself or our order: a person must decide, and nothing is concluded."""


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """The result of one lookup.

    `money` is (reserved, captured, refunded) of what pays the checkout, minor units.

    `paying` are the transactions that pay it: a single one, or the parts that a person decided to keep as a
    whole. `surplus` are those that hold money beside them and have no decision. `reserved_until` is the time
    until which all of the accepted reservation can surely be captured; None where nothing is left to capture.
    """

    finding: LookupOutcome
    payments: tuple[PaymentRecord, ...]
    money: tuple[int, int, int]
    evidence: dict[str, object]
    attention: Attention | None = None
    surplus: tuple[PaymentRecord, ...] = ()
    charged_back: int = 0
    reserved_until: datetime | None = None

    @property
    def paying(self) -> tuple[PaymentRecord, ...]:
        """The transactions that pay the checkout."""
        return tuple(payment for payment in self.payments if payment.role == Role.ACCEPTED)

    @property
    def bound(self) -> bool:
        """Whether all that pays it is tied to it by our own id."""
        return all(payment.binding == Binding.BOUND for payment in self.paying)

    @property
    def left(self) -> int:
        """What is still held of what pays it, in minor units."""
        return sum(payment.left for payment in self.paying)


class _Part(Enum):
    """What a transaction is in the judgement of a lookup."""

    PAYS = "pays"
    """Money of the order: of its amount and currency, accepted before, or kept by a person's decision."""
    PROBLEM = "problem"
    """It holds money, or may, and is not what was ordered: a person decides."""
    DISMISSED = "dismissed"
    """A problem of which a person decided that it is no money of this order."""
    OPEN = "open"
    OVER = "over"
    AGREEMENT = "agreement"


@dataclass(frozen=True, slots=True)
class _Judged:
    transaction: Transaction
    seen: PaymentRecord
    part: _Part

    @property
    def id(self) -> str:
        return self.transaction.transaction_id


def concerned(checkout: decisions.Asked) -> tuple[PaymentRecord, ...]:
    """Return the transactions that the checkout's attention is about, and on which a person so decides."""
    asked = checkout.attention
    match None if asked is None else asked.code:
        case AttentionCode.SURPLUS_PAYMENT:
            return tuple(
                payment for payment in checkout.known if payment.role == Role.SURPLUS and payment.left > 0
            )
        case code if code in PROBLEMS:
            return tuple(decisions.open_problems(checkout, checkout.known))
        case code if code in IRREGULAR:
            named = {
                transaction
                for question in _irregular(checkout.known)
                if question.attention.is_same_question(asked)
                for transaction in question.attention.transactions
            }
            return tuple(payment for payment in checkout.known if payment.transaction_id in named)
        case AttentionCode.OPEN_PAYMENT:
            return tuple(payment for payment in checkout.known if payment.meaning == PaymentMeaning.OPEN)
        case _:
            return tuple(payment for payment in checkout.known if payment.role == Role.ACCEPTED)


def returned(checkout: decisions.Asked) -> list[PaymentRecord]:
    """Return the payments whose money the decision `return` gives back: what is left of each."""
    code = checkout.attention.code if checkout.attention is not None else None
    return [
        payment
        for payment in (concerned(checkout) if code in RETURNABLE else ())
        if payment.left > 0
        and (code in PROBLEMS or not payment.is_decided(str(code)))
        and (code in LATE or payment.binding == Binding.BOUND)
    ]


def marks(checkout: ClaimedCheckout, decision: str) -> dict[str, str]:
    """Return how a decision on the checkout's attention is stored with each transaction that it is about."""
    attention, about = checkout.attention, concerned(checkout)
    if attention is None:
        return {}
    basis = ""
    if about and attention.code in PROBLEMS:
        basis = decisions.problem(checkout, about).basis
    elif attention.code in IRREGULAR:
        alike = (
            question
            for question in _irregular(checkout.known)
            if question.attention.is_same_question(attention)
        )
        basis = next((question.basis for question in alike), "")
    return {payment.transaction_id: decisions.mark(attention.code, decision, basis) for payment in about}


def _irregular(payments: Iterable[PaymentRecord]) -> list[decisions.Question]:
    return decisions.irregular(
        [payment for payment in payments if payment.role in {Role.ACCEPTED, Role.SURPLUS}]
    )


def sticky(attention: Attention | None) -> Attention | None:
    """Return what remains of an attention after a lookup that does not raise it again."""
    return None if attention is None or attention.code in SHOWN_BY_LOOKUPS else attention


def judge(
    checkout: ClaimedCheckout,
    found: Found,
    *,
    shared: bool = False,
    elsewhere: Collection[str] = (),
    surcharges: bool = False,
) -> Reconciliation:
    """Say what the gateway's answer to a lookup by order number proves for this checkout.

    `shared`: other checkouts have the same order number, so that a transaction which names no checkout may be
    theirs. `elsewhere`: transactions that pay other checkouts. `surcharges`: the order's amount and a
    surcharge pay the order.
    """
    ours = [
        (transaction, binding)
        for transaction in found.transactions
        if (binding := bind(checkout, transaction)) is not None
        and not (
            binding is Binding.ORDER_REF
            and (transaction.transaction_id in elsewhere or is_anothers(checkout, transaction))
        )
    ]
    ours.sort(key=lambda pair: (pair[0].created_at, len(pair[0].transaction_id), pair[0].transaction_id))
    before = checkout.accepted
    judged = _judged(checkout, ours, before, shared=shared, surcharges=surcharges)
    parts = {part: [payment for payment in judged if payment.part is part] for part in _Part}
    seen = tuple(payment.seen for payment in judged)
    paying = [payment for payment in judged if payment.seen.role == Role.ACCEPTED]
    released = [payment for payment in judged if payment.id in before and payment.part is _Part.OVER]
    evidence = _evidence(seen, foreign=len(found.transactions) - len(ours))
    asked = (
        decisions.problem(checkout, [payment.seen for payment in parts[_Part.PROBLEM]])
        if parts[_Part.PROBLEM]
        else None
    )
    settled = {
        payment.transaction_id
        for payment in checkout.known
        if payment.is_decided(AttentionCode.SURPLUS_PAYMENT) or decisions.kept(payment)
    }
    beside = tuple(payment for payment in seen if payment.role == Role.SURPLUS and payment.left > 0)
    surplus = tuple(payment for payment in beside if payment.transaction_id not in settled)
    attention = _irregularity(checkout, seen)
    if paying:
        finding = LookupOutcome.PAID
        attention = attention or _released_parts(checkout, released) or _surplus(surplus)
        attention = attention or (asked.attention if asked is not None else None)
    elif released:
        finding = LookupOutcome.RELEASED
        attention = attention or _released_parts(checkout, released)
        if surplus:
            attention = (
                msgspec.structs.replace(attention, beside=decisions.amounts_of(surplus))
                if attention
                else _surplus(surplus, released=True)
            )
    elif asked is not None:
        finding, attention = LookupOutcome.UNSURE, attention or asked.attention
    elif beside and checkout.state is not State.COMPLETED:
        # What was accepted is not in the answer. The order, which could still end, is not without money.
        finding, attention = LookupOutcome.UNSURE, attention or _surplus(beside)
    elif parts[_Part.OPEN]:
        finding = LookupOutcome.OPEN
    elif parts[_Part.AGREEMENT]:
        finding = LookupOutcome.UNSURE
        attention = (
            attention
            or decisions.problem(checkout, [payment.seen for payment in parts[_Part.AGREEMENT]]).attention
        )
    elif found.at_limit:
        finding = LookupOutcome.UNSURE
        evidence["atLimit"] = True
        attention = attention or Attention(code=AttentionCode.LOOKUP_AT_LIMIT)
    else:
        finding = LookupOutcome.DECLINED if judged else LookupOutcome.NOTHING
    counted = [payment.seen for payment in paying or released]
    money = (checkout.reserved, checkout.captured, checkout.refunded)
    if counted:
        sums = [(payment.reserved, payment.captured, payment.refunded) for payment in counted]
        money = tuple(map(sum, zip(*sums, strict=True)))  # type: ignore[assignment]  # three columns
    until = [moment for payment in paying if (moment := valid_until(payment.transaction)) is not None]
    return Reconciliation(
        finding=finding,
        payments=seen,
        money=money,
        evidence=evidence,
        attention=attention,
        surplus=surplus,
        charged_back=sum(payment.charged_back for payment in counted) if counted else checkout.charged_back,
        reserved_until=min(until, default=None),
    )


def _judged(
    checkout: ClaimedCheckout,
    ours: Sequence[tuple[Transaction, Binding]],
    before: frozenset[str],
    *,
    shared: bool,
    surcharges: bool,
) -> list[_Judged]:
    """Say of each transaction what it is in this judgement, and which role it has so; `before` are those that
    were accepted before.
    """
    seen = [record(checkout, transaction, binding) for transaction, binding in ours]
    parts = [_part(checkout, payment, before, shared=shared, surcharges=surcharges) for payment in seen]
    problems = [payment for payment, part in zip(seen, parts, strict=True) if part is _Part.PROBLEM]
    decided = decisions.decided_on(checkout, checkout.known, problems)
    kept = {name for name, decision in decided.items() if decision == Decision.KEEP}
    pays = kept & before if before else kept
    parts = [
        part
        if payment.transaction_id not in decided
        else _Part.PAYS
        if payment.transaction_id in pays
        else _Part.DISMISSED
        for payment, part in zip(seen, parts, strict=True)
    ]
    paying = [payment for payment, part in zip(seen, parts, strict=True) if part is _Part.PAYS]
    accepted = _accepted(paying, before or kept)
    return [
        _Judged(transaction, replace(payment, role=_role(payment, part, accepted, kept)), part)
        for (transaction, _), payment, part in zip(ours, seen, parts, strict=True)
    ]


def _part(
    checkout: ClaimedCheckout,
    payment: PaymentRecord,
    before: Collection[str],
    *,
    shared: bool,
    surcharges: bool,
) -> _Part:
    """Hold a transaction against our order: money of another amount or currency is not what was asked for.

    Nor is money that names no checkout where several have the order number: it would pay each of them.
    """
    match payment.meaning:
        case PaymentMeaning.OPEN:
            return _Part.OPEN
        case PaymentMeaning.NOTHING:
            return _Part.OVER
        case PaymentMeaning.AGREEMENT:
            return _Part.AGREEMENT
        case PaymentMeaning.UNKNOWN:
            return _Part.PROBLEM
        case _ if payment.transaction_id in before:
            # What it was taken for was decided then; what is left of it may have become less since.
            return _Part.PAYS if payment.currency == checkout.currency else _Part.PROBLEM
    uncertain = shared or "info_repeated" in payment.flags
    ordered = decisions.pays(checkout, payment) or (
        surcharges and decisions.with_surcharge(checkout, payment)
    )
    if ordered and (payment.binding is Binding.BOUND or not uncertain):
        return _Part.PAYS
    # What went back holds nothing that could be decided on.
    return _Part.PROBLEM if payment.left > 0 else _Part.OVER


def _accepted(paying: Sequence[PaymentRecord], chosen: Collection[str]) -> Collection[str]:
    """Return the transactions that pay the checkout: those `chosen` before, by a lookup or a person, else the
    first that holds money.
    """
    if chosen:
        return {payment.transaction_id for payment in paying} & {*chosen}

    def rank(payment: PaymentRecord) -> tuple[bool, bool]:
        # One that went back already pays nothing while another still holds; and what is bound to this very
        # checkout goes before what merely has its order number.
        return payment.left <= 0, payment.binding != Binding.BOUND

    return {min(paying, key=rank).transaction_id} if paying else set()


def _role(payment: PaymentRecord, part: _Part, accepted: Collection[str], kept: Collection[str]) -> Role:
    if payment.transaction_id in accepted:
        return Role.ACCEPTED
    match part:
        case _Part.PAYS:
            return Role.SURPLUS
        case _Part.DISMISSED if payment.transaction_id in kept:
            return Role.SURPLUS  # kept beside the payment of a paid order
        case _Part.PROBLEM | _Part.DISMISSED:
            return Role.UNKNOWN
        case _:
            return Role.ATTEMPT


def _evidence(seen: Sequence[PaymentRecord], *, foreign: int) -> dict[str, object]:
    evidence: dict[str, object] = {
        "by": "lookup",
        "transactions": [
            {
                "id": payment.transaction_id,
                "status": payment.status,
                "meaning": payment.meaning,
                "binding": payment.binding,
                "role": payment.role,
                "reserved": payment.reserved,
                "captured": payment.captured,
                "refunded": payment.refunded,
                **({"chargedBack": payment.charged_back} if payment.charged_back else {}),
                **({"surcharge": payment.surcharge} if payment.surcharge else {}),
                **({"flags": list(payment.flags)} if payment.flags else {}),
                **({"raw": dict(payment.raw_amounts)} if payment.raw_amounts else {}),
            }
            for payment in seen
        ],
    }
    if foreign:
        evidence["foreign"] = foreign
    return evidence


def _irregularity(checkout: ClaimedCheckout, seen: Sequence[PaymentRecord]) -> Attention | None:
    """Return the first question about the books of a payment that no person has answered yet."""
    known = {payment.transaction_id: payment for payment in checkout.known}
    for asked in _irregular(seen):
        before = known.get(asked.attention.transactions[0])
        if before is None or not decisions.is_decided(before, asked):
            return asked.attention
    return None


def _released_parts(checkout: ClaimedCheckout, released: Sequence[_Judged]) -> Attention | None:
    by_us = {
        operation.transaction_id
        for operation in checkout.operations
        if operation.kind == OperationKind.RELEASE and operation.state == OperationState.SUCCEEDED
    }
    others = [payment.seen for payment in released if payment.id not in by_us]
    return (
        Attention(code=AttentionCode.PAYMENT_RELEASED, payments=decisions.amounts_of(others))
        if others
        else None
    )


def _surplus(surplus: Sequence[PaymentRecord], *, released: bool = False) -> Attention | None:
    if not surplus:
        return None
    facts = {"released": True} if released else {}
    return Attention(code=AttentionCode.SURPLUS_PAYMENT, payments=decisions.amounts_of(surplus), facts=facts)

"""Payments that need a person's decision, and the decisions.

Pure functions over lookups and books alike.

A decision holds for exactly the transactions, amounts and events that it was made on: its `basis` is a digest
of those facts. When one of them changes, the decision is void and the question is raised again. `keep` makes
the transactions the payment of the order. `dismiss` means that they are no money of this order. No decision
lets an order end without payment while the gateway clearly holds money that is bound to it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from orchestrator.domain.attention import (
    IRREGULAR,
    LATE,
    PROBLEMS,
    RETURNABLE,
    WAYS_OUT,
    Attention,
    AttentionCode,
    PaymentAmount,
    Way,
)
from orchestrator.domain.command_result import CommandResult, ResultCode, result
from orchestrator.domain.payment_meaning import MONEY, UNREADABLE, PaymentMeaning
from orchestrator.domain.records import Binding, Decision, Role

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from orchestrator.domain.records import PaymentRecord

EVENT, CREDIT = "chargeback event: ", "credit: "
"""Prefixes of a payment's flags that describe what the gateway shows beside its amounts."""
FAILED: Final = frozenset({
    "preauth_failed", "preauth_error", "3dsecure_failed", "recurring_failed", "epayment_cancelled", "epayment_declined",
})  # fmt: skip
"""The gateway's words for an attempt that came to nothing (part 3)."""

_DISMISSED: Final = frozenset(code for code, ways in WAYS_OUT.items() if Way.DISMISS in ways)


class Order(Protocol):
    """What was ordered: `amount` in minor units of `currency`."""

    @property
    def currency(self) -> str: ...
    @property
    def amount(self) -> int: ...
    @property
    def order_ref(self) -> str: ...


class Asked(Order, Protocol):
    """An order with what waits for a decision, and its payments as our books have them."""

    @property
    def attention(self) -> Attention | None: ...
    @property
    def known(self) -> tuple[PaymentRecord, ...]: ...


@dataclass(frozen=True, slots=True)
class Question:
    """A question to a person about payments, and the facts that a decision rests on."""

    attention: Attention
    basis: str


def whole(payment: PaymentRecord) -> int:
    """Return the amount that a payment was made for, in minor units."""
    return max(payment.reserved, payment.captured)


def pays(order: Order, payment: PaymentRecord) -> bool:
    """Say whether a payment is of the order's amount and currency.

    A surcharge that the gateway added is not asked for.
    """
    return payment.currency == order.currency and whole(payment) == order.amount


def with_surcharge(order: Order, payment: PaymentRecord) -> bool:
    """Say whether a payment is of the order's amount plus the surcharge that the gateway names
    (SurchargeAmount; C10).
    """
    total = order.amount + payment.surcharge
    return payment.surcharge > 0 and payment.currency == order.currency and whole(payment) == total


# ── What a decision is ────────────────────────────────────────────────────────────────────────────────────


def mark(word: str, decision: str, basis: str = "") -> str:
    """Return how a decision is stored with a payment: `word=decision@basis`.

    An empty basis stands for any facts.
    """
    return f"{word}={decision}@{basis}"


def _marks(payment: PaymentRecord) -> Iterable[tuple[str, str, str]]:
    for text in (payment.decided or "").split():
        word, _, rest = text.partition("=")
        decision, _, basis = rest.partition("@")
        yield word, decision, basis


def is_decided(payment: PaymentRecord, question: Question) -> bool:
    """Say whether a person decided on this very question for a payment."""
    asked = (question.attention.code, question.basis)
    return any((word, basis) == asked for word, _, basis in _marks(payment))


def kept(payment: PaymentRecord) -> bool:
    """Say whether a person decided to keep a payment although it was not what had been asked for."""
    return any(word in PROBLEMS and decision == Decision.KEEP for word, decision, _ in _marks(payment))


def dismissed(payment: PaymentRecord) -> bool:
    """Say whether a person decided that money which came late, or without an order, stays as it is."""
    return any(word in LATE and decision == Decision.DISMISS for word, decision, _ in _marks(payment))


def decided_on(
    order: Order, known: Iterable[PaymentRecord], problems: Sequence[PaymentRecord]
) -> dict[str, str]:
    """Return the decisions on problems that still hold: transaction → keep or dismiss.

    One that was taken on several transactions holds for all of them or for none.
    """
    groups: dict[tuple[str, str, str], set[str]] = {}
    for payment in known:
        for word, decision, basis in _marks(payment):
            if word in PROBLEMS and decision:
                groups.setdefault((word, decision, basis), set()).add(payment.transaction_id)
    held: dict[str, str] = {}
    for (_, decision, basis), named in groups.items():
        members = [member for member in problems if member.transaction_id in named]
        if len(members) == len(named) and problem(order, members).basis == basis:
            held.update(dict.fromkeys(named, decision))
    return held


def refusal(
    order: Order, payments: Sequence[PaymentRecord], attention: Attention, decision: str, *, completed: bool
) -> CommandResult | None:
    """Return why a decision on an attention cannot be executed; None if it can.

    Money that is only kept or returned is not dismissed while it is held: the question would be gone, and the
    money with it. `completed`: the order is paid already, so the decision is about money beside its payment.
    """
    if decision == Decision.DISMISS and attention.code in RETURNABLE - _DISMISSED:
        role = Role.SURPLUS if attention.code is AttentionCode.SURPLUS_PAYMENT else Role.ACCEPTED
        return _money_held(
            payment
            for payment in payments
            if payment.role == role and payment.left > 0 and not payment.is_decided(attention.code)
        )
    if attention.code not in PROBLEMS or completed:
        return None
    about = open_problems(order, payments)
    if not about or not problem(order, about).attention.is_same_question(attention):
        return result(ResultCode.REFUSED_PAYMENTS_CHANGED)
    if decision == Decision.KEEP:
        unreadable = [payment for payment in about if not UNREADABLE.isdisjoint(payment.flags)]
        if unreadable:
            return result(ResultCode.REFUSED_AMOUNT_UNREADABLE, transaction=unreadable[0].transaction_id)
        foreign = [payment for payment in about if payment.currency != order.currency]
        if foreign:
            return result(
                ResultCode.REFUSED_OTHER_CURRENCY,
                transaction=foreign[0].transaction_id,
                currency=foreign[0].currency,
                ordered=order.currency,
            )
        if any(payment.left <= 0 for payment in about):
            return result(
                ResultCode.REFUSED_HOLD_NO_MONEY, transactions=[payment.transaction_id for payment in about]
            )
    return _not_dismissed(about) if decision == Decision.DISMISS else None


def _not_dismissed(about: Iterable[PaymentRecord]) -> CommandResult | None:
    ours = [payment for payment in about if payment.binding == Binding.BOUND and _may_hold(payment)]
    if any(payment.meaning in MONEY for payment in ours):
        return _money_held(ours)
    if not ours:
        return None
    return result(
        ResultCode.REFUSED_MONEY_POSSIBLE, transaction=ours[0].transaction_id, status=ours[0].status
    )


def _money_held(payments: Iterable[PaymentRecord]) -> CommandResult | None:
    held = [
        {"transaction": payment.transaction_id, "amount": payment.left, "currency": payment.currency}
        for payment in payments
    ]
    return result(ResultCode.REFUSED_MONEY_HELD, payments=held) if held else None


def _may_hold(payment: PaymentRecord) -> bool:
    """Return whether a payment may hold money.

    Where the gateway's status is failed, a person may decide that it does not.
    """
    if payment.meaning in MONEY:
        return payment.left > 0
    over = payment.status in FAILED and UNREADABLE.isdisjoint(payment.flags)
    return not over and (payment.left > 0 or not UNREADABLE.isdisjoint(payment.flags))


# ── Questions to a person ───────────────────────────────────────────────────────────────────────────────────


def open_problems(order: Order, payments: Sequence[PaymentRecord]) -> list[PaymentRecord]:
    """Return the payments of our books that are not taken for the order's and that no valid decision is
    about.
    """
    problems = [payment for payment in payments if is_problem(payment)]
    held = decided_on(order, payments, problems)
    return [problem for problem in problems if problem.transaction_id not in held]


def is_problem(payment: PaymentRecord) -> bool:
    """Say whether a payment of our books waits, or waited, for a decision whether it is the order's."""
    over = payment.meaning in MONEY and payment.left <= 0
    return payment.role == Role.UNKNOWN and payment.meaning != PaymentMeaning.NOTHING and not over


def problem(order: Order, payments: Sequence[PaymentRecord]) -> Question:
    """Return the question about payments that differ from the order; one decision covers all of them."""
    about = sorted(payments, key=lambda payment: (len(payment.transaction_id), payment.transaction_id))
    codes = [_code(order, payment) for payment in about]
    code = next(code for code in _WORST_FIRST if code in codes)
    digested = [
        (
            payment.transaction_id,
            whole(payment),
            payment.currency,
            payment.surcharge,
            *_unclear_facts(code, payment),
        )
        for payment, code in zip(about, codes, strict=True)
    ]
    facts: dict[str, object] = {
        "ordered": order.amount,
        "currency": order.currency,
        "orderId": order.order_ref,
    }
    if len(about) == 1 and code is AttentionCode.PAYMENT_MISMATCH and with_surcharge(order, about[0]):
        facts["surcharge"] = about[0].surcharge
    asked = tuple(_amount(payment, code) for payment, code in zip(about, codes, strict=True))
    return Question(Attention(code=code, payments=asked, facts=facts), _digest(digested))


_WORST_FIRST: Final = (
    AttentionCode.UNCLEAR_PAYMENT, AttentionCode.PAYMENT_MISMATCH, AttentionCode.UNBOUND_PAYMENT,
)  # fmt: skip


def irregular(payments: Sequence[PaymentRecord]) -> list[Question]:
    """Return the questions about payments of the order whose money moved for no stored reason."""
    asked = []
    for payment in payments:
        events = [flag.removeprefix(EVENT) for flag in payment.flags if flag.startswith(EVENT)]
        credit = [flag.removeprefix(CREDIT) for flag in payment.flags if flag.startswith(CREDIT)]
        # What the decision rests on, and what the sentence says.
        about: Mapping[AttentionCode, tuple[object, Mapping[str, object]]] = {
            AttentionCode.CHARGEBACK_UNCLEAR: (events, {"events": events}),
            AttentionCode.OVER_REFUND: (
                [payment.refunded, payment.captured],
                {"refunded": payment.refunded, "captured": payment.captured},
            ),
            AttentionCode.OVER_CAPTURE: (
                [payment.captured, payment.reserved],
                {"captured": payment.captured, "reserved": payment.reserved},
            ),
            AttentionCode.CREDITED: (credit, {"credits": credit}),
        }
        for code in IRREGULAR:
            # A bank transfer has no reservation.
            if code in payment.flags and not (code is AttentionCode.OVER_CAPTURE and payment.reserved == 0):
                digested, told = about[code]
                facts = {**told, "currency": payment.currency}
                attention = Attention(code=code, payments=amounts_of([payment]), facts=facts)
                asked.append(Question(attention, _digest([code, digested])))
    return asked


def amounts_of(payments: Iterable[PaymentRecord]) -> tuple[PaymentAmount, ...]:
    """Return payments as an attention names them: with what each still holds."""
    return tuple(map(_amount, payments))


def _amount(payment: PaymentRecord, problem: AttentionCode | None = None) -> PaymentAmount:
    readable = UNREADABLE.isdisjoint(payment.flags)
    return PaymentAmount(
        transaction_id=payment.transaction_id,
        amount=payment.left if readable else None,
        currency=payment.currency,
        problem=problem,
        status=payment.status if problem is AttentionCode.UNCLEAR_PAYMENT else None,
        repeated=problem is AttentionCode.UNBOUND_PAYMENT and "info_repeated" in payment.flags,
    )


def _code(order: Order, payment: PaymentRecord) -> AttentionCode:
    if payment.meaning not in MONEY:
        return AttentionCode.UNCLEAR_PAYMENT
    return AttentionCode.UNBOUND_PAYMENT if pays(order, payment) else AttentionCode.PAYMENT_MISMATCH


def _unclear_facts(code: AttentionCode, payment: PaymentRecord) -> tuple[object, ...]:
    if code is not AttentionCode.UNCLEAR_PAYMENT:
        return ()
    return (payment.status, payment.reserved, payment.captured, payment.refunded, *sorted(payment.flags))


def _digest(facts: object) -> str:
    return hashlib.sha256(msgspec.json.encode(facts)).hexdigest()[:16]

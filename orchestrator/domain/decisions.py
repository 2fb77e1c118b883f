"""Payments that need a person's decision, and what a person decided on them. Pure functions over lookups and books alike.

A decision holds for exactly the transactions, amounts and events that it was taken on: its `basis` is a digest of those facts. When
one of them changes, the decision is void and the question is asked again. `keep` makes the transactions the payment of the order.
`dismiss` says that they are no money of this order. No decision lets an order end without payment while the gateway clearly holds
money that is bound to it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from orchestrator.domain import money
from orchestrator.domain.payment_meaning import MONEY, UNREADABLE, PaymentMeaning
from orchestrator.domain.records import Binding, Decision, Role

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from orchestrator.domain.records import PaymentRecord

MISMATCH: Final = "payment_mismatch"
UNCLEAR: Final = "unclear_payment"
UNBOUND: Final = "unbound_payment"
PROBLEMS: Final = frozenset({MISMATCH, UNCLEAR, UNBOUND})
"""Words of attention about transactions that hold money, or may, and that are not taken for the order's payment."""

CHARGEBACK_UNCLEAR: Final = "chargeback_unclear"
OVER_REFUND: Final = "over_refund"
OVER_CAPTURE: Final = "over_capture"
CREDITED: Final = "credited"
IRREGULAR: Final = (CHARGEBACK_UNCLEAR, OVER_REFUND, OVER_CAPTURE, CREDITED)
"""Words of attention about a payment whose books at the gateway show more than captures and refunds of it; also flags of a payment."""

EVENT, CREDIT = "chargeback event: ", "credit: "
"""Begin the flags of a payment that tell a person what the gateway shows beside its amounts."""
FAILED: Final = frozenset({
    "preauth_failed", "preauth_error", "3dsecure_failed", "recurring_failed", "epayment_cancelled", "epayment_declined",
})  # fmt: skip
"""The gateway's words for an attempt that came to nothing (part 3)."""
_MOST_NAMED: Final = 10


class Order(Protocol):
    """What was ordered: `amount` in minor units of `currency`."""

    @property
    def currency(self) -> str: ...
    @property
    def amount(self) -> int: ...
    @property
    def order_ref(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Question:
    """What a person is asked about payments: the word and the sentence of the attention, and what a decision rests on."""

    word: str
    sentence: str
    transactions: tuple[str, ...]
    basis: str

    @property
    def attention(self) -> str:
        """The attention as it is stored."""
        return f"{self.word}: {self.sentence}"


def whole(payment: PaymentRecord) -> int:
    """Return the amount that a payment was made for, in minor units."""
    return max(payment.reserved, payment.captured)


def pays(order: Order, payment: PaymentRecord) -> bool:
    """Say whether a payment is of the order's amount and currency. A surcharge that the gateway added is not asked for."""
    return payment.currency == order.currency and whole(payment) == order.amount


def with_surcharge(order: Order, payment: PaymentRecord) -> bool:
    """Say whether a payment is of the order's amount plus the surcharge that the gateway names (SurchargeAmount; C10)."""
    total = order.amount + payment.surcharge
    return payment.surcharge > 0 and payment.currency == order.currency and whole(payment) == total


# ── What a decision is ──────────────────────────────────────────────────────────────────────────────────────────────────


def mark(word: str, decision: str, basis: str = "") -> str:
    """Return how a decision is stored with a payment: `word=decision@basis`. An empty basis stands for any facts."""
    return f"{word}={decision}@{basis}"


def _marks(payment: PaymentRecord) -> Iterable[tuple[str, str, str]]:
    for text in (payment.decided or "").split():
        word, _, rest = text.partition("=")
        decision, _, basis = rest.partition("@")
        yield word, decision, basis


def is_decided(payment: PaymentRecord, question: Question) -> bool:
    """Say whether a person decided on this very question for a payment."""
    return any((word, basis) == (question.word, question.basis) for word, _, basis in _marks(payment))


def kept(payment: PaymentRecord) -> bool:
    """Say whether a person decided to keep a payment although it was not what had been asked for."""
    return any(word in PROBLEMS and decision == Decision.KEEP for word, decision, _ in _marks(payment))


def decided_on(
    order: Order, known: Iterable[PaymentRecord], problems: Sequence[PaymentRecord]
) -> dict[str, str]:
    """Return the decisions on problems that still hold: transaction → keep or dismiss.

    One that was taken on several transactions holds for all of them or for none.
    """
    groups: dict[tuple[str, str, str], set[str]] = {}
    for one in known:
        for word, decision, basis in _marks(one):
            if word in PROBLEMS and decision:
                groups.setdefault((word, decision, basis), set()).add(one.transaction_id)
    held: dict[str, str] = {}
    for (_, decision, basis), named in groups.items():
        members = [one for one in problems if one.transaction_id in named]
        if len(members) == len(named) and problem(order, members).basis == basis:
            held.update(dict.fromkeys(named, decision))
    return held


def refusal(
    order: Order, payments: Sequence[PaymentRecord], attention: str, decision: str, *, completed: bool
) -> str | None:
    """Say why a decision on an attention cannot be carried out; None if it can.

    `completed`: the order is paid already, so that what is decided on is money beside its payment.
    """
    if attention.partition(":")[0] not in PROBLEMS or completed:
        return None
    about = open_problems(order, payments)
    named = ", ".join(one.transaction_id for one in about[:_MOST_NAMED])
    if not about or problem(order, about).attention != attention:
        return "the payments that it is about have changed: read the checkout again and decide again"
    if decision == Decision.KEEP:
        unreadable = [one for one in about if not UNREADABLE.isdisjoint(one.flags)]
        if unreadable:
            said = f"the amounts of transaction {unreadable[0].transaction_id} cannot be read"
            return f"{said}: look it up at the gateway, give the money back there or take another payment for the order"
        foreign = [one for one in about if one.currency != order.currency]
        if foreign:
            said = f"transaction {foreign[0].transaction_id} is in {foreign[0].currency or 'an unknown currency'}"
            return f"{said} and the order in {order.currency}: it cannot pay this order; return it"
        if any(one.left <= 0 for one in about):
            return f"transactions {named} do not all hold money: say dismiss, or reconcile"
    elif decision == Decision.DISMISS:
        ours = [one for one in about if one.binding == Binding.BOUND and _may_hold(one)]
        if any(one.meaning in MONEY for one in ours):
            held = ", ".join(
                f"{one.transaction_id} ({money.spelled(one.left, one.currency)})" for one in ours
            )
            return f"the gateway holds money for this order under {held}: say keep or return"
        if ours:
            return (
                f"transaction {ours[0].transaction_id} names this order and is {ours[0].status or 'without a status'}: say keep, or give "
                "its money back in the gateway's own interface, then reconcile"
            )
    return None


def _may_hold(payment: PaymentRecord) -> bool:
    """Say whether a payment holds money as far as is known. Of one that the gateway calls failed a person may say that it does not."""
    if payment.meaning in MONEY:
        return payment.left > 0
    over = payment.status in FAILED and UNREADABLE.isdisjoint(payment.flags)
    return not over and (payment.left > 0 or not UNREADABLE.isdisjoint(payment.flags))


# ── What is asked ───────────────────────────────────────────────────────────────────────────────────────────────────────


def open_problems(order: Order, payments: Sequence[PaymentRecord]) -> list[PaymentRecord]:
    """Return the payments of our books that are not taken for the order's and that no valid decision is about."""
    problems = [one for one in payments if is_problem(one)]
    held = decided_on(order, payments, problems)
    return [one for one in problems if one.transaction_id not in held]


def is_problem(payment: PaymentRecord) -> bool:
    """Say whether a payment of our books waits, or waited, for a decision whether it is the order's."""
    over = payment.meaning in MONEY and payment.left <= 0
    return payment.role == Role.UNKNOWN and payment.meaning != PaymentMeaning.NOTHING and not over


def problem(order: Order, payments: Sequence[PaymentRecord]) -> Question:
    """Return what a person is asked about payments that are not what was ordered; all of them are one decision."""
    about = sorted(payments, key=lambda one: (len(one.transaction_id), one.transaction_id))
    words = [_word(order, one) for one in about]
    word = next(word for word in (UNCLEAR, MISMATCH, UNBOUND) if word in words)
    facts = [
        (one.transaction_id, whole(one), one.currency, one.surcharge, *_unclear_facts(word, one)) for one, word in zip(about, words, strict=True)
    ]  # fmt: skip
    ordered = money.spelled(order.amount, order.currency)
    if set(words) == {MISMATCH}:
        sentence = _mismatch(order, about, ordered)
    else:
        said = [_told(order, one, word) for one, word in zip(about[:_MOST_NAMED], words, strict=False)]
        sentence = "; ".join([*said, *_more(about)])
        if MISMATCH in words:
            sentence += f"; the order is {ordered}"
    return Question(word, sentence, tuple(one.transaction_id for one in about), _digest(facts))


def irregular(payments: Sequence[PaymentRecord]) -> list[Question]:
    """Return what a person is asked about payments of the order whose money moved in a way that nothing here explains."""
    asked = []
    for one in payments:
        reserved, captured, refunded = (
            money.spelled(minor, one.currency) for minor in (one.reserved, one.captured, one.refunded)
        )
        events = [flag.removeprefix(EVENT) for flag in one.flags if flag.startswith(EVENT)]
        credit = [flag.removeprefix(CREDIT) for flag in one.flags if flag.startswith(CREDIT)]
        named = f"transaction {one.transaction_id}"
        facts: Mapping[str, tuple[object, str]] = {
            CHARGEBACK_UNCLEAR: (events, f"the gateway tells of a chargeback or a dispute of {named} that cannot be counted: {'; '.join(events)}"),
            OVER_REFUND: ([one.refunded, one.captured], f"of {named} {refunded} are refunded, and {captured} were captured"),
            OVER_CAPTURE: ([one.captured, one.reserved], f"of {named} {captured} are captured, and {reserved} were reserved"),
            CREDITED: (credit, f"the gateway shows a credit of {'; '.join(credit)} to the shopper beside {named}"),
        }  # fmt: skip
        for word in IRREGULAR:
            # A bank transfer knows no reservation.
            if word in one.flags and not (word == OVER_CAPTURE and one.reserved == 0):
                fact, sentence = facts[word]
                asked.append(Question(word, sentence, (one.transaction_id,), _digest([word, fact])))
    return asked


def _word(order: Order, payment: PaymentRecord) -> str:
    if payment.meaning not in MONEY:
        return UNCLEAR
    return UNBOUND if pays(order, payment) else MISMATCH


def _unclear_facts(word: str, payment: PaymentRecord) -> tuple[object, ...]:
    if word != UNCLEAR:
        return ()
    return (payment.status, payment.reserved, payment.captured, payment.refunded, *sorted(payment.flags))


def _mismatch(order: Order, about: Sequence[PaymentRecord], ordered: str) -> str:
    if len(about) == 1:
        one = about[0]
        held = f"transaction {one.transaction_id} holds {money.spelled(one.left, one.currency)}"
        if with_surcharge(order, one):
            extra = money.spelled(one.surcharge, one.currency)
            return f"{held}, which is the order of {ordered} and a surcharge of {extra}"
        return f"{held}, the order is {ordered}"
    named = [f"{one.transaction_id} ({money.spelled(one.left, one.currency)})" for one in about[:_MOST_NAMED]]
    held = f"transactions {', '.join([*named, *_more(about)])} hold money"
    if len({one.currency for one in about}) == 1:
        held = f"transactions {', '.join([*named, *_more(about)])} hold {money.spelled(sum(one.left for one in about), about[0].currency)} together"
    return f"{held}, the order is {ordered}"


def _told(order: Order, payment: PaymentRecord, word: str) -> str:
    named = f"transaction {payment.transaction_id}"
    if word == UNCLEAR:
        return f"{named} is {payment.status or 'without a status'} with amounts that do not say what it means"
    if word == MISMATCH:
        return f"{named} holds {money.spelled(payment.left, payment.currency)}"
    if "info_repeated" in payment.flags:
        return f"{named} names more than one checkout"
    return f"{named} names no checkout, and several checkouts have order number {order.order_ref}"


def _more(about: Sequence[PaymentRecord]) -> list[str]:
    rest = len(about) - _MOST_NAMED
    return [f"and {rest} more"] if rest > 0 else []


def _digest(facts: object) -> str:
    return hashlib.sha256(msgspec.json.encode(facts)).hexdigest()[:16]

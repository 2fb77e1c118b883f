"""What needs a person's decision: a code with its facts and payments.

Code decides on these values, never on a sentence.

`sentences` makes the text that people read. `WAYS_OUT` says what makes an attention go; the API, explain, the
processing of commands and the runbook use it. Amounts are minor units of the currency beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

import msgspec


class AttentionCode(StrEnum):
    """Why a checkout needs a decision. The values are stored, and are part of the API."""

    LATE_PAYMENT = "late_payment"
    """Money came after the checkout had ended, and the policy says to ask."""
    SURPLUS_PAYMENT = "surplus_payment"
    """Payments beside the accepted one hold money for the order."""
    UNKNOWN_ORDER = "unknown_order"
    """A payment came for an order number that no shop has handed over."""
    PAYMENT_MISMATCH = "payment_mismatch"
    """A payment holds another amount or currency than was ordered."""
    UNCLEAR_PAYMENT = "unclear_payment"
    """The status and the amounts of a payment do not say together what it means."""
    UNBOUND_PAYMENT = "unbound_payment"
    """A payment names no checkout, or several, so that it may belong to another checkout."""
    CHARGEBACK_UNCLEAR = "chargeback_unclear"
    """The gateway reports a chargeback or a dispute that cannot be counted."""
    OVER_REFUND = "over_refund"
    """More was refunded than was captured."""
    OVER_CAPTURE = "over_capture"
    """More was captured than was reserved."""
    CREDITED = "credited"
    """The gateway shows a credit to the shopper that is no refund."""
    LOOKUP_AT_LIMIT = "lookup_at_limit"
    """The gateway's answer has as many rows as it may have, so it proves no absence."""
    PAYMENT_RELEASED = "payment_released"
    """The payment of the order was released at the gateway."""
    PAYMENT_GONE = "payment_gone"
    """The gateway no longer shows the payment that completed the checkout."""
    OPEN_PAYMENT = "open_payment"
    """A payment is open since long before the deadline."""
    RESERVATION_LAPSES = "reservation_lapses"
    """The reservation will soon be too old for a capture that is sure to work."""
    CHARGED_BACK = "charged_back"
    """The shopper's bank took money back."""
    OPERATION_UNCLEAR = "operation_unclear"
    """The gateway's answer and books do not show the result of a capture, refund or release."""
    OPERATION_REJECTED = "operation_rejected"
    """A capture, refund or release that no command asked for was not done."""
    GATEWAY_CREDENTIALS = "gateway_credentials"
    """The gateway refuses the merchant's user name and password."""
    GATEWAY_FAILING = "gateway_failing"
    """Many calls to the gateway failed one after the other."""
    STEP_BROKE = "step_broke"
    """A step ended with an error that the software does not expect."""
    POISONED = "poisoned"
    """Every worker that claimed the checkout stopped in the middle of a step."""
    ORDER_NUMBER_USED_UP = "order_number_used_up"
    """As many sessions were opened for the order number as the gateway takes."""
    NO_PAYMENT_METHODS = "no_payment_methods"
    """The gateway offers no payment method for the order."""
    OTHER = "other"
    """Text without a code of this version, kept as `text`: an earlier version, or another program,
    wrote it."""


class PaymentAmount(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A gateway transaction that an attention is about, with what it holds; `amount` is None where it cannot
    be read.

    `problem` is why it does not count as the order's payment: for UNCLEAR_PAYMENT `status` is the gateway's
    own word, for UNBOUND_PAYMENT `repeated` is whether it names more than one checkout.
    """

    transaction_id: str
    amount: int | None
    currency: str
    problem: AttentionCode | None = None
    status: str | None = None
    repeated: bool = False

    @property
    def asked(self) -> tuple[object, ...]:
        """What makes it another question when it changes."""
        match self.problem:
            case AttentionCode.UNCLEAR_PAYMENT:
                return self.transaction_id, self.status
            case AttentionCode.UNBOUND_PAYMENT:
                return self.transaction_id, self.repeated
            case _:
                return self.transaction_id, self.amount, self.currency


class Attention(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One attention.

    `facts` are the other values that its sentence is made of (see `sentences`): texts, numbers and lists of
    JSON.

    `beside` are payments that hold money too, of an order whose own payment was released.
    """

    code: AttentionCode
    payments: tuple[PaymentAmount, ...] = ()
    facts: Mapping[str, Any] = {}
    beside: tuple[PaymentAmount, ...] = ()

    @property
    def transactions(self) -> list[str]:
        return [payment.transaction_id for payment in self.payments]

    @property
    def details(self) -> dict[str, Any]:
        """What is stored beside the code."""
        stored: dict[str, Any] = msgspec.to_builtins(self)
        del stored["code"]
        return stored

    def is_same_question(self, other: Attention | None) -> bool:
        """Whether it is the same question about the same payments, whatever payments hold money
        beside them.
        """
        return other is not None and _question(self) == _question(other)

    def is_news(self, before: Attention | None) -> bool:
        """Whether it says something that `before` did not.

        Amounts of payments that it only names may have changed since.
        """
        return not self.is_same_question(before) or _named(self.beside) != _named(
            before.beside if before else ()
        )


def _question(attention: Attention) -> tuple[object, ...]:
    if attention.code in PROBLEMS:
        return attention.code, attention.facts, [payment.asked for payment in attention.payments]
    return (
        attention.code,
        attention.facts,
        attention.transactions if attention.code in _NAMES_PAYMENTS else (),
    )


def _named(payments: tuple[PaymentAmount, ...]) -> list[str]:
    return [payment.transaction_id for payment in payments]


def stored(code: str | None, details: Mapping[str, Any] | None) -> Attention | None:
    """Return the attention of a row; OTHER, with what stands there, for words that are not known.

    It raises for nothing.
    """
    if code is None:
        return None
    try:
        return msgspec.convert({**(details or {}), "code": code}, Attention)
    except msgspec.ValidationError:
        known = code in AttentionCode.__members__.values()
        facts = {"text": code, **({"details": dict(details)} if details else {})}
        return (
            Attention(code=AttentionCode(code)) if known else Attention(code=AttentionCode.OTHER, facts=facts)
        )


# ── What code decides by it ───────────────────────────────────────────────────────────────────────────────

PROBLEMS: Final = frozenset({
    AttentionCode.PAYMENT_MISMATCH, AttentionCode.UNCLEAR_PAYMENT, AttentionCode.UNBOUND_PAYMENT,
})  # fmt: skip
"""About transactions that hold money, or may, and that are not taken for the order's payment."""
IRREGULAR: Final = (
    AttentionCode.CHARGEBACK_UNCLEAR, AttentionCode.OVER_REFUND, AttentionCode.OVER_CAPTURE, AttentionCode.CREDITED,
)  # fmt: skip
"""About a payment whose books at the gateway show more than captures and refunds of it; the values are flags
of a payment too."""
SHOWN_BY_LOOKUPS: Final = frozenset({
    AttentionCode.SURPLUS_PAYMENT, AttentionCode.LOOKUP_AT_LIMIT, AttentionCode.OPEN_PAYMENT, AttentionCode.PAYMENT_GONE,
    *PROBLEMS, *IRREGULAR,
})  # fmt: skip
"""A lookup raises it, and the next lookup that does not show it takes it back. Everything else stays until a
person decides."""
ABOUT_FAILURES: Final = frozenset({
    AttentionCode.GATEWAY_CREDENTIALS, AttentionCode.GATEWAY_FAILING, AttentionCode.STEP_BROKE,
})  # fmt: skip
"""Goes as soon as the gateway has answered."""
LATE: Final = frozenset({AttentionCode.LATE_PAYMENT, AttentionCode.UNKNOWN_ORDER})
"""About money that pays the checkout, and came when nothing was expected any more."""
RETURNABLE: Final = frozenset({*LATE, AttentionCode.SURPLUS_PAYMENT, *PROBLEMS})
"""About money that the decision `return` gives back."""
_NAMES_PAYMENTS: Final = frozenset({
    AttentionCode.SURPLUS_PAYMENT, AttentionCode.PAYMENT_RELEASED, *IRREGULAR,
})  # fmt: skip


class Way(StrEnum):
    """What a person does about an attention: a decision of the command `resolve`, or another command."""

    KEEP = "keep"
    RETURN = "return"
    DISMISS = "dismiss"
    RETRY = "retry"
    RECONCILE = "reconcile"
    CAPTURE = "capture"
    RELEASE = "release"
    REFUND = "refund"
    REOPEN = "reopen"


WAYS_OUT: Final[Mapping[AttentionCode, tuple[Way, ...]]] = {
    AttentionCode.LATE_PAYMENT: (Way.KEEP, Way.RETURN),
    AttentionCode.SURPLUS_PAYMENT: (Way.RETURN, Way.KEEP),
    AttentionCode.UNKNOWN_ORDER: (Way.RETURN, Way.KEEP, Way.DISMISS),
    AttentionCode.PAYMENT_MISMATCH: (Way.RETURN, Way.KEEP, Way.DISMISS),
    AttentionCode.UNCLEAR_PAYMENT: (Way.RECONCILE, Way.KEEP, Way.DISMISS),
    AttentionCode.UNBOUND_PAYMENT: (Way.KEEP, Way.DISMISS),
    AttentionCode.CHARGEBACK_UNCLEAR: (Way.DISMISS,),
    AttentionCode.OVER_REFUND: (Way.DISMISS,),
    AttentionCode.OVER_CAPTURE: (Way.DISMISS,),
    AttentionCode.CREDITED: (Way.DISMISS,),
    AttentionCode.LOOKUP_AT_LIMIT: (Way.DISMISS,),
    AttentionCode.PAYMENT_RELEASED: (Way.DISMISS,),
    AttentionCode.PAYMENT_GONE: (Way.RECONCILE, Way.DISMISS),
    AttentionCode.OPEN_PAYMENT: (Way.RECONCILE, Way.DISMISS),
    AttentionCode.RESERVATION_LAPSES: (Way.DISMISS,),
    AttentionCode.CHARGED_BACK: (Way.DISMISS,),
    AttentionCode.OPERATION_UNCLEAR: (Way.RECONCILE, Way.KEEP, Way.DISMISS),
    AttentionCode.OPERATION_REJECTED: (Way.DISMISS,),
    AttentionCode.GATEWAY_CREDENTIALS: (Way.RETRY,),
    AttentionCode.GATEWAY_FAILING: (Way.RETRY,),
    AttentionCode.STEP_BROKE: (Way.RETRY,),
    AttentionCode.POISONED: (Way.RETRY,),
    AttentionCode.ORDER_NUMBER_USED_UP: (Way.DISMISS,),
    AttentionCode.NO_PAYMENT_METHODS: (Way.DISMISS,),
    AttentionCode.OTHER: (Way.DISMISS,),
}
"""What makes an attention go, the most fitting first. A lookup that shows the cause no more takes back those
of SHOWN_BY_LOOKUPS."""

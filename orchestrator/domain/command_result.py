"""What became of a command: a code and its facts; `sentences` makes the text."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

import msgspec


class ResultCode(StrEnum):
    """What a command came to.

    The values are stored, and are part of the API. Amounts are minor units of `currency`.
    """

    ACCEPTED = "accepted"
    """It is under way; `operations` are the ids of the money operations that it began."""
    DONE_RETRIED = "done_retried"
    """`until` when calls to its gateway are paused, if they are."""
    DONE_LOOKED_UP = "done_looked_up"
    """`finding` is what the gateway showed (`LookupOutcome`)."""
    DONE_REOPENED = "done_reopened"
    DONE_KEPT = "done_kept"
    DONE_DECIDED = "done_decided"
    DONE_OPERATION_DECIDED = "done_operation_decided"
    """`state` is that of the operation now."""
    DONE_CHANGED = "done_changed"
    """Our books have the changed order; an open session is changed next, before it is offered again."""
    REFUSED_NOT_AUTHENTIC = "refused_not_authentic"
    REFUSED_REPEATED = "refused_repeated"
    REFUSED_VERSION_CHANGED = "refused_version_changed"
    """It was asked for version `asked`; the checkout has `version`."""
    REFUSED_NOT_CANCELLABLE = "refused_not_cancellable"
    REFUSED_NOT_CHANGEABLE = "refused_not_changeable"
    """The checkout is over: `state`, or its deadline has passed."""
    REFUSED_NOT_AN_INTENT = "refused_not_an_intent"
    """With the changes before it, it makes no valid order: `field`, and the `problem` with it."""
    REFUSED_CANCELLING = "refused_cancelling"
    REFUSED_NOT_CLOSED = "refused_not_closed"
    REFUSED_NOT_AN_ORDER = "refused_not_an_order"
    REFUSED_ERASED = "refused_erased"
    REFUSED_ORDER_TAKEN = "refused_order_taken"
    REFUSED_ORDER_NUMBER_USED_UP = "refused_order_number_used_up"
    REFUSED_PAYMENT_SHOWN = "refused_payment_shown"
    """`finding` is what the gateway showed (`LookupOutcome`)."""
    REFUSED_NOT_PAID = "refused_not_paid"
    REFUSED_SEVERAL_PAYMENTS = "refused_several_payments"
    REFUSED_UNKNOWN_TRANSACTION = "refused_unknown_transaction"
    REFUSED_NOT_ITS_PAYMENT = "refused_not_its_payment"
    """`unsure` is the transaction, where it is not surely of this checkout."""
    REFUSED_CAPTURES_ITSELF = "refused_captures_itself"
    REFUSED_ALREADY_CAPTURED = "refused_already_captured"
    REFUSED_NOTHING_LEFT = "refused_nothing_left"
    REFUSED_TOO_MUCH = "refused_too_much"
    """`left` is what can be moved, `amount` what was asked for."""
    REFUSED_NOTHING_TO_DECIDE = "refused_nothing_to_decide"
    REFUSED_PAYMENTS_CHANGED = "refused_payments_changed"
    REFUSED_AMOUNT_UNREADABLE = "refused_amount_unreadable"
    REFUSED_OTHER_CURRENCY = "refused_other_currency"
    REFUSED_HOLD_NO_MONEY = "refused_hold_no_money"
    REFUSED_MONEY_HELD = "refused_money_held"
    REFUSED_MONEY_POSSIBLE = "refused_money_possible"
    REFUSED_KEEP_OR_DISMISS = "refused_keep_or_dismiss"
    REFUSED_NOT_RETURNABLE = "refused_not_returnable"
    """`attention` is the code that stands."""
    REFUSED_PAYMENT_UNCLEAR = "refused_payment_unclear"
    REFUSED_NOTHING_TO_RETURN = "refused_nothing_to_return"
    OTHER = "other"
    """Text without a code of this version, kept as `text`."""


DONE: Final = frozenset({
    ResultCode.DONE_RETRIED, ResultCode.DONE_LOOKED_UP, ResultCode.DONE_REOPENED, ResultCode.DONE_KEPT, ResultCode.DONE_DECIDED,
    ResultCode.DONE_OPERATION_DECIDED, ResultCode.DONE_CHANGED,
})  # fmt: skip
REFUSED: Final = frozenset(ResultCode) - DONE - {ResultCode.ACCEPTED, ResultCode.OTHER}


class CommandResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One result; `facts` are the values that its sentence is made of."""

    code: ResultCode
    facts: Mapping[str, Any] = {}

    @property
    def refused(self) -> bool:
        """Whether nothing was done because of it."""
        return self.code in REFUSED


def result(code: ResultCode, **facts: object) -> CommandResult:
    """Make a result of its code and facts, which are texts, numbers and lists of these."""
    return CommandResult(code=code, facts=facts)


def stored(code: str | None, facts: Mapping[str, Any] | None) -> CommandResult | None:
    """Return the result of a row; OTHER, with what stands there, for words that are not known.

    It raises for nothing.
    """
    if code is None:
        return None
    if code not in _CODES:
        return CommandResult(code=ResultCode.OTHER, facts={"text": code, **(facts or {})})
    return CommandResult(code=ResultCode(code), facts=facts or {})


_CODES: Final = frozenset(code.value for code in ResultCode)

"""Why the last step of a checkout, or of a money operation, came to nothing: a code and its facts;
`sentences` makes the text.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

import msgspec

from orchestrator.domain.attention import Attention


class ErrorCode(StrEnum):
    """What went wrong.

    The values are stored, and are part of the API. `reason` is the gateway client's own short text.
    """

    # A call to the gateway: `reason`.
    THROTTLED = "throttled"
    NOT_SENT = "not_sent"
    BUSY = "busy"
    CIRCUIT_OPEN = "circuit_open"
    UNKNOWN_OUTCOME = "unknown"
    UNAUTHORIZED = "unauthorized"
    REFUSED = "refused"
    """A refusal that is not about the order: the call is repeated."""
    GATEWAY_REFUSED = "gateway_refused"
    """A refusal that is about the order: it is not repeated."""
    # A checkout.
    TOKEN_REFUSED = "token_refused"  # noqa: S105 - a code, no secret
    NO_PAYMENT_METHODS = "no_payment_methods"
    ORDER_NUMBER_USED_UP = "order_number_used_up"
    """`sessions` were opened, and the gateway takes `most`."""
    DEADLINE_PASSED = "deadline_passed"
    UNKNOWN_ORDER = "unknown_order"
    LEFT_TO_ORDER = "left_to_order"
    """`checkout` has the order, and with it the payment."""
    NEEDS_DECISION = "needs_decision"
    """A lookup was not conclusive: `attention`."""
    STEP_BROKE = "step_broke"
    """`error` is the type of an exception, `state` the state of the checkout."""
    # A money operation. Amounts are minor units of `currency`.
    NOT_AUTHENTIC = "not_authentic"
    GATEWAY_ANSWERED = "gateway_answered"
    """`answer` is the gateway's own word."""
    NOTHING_LEFT = "nothing_left"
    """Of `kind` only `left` is possible, not `amount`."""
    TOTAL_CHANGED = "total_changed"
    """`total` at the gateway is not `before` any more."""
    ALREADY_CAPTURED = "already_captured"
    HOLDS_NO_MONEY = "holds_no_money"
    """`status` is the gateway's own word."""
    CALL_UNDER_WAY = "call_under_way"
    TRANSACTION_UNKNOWN = "transaction_unknown"
    """The gateway does not have `transaction` of `operation`."""
    STATUS_UNCLEAR = "status_unclear"
    """`status` is the gateway's own word."""
    RELEASE_UNCLEAR = "release_unclear"
    """`status` is the gateway's own word."""
    TOTAL_UNCLEAR = "total_unclear"
    """`total` is neither `before` nor that with `amount` more."""
    NEVER_IN_BOOKS = "never_in_books"
    """It was sent `sends` times."""
    DECIDED = "decided"
    """A person decided that it `state`: succeeded, rejected."""
    OTHER = "other"
    """Text without a code of this version, kept as `text`."""


WAITS_FOR_GATEWAY: Final = frozenset({
    ErrorCode.THROTTLED, ErrorCode.NOT_SENT, ErrorCode.BUSY, ErrorCode.CIRCUIT_OPEN, ErrorCode.UNKNOWN_OUTCOME,
    ErrorCode.UNAUTHORIZED, ErrorCode.REFUSED, ErrorCode.TOKEN_REFUSED,
})  # fmt: skip
"""Errors of a call to the gateway that is repeated: what has one waits for the gateway."""
UNCLEAR_OPERATION: Final = frozenset({
    ErrorCode.TRANSACTION_UNKNOWN, ErrorCode.STATUS_UNCLEAR, ErrorCode.RELEASE_UNCLEAR, ErrorCode.TOTAL_UNCLEAR,
    ErrorCode.NEVER_IN_BOOKS,
})  # fmt: skip
"""Errors of an operation whose effect the gateway's books do not show: a person decides what its
result was."""


class LastError(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One error; `facts` are the values that its sentence is made of."""

    code: ErrorCode
    facts: Mapping[str, Any] = {}

    @property
    def attention(self) -> Attention | None:
        """The attention that a NEEDS_DECISION rests on."""
        if self.code is not ErrorCode.NEEDS_DECISION:
            return None
        try:
            return msgspec.convert(self.facts.get("attention"), Attention | None)
        except msgspec.ValidationError:
            return None


def error(code: ErrorCode, **facts: object) -> LastError:
    """Make an error of its code and facts, which are texts and numbers."""
    return LastError(code=code, facts=facts)


def undecided(attention: Attention | None) -> LastError | None:
    """Return the error of a lookup that proves nothing: the question that it raises."""
    if attention is None:
        return None
    return error(ErrorCode.NEEDS_DECISION, attention=msgspec.to_builtins(attention))


def stored(code: str | None, facts: Mapping[str, Any] | None) -> LastError | None:
    """Return the error of a row; OTHER, with what stands there, for words that are not known.

    It raises for nothing.
    """
    if code is None:
        return None
    if code not in _CODES:
        return LastError(code=ErrorCode.OTHER, facts={"text": code, **(facts or {})})
    return LastError(code=ErrorCode(code), facts=facts or {})


_CODES: Final = frozenset(code.value for code in ErrorCode)

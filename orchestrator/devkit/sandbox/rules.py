"""The documented test rules: which amounts and card numbers end how.

Any card number is accepted; the special ones decide. The last four digits `0NNN` of a number and the amount
`N.NN` mean the same (a rule of thumb inferred from two documented rows); messages print the amount in
thousandths (part 3, C1, C12). Pure functions over text and decimals, independent of payments, pages and
callbacks.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum


class Outcome(StrEnum):
    """How a payment attempt ended; the values are those of the callback field `status` (part 2.2)."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ERROR = "error"
    CANCELLED = "cancelled"
    DECLINED = "declined"
    OPEN = "open"
    CHALLENGED = "challenged"  # never sent: the shopper still has to pass 3-D Secure


_WORDS = {
    "succeeded": ("Success", "SUCCEEDED"), "failed": ("Failed", "FAILED"), "error": ("Error", "ERROR"),
    "cancelled": ("Cancelled", "CANCELLED"), "declined": ("Failed", "DECLINED"), "open": ("Open", "PENDING"),
    "new": ("Created", "NEW"), "ChargebackEvent": ("ChargebackEvent", "CHARGEBACK_EVENT"),  # not documented for JSON bodies
}  # fmt: skip
RESULTS = {status: result for status, (result, _) in _WORDS.items()}
"""The words of `Body/Result` for each callback `status`: the gateway has two vocabularies (part 2.2)."""
JSON_STATUSES = {status: word for status, (_, word) in _WORDS.items()}
"""The words of `status` in a JSON callback (part 2.3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fraud:
    """What the fraud check said; only the four documented numbers are checked."""

    recommendation: str
    score: int

    @property
    def explanation(self) -> str:
        return f"Sandbox rule for this card: {self.recommendation}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorizationResult:
    """The test acquirer's answer to one attempt."""

    outcome: Outcome
    status: str | None = None  # a TransactionStatus that the outcome alone does not give
    message: str = ""  # safe for the customer
    merchant_message: str = ""
    must_show: bool = False
    fraud: Fraud | None = None


SUCCESS = AuthorizationResult(outcome=Outcome.SUCCEEDED)
CANCELLED = AuthorizationResult(
    outcome=Outcome.CANCELLED, message="Cancelled by the customer", merchant_message="Cancelled by user"
)
DECLINED = AuthorizationResult(
    outcome=Outcome.DECLINED, message="Payment declined", merchant_message="Declined by the bank"
)
LEFT_OPEN = AuthorizationResult(outcome=Outcome.OPEN)
THREE_D_SECURE_FAILED = AuthorizationResult(
    outcome=Outcome.FAILED,
    status="3dsecure_failed",
    message="Card holder authentication failed",
    merchant_message="3-D Secure authentication failed",
    must_show=True,
)

_FRAUD = {
    "4170000000000006": "Accept", "4170000000000105": "Deny", "5250000000000121": "Challenge", "5110000000000113": "Unknown",
}  # fmt: skip


def _acquirer(code: str) -> str:
    return f"TestAcquirer[pan=0{code} or amount={code}0]"


_BY_CODE = {
    "566": AuthorizationResult(
        outcome=Outcome.FAILED, message="Card Declined", merchant_message=_acquirer("566")
    ),
    "567": AuthorizationResult(
        outcome=Outcome.ERROR, message="Internal Error", merchant_message=_acquirer("567")
    ),
    "466": AuthorizationResult(
        outcome=Outcome.FAILED,
        status="3dsecure_failed",
        message=_acquirer("466"),
        merchant_message=_acquirer("466"),
        must_show=True,
    ),
    "568": AuthorizationResult(outcome=Outcome.CHALLENGED),
}
_FORCED = {
    "succeeded": SUCCESS,
    "declined": AuthorizationResult(
        outcome=Outcome.FAILED, message="Card Declined", merchant_message="Declined by the script"
    ),
    "error": AuthorizationResult(
        outcome=Outcome.ERROR, message="Internal Error", merchant_message="Error by the script"
    ),
}


def fraud_score(amount: Decimal) -> int:
    """Return the test fraud score: the amount modulo 101 (139.00 gives 38)."""
    return int(amount) % 101


def judge(pan: str, amount: Decimal) -> AuthorizationResult:
    """Decide a card payment: the number's own rule first, then the amount's."""
    code = pan[-3:] if pan[-4:-3] == "0" and pan[-3:] in _BY_CODE else _amount_code(amount)
    if code is not None:
        return _BY_CODE[code]
    word = _FRAUD.get(pan)
    if word is None:
        return SUCCESS
    fraud = Fraud(recommendation=word, score=fraud_score(amount))
    return AuthorizationResult(outcome=Outcome.SUCCEEDED, fraud=fraud)


def judge_amount(amount: Decimal) -> AuthorizationResult:
    """Decide a payment without a card number (wallets) by its amount alone."""
    return judge("", amount)


def forced(outcome: str) -> AuthorizationResult:
    """Return the verdict that a script ordered for an order number, whatever the card and the amount."""
    return _FORCED.get(outcome, LEFT_OPEN)


def _amount_code(amount: Decimal) -> str | None:
    code = str((amount * 100).normalize().to_integral_value()) if amount < Decimal(10) else ""
    return code if code in _BY_CODE and amount * 100 == int(code) else None

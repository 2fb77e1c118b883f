"""What a transaction means for money: one literal table over TransactionStatus and amounts, because neither
is reliable alone.

Fixtures (C12) show `released` with ReservedAmount 1.00, and `refunded` with Reserved 1.00, Captured 1.00,
Refunded 0.12. What the table does not have is `UNKNOWN`, for a person; it is never guessed to be money, nor
its absence.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from orchestrator.domain.transaction import Transaction


class PaymentMeaning(StrEnum):
    """What a transaction means for money."""

    RESERVED = "reserved"
    """Held for the merchant, nothing captured: paid, as far as a checkout goes."""
    CAPTURED = "captured"
    """At least a part was captured and nothing went back."""
    REFUNDED = "refunded"
    """It was captured, and at least a part went back: what the merchant has is captured - refunded."""
    NOTHING = "nothing"
    """Over, and no money is or will be held."""
    OPEN = "open"
    """Under way: no money yet, but it may follow. As long as such a payment exists, its checkout must not
    expire."""
    AGREEMENT = "agreement"
    """An agreement that repeats the amount of a preauth beside it: never money itself."""
    UNKNOWN = "unknown"
    """Status and amounts do not fit together, or are unknown: it needs a decision."""

    @classmethod
    def _missing_(cls, _: object) -> Self:
        return cls("unknown")


class Shape(StrEnum):
    """The amounts of a transaction, by which of them are more than zero."""

    EMPTY = "empty"
    """None."""
    HELD = "held"
    """Reserved alone."""
    TAKEN = "taken"
    """Captured, not refunded; reserved or not."""
    RETURNED = "returned"
    """Captured and refunded; reserved or not."""
    ODD = "odd"
    """Refunded, never captured: no status explains this."""


_O, _A, _R, _C, _F, _N, _U = (
    PaymentMeaning.OPEN,
    PaymentMeaning.AGREEMENT,
    PaymentMeaning.RESERVED,
    PaymentMeaning.CAPTURED,
    PaymentMeaning.REFUNDED,
    PaymentMeaning.NOTHING,
    PaymentMeaning.UNKNOWN,
)

# Every TransactionStatus that was seen (facts, part 3) and what it means for each shape of the amounts. ODD
# is always UNKNOWN.
_ROWS: Final[dict[str, tuple[PaymentMeaning, PaymentMeaning, PaymentMeaning, PaymentMeaning]]] = {
    #                          EMPTY HELD TAKEN RETURNED
    # Under way. `created` is OPEN too: the shopper may be at the bank this minute, and the gateway never
    # times one out (D9). A pending payment may already name its amount; money in one that was only just
    # created contradicts itself.
    "created":                 (_O, _U, _U, _U),
    "pending":                 (_O, _O, _U, _U),
    # Authorised. An authorisation of nothing is no payment. Captured in part, the status may still be this
    # one.
    "preauth":                 (_U, _R, _C, _F),
    "invoice_initialized":     (_U, _R, _C, _F),
    # An agreement: it repeats the amount of the preauth or the payment beside it (C12), which alone is money:
    # counting both would count twice.
    "recurring_confirmed":     (_A, _A, _A, _A),
    # Captured. A card that is captured without an amount is a contradiction; a bank transfer has no
    # reservation, so which of the two amounts it fills depends on the bank, and either shows that the money
    # came.
    "captured":                (_U, _U, _C, _F),
    "bank_payment_finalized":  (_U, _R, _C, _F),
    # Given back before a capture. ReservedAmount keeps what was once reserved (C12). Some banks return it as
    # a refund (D8).
    "released":                (_N, _N, _U, _F),
    # Given back after a capture, in part or in full (C12): the amounts say which.
    "refunded":                (_U, _U, _U, _F),
    "bank_payment_refunded":   (_U, _U, _U, _F),
    # Declined, cancelled by the shopper, broken off. Plugins have seen fail callbacks over money that was
    # held, so an amount is never talked away by the word.
    "preauth_failed":          (_N, _U, _U, _U),
    "preauth_error":           (_N, _U, _U, _U),
    "3dsecure_failed":         (_N, _U, _U, _U),
    "recurring_failed":        (_N, _U, _U, _U),
    "epayment_cancelled":      (_N, _U, _U, _U),
    "epayment_declined":       (_N, _U, _U, _U),
    # A later step failed. What had been captured before stays captured; whether the reservation still exists
    # is not reported (a re-authorisation is tried when it had expired, D9), so neither shipping nor giving up
    # would be right.
    "captured_failed":         (_N, _U, _C, _F),
    "reauth_failed":           (_N, _U, _C, _F),
}  # fmt: skip

TABLE: Final[dict[str, dict[Shape, PaymentMeaning]]] = {
    status: {**dict(zip(Shape, row, strict=False)), Shape.ODD: PaymentMeaning.UNKNOWN}
    for status, row in _ROWS.items()
}

UNREADABLE: Final = frozenset({
    "amount_unreadable", "currency_unknown", "currency_conflict", "field_repeated", "transaction_nested",
})  # fmt: skip
"""Flags of a payment whose amounts are not known as numbers."""
MONEY: Final = frozenset({PaymentMeaning.RESERVED, PaymentMeaning.CAPTURED, PaymentMeaning.REFUNDED})
"""Meanings that surely are money."""
# An attempt that failed before it authorised anything may keep the status that it was to get, or have none.
_BEFORE_FAILURE = frozenset({"preauth", "invoice_initialized", ""})


def shape(transaction: Transaction) -> Shape:
    """Sort the amounts into one of five shapes."""
    if transaction.captured > 0:
        return Shape.RETURNED if transaction.refunded > 0 else Shape.TAKEN
    if transaction.refunded > 0:
        return Shape.ODD
    return Shape.HELD if transaction.reserved > 0 else Shape.EMPTY


def read(transaction: Transaction) -> PaymentMeaning:
    """Return what a transaction means for money: the table, unless its amounts could not be read."""
    if not UNREADABLE.isdisjoint(transaction.raw_flags):
        return PaymentMeaning.UNKNOWN
    row, shaped = TABLE.get(transaction.status), shape(transaction)
    ended = "ended_in_error" in transaction.raw_flags and transaction.status in _BEFORE_FAILURE
    if shaped is Shape.EMPTY and ended:
        return PaymentMeaning.NOTHING
    return PaymentMeaning.UNKNOWN if row is None else row[shaped]


def held(transaction: Transaction) -> tuple[int, int, int]:
    """Return (reserved, captured, refunded) in minor units as they count for the merchant's books.

    A reservation counts only where the meaning is that there is (or was, before its capture) one: a released
    payment keeps its ReservedAmount. Where the meaning is not clear, it is taken as reported. Captured and
    refunded count as reported, but for an agreement nothing counts: its amounts are those of the transaction
    beside it.
    """
    meaning = read(transaction)
    if meaning is PaymentMeaning.AGREEMENT:
        return 0, 0, 0
    reserved = transaction.reserved if meaning in MONEY or meaning is PaymentMeaning.UNKNOWN else 0
    return reserved, transaction.captured, transaction.refunded

"""What is held of the shopper's money, in one word: the same word in API, command line, explanations and
events.

The state of a checkout shows its progress; only this word shows what is held.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

from orchestrator.domain.states import State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from orchestrator.domain.records import Amounts


class PaymentStatus(StrEnum):
    """Derived from the money facts of a checkout, never stored."""

    UNPAID = "unpaid"
    """No payment completed it."""
    AUTHORIZED = "authorized"
    """Reserved, and nothing is captured."""
    PARTIALLY_CAPTURED = "partially_captured"
    """Less is captured than was reserved, and nothing went back."""
    CAPTURED = "captured"
    """All that was reserved is captured, and nothing went back."""
    PARTIALLY_REFUNDED = "partially_refunded"
    """A part of what was captured is refunded."""
    REFUNDED = "refunded"
    """All that was captured is refunded."""
    RELEASED = "released"
    """The reservation was given back before a capture."""
    CHARGED_BACK = "charged_back"
    """The shopper's bank took all of it, or a part, back."""


def payment_status(state: State, paying: Amounts) -> PaymentStatus:
    """Return what is held of a checkout, whose amounts are those of what pays it."""
    if state is not State.COMPLETED:
        return PaymentStatus.UNPAID
    if paying.charged_back > 0:
        return PaymentStatus.CHARGED_BACK
    if paying.captured > 0:
        if paying.refunded > 0:
            whole = paying.refunded >= paying.captured
            return PaymentStatus.REFUNDED if whole else PaymentStatus.PARTIALLY_REFUNDED
        whole = paying.captured >= paying.reserved
        return PaymentStatus.CAPTURED if whole else PaymentStatus.PARTIALLY_CAPTURED
    return PaymentStatus.AUTHORIZED if paying.reserved > 0 else PaymentStatus.RELEASED


IN_SQL: Final = """CASE WHEN state <> 'completed' THEN 'unpaid'
    WHEN charged_back > 0 THEN 'charged_back'
    WHEN captured > 0 AND refunded >= captured THEN 'refunded'
    WHEN captured > 0 AND refunded > 0 THEN 'partially_refunded'
    WHEN captured > 0 AND captured >= reserved THEN 'captured'
    WHEN captured > 0 THEN 'partially_captured'
    WHEN reserved > 0 THEN 'authorized'
    ELSE 'released' END"""
"""SQL: the same word, of a row of `checkouts`."""


def condition(statuses: Iterable[PaymentStatus]) -> str:
    """Return the SQL condition of the checkouts that have one of these payment statuses."""
    words = ", ".join(f"'{PaymentStatus(status).value}'" for status in statuses)
    return f"{IN_SQL} IN ({words})"


GONE: Final = frozenset({PaymentStatus.REFUNDED, PaymentStatus.RELEASED, PaymentStatus.CHARGED_BACK})
"""The words of a completed checkout whose money went back."""

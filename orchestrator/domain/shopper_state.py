"""What a shopper's browser is told of the progress of a checkout: fewer words than `State`."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from orchestrator.domain.states import ENDED, State


class ShopperState(StrEnum):
    """Derived from the state of a checkout, never stored."""

    PREPARING = "preparing"
    """The payment methods are not there yet."""
    READY = "ready"
    """The shopper may pay."""
    PROCESSING = "processing"
    """A payment was reported, and is being verified."""
    CLOSING = "closing"
    """Its cancellation was requested, and takes effect unless money is found."""
    COMPLETED = "completed"
    """The money is held."""
    FAILED = "failed"
    """It could not be offered."""
    CANCELLED = "cancelled"
    """The shop withdrew it."""
    EXPIRED = "expired"
    """Its deadline passed without a payment."""


_WORDS: Final = {
    State.AWAITING_PAYMENT: ShopperState.READY,
    State.CALLBACK_RECEIVED: ShopperState.PROCESSING,
    State.COMPLETED: ShopperState.COMPLETED,
    State.FAILED: ShopperState.FAILED,
    State.CANCELLED: ShopperState.CANCELLED,
    State.EXPIRED: ShopperState.EXPIRED,
}


def shopper_state(state: State, *, cancelling: bool) -> ShopperState:
    """Return the word for a checkout in this state; `cancelling`: its cancellation was requested."""
    if cancelling and state not in ENDED:
        return ShopperState.CLOSING
    return _WORDS.get(state, ShopperState.PREPARING)

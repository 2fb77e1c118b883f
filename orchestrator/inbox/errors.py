"""What makes an intent or a command impossible to take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.errors import OrchestratorError

if TYPE_CHECKING:
    from uuid import UUID


class IntakeError(OrchestratorError):
    """An intent or a command that cannot be taken; the sentence says why and what to do."""


class OrderTaken(IntakeError):  # noqa: N818 - named for the fact
    """The order number belongs to a checkout with other content (HTTP 409)."""

    def __init__(self, order_ref: str, checkout: UUID) -> None:
        super().__init__(
            f"order {order_ref} already has checkout {checkout} with other content: send the same content again, "
            "cancel that checkout first, or use another order number"
        )
        self.order_ref, self.checkout = order_ref, checkout


class KeyReused(IntakeError):  # noqa: N818 - named for the fact
    """The idempotency key came before with other content (HTTP 422)."""

    def __init__(self, key: str) -> None:
        super().__init__(
            f"the Idempotency-Key {key!r} was used before with other content: use a new key for a new request"
        )
        self.key = key

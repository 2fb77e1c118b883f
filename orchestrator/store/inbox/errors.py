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
            "change or cancel that checkout first, or use another order number"
        )
        self.order_ref, self.checkout = order_ref, checkout


class PaidBefore(OrderTaken):
    """A payment came for the order number before any intent, and does not fit this one (HTTP 409)."""

    def __init__(self, order_ref: str, checkout: UUID, payment: str, *, undecided: bool) -> None:
        way = (
            f"keep or return it first (POST /v1/checkouts/{checkout}/resolve)"
            if undecided
            else f"return it first (POST /v1/checkouts/{checkout}/refund or /release)"
        )
        sentence = (
            f"order {order_ref} was paid before it was handed over: checkout {checkout} holds payment {payment}, which is not exactly "
            f"what this intent is for. Do not have the shopper pay again: send the intent with the amount and the currency of the "
            f"payment, or {way} and send the intent then"
        )
        IntakeError.__init__(self, sentence)
        self.order_ref, self.checkout, self.payment = order_ref, checkout, payment


class KeyReused(IntakeError):  # noqa: N818 - named for the fact
    """The idempotency key came before with other content (HTTP 422)."""

    def __init__(self, key: str) -> None:
        super().__init__(
            f"the Idempotency-Key {key!r} was used before with other content: use a new key for a new request"
        )
        self.key = key


class AnswerUnreadable(IntakeError):  # noqa: N818 - named for the fact
    """The request was done before, and no key of this installation opens its answer (HTTP 409)."""

    def __init__(self, key: str) -> None:
        super().__init__(
            f"the request with the Idempotency-Key {key!r} was done before, and its answer cannot be read any more: "
            "see with a GET what it did, and use a new key for a new request"
        )
        self.key = key


class ReasonNotKept(IntakeError):  # noqa: N818 - named for the fact
    """A command with a reason, on a checkout whose personal data was erased (HTTP 409)."""

    def __init__(self, checkout: UUID) -> None:
        super().__init__(
            f"the personal data of checkout {checkout} was erased, and a reason would be such data: leave it out"
        )
        self.checkout = checkout

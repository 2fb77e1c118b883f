"""What a shopper's browser is told of its checkout."""

from __future__ import annotations

from typing import Annotated

from orchestrator.api.contract.values import Id, PaymentMethods, Shape, Text, Time, about
from orchestrator.domain.payment_status import PaymentStatus
from orchestrator.domain.shopper_state import ShopperState


class Decline(Shape, kw_only=True):
    """The last attempt to pay that ended without money."""

    reason: Annotated[
        Text | None,
        about("The gateway's text for the shopper, where it is proven; show it as text", "Card Declined"),
    ]
    at: Annotated[Time, about("When it was found")]


class CheckoutStatus(Shape, kw_only=True):
    """A checkout as its shopper may see it."""

    id: Id
    state: ShopperState
    payment_status: Annotated[PaymentStatus, about("What is held of the shopper's money")]
    final: Annotated[bool, about("It has ended: a stream ends with this")]
    deadline: Annotated[Time, about("Until when the shopper may pay")]
    payment_methods: PaymentMethods
    declined: Annotated[Decline | None, about("Null where no attempt failed, and once it is completed")]
    next_url: Annotated[
        Text | None,
        about(
            "The shop's own page to go on to, once it has ended",
            "https://shop.example/thanks?orderId=A-1001&checkoutId=019aa000-0000-7000-8000-00000000000a",
        ),
    ]

"""The document that a shopper's browser gets of its checkout."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from orchestrator import callback_urls, intents, log
from orchestrator.api.contract.shopper import CheckoutStatus, Decline
from orchestrator.api.problems import encoded
from orchestrator.crypto import EncryptionError
from orchestrator.domain.payment_status import payment_status
from orchestrator.domain.shopper_state import ShopperState, shopper_state
from orchestrator.domain.states import ENDED, State

if TYPE_CHECKING:
    from orchestrator.crypto import Encryptor
    from orchestrator.store.shopper_view import ShopperView

_log = log.get(__name__)

PAYABLE: Final = frozenset({ShopperState.READY, ShopperState.PROCESSING})
"""The states in which a shopper may pay."""


def status_of(view: ShopperView, encryptor: Encryptor) -> CheckoutStatus:
    """Return what the shopper may see."""
    state = shopper_state(view.state, cancelling=view.cancelling)
    declined = None
    if view.declined_at is not None and state is not ShopperState.COMPLETED:
        declined = Decline(reason=view.decline_reason, at=view.declined_at)
    return CheckoutStatus(
        id=view.id,
        state=state,
        payment_status=payment_status(view.state, view),
        final=view.state in ENDED,
        deadline=view.deadline,
        payment_methods=(view.methods or []) if state in PAYABLE else [],
        declined=declined,
        next_url=_next_url(view, encryptor) if view.state in ENDED else None,
    )


def digest(status: CheckoutStatus) -> str:
    """Return what a document is recognised by: the same content, the same text of 16 characters."""
    return hashlib.sha256(encoded(status)).hexdigest()[:16]


def _next_url(view: ShopperView, encryptor: Encryptor) -> str | None:
    """Return the shop's page that callbacks of the gateway would lead to; None where it has none, as for the
    checkout of a payment without an order.
    """
    try:
        document = encryptor.data_key(view.id, view.data_key).decrypt(view.intent or b"", purpose="intent")
        pages = intents.shop_pages(document)
    except (EncryptionError, KeyError, TypeError) as error:
        _log.info("no_page_of_the_shop", checkout=str(view.id), reason=type(error).__name__)
        return None
    page = pages["success" if view.state is State.COMPLETED else "failure"]
    return callback_urls.with_query(page, checkoutId=str(view.id)) if page else None

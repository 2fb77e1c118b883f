"""What an intent becomes at the gateway: the session's body, with our links, our id and lines that sum up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from orchestrator import callback_urls
from orchestrator.domain import money
from orchestrator.intents.reading import DECODER, OWN_INFO

if TYPE_CHECKING:
    from collections.abc import Mapping
    from decimal import Decimal
    from uuid import UUID

ROUNDING_ITEM: Final = "comp-amount"
"""What the vendor's cartridge calls the line that makes the sum right (C1)."""


def shop_pages(document: bytes) -> dict[str, str | None]:
    """Return the shop's own pages by kind of callback (None: no page), the order number in each query."""
    body = DECODER.decode(document)
    asked, order_ref = body["callbacks"], body["order"]["orderId"]

    def page(url: str | None) -> str | None:
        return None if url is None else callback_urls.with_query(url, orderId=order_ref)

    return {
        "success": page(asked["success"]["value"]),
        "failure": page(asked["failure"]["value"]),
        "redirect": page(asked.get("redirect")),
    }


def session_body(
    document: bytes, *, checkout_id: UUID, urls: callback_urls.CallbackUrls
) -> dict[str, object]:
    """Return what is posted to the gateway's /session (facts 1.2): our callback URLs, the checkout id, and
    lines that sum up. Amounts are `Decimal`; the encoder writes them as JSON numbers.
    """
    body: dict[str, Any] = DECODER.decode(document)
    order, asked = body["order"], body["callbacks"]
    if money.exponent(order["amount"]["currency"]) > money.GATEWAY_DECIMALS:
        _shorten(order)
    order["transactionInfo"] = {**order.get("transactionInfo", {}), OWN_INFO: str(checkout_id)}
    rounding = _rounding_line(order)
    if rounding is not None:
        order["orderLines"].append(rounding)
    callbacks: dict[str, object] = {
        "success": {"type": "URL", "value": urls.success},
        "failure": {"type": "URL", "value": urls.failure},
        "notification": urls.notification,
    }
    if urls.redirect is not None:
        callbacks["redirect"] = urls.redirect
    callbacks.update((name, asked[name]) for name in ("formStyling", "bodyFormat") if name in asked)
    native = {"isNativeFlow": body["isNativeFlow"]} if "isNativeFlow" in body else {}
    return {"order": order, "callbacks": callbacks, "configuration": body["configuration"], **native}


def _rounding_line(order: Mapping[str, Any]) -> dict[str, object] | None:
    """Return the line that completes the sum, as the vendor's cartridge adds it (C1); it may be negative."""
    currency = order["amount"]["currency"]
    total = sum(
        money.to_minor(line["unitPrice"], currency) * line["quantity"]
        + money.to_minor(line["taxAmount"], currency)
        for line in order["orderLines"]
    )
    missing = money.to_minor(order["amount"]["value"], currency) - total
    if missing == 0:
        return None
    return {
        "itemId": ROUNDING_ITEM,
        "description": "Rounding",
        "quantity": 1,
        "unitPrice": _short(missing, currency),
        "taxAmount": _short(0, currency),
        "goodsType": "handling",
    }


def _shorten(order: Mapping[str, Any]) -> None:
    """Write the amounts of an order with the decimals that the gateway holds; intake let no others pass."""
    currency = order["amount"]["currency"]
    for amounts, name in (
        (order["amount"], "value"),
        *((line, name) for line in order["orderLines"] for name in _PRICES),
    ):
        amounts[name] = _short(money.to_minor(amounts[name], currency), currency)


_PRICES: Final = ("unitPrice", "taxAmount")


def _short(minor: int, currency: str) -> Decimal:
    try:
        return money.for_gateway(minor, currency)
    except money.MoneyError:  # an intent that was taken before such amounts were refused
        return money.to_decimal(minor, currency)

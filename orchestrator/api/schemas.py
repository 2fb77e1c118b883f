"""The shapes of the contract as OpenAPI 3.0 schemas, for the documentation alone: `intents` and `reads` are what counts."""

from __future__ import annotations

from typing import Any, Final

from orchestrator import intents
from orchestrator.intents.fields import LONGEST_URL
from orchestrator.intents.reading import LONGEST_LIFE, MOST_LINES, MOST_PIECES
from orchestrator.states import State

Schema = dict[str, Any]


def ref(name: str) -> Schema:
    """Point at a shape."""
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: str, /, **properties: Schema) -> Schema:
    return {
        "type": "object",
        "required": required.split(),
        "properties": properties,
        "additionalProperties": False,
    }


def _list(of: Schema) -> Schema:
    return {"type": "array", "items": of}


def _text(about: str = "", **more: object) -> Schema:
    return {"type": "string", **({"description": about} if about else {}), **more}


def _or_null(schema: Schema) -> Schema:
    return {"nullable": True, "allOf": [schema]} if "$ref" in schema else {**schema, "nullable": True}


_ID: Final = _text(format="uuid")
_TIME: Final = _text(format="date-time")
_MONEY: Final[Schema] = {
    "type": "number",
    "description": "Decimal number, exact; no more decimals than the currency has",
}
_URL: Final = _text("http(s) URL with a host and without credentials", format="uri", maxLength=LONGEST_URL)
_COUNTRY: Final = _text("ISO 3166-1 alpha-2", minLength=2, maxLength=2, example="DK")
_CURRENCY: Final = _text("ISO 4217", minLength=3, maxLength=3, example="DKK")
_WORD: Final = _text()
_LINKS: Final[Schema] = {"type": "object", "additionalProperties": {"type": "string"}}
_STATE: Final = _text(enum=[state.value for state in State])

EXAMPLE: Final[Schema] = {
    "order": {
        "orderId": "A-1001",
        "amount": {"value": 139.00, "currency": "DKK"},
        "orderLines": [
            {"itemId": "mug-1", "description": "Mug", "quantity": 2, "unitPrice": 40.00, "taxAmount": 20.00},
            {
                "itemId": "ship",
                "description": "Shipping",
                "quantity": 1,
                "unitPrice": 39.00,
                "goodsType": "shipment",
            },
        ],
        "customer": {
            "firstName": "Ada",
            "lastName": "Example",
            "email": "ada@example.com",
            "billingAddress": {"street": "Street 1", "city": "Aarhus", "country": "DK", "zipCode": "8000"},
        },
    },
    "callbacks": {
        "success": {"type": "URL", "value": "https://shop.example/paid"},
        "failure": {"type": "URL", "value": "https://shop.example/not-paid"},
        "redirect": "https://shop.example/done",
    },
    "configuration": {"paymentType": "PAYMENT", "country": "DK", "language": "da"},
    "expiresIn": 1800,
}

_PAGE: Final = _object("value", type=_text(enum=["URL"], default="URL"), value=_URL)
_SUMMARY: Final[dict[str, Schema]] = {
    "id": _ID,
    "orderId": _WORD,
    "state": _STATE,
    "outcome": _or_null(_text("Null until it has ended", enum=["paid", "failed", "expired", "cancelled"])),
    "late": {"type": "boolean", "description": "The money was found after it had been closed"},
    "amount": ref("Amount"),
    "money": _object("reserved captured refunded", reserved=_MONEY, captured=_MONEY, refunded=_MONEY),
    "deadline": _TIME,
    "dueAt": _or_null(_text("When somebody looks at it next; null when it is settled", format="date-time")),
    "offeredAt": _or_null(_TIME),
    "withdrawnAt": _or_null(_TIME),
    "endedAt": _or_null(_TIME),
    "attention": _or_null(_text("Why a person must look at it")),
    "lastError": _or_null(_WORD),
    "version": {"type": "integer"},
    "createdAt": _TIME,
    "updatedAt": _TIME,
    "links": _LINKS,
}

SCHEMAS: Final[dict[str, Schema]] = {
    "Amount": _object("value currency", value=_MONEY, currency=_CURRENCY),
    "Address": _object("", street=_WORD, city=_WORD, country=_COUNTRY, zipCode=_WORD),
    "OrderLine": _object(
        "itemId description quantity unitPrice",
        itemId=_text(maxLength=100),
        description=_text("Cut after 50 characters, as the gateway's own cartridge does"),
        quantity={"type": "integer", "minimum": 1, "maximum": MOST_PIECES},
        unitPrice=_MONEY,
        taxAmount={**_MONEY, "default": 0, "description": "Tax of the whole line"},
        goodsType=_text(enum=["item", "shipment", "handling"], default="item"),
    ),
    "Customer": {
        **_object(
            "", firstName=_WORD, lastName=_WORD, email=_text(format="email"), billingAddress=ref("Address"),
            shippingAddress=ref("Address"),
        ),
        "minProperties": 1,
    },
    "Intent": {
        **_object(
            "order callbacks configuration",
            order=_object(
                "orderId amount orderLines customer",
                orderId=_text("One live checkout each", pattern=f"^{intents.ORDER_NUMBER.pattern}$"),
                amount=ref("Amount"),
                orderLines={
                    **_list(ref("OrderLine")),
                    "minItems": 1,
                    "maxItems": MOST_LINES,
                    "description": "Sum of unitPrice * quantity + taxAmount is the amount; up to one minor unit for each piece "
                    "is completed by a rounding line",
                },
                customer=ref("Customer"),
                transactionInfo={
                    "type": "object",
                    "additionalProperties": {"type": "string", "maxLength": 255},
                    "description": "At most 49 entries; `checkout` is reserved",
                },
            ),
            callbacks=_object(
                "success failure",
                success=_PAGE,
                failure=_PAGE,
                redirect=_URL,
                notification={**_URL, "description": "Kept with the intent; the gateway notifies the orchestrator"},
                formStyling=_URL,
                bodyFormat=_text(enum=["XML", "JSON"]),
            ),
            configuration=_object(
                "paymentType",
                paymentType=_text(enum=["PAYMENT"]),
                autoCapture={"type": "boolean"},
                paymentDisplayType=_text(example="REDIRECT"),
                country=_COUNTRY,
                language=_text("ISO 639-1", minLength=2, maxLength=2),
            ),
            expiresIn={"type": "number", "minimum": 1, "maximum": LONGEST_LIFE, "description": "Seconds"},
            userAgent=_text("The shopper's browser, for the choice of payment methods; not part of the content"),
        ),
        "example": EXAMPLE,
    },
    "Accepted": _object(
        "id orderId state deadline clientToken links", id=_ID, orderId=_WORD, state=_STATE, deadline=_TIME,
        clientToken=_text("Lets the shopper's browser follow this one checkout"), links=_LINKS,
    ),
    "BatchResult": _object("status", status={"type": "integer"}, checkout=ref("Accepted"), problem=ref("Problem")),
    "BatchResults": _object("results", results=_list(ref("BatchResult"))),
    "Payment": _object(
        "transactionId role reading currency reserved captured refunded",
        transactionId=_WORD, paymentId=_or_null(_WORD),
        role=_text(enum=["accepted", "surplus", "attempt", "unknown"]), binding=_WORD,
        status=_WORD, reading=_WORD, currency=_CURRENCY, reserved=_MONEY, captured=_MONEY, refunded=_MONEY,
        flags=_list(_WORD), firstSeenAt=_TIME, updatedAt=_TIME,
    ),
    "CheckoutSummary": _object("id orderId state", **_SUMMARY),
    "Checkout": _object(
        "id orderId state",
        **_SUMMARY,
        session={
            "nullable": True,
            "description": "Only while the shopper may pay with it",
            **_object("id token expiresAt", id=_WORD, token=_WORD, expiresAt=_TIME),
        },
        paymentMethods=_list({"type": "object"}),
        payments=_list(ref("Payment")),
        correlationId=_WORD,
    ),
    "CheckoutPage": _object(
        "checkouts nextCursor", checkouts=_list(ref("CheckoutSummary")), nextCursor=_or_null(_ID)
    ),
    "Cancel": _object("", reason=_text(maxLength=500), version={"type": "integer", "minimum": 1}),
    "CancelAccepted": _object(
        "id orderId state version links", id=_ID, orderId=_WORD, state=_STATE, version={"type": "integer"}, links=_LINKS
    ),
    "AuditTrail": _object(
        "checkoutId entries nextAfter",
        checkoutId=_ID,
        entries=_list({"type": "object"}),
        nextAfter=_or_null({"type": "integer"}),
    ),
    "Health": _object("status", status=_text(enum=["alive", "ready", "degraded", "unavailable"]), problems=_list(_WORD)),
    "Problem": {
        "type": "object",
        "required": ["type", "title", "status", "detail", "errors", "correlationId"],
        "properties": {
            "type": _WORD,
            "title": _WORD,
            "status": {"type": "integer"},
            "detail": _text("One sentence: what was wrong and what to do"),
            "errors": _list(_object("field message", field=_text(example="order.amount.value"), message=_WORD)),
            "correlationId": _WORD,
        },
    },
}  # fmt: skip

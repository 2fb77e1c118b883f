"""The shapes of the contract as OpenAPI 3.1 schemas, for the documentation alone: `intents` and `reads` are what counts."""

from __future__ import annotations

from typing import Any, Final

from orchestrator import intents
from orchestrator.domain.events import EventType
from orchestrator.domain.money import MOST_DIGITS
from orchestrator.domain.payment_status import PaymentStatus
from orchestrator.domain.states import State
from orchestrator.intents.fields import LONGEST_URL
from orchestrator.intents.reading import LONGEST_INFO, LONGEST_LIFE, MOST_INFOS, MOST_LINES, MOST_PIECES

Schema = dict[str, Any]

_LONGEST_TEXT: Final = 10_000
_MOST_ITEMS: Final = 10_000
"""Of a list in an answer that has no limit of its own."""


def ref(name: str) -> Schema:
    """Point at a shape."""
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: str, /, **properties: Schema) -> Schema:
    named = {"required": required.split()} if required else {}
    return {"type": "object", **named, "properties": properties, "additionalProperties": False}


def _list(of: Schema, most: int = _MOST_ITEMS) -> Schema:
    return {"type": "array", "items": of, "maxItems": most}


def _text(about: str = "", **more: object) -> Schema:
    """Describe a text; one that has no other bound is at most as long as a sentence of ours may be."""
    bounds = {} if more.keys() & {"enum", "maxLength"} else {"maxLength": _LONGEST_TEXT}
    return {"type": "string", **({"description": about} if about else {}), **bounds, **more}


def _integer(least: int = 0, most: int = 2**31 - 1, about: str = "") -> Schema:
    return {"type": "integer", "minimum": least, "maximum": most, **({"description": about} if about else {})}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


_ID: Final = _text(format="uuid", maxLength=36)
_TIME: Final = _text(format="date-time", maxLength=40)
_MONEY: Final[Schema] = {
    "type": "number",
    "description": "Decimal number, exact; no more decimals than the currency has",
    "minimum": -(10**MOST_DIGITS),
    "maximum": 10**MOST_DIGITS,
}
_HELD: Final = _or_null(
    {**_MONEY, "description": "Null where it cannot be read: `raw` says what stands there instead"}
)
_RAW: Final[Schema] = {
    "type": "object",
    "nullable": True,
    "additionalProperties": _text(maxLength=1000),
    "maxProperties": 10,
    "description": "What cannot be read, as the gateway wrote it: amounts, and a currency that is not known",
    "example": {"reserved": "1.990,50"},
}
_URL: Final = _text("http(s) URL with a host and without credentials", format="uri", maxLength=LONGEST_URL)
_APP_URL: Final = _text(
    "http(s) URL, or a URL with the scheme of an app such as `myshop://checkout/done`",
    format="uri",
    maxLength=LONGEST_URL,
)
_COUNTRY: Final = _text("ISO 3166-1 alpha-2, or XK", pattern="^[A-Za-z]{2}$", maxLength=2, example="DK")
_CURRENCY: Final = _text("ISO 4217", pattern="^[A-Za-z]{3}$", maxLength=3, example="DKK")
_WORD: Final = _text()
_NAME: Final = _text(maxLength=255)
_LINKS: Final[Schema] = {"type": "object", "additionalProperties": _text(), "maxProperties": 50}
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
    "outcome": _or_null(
        _text(
            "Null until it has ended",
            enum=["paid", "refunded", "released", "charged_back", "failed", "expired", "cancelled"],
        )
    ),
    "paymentStatus": _text("What is held of the shopper's money", enum=list(PaymentStatus)),
    "late": {"type": "boolean", "description": "The money was found after it had been closed"},
    "amount": ref("Amount"),
    "money": _object(
        "reserved captured refunded chargedBack",
        reserved=_HELD,
        captured=_HELD,
        refunded=_HELD,
        chargedBack=_or_null({**_MONEY, "description": "What the shopper's bank took back"}),
    ),
    "raw": _RAW,
    "autoCapture": {"type": "boolean", "description": "The gateway was told to capture by itself"},
    "reservedUntil": _or_null(_text("Until when a capture is sure to work", format="date-time")),
    "deadline": _TIME,
    "dueAt": _or_null(_text("When it is processed next; null when it is settled", format="date-time")),
    "offeredAt": _or_null(_TIME),
    "withdrawnAt": _or_null(_TIME),
    "endedAt": _or_null(_TIME),
    "attention": _or_null(_text("Why it needs a decision")),
    "lastError": _or_null(_WORD),
    "version": _integer(1),
    "createdAt": _TIME,
    "updatedAt": _TIME,
    "links": _LINKS,
}

_PAYMENT_NEEDS: Final = "transactionId role reading currency reserved captured refunded chargedBack"
_PAYMENT: Final[dict[str, Schema]] = {
    "transactionId": _WORD,
    "paymentId": _or_null(_WORD),
    "role": _text(
        "surplus: too much; unknown: money that is not read as this order's; attempt: no money",
        enum=["accepted", "surplus", "attempt", "unknown"],
    ),
    "binding": _text("How it is known to be the checkout's: bound (our own id), order_ref (its number only)"),
    "status": _text("The gateway's own word", example="preauth"),
    "reading": _text("What status and amounts mean together"),
    "currency": _text("ISO 4217; empty where the gateway named none that is known", example="DKK"),
    "reserved": _HELD,
    "captured": _HELD,
    "refunded": _HELD,
    "chargedBack": _HELD,
    "surcharge": _HELD,
    "raw": _RAW,
    "flags": _list(_WORD),
    "firstSeenAt": _TIME,
    "updatedAt": _TIME,
}
_COMMAND: Final = _text(
    enum=["cancel", "reopen", "capture", "refund", "release", "retry", "reconcile", "resolve"]
)
_PART: Final[Schema] = {
    "oneOf": [_MONEY, ref("Amount")],
    "description": "In the payment's currency; absent: all that is left",
}
_TRANSACTION: Final = _text("Absent: the transaction that pays the checkout", maxLength=100)


def _command(example: Schema, **fields: Schema) -> Schema:
    """Describe the body of a command; `reason` and `version` go with each."""
    body = _object(
        "",
        **fields,
        reason=_text("Stands in the audit trail", maxLength=500),
        version=_integer(1, about="Refused if the checkout has another by now"),
    )
    return {**body, "example": example}


SCHEMAS: Final[dict[str, Schema]] = {
    "Amount": _object("value currency", value=_MONEY, currency=_CURRENCY),
    "Address": _object("", street=_NAME, city=_NAME, country=_COUNTRY, zipCode=_text(maxLength=32)),
    "OrderLine": _object(
        "itemId description quantity unitPrice",
        itemId=_text(maxLength=100),
        description=_text(
            "Cut after 50 characters, as the gateway's own cartridge does", maxLength=intents.BODY_LIMIT
        ),
        quantity={"type": "integer", "minimum": 1, "maximum": MOST_PIECES},
        unitPrice=_MONEY,
        taxAmount={**_MONEY, "default": 0, "description": "Tax of the whole line"},
        goodsType=_text(enum=["item", "shipment", "handling"], default="item"),
    ),
    "Customer": {
        **_object(
            "", firstName=_NAME, lastName=_NAME, email=_text(format="email", maxLength=254), billingAddress=ref("Address"),
            shippingAddress=ref("Address"),
        ),
        "minProperties": 1,
    },
    "Intent": {
        **_object(
            "order callbacks configuration",
            order=_object(
                "orderId amount orderLines customer",
                orderId=_text("One live checkout each", pattern=f"^{intents.ORDER_NUMBER.pattern}$", maxLength=50),
                amount=ref("Amount"),
                orderLines={
                    **_list(ref("OrderLine"), MOST_LINES),
                    "minItems": 1,
                    "description": "Sum of unitPrice * quantity + taxAmount is the amount; up to one minor unit for each piece that has "
                    "a price is completed by a rounding line",
                },
                customer=ref("Customer"),
                transactionInfo={
                    "type": "object",
                    "additionalProperties": _text(maxLength=LONGEST_INFO),
                    "maxProperties": MOST_INFOS,
                    "description": "At most 49 entries; `checkout` is reserved",
                },
            ),
            callbacks=_object(
                "success failure",
                success=_PAGE,
                failure=_PAGE,
                redirect=_APP_URL,
                notification={**_URL, "description": "Kept with the intent; the gateway notifies the orchestrator"},
                formStyling=_URL,
                bodyFormat=_text(enum=["XML", "JSON"]),
            ),
            configuration=_object(
                "paymentType",
                paymentType=_text(enum=["PAYMENT"]),
                autoCapture={"type": "boolean"},
                paymentDisplayType=_text(example="REDIRECT", pattern="^[A-Z_]+$", maxLength=50),
                country=_COUNTRY,
                language=_text("ISO 639-1", pattern="^[A-Za-z]{2}$", maxLength=2),
                bodyFormat=_text("The same as callbacks.bodyFormat", enum=["XML", "JSON"]),
            ),
            isNativeFlow={
                "type": "boolean",
                "description": "Passed on to the gateway: app-based methods open the app of the method without a payment page",
            },
            expiresIn={"type": "number", "minimum": 1, "maximum": LONGEST_LIFE, "description": "Seconds"},
            userAgent=_text(
                "The shopper's browser, for the choice of payment methods; not part of the content", maxLength=intents.BODY_LIMIT
            ),
        ),
        "example": EXAMPLE,
    },
    "Accepted": _object(
        "id orderId state deadline clientToken links", id=_ID, orderId=_WORD, state=_STATE, deadline=_TIME,
        clientToken=_text("Lets the shopper's browser follow this one checkout"), links=_LINKS,
    ),
    "BatchResult": _object("status", status=_integer(100, 599), checkout=ref("Accepted"), problem=ref("Problem")),
    "BatchResults": _object("results", results=_list(ref("BatchResult"), 500)),
    "Payment": _object(_PAYMENT_NEEDS, **_PAYMENT),
    "PlacedPayment": _object(
        f"{_PAYMENT_NEEDS} orderId", **_PAYMENT, orderId=_WORD,
        checkoutId=_or_null(_text("Null for a payment that belongs to no checkout", format="uuid")),
    ),
    "PaymentPage": _object(
        "payments nextCursor", payments=_list(ref("PlacedPayment"), 200), nextCursor=_or_null(_WORD)
    ),
    "Operation": _object(
        "id kind transactionId amount currency state cause reconciliationIdentifier requestedAt",
        id=_ID, kind=_text(enum=["capture", "refund", "release"]), transactionId=_WORD, amount=_HELD, currency=_CURRENCY,
        state=_text(
            "submitted: it may have left; unknown: it has, and what came of it is not known yet",
            enum=["requested", "submitted", "succeeded", "rejected", "unknown"],
        ),
        cause=_text("Who began it: a command, the order itself, a policy", enum=["asked", "automatic", "returned"]),
        reconciliationIdentifier=_text("By which the gateway's books name it"), commandId=_or_null(_ID), requestedAt=_TIME,
        submittedAt=_or_null(_TIME), settledAt=_or_null(_TIME), error=_or_null(_WORD),
    ),
    "Command": _object(
        "id kind requestedAt", id=_ID, kind=_COMMAND, requestedAt=_TIME, handledAt=_or_null(_TIME),
        result=_or_null(_text("accepted, refused or done, with the reason", example="refused: it is being cancelled already")),
    ),
    "CheckoutSummary": _object("id orderId state", **_SUMMARY),
    "Checkout": _object(
        "id orderId state",
        **_SUMMARY,
        session=_or_null({
            **_object("id token expiresAt", id=_WORD, token=_WORD, expiresAt=_TIME),
            "description": "Only while the shopper may pay with it",
        }),
        paymentMethods=_list({"type": "object"}),
        payments=_list(ref("Payment")),
        operations=_list(ref("Operation")),
        commands={**_list(ref("Command"), 20), "description": "The last twenty"},
        archivedAt=_or_null(_text("When its history was archived, if it was", format="date-time")),
        correlationId=_WORD,
    ),
    "CheckoutPage": _object(
        "checkouts nextCursor", checkouts=_list(ref("CheckoutSummary"), 200), nextCursor=_or_null(_ID)
    ),
    "Cancel": _command({"reason": "out of stock"}),
    "Reopen": _command(
        {"expiresIn": 1800},
        expiresIn={"type": "number", "minimum": 1, "maximum": LONGEST_LIFE, "description": "Seconds, from the new offer on"},
    ),
    "Capture": _command({"amount": {"value": 39.00, "currency": "DKK"}}, amount=_PART, transactionId=_TRANSACTION),
    "Refund": _command({"amount": 10.00, "reason": "one mug was broken"}, amount=_PART, transactionId=_TRANSACTION),
    "Release": _command({"transactionId": "539101"}, transactionId=_TRANSACTION),
    "Retry": _command({}),
    "Reconcile": _command({}),
    "Resolve": {
        **_command(
            {"decision": "keep"},
            decision=_text(
                "keep the money, return it, or dismiss it: no action needed", enum=["keep", "return", "dismiss"]
            ),
        ),
        "required": ["decision"],
    },
    "CommandAccepted": {
        **_object(
            "id orderId state version command links", id=_ID, orderId=_WORD, state=_STATE, version=_integer(1),
            command=_object("id kind", id=_ID, kind=_COMMAND), links=_LINKS,
        ),
    },
    "Explanation": {
        **_object(
            "summary because evidence next youMay", summary=_WORD, because=_list(_WORD), evidence=_list(_WORD),
            next=_object(
                "what at", what=_WORD,
                at=_or_null(_text("Null where nothing more happens by itself", format="date-time")),
            ),
            youMay=_list(_WORD),
        ),
        "example": {
            "summary": "Order A-1001 for 139.00 DKK is completed: its payment is authorized.",
            "because": ["Transaction 539101 pays it: 139.00 DKK reserved, 0.00 DKK captured, 0.00 DKK refunded."],
            "evidence": [
                "By 2026-01-05T10:00:02Z a notification about transaction 539101 had arrived with a valid signature; it said “succeeded”.",
                "At 2026-01-05T10:00:03Z we asked the gateway, and its own answer showed transaction 539101 as “preauth” with 139.00 DKK reserved, matched by checkout id.",
            ],
            "next": {
                "what": "At 2026-01-05T11:00:03Z a worker asks the gateway for captures, refunds and chargebacks that were not ours.",
                "at": "2026-01-05T11:00:03Z",
            },
            "youMay": ["Have the gateway asked at once: POST /v1/checkouts/…/reconcile, or `orchestrator checkouts reconcile …`."],
        },
    },
    "AuditTrail": _object(
        "checkoutId entries nextAfter",
        checkoutId=_ID,
        entries=_list({"type": "object"}, 1000),
        nextAfter=_or_null(_integer()),
        archived={
            **_list(_object("until file at", until=_integer(), file=_WORD, at=_TIME)),
            "description": "Entries up to a number that stand in the file of an archive instead",
        },
    ),
    "Event": {
        "type": "object",
        "description": "A CloudEvent 1.0; `GET /v1/event-types` has the JSON Schema of each type",
        "required": "specversion id type source subject time datacontenttype dataschema sequence sequencetype traceparent data".split(),
        "properties": {
            "specversion": _text(enum=["1.0"]),
            "id": _text("The same for ever, whichever way it is sent", maxLength=64),
            "type": _text(enum=list(EventType)),
            "source": _text(format="uri"),
            "subject": _text("The checkout", format="uuid", maxLength=36),
            "time": _TIME,
            "datacontenttype": _text(enum=["application/json"]),
            "dataschema": _text(format="uri"),
            "sequence": _text("Contiguous from 1 for each checkout", pattern="^[1-9][0-9]*$", maxLength=19),
            "sequencetype": _text(enum=["Integer"]),
            "traceparent": _text(maxLength=55),
            "position": _text("Contiguous from 1 in the feed", pattern="^[1-9][0-9]*$", maxLength=19),
            "data": {"type": "object"},
        },
    },
    "EventPage": _object(
        "events next", events=_list(ref("Event"), 1000), next=_text("`after` of the next request", pattern="^[0-9]+$", maxLength=19)
    ),
    "EventTypes": _object(
        "types",
        types=_list(
            _object("type description thin full", type=_text(enum=list(EventType)), description=_WORD, thin={"type": "object"}, full={"type": "object"})
        ),
    ),
    "Health": _object("status", status=_text(enum=["alive", "ready", "degraded", "unavailable"]), problems=_list(_WORD)),
    "Problem": {
        "type": "object",
        "required": ["type", "title", "status", "detail", "errors"],
        "properties": {
            "type": _WORD,
            "title": _WORD,
            "status": _integer(400, 599),
            "detail": _text("One sentence: what was wrong and what to do"),
            "errors": _list(_object("field message", field=_text(example="order.amount.value"), message=_WORD)),
            "correlationId": _text(
                "Absent where the request could not be read", pattern="^[A-Za-z0-9._-]+$", maxLength=64
            ),
        },
    },
}  # fmt: skip

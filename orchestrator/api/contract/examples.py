"""Whole bodies and answers, as the documentation shows them: one order, from its intent to its payment."""

from __future__ import annotations

from typing import Any, Final

INTENT: Final[dict[str, Any]] = {
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
"""An intent that is taken."""

_OWN: Final = "/v1/checkouts/019aa000-0000-7000-8000-00000000000a"
_LINKS: Final = {
    "self": _OWN,
    "cancel": f"{_OWN}/cancel",
    "audit": f"{_OWN}/audit",
    "explain": f"{_OWN}/explain",
}
_TAKEN: Final = {
    "id": "019aa000-0000-7000-8000-00000000000a",
    "orderId": "A-1001",
    "state": "received",
}
_PAID: Final[dict[str, Any]] = {
    **_TAKEN,
    "state": "completed",
    "outcome": "paid",
    "paymentStatus": "authorized",
    "late": False,
    "amount": {"value": 139.00, "currency": "DKK"},
    "money": {"reserved": 139.00, "captured": 0.00, "refunded": 0.00, "chargedBack": 0.00},
    "raw": None,
    "autoCapture": False,
    "reservedUntil": "2026-01-12T10:00:03Z",
    "deadline": "2026-01-05T10:30:00Z",
    "dueAt": "2026-01-05T11:00:03Z",
    "offeredAt": "2026-01-05T09:59:30Z",
    "cancelRequestedAt": None,
    "endedAt": "2026-01-05T10:00:03Z",
    "attention": None,
    "lastError": None,
    "lastErrorCode": None,
    "version": 4,
    "createdAt": "2026-01-05T09:59:29Z",
    "updatedAt": "2026-01-05T10:00:03Z",
}
_PAYMENT: Final = {
    "transactionId": "539101",
    "paymentId": "7b1c2f52-6d0e-4b0c-8d0c-1d5a3c0f9e11",
    "role": "accepted",
    "binding": "bound",
    "status": "preauth",
    "meaning": "reserved",
    "currency": "DKK",
    **_PAID["money"],
    "surcharge": 0.00,
    "flags": [],
    "raw": None,
    "firstSeenAt": "2026-01-05T10:00:03Z",
    "updatedAt": "2026-01-05T10:00:03Z",
}
_OPERATION: Final = {
    "id": "019aa000-0000-7000-8000-00000000000d",
    "kind": "capture",
    "transactionId": "539101",
    "amount": 39.00,
    "currency": "DKK",
    "state": "succeeded",
    "cause": "asked",
    "reconciliationIdentifier": "019aa000-0000-7000-8000-00000000000d",
    "commandId": "019aa000-0000-7000-8000-00000000000c",
    "requestedAt": "2026-01-06T09:00:00Z",
    "submittedAt": "2026-01-06T09:00:00Z",
    "settledAt": "2026-01-06T09:00:01Z",
    "error": None,
    "errorCode": None,
}

_EVENT: Final = {
    "specversion": "1.0",
    "id": "019aa000-0000-7000-8000-00000000000a-2",
    "type": "checkout.completed",
    "source": "urn:checkout-orchestrator:default",
    "subject": "019aa000-0000-7000-8000-00000000000a",
    "time": "2026-01-05T10:00:03.250000Z",
    "datacontenttype": "application/json",
    "dataschema": "urn:checkout-orchestrator:event:checkout.completed:thin:1",
    "sequence": "2",
    "sequencetype": "Integer",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
    "data": {
        "checkoutId": "019aa000-0000-7000-8000-00000000000a",
        "orderId": "A-1001",
        "state": "completed",
        "paymentStatus": "authorized",
        "amount": _PAID["amount"],
        "money": _PAID["money"],
        "transactionIds": ["539101"],
        "late": False,
        "policy": None,
        "surcharge": None,
    },
    "position": "12",
}

EXAMPLES: Final[dict[str, dict[str, Any]]] = {
    "Intent": INTENT,
    "Change": {
        "order": {"amount": {"value": 100.00}, "orderLines": INTENT["order"]["orderLines"][:1]},
        "reason": "collected in the shop",
    },
    "Cancel": {"reason": "out of stock"},
    "Reopen": {"expiresIn": 1800},
    "Capture": {"amount": {"value": 39.00, "currency": "DKK"}},
    "Refund": {"amount": 10.00, "reason": "one mug was broken"},
    "Release": {"transactionId": "539101"},
    "Retry": {},
    "Reconcile": {},
    "Resolve": {"decision": "keep"},
    "Accepted": {
        **_TAKEN,
        "deadline": "2026-01-05T10:30:00Z",
        "clientToken": "AZqgAAAAcACAAAAAAAAACoVxR3pQ2mKfYw0sJtN1bTs",
        "links": _LINKS,
    },
    "CheckoutStatus": {
        "id": _TAKEN["id"],
        "state": "completed",
        "paymentStatus": "authorized",
        "final": True,
        "deadline": "2026-01-05T10:30:00Z",
        "paymentMethods": [],
        "declined": None,
        "nextUrl": f"https://shop.example/thanks?orderId=A-1001&checkoutId={_TAKEN['id']}",
    },
    "CommandAccepted": {
        **_TAKEN,
        "state": "completed",
        "version": 4,
        "command": {"id": "019aa000-0000-7000-8000-00000000000c", "kind": "capture"},
        "links": {**_LINKS, "command": "/v1/commands/019aa000-0000-7000-8000-00000000000c"},
    },
    "CommandProgress": {
        "id": "019aa000-0000-7000-8000-00000000000c",
        "checkoutId": _TAKEN["id"],
        "orderId": _TAKEN["orderId"],
        "kind": "capture",
        "state": "done",
        "amount": {"value": 39.00, "currency": "DKK"},
        "transactionId": None,
        "result": {"code": "accepted", "message": "the capture of 39.00 DKK on transaction 539101 is done"},
        "operations": [_OPERATION],
        "requestedAt": "2026-01-06T09:00:00Z",
        "finishedAt": "2026-01-06T09:00:01Z",
        "requestedBy": "client:default/shop-1",
        "links": {"self": "/v1/commands/019aa000-0000-7000-8000-00000000000c", "checkout": _OWN},
    },
    "CheckoutSummary": {**_PAID, "links": _LINKS},
    "Checkout": {
        **_PAID,
        "session": None,
        "paymentMethods": [],
        "payments": [_PAYMENT],
        "operations": [],
        "commands": [],
        "archivedAt": None,
        "erasedAt": None,
        "correlationId": "checkout-77",
        "links": _LINKS,
    },
    "Payment": _PAYMENT,
    "PlacedPayment": {**_PAYMENT, "orderId": "A-1001", "checkoutId": "019aa000-0000-7000-8000-00000000000a"},
    "Problem": {
        "type": "urn:checkout-orchestrator:problem:invalid-intent",
        "title": "Unprocessable Entity",
        "status": 422,
        "detail": "one field is wrong: order.amount.value: must be more than 0: there is nothing to pay otherwise",
        "errors": [
            {
                "field": "order.amount.value",
                "message": "must be more than 0: there is nothing to pay otherwise",
            }
        ],
        "correlationId": "checkout-77",
    },
    "CloudEvent": _EVENT,
    "EventPage": {"events": [_EVENT], "next": "12"},
    "Explanation": {
        "summary": "Order A-1001 for 139.00 DKK is completed: its payment is authorized.",
        "because": ["Transaction 539101 pays it: 139.00 DKK reserved, 0.00 DKK captured, 0.00 DKK refunded."],
        "evidence": [
            "By 2026-01-05T10:00:02Z a notification about transaction 539101 had arrived with a valid signature; it said “succeeded”.",
            "At 2026-01-05T10:00:03Z a worker looked it up at the gateway, and its own answer showed transaction 539101 as “preauth” with 139.00 DKK reserved, matched by checkout id.",
        ],
        "next": {
            "what": "At 2026-01-05T11:00:03Z a worker looks for captures, refunds and chargebacks that were made elsewhere.",
            "at": "2026-01-05T11:00:03Z",
        },
        "youMay": [
            "Look it up at the gateway at once: POST /v1/checkouts/…/reconcile, or `orchestrator checkouts reconcile …`."
        ],
    },
}
"""A whole body or answer by the name of its shape."""

"""The CloudEvents 1.0 document of an event.

It is made of the stored row alone, so it is the same whenever and wherever it is read. A thin document holds
ids, words of closed sets and amounts; a full one adds `details`, which are sentences. Amounts are decimal
numbers.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from typing import Annotated, Any, Final, Literal, cast
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from orchestrator.domain import money
from orchestrator.domain.events.facts import LONGEST_REASON, Cause, EventType, OperationKind, Policy, Totals
from orchestrator.domain.payment_status import PaymentStatus, payment_status
from orchestrator.domain.states import State

VERSION: Final = "1"
"""Of the schemas: part of `dataschema`. A new field is no new version; whatever else changes is."""

Content = Literal["thin", "full"]

_Text = Annotated[str, Meta(max_length=1000)]
_Uuid = Annotated[UUID, Meta(extra_json_schema={"maxLength": 36})]
_Number = Annotated[str, Meta(pattern="^[1-9][0-9]*$", max_length=19)]
_Transaction = Annotated[_Text, Meta(description="The gateway's number of the payment")]
_Transactions = Annotated[
    list[_Text],
    Meta(description="The gateway's numbers of the payments", extra_json_schema={"maxItems": 10_000}),
]
_Decimal = Annotated[
    Decimal,
    Meta(extra_json_schema={"minimum": -(10**money.MOST_DIGITS), "maximum": 10**money.MOST_DIGITS}),
]
_Uri = Annotated[str, Meta(extra_json_schema={"format": "uri", "maxLength": 200})]


class _Part(Struct, frozen=True, kw_only=True, rename="camel"):
    pass


class EventAmount(_Part, frozen=True):
    """An amount: a decimal number of a currency; null where the currency is not known."""

    value: _Decimal | None
    currency: Annotated[str, Meta(description="ISO 4217", max_length=3)]


class EventMoney(_Part, frozen=True):
    """The totals of what pays the checkout, in the currency of `amount`."""

    reserved: _Decimal | None
    captured: _Decimal | None
    refunded: _Decimal | None
    charged_back: Annotated[_Decimal | None, Meta(description="What the shopper's bank took back")]


class EventContent(_Part, frozen=True):
    """The data of an event: of a checkout (`EventData`), or of an intent that was refused."""


class EventData(EventContent, frozen=True):
    """The checkout as the event left it.

    Each type adds what it says: `GET /v1/event-types` has the schemas.
    """

    checkout_id: _Uuid
    order_id: Annotated[_Text, Meta(description="The shop's order number")]
    state: State
    payment_status: PaymentStatus
    amount: Annotated[EventAmount, Meta(description="What the order costs")]
    money: EventMoney


class Ready(EventData, frozen=True):
    payment_methods: Annotated[int, Meta(ge=0)]


class AttemptDeclined(EventData, frozen=True):
    transaction_ids: _Transactions
    reason: (
        Annotated[
            str, Meta(max_length=1000, description="The gateway's text for the shopper; show it as text")
        ]
        | None
    )


class Completed(EventData, frozen=True):
    transaction_ids: _Transactions
    late: bool
    policy: (
        Annotated[
            Policy, Meta(description="What becomes of money that came late; null where it came in time")
        ]
        | None
    )
    surcharge: Annotated[
        EventAmount | None,
        Meta(description="What the gateway added for the way of payment; null where nothing"),
    ]


class Failed(EventData, frozen=True):
    code: _Text | None


class Attention(EventData, frozen=True):
    attention: Annotated[str, Meta(description="A code: see the runbook")] | None


class MoneyMoved(EventData, frozen=True):
    transaction_id: _Transaction | None
    change: Annotated[
        EventAmount,
        Meta(description="By how much the total moved; 0 where an earlier event has told it already"),
    ]
    cause: Annotated[
        Cause, Meta(description="Who began it: a command, the order, a policy, or the gateway's side")
    ]
    operation_id: UUID | None
    role: Annotated[str, Meta(description="Of the transaction; the totals are those of `accepted` ones")]


class Chargeback(EventData, frozen=True):
    transaction_id: _Transaction | None
    change: EventAmount
    reversal: bool


class Surplus(EventData, frozen=True):
    transaction_ids: _Transactions


class OperationRejected(EventData, frozen=True):
    operation: OperationKind
    transaction_id: _Transaction | None
    operation_id: UUID | None
    command_id: UUID | None
    code: _Text | None = None


class IntentRejected(EventContent, frozen=True):
    rejected_intent_id: Annotated[_Uuid, Meta(description="See `GET /v1/rejected-intents`")]
    order_id: Annotated[_Text, Meta(description="The shop's order number")] | None
    code: Annotated[_Text, Meta(description="Why it was refused")]


class Details(_Part, frozen=True):
    """Sentences of ours, for people."""

    reason: Annotated[str, Meta(max_length=LONGEST_REASON)] | UnsetType = UNSET


_DATA: Final[Mapping[EventType, type[EventContent]]] = {
    EventType.CHECKOUT_READY: Ready,
    EventType.CHECKOUT_ATTEMPT_DECLINED: AttemptDeclined,
    EventType.CHECKOUT_COMPLETED: Completed,
    EventType.CHECKOUT_FAILED: Failed,
    EventType.CHECKOUT_CANCELLED: EventData,
    EventType.CHECKOUT_EXPIRED: EventData,
    EventType.CHECKOUT_REOPENED: EventData,
    EventType.CHECKOUT_ATTENTION: Attention,
    EventType.CHECKOUT_ATTENTION_RESOLVED: Attention,
    EventType.PAYMENT_CAPTURED: MoneyMoved,
    EventType.PAYMENT_REFUNDED: MoneyMoved,
    EventType.PAYMENT_RELEASED: MoneyMoved,
    EventType.PAYMENT_RESERVATION_RAISED: MoneyMoved,
    EventType.PAYMENT_CHARGEBACK: Chargeback,
    EventType.PAYMENT_SURPLUS: Surplus,
    EventType.PAYMENT_OPERATION_REJECTED: OperationRejected,
    EventType.INTENT_REJECTED: IntentRejected,
}


@cache
def data_of(kind: EventType, content: Content) -> type[EventContent]:
    """Return the class of a type's data; it takes no fact that the type's schema does not name."""
    described = _DATA[kind]
    made: Any = msgspec.defstruct(
        f"{described.__name__}{content.title()}",
        [("details", Details)] if content == "full" else [],
        bases=(described,),
        frozen=True,
        kw_only=True,
        rename="camel",
        forbid_unknown_fields=True,
        module=__name__,
    )
    made.__doc__ = described.__doc__
    return cast("type[EventContent]", made)


class CloudEvent(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A CloudEvent 1.0 in its JSON format, with the extensions `sequence`, `traceparent` and, in the feed,
    `position`.
    """

    specversion: Literal["1.0"]
    id: Annotated[
        str, Meta(description="The same for ever: handle each event once", min_length=1, max_length=64)
    ]
    type: EventType
    source: Annotated[_Uri, Meta(description="`urn:checkout-orchestrator:` and the merchant's name")]
    subject: Annotated[
        str,
        Meta(
            description="The checkout's id; of `intent.rejected` that of the rejected intent",
            extra_json_schema={"format": "uuid", "maxLength": 36},
        ),
    ]
    time: Annotated[
        datetime,
        Meta(
            description="When it was written",
            extra_json_schema={"type": "string", "format": "date-time", "maxLength": 40},
        ),
    ]
    datacontenttype: Literal["application/json"]
    dataschema: Annotated[_Uri, Meta(description="The `$id` of the schema that it follows")]
    sequence: Annotated[_Number, Meta(description="Contiguous from 1 for each checkout")]
    sequencetype: Literal["Integer"]
    traceparent: Annotated[
        str,
        Meta(
            description="W3C trace context: one trace for each correlation id",
            pattern="^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$",
            max_length=55,
        ),
    ]
    data: EventContent
    position: Annotated[
        _Number | UnsetType, Meta(description="Contiguous from 1 in the merchant's feed; only there")
    ] = UNSET


class StoredEvent(Struct, frozen=True, kw_only=True):
    """A row of `events`, and the name of its merchant."""

    merchant: str
    checkout_id: UUID
    sequence: int
    kind: str
    payload: Mapping[str, Any]
    correlation_id: str
    created_at: datetime
    position: int | None = None


_KINDS: Final = {str(kind): kind for kind in EventType}
_STATES: Final = {str(state): state for state in State}


def event_id(checkout: UUID | str, sequence: int) -> str:
    """Return the id of an event: the same in every delivery, and for ever."""
    return f"{checkout}-{sequence}"


def document(row: StoredEvent, *, content: Content = "thin") -> CloudEvent:
    """Make the document of a stored event. `KeyError` or `ValueError`: another version stored it."""
    kind = _KINDS[row.kind]
    data = dict(row.payload["facts"]) if kind is EventType.INTENT_REJECTED else _of_checkout(row)
    if content == "full":
        data["details"] = row.payload.get("details", {})
    subject = str(row.checkout_id)
    identity = event_id(subject, row.sequence)
    return CloudEvent(
        specversion="1.0",
        id=identity,
        type=kind,
        source=f"urn:checkout-orchestrator:{row.merchant}",
        subject=subject,
        time=row.created_at.astimezone(UTC),
        datacontenttype="application/json",
        dataschema=schema_id(kind, content),
        sequence=str(row.sequence),
        sequencetype="Integer",
        traceparent=traceparent(row.correlation_id, identity),
        position=UNSET if row.position is None else str(row.position),
        data=msgspec.convert(data, data_of(kind, content)),
    )


def _of_checkout(row: StoredEvent) -> dict[str, Any]:
    payload, currency, decimal = row.payload, row.payload["currency"], money.decimal_or_none
    state = _STATES[payload["state"]]
    totals = Totals(payload["reserved"], payload["captured"], payload["refunded"], payload["chargedBack"])
    made: dict[str, Any] = {
        "checkoutId": row.checkout_id,
        "orderId": payload["orderId"],
        "state": state,
        "paymentStatus": payment_status(state, totals),
        "amount": {"value": decimal(payload["amount"], currency), "currency": currency},
        "money": {
            "reserved": decimal(totals.reserved, currency),
            "captured": decimal(totals.captured, currency),
            "refunded": decimal(totals.refunded, currency),
            "chargedBack": decimal(totals.charged_back, currency),
        },
        **payload.get("facts", {}),
    }
    if "change" in made:
        made["change"] = {"value": decimal(made["change"], currency), "currency": currency}
    if surcharge := made.get("surcharge"):
        made["surcharge"] = {"value": decimal(surcharge, currency), "currency": currency}
    elif "surcharge" in made:
        made["surcharge"] = None
    return made


def traceparent(correlation_id: str, identity: str) -> str:
    """Return the W3C trace context of an event: one trace for each correlation id, one parent for each event.

    A correlation id of 32 hexadecimal digits, with or without the hyphens of a UUID, is the trace id; for any
    other text it is the first half of its SHA-256. The flags do not say whether the trace is recorded.
    """
    plain = correlation_id.lower().replace("-", "")
    if not _TRACE_ID.fullmatch(plain) or not int(plain, 16):
        plain = hashlib.sha256(correlation_id.encode()).hexdigest()[:32]
    return f"00-{plain}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}-00"


_TRACE_ID: Final = re.compile("[0-9a-f]{32}")


@cache
def schema_id(kind: EventType, content: Content) -> str:
    """Return the name of a schema, which stands as `dataschema` in every document that follows it."""
    return f"urn:checkout-orchestrator:event:{kind}:{content}:{VERSION}"

"""What merchants are told: the types of events, what each of them says, and the CloudEvents 1.0 document that carries it.

An event is decided where its fact is written: the functions here make its content from the fact, and the move stores that beside a
snapshot of the checkout as the move leaves it. The document is made of the stored row alone, so it is the same whenever and wherever
it is read. A thin document holds ids, words of closed sets and amounts; a full one adds `details`, which are sentences.

Pure functions and values. Amounts are stored in minor units, and are decimal numbers in a document.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Final, Generic, Literal, Self, TypeVar, cast
from uuid import UUID

import msgspec
from msgspec import Meta, Struct

from orchestrator.domain import money
from orchestrator.domain.payment_status import PaymentStatus, payment_status
from orchestrator.domain.states import State

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from orchestrator.domain.records import Operation

VERSION: Final = "1"
"""Of the schemas: part of `dataschema`. A new field is no new version; whatever else changes is."""


class EventType(StrEnum):
    """The type of an event; stored, and the same in every document. `about` says what it means."""

    about: str

    def __new__(cls, value: str, about: str) -> Self:
        """Make a member of its text and of what it means."""
        made = str.__new__(cls, value)
        made._value_, made.about = value, about
        return made

    CHECKOUT_READY = (
        "checkout.ready",
        "The shopper may pay: session and payment methods are there. It comes again after a reopening.",
    )
    CHECKOUT_ATTEMPT_DECLINED = (
        "checkout.attempt_declined",
        "An attempt to pay ended without money; the shopper may try again.",
    )
    CHECKOUT_COMPLETED = (
        "checkout.completed",
        "The gateway holds the money for the order. `late` and `policy` say whether it may go back.",
    )
    CHECKOUT_FAILED = (
        "checkout.failed",
        "It could not be offered: the gateway refused it, or every attempt until the deadline failed.",
    )
    CHECKOUT_CANCELLED = (
        "checkout.cancelled",
        "It was withdrawn, and a lookup showed nothing paid, pending or open.",
    )
    CHECKOUT_EXPIRED = (
        "checkout.expired",
        "Its deadline passed, and a lookup showed nothing paid, pending or open.",
    )
    CHECKOUT_REOPENED = (
        "checkout.reopened",
        "A closed checkout was taken up again; `checkout.ready` follows.",
    )
    CHECKOUT_ATTENTION = (
        "checkout.attention",
        "It needs a decision, for the reason named; another reason replaces the one before.",
    )
    CHECKOUT_ATTENTION_RESOLVED = ("checkout.attention_resolved", "It needs no decision any more.")
    PAYMENT_CAPTURED = (
        "payment.captured",
        "The captured total grew, by a call of ours or at the gateway; with the completion where the gateway captured by itself.",
    )
    PAYMENT_REFUNDED = ("payment.refunded", "The refunded total grew, by a call of ours or at the gateway.")
    PAYMENT_RELEASED = (
        "payment.released",
        "Reserved money went back to the shopper before its capture, by a call of ours or at the gateway.",
    )
    PAYMENT_RESERVATION_RAISED = (
        "payment.reservation_raised",
        "The gateway shows a larger reservation for a completed checkout.",
    )
    PAYMENT_CHARGEBACK = (
        "payment.chargeback",
        "The shopper's bank took money back, or returned it (`reversal`).",
    )
    PAYMENT_SURPLUS = (
        "payment.surplus",
        "Money beside the payment that completed the checkout was found; a policy or a person decides on it.",
    )
    PAYMENT_OPERATION_REJECTED = (
        "payment.operation_rejected",
        "A capture, refund or release was not done, and will not be.",
    )


# ── What is told ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Event:
    """An event that a move brings about: its type, what it says beside the snapshot, and sentences for full documents.

    Names are those of the documents; amounts (`change`, `surcharge`) are minor units of the checkout's currency.
    """

    type: EventType
    facts: Mapping[str, object] = field(default_factory=dict)
    details: Mapping[str, object] = field(default_factory=dict)


Policy = Literal["ask", "keep", "return"]
Cause = Literal["asked", "automatic", "returned", "gateway"]
OperationKind = Literal["capture", "refund", "release"]

_OF_OPERATION: Final = {
    "capture": EventType.PAYMENT_CAPTURED,
    "refund": EventType.PAYMENT_REFUNDED,
    "release": EventType.PAYMENT_RELEASED,
}


def ready(*, methods: int) -> Event:
    """Say that it is offered with so many payment methods."""
    return Event(EventType.CHECKOUT_READY, {"paymentMethods": methods})


def attempt_declined(transactions: Sequence[str], *, reason: str | None) -> Event:
    """Say which attempts ended without money; `reason` is the gateway's text for the shopper, where a callback proved one."""
    return Event(
        EventType.CHECKOUT_ATTEMPT_DECLINED, {"transactionIds": list(transactions), "reason": reason}
    )


def completed(transactions: Sequence[str], *, late: bool, policy: Policy | None, surcharge: int) -> Event:
    """Say which transactions pay it; `policy` is what becomes of money that came late, `surcharge` what the gateway added."""
    return Event(
        EventType.CHECKOUT_COMPLETED,
        # An order is shipped on this event: it must tell that the money may go back, and of what parts it is.
        {"transactionIds": list(transactions), "late": late, "policy": policy, "surcharge": surcharge},
    )


def failed(reason: str | None) -> Event:
    """Say why it could not be offered."""
    return _reasoned(EventType.CHECKOUT_FAILED, {"code": _code(reason)}, reason)


def attention_changed(before: str | None, after: str | None) -> tuple[Event, ...]:
    """Say that a decision is needed, or none any more; nothing where the attention is what it was."""
    if after == before:
        return ()
    if after is None:
        return (Event(EventType.CHECKOUT_ATTENTION_RESOLVED, {"attention": _code(before)}),)
    return (_reasoned(EventType.CHECKOUT_ATTENTION, {"attention": _code(after)}, after),)


def operation_succeeded(operation: Operation, *, change: int, role: str) -> Event:
    """Say that one of our own calls moved money; `change` is by how much the total of its transaction's checkout moved with it."""
    return _money(
        _OF_OPERATION[operation.kind],
        operation.transaction_id,
        change,
        cause=operation.cause,
        operationId=operation.id,
        role=role,
    )


def operation_rejected(
    kind: str,
    reason: str,
    *,
    transaction_id: str | None = None,
    operation_id: UUID | None = None,
    command_id: UUID | None = None,
) -> Event:
    """Say that a capture, refund or release was refused; without an operation the command itself was."""
    facts = {
        "operation": kind,
        "transactionId": transaction_id,
        "operationId": operation_id,
        "commandId": command_id,
    }
    return _reasoned(EventType.PAYMENT_OPERATION_REJECTED, facts, reason)


def surplus(transactions: Sequence[str]) -> Event:
    """Say which transactions hold money beside the payment."""
    return Event(EventType.PAYMENT_SURPLUS, {"transactionIds": list(transactions)})


@dataclass(frozen=True, slots=True)
class Totals:
    """The money of a checkout, in minor units of its currency."""

    reserved: int
    captured: int
    refunded: int
    charged_back: int


def money_seen(
    before: Totals, after: Totals, *, transaction_id: str | None, was_completed: bool
) -> list[Event]:
    """Say how the money of a checkout moved at the gateway since the last write; what the completion itself tells is left out."""
    found = []

    def tell(kind: EventType, change: int, **more: object) -> None:
        if change > 0:
            found.append(_money(kind, transaction_id, change, cause="gateway", operationId=None, **more))

    if was_completed:
        tell(EventType.PAYMENT_RESERVATION_RAISED, after.reserved - before.reserved, role="accepted")
    tell(EventType.PAYMENT_CAPTURED, after.captured - before.captured, role="accepted")
    if was_completed:
        tell(EventType.PAYMENT_RELEASED, before.reserved - after.reserved, role="accepted")
    tell(EventType.PAYMENT_REFUNDED, after.refunded - before.refunded, role="accepted")
    taken = after.charged_back - before.charged_back
    if taken:
        facts = {"transactionId": transaction_id, "change": abs(taken), "reversal": taken < 0}
        found.append(Event(EventType.PAYMENT_CHARGEBACK, facts))
    return found


def _money(kind: EventType, transaction_id: str | None, change: int, **facts: object) -> Event:
    return Event(kind, {"transactionId": transaction_id, "change": change, **facts})


def _reasoned(kind: EventType, facts: Mapping[str, object], reason: str | None) -> Event:
    return Event(kind, facts, {"reason": reason} if reason else {})


def _code(reason: str | None) -> str | None:
    """Return the word that a reason begins with, which says what kind it is of."""
    word = (reason or "").partition(":")[0]
    return word if _WORD.fullmatch(word) else None


_WORD: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")


def stored(
    event: Event, *, order_ref: str, state: State, currency: str, amount: int, totals: Totals
) -> dict[str, object]:
    """Return the payload of an event's row: a snapshot of the checkout as the move leaves it, and what the event says."""
    payload: dict[str, object] = {
        "orderId": order_ref,
        "state": state,
        "currency": currency,
        "amount": amount,
        "reserved": totals.reserved,
        "captured": totals.captured,
        "refunded": totals.refunded,
        "chargedBack": totals.charged_back,
    }
    if event.facts:
        payload["facts"] = event.facts
    if event.details:
        payload["details"] = event.details
    return payload


# ── Documents ───────────────────────────────────────────────────────────────────────────────────────────────────────────

_Text = Annotated[str, Meta(min_length=1, max_length=1000)]
_Sequence = Annotated[str, Meta(pattern="^[1-9][0-9]*$", max_length=19)]
_Trace = Annotated[str, Meta(pattern="^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$", max_length=55)]


class _Told(Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    pass


class Amount(_Told, frozen=True):
    """An amount: a decimal number of a currency; null where the currency is not known."""

    value: Decimal | None
    currency: Annotated[str, Meta(max_length=3)]


class Money(_Told, frozen=True):
    """The totals of what pays the checkout."""

    reserved: Decimal | None
    captured: Decimal | None
    refunded: Decimal | None
    charged_back: Decimal | None


class Data(_Told, frozen=True):
    """What every event says: the checkout as the event left it."""

    checkout_id: UUID
    order_id: _Text
    state: State
    payment_status: PaymentStatus
    amount: Amount
    money: Money


class Ready(Data, frozen=True):
    payment_methods: Annotated[int, Meta(ge=0)]


class AttemptDeclined(Data, frozen=True):
    transaction_ids: list[_Text]
    reason: (
        Annotated[
            str, Meta(max_length=1000, description="The gateway's text for the shopper; show it as text")
        ]
        | None
    )


class Completed(Data, frozen=True):
    transaction_ids: list[_Text]
    late: bool
    policy: (
        Annotated[
            Policy, Meta(description="What becomes of money that came late; null where it came in time")
        ]
        | None
    )
    surcharge: Annotated[
        Amount | None, Meta(description="What the gateway added for the way of payment; null where nothing")
    ]


class Failed(Data, frozen=True):
    code: _Text | None


class Attention(Data, frozen=True):
    attention: Annotated[str, Meta(description="A code: see the runbook")] | None


class MoneyMoved(Data, frozen=True):
    transaction_id: _Text | None
    change: Annotated[
        Amount, Meta(description="By how much the total moved; 0 where an earlier event has told it already")
    ]
    cause: Annotated[
        Cause, Meta(description="Who began it: a command, the order, a policy, or the gateway's side")
    ]
    operation_id: UUID | None
    role: Annotated[str, Meta(description="Of the transaction; the totals are those of `accepted` ones")]


class Chargeback(Data, frozen=True):
    transaction_id: _Text | None
    change: Amount
    reversal: bool


class Surplus(Data, frozen=True):
    transaction_ids: list[_Text]


class OperationRejected(Data, frozen=True):
    operation: OperationKind
    transaction_id: _Text | None
    operation_id: UUID | None
    command_id: UUID | None


class Details(_Told, frozen=True):
    """Sentences for people; they may quote the gateway."""

    reason: Annotated[str, Meta(max_length=10_000)] | None = None


_DATA: Final[Mapping[EventType, type[Data]]] = {
    EventType.CHECKOUT_READY: Ready,
    EventType.CHECKOUT_ATTEMPT_DECLINED: AttemptDeclined,
    EventType.CHECKOUT_COMPLETED: Completed,
    EventType.CHECKOUT_FAILED: Failed,
    EventType.CHECKOUT_CANCELLED: Data,
    EventType.CHECKOUT_EXPIRED: Data,
    EventType.CHECKOUT_REOPENED: Data,
    EventType.CHECKOUT_ATTENTION: Attention,
    EventType.CHECKOUT_ATTENTION_RESOLVED: Attention,
    EventType.PAYMENT_CAPTURED: MoneyMoved,
    EventType.PAYMENT_REFUNDED: MoneyMoved,
    EventType.PAYMENT_RELEASED: MoneyMoved,
    EventType.PAYMENT_RESERVATION_RAISED: MoneyMoved,
    EventType.PAYMENT_CHARGEBACK: Chargeback,
    EventType.PAYMENT_SURPLUS: Surplus,
    EventType.PAYMENT_OPERATION_REJECTED: OperationRejected,
}
Content = Literal["thin", "full"]


@cache
def _data_of(kind: EventType, content: Content) -> type[Data]:
    thin = _DATA[kind]
    if content == "thin":
        return thin
    made: Any = msgspec.defstruct(
        f"{thin.__name__}InFull", [("details", Details)], bases=(thin,), frozen=True, kw_only=True,
        rename="camel", forbid_unknown_fields=True, module=__name__,
    )  # fmt: skip
    return cast("type[Data]", made)


T = TypeVar("T", bound=Data)


class CloudEvent(Struct, Generic[T], frozen=True, kw_only=True, omit_defaults=True):
    """A CloudEvent 1.0 in its JSON format, with the extensions `sequence`, `traceparent` and, in the feed, `position`."""

    specversion: Literal["1.0"]
    id: Annotated[str, Meta(min_length=1, max_length=64)]
    type: EventType
    source: Annotated[str, Meta(extra_json_schema={"format": "uri"})]
    subject: Annotated[str, Meta(description="The checkout's id")]
    time: datetime
    datacontenttype: Literal["application/json"]
    dataschema: Annotated[str, Meta(extra_json_schema={"format": "uri"})]
    sequence: Annotated[_Sequence, Meta(description="Contiguous from 1 for each checkout")]
    sequencetype: Literal["Integer"]
    traceparent: _Trace
    data: T
    position: (
        Annotated[_Sequence, Meta(description="Contiguous from 1 in the merchant's feed; only there")] | None
    ) = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent:
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


def event_id(checkout: UUID, sequence: int) -> str:
    """Return the id of an event: one text for ever, by whichever way it is sent, and however often."""
    return f"{checkout}-{sequence}"


def document(row: StoredEvent, *, content: Content = "thin") -> CloudEvent[Any]:
    """Make the document of a stored event. `KeyError` or `ValueError`: another version stored it."""
    kind = _KINDS[row.kind]
    payload, currency = row.payload, row.payload["currency"]
    state = State(payload["state"])
    totals = {name: payload[name] for name in ("reserved", "captured", "refunded", "chargedBack")}
    status = payment_status(
        state, reserved=totals["reserved"], captured=totals["captured"], refunded=totals["refunded"],
        charged_back=totals["chargedBack"],
    )  # fmt: skip
    data = {
        "checkoutId": row.checkout_id,
        "orderId": payload["orderId"],
        "state": state,
        "paymentStatus": status,
        "amount": _amount(payload["amount"], currency),
        "money": {name: money.decimal_or_none(minor, currency) for name, minor in totals.items()},
        **{name: _fact(name, value, currency) for name, value in payload.get("facts", {}).items()},
    }
    if content == "full":
        data["details"] = payload.get("details", {})
    identity = event_id(row.checkout_id, row.sequence)
    return CloudEvent(
        specversion="1.0",
        id=identity,
        type=kind,
        source=f"urn:checkout-orchestrator:{row.merchant}",
        subject=str(row.checkout_id),
        time=row.created_at.astimezone(UTC),
        datacontenttype="application/json",
        dataschema=schema_id(kind, content),
        sequence=str(row.sequence),
        sequencetype="Integer",
        traceparent=traceparent(row.correlation_id, identity),
        position=None if row.position is None else str(row.position),
        data=msgspec.convert(data, _data_of(kind, content)),
    )


def _amount(minor: int, currency: str) -> dict[str, object]:
    return {"value": money.decimal_or_none(minor, currency), "currency": currency}


def _fact(name: str, value: Any, currency: str) -> object:
    match name:
        case "change":
            return _amount(value, currency)
        case "surcharge":
            return _amount(value, currency) if value else None
        case _:
            return value


def traceparent(correlation_id: str, identity: str) -> str:
    """Return the W3C trace context of an event: one trace for each correlation id, one parent for each event.

    A correlation id of 32 hexadecimal digits, with or without the hyphens of a UUID, is the trace id; of any other text it is the
    first half of its SHA-256. The flags say nothing of whether anybody records the trace.
    """
    plain = correlation_id.lower().replace("-", "")
    if not _TRACE_ID.fullmatch(plain) or not int(plain, 16):
        plain = hashlib.sha256(correlation_id.encode()).hexdigest()[:32]
    return f"00-{plain}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}-00"


_TRACE_ID: Final = re.compile("[0-9a-f]{32}")


# ── Schemas ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def schema_id(kind: EventType, content: Content) -> str:
    """Return the name of a schema, which stands as `dataschema` in every document that follows it."""
    return f"urn:checkout-orchestrator:event:{kind}:{content}:{VERSION}"


@cache
def schema(kind: EventType, content: Content) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of the whole document of a type. Fields that it does not name may come with later versions."""
    made = msgspec.json.schema(CloudEvent[_data_of(kind, content)])  # type: ignore[misc]  # a class made at run time
    definitions = made.pop("$defs")
    envelope = definitions.pop(made.pop("$ref").rpartition("/")[2])
    envelope["properties"]["type"] = {"const": str(kind)}
    envelope["properties"]["dataschema"] = {"const": schema_id(kind, content)}
    described = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": schema_id(kind, content),
        **envelope,
        "title": str(kind),
        "$defs": {name: one for name, one in sorted(definitions.items()) if name != "EventType"},
    }
    opened: dict[str, Any] = _open(described)
    return opened


def _open(value: Any) -> Any:
    """Return a schema with amounts as the numbers that they are in JSON, and open to fields of later versions."""
    if isinstance(value, list):
        return [_open(one) for one in value]
    if not isinstance(value, dict):
        return value
    if value.get("format") == "decimal":
        return {"type": "number"}
    return {name: _open(one) for name, one in value.items() if (name, one) != ("additionalProperties", False)}


def catalogue() -> list[dict[str, object]]:
    """Return every type with what it means and its schemas, in the order of the types."""
    return [
        {
            "type": str(kind),
            "description": kind.about,
            "thin": schema(kind, "thin"),
            "full": schema(kind, "full"),
        }
        for kind in EventType
    ]

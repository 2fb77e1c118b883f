"""The types of events, the facts that a move states in each of them, and the row of an event.

An event is decided where its fact is written: the functions here make its content from the fact, and the move
stores that beside a snapshot of the checkout after the move. Amounts are minor units of the checkout's
currency.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Literal, Self

from orchestrator.domain import sentences
from orchestrator.domain.records import Operation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from orchestrator.domain.attention import Attention
    from orchestrator.domain.command_result import CommandResult
    from orchestrator.domain.last_error import LastError
    from orchestrator.domain.records import Command
    from orchestrator.domain.states import State


LONGEST_REASON: Final = 10_000
"""Characters of a sentence; what is longer is cut."""


class EventType(StrEnum):
    """What an event says: the same word in every document."""

    about: str
    """What it means, in a sentence."""

    def __new__(cls, value: str, about: str) -> Self:
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
    INTENT_REJECTED = (
        "intent.rejected",
        "An intent of the queue `intents` was refused; no checkout was created of it.",
    )


# ── Content of events ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Event:
    """An event that a move brings about: its type, what it says beside the snapshot, and sentences for full
    documents.

    Names are those of the documents; amounts (`change`, `surcharge`) are minor units of the checkout's
    currency.
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
    return Event(EventType.CHECKOUT_READY, {"paymentMethods": methods})


def attempt_declined(transactions: Sequence[str], *, reason: str | None) -> Event:
    """State which attempts ended without money; `reason` is the gateway's text for the shopper, where a
    callback proved it.
    """
    return Event(
        EventType.CHECKOUT_ATTEMPT_DECLINED, {"transactionIds": list(transactions), "reason": reason}
    )


def completed(transactions: Sequence[str], *, late: bool, policy: Policy | None, surcharge: int) -> Event:
    """Say which transactions pay it; `policy` is what becomes of money that came late, `surcharge` what the
    gateway added.
    """
    return Event(
        EventType.CHECKOUT_COMPLETED,
        # An order is shipped on this event: it must state that the money may go back, and which parts it has.
        {"transactionIds": list(transactions), "late": late, "policy": policy, "surcharge": surcharge},
    )


def failed(error: LastError | None) -> Event:
    return _reasoned(EventType.CHECKOUT_FAILED, {"code": None if error is None else error.code}, error)


def attention_changed(before: Attention | None, after: Attention | None) -> tuple[Event, ...]:
    """Say that a decision is needed, or none any more; nothing where it is the same question."""
    if after is None:
        return (
            ()
            if before is None
            else (Event(EventType.CHECKOUT_ATTENTION_RESOLVED, {"attention": before.code}),)
        )
    if not after.is_news(before):
        return ()
    return (_reasoned(EventType.CHECKOUT_ATTENTION, {"attention": after.code}, after),)


def operation_succeeded(operation: Operation, *, change: int, role: str) -> Event:
    """State that a call of this system moved money; `change` is by how much the total of its transaction's
    checkout moved with it.
    """
    return _money(
        _OF_OPERATION[operation.kind],
        operation.transaction_id,
        change,
        cause=operation.cause,
        operationId=operation.id,
        role=role,
    )


def operation_rejected(asked: Operation | Command, reason: LastError | CommandResult) -> Event:
    """Say that a capture, refund or release was refused, or the command for it."""
    operation = asked if isinstance(asked, Operation) else None
    facts = {
        "operation": asked.kind,
        "transactionId": operation and operation.transaction_id,
        "operationId": operation and operation.id,
        "commandId": asked.id if operation is None else operation.command_id,
        "code": reason.code,
    }
    return _reasoned(EventType.PAYMENT_OPERATION_REJECTED, facts, reason)


def intent_rejected(*, intent: UUID, order_ref: str | None, code: str, reason: str) -> dict[str, object]:
    """Return the payload of the event of a refused intent, which has no checkout."""
    return {
        "facts": {"rejectedIntentId": intent, "orderId": order_ref, "code": code},
        "details": {"reason": reason[:LONGEST_REASON]},
    }


def surplus(transactions: Sequence[str]) -> Event:
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
    """State how the money of a checkout moved at the gateway since the last write, without what the
    completion itself states.
    """
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


def _reasoned(
    kind: EventType, facts: Mapping[str, object], reason: Attention | LastError | CommandResult | None
) -> Event:
    return Event(kind, facts, {} if reason is None else {"reason": sentences.of(reason)[:LONGEST_REASON]})


def stored(
    event: Event, *, order_ref: str, state: State, currency: str, amount: int, totals: Totals
) -> dict[str, object]:
    """Return the payload of an event's row: a snapshot of the checkout as the move leaves it, and what the
    event says.
    """
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

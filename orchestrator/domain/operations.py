"""Captures, refunds and releases: whether an operation may be sent, and whether it was done.

Nothing is sent twice on purpose. An operation is written as `submitted` before its call leaves; a worker that
finds a submitted operation never sends it: it looks it up. The gateway's books show the operation by its
reconciliation identifier; where a method does not echo that, by the totals, which only one operation of this
system can have changed at a time. An absence counts only after a quiet period that is far longer than a call
can last. If neither fits, a person decides.

Pure functions over the gateway's own answer; `processing.money_operations` sends and writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from orchestrator.domain.ids import uuid7
from orchestrator.domain.last_error import ErrorCode, LastError, error
from orchestrator.domain.payment_meaning import MONEY, PaymentMeaning, read
from orchestrator.domain.records import Cause, Operation, OperationKind, OperationState, left_to, still_held

if TYPE_CHECKING:
    from uuid import UUID

    from orchestrator.domain.records import PaymentRecord
    from orchestrator.domain.transaction import Transaction
    from orchestrator.settings import Settings

MOST_SENDS: Final = 3
"""Times that an operation is sent, each time found absent afterwards, before it raises attention."""


class Fate(StrEnum):
    """What a lookup says of an operation."""

    DUE = "due"
    """Not done, and it can be: send it."""
    DONE = "done"
    """The gateway's books have it."""
    IMPOSSIBLE = "impossible"
    """Not done, and it cannot be done any more."""
    ABSENT = "absent"
    """It was sent, and the gateway's books do not have it."""
    UNCLEAR = "unclear"
    """The books fit neither: it needs a decision."""


@dataclass(frozen=True, slots=True)
class Judged:
    """The fate of an operation by a lookup: `by` what it shows as a word for the trail, or an `error` that
    keeps it from being done.
    """

    fate: Fate
    by: str = ""
    error: LastError | None = None


def ask(
    payment: PaymentRecord,
    kind: OperationKind,
    *,
    amount: int,
    cause: Cause,
    actor: str,
    reason: str | None = None,
    command_id: UUID | None = None,
) -> Operation:
    """Make an operation on a payment as our books have it; `amount` in minor units of its currency."""
    return Operation(
        id=uuid7(),
        transaction_id=payment.transaction_id,
        kind=kind,
        amount=amount,
        currency=payment.currency,
        state=OperationState.REQUESTED,
        cause=cause,
        actor=actor,
        reason=reason,
        command_id=command_id,
        total_before=payment.refunded if kind == OperationKind.REFUND else payment.captured,
    )


def give_back(
    payment: PaymentRecord, *, actor: str, reason: str, command_id: UUID | None = None
) -> Operation:
    """Make the operation that returns what a payment still holds: a release before its capture, a refund
    after it.
    """
    return ask(
        payment,
        OperationKind.REFUND if payment.captured > 0 else OperationKind.RELEASE,
        amount=still_held(payment),
        cause=Cause.RETURNED,
        actor=actor,
        reason=reason,
        command_id=command_id,
    )


def lease_for(settings: Settings) -> float:
    """Return the seconds for which a lease lasts when an operation is written as submitted: a wait for a
    slot, and its call.

    Its call is begun only while what is left of that outlasts the call; a renewal of the lease does not
    count.
    """
    return max(settings.lease_seconds, 3.0 * settings.gateway_total_timeout)


def quiet_after(settings: Settings, operation: Operation) -> float:
    """Return the seconds since it was submitted before which the absence of an operation's effect proves
    nothing.

    Its sender may have sent it at the end of the lease, and an acquirer takes its time: `operation_quiet`,
    doubled with each time that it was sent before.
    """
    quiet = settings.operation_quiet * 2.0 ** max(min(operation.attempts, 10) - 1, 0)
    return lease_for(settings) + min(quiet, 3600.0)


def facts_of(operation: Operation) -> dict[str, object]:
    """Return what the trail has of an operation."""
    return {
        "operation": str(operation.id),
        "kind": operation.kind,
        "transaction": operation.transaction_id,
        "amount": operation.amount,
        "currency": operation.currency,
        "cause": operation.cause,
    }


def total_of(operation: Operation, transaction: Transaction) -> int:
    """Return the total at the gateway that this operation would raise."""
    return transaction.refunded if operation.kind == OperationKind.REFUND else transaction.captured


def before_sending(operation: Operation, transaction: Transaction) -> Judged:
    """Return from a fresh lookup whether a requested operation may be sent.

    The lookup must show the totals that the books had at the request: the request was decided on those. What
    was captured in full meanwhile (by the gateway itself, or by hand in its interface) counts as done.
    """
    if operation.identifier in transaction.reconciliations:
        return Judged(Fate.DONE, "by_identifier")
    meaning = read(transaction)
    if operation.kind == OperationKind.RELEASE:
        return _before_release(transaction, meaning)
    if meaning not in MONEY:
        return _not_sure(transaction, meaning)
    before, total = operation.total_before or 0, total_of(operation, transaction)
    left = left_to(operation.kind, transaction)
    if total == before:
        if left >= operation.amount:
            return Judged(Fate.DUE, "books_agree")
        return _impossible(
            ErrorCode.NOTHING_LEFT,
            kind=operation.kind,
            left=left,
            amount=operation.amount,
            currency=operation.currency,
        )
    if total == before + operation.amount or (left <= 0 and total > before + operation.amount):
        return Judged(Fate.DONE, "already_done_at_the_gateway")
    return _impossible(ErrorCode.TOTAL_CHANGED, total=total, before=before, currency=operation.currency)


def after_sending(operation: Operation, transaction: Transaction) -> Judged:
    """Say from a lookup whether an operation that may have been sent was done."""
    if operation.identifier in transaction.reconciliations:
        return Judged(Fate.DONE, "by_identifier")
    meaning = read(transaction)
    if operation.kind == OperationKind.RELEASE:
        # Some providers turn a release into a refund (D8).
        if meaning in {PaymentMeaning.NOTHING, PaymentMeaning.REFUNDED}:
            return Judged(Fate.DONE, "by_status")
        if meaning is PaymentMeaning.RESERVED:
            return Judged(Fate.ABSENT, "still_reserved")
        return _unclear(ErrorCode.RELEASE_UNCLEAR, status=transaction.status)
    before, total = operation.total_before or 0, total_of(operation, transaction)
    if total == before + operation.amount:
        return Judged(Fate.DONE, "by_total")
    if total == before:
        return Judged(Fate.ABSENT, "total_unchanged")
    return _unclear(
        ErrorCode.TOTAL_UNCLEAR,
        total=total,
        before=before,
        amount=operation.amount,
        currency=operation.currency,
    )


def _before_release(transaction: Transaction, meaning: PaymentMeaning) -> Judged:
    if meaning is PaymentMeaning.NOTHING or (
        meaning is PaymentMeaning.REFUNDED and transaction.captured == transaction.refunded
    ):
        return Judged(Fate.DONE, "already_done_at_the_gateway")
    if meaning is PaymentMeaning.RESERVED:
        return Judged(Fate.DUE, "books_agree")
    if meaning in MONEY:
        return _impossible(ErrorCode.ALREADY_CAPTURED)
    return _not_sure(transaction, meaning)


def _not_sure(transaction: Transaction, meaning: PaymentMeaning) -> Judged:
    if meaning is PaymentMeaning.NOTHING:
        return _impossible(ErrorCode.HOLDS_NO_MONEY, status=transaction.status)
    return _unclear(ErrorCode.STATUS_UNCLEAR, status=transaction.status)


def _impossible(code: ErrorCode, **facts: object) -> Judged:
    return Judged(Fate.IMPOSSIBLE, error=error(code, **facts))


def _unclear(code: ErrorCode, **facts: object) -> Judged:
    return Judged(Fate.UNCLEAR, error=error(code, **facts))

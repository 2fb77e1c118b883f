"""Why a checkout is in its state, in sentences for people who answer the shop's questions.

`explain` is a pure function of one `Record`: which state, for which reason, on which evidence, what happens
next and when, and what an operator may do. Evidence is read from the audit trail and never guessed. Amounts
are decimals with their currency, times UTC; nothing of the customer and no secret is in a record, so none can
be in a sentence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from orchestrator.domain import sentences
from orchestrator.domain.attention import PROBLEMS
from orchestrator.domain.last_error import ErrorCode
from orchestrator.domain.payment_meaning import PaymentMeaning
from orchestrator.domain.payment_status import PaymentStatus
from orchestrator.domain.records import Cause, OperationKind, OperationState, left_to
from orchestrator.domain.states import CLOSED, ENDED, UNOFFERED, State
from orchestrator.explain import advice, trail
from orchestrator.explain.record import Entry, Queue, Record, circuit_of, gather, moment

if TYPE_CHECKING:
    from datetime import datetime

    from orchestrator.domain.records import Operation

_NEXT_CALL: Final = {
    State.RECEIVED: "a worker logs in at the gateway for it",
    State.AUTHENTICATED: "a worker opens the payment session at the gateway",
    State.SESSION_CREATED: "a worker lists the payment methods at the gateway",
    State.METHODS_FETCHED: "a worker hands the session to the shop",
}
_NEXT_LOOKUP: Final = {
    State.CALLBACK_RECEIVED: "a worker looks this order up at the gateway",
    State.AWAITING_PAYMENT: "a worker looks the order up at the gateway, with or without a callback",
    State.COMPLETED: "a worker looks for captures, refunds and chargebacks that were made elsewhere",
}
_STANDS: Final = {
    State.RECEIVED: "has been received, and no gateway call for it has succeeded yet",
    State.AUTHENTICATED: "is known to the gateway by a token, and has no payment session yet",
    State.SESSION_CREATED: "has a payment session, and its payment methods are not listed yet",
    State.METHODS_FETCHED: "has its session and payment methods, and is about to be offered",
    State.AWAITING_PAYMENT: "waits for the shopper to pay",
    State.CALLBACK_RECEIVED: "received a callback, which is being verified with the gateway",
    State.COMPLETED: "is completed",
    State.FAILED: "failed before anything was offered to a shopper",
    State.EXPIRED: "expired without a payment",
    State.CANCELLED: "was cancelled",
}
_HOLDS: Final = {
    PaymentStatus.UNPAID: "no payment is held",
    PaymentStatus.AUTHORIZED: "its payment is authorized",
    PaymentStatus.PARTIALLY_CAPTURED: "its payment is captured in part",
    PaymentStatus.CAPTURED: "its payment is captured",
    PaymentStatus.PARTIALLY_REFUNDED: "its payment is refunded in part",
    PaymentStatus.REFUNDED: "its payment is refunded",
    PaymentStatus.RELEASED: "its payment is released",
    PaymentStatus.CHARGED_BACK: "its payment is charged back",
}
_CAUSES: Final = {
    Cause.ASKED: "requested",
    Cause.AUTOMATIC: "started by the orchestrator, as the order requires",
    Cause.RETURNED: "started to return the money",
}


@dataclass(frozen=True, slots=True)
class Next:
    """What happens next; `at` is None where it happens at once, or where nothing more happens by itself."""

    what: str
    at: datetime | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """One checkout in sentences, each complete by itself."""

    summary: str
    because: tuple[str, ...]
    evidence: tuple[str, ...]
    next: Next
    you_may: tuple[str, ...]


def explain(record: Record) -> Explanation:
    """Explain one checkout; pure, and total over all states, reasons for a lookup and operations."""
    return Explanation(
        summary=_summary(record),
        because=tuple(_because(record)),
        evidence=tuple(trail.told(record)),
        next=_next(record),
        you_may=tuple(advice.ways(record)),
    )


def _summary(record: Record) -> str:
    late = " (the money came after it had been closed)" if record.late and not record.from_payment else ""
    person = " It needs a decision." if record.attention is not None else ""
    if record.deciding:
        person = " A worker carries out the decision."
    busy = {operation.kind for operation in record.open_operations}
    doing = f" A {' and a '.join(sorted(busy))} is under way." if busy else ""
    view = _STANDS[record.state]
    if _undecided_payment(record):
        view = "holds a payment that does not fit"
        person = person if record.deciding else " It waits for a decision."
    if record.from_payment and record.state is State.FAILED:
        view = "was handed over by no shop, and the gateway shows a payment for it"
    if record.state is State.COMPLETED:
        view = f"{view}: {_HOLDS[record.payment_status]}"
        if record.from_payment:
            view += ", for which no shop has handed an order over"
    return f"Order {record.order_ref} for {record.price(record.amount)} {view}{late}.{doing}{person}"


def _undecided_payment(record: Record) -> bool:
    """Whether it is offered, and waits for a decision about a payment that does not count as its payment."""
    return (
        record.state in {State.AWAITING_PAYMENT, State.CALLBACK_RECEIVED}
        and record.attention is not None
        and record.attention.code in PROBLEMS
    )


# ── Because ───────────────────────────────────────────────────────────────────────────────────────────────


def _because(record: Record) -> list[str]:
    said = advice.attention(record)
    if record.paused_at is not None:
        said.append(
            f"Its merchant is paused since {moment(record.paused_at)}: no gateway call is made for it, and nothing of it is lost."
        )
    if record.erased_at is not None:
        said.append(
            f"Its personal data was erased at {moment(record.erased_at)}: the order, the content of callbacks and reasons of commands "
            "can no longer be read; money and trail are as before."
        )
    if record.state is State.COMPLETED:
        said += _money(record)
    elif record.from_payment and record.state in CLOSED:
        said.append("It exists here only so that its money has a place to be decided on.")
    elif record.state in CLOSED:
        said.append(
            "The gateway shows no money that was taken for this order, as far as the last lookup shows."
        )
    elif record.state in UNOFFERED:
        said += _opening(record)
    else:
        said += _offered(record)
    said += [_operation(record, operation) for operation in record.operations]
    said += [
        f"At {moment(command.requested_at)} {trail.who(command.actor)} requested a {command.kind}, "
        + (
            "which waits for the result of the previous operation."
            if command in record.blocked_commands
            else "which no worker has executed yet."
        )
        for command in record.open_commands
    ]
    if record.callbacks == 1:
        said.append("A callback of the gateway waits to be read.")
    elif record.callbacks:
        said.append(f"{record.callbacks} callbacks of the gateway wait to be read.")
    return said


def _opening(record: Record) -> list[str]:
    offered = record.offered_at is not None
    said = ["The shopper cannot pay it now." if offered else "Nothing has been offered to the shopper yet."]
    if record.cancel_requested_at is not None:
        said.append(
            f"At {moment(record.cancel_requested_at)} a cancel was requested{trail.cancelled_by(record)}."
        )
    tries = "once" if record.attempts == 1 else f"{record.attempts} times in a row"
    return said + _failing(record, f"The present step has failed {tries}, the last time because of this")


def _offered(record: Record) -> list[str]:
    said = []
    if record.cancel_requested_at is not None:
        said.append(
            f"At {moment(record.cancel_requested_at)} a cancel was requested{trail.cancelled_by(record)}: the session is no longer "
            "handed out."
        )
    elif record.now >= record.deadline:
        said.append(f"Its deadline passed at {moment(record.deadline)}: the session is no longer handed out.")
    else:
        said.append(f"The shopper may pay until the deadline, {moment(record.deadline)}.")
        if record.token_expires_at is not None and record.token_expires_at <= record.now:
            said.append(
                f"The session's token expired at {moment(record.token_expires_at)}, so the shop is shown no session until it is renewed."
            )
    if any(payment.meaning == PaymentMeaning.OPEN for payment in record.payments):
        said.append(
            "A payment is open: it may still become money, so nothing is expired or cancelled meanwhile."
        )
    return said + _failing(record, "The last lookup at the gateway failed")


def _failing(record: Record, said: str) -> list[str]:
    if _circuit_open(record):
        return [_unavailable(record)]
    return [f"{said}: {trail.plain(sentences.or_none(record.last_error))}."] if record.attempts else []


def _circuit_open(record: Record) -> bool:
    return record.last_error is not None and record.last_error.code is ErrorCode.CIRCUIT_OPEN


def _unavailable(record: Record) -> str:
    """Say why calls to the gateway are not made: the last failure, where known. `_next` says until when."""
    counts = "that counts as no failure of this order"
    if record.circuit is not None:
        return (
            f"The gateway is unavailable since {moment(record.circuit.since)}, and the last call failed because of this: "
            f"{trail.plain(record.circuit.reason)}. Calls to it are paused; {counts}."
        )
    failed = trail.last_failure(record)
    return (
        "Calls to the gateway are paused for a moment, because they failed repeatedly or it asked for fewer; "
        f"{counts}.{f' {failed}' if failed else ''}"
    )


def _money(record: Record) -> list[str]:
    price = record.price
    paying = record.accepted
    names = ", ".join(payment.transaction_id for payment in paying)
    named = (
        f"Transactions {names} together"
        if len(paying) > 1
        else f"Transaction {names}"
        if names
        else "Its payment"
    )
    said = [
        f"{named}: {price(record.reserved)} reserved, {price(record.captured)} captured, {price(record.refunded)} refunded."
    ]
    extra = sum(payment.surcharge for payment in paying)
    if extra:
        said.append(f"The gateway names a surcharge of {price(extra)} for the way of payment.")
    left = left_to(OperationKind.CAPTURE, record)
    if record.charged_back:
        said.append(f"{price(record.charged_back)} were charged back by the shopper's bank.")
    if left > 0:
        until = (
            f", which is sure to work until {moment(record.reserved_until)}" if record.reserved_until else ""
        )
        by = (
            "the gateway was requested to capture by itself"
            if record.auto_capture
            else "it is captured when the shop or its policy requires it"
        )
        said.append(f"{price(left)} is not captured yet: {by}{until}.")
    if record.late and record.from_payment:
        said.append("The payment came first: no shop had handed this order number over.")
    elif record.late:
        said.append("The money was found after the checkout had ended without it.")
    return said


def _operation(record: Record, operation: Operation) -> str:
    amount = record.price(operation.amount, operation.currency)
    begun = f"A {operation.kind} of {amount} on transaction {operation.transaction_id}, {_CAUSES[operation.cause]} at {moment(operation.requested_at)},"
    error = f": {trail.plain(sentences.of(operation.last_error))}" if operation.last_error is not None else ""
    match operation.state:
        case OperationState.REQUESTED:
            return f"{begun} has not left for the gateway yet{error}."
        case OperationState.SUBMITTED:
            return f"{begun} may have left for the gateway{_at(operation.submitted_at)}, and its answer is not in; it is not sent twice."
        case OperationState.UNKNOWN:
            return (
                f"{begun} left for the gateway{_at(operation.submitted_at)}, and its result is unknown{error}; it is not sent again "
                "while the gateway's books may still show it."
            )
        case OperationState.SUCCEEDED:
            return f"{begun} was done{_at(operation.settled_at)}."
        case _:
            return f"{begun} was refused{_at(operation.settled_at)}{error}."


def _at(when: datetime | None) -> str:
    return f" at {moment(when)}" if when is not None else ""


# ── Next ──────────────────────────────────────────────────────────────────────────────────────────────────


def _next(record: Record) -> Next:
    """Say what happens next and when: the due time says when, and the state says what."""
    if record.leased_until is not None:
        until = moment(record.leased_until)
        what = f"A worker is busy with it at this moment; should that worker stop, another takes over after {until}."
        return Next(what, record.leased_until)
    if record.paused_at is not None and record.due_at is not None:
        what = "It waits until an operator resumes the merchant; within a minute after that"
        return Next(f"{what} {_what(record)}.{_after(record)}", None)
    if record.due_at is None:
        return Next(_settled(record), None)
    resumed = record.circuit.until if record.circuit is not None else record.due_at
    at = max(record.due_at, resumed)
    due = at <= record.now
    if not due and (_circuit_open(record) or resumed > record.due_at):
        return Next(f"Calls to its gateway are paused: at {moment(at)} {_what(record)}.{_after(record)}", at)
    if record.slot_reserved and not due:
        return Next(
            f"Its lookup waits for its slot within the merchant's budget of lookups{_behind(record.queue)}: at {moment(record.due_at)} "
            f"{_what(record)}.{_after(record)}",
            record.due_at,
        )
    when = "As soon as a worker is free" if due else f"At {moment(record.due_at)}"
    return Next(f"{when} {_what(record)}.{_after(record)}", record.due_at)


def _behind(queue: Queue | None) -> str:
    if queue is None or not queue.before:
        return ""
    others = (
        "another one, which has" if queue.before == 1 else f"{queue.before} others, the oldest of which has"
    )
    return f", behind {others} waited for {queue.age:.0f} s"


def _settled(record: Record) -> str:
    ended = f" at {moment(record.watch_end)}" if record.watch_end is not None else ""
    return f"Nothing more happens by itself: the watch for late money, refunds and chargebacks ran out{ended}; a callback or a command wakes it."


def _what(record: Record) -> str:
    free = [command for command in record.open_commands if command not in record.blocked_commands]
    if free:
        kinds = ", ".join(dict.fromkeys(command.kind for command in free))
        return f"a worker executes the requested command ({kinds})"
    if record.callbacks:
        return "a worker reads the callbacks and looks the order up at the gateway"
    if record.open_operations:
        operation = record.open_operations[0]
        if operation.state == OperationState.REQUESTED:
            return f"a worker sends the {operation.kind} to the gateway"
        return f"a worker looks up the result of the {operation.kind}"
    if record.state in UNOFFERED:
        if record.cancel_requested_at is not None:
            return "a worker cancels it, since it was never offered"
        again = " once more" if record.attempts else ""
        return _NEXT_CALL[record.state] + again
    if _undecided_payment(record):
        return "a worker checks at the gateway whether the payment has changed"
    return _NEXT_LOOKUP.get(record.state, "a worker looks for late money at the gateway")


def _after(record: Record) -> str:
    """Return what the step after the next one depends on, where that is known."""
    if record.state in UNOFFERED and record.cancel_requested_at is None:
        return f" If it has not been offered by {moment(record.deadline)}, it fails."
    if _undecided_payment(record):
        return " While the gateway shows that payment, it is neither completed nor ended before the decision."
    if record.state in {State.AWAITING_PAYMENT, State.CALLBACK_RECEIVED}:
        if record.cancel_end is not None:
            return f" The first lookup after {moment(record.cancel_end)} that shows no payment cancels it."
        return (
            f" The first lookup that shows no payment, {record.deadline_grace:.0f} s or more after the deadline of "
            f"{moment(record.deadline)}, expires it."
        )
    if record.state in ENDED and record.watch_end is not None and record.watch_end > record.now:
        return f" It is watched until {moment(record.watch_end)}, and longer while anything is unsettled."
    return ""

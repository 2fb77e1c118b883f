"""Captures, refunds and releases under the lease: look it up, write `submitted`, send, settle; or look for what became of one.

`submitted` makes the lease last for the call. The call leaves only after that has landed, and only while that lease outlasts it: the
lease guard is asked when the body of the request goes to the socket. A worker that finds a submitted or unknown operation never sends it; it is looked up, and only an absence after the
quiet period makes it `requested` again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, Unpack, assert_never

from orchestrator import log
from orchestrator.audit import Action
from orchestrator.domain import decisions, operations, reconciliation, schedule
from orchestrator.domain.operations import Fate
from orchestrator.domain.records import Cause, OperationKind, OperationState, Role, left_to
from orchestrator.gateway.outcomes import (
    FINAL_STATUSES,
    Busy,
    Done,
    NotSent,
    Refused,
    Throttled,
    Unauthorized,
    Unknown,
)
from orchestrator.processing import complete
from orchestrator.processing.step import CREDENTIALS, MANY_FAILURES, STUCK, Failure, Step, retry
from orchestrator.store.checkouts import KEEP, Event, operation_holds, tick

if TYPE_CHECKING:
    from orchestrator.domain.records import Operation
    from orchestrator.domain.transaction import Transaction
    from orchestrator.gateway.lease_guard import LeaseGuard
    from orchestrator.gateway.outcomes import Outcome
    from orchestrator.gateway.payments import Movement
    from orchestrator.store.checkouts.change import Changes, Kept

_log = log.get(__name__)

REFUSALS: Final = frozenset({"error", "failed", "cancelled", "declined"})
"""Results (lower case) by which the gateway says that it did nothing; `error` is also its answer to what is done already."""
REJECTED: Final = "operation_rejected"
_DONE: Final = {
    OperationKind.CAPTURE: "checkout.captured",
    OperationKind.REFUND: "checkout.refunded",
    OperationKind.RELEASE: "checkout.released",
}


async def operate(step: Step, operation: Operation) -> None:
    """Take the next step of an operation that is not settled."""
    if operation.id not in step.proven:
        held = step.held
        if not operation_holds(step.context.encryptor, held.id, held.merchant_id, operation):
            await _refuse_foreign(step, operation)
            return
        step.proven.add(operation.id)
    transaction = await _look(step, operation)
    if transaction is None:
        return
    if operation.state == OperationState.REQUESTED:
        await _submit(step, operation, transaction)
    else:
        await _find_out(step, operation, transaction)


async def _refuse_foreign(step: Step, operation: Operation) -> None:
    """End an operation that no worker of ours wrote as it stands, unsent, and tell a person: somebody wrote into the database."""
    why = "its row was not written by a worker of this installation, or was changed since"
    _log.error(
        "operation_not_authentic", security=True, operation=str(operation.id), kind=operation.kind, reason=why
    )
    said = f"{REJECTED}: {operation.kind} {operation.id} was not sent: {why}; compare the gateway's books and the audit trail"
    attention = complete.sticky_attention(step) or said
    news = attention != step.held.attention
    await _write(
        step, Action.MONEY_REJECTED, replace(operation, state=OperationState.REJECTED, last_error=why), {"why": why, "authentic": False},
        attention=attention, events=(Event("checkout.attention", {"reason": attention}),) if news else (), due_in=0.0,
    )  # fmt: skip


async def _look(step: Step, operation: Operation) -> Transaction | None:
    """Ask the gateway for the transaction; None if it could not say, and that is written."""
    outcome = await step.context.gateway.find_payments(step.account, transaction_id=operation.transaction_id)
    if not isinstance(outcome, Done):
        await step.fail(retry(outcome), "payments")
        return None
    named = (operation.transaction_id, step.held.order_ref)
    found = [one for one in outcome.value.transactions if (one.transaction_id, one.order_ref) == named]
    if found:
        return found[0]
    reason = f"{operations.UNCLEAR}: the gateway does not know transaction {operation.transaction_id} of operation {operation.id} any more"
    await _unclear(step, operation, reason, why="transaction_unknown")
    return None


async def _submit(step: Step, operation: Operation, transaction: Transaction) -> None:
    judged = operations.before_sending(operation, transaction)
    match judged.fate:
        case Fate.DUE:
            await _send(step, operation, transaction)
        case Fate.DONE:
            await _succeed(step, operation, transaction, by=judged.why)
        case Fate.IMPOSSIBLE:
            await _reject(step, operation, judged.why, transaction)
        case Fate.UNCLEAR | Fate.ABSENT:
            await _unclear(
                step,
                operation,
                f"{operations.UNCLEAR}: {judged.why}",
                why=judged.why,
                transaction=transaction,
            )
        case _:
            assert_never(judged.fate)


async def _send(step: Step, operation: Operation, transaction: Transaction) -> None:
    total = step.settings.gateway_total_timeout
    before = operations.total_of(operation, transaction)
    submitted = replace(
        operation, state=OperationState.SUBMITTED, total_before=before, attempts=operation.attempts + 1
    )
    await _write(
        step, Action.MONEY_SUBMITTED, submitted, {"totalBefore": before, "attempt": submitted.attempts},
        attempts=step.held.attempts, due_in=KEEP, extends=operations.lease_for(step.settings),
    )  # fmt: skip
    operation = next(one for one in step.held.operations if one.id == submitted.id)
    # Of this lease, and not of its renewals: whoever takes over counts the quiet period from `submitted`.
    until = step.held.lease_ends

    def lease_lasts() -> bool:
        return until - tick() > total

    outcome = await _call(step, operation, lease_lasts)
    match outcome:
        case Done(movement) if movement.result == "success":
            moved = movement.transaction
            known = moved if moved is not None and moved.transaction_id == operation.transaction_id else None
            await _succeed(step, operation, known, by="answer")
        case Done(movement) if movement.result in REFUSALS:
            await _answered_no(step, operation, movement.result)
        case Done(movement):
            # Open, incomplete, a system error …: it may still take effect.
            await _lost(step, operation, Failure(f"the gateway answered {movement.result[:40]}"))
        case NotSent() | Busy() | Throttled() | Unauthorized():
            await _again(step, operation, retry(outcome))
        case Refused(status) if status in FINAL_STATUSES:
            await _answered_no(step, operation, f"{status} {outcome.code}".strip())
        case Refused() | Unknown():
            # A firewall's or a proxy's word says nothing about what stands behind it.
            await _lost(step, operation, retry(outcome))
        case _:
            assert_never(outcome)


async def _call(step: Step, operation: Operation, lease_guard: LeaseGuard) -> Outcome[Movement]:
    gateway, account = step.context.gateway, step.account
    number = operation.transaction_id
    if operation.kind == OperationKind.RELEASE:
        return await gateway.release(account, transaction_id=number, lease_guard=lease_guard)
    call = gateway.capture if operation.kind == OperationKind.CAPTURE else gateway.refund
    return await call(
        account, transaction_id=number, amount=operation.amount, currency=operation.currency,
        identifier=operation.identifier, lease_guard=lease_guard,
    )  # fmt: skip


async def _answered_no(step: Step, operation: Operation, said: str) -> None:
    """The gateway refused: because it is done already (that is success), or because it will not."""
    transaction = await _look(step, operation)
    if transaction is None:
        return
    judged = operations.after_sending(operation, transaction)
    left = left_to(operation.kind, transaction)
    if judged.fate is Fate.DONE:
        await _succeed(step, operation, transaction, by=judged.why)
    elif operation.kind != OperationKind.RELEASE and left <= 0 and judged.fate is Fate.UNCLEAR:
        await _succeed(step, operation, transaction, by="already_done_at_the_gateway")
    else:
        await _reject(step, operation, f"the gateway answered {said}", transaction)


async def _find_out(step: Step, operation: Operation, transaction: Transaction) -> None:
    """Look for what became of an operation that may have been sent; this never sends it."""
    judged = operations.after_sending(operation, transaction)
    if judged.fate is Fate.DONE:
        await _succeed(step, operation, transaction, by=judged.why)
        return
    quiet = operations.quiet_after(step.settings, operation)
    since = (step.held.now() - (operation.submitted_at or step.held.now())).total_seconds()
    if since < quiet:
        # Its call may still be on its way; the gateway is asked ever more rarely meanwhile.
        soon = schedule.next_lookup(step.settings, step.held.lookups)
        await _not_known(
            step, operation, "its call may still be on its way", wait=min(quiet - since + 0.05, soon)
        )
    elif judged.fate is Fate.ABSENT and operation.attempts >= operations.MOST_SENDS:
        why = f"it was sent {operation.attempts} times, and the gateway's books never had it"
        await _unclear(step, operation, f"{operations.UNCLEAR}: {why}", why=why, transaction=transaction)
    elif judged.fate is Fate.ABSENT:
        await _write(
            step, Action.MONEY_WITHDRAWN, replace(operation, state=OperationState.REQUESTED), {"why": judged.why},
            attempts=step.held.attempts, payments=(reconciliation.seen_alone(step.held, transaction),), due_in=KEEP,
        )  # fmt: skip
    else:
        await _unclear(
            step, operation, f"{operations.UNCLEAR}: {judged.why}", why=judged.why, transaction=transaction
        )


# A settled operation leaves the due time at now: a lookup of the checkout as a whole follows, which also finds its next due time.


async def _succeed(step: Step, operation: Operation, transaction: Transaction | None, *, by: str) -> None:
    if transaction is None:
        # The answer did not say what stands now, and nothing may be decided on books that do not have it.
        transaction = await _look(step, operation)
        if transaction is None:
            return
    held = step.held
    accepted = operation.transaction_id in held.accepted
    seen = reconciliation.seen_alone(held, transaction)
    amounts: tuple[int, int, int] | Kept = KEEP
    reserved_until: Kept | None = KEEP
    if accepted:
        parts = [
            one
            for one in held.known
            if one.role == Role.ACCEPTED and one.transaction_id != seen.transaction_id
        ]
        amounts = (
            seen.reserved + sum(one.reserved for one in parts),
            seen.captured + sum(one.captured for one in parts),
            seen.refunded + sum(one.refunded for one in parts),
        )
        if transaction.captured >= transaction.reserved or operation.kind == OperationKind.RELEASE:
            reserved_until = None
    told = {
        "operationId": operation.id, "transactionId": operation.transaction_id, "amount": operation.amount,
        "currency": operation.currency, "cause": operation.cause, "captured": seen.captured, "refunded": seen.refunded,
    }  # fmt: skip
    settled = replace(operation, state=OperationState.SUCCEEDED, last_error=None)
    attention = held.attention
    word = reconciliation.word_of(attention)
    returned = operation.cause == Cause.RETURNED and word in {
        "late_payment",
        "unknown_order",
        "surplus_payment",
        *decisions.PROBLEMS,
    }
    others = any(one.open and one.id != operation.id for one in held.operations)
    if word in {operations.UNCLEAR, REJECTED} or (returned and not others):
        attention = None
    await _write(
        step, Action.MONEY_SUCCEEDED, settled, {"by": by}, attention=attention, last_error=None,
        events=(Event(_DONE[operation.kind], told),), due_in=0.0, payments=(seen,), money=amounts, reserved_until=reserved_until,
    )  # fmt: skip


async def _reject(step: Step, operation: Operation, why: str, transaction: Transaction | None) -> None:
    rejected = replace(operation, state=OperationState.REJECTED, last_error=why)
    told = {
        "operationId": operation.id,
        "kind": operation.kind,
        "transactionId": operation.transaction_id,
        "reason": why,
    }
    attention = step.held.attention
    events = [Event("checkout.operation_rejected", told)]
    if operation.cause != Cause.ASKED:
        # Nobody waits for this answer, so somebody must be told.
        said = (
            f"{REJECTED}: the {operation.kind} of transaction {operation.transaction_id} was not done: {why}"
        )
        attention = complete.sticky_attention(step) or said
        if attention != step.held.attention:
            events.append(Event("checkout.attention", {"reason": attention}))
    payments = () if transaction is None else (reconciliation.seen_alone(step.held, transaction),)
    await _write(
        step, Action.MONEY_REJECTED, rejected, {"why": why}, attention=attention, payments=payments,
        events=tuple(events), due_in=0.0,
    )  # fmt: skip


async def _again(step: Step, operation: Operation, failure: Failure) -> None:
    """Nothing reached the gateway: it is to be sent again, later."""
    held = step.held
    attempts = held.attempts + (not failure.congested)
    due_in = schedule.back_off(step.settings, attempts, at_least=failure.at_least)
    attention = held.attention
    if failure.credentials:
        attention = step.cleared_attention() or CREDENTIALS
    elif attempts > MANY_FAILURES and attention is None:
        attention = f"{STUCK}: {attempts} failed calls in a row, last {failure.reason}"
    # It did not leave, so it does not count as sent.
    waiting = replace(
        operation, state=OperationState.REQUESTED, attempts=operation.attempts - 1, last_error=failure.reason
    )
    await _write(
        step, Action.MONEY_WITHDRAWN, waiting, {"why": "not_sent", "reason": failure.reason}, attempts=attempts,
        last_error=failure.reason, due_in=due_in, attention=attention,
        events=(Event("checkout.attention", {"reason": attention}),) if attention != held.attention else (),
    )  # fmt: skip


async def _lost(step: Step, operation: Operation, failure: Failure) -> None:
    """Sent, and no answer: what came of it shows in the gateway's books, maybe soon."""
    await _not_known(step, operation, failure.reason, wait=schedule.next_lookup(step.settings, 1))


# An operation that waits keeps nothing else from happening: the checkout's ordinary step follows under the same lease.


async def _not_known(step: Step, operation: Operation, why: str, *, wait: float) -> None:
    step.waits[operation.id] = wait
    if operation.state != OperationState.UNKNOWN:
        await _write(
            step, Action.MONEY_UNKNOWN, replace(operation, state=OperationState.UNKNOWN, last_error=why), {"why": why},
            attempts=step.held.attempts, due_in=KEEP,
        )  # fmt: skip


async def _unclear(
    step: Step, operation: Operation, reason: str, *, why: str, transaction: Transaction | None = None
) -> None:
    """The gateway's books fit neither outcome: keep looking, and tell a person."""
    held = step.held
    step.waits[operation.id] = schedule.next_lookup(step.settings, held.lookups + 5)
    # What a person is asked already comes first; this is asked when that is decided.
    attention = step.cleared_attention() or reason
    if operation.last_error == reason and attention == held.attention:
        return
    state = operation.state if operation.state == OperationState.REQUESTED else OperationState.UNKNOWN
    payments = () if transaction is None else (reconciliation.seen_alone(held, transaction),)
    news = attention != held.attention
    await _write(
        step, Action.ATTENTION_RAISED if news else Action.MONEY_UNKNOWN,
        replace(operation, state=state, last_error=reason), {"why": why}, attention=attention, attempts=held.attempts,
        payments=payments, due_in=KEEP, events=(Event("checkout.attention", {"reason": attention}),) if news else (),
    )  # fmt: skip


async def _write(
    step: Step,
    action: Action,
    operation: Operation,
    evidence: dict[str, object],
    **changes: Unpack[Changes],
) -> None:
    about = {
        "operation": str(operation.id), "kind": operation.kind, "transaction": operation.transaction_id,
        "amount": operation.amount, "currency": operation.currency, "cause": operation.cause,
    }  # fmt: skip
    await step.write(
        None, action, evidence={**about, **evidence}, operations=(operation,), **changes,
    )  # fmt: skip

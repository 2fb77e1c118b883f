"""Captures, refunds and releases under the lease: look up, write `submitted`, send, settle; or find the
result of a sent one.

Writing `submitted` extends the lease over the call. The call is sent only after that write has landed, and
only while that lease outlasts it: the lease guard checks when the request's body goes to the socket. A worker
that finds a submitted or unknown operation never sends it; it looks it up, and only an absence after the
quiet period makes it `requested` again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, Unpack, assert_never

from orchestrator import log
from orchestrator.audit import Action
from orchestrator.domain import binding, events, operations, schedule, sentences
from orchestrator.domain.attention import RETURNABLE, Attention, AttentionCode, PaymentAmount
from orchestrator.domain.claimed_checkout import tick
from orchestrator.domain.last_error import ErrorCode, error
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
from orchestrator.processing.step import (
    CREDENTIALS,
    MANY_FAILURES,
    Failure,
    Step,
    retry,
    stuck,
)
from orchestrator.store.checkouts import KEEP, operation_holds
from orchestrator.store.checkouts.change import Keep

if TYPE_CHECKING:
    from orchestrator.domain.last_error import LastError
    from orchestrator.domain.records import Operation
    from orchestrator.domain.transaction import Transaction
    from orchestrator.gateway.lease_guard import LeaseGuard
    from orchestrator.gateway.outcomes import Outcome
    from orchestrator.gateway.payments import Movement
    from orchestrator.store.checkouts.change import Changes, Kept

_log = log.get(__name__)

REFUSALS: Final = frozenset({"error", "failed", "cancelled", "declined"})
"""Results (lower case) by which the gateway says that it did nothing; `error` is also its answer to a
repeated operation."""


async def operate(step: Step, operation: Operation) -> None:
    """Take the next step of an operation that is not settled."""
    if operation.id not in step.proven:
        held = step.held
        if not operation_holds(step.context.encryptor, held.id, held.merchant_id, operation):
            await _refuse_foreign(step, operation)
            return
        step.proven.add(operation.id)
    transaction = await _lookup(step, operation)
    if transaction is None:
        return
    if operation.state == OperationState.REQUESTED:
        await _submit(step, operation, transaction)
    else:
        await _find_out(step, operation, transaction)


async def _refuse_foreign(step: Step, operation: Operation) -> None:
    """End an operation that is not stored as a worker wrote it, unsent, and raise attention: the database was
    written to from outside.
    """
    wrong = error(ErrorCode.NOT_AUTHENTIC)
    why = sentences.of(wrong)
    _log.error(
        "operation_not_authentic", security=True, operation=str(operation.id), kind=operation.kind, reason=why
    )
    attention = complete.sticky_attention(step) or _rejected(operation, wrong, authentic=False)
    await _write(
        step,
        Action.MONEY_REJECTED,
        replace(operation, state=OperationState.REJECTED, last_error=wrong),
        {"code": wrong.code, "why": why, "authentic": False},
        attention=attention,
        events=(events.operation_rejected(operation, wrong),),
        due_in=0.0,
    )


def _rejected(operation: Operation, why: LastError, *, authentic: bool = True) -> Attention:
    facts = {**_named(operation), "error": sentences.error_fact(why)}
    if not authentic:
        facts["authentic"] = False
    return Attention(code=AttentionCode.OPERATION_REJECTED, payments=(_amount(operation),), facts=facts)


def _named(operation: Operation) -> dict[str, object]:
    return {
        "operation": str(operation.id),
        "kind": operation.kind,
        "transaction": operation.transaction_id,
    }


def _amount(operation: Operation) -> PaymentAmount:
    return PaymentAmount(
        transaction_id=operation.transaction_id, amount=operation.amount, currency=operation.currency
    )


async def _lookup(step: Step, operation: Operation) -> Transaction | None:
    """Look the transaction up; None if the lookup failed (already written)."""
    outcome = await step.context.gateway.find_payments(step.account, transaction_id=operation.transaction_id)
    if not isinstance(outcome, Done):
        await step.fail(retry(outcome), "payments")
        return None
    named = (operation.transaction_id, step.held.order_ref)
    found = [
        transaction
        for transaction in outcome.value.transactions
        if (transaction.transaction_id, transaction.order_ref) == named
    ]
    if found:
        return found[0]
    about = {"transaction": operation.transaction_id, "operation": str(operation.id)}
    await _unclear(step, operation, error(ErrorCode.TRANSACTION_UNKNOWN, **about))
    return None


async def _submit(step: Step, operation: Operation, transaction: Transaction) -> None:
    judged = operations.before_sending(operation, transaction)
    match judged.fate:
        case Fate.DUE:
            await _send(step, operation, transaction)
        case Fate.DONE:
            await _succeed(step, operation, transaction, by=judged.by)
        case Fate.IMPOSSIBLE:
            await _reject(step, operation, judged.error or _NO_REASON, transaction)
        case Fate.UNCLEAR | Fate.ABSENT:
            await _unclear(step, operation, judged.error or _NO_REASON, transaction=transaction)
        case _:
            assert_never(judged.fate)


_NO_REASON: Final = error(ErrorCode.STATUS_UNCLEAR, text="no reason was noted")


async def _send(step: Step, operation: Operation, transaction: Transaction) -> None:
    total = step.settings.gateway_total_timeout
    before = operations.total_of(operation, transaction)
    submitted = replace(
        operation, state=OperationState.SUBMITTED, total_before=before, attempts=operation.attempts + 1
    )
    await _write(
        step,
        Action.MONEY_SUBMITTED,
        submitted,
        {"totalBefore": before, "attempt": submitted.attempts},
        attempts=step.held.attempts,
        due_in=KEEP,
        extends=operations.lease_for(step.settings),
    )
    operation = next(known for known in step.held.operations if known.id == submitted.id)
    # Of this lease, and not of its renewals: the next holder counts the quiet period from `submitted`.
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
            await _lost(step, operation, error(ErrorCode.GATEWAY_ANSWERED, answer=movement.result[:40]))
        case NotSent() | Busy() | Throttled() | Unauthorized():
            await _again(step, operation, retry(outcome))
        case Refused(status) if status in FINAL_STATUSES:
            await _answered_no(step, operation, f"{status} {outcome.code}".strip())
        case Refused() | Unknown():
            # An answer of a firewall or proxy says nothing about the gateway behind it.
            await _lost(step, operation, retry(outcome).error)
        case _:
            assert_never(outcome)


async def _call(step: Step, operation: Operation, lease_guard: LeaseGuard) -> Outcome[Movement]:
    gateway, account = step.context.gateway, step.account
    number = operation.transaction_id
    if operation.kind == OperationKind.RELEASE:
        return await gateway.release(account, transaction_id=number, lease_guard=lease_guard)
    call = gateway.capture if operation.kind == OperationKind.CAPTURE else gateway.refund
    return await call(
        account,
        transaction_id=number,
        amount=operation.amount,
        currency=operation.currency,
        identifier=operation.identifier,
        lease_guard=lease_guard,
    )


async def _answered_no(step: Step, operation: Operation, said: str) -> None:
    """The gateway refused: because it is done already (that is success), or because it will not."""
    transaction = await _lookup(step, operation)
    if transaction is None:
        return
    judged = operations.after_sending(operation, transaction)
    left = left_to(operation.kind, transaction)
    if judged.fate is Fate.DONE:
        await _succeed(step, operation, transaction, by=judged.by)
    elif operation.kind != OperationKind.RELEASE and left <= 0 and judged.fate is Fate.UNCLEAR:
        await _succeed(step, operation, transaction, by="already_done_at_the_gateway")
    else:
        await _reject(step, operation, error(ErrorCode.GATEWAY_ANSWERED, answer=said), transaction)


async def _find_out(step: Step, operation: Operation, transaction: Transaction) -> None:
    """Look up the result of an operation that may have been sent; this never sends it."""
    judged = operations.after_sending(operation, transaction)
    if judged.fate is Fate.DONE:
        await _succeed(step, operation, transaction, by=judged.by)
        return
    quiet = operations.quiet_after(step.settings, operation)
    since = (step.held.now() - (operation.submitted_at or step.held.now())).total_seconds()
    if since < quiet:
        # Its call may still be under way; lookups become rarer meanwhile.
        soon = schedule.next_lookup(step.settings, step.held.lookups)
        await _not_known(
            step, operation, error(ErrorCode.CALL_UNDER_WAY), wait=min(quiet - since + 0.05, soon)
        )
    elif judged.fate is Fate.ABSENT and operation.attempts >= operations.MOST_SENDS:
        never = error(ErrorCode.NEVER_IN_BOOKS, sends=operation.attempts)
        await _unclear(step, operation, never, transaction=transaction)
    elif judged.fate is Fate.ABSENT:
        await _write(
            step,
            Action.MONEY_WITHDRAWN,
            replace(operation, state=OperationState.REQUESTED),
            {"why": judged.by},
            attempts=step.held.attempts,
            payments=(binding.seen_alone(step.held, transaction),),
            due_in=KEEP,
        )
    else:
        await _unclear(step, operation, judged.error or _NO_REASON, transaction=transaction)


# A settled operation leaves the due time at now: a lookup of the checkout as a whole follows, which also
# finds its next due time.


async def _succeed(step: Step, operation: Operation, transaction: Transaction | None, *, by: str) -> None:
    if transaction is None:
        # The answer did not give the totals, and nothing may be decided on books without them.
        transaction = await _lookup(step, operation)
        if transaction is None:
            return
    held = step.held
    accepted = operation.transaction_id in held.accepted
    seen = binding.seen_alone(held, transaction)
    amounts: tuple[int, int, int] | Kept = KEEP
    reserved_until: Kept | None = KEEP
    if accepted:
        parts = [
            payment
            for payment in held.known
            if payment.role == Role.ACCEPTED and payment.transaction_id != seen.transaction_id
        ]
        amounts = (
            seen.reserved + sum(payment.reserved for payment in parts),
            seen.captured + sum(payment.captured for payment in parts),
            seen.refunded + sum(payment.refunded for payment in parts),
        )
        if transaction.captured >= transaction.reserved or operation.kind == OperationKind.RELEASE:
            reserved_until = None
    event = events.operation_succeeded(operation, change=_change(step, operation, amounts), role=seen.role)
    settled = replace(operation, state=OperationState.SUCCEEDED, last_error=None)
    attention = held.attention
    code = None if attention is None else attention.code
    returned = operation.cause == Cause.RETURNED and code in RETURNABLE
    others = any(other.open and other.id != operation.id for other in held.operations)
    about_operations = {AttentionCode.OPERATION_UNCLEAR, AttentionCode.OPERATION_REJECTED}
    if code in about_operations or (returned and not others):
        attention = None
    await _write(
        step,
        Action.MONEY_SUCCEEDED,
        settled,
        {"by": by},
        attention=attention,
        last_error=None,
        events=(event,),
        due_in=0.0,
        payments=(seen,),
        money=amounts,
        reserved_until=reserved_until,
    )


async def _reject(step: Step, operation: Operation, why: LastError, transaction: Transaction | None) -> None:
    rejected = replace(operation, state=OperationState.REJECTED, last_error=why)
    attention = step.held.attention
    if operation.cause != Cause.ASKED:
        # No caller waits for this answer, so it raises attention.
        attention = complete.sticky_attention(step) or _rejected(operation, why)
    payments = () if transaction is None else (binding.seen_alone(step.held, transaction),)
    await _write(
        step,
        Action.MONEY_REJECTED,
        rejected,
        _why(why),
        attention=attention,
        payments=payments,
        events=(events.operation_rejected(operation, why),),
        due_in=0.0,
    )


def _change(step: Step, operation: Operation, after: tuple[int, int, int] | Kept) -> int:
    """Return by how much the total that an operation is about moved with its success, in minor units.

    `after` are the totals of the checkout; KEEP where its transaction is not what pays it, and counts in none
    of them.
    """
    held = step.held
    if isinstance(after, Keep):
        return operation.amount
    match operation.kind:
        case OperationKind.CAPTURE:
            change = after[1] - held.captured
        case OperationKind.REFUND:
            change = after[2] - held.refunded
        case _:
            change = held.reserved - after[0]
    return max(change, 0)


async def _again(step: Step, operation: Operation, failure: Failure) -> None:
    """Nothing reached the gateway: it is to be sent again, later."""
    held = step.held
    attempts = held.attempts + (not failure.congested)
    due_in = schedule.back_off(step.settings, attempts, at_least=failure.at_least)
    attention = held.attention
    if failure.credentials:
        attention = step.cleared_attention() or CREDENTIALS
    elif attempts > MANY_FAILURES and attention is None:
        attention = stuck(attempts, failure.error)
    # It did not leave, so it does not count as sent.
    waiting = replace(
        operation, state=OperationState.REQUESTED, attempts=operation.attempts - 1, last_error=failure.error
    )
    await _write(
        step,
        Action.MONEY_WITHDRAWN,
        waiting,
        {"why": "not_sent", **sentences.coded(failure.error)},
        attempts=attempts,
        last_error=failure.error,
        due_in=due_in,
        attention=attention,
    )


async def _lost(step: Step, operation: Operation, why: LastError) -> None:
    """Sent, and no answer: what came of it shows in the gateway's books, maybe soon."""
    await _not_known(step, operation, why, wait=schedule.next_lookup(step.settings, 1))


# A waiting operation blocks nothing else: the checkout's ordinary step follows under the same lease.


async def _not_known(step: Step, operation: Operation, why: LastError, *, wait: float) -> None:
    step.waits[operation.id] = wait
    if operation.state != OperationState.UNKNOWN:
        await _write(
            step,
            Action.MONEY_UNKNOWN,
            replace(operation, state=OperationState.UNKNOWN, last_error=why),
            _why(why),
            attempts=step.held.attempts,
            due_in=KEEP,
        )


async def _unclear(
    step: Step, operation: Operation, why: LastError, *, transaction: Transaction | None = None
) -> None:
    """The gateway's books fit neither outcome: continue the lookups, and raise attention."""
    held = step.held
    step.waits[operation.id] = schedule.next_lookup(step.settings, held.lookups + 5)
    # An earlier question to a person stays; this one is raised once that is decided.
    attention = step.cleared_attention() or Attention(
        code=AttentionCode.OPERATION_UNCLEAR,
        payments=(_amount(operation),),
        facts={**_named(operation), "error": sentences.error_fact(why)},
    )
    news = attention.is_news(held.attention)
    if operation.last_error == why and not news:
        return
    state = operation.state if operation.state == OperationState.REQUESTED else OperationState.UNKNOWN
    payments = () if transaction is None else (binding.seen_alone(held, transaction),)
    await _write(
        step,
        Action.ATTENTION_RAISED if news else Action.MONEY_UNKNOWN,
        replace(operation, state=state, last_error=why),
        _why(why),
        attention=attention,
        attempts=held.attempts,
        payments=payments,
        due_in=KEEP,
    )


def _why(error: LastError) -> dict[str, object]:
    return {"code": error.code, "why": sentences.of(error)}


async def _write(
    step: Step,
    action: Action,
    operation: Operation,
    evidence: dict[str, object],
    **changes: Unpack[Changes],
) -> None:
    await step.write(
        None,
        action,
        evidence={**operations.facts_of(operation), **evidence},
        operations=(operation,),
        **changes,
    )

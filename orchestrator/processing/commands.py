"""Commands of people and clients. A command is executed under the lease, like every other reason to move.

A command that moves money becomes an operation of its own; it waits while its transaction has another
operation under way.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, timedelta
from typing import TYPE_CHECKING, Final, Unpack, assert_never

from orchestrator import log
from orchestrator.audit import Action
from orchestrator.domain import command_rules, events, operations, reconciliation, sentences
from orchestrator.domain.attention import PROBLEMS, RETURNABLE, AttentionCode
from orchestrator.domain.command_result import ResultCode, result
from orchestrator.domain.command_rules import CheckoutView, CommandRequest, Pending
from orchestrator.domain.events import Event, EventType
from orchestrator.domain.last_error import UNCLEAR_OPERATION, ErrorCode, error
from orchestrator.domain.payment_meaning import MONEY
from orchestrator.domain.records import (
    MOVES_MONEY,
    Cause,
    CommandKind,
    Decision,
    OperationKind,
    OperationState,
    Role,
)
from orchestrator.domain.states import UNOFFERED, State, Trigger
from orchestrator.store.checkouts import KEEP, command_holds, rival_of

if TYPE_CHECKING:
    from uuid import UUID

    from orchestrator.domain.claimed_checkout import ClaimedCheckout
    from orchestrator.domain.command_result import CommandResult
    from orchestrator.domain.records import Command
    from orchestrator.processing.step import Step
    from orchestrator.store.checkouts.change import MoveFields

_log = log.get(__name__)

ORDER_USES: Final = 4
"""One order number serves about four orders or payments at the gateway (D7, D8)."""


def wait(held: ClaimedCheckout) -> bool:
    """Return whether a command or operation can proceed without a gateway call."""
    return bool(held.commands) or (held.cancel_requested_at is not None and held.state in UNOFFERED)


async def execute(step: Step, command: Command) -> None:
    """Execute a command, turn it into an operation, or refuse it with the reason."""
    held = step.held
    if not command_holds(step.context.encryptor, held.id, held.merchant_id, command) or command.taken:
        await _refuse_foreign(step, command)
        return
    found = command_rules.rejection(_view(held), _request(command))
    if found is not None:
        await refuse(step, command, found.result)
        return
    match command.kind:
        case CommandKind.CANCEL:
            await _withdraw(step, command)
        case CommandKind.CAPTURE | CommandKind.REFUND | CommandKind.RELEASE:
            await _move_money(step, command)
        case CommandKind.RETRY:
            await _retry(step, command)
        case CommandKind.RESOLVE:
            await _resolve(step, command)
        case CommandKind.REOPEN | CommandKind.RECONCILE | CommandKind.CHANGE:
            # They are answered by what is looked up next, under this lease.
            step.answering, step.shown = command, ""
        case _:
            assert_never(command.kind)


def _request(command: Command) -> CommandRequest:
    asked = command.arguments
    decision = asked.get("decision")
    return CommandRequest(
        kind=command.kind,
        amount=None if asked.get("amount") is None else int(asked["amount"]),
        transaction_id=asked.get("transactionId"),
        expires_in=asked.get("expiresIn"),
        decision=None if decision is None else Decision(decision),
        change=asked.get("change"),
        version=command.expected_version,
    )


def _view(held: ClaimedCheckout, *, from_payment: bool = False, rival: UUID | None = None) -> CheckoutView:
    """Return the checkout's view under the lease; the last two fields are read only for a reopening."""
    under_way = (
        Pending(operation.kind, operation.transaction_id, operation.amount)
        for operation in held.operations
        if operation.open
    )
    return CheckoutView(
        id=held.id,
        merchant_id=held.merchant_id,
        order_ref=held.order_ref,
        state=held.state,
        version=held.version,
        currency=held.currency,
        amount=held.amount,
        attention=held.attention,
        payments_seen=held.known,
        under_way=tuple(under_way),
        from_payment=from_payment,
        rival=rival,
        captures_itself=held.captures_itself,
        erased=held.data_key is None,
    )


def facts_of(command: Command) -> dict[str, object]:
    """Return what the trail has of a command: not the content of a change, which may be personal data."""
    told = {name: value for name, value in command.arguments.items() if name != "change"}
    return {"command": str(command.id), "kind": command.kind, "reason": command.reason, **told}


async def _refuse_foreign(step: Step, command: Command) -> None:
    """Refuse a command that is not stored as a process wrote it, or was executed before: the database was
    written to from outside.
    """
    refused = result(ResultCode.REFUSED_REPEATED if command.taken else ResultCode.REFUSED_NOT_AUTHENTIC)
    why = sentences.of(refused)
    _log.error(
        "command_not_authentic",
        security=True,
        command=str(command.id),
        kind=command.kind,
        claimed_actor=command.actor,
        reason=why,
    )
    await step.write(
        None,
        Action.COMMAND_REFUSED,
        evidence={
            "command": str(command.id),
            "kind": command.kind,
            "claimedActor": command.actor,
            "code": refused.code,
            "refusal": why,
            "authentic": False,
        },
        attempts=step.held.attempts,
        done=((command.id, refused),),
        events=_refused_events(command, refused),
    )


async def answer(
    step: Step,
    command: Command,
    action: Action,
    answered: CommandResult,
    *,
    trigger: Trigger | None = None,
    **changes: Unpack[MoveFields],
) -> None:
    """Write what a command does, with its result; `evidence` stands beside the command's own facts."""
    changes["actor"] = command.actor
    changes["evidence"] = {**facts_of(command), **changes.get("evidence", {})}
    changes["done"] = ((command.id, answered),)
    await step.write(trigger, action, **changes)


async def refuse(step: Step, command: Command, refused: CommandResult) -> None:
    """Write the reason why nothing is done; the lease is kept."""
    await answer(
        step,
        command,
        Action.COMMAND_REFUSED,
        refused,
        evidence={"code": refused.code, "refusal": sentences.of(refused)},
        attempts=step.held.attempts,
        events=_refused_events(command, refused),
    )


def changes(held: ClaimedCheckout) -> list[Command]:
    return [command for command in held.commands if command.kind is CommandKind.CHANGE]


async def refuse_changes(step: Step, finding: reconciliation.LookupOutcome) -> None:
    """Refuse the changes that waited for a lookup, because it shows a payment or may."""
    for command in changes(step.held):
        await refuse(step, command, result(ResultCode.REFUSED_PAYMENT_SHOWN, finding=finding.value))


def _refused_events(command: Command, refused: CommandResult) -> tuple[Event, ...]:
    if command.kind not in MOVES_MONEY:
        return ()
    return (events.operation_rejected(command, refused),)


async def _withdraw(step: Step, command: Command) -> None:
    held = step.held
    if held.cancel_requested_at is not None:
        await refuse(step, command, result(ResultCode.REFUSED_CANCELLING))
        return
    # From now on the token is not handed out; a checkout that was never offered is cancelled at once, any
    # other after its grace and a lookup that shows nothing paid, pending or open.
    await answer(
        step,
        command,
        Action.CANCEL_REQUESTED,
        result(ResultCode.ACCEPTED),
        cancel_requested=True,
        lookups=0,
        attempts=held.attempts,
    )


async def cancel(step: Step) -> None:
    """Cancel a checkout that was never offered, as requested: no shopper could pay it, so there is nothing to
    wait for.
    """
    await step.end(Trigger.CANCELLED, Event(EventType.CHECKOUT_CANCELLED), {"by": "command"})


# ── Money ─────────────────────────────────────────────────────────────────────────────────────────────────


async def _move_money(step: Step, command: Command) -> None:
    held = step.held
    view, asked = _view(held), _request(command)
    payment = view.payment(asked.transaction_id)
    assert payment is not None  # noqa: S101 - the rule requires it
    kind = OperationKind(command.kind)
    # A release gives back the whole reservation.
    amount = view.left(payment, kind) if asked.amount is None else asked.amount
    operation = operations.ask(
        payment,
        kind,
        amount=amount,
        cause=Cause.ASKED,
        actor=command.actor,
        reason=command.reason,
        command_id=command.id,
    )
    # A command whose id is in the trail is never executed again.
    about = {"command": str(command.id), **operations.facts_of(operation), "reason": operation.reason}
    # It is executed under the same lease.
    await step.write(
        None,
        Action.MONEY_REQUESTED,
        actor=command.actor,
        evidence=about,
        operations=(operation,),
        attempts=0,
        due_in=KEEP,
        done=((command.id, result(ResultCode.ACCEPTED, operations=[str(operation.id)])),),
    )


# ── A person's decisions ────────────────────────────────────────────────────────────────────────────────────


async def _retry(step: Step, command: Command) -> None:
    """Reset the failures and do a status check: now, or when calls to the gateway are made again."""
    context, held = step.context, step.held
    paused = context.gateway.paused(step.account, merchant_api=held.state not in UNOFFERED)
    until = f"{(held.now() + timedelta(seconds=paused)).astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
    await answer(
        step,
        command,
        Action.COMMAND_TAKEN,
        result(ResultCode.DONE_RETRIED, **({"until": until} if paused else {})),
        attempts=0,
        lookups=0,
        attention=step.cleared_attention(poisoned=True),
        last_error=None,
    )


async def _resolve(step: Step, command: Command) -> None:
    held = step.held
    attention = held.attention
    assert attention is not None  # noqa: S101 - the rule requires it
    if attention.code is AttentionCode.OPERATION_UNCLEAR:
        await _settle(step, command)
        return
    decision = Decision(command.arguments["decision"])
    if decision is Decision.RETURN:
        await _return(step, command, attention.code)
        return
    completed = held.state is State.COMPLETED
    marks = reconciliation.marks(held, decision)
    keeps = decision is Decision.KEEP and attention.code in PROBLEMS and not completed
    about = [
        {
            "id": payment.transaction_id,
            "reserved": payment.reserved,
            "captured": payment.captured,
            "refunded": payment.refunded,
            "currency": payment.currency,
        }
        for payment in held.known
        if payment.transaction_id in marks
    ]
    await answer(
        step,
        command,
        Action.ATTENTION_CLEARED,
        result(ResultCode.DONE_KEPT if keeps else ResultCode.DONE_DECIDED),
        evidence={"attention": attention.code, "transactions": about},
        attempts=0,
        attention=None,
        # What is kept completes the order under this very lease, as soon as a lookup shows the same once
        # more.
        decided=marks or None,
        due_in=KEEP if keeps else 0.0,
    )


async def _settle(step: Step, command: Command) -> None:
    """End an operation that the gateway's books do not explain, as a person decided: done (keep), or not done
    (dismiss).
    """
    decision = Decision(command.arguments["decision"])
    unclear = [
        operation
        for operation in step.held.operations
        if operation.open
        and operation.last_error is not None
        and operation.last_error.code in UNCLEAR_OPERATION
    ]
    if decision is Decision.RETURN or not unclear:
        await refuse(step, command, result(ResultCode.REFUSED_KEEP_OR_DISMISS))
        return
    done = decision is Decision.KEEP
    state = OperationState.SUCCEEDED if done else OperationState.REJECTED
    reason = error(ErrorCode.DECIDED, state=state)
    roles = {payment.transaction_id: payment.role for payment in step.held.known}
    outcomes = [
        # The lookup that follows shows what it moved.
        events.operation_succeeded(
            operation, change=0, role=roles.get(operation.transaction_id, Role.UNKNOWN)
        )
        if done
        else events.operation_rejected(operation, reason)
        for operation in unclear
    ]
    await answer(
        step,
        command,
        Action.MONEY_SUCCEEDED if done else Action.MONEY_REJECTED,
        result(ResultCode.DONE_OPERATION_DECIDED, state=state),
        evidence={"by": "person", "operations": [str(operation.id) for operation in unclear]},
        attempts=0,
        attention=None,
        due_in=0.0,
        operations=tuple(replace(operation, state=state, last_error=reason) for operation in unclear),
        events=tuple(outcomes),
    )


async def _return(step: Step, command: Command, code: AttentionCode) -> None:
    held = step.held
    if code not in RETURNABLE:
        await refuse(step, command, result(ResultCode.REFUSED_NOT_RETURNABLE, attention=code.value))
        return
    concerned = [payment for payment in reconciliation.concerned(held) if payment.left > 0]
    unclear = [payment.transaction_id for payment in concerned if payment.meaning not in MONEY]
    if unclear:
        await refuse(step, command, result(ResultCode.REFUSED_PAYMENT_UNCLEAR, transaction=unclear[0]))
        return
    targets = reconciliation.returned(held)
    if not targets:
        await refuse(step, command, result(ResultCode.REFUSED_NOTHING_TO_RETURN))
        return
    back = tuple(
        operations.give_back(payment, actor=command.actor, reason=code.value, command_id=command.id)
        for payment in targets
    )
    ids = [str(operation.id) for operation in back]
    await answer(
        step,
        command,
        Action.MONEY_REQUESTED,
        result(ResultCode.ACCEPTED, operations=ids),
        evidence={"attention": code, "operations": ids},
        attempts=0,
        operations=back,
        due_in=KEEP,
    )


async def reopen(step: Step, verdict: reconciliation.Reconciliation) -> None:
    """Reopen a closed checkout, after a lookup that shows no money and no open payment."""
    held, command = step.held, step.answering
    assert command is not None  # noqa: S101 - the caller's condition
    rival = await rival_of(step.context.db, held)
    view = _view(held, from_payment=not await step.has_intent(), rival=rival)
    found, refused = command_rules.rejection(view, CommandRequest(kind=command.kind)), None
    if found is not None:
        refused = found.result
    elif held.session_count >= ORDER_USES:
        refused = result(
            ResultCode.REFUSED_ORDER_NUMBER_USED_UP,
            orderId=held.order_ref,
            sessions=held.session_count,
            most=ORDER_USES,
        )
    elif verdict.finding not in {reconciliation.LookupOutcome.NOTHING, reconciliation.LookupOutcome.DECLINED}:
        refused = result(ResultCode.REFUSED_PAYMENT_SHOWN, finding=verdict.finding.value)
    step.answering = None
    if refused is not None:
        await refuse(step, command, refused)
        return
    asked = command.arguments.get("expiresIn")
    expires_in = float(asked) if asked is not None else held.expires_in
    await answer(
        step,
        command,
        Action.CHECKOUT_REOPENED,
        result(ResultCode.DONE_REOPENED),
        trigger=Trigger.REOPENED,
        evidence={**verdict.evidence, "sessionCount": held.session_count},
        payments=verdict.payments,
        deadline_in=expires_in or float(step.settings.checkout_expires_in),
        expires_in=expires_in,
        session_id=None,
        methods=None,
        attention=None,
        last_error=None,
        lookups=0,
        # A new claim brings the intent along.
        due_in=0.0,
        events=(Event(EventType.CHECKOUT_REOPENED),),
    )

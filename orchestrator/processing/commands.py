"""What people and clients ask for. A command is taken under the lease, like every other reason to move.

A command that asks for money becomes an operation of its own; one whose transaction has an operation under way waits for that.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, assert_never

from orchestrator import log
from orchestrator.audit import Action
from orchestrator.domain import command_rules, decisions, operations, reconciliation
from orchestrator.domain.command_rules import CheckoutView, CommandRequest, Pending
from orchestrator.domain.payment_meaning import MONEY
from orchestrator.domain.records import (
    MOVES_MONEY,
    Binding,
    Cause,
    CommandKind,
    Decision,
    OperationKind,
    OperationState,
)
from orchestrator.domain.states import UNOFFERED, State, Trigger
from orchestrator.store.checkouts import KEEP, Event, command_holds, rival_of

if TYPE_CHECKING:
    from uuid import UUID

    from orchestrator.domain.records import Command
    from orchestrator.processing.step import Step
    from orchestrator.store.checkouts import ClaimedCheckout

_log = log.get(__name__)

ORDER_USES: Final = 4
"""One order number serves about four orders or payments at the gateway (D7, D8)."""


def wait(held: ClaimedCheckout) -> bool:
    """Say whether there is something to do that asks nothing of the gateway."""
    return bool(held.commands) or (held.cancel_requested_at is not None and held.state in UNOFFERED)


def ready(held: ClaimedCheckout) -> Command | None:
    """Return the oldest command that can be taken now; None while all wait for an operation on their transaction."""
    return next((one for one in held.commands if not _blocked(held, one)), None)


def _blocked(held: ClaimedCheckout, command: Command) -> bool:
    if not isinstance(command.arguments, dict):
        # Of our making it is not; it is refused when it is its turn.
        return False
    if command.kind is CommandKind.RESOLVE and command.arguments.get("decision") == Decision.RETURN:
        return held.operation is not None and reconciliation.word_of(held.attention) != operations.UNCLEAR
    if command.kind not in MOVES_MONEY:
        return False
    targets = {command.transaction_id} if command.transaction_id else held.accepted
    return any(one.open and one.transaction_id in targets for one in held.operations)


async def execute(step: Step, command: Command) -> None:
    """Take a command: carry it out, turn it into an operation, or refuse it with the reason."""
    held = step.held
    if not command_holds(step.context.encryptor, held.id, held.merchant_id, command) or command.taken:
        await _refuse_foreign(step, command)
        return
    found = command_rules.rejection(_view(held), _request(command))
    if found is not None:
        await _refuse(step, command, found.sentence)
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
        case CommandKind.REOPEN | CommandKind.RECONCILE:
            # Both are answered by the next lookup, which is taken under this lease.
            step.answering = command
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
        version=command.expected_version,
    )


def _view(held: ClaimedCheckout, *, from_payment: bool = False, rival: UUID | None = None) -> CheckoutView:
    """Return where it stands under the lease; the last two are looked up where a reopening asks for them."""
    under_way = (Pending(one.kind, one.transaction_id, one.amount) for one in held.operations if one.open)
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
    )


def _about(command: Command) -> dict[str, object]:
    return {"command": str(command.id), "kind": command.kind, "reason": command.reason, **command.arguments}


async def _refuse_foreign(step: Step, command: Command) -> None:
    """Refuse what no process of ours stored as it stands, or what was taken before: somebody wrote into the database."""
    why = (
        "it was taken before, and its row was changed since"
        if command.taken
        else "its row was not written by the API or the command line of this installation, or was changed since"
    )
    _log.error(
        "command_not_authentic", security=True, command=str(command.id), kind=command.kind, claimed_actor=command.actor, reason=why
    )  # fmt: skip
    told = {"operationId": None, "commandId": command.id, "kind": command.kind, "reason": why}
    await step.write(
        None, Action.COMMAND_REFUSED, evidence={
            "command": str(command.id), "kind": command.kind, "claimedActor": command.actor, "refusal": why, "authentic": False,
        },
        attempts=step.held.attempts, done=((command.id, f"refused: {why}"),),
        events=(Event("checkout.operation_rejected", told),) if command.kind in MOVES_MONEY else (),
    )  # fmt: skip


async def _refuse(step: Step, command: Command, why: str) -> None:
    events: tuple[Event, ...] = ()
    if command.kind in MOVES_MONEY:
        told = {"operationId": None, "commandId": command.id, "kind": command.kind, "reason": why}
        events = (Event("checkout.operation_rejected", told),)
    await step.write(
        None, Action.COMMAND_REFUSED, actor=command.actor, evidence={**_about(command), "refusal": why},
        attempts=step.held.attempts, done=((command.id, f"refused: {why}"),), events=events,
    )  # fmt: skip


async def _withdraw(step: Step, command: Command) -> None:
    held = step.held
    if held.cancel_requested_at is not None:
        await _refuse(step, command, "it is being cancelled already")
        return
    # From now on the token is not handed out; a checkout that was never offered is cancelled at once, any other
    # after its grace and a lookup that shows nothing paid, pending or open.
    await step.write(
        None, Action.CANCEL_REQUESTED, actor=command.actor, evidence=_about(command), cancel_requested=True, lookups=0,
        attempts=held.attempts, done=((command.id, "accepted"),),
    )  # fmt: skip


async def cancel(step: Step) -> None:
    """Cancel a checkout that was never offered, as was asked for: nobody could pay it, so there is nothing to wait for."""
    await step.end(Trigger.CANCELLED, "checkout.cancelled", {"by": "command"})


# ── Money ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _move_money(step: Step, command: Command) -> None:
    held = step.held
    view, asked = _view(held), _request(command)
    payment = view.payment(asked.transaction_id)
    assert payment is not None  # noqa: S101 - the rule asks for it
    kind = OperationKind(command.kind)
    # A release gives back the whole reservation.
    amount = view.left(payment, kind) if asked.amount is None else asked.amount
    operation = operations.ask(
        payment, kind, amount=amount, cause=Cause.ASKED, actor=command.actor, reason=command.reason, command_id=command.id,
    )  # fmt: skip
    evidence = {
        # A command that the trail names is never taken again.
        "command": str(command.id), "operation": str(operation.id), "kind": operation.kind, "transaction": operation.transaction_id,
        "amount": operation.amount, "currency": operation.currency, "cause": operation.cause, "reason": operation.reason,
    }  # fmt: skip
    # It is carried out under the same lease.
    await step.write(
        None, Action.MONEY_REQUESTED, actor=command.actor, evidence=evidence, operations=(operation,), attempts=0, due_in=KEEP,
        done=((command.id, f"accepted: {operation.id}"),),
    )  # fmt: skip


# ── What a person decides ───────────────────────────────────────────────────────────────────────────────────────────────


async def _retry(step: Step, command: Command) -> None:
    """Forget failures and look at it now."""
    await step.write(
        None, Action.COMMAND_TAKEN, actor=command.actor, evidence=_about(command), attempts=0, lookups=0,
        attention=step.cleared_attention(poisoned=True), last_error=None, done=((command.id, "done: it is tried again now"),),
    )  # fmt: skip


async def _resolve(step: Step, command: Command) -> None:
    held = step.held
    word = reconciliation.word_of(held.attention)
    if word == operations.UNCLEAR:
        await _settle(step, command)
        return
    decision = Decision(command.arguments["decision"])
    if decision is Decision.RETURN:
        await _return(step, command, word)
        return
    completed = held.state is State.COMPLETED
    marks = reconciliation.marks(held, decision)
    keeps = decision is Decision.KEEP and word in decisions.PROBLEMS and not completed
    said = (
        "the order is completed with these payments, if the gateway still holds the same"
        if keeps
        else "it is not asked again"
    )
    about = [
        {"id": one.transaction_id, "reserved": one.reserved, "captured": one.captured, "refunded": one.refunded,
         "currency": one.currency}
        for one in held.known if one.transaction_id in marks
    ]  # fmt: skip
    await step.write(
        None, Action.ATTENTION_CLEARED, actor=command.actor,
        evidence={**_about(command), "attention": word, "transactions": about}, attempts=0, attention=None,
        # What is kept completes the order under this very lease, as soon as a lookup shows the same once more.
        decided=marks or None, done=((command.id, f"done: {said}"),), due_in=KEEP if keeps else 0.0,
    )  # fmt: skip


async def _settle(step: Step, command: Command) -> None:
    """End the operation of which the gateway's books say nothing clear, as a person found it: done (keep), or not (dismiss)."""
    decision = Decision(command.arguments["decision"])
    unclear = [
        one
        for one in step.held.operations
        if one.open and (one.last_error or "").startswith(operations.UNCLEAR)
    ]
    if decision is Decision.RETURN or not unclear:
        await _refuse(step, command, "say keep if it was done at the gateway, or dismiss if it was not")
        return
    done = decision is Decision.KEEP
    state = OperationState.SUCCEEDED if done else OperationState.REJECTED
    await step.write(
        None, Action.MONEY_SUCCEEDED if done else Action.MONEY_REJECTED, actor=command.actor,
        evidence={**_about(command), "by": "person", "operations": [str(one.id) for one in unclear]}, attempts=0,
        attention=None, done=((command.id, f"done: it is {state}, as you found it"),), due_in=0.0,
        operations=tuple(replace(one, state=state, last_error=f"{state} by decision of a person") for one in unclear),
    )  # fmt: skip


async def _return(step: Step, command: Command, word: str) -> None:
    held = step.held
    if word not in {"late_payment", "unknown_order", "surplus_payment", *decisions.PROBLEMS}:
        await _refuse(step, command, f"{word} is not about money that could be returned: say keep or dismiss")
        return
    late = word in {"late_payment", "unknown_order"}
    concerned = [one for one in reconciliation.concerned(held) if one.left > 0]
    unclear = [one.transaction_id for one in concerned if one.meaning not in MONEY]
    if unclear:
        said = f"what transaction {unclear[0]} holds is not clear: give its money back in the gateway's own interface, then reconcile"
        await _refuse(step, command, said)
        return
    targets = [
        one
        for one in concerned
        if (word in decisions.PROBLEMS or not one.is_decided(word)) and (late or one.binding == Binding.BOUND)
    ]
    if not targets:
        await _refuse(
            step, command, "no transaction that this is about holds money that is surely this order's"
        )
        return
    back = tuple(
        operations.give_back(one, actor=command.actor, reason=word, command_id=command.id) for one in targets
    )
    await step.write(
        None, Action.MONEY_REQUESTED, actor=command.actor,
        evidence={**_about(command), "attention": word, "operations": [str(one.id) for one in back]}, attempts=0,
        operations=back, done=((command.id, f"accepted: {', '.join(str(one.id) for one in back)}"),), due_in=KEEP,
    )  # fmt: skip


async def reopen(step: Step, verdict: reconciliation.Reconciliation) -> None:
    """Take a closed checkout up again, after a lookup that shows no money and nothing open."""
    held, command = step.held, step.answering
    assert command is not None  # noqa: S101 - the caller's condition
    rival = await rival_of(step.context.db, held)
    view = _view(held, from_payment=not await step.was_asked_for(), rival=rival)
    found, refusal = command_rules.rejection(view, CommandRequest(kind=command.kind)), None
    if found is not None:
        refusal = found.sentence
    elif held.session_count >= ORDER_USES:
        refusal = f"order number {held.order_ref} has been used {held.session_count} times at the gateway, which takes about {ORDER_USES}"
    elif verdict.finding not in {reconciliation.LookupOutcome.NOTHING, reconciliation.LookupOutcome.DECLINED}:
        refusal = f"the gateway shows this order as {verdict.finding}"
    step.answering = None
    if refusal is not None:
        await _refuse(step, command, refusal)
        return
    asked = command.arguments.get("expiresIn")
    expires_in = float(asked) if asked is not None else held.expires_in
    await step.write(
        Trigger.REOPENED, Action.CHECKOUT_REOPENED, actor=command.actor,
        evidence={**_about(command), **verdict.evidence, "sessionCount": held.session_count}, payments=verdict.payments,
        deadline_in=expires_in or float(step.settings.checkout_expires_in), expires_in=expires_in, session_id=None, methods=None,
        attention=None, last_error=None, lookups=0, done=((command.id, "done: it is reopened"),),
        # A new claim brings the intent along.
        due_in=0.0, events=(Event("checkout.reopened", {}),),
    )  # fmt: skip

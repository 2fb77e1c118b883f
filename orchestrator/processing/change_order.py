"""A changed order: what was asked for before the payment, and the session at the gateway after it.

Our books change first, and the session after them: a payment of what the session held before is seen
to be of another amount than the order's, and a person decides. A checkout that was offered is offered again
only once its session is changed, and a lookup after that shows no payment of the order as it was.
"""

from __future__ import annotations

from base64 import b64decode
from typing import TYPE_CHECKING, Final

from orchestrator import intents
from orchestrator.audit import Action
from orchestrator.domain import money
from orchestrator.domain.command_result import ResultCode, result
from orchestrator.domain.states import State, Trigger
from orchestrator.gateway.outcomes import FINAL_STATUSES, Done, Refused
from orchestrator.intents import IntentRejected
from orchestrator.processing import commands, complete, open_session
from orchestrator.store import email_search
from orchestrator.store.checkouts import KEEP
from orchestrator.store.checkouts.change import ChangedOrder

if TYPE_CHECKING:
    from orchestrator.domain.command_result import CommandResult
    from orchestrator.domain.reconciliation import Reconciliation
    from orchestrator.domain.records import Command
    from orchestrator.intents import Intent
    from orchestrator.processing.step import Step

_BACK: Final = frozenset({State.METHODS_FETCHED, State.AWAITING_PAYMENT})
"""States that a changed order leaves for `session_created`."""
_NOT_CHANGED: Final = FINAL_STATUSES | {404, 410}
"""Statuses at which the gateway keeps the session as it was, or has none: another session is opened."""


async def change(step: Step) -> None:
    """Write a changed order to our books, unless the gateway shows a payment; answers the command."""
    command = step.answering
    assert command is not None  # noqa: S101 - the caller's condition
    # Whatever the lookup shows, the command gets its own result, or is executed again at the next claim.
    step.answering = None
    asked = await _asked(step, command)
    if not isinstance(asked, intents.Intent):
        await commands.refuse(step, command, asked)
        return
    if asked.document == step.document():
        changed = result(ResultCode.DONE_CHANGED)
        await commands.answer(step, command, Action.COMMAND_TAKEN, changed, attempts=step.held.attempts)
        return
    verdict: Reconciliation | None = None
    if step.held.session_count > 0:
        # A shopper may have the session.
        verdict = await complete.lookup(step)
        if verdict is None:
            return
        if verdict.finding not in complete.UNPAID:
            shown = result(ResultCode.REFUSED_PAYMENT_SHOWN, finding=verdict.finding.value)
            await commands.refuse(step, command, shown)
            await complete.is_decided(step, verdict)
            return
    await _write(step, command, asked, verdict)


async def _asked(step: Step, command: Command) -> Intent | CommandResult:
    """Return the order that a change makes of the stored one, or why it may not be changed."""
    held = step.held
    if held.cancel_requested_at is not None:
        return result(ResultCode.REFUSED_CANCELLING)
    if held.now() >= held.deadline:
        return result(ResultCode.REFUSED_NOT_CHANGEABLE)
    patch = step.data_key().decrypt(b64decode(command.arguments["change"]), purpose="change")
    try:
        return intents.changed(await step.read_intent(), patch)
    except IntentRejected as error:
        problem = error.problems[0]
        return result(ResultCode.REFUSED_NOT_AN_INTENT, field=problem.field, problem=problem.message)


async def _write(step: Step, command: Command, asked: Intent, verdict: Reconciliation | None) -> None:
    held, key = step.held, step.data_key()
    await commands.answer(
        step,
        command,
        Action.ORDER_CHANGED,
        result(ResultCode.DONE_CHANGED),
        trigger=Trigger.ORDER_CHANGED if held.state in _BACK else None,
        evidence={
            "amount": asked.amount,
            "amountBefore": held.amount,
            "currency": held.currency,
            "intent": key.mac(asked.fingerprint).hex(),
            **({} if verdict is None else verdict.evidence),
        },
        order=ChangedOrder(
            amount=asked.amount,
            body=key.encrypt(asked.document, purpose="intent"),
            fingerprint=asked.fingerprint,
            email_tag=email_search.tag(step.context.encryptor, asked.email),
        ),
        outdated=True if held.session_id is not None else KEEP,
        payments=() if verdict is None else verdict.payments,
        attempts=0,
        lookups=0,
        last_error=None,
    )


async def change_session(step: Step) -> None:
    """Carry the order of our books to the session (PUT, facts 1.2); it may be repeated.

    Where the gateway refuses that, another session is opened.
    """
    held = step.held
    token = step.token()
    if token is None:
        await open_session.renew(step)
        return
    outcome = await step.context.gateway.change_session(
        step.account,
        token,
        held.session_id or "",
        open_session.body_of(step),
        amount=money.to_decimal(held.amount, held.currency),
        user_agent=step.user_agent(),
    )
    match outcome:
        case Done():
            await _go_on(step, None)
        case Refused(status) if status in _NOT_CHANGED:
            await _go_on(step, outcome)
        case _:
            await open_session.not_done(step, outcome, "session")


async def _go_on(step: Step, refused: Refused | None) -> None:
    """Offer the changed session, or open another one, unless the session was paid as it was meanwhile.

    An open payment keeps its session, so that no second payment is begun beside it.
    """
    held = step.held
    evidence: dict[str, object] = {"session": held.session_id, "amount": held.amount}
    payable = complete.PAYABLE if refused is None else complete.UNPAID
    verdict = await complete.lookup_unpaid(step, payable=payable)
    if verdict is None:
        return
    if refused is None:
        await step.write(
            None,
            Action.SESSION_CHANGED,
            evidence={**evidence, **verdict.evidence, "currency": held.currency},
            outdated=False,
            payments=verdict.payments,
            attention=step.cleared_attention(),
            last_error=None,
        )
    else:
        await step.write(
            Trigger.SESSION_LOST,
            evidence={**evidence, **verdict.evidence, "status": refused.status, "reason": refused.reason},
            session_id=None,
            payments=verdict.payments,
        )

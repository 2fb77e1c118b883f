"""From the offer to the end: callbacks, lookups, the deadline and the grace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from orchestrator.audit import Action
from orchestrator.domain import decisions
from orchestrator.domain.attention import Attention, AttentionCode
from orchestrator.domain.events import Event, EventType
from orchestrator.domain.payment_meaning import PaymentMeaning
from orchestrator.domain.reconciliation import LookupOutcome, Reconciliation
from orchestrator.domain.states import Trigger
from orchestrator.processing import callbacks, commands, complete
from orchestrator.processing.open_session import renew
from orchestrator.processing.step import RENEW_BEFORE
from orchestrator.store.checkouts import KEEP

if TYPE_CHECKING:
    from datetime import datetime

    from orchestrator.processing.step import Step

LONG_OPEN: Final = 86_400.0
"""Seconds after the deadline until an open payment raises attention: before that, the shopper may still
finish it."""

_COUNTERPART: Final = {
    LookupOutcome.OPEN: Trigger.PAYMENT_OPEN,
    LookupOutcome.DECLINED: Trigger.PAYMENT_DECLINED,
    LookupOutcome.NOTHING: Trigger.NOTHING_FOUND,
}


async def read_callbacks(step: Step) -> None:
    """Record the callbacks, then look the order up: a callback is a hint.

    The announcement of a payment (`new`; C1, C2) shows only that the shopper is there, so it is acknowledged
    and causes no lookup. A callback that proves nothing causes a lookup, and moves nothing.
    """
    opened = callbacks.opened(step)
    if any(callbacks.counts(callback, facts) for callback, facts in opened):
        await step.write(
            Trigger.CALLBACK_ARRIVED,
            evidence={"callbacks": callbacks.summaries(step, opened)},
            lookups=0,
            attempts=step.held.attempts,
        )
    elif not _over(step) and all(callbacks.is_new(callback, facts) for callback, facts in opened):
        await step.write(
            None,
            Action.CALLBACK_READ,
            evidence={"callbacks": callbacks.summaries(step, opened)},
            read=callbacks.ids(step),
            lookups=0,
            attempts=step.held.attempts,
            due_in=step.next_due_in(0),
        )
    else:
        await await_payment(step)


# ── Status checks ─────────────────────────────────────────────────────────────────────────────────────────


async def lookup_early(step: Step) -> None:
    """Look up a checkout that has not been offered yet, because a command or callback requires it."""
    verdict = await complete.lookup(step)
    if verdict is None:
        return
    if verdict.finding is LookupOutcome.PAID:
        await complete.complete(step, verdict)
    else:
        await step.write(
            None,
            None,
            evidence=verdict.evidence,
            payments=verdict.payments,
            attempts=step.held.attempts,
            due_in=KEEP,
        )


async def settle_callback(step: Step) -> None:
    verdict = await complete.lookup(step)
    if verdict is None:
        return
    if verdict.finding not in complete.UNPAID:
        await commands.refuse_changes(step, verdict.finding)
    if await complete.is_decided(step, verdict):
        return
    # A grace that is over meanwhile ends it now, under the same lease; so does a change that has waited for
    # this lookup.
    ends = (_over(step) and verdict.finding is not LookupOutcome.OPEN) or commands.changes(step.held)
    await complete.record(
        step,
        verdict,
        _COUNTERPART[verdict.finding],
        attention=complete.sticky_attention(step),
        due_in=KEEP if ends else step.next_due_in(step.held.lookups),
        events=complete.declined(step, verdict),
    )


async def await_payment(step: Step) -> None:
    """Look the checkout up because it is due: for lost callbacks, the deadline, a cancel request, or to renew
    the token.
    """
    verdict = await complete.lookup_unpaid(step)
    if verdict is None:
        return
    if verdict.finding is not LookupOutcome.OPEN and _over(step):
        cancelled = _grace_over(step, step.held.cancel_requested_at, step.settings.cancel_grace)
        await step.end(
            Trigger.CANCELLED if cancelled else Trigger.DEADLINE_PASSED,
            Event(EventType.CHECKOUT_CANCELLED if cancelled else EventType.CHECKOUT_EXPIRED),
            callbacks.with_callbacks(step, verdict.evidence),
            payments=verdict.payments,
            read=callbacks.ids(step),
            attention=complete.sticky_attention(step),
            last_error=None,
        )
    else:
        await _wait_on(step, verdict)


async def _wait_on(step: Step, verdict: Reconciliation) -> None:
    """Stay in the state until the next status check; before that, renew the token of an offered checkout in
    time.
    """
    held, now = step.held, step.held.now()
    if not step.renewed and step.token_ends_within(RENEW_BEFORE):
        await renew(step)
        if step.released:
            return
    attention = complete.sticky_attention(step)
    if verdict.finding is LookupOutcome.OPEN and (now - held.deadline).total_seconds() > LONG_OPEN:
        still = (payment for payment in verdict.payments if payment.meaning == PaymentMeaning.OPEN)
        long_open = Attention(code=AttentionCode.OPEN_PAYMENT, payments=decisions.amounts_of(still))
        attention = attention or complete.raised_attention(step, long_open)
    # Nothing moved: the rows of `payments` record what was seen, and the trail gets no entry for each lookup.
    action = complete.note(step, attention)
    await complete.record(
        step,
        verdict,
        None,
        action,
        evidence=callbacks.with_callbacks(step, verdict.evidence if action else {}),
        attention=attention,
        due_in=step.next_due_in(held.lookups),
        events=complete.declined(step, verdict),
    )


def _over(step: Step) -> bool:
    """Say whether only a lookup stands between the checkout and its end."""
    held, settings = step.held, step.settings
    return _grace_over(step, held.cancel_requested_at, settings.cancel_grace) or _grace_over(
        step, held.deadline, settings.deadline_grace
    )


def _grace_over(step: Step, since: datetime | None, grace: float) -> bool:
    return since is not None and (step.held.now() - since).total_seconds() >= grace

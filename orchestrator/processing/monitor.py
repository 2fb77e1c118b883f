"""The monitoring of ended checkouts: late and surplus money, refunds, chargebacks, lapsing reservations;
until settled.
"""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING

from orchestrator.audit import Action
from orchestrator.domain import decisions, schedule
from orchestrator.domain.attention import Attention, AttentionCode
from orchestrator.domain.reconciliation import LookupOutcome, Reconciliation
from orchestrator.domain.records import Role
from orchestrator.domain.states import CLOSED, State
from orchestrator.processing import commands, complete
from orchestrator.store.checkouts import KEEP

if TYPE_CHECKING:
    from orchestrator.domain.records import Operation
    from orchestrator.processing.step import Step


async def watch(step: Step) -> None:
    """Look an ended checkout up: late money, refunds and chargebacks at the gateway; settle it when the
    monitoring is over.
    """
    held = step.held
    verdict = await complete.lookup(step)
    if verdict is None:
        return
    paid = verdict.finding is LookupOutcome.PAID
    if paid and held.state is not State.COMPLETED:
        await complete.complete(step, verdict)
        return
    if step.answering is not None and step.answering.kind == "reopen":
        await commands.reopen(step, verdict)
        return
    attention, back = _attention(step, verdict)
    capture = paid and complete.captures(step, verdict) and not attention
    operating = (*back, *(complete.captures_of(verdict) if capture else ()))
    was, after = complete.totals(step, verdict)
    due_in = _next_watch(step, verdict, attention)
    actions = (
        (after != was or operating, Action.PAYMENT_SEEN),
        (attention is not None and attention.is_news(held.attention), Action.ATTENTION_RAISED),
        (held.attention is not None and attention is None, Action.ATTENTION_CLEARED),
        (due_in is None, Action.WATCH_ENDED),
        (held.callbacks, Action.CALLBACK_READ),
    )
    action = next((action for applies, action in actions if applies), None)
    await complete.record(
        step,
        verdict,
        None,
        action,
        money=verdict.money,
        charged_back=verdict.charged_back,
        reserved_until=verdict.reserved_until,
        operations=operating,
        attention=attention,
        last_error=held.last_error if held.state in CLOSED else None,
        due_in=KEEP if operating else due_in,
        events=tuple(complete.news_of(step, verdict)),
    )


def _attention(step: Step, verdict: Reconciliation) -> tuple[Attention | None, tuple[Operation, ...]]:
    """Return the attention for an ended checkout after this lookup, and what policy returns by itself."""
    held = step.held
    paid = verdict.finding is LookupOutcome.PAID
    attention, back = complete.surplus(step, verdict)
    if attention is not None and verdict.finding is LookupOutcome.RELEASED and not verdict.surplus:
        # An earlier decision on a surplus payment does not cover this one: a result names only undecided
        # ones.
        attention = complete.raised_attention(step, attention)
    attention = complete.charged_back(step, verdict) or attention
    if (
        attention is None
        and held.state is State.COMPLETED
        and not paid
        and verdict.finding is not LookupOutcome.RELEASED
    ):
        accepted = (payment for payment in held.known if payment.role == Role.ACCEPTED)
        gone = Attention(code=AttentionCode.PAYMENT_GONE, payments=decisions.amounts_of(accepted))
        attention = complete.raised_attention(step, gone)
    standing = complete.sticky_attention(step)
    lapses = standing is not None and standing.code is AttentionCode.RESERVATION_LAPSES
    if lapses and verdict.reserved_until is None:
        standing = None
    attention = attention or standing or complete.late_question(step, verdict)
    until = verdict.reserved_until
    if attention is None and until is not None:
        left = (until - held.now()).total_seconds()
        if left <= step.settings.lapse_warning:
            attention = complete.raised_attention(
                step,
                Attention(
                    code=AttentionCode.RESERVATION_LAPSES,
                    payments=decisions.amounts_of(verdict.paying),
                    facts={"until": until.astimezone(UTC).isoformat(timespec="minutes")},
                ),
            )
    return attention, back


def _next_watch(step: Step, verdict: Reconciliation, attention: Attention | None) -> float | None:
    """Return the seconds until the next lookup of an ended checkout; None when it is settled."""
    held, now = step.held, step.held.now()
    ended = held.ended_at or now
    due_in = schedule.next_watch(step.settings, ended, now)
    paid = verdict.finding is LookupOutcome.PAID
    # Not settled while a payment can still be captured, become money, or needs a decision.
    unsettled = (
        (paid and verdict.money[1] < verdict.money[0])
        or attention is not None
        or verdict.finding in {LookupOutcome.OPEN, LookupOutcome.UNSURE}
    )
    if due_in is None and unsettled:
        age = (now - ended).total_seconds()
        due_in = schedule.thinned(schedule.next_lookup(step.settings, 40), age)
    if due_in is not None and verdict.reserved_until is not None:
        warned = (verdict.reserved_until - now).total_seconds() - step.settings.lapse_warning
        due_in = min(due_in, warned + 1) if warned > 0 else due_in
    return due_in

"""From the offer on: letters, looks, the deadline, the answer that completes it, and the watch afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from orchestrator import log, reconcile
from orchestrator.audit import Action
from orchestrator.carry.opening import renew
from orchestrator.carry.step import QUARANTINE, RENEW_BEFORE, Step, retry
from orchestrator.gateway.callbacks import CallbackFacts, read_body
from orchestrator.gateway.outcomes import Done
from orchestrator.inbox import open_body
from orchestrator.lifecycle import Event
from orchestrator.reconcile import Finding, Verdict
from orchestrator.states import Moved, State, Trigger, decide
from orchestrator.vault import VaultError

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

_log = log.get(__name__)

LONG_OPEN: Final = 86_400.0
"""Seconds after the deadline for which an open payment is nobody's business but the shopper's."""

_COUNTERPART: Final = {
    Finding.OPEN: Trigger.PAYMENT_OPEN,
    Finding.DECLINED: Trigger.PAYMENT_DECLINED,
    Finding.NOTHING: Trigger.NOTHING_FOUND,
}


async def read_letters(step: Step) -> None:
    """Note what arrived, and go on to ask the gateway: a callback is a hint."""
    held = step.held
    await step.write(
        Trigger.CALLBACK_ARRIVED, evidence={"callbacks": _told(step)}, looks=0, attempts=held.attempts
    )


def _told(step: Step) -> list[dict[str, object]]:
    """Say of each letter what the trail may keep: ids, kind, proof, status; nothing about the shopper."""
    told: list[dict[str, object]] = []
    for letter in step.held.letters:
        facts = CallbackFacts(flags=("unreadable",))
        if letter.body is not None:
            try:
                raw = open_body(step.carrier.vault, step.held.id, step.held.data_key, letter.body)
                facts = read_body(letter.content_type, raw)
            except VaultError as error:
                # Asking the gateway needs none of it.
                _log.warning("callback_unreadable", callback=str(letter.id), reason=str(error))
        told.append({
            "id": str(letter.id), "kind": letter.kind, "grade": letter.grade, "digest": letter.digest.hex(),
            "status": (facts.status or "")[:40], "transaction": (facts.transaction_id or "")[:40],
        })  # fmt: skip
    return told


def _ids(step: Step) -> tuple[UUID, ...]:
    return tuple(letter.id for letter in step.held.letters)


async def _look(step: Step) -> Verdict | None:
    """Ask the gateway what it holds for this order; None if it could not say, and the failure is written."""
    outcome = await step.carrier.gateway.find_payments(step.account, order_ref=step.held.order_ref)
    if isinstance(outcome, Done):
        return reconcile.judge(step.held, outcome.value)
    await step.fail(retry(outcome), "payments")
    return None


async def settle_callback(step: Step) -> None:
    verdict = await _look(step)
    if verdict is None:
        return
    if verdict.finding is Finding.PAID:
        await _complete(step, verdict)
    elif verdict.finding is Finding.UNSURE:
        await _unsure(step, verdict)
    else:
        trigger = _COUNTERPART[verdict.finding]
        declined = verdict.finding is Finding.DECLINED
        await step.write(
            trigger, evidence=verdict.evidence, payments=verdict.payments, read=_ids(step), attention=step.calm(),
            last_error=None, looks=step.held.looks + 1, alarm=step.next_alarm(step.held.looks),
            events=(Event("checkout.declined", {}),) if declined else (),
        )  # fmt: skip


async def await_payment(step: Step) -> None:
    """Look because the alarm rang: for lost callbacks, the deadline, a withdrawal, or to keep the token alive."""
    held, settings = step.held, step.settings
    verdict = await _look(step)
    if verdict is None:
        return
    if verdict.finding is Finding.PAID:
        await _complete(step, verdict)
    elif verdict.finding is Finding.UNSURE:
        await _unsure(step, verdict)
    elif verdict.finding is not Finding.OPEN and _grace_over(step, held.withdrawn_at, settings.cancel_grace):
        await step.end(Trigger.CANCELLED, "checkout.cancelled", verdict.evidence, payments=verdict.payments)
    elif verdict.finding is not Finding.OPEN and _grace_over(step, held.deadline, settings.deadline_grace):
        await step.end(
            Trigger.DEADLINE_PASSED, "checkout.expired", verdict.evidence, payments=verdict.payments
        )
    else:
        await _wait_on(step, verdict)


async def _wait_on(step: Step, verdict: Verdict) -> None:
    """Stay where it is until the next reason to look; before that, keep the token of an offered checkout alive."""
    held, now = step.held, step.held.now()
    offered = held.withdrawn_at is None and now < held.deadline
    if offered and held.token_expires_at is not None and not step.renewed:
        left = (held.token_expires_at - now).total_seconds()
        if left < RENEW_BEFORE:
            await renew(step)
            if step.released:
                return
    attention = step.calm()
    if verdict.finding is Finding.OPEN and (now - held.deadline).total_seconds() > LONG_OPEN:
        attention = (
            attention
            or "open_payment: a payment has been open since long before the deadline; ask the gateway or the shopper"
        )
    news = attention is not None and attention != held.attention
    # Nothing moved: the rows of `payments` say what was seen, and the trail is spared an entry for each look.
    await step.write(
        None, Action.ATTENTION_RAISED if news else None, payments=verdict.payments, attention=attention, last_error=None,
        looks=held.looks + 1, alarm=step.next_alarm(held.looks),
        events=(Event("checkout.attention", {"reason": attention}),) if news else (),
    )  # fmt: skip


def _grace_over(step: Step, since: datetime | None, grace: float) -> bool:
    return since is not None and (step.held.now() - since).total_seconds() >= grace


async def _complete(step: Step, verdict: Verdict) -> None:
    held = step.held
    late = held.state in {State.FAILED, State.EXPIRED, State.CANCELLED}
    attention = verdict.attention or step.calm()
    if late and attention is None:
        attention = f"late_payment: the money came after the checkout was {held.state}; keep the order, or return the money"
    accepted = next(one for one in verdict.payments if one.role == reconcile.Role.ACCEPTED)
    evidence = {**verdict.evidence, **({"callbacks": _told(step)} if held.letters else {})}
    events = [Event("checkout.completed", {
        "transactionId": accepted.transaction_id, "currency": held.currency, "amount": held.amount,
        "reserved": verdict.money[0], "captured": verdict.money[1], "refunded": verdict.money[2], "late": late,
    })]  # fmt: skip
    if attention is not None and attention != held.attention:
        events.append(Event("checkout.attention", {"reason": attention}))
    await step.write(
        Trigger.PAYMENT_FOUND, evidence=evidence, payments=verdict.payments, money=verdict.money, late=late,
        read=_ids(step), attention=attention, last_error=None, looks=0,
        alarm=step.first_watch() or QUARANTINE, events=tuple(events),
    )  # fmt: skip


async def _unsure(step: Step, verdict: Verdict) -> None:
    """Leave it where it is, keep looking, and tell a person: the answer proves neither payment nor its absence."""
    held = step.held
    news = verdict.attention != held.attention
    await step.write(
        None, Action.ATTENTION_RAISED if news else None, evidence=verdict.evidence, payments=verdict.payments,
        attention=verdict.attention, last_error=verdict.attention, attempts=held.attempts, looks=held.looks + 1,
        alarm=reconcile.next_look(step.settings, held.looks), read=_ids(step),
        events=(Event("checkout.attention", {"reason": verdict.attention}),) if news else (),
    )  # fmt: skip


async def watch(step: Step) -> None:
    """Look at an ended checkout: late money, refunds and chargebacks at the gateway; settle it when the watch is over."""
    held = step.held
    verdict = await _look(step)
    if verdict is None:
        return
    paid = verdict.finding is Finding.PAID
    if paid and isinstance(decide(held.state, Trigger.PAYMENT_FOUND), Moved):
        await _complete(step, verdict)
        return
    evidence = {**verdict.evidence, **({"callbacks": _told(step)} if held.letters else {})}
    money = verdict.money
    changed = money != (held.reserved, held.captured, held.refunded)
    attention = verdict.attention or step.calm()
    if held.state is State.COMPLETED and not paid and attention is None:
        attention = "payment_gone: the gateway no longer shows the payment that completed this checkout"
    news = attention is not None and attention != held.attention
    events = []
    if changed:
        events.append(
            Event("checkout.money", dict(zip(("reserved", "captured", "refunded"), money, strict=True)))
        )
    if news:
        events.append(Event("checkout.attention", {"reason": attention}))
    alarm = reconcile.next_watch(step.settings, held.ended_at or held.now(), held.now())
    # Not settled while something can still be captured, become money, or is with a person.
    unsettled = money[1] < money[0] or attention is not None or verdict.finding is Finding.OPEN
    if alarm is None and unsettled:
        age = (held.now() - (held.ended_at or held.now())).total_seconds()
        alarm = reconcile.thinned(reconcile.next_look(step.settings, 40), age)
    words = (
        (changed, Action.PAYMENT_SEEN),
        (news, Action.ATTENTION_RAISED),
        (alarm is None, Action.WATCH_ENDED),
        (held.letters, Action.CALLBACK_READ),
    )
    action = next((word for said, word in words if said), None)
    await step.write(
        None, action, evidence=evidence, payments=verdict.payments, money=money, attention=attention, last_error=None,
        looks=held.looks + 1, alarm=alarm, read=_ids(step), events=tuple(events),
    )  # fmt: skip

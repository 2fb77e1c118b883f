"""What a lookup at the gateway shows, and what follows at once: the completion, surplus, automatic captures, attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from orchestrator.audit import SYSTEM, Action
from orchestrator.domain import decisions, money, operations, reconciliation, schedule
from orchestrator.domain.reconciliation import LookupOutcome, Reconciliation
from orchestrator.domain.records import Binding, Cause, OperationKind, Role
from orchestrator.domain.states import CLOSED, State, Trigger
from orchestrator.gateway.outcomes import Done
from orchestrator.processing import callbacks
from orchestrator.processing.step import QUARANTINE, Step, retry
from orchestrator.store.checkouts import KEEP, Event, order_is_shared, paying_others, rival_of, wake

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.domain.records import Operation
    from orchestrator.domain.transaction import Found
    from orchestrator.store.checkouts import ClaimedCheckout

UNKNOWN_ORDER: Final = "unknown_order"
LATE: Final = "late_payment"


async def look(step: Step) -> Reconciliation | None:
    """Ask the gateway what it holds for this order; None if it could not say, or the money is another's, and that is written."""
    held = step.held
    outcome = await step.context.gateway.find_payments(step.account, order_ref=held.order_ref)
    if not isinstance(outcome, Done):
        await step.fail(retry(outcome), "payments")
        return None
    shared, elsewhere = False, frozenset[str]()
    if unbound := reconciliation.unbound_money(held, outcome.value):
        if (
            held.state is State.FAILED
            and held.session_count == 0
            and await _left_to_the_order(step, outcome.value, unbound)
        ):
            return None
        merchants = await step.context.merchants.sharing(step.account)
        elsewhere = await paying_others(step.context.db, held, merchants, unbound)
        shared = len(elsewhere) < len(unbound) and await order_is_shared(step.context.db, held, merchants)
    surcharges = step.merchant.policies.surcharge == "keep"
    verdict = reconciliation.judge(
        held, outcome.value, shared=shared, elsewhere=elsewhere, surcharges=surcharges
    )
    step.shown = f"the gateway shows {_SHOWN[verdict.finding]}"
    return verdict


_SHOWN: Final = {
    LookupOutcome.PAID: "money held for this order",
    LookupOutcome.OPEN: "a payment that is still open",
    LookupOutcome.DECLINED: "only attempts that are over without money",
    LookupOutcome.NOTHING: "no attempt to pay",
    LookupOutcome.RELEASED: "that the payment was released",
    LookupOutcome.UNSURE: "something that a person must look at",
}


# ── Attention ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def sticky_attention(step: Step) -> str | None:
    """Return what remains of the attention after a lookup that raises none: what only a person takes back."""
    return reconciliation.sticky(step.cleared_attention())


def raised_attention(step: Step, attention: str) -> str | None:
    """Return an attention, unless somebody decided on the same for a transaction of this checkout."""
    word = reconciliation.word_of(attention)
    return None if any(one.is_decided(word) for one in step.held.known) else attention


# ── Money ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def complete(step: Step, verdict: Reconciliation) -> None:
    held, policies, paying = step.held, step.merchant.policies, verdict.paying
    late = held.state in CLOSED
    attention, back = surplus(step, verdict)
    policy = "keep"
    if late and not kept_by_decision(held, verdict):
        # No session was ever opened for it: the payment came without an order.
        unordered = held.session_count == 0
        policy = policies.unknown_order if unordered else policies.late
        if policy == "return" and not unordered and not verdict.bound:
            # Tied by the order number alone: it may be another system's, and only a person may give that back.
            policy = "ask"
        if policy == "ask":
            attention = attention or _late(step, unordered=unordered)
        elif policy == "return":
            why = f"{UNKNOWN_ORDER if unordered else LATE}: policy return"
            given = [one for one in paying if one.left > 0]
            back = (*back, *(operations.give_back(one, actor=SYSTEM, reason=why) for one in given))
    attention = charged_back(step, verdict) or attention or sticky_attention(step)
    capture = policy == "keep" and captures(step, verdict)
    operating = (*back, *(captures_of(verdict) if capture else ()))
    events = [Event("checkout.completed", {
        "transactionId": paying[0].transaction_id, "currency": held.currency, "amount": held.amount,
        "reserved": verdict.money[0], "captured": verdict.money[1], "refunded": verdict.money[2], "late": late,
        # An order is shipped on this event: it must tell that the money may go back, and of what parts it is.
        **({"policy": policy} if late else {}),
        **({"transactionIds": [one.transaction_id for one in paying]} if len(paying) > 1 else {}),
        **({"surcharge": extra} if (extra := sum(one.surcharge for one in paying)) else {}),
    })]  # fmt: skip
    events += news_of(step, verdict, attention)
    await step.write(
        Trigger.PAYMENT_FOUND, evidence=callbacks.with_callbacks(step, verdict.evidence), payments=verdict.payments,
        money=verdict.money, charged_back=verdict.charged_back, reserved_until=verdict.reserved_until, late=late,
        require_capture=capture_required(step), operations=operating, read=callbacks.ids(step), attention=attention, last_error=None, lookups=0,
        due_in=KEEP if operating else step.first_watch(verdict.reserved_until) or QUARANTINE, events=tuple(events),
    )  # fmt: skip


async def _left_to_the_order(step: Step, found: Found, unbound: Sequence[str]) -> bool:
    """Leave a payment to the checkout of its order, where the intent came at the same moment as the payment; wake that one."""
    held = step.held
    order = await rival_of(step.context.db, held)
    if order is None or await step.was_asked_for():
        return False
    if any(
        reconciliation.is_older(order, one) for one in found.transactions if one.transaction_id in unbound
    ):
        return False  # made long before that order, which does not take it for its own
    async with step.context.db.transaction() as tx:
        await wake(tx, [order], grace=0.0)
    await step.write(
        None, Action.CALLBACK_READ, evidence=callbacks.with_callbacks(step, {"order": str(order)}), read=callbacks.ids(step),
        attention=sticky_attention(step), last_error=f"the order has checkout {order}, which the payment is left to",
        lookups=held.lookups + 1, due_in=step.first_watch(None) or QUARANTINE,
    )  # fmt: skip
    return True


async def unsure(step: Step, verdict: Reconciliation) -> None:
    """Leave it where it is, keep looking, and ask for a decision: the answer proves neither payment nor its absence."""
    held = step.held
    attention = verdict.attention or sticky_attention(step)
    news = attention is not None and attention != held.attention
    words = ((news, Action.ATTENTION_RAISED), (held.callbacks, Action.CALLBACK_READ))
    await step.write(
        None, next((word for said, word in words if said), None), evidence=callbacks.with_callbacks(step, verdict.evidence),
        payments=verdict.payments, attention=attention, last_error=attention, attempts=held.attempts,
        lookups=held.lookups + 1, due_in=schedule.next_lookup(step.settings, held.lookups), read=callbacks.ids(step),
        require_capture=capture_required(step),
        events=(Event("checkout.attention", {"reason": attention}),) if news else (),
    )  # fmt: skip


def kept_by_decision(held: ClaimedCheckout, verdict: Reconciliation) -> bool:
    """Say whether a person decided to keep what pays the checkout, and with it the order."""
    kept = {one.transaction_id for one in held.known if decisions.kept(one)}
    return kept.issuperset(one.transaction_id for one in verdict.paying)


def charged_back(step: Step, verdict: Reconciliation) -> str | None:
    """Return what a person must know of money that the shopper's bank has taken back since the last lookup."""
    if verdict.charged_back <= step.held.charged_back:
        return None
    amount = money.spelled(verdict.charged_back, step.held.currency)
    return f"charged_back: the shopper's bank took back {amount}; answer it at the gateway"


def _late(step: Step, *, unordered: bool) -> str | None:
    if unordered:
        said = f"{UNKNOWN_ORDER}: a payment came for order number {step.held.order_ref}, which no shop has handed over; keep it, or return it"
        return raised_attention(step, said)
    return raised_attention(
        step, f"{LATE}: the money came after the checkout had ended; keep the order, or return the money"
    )


def late_question(step: Step, verdict: Reconciliation) -> str | None:
    """Return what a person is still to decide of money that came late, whatever else was asked meanwhile."""
    held = step.held
    if not held.late or verdict.left <= 0 or kept_by_decision(held, verdict):
        return None
    unordered = held.session_count == 0
    policies = step.merchant.policies
    if (policies.unknown_order if unordered else policies.late) == "keep":
        return None
    going_back = any(
        one.open and one.cause == Cause.RETURNED and one.transaction_id in held.accepted
        for one in held.operations
    )
    return None if going_back else _late(step, unordered=unordered)


def surplus(step: Step, verdict: Reconciliation) -> tuple[str | None, tuple[Operation, ...]]:
    """Return the attention of a verdict, and the operations by which policy returns what is surplus beside a payment."""
    policy = step.merchant.policies.surplus
    if not verdict.surplus or verdict.finding is not LookupOutcome.PAID or policy == "ask":
        return verdict.attention, ()
    if policy == "keep":
        return None, ()
    # Once: what was tried before and could not be done is a person's business.
    tried = {one.transaction_id for one in step.held.operations if one.cause == Cause.RETURNED}
    back = tuple(
        operations.give_back(one, actor=SYSTEM, reason="surplus_payment: policy return")
        for one in verdict.surplus
        # Tied by the order number alone: it may be another system's, and only a person may give that back.
        if one.transaction_id not in tried and one.binding == Binding.BOUND
    )
    given = {one.transaction_id for one in back}
    under_way = {one.transaction_id for one in step.held.operations if one.open}
    left = [one for one in verdict.surplus if one.transaction_id not in given | under_way]
    return (verdict.attention if left else None), back


def capture_required(step: Step) -> bool:
    """Say whether the gateway told us that, although it was asked to, it will not capture by itself."""
    return step.held.captures_itself and any(
        callbacks.proves_all(callback) and facts.require_capture is True
        for callback, facts in callbacks.opened(step)
    )


def captures(step: Step, verdict: Reconciliation) -> bool:
    """Say whether we capture a payment without being asked: by the merchant's policy, or because the gateway will not."""
    held, policies = step.held, step.merchant.policies
    required = held.require_capture or capture_required(step)
    if not required and (held.auto_capture or policies.capture != "automatic"):
        return False
    # What came late, and what was to go back, is captured only once somebody decided to keep it.
    settled = (
        not held.late
        or policies.late == "keep"
        or kept_by_decision(held, verdict)
        or any(one.role == Role.ACCEPTED and one.is_decided(LATE, UNKNOWN_ORDER) for one in held.known)
    )
    tried = any(one.cause in {Cause.AUTOMATIC, Cause.RETURNED} for one in held.operations)
    reserved, captured, _ = verdict.money
    return settled and not tried and captured == 0 and reserved > 0


def captures_of(verdict: Reconciliation) -> tuple[Operation, ...]:
    """Return the captures of all that is reserved of what pays a checkout."""
    return tuple(
        operations.ask(
            one,
            OperationKind.CAPTURE,
            amount=one.reserved,
            cause=Cause.AUTOMATIC,
            actor=SYSTEM,
            reason="automatic capture",
        )
        for one in verdict.paying
        if one.captured == 0 and one.reserved > 0
    )


def news_of(step: Step, verdict: Reconciliation, attention: str | None) -> list[Event]:
    """Return the events of what a lookup shows for the first time."""
    held = step.held
    events = []
    before = {one.transaction_id for one in held.known if one.role == Role.SURPLUS}
    fresh = [one.transaction_id for one in verdict.surplus if one.transaction_id not in before]
    if fresh and verdict.finding is LookupOutcome.PAID:
        events.append(Event("checkout.surplus", {"transactionIds": fresh}))
    if verdict.charged_back != held.charged_back:
        told = {"chargedBack": verdict.charged_back, "before": held.charged_back, "currency": held.currency}
        events.append(Event("checkout.charged_back", told))
    if attention is not None and attention != held.attention:
        events.append(Event("checkout.attention", {"reason": attention}))
    return events

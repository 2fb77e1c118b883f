"""What a lookup at the gateway shows, and what follows at once: the completion, surplus, automatic captures,
attention.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Unpack

from orchestrator.audit import SYSTEM, Action
from orchestrator.domain import binding, decisions, events, last_error, operations, reconciliation, schedule
from orchestrator.domain.attention import LATE, Attention, AttentionCode
from orchestrator.domain.events import Event, Totals
from orchestrator.domain.last_error import ErrorCode
from orchestrator.domain.payment_meaning import PaymentMeaning
from orchestrator.domain.reconciliation import LookupOutcome, Reconciliation
from orchestrator.domain.records import Binding, Cause, OperationKind, Role
from orchestrator.domain.states import CLOSED, State, Trigger
from orchestrator.gateway.outcomes import Done
from orchestrator.processing import callbacks
from orchestrator.processing.step import QUARANTINE, Step, retry
from orchestrator.store.checkouts import KEEP, order_is_shared, paying_others, rival_of, wake

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.domain.claimed_checkout import ClaimedCheckout
    from orchestrator.domain.records import Operation, PaymentRecord
    from orchestrator.domain.transaction import Found
    from orchestrator.store.checkouts.change import MoveFields


UNPAID: Final = frozenset({LookupOutcome.NOTHING, LookupOutcome.DECLINED})
"""What a lookup shows where nothing is paid and nothing is open."""
PAYABLE: Final = UNPAID | {LookupOutcome.OPEN}


async def lookup_unpaid(step: Step, *, payable: frozenset[LookupOutcome] = PAYABLE) -> Reconciliation | None:
    """Look the order up; None if the lookup failed, or shows more than `payable` (already written)."""
    verdict = await lookup(step)
    return None if verdict is None or await is_decided(step, verdict, payable=payable) else verdict


async def is_decided(
    step: Step, verdict: Reconciliation, *, payable: frozenset[LookupOutcome] = PAYABLE
) -> bool:
    """Complete a checkout that is paid, or leave it to a person where the lookup does not show it `payable`;
    say whether either was done.
    """
    if verdict.finding is LookupOutcome.PAID:
        await complete(step, verdict)
    elif verdict.finding not in payable:
        await unsure(step, verdict)
    else:
        return False
    return True


async def lookup(step: Step) -> Reconciliation | None:
    """Look the order up at the gateway; None if the lookup failed or the money belongs to another checkout
    (already written).
    """
    held = step.held
    outcome = await step.context.gateway.find_payments(step.account, order_ref=held.order_ref)
    if not isinstance(outcome, Done):
        await step.fail(retry(outcome), "payments")
        return None
    shared, elsewhere = False, frozenset[str]()
    if unbound := binding.unbound_money(held, outcome.value):
        if (
            held.state is State.FAILED
            and held.session_count == 0
            and await _moved_to_order(step, outcome.value, unbound)
        ):
            return None
        merchants = await step.context.merchants.sharing(step.account)
        elsewhere = await paying_others(step.context.db, held, merchants, unbound)
        shared = len(elsewhere) < len(unbound) and await order_is_shared(step.context.db, held, merchants)
    surcharges = step.merchant.policies.surcharge == "keep"
    verdict = reconciliation.judge(
        held, outcome.value, shared=shared, elsewhere=elsewhere, surcharges=surcharges
    )
    step.shown = verdict.finding
    return verdict


async def record(
    step: Step,
    verdict: Reconciliation,
    trigger: Trigger | None,
    action: Action | None = Action.CHECKOUT_MOVED,
    **changes: Unpack[MoveFields],
) -> None:
    """Write what a lookup shows, with the callbacks that it answers. It is counted, and ends an error, unless
    `changes` say otherwise.
    """
    fields: MoveFields = {
        "evidence": callbacks.with_callbacks(step, verdict.evidence),
        "payments": verdict.payments,
        "read": callbacks.ids(step),
        "require_capture": capture_required(step),
        "last_error": None,
        "lookups": step.held.lookups + 1,
        **changes,
    }
    await step.write(trigger, action, **fields)


# ── Attention ─────────────────────────────────────────────────────────────────────────────────────────────


def sticky_attention(step: Step) -> Attention | None:
    """Return the part of the attention that a lookup does not clear: only a person's decision does."""
    return reconciliation.sticky(step.cleared_attention())


def raised_attention(step: Step, attention: Attention) -> Attention | None:
    """Return an attention, unless a person decided the same question for a transaction of this checkout."""
    return None if any(payment.is_decided(attention.code) for payment in step.held.known) else attention


def note(step: Step, attention: Attention | None) -> Action | None:
    """Return the entry of a lookup that moves nothing: for a new question, or for callbacks; else none."""
    if attention is not None and attention.is_news(step.held.attention):
        return Action.ATTENTION_RAISED
    return Action.CALLBACK_READ if step.held.callbacks else None


# ── Money ─────────────────────────────────────────────────────────────────────────────────────────────────


async def complete(step: Step, verdict: Reconciliation) -> None:
    held, paying = step.held, verdict.paying
    late = held.state in CLOSED
    attention, back = surplus(step, verdict)
    policy: events.Policy = "keep"
    if late and not kept_by_decision(held, verdict):
        code, policy = _late_policy(step)
        if policy == "return" and code is AttentionCode.LATE_PAYMENT and not verdict.bound:
            # Tied by the order number alone: it may be another system's, and only a person may give that
            # back.
            policy = "ask"
        if policy == "ask":
            attention = attention or _late(step, verdict, code)
        elif policy == "return":
            back = (*back, *(_by_policy(payment, code) for payment in paying if payment.left > 0))
    attention = charged_back(step, verdict) or attention or sticky_attention(step)
    capture = policy == "keep" and captures(step, verdict)
    operating = (*back, *(captures_of(verdict) if capture else ()))
    completed = events.completed(
        [payment.transaction_id for payment in paying],
        late=late,
        policy=policy if late else None,
        surcharge=sum(payment.surcharge for payment in paying),
    )
    await record(
        step,
        verdict,
        Trigger.PAYMENT_FOUND,
        money=verdict.money,
        charged_back=verdict.charged_back,
        reserved_until=verdict.reserved_until,
        late=late,
        operations=operating,
        attention=attention,
        lookups=0,
        due_in=KEEP if operating else step.first_watch(verdict.reserved_until) or QUARANTINE,
        events=(completed, *news_of(step, verdict)),
    )


async def _moved_to_order(step: Step, found: Found, unbound: Sequence[str]) -> bool:
    """Move a payment to the checkout of its order, where intent and payment arrived at the same moment; wake
    that checkout.
    """
    held = step.held
    order = await rival_of(step.context.db, held)
    if order is None or await step.has_intent():
        return False
    if any(
        binding.is_older(order, transaction)
        for transaction in found.transactions
        if transaction.transaction_id in unbound
    ):
        return False  # made long before that order, which does not claim it
    async with step.context.db.transaction() as tx:
        await wake(tx, [order], grace=0.0)
    await step.write(
        None,
        Action.CALLBACK_READ,
        evidence=callbacks.with_callbacks(step, {"order": str(order)}),
        read=callbacks.ids(step),
        attention=sticky_attention(step),
        last_error=last_error.error(ErrorCode.LEFT_TO_ORDER, checkout=str(order)),
        lookups=held.lookups + 1,
        due_in=step.first_watch(None) or QUARANTINE,
    )
    return True


async def unsure(step: Step, verdict: Reconciliation) -> None:
    """Leave the state, continue the lookups, and raise attention: the answer proves neither a payment nor its
    absence.
    """
    held = step.held
    attention = verdict.attention or sticky_attention(step)
    await record(
        step,
        verdict,
        None,
        note(step, attention),
        attention=attention,
        last_error=last_error.undecided(attention),
        attempts=held.attempts,
        due_in=schedule.next_lookup(step.settings, held.lookups),
    )


def kept_by_decision(held: ClaimedCheckout, verdict: Reconciliation) -> bool:
    """Say whether a person decided to keep what pays the checkout, and with it the order."""
    kept = {payment.transaction_id for payment in held.known if decisions.kept(payment)}
    return kept.issuperset(payment.transaction_id for payment in verdict.paying)


def charged_back(step: Step, verdict: Reconciliation) -> Attention | None:
    """Return the attention for money that the shopper's bank has taken back since the last lookup."""
    if verdict.charged_back <= step.held.charged_back:
        return None
    facts = {"amount": verdict.charged_back, "currency": step.held.currency}
    return Attention(
        code=AttentionCode.CHARGED_BACK, payments=decisions.amounts_of(verdict.paying), facts=facts
    )


def _late_policy(step: Step) -> tuple[AttentionCode, events.Policy]:
    """Return what money is that came late, and what the merchant's policy says of it."""
    policies = step.merchant.policies
    if step.held.session_count == 0:
        # No session was ever opened for it: the payment came without an order.
        return AttentionCode.UNKNOWN_ORDER, policies.unknown_order
    return AttentionCode.LATE_PAYMENT, policies.late


def _late(step: Step, verdict: Reconciliation, code: AttentionCode) -> Attention | None:
    facts = {"orderId": step.held.order_ref} if code is AttentionCode.UNKNOWN_ORDER else {}
    payments = decisions.amounts_of(verdict.paying)
    return raised_attention(step, Attention(code=code, payments=payments, facts=facts))


def _by_policy(payment: PaymentRecord, code: AttentionCode) -> Operation:
    return operations.give_back(payment, actor=SYSTEM, reason=f"{code}: policy return")


def late_question(step: Step, verdict: Reconciliation) -> Attention | None:
    """Return the decision that is still open for money that came late, whatever else was raised meanwhile."""
    held = step.held
    if not held.late or verdict.left <= 0 or kept_by_decision(held, verdict):
        return None
    code, policy = _late_policy(step)
    if policy == "keep":
        return None
    going_back = any(
        operation.open and operation.cause == Cause.RETURNED and operation.transaction_id in held.accepted
        for operation in held.operations
    )
    return None if going_back else _late(step, verdict, code)


def surplus(step: Step, verdict: Reconciliation) -> tuple[Attention | None, tuple[Operation, ...]]:
    """Return the attention of a verdict, and the operations by which policy returns what is surplus beside a
    payment.
    """
    policy = step.merchant.policies.surplus
    if not verdict.surplus or verdict.finding is not LookupOutcome.PAID or policy == "ask":
        return verdict.attention, ()
    if policy == "keep":
        return None, ()
    # Once: if an earlier attempt failed, a person decides.
    tried = {
        operation.transaction_id for operation in step.held.operations if operation.cause == Cause.RETURNED
    }
    back = tuple(
        _by_policy(payment, AttentionCode.SURPLUS_PAYMENT)
        for payment in verdict.surplus
        # Tied by the order number alone: it may be another system's, and only a person may give that back.
        if payment.transaction_id not in tried and payment.binding == Binding.BOUND
    )
    given = {operation.transaction_id for operation in back}
    under_way = {operation.transaction_id for operation in step.held.operations if operation.open}
    left = [payment for payment in verdict.surplus if payment.transaction_id not in given | under_way]
    return (verdict.attention if left else None), back


def capture_required(step: Step) -> bool:
    """Return whether the gateway reported that it will not capture by itself, although it was requested."""
    return step.held.captures_itself and any(
        callbacks.proves_all(callback) and facts.require_capture is True
        for callback, facts in callbacks.opened(step)
    )


def captures(step: Step, verdict: Reconciliation) -> bool:
    """Return whether the worker captures a payment by itself: by the merchant's policy, or because the
    gateway will not.
    """
    held, policies = step.held, step.merchant.policies
    required = held.require_capture or capture_required(step)
    if not required and (held.auto_capture or policies.capture != "automatic"):
        return False
    # Late money, and money that was to be returned, is captured only once a person decided to keep it.
    accepted = [payment for payment in held.known if payment.role == Role.ACCEPTED]
    settled = not held.late or (
        not any(map(decisions.dismissed, accepted))
        and (
            policies.late == "keep"
            or kept_by_decision(held, verdict)
            or any(payment.is_decided(*LATE) for payment in accepted)
        )
    )
    tried = any(operation.cause in {Cause.AUTOMATIC, Cause.RETURNED} for operation in held.operations)
    reserved, captured, _ = verdict.money
    return settled and not tried and captured == 0 and reserved > 0


def captures_of(verdict: Reconciliation) -> tuple[Operation, ...]:
    """Return the captures of all that is reserved of what pays a checkout."""
    return tuple(
        operations.ask(
            payment,
            OperationKind.CAPTURE,
            amount=payment.reserved,
            cause=Cause.AUTOMATIC,
            actor=SYSTEM,
            reason="automatic capture",
        )
        for payment in verdict.paying
        if payment.captured == 0 and payment.reserved > 0
    )


def totals(step: Step, verdict: Reconciliation) -> tuple[Totals, Totals]:
    """Return the money of a checkout in our books, and as a lookup leaves it there."""
    held = step.held
    reserved, captured, refunded = verdict.money
    # Captured and refunded totals never shrink in our books, whatever a lookup shows.
    after = Totals(reserved, max(captured, held.captured), max(refunded, held.refunded), verdict.charged_back)
    return Totals(held.reserved, held.captured, held.refunded, held.charged_back), after


def news_of(step: Step, verdict: Reconciliation) -> list[Event]:
    """Return the events of what a lookup shows for the first time, beside the attention."""
    held = step.held
    news: list[Event] = []
    before = {payment.transaction_id for payment in held.known if payment.role == Role.SURPLUS}
    fresh = [payment.transaction_id for payment in verdict.surplus if payment.transaction_id not in before]
    if fresh and verdict.finding is LookupOutcome.PAID:
        news.append(events.surplus(fresh))
    was, after = totals(step, verdict)
    if after != was:
        paying = {payment.transaction_id for payment in verdict.paying} or held.accepted
        news += events.money_seen(
            was,
            after,
            # Totals of several parts name none of them.
            transaction_id=next(iter(paying)) if len(paying) == 1 else None,
            was_completed=held.state is State.COMPLETED,
        )
    return news


def declined(step: Step, verdict: Reconciliation) -> tuple[Event, ...]:
    """Return the event of attempts that a lookup shows for the first time as over without money.

    An attempt matched by order number only may belong to another checkout, which then has its row of
    `payments`, so that it would look new at each lookup. It counts only where a callback to this checkout
    names it.
    """
    before = {
        payment.transaction_id for payment in step.held.known if payment.meaning == PaymentMeaning.NOTHING
    }
    over = [
        payment
        for payment in verdict.payments
        if payment.meaning == PaymentMeaning.NOTHING and payment.transaction_id not in before
    ]
    if not over:
        return ()
    opened = callbacks.opened(step)
    named = {facts.transaction_id for callback, facts in opened if callbacks.counts(callback, facts)}
    fresh = [
        payment.transaction_id
        for payment in over
        if payment.binding == Binding.BOUND or payment.transaction_id in named
    ]
    if not fresh:
        return ()
    # Only of a callback that proves all of it: the text is shown to a shopper.
    reasons = [
        facts.error_message
        for callback, facts in opened
        if callbacks.proves_all(callback) and facts.transaction_id in {None, *fresh} and facts.error_message
    ]
    return (events.attempt_declined(fresh, reason=reasons[-1] if reasons else None),)

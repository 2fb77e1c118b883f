"""The processor: many checkouts at once on one event loop, each under its lease until its step
releases it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Final, Protocol, assert_never

from orchestrator import counters, log, traces
from orchestrator.audit import Action
from orchestrator.domain import command_rules, last_error, schedule
from orchestrator.domain.attention import Attention, AttentionCode
from orchestrator.domain.last_error import ErrorCode
from orchestrator.domain.records import CommandKind
from orchestrator.domain.states import UNOFFERED, State
from orchestrator.gateway.client import gateway_of
from orchestrator.gateway.limits.round_robin import RoundRobinSemaphore
from orchestrator.processing import (
    change_order,
    commands,
    lookup,
    lookup_budget,
    money_operations,
    monitor,
    open_session,
)
from orchestrator.processing.fair_share import FlowKey
from orchestrator.processing.step import POISONED, QUARANTINE, RENEW_BEFORE, Step
from orchestrator.store.batch import Unwritten
from orchestrator.store.checkouts import LeaseLost
from orchestrator.store.database import DatabaseAway, is_away
from orchestrator.store.merchant_fields import UnknownMerchant
from orchestrator.store.sqlstates import OTHER_SCHEMA, state_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from orchestrator.domain.claimed_checkout import ClaimedCheckout
    from orchestrator.processing.context import StepContext
    from orchestrator.processing.fair_share import QueueKind

_log = log.get(__name__)

NEWCOMER_TRIES: Final = 3
"""Tries to find a checkout's merchant, a second or more apart, before it raises attention."""
PAUSED_FOR: Final = 15.0
"""Seconds after which a checkout of a paused merchant is due again; it is not swept before the merchant is
resumed."""
ENOUGH: Final = 0.2
"""The part of a lease that must be left when a step begins. A live process renews it before; a call may
outlast it unless it moves money."""
STEPS_AT_ONCE: Final = 4
"""Steps that begin in one round of the event loop. A step takes about a millisecond of work, and so long the
next arrival waits."""

STEPS_IN_HAND: Final = 32
"""Steps waiting for the event loop, from which on the process is busy."""

_NO_QUEUES: Final[Mapping[UUID, QueueKind]] = {}


class Ended(Protocol):
    """Called when a checkout is processed no further."""

    def __call__(self, held: ClaimedCheckout, /, *, woken: bool) -> None:
        """Receive the checkout; the call may not wait."""


class CheckoutProcessor:
    """Processes checkouts; all of a process share one processor, and with it the batch writer and the
    gateway's connections.
    """

    def __init__(self, context: StepContext) -> None:
        self.context = context
        # Lookups for a callback, command or shopper, by merchant, that are not counted in its budget yet.
        self._uncounted: Counter[int] = Counter()
        # All steps share the loop: a step begins when its merchant is next in the round.
        self._slots = RoundRobinSemaphore(STEPS_AT_ONCE)
        self._stopping = False

    @property
    def busy(self) -> bool:
        """Whether so many steps wait for the event loop that further checkouts would only wait with them."""
        return self._slots.waiting >= STEPS_IN_HAND

    def stop(self) -> None:
        """Begin no further step: what is in flight ends its step and gives its lease back."""
        self._stopping = True

    async def process(
        self,
        held: Sequence[ClaimedCheckout],
        *,
        queues: Mapping[UUID, QueueKind] = _NO_QUEUES,
        ended: Ended | None = None,
    ) -> list[UUID]:
        """Process claimed checkouts as far as they can go; return those that were woken meanwhile and need
        another claim.

        `ended` is called for each as soon as its lease is released, with whether it was woken.
        """
        places = await self._places(held)
        woken = await asyncio.gather(
            *(
                self._run_checkout(
                    checkout,
                    places.get(checkout.id, 0.0),
                    queue=queues.get(checkout.id, "checkouts"),
                    ended=ended,
                )
                for checkout in held
            )
        )
        return [checkout.id for checkout, again in zip(held, woken, strict=True) if again]

    def gateway_of(self, merchant_id: int) -> str:
        """Return the gateway that a merchant's sessions are opened at, as far as it is in memory; else ""."""
        merchant = self.context.merchants.known(merchant_id)
        return "" if merchant is None else gateway_of(merchant.account.url)

    async def _places(self, held: Sequence[ClaimedCheckout]) -> dict[UUID, float]:
        """Return how many seconds the lookups of due checkouts must wait for their slot in their merchant's
        queue.
        """
        with_slot: dict[int, list[UUID]] = {}
        quiet: dict[int, list[UUID]] = {}
        offered = [checkout for checkout in held if checkout.state not in UNOFFERED]
        for checkout in sorted(offered, key=lookup_budget.rank) if len(offered) > 1 else offered:
            if not lookup_budget.waited_for(checkout):
                (with_slot if checkout.slot_reserved else quiet).setdefault(checkout.merchant_id, []).append(
                    checkout.id
                )
            elif not checkout.slot_reserved:
                self._uncounted[checkout.merchant_id] += 1
        if not (with_slot or quiet):
            return {}
        try:
            demands = [
                lookup_budget.Demand(
                    number,
                    lookup_budget.apart(
                        (await self.context.merchants.get(number)).policies.lookups_per_minute
                    ),
                    self._uncounted.pop(number, 0),
                    len(with_slot.get(number, ())),
                    len(quiet.get(number, ())),
                )
                for number in {**with_slot, **quiet}
            ]
            got = await lookup_budget.take(self.context.db, demands)
        except Exception as error:  # noqa: BLE001 - each checkout gets the same error in its own step
            if state_of(error) in OTHER_SCHEMA or not (isinstance(error, UnknownMerchant) or is_away(error)):
                _log.exception("places_not_taken")
            return {}
        waits: dict[UUID, float] = {}
        for demand in demands:
            ids = [*with_slot.get(demand.merchant_id, ()), *quiet.get(demand.merchant_id, ())]
            waits |= zip(ids, got[demand.merchant_id].waits(demand), strict=True)
        return waits

    async def _run_checkout(
        self, held: ClaimedCheckout, place: float, *, queue: QueueKind, ended: Ended | None
    ) -> bool:
        log.bind(checkout=str(held.id), correlation_id=held.correlation_id)
        step = Step(self.context, held)
        span = _traced(held) if traces.on else None
        try:
            await self._steps(step, place, queue)
        except LeaseLost:
            counters.lease_losses.add()
            _log.warning("lease_lost", state=step.held.state)
        except DatabaseAway:
            _log.warning("move_not_known", state=step.held.state)
        except Exception as error:  # noqa: BLE001 - whatever breaks in a step, its checkout keeps a due time
            if is_away(error):
                _log.warning("postgres_away", state=step.held.state, **log.cause(error))
            else:
                _log.exception("step_broke", state=step.held.state)
                await self._set_aside(step, error)
        finally:
            if span is not None:
                span.end(checkout=str(held.id), queue=queue, state=step.held.state.value)
            woken = step.held.woken and not self._stopping
            if ended is not None:
                ended(held, woken=woken)
        return woken

    async def _steps(self, step: Step, place: float, queue: QueueKind) -> None:
        held = step.held
        if held.claims > step.settings.poison_claims:
            await _quarantine(step)
            return
        if not await self._served(step):
            return
        merchant = step.merchant
        if place > lookup_budget.AT_ONCE:
            if step.token_ends_within(place + RENEW_BEFORE):
                # A token is no lookup: the shopper's session does not wait for the budget.
                await open_session.renew(step)
            if not step.released:
                await step.postpone(place, slot_reserved=True)
            return
        pause = self.context.circuit.left(merchant.id, merchant.account)
        loop, flow = asyncio.get_running_loop(), FlowKey(held.merchant_id, queue)
        while not step.released:
            await self._slots.take(flow)
            loop.call_soon(self._slots.give_back)
            if self._stopping or step.held.lease_left() < ENOUGH * step.settings.lease_seconds:
                await step.postpone(0.0)
            elif pause > 0 and not commands.wait(step.held):
                await step.postpone(pause + schedule.back_off(step.settings, 2))
            else:
                await _next(step)

    async def _served(self, step: Step) -> bool:
        """Give a step its merchant; False, and the checkout is postponed, where no call is made for it."""
        held = step.held
        try:
            merchant = step.merchant = await self.context.merchants.get(held.merchant_id)
        except UnknownMerchant:
            if held.attempts >= NEWCOMER_TRIES:
                raise
            # The merchant was added after this process last read the merchants.
            await step.write(
                None,
                None,
                attempts=held.attempts + 1,
                due_in=1.0 + schedule.back_off(step.settings, held.attempts),
            )
            return False
        if merchant.paused:
            # It is not swept from then on, until the merchant is resumed.
            await step.postpone(PAUSED_FOR + schedule.back_off(step.settings, 0))
        return not merchant.paused

    async def _set_aside(self, step: Step, error: Exception) -> None:
        """Set a due time after a step that failed unexpectedly, and raise attention."""
        held = step.held
        about = {"error": type(error).__name__, "state": held.state.value}
        broke = Attention(code=AttentionCode.STEP_BROKE, facts=about)
        try:
            await step.write(
                None,
                Action.ATTENTION_RAISED,
                evidence={"error": type(error).__name__},
                due_in=schedule.back_off(step.settings, held.attempts + 3),
                attempts=held.attempts + 1,
                last_error=last_error.error(ErrorCode.STEP_BROKE, **about),
                attention=step.cleared_attention() or broke,
            )
        except (LeaseLost, DatabaseAway, Unwritten):
            # The due time at the end of the lease stays, whether or not this entry is written.
            _log.warning("due_time_left_to_the_lease", state=held.state)


async def _quarantine(step: Step) -> None:
    """Raise attention for a checkout that was claimed again and again without a result."""
    held = step.held
    await step.write(
        None,
        Action.ATTENTION_RAISED,
        evidence={"claims": held.claims},
        due_in=QUARANTINE,
        attempts=held.attempts,
        attention=step.cleared_attention() or POISONED,
    )


def _traced(held: ClaimedCheckout) -> traces.Span | None:
    """Begin the span of a claim, with the time that a new order waited for it before."""
    now = held.now()
    place = traces.of_order(held.correlation_id, held.id, now)
    if place is None:
        return None
    if held.state is State.RECEIVED and held.attempts == 0 and held.created_at is not None:
        traces.past("wait for a worker", place, held.created_at, held.claimed_at, checkout=str(held.id))
    span = traces.begin("process", place)
    traces.current.set(None if span is None else span.place)
    return span


async def _next(step: Step) -> None:
    """Take the next step, within a span where the order's trace is kept."""
    outer, state = traces.current.get() if traces.on else None, step.held.state
    span = traces.begin(f"step {state}") if outer is not None else None
    if span is None:
        await _take(step)
        return
    traces.current.set(span.place)
    try:
        await _take(step)
    finally:
        traces.current.set(outer)
        span.end(state=step.held.state.value, version=step.held.version)


async def _take(step: Step) -> None:  # noqa: C901, PLR0912 - one line for each state
    held = step.held
    command = command_rules.ready(held) if step.answering is None else None
    if command is not None:
        await commands.execute(step, command)
        return
    operation = next(
        (candidate for candidate in held.operations if candidate.open and candidate.id not in step.waits),
        None,
    )
    if operation is not None:
        await money_operations.operate(step, operation)
        return
    if step.answering is not None and step.answering.kind is CommandKind.CHANGE:
        await change_order.change(step)
        return
    if step.answering is not None and held.state in UNOFFERED:
        await lookup.lookup_early(step)
        return
    if held.cancel_requested_at is not None and held.state in UNOFFERED:
        if held.offered_at is not None:
            # Reopened: a shopper may have paid through the session before.
            await lookup.await_payment(step)
            return
        # Nothing was ever offered to a shopper: there is nothing to wait for.
        await commands.cancel(step)
        return
    if open_session.is_given_up(held):
        await open_session.give_up(step)
        return
    match held.state:
        case State.RECEIVED:
            await open_session.authenticate(step)
        case State.AUTHENTICATED:
            await open_session.open_session(step)
        case State.SESSION_CREATED if held.outdated:
            await change_order.change_session(step)
        case State.SESSION_CREATED:
            await open_session.list_methods(step)
        case State.METHODS_FETCHED:
            await open_session.offer(step)
        case State.AWAITING_PAYMENT if held.callbacks:
            await lookup.read_callbacks(step)
        case State.AWAITING_PAYMENT:
            await lookup.await_payment(step)
        case State.CALLBACK_RECEIVED:
            await lookup.settle_callback(step)
        case State.COMPLETED | State.FAILED | State.EXPIRED | State.CANCELLED:
            await monitor.watch(step)
        case _:
            assert_never(held.state)

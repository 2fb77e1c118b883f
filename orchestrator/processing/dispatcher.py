"""The dispatcher: it receives hints, and claims and processes checkouts while slots are free, each merchant
within its fair share.

A hint is answered at once: its checkouts are claimed, or deferred in Postgres, where they stay hinted and
have a due time. So the backlog is in Postgres and delays no other merchant's hint. The dispatcher keeps the
flows that have deferred checkouts; when slots are free again it claims those that waited longest, without
another hint. A hint waits only while no slot is free at all.

While slots are free for all, no shares are computed and no merchant is read. Claims run one after the other,
each with all hints that came during the last: when idle no hint waits, and under load claims are fewer and
larger.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from uuid import UUID

from orchestrator import counters, log
from orchestrator.processing.fair_share import FairShare, FlowKey, SlotDemand
from orchestrator.store import readiness
from orchestrator.store.checkouts import claim, claim_waiting, merchants_of, renew
from orchestrator.store.database import is_away

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from orchestrator.domain.claimed_checkout import ClaimedCheckout
    from orchestrator.processing.fair_share import QueueKind
    from orchestrator.processing.processor import CheckoutProcessor

_log = log.get(__name__)

MOST: Final = 50
"""Checkouts in one claim: its rows are read on the event loop, which all other work waits for."""
PARTS: Final = 20
"""Free slots go to waiting flows in portions of one in so many: claims of one row each would cost more."""
CALLS_IN_HAND: Final = 2
"""Checkouts of one gateway in flight for each of its connections: one in its call, one being written or
waiting."""
REMEMBERED: Final = 1000
"""Ids of one merchant's checkouts that are kept in memory when callbacks must wait; the others are found when
due."""
RENEWALS: Final = 4
"""Times that a lease is renewed within its time."""
LONGEST_HELD: Final = 6
"""Times that a lease lasts, or a call to the gateway may, after which a lease is no longer renewed: its step
has a fault."""
AGAIN: Final = 1.0
"""Seconds from a failed claim to the next one, which is made even if no checkout waits."""
FAILURE_STANDS: Final = 6.0
"""Seconds for which a failure of claims counts although the probe works: a sweep hints again at what was not
claimed."""
NO_CHECKOUT: Final = UUID(int=0)
"""A checkout that does not exist: a claim of it shows whether claims work."""


@dataclass(frozen=True, slots=True, eq=False)
class _Hint:
    ids: Sequence[UUID]
    # None: no caller waits for it.
    done: asyncio.Future[bool] | None = None

    @property
    def over(self) -> bool:
        return self.done is not None and self.done.done()

    def answer(self, *, answered: bool = True) -> None:
        """Give the caller its result: answered or not.

        A value and never the exception: one exception object may reach several callers, and a caller outside
        the event loop (Celery) clears the frames of its traceback, which ends the coroutines that they belong
        to.
        """
        if self.done is not None and not self.done.done():
            self.done.set_result(answered)


class Dispatcher:
    """The entry of hints into one process, on its event loop."""

    def __init__(self, processor: CheckoutProcessor) -> None:
        settings = processor.context.settings
        self._processor, self._settings, self._db = processor, settings, processor.context.db
        self.fair_share = FairShare(
            places=settings.in_flight_limit, each=CALLS_IN_HAND * settings.gateway_pool_size
        )
        self._portion = max(min(self.fair_share.smallest // PARTS, MOST), 1)
        self._hints: dict[QueueKind, deque[_Hint]] = {"callbacks": deque(), "checkouts": deque()}
        # Flows with deferred checkouts. Those that came by callbacks are kept by id; the rest is in Postgres,
        # in order of due time.
        self._deferred: dict[FlowKey, dict[UUID, None]] = {}
        self._processed: dict[tuple[UUID, UUID], tuple[FlowKey, str, ClaimedCheckout]] = {}
        self._ended_since = 0
        self._wake = asyncio.Event()
        self._stopping = False
        self.rounds = 0
        """Rounds of the dispatcher that have ended, well or not; `waiting` that stays while this stands still
        is a fault."""
        self._round_ended = asyncio.get_running_loop().time()
        self.failure: str | None = None
        """Why claims fail, in words, from the first failure until a claim succeeds."""
        self._failed_at, self._probe_failed = 0.0, False
        self._under_way: set[asyncio.Task[list[UUID]]] = set()
        self._runner = asyncio.create_task(self._run(), name="dispatcher")
        self._runner.add_done_callback(self._runner_ended)
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._renewer = asyncio.create_task(self._renew(), name="leases")

    @property
    def overloaded(self) -> list[int]:
        """Merchants with deferred checkouts that this process claims by itself."""
        return [flow.merchant_id for flow in self._deferred if flow.queue == "checkouts"]

    @property
    def ended(self) -> bool:
        """Whether the dispatcher has ended, which only a shutdown may make it do."""
        return self._runner.done() and not self._stopping

    @property
    def waiting(self) -> int:
        """How many hints wait for the dispatcher although slots are free."""
        return 0 if self.fair_share.full or self._stopping else sum(map(len, self._hints.values()))

    @property
    def idle_seconds(self) -> float:
        """Seconds since the last round of the dispatcher ended."""
        return asyncio.get_running_loop().time() - self._round_ended

    async def admit(self, ids: Sequence[UUID], queue: QueueKind = "checkouts") -> bool:
        """Return when each of `ids` is claimed or deferred; false where a claim failed, or no slot became
        free within a lease's time.

        A checkout that is not claimed keeps its due time, and the failure is logged here: the caller has
        nothing to do.
        """
        if self._stopping:
            return False
        counters.hints.add(queue, by=len(ids))
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._put(_Hint(ids, done), queue)
        await asyncio.wait({done}, timeout=self._settings.lease_seconds)
        if done.done():
            return done.result()
        done.cancel()
        _log.warning("in_flight_limit_reached", in_flight=self.fair_share.taken)
        return False

    def stop(self) -> None:
        """Admit nothing more; what is in flight ends its step and gives its lease back."""
        self._stopping = True
        self._processor.stop()
        for hints in self._hints.values():
            for hint in hints:
                hint.answer()
            hints.clear()
        self._wake.set()

    async def close(self) -> None:
        """Stop, and wait for what is in flight."""
        self.stop()
        await asyncio.gather(self._runner, *self._under_way, return_exceptions=True)
        if not self._closed.done():
            self._closed.set_result(None)
        await self._renewer

    async def _renew(self) -> None:
        """Renew the leases of what takes long: they are short, so that what a dead process held
        is soon free.
        """
        seconds = self._settings.lease_seconds
        longest = LONGEST_HELD * max(seconds, self._settings.gateway_total_timeout)
        while not await self._is_closed_within(seconds / RENEWALS):
            # A step that takes this long has a fault here: its lease ends, and another worker claims the
            # checkout.
            held = [
                checkout
                for _, _, checkout in self._processed.values()
                if checkout.lease_left() < seconds * (1 - 1 / RENEWALS) and checkout.held_for() < longest
            ]
            if not held:
                continue
            try:
                async with asyncio.timeout(seconds):
                    await renew(self._db, held, lease_seconds=seconds)
            except Exception as error:  # noqa: BLE001 - the next round tries again; an ended lease is detected
                _log.warning("leases_not_renewed", leases=len(held), **log.cause(error))

    async def _is_closed_within(self, seconds: float) -> bool:
        await asyncio.wait((self._closed,), timeout=seconds)
        return self._closed.done()

    def _runner_ended(self, runner: asyncio.Task[None]) -> None:
        if not self._stopping:
            error = None if runner.cancelled() else runner.exception()
            _log.error("dispatcher_ended", exc_info=error)

    def _put(self, hint: _Hint, queue: QueueKind) -> None:
        self._hints[queue].append(hint)
        self._wake.set()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._stopping:
                return
            hints = self._gathered()
            try:
                # A claim older than a lease holds nothing any more.
                async with asyncio.timeout(self._settings.lease_seconds):
                    if self.failure is not None:
                        await self._probe_claims()
                    await self._admit(_queues(hints))
            except Exception as error:  # noqa: BLE001 - the callers get the result; the due times stay
                self._failed(error, hints)
            else:
                self._worked(hints)
                for _, hint in hints:
                    hint.answer()
            self.rounds += 1
            self._round_ended = asyncio.get_running_loop().time()

    def _gathered(self) -> list[tuple[QueueKind, _Hint]]:
        """Take hints for one claim, callbacks first; none while no slot is free."""
        gathered: list[tuple[QueueKind, _Hint]] = []
        size = 0
        for queue, hints in self._hints.items():
            while hints and size < MOST and not self.fair_share.full:
                hint = hints.popleft()
                if not hint.over:
                    gathered.append((queue, hint))
                    size += len(hint.ids)
        if any(self._hints.values()) and not self.fair_share.full:
            self._wake.set()
        return gathered

    async def _admit(self, queues: Mapping[UUID, QueueKind]) -> None:
        if self._deferred or self._processor.busy or not self.fair_share.fits(len(queues)):
            await self._share(queues)
        elif queues:
            self._begin(await self._claim(list(queues)), queues)

    async def _share(self, queues: Mapping[UUID, QueueKind]) -> None:
        """Give each flow its share of the free slots, flows with deferred checkouts included."""
        self._ended_since = 0
        named = await self._named(queues)
        demands = {
            flow: SlotDemand(self._processor.gateway_of(flow.merchant_id), len(named.get(flow, ())) or MOST)
            for flow in (*self._deferred, *named)
        }
        shares = self.fair_share.share(demands, most=MOST, busy=self._processor.busy)
        chosen: dict[UUID, QueueKind] = {}
        for flow, ids in named.items():
            mine = shares.get(flow, 0)
            chosen |= dict.fromkeys(ids[:mine], flow.queue)
            self._defer(flow, ids[mine:])
        waiting = {flow.merchant_id: number for flow, number in shares.items() if flow not in named}
        if chosen:
            self._begin(await self._claim(list(chosen)), chosen)
        # A few slots are kept for the next round, unless a merchant has none at all.
        if sum(waiting.values()) >= self._portion or any(
            not self.fair_share.held(FlowKey(merchant_id, "checkouts")) for merchant_id in waiting
        ):
            await self._claim_waiting(waiting)
        if sum(shares.values()) == MOST:
            self._wake.set()

    async def _named(self, queues: Mapping[UUID, QueueKind]) -> dict[FlowKey, list[UUID]]:
        """Return by flow which checkouts are claimed by id: hinted ones, and deferred ones of callbacks."""
        named: dict[FlowKey, dict[UUID, None]] = {
            flow: dict(ids) for flow, ids in self._deferred.items() if flow.queue == "callbacks"
        }
        merchants = await merchants_of(self._db, list(queues)) if queues else {}
        for checkout_id, merchant_id in merchants.items():
            flow = FlowKey(merchant_id, queues[checkout_id])
            # Where a merchant has deferred checkouts, those that waited longest come first; this one is only
            # hinted.
            if flow.queue == "callbacks" or flow not in self._deferred:
                named.setdefault(flow, {})[checkout_id] = None
        return {flow: list(ids) for flow, ids in named.items()}

    def _defer(self, flow: FlowKey, ids: Sequence[UUID]) -> None:
        self._deferred.pop(flow, None)
        if ids:
            by_id = ids[:REMEMBERED] if flow.queue == "callbacks" else ()
            self._deferred[flow] = dict.fromkeys(by_id)

    async def _claim_waiting(self, shares: Mapping[int, int]) -> None:
        settings = self._settings
        held = await claim_waiting(
            self._db, shares, lease_seconds=settings.lease_seconds, grace=settings.hint_grace
        )
        self._begin(held, {})
        found = Counter(checkout.merchant_id for checkout in held)
        for merchant_id, asked in shares.items():
            flow = FlowKey(merchant_id, "checkouts")
            self._deferred.pop(flow, None)
            if found[merchant_id] == asked:
                self._deferred[flow] = {}  # there may be more; the other flows are served first

    async def _claim(self, ids: Sequence[UUID]) -> list[ClaimedCheckout]:
        return await claim(self._db, ids, lease_seconds=self._settings.lease_seconds)

    def _begin(self, held: Sequence[ClaimedCheckout], queues: Mapping[UUID, QueueKind]) -> None:
        for checkout in held:
            flow = FlowKey(checkout.merchant_id, queues.get(checkout.id, "checkouts"))
            gateway = self._processor.gateway_of(checkout.merchant_id)
            self._processed[checkout.id, checkout.lease] = flow, gateway, checkout
            self.fair_share.enter(flow, gateway)
        if held:
            task = asyncio.create_task(self._processor.process(held, queues=queues, ended=self._ended))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    def _ended(self, checkout: ClaimedCheckout, *, woken: bool) -> None:
        flow, gateway, _ = self._processed.pop((checkout.id, checkout.lease))
        self.fair_share.leave(flow, gateway)
        self._ended_since += 1
        if woken and not self._stopping:
            # A wake-up that came during the lease is handled without the broker.
            self._put(_Hint((checkout.id,)), "callbacks")
        elif any(self._hints.values()) or (
            self._deferred and (self._ended_since >= self._portion or not self.fair_share.taken)
        ):
            self._wake.set()

    def _failed(self, error: Exception, hints: Collection[tuple[QueueKind, _Hint]]) -> None:
        for _, hint in hints:
            hint.answer(answered=False)
        away, loop = is_away(error), asyncio.get_running_loop()
        if hints or self.failure is None:  # a round that only tries whether claims work again is no news
            self._failed_at = loop.time()
            if away:
                _log.warning("claim_failed", **log.cause(error))
            else:
                _log.error("claim_broke", exc_info=error)
        self.failure = (
            readiness.reason(error) if away else f"{type(error).__name__}, see the log of the worker"
        )
        loop.call_later(AGAIN, self._wake.set)

    async def _probe_claims(self) -> None:
        """Claim a checkout that does not exist.

        Where that failed before, its success shows that claims work again.
        """
        refused, self._probe_failed = self._probe_failed, True
        await self._claim([NO_CHECKOUT])
        self._probe_failed = False
        if refused:
            self.failure = None

    def _worked(self, hints: Collection[tuple[QueueKind, _Hint]]) -> None:
        """Record that claims work.

        Where only the probe succeeded, wait until the checkouts of the failed claim are hinted again.
        """
        if self.failure is None:
            return
        loop = asyncio.get_running_loop()
        if hints or loop.time() - self._failed_at >= FAILURE_STANDS:
            self.failure = None
        else:
            loop.call_later(AGAIN, self._wake.set)


def _queues(hints: Iterable[tuple[QueueKind, _Hint]]) -> dict[UUID, QueueKind]:
    """Return by which queue each checkout came; by callbacks, where it came by both."""
    queues: dict[UUID, QueueKind] = {}
    for queue, hint in hints:
        for checkout_id in hint.ids:
            queues.setdefault(checkout_id, queue)
    return queues

"""The bridge between Celery's threads and the one event loop of the process, with everything that runs on
that loop.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from concurrent.futures import CancelledError
from concurrent.futures import Future as ThreadFuture
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import uvloop

from orchestrator import audit, counters, gc_tuning, log
from orchestrator.auth import accepts
from orchestrator.crypto import Encryptor
from orchestrator.gateway.client import Gateway
from orchestrator.gateway.limits import LONGEST_THROTTLE, shared_state
from orchestrator.messaging.dropped_messages import dropped
from orchestrator.messaging.hints import HintPublisher
from orchestrator.processing import CheckoutProcessor, Dispatcher, StepContext
from orchestrator.shutdown import cancelled
from orchestrator.store import checkouts
from orchestrator.store.database import Database, is_away
from orchestrator.store.heartbeats import BETWEEN, HEARTBEAT, Heart, unique_name, written
from orchestrator.store.merchants import Merchants
from orchestrator.store.readiness import Process
from orchestrator.worker.consumer import link
from orchestrator.worker.intents import IntentConsumer
from orchestrator.worker.retention import Retention
from orchestrator.worker.sequencer import Sequencer
from orchestrator.worker.submissions import Submissions
from orchestrator.worker.watchdog import CHECK_INTERVAL, Watchdog

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from concurrent.futures import Future
    from uuid import UUID

    from orchestrator.processing.fair_share import QueueKind
    from orchestrator.settings import Settings
    from orchestrator.worker.submissions import Message

_log = log.get(__name__)

T = TypeVar("T")

SWEEP_LIMIT: Final = 2000
INLET_POOL: Final = 3
"""Connections to Postgres for intents from the broker, opened when the first message arrives."""
BACKLOG_LIMIT: Final = 100
"""Messages in a queue beyond which a sweep publishes nothing, but claims a few of each merchant's due
checkouts itself."""


class Bridge:
    """One event loop for the whole process, with everything that lives on it; Celery's threads hand work over
    and wait.
    """

    def __init__(self, settings: Settings, *, fault: Callable[[str], None]) -> None:
        self._settings, self._fault = settings, fault
        self._name = unique_name()
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._live, name="loop", daemon=True)
        self._ready = threading.Event()
        self._end = asyncio.Event()
        self._start_error: BaseException | None = None
        self._received_at = self._swept = time.monotonic()
        self._counts = {"hints": 0, "checkouts": 0, "swept": 0}
        self._depths: dict[str, int] = {}
        self._depths_at = float("-inf")
        self._sweeping = threading.Lock()
        self._stopping = False
        self._running: set[Future[Any]] = set()
        # More than the longest round of the dispatcher.
        self._watchdog = Watchdog(most=int(2 * settings.lease_seconds) + 30, fault=self._failed)
        self.hint_publisher = HintPublisher(settings)
        # Without a key no token can be verified, and every intent would be refused.
        consumes = settings.intents_prefetch > 0 and accepts(settings)
        self._intents = IntentConsumer(settings, self._accept_intents) if consumes else None

    def start(self) -> None:
        """Start the loop and wait until it can work."""
        self.hint_publisher.start()
        self._thread.start()
        self._ready.wait()
        if self._start_error is not None:
            raise self._start_error
        if self._intents is not None:
            self._intents.start()

    def stop(self) -> None:
        """Begin nothing new; what is in flight ends its step and gives its lease back."""
        self._stopping = True
        self._watchdog.stop()
        if self._intents is not None:
            self._intents.stop()
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._dispatcher.stop)
        for future in list(self._running):
            future.cancel()

    def close(self) -> None:
        """Wait for what is in flight, write what has gathered, close all connections, end the loop."""
        self.stop()
        if self._intents is not None:
            self._intents.close()
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(timeout=self._settings.shutdown_timeout)
        self.hint_publisher.close()

    def _failed(self, fault: str) -> None:
        _log.error(
            "worker_stuck", fault=fault, dispatches=self._dispatcher.rounds, waiting=self._dispatcher.waiting
        )
        self._fault(fault)

    def process(self, ids: Sequence[UUID], queue: QueueKind = "checkouts") -> None:
        """Have these processed, and return when they are claimed or deferred."""
        self._received_at = time.monotonic()
        self._counts["hints"] += 1
        self._counts["checkouts"] += len(ids)
        self._run(self._dispatcher.admit(ids, queue), timeout=2 * self._settings.lease_seconds)

    def sweep(self) -> None:
        """Turn due checkouts into hints; where enough hints wait already, claim some due checkouts without
        hints. One sweep at a time.
        """
        self._received_at = time.monotonic()
        if self._stopping or not self._sweeping.acquire(blocking=False):
            return
        try:
            if self._depth() > BACKLOG_LIMIT:
                self._run(self._take_up(), timeout=2 * self._settings.lease_seconds)
                # A busy installation counts as reachable.
                self._swept = time.monotonic()
            else:
                self._run(self._sweep(), timeout=self._settings.lease_seconds)
        finally:
            self._sweeping.release()

    def seal(self) -> None:
        self._run(audit.seal(self._db, self._encryptor), timeout=120)

    def _accept_intents(self, message: Message) -> Future[None]:
        """Store a message of the queue `intents` on the event loop; cancelled where the loop has ended."""
        work = self._submissions.accept(message)
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:
            work.close()
            ended: Future[None] = ThreadFuture()
            ended.cancel()
            return ended

    def _depth(self) -> int:
        try:
            if time.monotonic() - self._depths_at < HEARTBEAT:
                return self.hint_publisher.depth("checkouts")
            self._depths_at, self._depths = time.monotonic(), self.hint_publisher.depths()
            return self._depths["checkouts"]
        except Exception as error:  # noqa: BLE001 - each transport has errors of its own; due checkouts are then claimed here
            _log.warning("backlog_not_known", **log.cause(error))
            return BACKLOG_LIMIT + 1

    def _run(self, work: Coroutine[Any, Any, T], *, timeout: float) -> T | None:
        """Run work on the loop, and return its result; None if it has none, and that is logged.

        No exception of the loop leaves here. Celery clears the frames of every exception that it gets; up to
        Python 3.11 that closes a coroutine that is suspended in one of them, while its task waits for ever.
        """
        if self._stopping:
            work.close()
            return None
        try:
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:  # the loop has ended
            work.close()
            return None
        self._running.add(future)
        try:
            return future.result(timeout)
        except CancelledError:
            _log.info("given_up_for_shutdown")
        except Exception as error:  # noqa: BLE001 - as said above
            if not future.done():
                future.cancel()
                _log.warning("hint_timed_out", seconds=timeout)
            elif is_away(error):
                _log.warning("database_away", **log.cause(error))
            else:
                _log.error("work_failed", exc_info=error)
        finally:
            self._running.discard(future)
        return None

    # On the loop.

    def _live(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._main())
        except BaseException as error:
            self._start_error = error
            raise
        finally:
            self._ready.set()
            self._loop.close()

    async def _main(self) -> None:
        settings = self._settings
        self._encryptor = Encryptor(settings.secret_keys)
        database = partial(
            Database,
            settings.need("database_url"),
            timeout=settings.database_timeout,
            prepared=settings.database_prepared_statements,
        )
        self._db = database(pool_size=settings.database_pool, name="orchestrator-worker")
        self._sequencer = Sequencer(self._db, retention=settings.event_retention_days * 86_400)
        self._moves = checkouts.Transitions(
            self._db, self._encryptor, batch_limit=settings.batch_limit, on_events=self._sequencer.wake
        )
        shared = shared_state.SharedGatewayState(
            settings.redis, name=self._name, longest=max(settings.breaker_pause, LONGEST_THROTTLE)
        )
        # Connections of their own: no transition waits for them, however many intents arrive.
        inlet = database(pool_size=INLET_POOL, name="orchestrator-intents")
        self._submissions = Submissions(
            settings, inlet, self._encryptor, self.hint_publisher, on_events=self._sequencer.wake
        )
        retention = Retention(self._db, self._encryptor, days=settings.personal_data_retention_days)
        async with self._db, inlet, Gateway(settings, shared) as gateway:
            self._gateway = gateway
            context = StepContext(
                settings=settings,
                db=self._db,
                encryptor=self._encryptor,
                gateway=gateway,
                transitions=self._moves,
                merchants=Merchants(self._db, self._encryptor, settings),
            )
            self._dispatcher = Dispatcher(CheckoutProcessor(context))
            gc_tuning.settle()
            self._watchdog.start(self._dispatcher)
            self._ready.set()
            beside = [
                asyncio.create_task(work)
                for work in (
                    self._tick(),
                    self._beat(),
                    self._listen(),
                    self._sequencer.run(),
                    self._submissions.forget(),
                    retention.run(),
                )
            ]
            await self._end.wait()
            await cancelled(beside)
            # Both at once: while Postgres does not answer, each takes seconds.
            await asyncio.gather(self._submissions.close(), self._dispatcher.close())
            await self._moves.close()
            await self._sequencer.close()

    async def _sweep(self) -> None:
        settings = self._settings
        due_now = await checkouts.sweep(
            self._db,
            most=SWEEP_LIMIT,
            grace=settings.hint_grace,
            overloaded=self._dispatcher.overloaded,
            few=settings.hint_size,
        )
        self._swept = time.monotonic()
        self._counts["swept"] += len(due_now)
        counters.sweeps.add("hint")
        counters.swept_checkouts.add(by=len(due_now))
        for checkout in due_now:
            if checkout.suspect:
                self.hint_publisher.publish([checkout.id], alone=True)
        well = [checkout for checkout in due_now if not checkout.suspect]
        self.hint_publisher.publish([checkout.id for checkout in well if checkout.woken], queue="callbacks")
        self.hint_publisher.publish([checkout.id for checkout in well if not checkout.woken])

    async def _take_up(self) -> int:
        """Process some of each merchant's due checkouts, without a way through the broker; return
        how many.
        """
        due_now = await checkouts.due(self._db, most=self._settings.hint_size)
        counters.sweeps.add("worker")
        counters.swept_checkouts.add(by=len(due_now))
        await self._dispatcher.admit([checkout.id for checkout in due_now if not checkout.suspect])
        for checkout in due_now:
            if checkout.suspect:
                await self._dispatcher.admit([checkout.id])
        return len(due_now)

    async def _listen(self) -> None:
        """Sweep in this process while no sweep message comes: the scheduler or the broker is away, or sweeps
        fail.
        """
        settings = self._settings
        while True:
            await asyncio.sleep(settings.sweep_interval * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
            # Sweeps, not hints: a scheduler can be away while orders still come in.
            if time.monotonic() - self._swept < settings.self_sweep_after:
                continue
            try:
                taken = await self._take_up()
                if taken:
                    _log.warning("swept_by_itself", checkouts=taken)
            except Exception as error:  # noqa: BLE001 - the next round tries again, whatever it was
                _log.warning("self_sweep_failed", **log.cause(error))

    async def _tick(self) -> None:
        """Show the watchdog that the loop runs."""
        while True:
            self._watchdog.ticks += 1
            await asyncio.sleep(CHECK_INTERVAL / 4)

    async def _beat(self) -> None:
        """Say that this process makes progress, and how much."""
        heart = Heart(self._db, "worker", self._name)
        await heart.forget()
        due, wrong = 0.0, (False, False)
        try:
            while True:
                progress = self._progress()
                was = wrong
                wrong = bool(Process(self._name, "worker", 0.0, progress).troubles), "circuits" in progress
                if wrong != was or time.monotonic() >= due:
                    dropped.tell()
                    well = await heart.beat(progress)
                    due = time.monotonic() + (HEARTBEAT if well else 0.0)
                await asyncio.sleep(BETWEEN)
        finally:
            await heart.end()

    def _progress(self) -> dict[str, object]:
        trouble = self.hint_publisher.trouble or (link.reason if link.away else None)
        intents_trouble = self._intents.trouble if self._intents is not None else None
        consumed = self._submissions.counts
        stalled, stalled_by = self._submissions.stalled
        for result, number in (("accepted", consumed.accepted), ("rejected", consumed.rejected)):
            counters.queued_intents.values[result,] = float(number)
        circuits = self._gateway.limits.troubles
        return {
            **self._counts,
            "heardSecondsAgo": round(time.monotonic() - self._received_at, 1),
            "inFlight": self._dispatcher.fair_share.taken,
            "overloaded": len(self._dispatcher.overloaded),
            **written(self._moves.writes),
            "dispatches": self._dispatcher.rounds,
            "dispatchedSecondsAgo": round(self._dispatcher.idle_seconds, 1),
            "waiting": self._dispatcher.waiting,
            "messagesDropped": dropped.total,
            "gateways": self._gateway.limits.counts(),
            "intentMessages": consumed.messages,
            "intentsAccepted": consumed.accepted,
            "intentsRejected": consumed.rejected,
            "intentsStalledSeconds": round(stalled, 1),
            **({"intentsStalledBy": stalled_by} if stalled_by else {}),
            **({"claimsFail": self._dispatcher.failure} if self._dispatcher.failure else {}),
            **({"brokerTrouble": trouble} if trouble else {}),
            **({"intentsTrouble": intents_trouble} if intents_trouble else {}),
            **({"queued": self._depths} if self._depths else {}),
            **({"circuits": circuits} if circuits else {}),
        }

"""The batch writer: many small writes become few large ones.

`Batch` writes the items that gathered during the last commit, so that it adds no wait when idle and grows
under load; under many arrivals it waits a few milliseconds for more of them.

It is exact: no two items of a batch have a key in common; an item whose row another transaction holds is
moved to a later batch; a row that Postgres rejects is found by bisection and fails only its own caller; a
connection lost at COMMIT means *not known*, and the batch is written again, so a write must recognise its own
earlier success.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from orchestrator import counters, log
from orchestrator.errors import OrchestratorError
from orchestrator.shutdown import cancelled
from orchestrator.store.connection import STRETCH, Unanswered
from orchestrator.store.database import DatabaseAway, is_away
from orchestrator.store.sqlstates import state_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable, Sequence


_log = log.get(__name__)

T = TypeVar("T")
R = TypeVar("R")

_DELAY_SHARE: Final = 3.0
"""How many times as long as a batch took the next may wait for more, where there is a burst."""
_LONGEST_DELAY: Final = 0.025
_ENOUGH: Final = 200
"""Items that are written at once, also if each of them may wait."""
_ONE_WRITE: Final = 30.0
"""Seconds for one write of a batch, with everything that it waits for."""
_CLOSING: Final = 10.0
"""Seconds that a batch gets to write what is queued when it is closed."""


class Unwritten(OrchestratorError):  # noqa: N818 - named for the fact
    """Postgres refused this row for good; nothing of it was written, and its batch was written without it."""


class Again:
    """Returned for an item to try later: another transaction holds its row."""


AGAIN: Final = Again()


@dataclass(slots=True, eq=False)
class _Waiting(Generic[T, R]):
    item: T
    keys: Sequence[Hashable]
    done: asyncio.Future[R]
    # Why it still waits: the last error, or that another transaction holds its row.
    error: Exception | None = None
    skipped: bool = False


@dataclass(frozen=True, slots=True)
class Writes:
    """How a writer fares: seconds since it last wrote while something waits (0 if nothing does), and the
    SQLSTATE that it failed with.
    """

    name: str
    stalled: float
    error: str
    committed: float | None
    """Seconds since it last wrote; None if it never did."""


class Batch(Generic[T, R]):
    """Gathers items and writes them together; each `put` waits for the result of its own item.

    `write` takes a list of items, no two of which share any of their `keys`, and returns for each, in order,
    its result, the error that its caller gets, or `AGAIN`. It must be safe to repeat: after a lost connection
    the same list is written again, and items that had landed must be reported as landed.
    """

    def __init__(
        self,
        write: Callable[[list[T]], Awaitable[Sequence[R | OrchestratorError | Again]]],
        *,
        keys: Callable[[T], Sequence[Hashable]],
        limit: int = 500,
        backlog: int = 20_000,
        timeout: float = 30.0,
        name: str = "batch",
    ) -> None:
        self._write = write
        self._keys = keys
        self._limit = limit
        self._room = asyncio.Semaphore(backlog)
        self._timeout = timeout
        self._name = name
        self._queue: deque[_Waiting[T, R]] = deque()
        self._wakeup = asyncio.Event()
        self._sooner = asyncio.Event()
        """Set where what gathers is to be written before the time that it may wait."""
        self._writing = False
        self._gather_until = -math.inf
        self._under_way: list[_Waiting[T, R]] = []
        self._wrote = self._waits_since = -math.inf
        self._error = ""
        self._runner: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop
        """Of the runner: to ask for the running one costs a system call."""

    @property
    def writes(self) -> Writes:
        """How writing fares, for health: by what was written, and not by what could be read."""
        now = time.monotonic()
        waits = any(not waiting.done.done() for waiting in (*self._under_way, *self._queue))
        return Writes(
            self._name,
            now - max(self._wrote, self._waits_since) if waits else 0.0,
            self._error,
            now - self._wrote if self._wrote > -math.inf else None,
        )

    async def put(self, item: T, *, within: float = 0.0) -> R:
        """Write `item` with the other gathered items and return its result, or raise its error: `Unwritten`
        if Postgres rejects it, `DatabaseAway` if its result is not known within the timeout (Postgres is out
        of reach, a write hangs, or another transaction holds the row). `within`: seconds for which it may
        wait for more to be written with it, as long as there are few.
        """
        async with self._room:
            (waiting,) = everything = self._queued((item,), within)
            timer = self._loop.call_later(self._timeout, self._give_up, everything)
            try:
                return await waiting.done
            except asyncio.CancelledError:
                _abandon(everything)
                raise
            finally:
                timer.cancel()

    async def put_all(self, items: Sequence[T], *, within: float = 0.0) -> list[R | OrchestratorError]:
        """Write items as `put` does; return the result or the error of each, in order. A list has one timer,
        so that an item costs far less than by `put`; in the backlog it counts as one.
        """
        if not items:
            return []
        async with self._room:
            everything = self._queued(items, within)
            timer = self._loop.call_later(self._timeout, self._give_up, everything)
            results: list[R | OrchestratorError] = []
            try:
                for waiting in everything:
                    # Results are given batch by batch: most of these waits end at once.
                    try:
                        results.append(await waiting.done)
                    except OrchestratorError as error:
                        results.append(error)
            except asyncio.CancelledError:
                _abandon(everything)
                raise
            else:
                return results
            finally:
                timer.cancel()

    def _queued(self, items: Sequence[T], within: float) -> list[_Waiting[T, R]]:
        if self._runner is None:
            self._loop = asyncio.get_running_loop()
            self._runner = self._loop.create_task(self._run(), name=f"batch-{self._name}")
        future = self._loop.create_future
        everything: list[_Waiting[T, R]] = [_Waiting(item, self._keys(item), future()) for item in items]
        now = time.monotonic()
        if not self._queue and not self._writing:
            self._waits_since = now
        until = self._gather_until if self._queue else math.inf
        self._gather_until = min(now + within, until)
        self._queue.extend(everything)
        if now + within < until or len(self._queue) >= _ENOUGH:
            self._sooner.set()
        self._wakeup.set()
        return everything

    def _give_up(self, everything: Sequence[_Waiting[T, R]]) -> None:
        for waiting in everything:
            why = "another transaction holds the row" if waiting.skipped else "Postgres is out of reach"
            failure = DatabaseAway(f"not known to be written after {self._timeout:g} s: {why}")
            _fail(waiting, failure, waiting.error)

    async def close(self, *, within: float = _CLOSING) -> None:
        """Write what is queued, for some seconds at most, then stop; the rest fails with `DatabaseAway`."""
        end = time.monotonic() + within
        try:
            while (self._queue or self._writing) and time.monotonic() < end:  # noqa: ASYNC110 - once in the life of a process
                await asyncio.sleep(0.005)
        finally:
            left = (*self._under_way, *self._queue)
            if self._runner is not None:
                await cancelled([self._runner])
                self._runner = None
            for waiting in left:
                _fail(waiting, DatabaseAway("not known to be written: the process ends"), waiting.error)

    async def _run(self) -> None:
        while True:
            await self._wakeup.wait()
            self._wakeup.clear()
            self._writing = True
            try:
                while self._queue:
                    # At least one round of the loop: all tasks that are ready now get into this batch.
                    await asyncio.sleep(0)
                    while (left := self._gather_until - time.monotonic()) > 0 and len(self._queue) < _ENOUGH:
                        self._sooner.clear()
                        with suppress(TimeoutError):
                            async with asyncio.timeout(left):
                                await self._sooner.wait()
                    begun = time.monotonic()
                    self._under_way = self._take()
                    progress = await self._settle(self._under_way)
                    if not progress:
                        await asyncio.sleep(random.uniform(0.002, 0.02))  # noqa: S311 - jitter
                    elif self._queue:
                        # A burst: a batch costs far more than another row in it, so let some gather. A single
                        # item, or one item after the other, never waits.
                        await asyncio.sleep(min((time.monotonic() - begun) * _DELAY_SHARE, _LONGEST_DELAY))
            finally:
                self._writing = False
                self._under_way = []

    def _take(self) -> list[_Waiting[T, R]]:
        taken: list[_Waiting[T, R]] = []
        keys: set[Hashable] = set()
        later: list[_Waiting[T, R]] = []
        while self._queue and len(taken) < self._limit:
            waiting = self._queue.popleft()
            if waiting.done.done():
                continue
            if keys.isdisjoint(waiting.keys):
                keys.update(waiting.keys)
                taken.append(waiting)
            else:
                later.append(waiting)
        self._queue.extendleft(reversed(later))
        return taken

    async def _settle(self, batch: list[_Waiting[T, R]]) -> bool:
        """Write one batch and give its callers the results; return whether any item got one."""
        delay, stretch = 0.05, 1.0
        while batch:
            begun = time.monotonic()
            STRETCH.set(stretch)
            try:
                async with asyncio.timeout(_ONE_WRITE):
                    results = await self._write([waiting.item for waiting in batch])
            except Exception as error:  # noqa: BLE001 - a caller must get every failure, whatever it is
                if not is_away(error):
                    await self._bisect(batch, error)
                    return True
                _log.warning("batch_postponed", batch=self._name, size=len(batch), **log.cause(error))
                if isinstance(getattr(error, "orig", None), Unanswered):
                    # Silent, or slow: in that case it gets there in the end.
                    stretch *= 2
                self._error = state_of(error)
                for waiting in batch:
                    waiting.error, waiting.skipped = error, False
                await asyncio.sleep(random.uniform(0, delay))  # noqa: S311 - jitter
                delay = min(delay * 2, 0.5)
                # Callers that have ended (cancelled, or timed out) are left out.
                batch = [waiting for waiting in batch if not waiting.done.done()]
            else:
                counters.batch_rows.observe(len(batch), self._name)
                counters.batch_seconds.observe(time.monotonic() - begun, self._name)
                return self._tell(batch, results)
        return True

    def _tell(self, batch: list[_Waiting[T, R]], results: Sequence[R | OrchestratorError | Again]) -> bool:
        progress = False
        for waiting, result in zip(batch, results, strict=True):
            if isinstance(result, Again):
                waiting.skipped = True
                self._queue.append(waiting)
                continue
            progress = True
            if isinstance(result, OrchestratorError):
                _fail(waiting, result, None)
            elif not waiting.done.done():
                waiting.done.set_result(result)
        if progress:
            self._wrote, self._error = time.monotonic(), ""
        return progress

    async def _bisect(self, batch: list[_Waiting[T, R]], error: Exception) -> None:
        if len(batch) == 1:
            _log.error("row_refused", batch=self._name, **log.cause(error))
            _fail(batch[0], Unwritten(f"Postgres refused this row ({type(error).__name__})"), error)
            return
        half = len(batch) // 2
        await self._settle(batch[:half])
        await self._settle(batch[half:])


def _abandon(everything: Sequence[_Waiting[Any, Any]]) -> None:
    """Wait no more for results."""
    for waiting in everything:
        if not waiting.done.cancel() and not waiting.done.cancelled():
            waiting.done.exception()  # or asyncio logs that it was not read


def _fail(waiting: _Waiting[Any, Any], failure: OrchestratorError, cause: BaseException | None) -> None:
    if not waiting.done.done():
        failure.__cause__ = cause
        waiting.done.set_exception(failure)


class Batched:
    """What owns a batch."""

    _batch: Batch[Any, Any]

    @property
    def writes(self) -> Writes:
        """How writing fares, for health."""
        return self._batch.writes

    async def close(self) -> None:
        """Write what has gathered, then stop."""
        await self._batch.close()

"""The sequencer of a worker: gives committed events their positions in the feeds, and deletes events that are
no longer kept.

It is woken after each commit of this process that wrote events, so a position follows within about
40 milliseconds, within a tenth of a second where no endpoint exists, and within a fifth where the machine is
busy. About once a second it also checks for events of other processes: those of the API, and those of a
worker that was killed after its commit. Each worker has a sequencer, and an advisory lock allows one at a
time to give positions. No move waits for it.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Final

from orchestrator import log
from orchestrator.store import events, webhooks

if TYPE_CHECKING:
    from orchestrator.store.database import Database

_log = log.get(__name__)

INTERVAL: Final = 1.0
"""Seconds after which it checks for events without a position that it was not woken for."""
GATHER: Final = 0.042
"""Seconds from one list to the next, in which the next list gathers while many events come. A delivery waits
half of it on average, and costs the less the more events come together: about a fifth less than at 0.02 s
where 200 events come a second.
"""
GATHER_FOR_READERS: Final = 0.1
"""The same where no endpoint exists and only readers of the feed wait: longer lists cost less."""
PAUSE: Final = 5.0
"""How many times as long as the last list took the next one gathers at least, up to `LONGEST_PAUSE`. A list
takes longer where the machine has much to do; fewer and longer lists leave more of it to the orders."""
LONGEST_PAUSE: Final = 0.2
"""Seconds."""
LOOK_FOR_ENDPOINTS_EVERY: Final = 5.0
"""Seconds between two checks whether an endpoint exists."""
FORGET_EVERY: Final = 600.0
"""Seconds between two checks for events that are no longer kept."""
CLOSING: Final = 2.0
"""Seconds that the last events of a process may take at its end; another worker gives positions to what is
left."""


def pause(took: float) -> float:
    """Return the seconds between a list that took so long and the next."""
    return min(max(took * PAUSE, GATHER / 4), LONGEST_PAUSE)


class Sequencer:
    """Gives positions to the events of a database for one process; `retention` is in seconds."""

    def __init__(self, db: Database, *, retention: float) -> None:
        self._db = db
        self._retention = retention
        self._woken = asyncio.Event()
        # Not all workers of an installation at once.
        self._forget_at = time.monotonic() + random.uniform(0.1, 1.0) * FORGET_EVERY  # noqa: S311 - jitter
        self._gather, self._look_at = GATHER, 0.0

    def wake(self) -> None:
        """Note that events were committed; returns at once."""
        self._woken.set()

    async def run(self) -> None:
        """Give positions and delete until it is cancelled; no error ends it."""
        while True:
            try:
                async with asyncio.timeout(INTERVAL * random.uniform(0.8, 1.2)):  # noqa: S311 - jitter
                    await self._woken.wait()
            except TimeoutError:
                pass
            began, took = time.monotonic(), 0.0
            try:
                took = await self.number()
                await self._now_and_then()
            except Exception as error:  # noqa: BLE001 - the next round tries again, whatever it was
                _log.warning("events_not_numbered", **log.cause(error))
                await asyncio.sleep(INTERVAL)
            await asyncio.sleep(max(self._gather - (time.monotonic() - began), pause(took)))

    async def _now_and_then(self) -> None:
        now = time.monotonic()
        if now >= self._look_at:
            self._gather = GATHER if await webhooks.exist(self._db) else GATHER_FOR_READERS
            self._look_at = now + LOOK_FOR_ENDPOINTS_EVERY
        if now >= self._forget_at:
            await self.forget()
            self._forget_at = time.monotonic() + FORGET_EVERY

    async def number(self) -> float:
        """Give every event that is committed by now its position, or leave that to the process that does so
        at this moment; return the seconds that the last list took.
        """
        took = 0.0
        sure = self._woken.is_set()
        self._woken.clear()
        while sure or await events.waiting(self._db):
            began = time.monotonic()
            placed = await events.place(self._db)
            took = time.monotonic() - began
            if placed is None:
                # The process that has the lock may have read before our commit.
                await asyncio.sleep(GATHER * random.uniform(0.25, 0.5))  # noqa: S311 - jitter
            elif placed < events.PLACED_AT_ONCE:
                break
            sure = False
        return took

    async def forget(self) -> None:
        """Delete what is older than the retention, list by list."""
        while gone := await events.forget(self._db, older_than=self._retention):
            _log.info("events_forgotten", events=gone)
            await asyncio.sleep(GATHER)

    async def close(self) -> None:
        """Give positions to the events of the last moves."""
        try:
            async with asyncio.timeout(CLOSING):
                await self.number()
        except Exception as error:  # noqa: BLE001 - as in `run`
            _log.warning("events_not_numbered", **log.cause(error))

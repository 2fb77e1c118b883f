"""The bridge between Celery's threads and the one event loop of the process, with everything that lives on that loop."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import threading
import time
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TYPE_CHECKING, Any, Final, TypeVar

import uvloop

from orchestrator import audit, lifecycle, log
from orchestrator.carry import Carrier
from orchestrator.db import Database, is_away
from orchestrator.gateway.client import Gateway
from orchestrator.merchants import Merchants
from orchestrator.vault import Vault
from orchestrator.worker.doorbell import Doorbell
from orchestrator.worker.heartbeat import BEAT, FORGET, GONE, HEARTBEAT, heartbeat, note

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence
    from uuid import UUID

    from orchestrator.settings import Settings

_log = log.get(__name__)

T = TypeVar("T")

SWEEP_LIMIT: Final = 2000
BACKLOG_LIMIT: Final = 100
"""Messages in a queue beyond which a sweep publishes nothing: what is queued already is work enough."""


class Bridge:
    """One event loop for the whole process, with everything that lives on it; Celery's threads hand work over and wait."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._live, name="loop", daemon=True)
        self._ready = threading.Event()
        self._end = asyncio.Event()
        self._failed: BaseException | None = None
        self._heard = self._swept = time.monotonic()
        self._counts = {"hints": 0, "checkouts": 0, "swept": 0}
        self._sweeping = threading.Lock()
        self.doorbell = Doorbell(settings)

    def start(self) -> None:
        """Start the loop and wait until it can work."""
        self.doorbell.start()
        self._thread.start()
        self._ready.wait()
        if self._failed is not None:
            raise self._failed

    def stop(self) -> None:
        """Begin nothing new; what is in flight ends its step and gives its lease back."""
        self._loop.call_soon_threadsafe(self._carrier.stop)

    def close(self) -> None:
        """Write what has gathered, close all connections, end the loop."""
        self._loop.call_soon_threadsafe(self._carrier.stop)
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(timeout=self._settings.lease_seconds)
        self.doorbell.close()

    def carry(self, ids: Sequence[UUID]) -> None:
        """Carry these as far as they go; give up waiting, not working, when the lease is over."""
        self._heard = time.monotonic()
        self._counts["hints"] += 1
        self._counts["checkouts"] += len(ids)
        self._run(self._carry(ids), timeout=self._settings.lease_seconds)

    def sweep(self) -> None:
        """Turn ringing alarms into hints, unless enough hints wait already. One sweep at a time in a process."""
        self._heard = time.monotonic()
        if not self._sweeping.acquire(blocking=False):
            return
        try:
            if self.doorbell.depth("checkouts") > BACKLOG_LIMIT:
                # What is queued is work enough, and a busy installation is not a silent one.
                self._swept = time.monotonic()
                return
            self._run(self._sweep(), timeout=self._settings.lease_seconds)
        finally:
            self._sweeping.release()

    def seal(self) -> None:
        """Seal the audit trail."""
        self._run(audit.seal(self._db, self._vault), timeout=120)

    def _run(self, work: Coroutine[Any, Any, T], *, timeout: float) -> T | None:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(timeout)
        except FutureTimeout:
            _log.warning("waited_out", seconds=timeout)
        except Exception as error:
            if not is_away(error):
                raise
            _log.warning("database_away", error=type(error).__name__)
        return None

    # On the loop.

    def _live(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._main())
        except BaseException as error:
            self._failed = error
            raise
        finally:
            self._ready.set()
            self._loop.close()

    async def _main(self) -> None:
        settings = self._settings
        self._vault = Vault(settings.secret_keys)
        self._db = Database(
            settings.need("database_url"), pool_size=settings.database_pool, name="orchestrator-worker"
        )
        self._moves = lifecycle.Lifecycle(self._db, self._vault, batch_limit=settings.batch_limit)
        async with self._db, Gateway(settings) as gateway:
            self._carrier = Carrier(
                settings,
                self._db,
                self._vault,
                gateway=gateway,
                lifecycle=self._moves,
                merchants=Merchants(self._db, self._vault, settings),
            )
            self._ready.set()
            beside = [asyncio.create_task(self._beat()), asyncio.create_task(self._listen())]
            await self._end.wait()
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            await self._moves.close()

    async def _carry(self, ids: Sequence[UUID]) -> None:
        # A ring that came while we held the lease is answered at once, without a way through the broker.
        for _ in range(3):
            ids = await self._carrier.carry(ids)
            if not ids:
                return
        self.doorbell.ring(ids)

    async def _sweep(self) -> None:
        ringing = await lifecycle.sweep(self._db, most=SWEEP_LIMIT, grace=self._settings.hint_grace)
        self._swept = time.monotonic()
        self._counts["swept"] += len(ringing)
        for one in ringing:
            if one.suspect:
                self.doorbell.ring([one.id], alone=True)
        well = [one for one in ringing if not one.suspect]
        self.doorbell.ring([one.id for one in well if one.rung], queue="callbacks")
        self.doorbell.ring([one.id for one in well if not one.rung])

    async def _listen(self) -> None:
        """Sweep by ourselves while nobody has us sweep: the scheduler or the broker is away, or sweeps fail."""
        settings = self._settings
        while True:
            await asyncio.sleep(settings.sweep_interval * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
            # Sweeps, not hints: a scheduler can be away while orders still come in.
            if time.monotonic() - self._swept < settings.self_sweep_after:
                continue
            try:
                ringing = await lifecycle.due(self._db, most=settings.hint_size)
                if ringing:
                    _log.warning("swept_by_itself", checkouts=len(ringing))
                await self._carry([one.id for one in ringing if not one.suspect])
                for one in ringing:
                    if one.suspect:
                        await self._carry([one.id])
            except Exception as error:  # noqa: BLE001 - the next round tries again, whatever it was
                _log.warning("self_sweep_failed", error=type(error).__name__)

    async def _beat(self) -> None:
        """Say that this process makes progress, and how much."""
        await note(self._db, FORGET, {})
        try:
            while True:
                progress = {**self._counts, "heardSecondsAgo": round(time.monotonic() - self._heard, 1)}
                await note(self._db, BEAT, heartbeat(self._name, "worker", progress))
                await asyncio.sleep(HEARTBEAT)
        finally:
            await note(self._db, GONE, {"name": self._name})

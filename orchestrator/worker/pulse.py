"""The scheduler's sign of life, given only while its sweeps reach the broker."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

from orchestrator.store.database import Database
from orchestrator.store.heartbeats import BETWEEN, HEARTBEAT, Heart

if TYPE_CHECKING:
    from orchestrator.settings import Settings


class Pulse:
    """The scheduler's heartbeat, from a thread of its own: given only while its sweeps reach the broker."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._published = float("-inf")
        self._silence = max(3 * HEARTBEAT, 5 * settings.sweep_interval)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._beat()), name="pulse", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def published(self) -> None:
        """Note that a sweep has reached the broker."""
        self._published = time.monotonic()

    def stop(self) -> None:
        """Take the heartbeat back, within seconds."""
        self._ended.set()
        self._thread.join(timeout=3)

    async def _beat(self) -> None:
        async with Database(
            self._settings.need("database_url"),
            pool_size=1,
            name="orchestrator-scheduler",
            timeout=self._settings.database_timeout,
            prepared=self._settings.database_prepared_statements,
        ) as db:
            heart, wait = Heart(db, "scheduler"), 0.0
            while not await asyncio.to_thread(self._ended.wait, wait):
                since = time.monotonic() - self._published
                # Until the first sweep is published, check often: the operator who starts it waits for it.
                wait = HEARTBEAT if since < self._silence else 0.2
                if since < self._silence and not await heart.beat({"publishedSecondsAgo": round(since, 1)}):
                    wait = BETWEEN
            await heart.end()

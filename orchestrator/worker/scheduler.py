"""The scheduler: publishes the sweep, and the seal of the audit trail, each in its interval.

Intervals are counted by a monotonic clock, so that a step of the machine's time neither stops nor hurries
them. A message that cannot be published is not made up for: the next tick sweeps all that is due. Several
schedulers are harmless.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from orchestrator import log
from orchestrator.messaging.app import SEAL, SEAL_EVERY, SWEEP, configure
from orchestrator.messaging.publisher import BackOff, Message, Publisher
from orchestrator.shutdown import end_within
from orchestrator.store.database import Database
from orchestrator.store.heartbeats import BETWEEN, HEARTBEAT, Heart

if TYPE_CHECKING:
    from orchestrator.settings import Settings

_log = log.get(__name__)

QUEUE: Final = "maintenance"
TOLD_EVERY: Final = 60.0
"""Seconds between two lines that say what was done."""
MOST_WAITING: Final = 5
"""Messages in the queue from which on nothing is added: while no worker runs, sweeps must not pile up."""


def run_scheduler(settings: Settings) -> int:
    """Publish until SIGTERM or SIGINT; return the exit status."""
    ending = threading.Event()

    def asked_to_end(*_: object) -> None:
        end_within(settings.shutdown_timeout, "scheduler")
        ending.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, asked_to_end)
    pulse = Pulse(settings)
    pulse.start()
    try:
        _publish(settings, ending, pulse)
    finally:
        pulse.stop()
    return 0


def _publish(settings: Settings, ending: threading.Event, pulse: Pulse) -> None:
    publisher = Publisher(configure(settings))
    link = BackOff("scheduler")
    intervals = {SWEEP: settings.sweep_interval, SEAL: SEAL_EVERY}
    due = dict.fromkeys(intervals, time.monotonic())
    pause, done = 0.0, _Minute()
    while not ending.wait(pause):
        now = time.monotonic()
        done.tell(now)
        names = [name for name, at in due.items() if at <= now]
        try:
            if names and publisher.depth(QUEUE) < MOST_WAITING:
                publisher.publish(Message(name, QUEUE) for name in names)
                done.counts.update(names)
            elif names:
                done.counts["skipped"] += 1
        except Exception as error:  # noqa: BLE001 - no error of a broker ends the scheduler
            done.counts["failed"] += 1
            pause = link.failed(error)
            continue
        if names:
            link.worked()
            pulse.published()
        # From now on, and not from when it was due: ticks that were missed are not made up for.
        due |= {name: now + intervals[name] for name in names}
        pause = max(min(due.values()) - time.monotonic(), 0.0)
    done.tell(time.monotonic(), last=True)
    publisher.close()


class _Minute:
    """What the scheduler has done since its last line in the log."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self.counts: Counter[str] = Counter()

    def tell(self, now: float, *, last: bool = False) -> None:
        """Write a line once in a minute, and one at the end."""
        seconds = now - self._since
        if seconds < TOLD_EVERY and not last:
            return
        _log.info(
            "scheduler_ran",
            seconds=round(seconds),
            sweeps=self.counts[SWEEP],
            seals=self.counts[SEAL],
            queue_full=self.counts["skipped"],
            failed=self.counts["failed"],
        )
        self._since = now
        self.counts.clear()


class Pulse:
    """The scheduler's heartbeat, from a thread of its own: given only while its sweeps reach the broker."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._published = float("-inf")
        self._silence = max(3 * HEARTBEAT, 5 * settings.sweep_interval)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._beat()), name="pulse", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def published(self) -> None:
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

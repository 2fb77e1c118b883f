"""Signs of life: rows that a worker and a scheduler touch while they make progress, for `doctor` and
readiness.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import threading
import time
from typing import TYPE_CHECKING, Final

from sqlalchemy import TextClause, text

from orchestrator import log
from orchestrator.store.columns import json_text
from orchestrator.store.database import Database

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.settings import Settings
    from orchestrator.store.batch import Writes

_log = log.get(__name__)

HEARTBEAT: Final = 5.0
"""Seconds between two signs of life."""
BETWEEN: Final = 1.0
"""Seconds after which a heartbeat is written all the same, where the last one failed, or the faults have
changed."""

BEAT = text("""
    INSERT INTO workers (name, kind, progress) VALUES (:name, :kind, CAST(:progress AS jsonb))
    ON CONFLICT (name) DO UPDATE SET seen_at = clock(), progress = excluded.progress
""")
# Killed processes say no goodbye.
FORGET = text("DELETE FROM workers WHERE seen_at < clock() - interval '1 day'")
GONE = text("DELETE FROM workers WHERE name = :name")


def unique_name() -> str:
    """Return a name that no other process has: containers share host names and process ids."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


class Pulse:
    """The scheduler's heartbeat, from a thread of its own: given only while its sweeps reach the broker."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._name = unique_name()
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
            wait = 0.0
            while not await asyncio.to_thread(self._ended.wait, wait):
                since = time.monotonic() - self._published
                # Until the first sweep is published, check often: the operator who starts it waits for it.
                wait = HEARTBEAT if since < self._silence else 0.2
                if since < self._silence:
                    told = {"publishedSecondsAgo": round(since, 1)}
                    if not await note(db, BEAT, heartbeat(self._name, "scheduler", told)):
                        wait = BETWEEN
            await note(db, GONE, {"name": self._name})


async def note(db: Database, statement: TextClause, values: dict[str, object]) -> bool:
    """Write a heartbeat; return whether it is written.

    A failed one is detected by its absence, so it stops no process.
    """
    try:
        await asyncio.wait_for(db.write(statement, values), HEARTBEAT)
    except Exception as error:  # noqa: BLE001 - whatever keeps it from being written
        _log.warning("heartbeat_failed", **log.cause(error))
        return False
    return True


def written(writes: Writes) -> dict[str, float | str]:
    """Say in a heartbeat what was written, and since when it could not be."""
    told: dict[str, float | str] = {"stalledSeconds": round(writes.stalled, 1)}
    if writes.committed is not None:
        told["committedSecondsAgo"] = round(writes.committed, 1)
    if writes.error:
        told["stalledBy"] = writes.error
    return told


def heartbeat(name: str, kind: str, progress: Mapping[str, object]) -> dict[str, object]:
    return {"name": name, "kind": kind, "progress": json_text(progress)}

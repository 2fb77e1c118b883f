"""Heartbeats: the row that each process writes while it makes progress, with all that it has counted.

Counts are totals since the start of the process, so that a heartbeat may be written twice. What an ended or
killed process has counted stays: its row is read with the others, and where the row is deleted the same
statement adds its counts to `counter_totals`. A killed process loses what it counted after its last
heartbeat, five seconds at the most.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from orchestrator import counters, log
from orchestrator.store.columns import json_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import TextClause

    from orchestrator.store.batch import Writes
    from orchestrator.store.database import Database

_log = log.get(__name__)

HEARTBEAT: Final = 5.0
"""Seconds between two signs of life."""
BETWEEN: Final = 1.0
"""Seconds after which a heartbeat is written all the same, where the last one failed, or the faults have
changed."""

_BEAT = text("""
    INSERT INTO workers (name, kind, progress) VALUES (:name, :kind, CAST(:progress AS jsonb))
    ON CONFLICT (name) DO UPDATE SET seen_at = clock(), progress = excluded.progress
    RETURNING started_at, extract(epoch FROM now())::float8 AS now
""")
_DELETE = """
    WITH gone AS (DELETE FROM workers WHERE {which} RETURNING progress),
    counted AS (
        SELECT c.key, sum(CAST(c.value AS float8)) AS value FROM gone CROSS JOIN LATERAL jsonb_each_text(progress->'counters') c
         GROUP BY c.key
    )
    INSERT INTO counter_totals (series, value) SELECT key, value FROM counted ORDER BY key
    ON CONFLICT (series) DO UPDATE SET value = counter_totals.value + excluded.value
"""
# Killed processes say no goodbye.
_FORGET = text(_DELETE.format(which="seen_at < clock() - interval '1 day'"))
_GONE = text(_DELETE.format(which="name = :name"))


def unique_name() -> str:
    """Return a name that no other process has: containers share host names and process ids."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


class Heart:
    """The heartbeat of one process: its row, and which of its counts are in that row."""

    def __init__(self, db: Database, kind: str, name: str | None = None) -> None:
        self._db, self._kind = db, kind
        self.name = name or unique_name()
        self._row: Any = None
        """When the row was made; another time: it was deleted meanwhile, and its counts are in the totals."""
        self._written: dict[str, float] = {}
        self._kept: Mapping[str, float] = {}
        """Counts that a deleted row has left in the totals."""
        self._clock = 0.0
        """By how many seconds Postgres's clock was at least ahead of this host's, at the last heartbeat."""

    async def forget(self) -> None:
        """Delete the rows of processes that are gone for long; their counts stay."""
        await _note(self._db, _FORGET, {})

    async def beat(self, progress: Mapping[str, object]) -> bool:
        """Write the row; return whether it is written. Its absence shows a failure, and stops no process."""
        counted = counters.snapshot(self._kind)
        row = await self._write(progress, counted)
        if row is None:
            return False
        if self._row is not None and row != self._row:
            # This process was silent for a day, or the clock of a test moved.
            self._kept = dict(self._written)
            row = await self._write(progress, counted) or row
        self._row, self._written = row, counted
        return True

    async def run(self) -> None:
        """Write the row in its interval, for a process that has nothing to say but its counts."""
        while True:
            well = await self.beat({})
            await asyncio.sleep(HEARTBEAT if well else BETWEEN)

    async def end(self, progress: Mapping[str, object] | None = None) -> None:
        """Write the last counts, where they can be written, and delete the row; its counts stay."""
        if self._row is not None and not await self.beat(progress or {}):
            return
        await _note(self._db, _GONE, {"name": self.name})

    async def _write(self, progress: Mapping[str, object], counted: Mapping[str, float]) -> Any:
        own = {
            series: number - self._kept.get(series, 0.0)
            for series, number in counted.items()
            if number != self._kept.get(series)
        }
        told = {
            **progress,
            "memoryBytes": counters.memory_bytes(),
            "clockSeconds": round(self._clock, 1),
            "counters": own,
        }
        before = time.time()
        rows = await _note(
            self._db, _BEAT, {"name": self.name, "kind": self._kind, "progress": json_text(told)}
        )
        if not rows:
            return None
        # It was read between the two, however long the write took.
        self._clock = rows[0].now - min(max(rows[0].now, before), time.time())
        return rows[0].started_at


async def _note(db: Database, statement: TextClause, values: dict[str, object]) -> Any:
    try:
        return await asyncio.wait_for(db.write(statement, values), HEARTBEAT)
    except Exception as error:  # noqa: BLE001 - whatever keeps it from being written
        _log.warning("heartbeat_failed", **log.cause(error))
        return None


def written(writes: Writes) -> dict[str, float | str]:
    """Say in a heartbeat what was written, and since when it could not be."""
    told: dict[str, float | str] = {"stalledSeconds": round(writes.stalled, 1)}
    if writes.committed is not None:
        told["committedSecondsAgo"] = round(writes.committed, 1)
    if writes.error:
        told["stalledBy"] = writes.error
    return told

"""Whether an installation does its work: by what was written, not by what can be read.

A read-only server, a full disk and a stopped worker all answer queries. So a probe writes, writers report
since when they could not, and heartbeats of workers report what they have written and claimed. Readiness and
`doctor` report the same, in the same sentences.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from orchestrator import log
from orchestrator.store import schema
from orchestrator.store.columns import record
from orchestrator.store.database import is_away
from orchestrator.store.sqlstates import READ_ONLY, state_of
from orchestrator.text import duration

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from orchestrator.store.batch import Writes
    from orchestrator.store.database import Database

SEEN_WITHIN: Final = 20.0
"""Seconds since the last heartbeat after which a process counts as away; processes write one every five."""
FAULTS_WITHIN: Final = 8.0
"""Seconds since a heartbeat after which the faults in it are no longer reported: the process may
have ended."""
OVER_WITHIN: Final = 10.0
"""Seconds after the end of a fault by which nothing names it any more: processes try their servers again
every three, and then give a heartbeat."""
STALLED_AFTER: Final = 10.0
"""Seconds without a commit, while something waits to be written, after which a writer counts as stalled."""
IDLE_AFTER: Final = 30.0
"""Seconds in which a worker's dispatcher has claimed nothing, while hints wait, after which it counts as
stopped."""
CONNECT_TIMEOUT: Final = 1.5
"""Seconds for a new connection."""
OVERDUE: Final = 120.0
"""Seconds for which a checkout may wait for a worker."""
LOOKUPS_OVERDUE: Final = 120.0
"""Seconds for which a lookup may wait for its merchant's budget."""
EVENTS_OVERDUE: Final = 60.0
"""Seconds for which an event may wait for its position."""
COUNTED: Final = 10_000
"""Events without a position that are counted; there may be more."""

OUT_OF_REACH: Final = "the database is out of reach"
SILENT: Final = "the database does not answer"
MISSING: Final[Mapping[str, str]] = {
    "worker": "no worker is alive: checkouts and callbacks are stored, and wait",
    "scheduler": "no scheduler publishes sweeps: none runs, or none reaches the broker; workers sweep by themselves, slowly",
}
"""What is said where no process of a kind has given a heartbeat lately."""

# A row is written and committed; and a file, because an update of a row finds room in its page when the disk
# has none left. The file is a snapshot's, which Postgres removes at the end of the statement.
_PROBE = text("""
    INSERT INTO workers (name, kind, progress) VALUES (:name, 'probe', jsonb_build_object('snapshot', pg_export_snapshot()))
    ON CONFLICT (name) DO UPDATE SET seen_at = clock(), progress = excluded.progress
""")
_PROCESSES = text("""
    SELECT name, kind, progress - 'counters' AS progress, extract(epoch FROM clock() - seen_at)::float8 AS age FROM workers
     WHERE kind <> 'probe' ORDER BY name
""")
# Sweeps move `due_at`, so an old one shows that no sweep runs, and a young one shows nothing. `updated_at`
# shows progress: moves and postponements set it, and nothing else does.
_BACKLOG = text("""
    WITH t AS MATERIALIZED (SELECT clock() AS now),
    c AS (
        SELECT c.due_at, c.created_at, c.updated_at, c.attention, t.now,
               (c.lease IS NULL OR c.leased_until <= t.now) AND (c.hinted OR c.due_at <= t.now) AS waits
          FROM checkouts c, t WHERE c.due_at IS NOT NULL AND c.merchant_id NOT IN (SELECT id FROM merchants WHERE paused_at IS NOT NULL)
    )
    SELECT count(*) FILTER (WHERE waits) AS waiting,
           count(*) FILTER (WHERE due_at < now - make_interval(secs => :late)) AS overdue,
           count(*) FILTER (WHERE waits AND updated_at = created_at AND created_at < now - make_interval(secs => :late)) AS untouched,
           extract(epoch FROM max(now) - max(updated_at) FILTER (WHERE updated_at > created_at))::float8 AS progressed,
           count(*) FILTER (WHERE attention IS NOT NULL) AS attention
      FROM c
""")
_UNPLACED = text("""
    SELECT count(*) AS number, coalesce(extract(epoch FROM clock() - min(created_at)), 0)::float8 AS age
      FROM (SELECT created_at FROM events WHERE position IS NULL ORDER BY created_at LIMIT :most) e
""")

_STATES: Final[Mapping[str, str]] = {
    READ_ONLY: "the database is read-only",
    "53100": "the disk of the database is full",
    "53200": "the database is out of memory",
    "53300": "the database has no connection left",
    "57P01": "the database shuts down",
    "57P02": "the database shuts down",
    "57P03": "the database starts, or shuts down",
    "28P01": "the database refuses the password",
    "42501": "the database refuses its role a right",
    "42P01": "the database lacks a table",
    "42703": "the database lacks a column",
    "42883": "the database lacks a function",
}
# Of these the server's own words say which.
_TELLING: Final = frozenset({"42501", "42P01", "42703", "42883"})


@dataclass(frozen=True, slots=True)
class Process:
    """One process by its heartbeat; `age` is in seconds."""

    name: str
    kind: str
    age: float
    progress: Mapping[str, Any]

    @property
    def alive(self) -> bool:
        return self.age <= SEEN_WITHIN

    @property
    def troubles(self) -> list[str]:
        """What the process itself says is wrong with it, a sentence each; nothing that is old."""
        if self.age > FAULTS_WITHIN:
            return []
        told, found = self.progress, []
        stalled = told.get("stalledSeconds", 0)
        if stalled > STALLED_AFTER:
            found.append(
                f"has written nothing for {duration(stalled)}{_because(told.get('stalledBy'))}, and moves wait"
            )
        idle, waiting = told.get("dispatchedSecondsAgo", 0), told.get("waiting", 0)
        if waiting and idle > IDLE_AFTER:
            found.append(f"has claimed nothing for {duration(idle)}, and {waiting} hints wait in it")
        if why := told.get("claimsFail"):
            found.append(f"claims nothing, because its claims fail: {why}")
        if why := told.get("brokerTrouble"):
            found.append(f"has no broker ({why}), and sweeps by itself")
        stalled = told.get("intentsStalledSeconds", 0)
        if stalled > STALLED_AFTER:
            why = _because(told.get("intentsStalledBy"))
            found.append(
                f"has stored no message of the queue intents for {duration(stalled)}{why}, and some wait in it"
            )
        if why := told.get("intentsTrouble"):
            found.append(f"consumes nothing of the queue intents: {why}")
        return [f"{self.kind} {self.name} {fault}" for fault in found]


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits, of all checkouts that are not settled; ages in seconds."""

    waiting: int
    """Checkouts that a worker could take now."""
    overdue: int
    """Checkouts that no sweep has found for long."""
    untouched: int
    """Checkouts that have waited for long, and were never moved."""
    progressed: float | None
    """Since any checkout was moved or postponed; None if none ever was."""
    attention: int
    """Checkouts that need a person."""

    @property
    def suspicious(self) -> bool:
        """Whether something waits and nothing progresses for long; for a moment also after a quiet time."""
        return self.waiting > 0 and (self.progressed is None or self.progressed > OVERDUE)


@dataclass(frozen=True, slots=True)
class Unplaced:
    """Events that no feed has yet; the age of the oldest in seconds."""

    number: int
    """At most `COUNTED`."""
    age: float

    @property
    def overdue(self) -> bool:
        """Whether an event waits that a running worker would have numbered long ago."""
        return self.age > EVENTS_OVERDUE


async def probe(db: Database, name: str) -> None:
    """Write something small, and commit it; raises what keeps it from being written. `name` is the row's."""
    await db.write(_PROBE, {"name": name})


async def processes(db: Database) -> list[Process]:
    """Return every process that has given a heartbeat and has not deleted its row."""
    return [record(Process, row) for row in await db.read(_PROCESSES)]


async def backlog(db: Database) -> Backlog:
    """Return what waits. It reads every unsettled checkout: not for every second."""
    (row,) = await db.read(_BACKLOG, {"late": OVERDUE})
    return record(Backlog, row)


async def unplaced(db: Database) -> Unplaced:
    (row,) = await db.read(_UNPLACED, {"most": COUNTED})
    return record(Unplaced, row)


def troubles(found: Sequence[Process]) -> list[str]:
    """Return what is wrong with workers and schedulers, a sentence each."""
    alive = [process for process in found if process.alive]
    missing = [
        sentence for kind, sentence in MISSING.items() if all(process.kind != kind for process in alive)
    ]
    return missing + [trouble for process in alive for trouble in process.troubles]


async def refusals(db: Database) -> list[str]:
    """Return what the database refuses, though its connections work: rights, and new connections; a sentence
    each. Not for every second: it connects anew.
    """
    found = [
        f"the database refuses its role {privileges} on {table}: grant it, or run `orchestrator migrate` as the owner of the tables"
        for table, privileges in (await schema.lacking(db)).items()
    ]
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            await db.connect_anew()
    except Exception as error:
        if not is_away(error):
            raise
        found.append(f"no new connection to the database is accepted: {reason(error)}")
    return found


def stalled(writers: Sequence[Writes]) -> list[str]:
    """Return which writers of this process cannot write, a sentence each."""
    return [
        f"{writer.name} could not be written for {duration(writer.stalled)}{_because(writer.error)}"
        for writer in writers
        if writer.stalled > STALLED_AFTER
    ]


def reason(error: BaseException) -> str:
    """Say in a sentence why the database cannot be used, without login or parameters."""
    state = state_of(error)
    if state in _STATES:
        said = log.cause(error).get("said") if state in _TELLING else None
        return f"{_STATES[state]} ({log.scrub(said)})" if said else _STATES[state]
    lines = _lines(error)
    if cause_of(error) == READ_ONLY:
        return f"{_STATES[READ_ONLY]} (no server that takes writes was found)"
    if isinstance(error, TimeoutError) or not lines or "timeout expired" in lines[0]:
        return SILENT
    return f"{OUT_OF_REACH} ({log.scrub(lines[0])})"


def cause_of(error: BaseException) -> str:
    """Return the SQLSTATE of an error, also where libpq found no server that takes writes; "" without one."""
    if any("session is read-only" in line or "hot standby" in line for line in _lines(error)):
        # libpq's errors about a server that is not the wanted one have no SQLSTATE.
        return state_of(error) or READ_ONLY
    return state_of(error)


def _lines(error: BaseException) -> list[str]:
    return str(getattr(error, "orig", None) or error).strip().splitlines()


def _because(state: object) -> str:
    return f" ({_STATES.get(str(state), f'SQLSTATE {state}')})" if state else ""

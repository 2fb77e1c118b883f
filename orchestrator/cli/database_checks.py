"""What `doctor` says of Postgres: whether it answers, takes writes and has this version's schema, and whether
clocks agree. Each fault has a remedy.
"""

from __future__ import annotations

import asyncio
import socket
import time
from typing import TYPE_CHECKING, Final

from orchestrator.cli.attached import query
from orchestrator.errors import OrchestratorError
from orchestrator.settings.postgres_url import place
from orchestrator.store import readiness, schema
from orchestrator.store.database import Database, is_away

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from orchestrator.cli.doctor import Report
    from orchestrator.store.readiness import Process

DRIFT: Final = 5.0
"""Seconds by which clocks may differ."""
TIMEOUT: Final = 4.0
"""Seconds that Postgres gets for the first answer, and for the first write."""
SILENT: Final = "its process may be stopped (`ps -eo pid,stat,args` shows the state `T`; `kill -CONT PID` lets it go on) or overloaded"
"""What a server may have that accepts connections and answers nothing."""
OLDEST: Final = 15
"""The oldest version of Postgres that serves."""

READ_ONLY: Final = "25006"
_NO_SCHEMA: Final = "run `orchestrator migrate` as the owner of the tables"
REMEDIES: Final[Mapping[str, str]] = {
    READ_ONLY: "let ORCHESTRATOR_DATABASE_URL lead to the server that takes writes",
    "53100": "free space on its disk or enlarge it; old WAL of replication slots that nothing reads is a frequent cause",
    "53200": "give it more memory, or lower work_mem and max_connections",
    "53300": "raise max_connections, lower ORCHESTRATOR_DATABASE_POOL, or put PgBouncer in front of it (docs/postgres.md)",
    "57P01": "wait until it is up again; its own log says why it shuts down",
    "57P02": "wait until it is up again; its own log says why it shuts down",
    "57P03": "wait until it is up; its own log says how far it is",
    "28P01": "correct the password in ORCHESTRATOR_DATABASE_URL, or that of the role",
    "42501": f"grant it, or {_NO_SCHEMA}",
    "42P01": _NO_SCHEMA,
    "42703": _NO_SCHEMA,
    "42883": _NO_SCHEMA,
}
"""What to do, by SQLSTATE."""


async def examine(url: str, db: Database, report: Report) -> bool:
    """Look at Postgres; return whether the other checks can query it."""
    facts = "SELECT current_setting('server_version_num')::int / 10000 AS major, extract(epoch FROM now())::float8 AS now"
    try:
        with schema.reachable(url):
            async with asyncio.timeout(TIMEOUT):
                before = time.time()
                (row,) = await query(db, facts)
                after = time.time()
    except OrchestratorError as error:
        why = readiness.reason(error.__cause__ or error)
        away = why.startswith(readiness.OUT_OF_REACH)
        report.ill("database", str(error) if away else await fault(url, error.__cause__ or error))
        return False
    except TimeoutError as error:
        report.ill("database", await fault(url, error))
        return False
    if row.major < OLDEST:
        report.ill("database", f"Postgres {row.major} answers, and {OLDEST} or newer is needed: upgrade it")
    else:
        between = (
            ", behind a pooler: its sessions are shared, and statements are not prepared" if db.pooled else ""
        )
        report.well("database", f"Postgres {row.major} answers in {(after - before) * 1000:.0f} ms{between}")
    drift = row.now - (before + after) / 2
    if abs(drift) > DRIFT:
        report.ill("clock", f"Postgres's clock is {drift:+.0f} s from this host's: set both by NTP")
    else:
        report.well("clock", f"Postgres and this host agree within {max(abs(drift), 0.001):.3f} s")
    found = await schema.current(db)
    wrong = schema.difference(found)
    if wrong is not None:
        report.ill("schema", wrong)
        return False
    await _writes(url, db, report)
    for refusal in await readiness.refusals(db):
        report.ill("database", refusal)
    ((skew,),) = await query(db, "SELECT coalesce(max(seconds), 0) FROM clock_skew")
    if skew:
        report.ill(
            "schema",
            f"the clock is pushed forward by {skew} s, which is for tests alone: set clock_skew.seconds to 0",
        )
    else:
        report.well("schema", f"revision {found}")
    return True


async def _writes(url: str, db: Database, report: Report) -> None:
    """Write something: a server that is read-only, or whose disk is full, still answers questions."""
    try:
        async with asyncio.timeout(TIMEOUT):
            await readiness.probe(db, f"probe:{socket.gethostname()}:doctor")
    except Exception as error:
        if not is_away(error):
            raise
        report.ill("writes", f"nothing can be written: {await fault(url, error)}")
    else:
        report.well("writes", "the database takes writes")


async def fault(url: str, error: BaseException) -> str:
    """Return why Postgres cannot be used, and what to do about it."""
    why = readiness.reason(error)
    state = readiness.cause_of(error)
    do = REMEDIES.get(state, f"look at Postgres at {place(url)}, and at what is between")
    if why == readiness.SILENT:
        do = f"look at Postgres at {place(url)}: {SILENT}, or the network to it is interrupted; see the chapter DatabaseAway of docs/runbook-alerts.md"
    if state == READ_ONLY:
        do = f"{await _why_read_only(url)}{do}"
    return f"{why}: {do}"


async def _why_read_only(url: str) -> str:
    """Return what makes the server at a URL read-only, with what ends it; nothing where it does not say."""
    facts = """
        SELECT pg_is_in_recovery() AS standby, s.setting = 'on' AS off, s.source FROM pg_settings s
         WHERE s.name = 'default_transaction_read_only'
    """
    try:
        async with (
            asyncio.timeout(TIMEOUT),
            Database(url, pool_size=1, name="orchestrator-doctor", writes=False) as db,
        ):
            (row,) = await query(db, facts)
    except Exception as error:
        if not is_away(error):
            raise
        return ""
    if row.standby:
        return f"{place(url)} is a standby: promote it (pg_promote()) if its primary is lost; otherwise "
    if row.off:
        return f"default_transaction_read_only is on there (set by: {row.source}): set it to off, and have poolers connect anew; or "
    return ""


def clocks(found: Sequence[Process], report: Report) -> None:
    """Report the hosts of live processes whose clock is not Postgres's."""
    for process in found:
        apart = float(process.progress.get("clockSeconds", 0.0))
        if process.alive and abs(apart) > DRIFT:
            report.ill(
                "clock",
                f"Postgres's clock is {apart:+.0f} s from that of the host of {process.kind} {process.name}: set both by NTP; until then "
                "its tokens, signatures and log lines have wrong times, and may be refused",
            )

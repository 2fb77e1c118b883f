"""Check the installation, as `orchestrator doctor` prints it.

Each check is a line: what was checked, the result, and how to fix a fault.

`doctor worker`, `doctor scheduler` and `doctor deliverer` are health checks for containers: they read the
heartbeat of that process on this very host from Postgres, because a live process proves nothing.
"""

from __future__ import annotations

import asyncio
import socket
import time
from typing import TYPE_CHECKING, Final

import click

from orchestrator import log
from orchestrator.cli import database_checks, gateways, stuck_money
from orchestrator.cli.attached import DATA_DIR, data_dir, in_thread, on_database, whisper
from orchestrator.cli.output import say, say_document
from orchestrator.cli.report import Report
from orchestrator.text import duration

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from orchestrator.settings import Settings
    from orchestrator.store import readiness
    from orchestrator.store.database import Database

BROKER_TIMEOUT: Final = 15.0
SECOND_CHECK_AFTER: Final = 10.0
"""Seconds in which a healthy installation progresses, if it has only just been given something to do."""


@click.command(short_help="Check the installation; exit 1 if something is not well.")
@data_dir
@click.argument("process", required=False, type=click.Choice(["worker", "scheduler", "deliverer"]))
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON: each check, whether it is well, and what was found."
)
def doctor(*, data_dir: Path, process: str | None, as_json: bool) -> int:
    """Check the installation, or the heartbeat of the worker, scheduler or deliverer on this host; exit 1 if
    something is not well.
    """
    if process is not None:
        return on_database(data_dir, lambda _, db: _heartbeat(db, process, as_json=as_json))
    from orchestrator.devkit.local.runtime_file import attach, running
    from orchestrator.settings import load

    # Its Postgres is then started for the checks alone, and what else `up` would start cannot be there.
    stopped = load().database_url is None and running(data_dir) is None
    with attach(data_dir, say=whisper) as settings:
        # What a check finds wrong is its own line; logs would say it twice.
        log.configure(style=settings.log_format, level="error")
        report = Report(as_json=as_json)
        if stopped:
            option = "" if str(data_dir) == DATA_DIR else f" --data-dir {data_dir}"
            report.ill(
                "up", f"it is not running: `orchestrator up{option}` starts it and continues open work"
            )
        asyncio.run(_examine(settings, report, stopped=stopped))
    report.end()
    return 1 if report.problems else 0


async def _heartbeat(db: Database, kind: str, *, as_json: bool) -> int:
    from sqlalchemy import text

    from orchestrator.store.readiness import SEEN_WITHIN

    here = socket.gethostname()
    rows = await db.read(
        text("""
            SELECT extract(epoch FROM clock() - max(seen_at))::float8 AS age FROM workers
             WHERE kind = :kind AND starts_with(name, :here)
        """),
        {"kind": kind, "here": f"{here}:"},
    )
    age = rows[0].age
    well = age is not None and age <= SEEN_WITHIN
    if as_json:
        say_document({"process": kind, "host": here, "ok": well, "secondsSinceHeartbeat": age})
    elif not well:
        found = "none was ever seen" if age is None else f"the last one was {duration(age)} ago"
        say(f"no heartbeat of a {kind} on {here}: {found}", err=True)
    else:
        say(f"a {kind} on {here} gave its last heartbeat {age:.0f} s ago")
    return int(not well)


async def _examine(settings: Settings, report: Report, *, stopped: bool) -> None:
    from orchestrator.store import readiness
    from orchestrator.store.database import Database, is_away

    await _keys(settings, report)
    url = settings.need("database_url")
    prepared = settings.database_prepared_statements
    found: Sequence[readiness.Process] = ()
    async with Database(url, pool_size=2, name="orchestrator-doctor", prepared=prepared) as db:
        if await database_checks.examine(url, db, report):
            try:
                found = await readiness.processes(db)
                await _rows(settings, db, report, stopped=stopped)
            except Exception as error:
                if not is_away(error):
                    raise
                report.ill("database", await database_checks.fault(url, error))
        else:
            await _public_address_for([settings.gateway_url], settings, report)
    if not stopped or settings.broker_url is not None:
        await _broker(settings, report)
        await gateways.circuits(settings, found, report)


async def _rows(settings: Settings, db: Database, report: Report, *, stopped: bool) -> None:
    """Look at what the database holds."""
    await _trail_key(settings, db, report)
    await _months(db, report)
    if not stopped:
        await _processes(db, report)
    await _due(db, report, stopped=stopped)
    await _events(db, report, stopped=stopped)
    await _lookups(db, report)
    await stuck_money.examine(settings, db, report, stopped=stopped)
    if not stopped or settings.gateway_url is not None:
        await gateways.logins(settings, db, report)
    await _public_address(settings, db, report)


async def _keys(settings: Settings, report: Report) -> None:
    from orchestrator import auth, issuer_keys

    if settings.secret_keys and auth.accepts(settings):
        count = len(settings.secret_keys)
        tokens = f"{len(settings.jwt_secrets)} for tokens"
        if settings.jwt_public_keys:
            tokens += f", {len(settings.jwt_public_keys)} public"
        report.well("settings", f"valid; {count} secret key{'s' if count > 1 else ''}, {tokens}")
    else:
        missing = "SECRET_KEYS" if not settings.secret_keys else "JWT_SECRETS"
        report.ill(
            "settings",
            f"ORCHESTRATOR_{missing} is not set: give it a JSON array with one key (openssl rand -base64 32)",
        )
    if settings.jwt_jwks_url:
        where = settings.jwt_jwks_url
        try:
            found = await issuer_keys.fetch_now(settings.jwt_jwks_url)
        except issuer_keys.KeysUnavailable as error:
            report.ill(
                "token keys",
                f"the keys at {where} cannot be fetched ({error}): check the URL, and the way to it",
            )
        else:
            report.well("token keys", f"{found} at {where}")


async def _trail_key(settings: Settings, db: Database, report: Report) -> None:
    """Compare the keys with the data: with keys of another installation nothing opens, and the trail breaks
    at its next entry.
    """
    from orchestrator.crypto import Encryptor
    from orchestrator.store import schema

    key = await schema.newest_key(db)
    if key is None or not settings.secret_keys:
        return
    if Encryptor(settings.secret_keys).known(key) is None:
        report.ill(
            "keys",
            f"the database was written under secret key {key}, which ORCHESTRATOR_SECRET_KEYS does not have: add that key to the "
            "list, or use the database that belongs to these keys",
        )
    else:
        report.well("keys", f"the database was last written under key {key}, which is known")


async def _months(db: Database, report: Report) -> None:
    """Check how far ahead the trail has months: without a month its entries go where they cannot be dropped
    by the month.
    """
    from datetime import timedelta

    from sqlalchemy import text

    from orchestrator.audit import archive
    from orchestrator.domain.ids import first_id

    soon = (await db.read(text("SELECT clock() AS now")))[0].now + timedelta(days=31)
    until = max(month.until for month in await archive.months_of(db) if month.until is not None)
    if until < first_id(soon):
        report.ill(
            "months",
            "the audit trail has no month to come: run `orchestrator archive`, which makes a year of them",
        )
    else:
        report.well("months", f"the audit trail has months until {archive.moment_of(until):%Y-%m}")


async def _processes(db: Database, report: Report) -> None:
    from orchestrator.store import readiness

    found = await readiness.processes(db)
    database_checks.clocks(found, report)
    for kind in (*readiness.MISSING, "deliverer"):
        alive = [process for process in found if process.kind == kind and process.alive]
        if alive:
            oldest = max(process.age for process in alive)
            report.well(f"{kind}s", f"{len(alive)} alive, the last heartbeat at most {oldest:.0f} s ago")
        elif kind in readiness.MISSING:  # a deliverer is missed where there are webhooks, see below
            report.ill(
                f"{kind}s", f"{readiness.MISSING[kind]}; start `orchestrator {kind}`, or look at its log"
            )
        for trouble in (trouble for process in alive for trouble in process.troubles):
            report.ill(f"{kind}s", f"{trouble}: look at its log, or start it anew")
    await _webhooks(db, report, found)


async def _webhooks(db: Database, report: Report, found: Sequence[readiness.Process]) -> None:
    """Look whether events reach the endpoints of merchants."""
    from orchestrator.store import webhooks

    wrong = [*await webhooks.troubles(db, found, merchants=True), *await webhooks.failing(db)]
    for trouble in wrong:
        report.ill("webhooks", f"{trouble}; see `orchestrator webhooks list --merchant NAME`")
    if not wrong:
        report.well("webhooks", "no endpoint fails, and none waits for long")


async def _due(db: Database, report: Report, *, stopped: bool) -> None:
    from orchestrator.store import readiness

    found = await readiness.backlog(db)
    if stopped:
        report.well("backlog", f"{found.waiting} checkouts are due, and wait for the next start")
    elif (wrong := await _stuck(db, found)) is not None:
        report.ill("backlog", f"{wrong}: look at workers and broker")
    else:
        report.well("backlog", f"{found.waiting} checkouts wait for a worker, none for long")


async def _events(db: Database, report: Report, *, stopped: bool) -> None:
    """Look for events that no merchant can read yet: workers number them within about a second."""
    from orchestrator.store import readiness

    found = await readiness.unplaced(db)
    number = f"{found.number}{' or more' if found.number == readiness.COUNTED else ''}"
    if stopped:
        report.well("events", f"{number} wait for the next start to get their place in the feed")
    elif found.overdue:
        report.ill(
            "events",
            f"{number} wait for their place in the feed, the oldest for {duration(found.age)}, and no merchant can read them: workers "
            "number events; look at their logs for events_not_numbered",
        )
    else:
        report.well("events", f"{number} wait for their place in the feed, none for long")


async def _stuck(db: Database, found: readiness.Backlog) -> str | None:
    """Report what has waited for too long.

    After a quiet hour the first order seems stuck for a moment, and is checked twice.
    """
    from orchestrator.store import readiness

    if found.overdue:
        return f"{found.overdue} checkouts are overdue by more than {duration(readiness.OVERDUE)}, and no sweep has found them"
    if found.untouched:
        return f"{found.untouched} checkouts have waited for more than {duration(readiness.OVERDUE)} without a first step"
    end = time.monotonic() + SECOND_CHECK_AFTER
    while found.suspicious:
        if time.monotonic() > end:
            since = "ever" if found.progressed is None else f"for {duration(found.progressed)}"
            return f"{found.waiting} checkouts wait, and none has progressed {since}"
        await asyncio.sleep(1)
        found = await readiness.backlog(db)
    return None


async def _public_address(settings: Settings, db: Database, report: Report) -> None:
    """Look whether the gateways of all merchants could reach our callbacks."""
    from sqlalchemy import text

    rows = await db.read(text("SELECT DISTINCT gateway_url FROM merchants WHERE disabled_at IS NULL"))
    await _public_address_for([settings.gateway_url, *(row.gateway_url for row in rows)], settings, report)


async def _public_address_for(gateways: Sequence[str | None], settings: Settings, report: Report) -> None:
    from orchestrator.cli.public_address import faults, resolved

    for fault in faults(settings.public_url, gateways):
        report.ill("address", fault)
    if (named := await resolved(settings.public_url, gateways)) is not None:
        (report.ill if named[0] else report.well)("address", named[1])


async def _lookups(db: Database, report: Report) -> None:
    """Report lookups that wait for their slot: where callbacks get lost, paid orders may be among them."""
    from orchestrator.processing import lookup_budget

    queues = await lookup_budget.queues(db)
    overdue = [queue for queue in queues if queue.overdue]
    for queue in overdue:
        report.ill("lookups", f"{queue.summary}; paid orders whose callbacks were lost complete that late")
    if not overdue:
        number = sum(queue.waiting for queue in queues)
        report.well("lookups", f"{number} wait for their slot, none for long")


async def _broker(settings: Settings, report: Report) -> None:
    if settings.broker_url is None:
        report.ill(
            "broker",
            "ORCHESTRATOR_BROKER_URL is not set, and no `orchestrator up` runs here: set it, or start that",
        )
        return

    from orchestrator.messaging.hints import HintPublisher
    from orchestrator.messaging.publisher import reason_of

    try:
        hints, intents = await in_thread(HintPublisher(settings).prove, BROKER_TIMEOUT)
    except Exception as error:  # noqa: BLE001 - each transport has errors of its own, and all mean the same here
        report.ill(
            "broker", f"takes no hints ({reason_of(error)}): look at it, or correct ORCHESTRATOR_BROKER_URL"
        )
    else:
        report.well("broker", f"takes hints; {hints} wait")
        if intents and not settings.intents_prefetch:
            report.ill(
                "intents",
                f"{intents} messages wait in the queue intents, and ORCHESTRATOR_INTENTS_PREFETCH is 0: workers consume none",
            )
        else:
            report.well("intents", f"{intents} messages wait in the queue intents")

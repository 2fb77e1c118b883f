"""Is the installation well? Each check is a line: what was looked at, what was found, and what to do if it is not well.

`doctor worker` and `doctor scheduler` are health checks for containers: they look for the heartbeat of that process on this very
host in Postgres, because a live process proves nothing.
"""

from __future__ import annotations

import asyncio
import socket
import time
from typing import TYPE_CHECKING, Any, Final

import click

from orchestrator import log
from orchestrator.cli.attached import DATA_DIR, data_dir, on_database, whisper
from orchestrator.errors import OrchestratorError

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from orchestrator.db import Database
    from orchestrator.settings import Settings

SILENT_AFTER: Final = 45.0
"""Seconds without a heartbeat after which a process counts as away; they give one every ten."""
DRIFT: Final = 5.0
BROKER_PATIENCE: Final = 15.0
OVERDUE: Final = 120.0
OLDEST_POSTGRES: Final = 15


class _Report:
    """Prints each finding as it comes, and counts what is not well."""

    def __init__(self) -> None:
        self.problems = 0

    def well(self, what: str, found: str) -> None:
        click.echo(f"{click.style('ok', fg='green')}       {what:<11} {found}")

    def ill(self, what: str, found: str) -> None:
        self.problems += 1
        click.echo(f"{click.style('problem', fg='red', bold=True)}  {what:<11} {found}")


@click.command(short_help="Check the installation; exit 1 if something is not well.")
@data_dir
@click.argument("process", required=False, type=click.Choice(["worker", "scheduler"]))
def doctor(*, data_dir: Path, process: str | None) -> int:
    """Check the installation, or the heartbeat of the worker or scheduler on this host; exit 1 if something is not well."""
    if process is not None:
        return on_database(data_dir, lambda _, db: _heartbeat(db, process))
    from orchestrator.settings import load  # noqa: PLC0415 - each command imports what it needs
    from orchestrator.supervise.place import attach, running  # noqa: PLC0415

    # Its Postgres is then started for the checks alone, and what else `up` would start cannot be there.
    stopped = load().database_url is None and running(data_dir) is None
    with attach(data_dir, say=whisper) as settings:
        # What a check finds wrong is its own line; logs would say it twice.
        log.configure(style=settings.log_format, level="error")
        report = _Report()
        if stopped:
            option = "" if str(data_dir) == DATA_DIR else f" --data-dir {data_dir}"
            report.ill(
                "up", f"it is not running: `orchestrator up{option}` starts it and goes on with what is open"
            )
        asyncio.run(_examine(settings, report, stopped=stopped))
    if report.problems:
        click.echo(f"{report.problems} problem{'s' if report.problems > 1 else ''} found.", err=True)
    return 1 if report.problems else 0


async def _heartbeat(db: Database, kind: str) -> int:
    from sqlalchemy import text  # noqa: PLC0415

    here = socket.gethostname()
    rows = await db.read(
        text("""
            SELECT extract(epoch FROM clock() - max(seen_at))::float8 AS age FROM workers
             WHERE kind = :kind AND starts_with(name, :here)
        """),
        {"kind": kind, "here": f"{here}:"},
    )
    age = rows[0].age
    if age is None or age > SILENT_AFTER:
        found = "none was ever heard of" if age is None else f"the last one was {age:.0f} s ago"
        click.echo(f"no heartbeat of a {kind} on {here}: {found}", err=True)
        return 1
    click.echo(f"a {kind} on {here} gave its last heartbeat {age:.0f} s ago")
    return 0


async def _examine(settings: Settings, report: _Report, *, stopped: bool) -> None:
    from orchestrator.db import Database  # noqa: PLC0415

    _keys(settings, report)
    url = settings.need("database_url")
    async with Database(url, pool_size=2, name="orchestrator-doctor") as db:
        if await _database(url, db, report):
            await _trail_key(settings, db, report)
            await _months(db, report)
            if not stopped:
                await _processes(db, report)
            await _alarms(db, report, stopped=stopped)
            await _lookups(db, report)
            if not stopped or settings.gateway_url is not None:
                await _gateways(settings, db, report)
    if not stopped or settings.broker_url is not None:
        await _broker(settings, report)
        await _left_alone(settings, report)


def _keys(settings: Settings, report: _Report) -> None:
    if settings.secret_keys and settings.jwt_secrets:
        count = len(settings.secret_keys)
        report.well(
            "settings",
            f"valid; {count} secret key{'s' if count > 1 else ''}, {len(settings.jwt_secrets)} for tokens",
        )
    else:
        missing = "SECRET_KEYS" if not settings.secret_keys else "JWT_SECRETS"
        report.ill(
            "settings",
            f"ORCHESTRATOR_{missing} is not set: give it a JSON array with one key (openssl rand -base64 32)",
        )


async def _database(url: str, db: Database, report: _Report) -> bool:
    """Look at Postgres; say whether the other checks can ask it."""
    from sqlalchemy import text  # noqa: PLC0415

    from orchestrator import schema  # noqa: PLC0415

    facts = text(
        "SELECT current_setting('server_version_num')::int / 10000 AS major, extract(epoch FROM now())::float8 AS now"
    )
    try:
        with schema.reachable(url):
            before = time.time()
            row = (await db.read(facts))[0]
            after = time.time()
    except OrchestratorError as error:
        report.ill("database", str(error))
        return False
    if row.major < OLDEST_POSTGRES:
        report.ill(
            "database", f"Postgres {row.major} answers, and {OLDEST_POSTGRES} or newer is needed: upgrade it"
        )
    else:
        report.well("database", f"Postgres {row.major} answers in {(after - before) * 1000:.0f} ms")
    drift = row.now - (before + after) / 2
    if abs(drift) > DRIFT:
        report.ill("clock", f"Postgres's clock is {drift:+.0f} s from this host's: set both by NTP")
    else:
        report.well("clock", f"Postgres and this host agree within {max(abs(drift), 0.001):.3f} s")
    found, wanted = await schema.current(db), schema.wanted()
    if found != wanted:
        has = f"revision {found}" if found else "no schema"
        report.ill("schema", f"the database has {has}, and {wanted} is needed: run `orchestrator migrate`")
        return False
    skew = (await db.read(text("SELECT coalesce(max(seconds), 0) AS seconds FROM clock_skew")))[0].seconds
    if skew:
        report.ill(
            "schema",
            f"the clock is pushed forward by {skew} s, which is for tests alone: set clock_skew.seconds to 0",
        )
    else:
        report.well("schema", f"revision {found}")
    return True


async def _trail_key(settings: Settings, db: Database, report: _Report) -> None:
    """Compare the keys with the data: with keys of another installation nothing opens, and the trail breaks at its next entry."""
    from orchestrator import schema  # noqa: PLC0415
    from orchestrator.vault import Vault  # noqa: PLC0415

    key = await schema.newest_key(db)
    if key is None or not settings.secret_keys:
        return
    if Vault(settings.secret_keys).known(key) is None:
        report.ill(
            "keys",
            f"the database was written under secret key {key}, which ORCHESTRATOR_SECRET_KEYS does not have: add that key to the "
            "list, or use the database that belongs to these keys",
        )
    else:
        report.well("keys", f"the database was last written under key {key}, which is known")


async def _months(db: Database, report: _Report) -> None:
    """Look how far ahead the trail has months: without one its entries go where they cannot be dropped by the month."""
    from datetime import timedelta  # noqa: PLC0415

    from sqlalchemy import text  # noqa: PLC0415

    from orchestrator import archive  # noqa: PLC0415

    soon = (await db.read(text("SELECT clock() AS now")))[0].now + timedelta(days=31)
    until = max(month.until for month in await archive.months_of(db) if month.until is not None)
    if until < archive.first_id(soon):
        report.ill(
            "months",
            "the audit trail has no month to come: run `orchestrator archive`, which makes a year of them",
        )
    else:
        report.well("months", f"the audit trail has months until {archive.moment_of(until):%Y-%m}")


async def _processes(db: Database, report: _Report) -> None:
    from sqlalchemy import text  # noqa: PLC0415

    rows = await db.read(
        text("SELECT name, kind, seen_at, clock() AS now, progress FROM workers ORDER BY name")
    )
    for kind, missing in (
        ("worker", "start `orchestrator worker`; until then checkouts are stored, and wait"),
        ("scheduler", "start `orchestrator scheduler`; until then workers sweep by themselves, slowly"),
    ):
        alive = [row for row in rows if row.kind == kind and _age(row.seen_at, row.now) <= SILENT_AFTER]
        if alive:
            ages = max(_age(row.seen_at, row.now) for row in alive)
            report.well(f"{kind}s", f"{len(alive)} alive, the last heartbeat at most {ages:.0f} s ago")
        else:
            report.ill(f"{kind}s", f"none is alive: {missing}")


async def _alarms(db: Database, report: _Report, *, stopped: bool) -> None:
    from sqlalchemy import text  # noqa: PLC0415

    row: Any = (
        await db.read(
            text("""
                SELECT count(*) FILTER (WHERE due_at < clock() - make_interval(secs => :late)) AS overdue,
                       count(*) FILTER (WHERE attention IS NOT NULL) AS attention
                  FROM checkouts WHERE due_at IS NOT NULL
            """),
            {"late": OVERDUE},
        )
    )[0]
    if row.overdue and stopped:
        report.well("alarms", f"{row.overdue} checkouts are due, and wait for the next start")
    elif row.overdue:
        report.ill(
            "alarms",
            f"{row.overdue} checkouts have waited for more than {OVERDUE:.0f} s: look at workers and broker",
        )
    else:
        report.well("alarms", "no checkout is overdue")
    if row.attention:
        report.ill(
            "attention", f"{row.attention} checkouts need a person: orchestrator checkouts list --attention"
        )


async def _lookups(db: Database, report: _Report) -> None:
    """Tell of lookups that wait for their turn: where callbacks get lost, paid orders may be among them."""
    from orchestrator.carry import budget  # noqa: PLC0415 - each command imports what it needs

    queues = await budget.queues(db)
    for one in queues:
        report.ill(
            "lookups",
            f"{one.waiting} lookups of merchant {one.merchant} wait for their turn, the oldest for {one.age:.0f} s, and a new one would "
            f"for {one.wait:.0f} s: see whether its callbacks arrive, or raise its budget: orchestrator merchants set {one.merchant} looks_per_minute=…",
        )
    if not queues:
        report.well("lookups", "none waits for its turn")


async def _gateways(settings: Settings, db: Database, report: _Report) -> None:
    from orchestrator.gateway.client import Gateway  # noqa: PLC0415
    from orchestrator.gateway.outcomes import Done  # noqa: PLC0415
    from orchestrator.merchants import Merchants  # noqa: PLC0415
    from orchestrator.vault import Vault  # noqa: PLC0415

    try:
        everyone = await Merchants(db, Vault(settings.secret_keys), settings).everyone()
    except OrchestratorError as error:
        report.ill("merchants", str(error))
        return
    async with Gateway(settings) as gateway:
        for one in everyone:
            if one.disabled:
                continue
            if not one.account.url:
                report.ill("gateway", f"merchant {one.name} has no gateway: set ORCHESTRATOR_GATEWAY_URL")
                continue
            began = time.monotonic()
            outcome = await gateway.authenticate(one.account)
            if isinstance(outcome, Done):
                took = (time.monotonic() - began) * 1000
                report.well("gateway", f"merchant {one.name} is let in by {one.account.url} in {took:.0f} ms")
            else:
                report.ill(
                    "gateway",
                    f"merchant {one.name} is not let in by {one.account.url} ({outcome.reason}): check the URL, the user "
                    "name and the password",
                )


async def _broker(settings: Settings, report: _Report) -> None:
    if settings.broker_url is None:
        report.ill(
            "broker",
            "ORCHESTRATOR_BROKER_URL is not set, and no `orchestrator up` runs here: set it, or start that",
        )
        return

    def waiting() -> int:
        from orchestrator.worker import Doorbell  # noqa: PLC0415

        doorbell = Doorbell(settings)
        return doorbell.depth("checkouts") + doorbell.depth("callbacks")

    try:
        async with asyncio.timeout(BROKER_PATIENCE):
            hints = await asyncio.to_thread(waiting)
    except Exception as error:  # noqa: BLE001 - each transport has errors of its own, and all mean the same here
        found = log.scrub(str(error)) or type(error).__name__
        report.ill("broker", f"does not answer ({found}): start it, or correct ORCHESTRATOR_BROKER_URL")
    else:
        report.well("broker", f"answers; {hints} hints wait")


async def _left_alone(settings: Settings, report: _Report) -> None:
    """Name the gateways that the workers leave alone at this moment; where Redis is away, each worker knows only for itself."""
    from orchestrator.gateway import board  # noqa: PLC0415

    if settings.redis is None:
        return
    try:
        alone = await board.left_alone(settings.redis)
    except Exception as error:  # noqa: BLE001 - as for the broker
        found = log.scrub(str(error)) or type(error).__name__
        report.ill(
            "redis",
            f"does not answer ({found}): until it does, workers do not share what they know of gateways",
        )
        return
    for name, seconds in alone.items():
        gateway, _, merchant = name.partition(" ")
        why = (
            f"it told merchant {merchant} to come later"
            if merchant
            else "it did not serve one call after the other"
        )
        report.ill("gateway", f"{gateway} is left alone for another {seconds:.0f} s: {why}")


def _age(seen: datetime, now: datetime) -> float:
    return (now - seen).total_seconds()

"""The checks of `orchestrator doctor`: each is a line of its report, with a remedy for a fault.

It is imported when the checks are made, and so imports what it needs.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import re
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Final, TypeVar

from orchestrator import auth, issuer_keys
from orchestrator.audit import archive
from orchestrator.cli import database_checks, gateways, public_address
from orchestrator.cli.attached import Installation, query
from orchestrator.domain.ids import first_id
from orchestrator.messaging.hints import HintPublisher
from orchestrator.messaging.publisher import reason_of
from orchestrator.monitoring import queries
from orchestrator.processing import lookup_budget
from orchestrator.settings.broker_url import AMQP, REDIS, SENTINEL_PORT, parts_of
from orchestrator.store import readiness, schema, webhooks
from orchestrator.store.database import Database, is_away
from orchestrator.text import duration

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from orchestrator.cli.doctor import Report
    from orchestrator.settings import Settings

T = TypeVar("T")

BROKER_TIMEOUT: Final = 4.0
"""Seconds for all that the broker is asked."""
CONNECT_TIMEOUT: Final = 1.0
"""Seconds for a connection to a broker that has not answered."""
_PORTS: Final = {"redis": 6379, "rediss": 6379, "sentinel": SENTINEL_PORT, "amqp": 5672, "amqps": 5671}
SECOND_CHECK_AFTER: Final = 10.0
"""Seconds in which a healthy installation progresses, if it has only just been given something to do."""
_MEANING: Final = {
    "operation": (
        "of captures, refunds and releases have no result yet",
        "the gateway's books are looked up until they show it; `orchestrator checkouts explain ID` says why",
    ),
    "callback": (
        "of orders wait for a proven callback to be verified with the gateway",
        "paid orders may be among them; look at the gateway, then `orchestrator checkouts reconcile ID`",
    ),
    "surplus": (
        "are held by payments beside the accepted one",
        "`orchestrator payments list`, and the chapter surplus_payment of docs/runbook.md",
    ),
    "unknown": (
        "are held by payments that are not taken for their orders",
        "`orchestrator payments list`, and the chapters unclear_payment, payment_mismatch and unbound_payment of docs/runbook.md",
    ),
}
_NORMAL: Final = {"operation", "callback"}
"""Kinds that are ordinary while they are young."""
_AGES: Final = {
    "under_10m": "for less than ten minutes",
    "10m_to_1h": "for more than ten minutes",
    "1h_to_1d": "for more than an hour",
    "over_1d": "for more than a day",
}
_OVERDUE: Final = 900.0
"""Seconds after which a command that waits is named."""


async def examine(settings: Settings, report: Report, *, stopped: bool) -> None:
    """Make all checks; `stopped`: only its Postgres runs, for them."""
    await _keys(settings, report)
    url = settings.need("database_url")
    prepared = settings.database_prepared_statements
    found: Sequence[readiness.Process] = ()
    # Asked beside the database, so that the waits for two servers without an answer do not add up.
    broker = shared = None
    if not stopped or settings.broker_url is not None:
        broker = asyncio.create_task(_broker(settings))
        shared = asyncio.create_task(gateways.shared_circuits(settings))
    async with Database(url, pool_size=2, name="orchestrator-doctor", prepared=prepared) as db:
        if await database_checks.examine(url, db, report):
            here = Installation(settings, db)
            try:
                found = await readiness.processes(db)
                await _trail_key(here, report)
                await _months(db, report)
                if not stopped:
                    await _processes(db, found, report)
                await _due(db, report, stopped=stopped)
                await _events(db, report, stopped=stopped)
                await _lookups(db, report)
                await _money(here, report, stopped=stopped)
                if not stopped or settings.gateway_url is not None:
                    await gateways.logins(here, found, report)
                await _public_address(here, report)
            except Exception as error:
                if not is_away(error):
                    raise
                report.ill("database", await database_checks.fault(url, error))
        else:
            await _public_address_for([settings.gateway_url], settings, report)
    if broker is not None and shared is not None:
        for tell, what, told in await broker:
            (report.well if tell else report.ill)(what, told)
        gateways.circuits(await shared, found, report)


async def _keys(settings: Settings, report: Report) -> None:
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
    if where := settings.jwt_jwks_url:
        try:
            found = await issuer_keys.fetch_now(where)
        except issuer_keys.KeysUnavailable as error:
            report.ill(
                "token keys",
                f"the keys at {where} cannot be fetched ({error}): check the URL, and the way to it",
            )
        else:
            report.well("token keys", f"{found} at {where}")


async def _trail_key(here: Installation, report: Report) -> None:
    """Compare the keys with the data: with keys of another installation nothing opens, and the trail breaks
    at its next entry.
    """
    key = await schema.newest_key(here.db)
    if key is None or not here.settings.secret_keys:
        return
    if here.encryptor.known(key) is None:
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
    ((now,),) = await query(db, "SELECT clock()")
    until = max(month.until for month in await archive.months_of(db) if month.until is not None)
    if until < first_id(now + timedelta(days=31)):
        report.ill(
            "months",
            "the audit trail has no month to come: run `orchestrator archive`, which makes a year of them",
        )
    else:
        report.well("months", f"the audit trail has months until {archive.moment_of(until):%Y-%m}")


async def _processes(db: Database, found: Sequence[readiness.Process], report: Report) -> None:
    database_checks.clocks(found, report)
    for kind in (*readiness.MISSING, "deliverer"):
        alive = [process for process in found if process.kind == kind and process.alive]
        if alive:
            oldest = max(process.age for process in alive)
            report.well(f"{kind}s", f"{len(alive)} alive, the last heartbeat at most {oldest:.0f} s ago")
        elif kind in readiness.MISSING:  # a deliverer is missed where there are webhooks, see below
            report.ill(
                f"{kind}s",
                f"{readiness.MISSING[kind]}; where the line broker has a problem, repair that first. Then start `orchestrator {kind}`, or, "
                "where its process is there, see the chapter NoWorker of docs/runbook-alerts.md",
            )
        for process in alive:
            for trouble in process.troubles:
                report.ill(
                    f"{kind}s",
                    f"{trouble}: where the lines of the database or the broker have a problem, repair that; else look at its log, or "
                    f"start it anew. After a repair this is shown for up to {readiness.OVER_WITHIN:.0f} s more",
                )
    await _webhooks(db, report, found)


async def _webhooks(db: Database, report: Report, found: Sequence[readiness.Process]) -> None:
    """Look whether events reach the endpoints of merchants."""
    wrong = [*await webhooks.troubles(db, found, merchants=True), *await webhooks.failing(db)]
    for trouble in wrong:
        do = "start `orchestrator deliverer`"
        if trouble.startswith("webhook "):
            do = (
                "`orchestrator webhooks deliveries ID --merchant NAME` shows what it answered; after a repair "
                "`orchestrator webhooks resume ID --merchant NAME` sends at once"
            )
        report.ill("webhooks", f"{trouble}; {do}")
    if not wrong:
        report.well("webhooks", "no endpoint fails, and none waits for long")


async def _due(db: Database, report: Report, *, stopped: bool) -> None:
    found = await readiness.backlog(db)
    if stopped:
        report.well("backlog", f"{found.waiting} checkouts are due, and wait for the next start")
    elif (wrong := await _stuck(db, found)) is not None:
        report.ill("backlog", f"{wrong}: look at workers and broker")
    else:
        report.well("backlog", f"{found.waiting} checkouts wait for a worker, none for long")


async def _events(db: Database, report: Report, *, stopped: bool) -> None:
    """Look for events that no merchant can read yet: workers number them within about a second."""
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


async def _public_address(here: Installation, report: Report) -> None:
    """Look whether the gateways of all merchants could reach our callbacks."""
    rows = await query(here.db, "SELECT DISTINCT gateway_url FROM merchants WHERE disabled_at IS NULL")
    await _public_address_for(
        [here.settings.gateway_url, *(row.gateway_url for row in rows)], here.settings, report
    )


async def _public_address_for(gateways: Sequence[str | None], settings: Settings, report: Report) -> None:
    for fault in public_address.faults(settings.public_url, gateways):
        report.ill("address", fault)
    if (named := await public_address.resolved(settings.public_url, gateways)) is not None:
        (report.ill if named[0] else report.well)("address", named[1])


async def _money(here: Installation, report: Report, *, stopped: bool) -> None:
    """Look at money at risk, at decisions that wait, and at commands that no worker has executed."""
    now = await queries.read_now(here.db, here.settings.hint_grace)
    waiting = await queries.read_waiting(here.db, here.settings.hint_grace)
    _attention(now, report)
    found = False
    for (currency, kind, age), amount in sorted(now["money_at_risk"].items()):
        if kind not in _MEANING or (kind in _NORMAL and age == "under_10m"):
            continue
        found = True
        what, do = _MEANING[kind]
        report.ill("money", f"{amount:,.2f} {currency} {what} {_AGES[age]}: {do}")
    if not found:
        report.well("money", "none waits for long for a result, a lookup or a decision on a payment")
    number, age_of = waiting["waiting"]["commands",], waiting["oldest_due_seconds"]["commands",]
    if number and age_of > _OVERDUE and not stopped:
        report.ill(
            "commands",
            f"{number:.0f} wait, the oldest for {duration(age_of)}: `orchestrator checkouts explain ID` says for what; an operation "
            "without a result blocks those on its payment",
        )


def _attention(now: dict[str, dict[tuple[str, ...], float]], report: Report) -> None:
    """Say which decisions wait, for how long, and about how much money."""
    if not now["attention"]:
        return
    codes = ", ".join(
        f"{number:.0f} {code[0]} (the oldest for {duration(now['attention_oldest_seconds'][code])})"
        for code, number in sorted(now["attention"].items())
    )
    sums: dict[str, float] = {}
    for (currency, kind, _), amount in now["money_at_risk"].items():
        if kind == "attention":
            sums[currency] = sums.get(currency, 0.0) + amount
    money = ", ".join(f"{amount:,.2f} {currency}" for currency, amount in sorted(sums.items()))
    risk = f", with {money} at risk" if money else ""
    total = sum(now["attention"].values())
    report.ill(
        "attention",
        f"{total:.0f} checkouts need a person{risk}: {codes}; `orchestrator checkouts list --attention`",
    )


async def _lookups(db: Database, report: Report) -> None:
    """Report lookups that wait for their slot: where callbacks get lost, paid orders may be among them."""
    queues = await lookup_budget.queues(db)
    overdue = [queue for queue in queues if queue.overdue]
    for queue in overdue:
        report.ill("lookups", f"{queue.summary}; paid orders whose callbacks were lost complete that late")
    if not overdue:
        number = sum(queue.waiting for queue in queues)
        report.well("lookups", f"{number} wait for their slot, none for long")


async def _broker(settings: Settings) -> list[tuple[bool, str, str]]:
    """Ask the broker; return the lines about it and its queue of intents: whether all is well, what, how."""
    if (url := settings.broker_url) is None:
        missing = (
            "ORCHESTRATOR_BROKER_URL is not set, and no `orchestrator up` runs here: set it, or start that"
        )
        return [(False, "broker", missing)]
    try:
        hints, intents = await _in_thread(lambda: HintPublisher(settings).prove(), BROKER_TIMEOUT)
    except Exception as error:  # noqa: BLE001 - each transport has errors of its own, and all mean the same here
        why = reason_of(error)
        if not re.search("does not answer|time(out|d out)", why, re.IGNORECASE):
            return [
                (False, "broker", f"takes no hints ({why}): look at it, or correct ORCHESTRATOR_BROKER_URL")
            ]
        return [(False, "broker", f"takes no hints: {await _silent(url)}")]
    wait = f"{intents} messages wait in the queue intents"
    unread = intents > 0 and not settings.intents_prefetch
    told = f"{wait}, and ORCHESTRATOR_INTENTS_PREFETCH is 0: workers consume none" if unread else wait
    return [(True, "broker", f"takes hints; {hints} wait"), (not unread, "intents", told)]


async def _silent(url: str) -> str:
    """Say what a broker that has not answered may be: by whether it accepts a connection."""
    parts = parts_of(url.partition(";")[0], *REDIS, *AMQP)
    host, port = parts.hostname, parts.port or _PORTS[parts.scheme]
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return (
            f"{host}:{port} does not answer, and accepts no connection: its host is down, or the network to it is interrupted; look at "
            "both, or correct ORCHESTRATOR_BROKER_URL"
        )
    writer.close()
    return (
        f"{host}:{port} accepts connections and does not answer: {database_checks.SILENT}; see the chapter ProcessTrouble of "
        "docs/runbook-alerts.md"
    )


async def _in_thread(ask: Callable[[], T], seconds: float) -> T:
    """Return the result of a call in a thread of its own, which is abandoned if it takes longer; raises its
    error.
    """
    answer: concurrent.futures.Future[T] = concurrent.futures.Future()
    answer.set_running_or_notify_cancel()

    def run() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return await asyncio.wait_for(asyncio.wrap_future(answer), seconds)
    except TimeoutError:
        if answer.done():
            raise
        raise TimeoutError(f"it does not answer within {seconds:.0f} s") from None

"""Alerts against real processes and a real Prometheus: each fires within two minutes of its cause, and none
while all is well. Gauges after kills are a recount of the database and of the gateway's ledger.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx
import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families
from psycopg.conninfo import conninfo_to_dict

from orchestrator.domain.payment_status import IN_SQL
from orchestrator.monitoring import generated
from orchestrator.monitoring.promises import PROMISES
from tests.support.jobs import Producer
from tests.support.machine import free_port
from tests.support.pooler import direct
from tests.support.risk import STATEMENTS, recount
from tests.support.scene import intent
from tests.support.world import World, world

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from orchestrator.devkit.local.servers import Embedded

TOKEN = "a token of the operator"
WITHIN = 120.0
"""Seconds from a cause to its alert."""


@pytest.fixture
def installation(servers: Embedded, database_url: str, tmp_path: Path) -> Iterator[World]:
    with world(
        servers,
        database_url,
        tmp_path,
        metrics_token=TOKEN,
        breaker_failures=3,
        breaker_pause=5,
        webhook_allowed_networks=["127.0.0.0/8"],
    ) as started:
        yield started


def gauges(installation: World) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Scrape; return the samples by name and sorted labels."""
    page = httpx.get(
        f"{installation.api_url}/metrics", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=10
    )
    assert page.status_code == 200, page.text
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(page.text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


@contextmanager
def prometheus(installation: World, place: Path) -> Iterator[Callable[[], set[str]]]:
    """Run a Prometheus with our rules; give what returns the names of the alerts that fire."""
    port = free_port()
    (place / "alerts.yml").write_text(generated.alerts().replace('interval: "15s"', 'interval: "5s"'))
    (place / "prometheus.yml").write_text(
        json.dumps(
            {
                "global": {"scrape_interval": "2s", "evaluation_interval": "5s"},
                "rule_files": ["alerts.yml"],
                "scrape_configs": [
                    {
                        "job_name": "orchestrator",
                        "authorization": {"credentials": TOKEN},
                        "static_configs": [{"targets": [f"127.0.0.1:{installation.api_port}"]}],
                    }
                ],
            }
        )
    )
    log = (place / "prometheus.log").open("wb")
    process = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={place / 'prometheus.yml'}",
            f"--storage.tsdb.path={place / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=log,
        stderr=log,
    )
    url = f"http://127.0.0.1:{port}"

    def firing() -> set[str]:
        found = httpx.get(f"{url}/api/v1/alerts", timeout=5).json()["data"]["alerts"]
        return {alert["labels"]["alertname"] for alert in found if alert["state"] == "firing"}

    def answers() -> bool:
        try:
            return httpx.get(f"{url}/-/ready", timeout=1).is_success
        except httpx.HTTPError:
            return False

    try:
        installation.until(answers, "Prometheus answers", seconds=60)
        yield firing
    finally:
        process.kill()
        process.wait()
        log.close()


def fires(firing: Callable[[], set[str]], *names: str, seconds: float = WITHIN) -> None:
    began = time.monotonic()
    while missing := set(names) - firing():
        assert time.monotonic() - began < seconds, f"{missing} did not fire within {seconds} s"
        time.sleep(0.5)
    print(f"{names} after {time.monotonic() - began:.0f} s")


def silent(installation: World, firing: Callable[[], set[str]]) -> None:
    """Wait until all is well: rules of a burn rate look back for two minutes."""
    installation.until(lambda: not firing(), "no alert fires", seconds=3 * WITHIN)


WAITING = (
    "NoWorker", "WorkStandsStill", "DeliveriesLate", "CallbackUnverified", "CommandWaits", "OperationUnclear",
    "EventsWait", "LookupsWait", "DecisionsWait", "WebhookOff", "Degraded", "ClockDiffers", "OffersLate",
    "CallbacksLate", "IntentsWait",
)  # fmt: skip
GATEWAY = ("CircuitOpen", "GatewayFails", "CredentialsRefused")
SERVERS = ("ProcessTrouble", "DatabaseAway", "IntakeFails", "NoApi")
LATER = ("LeasesLost", "FiguresMissing", "FiguresOld")

real_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None,
    reason="Prometheus is not installed (Debian: apt-get install prometheus)",
)


def test_each_alert_has_a_cause_below() -> None:
    assert sorted((*WAITING, *GATEWAY, *SERVERS, *LATER)) == sorted(promise.name for promise in PROMISES)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@real_prometheus
def test_alerts_of_work_that_waits_fire_for_their_causes_and_not_before(
    installation: World, tmp_path: Path
) -> None:
    one = installation
    one.start_all()
    one.start("deliverer")
    with prometheus(one, tmp_path) as firing:
        paid = [one.order() for _ in range(5)]
        for checkout in paid:
            one.until_state(checkout, "awaiting_payment")
            one.pay(checkout)
        one.until_all("completed", seconds=60)
        time.sleep(40)
        assert firing() == set()

        # No deliverer and no worker: events, callbacks and orders wait.
        one.kill("deliverer")
        added = one.command("webhooks", "add", f"http://127.0.0.1:{free_port()}/hook")
        assert added.returncode == 0, added.stderr
        offered = [one.order() for _ in range(5)]
        for checkout in offered:
            one.until_state(checkout, "awaiting_payment")
        one.until(lambda: one.sql("SELECT 1 FROM delivery_streams"), "an event waits for the deliverer")
        one.kill("worker-1")
        for checkout in offered:
            one.pay(checkout)
        waits, *_ = [one.order() for _ in range(6)]
        fires(firing, "NoWorker", "WorkStandsStill", "DeliveriesLate")

        # What takes hours, or another host, is written as it would be by then.
        one.sql("UPDATE clock_skew SET seconds = seconds + 700")
        for statement in (
            (
                "INSERT INTO callbacks (id, checkout_id, kind, grade, body, digest, received_at) "
                "VALUES (gen_random_uuid(), %s, 'success', 'signed', '', 'd', clock() - interval '11 minutes')"
            ),
            (
                "INSERT INTO commands (id, merchant_id, checkout_id, kind, actor, requested_at) "
                "VALUES (gen_random_uuid(), 1, %s, 'retry', 'test', clock() - interval '20 minutes')"
            ),
            (
                "INSERT INTO money_operations (id, merchant_id, checkout_id, transaction_id, kind, amount, currency, state, "
                "reconciliation_identifier, cause, actor, requested_at) VALUES (gen_random_uuid(), 1, %s, 't-9', 'capture', 1, 'DKK', "
                "'unknown', 'r-1', 'asked', 'test', clock() - interval '20 minutes')"
            ),
            "UPDATE checkouts SET slot_reserved = true, updated_at = clock() - interval '10 minutes' WHERE id = %s",
        ):
            one.sql(statement, waits)
        one.sql("UPDATE events SET position = NULL, created_at = clock() - interval '5 minutes'")
        one.sql(
            "INSERT INTO lookup_budgets (merchant_id, taken_until, charged_at, made_until) "
            "VALUES (1, clock() + interval '1 hour', clock(), clock()) "
            "ON CONFLICT (merchant_id) DO UPDATE SET taken_until = excluded.taken_until"
        )
        one.sql(
            "UPDATE checkouts SET attention = 'late_payment', attention_since = clock() - interval '2 hours' WHERE id = %s",
            paid[0],
        )
        one.sql(
            "INSERT INTO webhook_endpoints (id, merchant_id, url, secret, paused_at, pause_reason) "
            "VALUES (gen_random_uuid(), 1, 'https://x.example', '', clock(), 'gone')"
        )
        one.sql(
            "INSERT INTO workers (name, kind, seen_at, progress) "
            """VALUES ('elsewhere:1', 'scheduler', clock() + interval '1 hour', '{"clockSeconds": -40}')"""
        )
        fires(
            firing, "CallbackUnverified", "CommandWaits", "OperationUnclear", "EventsWait", "LookupsWait",
            "DecisionsWait", "WebhookOff", "Degraded", "ClockDiffers",
        )  # fmt: skip
        # All causes end: what was written is taken back, and a worker comes again.
        for statement in (
            "DELETE FROM callbacks WHERE digest = 'd'",
            "DELETE FROM commands WHERE actor = 'test'",
            "DELETE FROM money_operations WHERE actor = 'test'",
            "DELETE FROM delivery_streams",
            "DELETE FROM webhook_endpoints",
            "DELETE FROM workers WHERE name = 'elsewhere:1'",
            "UPDATE lookup_budgets SET taken_until = clock(), made_until = clock()",
            "UPDATE checkouts SET slot_reserved = false, attention = NULL, attention_since = NULL",
        ):
            one.sql(statement)
        # It consumes no intents, and what has waited is late.
        one.settings["intents_prefetch"] = 0
        Producer(one.redis_url).send([[intent("I-1")]])
        one.start("worker-1")
        fires(firing, "OffersLate", "CallbacksLate", "IntentsWait")
        del one.settings["intents_prefetch"]
        one.stop("worker-1")
        one.start("worker-1")
        one.start("deliverer")
        silent(one, firing)
        one.agree()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@real_prometheus
def test_alerts_of_gateways_fire_for_their_causes(installation: World, tmp_path: Path) -> None:
    one = installation
    one.start_all()
    with prometheus(one, tmp_path) as firing:
        one.until_state(one.order(), "awaiting_payment")
        one.control("PUT", "faults", {"authenticate": {"count": 100_000, "status": 503}})
        for _ in range(20):
            one.order()
        fires(firing, "CircuitOpen", "GatewayFails")
        one.control("DELETE", "faults")
        silent(one, firing)
        one.control("PUT", "faults", {"authenticate": {"count": 100_000, "status": 401}})
        unpaid = one.order()
        fires(firing, "CredentialsRefused")
        one.control("DELETE", "faults")
        silent(one, firing)
        one.until_state(unpaid, "awaiting_payment")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@real_prometheus
def test_alerts_of_servers_fire_for_their_causes(
    installation: World, servers: Embedded, tmp_path: Path
) -> None:
    one = installation
    one.start_all()
    with prometheus(one, tmp_path) as firing:
        for _ in range(3):
            one.until_state(one.order(), "awaiting_payment")
        # A worker that cannot claim.
        with owner(servers, one) as db:
            db.execute(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'refused'; END $$"
            )
            db.execute(
                "CREATE TRIGGER refused BEFORE UPDATE ON checkouts FOR EACH STATEMENT EXECUTE FUNCTION refuse()"
            )
            waits = one.order()
            fires(firing, "ProcessTrouble")
            db.execute("DROP TRIGGER refused ON checkouts")
            db.execute("DROP FUNCTION refuse()")
            one.until_state(waits, "awaiting_payment", seconds=60)
            silent(one, firing)

            set_read_only = "ALTER DATABASE {} SET default_transaction_read_only = {}"
            name = db.info.dbname
            db.execute(set_read_only.format(name, "on"))
            end_others(db)
            one.until(lambda: refused(one), "orders are refused", seconds=60)
            # An order waits some seconds for Postgres before it is refused.
            with ThreadPoolExecutor(20) as pool:
                assert all(pool.map(lambda _: refused(one), range(20)))
            fires(firing, "DatabaseAway")
            db.execute("SET default_transaction_read_only = off")
            db.execute(set_read_only.format(name, "off"))
            end_others(db)
        # The counts of the API reach Postgres now.
        fires(firing, "IntakeFails")
        one.until_state(one.order(), "awaiting_payment", seconds=60)
        silent(one, firing)

        one.kill("api")
        fires(firing, "NoApi")
        one.start("api")
        silent(one, firing)


@contextmanager
def owner(servers: Embedded, installation: World) -> Iterator[psycopg.Connection]:
    """Connect to the installation's database as its administrator."""
    name = conninfo_to_dict(direct(installation.database_url))["dbname"]
    with psycopg.connect(servers.administrator_url, dbname=name, autocommit=True) as db:
        yield db


def end_others(db: psycopg.Connection) -> None:
    """End all other sessions of this database: what is set for it counts for new ones."""
    db.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


def refused(installation: World) -> bool:
    """Send an order; return whether it was refused because of Postgres."""
    address = f"{installation.api_url}/v1/checkouts"
    order, kind = intent(f"R-{time.monotonic_ns()}"), {"Content-Type": "application/json"}
    return installation.http.post(address, content=order, headers=kind, timeout=60).status_code == 503


@pytest.mark.slow
@pytest.mark.timeout(1800)
@real_prometheus
def test_alerts_of_lost_leases_and_old_figures_fire(
    installation: World, servers: Embedded, tmp_path: Path
) -> None:
    one = installation
    one.start_all()
    with prometheus(one, tmp_path) as firing, owner(servers, one) as db:
        one.until_state(one.order(), "awaiting_payment")
        time.sleep(15)
        # A worker stands still with forty checkouts in its hands, and another one takes them.
        one.control("PUT", "faults", {"latencyMs": {"all": 800}})
        held = [one.order() for _ in range(40)]
        claimed = "SELECT count(*) AS number FROM checkouts WHERE lease IS NOT NULL"
        one.until(lambda: one.sql(claimed)[0]["number"] >= 35, "the worker holds them")
        one.signal("worker-1", signal.SIGSTOP)
        one.control("DELETE", "faults")
        one.start("worker-2")
        for checkout in held:
            one.until_state(checkout, "awaiting_payment", seconds=60)
        one.signal("worker-1", signal.SIGCONT)
        fires(firing, "LeasesLost")
        # The statements that read a group of figures end in a time-out each time.
        with db.transaction():
            db.execute("LOCK TABLE lookup_budgets IN ACCESS EXCLUSIVE MODE")
            fires(firing, "FiguresMissing")
        one.until(lambda: "FiguresMissing" not in firing(), "the figures are read again", seconds=WITHIN)
        began = time.monotonic()
        with db.transaction():
            db.execute("LOCK TABLE counter_totals IN ACCESS EXCLUSIVE MODE")
            fires(firing, "FiguresOld", seconds=300 + WITHIN)
            assert time.monotonic() - began > 290
        one.until(lambda: "FiguresOld" not in firing(), "the figures are read again", seconds=WITHIN)
        one.agree()


def captured(one: World) -> int:
    """Return what the gateway has captured, in minor units."""
    return sum(payment["capturedMinor"] for order in one.ledger().values() for payment in order["payments"])


def booked(one: World) -> int:
    """Return what our checkouts say was captured, in minor units."""
    return int(one.sql("SELECT coalesce(sum(captured), 0) AS sum FROM checkouts")[0]["sum"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_gauges_after_200_kills_are_a_recount_of_database_and_ledger(
    installation: World,
) -> None:
    chance, one = random.Random(7), installation
    one.start_all(workers=2)
    begun: list[str] = []
    paid: set[str] = set()
    for _ in range(200):
        if one.running.keys() >= {"api", "sandbox"} and chance.random() < 0.7:
            begun.append(one.order(capture=chance.random() < 0.5))
        if begun and chance.random() < 0.5 and "api" in one.running:
            checkout = begun[-1]
            (row,) = one.sql("SELECT state FROM checkouts WHERE id = %s", checkout)
            # Once: a second payment is surplus, waits for a person, and is not in the books as captured.
            if row["state"] == "awaiting_payment" and checkout not in paid:
                paid.add(checkout)
                one.pay(checkout)
        victim = chance.choice(["worker-1", "worker-2", "scheduler", "api"])
        one.kill(victim)
        one.start(victim)
    for checkout in begun:
        state = one.sql("SELECT state FROM checkouts WHERE id = %s", checkout)[0]["state"]
        if state in {"received", "authenticated", "session_created", "methods_fetched"}:
            one.until_state(checkout, "awaiting_payment", seconds=60)
    # A lookup makes up for a callback that met no API, and the watch of a capture for its killed worker.
    one.until(lambda: booked(one) == captured(one), "the books agree with the ledger", seconds=240)
    time.sleep(3)
    found = gauges(one)
    while found["orchestrator_reading_age_seconds"][("group", "books"),] > 1.5:
        time.sleep(1)
        found = gauges(one)
    counted = {
        (("payment_status", row["word"]), ("state", row["state"])): float(row["number"])
        for row in one.sql(f"SELECT state, {IN_SQL} AS word, count(*) AS number FROM checkouts GROUP BY 1, 2")
    }
    assert found["orchestrator_checkouts"] == counted
    assert found["orchestrator_money"][("currency", "DKK"), ("fact", "captured")] == captured(one) / 100
    assert sum(found["orchestrator_waiting"].values()) >= 0
    attention = one.sql("SELECT count(*) AS number FROM checkouts WHERE attention IS NOT NULL")[0]["number"]
    assert sum(found.get("orchestrator_attention", {}).values()) == attention
    moved = sum(found["orchestrator_moves_total"].values())
    trail = one.sql("SELECT count(*) AS number FROM audit_entries WHERE action = 'checkout:moved'")[0][
        "number"
    ]
    assert 0 < moved <= trail
    one.agree()
    # All that is paid is found by now, or by a lookup that makes up for a lost callback.
    one.until(lambda: uncaptured(one) == held(one), "what is reserved agrees with the ledger", seconds=240)
    # Nothing changes it any more: a worker would settle what is written here.
    for name in ("worker-1", "worker-2", "scheduler"):
        one.kill(name)
    for statement in AT_RISK:
        one.sql(statement)
    one.until(lambda: at_risk(one) == recounted(one), "the gauge is a recount of the rows", seconds=60)
    amounts = at_risk(one)
    kinds = {"operation", "attention", "callback", "uncaptured", "surplus", "unknown"}
    assert {kind for _, kind, _ in amounts} == kinds
    assert {age for _, _, age in amounts} == {"under_10m", "10m_to_1h", "1h_to_1d", "over_1d"}
    assert sum(amount for (_, kind, _), amount in amounts.items() if kind == "uncaptured") == held(one) / 100


AT_RISK = (
    (
        "INSERT INTO money_operations (id, merchant_id, checkout_id, transaction_id, kind, amount, currency, state, "
        "reconciliation_identifier, cause, actor, requested_at) SELECT gen_random_uuid(), 1, id, 't-9', 'capture', 1200, 'DKK', "
        "'unknown', 'r-1', 'asked', 'test', clock() - interval '2 days' FROM checkouts LIMIT 1"
    ),
    (
        "INSERT INTO callbacks (id, checkout_id, kind, grade, body, digest, received_at) "
        "SELECT gen_random_uuid(), id, 'success', 'signed', '', 'd', clock() - interval '20 minutes' FROM checkouts "
        "WHERE state <> 'completed' LIMIT 1"
    ),
    (
        "UPDATE checkouts SET attention = 'late_payment', attention_since = clock() - interval '2 hours' "
        "WHERE id = (SELECT max(id::text)::uuid FROM checkouts)"
    ),
    (
        "INSERT INTO payments SELECT made.* FROM (SELECT * FROM payments LIMIT 1) p, (VALUES (1, 'surplus'), (2, 'unknown')) v (n, r), "
        "LATERAL jsonb_populate_record(NULL::payments, to_jsonb(p) || jsonb_build_object('transaction_id', 't-' || n, 'role', r, "
        "'checkout_id', (SELECT max(id::text) FROM checkouts), 'meaning', 'captured', 'captured', 900, 'refunded', 200)) made"
    ),
    "UPDATE payments SET first_seen_at = clock() WHERE transaction_id = 't-1'",
)
"""Statements that write what leaves money at risk, as it would be after some time."""


def uncaptured(one: World) -> int:
    """Return what our checkouts say is reserved and not captured, in minor units."""
    return int(
        one.sql(
            "SELECT coalesce(sum(reserved - captured), 0) AS sum FROM checkouts WHERE state = 'completed' AND reserved > captured"
        )[0]["sum"]
    )


def held(one: World) -> int:
    """Return what the gateway has reserved and not captured, in minor units."""
    return sum(
        payment["reservedMinor"] - payment["capturedMinor"]
        for order in one.ledger().values()
        for payment in order["payments"]
    )


def at_risk(one: World) -> dict[tuple[str, str, str], float]:
    """Return the gauge by currency, kind and bucket of ages."""
    return {
        (labels["currency"], labels["kind"], labels["age"]): amount
        for key, amount in gauges(one).get("orchestrator_money_at_risk", {}).items()
        for labels in (dict(key),)
    }


def recounted(one: World) -> dict[tuple[str, str, str], float]:
    return recount({name: [row["row"] for row in one.sql(sql)] for name, sql in STATEMENTS.items()})

"""A database that is restored to an earlier point in time agrees with the gateway again, and no money moves
twice.
"""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from urllib.parse import urlsplit, urlunsplit

import httpx
import psycopg
import pytest
from psycopg import sql

from orchestrator import auth
from tests.conftest import make_settings
from tests.support.scene import intent
from tests.support.world import World, world

PROCESSES = ("api", "worker-1", "scheduler")


def copy_of(servers, url: str, name: str) -> str:
    """Copy a database that no process uses; return the copy's URL."""
    with psycopg.connect(servers.administrator_url, autocommit=True) as admin:
        place = sql.Identifier(urlsplit(url).path.lstrip("/"))
        admin.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), place))
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


def stop(installation: World, *processes: str) -> None:
    for name in processes:
        installation.stop(name)
    # A connection that is left would keep the database from being copied.
    installation.sql(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


def feed(installation: World, after: str) -> dict[str, object]:
    token = auth.issue(
        make_settings(), merchant="default", scopes=("events:read",), lifetime=600, subject="t"
    )
    answer = httpx.get(
        f"{installation.api_url}/v1/events",
        params={"after": after, "limit": 1000},
        headers={"Authorization": f"Bearer {token}"},
        timeout=10,
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.direct("a database that PgBouncer is connected to cannot be copied")
def test_after_a_restore_every_order_since_is_compared_with_the_gateway_and_nothing_is_captured_twice(  # noqa: PLR0915 - one story
    servers, database_url, tmp_path
):
    name = f"restored_{os.getpid()}"
    with world(servers, database_url, tmp_path) as installation:
        try:
            installation.start_all()
            captured, paid_since = installation.order(), installation.order()
            installation.until_all("awaiting_payment")
            installation.pay(captured)
            installation.until_state(captured, "completed")
            # At the moment of the backup a capture is stored; it is executed after it.
            installation.stop("worker-1")
            installation.ask(captured, "capture", amount=39.00)
            stop(installation, "api", "scheduler")
            backup = copy_of(servers, database_url, name)
            moment = datetime.now(UTC)

            for process in PROCESSES:
                installation.start(process)
            installation.until_operation(captured, "succeeded")
            installation.api().command(captured, "refund", {"amount": 10.00})
            installation.pay(paid_since)
            lost = installation.api().create(intent("LOST-1"))
            unpaid = installation.api().create(intent("LOST-2"))
            installation.until_all("completed", "awaiting_payment")
            installation.pay(str(lost.checkout.id))
            old_page = installation.begin_payment(str(unpaid.checkout.id))
            installation.until_state(str(lost.checkout.id), "completed")
            installation.until(lambda: len(installation.movements(captured)) == 2, "both are executed")
            seen = feed(installation, "0")["next"]
            stop(installation, *PROCESSES)

            installation.database_url = backup
            installation.settings["database_url"] = backup
            (tmp_path / "orders").write_text("LOST-1\nLOST-2\n")
            known = {
                (row["checkout_id"], row["sequence"])
                for row in installation.sql(
                    "SELECT checkout_id, sequence FROM events WHERE position IS NOT NULL"
                )
            }
            # Before any worker can give a position, feeds go on beyond the lost ones.
            restored_to = ("checkouts", "reconcile", "--restored-to", moment.isoformat())
            ended = installation.command(*restored_to, "--no-wait")
            assert ended.returncode == 0, ended.stderr
            installation.start("worker-1")
            installation.start("scheduler")
            reconcile = (*restored_to, "--merchant", "default", "--orders", str(tmp_path / "orders"))
            ended = installation.command(*reconcile)
            assert ended.returncode == 0, ended.stderr
            counted = dict(re.findall(r"^(\w[\w ]+?) {2,}(\d+)$", ended.stdout, re.MULTILINE))
            assert counted["created from their payment"] == counted["without a payment"] == "1"
            assert "No payment at the gateway: LOST-2" in ended.stderr
            assert (counted["asked"], counted["still waiting"]) == ("3", "0")

            installation.start("api")
            installation.until_state(paid_since, "completed")
            # The shop hands over again what it has handed over since.
            again = installation.api().create(intent("LOST-1"))
            assert (again.new, again.checkout.id) == (False, lost.checkout.id)
            assert installation.api().create(intent("LOST-2-again")).new
            installation.until_state(str(lost.checkout.id), "completed")
            installation.until_all("completed", "awaiting_payment")
            installation.until(
                lambda: installation.checkout(captured)["money"]["refunded"] == 10.0,
                "the refund is in our books",
            )
            assert installation.movements(captured) == [("captured", 3900), ("refunded", 1000)]
            # A consumer goes on where it was: each event since the restore is after its cursor, also those
            # of an order that was paid in the lost time.
            since = {
                (row["checkout_id"], row["sequence"]): row["position"]
                for row in installation.sql("SELECT checkout_id, sequence, position FROM events")
                if (row["checkout_id"], row["sequence"]) not in known
            }
            assert since
            assert all(position > int(seen) for position in since.values()), since
            found = feed(installation, seen)["events"]
            assert len(found) == len(since)
            completed = {event["subject"] for event in found if event["type"] == "checkout.completed"}
            assert {paid_since, str(lost.checkout.id)} <= completed
            # A shopper pays on a page of the lost time, whose callback finds no checkout.
            installation.submit(old_page)
            ended = installation.command(*reconcile)
            assert re.search(r"^created from their payment +1$", ended.stdout, re.MULTILINE), ended
            installation.until_state(str(unpaid.checkout.id), "completed")
            assert installation.checkout(str(unpaid.checkout.id))["attention"]["code"] == "unknown_order"
            installation.agree()
        finally:
            for process in list(installation.running):
                installation.kill(process)
            with psycopg.connect(servers.administrator_url, autocommit=True) as admin:
                admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

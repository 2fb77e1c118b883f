"""One merchant's burst, slow gateway or broken gateway delays no other merchant: shown by the order of
events, on whole processes.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx

from tests.support.world import World, free_port, world

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from orchestrator.devkit.local.servers import Embedded

TIGHT = {"in_flight_limit": 20, "gateway_pool_size": 10, "sweep_interval": 0.5}


@contextmanager
def two_merchants(
    servers: Embedded, database_url: str, place: Path, *, own_gateway: bool, **settings: object
) -> Iterator[tuple[World, str]]:
    """Start everything but workers, with a second merchant `quiet` at the same gateway or at a gateway
    of its own.
    """
    with world(servers, database_url, place, **{**TIGHT, **settings}) as installation:
        installation.start("sandbox")
        gateway = installation.sandbox_url
        if own_gateway:
            port = free_port()
            installation.start("sandbox-2", port=port)
            gateway = f"http://127.0.0.1:{port}"
        added = installation.command(
            "merchants",
            "add",
            "quiet",
            "--gateway-url",
            gateway,
            "--username",
            "shop",
            given="sandbox password\n\n",
        )
        assert added.returncode == 0, added.stderr
        installation.start("api")
        installation.start("scheduler")
        yield installation, gateway


def through(installation: World, merchant: str) -> int:
    """Return how many of a merchant's orders have been offered."""
    return installation.sql(
        "SELECT count(*) AS n FROM checkouts c JOIN merchants m ON m.id = c.merchant_id WHERE m.name = %s AND offered_at IS NOT NULL",
        merchant,
    )[0]["n"]


def offered_later(installation: World) -> int:
    """Return how many orders of the burst were offered after the last order of the quiet merchant."""
    return installation.sql("""
        SELECT count(*) AS n FROM checkouts b WHERE b.merchant_id = 1 AND b.offered_at > (
            SELECT max(q.offered_at) FROM checkouts q WHERE q.merchant_id <> 1)
    """)[0]["n"]


def test_a_quiet_merchant_comes_through_a_burst_that_was_there_before_it(servers, database_url, tmp_path):
    with two_merchants(servers, database_url, tmp_path, own_gateway=False) as (installation, _):
        burst = [installation.order() for _ in range(300)]
        quiet = [installation.order(merchant="quiet") for _ in range(5)]
        installation.start("worker-1")
        installation.until_all("awaiting_payment", seconds=90)
        assert len(burst) + len(quiet) == len(installation.sql("SELECT 1 FROM checkouts"))
        assert offered_later(installation) >= 100, "first in, first out, it would have been none"
        installation.agree()


def test_a_slow_gateway_delays_no_other_merchants_orders(servers, database_url, tmp_path):
    with two_merchants(servers, database_url, tmp_path, own_gateway=True) as (installation, _):
        installation.control("PUT", "faults", {"latencyMs": {"all": 700}})
        for _ in range(150):
            installation.order()
        installation.start("worker-1")
        installation.until(
            lambda: (
                installation.sql("SELECT count(*) AS n FROM checkouts WHERE lease IS NOT NULL")[0]["n"] >= 10
            ),
            "the slow gateway's orders are under way",
        )
        for _ in range(20):
            installation.order(merchant="quiet")
        installation.until(
            lambda: through(installation, "quiet") == 20, "the quiet merchant's orders are through"
        )
        assert through(installation, "default") < 140, "and the slow merchant's orders were still under way"
        installation.control("DELETE", "faults")
        installation.until_all("awaiting_payment", seconds=90)


def test_the_circuit_of_a_gateway_that_is_down_is_open_for_all_workers_and_costs_no_attempts(
    servers, database_url, tmp_path
):
    down = {"breaker_failures": 5, "breaker_pause": 2}
    with two_merchants(servers, database_url, tmp_path, own_gateway=True, **down) as (installation, gateway):
        installation.start("worker-1")
        installation.start("worker-2")
        installation.kill("sandbox")
        for _ in range(40):
            installation.order()
        installation.until(
            lambda: all("gateway_paused" in installation.log(worker) for worker in ("worker-1", "worker-2")),
            "both workers leave it alone",
        )
        quiet = [installation.order(merchant="quiet") for _ in range(10)]
        for checkout in quiet:
            installation.until_state(checkout, "awaiting_payment")
        (tried,) = installation.sql(
            "SELECT max(attempts) AS most,"
            " count(*) FILTER (WHERE merchant_id = 1 AND attempts = 0) AS untouched FROM checkouts"
        )
        assert tried["most"] <= 8
        assert tried["untouched"] >= 10, "most were not even tried"
        # Between two pauses a worker sends a probe.
        installation.until(
            lambda: (
                f"{installation.sandbox_url} is not called for another"
                in installation.command("doctor").stdout
            ),
            "doctor says so",
        )
        assert f"{gateway} is not called" not in installation.command("doctor").stdout
        installation.start("sandbox")
        installation.until_all("awaiting_payment")
        installation.until(
            lambda: "gateway_back" in installation.log("worker-1") + installation.log("worker-2"),
            "a worker logs that it is back",
        )
        assert httpx.get(f"{installation.sandbox_url}/healthz").is_success

"""One merchant's burst, slow gateway or broken gateway delays nobody else: told by the order of events, on
whole processes.
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
    """Start everything but workers, with a second merchant `quiet` at the same gateway or at one
    of its own.
    """
    with world(servers, database_url, place, **{**TIGHT, **settings}) as one:
        one.start("sandbox")
        gateway = one.sandbox_url
        if own_gateway:
            port = free_port()
            one.start("sandbox-2", port=port)
            gateway = f"http://127.0.0.1:{port}"
        added = one.command(
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
        one.start("api")
        one.start("scheduler")
        yield one, gateway


def through(one: World, merchant: str) -> int:
    """Return how many of a merchant's orders have been offered."""
    return one.sql(
        "SELECT count(*) AS n FROM checkouts c JOIN merchants m ON m.id = c.merchant_id WHERE m.name = %s AND offered_at IS NOT NULL",
        merchant,
    )[0]["n"]


def offered_later(one: World) -> int:
    """Return how many orders of the burst were offered after the last one of the quiet merchant."""
    return one.sql("""
        SELECT count(*) AS n FROM checkouts b WHERE b.merchant_id = 1 AND b.offered_at > (
            SELECT max(q.offered_at) FROM checkouts q WHERE q.merchant_id <> 1)
    """)[0]["n"]


def test_a_quiet_merchant_comes_through_a_burst_that_was_there_before_it(servers, database_url, tmp_path):
    with two_merchants(servers, database_url, tmp_path, own_gateway=False) as (one, _):
        burst = [one.order() for _ in range(200)]
        quiet = [one.order(merchant="quiet") for _ in range(5)]
        one.start("worker-1")
        one.until_all("awaiting_payment", seconds=90)
        assert len(burst) + len(quiet) == len(one.sql("SELECT 1 FROM checkouts"))
        assert offered_later(one) >= 100, "first in, first out, it would have been none"
        one.agree()


def test_a_slow_gateway_delays_nobody_elses_orders(servers, database_url, tmp_path):
    with two_merchants(servers, database_url, tmp_path, own_gateway=True) as (one, _):
        one.control("PUT", "faults", {"latencyMs": {"all": 700}})
        one.start("worker-1")
        for _ in range(60):
            one.order()
        one.until(
            lambda: one.sql("SELECT count(*) AS n FROM checkouts WHERE lease IS NOT NULL")[0]["n"] >= 10,
            "the slow gateway's orders are under way",
        )
        for _ in range(20):
            one.order(merchant="quiet")
        one.until(lambda: through(one, "quiet") == 20, "the quiet merchant's orders are through")
        assert through(one, "default") < 50, "and the slow ones were still at it"
        one.control("DELETE", "faults")
        one.until_all("awaiting_payment", seconds=90)


def test_the_circuit_of_a_gateway_that_is_down_is_open_for_all_workers_and_costs_no_attempts(
    servers, database_url, tmp_path
):
    down = {"breaker_failures": 5, "breaker_pause": 2}
    with two_merchants(servers, database_url, tmp_path, own_gateway=True, **down) as (one, gateway):
        one.start("worker-1")
        one.start("worker-2")
        one.kill("sandbox")
        for _ in range(40):
            one.order()
        one.until(
            lambda: all("gateway_paused" in one.log(worker) for worker in ("worker-1", "worker-2")),
            "both workers leave it alone",
        )
        quiet = [one.order(merchant="quiet") for _ in range(10)]
        for checkout in quiet:
            one.until_state(checkout, "awaiting_payment")
        # Between two pauses somebody tries.
        one.until(
            lambda: f"{one.sandbox_url} is not called for another" in one.command("doctor").stdout,
            "doctor says so",
        )
        assert f"{gateway} is not called" not in one.command("doctor").stdout
        assert one.sql("SELECT max(attempts) AS most FROM checkouts")[0]["most"] <= 8
        untouched = one.sql("SELECT count(*) AS n FROM checkouts WHERE merchant_id = 1 AND attempts = 0")
        assert untouched[0]["n"] >= 10, "most were not even tried"
        one.start("sandbox")
        one.until_all("awaiting_payment")
        one.until(
            lambda: "gateway_back" in one.log("worker-1") + one.log("worker-2"),
            "somebody says that it is back",
        )
        assert httpx.get(f"{one.sandbox_url}/healthz").is_success

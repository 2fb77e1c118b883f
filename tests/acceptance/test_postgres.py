"""A whole installation on a Postgres that fails as in production: a switchover, silent connections, a pooler
between.

Each fault ends by itself: no process is started again, nothing is lost or doubled, and the books agree with
the gateway's ledger.
"""

from __future__ import annotations

import signal
import threading
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from orchestrator.devkit.client import ClientError
from orchestrator.store import schema
from tests.support.api import Api
from tests.support.postgres import (
    LOGIN,
    Cluster,
    Proxy,
    address,
    needs_pgbouncer,
    pgbouncer,
    pooling,
    through,
)
from tests.support.scene import intent
from tests.support.world import DECLINED_CARD, World, frozen, token, world

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from orchestrator.devkit.local.servers import Embedded

GOAL = 5.0
"""Seconds from the moment at which Postgres can be used again to the first order and the first move, beside
what these take on this machine before the fault.
"""
UNHURRIED = {
    "gateway_connect_timeout": 3,
    "gateway_read_timeout": 3,
    "gateway_total_timeout": 3,
    "lease_seconds": 10,
}
"""The sandbox shares the machine; how long it takes is not measured here."""
SILENCE = 10.0
"""Seconds; longer than any pause between two tries."""
END = 30.0
"""Seconds in which a process ends, whatever hangs."""


class Orders:
    """A shop that hands over an order every moment and records which were accepted, from a thread of its
    own.
    """

    def __init__(self, installation: World, prefix: str) -> None:
        self._api = Api(installation.api_url, token("default"), timeout=20)
        self._prefix = prefix
        self.taken: dict[str, float] = {}
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(number,), daemon=True) for number in range(4)
        ]

    def _run(self, shopper: int) -> None:
        number = 0
        while not self._ended.wait(0.4):
            number += 1
            try:
                created = self._api.create(intent(f"{self._prefix}-{shopper}-{number}"))
            except ClientError:
                continue
            if created.new:
                self.taken[str(created.checkout.id)] = time.monotonic()

    @contextmanager
    def placed(self) -> Iterator[Orders]:
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            for thread in self._threads:
                thread.join()
            self._api.close()

    def taken_since(self, moment: float) -> bool:
        return any(at > moment for at in self.taken.values())


pytestmark = pytest.mark.timeout(300)


@contextmanager
def reached(servers: Embedded, database_url: str, place: Path, url: str) -> Iterator[World]:
    """An installation whose processes reach its database by another URL than the tests do."""
    with world(servers, database_url, place, **UNHURRIED) as installation:
        installation.settings["database_url"] = url
        yield installation


def all_reach(installation: World, *states: str) -> None:
    """Wait until every checkout is in one of these states; say what else there is if that does not happen."""
    try:
        installation.until_all(*states, seconds=120)
    except AssertionError:
        print(
            installation.sql("SELECT state, last_error, attention, count(*) FROM checkouts GROUP BY 1, 2, 3")
        )
        raise


def moves(installation: World) -> int:
    """Return how many moves there have been."""
    return int(
        installation.sql("SELECT count(*) AS number FROM audit_entries WHERE action = 'checkout:moved'")[0][
            "number"
        ]
    )


def goes_on(installation: World, orders: Orders, *, since: float) -> tuple[float, float]:
    """Wait for the first order and the first move after a moment; return the seconds that each took."""
    before = moves(installation)
    installation.until(lambda: moves(installation) > before, "a checkout moves", seconds=60)
    moved = time.monotonic() - since
    installation.until(lambda: orders.taken_since(since), "an order is taken", seconds=60)
    ordered = min(at for at in orders.taken.values() if at > since) - since
    print(f"the first order {ordered:.1f} s later, the first move {moved:.1f} s later")
    return ordered, moved


# ── Failover ──────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def demoted(old: Cluster, how: str) -> Iterator[None]:
    """Let a primary take no writes any more, for as long as the block lasts."""
    with ExitStack() as held:
        if how == "becomes read-only":
            old.read_only()
        elif how == "hangs":
            held.enter_context(frozen(old.pid))
        else:
            old.stop()
        yield


@pytest.mark.parametrize(
    "how",
    [
        "becomes read-only",
        pytest.param("hangs", marks=pytest.mark.slow),
        pytest.param("is gone", marks=pytest.mark.slow),
    ],
)
def test_after_a_failover_the_new_primary_is_found_in_seconds_whatever_becomes_of_the_old_primary(
    servers: Embedded, tmp_path: Path, how: str
):
    with Cluster.started() as old, ExitStack() as held:
        schema.migrate(old.url)
        with old.follow() as new:
            hosts = f"127.0.0.1:{old.port},127.0.0.1:{new.port}"
            url = old.url.replace(f"127.0.0.1:{old.port}", hosts)
            with reached(servers, old.url, tmp_path, url) as installation:
                installation.start_all(workers=2)
                with Orders(installation, "S").placed() as orders:
                    installation.until(
                        lambda: len(orders.taken) > 10 and moves(installation) > 10,
                        "orders are under way",
                        seconds=60,
                    )
                    usual = max(goes_on(installation, orders, since=time.monotonic()))
                    held.enter_context(demoted(old, how))
                    refused = time.monotonic()
                    time.sleep(3)
                    assert not orders.taken_since(refused + 0.5)
                    new.promote()
                    installation.database_url = new.url
                    installation.until(
                        lambda: new.admin("SHOW transaction_read_only") == [("off",)], "it takes writes"
                    )
                    ordered, moved = goes_on(installation, orders, since=time.monotonic())
                assert ordered < GOAL + usual
                assert moved < GOAL + usual
                all_reach(installation, "awaiting_payment")
                checkout = next(iter(orders.taken))
                installation.pay(checkout)
                installation.until_state(checkout, "completed")
                installation.agree()
                assert {row["id"] for row in installation.sql("SELECT id::text FROM checkouts")} >= set(
                    orders.taken
                )


# ── Silence ───────────────────────────────────────────────────────────────────────────────────────────────


def test_orders_and_moves_go_on_seconds_after_all_connections_fell_silent(
    servers: Embedded, database_url: str, tmp_path: Path
):
    with (
        Proxy(address(database_url)) as proxy,
        reached(servers, database_url, tmp_path, through(database_url, proxy)) as installation,
    ):
        installation.start_all()
        with Orders(installation, "H").placed() as orders:
            installation.until(
                lambda: len(orders.taken) > 10 and moves(installation) > 10,
                "orders are under way",
                seconds=60,
            )
            usual = max(goes_on(installation, orders, since=time.monotonic()))
            proxy.silence()
            ordered, moved = goes_on(installation, orders, since=time.monotonic())
        assert ordered < GOAL + usual
        assert moved < GOAL + usual
        # What the server held for connections that it took for open ends too.
        all_reach(installation, "awaiting_payment")
        checkout = next(iter(orders.taken))
        installation.pay(checkout)
        installation.until_state(checkout, "completed")
        installation.agree()


@pytest.mark.slow
def test_orders_and_moves_go_on_seconds_after_all_connections_were_silent(
    servers: Embedded, database_url: str, tmp_path: Path
):
    with (
        Proxy(address(database_url)) as proxy,
        reached(servers, database_url, tmp_path, through(database_url, proxy)) as installation,
    ):
        installation.start_all()
        with Orders(installation, "T").placed() as orders:
            installation.until(
                lambda: len(orders.taken) > 10 and moves(installation) > 10,
                "orders are under way",
                seconds=60,
            )
            # New connections too: what is tried meanwhile waits, fails, and is tried again ever less often.
            proxy.silence(new_connections_too=True)
            fell_silent = time.monotonic()
            time.sleep(SILENCE)
            assert not orders.taken_since(fell_silent + 0.5)
            # What was silent stays so, as behind a firewall that dropped its connections.
            proxy.answers = True
            ordered, moved = goes_on(installation, orders, since=time.monotonic())
        assert ordered < GOAL
        assert moved < GOAL
        all_reach(installation, "awaiting_payment")
        installation.agree()


@pytest.mark.slow
def test_every_process_ends_though_postgres_is_silent(servers: Embedded, database_url: str, tmp_path: Path):
    with (
        Proxy(address(database_url)) as proxy,
        reached(servers, database_url, tmp_path, through(database_url, proxy)) as installation,
    ):
        installation.start_all()
        with Orders(installation, "E").placed() as orders:
            installation.until(
                lambda: len(orders.taken) > 10 and moves(installation) > 10,
                "orders are under way",
                seconds=60,
            )
            proxy.silence(new_connections_too=True)
            time.sleep(2)
            began = time.monotonic()
            for name in ("api", "worker-1", "scheduler"):
                installation.signal(name, signal.SIGTERM)
            for name in ("api", "worker-1", "scheduler"):
                installation.running[name].wait(timeout=3 * END)
                assert time.monotonic() - began < END, name
        proxy.thaw()
        for name in ("api", "worker-1", "scheduler"):
            del installation.running[name]
            installation.start(name)
        all_reach(installation, "awaiting_payment")
        assert {row["id"] for row in installation.sql("SELECT id::text FROM checkouts")} >= set(orders.taken)


# ── A pooler ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(name="pooled")
def _pooled(servers: Embedded, database_url: str, tmp_path: Path) -> Iterator[World]:
    with (
        pgbouncer(database_url, size=6) as url,
        reached(servers, database_url, tmp_path, url) as installation,
    ):
        yield installation


@needs_pgbouncer
def test_behind_pgbouncer_orders_reach_every_outcome_though_workers_are_killed(pooled: World):
    pooled.start_all(workers=2)
    paid = [pooled.order() for _ in range(20)]
    declined = [pooled.order() for _ in range(3)]
    expiring = [pooled.order(expiresIn=5) for _ in range(3)]
    cancelled = [pooled.order() for _ in range(3)]
    refunded = pooled.order()
    pooled.kill("worker-1")
    pooled.start("worker-3")
    all_reach(pooled, "awaiting_payment", "expired")
    for checkout in cancelled:
        pooled.cancel(checkout)
    for checkout in declined:
        pooled.pay(checkout, card=DECLINED_CARD)
    for number, checkout in enumerate([*paid, refunded]):
        pooled.pay(checkout)
        if number == len(paid) // 2:
            pooled.kill("worker-2")
            pooled.start("worker-4")
    pooled.until_state(refunded, "completed", seconds=90)
    for kind, asked in (("capture", {"amount": "all"}), ("refund", {"amount": 100})):
        pooled.ask(refunded, kind, **asked)
        pooled.until_operation(refunded, "succeeded", seconds=60)
    wanted = {
        "completed": [*paid, refunded],
        "cancelled": cancelled,
        "expired": expiring,
        "awaiting_payment": declined,
    }
    for state, checkouts in wanted.items():
        for checkout in checkouts:
            pooled.until_state(checkout, state, seconds=90)
    assert not pooled.sql("SELECT id, attention FROM checkouts WHERE attention IS NOT NULL")
    pooled.agree()
    for name in ("api", "worker-3", "worker-4"):
        said = pooled.log(name)
        assert "row_refused" not in said
        assert "DuplicatePreparedStatement" not in said
    ready = pooled.http.get(f"{pooled.api_url}/readyz")
    assert ready.status_code == 200, ready.text
    doctor = pooled.command("doctor")
    assert "behind a pooler" in doctor.stdout, doctor.stdout + doctor.stderr


@pytest.mark.slow
@needs_pgbouncer
def test_behind_pgbouncer_orders_go_on_by_themselves_after_postgres_was_restarted(
    servers: Embedded, tmp_path: Path
):
    user, _, password = LOGIN.partition(":")
    with Cluster.started() as server, pooling(server.port, {user: password}) as port:
        schema.migrate(server.url)
        url = f"postgresql://{LOGIN}@127.0.0.1:{port}/shop"
        with reached(servers, server.url, tmp_path, url) as installation:
            installation.start_all()
            with Orders(installation, "R").placed() as orders:
                installation.until(
                    lambda: len(orders.taken) > 10 and moves(installation) > 10,
                    "orders are under way",
                    seconds=60,
                )
                server.stop()
                time.sleep(2)
                server.start()
                ordered, moved = goes_on(installation, orders, since=time.monotonic())
            # The pooler waits 15 s before it tries a server again that it could not reach.
            assert max(ordered, moved) < 15 + 2 * GOAL
            all_reach(installation, "awaiting_payment")
            installation.agree()
            assert {row["id"] for row in installation.sql("SELECT id::text FROM checkouts")} >= set(
                orders.taken
            )
            installation.until(
                lambda: installation.http.get(f"{installation.api_url}/readyz").status_code == 200,
                "it is ready again",
            )


@needs_pgbouncer
def test_behind_pgbouncer_migrate_takes_the_direct_url(pooled: World):
    refused = pooled.command("migrate")
    assert refused.returncode == 2
    assert "MIGRATION_URL" in refused.stderr
    pooled.settings["migration_url"] = pooled.database_url
    assert pooled.command("migrate").returncode == 0

"""Processes that are killed, hang, or lose their broker at the worst moment lose no order and pay none
twice.
"""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg
import pytest
import redis

from tests.support.world import world

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from orchestrator.devkit.local.servers import Embedded
    from tests.support.world import World


@pytest.mark.parametrize(
    ("call", "state"),
    [("authenticate", "received"), ("session", "authenticated"), ("payment-methods", "session_created")],
)
def test_a_worker_killed_in_the_middle_of_a_step_loses_no_order(installation: World, call: str, state: str):
    world = installation
    world.control("PUT", "faults", {"latencyMs": {call: 700}})
    world.start("worker-1")
    checkout = world.order()
    world.until(
        lambda: world.sql("SELECT 1 FROM checkouts WHERE state = %s AND lease IS NOT NULL", state),
        "the call is under way",
    )
    world.kill("worker-1")
    world.control("DELETE", "faults")
    world.start("worker-1")
    world.until_state(checkout, "awaiting_payment")
    world.pay(checkout)
    world.until_state(checkout, "completed")
    world.agree()


@pytest.mark.parametrize(
    ("call", "state"),
    [
        ("payments", "awaiting_payment"),
        ("session", "session_created"),
        ("payment-methods", "session_created"),
    ],
)
def test_a_worker_killed_while_it_changes_an_order_changes_it_once(
    installation: World, call: str, state: str
):
    """Before our books are changed, before the session is, and before it is offered again."""
    world = installation
    world.start("worker-1")
    checkout = world.order()
    world.until_state(checkout, "awaiting_payment")
    page = world.begin_payment(checkout)
    world.plan(checkout, delayMs={call: 700})
    line = {"itemId": "1", "description": "A lamp", "quantity": 1, "unitPrice": 99, "taxAmount": 0}
    change = {"order": {"amount": {"value": 99}, "orderLines": [line]}}
    command = world.api().change(checkout, change).command.id
    world.until(
        lambda: world.sql(
            "SELECT 1 FROM checkouts c JOIN commands k ON k.checkout_id = c.id"
            " WHERE c.state = %s AND c.lease IS NOT NULL"
            " AND (k.handled_at IS NULL OR c.state = 'session_created')",
            state,
        ),
        "the call is under way",
    )
    world.kill("worker-1")
    world.plan(checkout)
    world.start("worker-1")
    world.until(
        lambda: world.sql("SELECT 1 FROM commands WHERE id = %s AND result = 'done_changed'", command),
        "the change is done",
    )
    world.until_state(checkout, "awaiting_payment")
    (row,) = world.sql("SELECT amount, attention FROM checkouts")
    assert (row["amount"], row["attention"]) == (9900, None)
    changed = "SELECT count(*) AS times FROM audit_entries WHERE action = 'order:changed'"
    assert world.sql(changed) == [{"times": 1}]
    # The page that was opened before still takes the old amount: a person decides, and nothing is taken for
    # the order.
    world.submit(page)
    world.until(lambda: world.sql("SELECT 1 FROM checkouts WHERE attention = 'payment_mismatch'"), "it shows")
    world.ask(checkout, "resolve", decision="return")
    world.until(lambda: ("released", 13900) in world.movements(checkout), "the money went back")
    world.pay(checkout)
    world.until_state(checkout, "completed")
    assert world.sql("SELECT reserved FROM checkouts") == [{"reserved": 9900}]
    world.agree()


def test_a_worker_killed_while_it_asks_for_the_payment_completes_the_order_once(installation: World):
    world = installation
    world.start("worker-1")
    checkout = world.order(plan={"delayMs": {"payments": 700}})
    world.until_state(checkout, "awaiting_payment")
    world.pay(checkout)
    world.until(
        lambda: world.sql("SELECT 1 FROM checkouts WHERE state = 'callback_received' AND lease IS NOT NULL"),
        "the lookup is under way",
    )
    world.kill("worker-1")
    world.start("worker-1")
    world.until_state(checkout, "completed")
    completed = world.sql("SELECT 1 FROM events WHERE kind = 'checkout.completed'")
    assert len(completed) == 1
    world.agree()


TAKEN_OVER = 15.0
"""Seconds from the kill of a worker to the completion of the last paid order that it held, with the settings
that ship."""


@pytest.fixture(name="shipped")
def _shipped(servers: Embedded, database_url: str, tmp_path: Path) -> Iterator[World]:
    """As `installation`, with the settings that ship: LEASE_SECONDS is 10."""
    with world(servers, database_url, tmp_path, short_times=False) as installation:
        for name in ("sandbox", "api", "scheduler"):
            installation.start(name)
        yield installation


def held(world: World, state: str, checkouts: list[str]) -> bool:
    """Say whether a worker holds these, in this state."""
    asked = "SELECT 1 FROM checkouts WHERE state = %s AND lease IS NOT NULL AND id = ANY(CAST(%s AS uuid[]))"
    return len(world.sql(asked, state, checkouts)) == len(checkouts)


def offered(world: World, number: int, **plan: object) -> list[str]:
    """Hand over orders with a plan for each; return their checkouts, which wait for their shoppers."""
    checkouts = [world.order(plan=plan) for _ in range(number)]
    for checkout in checkouts:
        world.until_state(checkout, "awaiting_payment", seconds=60)
    return checkouts


def kill(world: World, name: str) -> float:
    """Kill a worker; return when, in seconds of Postgres's clock."""
    (row,) = world.sql("SELECT extract(epoch FROM clock())::float8 AS now")
    world.kill(name)
    return float(row["now"])


def completed_within(world: World, checkouts: list[str], since: float) -> float:
    """Wait for these to be completed; return the seconds from a moment until the last of them was, and print
    them all.
    """
    for checkout in checkouts:
        world.until_state(checkout, "completed", seconds=90)
    rows = world.sql(
        "SELECT extract(epoch FROM ended_at)::float8 - %s AS took FROM checkouts WHERE id = ANY(CAST(%s AS uuid[]))",
        since,
        checkouts,
    )
    took = sorted(float(row["took"]) for row in rows)
    print("seconds from the kill to `completed`:", *(f"{seconds:.1f}" for seconds in took))
    return took[-1]


def completed_once(world: World, checkouts: list[str]) -> None:
    events = world.sql("SELECT checkout_id::text AS id FROM events WHERE kind = 'checkout.completed'")
    assert sorted(row["id"] for row in events) == sorted(checkouts)


@contextmanager
def locked(world: World, table: str, mode: str) -> Iterator[None]:
    """Let statements on this table wait."""
    with psycopg.connect(world.database_url) as connection:
        connection.execute(f"LOCK TABLE {table} IN {mode} MODE")
        yield


def waiting_for_lock(world: World) -> set[int]:
    """Return the connections of workers, as Postgres numbers them, whose statement waits for a lock."""
    asked = "SELECT pid FROM pg_stat_activity WHERE application_name = 'orchestrator-worker' AND wait_event_type = 'Lock'"
    return {row["pid"] for row in world.sql(asked)}


def start_beside(world: World, name: str, *, most: float) -> None:
    """Start a worker; return when it gives its heartbeat, or so many seconds later: what the other worker
    does takes only as long.
    """
    before = len(world.sql("SELECT 1 FROM workers WHERE kind = 'worker'"))
    world.start(name)
    until = time.monotonic() + most
    while time.monotonic() < until:
        if len(world.sql("SELECT 1 FROM workers WHERE kind = 'worker'")) > before:
            return
        time.sleep(0.1)


def test_orders_of_a_worker_killed_before_in_and_after_a_lookup_are_completed_in_seconds(shipped: World):
    world = shipped
    world.start("worker-1")
    asking = offered(world, 3, delayMs={"payments": 7500})
    # A second callback would wait in the API behind the move that is held up.
    answered = offered(world, 2, delayMs={"payments": 2000}, callbacks={"notification": False})
    called_for = offered(world, 2)
    for checkout in (*asking, *answered):
        world.pay(checkout)
    world.until(lambda: held(world, "callback_received", [*asking, *answered]), "the lookups are under way")
    # No move is written any more.
    with locked(world, "payments", "SHARE"):
        world.until(lambda: waiting_for_lock(world), "the answers are being written")
        for checkout in called_for:
            world.pay(checkout)
        world.until(
            lambda: held(world, "awaiting_payment", called_for), "the move before the call waits for its turn"
        )
        its = waiting_for_lock(world)
        start_beside(world, "worker-2", most=4.5)
        assert held(world, "callback_received", [*asking, *answered])
        killed = kill(world, "worker-1")
        # From now on the gateway takes no time of its own.
        for checkout in (*asking, *answered):
            world.plan(checkout)
        world.until(
            lambda: its.isdisjoint(waiting_for_lock(world)), "Postgres gives up the statement of the dead"
        )
    paid = [*asking, *answered, *called_for]
    assert completed_within(world, paid, killed) <= TAKEN_OVER
    completed_once(world, paid)
    world.agree()


@pytest.mark.slow
def test_orders_of_a_worker_killed_in_the_middle_of_a_claim_are_completed_in_seconds(shipped: World):
    world = shipped
    world.start("worker-1")
    paid = offered(world, 5)
    pages = [world.begin_payment(checkout) for checkout in paid]
    world.until(
        lambda: (
            not world.sql("SELECT 1 FROM callbacks WHERE handled_at IS NULL")
            and not world.sql("SELECT 1 FROM checkouts WHERE lease IS NOT NULL")
        ),
        "all is quiet",
    )
    # A claim reads it after it has taken its rows.
    with locked(world, "sessions", "ACCESS EXCLUSIVE"):
        for page in pages:
            world.submit(page)
        world.until(lambda: waiting_for_lock(world), "the claim waits")
        its = waiting_for_lock(world)
        start_beside(world, "worker-2", most=4.5)
        killed = kill(world, "worker-1")
        world.until(
            lambda: its.isdisjoint(waiting_for_lock(world)), "Postgres gives up the claim of the dead"
        )
    assert completed_within(world, paid, killed) <= TAKEN_OVER
    completed_once(world, paid)
    world.agree()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_orders_of_a_worker_killed_under_load_are_completed_in_seconds_and_its_captures_done_once(
    shipped: World,
):
    world = shipped
    for name in ("worker-1", "worker-2"):
        world.start(name)
    captured = [world.order(plan={"delayMs": {"capture": 4000}}) for _ in range(10)]
    orders = [world.order() for _ in range(200)]
    world.until_all("awaiting_payment", seconds=120)
    with ThreadPoolExecutor(8) as shoppers:
        list(shoppers.map(world.pay, captured))
        world.until_all("awaiting_payment", "completed")
        for checkout in captured:
            world.until_state(checkout, "completed", seconds=60)
        world.control("PUT", "faults", {"latencyMs": {"payments": 3000}})
        paying = [shoppers.submit(world.pay, order) for order in orders]
        world.until(lambda: sum(payment.done() for payment in paying) >= 60, "orders are paid", seconds=60)
        for checkout in captured:
            world.ask(checkout, "capture", amount="all")
        world.until(
            lambda: len(world.sql("SELECT 1 FROM money_operations WHERE state = 'submitted'")) >= 5,
            "captures are under way",
        )
        paid = [order for order, payment in zip(orders, paying, strict=True) if payment.done()]
        killed = kill(world, "worker-1")
        world.control("DELETE", "faults")
        assert completed_within(world, paid, killed) <= TAKEN_OVER
    world.until_all("completed", seconds=90)
    completed_once(world, [*captured, *orders])
    # What may have been sent is looked up, after the quiet period, by the next worker, and never sent
    # again.
    for checkout in captured:
        world.until_operation(checkout, "succeeded", seconds=240)
        assert [kind for kind, _ in world.movements(checkout)] == ["captured"]
    world.agree()


def test_workers_killed_again_and_again_lose_no_order(installation: World):
    world = installation
    world.control("PUT", "faults", {"latencyMs": {"all": 20}})
    checkouts = [world.order() for _ in range(30)]
    for _ in range(4):
        world.start("worker-1")
        time.sleep(1.2)
        world.kill("worker-1")
    world.start("worker-1")
    world.until_all("awaiting_payment")
    sessions = [len(order["sessions"]) for order in world.ledger().values()]
    assert len(sessions) == len(checkouts)
    world.agree()


def test_a_wiped_broker_loses_nothing(installation: World):
    world = installation
    world.control("PUT", "faults", {"latencyMs": {"all": 30}})
    world.start("worker-1")
    checkouts = []
    with redis.Redis.from_url(world.redis_url) as broker:
        for number in range(200):
            checkouts.append(world.order())
            if number % 20 == 19:
                broker.flushall()
    world.until_all("awaiting_payment")
    for checkout in checkouts[:10]:
        world.pay(checkout)
        with redis.Redis.from_url(world.redis_url) as broker:
            broker.flushall()
    for checkout in checkouts[:10]:
        world.until_state(checkout, "completed")
    world.agree()


def test_a_worker_stopped_past_its_lease_and_resumed_moves_nothing(installation: World):
    world = installation
    world.start("worker-1")
    checkout = world.order(plan={"delayMs": {"session": 800}})
    world.until_state(checkout, "authenticated")
    world.signal("worker-1", signal.SIGSTOP)
    world.start("worker-2")
    world.until_state(checkout, "awaiting_payment")
    version = world.sql("SELECT version FROM checkouts")[0]["version"]
    world.signal("worker-1", signal.SIGCONT)
    world.until(
        lambda: "lease_lost" in world.log("worker-1"), "the first worker learns that its lease is gone"
    )
    assert world.sql("SELECT state FROM checkouts")[0]["state"] == "awaiting_payment"
    assert (
        world.sql("SELECT count(*) AS n FROM audit_entries WHERE entry LIKE '%%session_opened%%'")[0]["n"]
        == 1
    )
    assert version <= world.sql("SELECT version FROM checkouts")[0]["version"]
    world.pay(checkout)
    world.until_state(checkout, "completed")
    world.agree()


def test_two_workers_share_the_orders_and_process_each_once(installation: World):
    world = installation
    world.start("worker-1")
    world.start("worker-2")
    for _ in range(60):
        world.order()
    world.until_all("awaiting_payment")
    world.agree()
    assert all(len(order["sessions"]) == 1 for order in world.ledger().values())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_warm_shutdown_ends_steps_and_gives_leases_back(installation: World, number: signal.Signals):
    world = installation
    world.control("PUT", "faults", {"latencyMs": {"session": 800}})
    world.start("worker-1")
    checkout = world.order()
    world.until_state(checkout, "authenticated")
    world.signal("worker-1", number)
    began = time.monotonic()
    assert world.running.pop("worker-1").wait(20) == 0
    assert time.monotonic() - began < 15, "and not because a lease or a timeout ended"
    row = world.sql("SELECT state, lease FROM checkouts")[0]
    assert row["lease"] is None
    # The call under way was ended; or it had not begun, and was not.
    assert row["state"] in {"session_created", "authenticated"}
    world.start("worker-1")
    world.until_state(checkout, "awaiting_payment")
    world.agree()


def test_a_worker_without_its_broker_sweeps_by_itself(installation: World):
    world = installation
    world.settings["broker_url"] = (
        f"redis://127.0.0.1:{world.sandbox_port + 1 if world.sandbox_port < 65000 else 1}/0"
    )
    world.start("worker-1")
    checkout = world.order()
    world.until_state(checkout, "awaiting_payment")
    assert "swept_by_itself" in world.log("worker-1")
    world.agree()


def test_the_same_callback_fifty_times_at_once_completes_the_order_once(installation: World):
    world = installation
    world.start("worker-1")
    checkout = world.order(plan={"callbacks": {"times": 50, "simultaneous": True}})
    world.until_state(checkout, "awaiting_payment")
    world.pay(checkout)
    world.until_state(checkout, "completed")
    world.until(lambda: not world.sql("SELECT 1 FROM callbacks WHERE handled_at IS NULL"), "all were read")
    assert len(world.sql("SELECT 1 FROM events WHERE kind = 'checkout.completed'")) == 1
    came = "SELECT 1 FROM callbacks WHERE kind IN ('success', 'notification') HAVING sum(times) >= 100"
    world.until(lambda: world.sql(came), "all have come")
    world.agree()


def test_a_dead_scheduler_leaves_nothing_due_while_orders_still_come_in(installation: World):
    world = installation
    world.kill("scheduler")
    world.start("worker-1")
    leaving = world.order(expiresIn=1)
    world.until_state(leaving, "awaiting_payment")

    def expired_while_hints_flow() -> bool:
        world.order()
        return bool(world.sql("SELECT 1 FROM checkouts WHERE id = %s AND state = 'expired'", leaving))

    world.until(expired_while_hints_flow, "the deadline is kept", seconds=30)
    assert "swept_by_itself" in world.log("worker-1")
    world.until_all("awaiting_payment", "expired")
    world.agree()

"""Processes that die, hang, or lose their broker at the worst moment lose no order and pay none twice."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest
import redis

if TYPE_CHECKING:
    from tests.world import World


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


def test_a_worker_killed_while_it_asks_for_the_payment_completes_the_order_once(installation: World):
    world = installation
    world.start("worker-1")
    checkout = world.order(plan={"delayMs": {"payments": 700}})
    world.until_state(checkout, "awaiting_payment")
    world.pay(checkout)
    world.until(
        lambda: world.sql("SELECT 1 FROM checkouts WHERE state = 'callback_received' AND lease IS NOT NULL"),
        "the look is under way",
    )
    world.kill("worker-1")
    world.start("worker-1")
    world.until_state(checkout, "completed")
    completed = world.sql("SELECT 1 FROM events WHERE kind = 'checkout.completed'")
    assert len(completed) == 1
    world.agree()


def test_what_a_killed_worker_held_is_taken_over_in_seconds_with_the_settings_that_ship(installation: World):
    world = installation
    for name in ("lease_seconds", "gateway_connect_timeout", "gateway_read_timeout", "gateway_total_timeout"):
        del world.settings[name]
    for name in ("hint_grace", "sweep_interval", "self_sweep_after"):
        del world.settings[name]
    world.start("worker-1")
    checkout = world.order(plan={"delayMs": {"payments": 1500}})
    world.until_state(checkout, "awaiting_payment", seconds=60)
    world.pay(checkout)
    world.until(
        lambda: world.sql("SELECT 1 FROM checkouts WHERE lease IS NOT NULL AND state = 'callback_received'"),
        "the look is under way",
    )
    world.start("worker-2")
    world.kill("worker-1")
    (row,) = world.sql("SELECT extract(epoch FROM due_at - clock())::float8 AS left FROM checkouts")
    assert row["left"] <= 10
    # A lease of a minute would show; what a busy machine adds would not.
    world.until_state(checkout, "completed", seconds=40)
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
    sessions = [len(one["sessions"]) for one in world.ledger().values()]
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
    checkout = world.order(plan={"delayMs": {"session": 500}})
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


def test_two_workers_share_the_orders_and_carry_each_once(installation: World):
    world = installation
    world.start("worker-1")
    world.start("worker-2")
    for _ in range(60):
        world.order()
    world.until_all("awaiting_payment")
    world.agree()
    assert all(len(one["sessions"]) == 1 for one in world.ledger().values())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_warm_shutdown_ends_steps_and_gives_leases_back(installation: World, number: signal.Signals):
    world = installation
    world.control("PUT", "faults", {"latencyMs": {"session": 600}})
    world.start("worker-1")
    checkout = world.order()
    world.until_state(checkout, "authenticated")
    world.signal("worker-1", number)
    began = time.monotonic()
    assert world.running.pop("worker-1").wait(20) == 0
    assert time.monotonic() - began < 15, "and not because a lease ran out or somebody lost patience"
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
    assert (
        world.sql("SELECT sum(times)::int AS n FROM callbacks WHERE kind IN ('success', 'notification')")[0][
            "n"
        ]
        >= 100
    )
    world.agree()


def test_a_dead_scheduler_stops_no_alarm_while_orders_still_come_in(installation: World):
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

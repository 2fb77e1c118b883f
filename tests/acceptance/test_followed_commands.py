"""Commands that are waited for and followed, through API, worker, gateway and command line."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from orchestrator.devkit.client import Invalid
from tests.support.world import World

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def installation(servers, database_url, tmp_path) -> Iterator[World]:
    one = World(servers, database_url, tmp_path, shutdown_timeout=10)
    try:
        one.start_all()
        yield one
    finally:
        one.close()


def paid(world: World, **plan: object) -> str:
    checkout = world.order(plan=plan or None)
    world.until_state(checkout, "awaiting_payment", seconds=60)
    world.pay(checkout)
    world.until_state(checkout, "completed", seconds=60)
    return checkout


def test_money_calls_are_answered_with_what_they_came_to(installation: World):
    world, api = installation, installation.api()
    checkout = paid(world)

    with pytest.raises(Invalid) as refused:
        api.command(checkout, "capture", {})
    assert [one.field for one in refused.value.problem.errors] == ["amount"]
    assert world.movements(checkout) == []

    captured = api.finished(checkout, "capture", {"amount": "all"})
    assert (captured.state, captured.result.code) == ("done", "accepted")
    (operation,) = captured.operations
    assert (operation.state, str(operation.amount)) == ("succeeded", "139.00")

    refunded = api.finished(checkout, "refund", {"amount": 10}, key="refund-1")
    again = api.finished(checkout, "refund", {"amount": 10}, key="refund-1")
    assert (refunded.state, again) == ("done", refunded)
    assert api.progress(refunded.id) == refunded
    assert world.movements(checkout) == [("captured", 13900), ("refunded", 1000)]

    shown = world.command("commands", "show", str(refunded.id))
    assert shown.returncode == 0, shown.stderr
    assert "Done: the refund of 10.00 DKK on transaction " in shown.stdout
    listed = world.command("checkouts", "show", checkout)
    assert str(captured.id) in listed.stdout
    assert str(refunded.id) in listed.stdout
    world.agree()


def test_a_rejected_operation_a_release_and_a_cancel_are_told_as_they_end(installation: World):
    world, api = installation, installation.api()
    rejected = api.finished(paid(world, refuse={"capture": 1}), "capture", {"amount": 10})
    assert (rejected.state, rejected.operations[0].state) == ("failed", "rejected")
    assert "was rejected" in rejected.result.message
    failed = world.command("commands", "show", str(rejected.id))
    assert failed.returncode == 1
    assert "Refused by the gateway" in failed.stderr

    released = paid(world)
    assert api.finished(released, "release").state == "done"
    assert world.movements(released) == [("released", 13900)]

    open_one = world.order()
    world.until_state(open_one, "awaiting_payment", seconds=60)
    cancelled = api.finished(open_one, "cancel", {"reason": "sold out"})
    assert (cancelled.state, cancelled.finished_at is not None) == ("done", True)
    world.until_state(open_one, "cancelled")


def test_many_wait_at_once(installation: World):
    world, api = installation, installation.api()
    with ThreadPoolExecutor(4) as shoppers:
        orders = list(shoppers.map(lambda _: paid(world), range(4)))
        told = list(shoppers.map(lambda one: api.finished(one, "capture", {"amount": "all"}), orders))
    assert [one.state for one in told] == ["done"] * 4
    assert [world.movements(one) for one in orders] == [[("captured", 13900)]] * 4
    world.agree()

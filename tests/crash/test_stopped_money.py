"""A worker stopped for longer than its lease in the middle of a capture or a refund, or killed there: one
effect at the gateway.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.world import World

DONE = {"capture": "captured", "refund": "refunded"}


def paid(world: World, *, capture: bool) -> str:
    checkout = world.order(capture=capture)
    world.until_state(checkout, "awaiting_payment")
    world.pay(checkout)
    world.until_state(checkout, "completed")
    return checkout


def done_once(world: World, checkout: str, kind: str) -> None:
    """One effect at the gateway, one operation in our books, and both agree."""
    world.until_operation(checkout, "succeeded", seconds=60)
    moves = [amount for type_, amount in world.movements(checkout) if type_ == DONE[kind]]
    assert moves.count(4000) == 1
    (row,) = world.sql("SELECT captured, refunded FROM checkouts WHERE id = %s", checkout)
    assert row[DONE[kind]] == 4000
    world.agree()


@pytest.mark.parametrize(("kind", "captured", "echo"), [("capture", False, False), ("refund", True, True)])
def test_stopped_while_the_call_is_at_the_gateway_and_resumed(
    installation: World, kind: str, *, captured: bool, echo: bool
):
    world = installation
    world.start("worker-1")
    checkout = world.order(capture=captured, plan={"echo": echo, "delayMs": {kind: 800}})
    world.until_state(checkout, "awaiting_payment")
    world.pay(checkout)
    world.until_state(checkout, "completed")
    world.ask(checkout, kind, amount=40)
    world.until_operation(checkout, "submitted")
    world.signal("worker-1", signal.SIGSTOP)
    world.start("worker-2")
    world.until_operation(checkout, "succeeded", seconds=60)
    world.signal("worker-1", signal.SIGCONT)
    world.until(
        lambda: "lease_lost" in world.log("worker-1"), "the first worker learns that its lease is gone"
    )
    done_once(world, checkout, kind)


@pytest.mark.parametrize(("kind", "captured"), [("capture", False), ("refund", True)])
def test_stopped_before_the_call_left_and_resumed_when_another_has_done_it(
    installation: World, kind: str, *, captured: bool
):
    world = installation
    world.start("worker-1")
    checkout = paid(world, capture=captured)
    # The lookup that comes before the call is slow: the worker is stopped while it waits for it.
    world.plan(checkout, delayMs={"payments": 800})
    world.ask(checkout, kind, amount=40)
    world.until_operation(checkout, "requested")
    world.signal("worker-1", signal.SIGSTOP)
    world.plan(checkout)
    world.start("worker-2")
    world.until_operation(checkout, "succeeded", seconds=60)
    world.signal("worker-1", signal.SIGCONT)
    world.until(
        lambda: "lease_lost" in world.log("worker-1"), "the first worker learns that its lease is gone"
    )
    done_once(world, checkout, kind)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "captured", "effect"), [("capture", False, True), ("refund", True, False)])
def test_killed_while_the_call_is_at_the_gateway(
    installation: World, kind: str, *, captured: bool, effect: bool
):
    world = installation
    world.start("worker-1")
    checkout = paid(world, capture=captured)
    # Without the effect, the gateway holds the call and then drops it.
    hangs = {"fail": {kind: 1}, "failStatus": "timeout"}
    world.plan(checkout, **({"delayMs": {kind: 800}} if effect else hangs))
    world.ask(checkout, kind, amount=40)
    world.until_operation(checkout, "submitted")
    world.kill("worker-1")
    world.start("worker-2")
    done_once(world, checkout, kind)

"""Random histories of an order: whatever happens, in whatever order, the money is stated correctly and no
order is lost.

`make test` runs the same 50 each time. `make soak` runs 2,000: pytest -m slow tests/races/test_histories.py
-s
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
import structlog
import uvloop
from hypothesis import HealthCheck, Phase, given, note, settings
from psycopg import sql

from tests.conftest import _admin, _url
from tests.histories import laws
from tests.histories.steps import (
    Ask,
    ByHand,
    Deliver,
    Fail,
    Forge,
    History,
    Pay,
    Process,
    Resolve,
    Silence,
    Step,
    Stop,
    Wait,
    Wake,
    histories,
)
from tests.histories.world import World, world
from tests.support.pooler import pooled
from tests.support.scene import take

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.devkit.local.servers import Embedded

LEAPS = (0, 61, 0, 61, 3600, 86_400, 0, 31 * 86_400, 0, 0)
"""Seconds that pass at least between two rounds in the end: everything becomes quiet, or stays with a person.
"""

OFFERED = (Process(),)
PAID = (*OFFERED, Pay(), Deliver(at=1), Process())
BEGINNINGS = {
    "received": (),
    "offered": OFFERED,
    "paid": PAID,
    "captured": (*PAID, Ask(kind="capture", amount=9900), Process()),
}

_CALM = settings(
    deadline=None,
    database=None,
    print_blob=False,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)


class Stage:
    """The world and its event loop, for all histories of a run."""

    def __init__(self, database_url: str) -> None:
        self.runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._opening = world(database_url)
        self.world: World = self.runner.run(self._opening.__aenter__())

    def close(self) -> None:
        self.runner.run(self._opening.__aexit__(None, None, None))
        self.runner.close()

    def play(self, history: History) -> None:
        self.runner.run(played(self.world, history))


@pytest.fixture(scope="module")
def stage(servers: Embedded, template: str) -> Iterator[Stage]:
    name = f"histories_{uuid4().hex[:8]}"
    copied = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
    _admin(servers, copied.format(sql.Identifier(name), sql.Identifier(template)))
    logged = structlog.get_config()
    # Some forty lines for each of thousands of histories are not read.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    stage = Stage(pooled(_url(servers, name)))
    yield stage
    stage.close()
    structlog.configure(**logged)
    print(f"\n{stage.world.tally.told()}")
    _admin(servers, sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


async def played(world: World, history: History) -> None:
    """Run a history to its end and check the laws on the way."""
    await world.begin(dict(history.policies))
    await world.accept(expires_in=history.expires_in, capture=history.capture)
    for step in BEGINNINGS[history.begun]:
        await step.happen(world)
    before = await world.rows()
    for step in history.steps:
        await step.happen(world)
        world.tally.steps += 1
        if step.written:
            now = await world.rows()
            laws.after_a_step(before, now)
            world.decide(now)
            before = now
    await come_to_rest(world, history)
    await laws.in_the_end(world, dict(history.policies))
    world.tally.histories += 1


async def come_to_rest(world: World, history: History) -> None:
    """Let everything work again and time pass, until nothing more comes of it."""
    world.cleared_attention()
    await world.wake()
    for number in range(len(world.checkouts)):
        if history.decided:
            await Resolve(which=number).happen(world)
    while history.delivered and world.mail:
        await Deliver().happen(world)
    before = await world.rows()
    for checkout, row in before.items():
        if not row.has_due_time:
            # Long settled: the watch is over, and only a reconcile command finds what happened at the gateway
            # since.
            await world.ask(checkout, "reconcile")
    for leap in LEAPS:
        now = await world.rows()
        laws.after_a_step(before, now)
        # A decision that no worker has carried out yet is about the money of now, too.
        world.decide(now)
        before = now
        waits = [row.due_in for row in now.values() if row.due_in is not None]
        if not waits:
            return
        await world.later(max(leap, min(waits) + 1, 0))
        await take(world.processor, world.checkouts)
    laws.after_a_step(before, await world.rows())


def _paid(*steps: Step, delivered: bool = False, **policies: str) -> History:
    chosen = {"late": "ask", "surplus": "ask", "unknown_order": "ask", "capture": "manual", **policies}
    return History(tuple(chosen.items()), False, 900.0, "paid", steps, delivered, False)


LOOKED_UP = (Forge(grade="signed"), Process())
FOUND = {
    "surplus after a surplus that was decided on, beside a payment that we released": _paid(
        Pay(),
        *LOOKED_UP,
        Ask(kind="resolve", decision="keep"),
        Process(),
        Ask(kind="release"),
        Process(),
        Pay(),
    ),
    "a release of a payment that was declined": _paid(
        Pay(how="declined card"), *LOOKED_UP, Ask(kind="release", of=1), Process()
    ),
    "a decision on a chargeback that says nothing of the surplus behind it": _paid(
        Ask(kind="capture"),
        Process(),
        Pay(),
        ByHand(what="chargeback"),
        *LOOKED_UP,
        Ask(kind="resolve"),
        Process(),
    ),
    "a capture behind a refund of unknown outcome": History(
        (
            ("late", "ask"),
            ("surplus", "ask"),
            ("unknown_order", "ask"),
            ("capture", "manual"),
            ("lookups_per_minute", 600),
        ),
        True,
        900.0,
        "paid",
        (
            Silence(),
            Ask(kind="refund", amount=1),
            Fail(endpoint="refund", after=True),
            Stop(nth=6),
            Wait(seconds=61),
            Process(),
            Wait(seconds=61),
            Process(),
            Wake(),
            Ask(kind="capture"),
            Process(hinted=False),
            ByHand(),
            Deliver(),
            Process(hinted=False),
        ),
        False,
        False,
    ),
    "a decision that waits while another payment comes": _paid(
        Ask(), Stop(nth=1), Ask(kind="resolve"), Process(hinted=False), Pay()
    ),
    "a worker that sleeps before a refund until another has sent it": replace(
        _paid(
            Ask(kind="refund", amount=4000),
            Stop(nth=6, sleeps=True),
            *(Wait(seconds=61), Process(hinted=False)) * 4,
            Wake(),
        ),
        begun="captured",
    ),
}
"""Histories that once broke a law, in as few steps as it takes."""


@pytest.mark.parametrize("history", FOUND.values(), ids=FOUND)
def test_a_history_that_once_broke_a_law_breaks_none(stage: Stage, history: History):
    stage.play(history)


def test_a_decision_does_not_count_for_a_payment_that_was_still_open(stage: Stage):
    stage.play(
        _paid(
            Pay(),
            Pay(how="bank open"),
            *LOOKED_UP,
            Ask(kind="resolve"),
            Process(),
            Resolve(),
            Forge(grade="signed", kind="notification"),
            Process(),
        )
    )


@given(history=histories())
@settings(_CALM, max_examples=50, derandomize=True)
def test_whatever_happens_to_an_order_the_money_is_stated_correctly(stage: Stage, history: History):
    note(f"{history!r}")
    stage.play(history)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@given(history=histories())
@settings(_CALM, max_examples=2000)
def test_two_thousand_random_histories(stage: Stage, history: History):
    note(f"{history!r}")
    stage.play(history)

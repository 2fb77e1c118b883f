"""Random histories of an order: whatever happens, in whatever order, the money is told truly and nobody is forgotten.

`make test` plays the same 150 each time. `make soak` plays 2,000: pytest -m slow tests/races/test_histories.py -s
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
import structlog
import uvloop
from hypothesis import HealthCheck, Phase, given, settings
from psycopg import sql

from tests.conftest import _admin, _url
from tests.histories import laws
from tests.histories.steps import Deliver, History, Resolve, histories
from tests.histories.world import World, world

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.embedded import Embedded

LEAPS = (0, 0, 0, 61, 0, 61, 3600, 0, 6 * 3600, 86_400, 0, 7 * 86_400, 31 * 86_400, 0, 0)
"""Seconds that pass at least between two rounds in the end: everything becomes quiet, or stays with a person."""

_CALM = settings(
    deadline=None,
    database=None,
    print_blob=False,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)


class Stage:
    """The world and the loop that it lives in, for all histories of a run."""

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
    # Some forty lines for each of thousands of histories are read by nobody.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    one = Stage(_url(servers, name))
    yield one
    one.close()
    structlog.configure(**logged)
    print(f"\n{one.world.tally.told()}")
    _admin(servers, sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


async def played(world: World, history: History) -> None:
    """Play a history to its end and check the laws on the way."""
    await world.begin(dict(history.policies))
    first = await world.accept(expires_in=history.expires_in, capture=history.capture)
    if history.begun:
        await world.hint(first)
        await world.carrier.carry([first])
    before = await world.rows()
    for step in history.steps:
        await step.happen(world)
        now = await world.rows()
        laws.after_a_step(before, now)
        before = now
        world.tally.steps += 1
    await come_to_rest(world, history)
    await laws.in_the_end(world, dict(history.policies))
    world.tally.histories += 1


async def come_to_rest(world: World, history: History) -> None:
    """Let everything work again and time pass, until nothing more comes of it."""
    world.calm()
    await world.wake()
    for number in range(len(world.checkouts)):
        if history.decided:
            await Resolve(which=number).happen(world)
    while history.delivered and world.mail:
        await Deliver().happen(world)
    before = await world.rows()
    for checkout, row in before.items():
        if not row.alarm:
            # Long settled: the watch is over, and only who asks is told what happened at the gateway since.
            await world.ask(checkout, "reconcile")
    for leap in LEAPS:
        now = await world.rows()
        laws.after_a_step(before, now)
        before = now
        waits = [row.due_in for row in now.values() if row.due_in is not None]
        if not waits:
            return
        await world.later(max(leap, min(waits) + 1, 0))
        await world.carrier.carry(world.checkouts)
    laws.after_a_step(before, await world.rows())


@given(history=histories())
@settings(_CALM, max_examples=150, derandomize=True)
def test_whatever_happens_to_an_order_the_money_is_told_truly(stage: Stage, history: History):
    stage.play(history)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@given(history=histories())
@settings(_CALM, max_examples=2000)
def test_two_thousand_random_histories(stage: Stage, history: History):
    stage.play(history)

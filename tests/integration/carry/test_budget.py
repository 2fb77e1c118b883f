"""What abandoned checkouts cost at the gateway: calls per order over a simulated day, within the merchant's budget of looks."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from orchestrator import lifecycle
from orchestrator.carry import budget
from orchestrator.cli import doctor
from orchestrator.explain import explain
from orchestrator.explain.record import gather
from orchestrator.gateway.client import Gateway
from tests.integration.carry.scene import Scene, scene

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio

DAY = 86_400
STEP = 20
"""Simulated seconds from one round to the next, at least."""


class Counting(Gateway):
    """The gateway's client, counting its calls by name and by simulated minute."""

    def __init__(self, settings, minute: Callable[[], int]) -> None:
        super().__init__(settings)
        self.calls: Counter[str] = Counter()
        self.looks: Counter[int] = Counter()
        self.minute = minute

    async def _call(self, name, *arguments, **options):
        self.calls[name] += 1
        if name == "find_payments":
            self.looks[self.minute()] += 1
        return await super()._call(name, *arguments, **options)


async def a_day(world: Scene, orders: int, *, looks_per_minute: int) -> tuple[Counter[str], int]:
    """Let so many shoppers come at once and leave without paying; return the calls of a day, and the looks of the fullest minute."""
    elapsed, began = 0, time.monotonic()
    # Simulated time is what was skipped, and what really went by meanwhile.
    async with Counting(world.settings, lambda: int(elapsed + time.monotonic() - began) // 60) as gateway:
        world.carrier.gateway = gateway
        await world.policy(looks_per_minute=looks_per_minute)
        for _ in range(0, orders, 500):
            ids = await asyncio.gather(*(world.accept() for _ in range(min(orders, 500))))
            await world.carry(*ids)
        while elapsed < DAY:
            due = await lifecycle.due(world.db, most=1000)
            if due:
                await world.take(*(one.id for one in due))
                continue
            (row,) = await world.sql(
                "SELECT extract(epoch FROM min(due_at) - clock())::float8 AS left FROM checkouts WHERE due_at IS NOT NULL"
            )
            if row.left is None:
                break
            step = max(int(row.left) + 1, STEP)
            elapsed += step
            await world.later(seconds=step)
        return gateway.calls, max(gateway.looks.values())


async def check(capsys, database_url: str, gateway: str, orders: int, *, looks_per_minute: int) -> None:
    async with scene(
        database_url, gateway, first_look=120, recheck_after_callback=2, look_cap=1800, deadline_grace=30,
        checkout_expires_in=3600, settle_watch=(3600.0, 86_400.0, 7 * 86_400.0, 30 * 86_400.0),
    ) as world:  # fmt: skip
        calls, most = await a_day(world, orders, looks_per_minute=looks_per_minute)
        rows = await world.sql("SELECT state, count(*) AS number FROM checkouts GROUP BY state")
        shown = ", ".join(f"{name} {number / orders:.2f}" for name, number in sorted(calls.items()))
        with capsys.disabled():
            print(
                f"\n{orders} abandoned checkouts, one simulated day, calls per order: {shown}; in all {calls.total() / orders:.2f}; "
                f"looks in the fullest minute: {most} (budget {looks_per_minute})"
            )
        assert {row.state: row.number for row in rows} == {"expired": orders}, (
            "all of them got their last look"
        )
        assert most <= looks_per_minute
        assert calls["find_payments"] / orders <= 12


async def test_a_crowd_that_leaves_without_paying_is_looked_at_within_the_budget(
    capsys, database_url: str, gateway_url: str
):
    await check(capsys, database_url, gateway_url, 60, looks_per_minute=6)


@pytest.mark.slow
async def test_ten_thousand_abandoned_checkouts_cost_a_day_within_the_budget(
    capsys, database_url: str, gateway_url: str
):
    await check(capsys, database_url, gateway_url, 10_000, looks_per_minute=600)


@pytest.mark.parametrize("refused", [False, True])
async def test_a_look_that_waits_for_its_place_leaves_no_shopper_with_a_token_that_has_run_out(
    world: Scene, *, refused: bool
):
    await world.policy(looks_per_minute=1)
    checkouts = [await world.offered() for _ in range(2)]
    await world.sql("UPDATE sessions SET token_expires_at = clock() + interval '30 seconds'")
    if refused:
        await world.control("PUT", "faults", {"authenticate": {"count": 100, "status": 503}})
    await world.carry(*checkouts)
    rows = await world.sql(
        "SELECT c.booked, s.token_expires_at - clock() AS left FROM checkouts c JOIN sessions s ON s.checkout_id = c.id"
    )
    assert sorted(row.booked for row in rows) == ([False, False] if refused else [False, True])
    assert all((row.left.total_seconds() > 1000) != refused for row in rows)


# ── Who comes first, and what is told of the others ─────────────────────────────────────────────────────────────────────


async def due_in_order(world: Scene) -> list[object]:
    rows = await world.sql("SELECT id FROM checkouts WHERE booked ORDER BY due_at")
    return [row.id for row in rows]


async def test_a_shopper_who_has_come_back_does_not_wait_behind_the_lookups_of_others(world: Scene):
    await world.policy(looks_per_minute=6)
    quiet = [await world.offered() for _ in range(4)]
    await world.carry(*quiet)
    assert len(await due_in_order(world)) == 3, "one at once, the others in their turn"
    back = await world.offered()
    # What came with the shopper was read, and the gateway did not confirm it yet.
    await world.sql("UPDATE checkouts SET wake = 1 WHERE id = :id", id=back)
    looks = (await world.row(back)).looks
    await world.carry(back)
    row = await world.row(back)
    assert not row.booked
    assert row.looks > looks, "it was looked at"
    # Much later no one waits at the shop's page any more.
    await world.sql(
        "UPDATE checkouts SET offered_at = offered_at - interval '1 hour' WHERE id = :id", id=back
    )
    await world.carry(back)
    assert (await due_in_order(world))[-1] == back


async def test_lookups_take_their_places_by_what_may_be_lost(world: Scene):
    await world.policy(looks_per_minute=6)
    names = ("ended", "looked at", "young", "small", "great", "old", "first")
    known = {name: await world.offered() for name in names}
    hours = {"first": 9, "old": 3, "great": 2, "small": 2, "young": 1, "looked at": 5, "ended": 8}
    for name, checkout in known.items():
        await world.sql(
            "UPDATE checkouts SET offered_at = date_trunc('hour', clock()) - make_interval(hours => :hours), looks = 0 WHERE id = :id",
            id=checkout, hours=hours[name],
        )  # fmt: skip
    await world.sql("UPDATE checkouts SET amount = amount - 1 WHERE id = :id", id=known["small"])
    await world.sql("UPDATE checkouts SET looks = 3 WHERE id = :id", id=known["looked at"])
    await world.sql(
        "UPDATE checkouts SET state = 'expired', ended_at = clock() WHERE id = :id", id=known["ended"]
    )
    await world.carry(*known.values())
    names_of = {checkout: name for name, checkout in known.items()}
    order = [names_of[one] for one in await due_in_order(world)]
    assert order == ["old", "great", "small", "young", "looked at", "ended"], "and the first went at once"


async def test_the_queue_of_lookups_is_told_of_with_its_length_and_its_age(world: Scene, capsys):
    await world.offered()
    assert await budget.queues(world.db) == []
    await world.policy(looks_per_minute=6)
    await world.carry(*[await world.offered() for _ in range(5)])
    (queue,) = await budget.queues(world.db)
    assert (queue.merchant, queue.waiting) == ("default", 4)
    assert 30 < queue.wait < 60
    assert 0 <= queue.age < 30
    await world.later(seconds=20)
    (queue,) = await budget.queues(world.db)
    assert 20 <= queue.age < 60
    report = doctor._Report()
    await doctor._lookups(world.db, report)
    said = capsys.readouterr().out
    assert report.problems == 1
    assert f"{queue.waiting} lookups of merchant default wait for their turn" in said
    waiting = (await due_in_order(world))[-1]
    record = await gather(world.db, world.settings, waiting)
    assert record is not None
    told = explain(record).next
    assert "waits for its turn within the merchant's budget of lookups" in told.what
    await world.later(seconds=300)
    await doctor._lookups(world.db, report)
    assert "none waits for its turn" in capsys.readouterr().out


async def test_a_larger_budget_brings_forward_what_waits_in_its_order_and_a_smaller_one_puts_nothing_off(
    world: Scene,
):
    await world.policy(looks_per_minute=6)
    await world.carry(*[await world.offered() for _ in range(8)])
    order = await due_in_order(world)
    assert len(order) == 7
    (queue,) = await budget.queues(world.db)
    assert queue.wait > 60
    await budget.respace(world.db, "nobody", looks_per_minute=6000)
    await budget.respace(world.db, "default", looks_per_minute=1)
    (kept,) = await budget.queues(world.db)
    assert 0 < queue.wait - kept.wait < 30
    held = order[3]
    await world.sql(
        "UPDATE checkouts SET lease = gen_random_uuid(), leased_until = clock() + interval '1 hour', due_at = clock() + interval '1 hour' "
        "WHERE id = :id",
        id=held,
    )
    await budget.respace(world.db, "default", looks_per_minute=600)
    assert await budget.queues(world.db) == []
    assert [one for one in await due_in_order(world) if one != held] == [one for one in order if one != held]
    rows = await world.sql(
        "SELECT id, extract(epoch FROM due_at - clock())::float8 AS away FROM checkouts WHERE booked ORDER BY due_at"
    )
    assert all(row.away < 60 for row in rows if row.id != held)
    assert rows[-1].id == held, "a worker has it"

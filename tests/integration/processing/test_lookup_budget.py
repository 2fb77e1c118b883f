"""What abandoned checkouts cost at the gateway: calls per order over a simulated day, within the merchant's
budget of lookups.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import pytest

from orchestrator.cli import checks
from orchestrator.cli.doctor import Report
from orchestrator.explain import explain
from orchestrator.explain.record import gather
from orchestrator.processing import lookup_budget
from orchestrator.store import checkouts as lifecycle
from tests.integration.processing.counting import Counting, fullest
from tests.support.scene import Scene, scene

if TYPE_CHECKING:
    from collections import Counter

pytestmark = pytest.mark.anyio

DAY = 86_400
STEP = 3
"""Simulated seconds from one round to the next, at least; `budget.BEHIND` allows for so many."""
QUIET_LOOKUPS = 6
"""What a checkout begins with (`schedule.quiet_lookups`) where the first lookup comes after 120 s, and the
next would after 2 s."""


async def a_day(world: Scene, orders: int, *, lookups_per_minute: int) -> tuple[Counter[str], int]:
    """Let so many shoppers come at once and leave without paying; return the calls of a day, and the most
    lookups of any minute.
    """
    async with Counting(world.settings) as gateway:
        world.processor.context.gateway = gateway
        await world.policy(lookups_per_minute=lookups_per_minute)
        for _ in range(0, orders, 500):
            ids = await asyncio.gather(*(world.accept() for _ in range(min(orders, 500))))
            await world.process(*ids)
        while gateway.skipped < DAY:
            due = await lifecycle.due(world.db, most=1000)
            if due:
                await world.take(*(row.id for row in due))
                continue
            (row,) = await world.sql(
                "SELECT extract(epoch FROM min(due_at) - clock())::float8 AS left FROM checkouts WHERE due_at IS NOT NULL"
            )
            if row.left is None:
                break
            step = max(int(row.left) + 1, STEP)
            gateway.skipped += step
            await world.later(seconds=step)
        return gateway.calls, fullest(gateway.lookups)


async def check(capsys, database_url: str, gateway: str, orders: int, *, lookups_per_minute: int) -> None:
    async with scene(
        database_url,
        gateway,
        first_check_after=120,
        recheck_after_callback=2,
        check_interval_cap=1800,
        deadline_grace=30,
        checkout_expires_in=3600,
        post_settlement_checks=(3600.0, 86_400.0, 7 * 86_400.0, 30 * 86_400.0),
    ) as world:
        calls, most = await a_day(world, orders, lookups_per_minute=lookups_per_minute)
        rows = await world.sql("SELECT state, count(*) AS number FROM checkouts GROUP BY state")
        shown = ", ".join(f"{name} {number / orders:.2f}" for name, number in sorted(calls.items()))
        with capsys.disabled():
            print(
                f"\n{orders} abandoned checkouts, one simulated day, calls per order: {shown}; in all {calls.total() / orders:.2f}; "
                f"lookups in any minute at most: {most} (budget {lookups_per_minute})"
            )
        assert {row.state: row.number for row in rows} == {"expired": orders}, (
            "all of them got their last lookup"
        )
        assert most <= lookups_per_minute
        assert calls["find_payments"] / orders <= 12


async def test_abandoned_checkouts_of_a_burst_are_looked_up_within_the_budget(
    capsys, database_url: str, gateway_url: str
):
    await check(capsys, database_url, gateway_url, 60, lookups_per_minute=6)


@pytest.mark.slow
async def test_ten_thousand_abandoned_checkouts_cost_a_day_within_the_budget(
    capsys, database_url: str, gateway_url: str
):
    await check(capsys, database_url, gateway_url, 10_000, lookups_per_minute=600)


@pytest.mark.parametrize("refused", [False, True])
async def test_a_lookup_that_waits_for_its_slot_leaves_no_shopper_with_an_expired_token(
    world: Scene, *, refused: bool
):
    await world.policy(lookups_per_minute=1)
    checkouts = [await world.offered() for _ in range(2)]
    await world.sql("UPDATE sessions SET token_expires_at = clock() + interval '30 seconds'")
    if refused:
        await world.control("PUT", "faults", {"authenticate": {"count": 100, "status": 503}})
    await world.process(*checkouts)
    rows = await world.sql(
        "SELECT c.slot_reserved, s.token_expires_at - clock() AS left FROM checkouts c JOIN sessions s ON s.checkout_id = c.id"
    )
    assert sorted(row.slot_reserved for row in rows) == ([False, False] if refused else [False, True])
    assert all((row.left.total_seconds() > 1000) != refused for row in rows)


# ── What is made in a minute ──────────────────────────────────────────────────────────────────────────────


async def test_workers_that_were_away_make_no_more_lookups_in_a_minute_than_the_budget(
    database_url: str, gateway_url: str
):
    async with scene(
        database_url,
        gateway_url,
        first_check_after=120,
        recheck_after_callback=2,
        check_interval_cap=1800,
        checkout_expires_in=86_400,
    ) as world:
        async with Counting(world.settings) as gateway:
            world.processor.context.gateway = gateway
            await world.policy(lookups_per_minute=30)
            await world.process(*[await world.offered() for _ in range(80)])
            (row,) = await world.sql("SELECT count(*) AS slot_reserved FROM checkouts WHERE slot_reserved")
            assert row.slot_reserved > 70
            gateway.lookups.clear()
            # All slots pass while no worker takes them.
            gateway.skipped += 600
            await world.later(seconds=600)
            for _ in range(100):
                due = await lifecycle.due(world.db, most=1000)
                await world.take(*(row.id for row in due))
                gateway.skipped += 3
                await world.later(seconds=3)
            rows = await world.sql(
                "SELECT count(*) AS seen FROM checkouts WHERE lookups > :quiet", quiet=QUIET_LOOKUPS
            )
        assert rows[0].seen == 80, "each was looked up"
        assert fullest(gateway.lookups) <= 30


async def taken(world: Scene, *, asked: int = 0, with_slot: int = 0, quiet: int = 0) -> list[float]:
    demand = lookup_budget.Demand(1, 1.0, asked, with_slot, quiet)
    return [round(wait) for wait in (await lookup_budget.take(world.db, [demand]))[1].waits(demand)]


async def test_a_reserved_slot_is_kept_and_a_passed_slot_is_reserved_again_behind_the_queue(world: Scene):
    at_once = int(lookup_budget.AT_ONCE)
    assert await taken(world, quiet=10) == [*range(10)], "the first go now, the others wait"
    await world.later(seconds=at_once + 2)
    assert await taken(world, with_slot=2) == [0, 0], "two come to their places"
    await world.later(seconds=60)
    made_up_for = at_once + int(lookup_budget.BEHIND) + 1
    waits = await taken(world, with_slot=20, quiet=2)
    assert waits[:made_up_for] == [0] * made_up_for, "what was not used is made up for a little"
    assert waits[made_up_for:] == [at_once + 1 + place for place in range(22 - made_up_for)]
    await world.later(seconds=60)
    assert await taken(world, with_slot=1) == [0], "however late, while next to none is made"


async def test_the_budget_as_it_stands_counts_whatever_a_worker_believes_of_it(world: Scene):
    await world.policy(lookups_per_minute=7)
    assert await taken(world, quiet=3) == [0, 10, 20]
    for wrong, waits in (("many", [0, 1, 2]), (None, [0, 1, 2]), (0, [0, 70, 140])):
        await world.later(seconds=1200)
        stored = msgspec.json.encode({"lookups_per_minute": wrong}).decode()
        await world.sql("UPDATE merchants SET policies = CAST(:stored AS jsonb) WHERE id = 1", stored=stored)
        assert await taken(world, quiet=3) == waits, wrong


async def test_requested_lookups_push_the_others_back_but_leave_them_a_quarter(world: Scene):
    assert await taken(world, quiet=1) == [0]
    await world.later(seconds=100)
    assert await taken(world, asked=10, quiet=1) == [10]
    await world.later(seconds=100)
    assert await taken(world, asked=1000, quiet=1) == [75]


# ── What comes first, and how the others are reported ────────────────────────────────────────────────────


async def due_in_order(world: Scene) -> list[object]:
    rows = await world.sql("SELECT id FROM checkouts WHERE slot_reserved ORDER BY due_at")
    return [row.id for row in rows]


async def test_a_shopper_who_has_come_back_does_not_wait_behind_the_lookups_of_others(world: Scene):
    await world.policy(lookups_per_minute=6)
    quiet = [await world.offered() for _ in range(4)]
    await world.process(*quiet)
    assert len(await due_in_order(world)) == 3, "the first at once, the others in their turn"
    back = await world.offered()
    # What came with the shopper was read, and the gateway did not confirm it yet.
    await world.sql("UPDATE checkouts SET wake = 1 WHERE id = :id", id=back)
    lookups = (await world.row(back)).lookups
    await world.process(back)
    row = await world.row(back)
    assert not row.slot_reserved
    assert row.lookups > lookups, "it was looked up"
    # Much later no shopper waits at the shop's page any more.
    await world.sql(
        "UPDATE checkouts SET offered_at = offered_at - interval '1 hour' WHERE id = :id", id=back
    )
    await world.process(back)
    assert (await due_in_order(world))[-1] == back


async def test_a_shopper_who_comes_back_to_an_order_that_has_its_slot_is_not_counted_twice(world: Scene):
    await world.policy(lookups_per_minute=6)
    await world.process(*[await world.offered() for _ in range(4)])
    rows = await world.sql("SELECT id, due_at FROM checkouts WHERE slot_reserved ORDER BY due_at")
    first, last, apart = rows[0], rows[-1], rows[1].due_at - rows[0].due_at
    assert last.due_at - first.due_at < 3 * apart
    await world.sql("UPDATE checkouts SET wake = 1 WHERE id = :id", id=last.id)
    lookups = (await world.row(last.id)).lookups
    await world.process(last.id)
    assert (await world.row(last.id)).lookups > lookups, "it was looked up at once"
    after = await world.offered()
    await world.process(after)
    (row,) = await world.sql("SELECT slot_reserved, due_at FROM checkouts WHERE id = :id", id=after)
    assert row.slot_reserved
    assert row.due_at - last.due_at < 1.5 * apart, "its slot is the next"


async def test_lookups_take_their_slots_by_what_may_be_lost(world: Scene):
    await world.policy(lookups_per_minute=6)
    names = ("ended", "looked at", "young", "small", "great", "old", "first")
    known = {name: await world.offered() for name in names}
    hours = {"first": 9, "old": 3, "great": 2, "small": 2, "young": 1, "looked at": 5, "ended": 8}
    for name, checkout in known.items():
        await world.sql(
            "UPDATE checkouts SET offered_at = date_trunc('hour', clock()) - make_interval(hours => :hours), lookups = 0 WHERE id = :id",
            id=checkout,
            hours=hours[name],
        )
    await world.sql("UPDATE checkouts SET amount = amount - 1 WHERE id = :id", id=known["small"])
    await world.sql("UPDATE checkouts SET lookups = 3 WHERE id = :id", id=known["looked at"])
    await world.sql(
        "UPDATE checkouts SET state = 'expired', ended_at = clock() WHERE id = :id", id=known["ended"]
    )
    await world.process(*known.values())
    names_of = {checkout: name for name, checkout in known.items()}
    order = [names_of[checkout] for checkout in await due_in_order(world)]
    assert order == ["old", "great", "small", "young", "looked at", "ended"], "and the first went at once"


async def test_the_queue_of_lookups_is_reported_with_its_length_and_its_age(world: Scene, capsys):
    await world.offered()
    assert await lookup_budget.queues(world.db) == []
    await world.policy(lookups_per_minute=6)
    await world.process(*[await world.offered() for _ in range(5)])
    (queue,) = await lookup_budget.queues(world.db)
    assert (queue.merchant, queue.waiting) == ("default", 4)
    assert 30 < queue.wait < 60
    assert 0 <= queue.age < 30
    await world.later(seconds=20)
    (queue,) = await lookup_budget.queues(world.db)
    assert 20 <= queue.age < 60
    # For less than two minutes that is the budget's ordinary work, and no problem.
    report = Report()
    await checks._lookups(world.db, report)
    assert (report.problems, queue.overdue) == (0, False)
    assert f"{queue.waiting} wait for their slot, none for long" in capsys.readouterr().out
    await world.sql("UPDATE checkouts SET updated_at = updated_at - interval '2 minutes'")
    await checks._lookups(world.db, report)
    said = capsys.readouterr().out
    assert report.problems == 1
    assert f"{queue.waiting} lookups of merchant default wait for their slot, the oldest for 2 min" in said
    waiting = (await due_in_order(world))[-1]
    record = await gather(world.db, world.settings, waiting)
    assert record is not None
    told = explain(record).next
    assert (
        "waits for its slot within the merchant's budget of lookups, behind 3 others, the oldest of which has waited for"
        in told.what
    )
    await world.later(seconds=300)
    await checks._lookups(world.db, report)
    assert "0 wait for their slot" in capsys.readouterr().out


async def test_a_larger_budget_brings_waiting_lookups_forward_in_order_and_a_smaller_budget_delays_none(
    world: Scene,
):
    await world.policy(lookups_per_minute=6)
    await world.process(*[await world.offered() for _ in range(8)])
    order = await due_in_order(world)
    assert len(order) == 7
    (queue,) = await lookup_budget.queues(world.db)
    assert queue.wait > 60
    await lookup_budget.respace(world.db, "unknown", lookups_per_minute=6000)
    await lookup_budget.respace(world.db, "default", lookups_per_minute=1)
    (kept,) = await lookup_budget.queues(world.db)
    assert 0 < queue.wait - kept.wait < 30
    held = order[3]
    await world.sql(
        "UPDATE checkouts SET lease = gen_random_uuid(), leased_until = clock() + interval '1 hour', due_at = clock() + interval '1 hour' "
        "WHERE id = :id",
        id=held,
    )
    await lookup_budget.respace(world.db, "default", lookups_per_minute=600)
    assert await lookup_budget.queues(world.db) == []
    assert [checkout for checkout in await due_in_order(world) if checkout != held] == [
        checkout for checkout in order if checkout != held
    ]
    rows = await world.sql(
        "SELECT id, extract(epoch FROM due_at - clock())::float8 AS away FROM checkouts WHERE slot_reserved ORDER BY due_at"
    )
    assert all(row.away < 60 for row in rows if row.id != held)
    assert rows[-1].id == held, "a worker has it"


async def test_lookups_made_under_a_small_budget_take_no_slot_of_a_larger_budget(world: Scene):
    await world.policy(lookups_per_minute=1)
    checkouts = [await world.offered() for _ in range(6)]
    await world.process(*checkouts)
    assert len(await due_in_order(world)) == 5, "the first at once, the others in their turn"
    await world.policy(lookups_per_minute=600)
    await lookup_budget.respace(world.db, "default", lookups_per_minute=600)
    assert await lookup_budget.queues(world.db) == []
    await world.later(seconds=2)
    await world.process(*await due_in_order(world))
    assert await due_in_order(world) == []

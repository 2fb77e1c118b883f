"""A merchant all of whose callbacks are lost, at 50 orders a second for a minute: how long paid orders wait
for their lookup, and which.

Time is the product's clock, simulated in steps of a second; what the machine takes for a step is added to it,
as in production.

With a first lookup at most `FIRST_CHECK_AFTER × JITTER` after the offer, an order paid before it is completed
at most `FIRST_CHECK_AFTER × JITTER - (paid - offered) + queue` after its payment. The queue is that of
lookups that come when they are due and are served `apart` seconds after each other: at most `ORDERS ×
apart`, and less for the time in which they come.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from orchestrator.cli import checks
from orchestrator.cli.doctor import Report
from orchestrator.explain import explain
from orchestrator.explain.record import gather
from orchestrator.processing import lookup_budget
from orchestrator.store import checkouts
from orchestrator.store.merchant_fields import Policies
from tests.integration.processing.counting import Counting, fullest
from tests.support.scene import Scene, scene

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(1200)]

PER_SECOND, SECONDS = 50, 60
ORDERS = PER_SECOND * SECONDS
FIRST_CHECK_AFTER = 120.0
JITTER = 1.2
"""The most by which a due time is later than its delay."""
PAID_AFTER = (20.0, 80.0)
"""Seconds from the offer to the payment: before the first lookup for a lost callback."""
BACK_AFTER = (5.0, 200.0)
"""Seconds from the payment to the shopper's return to the shop's page."""
AT_ONCE = 20
"""Payments that are made at the gateway at once, and checkouts in a claim."""
LOT = 50


@dataclass
class Order:
    """Times are seconds after the first offer."""

    id: UUID
    offered: float
    due: float
    paid: float | None = None
    back: float | None = None


async def offer(world: Scene, chance: random.Random) -> list[Order]:
    """Offer the orders and pay four in five of them; one in ten shoppers comes back to the shop's page."""
    ids: list[UUID] = []
    for _ in range(ORDERS // LOT):
        ids += await asyncio.gather(*(world.accept() for _ in range(LOT)))
        await world.process(*ids[-LOT:])
    orders = [
        Order(
            checkout,
            place / PER_SECOND,
            place / PER_SECOND + FIRST_CHECK_AFTER * chance.uniform(2 - JITTER, JITTER),
        )
        for place, checkout in enumerate(ids)
    ]
    for order in orders:
        if chance.random() < 0.8:
            order.paid = order.offered + chance.uniform(*PAID_AFTER)
            if chance.random() < 0.1:
                order.back = order.paid + chance.uniform(*BACK_AFTER)
    gate = asyncio.Semaphore(AT_ONCE)

    async def pay(order: Order) -> None:
        async with gate:
            await world.pay(order.id)

    # No lookup is due before the first, so that the money may be there from the start.
    await asyncio.gather(*(pay(order) for order in orders if order.paid is not None))
    return orders


async def begin(world: Scene, orders: Sequence[Order]) -> None:
    """Have the clock stand at the first offer, as if the others were offered in the minute that
    begins now.
    """
    await world.sql("DELETE FROM lookup_budgets")
    await world.sql(
        """
        UPDATE checkouts c SET offered_at = t.now + make_interval(secs => o.offered), due_at = t.now + make_interval(secs => o.due),
               deadline = t.now + make_interval(secs => o.offered + 3600), hinted = false, slot_reserved = false
          FROM unnest(CAST(:ids AS uuid[]), CAST(:offered AS float8[]), CAST(:due AS float8[])) AS o(id, offered, due),
               (SELECT clock() AS now) t
         WHERE c.id = o.id
        """,
        ids=[order.id for order in orders],
        offered=[order.offered for order in orders],
        due=[order.due for order in orders],
    )


@dataclass
class Course:
    """What happened.

    Times are seconds after the first offer; `behind` is how far the machine was behind the steps of a second.
    """

    completed: dict[UUID, float]
    behind: float
    queues: list[lookup_budget.Queue]
    asked: list[float]
    said: str = ""


async def live(world: Scene, orders: Sequence[Order], gateway: Counting, capsys) -> Course:
    """Let time pass until no paid order waits, and process whatever is due."""
    (row,) = await world.sql("SELECT min(offered_at) AS first FROM checkouts")
    first, course = row.first, Course({}, 0.0, [], [])
    paid = {order.id for order in orders if order.paid is not None}
    returning = sorted(
        (order for order in orders if order.back is not None), key=lambda order: order.back or 0.0
    )
    while paid - set(course.completed) or returning:
        began = time.monotonic()
        (row,) = await world.sql("SELECT extract(epoch FROM clock() - :first)::float8 AS now", first=first)
        back = [order.id for order in returning if (order.back or 0.0) <= row.now]
        returning = returning[len(back) :]
        before = len(gateway.lookups)
        await come_back(world, back)
        course.asked += gateway.lookups[before:]
        del gateway.lookups[before:]
        while due := await checkouts.due(world.db, most=LOT):
            await world.take(*(row.id for row in due))
        course.queues += (queues := await lookup_budget.queues(world.db))
        if queues and queues[0].overdue and not course.said:
            course.said = await told(world, queues[0], capsys)
        for done in await world.sql(
            "SELECT checkout_id, extract(epoch FROM created_at - :first)::float8 AS at FROM events WHERE kind = 'checkout.completed'",
            first=first,
        ):
            course.completed[done.checkout_id] = done.at
        assert row.now < 3600, "they are all done long before the first of them expires"
        course.behind += max(time.monotonic() - began - 1.0, 0.0)
        await world.later(seconds=1)
        gateway.skipped += 1
    return course


async def come_back(world: Scene, back: Sequence[UUID]) -> None:
    """Have shoppers come back to the shop's page: each is looked up before any lookup that no shopper
    waits for.
    """
    await asyncio.gather(*(world.call_back(checkout, kind="redirect", body=b"") for checkout in back))
    for start in range(0, len(back), LOT):
        await world.take(*back[start : start + LOT])
    rows = await world.sql("SELECT state, slot_reserved FROM checkouts WHERE id = ANY(:ids)", ids=list(back))
    assert {(row.state, row.slot_reserved) for row in rows} <= {("completed", False)}


async def told(world: Scene, queue: lookup_budget.Queue, capsys) -> str:
    """Return what doctor and explain say of the queue."""
    capsys.readouterr()
    report = Report()
    await checks._lookups(world.db, report)
    assert report.problems == 1
    (row,) = await world.sql("SELECT id FROM checkouts WHERE slot_reserved ORDER BY due_at DESC LIMIT 1")
    record = await gather(world.db, world.settings, row.id)
    assert record is not None
    (counted,) = await world.sql("SELECT count(*) AS slot_reserved FROM checkouts WHERE slot_reserved")
    assert queue.waiting == counted.slot_reserved
    return capsys.readouterr().out + explain(record).next.what


def longest_wait(arrivals: Sequence[float], apart: float) -> float:
    """Return the longest wait in a queue in which lookups are that many seconds apart."""
    free, longest = float("-inf"), 0.0
    for at in sorted(arrivals):
        served = max(at, free)
        longest, free = max(longest, served - at), served + apart
    return longest


@pytest.mark.parametrize("lookups_per_minute", [Policies().lookups_per_minute, 600])
async def test_a_minute_of_lost_callbacks_is_looked_up_within_the_budget_and_returning_shoppers_do_not_wait(
    capsys, database_url: str, gateway_url: str, lookups_per_minute: int
):
    async with scene(
        database_url,
        gateway_url,
        timeout=60.0,
        first_check_after=FIRST_CHECK_AFTER,
        recheck_after_callback=2,
        check_interval_cap=1800,
        deadline_grace=30,
        checkout_expires_in=7200,
        lease_seconds=60,
    ) as world:
        await world.policy(lookups_per_minute=lookups_per_minute)
        orders = await offer(world, random.Random(11))
        async with Counting(world.settings) as gateway:
            world.processor.context.gateway = gateway
            await begin(world, orders)
            course = await live(world, orders, gateway, capsys)

    apart = lookup_budget.apart(lookups_per_minute)
    asked = [order.back for order in orders if order.back is not None]
    queue = longest_wait([*(order.due for order in orders), *asked], apart)
    # Lookups take their places lot by lot, in steps of a second, and may come to them a little early or late.
    slack = (
        LOT * apart + 1.0 + lookup_budget.AT_ONCE + lookup_budget.BEHIND + lookup_budget.LATE + course.behind
    )
    waited = [
        course.completed[order.id] - order.due
        for order in orders
        if order.paid is not None and order.back is None
    ]
    since = [course.completed[order.id] - order.paid for order in orders if order.paid is not None]
    made, all_made = fullest(gateway.lookups), fullest([*gateway.lookups, *course.asked])
    overtaken = max((queue.waiting for queue in course.queues), default=0)
    with capsys.disabled():
        print(
            f"\n{ORDERS} orders in {SECONDS} s, no callback, {lookups_per_minute} lookups a minute: from payment to completed at most "
            f"{max(since):.0f} s; behind the due lookup at most {max(waited):.1f} s (queue {queue:.1f} s, {ORDERS * apart:.0f} s if all "
            f"came at once; machine behind {course.behind:.1f} s); waiting at most {overtaken}; {len(asked)} shoppers came back; lookups in any minute at most {all_made}, {made} without "
            f"theirs\n{course.said}"
        )
    assert made <= lookups_per_minute
    assert all_made <= lookups_per_minute + fullest(course.asked)
    assert max(waited) <= queue + slack
    assert queue <= ORDERS * apart
    for order in orders:
        if order.paid is not None:
            assert course.completed[order.id] <= max(
                order.paid, order.offered + FIRST_CHECK_AFTER * JITTER + queue + slack
            ), order
        if order.back is not None:
            assert course.completed[order.id] <= order.back + 2.0 + course.behind, order
    if queue > lookup_budget.AT_ONCE + slack:
        assert overtaken > 500
        assert "lookups of merchant default wait for their slot, the oldest for" in course.said
        assert "Its lookup waits for its slot within the merchant's budget of lookups" in course.said

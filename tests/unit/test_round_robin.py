"""Turns: no queue is served twice before another, and no slot is lost, whichever waiter is cancelled when."""

from __future__ import annotations

import asyncio
import random

import pytest

from orchestrator.gateway.limits.round_robin import RoundRobinSemaphore

pytestmark = pytest.mark.anyio


async def queued(slots: RoundRobinSemaphore, keys: str, served: list[str]) -> list[asyncio.Task[None]]:
    async def take(key: str) -> None:
        await slots.take(key)
        served.append(key)

    tasks = [asyncio.create_task(take(key)) for key in keys]
    await asyncio.sleep(0)
    return tasks


async def test_while_a_slot_is_free_no_call_waits():
    slots = RoundRobinSemaphore(2)
    await slots.take("a")
    assert slots.take_now()
    assert (slots.take_now(), slots.free, slots.waiting) == (False, 0, 0)
    slots.give_back()
    assert slots.free == 1


async def test_the_queues_are_served_in_turn_however_long_one_is():
    slots, served = RoundRobinSemaphore(0), []
    tasks = await queued(slots, "aaaaabab", served)
    assert slots.waiting == 8
    slots.add(3)
    await asyncio.sleep(0)
    tasks += await queued(slots, "c", served)
    slots.add(6)
    await asyncio.gather(*tasks)
    assert "".join(served) == "ababacaaa", "a later call waits for one round"
    assert (slots.free, slots.waiting) == (0, 0)


async def test_a_cancelled_waiter_takes_no_turn():
    slots, served = RoundRobinSemaphore(0), []
    first, *others = await queued(slots, "aab", served)
    first.cancel()
    await asyncio.sleep(0)
    slots.add(2)
    await asyncio.gather(*others)
    assert sorted(served) == ["a", "b"]
    assert slots.waiting == 0


async def test_a_queue_of_cancelled_waiters_delays_no_other():
    slots, served = RoundRobinSemaphore(0), []
    *gone, last = await queued(slots, "aab", served)
    for task in gone:
        task.cancel()
    await asyncio.sleep(0)
    slots.give_back()
    await last
    assert served == ["b"]


async def test_a_slot_given_at_the_moment_of_cancelling_goes_to_the_next_waiter():
    slots, served = RoundRobinSemaphore(0), []
    first, second = await queued(slots, "ab", served)
    slots.give_back()
    first.cancel()
    await second
    assert served == ["b"]
    assert first.cancelled()


async def test_what_is_free_can_be_taken_away():
    slots = RoundRobinSemaphore(3)
    slots.withdraw_free()
    assert (slots.free, slots.take_now()) == (0, False)


async def test_a_burst_of_cancellations_loses_no_slot():
    slots, inside, most = RoundRobinSemaphore(3), 0, 0

    async def visit(key: int) -> None:
        nonlocal inside, most
        try:
            async with asyncio.timeout(random.uniform(0, 0.02)):
                await slots.take(key)
        except TimeoutError:
            return
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(random.uniform(0, 0.002))
        inside -= 1
        slots.give_back()

    await asyncio.gather(*(visit(number % 7) for number in range(400)))
    assert (slots.free, slots.waiting, inside) == (3, 0, 0)
    assert most == 3

"""Turns: nobody's line is served twice before another's, and no place is lost, whoever gives up when."""

from __future__ import annotations

import asyncio
import random

import pytest

from orchestrator.gateway.limits.round_robin import Turns

pytestmark = pytest.mark.anyio


async def queued(turns: Turns, keys: str, served: list[str]) -> list[asyncio.Task[None]]:
    async def take(key: str) -> None:
        await turns.take(key)
        served.append(key)

    tasks = [asyncio.create_task(take(key)) for key in keys]
    await asyncio.sleep(0)
    return tasks


async def test_while_a_place_is_free_nobody_waits():
    turns = Turns(2)
    await turns.take("a")
    assert turns.take_now()
    assert (turns.take_now(), turns.free, turns.waiting) == (False, 0, 0)
    turns.give_back()
    assert turns.free == 1


async def test_the_lines_are_served_in_turn_however_long_one_is():
    turns, served = Turns(0), []
    tasks = await queued(turns, "aaaaabab", served)
    assert turns.waiting == 8
    turns.add(3)
    await asyncio.sleep(0)
    tasks += await queued(turns, "c", served)
    turns.add(6)
    await asyncio.gather(*tasks)
    assert "".join(served) == "ababacaaa", "who comes later waits for one round"
    assert (turns.free, turns.waiting) == (0, 0)


async def test_who_gives_up_takes_no_turn():
    turns, served = Turns(0), []
    first, *others = await queued(turns, "aab", served)
    first.cancel()
    await asyncio.sleep(0)
    turns.add(2)
    await asyncio.gather(*others)
    assert sorted(served) == ["a", "b"]
    assert turns.waiting == 0


async def test_a_line_of_those_who_gave_up_keeps_nobody_waiting():
    turns, served = Turns(0), []
    *gone, last = await queued(turns, "aab", served)
    for task in gone:
        task.cancel()
    await asyncio.sleep(0)
    turns.give_back()
    await last
    assert served == ["b"]


async def test_a_place_given_in_the_moment_of_giving_up_goes_on_to_the_next():
    turns, served = Turns(0), []
    first, second = await queued(turns, "ab", served)
    turns.give_back()
    first.cancel()
    await second
    assert served == ["b"]
    assert first.cancelled()


async def test_what_is_free_can_be_taken_away():
    turns = Turns(3)
    turns.withdraw_free()
    assert (turns.free, turns.take_now()) == (0, False)


async def test_a_storm_loses_no_place():
    turns, inside, most = Turns(3), 0, 0

    async def visit(key: int) -> None:
        nonlocal inside, most
        try:
            async with asyncio.timeout(random.uniform(0, 0.02)):
                await turns.take(key)
        except TimeoutError:
            return
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(random.uniform(0, 0.002))
        inside -= 1
        turns.give_back()

    await asyncio.gather(*(visit(number % 7) for number in range(400)))
    assert (turns.free, turns.waiting, inside) == (3, 0, 0)
    assert most == 3

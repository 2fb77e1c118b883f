"""The sequencer, killed with SIGKILL between any two of its steps: each event gets one position, no gap, and
no cursor skips an event.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections import defaultdict
from typing import TYPE_CHECKING

import pytest

from orchestrator.domain.ids import uuid7
from orchestrator.store import events
from orchestrator.worker.sequencer import Sequencer
from tests.races.test_event_feed import Reader, second_merchant, write
from tests.support.factories import core
from tests.support.forked import Popen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.support.factories import Core

pytestmark = pytest.mark.anyio

CHECKOUTS, SEQUENCES = 12, 5
KILLS = 25
RETENTION = 90 * 86_400.0
# A sequencer of its own process. With the name of a step it reports when it has reached the step, and then
# stops there.
PROCESS = """
import asyncio, sys, time
from orchestrator.store import database, events
from orchestrator.store.database import Database
from orchestrator.worker.sequencer import Sequencer

url, wanted = sys.argv[1:]
names = {id(events._PLACE): "place", id(events._FORGET): "forget"}
run, locked = database.run, Database.locked

def reached(step):
    if step == wanted:
        print("reached", flush=True)
        time.sleep(600)

async def watched(tx, statement, parameters):
    name = names.get(id(statement))
    reached(f"before {name}")
    rows = await run(tx, statement, parameters)
    reached(f"after {name}")
    return rows

def taking_turns(db, lock, statement, parameters):
    reached("before turn")
    return locked(db, lock, statement, parameters)

def committed(name):
    work = getattr(events, name)
    async def do(db, **options):
        done = await work(db, **options)
        reached("committed " + name)
        return done
    setattr(events, name, do)

database.run, Database.locked = watched, taking_turns
committed("place")
committed("forget")

async def main():
    async with Database(url, pool_size=2) as db:
        sequencer = Sequencer(db, retention=%(retention)f)
        if wanted:
            sequencer.wake()
            await sequencer.number()
            await sequencer.forget()
            return
        print("runs", flush=True)
        running = asyncio.create_task(sequencer.run())
        while True:
            sequencer.wake()
            await asyncio.sleep(0.002)

asyncio.run(main())
""" % {"retention": RETENTION}  # noqa: UP031 - the program has braces


def start(url: str, step: str = "") -> subprocess.Popen[str]:
    return Popen([sys.executable, "-c", PROCESS, url, step], stdout=subprocess.PIPE, text=True)


async def killed_at(url: str, step: str) -> None:
    """Start a sequencer, and kill it at a step."""
    process = start(url, step)
    try:
        said = await asyncio.wait_for(asyncio.to_thread(process.stdout.readline), 60)  # type: ignore[union-attr]
    finally:
        process.kill()
        process.communicate(timeout=30)
    assert said == "reached\n", step


async def read_to_the_end(inside: Core, readers: Sequence[Reader]) -> None:
    """Number what is left, and have the readers go on from their positions."""
    async with asyncio.timeout(60):
        # Postgres releases the locks of a killed process when it detects its end.
        while await events.waiting(inside.db):
            await events.place(inside.db)
    for reader in readers:
        while reader.after < (await events.feed(inside.db, reader.merchant)).last:
            await reader.read()


def agree(reader: Reader, written: Sequence[tuple[object, int]]) -> None:
    """Every event was seen once, at positions without a gap, and those of a checkout in their order."""
    assert len(reader.seen) == len(set(reader.seen)), "an event was seen twice"
    assert set(reader.seen) == set(written), "an event was skipped"
    assert reader.positions == list(range(1, len(written) + 1))
    by_checkout = defaultdict(list)
    for checkout, sequence in reader.seen:
        by_checkout[checkout].append(sequence)
    assert all(found == sorted(found) for found in by_checkout.values())


STEPS = (
    "before turn", "before place", "after place", "committed place",
    "before forget", "after forget", "committed forget",
)  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
async def test_a_sequencer_killed_between_two_steps_numbers_every_event_once_and_leaves_no_gap(
    database_url, encryptor, step
):
    async with core(database_url, encryptor) as new_core:
        reader = Reader(new_core.db, 1)
        written = []
        for sequence in range(1, SEQUENCES + 1):
            for checkout in range(CHECKOUTS):
                identity = uuid7() if sequence == 1 else written[checkout][0]
                await write(new_core.db, identity, sequence)
                written.append((identity, sequence))
            if sequence in {2, 4}:
                await killed_at(database_url, step)
            await reader.read()
        await read_to_the_end(new_core, [reader])
        agree(reader, written)


@pytest.mark.parametrize("step", ["before forget", "after forget", "committed forget"])
async def test_a_sequencer_killed_while_it_deletes_old_events_leaves_a_feed_with_the_right_beginning(
    database_url, encryptor, step
):
    async with core(database_url, encryptor) as new_core:
        for age in (100, 100, 100, 1):
            await write(new_core.db, uuid7(), 1, later=-age * 86_400.0)
            await events.place(new_core.db)
        await killed_at(database_url, step)
        feed = await events.feed(new_core.db, 1)
        kept = await new_core.all("SELECT position FROM events ORDER BY position")
        assert kept == list(range(feed.kept_after + 1, 5))
        assert feed == events.Feed(4, 3 if step == "committed forget" else 0)
        async with asyncio.timeout(30):
            while (await events.feed(new_core.db, 1)).kept_after < 3:
                await Sequencer(new_core.db, retention=RETENTION).forget()
        assert await new_core.all("SELECT position FROM events") == [4]


async def test_sequencers_killed_at_any_moment_number_every_event_once_and_a_cursor_skips_none(
    database_url, encryptor
):
    random.seed(11)
    async with core(database_url, encryptor, pool=12) as new_core:
        merchants = (1, await second_merchant(new_core))
        readers = [Reader(new_core.db, merchant) for merchant in merchants]
        written: dict[int, list[tuple[object, int]]] = defaultdict(list)
        over = asyncio.Event()

        async def happen(merchant: int) -> None:
            while not over.is_set():
                checkout = uuid7()
                for sequence in range(1, SEQUENCES + 1):
                    await write(
                        new_core.db, checkout, sequence, merchant=merchant, hold=random.choice((0.0, 0.004))
                    )
                    written[merchant].append((checkout, sequence))
                    await asyncio.sleep(random.uniform(0.0, 0.02))

        following = [asyncio.create_task(reader.follow()) for reader in readers]
        writing = [asyncio.create_task(happen(merchant)) for merchant in merchants for _ in range(3)]
        for _ in range(KILLS):
            # Two at a time, so that one of them often waits for the other's turn when that is killed.
            processes = [start(database_url), start(database_url)]
            for process in processes:
                await asyncio.wait_for(asyncio.to_thread(process.stdout.readline), 60)  # type: ignore[union-attr]
            for process in processes:
                await asyncio.sleep(random.uniform(0.0, 0.08))
                process.kill()
                process.communicate(timeout=30)
        over.set()
        await asyncio.gather(*writing)
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
        await read_to_the_end(new_core, readers)
        for reader in readers:
            agree(reader, written[reader.merchant])
        assert sum(map(len, written.values())) > KILLS, "hardly anything happened meanwhile"

"""The feed: a reader that goes on after a position sees every event once, whatever commits, numbers and is
killed at the same time.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from orchestrator.domain import events as told
from orchestrator.domain.ids import uuid7
from orchestrator.domain.states import State
from orchestrator.store import events, webhooks
from orchestrator.store.database import Database
from orchestrator.worker import sequencer as worker_sequencer
from orchestrator.worker.sequencer import Sequencer
from tests.support.factories import Breaking
from tests.support.factories import core as another

if TYPE_CHECKING:
    from uuid import UUID

pytestmark = pytest.mark.anyio

INSERT = text("""
    INSERT INTO events (checkout_id, sequence, merchant_id, kind, payload, correlation_id, created_at)
    VALUES (:checkout, :sequence, :merchant, 'checkout.expired', '{}', 'c', clock() + make_interval(secs => :later))
""")


async def second_merchant(core) -> int:
    await core.do("INSERT INTO merchants (name) VALUES ('second') ON CONFLICT DO NOTHING")
    (number,) = await core.all("SELECT id FROM merchants WHERE name = 'second'")
    return number


async def write(
    db: Database, checkout: UUID, sequence: int, *, merchant: int = 1, hold: float = 0.0, later: float = 0.0
) -> None:
    """Write one event in a transaction that stays open for a while."""
    async with db.transaction() as tx:
        await tx.execute(
            INSERT, {"checkout": checkout, "sequence": sequence, "merchant": merchant, "later": later}
        )
        await asyncio.sleep(hold)


class Reader:
    """A client of a merchant's feed that goes on after the last position that it received."""

    def __init__(self, db: Database, merchant: int) -> None:
        self._db, self.merchant = db, merchant
        self.after = 0
        self.seen: list[tuple[UUID, int]] = []
        self.positions: list[int] = []

    async def read(self) -> None:
        feed = await events.feed(self._db, self.merchant)
        page = await events.page(
            self._db, self.merchant, after=self.after, until=feed.last, limit=random.randint(1, 40)
        )
        self.seen += [(row.checkout_id, row.sequence) for row in page.events]
        self.positions += [row.position for row in page.events]
        self.after = page.until

    async def follow(self) -> None:
        while True:
            await self.read()
            await asyncio.sleep(random.uniform(0.0, 0.01))


@asynccontextmanager
async def numbering(url: str, number: int):
    """Run so many sequencers, each with connections of its own, woken all the time."""
    databases = [Database(url, pool_size=2) for _ in range(number)]
    sequencers = [Sequencer(db, retention=86_400.0) for db in databases]

    async def keep_awake(sequencer: Sequencer) -> None:
        while True:
            sequencer.wake()
            await asyncio.sleep(random.uniform(0.0, 0.02))

    tasks = [
        asyncio.create_task(work)
        for sequencer in sequencers
        for work in (sequencer.run(), keep_awake(sequencer))
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for db in databases:
            await db.close()


async def test_a_reader_sees_every_event_once_while_many_commit_and_two_number(core):
    random.seed(7)
    merchants = (1, await second_merchant(core))
    written: dict[int, list[tuple[UUID, int]]] = defaultdict(list)

    async def checkout(merchant: int, db: Database) -> None:
        checkout_id = uuid7()
        for sequence in range(1, 9):
            written[merchant].append((checkout_id, sequence))
            # Transactions of different checkouts commit in another order than their events were made.
            await write(
                db, checkout_id, sequence, merchant=merchant, hold=random.choice((0.0, 0.0, 0.002, 0.03))
            )

    async with another(core.url, core.encryptor, pool=12) as second, numbering(core.url, 2):
        readers = [Reader(core.db, merchant) for merchant in merchants]
        following = [asyncio.create_task(reader.follow()) for reader in readers]
        await asyncio.gather(*(checkout(merchants[number % 2], second.db) for number in range(40)))
        async with asyncio.timeout(30):
            while await events.waiting(core.db):  # noqa: ASYNC110 - it is in Postgres
                await asyncio.sleep(0.01)
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
        for reader in readers:
            # A reader that was cancelled in the middle reads on from its position.
            while reader.after < (await events.feed(core.db, reader.merchant)).last:
                await reader.read()
    for reader in readers:
        assert len(reader.seen) == len(set(reader.seen)), "an event was seen twice"
        assert set(reader.seen) == set(written[reader.merchant]), "an event was skipped"
        assert reader.positions == list(range(1, len(written[reader.merchant]) + 1))
        by_checkout = defaultdict(list)
        for one_checkout, sequence in reader.seen:
            by_checkout[one_checkout].append(sequence)
        assert all(sequences == list(range(1, 9)) for sequences in by_checkout.values())


async def test_an_event_that_is_not_committed_holds_up_no_other_and_gets_a_later_position(core):
    slow, fast = uuid7(), uuid7()
    async with another(core.url, core.encryptor) as second:
        holding = asyncio.create_task(write(second.db, slow, 1, hold=0.5))
        await asyncio.sleep(0.1)
        await write(core.db, fast, 1)
        assert await events.place(core.db) == 1
        reader = Reader(core.db, 1)
        await reader.read()
        assert reader.seen == [(fast, 1)]
        await holding
        assert await events.place(core.db) == 1
        await reader.read()
    assert reader.seen == [(fast, 1), (slow, 1)]


@pytest.mark.parametrize("most", [1, 2, 100])
async def test_events_of_a_checkout_keep_their_order_when_the_clock_goes_back(core, most):
    first, other = uuid7(), uuid7()
    await write(core.db, first, 1, later=60.0)
    await write(core.db, other, 1, later=10.0)
    await write(core.db, first, 2, later=-60.0)
    await write(core.db, first, 3)
    while await events.place(core.db, most=most):
        pass
    placed = await core.all("SELECT checkout_id, sequence FROM events ORDER BY position")
    assert [sequence for checkout, sequence in placed if checkout == first] == [1, 2, 3]
    assert await core.all("SELECT position FROM events ORDER BY position") == [1, 2, 3, 4]


async def test_only_one_sequencer_numbers_at_a_time_and_the_other_gets_none(core):
    await write(core.db, uuid7(), 1)
    async with core.db.transaction() as tx:
        lock = text("SELECT pg_try_advisory_xact_lock(hashtext(:name)) AS ours")
        assert (await tx.execute(lock, {"name": events.LOCK})).one().ours
        assert await events.place(core.db) is None
        assert await events.forget(core.db, older_than=0.0) is None
    assert await events.place(core.db) == 1


async def test_a_sequencer_whose_connection_breaks_leaves_no_gap_and_numbers_nothing_twice(core):
    for _ in range(5):
        await write(core.db, uuid7(), 1)
    async with another(core.url, core.encryptor, database=Breaking) as breaking:
        breaking.db.cut_before_commit = 1
        with pytest.raises(DBAPIError):
            await events.place(breaking.db, most=3)
        assert await events.feed(core.db, 1) == events.Feed(0, 0)
        breaking.db.lost_answers = 1
        with pytest.raises(DBAPIError):
            await events.place(breaking.db, most=3)
        assert (await events.feed(core.db, 1)).last == 3
        assert await events.place(breaking.db) == 2
    assert await core.all("SELECT position FROM events ORDER BY position") == [1, 2, 3, 4, 5]


async def test_positions_are_given_soon_after_the_moves_of_a_worker(core):
    sequencer = Sequencer(core.db, retention=86_400.0)
    async with another(core.url, core.encryptor) as second:
        second.lifecycle._on_events = sequencer.wake
        running = asyncio.create_task(sequencer.run())
        held = await asyncio.gather(*(second.held(State.AWAITING_PAYMENT) for _ in range(20)))
        for each in held:
            await second.advance(each, events=(told.Event(told.EventType.CHECKOUT_EXPIRED),))
        async with asyncio.timeout(10):
            while await events.waiting(core.db):  # noqa: ASYNC110 - it is in Postgres
                await asyncio.sleep(0.005)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert await core.all("SELECT position FROM events ORDER BY position") == list(range(1, 41))


async def test_events_that_a_killed_worker_left_without_a_position_get_positions_from_the_next_sequencer(
    core,
):
    sequencer = Sequencer(core.db, retention=86_400.0)
    running = asyncio.create_task(sequencer.run())
    await write(core.db, uuid7(), 1)
    async with asyncio.timeout(20):
        while await events.waiting(core.db):  # noqa: ASYNC110 - it is in Postgres
            await asyncio.sleep(0.02)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert (await events.feed(core.db, 1)).last == 1


async def test_a_sequencer_gathers_longer_lists_while_no_endpoint_exists(core, monkeypatch):
    monkeypatch.setattr(worker_sequencer, "LOOK_FOR_ENDPOINTS_EVERY", 0.0)
    sequencer = Sequencer(core.db, retention=86_400.0)
    await sequencer._now_and_then()
    assert sequencer._gather == worker_sequencer.GATHER_FOR_READERS
    made = await webhooks.add(
        core.db, core.encryptor, merchant_id=1, url="https://shop.example/hooks", description="", kinds=None,
        content="thin", secret=b"s" * 32,
    )  # fmt: skip
    await sequencer._now_and_then()
    assert sequencer._gather == worker_sequencer.GATHER
    await webhooks.delete(core.db, made.id, merchant_id=1)
    await sequencer._now_and_then()
    assert sequencer._gather == worker_sequencer.GATHER_FOR_READERS


async def test_a_sequencer_pauses_by_the_time_that_its_list_took(core, monkeypatch):
    place, seen, paused = events.place, [], asyncio.Event()

    async def slow(db: Database, **options: int):
        await asyncio.sleep(0.05)
        return await place(db, **options)

    def noted(took: float) -> float:
        seen.append(took)
        paused.set()
        return 0.0

    monkeypatch.setattr(events, "place", slow)
    monkeypatch.setattr(worker_sequencer, "pause", noted)
    await write(core.db, uuid7(), 1)
    sequencer = Sequencer(core.db, retention=86_400.0)
    sequencer.wake()
    running = asyncio.create_task(sequencer.run())
    async with asyncio.timeout(20):
        await paused.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert seen[0] >= 0.045
    assert (await events.feed(core.db, 1)).last == 1


@pytest.mark.parametrize(
    ("took", "seconds"),
    [(0.0, 0.0105), (0.002, 0.0105), (0.01, 0.05), (0.03, 0.15), (0.04, 0.2), (5.0, 0.2)],
)
def test_a_busy_machine_gets_longer_lists_up_to_a_bound(took, seconds):
    assert worker_sequencer.pause(took) == pytest.approx(seconds)


async def test_a_sequencer_goes_on_after_an_error(core, monkeypatch):
    place, failures = events.place, []

    async def failing(db: Database, **options: int):
        if not failures:
            failures.append(1)
            raise OSError
        return await place(db, **options)

    monkeypatch.setattr(events, "place", failing)
    sequencer = Sequencer(core.db, retention=86_400.0)
    await write(core.db, uuid7(), 1)
    sequencer.wake()
    running = asyncio.create_task(sequencer.run())
    async with asyncio.timeout(20):
        while await events.waiting(core.db):  # noqa: ASYNC110 - it is in Postgres
            await asyncio.sleep(0.02)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert failures


# ── What is kept ──────────────────────────────────────────────────────────────────────────────────────────


async def test_retention_takes_the_beginning_of_each_feed_and_nothing_else(core):
    second = await second_merchant(core)
    old, young = uuid7(), uuid7()
    # The third event is old and is placed after a younger event: a hole in the feed would be an event that no
    # reader sees.
    for number, (checkout, age) in enumerate(((old, 100), (old, 100), (young, 1), (old, 100)), start=1):
        await write(core.db, checkout, number, later=-age * 86_400.0)
        await events.place(core.db)
    await write(core.db, uuid7(), 1, merchant=second, later=-10 * 86_400.0)
    await events.place(core.db)
    assert await events.forget(core.db, older_than=90 * 86_400.0, most=1) == 1
    assert await events.forget(core.db, older_than=90 * 86_400.0) == 1
    assert await events.forget(core.db, older_than=90 * 86_400.0) == 0
    assert await events.feed(core.db, 1) == events.Feed(4, 2)
    assert await events.feed(core.db, second) == events.Feed(1, 0)
    assert await core.all("SELECT position FROM events WHERE merchant_id = 1 ORDER BY position") == [3, 4]
    await write(core.db, uuid7(), 1)
    await events.place(core.db)
    assert (await events.feed(core.db, 1)).last == 5, "positions go on, whatever went"


async def test_events_without_a_position_are_not_dropped(core):
    await write(core.db, uuid7(), 1, later=-100 * 86_400.0)
    assert await events.forget(core.db, older_than=86_400.0) == 0
    assert await events.place(core.db) == 1
    sequencer = Sequencer(core.db, retention=86_400.0)
    await sequencer.forget()
    assert await core.all("SELECT count(*) FROM events") == [0]

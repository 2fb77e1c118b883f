"""The batch writer: many writes in one, each with its own right result, whatever Postgres does."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DataError, IntegrityError, OperationalError, ProgrammingError

from orchestrator.store import batch
from orchestrator.store.batch import AGAIN, Batch, Unwritten
from orchestrator.store.database import Database, DatabaseAway, is_away
from tests.support.factories import Breaking, intake, lost_connection, row_held
from tests.support.factories import core as another
from tests.support.pooler import pooled

pytestmark = pytest.mark.anyio


class Slots:
    """A table of our own behind a batch: it writes for real, and notes the lists that it was given."""

    def __init__(self, db, **options):
        self.db = db
        self.table = f"slots_{uuid4().hex}"
        self.lists = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.batch = Batch(self._write, keys=lambda item: (item[0],), **options)

    async def put(self, name, value=1, **options):
        return await self.batch.put((name, value), **options)

    async def create(self):
        async with self.db.transaction() as tx:
            await tx.execute(
                text(f"CREATE TABLE {self.table} (name text PRIMARY KEY, value int CHECK (value > 0))")
            )

    async def _write(self, items):
        self.lists.append([name for name, _ in items])
        await self.gate.wait()
        async with self.db.transaction() as tx:
            for name, value in items:
                insert = (
                    f"INSERT INTO {self.table} (name, value) VALUES (:name, :value) ON CONFLICT DO NOTHING"
                )
                await tx.execute(text(insert), {"name": name, "value": value})
        return [name for name, _ in items]

    async def stored(self):
        return {row.name for row in await self.db.read(text(f"SELECT name FROM {self.table}"))}


@pytest.fixture(name="slots")
async def _slots(servers):
    made = []

    async def make(**options):
        made.append(Slots(Breaking(pooled(servers.administrator_url), pool_size=2, name="slots"), **options))
        await made[-1].create()
        return made[-1]

    yield make
    for slots in made:
        slots.gate.set()
        await slots.batch.close()
        await slots.db.close()


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.002)


async def fates(*waiters):
    """Return what became of each: its result, or the type of its error."""
    results = await asyncio.gather(*waiters, return_exceptions=True)
    return [type(result) if isinstance(result, BaseException) else result for result in results]


async def test_what_gathers_while_a_write_runs_goes_in_one_batch(slots):
    writer = await slots()
    writer.gate.clear()
    first = asyncio.create_task(writer.put("first"))
    await until(lambda: writer.lists)
    others = [asyncio.create_task(writer.put(f"n{number}")) for number in range(200)]
    await asyncio.sleep(0)
    writer.gate.set()
    await asyncio.gather(first, *others)
    assert [len(names) for names in writer.lists] == [1, 200]


async def test_an_idle_writer_waits_for_no_company(slots):
    writer = await slots()
    begun = time.monotonic()
    for number in range(20):
        await writer.put(str(number))
    assert [len(names) for names in writer.lists] == [1] * 20
    assert time.monotonic() - begun < 10.0


async def test_a_list_is_one_batch_and_each_of_its_items_has_its_own_result(slots):
    writer = await slots()
    items = [(f"n{number}", 1) for number in range(100)]
    items[41] = ("refused", -1)
    results = await writer.batch.put_all(items)
    assert writer.lists[0] == [name for name, _ in items]
    assert isinstance(results[41], Unwritten)
    assert [name for name in results if isinstance(name, str)] == [
        name for name, _ in items if name != "refused"
    ]
    assert await writer.stored() == {name for name, _ in items} - {"refused"}
    assert await writer.batch.put_all([]) == []


async def test_of_a_list_that_is_written_in_part_the_rest_is_not_known(slots):
    writer = await slots(limit=10, timeout=2.0)
    waiting = asyncio.create_task(writer.batch.put_all([(f"n{number}", 1) for number in range(20)]))
    await until(lambda: len(writer.lists) == 1)
    writer.gate.clear()
    results = await waiting
    assert results[:10] == [f"n{number}" for number in range(10)]
    assert all(isinstance(result, DatabaseAway) for result in results[10:])


async def test_a_list_that_is_cancelled_leaves_the_writer_to_others(slots):
    writer = await slots(limit=10)
    writer.gate.clear()
    given_up = asyncio.create_task(writer.batch.put_all([(f"n{number}", 1) for number in range(30)]))
    await until(lambda: writer.lists)
    given_up.cancel()
    other = asyncio.create_task(writer.put("other"))
    await asyncio.sleep(0)
    writer.gate.set()
    assert await fates(given_up, other) == [asyncio.CancelledError, "other"]
    assert [len(names) for names in writer.lists] == [10, 1]


async def test_a_batch_has_one_item_for_a_key_and_the_others_follow_in_order(slots):
    writer = await slots(limit=3)
    waiting = [writer.put(name, value) for value in (1, 2, 3) for name in "abcd"]
    assert await asyncio.gather(*waiting) == list("abcd" * 3)
    assert all(len(set(names)) == len(names) <= 3 for names in writer.lists)
    assert sorted(name for names in writer.lists for name in names) == sorted("abcd" * 3)


async def test_a_poisoned_row_among_a_hundred_fails_only_its_own_waiter(slots):
    writer = await slots()
    poison = {7: ("nul \0 character", 1), 42: ("refused by a constraint", -1), 99: ("not a number", "x")}
    items = [poison.get(number, (f"n{number}", 1)) for number in range(100)]
    results = await fates(*(writer.put(*item) for item in items))
    assert [number for number, result in enumerate(results) if result is Unwritten] == [7, 42, 99]
    assert await writer.stored() == {f"n{number}" for number in range(100)} - {"n7", "n42", "n99"}
    assert len(writer.lists) < 60


async def test_a_row_that_is_too_large_for_postgres_is_refused_and_not_tried_until_the_timeout(slots):
    writer = await slots()
    # The key goes into an index, and does not get smaller by compression.
    too_large = os.urandom(8192).hex()
    begun = time.monotonic()
    results = await fates(writer.put("before"), writer.put(too_large), writer.put("after"))
    assert results == ["before", Unwritten, "after"]
    assert time.monotonic() - begun < 10.0
    with pytest.raises(Unwritten, match="OperationalError") as error:
        await writer.put(too_large)
    cause = error.value.__cause__
    assert isinstance(cause, OperationalError)
    assert isinstance(cause.orig, psycopg.errors.ProgramLimitExceeded)
    assert not is_away(cause)


@pytest.mark.direct("a bound that the server keeps for one session, which a pooler shares")
async def test_a_database_ends_statements_that_exceed_its_timeout(servers):
    async with Database(servers.administrator_url, pool_size=1, statement_timeout=100) as db:
        with pytest.raises(OperationalError) as error:
            await db.read(text("SELECT pg_sleep(20)"))
        assert isinstance(error.value.orig, psycopg.errors.QueryCanceled)
        assert is_away(error.value)
        assert [row.one for row in await db.read(text("SELECT 1 AS one"))] == [1]


async def test_the_waiter_of_a_poisoned_row_gets_the_reason(slots):
    writer = await slots()
    with pytest.raises(Unwritten, match=r"Postgres refused this row \(IntegrityError\)") as error:
        await writer.put("x", -1)
    assert isinstance(error.value.__cause__, IntegrityError)


async def test_a_mistake_in_our_own_code_reaches_every_waiter_and_stops_nothing(slots):
    writer = await slots()
    assert await fates(writer.put("good"), writer.batch.put(("bad",)), writer.put("fine")) == [
        "good",
        Unwritten,
        "fine",
    ]
    assert await writer.put("later") == "later"


async def test_an_answer_lost_after_the_commit_is_not_written_twice(slots):
    writer = await slots()
    writer.db.lost_answers = 2
    assert await asyncio.gather(*(writer.put(f"n{number}") for number in range(10))) == [
        f"n{number}" for number in range(10)
    ]
    assert await writer.stored() == {f"n{number}" for number in range(10)}
    assert len(writer.lists) == 3


async def test_a_connection_cut_before_the_commit_is_written_again(slots):
    writer = await slots()
    writer.db.cut_before_commit = 1
    assert await asyncio.gather(*(writer.put(f"n{number}") for number in range(10))) == [
        f"n{number}" for number in range(10)
    ]
    assert await writer.stored() == {f"n{number}" for number in range(10)}
    assert len(writer.lists) == 2


async def test_out_of_reach_for_longer_than_the_timeout_is_database_away(slots):
    writer = await slots(timeout=0.3)
    writer.db.lost_answers = 1_000
    begun = time.monotonic()
    with pytest.raises(DatabaseAway, match=r"after 0\.3 s: Postgres is out of reach") as error:
        await writer.put("x")
    assert 0.25 < time.monotonic() - begun < 10.0
    assert isinstance(error.value.__cause__, OperationalError)


async def test_the_timeout_is_counted_for_each_waiter_separately(slots):
    writer = await slots(timeout=1.2)
    writer.db.lost_answers = 1_000
    early = asyncio.create_task(writer.put("early"))
    await asyncio.sleep(0.9)
    late = asyncio.create_task(writer.put("late"))
    await asyncio.wait({early})
    assert isinstance(early.exception(), DatabaseAway)
    writer.db.lost_answers = 0
    assert await late == "late"


async def test_a_server_that_hangs_in_the_middle_of_a_write_is_database_away_too(slots):
    writer = await slots(timeout=2.0)
    assert await writer.put("before") == "before"
    (row,) = await writer.db.read(text("SELECT pg_backend_pid() AS pid"))
    os.kill(row.pid, signal.SIGSTOP)
    try:
        begun = time.monotonic()
        with pytest.raises(DatabaseAway):
            await writer.put("during")
        assert time.monotonic() - begun < 15.0
    finally:
        os.kill(row.pid, signal.SIGCONT)
    assert await writer.put("after") == "after"


async def test_a_server_that_was_never_there_is_database_away():
    db = Database("postgresql://shop:x@127.0.0.1:9/none", pool_size=1)
    batch = Batch(lambda _: db.write(text("SELECT 1"), {}), keys=lambda item: (item,), timeout=0.3)
    with pytest.raises(DatabaseAway):
        await batch.put("x")
    await batch.close()
    await db.close()


async def test_every_connection_cut_at_once_loses_and_doubles_nothing(slots, servers):
    writer = await slots()
    writing = asyncio.gather(*(writer.put(f"n{number}") for number in range(300)))
    for _ in range(5):
        await asyncio.sleep(0.01)
        async with await psycopg.AsyncConnection.connect(servers.administrator_url, autocommit=True) as admin:
            await admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'slots'"
            )
    assert await writing == [f"n{number}" for number in range(300)]
    assert len(await writer.stored()) == 300


async def test_close_writes_what_is_queued(slots):
    writer = await slots()
    writer.gate.clear()
    waiting = [asyncio.create_task(writer.put(f"n{number}")) for number in range(50)]
    await until(lambda: writer.lists)
    closing = asyncio.create_task(writer.batch.close())
    await asyncio.sleep(0.02)
    assert not closing.done()
    writer.gate.set()
    await closing
    assert await asyncio.gather(*waiting) == [f"n{number}" for number in range(50)]
    assert len(await writer.stored()) == 50


async def test_closing_a_writer_that_was_never_used_is_nothing(slots):
    await (await slots()).batch.close()


async def test_a_cancelled_waiter_does_not_stop_the_others(slots):
    writer = await slots()
    writer.gate.clear()
    first = asyncio.create_task(writer.put("first"))
    await until(lambda: writer.lists)
    queued = [asyncio.create_task(writer.put(f"n{number}")) for number in range(10)]
    await asyncio.sleep(0)
    for task in (first, *queued[::2]):
        task.cancel()
    await asyncio.sleep(0)
    writer.gate.set()
    assert await asyncio.gather(*queued[1::2]) == [f"n{number}" for number in range(1, 10, 2)]
    # What was on its way has been written; what still waited was taken back.
    assert await writer.stored() == {"first", *(f"n{number}" for number in range(1, 10, 2))}


async def test_a_waiter_cancelled_while_its_row_is_refused_or_skipped_affects_no_other_waiter(slots):
    writer = await slots()
    writer.gate.clear()
    bad = asyncio.create_task(writer.put("bad", -1))
    good = asyncio.create_task(writer.put("good"))
    await until(lambda: writer.lists)
    bad.cancel()
    await asyncio.sleep(0)
    writer.gate.set()
    assert await good == "good"


async def test_the_backlog_is_bounded(slots):
    writer = await slots(backlog=5, limit=2)
    writer.gate.clear()
    waiting = [asyncio.create_task(writer.put(f"n{number}")) for number in range(50)]
    await until(lambda: writer.lists)
    await asyncio.sleep(0.05)
    assert len(writer.batch._queue) + len(writer.lists[0]) == 5
    writer.gate.set()
    assert len(await asyncio.gather(*waiting)) == 50


async def test_no_two_items_of_a_batch_have_any_of_their_keys_in_common():
    lists = []

    async def write(items):
        lists.append(list(items))
        return items

    batch = Batch(write, keys=str.split)
    asked = ["a x", "b x", "c", "a", "b", "d y", "y e", "x"]
    assert await asyncio.gather(*map(batch.put, asked)) == asked
    assert lists == [["a x", "c", "b", "d y"], ["b x", "a", "y e"], ["x"]]
    await batch.close()


async def test_what_a_write_leaves_for_later_comes_again_until_the_timeout():
    tries = []

    async def write(items):
        tries.append(list(items))
        return [AGAIN if item == "held" else item for item in items]

    batch = Batch(write, keys=lambda item: (item,), timeout=0.3)
    others = [batch.put(f"n{number}") for number in range(5)]
    results = await fates(batch.put("held"), *others)
    assert results == [DatabaseAway, *(f"n{number}" for number in range(5))]
    assert len(tries) > 3
    assert all(names == ["held"] for names in tries[2:])
    with pytest.raises(DatabaseAway, match="another transaction holds the row"):
        await batch.put("held")
    await batch.close()


async def test_a_held_row_delays_only_itself(core):
    ids = await core.checkouts(50)
    held = {claim.id: claim for claim in await core.claim(*ids)}
    stuck = ids[25]
    async with row_held(core.url, stuck):
        moves = {claim.id: asyncio.create_task(core.release(claim)) for claim in held.values()}
        late = moves.pop(stuck)
        async with asyncio.timeout(5):
            await asyncio.gather(*moves.values())
        assert not late.done()
    assert (await late).id == stuck


async def test_a_row_held_beyond_the_timeout_is_database_away_and_unmoved(core):
    async with another(core.url, core.encryptor, timeout=2.0) as second:
        held = await second.held()
        async with row_held(core.url, held.id):
            with pytest.raises(DatabaseAway, match="another transaction holds the row"):
                await second.release(held)
        assert (await second.row(held.id)).version == held.version


async def test_a_poisoned_intent_among_a_hundred_fails_alone(core):
    intakes = [intake() for _ in range(100)]
    intakes[33] = intake(order_ref="nul \0 character")
    intakes[66] = intake(amount=0)
    intakes[77] = intake(actor="half a \ud800 character")
    results = await fates(*map(core.intents.accept, intakes))
    assert [number for number, result in enumerate(results) if result is Unwritten] == [33, 66, 77]
    assert await core.all("SELECT count(*) FROM checkouts") == [97]
    assert await core.all("SELECT count(*) FROM audit_entries") == [97]


def test_an_error_that_refuses_a_row_is_distinguished_from_an_error_of_the_connection():
    cause = psycopg.Error()
    refusals = [kind("x", {}, cause) for kind in (IntegrityError, DataError, ProgrammingError)]
    assert not any(map(is_away, [*refusals, ValueError(), KeyError()]))
    assert all(map(is_away, [lost_connection(), OSError(), TimeoutError(), ConnectionResetError()]))


async def test_items_that_may_wait_are_written_with_the_first_that_waits_no_longer(slots):
    writer = await slots()
    patient = [asyncio.create_task(writer.put(name, within=60)) for name in "ab"]
    await asyncio.sleep(0.2)
    assert writer.lists == []
    assert await asyncio.gather(*patient, writer.put("c")) == ["a", "b", "c"]
    assert writer.lists == [["a", "b", "c"]]


async def test_a_single_item_waits_no_longer_than_it_may(slots):
    writer = await slots()
    assert await asyncio.gather(writer.put("a", within=0.1), writer.put("b", within=60)) == ["a", "b"]
    assert writer.lists == [["a", "b"]]


async def test_an_item_that_may_wait_less_shortens_a_wait_that_has_begun(slots):
    writer = await slots()
    patient = asyncio.create_task(writer.put("a", within=60))
    await asyncio.sleep(0.2)
    assert writer.lists == []
    async with asyncio.timeout(20):
        assert await asyncio.gather(patient, writer.put("b", within=0.1)) == ["a", "b"]
    assert writer.lists == [["a", "b"]]


async def test_enough_items_are_written_though_each_may_wait(slots):
    writer = await slots()
    await asyncio.gather(*(writer.put(f"n{number}", within=60) for number in range(batch._ENOUGH)))
    assert [len(names) for names in writer.lists] == [batch._ENOUGH]


async def test_what_a_write_leaves_is_not_held_by_an_item_that_may_wait(slots):
    writer = await slots(limit=1)
    writer.gate.clear()
    first = asyncio.create_task(writer.put("a"))
    await until(lambda: writer.lists)
    second, third = (
        asyncio.create_task(writer.put(name, within=within)) for name, within in (("b", 0), ("c", 60))
    )
    await asyncio.sleep(0)
    writer.gate.set()
    assert await asyncio.gather(first, second, third) == ["a", "b", "c"]

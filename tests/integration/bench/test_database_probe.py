"""The bench reads from Postgres what is stored for its own merchant and its own run, and nothing else."""

from __future__ import annotations

import pytest

from orchestrator.devkit.bench.database_probe import DatabaseProbe, Left, others
from orchestrator.domain.states import State, Trigger
from orchestrator.store.database import Database
from tests.support.factories import COMPLETED, payment

pytestmark = pytest.mark.anyio


async def test_what_is_left_is_what_has_not_ended_in_this_run(core):
    probe = DatabaseProbe(core.db, 1)
    await core.checkout(State.RECEIVED, order_ref="b-1-0")
    await core.checkout(State.METHODS_FETCHED, order_ref="b-1-1")
    await core.checkout(State.AWAITING_PAYMENT, order_ref="b-1-2")
    await core.checkout(State.COMPLETED, order_ref="b-1-3")
    await core.checkout(State.RECEIVED, order_ref="b-10-0")
    assert await probe.left("b-1") == Left(open=3, unready=2)
    assert await DatabaseProbe(core.db, 2).left("b-1") == Left(0, 0)


async def test_rows_hold_state_moments_money_and_what_came_twice(core):
    held = await core.held(State.AWAITING_PAYMENT, order_ref="b-1-0")
    await core.advance(
        held,
        Trigger.PAYMENT_FOUND,
        payments=(payment("1"), payment("2", role="surplus")),
        money=(13900, 100, 0),
        events=(COMPLETED,),
        due_in=60.0,
    )
    await core.checkout(State.RECEIVED, order_ref="b-1-1")
    probe = DatabaseProbe(core.db, 1)
    rows = {row.order_ref: row for row in await probe.rows("b-1")}
    done, new = rows["b-1-0"], rows["b-1-1"]
    assert (done.state, done.amount, done.reserved, done.captured, done.currency) == (
        "completed",
        13900,
        13900,
        100,
        "DKK",
    )
    assert (done.completions, done.accepted, done.surplus) == (1, 1, 1)
    assert done.offered_at is not None
    assert done.ended_at is not None
    assert done.offered_at <= done.ended_at
    assert await probe.offered_at("b-1-0") == done.offered_at
    assert (new.state, new.offered_at, new.ended_at, new.completions, new.accepted) == (
        "received",
        None,
        None,
        0,
        0,
    )
    assert await probe.offered_at("b-1-1") is None
    assert await probe.offered_at("b-1-2") is None


async def test_a_server_that_does_not_wait_for_the_disk_is_found_out(core):
    server = await DatabaseProbe(core.db, 1).server()
    assert not server.durable  # as all servers of tests
    assert server.version


async def test_a_database_in_use_is_noticed(core):
    assert await others(core.db, ours="bench-") == (0, 0)
    await core.checkout(State.AWAITING_PAYMENT)
    await core.do("INSERT INTO workers (name, kind) VALUES ('w', 'worker')")
    await core.do(
        "INSERT INTO workers (name, kind, seen_at) VALUES ('old', 'worker', clock() - interval '1 hour')"
    )
    assert await others(core.db, ours="bench-") == (1, 1)
    await core.do("UPDATE merchants SET name = 'bench-1' WHERE id = 1")
    try:
        assert (await others(core.db, ours="bench-"))[0] == 0
    finally:
        await core.do("UPDATE merchants SET name = 'default' WHERE id = 1")


async def test_a_database_without_a_schema_is_not_in_use(servers):
    async with Database(servers.administrator_url.replace("/orchestrator?", "/postgres?"), pool_size=1) as db:
        assert await others(db, ours="bench-") == (0, 0)

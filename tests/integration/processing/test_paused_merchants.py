"""While a merchant is paused its gateway is not called; nothing is lost, and later everything goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from orchestrator import explain
from orchestrator.monitoring import queries
from orchestrator.processing import processor
from orchestrator.store import checkouts, due_work, readiness, status

if TYPE_CHECKING:
    from tests.support.scene import Scene

pytestmark = pytest.mark.anyio


async def test_a_paused_merchant_waits_and_others_do_not(world: Scene, monkeypatch):
    monkeypatch.setattr(processor, "PAUSED_FOR", 0.0)
    other = await world.second_merchant()
    offered = await world.offered()
    await world.merchants.pause("default", paused=True)
    new, free = await world.accept(), await world.accept(merchant=other)
    await world.process(new, offered, free)
    assert await world.state(free) == "awaiting_payment"
    row = await world.row(new)
    assert (row.state, row.attempts, row.attention, row.last_error, row.lease) == (
        "received", 0, None, None, None,
    )  # fmt: skip
    assert len(await world.trail(new)) == 1
    await world.sql("UPDATE checkouts SET due_at = clock() - interval '1 hour', hinted = false")
    swept = await checkouts.sweep(world.db, most=100, grace=60.0)
    assert [found.id for found in swept] == [free]
    assert [found.id for found in await checkouts.due(world.db, most=100)] == []
    assert (await readiness.backlog(world.db)).overdue == 0
    # What waits on purpose is no backlog: for alerts, for the number of workers, for `orchestrator status`.
    await world.sql(
        "INSERT INTO commands (id, merchant_id, checkout_id, kind, actor, requested_at) SELECT gen_random_uuid(), merchant_id, id, 'retry', 'test', "
        "clock() - interval '1 hour' FROM checkouts WHERE id = :id",
        id=new,
    )
    found = await queries.read_waiting(world.db, 60.0)
    assert [found["oldest_due_seconds"][queue,] for queue in ("callbacks", "commands", "operations")] == [
        0,
        0,
        0,
    ]
    assert ("default",) not in found["merchant_waiting"]
    assert found["oldest_due_seconds"]["checkouts",] < 60
    shown = {one.name: one.age for one in (await status.read(world.db, grace=60.0)).queues}
    assert shown["checkouts"] < 60
    assert (await due_work.demand(world.db, grace=60.0, merchant_id=1)).waiting == 0
    await world.sql("DELETE FROM commands")
    record = await explain.gather(world.db, world.settings, new)
    said = explain.explain(record)
    assert "Its merchant is paused since" in " ".join(said.because)
    assert said.next.what.startswith("It waits until an operator resumes the merchant")
    await world.merchants.pause("default", paused=False)
    assert {found.id for found in await checkouts.due(world.db, most=100)} == {new, offered}
    await world.process(new)
    assert await world.state(new) == "awaiting_payment"

"""While a merchant is paused its gateway is not called; nothing is lost, and later everything goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from orchestrator import explain
from orchestrator.processing import processor
from orchestrator.store import checkouts, readiness

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
    record = await explain.gather(world.db, world.settings, new)
    said = explain.explain(record)
    assert "Its merchant is paused since" in " ".join(said.because)
    assert said.next.what.startswith("It waits until an operator resumes the merchant")
    await world.merchants.pause("default", paused=False)
    assert {found.id for found in await checkouts.due(world.db, most=100)} == {new, offered}
    await world.process(new)
    assert await world.state(new) == "awaiting_payment"

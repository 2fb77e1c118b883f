"""What holds when a holder dies, is too slow, is stopped, or meets an unexpected fault."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError

from orchestrator.processing import Dispatcher
from orchestrator.processing import dispatcher as dispatcher_module
from orchestrator.store.checkouts import claim, renew
from tests.support.pooler import direct
from tests.support.said import of_attention
from tests.support.scene import Scene, scene

pytestmark = pytest.mark.anyio


async def test_two_claims_of_the_same_order_process_it_once(world: Scene):
    checkout = await world.accept()
    await asyncio.gather(*(world.take(checkout) for _ in range(5)))
    assert await world.state(checkout) == "awaiting_payment"
    assert len(await world.trail(checkout)) == 5


async def test_an_answer_that_comes_after_the_lease_was_lost_is_dropped(world: Scene):
    checkout = await world.accept()
    await world.plan(checkout, delayMs={"session": 1500})
    carrying = asyncio.create_task(world.process(checkout))
    await world.until_state(checkout, "authenticated")
    await world.sql("UPDATE checkouts SET lease = :other WHERE id = :id", other=uuid4(), id=checkout)
    assert await carrying == []
    row = await world.row(checkout)
    assert (row.state, row.session_count) == ("authenticated", 0)
    assert not (await world.sql("SELECT session_id FROM sessions WHERE checkout_id = :id", id=checkout))[
        0
    ].session_id


async def test_a_wake_up_under_our_lease_is_reported_and_sets_it_due_now(world: Scene):
    checkout = await world.accept()
    await world.plan(checkout, delayMs={"payment-methods": 1500})
    carrying = asyncio.create_task(world.process(checkout))
    await world.until_state(checkout, "session_created")
    await world.call_back(checkout)
    assert await carrying == [checkout]
    assert (await world.row(checkout)).due_in.total_seconds() <= 0
    assert await world.take(checkout) == []
    assert "callback_arrived" in [entry["trigger"] for entry in await world.trail(checkout)]


async def test_stopping_gives_the_lease_back_between_two_steps(world: Scene, monkeypatch):
    checkout = await world.accept()
    await world.plan(checkout, delayMs={"session": 300})
    asked, real = asyncio.Event(), world.processor.context.gateway.open_session

    async def open_session(*arguments: Any, **options: Any) -> Any:
        asked.set()
        return await real(*arguments, **options)

    monkeypatch.setattr(world.processor.context.gateway, "open_session", open_session)
    carrying = asyncio.create_task(world.process(checkout))
    await asked.wait()
    world.processor.stop()
    await carrying
    row = await world.row(checkout)
    assert (row.state, row.lease) == ("session_created", None)
    assert row.due_in.total_seconds() <= 0
    assert await world.take(checkout) == [], "nothing new is begun"
    assert (await world.row(checkout)).claims == 0


async def test_no_step_is_begun_where_next_to_nothing_of_the_lease_is_left(
    database_url: str, gateway_url: str
):
    short = {"lease_seconds": 4.0, "gateway_total_timeout": 2.0, "gateway_read_timeout": 2.0}
    async with scene(database_url, gateway_url, **short) as world:
        checkout = await world.accept()
        await world.control("PUT", "faults", {"latencyMs": {"all": 1000}})
        # The old holder has used up some of it, and it is not renewed here.
        await world.processor.process(await claim(world.db, [checkout], lease_seconds=2.6))
        await world.control("DELETE", "faults")
        row = await world.row(checkout)
        assert row.lease is None
        assert row.state == "session_created"
        assert row.due_in.total_seconds() <= 0


async def test_a_lease_is_renewed_while_a_step_takes_longer_than_it(database_url: str, gateway_url: str):
    short = {"lease_seconds": 1.0, "gateway_total_timeout": 4.0, "gateway_read_timeout": 4.0}
    async with scene(database_url, gateway_url, **short) as world:
        checkout = await world.accept()
        await world.control("PUT", "faults", {"latencyMs": {"session": 2500}})
        dispatcher = Dispatcher(world.processor)
        try:
            assert await dispatcher.admit([checkout])
            lease = (await world.row(checkout)).lease
            await asyncio.sleep(2.0)
            await world.sql("UPDATE checkouts SET hinted = true WHERE id = :id", id=checkout)
            assert await claim(world.db, [checkout], lease_seconds=1) == [], "no other worker may claim it"
            row = await world.row(checkout)
            assert row.lease == lease
            assert row.due_in.total_seconds() > 0
            await world.until_state(checkout, "awaiting_payment")
            assert (await world.row(checkout)).version == 5, "each step was taken once"
        finally:
            await dispatcher.close()


async def test_a_lease_is_not_renewed_for_ever(database_url: str, gateway_url: str, monkeypatch):
    monkeypatch.setattr(dispatcher_module, "LONGEST_HELD", 0.2)
    short = {"lease_seconds": 1.0, "gateway_total_timeout": 6.0, "gateway_read_timeout": 6.0}
    async with scene(database_url, gateway_url, **short) as world:
        checkout = await world.accept()
        await world.control("PUT", "faults", {"latencyMs": {"session": 5000}})
        dispatcher = Dispatcher(world.processor)
        try:
            assert await dispatcher.admit([checkout])
            async with asyncio.timeout(4.5):
                while (await world.row(checkout)).due_in.total_seconds() > 0:  # noqa: ASYNC110 - in Postgres
                    await asyncio.sleep(0.05)
        finally:
            await world.control("DELETE", "faults")
            await dispatcher.close()


async def test_a_lease_that_another_worker_took_is_not_renewed_by_the_old_holder(world: Scene):
    checkout = await world.accept()
    (first,) = await claim(world.db, [checkout], lease_seconds=60)
    await world.sql(
        "UPDATE checkouts SET leased_until = clock(), due_at = clock() WHERE id = :id", id=checkout
    )
    (second,) = await claim(world.db, [checkout], lease_seconds=5)
    await renew(world.db, [first], lease_seconds=600)
    row = await world.row(checkout)
    assert row.lease == second.lease
    assert row.due_in.total_seconds() < 6
    assert first.lease_left() < 61
    await renew(world.db, [first, second], lease_seconds=30)
    assert 25 < second.lease_left() <= 30
    await renew(world.db, [second], lease_seconds=1)
    assert second.lease_left() > 25, "a renewal shortens nothing"


async def test_an_order_whose_workers_are_killed_again_and_again_needs_a_decision(world: Scene):
    checkout = await world.accept()
    await world.sql("UPDATE checkouts SET claims = 50 WHERE id = :id", id=checkout)
    await world.process(checkout)
    row = await world.row(checkout)
    assert (row.state, row.attention) == ("received", "poisoned")
    assert row.due_in.total_seconds() > 3000


async def test_an_order_whose_data_cannot_be_decrypted_keeps_a_due_time_and_raises_attention(world: Scene):
    broken, well = await world.accept(), await world.accept()
    await world.sql("UPDATE intents SET data_key = NULL WHERE checkout_id = :id", id=broken)
    await world.process(broken, well)
    row = await world.row(broken)
    assert row.attention == "step_broke"
    assert of_attention(row).startswith("Erased")
    assert (row.attempts, row.lease) == (1, None)
    assert await world.state(well) == "awaiting_payment"


async def test_an_order_that_breaks_while_its_lease_is_lost_is_left_to_the_next_holder(
    world: Scene, monkeypatch
):
    checkout = await world.accept()
    await world.sql("UPDATE intents SET data_key = NULL WHERE checkout_id = :id", id=checkout)
    asked, goes_on = asyncio.Event(), asyncio.Event()
    real = world.processor.context.gateway.authenticate

    async def authenticate(*arguments: Any, **options: Any) -> Any:
        asked.set()
        await goes_on.wait()
        return await real(*arguments, **options)

    monkeypatch.setattr(world.processor.context.gateway, "authenticate", authenticate)
    carrying = asyncio.create_task(world.process(checkout))
    async with asyncio.timeout(30):
        await asked.wait()
    await world.sql("UPDATE checkouts SET lease = :other WHERE id = :id", other=uuid4(), id=checkout)
    goes_on.set()
    assert await carrying == []
    assert (await world.row(checkout)).attention is None


async def test_postgres_going_away_in_the_middle_leaves_the_order_to_its_due_time(
    database_url: str, gateway_url: str
):
    async with scene(database_url, gateway_url, timeout=2.0) as world:
        checkout = await world.accept()
        # Long enough for Postgres to be away before the answer comes, however busy the machine is.
        await world.plan(checkout, delayMs={"session": 6000})
        carrying = asyncio.create_task(world.process(checkout))
        await world.until_state(checkout, "authenticated")
        name = database_url.partition("?")[0].rpartition("/")[2]
        with psycopg.connect(direct(database_url).replace(f"/{name}", "/postgres"), autocommit=True) as admin:
            admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,)
            )
            assert await carrying == []
            admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        await world.db.close()
        row = None
        async with asyncio.timeout(30):
            while row is None:
                # A pooler waits a quarter of a minute before it tries a server again that has refused it.
                with suppress(DBAPIError):
                    row = await world.row(checkout)
                await asyncio.sleep(0.1)
        assert (row.state, row.lease is not None) == ("authenticated", True)
        await world.sql(
            "UPDATE checkouts SET leased_until = clock(), due_at = clock() WHERE id = :id", id=checkout
        )
        await world.plan(checkout)
    # Another worker, with the usual timeout: a slow first write of the worker with the short timeout would be
    # left to its due time again.
    async with scene(database_url, gateway_url) as other:
        await other.processed_until(checkout, "awaiting_payment")


async def test_a_read_that_postgres_refuses_leaves_the_order_to_its_due_time_and_raises_no_attention(
    database_url: str, gateway_url: str
):
    async with scene(database_url, gateway_url) as world:
        checkout = await world.accept()
        # The merchants' table is locked, and the statement that reads it is cancelled as a time-out
        # would.
        with psycopg.connect(direct(database_url)) as other:
            other.execute("LOCK TABLE merchants IN ACCESS EXCLUSIVE MODE")
            carrying = asyncio.create_task(world.process(checkout))
            with psycopg.connect(direct(database_url), autocommit=True) as admin:
                cancelled = False
                async with asyncio.timeout(10):
                    while not (cancelled and carrying.done()):
                        cancelled |= bool(
                            admin.execute(
                                "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
                                "AND query LIKE '%FROM merchants%'"
                            ).fetchall()
                        )
                        await asyncio.sleep(0.02)
        assert await carrying == []
        row = await world.row(checkout)
        assert (row.attention, row.attempts, row.lease is not None) == (None, 0, True)

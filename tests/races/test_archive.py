"""Archiving beside everything else: no intake and no worker waits for it longer than its
lock timeout.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import psycopg
import pytest
from psycopg import sql
from sqlalchemy.exc import DBAPIError

from orchestrator import audit
from orchestrator.audit import archive
from orchestrator.audit.archive.lock_timeout import LOCK_TIMEOUT
from orchestrator.domain.states import State, Trigger
from orchestrator.store import checkouts
from orchestrator.store.database import Database
from tests.support.factories import arrival, core, payment
from tests.support.pooler import direct

pytestmark = pytest.mark.anyio

TIMEOUT = 5 * LOCK_TIMEOUT
"""Milliseconds that intake and movers wait for a lock in these tests before Postgres reports that they
have waited too long."""


class Watched(Database):
    """A database that counts the statements which waited too long for a lock."""

    def __init__(self, url, **options):
        super().__init__(url, **options)
        self.waited = 0

    @asynccontextmanager
    async def transaction(self, **options):
        try:
            async with super().transaction(**options) as tx:
                yield tx
        except DBAPIError as error:
            self.waited += getattr(error.orig, "sqlstate", None) == "55P03"
            raise

    async def write(self, statement, parameters):
        async with self.transaction() as tx:
            result = await tx.execute(statement, parameters)
            return result.all() if result.returns_rows else ()


@pytest.fixture(name="short_timeout_url")
def _short_timeout_url(database_url):
    """A database on which a statement that waits too long for a lock fails."""
    with psycopg.connect(direct(database_url), autocommit=True) as admin:
        name = admin.execute("SELECT current_database()").fetchone()[0]
        admin.execute(
            sql.SQL("ALTER DATABASE {} SET lock_timeout = {}").format(
                sql.Identifier(name), sql.Literal(f"{TIMEOUT}ms")
            )
        )
    return database_url


async def settle(core, order):
    (held,) = await core.claim(order)
    held = await core.advance(
        held, Trigger.PAYMENT_FOUND, payments=(payment(f"t-{order}"),), money=(13900, 0, 0)
    )
    await core.release(held, None)


@pytest.mark.slow
async def test_intake_callbacks_and_moves_go_on_during_a_run_and_wait_for_no_lock(
    short_timeout_url, encryptor, tmp_path
):
    async with (
        core(short_timeout_url, encryptor, database=Watched) as shop,
        core(short_timeout_url, encryptor) as keeper,
    ):
        old = await shop.checkouts(150)
        for order in old:
            await settle(shop, order)
        busy, processed = True, []

        async def take_orders():
            while busy:
                order = await shop.accept()
                await settle(shop, order)
                processed.append(order)

        async def call_back():
            # Late callbacks for orders that are just being archived: each is kept, whichever side of the file
            # it falls on.
            for order in old:
                await shop.callbacks.store(arrival(order, body=b"late"))

        runs = [asyncio.create_task(take_orders()) for _ in range(4)]
        late = asyncio.create_task(call_back())
        first = await archive.run(keeper.db, encryptor, tmp_path, older_than=0.0, most=20)
        await late
        busy = False
        await asyncio.gather(*runs)
        assert first.checkouts > 0
        assert processed
        assert shop.db.waited == 0
        assert (await audit.verify(shop.db, encryptor)).problems == []
        for order in old:
            (held,) = await shop.claim(order)
            assert [callback.kind for callback in held.callbacks] == ["notification"]
            await shop.release(held, None, read=(held.callbacks[0].id,))
        await archive.run(keeper.db, encryptor, tmp_path, older_than=0.0, most=20)
        assert await shop.all("SELECT DISTINCT checkout_id FROM audit_entries") == []
        assert (await audit.verify(shop.db, encryptor)).problems == []


async def test_verifying_while_a_run_is_under_way_reports_no_false_problem(
    short_timeout_url, encryptor, tmp_path
):
    async with core(short_timeout_url, encryptor) as shop, core(short_timeout_url, encryptor) as auditor:
        for order in await shop.checkouts(120):
            await settle(shop, order)
        await audit.seal(shop.db, encryptor)
        running = asyncio.create_task(archive.run(shop.db, encryptor, tmp_path, older_than=0.0, most=3))
        seen = set()
        while not running.done():
            found = await audit.verify(auditor.db, encryptor)
            assert found.problems == []
            seen.add(found.archives)
            await audit.seal(auditor.db, encryptor)
        assert (await running).archives == 40
        assert len(seen) > 1
        assert (await audit.verify(auditor.db, encryptor)).problems == []


async def test_months_are_made_and_dropped_under_traffic_and_no_statement_waits_for_more_than_a_moment(
    short_timeout_url, encryptor
):
    async with (
        core(short_timeout_url, encryptor, database=Watched) as shop,
        core(short_timeout_url, encryptor) as keeper,
    ):
        months = [month for month in await archive.months_of(keeper.db) if month.until is not None][1:]
        await keeper.do("UPDATE clock_skew SET seconds = 3000 * 86400")
        busy, taken = True, 0

        async def take_orders():
            nonlocal taken
            while busy:
                await shop.accept()
                taken += 1

        runs = [asyncio.create_task(take_orders()) for _ in range(4)]
        async with await psycopg.AsyncConnection.connect(direct(short_timeout_url)) as reader:
            # A long read of the trail: for as long as it goes on the months stay, and intake goes
            # on.
            await reader.execute("SELECT 1 FROM audit_entries LIMIT 1")
            before = taken
            assert await archive.drop_empty(keeper.db, before=months[0].until) == []
            assert taken > before
        assert await archive.drop_empty(keeper.db, before=months[2].until) == [
            month.name for month in months[:3]
        ]
        made = await archive.make_ahead(keeper.db, ahead=3)
        assert await shop.accept()
        busy = False
        await asyncio.gather(*runs)
        assert len(made) == 4
        assert shop.db.waited == 0
        assert (await audit.verify(shop.db, encryptor)).problems == []


async def test_a_wake_up_and_a_run_that_meet_on_a_checkout_lose_neither(
    short_timeout_url, encryptor, tmp_path
):
    """The wake-up was first and has not committed: its checkout stays.

    The run was first: the wake-up wakes an archived checkout.
    """
    async with core(short_timeout_url, encryptor) as new_core:
        held = await new_core.held(State.AWAITING_PAYMENT)
        held = await new_core.advance(held, Trigger.DEADLINE_PASSED)
        await new_core.release(held, None)
        async with new_core.db.transaction() as tx:
            await checkouts.wake(tx, [held.id], grace=60.0)
            assert (
                await archive.run(new_core.db, encryptor, tmp_path, older_than=0.0, most=20)
            ).checkouts == 0
        assert (await archive.run(new_core.db, encryptor, tmp_path, older_than=0.0, most=20)).checkouts == 0
        (again,) = await new_core.claim(held.id)
        await new_core.release(again, None)
        assert (await archive.run(new_core.db, encryptor, tmp_path, older_than=0.0, most=20)).checkouts == 1
        await new_core.wake(held.id)
        (again,) = await new_core.claim(held.id)
        assert (again.id, again.audit_sequence, again.token) == (held.id, 6, None)

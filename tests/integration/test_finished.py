"""Finished checkouts cost nothing to those under way: no statement of the hot path looks at them, however many there are."""

from __future__ import annotations

import json
from uuid import uuid4

import pytest
from psycopg import AsyncCursor
from psycopg.rows import tuple_row
from sqlalchemy import text

from orchestrator import inbox, lifecycle
from orchestrator.states import State, Trigger
from tests.factories import arrival, core, intake, payment
from tests.finished import fill

pytestmark = pytest.mark.anyio

FINISHED = 20_000
OPEN, BUSY = 8, 2000
ROWS, PAGES = 60 * OPEN, 250 * OPEN
"""What a statement about eight checkouts may read, of 20,000 finished ones with 200,000 rows in 10,000 pages and more."""


@pytest.fixture(name="crowded")
async def _crowded(database_url, vault):
    fill(database_url, FINISHED)
    # Others under way, of whom the planner's statistics know nothing yet, as after a quiet night.
    async with core(database_url, vault) as one:
        await one.checkouts(BUSY)
        yield one


def scanned(plan):
    """Return the rows that the nodes of a plan have read, those that they threw away included."""
    rows = 0
    if "Relation Name" in plan or plan["Node Type"] == "Bitmap Index Scan":
        thrown = plan.get("Rows Removed by Filter", 0) + plan.get("Rows Removed by Index Recheck", 0)
        rows = (plan["Actual Rows"] + thrown) * plan["Actual Loops"]
    return rows + sum(scanned(part) for part in plan.get("Plans", ()))


class Explained:
    """Explains each statement in the place and moment in which it runs, and undoes that; at the driver, which all of them pass."""

    def __init__(self):
        self.reads = {}
        self._execute = AsyncCursor.execute

    def __enter__(self):
        async def execute(cursor, query, parameters=None, **options):
            if query.split(maxsplit=1)[0].upper() in {"WITH", "SELECT", "INSERT", "UPDATE", "DELETE"}:
                await self._explain(cursor.connection, query, parameters)
            return await self._execute(cursor, query, parameters, **options)

        AsyncCursor.execute = execute
        return self

    def __exit__(self, *_):
        AsyncCursor.execute = self._execute

    async def _explain(self, connection, statement, parameters):
        async with connection.cursor(row_factory=tuple_row) as aside:
            # A statement that is its own transaction gets one for the explanation.
            alone = connection.autocommit
            await self._execute(aside, "BEGIN" if alone else "SAVEPOINT explained")
            await self._execute(aside, f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters)
            (found,) = await aside.fetchone()
            await self._execute(aside, "ROLLBACK" if alone else "ROLLBACK TO explained")
        (told,) = found if isinstance(found, list) else json.loads(found)
        plan = told["Plan"]
        pages = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
        self.reads.setdefault(" ".join(statement.split()[:40]), []).append((scanned(plan), pages))

    def check(self, *, at_least):
        assert len(self.reads) >= at_least, list(self.reads)
        for statement, reads in self.reads.items():
            for rows, pages in reads:
                assert rows <= ROWS, (rows, pages, statement)
                assert pages <= PAGES, (rows, pages, statement)


async def test_the_bound_is_one_that_a_walk_over_finished_checkouts_would_break(crowded):
    with Explained() as explained:
        async with crowded.db.transaction() as tx:
            await tx.execute(text("SELECT id FROM checkouts WHERE last_error = 'x'"))
            await tx.execute(text("SELECT checkout_id FROM audit_entries WHERE action = 'x'"))
    with pytest.raises(AssertionError):
        explained.check(at_least=1)
    assert [rows > ROWS for ((rows, _),) in explained.reads.values()] == [True, True]
    assert all(pages > 300 for ((_, pages),) in explained.reads.values())


async def test_no_statement_under_way_looks_at_finished_checkouts(crowded, vault):
    with Explained() as explained:
        ids = []
        for number in range(OPEN):
            asked = intake(idempotency_key=f"k-{number}")
            ids.append((await crowded.intents.accept(asked)).id)
            assert not (
                await crowded.intents.accept(intake(order_ref=asked.order_ref, idempotency_key=f"l-{number}"))
            ).fresh
        for one in ids:
            assert (await crowded.callbacks.take(arrival(one))).rings
            assert await inbox.request(crowded.db, one, merchant_id=1, kind="reconcile", actor="x", grace=1.0)
        claimed = await crowded.claim(*ids)
        assert [(len(one.letters), len(one.commands)) for one in claimed] == [(1, 1)] * OPEN
        for one in claimed:
            (letter,), (command,) = one.letters, one.commands
            held = await crowded.advance(one, Trigger.AUTHENTICATED, token=b"t", token_lifetime=60.0)
            held = await crowded.advance(
                held, Trigger.PAYMENT_FOUND, payments=(payment(f"T-{one.id}"),), money=(13900, 0, 0), read=(letter.id,),
                done=((command.id, "done"),), events=(lifecycle.Event("checkout.completed", {}),), alarm=0.0,
            )  # fmt: skip
            assert held.state is State.COMPLETED
        await crowded.ring(*ids)
        assert await lifecycle.claim_waiting(crowded.db, {1: 5}, lease_seconds=60.0, grace=60.0)
        strays = inbox.Strays(crowded.db, vault, crowded.callbacks, grace=60.0)
        told = lifecycle.Stray(
            merchant_id=1, order_ref=f"N-{uuid4().hex[:8]}", transaction_id="s", currency="DKK", amount=1, named=None,
            correlation_id="c",
        )  # fmt: skip
        stray = inbox.Unaddressed(
            told=told, grade="signed", network="inside", content_type="", headers={}, source=None, body=b""
        )
        assert (await strays.take(stray)).adopted
        await strays.close()
        async with crowded.db.transaction() as tx:
            assert len((await tx.execute(lifecycle.alarms._DUE, {"most": 100, "crowded": []})).all()) >= 1
        assert len(await lifecycle.sweep(crowded.db, most=100, grace=60.0)) >= 1
    explained.check(at_least=15)


@pytest.mark.parametrize(
    "query",
    [
        "SELECT id FROM checkouts WHERE attention IS NOT NULL ORDER BY id DESC LIMIT 10",
        "SELECT checkout_id FROM events WHERE position IS NULL AND created_at > now() ORDER BY created_at LIMIT 10",
        "SELECT id FROM deliveries WHERE due_at <= now() ORDER BY due_at LIMIT 10",
    ],
)
async def test_what_waits_for_somebody_is_found_without_what_does_not(crowded, query):
    with Explained() as explained:
        async with crowded.db.transaction() as tx:
            await tx.execute(text(query))
    explained.check(at_least=1)

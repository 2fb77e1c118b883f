"""Finished checkouts cost nothing to those under way: no statement of the hot path looks at them, however many there are."""

from __future__ import annotations

import json
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import event, text

from orchestrator import inbox, lifecycle
from orchestrator.states import State, Trigger
from tests.factories import arrival, core, intake, payment

pytestmark = pytest.mark.anyio

FINISHED = 20_000
FILL = (
    """
    CREATE TEMP TABLE finished AS
    SELECT n, CAST(lpad(to_hex(CAST(extract(epoch FROM now()) * 1000 AS int8) - 30000000000 + n * CAST(1000000 AS int8)), 12, '0') || '7'
                   || substr(md5(CAST(n AS text)), 1, 3) || '8' || substr(md5(CAST(n AS text)), 4, 15) AS uuid) AS id
      FROM generate_series(1, %(n)s) n
    """,
    """
    INSERT INTO checkouts (id, merchant_id, order_ref, state, deadline, ended_at, currency, amount, audit_sequence, audit_head,
                           event_sequence, correlation_id, wake)
    SELECT id, 1, 'F-' || n, (ARRAY['completed', 'expired', 'cancelled', 'failed'])[n %% 4 + 1], now(), now(), 'DKK', 13900, 6, '',
           2, 'c', 1 FROM finished
    """,
    "INSERT INTO intents SELECT id, 'f', repeat('b', 500)::bytea, 'k' FROM finished",
    "INSERT INTO sessions SELECT id, 't', now(), 's', '[]' FROM finished",
    """
    INSERT INTO audit_entries
    SELECT id, s, now() - interval '100 days', 'checkout:moved', repeat('e', 300), 'k', 'm' FROM finished, generate_series(1, 6) s
    """,
    "INSERT INTO events SELECT id, s, 1, 'checkout.ready', '{}', 'c', now() FROM finished, generate_series(1, 2) s",
    """
    INSERT INTO callbacks (id, checkout_id, kind, grade, content_type, headers, body, digest, handled_at)
    SELECT gen_random_uuid(), id, 'notification', 'signed', '', '{}', repeat('b', 300)::bytea, 'd', now() FROM finished
    """,
    """
    INSERT INTO commands (id, merchant_id, checkout_id, kind, actor, handled_at)
    SELECT gen_random_uuid(), 1, id, 'reconcile', 'x', now() FROM finished
    """,
    """
    INSERT INTO payments (merchant_id, transaction_id, checkout_id, order_ref, role, binding, status, reading, currency, reserved,
                          captured, refunded)
    SELECT 1, 'F-' || n, id, 'F-' || n, 'accepted', 'bound', 'captured', 'captured', 'DKK', 13900, 13900, 0 FROM finished
    """,
    """
    INSERT INTO money_operations (id, merchant_id, checkout_id, transaction_id, kind, amount, currency, state,
                                  reconciliation_identifier, cause, actor)
    SELECT gen_random_uuid(), 1, id, 'F-' || n, 'capture', 13900, 'DKK', 'succeeded', 'F-' || n, 'asked', 'x' FROM finished
    """,
    "INSERT INTO idempotency_keys SELECT 1, 'F-' || n, 'f', id FROM finished",
)
TABLES = "checkouts, intents, sessions, audit_entries, events, callbacks, commands, payments, money_operations, idempotency_keys"
OPEN = 8
ROWS, PAGES = 60 * OPEN, 250 * OPEN
"""What a statement about eight checkouts may read, of 20,000 finished ones with 200,000 rows in 10,000 pages and more."""


@pytest.fixture(name="crowded")
async def _crowded(database_url, vault):
    with psycopg.connect(database_url, autocommit=True) as admin:
        for statement in FILL:
            admin.execute(statement, {"n": FINISHED})
        admin.execute(f"VACUUM ANALYZE {TABLES}")
    async with core(database_url, vault) as one:
        yield one


def scanned(plan):
    """Return the rows that the nodes of a plan have read, those that they threw away included."""
    rows = 0
    if "Relation Name" in plan or plan["Node Type"] == "Bitmap Index Scan":
        thrown = plan.get("Rows Removed by Filter", 0) + plan.get("Rows Removed by Index Recheck", 0)
        rows = (plan["Actual Rows"] + thrown) * plan["Actual Loops"]
    return rows + sum(scanned(part) for part in plan.get("Plans", ()))


class Explained:
    """Explains each statement of the core in the place and moment in which it runs, and undoes that."""

    def __init__(self, db):
        self.reads = {}
        self._engine = db._engine.sync_engine

    def __enter__(self):
        event.listen(self._engine, "before_cursor_execute", self._explain)
        return self

    def __exit__(self, *_):
        event.remove(self._engine, "before_cursor_execute", self._explain)

    def _explain(self, connection, cursor, statement, parameters, context, executemany):  # noqa: ARG002, PLR0917 - SQLAlchemy's
        words = statement.split()
        if words[0].upper() not in {"WITH", "SELECT", "INSERT", "UPDATE", "DELETE"}:
            return
        cursor.execute("SAVEPOINT explained")
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters)
        (found,) = cursor.fetchone()
        cursor.execute("ROLLBACK TO explained")
        (told,) = found if isinstance(found, list) else json.loads(found)
        plan = told["Plan"]
        pages = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
        self.reads.setdefault(" ".join(words[:40]), []).append((scanned(plan), pages))

    def check(self, *, at_least):
        assert len(self.reads) >= at_least, list(self.reads)
        for statement, reads in self.reads.items():
            for rows, pages in reads:
                assert rows <= ROWS, (rows, pages, statement)
                assert pages <= PAGES, (rows, pages, statement)


async def test_the_bound_is_one_that_a_walk_over_finished_checkouts_would_break(crowded):
    with Explained(crowded.db) as explained:
        async with crowded.db.transaction() as tx:
            await tx.execute(text("SELECT id FROM checkouts WHERE last_error = 'x'"))
            await tx.execute(text("SELECT checkout_id FROM audit_entries WHERE action = 'x'"))
    with pytest.raises(AssertionError):
        explained.check(at_least=1)
    assert [rows > ROWS for ((rows, _),) in explained.reads.values()] == [True, True]
    assert all(pages > 300 for ((_, pages),) in explained.reads.values())


async def test_no_statement_under_way_looks_at_finished_checkouts(crowded, vault):
    with Explained(crowded.db) as explained:
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
            assert len((await tx.execute(lifecycle.alarms._DUE, {"most": 100})).all()) >= 1
        assert len(await lifecycle.sweep(crowded.db, most=100, grace=60.0)) >= 1
    explained.check(at_least=14)


@pytest.mark.parametrize(
    "query",
    [
        "SELECT id FROM checkouts WHERE attention IS NOT NULL ORDER BY id DESC LIMIT 10",
        "SELECT checkout_id FROM events WHERE position IS NULL AND created_at > now() ORDER BY created_at LIMIT 10",
        "SELECT id FROM deliveries WHERE due_at <= now() ORDER BY due_at LIMIT 10",
    ],
)
async def test_what_waits_for_somebody_is_found_without_what_does_not(crowded, query):
    with Explained(crowded.db) as explained:
        async with crowded.db.transaction() as tx:
            await tx.execute(text(query))
    explained.check(at_least=1)

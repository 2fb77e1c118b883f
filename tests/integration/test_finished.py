"""Finished checkouts cost open checkouts nothing: no statement of the hot path reads them, however many there
are.
"""

from __future__ import annotations

import asyncio
import json
from uuid import uuid4

import pytest
from psycopg import AsyncCursor
from psycopg.rows import tuple_row
from sqlalchemy import text

from orchestrator.domain import ids, last_error
from orchestrator.domain.command_result import ResultCode, result
from orchestrator.domain.payment_status import PaymentStatus
from orchestrator.domain.states import ENDED, State, Trigger
from orchestrator.store import checkouts, events, inbox, status
from orchestrator.store.console import actions, approvals, lists, overview, runs, sessions
from tests.conftest import copied
from tests.support.factories import COMPLETED, arrival, core, intake, payment
from tests.support.finished import fill

pytestmark = pytest.mark.anyio

FINISHED = 20_000
OPEN, BUSY = 8, 2000
ROWS, PAGES = 60 * OPEN, 250 * OPEN
"""What a statement about eight checkouts may read, of 20,000 finished checkouts with 200,000 rows in 10,000
pages and more.
"""
AT_ALL = 250 * OPEN
"""Rows that all statements together may read of a table for eight checkouts."""
NEW_MERCHANT = 2


@pytest.fixture(scope="module", name="filled")
def _filled(servers, template):
    """The name of a database with nothing but finished checkouts, to be copied: making it takes
    far longer.
    """
    with copied(servers, template) as url:
        fill(url, FINISHED)
        yield url.partition("?")[0].rpartition("/")[2]


@pytest.fixture
def database_url(servers, template):
    """A copy that no other test has used: plans and counts are compared."""
    with copied(servers, template) as url:
        yield url


@pytest.fixture(name="overloaded")
async def _overloaded(servers, filled, encryptor):
    # Other open checkouts, which are not in the planner's statistics yet, as after a quiet night.
    with copied(servers, filled) as url:
        async with core(url, encryptor) as new_core:
            await new_core.checkouts(BUSY)
            yield new_core


@pytest.fixture(name="burst")
async def _burst(servers, filled, encryptor):
    """A merchant's first two thousand orders, beside thousands of another: it is not in the statistics."""
    with copied(servers, filled) as url:
        async with core(url, encryptor) as new_core:
            assert await new_core.all("INSERT INTO merchants (name) VALUES ('new') RETURNING id") == [
                NEW_MERCHANT
            ]
            await asyncio.gather(*(new_core.accept(merchant_id=NEW_MERCHANT) for _ in range(BUSY)))
            yield new_core


@pytest.fixture(name="fresh")
async def _fresh(database_url, encryptor):
    """A new installation: no statistics were gathered, its tables are still small, and no order has
    come to its end.
    """
    async with core(database_url, encryptor) as new_core:
        await asyncio.gather(
            *(new_core.callbacks.store(arrival(each)) for each in await new_core.checkouts(BUSY))
        )
        yield new_core


def scanned(plan):
    """Return the rows that the nodes of a plan have read, those that they threw away included."""
    rows = 0
    if "Relation Name" in plan or plan["Node Type"] == "Bitmap Index Scan":
        thrown = plan.get("Rows Removed by Filter", 0) + plan.get("Rows Removed by Index Recheck", 0)
        rows = (plan["Actual Rows"] + thrown) * plan["Actual Loops"]
    return rows + sum(scanned(part) for part in plan.get("Plans", ()))


class Explained:
    """Explains each statement in the place and moment in which it runs, and undoes that; at the driver, which
    all of them pass.
    """

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
            # A statement that is its own transaction gets a transaction for the explanation.
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
        greedy = [
            (rows, pages, statement)
            for statement, reads in self.reads.items()
            for rows, pages in reads
            if rows > ROWS or pages > PAGES
        ]
        assert greedy == []


async def test_a_scan_of_finished_checkouts_would_break_the_bound(overloaded):
    with Explained() as explained:
        async with overloaded.db.transaction() as tx:
            await tx.execute(text("SELECT id FROM checkouts WHERE last_error = 'x'"))
            await tx.execute(text("SELECT checkout_id FROM audit_entries WHERE action = 'x'"))
    with pytest.raises(AssertionError):
        explained.check(at_least=1)
    assert [rows > ROWS for ((rows, _),) in explained.reads.values()] == [True, True]
    assert all(pages > 300 for ((_, pages),) in explained.reads.values())


async def process(place, encryptor, merchant=1):
    """Take eight checkouts through their whole lifecycle."""
    ids = []
    for _ in range(OPEN):
        asked = intake(idempotency_key=f"k-{uuid4()}", merchant_id=merchant)
        ids.append((await place.intents.accept(asked)).id)
        assert not (
            await place.intents.accept(
                intake(order_ref=asked.order_ref, idempotency_key=f"l-{uuid4()}", merchant_id=merchant)
            )
        ).fresh
    for checkout in ids:
        assert (await place.callbacks.store(arrival(checkout))).wakes
        assert await inbox.request(
            place.db, place.encryptor, checkout, merchant_id=merchant, kind="reconcile", actor="x", grace=1.0
        )
    claimed = await place.claim(*ids)
    assert [(len(held.callbacks), len(held.commands)) for held in claimed] == [(1, 1)] * OPEN
    for claim in claimed:
        (callback,), (command,) = claim.callbacks, claim.commands
        held = await place.advance(claim, Trigger.AUTHENTICATED, token=b"t", token_lifetime=60.0)
        held = await place.advance(
            held,
            Trigger.PAYMENT_FOUND,
            payments=(payment(f"T-{claim.id}"),),
            money=(13900, 0, 0),
            read=(callback.id,),
            done=((command.id, result(ResultCode.DONE_DECIDED)),),
            events=(COMPLETED,),
            due_in=0.0,
        )
        assert held.state is State.COMPLETED
    await place.wake(*ids)
    assert await checkouts.claim_waiting(place.db, {merchant: 5}, lease_seconds=60.0, grace=60.0)
    unmatched = inbox.UnmatchedCallbacks(place.db, encryptor, place.callbacks, grace=60.0)
    unexpected = checkouts.UnmatchedPayment(
        merchant_id=merchant,
        order_ref=f"N-{uuid4().hex[:8]}",
        transaction_id="s",
        currency="DKK",
        amount=1,
        named=None,
        correlation_id="c",
    )
    callback = inbox.MerchantCallback(
        payment=unexpected,
        grade="signed",
        network="inside",
        content_type="",
        headers={},
        source=None,
        body=b"",
    )
    assert (await unmatched.store(callback)).created
    await unmatched.close()
    async with place.db.transaction() as tx:
        assert len((await tx.execute(checkouts.due_times._DUE, {"most": 100, "overloaded": []})).all()) >= 1
    assert len(await checkouts.sweep(place.db, most=100, grace=60.0)) >= 1
    await publish(place, merchant)


async def publish(place, merchant):
    """Number the events that were written, and read them as a client of the feed does that was at its end
    before.
    """
    before = await events.feed(place.db, merchant)
    assert await events.waiting(place.db)
    assert await events.place(place.db) == OPEN
    assert not await events.waiting(place.db)
    feed = await events.feed(place.db, merchant)
    asked = {"after": before.last, "until": feed.last, "limit": 100}
    assert len((await events.page(place.db, merchant, **asked)).events) == OPEN
    assert not (await events.page(place.db, merchant, **asked, kinds={"checkout.ready"})).events
    (found,) = (await events.since(place.db, {merchant: before.last}, most=100)).values()
    assert len(found) == OPEN
    own = await events.page(place.db, merchant, **asked, checkout=found[0].checkout_id)
    assert len(own.events) == 1
    assert await events.forget(place.db, older_than=86_400.0) == 0


async def test_no_statement_of_open_checkouts_reads_finished_checkouts(overloaded, encryptor):
    with Explained() as explained:
        await process(overloaded, encryptor)
    explained.check(at_least=15)


async def test_no_statement_reads_all_of_a_merchant_that_the_statistics_do_not_know(burst, encryptor):
    with Explained() as explained:
        await process(burst, encryptor, NEW_MERCHANT)
    explained.check(at_least=15)


async def test_no_statement_reads_a_table_of_a_new_installation(fresh, encryptor):
    with Explained() as explained:
        await process(fresh, encryptor)
    explained.check(at_least=15)


async def test_a_plan_that_was_made_for_empty_tables_reads_no_more_when_they_have_filled(
    database_url, encryptor
):
    """A connection keeps its plans until statistics are gathered; a busy first minute of an installation has
    none.
    """
    async with core(database_url, encryptor, pool=1) as new_core:
        for _ in range(3):  # Postgres keeps to one plan after some runs of a statement
            await process(new_core, encryptor)
        await asyncio.gather(
            *(new_core.callbacks.store(arrival(each)) for each in await new_core.checkouts(BUSY))
        )
        before = await reads(new_core)
        await process(new_core, encryptor)
        most = {table: rows - before[table] for table, rows in (await reads(new_core)).items()}
    assert {table: rows for table, rows in most.items() if rows > AT_ALL} == {}
    assert sum(most.values()) > OPEN  # they are counted


async def reads(place):
    """Return the rows that were read of each table, and of its indexes, since it was made, as Postgres
    counts.
    """
    await place.all("SELECT pg_stat_force_next_flush()")
    return dict(
        await place.all("""
            SELECT relname, (seq_tup_read + (SELECT coalesce(sum(idx_tup_read), 0) FROM pg_stat_user_indexes i
                                              WHERE i.relid = t.relid))::int
              FROM pg_stat_user_tables t WHERE relname = ANY(ARRAY['checkouts', 'callbacks', 'commands', 'intents', 'sessions'])
        """)
    )


async def test_checkouts_with_attention_are_found_without_reading_the_others(overloaded):
    queries = (
        "SELECT id FROM checkouts WHERE attention IS NOT NULL ORDER BY id DESC LIMIT 10",
        "SELECT checkout_id FROM events WHERE position IS NULL AND created_at > now() ORDER BY created_at LIMIT 10",
        "SELECT checkout_id FROM delivery_streams WHERE endpoint_id = '019aa000-0000-7000-8000-000000000001' AND due_at <= now() ORDER BY due_at LIMIT 10",
    )
    with Explained() as explained:
        for query in queries:
            async with overloaded.db.transaction() as tx:
                await tx.execute(text(query))
    explained.check(at_least=len(queries))


async def test_one_screen_about_the_installation_reads_no_finished_checkouts(overloaded):
    with Explained() as explained:
        found = await status.read(overloaded.db, grace=5.0)
    assert sum(waiting.number for waiting in found.open) == BUSY
    # What is open may be read; 20,000 finished checkouts, with what belongs to them, may not.
    assert len(explained.reads) >= 6
    most = {statement: rows for statement, reads in explained.reads.items() for rows, _ in reads}
    assert {statement: rows for statement, rows in most.items() if rows > 2 * BUSY} == {}


async def test_no_statement_of_the_console_reads_more_than_ten_thousand_rows(overloaded, encryptor):
    """Whatever a person filters by: values that no checkout has, and values that nearly all have."""
    db, held = overloaded.db, overview.Held()
    checkout = (await overloaded.checkouts(1))[0]
    filters = (
        lists.Filter(),
        lists.Filter(states=frozenset({State.AUTHENTICATED})),
        lists.Filter(merchant_id=1, states=frozenset({State.CALLBACK_RECEIVED})),
        lists.Filter(merchant_id=1, status=PaymentStatus.REFUNDED, currency="DKK", least=1),
        lists.Filter(attention=True),
        lists.Filter(errors=last_error.WAITS_FOR_GATEWAY),
        lists.Filter(merchant_id=1, states=frozenset(State) - ENDED, errors=last_error.WAITS_FOR_GATEWAY),
        lists.Filter(states=frozenset({State.COMPLETED}), since=ids.FIRST, until=ids.LAST),
    )
    with Explained() as explained:
        for _ in range(3):
            await overview.read(db, held)
        for chosen in filters:
            found = await lists.checkouts(db, chosen, before=None, limit=50)
            if found.after is not None:
                await lists.checkouts(db, chosen, before=found.after, limit=50)
            await lists.chosen(db.read, chosen, most=lists.WINDOW)
        assert await lists.named(db, "F-17")
        assert await lists.named(db, str(checkout))
        await lists.decisions(db, after=ids.FIRST, limit=50)
        await lists.endpoints(db, limit=50)
        await lists.rejected(db, before=None, limit=50)
        await lists.seals(db, limit=20)
        await lists.of_email(db, encryptor, "ada@shop.example", limit=100)
        await lists.feed(db, 1, kind="checkout.completed", before=None, limit=50)
        await lists.callbacks(db, checkout, limit=100)
        await lists.events(db, checkout, limit=100)
        await lists.chain(db, checkout, limit=1000)
        await actions.page(db, encryptor, limit=50)
        await approvals.latest(db, encryptor)
        await approvals.waiting(db, encryptor)
        await overview.marks(db, {**overview.NOTHING_FOLLOWED, "decisions": True, "approvals": True})
        await runs.page(db, encryptor, before=ids.LAST, limit=50)
    most = {name: max(rows for rows, _ in reads) for name, reads in explained.reads.items()}
    assert len(most) >= 20
    assert {name: rows for name, rows in most.items() if rows > 2 * lists.WINDOW} == {}


MANY = (
    "INSERT INTO merchants (name) SELECT 'm-' || n FROM generate_series(1, 300) n",
    """INSERT INTO checkouts (id, merchant_id, order_ref, state, deadline, due_at, currency, amount, audit_sequence, audit_head,
                              event_sequence, correlation_id, last_error)
       SELECT gen_random_uuid(), m.id, m.name || '-' || n, 'authenticated', clock(), clock() - interval '1 hour', 'DKK', 100, 1, '', 0, 'c',
              'unknown' FROM merchants m, generate_series(1, 60) n WHERE m.name LIKE 'm-%'""",
    """INSERT INTO checkouts (id, merchant_id, order_ref, state, deadline, ended_at, currency, amount, audit_sequence, audit_head,
                              event_sequence, correlation_id, attention, attention_since)
       SELECT gen_random_uuid(), 1, 'ask-' || n, 'completed', clock(), clock(), 'DKK', 100, 1, '', 0, 'c', 'credited', clock()
         FROM generate_series(1, 3000) n""",
    """INSERT INTO webhook_endpoints (id, merchant_id, url, description, secret)
       SELECT gen_random_uuid(), id, 'https://shop.example/' || name, '', 's' FROM merchants WHERE name LIKE 'm-%'""",
    """INSERT INTO delivery_streams (endpoint_id, checkout_id, purpose, next_sequence, last_sequence, due_at)
       SELECT e.id, c.id, 'event', 1, 1, clock() - interval '1 hour' FROM webhook_endpoints e
         JOIN checkouts c ON c.merchant_id = e.merchant_id""",
    """INSERT INTO money_operations (id, merchant_id, checkout_id, transaction_id, kind, amount, currency, state,
                                     reconciliation_identifier, cause, actor)
       SELECT gen_random_uuid(), merchant_id, id, 'T-' || id, 'capture', 100, 'DKK', 'submitted', CAST(id AS text), 'asked', 'a'
         FROM checkouts WHERE attention = 'credited'""",
    """INSERT INTO console_sessions (id, kind, actor, scopes, mac, expires_at)
       SELECT sha256(CAST(CAST(n AS text) AS bytea)), 'session', 'user-' || n % 500, 'console:view', '', clock() + interval '1 hour'
         FROM generate_series(1, 20000) n""",
)
"""Many merchants with much open work, which the planner's statistics do not know."""


async def test_no_statement_over_many_merchants_reads_more_than_ten_thousand_rows(overloaded, encryptor):
    db, held = overloaded.db, overview.Held()
    for statement in MANY:
        await db.write(text(statement), {})
    with Explained() as explained:
        for _ in range(2):
            found = await overview.read(db, held)
        await overview.marks(db, {**overview.NOTHING_FOLLOWED, "decisions": True, "approvals": True})
        await lists.endpoints(db, limit=50)
        for everyone, name in ((True, "user-7"), (False, "user-7")):
            own, edge = await sessions.listed(
                db, encryptor, actor=name, after=b"", everyone=everyone, limit=50
            )
            assert (own, edge is None) == ([], not everyone)  # no row of them was written by the console
    full = {name for name, more in found.found["full"].items() if more}
    assert full >= {"open", "attention", "moving", "due", "unsent"}
    most = {name: max(rows for rows, _ in reads) for name, reads in explained.reads.items()}
    assert {name: rows for name, rows in most.items() if rows > 2 * lists.WINDOW} == {}

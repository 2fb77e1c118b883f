"""What the schema itself refuses; the clock; ids."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import psycopg
import pytest
from alembic.script import ScriptDirectory
from psycopg import errors

from orchestrator.domain.ids import uuid7
from orchestrator.domain.states import CLOSED, State
from orchestrator.store import schema
from orchestrator.store.database import Database
from tests.support.pooler import direct

pytestmark = pytest.mark.anyio


@pytest.fixture(name="superuser")
async def _superuser(core):
    async with await psycopg.AsyncConnection.connect(core.url, autocommit=True) as connection:
        yield connection


REFUSED = {
    "a state that does not exist": "state = 'paid'",
    "an amount of nothing": "amount = 0",
    "negative money": "refunded = -1",
    "a lease without an end": "lease = gen_random_uuid()",
    "an end without a lease": "leased_until = clock()",
    "no due time for what has not ended": "due_at = NULL",
}


@pytest.mark.parametrize("change", tuple(REFUSED.values()), ids=tuple(REFUSED))
async def test_a_checkout_cannot_have(core, superuser, change):
    checkout = await core.checkout(State.AWAITING_PAYMENT)
    with pytest.raises(errors.CheckViolation):
        await superuser.execute(f"UPDATE checkouts SET {change} WHERE id = %s", [checkout])


async def test_an_order_number_has_one_live_checkout_and_any_number_of_closed_checkouts(core, superuser):
    for number in range(3):
        checkout = await core.checkout(State.FAILED, order_ref="T-once", fingerprint=bytes([number]) * 32)
    with pytest.raises(errors.UniqueViolation):
        await superuser.execute("UPDATE checkouts SET state = 'completed'")
    await superuser.execute("UPDATE checkouts SET state = 'completed' WHERE id = %s", [checkout])


async def test_the_index_of_live_orders_knows_the_closed_states(core):
    (index,) = await core.all("SELECT indexdef FROM pg_indexes WHERE indexname = 'uq_checkouts_live_order'")
    assert all(f"'{state}'" in index for state in CLOSED)
    assert not any(f"'{state}'" in index for state in {*State} - CLOSED)


async def test_callbacks_payments_and_the_clock_have_closed_vocabularies(core, superuser):
    for statement, error in (
        ("INSERT INTO clock_skew (id) VALUES (false)", errors.CheckViolation),
        ("INSERT INTO clock_skew DEFAULT VALUES", errors.UniqueViolation),
        (
            "INSERT INTO callbacks (id, kind, grade, body, digest) VALUES (gen_random_uuid(), 'gossip', '', '', '')",
            errors.CheckViolation,
        ),
        (
            "INSERT INTO payments (merchant_id, transaction_id, order_ref, role, binding, status, meaning, currency, reserved, captured, refunded) VALUES (1, 't', '', 'thief', '', '', '', '', 0, 0, 0)",
            errors.CheckViolation,
        ),
    ):
        with pytest.raises(error):
            await superuser.execute(statement)


async def test_the_sweeper_reads_its_own_index_and_settled_checkouts_are_not_in_it(core, superuser):
    await superuser.execute("SET enable_seqscan = off")
    cursor = await superuser.execute(
        "EXPLAIN SELECT id FROM checkouts WHERE merchant_id = 1 AND due_at <= (SELECT clock()) ORDER BY due_at LIMIT 10"
    )
    assert "ix_checkouts_due" in "".join(line for (line,) in await cursor.fetchall())


async def test_no_statistics_are_gathered_of_a_growing_table_that_is_all_but_empty(core):
    """They would have plans read the whole table until the next statistics, however many rows come
    meanwhile.
    """
    rows = await core.all("""
        SELECT relname FROM pg_class WHERE 'autovacuum_analyze_threshold=2000' = ANY(reloptions) ORDER BY relname
    """)
    assert rows == [
        "callbacks",
        "checkouts",
        "commands",
        "intents",
        "payments",
        "sessions",
    ]


async def test_the_clock_runs_ahead_by_its_skew(core):
    for seconds in (0, 86400, 40 * 86400):
        await core.do("UPDATE clock_skew SET seconds = :seconds", seconds=seconds)
        (ahead,) = await core.all("SELECT extract(epoch FROM clock() - statement_timestamp())::int")
        assert ahead == seconds


async def test_due_times_leases_and_deadlines_live_by_the_clock(core):
    held = await core.held(lease=60.0)
    await core.do("UPDATE clock_skew SET seconds = 120")
    row = await core.row(held.id)
    assert row.is_due
    (again,) = await core.claim(held.id)
    assert again.lease != held.lease
    assert 115 < (again.claimed_at - held.claimed_at).total_seconds() < 180


async def test_the_database_says_which_schema_it_has(core, servers):
    assert await schema.current(core.db) == schema.wanted()
    async with Database(servers.administrator_url, pool_size=1) as bare:
        assert await schema.current(bare) is None


async def test_processes_go_on_with_a_newer_schema_that_says_that_it_serves_them(core, monkeypatch):
    url, ours = direct(core.url), schema.wanted()
    assert ours in schema._known()

    def revision(number: str) -> None:
        with schema.connect(url) as connection:
            connection.execute("UPDATE alembic_version SET version_num = %s", [number])

    try:
        # As the newer version's `migrate` does it: it knows a revision that only adds.
        monkeypatch.setattr(schema, "served", lambda: [ours])
        schema._note_served(url, "head")
        revision("9999")
        assert await schema.current(core.db) == ours
        # An earlier version's `migrate` leaves it as it is.
        monkeypatch.setattr(schema, "served", list)
        schema._note_served(url, "head")
        assert await schema.current(core.db) == ours
        revision(ours)
        schema._note_served(url, "head")
        revision("9999")
        assert await schema.current(core.db) == "9999"
        assert "deploy the newer version" in str(schema.difference("9999"))
    finally:
        revision(ours)


def test_a_schema_serves_the_versions_before_migrations_that_only_add(monkeypatch):
    adds, changes = SimpleNamespace(SERVES_EARLIER=True), SimpleNamespace()
    walked = [
        SimpleNamespace(module=module, down_revision=before)
        for module, before in ((adds, "0023"), (adds, "0022"), (changes, "0021"), (adds, "0020"))
    ]
    monkeypatch.setattr(ScriptDirectory, "walk_revisions", lambda _: iter(walked))
    assert schema.served() == ["0023", "0022"]


async def test_ids_sort_by_the_time_they_were_made_and_are_of_version_7():
    ids = []
    for _ in range(20):
        ids.append(uuid7())
        await asyncio.sleep(0.002)
    assert ids == sorted(ids)
    assert {(checkout_id.version, checkout_id.variant) for checkout_id in ids} == {
        (7, "specified in RFC 4122")
    }
    assert len({uuid7() for _ in range(1000)}) == 1000

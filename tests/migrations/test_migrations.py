"""Migrations: from nothing to the schema of the code and back, on every supported Postgres."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import psycopg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from psycopg import errors
from sqlalchemy import CheckConstraint, create_engine, pool
from sqlalchemy.dialects import postgresql

from orchestrator import audit
from orchestrator.domain.command_result import ResultCode, result
from orchestrator.domain.operations import give_back
from orchestrator.domain.states import State, Trigger
from orchestrator.store import checkouts, events, inbox, schema
from orchestrator.store.database import Database
from orchestrator.store.merchants import Merchants
from orchestrator.store.tables import PARTITION, metadata
from tests.conftest import make_settings
from tests.support.cloud_events import documents
from tests.support.factories import COMPLETED, arrival, core, intake, payment

LEFT = """
    SELECT relname FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = 'public'
    UNION ALL
    SELECT proname FROM pg_proc JOIN pg_namespace n ON n.oid = pronamespace WHERE nspname = 'public' ORDER BY 1
"""


def names(url):
    with psycopg.connect(url) as connection:
        return {name for (name,) in connection.execute(LEFT)}


def test_up_from_nothing_down_to_nothing_and_up_again(url):
    schema.migrate(url)
    whole = names(url)
    assert {*metadata.tables, "clock", "refuse_change"} <= whole
    schema.migrate(url)
    assert names(url) == whole
    command.downgrade(schema._config(url), "base")
    assert names(url) == {"alembic_version", "alembic_version_pkc"}
    schema.migrate(url)
    assert names(url) == whole


def test_the_migrations_lead_to_exactly_the_tables_of_the_code(url):
    schema.migrate(url)
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(url), poolclass=pool.NullPool
    )
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_type": True,
                "compare_server_default": True,
                "include_name": lambda name, kind, _: kind != "table" or not PARTITION.fullmatch(name),
            },
        )
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_check_constraints_and_triggers_are_those_of_the_code(url):
    """Alembic does not compare these."""
    schema.migrate(url)
    quoting = postgresql.dialect().identifier_preparer
    wanted = {
        quoting.format_constraint(constraint)
        for table in metadata.tables.values()
        for constraint in table.constraints
        if isinstance(constraint, CheckConstraint)
    }
    with psycopg.connect(url) as connection:
        found = {
            name for (name,) in connection.execute("SELECT conname FROM pg_constraint WHERE contype = 'c'")
        }
        found = {name for name in found if name.startswith("ck_")}
        triggers = {
            name for (name,) in connection.execute("SELECT tgname FROM pg_trigger WHERE NOT tgisinternal")
        }
    assert found == wanted
    assert triggers == {
        "audit_entries_append_only",
        "audit_entries_leave_when_archived",
        "audit_seals_append_only",
        "console_actions_append_only",
        "archives_append_only",
        "archived_heads_append_only",
        "merchant_changes_append_only",
    }


@pytest.mark.parametrize("url", ["embedded"], indirect=True)
def test_endpoints_of_the_second_kind_go_with_their_columns_and_webhooks_stay(url):
    schema.migrate(url, to="0019")
    with psycopg.connect(url, autocommit=True) as admin:
        add = (
            "INSERT INTO webhook_endpoints (id, merchant_id, url, secret{0}) "
            "VALUES (gen_random_uuid(), (SELECT min(id) FROM merchants), 'u', ''{1}) RETURNING id"
        )
        admin.execute("INSERT INTO merchants (name) SELECT 'one' WHERE NOT EXISTS (SELECT FROM merchants)")
        ((kept,),) = admin.execute(add.format("", "")).fetchall()
        schema.migrate(url)
        ((task,),) = admin.execute(add.format(", kind, task, queue", ", 'celery', 't', 'q'")).fetchall()
        for wrong in (", 'celery', 't', NULL", ", 'webhook', 't', 'q'", ", 'sqs', NULL, NULL"):
            with pytest.raises(errors.CheckViolation):
                admin.execute(add.format(", kind, task, queue", wrong))
        admin.execute(
            "INSERT INTO delivery_streams (endpoint_id, checkout_id, next_sequence, last_sequence, due_at) "
            "SELECT id, gen_random_uuid(), 1, 1, now() FROM unnest(CAST(%s AS uuid[])) AS e(id)",
            [[kept, task]],
        )
        found = "SELECT id FROM webhook_endpoints"
        assert admin.execute(f"{found} WHERE kind = 'webhook'").fetchall() == [(kept,)]
        command.downgrade(schema._config(url), "0019")
        assert admin.execute(found).fetchall() == [(kept,)]
        assert admin.execute("SELECT endpoint_id FROM delivery_streams").fetchall() == [(kept,)]


@pytest.mark.parametrize("url", ["embedded"], indirect=True)
def test_two_migrations_started_at_once_both_succeed(url):
    code = "import sys; from orchestrator.store.schema import migrate; migrate(sys.argv[1])"
    running = [subprocess.Popen([sys.executable, "-c", code, url], stderr=subprocess.PIPE) for _ in range(2)]
    said = [process.communicate(timeout=60)[1].decode() for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    assert {*metadata.tables} <= names(url)


@pytest.mark.parametrize("url", ["embedded"], indirect=True)
def test_a_migration_gives_up_on_a_busy_table_instead_of_blocking_all_other_statements(url):
    schema.migrate(url)
    with psycopg.connect(url) as busy:
        busy.execute("SELECT 1 FROM idempotency_keys")
        with pytest.raises(Exception, match="lock timeout") as error:
            command.downgrade(schema._config(url), "base")
    assert isinstance(error.value.__cause__, errors.LockNotAvailable)
    schema.migrate(url)
    assert {*metadata.tables} <= names(url)


@pytest.mark.parametrize("url", ["embedded"], indirect=True)
def test_an_index_that_was_interrupted_is_built_again(url):
    schema.migrate(url, to="0004")
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute("CREATE INDEX ix_checkouts_listing ON checkouts (id)")
        admin.execute(
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ix_checkouts_listing'::regclass"
        )
        schema.migrate(url)
        found = "SELECT indexname, indexdef FROM pg_indexes WHERE indexname IN ('ix_checkouts_listing', 'ix_checkouts_merchant')"
        ((name, definition),) = admin.execute(found).fetchall()
        assert name == "ix_checkouts_listing"
        assert definition.endswith("(merchant_id, id) WHERE (amount > 0)")
        command.downgrade(schema._config(url), "0004")
        assert [name for name, _ in admin.execute(found)] == ["ix_checkouts_merchant"]


@pytest.mark.anyio
async def test_every_statement_of_the_core_runs_on_this_postgres(url, encryptor):
    await asyncio.to_thread(schema.migrate, url)
    async with Database(url, pool_size=1) as db:
        assert await schema.current(db) == schema.wanted()
    async with core(url, encryptor) as new_core:
        asked = intake(idempotency_key="k")
        accepted = await new_core.intents.accept(asked)
        assert (
            await new_core.intents.accept(intake(order_ref=asked.order_ref, idempotency_key="l"))
        ).id == accepted.id
        assert (await new_core.callbacks.store(arrival(accepted.id))).wakes
        assert await inbox.request(
            new_core.db, new_core.encryptor, accepted.id, merchant_id=1, kind="cancel", actor="x", grace=1.0
        )
        (held,) = await new_core.claim(accepted.id)
        assert (len(held.callbacks), len(held.commands)) == (1, 1)
        held = await new_core.advance(
            held,
            Trigger.PAYMENT_FOUND,
            payments=(payment("t"),),
            events=(COMPLETED,),
            read=(held.callbacks[0].id,),
            done=((held.commands[0].id, result(ResultCode.REFUSED_CANCELLING)),),
            token=b"t",
            token_lifetime=1.0,
            money=(13900, 0, 0),
            due_in=0.0,
        )
        assert held.state is State.COMPLETED
        assert [due.id for due in await checkouts.due(new_core.db, most=5)] == [held.id]
        assert [due.id for due in await checkouts.sweep(new_core.db, most=5, grace=1.0)] == [held.id]
        assert await events.place(new_core.db) == 1
        assert len((await events.page(new_core.db, 1, after=0, until=9, limit=9)).events) == 1
        assert (
            len((await events.page(new_core.db, 1, after=0, until=9, limit=9, checkout=held.id)).events) == 1
        )
        assert list(await events.since(new_core.db, {1: 0}, most=9)) == [1]
        assert len(await events.history(new_core.db, held.id, limit=9)) == 1
        assert await events.forget(new_core.db, older_than=86_400.0) == 0
        assert await events.all_feeds(new_core.db) == {1: events.Feed(1, 0)}
        assert await audit.seal(new_core.db, encryptor) == 1
        found = await audit.verify(new_core.db, encryptor)
        assert (found.checkouts, found.entries, found.seals, found.problems) == (1, 2, 1, [])
        assert len([line async for line in audit.export(new_core.db)]) == 3
        await new_core.do("UPDATE clock_skew SET seconds = 86400")
        (ahead,) = await new_core.all("SELECT extract(epoch FROM clock() - statement_timestamp())::int")
        assert ahead == 86400


@pytest.mark.anyio
@pytest.mark.parametrize("url", ["embedded"], indirect=True)
async def test_what_is_open_is_signed_and_passwords_are_bound_when_the_keys_are_there(url, encryptor):
    keys = make_settings().secret_keys
    await asyncio.to_thread(schema.migrate, url)
    async with core(url, encryptor) as new_core:
        merchants = Merchants(new_core.db, encryptor, make_settings())
        await merchants.add(
            "second",
            gateway_url="https://shop.example.com",
            merchant_api_url=None,
            username="theirs",
            password="hidden",
            callback_secrets=("a secret",),
        )
        await merchants.set_policies("default", {"surplus": "return", "lookups_per_minute": 7})
        held = await new_core.held(State.AWAITING_PAYMENT)
        back = give_back(payment("t-1"), actor="client:shop", reason="surplus")
        held = await new_core.advance(held, payments=(payment("t-1"),), operations=(back,))
        await new_core.release(held)
        arguments = {"amount": 100, "expiresIn": 90.0, "transactionId": "é"}
        await inbox.request(
            new_core.db,
            encryptor,
            held.id,
            merchant_id=1,
            kind="capture",
            actor="client:shop",
            arguments=arguments,
            grace=1.0,
        )
        older = schema._config(url)
        older.attributes["secret_keys"] = keys
        await asyncio.to_thread(command.downgrade, older, "0008")
        sealed = await new_core.all("SELECT password FROM merchants WHERE name = 'second'")
        assert encryptor.decrypt(bytes(sealed[0]), purpose="merchant/second/password") == b"hidden"
        with pytest.raises(schema.NoDatabase, match="ORCHESTRATOR_SECRET_KEYS is not set"):
            await asyncio.to_thread(schema.migrate, url)
        await asyncio.to_thread(schema.migrate, url, keys=keys)
        read = Merchants(new_core.db, encryptor, make_settings())
        assert (await read.named("second")).account.password == "hidden"
        assert (await read.named("default")).policies.surplus == "return"
        await new_core.do(
            "INSERT INTO commands (id, merchant_id, checkout_id, kind, actor) SELECT gen_random_uuid(), 1, id, 'release', 'x' FROM checkouts"
        )
        (claimed,) = await new_core.claim(held.id)
        holds = [checkouts.command_holds(encryptor, claimed.id, 1, asked) for asked in claimed.commands]
        assert holds == [True, False], "what came afterwards is not ours"
        assert checkouts.operation_holds(encryptor, claimed.id, 1, claimed.operation)
        await new_core.do(
            "UPDATE merchants SET gateway_url = 'https://thief.example.com' WHERE name = 'second'"
        )
        assert await Merchants(new_core.db, encryptor, make_settings()).named("second") is None


# As schema 0010 has them, and what they are afterwards.
OLDER = (
    ("checkout.ready", {"methods": 3}, "checkout.ready", {"paymentMethods": 3}),
    ("checkout.declined", {}, "checkout.attempt_declined", {"transactionIds": [], "reason": None}),
    ("checkout.completed", {"transactionId": "7", "currency": "DKK", "amount": 13900, "reserved": 13900, "captured": 0,
                            "refunded": 0, "late": False},
     "checkout.completed", {"transactionIds": ["7"], "late": False, "policy": None, "surcharge": None}),
    ("checkout.completed", {"transactionId": "7", "transactionIds": ["7", "8"], "late": True, "policy": "ask", "surcharge": 250},
     "checkout.completed", {"transactionIds": ["7", "8"], "late": True, "policy": "ask",
                            "surcharge": {"value": 2.5, "currency": "DKK"}}),
    ("checkout.attention", {"reason": "late_payment: the money came late"}, "checkout.attention", {"attention": "late_payment"}),
    ("checkout.captured", {"operationId": "019b0000-0000-7000-8000-000000000001", "transactionId": "7", "amount": 100,
                           "currency": "DKK", "cause": "asked", "captured": 100, "refunded": 0},
     "payment.captured", {"transactionId": "7", "change": {"value": 1.0, "currency": "DKK"}, "cause": "asked",
                          "operationId": "019b0000-0000-7000-8000-000000000001", "role": "accepted"}),
    ("checkout.operation_rejected", {"operationId": None, "commandId": None, "kind": "refund", "reason": "nothing is left"},
     "payment.operation_rejected", {"operation": "refund", "operationId": None, "commandId": None, "transactionId": None}),
    ("checkout.money", {"reserved": 13900, "captured": 13900, "refunded": 0, "chargedBack": 0}, "payment.captured",
     {"change": {"value": 0.0, "currency": "DKK"}, "cause": "gateway"}),
    ("checkout.charged_back", {"chargedBack": 500, "before": 2000, "currency": "DKK"}, "payment.chargeback",
     {"change": {"value": 15.0, "currency": "DKK"}, "reversal": True}),
    ("checkout.surplus", {"transactionIds": ["9"]}, "payment.surplus", {"transactionIds": ["9"]}),
    ("checkout.failed", {"reason": "gateway_refused: 400 no"}, "checkout.failed", {"code": "gateway_refused"}),
    ("checkout.reopened", {}, "checkout.reopened", {}),
)  # fmt: skip


@pytest.mark.anyio
@pytest.mark.parametrize("url", ["embedded"], indirect=True)
async def test_events_of_an_earlier_version_are_in_the_feed_as_documents_of_this_version(url, encryptor):
    await asyncio.to_thread(schema.migrate, url)
    async with core(url, encryptor) as new_core:
        held = await new_core.held()
        await asyncio.to_thread(command.downgrade, schema._config(url), "0010")
        for number, (kind, payload, _, _) in enumerate(OLDER, start=1):
            told = {"checkoutId": str(held.id), "orderId": held.order_ref, "state": "completed", **payload}
            await new_core.do(
                "INSERT INTO events (checkout_id, sequence, merchant_id, kind, payload, correlation_id) "
                "VALUES (:id, :number, 1, :kind, CAST(:payload AS jsonb), 'c')",
                id=held.id,
                number=number,
                kind=kind,
                payload=json.dumps(told),
            )
        await asyncio.to_thread(schema.migrate, url)
        assert await events.place(new_core.db) == len(OLDER)
        page = await events.page(new_core.db, 1, after=0, until=len(OLDER), limit=100)
        for row, (_, payload, kind, facts) in zip(page.events, OLDER, strict=True):
            full = documents(row)["full"]
            assert full["type"] == kind
            assert facts.items() <= full["data"].items(), kind
            assert full["data"]["details"] == ({"reason": payload["reason"]} if "reason" in payload else {})
            assert (full["data"]["orderId"], full["data"]["amount"]) == (
                held.order_ref,
                {"value": 139.0, "currency": "DKK"},
            )

"""An upgrade over migration 0011, from rows that the version before it wrote in the middle of its work."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic import command
from psycopg.rows import namedtuple_row
from structlog.testing import capture_logs

from orchestrator import audit
from orchestrator.domain import attention, command_result, last_error, sentences
from orchestrator.domain.attention import IRREGULAR, PROBLEMS, RETURNABLE, AttentionCode
from orchestrator.domain.command_result import ResultCode
from orchestrator.domain.last_error import ErrorCode
from orchestrator.explain import explain
from orchestrator.explain.record import gather
from orchestrator.store import events, schema
from orchestrator.store.inbox import command_requests
from tests.conftest import make_settings
from tests.migrations.before_0011 import SETTINGS, SLOW, ends, finish, gateway, load
from tests.support.scene import scene

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("url", ["embedded"], indirect=True)]

KEYS = make_settings().secret_keys
DATA = Path(__file__).parent / "data"
EVENTS = {
    "checkout.declined": "checkout.attempt_declined",
    "checkout.captured": "payment.captured",
    "checkout.refunded": "payment.refunded",
    "checkout.released": "payment.released",
    "checkout.charged_back": "payment.chargeback",
    "checkout.surplus": "payment.surplus",
    "checkout.operation_rejected": "payment.operation_rejected",
}
"""What the events of the version before are called since migration 0012; `checkout.money` is one of `MOVED`.
"""
MOVED = {
    "payment.captured",
    "payment.refunded",
    "payment.released",
    "payment.reservation_raised",
    "payment.chargeback",
}
TOLD_SINCE = {"checkout.attention", "checkout.attention_resolved", "checkout.attempt_declined"}
REWORDED = {ErrorCode.UNKNOWN_ORDER: "a payment came for an order number that nobody asked for"}
CHANGED = ("checkouts", "payments", "merchants", "money_operations", "commands")
CODES = {
    "charged-back": "charged_back", "credentials-refused": "gateway_credentials", "gateway-failing": "gateway_failing",
    "late-payment": "late_payment", "late-payment-resolve-unread": "late_payment", "lookup-at-limit": "lookup_at_limit",
    "order-number-used-up": "order_number_used_up", "over-capture": "over_capture",
    "over-refund": "over_refund", "payment-gone": "payment_gone", "payment-mismatch": "payment_mismatch",
    "payment-released": "payment_released", "poisoned": "poisoned",
    "step-broke": "step_broke", "surplus-payment": "surplus_payment", "unbound-payment": "unbound_payment",
    "unbound-payment-of-another": "unbound_payment", "unclear-payment": "unclear_payment", "unknown-order": "unknown_order",
}  # fmt: skip
"""The code that each attention becomes, by the name of its checkout."""


def said_before(row: Any) -> str:
    """Return the result of a command as the version before said it."""
    result = command_result.stored(row.result, row.result_details)
    if result is None:
        return ""
    if result.code is ResultCode.ACCEPTED and not result.facts:
        return "accepted"
    kind = "refused" if result.refused else "done" if result.code in command_result.DONE else "accepted"
    return f"{kind}: {sentences.of(result)}"


def loaded(url: str) -> Any:
    """Fill a database with the rows of the version before, and bring it to the present schema."""
    schema.migrate(url, to="0010")
    saved = load(url, DATA)
    schema.migrate(url, keys=KEYS)
    return saved


async def test_every_checkout_comes_to_the_end_that_the_version_before_would_have_brought_it_to(url):
    saved = await asyncio.to_thread(loaded, url)
    expected = json.loads((DATA / "before_0011_ends.json").read_text())
    with gateway(saved) as (gateway_url, _):
        async with scene(url, gateway_url, **SETTINGS) as world:
            world.orders = saved.orders
            states = {row.state for row in await world.sql("SELECT DISTINCT state FROM checkouts")}
            assert len(states) == 10
            assert (await audit.verify(world.db, world.encryptor)).problems == []
            with capture_logs():
                await finish(world)
            found = await ends(world, saved.names, said_before)
            for name, end in expected.items():
                # Events have other names since 0012, and some facts have a name that had none.
                before, told = set(end.pop("events")), set(found[name].pop("events"))
                assert {EVENTS.get(kind, kind) for kind in before - {"checkout.money"}} <= told, name
                assert told & MOVED or "checkout.money" not in before, name
                assert told - {EVENTS.get(kind, kind) for kind in before} <= MOVED | TOLD_SINCE, name
            assert found == expected
            verified = await audit.verify(world.db, world.encryptor)
            assert (verified.checkouts, verified.problems) == (len(expected), [])
            while await events.place(world.db):
                pass
            rows = await world.sql(
                "SELECT count(*) AS all, max(position) AS last FROM events WHERE merchant_id = 1"
            )
            assert rows[0].all == rows[0].last


async def test_stored_words_of_the_version_before_are_understood(url):
    """Policies under their MAC, the codes of open circuits, and the word for unmatched payments in entries
    that are never changed.
    """
    saved = await asyncio.to_thread(loaded, url)
    with gateway(saved) as (gateway_url, _):
        async with scene(url, gateway_url, **SETTINGS) as world:
            slow = (await world.merchants.named(SLOW)).policies
            assert (slow.late, slow.lookups_per_minute) == ("keep", 1)
            default = (await world.merchants.named("default")).policies
            assert (default.surcharge, default.lookups_per_minute) == ("keep", 60_000)
            (row,) = await world.sql("SELECT count(*) AS waiting FROM checkouts WHERE slot_reserved")
            assert row.waiting >= 2
            (operation,) = await world.operations(saved.names["operation-requested"])
            assert operation.last_error == "circuit_open"

            for name, checkout in saved.names.items():
                record = await gather(world.db, world.settings, checkout)
                said = explain(record)
                if name in {"circuit-open-2", "circuit-open-3"}:
                    assert record.last_error.code is ErrorCode.CIRCUIT_OPEN
                    assert "Calls to the gateway are paused" in " ".join(said.because)
                assert record.from_payment == name.startswith("unknown-order")
            unknown = saved.names["unknown-order"]
            (entry, *_) = await world.trail(unknown)
            assert entry["evidence"]["stray"] is True
            view = await command_requests.checkout_view(world.db, unknown)
            assert view.from_payment


async def test_every_sentence_of_the_version_before_becomes_a_code_that_says_the_same(url):
    def told() -> Any:
        schema.migrate(url, to="0010")
        saved = load(url, DATA)
        names = {checkout: name for name, checkout in saved.names.items()}
        schema.migrate(url, to="0011")
        with psycopg.connect(url, row_factory=namedtuple_row) as db:
            before = {
                column: {
                    row.id: row.said
                    for row in db.execute(
                        f"SELECT id, {column} AS said FROM {table} WHERE {column} IS NOT NULL"
                    )
                }
                for table, column in (
                    ("checkouts", "attention"),
                    ("checkouts", "last_error"),
                    ("commands", "result"),
                )
            }
            before["operations"] = {
                row.id: row.last_error
                for row in db.execute(
                    "SELECT id, last_error FROM money_operations WHERE last_error IS NOT NULL"
                )
            }
        schema.migrate(url, keys=KEYS)
        with psycopg.connect(url, row_factory=namedtuple_row) as db:
            after = {
                table: {row.id: row for row in db.execute(f"SELECT * FROM {table}")}
                for table in ("checkouts", "commands", "money_operations")
            }
        return names, before, after

    names, before, after = await asyncio.to_thread(told)
    codes = {}
    for checkout, said in before["attention"].items():
        row = after["checkouts"][checkout]
        found = attention.stored(row.attention, row.attention_details)
        if found.code is AttentionCode.GATEWAY_FAILING:
            # It had the code of the error in it.
            assert said.replace("last unknown: ", "last ") == f"{found.code}: {sentences.of(found)}"
        else:
            assert said == f"{found.code}: {sentences.of(found)}"
        assert "text" not in found.facts
        codes[names[checkout]] = row.attention
        about_payments = {
            *PROBLEMS,
            *IRREGULAR,
            *RETURNABLE,
            AttentionCode.PAYMENT_GONE,
            AttentionCode.RESERVATION_LAPSES,
        }
        assert bool(found.payments) == (
            found.code
            in about_payments
            | {AttentionCode.CHARGED_BACK, AttentionCode.PAYMENT_RELEASED, AttentionCode.OPERATION_UNCLEAR}
        ), found
    assert {name: code for name, code in codes.items() if name in CODES} == CODES
    assert len(set(codes.values())) >= 17
    for checkout, said in before["last_error"].items():
        row = after["checkouts"][checkout]
        found = last_error.stored(row.last_error, row.last_error_details)
        assert found.code is not ErrorCode.OTHER, said
        assert said.endswith(REWORDED.get(found.code, sentences.of(found))), (said, found)
    for operation, said in before["operations"].items():
        row = after["money_operations"][operation]
        found = last_error.stored(row.last_error, row.last_error_details)
        assert found.code is not ErrorCode.OTHER, said
        assert said.endswith(sentences.of(found)), (said, found)
    for command_id, said in before["result"].items():
        assert said_before(after["commands"][command_id]) == said
    assert all(len(values) >= 3 for values in before.values()), before


async def test_unknown_words_are_kept_as_they_are(url):
    def told() -> list[Any]:
        schema.migrate(url, to="0010")
        load(url, DATA)
        with psycopg.connect(url, autocommit=True) as db:
            db.execute(
                "UPDATE checkouts SET attention = 'something else', last_error = 'late_payment: in other words' WHERE state = 'completed'"
            )
            db.execute(
                "UPDATE checkouts SET attention = 'late_payment: in other words', last_error = 'odd' WHERE state = 'failed'"
            )
            db.execute("UPDATE commands SET result = 'done: and dusted' WHERE result IS NOT NULL")
        schema.migrate(url, keys=KEYS)
        with psycopg.connect(url, row_factory=namedtuple_row) as db:
            return [
                *db.execute(
                    "SELECT DISTINCT state, attention, attention_details -> 'facts' AS facts, last_error, last_error_details AS error "
                    "FROM checkouts WHERE state IN ('completed', 'failed') ORDER BY state"
                ).fetchall(),
                *db.execute(
                    "SELECT DISTINCT result, result_details FROM commands WHERE result IS NOT NULL"
                ).fetchall(),
            ]

    completed, failed, result = await asyncio.to_thread(told)
    assert (completed.attention, completed.facts) == ("other", {"text": "something else"})
    assert completed.last_error == "needs_decision"
    assert sentences.of(last_error.stored(completed.last_error, completed.error)) == "in other words"
    assert (failed.attention, failed.facts) == ("late_payment", {"text": "in other words"})
    assert (failed.last_error, failed.error) == ("other", {"text": "odd"})
    assert (result.result, result.result_details) == ("other", {"text": "done: and dusted"})


async def test_the_way_back_gives_every_row_its_earlier_words_again(url):
    def rows() -> list[Any]:
        with psycopg.connect(url) as db:
            return [
                db.execute(f"SELECT to_jsonb(t) FROM {table} t ORDER BY 1").fetchall()
                for table in (*CHANGED, "look_budgets")
            ]

    schema.migrate(url, to="0010")
    load(url, DATA)
    before = rows()
    schema.migrate(url, keys=KEYS)
    older = schema._config(url)
    older.attributes["secret_keys"] = KEYS
    command.downgrade(older, "0010")
    for table, was, found in zip((*CHANGED, "look_budgets"), before, rows(), strict=True):
        assert found == was, table
    schema.migrate(url, keys=KEYS)

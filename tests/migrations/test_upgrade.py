"""An upgrade over migration 0011, from rows that the version before it wrote in the middle of its work."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic import command
from structlog.testing import capture_logs

from orchestrator import audit
from orchestrator.explain import explain
from orchestrator.explain.record import gather
from orchestrator.store import schema
from orchestrator.store.inbox import command_requests
from tests.migrations.before_0011 import SETTINGS, SLOW, ends, finish, gateway, load
from tests.support.scene import scene

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("url", ["embedded"], indirect=True)]

DATA = Path(__file__).parent / "data"
RENAMED = ("checkouts", "payments", "merchants", "money_operations")


def loaded(url: str) -> Any:
    """Fill a database with the rows of the version before, and bring it to the present schema."""
    schema.migrate(url, to="0010")
    saved = load(url, DATA)
    schema.migrate(url)
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
            assert await ends(world, saved.names) == expected
            found = await audit.verify(world.db, world.encryptor)
            assert (found.checkouts, found.problems) == (len(expected), [])


async def test_stored_words_of_the_version_before_are_understood(url):
    """Policies under their MAC, the codes of open circuits, and the word for unmatched payments in entries that are never changed."""
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
            assert operation.last_error.startswith("circuit_open: ")

            for name, checkout in saved.names.items():
                record = await gather(world.db, world.settings, checkout)
                said = explain(record)
                if name in {"circuit-open-2", "circuit-open-3"}:
                    assert record.last_error.startswith("circuit_open: ")
                    assert "its circuit is open" in " ".join(said.because)
                assert record.from_payment == name.startswith("unknown-order")
            unknown = saved.names["unknown-order"]
            (entry, *_) = await world.trail(unknown)
            assert entry["evidence"]["stray"] is True
            view = await command_requests.checkout_view(world.db, unknown)
            assert view.from_payment


async def test_the_way_back_gives_every_row_its_earlier_words_again(url):
    def rows() -> list[Any]:
        with psycopg.connect(url) as db:
            return [
                db.execute(f"SELECT to_jsonb(t) FROM {table} t ORDER BY 1").fetchall()
                for table in (*RENAMED, "look_budgets")
            ]

    schema.migrate(url, to="0010")
    load(url, DATA)
    before = rows()
    schema.migrate(url)
    command.downgrade(schema._config(url), "0010")
    assert rows() == before
    schema.migrate(url)

"""The circuit of a gateway that does not work is opened: no order fails of it before its deadline, and no
money is moved twice.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from orchestrator import explain
from orchestrator.gateway.limits import circuit_breaker
from orchestrator.gateway.outcomes import Done
from orchestrator.store.heartbeats import Heart
from tests.support.scene import Scene, scene

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from uuid import UUID

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def watchful(database_url: str, gateway_url: str, **changes: object) -> AsyncIterator[Scene]:
    """Open the circuit of a gateway after two failures."""
    async with scene(database_url, gateway_url, breaker_failures=2, **changes) as world:
        try:
            yield world
        finally:
            await world.control("DELETE", "faults")


async def breaks(world: Scene, *endpoints: str) -> None:
    await world.control("PUT", "faults", {endpoint: {"count": 1000, "status": 503} for endpoint in endpoints})


async def circuits_open(world: Scene) -> None:
    """Have two orders fail, so that the circuit of the gateway is opened."""
    await breaks(world, "authenticate")
    await world.process(await world.accept(), await world.accept())


async def test_while_a_circuit_is_open_no_attempt_is_counted(database_url: str, gateway_url: str):
    async with watchful(database_url, gateway_url) as world:
        await circuits_open(world)
        checkouts = [await world.accept() for _ in range(5)]
        await world.process(*checkouts)
        for checkout in checkouts:
            row = await world.row(checkout)
            assert (row.state, row.attempts, row.attention, row.lease) == ("received", 0, None, None)
            assert row.last_error == "circuit_open"
            assert row.due_in.total_seconds() > 0
            assert len(await world.trail(checkout)) == 1, "nothing has happened to it"
        tried = await world.sql("SELECT 1 FROM checkouts WHERE attempts > 0")
        assert len(tried) == 2


async def test_when_the_gateway_is_back_everything_goes_on(database_url: str, gateway_url: str, monkeypatch):
    monkeypatch.setattr(circuit_breaker, "FIRST_PAUSE", 0.1)
    async with watchful(database_url, gateway_url) as world:
        await circuits_open(world)
        checkouts = [await world.accept() for _ in range(5)]
        await world.process(*checkouts)
        await world.control("DELETE", "faults")
        for checkout in checkouts:
            row = await world.processed_until(checkout, "awaiting_payment")
            assert row.last_error is None


async def test_deadlines_still_rule(database_url: str, gateway_url: str):
    async with watchful(database_url, gateway_url) as world:
        await circuits_open(world)
        checkout = await world.accept(expiresIn=1)
        await world.process(checkout)
        row = await world.row(checkout)
        assert row.state == "received"
        assert row.due_in.total_seconds() <= 1.05, "it is looked up when its deadline has passed"
        await asyncio.sleep(1.1)
        row = await world.processed_until(checkout, "failed")
        assert row.last_error == "circuit_open"
        assert (await world.trail(checkout))[-1]["trigger"] == "attempts_exhausted"


async def test_an_offered_order_waits_until_it_can_be_looked_up(
    database_url: str, gateway_url: str, monkeypatch
):
    async with watchful(database_url, gateway_url) as world:
        checkout = await world.offered(expiresIn=1)
        await world.pay(checkout)
        await circuits_open(world)
        await asyncio.sleep(1.3)
        await world.call_back(checkout)
        await world.process(checkout)
        row = await world.row(checkout)
        assert (row.state, row.attempts) == ("callback_received", 0)
        await world.control("DELETE", "faults")
        monkeypatch.setattr(circuit_breaker, "PROBING", 0.05)
        await world.sql("UPDATE checkouts SET due_at = clock() + interval '2 s' WHERE id = :id", id=checkout)
        await asyncio.sleep(2.0)
        await world.processed_until(checkout, "completed")


async def test_money_that_is_asked_for_meanwhile_is_moved_once_when_the_gateway_is_back(
    database_url: str, gateway_url: str, monkeypatch
):
    monkeypatch.setattr(circuit_breaker, "FIRST_PAUSE", 3.0)
    async with watchful(database_url, gateway_url) as world:
        checkout = await world.paid()
        await circuits_open(world)
        await world.command(checkout, "capture", amount=13900)
        await world.process(checkout)
        (operation,) = await world.operations(checkout)
        assert (operation.state, operation.attempts) == ("requested", 0)
        assert await world.movements(checkout) == []
        await world.control("DELETE", "faults")
        await settled(world, checkout)
        assert await world.movements(checkout) == [("captured", 13900)]
        await world.agree(checkout)


async def test_money_whose_circuit_opens_between_lookup_and_call_is_not_sent(
    database_url: str, gateway_url: str, monkeypatch
):
    """The lookup is served, and the circuit opens before the capture: it is withdrawn as not sent, and sent
    once afterwards.
    """
    monkeypatch.setattr(circuit_breaker, "FIRST_PAUSE", 0.3)
    async with watchful(database_url, gateway_url) as world:
        checkout = await world.paid()
        await world.command(checkout, "capture", amount=13900)
        real = world.processor.context.gateway.find_payments

        async def shuts(*arguments, **options):
            outcome = await real(*arguments, **options)
            monkeypatch.undo()
            await circuits_open(world)
            return outcome

        monkeypatch.setattr(world.processor.context.gateway, "find_payments", shuts)
        await world.process(checkout)
        assert "money:withdrawn" in [entry["action"] for entry in await world.trail(checkout)]
        (operation,) = await world.operations(checkout)
        assert (operation.state, operation.attempts) == ("requested", 0)
        assert operation.last_error == "circuit_open"
        await world.control("DELETE", "faults")
        await settled(world, checkout)
        assert await world.movements(checkout) == [("captured", 13900)]


async def settled(world: Scene, checkout: UUID) -> None:
    async with asyncio.timeout(20):
        while await world.operating(checkout) or not await world.operations(checkout):
            await world.take(checkout)
            await asyncio.sleep(0.02)


async def test_it_is_explained(database_url: str, gateway_url: str):
    async with watchful(database_url, gateway_url) as world:
        offered = await world.offered()
        await circuits_open(world)
        waiting = await world.accept()
        await world.call_back(offered)
        await world.process(waiting, offered)
        for checkout in (waiting, offered):
            record = await explain.gather(world.db, world.settings, checkout)
            assert record is not None
            explained = explain.explain(record)
            assert any(
                "Calls to the gateway are paused for a moment" in reason for reason in explained.because
            )
            assert explained.next.what.startswith("Calls to its gateway are paused: at ")
            assert explained.next.at == record.due_at


async def test_explain_names_the_last_real_failure_and_when_calls_start_again(
    database_url: str, gateway_url: str, monkeypatch
):
    monkeypatch.setattr(circuit_breaker, "FIRST_PAUSE", 20.0)
    async with watchful(database_url, gateway_url) as world:
        gateway = world.processor.context.gateway
        assert gateway.limits.troubles == []
        await circuits_open(world)
        checkout = await world.accept()
        await world.process(checkout)
        silent = await _because(world, checkout)
        assert "Calls to the gateway are paused for a moment" in silent
        (trouble,) = gateway.limits.troubles
        assert trouble["reason"] == "The gateway answered HTTP 503."
        heart = Heart(world.db, "worker")
        assert await heart.beat({"circuits": gateway.limits.troubles})
        told = await _because(world, checkout)
        assert "The gateway is unavailable since " in told
        assert "The gateway answered HTTP 503" in told
        assert "Calls to it are paused; " in told
        record = await explain.gather(world.db, world.settings, checkout)
        assert record is not None
        assert record.circuit is not None
        # One time, in the sentence of what comes next: the later one of the pause's end and the order's turn.
        later = replace(record, due_at=record.now)
        for one in (record, later):
            (time,) = set(re.findall(r"are paused: at (\S+)", explain.explain(one).next.what))
            assert time == explain.moment(max(one.due_at, record.circuit.until))
        assert "start again" not in told
        # The breaker of the process that the gateway serves again tells of nothing.
        await world.control("DELETE", "faults")
        gateway.limits.of(trouble["gateway"]).note("default", Done(None))
        assert gateway.limits.troubles == []
        await heart.end()
        assert await _because(world, checkout) == silent


async def test_a_retry_whose_gateway_is_not_called_says_until_when(
    database_url: str, gateway_url: str, monkeypatch
):
    monkeypatch.setattr(circuit_breaker, "FIRST_PAUSE", 20.0)
    async with watchful(database_url, gateway_url) as world:
        await circuits_open(world)
        checkout = await world.accept()
        await world.process(checkout)
        code, said = await world.asked(checkout, "retry")
        assert code == "done_retried"
        assert re.fullmatch(
            r"calls to its gateway are paused until \S+: it is tried again soon after that, or after the next pause if they fail again",
            said,
        )


async def test_explain_says_who_cancelled_an_order_and_why(database_url: str, gateway_url: str):
    async with watchful(database_url, gateway_url) as world:
        checkout = await world.offered()
        await world.command(checkout, "cancel")
        await world.process(checkout)
        assert (
            "a cancel was requested by the shop's client shop, because of this: “sold out”"
            in await _because(world, checkout)
        )
        await world.processed_until(checkout, "cancelled")
        record = await explain.gather(world.db, world.settings, checkout)
        assert record is not None
        said = " ".join(explain.explain(record).evidence)
        assert "it was requested by the shop's client shop, because of this: “sold out”" in said


async def _because(world: Scene, checkout: UUID) -> str:
    record = await explain.gather(world.db, world.settings, checkout)
    assert record is not None
    return " ".join(explain.explain(record).because)

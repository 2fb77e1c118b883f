"""From `received` to `awaiting_payment`: what every answer of the gateway leads to."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator.audit import Action
from orchestrator.devkit.sandbox import create_app
from orchestrator.domain.states import Trigger
from orchestrator.processing.context import CredentialsCircuit
from orchestrator.store.checkouts import Move, claim
from tests.integration.processing.conftest import CONFIG
from tests.support.parties import serving
from tests.support.scene import Scene, scene

pytestmark = pytest.mark.anyio


async def test_one_claim_processes_every_step_that_an_order_can_take(world: Scene):
    checkout = await world.accept()
    assert await world.process(checkout) == []
    row = await world.row(checkout)
    assert (row.state, row.lease, row.claims, row.attempts) == ("awaiting_payment", None, 0, 0)
    assert row.due_in.total_seconds() > 0
    assert 3590 < row.left.total_seconds() <= 3600
    assert [(entry["from"], entry["to"], entry["trigger"]) for entry in await world.trail(checkout)] == [
        (None, "received", None),
        ("received", "authenticated", "authenticated"),
        ("authenticated", "session_created", "session_opened"),
        ("session_created", "methods_fetched", "methods_listed"),
        ("methods_fetched", "awaiting_payment", "offered"),
    ]
    assert await world.events(checkout) == ["checkout.ready"]
    ledger = await world.control("GET", f"ledger?orderId={world.orders[checkout]}")
    assert len(ledger["orders"][0]["sessions"]) == 1


async def test_many_orders_are_processed_at_once(world: Scene):
    checkouts = [await world.accept() for _ in range(40)]
    await world.process(*checkouts)
    states = await world.sql("SELECT DISTINCT state FROM checkouts")
    assert [row.state for row in states] == ["awaiting_payment"]


async def test_the_intents_own_expiry_starts_with_the_offer(world: Scene):
    checkout = await world.offered(expiresIn=60)
    assert 50 < (await world.row(checkout)).left.total_seconds() <= 60


@pytest.mark.parametrize(
    ("call", "status"),
    [
        # A GET whose connection is reset is asked once more by the client itself, so it is not here.
        ("session", "reset"),
        *[
            (call, status)
            for call in ("session", "payment-methods")
            for status in (500, 503, "malformed", "empty")
        ],
    ],
)
async def test_a_call_that_fails_twice_is_repeated_when_it_is_due(world: Scene, call: str, status: object):
    checkout = await world.accept()
    await world.plan(checkout, fail={call: 2}, failStatus=status)
    await world.process(checkout)
    row = await world.row(checkout)
    assert (row.lease, row.attempts) == (None, 1)
    assert row.last_error
    assert row.due_in.total_seconds() <= world.settings.retry_cap
    row = await world.processed_until(checkout, "awaiting_payment")
    assert (row.attempts, row.last_error) == (0, None)
    failures = [
        entry["evidence"] for entry in await world.trail(checkout) if entry["action"] == "gateway:failed"
    ]
    assert [(failure["call"], failure["attempt"]) for failure in failures] == [(call, 1), (call, 2)]


async def test_a_throttled_call_waits_at_least_as_long_as_the_gateway_asks(world: Scene):
    checkout = await world.accept()
    await world.plan(checkout, fail={"session": 1}, failStatus=429, retryAfter=7)
    await world.process(checkout)
    assert 6.9 < (await world.row(checkout)).due_in.total_seconds() < 8


async def test_an_order_that_the_gateway_refuses_has_failed_with_the_reason(world: Scene):
    checkout = await world.accept()
    await world.plan(checkout, fail={"session": 1}, failStatus=422)
    await world.process(checkout)
    row = await world.row(checkout)
    assert row.state == "failed"
    assert row.last_error == "gateway_refused"
    assert row.due_at is not None, "the watch for late money runs"
    assert await world.events(checkout) == ["checkout.failed"]


async def test_refused_methods_fail_the_order_too(world: Scene):
    checkout = await world.accept()
    await world.plan(checkout, fail={"payment-methods": 1}, failStatus=422)
    await world.process(checkout)
    assert await world.state(checkout) == "failed"


async def test_an_order_that_fails_every_call_until_its_deadline_has_failed(world: Scene):
    checkout = await world.accept(expiresIn=3)
    await world.plan(checkout, fail={"session": 1000})
    row = await world.processed_until(checkout, "failed")
    assert row.last_error == "unknown"
    assert row.attention is not None, "attention was raised before it failed"
    assert (await world.trail(checkout))[-1]["trigger"] == "attempts_exhausted"


async def test_wrong_credentials_fail_no_order_and_open_the_circuit(database_url: str, gateway_url: str):
    async with scene(database_url, gateway_url, gateway_password="wrong") as world:
        first, second = await world.accept(expiresIn=1), await world.accept()
        await world.process(first)
        row = await world.row(first)
        assert (row.state, row.attempts) == ("received", 1)
        assert row.attention == "gateway_credentials"
        assert row.due_in.total_seconds() > 30
        await world.process(second)
        row = await world.row(second)
        assert (row.state, row.attempts, row.attention) == ("received", 0, None), (
            "not tried: the breaker is open"
        )
        assert row.due_in.total_seconds() > 30
        await asyncio.sleep(1.1)
        world.processor.context.circuit = CredentialsCircuit()
        await world.process(first)
        assert await world.state(first) == "received", "its deadline has passed, and it is not its fault"
    async with scene(database_url, gateway_url) as mended:
        await mended.process(first)
        row = await mended.row(first)
        assert (row.state, row.attention) == ("awaiting_payment", None)


async def test_changed_credentials_are_tried_at_once_by_the_same_process(world: Scene):
    url = world.settings.gateway_url
    assert url is not None
    account = {"gateway_url": url, "merchant_api_url": None, "username": "shop", "callback_secrets": ()}
    await world.merchants.add("second", password="wrong", **account)
    second = await world.merchants.named("second")
    refused, waits = await world.accept(merchant=second.id), await world.accept(merchant=second.id)
    await world.process(refused)
    await world.process(waits)
    assert [(await world.row(one)).attempts for one in (refused, waits)] == [1, 0]
    await world.merchants.set_password("second", "sandbox password")
    await world.process(refused, waits)
    for checkout in (refused, waits):
        row = await world.row(checkout)
        assert (row.state, row.attention) == ("awaiting_payment", None)


async def test_a_gateway_that_forbids_us_is_about_the_merchant_and_not_about_the_order(world: Scene):
    checkout = await world.accept()
    await world.control("PUT", "faults", {"authenticate": {"count": 1, "status": 403}})
    await world.process(checkout)
    row = await world.row(checkout)
    assert row.state == "received"
    assert row.attention == "gateway_credentials"


async def test_a_gateway_that_is_down_at_the_first_call_is_tried_again(world: Scene):
    checkout = await world.accept()
    await world.control("PUT", "faults", {"authenticate": {"count": 1, "status": 503}})
    await world.process(checkout)
    assert (await world.row(checkout)).last_error == "unknown"
    await world.processed_until(checkout, "awaiting_payment")


async def test_a_gateway_that_does_not_answer_is_tried_again(database_url: str):
    async with scene(database_url, "http://127.0.0.1:9") as world:
        checkout = await world.accept()
        await world.process(checkout)
        row = await world.row(checkout)
        assert (row.state, row.attention) == ("received", None)
        assert row.last_error == "not_sent"


async def test_a_load_of_our_own_counts_against_no_order(database_url: str, gateway_url: str):
    many = {
        "gateway_pool_size": 1,
        "gateway_total_timeout": 1.0,
        "gateway_read_timeout": 1.0,
        "lease_seconds": 5.0,
    }
    async with scene(database_url, gateway_url, **many) as world:
        checkouts = [await world.accept() for _ in range(8)]
        await world.control("PUT", "faults", {"latencyMs": {"authenticate": 300}})
        await world.process(*checkouts)
        await world.control("DELETE", "faults")
        waiting = await world.sql(
            "SELECT attempts, last_error, attention FROM checkouts WHERE state = 'received'"
        )
        assert waiting
        assert all((row.attempts, row.last_error, row.attention) == (0, None, None) for row in waiting)


@pytest.mark.parametrize("call", ["session", "payment-methods"])
async def test_a_firewall_in_between_fails_no_order(world: Scene, call: str):
    checkout = await world.accept()
    await world.plan(checkout, fail={call: 2}, failStatus=403)
    await world.process(checkout)
    assert (await world.row(checkout)).last_error == "refused"
    await world.processed_until(checkout, "awaiting_payment")


async def test_a_callback_of_an_order_that_fails_is_read_all_the_same(world: Scene):
    checkout = await world.accept()
    await world.call_back(checkout)
    await world.plan(checkout, fail={"session": 1}, failStatus=422)
    await world.process(checkout)
    row = await world.row(checkout)
    assert row.state == "failed"
    assert row.due_in.total_seconds() <= 0
    await world.process(checkout)
    assert not await world.sql("SELECT id FROM callbacks WHERE handled_at IS NULL")


async def test_cancelling_needs_no_gateway(database_url: str, gateway_url: str):
    async with scene(database_url, gateway_url, gateway_password="wrong") as world:
        blocked, cancelled = await world.accept(), await world.accept()
        await world.process(blocked)
        await world.command(cancelled)
        await world.process(cancelled)
        assert await world.state(cancelled) == "cancelled"


async def test_an_order_for_which_there_is_no_method_fails_and_says_what_to_check(database_url: str):
    from dataclasses import replace

    with serving(create_app(replace(CONFIG, methods=()))) as url:
        async with scene(database_url, url) as world:
            checkout = await world.accept()
            await world.process(checkout)
            row = await world.row(checkout)
            assert row.state == "failed"
            assert row.attention == "no_payment_methods"


async def test_a_session_that_the_gateway_lost_is_opened_again(world: Scene):
    checkout = await world.accept()
    await world.plan(checkout, fail={"payment-methods": 1}, failStatus=404)
    await world.process(checkout)
    row = await world.row(checkout)
    assert (row.state, row.session_count) == ("awaiting_payment", 2)
    assert "session_lost" in [entry["trigger"] for entry in await world.trail(checkout)]


async def test_an_order_number_is_not_used_more_often_than_the_gateway_takes(world: Scene):
    checkout = await world.accept()
    await world.plan(checkout, fail={"payment-methods": 10}, failStatus=410)
    await world.process(checkout)
    row = await world.row(checkout)
    assert (row.state, row.session_count) == ("failed", 4)
    assert row.attention == "order_number_used_up"


@pytest.mark.parametrize("call", ["session", "payment-methods"])
async def test_a_refused_token_is_renewed_once(world: Scene, call: str):
    checkout = await world.accept()
    await world.plan(checkout, fail={call: 1}, failStatus=401)
    await world.process(checkout)
    assert await world.state(checkout) == "awaiting_payment"
    assert "token:renewed" in [entry["action"] for entry in await world.trail(checkout)]


@pytest.mark.parametrize("call", ["session", "payment-methods"])
async def test_a_token_refused_when_fresh_is_the_credentials_fault(world: Scene, call: str):
    checkout = await world.accept()
    await world.plan(checkout, fail={call: 2}, failStatus=401)
    await world.process(checkout)
    row = await world.row(checkout)
    assert row.state in {"authenticated", "session_created"}
    assert row.attention == "gateway_credentials"
    other = await world.accept()
    await world.process(other)
    assert await world.state(other) == "awaiting_payment", "it is about that one session alone"


@pytest.mark.parametrize("call", ["session", "payment-methods"])
async def test_a_token_that_ran_out_between_two_claims_is_renewed_first(world: Scene, call: str):
    checkout = await world.accept()
    await world.plan(checkout, fail={call: 1})
    await world.process(checkout)
    await world.sql("UPDATE sessions SET token_expires_at = clock() WHERE checkout_id = :id", id=checkout)
    await world.processed_until(checkout, "awaiting_payment")


async def test_a_renewal_that_fails_is_tried_again(world: Scene):
    checkout = await world.accept()
    await world.plan(checkout, fail={"session": 1})
    await world.process(checkout)
    await world.sql("UPDATE sessions SET token_expires_at = NULL WHERE checkout_id = :id", id=checkout)
    await world.control("PUT", "faults", {"authenticate": {"count": 1, "status": 503}})
    await world.process(checkout)
    assert (await world.trail(checkout))[-1]["evidence"]["call"] == "authenticate"
    await world.processed_until(checkout, "awaiting_payment")


async def test_a_checkout_that_stands_before_its_offer_is_offered(world: Scene):
    """As an earlier version left a checkout that stopped between its list of methods and its offer."""
    checkout = await world.accept()
    (held,) = await claim(world.db, [checkout], lease_seconds=60.0)
    for trigger, changes in (
        (Trigger.AUTHENTICATED, {"token": b"sealed", "token_lifetime": 3600.0}),
        (Trigger.SESSION_OPENED, {"session_id": "s-1", "session_count": 1}),
        (Trigger.METHODS_LISTED, {"methods": [{"id": "m-1"}], "due_in": 0.0}),
    ):
        move = Move(held=held, trigger=trigger, action=Action.CHECKOUT_MOVED, **changes)
        held = await world.processor.context.transitions.advance(move)
    await world.process(checkout)
    row = await world.row(checkout)
    assert (row.state, row.version) == ("awaiting_payment", 5)
    assert row.offered_at is not None
    assert await world.events(checkout) == ["checkout.ready"]

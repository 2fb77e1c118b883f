"""Orders that are changed before their payment: our books first, then the session, and a payment of the order
as it was is never taken for the order as it is.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from orchestrator import intents
from orchestrator.store import inbox
from orchestrator.store.checkouts import claim
from orchestrator.store.console import lists
from tests.support.scene import Scene, scene

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from uuid import UUID

pytestmark = pytest.mark.anyio


def basket(amount: float, **more: object) -> dict[str, Any]:
    """Return a change to a basket of one lamp at this price."""
    line = {"itemId": "1", "description": "A lamp", "quantity": 1, "unitPrice": amount, "taxAmount": 0}
    return {"order": {"amount": {"value": amount}, "orderLines": [line], **more}}


async def ask(world: Scene, checkout: UUID, change: dict[str, Any], *, version: int | None = None) -> UUID:
    """Store a change as the API does, and return its command."""
    order = await inbox.stored_order(world.db, world.encryptor, checkout)
    return await world.command(checkout, "change", version=version, change=order.sealed(change))


async def result(world: Scene, command: UUID) -> tuple[str | None, dict[str, Any] | None]:
    (row,) = await world.sql("SELECT result, result_details FROM commands WHERE id = :id", id=command)
    return row.result, row.result_details


async def order_of(world: Scene, checkout: UUID) -> dict[str, Any]:
    """Return the order in our books."""
    order: dict[str, Any] = json.loads(
        (await inbox.stored_order(world.db, world.encryptor, checkout)).document
    )["order"]
    return order


async def amounts(world: Scene, checkout: UUID) -> list[float]:
    """Return what the order's sessions at the gateway are about, the oldest first; a change of nothing shows
    it.
    """
    page = await world.control("GET", f"ledger?orderId={world.orders[checkout]}")
    api, told = f"{world.settings.gateway_url}/checkout/v1/api", []
    password = world.settings.gateway_password.get_secret_value()
    token = (
        await world.http.post(f"{api}/authenticate", auth=(world.settings.gateway_username, password))
    ).json()["token"]
    for session in page["orders"][0]["sessions"]:
        answer = await world.http.put(
            f"{api}/session/{session}", json={}, headers={"Authorization": f"Bearer {token}"}
        )
        assert answer.is_success, answer.text
        told.append(answer.json()["order"]["amount"]["value"])
    return told


async def actions(world: Scene, checkout: UUID) -> list[str]:
    return [entry["action"] for entry in await world.trail(checkout)]


@asynccontextmanager
async def held_up(world: Scene, checkout: UUID, call: str, *, state: str) -> AsyncIterator[None]:
    """Run the body while a worker waits for an answer of the gateway in this state; then let it end."""
    await world.plan(checkout, delayMs={call: 700})
    under_way = asyncio.create_task(world.process(checkout))
    async with asyncio.timeout(10):
        while (row := await world.row(checkout)).state != state or row.lease is None:  # noqa: ASYNC110 - in Postgres
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)
    yield
    await under_way
    await world.plan(checkout)


# ── What is changed, and where ────────────────────────────────────────────────────────────────────────────


async def test_a_changed_order_is_in_our_books_and_at_the_gateway_and_is_offered_again(world: Scene):
    checkout = await world.offered()
    command = await ask(world, checkout, basket(99.5, transactionInfo={"cart": "2"}))
    await world.process(checkout)
    assert await result(world, command) == ("done_changed", {})
    row = await world.row(checkout)
    assert (row.state, row.amount, row.session_count, row.attention) == ("awaiting_payment", 9950, 1, None)
    order = await order_of(world, checkout)
    assert (order["amount"]["value"], order["transactionInfo"]) == (99.5, {"cart": "2"})
    assert order["customer"]["email"] == "shopper@shop.example"
    assert await amounts(world, checkout) == [99.5]
    assert await world.events(checkout) == ["checkout.ready", "checkout.ready"]
    told = await world.sql("SELECT payload -> 'amount' AS amount FROM events ORDER BY sequence")
    assert [event.amount for event in told] == [13900, 9950]
    trail = await world.trail(checkout)
    changed = next(entry for entry in trail if entry["action"] == "order:changed")
    assert (changed["from"], changed["to"], changed["actor"]) == (
        "awaiting_payment",
        "session_created",
        "client:shop",
    )
    assert (changed["evidence"]["amountBefore"], changed["evidence"]["amount"]) == (13900, 9950)
    assert "change" not in changed["evidence"], "what the shopper bought is not in the trail"
    assert [entry["action"] for entry in trail][-4:-2] == ["order:changed", "session:changed"]
    await world.pay(checkout)
    await world.call_back(checkout)
    await world.process(checkout)
    row = await world.row(checkout)
    assert (row.state, row.reserved, row.attention) == ("completed", 9950, None)


async def test_an_order_that_no_session_was_opened_for_is_changed_in_our_books_alone(world: Scene):
    checkout = await world.accept()
    command = await ask(world, checkout, basket(99.5))
    await world.process(checkout)
    assert await result(world, command) == ("done_changed", {})
    assert (await world.row(checkout)).amount == 9950
    assert await amounts(world, checkout) == [99.5]
    assert "session:changed" not in await actions(world, checkout)
    assert await world.events(checkout) == ["checkout.ready"]


async def test_a_session_that_was_never_offered_is_changed_before_its_offer(world: Scene):
    checkout = await world.accept()
    await world.plan(checkout, fail={"payment-methods": 2})
    await world.process(checkout)
    assert await world.state(checkout) == "session_created"
    await world.plan(checkout)
    await ask(world, checkout, basket(99.5))
    await world.process(checkout)
    assert await world.state(checkout) == "awaiting_payment"
    assert await amounts(world, checkout) == [99.5]
    assert await world.events(checkout) == ["checkout.ready"]


async def test_a_change_to_what_the_order_is_already_disturbs_no_shopper(world: Scene):
    checkout = await world.offered()
    command = await ask(world, checkout, basket(139.0))
    await world.process(checkout)
    assert await result(world, command) == ("done_changed", {})
    assert await world.state(checkout) == "awaiting_payment"
    assert await world.events(checkout) == ["checkout.ready"]
    assert "order:changed" not in await actions(world, checkout)


async def test_the_same_amount_with_other_lines_goes_to_the_gateway_too(world: Scene):
    checkout = await world.offered()
    change = basket(139.0)
    change["order"]["orderLines"][0]["description"] = "A chair"
    await ask(world, checkout, change)
    await world.process(checkout)
    assert "session:changed" in await actions(world, checkout)
    assert (await order_of(world, checkout))["orderLines"][0]["description"] == "A chair"


async def test_other_pages_of_the_shop_are_signed_into_other_links(world: Scene):
    checkout = await world.offered()
    page = {"success": {"value": "https://shop.example/elsewhere"}}
    await ask(world, checkout, {"callbacks": page})
    await world.process(checkout)
    document = (await inbox.stored_order(world.db, world.encryptor, checkout)).document
    assert intents.shop_pages(document)["success"].startswith("https://shop.example/elsewhere")
    assert "session:changed" in await actions(world, checkout)


# ── Two changes ───────────────────────────────────────────────────────────────────────────────────────────


async def test_two_changes_at_once_both_count_in_the_order_of_their_arrival(world: Scene):
    checkout = await world.offered()
    commands = [
        await ask(world, checkout, basket(99.5)),
        await ask(world, checkout, {"order": {"customer": {"email": "other@shop.example"}}}),
    ]
    await world.process(checkout)
    assert [await result(world, command) for command in commands] == [("done_changed", {})] * 2
    order = await order_of(world, checkout)
    assert (order["amount"]["value"], order["customer"]["email"]) == (99.5, "other@shop.example")
    for address, found in (("Other@shop.example", [checkout]), ("shopper@shop.example", [])):
        rows = await lists.of_email(world.db, world.encryptor, address, limit=10)
        assert [row.id for row in rows] == found
    assert await amounts(world, checkout) == [99.5]
    # The session is changed once, for both.
    assert (await actions(world, checkout)).count("session:changed") == 1


async def test_the_second_of_two_changes_of_one_version_is_refused(world: Scene):
    checkout = await world.offered()
    version = (await world.row(checkout)).version
    first = await ask(world, checkout, basket(99.5), version=version)
    second = await ask(world, checkout, basket(10.0), version=version)
    await world.process(checkout)
    assert await result(world, first) == ("done_changed", {})
    assert (await result(world, second))[0] == "refused_version_changed"
    assert (await world.row(checkout)).amount == 9950


async def test_a_change_that_makes_no_order_after_another_is_refused_with_the_field(world: Scene):
    checkout = await world.offered()
    await ask(world, checkout, basket(99.5))
    # Valid for the order as it was, and not after the change before it.
    line = {"itemId": "2", "description": "A chair", "quantity": 1, "unitPrice": 139.0, "taxAmount": 0}
    second = await ask(world, checkout, {"order": {"orderLines": [line]}})
    await world.process(checkout)
    code, details = await result(world, second)
    assert code == "refused_not_an_intent"
    assert details is not None
    assert details["field"] == "order.orderLines"
    assert (await world.row(checkout)).amount == 9950
    assert await world.state(checkout) == "awaiting_payment"


# ── A payment comes first, or in between ──────────────────────────────────────────────────────────────────


async def test_a_payment_that_our_books_have_not_seen_yet_refuses_the_change_and_completes_the_order(
    world: Scene,
):
    checkout = await world.offered()
    command = await ask(world, checkout, basket(99.5))
    await world.pay(checkout)
    await world.process(checkout)
    assert await result(world, command) == ("refused_payment_shown", {"finding": "paid"})
    row = await world.row(checkout)
    assert (row.state, row.amount, row.reserved) == ("completed", 13900, 13900)
    assert await amounts(world, checkout) == [139.0]


async def test_a_payment_that_is_still_open_refuses_the_change(world: Scene):
    checkout = await world.offered()
    command = await ask(world, checkout, basket(99.5))
    await world.pay(checkout, action="open", method="BANK_PAYMENT")
    await world.process(checkout)
    assert await result(world, command) == ("refused_payment_shown", {"finding": "open"})
    assert (await world.row(checkout)).amount == 13900
    assert await world.state(checkout) == "awaiting_payment"


async def test_an_answer_that_needs_a_decision_refuses_the_change_and_is_left_to_a_person(world: Scene):
    checkout = await world.offered()
    command = await ask(world, checkout, basket(99.5))
    await world.plan(checkout, amountMinor=500)
    await world.pay(checkout)
    await world.process(checkout)
    assert await result(world, command) == ("refused_payment_shown", {"finding": "unsure"})
    row = await world.row(checkout)
    assert (row.state, row.amount, row.attention) == ("awaiting_payment", 13900, "payment_mismatch")


async def test_a_declined_attempt_leaves_the_order_free_to_be_changed(world: Scene):
    checkout = await world.offered()
    await world.pay(checkout, card="4180000000000566")
    await world.call_back(checkout, kind="failure", body=b"status=failed")
    command = await ask(world, checkout, basket(99.5))
    await world.process(checkout)
    assert await result(world, command) == ("done_changed", {})
    await world.process(checkout)
    row = await world.row(checkout)
    assert (row.state, row.amount, row.attention) == ("awaiting_payment", 9950, None)


async def test_a_callback_that_is_being_verified_comes_before_the_change(world: Scene):
    """The payment was declined, and the change waits until a lookup has shown that."""
    checkout = await world.offered()
    await world.pay(checkout, card="4180000000000566")
    await world.plan(checkout, fail={"payments": 2})
    await world.call_back(checkout, kind="failure", body=b"status=failed")
    await world.process(checkout)
    assert await world.state(checkout) == "callback_received"
    command = await ask(world, checkout, basket(99.5))
    await world.plan(checkout)
    await world.process(checkout)
    assert await result(world, command) == ("done_changed", {})
    found = await actions(world, checkout)
    moves = [entry["trigger"] for entry in await world.trail(checkout)]
    assert moves.index("payment_declined") < moves.index("order_changed")
    assert found[-1] == "checkout:moved"
    assert (await world.row(checkout)).amount == 9950


@pytest.mark.parametrize("finding", ["paid", "unsure", "open"])
async def test_a_callback_that_is_being_verified_refuses_the_change_if_it_is_of_a_payment(
    world: Scene, finding: str
):
    checkout = await world.offered()
    if finding == "unsure":
        await world.plan(checkout, amountMinor=500)
    if finding == "open":
        await world.pay(checkout, action="open", method="BANK_PAYMENT")
    else:
        await world.pay(checkout)
    await world.plan(checkout, fail={"payments": 2})
    await world.call_back(checkout)
    await world.process(checkout)
    assert await world.state(checkout) == "callback_received"
    command = await ask(world, checkout, basket(99.5))
    await world.plan(checkout)
    await world.process(checkout)
    assert await result(world, command) == ("refused_payment_shown", {"finding": finding})
    states = {"paid": "completed", "unsure": "callback_received", "open": "awaiting_payment"}
    row = await world.row(checkout)
    assert (row.state, row.amount) == (states[finding], 13900)


async def test_a_page_opened_before_the_change_pays_nothing_unnoticed(world: Scene):
    """The gateway has no call that closes a page: what it takes is not the amount of the order."""
    checkout = await world.offered(capture=True)
    page = await world.open_page(checkout)
    await ask(world, checkout, basket(99.5))
    await world.process(checkout)
    assert await world.state(checkout) == "awaiting_payment"
    await world.submit(page)
    await world.call_back(checkout)
    await world.process(checkout)
    row = await world.row(checkout)
    assert (row.state, row.attention) == ("callback_received", "payment_mismatch")
    assert await world.operations(checkout) == []
    # A person gives it back, and the shopper pays what the order costs.
    assert (await world.asked(checkout, "resolve", decision="return")).code == "accepted"
    await world.pay(checkout)
    await world.call_back(checkout)
    await world.processed_until(checkout, "completed")
    row = await world.row(checkout)
    assert (row.reserved, row.captured) == (9950, 9950)


async def test_a_payment_between_the_lookup_and_the_change_of_the_session_is_not_offered_again(world: Scene):
    checkout = await world.offered()
    page = await world.open_page(checkout)
    command = await ask(world, checkout, basket(99.5))
    # Our books are changed while the gateway refuses to answer.
    await world.plan(checkout, fail={"session": 1})
    await world.process(checkout)
    assert await result(world, command) == ("done_changed", {})
    row = await world.row(checkout)
    assert (row.state, row.amount, row.lease) == ("session_created", 9950, None)
    assert row.due_in.total_seconds() <= world.settings.retry_cap
    await world.submit(page)
    await world.process(checkout)
    row = await world.row(checkout)
    assert (row.state, row.attention) == ("session_created", "payment_mismatch")
    assert await world.events(checkout) == ["checkout.ready", "checkout.attention"]
    # Kept by a person, it completes the order as it is.
    assert (await world.asked(checkout, "resolve", decision="keep")).code == "done_kept"
    row = await world.processed_until(checkout, "completed")
    assert (row.reserved, row.amount) == (13900, 9950)


async def test_a_payment_of_the_same_amount_in_between_completes_the_order(world: Scene):
    checkout = await world.offered()
    page = await world.open_page(checkout)
    change = basket(139.0)
    change["order"]["orderLines"][0]["description"] = "A chair"
    await ask(world, checkout, change)
    await world.plan(checkout, fail={"session": 1})
    await world.process(checkout)
    await world.submit(page)
    await world.process(checkout)
    row = await world.row(checkout)
    assert (row.state, row.reserved, row.attention) == ("completed", 13900, None)


async def test_an_open_payment_in_between_keeps_its_session(world: Scene):
    checkout = await world.offered()
    page = await world.open_page(checkout, method="BANK_PAYMENT")
    await ask(world, checkout, basket(99.5))
    await world.plan(checkout, fail={"session": 2})
    await world.process(checkout)
    await world.submit(page, action="open")
    await world.plan(checkout, fail={"session": 1}, failStatus=422)
    await world.process(checkout)
    # Refused with an open payment: no other session is opened beside it.
    assert (await world.state(checkout), (await world.row(checkout)).session_count) == ("session_created", 1)
    await world.plan(checkout)
    await world.process(checkout)
    assert await world.state(checkout) == "awaiting_payment"
    assert await amounts(world, checkout) == [99.5]


# ── The gateway ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("status", [500, 503, 429, 403, 409, "malformed"])
async def test_a_session_that_could_not_be_changed_is_changed_when_it_is_due(world: Scene, status: object):
    checkout = await world.offered()
    await ask(world, checkout, basket(99.5))
    await world.plan(checkout, fail={"session": 1}, failStatus=status)
    await world.process(checkout)
    row = await world.row(checkout)
    assert (row.state, row.amount, row.attempts) == ("session_created", 9950, 1)
    row = await world.processed_until(checkout, "awaiting_payment")
    assert await amounts(world, checkout) == [99.5]
    assert (row.attempts, row.last_error) == (0, None)


@pytest.mark.parametrize("status", [404, 410, 422])
async def test_a_session_that_the_gateway_does_not_change_is_replaced(world: Scene, status: int):
    checkout = await world.offered()
    await ask(world, checkout, basket(99.5))
    await world.plan(checkout, fail={"session": 1}, failStatus=status)
    await world.process(checkout)
    row = await world.row(checkout)
    assert (row.state, row.session_count, row.attention) == ("awaiting_payment", 2, None)
    assert await amounts(world, checkout) == [139.0, 99.5]
    lost = next(entry for entry in await world.trail(checkout) if entry["trigger"] == "session_lost")
    assert lost["evidence"]["status"] == status
    await world.pay(checkout)
    await world.call_back(checkout)
    await world.process(checkout)
    assert (await world.row(checkout)).reserved == 9950


async def test_a_token_that_has_run_out_is_renewed_for_the_change(world: Scene):
    checkout = await world.offered()
    await world.sql("UPDATE sessions SET token_expires_at = clock()")
    await ask(world, checkout, basket(99.5))
    await world.process(checkout)
    assert await world.state(checkout) == "awaiting_payment"
    assert await amounts(world, checkout) == [99.5]


async def test_a_token_that_the_gateway_refuses_is_renewed_for_the_change(world: Scene):
    checkout = await world.offered()
    await ask(world, checkout, basket(99.5))
    await world.plan(checkout, fail={"session": 1}, failStatus=401)
    await world.process(checkout)
    assert await world.state(checkout) == "awaiting_payment"
    assert await amounts(world, checkout) == [99.5]


async def test_a_lookup_that_fails_before_the_change_leaves_it_to_the_next_claim(world: Scene):
    checkout = await world.offered()
    command = await ask(world, checkout, basket(99.5))
    await world.plan(checkout, fail={"payments": 2})
    await world.process(checkout)
    assert await result(world, command) == (None, None)
    assert (await world.row(checkout)).amount == 13900
    await world.plan(checkout)
    await world.process(checkout)
    assert await result(world, command) == ("done_changed", {})
    assert (await world.row(checkout)).amount == 9950


async def test_a_lookup_that_fails_after_the_change_offers_nothing_until_it_is_made(world: Scene):
    checkout = await world.offered()
    await ask(world, checkout, basket(99.5))
    await world.plan(checkout, fail={"session": 1})
    await world.process(checkout)
    await world.plan(checkout, fail={"payments": 2})
    await world.process(checkout)
    assert await world.state(checkout) == "session_created"
    assert await amounts(world, checkout) == [99.5]
    await world.processed_until(checkout, "awaiting_payment")


async def test_a_session_that_cannot_be_changed_until_the_deadline_ends_the_checkout(world: Scene):
    checkout = await world.offered(expiresIn=2)
    await ask(world, checkout, basket(99.5))
    await world.plan(checkout, fail={"session": 1000})
    row = await world.processed_until(checkout, "failed")
    assert (row.amount, row.reserved) == (9950, 0)
    assert (await world.trail(checkout))[-1]["trigger"] == "attempts_exhausted"


# ── Other commands, and the end ───────────────────────────────────────────────────────────────────────────


async def test_a_checkout_that_is_being_cancelled_is_not_changed(world: Scene):
    checkout = await world.offered()
    await world.command(checkout)
    command = await ask(world, checkout, basket(99.5))
    await world.process(checkout)
    assert await result(world, command) == ("refused_cancelling", {})
    assert (await world.row(checkout)).amount == 13900


async def test_a_checkout_is_not_changed_after_its_deadline(world: Scene):
    checkout = await world.offered(expiresIn=60)
    command = await ask(world, checkout, basket(99.5))
    await world.later(seconds=61)
    await world.process(checkout)
    assert await result(world, command) == ("refused_not_changeable", {})
    assert (await world.row(checkout)).amount == 13900


async def test_a_checkout_that_ended_meanwhile_is_not_changed(world: Scene):
    checkout = await world.paid()
    command = await ask(world, checkout, basket(99.5))
    await world.process(checkout)
    assert await result(world, command) == ("refused_not_changeable", {"state": "completed"})
    assert (await world.row(checkout)).amount == 13900


async def test_a_reopened_checkout_can_be_changed(world: Scene):
    checkout = await world.offered()
    await world.command(checkout)
    await world.processed_until(checkout, "cancelled")
    assert (await world.asked(checkout, "reopen")).code == "done_reopened"
    await ask(world, checkout, basket(99.5))
    await world.process(checkout)
    row = await world.processed_until(checkout, "awaiting_payment")
    assert row.amount == 9950
    assert (await amounts(world, checkout))[-1] == 99.5


async def test_a_cancel_after_a_change_cancels_the_changed_order(world: Scene):
    checkout = await world.offered()
    await ask(world, checkout, basket(99.5))
    await world.command(checkout)
    row = await world.processed_until(checkout, "cancelled")
    assert row.amount == 9950


async def test_a_reconcile_after_a_change_gets_the_finding_of_its_own_lookup(world: Scene):
    checkout = await world.offered()
    await ask(world, checkout, basket(99.5))
    reconcile = await world.command(checkout, "reconcile")
    await world.process(checkout)
    assert await result(world, reconcile) == ("done_looked_up", {"finding": "nothing"})
    assert await world.state(checkout) == "awaiting_payment"


# ── A worker in the middle of its step ────────────────────────────────────────────────────────────────────


async def test_a_change_while_the_session_is_being_opened_reaches_that_session(world: Scene):
    checkout = await world.accept()
    async with held_up(world, checkout, "session", state="authenticated"):
        command = await ask(world, checkout, basket(99.5))
    assert await result(world, command) == (None, None)
    row = await world.row(checkout)
    assert (row.state, row.amount) == ("awaiting_payment", 13900)
    assert row.due_in.total_seconds() <= 0, "the change has woken it"
    await world.take(checkout)
    assert await result(world, command) == ("done_changed", {})
    assert await amounts(world, checkout) == [99.5]


async def test_a_change_while_another_is_carried_to_the_gateway_is_the_last_word(world: Scene):
    checkout = await world.offered()
    await ask(world, checkout, basket(99.5))
    async with held_up(world, checkout, "session", state="session_created"):
        await ask(world, checkout, basket(10.0))
    await world.process(checkout)
    assert await amounts(world, checkout) == [10.0]
    assert (await world.row(checkout)).amount == 1000


async def test_a_callback_while_the_session_is_changed_is_read_once_it_is_offered(world: Scene):
    checkout = await world.offered()
    page = await world.open_page(checkout)
    await ask(world, checkout, basket(99.5))
    async with held_up(world, checkout, "session", state="session_created"):
        await world.call_back(checkout)
    await world.process(checkout)
    assert await world.state(checkout) == "awaiting_payment"
    await world.submit(page)
    await world.process(checkout)
    row = await world.row(checkout)
    assert (row.state, row.attention) == ("awaiting_payment", "payment_mismatch")


@pytest.mark.parametrize("call", ["payments", "session", "payments after it", "payment-methods"])
async def test_a_holder_that_dies_at_any_call_leaves_the_change_to_the_next(
    database_url: str, gateway_url: str, call: str
):
    """Its lease ends, and another worker goes on from what is written: before our books are changed, before
    and after the session is.
    """
    async with scene(database_url, gateway_url) as dying, scene(database_url, gateway_url) as next_one:
        checkout = await dying.offered()
        next_one.orders = dying.orders
        command = await ask(dying, checkout, basket(99.5))
        if call == "payments after it":
            # The session is changed, and our books do not say so yet.
            await dying.plan(checkout, fail={"session": 1})
            await dying.process(checkout)
            assert await dying.state(checkout) == "session_created"
        await dying.plan(checkout, delayMs={call.partition(" ")[0]: 30_000})
        await dying.sql("UPDATE checkouts SET hinted = true")
        held = await claim(dying.db, [checkout], lease_seconds=30)
        step = asyncio.create_task(dying.processor.process(held))
        await asyncio.sleep(0.5)
        step.cancel()
        await asyncio.gather(step, return_exceptions=True)
        await dying.plan(checkout)
        assert (await dying.row(checkout)).lease is not None
        await dying.later(seconds=31)
        await next_one.take(checkout)
        assert await result(next_one, command) == ("done_changed", {})
        assert await next_one.state(checkout) == "awaiting_payment"
        assert await amounts(next_one, checkout) == [99.5]
        assert (await next_one.row(checkout)).amount == 9950
        assert (await actions(next_one, checkout)).count("order:changed") == 1
        await next_one.control("DELETE", "faults")


async def test_a_move_of_the_old_holder_does_not_undo_a_change(world: Scene):
    """A worker that hung with the order as it was finds its lease gone."""
    checkout = await world.offered()
    await world.sql("UPDATE checkouts SET hinted = true")
    (old,) = await claim(world.db, [checkout], lease_seconds=30)
    await world.sql("UPDATE checkouts SET leased_until = clock() - interval '1 second'")
    await ask(world, checkout, basket(99.5))
    await world.process(checkout)
    await world.processor.process([old])
    row = await world.row(checkout)
    assert (row.state, row.amount) == ("awaiting_payment", 9950)


async def test_a_change_from_outside_is_refused(world: Scene):
    checkout = await world.offered()
    command = await ask(world, checkout, basket(99.5))
    await world.sql('UPDATE commands SET arguments = \'{"change": "AAAA"}\'')
    await world.process(checkout)
    assert (await result(world, command))[0] == "refused_not_authentic"
    assert (await world.row(checkout)).amount == 13900

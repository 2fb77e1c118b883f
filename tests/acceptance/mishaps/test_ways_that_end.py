"""Unusual ways through the shop: a second try, no shopper pays, the way back is blocked or slow, the
session changes under it.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest

from tests.support.scene import take
from tests.support.shop import DECLINED_CARD, WHOLE, Shop

if TYPE_CHECKING:
    from uuid import UUID

pytestmark = pytest.mark.anyio


async def unpaid(world: Shop, checkout: UUID, state: str) -> None:
    """The order ended without money, the shop got one event, after a lookup at the gateway."""
    row = await world.row(checkout)
    assert (row.state, row.reserved, row.attention) == (state, 0, None)
    assert (await world.events(checkout)).count(f"checkout.{state}") == 1
    assert (await world.trail(checkout))[-1]["evidence"]["by"] == "lookup"
    assert await world.held(checkout) == 0
    await world.agree(checkout)


# ── Once more ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.mishap("failed first, paid on the second try")
@pytest.mark.parametrize("same_page", [True, False])
async def test_a_success_after_a_failure_completes_the_order(world: Shop, *, same_page: bool):
    checkout = await world.offered()
    page = await world.started(checkout)
    declined = await world.submit(page, card=DECLINED_CARD)
    assert declined.headers["location"].startswith("https://shop.example/sorry")
    await world.told(checkout, notification=2, failure=1)
    await world.follow(checkout)
    assert await world.state(checkout) == "awaiting_payment"
    paid = await world.submit(page if same_page else await world.started(checkout))
    assert paid.headers["location"].startswith("https://shop.example/thanks")
    await world.told(checkout, notification=3 if same_page else 4, failure=1, success=1)
    await world.follow(checkout)
    row = await world.row(checkout)
    assert (row.state, row.reserved, row.late, row.attention) == ("completed", WHOLE, False, None)
    assert await world.events(checkout) == [
        "checkout.ready",
        "checkout.attempt_declined",
        "checkout.completed",
    ]
    assert await world.moved(checkout) == [
        "callback_arrived",
        "payment_declined",
        "callback_arrived",
        "payment_found",
    ]
    assert await world.roles(checkout) == ["accepted", "attempt"]
    await world.agree(checkout)


@pytest.mark.mishap("failed first, paid on the second try")
async def test_a_success_after_a_failure_is_found_though_its_callbacks_are_lost(world: Shop):
    checkout = await world.offered()
    page = await world.started(checkout)
    await world.submit(page, card=DECLINED_CARD)
    await world.told(checkout, notification=2, failure=1)
    await world.follow(checkout)
    await world.plan(checkout, callbacks={"success": False, "notification": False})
    await world.submit(page)
    await world.until_due(checkout)
    assert await world.state(checkout) == "completed"
    assert await world.confirmed(checkout) == 1
    await world.agree(checkout)


# ── No payment ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.mishap("unpaid orders never end, or end wrongly; browser back")
async def test_an_unpaid_order_ends_after_its_deadline_a_grace_and_a_lookup(world: Shop):
    left = await world.expired()
    declined = await world.offered(expiresIn=600)
    await world.pay(declined, card=DECLINED_CARD)
    await world.told(declined, notification=2, failure=1)
    await world.later(seconds=601)
    await world.follow(declined)
    assert await world.state(declined) == "awaiting_payment", "the grace is not over"
    await world.later(seconds=60)
    await world.follow(declined)
    for checkout in (left, declined):
        await unpaid(world, checkout, "expired")


@pytest.mark.mishap("unpaid orders never end, or end wrongly; browser back")
async def test_an_order_that_is_paid_unnoticed_does_not_end_unpaid(world: Shop):
    checkout = await world.offered(expiresIn=100)
    await world.plan(checkout, callbacks={"success": False, "notification": False})
    await world.pay(checkout)
    await world.later(seconds=140)
    await world.follow(checkout)
    row = await world.row(checkout)
    assert (row.state, row.late) == ("completed", False)
    assert await world.moved(checkout) == ["payment_found"]
    await world.agree(checkout)


@pytest.mark.mishap("unpaid orders never end, or end wrongly; browser back")
@pytest.mark.parametrize("outcome", ["succeeded", "declined"])
async def test_a_payment_that_is_open_at_the_bank_keeps_the_order_and_its_stock(world: Shop, outcome: str):
    checkout = await world.offered(expiresIn=600)
    payment = await world.pay(checkout, method="BANK_PAYMENT", action="open")
    await world.told(checkout, notification=2)
    await world.follow(checkout)
    for _ in range(3):
        await world.later(hours=2)
        await world.follow(checkout)
    assert await world.state(checkout) == "awaiting_payment"
    await world.control("POST", f"payments/{payment}/resolve", {"outcome": outcome})
    await world.told(checkout, notification=3)
    await world.follow(checkout)
    if outcome == "declined":
        if await world.state(checkout) == "awaiting_payment":
            await world.until_due(checkout)
        await unpaid(world, checkout, "expired")
        return
    row = await world.row(checkout)
    assert (row.state, row.late, row.attention) == ("completed", False, None)
    assert await world.confirmed(checkout) == 1
    await world.agree(checkout)


@pytest.mark.mishap("unpaid orders never end, or end wrongly; browser back")
async def test_money_after_a_cancel_is_never_lost_and_the_shop_learns_that_it_came_late(world: Shop):
    checkout = await world.offered()
    page = await world.started(checkout)
    await world.told(checkout, notification=1)
    await world.follow(checkout)
    assert (await world.asked(checkout, "cancel")).code == "accepted"
    assert await world.state(checkout) == "awaiting_payment", "the shopper may be paying this minute"
    await world.later(seconds=31)
    await world.follow(checkout)
    assert await world.state(checkout) == "cancelled"
    await world.submit(page)
    await world.told(checkout)
    await world.follow(checkout)
    row = await world.row(checkout)
    assert (row.state, row.late, row.reserved) == ("completed", True, WHOLE)
    assert row.attention == "late_payment"
    assert await world.events(checkout) == [
        "checkout.ready",
        "checkout.cancelled",
        "checkout.completed",
        "checkout.attention",
    ]
    await world.agree(checkout)
    assert (await world.asked(checkout, "resolve", decision="return")).code == "accepted"
    await world.follow(checkout)
    assert await world.movements(checkout) == [("released", WHOLE)]
    await world.agree(checkout)


@pytest.mark.mishap("unpaid orders never end, or end wrongly; browser back")
async def test_browser_back_and_an_empty_form_after_the_payment_change_nothing(world: Shop):
    checkout = await world.offered()
    page = await world.started(checkout)
    await world.submit(page)
    await world.told(checkout)
    await world.follow(checkout)
    back = await world.http.post(page, data={"action": "pay"})
    assert back.headers["location"].startswith("https://shop.example/sorry"), (
        "the gateway called the fail page"
    )
    await world.told(checkout, notification=2, success=1, failure=1)
    await world.follow(checkout)
    row = await world.row(checkout)
    assert (row.state, row.reserved, row.attention) == ("completed", WHOLE, None)
    assert await world.events(checkout) == ["checkout.ready", "checkout.completed"]
    assert await world.movements(checkout) == []
    await world.agree(checkout)


# ── Slow, and blocked ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.mishap("slow shop code in the ok callback")
async def test_an_ok_is_answered_without_waiting_for_the_shop_the_worker_or_the_gateway(world: Shop):
    with socket.create_server(("127.0.0.1", 0)) as slow:
        page = f"http://127.0.0.1:{slow.getsockname()[1]}/thanks"
        callbacks = {
            "success": {"type": "URL", "value": page},
            "failure": {"type": "URL", "value": page},
            "redirect": page,
        }
        checkout = await world.offered(callbacks=callbacks)
        await world.plan(checkout, fail={"payments": 1}, failStatus="timeout")
        browser = await world.submit(await world.started(checkout))
        assert browser.status_code == 303
        assert browser.headers["location"].startswith(page)
        sent = await world.told(checkout)
        assert sorted(callback["answerStatus"] for callback in sent) == [200, 200, 303]
        assert await world.state(checkout) == "awaiting_payment", "no worker has begun to process it"
        slow.setblocking(False)
        with pytest.raises(BlockingIOError):
            slow.accept()
    await world.plan(checkout)
    await world.follow(checkout)
    assert await world.state(checkout) == "completed"
    assert await world.confirmed(checkout) == 1
    await world.agree(checkout)


@pytest.mark.mishap("callbacks blocked by a firewall")
async def test_orders_whose_callbacks_a_firewall_blocks_are_completed_by_lookups(world: Shop):
    paid, left = await world.offered(), await world.offered(expiresIn=600)
    world.limits_of_gateway.blocks = True
    for checkout in (paid, left):
        page = await world.started(checkout)
    await world.submit(await world.started(paid))
    sent = await world.told(paid, notification=3, success=1)
    assert {callback["answerStatus"] for callback in sent} == {403}
    await world.http.post(page, data={"action": "cancel"})
    assert not await world.sql("SELECT id FROM callbacks")
    await world.until_due(paid)
    row = await world.row(paid)
    assert (row.state, row.reserved, row.attention) == ("completed", WHOLE, None)
    assert await world.moved(paid) == ["payment_found"]
    assert await world.confirmed(paid) == 1
    await world.later(seconds=640)
    await world.follow(left)
    await unpaid(world, left, "expired")
    await world.agree(paid)


# ── While the order is placed ─────────────────────────────────────────────────────────────────────────────


async def whole_session(world: Shop, checkout: UUID) -> None:
    """Token, session and methods are there together, and the shopper can pay with them."""
    (session,) = await world.sql("SELECT * FROM sessions WHERE checkout_id = :id", id=checkout)
    assert session.token
    assert session.session_id
    assert session.methods
    await world.pay(checkout)
    await world.told(checkout)
    await world.follow(checkout)
    assert await world.state(checkout) == "completed"
    assert await world.confirmed(checkout) == 1
    (row,) = await world.ledger(checkout)
    assert row["sessionId"] == session.session_id
    await world.agree(checkout)


@pytest.mark.mishap("session changes while the order is placed")
async def test_two_workers_a_repeated_intent_and_a_callback_at_once_leave_one_whole_session(world: Shop):
    checkout = await world.accept()
    order = world.orders[checkout]
    answers = await asyncio.gather(
        world.process(checkout),
        take(world.second, [checkout]),
        *(world.post(order) for _ in range(3)),
        world.called(checkout, b"status=new"),
    )
    assert [answer.status_code for answer in answers[2:5]] == [200] * 3
    await world.follow(checkout, workers=2)
    assert await world.state(checkout) == "awaiting_payment"
    assert (await world.row(checkout)).session_count == 1
    assert await world.moved(checkout) == []
    await whole_session(world, checkout)


@pytest.mark.mishap("session changes while the order is placed")
async def test_a_worker_that_lost_its_lease_while_the_session_was_opened_leaves_nothing_half_written(
    world: Shop,
):
    checkout = await world.accept()
    await world.plan(checkout, delayMs={"session": 400})
    slow = asyncio.create_task(world.process(checkout))
    async with asyncio.timeout(5):
        while await world.state(checkout) != "authenticated":  # noqa: ASYNC110 - the state is in Postgres
            await asyncio.sleep(0.005)
    await world.sql(
        "UPDATE checkouts SET leased_until = clock(), due_at = clock() WHERE id = :id", id=checkout
    )
    await take(world.second, [checkout])
    await slow
    assert await world.state(checkout) == "awaiting_payment"
    row = await world.row(checkout)
    assert (row.session_count, row.attempts, row.last_error) == (1, 0, None)
    await whole_session(world, checkout)


@pytest.mark.mishap("session changes while the order is placed")
async def test_a_session_that_is_lost_and_a_token_that_ends_early_are_replaced_together(world: Shop):
    checkout = await world.accept()
    await world.plan(checkout, loseSession=1, fail={"session": 1}, failStatus=401)
    await world.follow(checkout)
    async with asyncio.timeout(10):
        while await world.state(checkout) != "awaiting_payment":
            await world.until_due(checkout)
    assert (await world.row(checkout)).session_count == 2
    await whole_session(world, checkout)

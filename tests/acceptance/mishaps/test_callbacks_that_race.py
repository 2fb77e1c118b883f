"""Callbacks that come at once, in any order, again, late, or wrong: in each case the order has the money that
the gateway holds.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.support.factories import row_held
from tests.support.shop import DECLINED_CARD, WHOLE, Shop

if TYPE_CHECKING:
    from uuid import UUID

pytestmark = pytest.mark.anyio


async def once(world: Shop, checkout: UUID, *, moved: list[str] | None = None) -> None:
    """The order is paid, no decision is asked for, the shop got one event, and no money was moved without a
    command.
    """
    row = await world.row(checkout)
    assert (row.state, row.reserved, row.captured, row.refunded) == ("completed", WHOLE, 0, 0)
    assert (row.late, row.attention) == (False, None)
    assert await world.confirmed(checkout) == 1
    assert await world.movements(checkout) == []
    assert (await world.moved(checkout)).count("payment_found") == 1
    if moved is not None:
        assert await world.moved(checkout) == moved
    await world.agree(checkout)


# ── Order and repetition ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.mishap("ok and notification at the same moment")
async def test_ok_and_notification_at_the_same_moment_in_front_of_two_workers_pay_one_order(world: Shop):
    checkout = await world.offered()
    await world.plan(checkout, callbacks={"simultaneous": True, "times": 3})
    page = await world.submit(await world.started(checkout))
    assert page.status_code == 303, "no error page"
    assert page.headers["location"].startswith("https://shop.example/thanks")
    sent = await world.told(checkout, notification=4, success=3)
    assert {callback["answerStatus"] for callback in sent} == {200, 303}
    await world.follow(checkout, workers=2)
    await once(world, checkout, moved=["callback_arrived", "payment_found"])
    assert len(await world.sql("SELECT id FROM checkouts")) == 1


@pytest.mark.mishap("a coarse lock makes callbacks fail or wait")
async def test_callbacks_are_stored_and_answered_while_a_worker_holds_the_order_and_asks_the_gateway(
    world: Shop,
):
    checkout = await world.offered()
    payment = await world.pay(checkout)
    await world.told(checkout)
    await world.plan(checkout, delayMs={"payments": 1000})
    working = asyncio.create_task(world.follow(checkout))
    async with asyncio.timeout(5):
        while (await world.row(checkout)).lease is None:  # noqa: ASYNC110 - the lease is in Postgres
            await asyncio.sleep(0.005)
    answers = [await world.resent(payment, kind) for kind in ("notification", "success") * 2]
    assert answers == [200, 303] * 2
    assert not working.done(), "no request waited for the worker"
    await world.plan(checkout)
    await working
    await world.follow(checkout)
    await once(world, checkout)


@pytest.mark.mishap("a coarse lock makes callbacks fail or wait")
async def test_an_order_that_is_locked_holds_up_no_other_orders_callbacks(
    world: Shop, shared_database_url: str
):
    locked, other = await world.offered(), await world.offered()
    async with row_held(shared_database_url, locked):
        waiting = asyncio.create_task(world.called(locked, b"status=succeeded"))
        await asyncio.sleep(0)
        assert await world.called(other, b"status=succeeded") == 200
        assert not waiting.done()
    assert await waiting == 200
    await world.follow(locked, other)
    await world.agree(locked, other)


@pytest.mark.mishap("notification before ok")
async def test_a_notification_before_the_ok_completes_the_order_and_the_ok_changes_nothing(world: Shop):
    checkout = await world.offered()
    await world.plan(checkout, callbacks={"success": False})
    payment = await world.pay(checkout)
    await world.told(checkout)
    await world.follow(checkout)
    await once(world, checkout, moved=["callback_arrived", "payment_found"])
    await world.plan(checkout)
    assert await world.resent(payment, "success") == 303
    await world.follow(checkout)
    await once(world, checkout, moved=["callback_arrived", "payment_found"])


@pytest.mark.mishap("notification before ok")
async def test_a_notification_that_beats_even_our_own_first_step_is_kept_and_read_after_the_offer(
    world: Shop,
):
    checkout = await world.accept()
    assert await world.called(checkout, b"status=succeeded&n=1") == 200
    await world.follow(checkout)
    assert await world.moved(checkout) == ["callback_arrived", "nothing_found"]
    await world.pay(checkout)
    await world.told(checkout)
    await world.follow(checkout)
    await once(world, checkout)


@pytest.mark.mishap("late or repeated ok sets the status again")
async def test_late_and_repeated_oks_do_not_set_back_what_was_captured_and_refunded_since(world: Shop):
    checkout = await world.paid()
    payment = await world.payment_of(checkout)
    await world.asked(checkout, "capture")
    await world.asked(checkout, "refund", amount=1000)
    await world.follow(checkout)
    before = await world.events(checkout)
    for kind in ("success", "notification", "success", "notification", "success"):
        await world.resent(payment, kind)
        await world.follow(checkout)
    row = await world.row(checkout)
    assert (row.state, row.captured, row.refunded, row.attention) == ("completed", WHOLE, 1000, None)
    assert await world.events(checkout) == before
    assert await world.moved(checkout) == ["callback_arrived", "payment_found"]
    assert await world.movements(checkout) == [("captured", WHOLE), ("refunded", 1000)]
    await world.agree(checkout)


# ── Failures that are none ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.mishap("late fail, or the same cart twice, cancels a paid order")
async def test_a_late_fail_does_not_cancel_a_paid_order(world: Shop):
    checkout = await world.paid()
    payment = await world.payment_of(checkout)
    for kind in ("failure", "notification"):
        for status in ("failed", "cancelled", "error"):
            await world.resent(payment, kind, status)
            await world.follow(checkout)
    await once(world, checkout, moved=["callback_arrived", "payment_found"])


@pytest.mark.mishap("late fail, or the same cart twice, cancels a paid order")
async def test_the_same_cart_sent_twice_is_the_same_order_and_no_second_order_can_cancel_it(world: Shop):
    checkout = await world.paid()
    order = world.orders[checkout]
    again = await world.post(order)
    assert (again.status_code, again.json()["id"]) == (200, str(checkout))
    other = await world.post(order, amount="99.00")
    assert other.status_code == 409, "the same number for another amount is another order"
    assert (await world.asked(checkout, "cancel")).code == "refused_not_cancellable"
    await once(world, checkout, moved=["callback_arrived", "payment_found"])
    assert len(await world.sql("SELECT id FROM checkouts")) == 1


@pytest.mark.mishap("fail callback although money is held")
@pytest.mark.parametrize("status", ["failed", "error", "cancelled", "declined"])
async def test_a_fail_callback_over_money_that_is_held_completes_the_order(world: Shop, status: str):
    checkout = await world.offered()
    await world.plan(checkout, callbacks={"success": False, "notification": False})
    payment = await world.pay(checkout)
    await world.plan(checkout)
    assert await world.resent(payment, "failure", status) == 303
    await world.follow(checkout)
    await once(world, checkout, moved=["callback_arrived", "payment_found"])


@pytest.mark.mishap("fail of another transaction undoes the payment")
async def test_the_fail_of_another_transaction_does_not_change_the_paid_transaction(world: Shop):
    checkout = await world.offered()
    first, second = await world.started(checkout), await world.started(checkout)
    await world.submit(first)
    await world.told(checkout, notification=3, success=1)
    await world.follow(checkout)
    await world.submit(second, card=DECLINED_CARD)
    await world.told(checkout, notification=4, success=1, failure=1)
    await world.follow(checkout)
    await once(world, checkout, moved=["callback_arrived", "payment_found"])
    assert await world.roles(checkout) == ["accepted", "attempt"]


@pytest.mark.mishap("fail of another transaction undoes the payment")
async def test_the_paid_transaction_is_found_behind_a_fail_that_came_first(world: Shop):
    checkout = await world.offered()
    first, second = await world.started(checkout), await world.started(checkout)
    await world.submit(second, card=DECLINED_CARD)
    await world.submit(first)
    await world.told(checkout, notification=4, success=1, failure=1)
    await world.follow(checkout)
    await once(world, checkout, moved=["callback_arrived", "payment_found"])
    assert await world.roles(checkout) == ["accepted", "attempt"]


@pytest.mark.mishap("repeated notifications release the payment")
async def test_however_many_notifications_come_after_a_success_nothing_is_released(world: Shop):
    # The policies under which most is done without asking.
    await world.policy(late="return", surplus="return", unknown_order="return")
    checkout = await world.paid()
    payment = await world.payment_of(checkout)
    for status in ("succeeded", "succeeded", "open", "error", "succeeded", "failed"):
        await world.resent(payment, "notification", status)
        await world.follow(checkout, workers=2)
    await once(world, checkout, moved=["callback_arrived", "payment_found"])
    assert await world.operations(checkout) == []


@pytest.mark.mishap("only the notification arrives")
async def test_the_notification_alone_completes_the_order_and_tells_the_shop(world: Shop):
    checkout = await world.offered()
    await world.plan(checkout, callbacks={"success": False, "failure": False, "redirect": False})
    await world.pay(checkout)
    sent = await world.told(checkout)
    assert [callback["note"] for callback in sent if callback["kind"] == "success"] == ["lost"]
    await world.follow(checkout)
    await once(world, checkout, moved=["callback_arrived", "payment_found"])


@pytest.mark.mishap("confirmation sent twice")
async def test_the_shop_gets_one_completed_event_whatever_repeats(world: Shop):
    checkout = await world.offered()
    await world.plan(checkout, callbacks={"times": 3, "simultaneous": True})
    await world.pay(checkout)
    await world.told(checkout, notification=4, success=3)
    await world.follow(checkout, workers=2)
    payment = await world.payment_of(checkout)
    for status in ("succeeded", "failed", "succeeded"):
        await world.resent(payment, "notification", status)
        await world.follow(checkout, workers=2)
    assert (await world.asked(checkout, "reconcile")).code == "done_looked_up"
    assert (await world.asked(checkout, "retry")).code == "done_retried"
    await world.until_due(checkout)
    assert await world.events(checkout) == ["checkout.ready", "checkout.completed"]
    await once(world, checkout, moved=["callback_arrived", "payment_found"])


# ── What they bring ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.mishap("invalid or empty XML")
@pytest.mark.parametrize("damage", ["invalidXml", "emptyXml", "noTransactions"])
async def test_a_callback_with_broken_xml_is_taken_and_the_gateway_is_asked(world: Shop, damage: str):
    checkout = await world.offered()
    await world.plan(checkout, callbacks={"tamper": damage})
    page = await world.submit(await world.started(checkout))
    assert page.status_code == 303
    sent = await world.told(checkout)
    assert {callback["answerStatus"] for callback in sent} == {200, 303}
    await world.follow(checkout)
    await once(world, checkout, moved=["callback_arrived", "payment_found"])


@pytest.mark.mishap("invalid or empty XML")
@pytest.mark.parametrize(
    "body",
    [b"", b"xml=", b"xml=%3C!DOCTYPE%20a%20SYSTEM%20%22x%22%3E", b"\x00\xff\xfe", b"{" * 5000],
    ids=repr,
)
async def test_a_callback_that_is_nonsense_is_taken_and_the_gateway_is_asked(world: Shop, body: bytes):
    checkout = await world.offered()
    await world.plan(checkout, callbacks={"success": False, "notification": False})
    await world.pay(checkout)
    assert await world.called(checkout, body) == 200
    await world.follow(checkout)
    await once(world, checkout, moved=["callback_arrived", "payment_found"])


@pytest.mark.mishap("notifications overwrite each other; order unknown")
async def test_every_notification_about_a_transaction_is_kept(world: Shop):
    checkout = await world.offered(capture=True)
    payment = await world.pay(checkout)
    await world.told(checkout)
    for status in ("open", "succeeded", "failed", "ChargebackEvent"):
        await world.resent(payment, "notification", status)
    rows = await world.sql(
        "SELECT kind, times, handled_at FROM callbacks WHERE checkout_id = :id ORDER BY received_at, id",
        id=checkout,
    )
    # `succeeded` came again: the same callback, counted, or, if the gateway's document has another second in
    # its date, another entry.
    notifications = [row.times for row in rows if row.kind == "notification"]
    assert (sum(notifications), len(rows) - len(notifications)) == (6, 1)
    assert len(notifications) >= 5
    await world.follow(checkout)
    told = [entry["evidence"].get("callbacks", []) for entry in await world.trail(checkout)]
    statuses = {callback["status"] for callbacks in told for callback in callbacks}
    assert statuses >= {"new", "open", "succeeded", "failed", "chargebackevent"}
    assert not await world.sql("SELECT id FROM callbacks WHERE handled_at IS NULL")
    assert await world.confirmed(checkout) == 1
    await world.agree(checkout)

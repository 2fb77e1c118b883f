"""Money that comes twice, is captured, returned or taken back: moved once, by a worker, and booked as the
gateway has it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.shop import WHOLE, Shop

if TYPE_CHECKING:
    from uuid import UUID

pytestmark = pytest.mark.anyio


async def settled(world: Shop, checkout: UUID) -> None:
    """Wait until no call to the gateway is under way or awaited."""
    await world.follow(checkout)
    if await world.operating(checkout):
        # An answer was lost, and its absence proves something only after the quiet period.
        await world.later(seconds=400)
        await world.follow(checkout)
    assert not await world.operating(checkout)


# ── Two payments for one order ────────────────────────────────────────────────────────────────────────────


async def paid_twice(world: Shop, *, capture: bool = False, together: bool) -> UUID:
    """Return an order that was paid in two tabs: the second after the first was completed, or before any
    lookup.
    """
    checkout = await world.offered(capture=capture)
    first, second = await world.started(checkout), await world.started(checkout)
    assert (await world.submit(first)).status_code == 303
    if not together:
        await world.told(checkout, notification=3, success=1)
        await world.follow(checkout)
    assert (await world.submit(second)).status_code == 303
    await world.told(checkout, notification=4, success=2)
    before = await world.movements(checkout)
    assert all(kind == "captured" for kind, _ in before), "nothing is moved by taking a callback"
    await world.follow(checkout, workers=2)
    await settled(world, checkout)
    return checkout


@pytest.mark.mishap("two payments for one order")
@pytest.mark.parametrize("together", [True, False])
async def test_a_second_payment_is_reported_and_needs_a_decision(world: Shop, *, together: bool):
    checkout = await paid_twice(world, together=together)
    row = await world.row(checkout)
    assert (row.state, row.reserved, row.late) == ("completed", WHOLE, False)
    assert row.attention == "surplus_payment"
    assert await world.roles(checkout) == ["accepted", "surplus"]
    events = await world.events(checkout)
    once = ("checkout.completed", "payment.surplus", "checkout.attention")
    assert [events.count(kind) for kind in once] == [1, 1, 1]
    assert await world.movements(checkout) == [], "no decision yet"
    await world.agree(checkout)
    assert (await world.asked(checkout, "resolve", decision="return")).code == "accepted"
    await settled(world, checkout)
    assert await world.movements(checkout) == [("released", WHOLE)]
    assert (await world.held(checkout), (await world.row(checkout)).attention) == (WHOLE, None)
    await world.agree(checkout)


@pytest.mark.mishap("two payments for one order")
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("captured", [True, False])
async def test_a_second_payment_is_given_back_once_where_the_merchant_says_so(
    world: Shop, *, captured: bool, together: bool
):
    await world.policy(surplus="return")
    checkout = await paid_twice(world, capture=captured, together=together)
    row = await world.row(checkout)
    assert (row.state, row.reserved, row.attention) == ("completed", WHOLE, None)
    moves = await world.movements(checkout)
    returned = ("refunded", WHOLE) if captured else ("released", WHOLE)
    assert moves.count(returned) == 1
    assert len(moves) == (3 if captured else 1)
    assert await world.held(checkout) == WHOLE
    assert await world.confirmed(checkout) == 1
    (operation,) = await world.operations(checkout)
    assert (operation.cause, operation.state, operation.attempts) == ("returned", "succeeded", 1)
    await world.agree(checkout)


@pytest.mark.mishap("two payments for one order")
async def test_a_second_payment_that_the_gateway_does_not_give_back_is_tried_once_and_then_needs_a_decision(
    world: Shop,
):
    await world.policy(surplus="return")
    checkout = await world.offered()
    await world.plan(checkout, refuse={"release": 9})
    for _ in range(2):
        await world.pay(checkout)
    await world.told(checkout, notification=4, success=2)
    await world.follow(checkout)
    for _ in range(2):
        await world.until_due(checkout)
    row = await world.row(checkout)
    assert (row.state, row.reserved) == ("completed", WHOLE)
    assert row.attention is not None
    (operation,) = await world.operations(checkout)
    assert (operation.state, operation.attempts) == ("rejected", 1)
    assert await world.held(checkout) == 2 * WHOLE
    assert await world.movements(checkout) == []
    await world.agree(checkout)


@pytest.mark.mishap("shopper does not return from the bank, and the order doubles")
async def test_a_shopper_who_does_not_return_from_the_bank_has_one_order_and_pays_once(world: Shop):
    order = "ideal-1"
    checkout = await world.offered(order=order)
    await world.plan(checkout, callbacks={"success": False, "failure": False, "redirect": False})
    payment = await world.pay(checkout, method="BANK_PAYMENT", action="open")
    await world.told(checkout, notification=2)
    await world.follow(checkout)
    # Nothing seems to happen, so the shop's page is opened again and sends its cart again.
    again = await world.post(order)
    assert (again.status_code, again.json()["id"]) == (200, str(checkout))
    await world.control("POST", f"payments/{payment}/resolve", {"outcome": "succeeded"})
    await world.told(checkout, notification=3)
    await world.follow(checkout)
    row = await world.row(checkout)
    assert (row.state, row.captured, row.attention) == ("completed", WHOLE, None)
    assert (await world.post(order)).json()["id"] == str(checkout)
    assert len(await world.sql("SELECT id FROM checkouts")) == 1
    assert await world.confirmed(checkout) == 1
    assert await world.movements(checkout) == [("captured", WHOLE)]
    await world.agree(checkout)


@pytest.mark.mishap("shopper does not return from the bank, and the order doubles")
async def test_a_shopper_who_pays_by_card_while_the_bank_payment_is_open_has_one_order_and_a_surplus(
    world: Shop,
):
    checkout = await world.offered()
    bank = await world.pay(checkout, method="BANK_PAYMENT", action="open")
    await world.pay(checkout)
    await world.told(checkout, notification=4, success=1)
    await world.follow(checkout)
    assert await world.state(checkout) == "completed"
    await world.control("POST", f"payments/{bank}/resolve", {"outcome": "succeeded"})
    await world.told(checkout, notification=5, success=1)
    await world.follow(checkout)
    row = await world.row(checkout)
    assert row.attention == "surplus_payment"
    assert await world.roles(checkout) == ["accepted", "surplus"]
    assert await world.confirmed(checkout) == 1
    (accepted,) = await world.sql("SELECT status FROM payments WHERE role = 'accepted'")
    assert accepted.status == "preauth", "the payment that completed it stays accepted"
    await world.agree(checkout)


# ── Captures ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.mishap("captured twice")
async def test_a_payment_is_captured_once_by_policy_for_any_number_of_callbacks_and_workers(world: Shop):
    await world.policy(capture="automatic")
    checkout = await world.offered()
    await world.plan(checkout, callbacks={"times": 3, "simultaneous": True})
    payment = await world.pay(checkout)
    await world.told(checkout, notification=4, success=3)
    await world.follow(checkout, workers=2)
    await settled(world, checkout)
    for kind in ("notification", "success"):
        await world.resent(payment, kind)
        await world.follow(checkout, workers=2)
    assert (await world.asked(checkout, "capture")).matches("refused_nothing_left", "nothing is left")
    assert await world.movements(checkout) == [("captured", WHOLE)]
    row = await world.row(checkout)
    assert (row.captured, row.attention) == (WHOLE, None)
    assert (await world.events(checkout)).count("payment.captured") == 1
    await world.agree(checkout)


@pytest.mark.mishap("captured twice")
@pytest.mark.parametrize("status", [503, "timeout", "reset"])
async def test_a_capture_whose_answer_is_lost_is_looked_up_and_not_sent_again(world: Shop, status: int | str):
    checkout = await world.paid()
    await world.plan(checkout, fail={"capture": 1}, failStatus=status, failAfter=True)
    await world.command(checkout, "capture", amount=4000)
    await settled(world, checkout)
    (operation,) = await world.operations(checkout)
    assert (operation.state, operation.attempts) == ("succeeded", 1)
    assert await world.movements(checkout) == [("captured", 4000)]
    assert (await world.row(checkout)).captured == 4000
    await world.agree(checkout)


@pytest.mark.mishap("captured twice")
async def test_a_capture_of_which_nothing_is_known_is_not_sent_again_while_the_first_may_be_on_its_way(
    world: Shop,
):
    checkout = await world.paid()
    await world.plan(checkout, fail={"capture": 1}, failStatus="reset")
    await world.command(checkout, "capture", amount=4000)
    await world.follow(checkout)
    for kind in ("notification", "success"):
        await world.resent(await world.payment_of(checkout), kind)
        await world.follow(checkout, workers=2)
    (operation,) = await world.operations(checkout)
    assert (operation.state, operation.attempts) == ("unknown", 1)
    await settled(world, checkout)
    (operation,) = await world.operations(checkout)
    assert (operation.state, operation.attempts) == ("succeeded", 2)
    assert await world.movements(checkout) == [("captured", 4000)]
    await world.agree(checkout)


@pytest.mark.mishap("captured twice")
async def test_what_the_gateway_captures_by_itself_is_not_captured_by_us(world: Shop):
    await world.policy(capture="automatic")
    checkout = await world.paid(capture=True)
    await settled(world, checkout)
    assert (await world.asked(checkout, "capture")).matches("refused_captures_itself", "the gateway captures")
    assert await world.operations(checkout) == []
    assert await world.movements(checkout) == [("captured", WHOLE)]
    await world.agree(checkout)


@pytest.mark.mishap("shop and gateway disagree about a capture")
async def test_a_capture_that_the_gateway_did_not_make_is_not_in_our_books(world: Shop):
    checkout = await world.paid()
    await world.plan(checkout, refuse={"capture": 1})
    await world.command(checkout, "capture")
    await settled(world, checkout)
    row = await world.row(checkout)
    assert (row.captured, row.reserved) == (0, WHOLE)
    events = await world.events(checkout)
    assert "payment.operation_rejected" in events
    assert "payment.captured" not in events
    assert await world.movements(checkout) == []
    await world.agree(checkout)


@pytest.mark.mishap("shop and gateway disagree about a capture")
async def test_a_capture_that_the_gateway_left_to_us_is_made_by_us_and_counts_only_then(world: Shop):
    await world.policy(capture="automatic")
    checkout = await world.offered(capture=True)
    await world.plan(checkout, requireCapture=True, callbacks={"success": False, "notification": False})
    await world.pay(checkout)
    for _ in range(2):
        await world.until_due(checkout)
    assert (await world.row(checkout)).captured == 0, "asked for is not done"
    assert await world.operations(checkout) == [], "the gateway may still do it by itself"
    await world.plan(checkout)
    await world.resent(await world.payment_of(checkout), "notification")
    await settled(world, checkout)
    assert (await world.row(checkout)).captured == WHOLE
    assert await world.movements(checkout) == [("captured", WHOLE)]
    await world.agree(checkout)


@pytest.mark.mishap("shop and gateway disagree about a capture")
async def test_what_was_captured_by_hand_at_the_gateway_is_done_and_not_an_error(world: Shop):
    checkout = await world.paid()
    (payment,) = await world.ledger(checkout)
    by_hand = await world.http.post(
        f"{world.settings.gateway_url}/merchant/API/captureReservation",
        data={"transaction_id": payment["transactionId"], "amount": "139.00"},
        auth=("shop", "sandbox password"),
    )
    assert by_hand.is_success
    await world.command(checkout, "capture")
    await settled(world, checkout)
    (operation,) = await world.operations(checkout)
    assert (operation.state, operation.attempts) == ("succeeded", 0)
    assert await world.movements(checkout) == [("captured", WHOLE)]
    assert (await world.row(checkout)).captured == WHOLE
    await world.agree(checkout)


@pytest.mark.mishap("whole reservation captured instead of the order's total")
async def test_of_an_order_that_became_smaller_its_own_total_is_captured_and_no_more(world: Shop):
    checkout = await world.paid()
    assert (await world.asked(checkout, "capture", amount=9000)).code == "accepted"
    await settled(world, checkout)
    for _ in range(2):
        await world.resent(await world.payment_of(checkout))
        await world.follow(checkout)
    row = await world.row(checkout)
    assert (row.reserved, row.captured) == (WHOLE, 9000)
    assert await world.movements(checkout) == [("captured", 9000)]
    assert (await world.asked(checkout, "capture", amount=5000)).matches("refused_too_much", "only 49.00 DKK")
    assert (await world.asked(checkout, "refund", amount=9001)).matches("refused_too_much", "only 90.00 DKK")
    await world.agree(checkout)


# ── At the gateway ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.mishap("refunded or released at the gateway")
@pytest.mark.parametrize(
    ("method", "status"), [("CARD", "refunded"), ("BANK_PAYMENT", "bank_payment_refunded")]
)
async def test_a_refund_made_at_the_gateway_is_booked(world: Shop, method: str, status: str):
    checkout = await world.offered(capture=True)
    payment = await world.pay(checkout, method=method)
    await world.told(checkout)
    await world.follow(checkout)
    await world.control("POST", f"payments/{payment}/refund", {"amountMinor": 900})
    await world.told(checkout, notification=3, success=1)
    await world.follow(checkout)
    row = await world.row(checkout)
    assert (row.state, row.captured, row.refunded, row.attention) == ("completed", WHOLE, 900, None)
    (seen,) = await world.sql("SELECT status FROM payments WHERE checkout_id = :id", id=checkout)
    assert seen.status == status
    assert (await world.events(checkout))[-3:] == [
        "checkout.completed",
        "payment.captured",
        "payment.refunded",
    ]
    assert (await world.trail(checkout))[-1]["action"] == "payment:seen"
    assert await world.movements(checkout) == [("captured", WHOLE), ("refunded", 900)]
    await world.agree(checkout)


@pytest.mark.mishap("refunded or released at the gateway")
async def test_a_release_made_at_the_gateway_takes_the_money_off_the_books_and_raises_attention(world: Shop):
    checkout = await world.paid()
    payment = await world.payment_of(checkout)
    await world.control("POST", f"payments/{payment}/release", {})
    await world.told(checkout, notification=3, success=1)
    await world.follow(checkout)
    row = await world.row(checkout)
    assert (row.state, row.reserved, row.captured) == ("completed", 0, 0)
    assert row.attention == "payment_released"
    assert await world.confirmed(checkout) == 1
    assert (await world.asked(checkout, "capture")).code == "refused_nothing_left"
    await world.agree(checkout)


@pytest.mark.mishap("refunded or released at the gateway")
async def test_what_the_shoppers_bank_takes_back_is_booked_and_has_an_event(world: Shop):
    checkout = await world.paid(capture=True)
    payment = await world.payment_of(checkout)
    await world.control("POST", f"payments/{payment}/chargeback", {"amountMinor": 5000})
    await world.told(checkout, notification=3, success=1)
    await world.follow(checkout)
    row = await world.row(checkout)
    assert (row.state, row.captured, row.charged_back) == ("completed", WHOLE, 5000)
    assert row.attention == "charged_back"
    assert (await world.events(checkout)).count("payment.chargeback") == 1
    await world.agree(checkout)


# ── Unknown orders ────────────────────────────────────────────────────────────────────────────────────────


async def paid_without_order(world: Shop, order: str) -> UUID:
    """Return the checkout that a payment of an order which no shop handed over has become."""
    await world.unexpected_payment(order)
    (row,) = await world.sql("SELECT id FROM checkouts")
    checkout: UUID = row.id
    world.orders[checkout] = order
    await world.follow(checkout)
    await settled(world, checkout)
    return checkout


@pytest.mark.parametrize("late", ["ask", "keep"])
async def test_a_dismissed_payment_for_an_unknown_order_is_not_captured(world: Shop, late: str):
    await world.policy(unknown_order="ask", late=late, capture="automatic")
    order = f"old-system-dismissed-{late}"
    checkout = await paid_without_order(world, order)
    assert (await world.row(checkout)).attention == "unknown_order"
    assert (await world.asked(checkout, "resolve", decision="dismiss")).code == "done_decided"
    await world.follow(checkout)
    await settled(world, checkout)
    assert (await world.row(checkout)).attention is None
    assert await world.movements(checkout) == await world.operations(checkout) == []
    await world.agree(checkout)


@pytest.mark.mishap("notifications overwrite each other; order unknown")
@pytest.mark.parametrize("policy", ["ask", "return"])
async def test_a_payment_for_an_unknown_order_gets_a_checkout_and_a_decision(world: Shop, policy: str):
    await world.policy(unknown_order=policy)
    order = f"old-system-{policy}"
    checkout = await paid_without_order(world, order)
    row = await world.row(checkout)
    assert (row.state, row.late) == ("completed", True)
    if policy == "ask":
        assert row.attention == "unknown_order"
        assert await world.held(checkout) == WHOLE
        await world.agree(checkout)
        assert (await world.asked(checkout, "resolve", decision="return")).code == "accepted"
        await settled(world, checkout)
    await world.resent(await world.payment_of(checkout))
    await world.follow(checkout)
    assert (await world.row(checkout)).attention is None
    assert await world.movements(checkout) == [("released", WHOLE)], "exactly once"
    assert len(await world.sql("SELECT id FROM checkouts")) == 1
    await world.agree(checkout)

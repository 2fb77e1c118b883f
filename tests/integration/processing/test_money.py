"""After the payment: captures, refunds, releases; nothing is done twice, and what is not known is
looked up.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
import structlog

from orchestrator.domain import operations
from orchestrator.domain.last_error import ErrorCode, error
from orchestrator.gateway.outcomes import Done
from orchestrator.processing import money_operations
from orchestrator.store import checkouts
from orchestrator.store.merchant_fields import UnknownMerchant
from tests.support.said import answer, of_attention, of_error
from tests.support.scene import Scene, scene

pytestmark = pytest.mark.anyio

WHOLE = 13900


async def until_settled(world: Scene, checkout, *, seconds: float = 15.0):
    """Process whenever the checkout is due until no operation is under way and the checkout was looked up
    afterwards.
    """
    async with asyncio.timeout(seconds):
        while True:
            await world.take(checkout)
            row = await world.row(checkout)
            if (
                not await world.operating(checkout)
                and row.due_in is not None
                and row.due_in.total_seconds() > 5
            ):
                return row
            await asyncio.sleep(0.02)


async def until_submitted(world: Scene, checkout) -> None:
    async with asyncio.timeout(5):
        while [row.state for row in await world.operations(checkout)] != ["submitted"]:  # noqa: ASYNC110 - in Postgres
            await asyncio.sleep(0.01)


# ── Asked for ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_payment_is_captured_in_parts_and_refunded_in_parts_never_above_what_there_is(world: Scene):
    checkout = await world.paid()
    assert (await world.asked(checkout, "capture", amount=4000)).code == "accepted"
    assert (await world.asked(checkout, "capture", amount=WHOLE)).matches(
        "refused_too_much", "only 99.00 DKK"
    )
    assert (await world.asked(checkout, "capture")).code == "accepted"
    assert (await world.asked(checkout, "capture")).matches(
        "refused_nothing_left", "nothing is left to capture"
    )
    assert (await world.asked(checkout, "refund", amount=1000)).code == "accepted"
    assert (await world.asked(checkout, "refund", amount=13000)).matches(
        "refused_too_much", "only 129.00 DKK"
    )
    assert (await world.asked(checkout, "refund")).code == "accepted"
    row = await world.row(checkout)
    assert (row.state, row.captured, row.refunded, row.attention) == ("completed", WHOLE, WHOLE, None)
    assert await world.movements(checkout) == [
        ("captured", 4000),
        ("captured", 9900),
        ("refunded", 1000),
        ("refunded", 12900),
    ]
    actions = [
        entry["action"] for entry in await world.trail(checkout) if entry["action"].startswith("money:")
    ]
    assert actions == ["money:requested", "money:submitted", "money:succeeded"] * 4
    kinds = await world.events(checkout)
    assert [kind for kind in kinds if kind in {"payment.captured", "payment.refunded"}] == (
        ["payment.captured"] * 2 + ["payment.refunded"] * 2
    )
    await world.agree(checkout)


async def test_a_release_gives_the_whole_reservation_back(world: Scene):
    checkout = await world.paid()
    assert (await world.asked(checkout, "release")).code == "accepted"
    row = await until_settled(world, checkout)
    assert (row.state, row.reserved, row.captured) == ("completed", 0, 0)
    assert (await world.ledger(checkout))[0]["heldMinor"] == 0
    assert row.attention is None, "the merchant asked for it"


async def test_what_was_captured_is_refunded_and_not_released(world: Scene):
    checkout = await world.paid()
    await world.asked(checkout, "capture", amount=100)
    assert await world.asked(checkout, "release") == (
        "refused_already_captured",
        "it has been captured: refund it instead",
    )


async def test_two_captures_asked_for_at_once_are_executed_in_sequence(world: Scene):
    checkout = await world.paid()
    await world.command(checkout, "capture", amount=5000)
    await world.command(checkout, "capture", amount=6000)
    await world.command(checkout, "capture", amount=7000)
    await world.process(checkout)
    row = await until_settled(world, checkout)
    assert row.captured == 11000
    results = await world.sql("SELECT result FROM commands ORDER BY requested_at, id")
    assert [row.result for row in results] == ["accepted", "accepted", "refused_too_much"]
    await world.agree(checkout)


async def test_money_is_not_moved_for_an_unpaid_order(world: Scene):
    checkout = await world.offered()
    assert await world.asked(checkout, "capture") == (
        "refused_not_paid",
        "a checkout that is awaiting_payment has no payment",
    )
    assert await world.asked(checkout, "refund", transactionId="77") == (
        "refused_unknown_transaction",
        "no lookup has seen transaction 77 for this order",
    )
    assert (await world.events(checkout))[-1] == "payment.operation_rejected"


# ── What the gateway says ─────────────────────────────────────────────────────────────────────────────────


async def test_already_captured_at_the_gateway_is_success_and_no_second_capture(world: Scene):
    checkout = await world.paid()
    (payment,) = await world.ledger(checkout)
    by_hand = await world.http.post(
        f"{world.settings.gateway_url}/merchant/API/captureReservation",
        data={"transaction_id": payment["transactionId"], "amount": "139.00"},
        auth=("shop", "sandbox password"),
    )
    assert by_hand.is_success
    await world.command(checkout, "capture")
    await world.process(checkout)
    row = await until_settled(world, checkout)
    assert row.captured == WHOLE
    (operation,) = await world.operations(checkout)
    assert (operation.state, operation.attempts) == ("succeeded", 0)
    assert len(await world.movements(checkout)) == 1
    await world.agree(checkout)


async def test_a_total_that_changed_since_it_was_asked_for_is_for_the_merchant_to_decide_again(world: Scene):
    checkout = await world.paid(capture=True)
    (payment,) = await world.ledger(checkout)
    await world.control("POST", f"payments/{payment['paymentId']}/refund", {"amountMinor": 300})
    await world.command(checkout, "refund", amount=500)
    await world.process(checkout)
    row = await until_settled(world, checkout)
    (operation,) = await world.operations(checkout)
    assert (operation.state, row.refunded) == ("rejected", 300)
    assert operation.last_error == "total_changed"
    assert "decide again" in of_error(operation)
    await world.agree(checkout)


async def test_a_refusal_of_the_gateway_is_reported_and_leaves_nothing_open(world: Scene):
    checkout = await world.paid()
    await world.plan(checkout, refuse={"capture": 1})
    await world.command(checkout, "capture")
    await world.process(checkout)
    await until_settled(world, checkout)
    (operation,) = await world.operations(checkout)
    assert operation.state == "rejected"
    assert "payment.operation_rejected" in await world.events(checkout)
    assert (await world.asked(checkout, "capture")).code == "accepted"
    assert (await world.row(checkout)).captured == WHOLE


@pytest.mark.parametrize("echo", [True, False])
@pytest.mark.parametrize("status", [503, "malformed"])
@pytest.mark.parametrize("kind", ["capture", "refund"])
async def test_an_answer_that_is_lost_is_looked_up_and_never_sent_again(
    world: Scene, kind: str, status: int | str, *, echo: bool
):
    checkout = await world.offered(capture=kind == "refund")
    await world.plan(checkout, echo=echo, fail={kind: 1}, failStatus=status, failAfter=True)
    await world.pay(checkout)
    await world.call_back(checkout)
    await world.process(checkout)
    await world.command(checkout, kind, amount=4000)  # type: ignore[arg-type]
    await world.process(checkout)
    await world.later(seconds=400)
    row = await until_settled(world, checkout)
    assert (row.captured, row.refunded) == ((4000, 0) if kind == "capture" else (WHOLE, 4000))
    (operation,) = await world.operations(checkout)
    assert (operation.state, operation.attempts) == ("succeeded", 1)
    assert [amount for _, amount in await world.movements(checkout)].count(4000) == 1
    await world.agree(checkout)


@pytest.mark.parametrize("status", [503, "timeout", "reset"])
async def test_a_call_that_had_no_effect_is_sent_again_after_the_quiet_period_and_not_before(
    world: Scene, status: int | str
):
    checkout = await world.paid()
    await world.plan(checkout, fail={"capture": 1}, failStatus=status)
    await world.command(checkout, "capture", amount=4000)
    await world.process(checkout)
    (operation,) = await world.operations(checkout)
    assert (operation.state, operation.attempts) == ("unknown", 1)
    await world.process(checkout)
    (operation,) = await world.operations(checkout)
    assert (operation.state, operation.attempts) == ("unknown", 1), "its call may still be on its way"
    await world.later(seconds=400)
    row = await until_settled(world, checkout)
    (operation,) = await world.operations(checkout)
    assert (operation.state, operation.attempts, row.captured) == ("succeeded", 2, 4000)
    assert await world.movements(checkout) == [("captured", 4000)]


async def test_a_gateway_that_was_never_reached_is_tried_again_without_a_quiet_period(
    database_url: str, gateway_url: str
):
    async with scene(database_url, gateway_url) as world:
        checkout = await world.paid()
        await world.plan(checkout, fail={"capture": 2}, failStatus=401)
        assert (await world.asked(checkout, "capture")).code == "accepted"
        assert [row.state for row in await world.operations(checkout)] == ["succeeded"]


async def test_totals_that_fit_neither_outcome_need_a_decision_and_send_nothing(world: Scene):
    checkout = await world.offered()
    await world.plan(checkout, echo=False, fail={"capture": 1}, failStatus="reset")
    await world.pay(checkout)
    await world.call_back(checkout)
    await world.process(checkout)
    await world.command(checkout, "capture", amount=4000)
    await world.process(checkout)
    (payment,) = await world.ledger(checkout)
    await world.http.post(
        f"{world.settings.gateway_url}/merchant/API/captureReservation",
        data={"transaction_id": payment["transactionId"], "amount": "10.00"},
        auth=("shop", "sandbox password"),
    )
    await world.later(seconds=400)
    await world.process(checkout)
    row = await world.row(checkout)
    (operation,) = await world.operations(checkout)
    assert (operation.state, operation.attempts) == ("unknown", 1)
    assert row.attention == "operation_unclear"
    assert row.due_at is not None
    before = len(await world.trail(checkout))
    await world.process(checkout)
    assert len(await world.trail(checkout)) == before, "the same is not said twice"


# ── Takeover by the next worker ─────────────────────────────────────────────────────────────────────────


async def test_a_submitted_operation_that_was_never_sent_is_looked_up_and_sent_after_the_quiet_period(
    world: Scene,
):
    checkout = await world.paid()
    await world.command(checkout, "capture", amount=4000)
    # A worker that died between writing `submitted` and sending: it is not known that it was never sent.
    await world.plan(checkout, delayMs={"capture": 3000})
    dying = asyncio.create_task(world.process(checkout))
    await until_submitted(world, checkout)
    dying.cancel()
    await asyncio.gather(dying, return_exceptions=True)
    await world.plan(checkout)
    await world.later(seconds=400)
    row = await until_settled(world, checkout)
    assert row.captured == 4000
    assert await world.movements(checkout) == [("captured", 4000)]
    await world.agree(checkout)


async def test_a_worker_that_lost_the_lease_writes_nothing_of_an_operation(world: Scene):
    checkout = await world.paid()
    await world.command(checkout, "capture", amount=4000)
    await world.plan(checkout, delayMs={"capture": 700})
    slow = asyncio.create_task(world.process(checkout))
    await until_submitted(world, checkout)
    await world.sql(
        "UPDATE checkouts SET leased_until = clock(), due_at = clock() WHERE id = :id", id=checkout
    )
    await world.take(checkout)
    await slow
    await world.later(seconds=400)
    row = await until_settled(world, checkout)
    assert row.captured == 4000
    assert await world.movements(checkout) == [("captured", 4000)]
    (operation,) = await world.operations(checkout)
    assert (operation.state, operation.attempts) == ("succeeded", 1)


# ── By itself ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_with_auto_capture_we_never_capture_what_the_gateway_captures(world: Scene):
    await world.policy(capture="automatic")
    checkout = await world.paid(capture=True)
    row = await until_settled(world, checkout)
    assert row.captured == WHOLE
    assert await world.operations(checkout) == []
    assert len(await world.movements(checkout)) == 1


async def test_with_auto_capture_we_capture_where_the_gateway_says_that_it_will_not(world: Scene):
    checkout = await world.offered(capture=True)
    await world.plan(checkout, requireCapture=True)
    await world.pay(checkout)
    await world.call_back(checkout, body=b"status=succeeded&require_capture=true")
    await world.process(checkout)
    row = await until_settled(world, checkout)
    assert row.captured == WHOLE
    assert [row.cause for row in await world.operations(checkout)] == ["automatic"]
    await world.call_back(checkout, kind="notification", body=b"status=succeeded&require_capture=true")
    await world.process(checkout)
    await until_settled(world, checkout)
    assert len(await world.movements(checkout)) == 1


async def test_until_it_says_so_a_capture_of_ours_is_refused(world: Scene):
    checkout = await world.offered(capture=True)
    await world.plan(checkout, requireCapture=True)
    await world.pay(checkout)
    await world.call_back(checkout)
    await world.process(checkout)
    assert (await world.asked(checkout, "capture")).matches(
        "refused_captures_itself", "the gateway captures this payment by itself"
    )
    assert (await world.row(checkout)).captured == 0


async def test_the_policy_automatic_captures_once_however_many_callbacks_come(world: Scene):
    await world.policy(capture="automatic")
    checkout = await world.paid()
    for number in range(5):
        await world.call_back(checkout, kind="notification", body=b"status=succeeded&n=%d" % number)
        await world.process(checkout)
    row = await until_settled(world, checkout)
    assert row.captured == WHOLE
    assert len(await world.movements(checkout)) == 1


async def test_a_reservation_about_to_lapse_raises_attention_once_and_its_capture_clears_it(world: Scene):
    checkout = await world.paid()
    row = await world.row(checkout)
    assert row.reserved_until is not None
    await world.later(days=6, hours=1)
    await world.process(checkout)
    row = await world.row(checkout)
    assert row.attention == "reservation_lapses"
    assert (await world.events(checkout)).count("checkout.attention") == 1
    await world.process(checkout)
    assert (await world.events(checkout)).count("checkout.attention") == 1
    await world.asked(checkout, "capture")
    row = await until_settled(world, checkout)
    assert (row.attention, row.reserved_until) == (None, None)


async def test_a_reservation_makes_the_order_due_before_it_lapses(world: Scene):
    checkout = await world.paid()
    row = await world.row(checkout)
    while row.due_in.total_seconds() < 86_400:
        await world.later(seconds=row.due_in.total_seconds() + 1)
        await world.process(checkout)
        row = await world.row(checkout)
        if row.attention:
            break
    left = (row.reserved_until - row.due_at).total_seconds() if row.attention is None else 0.0
    while row.attention is None:
        await world.later(seconds=row.due_in.total_seconds() + 1)
        await world.process(checkout)
        row = await world.row(checkout)
    assert left <= world.settings.lapse_warning or row.attention is not None
    assert (row.reserved_until - (await world.sql("SELECT clock() AS now"))[0].now).total_seconds() > 0


# ── Late, surplus, unexpected ─────────────────────────────────────────────────────────────────────────────


async def late(world: Scene):
    checkout = await world.offered(expiresIn=1)
    await world.processed_until(checkout, "expired")
    await world.pay(checkout)
    await world.call_back(checkout)
    await world.process(checkout)
    return checkout


async def test_late_money_by_default_needs_a_decision_and_can_be_kept(world: Scene):
    checkout = await late(world)
    assert (await world.row(checkout)).attention == "late_payment"
    assert (await world.asked(checkout, "resolve", decision="keep")).code == "done_decided"
    row = await until_settled(world, checkout)
    assert (row.state, row.late, row.attention, row.reserved) == ("completed", True, None, WHOLE)


async def test_late_money_is_returned_when_a_person_says_so(world: Scene):
    checkout = await late(world)
    assert (await world.asked(checkout, "resolve", decision="return")).code == "accepted"
    row = await until_settled(world, checkout)
    assert (row.state, row.late, row.attention) == ("completed", True, None)
    assert (await world.ledger(checkout))[0]["heldMinor"] == 0
    assert "payment.released" in await world.events(checkout)


async def test_the_policy_keep_completes_late_money_and_raises_no_attention(world: Scene):
    await world.policy(late="keep")
    row = await world.row(await late(world))
    assert (row.state, row.late, row.attention) == ("completed", True, None)


@pytest.mark.parametrize("captured", [True, False])
async def test_the_policy_return_gives_late_money_back_exactly_once(world: Scene, *, captured: bool):
    await world.policy(late="return")
    checkout = await world.offered(expiresIn=1, capture=captured)
    await world.processed_until(checkout, "expired")
    await world.pay(checkout)
    for kind in ("success", "notification"):
        await world.call_back(checkout, kind=kind)
    await world.process(checkout)
    row = await until_settled(world, checkout)
    assert (row.state, row.late, row.attention) == ("completed", True, None)
    assert [row.state for row in await world.operations(checkout)] == ["succeeded"]
    assert (await world.ledger(checkout))[0]["heldMinor"] == 0
    await world.agree(checkout)


async def test_the_policy_return_gives_surplus_back_exactly_once_and_keeps_the_payment(world: Scene):
    await world.policy(surplus="return")
    checkout = await world.paid()
    await world.pay(checkout)
    await world.pay(checkout)
    for number in range(3):
        await world.call_back(checkout, kind="notification", body=b"status=succeeded&n=%d" % number)
        await world.process(checkout)
    row = await until_settled(world, checkout)
    assert (row.state, row.reserved, row.attention) == ("completed", WHOLE, None)
    assert [row.state for row in await world.operations(checkout)] == ["succeeded", "succeeded"]
    assert sum(transaction["heldMinor"] for transaction in await world.ledger(checkout)) == WHOLE


async def test_surplus_that_cannot_be_returned_is_tried_once_and_then_needs_a_decision(world: Scene):
    await world.policy(surplus="return")
    checkout = await world.paid()
    await world.plan(checkout, refuse={"release": 9})
    await world.pay(checkout)
    await world.call_back(checkout, kind="notification")
    await world.process(checkout)
    row = await until_settled(world, checkout)
    assert row.attention in {"operation_rejected", "surplus_payment"}
    assert [row.state for row in await world.operations(checkout)] == ["rejected"]


async def test_a_kept_surplus_payment_raises_no_attention_again_but_the_next_surplus_does(world: Scene):
    checkout = await world.paid()
    await world.pay(checkout)
    await world.call_back(checkout, kind="notification")
    await world.process(checkout)
    assert (await world.row(checkout)).attention == "surplus_payment"
    await world.asked(checkout, "resolve", decision="keep")
    row = await until_settled(world, checkout)
    assert row.attention is None
    await world.process(checkout)
    assert (await world.row(checkout)).attention is None
    await world.pay(checkout)
    await world.call_back(checkout, kind="notification", body=b"status=succeeded&again=1")
    await world.process(checkout)
    assert (await world.row(checkout)).attention == "surplus_payment"


async def test_surplus_is_released_by_its_own_number(world: Scene):
    checkout = await world.paid()
    await world.pay(checkout)
    await world.call_back(checkout, kind="notification")
    await world.process(checkout)
    (surplus,) = await world.sql("SELECT transaction_id FROM payments WHERE role = 'surplus'")
    assert (await world.asked(checkout, "release", transactionId=surplus.transaction_id)).code == ("accepted")
    row = await until_settled(world, checkout)
    assert (row.attention, row.reserved) == (None, WHOLE)


async def test_a_decision_without_an_attention_is_refused(world: Scene):
    checkout = await world.paid()
    assert await world.asked(checkout, "resolve", decision="keep") == (
        "refused_nothing_to_decide",
        "nothing is waiting for a decision",
    )


# ── Chargebacks, reopening, asking ────────────────────────────────────────────────────────────────────────


async def test_a_chargeback_is_booked_reported_and_needs_a_decision(world: Scene):
    checkout = await world.paid(capture=True)
    (payment,) = await world.ledger(checkout)
    await world.control("POST", f"payments/{payment['paymentId']}/chargeback", {"amountMinor": 5000})
    await world.call_back(checkout, kind="notification", body=b"status=ChargebackEvent")
    await world.process(checkout)
    row = await world.row(checkout)
    assert (row.state, row.captured, row.charged_back) == ("completed", WHOLE, 5000)
    assert row.attention == "charged_back"
    assert of_attention(row) == "the shopper's bank took back 50.00 DKK; answer it at the gateway"
    assert "payment.chargeback" in await world.events(checkout)
    await world.asked(checkout, "resolve", decision="dismiss")
    row = await until_settled(world, checkout)
    assert (row.attention, row.charged_back) == (None, 5000)


async def test_an_expired_order_is_reopened_and_paid(world: Scene):
    checkout = await world.offered(expiresIn=1)
    await world.processed_until(checkout, "expired")
    assert await world.asked(checkout, "reopen", expiresIn=900) == ("done_reopened", "it is reopened")
    row = await world.processed_until(checkout, "awaiting_payment")
    assert (row.session_count, row.ended_at) == (2, None)
    assert 800 < row.left.total_seconds() <= 900
    await world.pay(checkout)
    await world.call_back(checkout)
    await world.process(checkout)
    row = await world.row(checkout)
    assert (row.state, row.late) == ("completed", False)


async def test_an_order_number_is_reopened_at_most_so_often_as_the_gateway_takes_it(world: Scene):
    checkout = await world.offered(expiresIn=1)
    for use in range(2, 5):
        await world.processed_until(checkout, "expired")
        assert (await world.asked(checkout, "reopen", expiresIn=1)).code == "done_reopened", use
    await world.processed_until(checkout, "expired")
    assert (await world.asked(checkout, "reopen")).matches("refused_order_number_used_up", "order number")


async def test_reopening_what_has_been_paid_completes_it_instead(world: Scene):
    checkout = await world.offered(expiresIn=1)
    await world.processed_until(checkout, "expired")
    await world.pay(checkout)
    assert await world.asked(checkout, "reopen") == (
        "done_looked_up",
        "the gateway shows money held for this order",
    )
    row = await world.row(checkout)
    assert (row.state, row.late) == ("completed", True)


async def test_what_is_alive_or_has_been_replaced_is_not_reopened(world: Scene):
    alive = await world.offered()
    assert await world.asked(alive, "reopen") == (
        "refused_not_closed",
        "a checkout that is awaiting_payment cannot be reopened",
    )
    closed = await world.offered(expiresIn=1)
    await world.processed_until(closed, "expired")
    (row,) = await world.sql("SELECT order_ref FROM checkouts WHERE id = :id", id=closed)
    newer = await world.offered()
    await world.sql("UPDATE checkouts SET order_ref = :ref WHERE id = :id", ref=row.order_ref, id=newer)
    assert (await world.asked(closed, "reopen")).matches(
        "refused_order_taken", f"order {row.order_ref} belongs to checkout {newer}"
    )


@pytest.mark.parametrize("where", ["received", "awaiting_payment", "completed", "expired"])
async def test_a_reconcile_command_causes_a_lookup_and_its_result_says_what_was_found(
    world: Scene, where: str
):
    if where == "received":
        checkout = await world.accept()
    elif where == "completed":
        checkout = await world.paid()
    else:
        checkout = await world.offered(expiresIn=1 if where == "expired" else 600)
        await world.processed_until(checkout, where)
    said = await world.asked(checkout, "reconcile")
    assert said == (
        ("done_looked_up", "the gateway shows money held for this order")
        if where == "completed"
        else ("done_looked_up", "the gateway shows no attempt to pay")
    )
    assert "gateway:asked" in [entry["action"] for entry in await world.trail(checkout)]


@pytest.mark.parametrize(
    ("state", "later"),
    [("completed", "reconcile"), ("awaiting_payment", "reconcile"), ("awaiting_payment", "cancel")],
)
async def test_a_command_that_came_with_a_requested_lookup_does_not_wait_for_the_next_due_time(
    world: Scene, state: str, later: str
):
    checkout = await (world.paid() if state == "completed" else world.offered())
    ids = [await world.command(checkout, kind) for kind in ("reconcile", later)]

    async def handled() -> list[bool]:
        rows = await world.sql("SELECT id, handled_at FROM commands WHERE id = ANY(:ids)", ids=ids)
        found = {row.id: row.handled_at is not None for row in rows}
        return [found[command] for command in ids]

    await world.process(checkout)
    assert await handled() == [True, False]
    assert (await world.row(checkout)).due_in.total_seconds() <= 0
    await world.take(checkout)
    assert await handled() == [True, True]
    if state == "completed":
        assert (await world.row(checkout)).due_in.total_seconds() > 60


async def test_a_requested_lookup_finds_a_paid_order_whose_callbacks_were_lost(world: Scene):
    checkout = await world.offered()
    await world.pay(checkout)
    await world.asked(checkout, "reconcile")
    assert await world.state(checkout) == "completed"


async def test_a_retry_clears_the_failures_and_tries_now(world: Scene):
    checkout = await world.accept()
    await world.plan(checkout, fail={"session": 1})
    await world.process(checkout)
    assert (await world.row(checkout)).attempts == 1
    assert await world.asked(checkout, "retry") == ("done_retried", "it is tried again now")
    assert await world.state(checkout) == "awaiting_payment"


# ── Edges ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_surplus_is_not_captured_and_nothing_is_returned_that_holds_no_money(world: Scene):
    checkout = await world.paid()
    await world.pay(checkout)
    await world.call_back(checkout, kind="notification")
    await world.process(checkout)
    (surplus,) = await world.sql("SELECT transaction_id FROM payments WHERE role = 'surplus'")
    said = await world.asked(checkout, "capture", transactionId=surplus.transaction_id)
    assert said.matches(
        "refused_not_its_payment", "only the payment that completed the checkout can be captured"
    )
    await world.sql("UPDATE payments SET meaning = 'nothing' WHERE role = 'surplus'")
    assert await world.asked(checkout, "resolve", decision="return") == (
        "refused_nothing_to_return",
        "no transaction that this is about holds money that is surely this order's",
    )


async def test_an_unknown_order_is_not_reopened(world: Scene):
    checkout = await world.offered(expiresIn=1)
    await world.processed_until(checkout, "expired")
    (row,) = await world.sql("SELECT data_key FROM intents WHERE checkout_id = :id", id=checkout)
    empty = world.encryptor.data_key(checkout, bytes(row.data_key)).encrypt(b"{}", purpose="intent")
    await world.sql("UPDATE intents SET body = :body WHERE checkout_id = :id", body=empty, id=checkout)
    assert (await world.asked(checkout, "reopen")).matches("refused_not_an_order", "order ")


async def test_reopening_waits_for_no_open_payment(world: Scene):
    checkout = await world.offered(expiresIn=1)
    await world.processed_until(checkout, "expired")
    await world.pay(checkout, action="open", method="BANK_PAYMENT")
    assert await world.asked(checkout, "reopen") == (
        "refused_payment_shown",
        "the gateway shows this order as open",
    )


@pytest.mark.parametrize("state", ["requested", "unknown"])
async def test_a_transaction_that_the_gateway_does_not_know_needs_a_decision(world: Scene, state: str):
    checkout = await world.paid()
    await world.plan(checkout, fail={"capture": 1}, failStatus="reset")
    await world.command(checkout, "capture", amount=4000)
    await world.process(checkout)
    await world.sql("UPDATE money_operations SET state = :state, transaction_id = '1'", state=state)
    await world.sign_operations(checkout)
    await world.later(seconds=400)
    await world.process(checkout)
    row = await world.row(checkout)
    assert row.attention == "operation_unclear"
    assert of_attention(row).startswith("the gateway does not know")
    assert [row.state for row in await world.operations(checkout)] == [state]


async def test_another_transaction_of_the_answer_is_not_taken_for_the_operations_own(world: Scene):
    checkout, other = await world.paid(), await world.paid()
    await world.sql(
        "UPDATE payments SET transaction_id = (SELECT transaction_id FROM payments WHERE checkout_id = :other) || '0' "
        "WHERE checkout_id = :id",
        id=checkout,
        other=other,
    )
    await world.command(checkout, "capture", amount=4000)
    await world.process(checkout)
    assert await world.movements(other) == []
    (operation,) = await world.operations(checkout)
    assert operation.state == "requested"
    assert operation.last_error == "transaction_unknown"


async def test_an_operation_on_a_transaction_that_cannot_be_read_is_not_sent(world: Scene):
    checkout = await world.paid()
    await world.command(checkout, "release")
    await world.plan(checkout, fail={"payments": 1})
    await world.process(checkout)
    assert [row.state for row in await world.operations(checkout)] == ["requested"], "the lookup failed"
    wrong = operations.Judged(operations.Fate.UNCLEAR, error=error(ErrorCode.STATUS_UNCLEAR, status="odd"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operations, "before_sending", lambda *_: wrong)
        await world.process(checkout)
    assert [row.state for row in await world.operations(checkout)] == ["requested"]
    assert (await world.row(checkout)).attention == "operation_unclear"
    assert await world.movements(checkout) == []
    await world.process(checkout)
    row = await until_settled(world, checkout)
    assert row.attention is None


async def test_what_is_left_of_a_short_lease_is_made_to_outlast_the_call_before_it_is_sent(
    database_url: str, gateway_url: str
):
    async with scene(
        database_url,
        gateway_url,
        lease_seconds=1.2,
        gateway_total_timeout=2,
        gateway_read_timeout=1.95,
        gateway_connect_timeout=0.95,
    ) as world:
        checkout = await world.paid()
        # The lookup before it takes most of the lease.
        await world.plan(checkout, delayMs={"payments": 700, "capture": 1500})
        await world.command(checkout, "capture", amount=4000)
        carrying = asyncio.create_task(world.process(checkout))
        await until_submitted(world, checkout)
        row = await world.row(checkout)
        assert row.due_in.total_seconds() > 4, "three times the longest call, which now goes out"
        await asyncio.sleep(1.0)
        assert await checkouts.claim(world.db, [checkout], lease_seconds=1) == [], (
            "no other worker may claim it"
        )
        await carrying
        assert [amount for kind, amount in await world.movements(checkout) if kind == "captured"] == [4000]
        assert (await until_settled(world, checkout)).captured == 4000


async def test_a_call_that_has_waited_for_its_turn_until_the_lease_might_end_is_not_sent(
    database_url: str, gateway_url: str, monkeypatch
):
    async with scene(
        database_url,
        gateway_url,
        lease_seconds=1,
        gateway_total_timeout=0.9,
        gateway_read_timeout=0.85,
        gateway_connect_timeout=0.85,
    ) as world:
        checkout = await world.paid()
        await world.command(checkout, "capture", amount=4000)
        real = world.processor.context.gateway.capture

        async def late(account: Any, *, lease_guard: Any, **asked: Any) -> Any:
            assert lease_guard()
            (held,) = [holder for holder in holders if holder.id == checkout]
            # Renewals go on while it waits, and do not count: the quiet period of the next worker begins
            # at `submitted`.
            for _ in range(8):
                await asyncio.sleep(0.25)
                await checkouts.renew(world.db, [held], lease_seconds=1)
            assert held.lease_left() > 0.5
            assert not lease_guard()
            return await real(account, lease_guard=lease_guard, **asked)

        monkeypatch.setattr(world.processor.context.gateway, "capture", late)
        holders = await checkouts.claim(world.db, [checkout], lease_seconds=1)
        await world.processor.process(holders)
        assert await world.movements(checkout) == []
        assert [row.state for row in await world.operations(checkout)] == ["requested"]
        monkeypatch.undo()
        assert (await until_settled(world, checkout)).captured == 4000


async def test_an_answer_of_a_firewall_says_nothing_about_the_server_behind_it(world: Scene):
    checkout = await world.paid()
    await world.plan(checkout, fail={"capture": 1}, failStatus=403)
    await world.command(checkout, "capture", amount=4000)
    await world.process(checkout)
    assert [row.state for row in await world.operations(checkout)] == ["unknown"]


@pytest.mark.parametrize("found", ["nothing", "done", "full"])
async def test_a_refusal_is_looked_up_before_it_counts(world: Scene, found: str):
    checkout = await world.paid()
    # A gateway that refuses: because another lookup fails, because it did it all the same, or because all is
    # captured.
    plan = {
        "nothing": {"refuse": {"capture": 1}},
        "done": {"fail": {"capture": 1}, "failAfter": True, "failStatus": 422},
        "full": {"fail": {"capture": 1}, "failStatus": 422},
    }[found]
    await world.plan(checkout, **plan)
    judged = operations.Judged(operations.Fate.UNCLEAR, "more than was asked for")
    await world.command(checkout, "capture", amount=WHOLE if found == "full" else 4000)
    with pytest.MonkeyPatch.context() as patch:
        if found == "nothing":
            await world.plan(checkout, refuse={"capture": 1}, delayMs={"capture": 1500})
            carrying = asyncio.create_task(world.process(checkout))
            await until_submitted(world, checkout)
            await world.plan(checkout, refuse={"capture": 1}, fail={"payments": 1})
            await carrying
            assert [row.state for row in await world.operations(checkout)] == ["submitted"]
            return
        if found == "full":
            patch.setattr(operations, "after_sending", lambda *_: judged)
            patch.setattr(money_operations, "left_to", lambda *_: 0)
            due = operations.Judged(operations.Fate.DUE, "books_agree")
            patch.setattr(operations, "before_sending", lambda *_: due)
        await world.process(checkout)
    assert [row.state for row in await world.operations(checkout)] == ["succeeded"]


async def test_an_answer_without_a_transaction_is_enough_and_the_totals_come_with_the_next_lookup(
    world: Scene,
):
    checkout = await world.paid()
    called = world.processor.context.gateway.capture

    async def bare(*arguments, **options):
        return Done(replace((await called(*arguments, **options)).value, transaction=None))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world.processor.context.gateway, "capture", bare)
        await world.command(checkout, "capture", amount=4000)
        await world.process(checkout)
    row = await until_settled(world, checkout)
    assert row.captured == 4000


async def test_lookups_of_a_merchant_that_cannot_be_read_wait_for_no_budget(world: Scene):
    checkout = await world.paid()
    await world.sql("ALTER TABLE lookup_budgets RENAME TO budgets")
    with structlog.testing.capture_logs() as logs:
        await world.process(checkout)
    assert "places_not_taken" in [line["event"] for line in logs]
    row = await world.row(checkout)
    assert (row.state, row.lease) == ("completed", None), "it was looked up all the same"
    await world.sql("ALTER TABLE budgets RENAME TO lookup_budgets")

    async def unknown_merchant(number: int):
        raise UnknownMerchant(number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world.merchants, "get", unknown_merchant)
        await world.process(checkout)
        row = await world.row(checkout)
        assert (row.attention, row.attempts) == (None, 1), "it may have been added a moment ago"
        for _ in range(3):
            await world.process(checkout)
    row = await world.row(checkout)
    assert row.attention == "step_broke"
    assert of_attention(row).startswith("UnknownMerchant")
    assert row.due_at is not None


async def test_what_names_no_checkout_may_be_anothers_with_the_same_account(world: Scene):
    closed = await world.offered(expiresIn=1)
    await world.processed_until(closed, "expired")
    await world.plan(closed, bindings=False)
    (row,) = await world.sql("SELECT order_ref FROM checkouts WHERE id = :id", id=closed)
    newer = await world.offered()
    await world.sql("UPDATE checkouts SET order_ref = :ref WHERE id = :id", ref=row.order_ref, id=newer)
    await world.pay(closed)
    await world.process(closed, newer)
    for checkout in (closed, newer):
        assert (await world.row(checkout)).attention == "unbound_payment"
        assert await world.state(checkout) != "completed"


async def test_the_policy_keep_does_not_apply_to_surplus_money(world: Scene):
    await world.policy(surplus="keep")
    checkout = await world.paid()
    await world.pay(checkout)
    await world.call_back(checkout, kind="notification")
    await world.process(checkout)
    row = await world.row(checkout)
    assert (row.attention, row.reserved) == (None, WHOLE)
    assert "payment.surplus" in await world.events(checkout)


async def test_a_lookup_before_the_offer_is_repeated_if_it_fails_and_completes_if_it_finds_money(
    world: Scene,
):
    checkout = await world.offered()
    await world.pay(checkout)
    # As if our books had been set back to before the offer: the gateway shows more than our books.
    await world.sql("UPDATE checkouts SET state = 'session_created' WHERE id = :id", id=checkout)
    await world.plan(checkout, fail={"payments": 1})
    command = await world.command(checkout, "reconcile")
    await world.process(checkout)
    (row,) = await world.sql("SELECT result FROM commands WHERE id = :id", id=command)
    assert row.result is None, "no result states what was not seen"
    await world.process(checkout)
    assert await world.state(checkout) == "completed"
    (row,) = await world.sql("SELECT result, result_details FROM commands WHERE id = :id", id=command)
    assert answer(row) == ("done_looked_up", "the gateway shows money held for this order")


# ── What a review of the money paths asked for ────────────────────────────────────────────────────────────


@pytest.mark.parametrize("result", ["Open", "SystemError", "Incomplete"])
async def test_an_answer_that_says_neither_yes_nor_no_is_not_taken_for_a_refusal(world: Scene, result: str):
    checkout = await world.paid(capture=True)
    called = world.processor.context.gateway.refund

    async def unsure(*arguments, **options):
        return Done(replace((await called(*arguments, **options)).value, result=result.lower()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world.processor.context.gateway, "refund", unsure)
        await world.command(checkout, "refund", amount=4000)
        await world.process(checkout)
    assert [row.state for row in await world.operations(checkout)] == ["unknown"]
    await world.later(seconds=400)
    row = await until_settled(world, checkout)
    assert row.refunded == 4000
    assert [amount for _, amount in await world.movements(checkout)].count(4000) == 1


async def test_what_was_sent_and_never_found_is_sent_a_few_times_and_then_needs_a_decision(
    world: Scene,
):
    checkout = await world.paid()
    await world.plan(checkout, fail={"capture": 99}, failStatus=403)
    await world.command(checkout, "capture", amount=4000)
    await world.process(checkout)
    async with asyncio.timeout(20):
        while (await world.row(checkout)).attention is None:
            await world.later(seconds=700)
            await world.process(checkout)
    row = await world.row(checkout)
    (operation,) = await world.operations(checkout)
    assert (operation.state, operation.attempts) == ("unknown", operations.MOST_SENDS)
    assert row.attention == "operation_unclear"
    assert of_attention(row).startswith("it was sent 3 times")
    command = await world.command(checkout, "resolve", decision="return")
    await world.process(checkout)
    (result,) = await world.sql("SELECT result, result_details FROM commands WHERE id = :id", id=command)
    assert answer(result).matches("refused_keep_or_dismiss", "say keep if")
    said = await world.asked(checkout, "resolve", decision="dismiss")
    assert said == ("done_operation_decided", "it is rejected, as you found it")
    row = await until_settled(world, checkout)
    assert (row.attention, row.captured) == (None, 0)
    await world.plan(checkout)
    assert (await world.asked(checkout, "capture")).code == "accepted"


async def test_an_operation_that_waits_keeps_no_order_from_completing(world: Scene):
    checkout = await world.offered()
    await world.plan(checkout, amountMinor=13800)
    await world.pay(checkout)
    await world.call_back(checkout)
    await world.process(checkout)
    assert (await world.row(checkout)).attention == "payment_mismatch"
    await world.plan(checkout, fail={"release": 9}, failStatus=403)
    await world.command(checkout, "resolve", decision="return")
    await world.process(checkout)
    assert await world.operating(checkout)
    await world.pay(checkout)
    await world.call_back(checkout, kind="notification")
    await world.process(checkout)
    assert await world.state(checkout) == "completed"
    await world.plan(checkout)


async def test_the_policy_return_never_gives_back_what_may_be_another_systems(world: Scene):
    await world.policy(surplus="return", late="return")
    checkout = await world.paid()
    await world.plan(checkout, bindings=False)
    await world.pay(checkout)
    await world.call_back(checkout, kind="notification")
    await world.process(checkout)
    row = await until_settled(world, checkout)
    assert row.attention == "surplus_payment"
    assert await world.operations(checkout) == []
    late = await world.offered(expiresIn=1)
    await world.processed_until(late, "expired")
    await world.plan(late, bindings=False)
    await world.pay(late)
    await world.call_back(late)
    await world.process(late)
    row = await until_settled(world, late)
    assert (row.late, row.attention) == (True, "late_payment")
    assert await world.operations(late) == []


async def test_a_person_is_still_asked_about_late_money_when_something_else_was_asked_meanwhile(world: Scene):
    checkout = await late(world)
    await world.pay(checkout)
    await world.call_back(checkout, kind="notification", body=b"status=succeeded&again=1")
    await world.process(checkout)
    assert (await world.row(checkout)).attention == "surplus_payment"
    await world.asked(checkout, "resolve", decision="return")
    row = await until_settled(world, checkout)
    assert row.attention == "late_payment"
    await world.plan(checkout, fail={"payments": 1}, failStatus=401)
    await world.process(checkout)
    assert (await world.row(checkout)).attention == "late_payment", "a password is not the shopper's money"


async def test_a_decision_on_one_attention_hides_no_other(world: Scene):
    checkout = await world.paid()
    await world.later(days=6, hours=1)
    await world.process(checkout)
    assert (await world.row(checkout)).attention == "reservation_lapses"
    await world.asked(checkout, "resolve", decision="dismiss")
    assert (await until_settled(world, checkout)).attention is None
    await world.pay(checkout)
    await world.call_back(checkout, kind="notification")
    await world.process(checkout)
    assert (await world.row(checkout)).attention == "surplus_payment"


async def test_that_the_gateway_will_not_capture_is_kept_until_the_payment_is_there(world: Scene):
    checkout = await world.offered(capture=True)
    await world.plan(checkout, requireCapture=True)
    payment = await world.pay(checkout, action="open", method="BANK_PAYMENT")
    await world.call_back(checkout, kind="notification", body=b"status=open&require_capture=true")
    await world.process(checkout)
    assert (await world.row(checkout)).require_capture
    await world.control("POST", f"payments/{payment}/resolve", {"outcome": "succeeded"})
    await world.processed_until(checkout, "completed")
    assert (await world.row(checkout)).require_capture


async def test_the_shoppers_own_browser_cannot_ask_for_a_capture(world: Scene):
    checkout = await world.offered(capture=True)
    await world.plan(checkout, requireCapture=True)
    await world.pay(checkout)
    await world.call_back(checkout, kind="redirect", body=b"require_capture=true")
    await world.process(checkout)
    await until_settled(world, checkout)
    assert await world.operations(checkout) == []


async def test_money_that_was_to_go_back_is_not_captured_instead(world: Scene):
    await world.policy(late="return", capture="automatic")
    checkout = await world.offered(expiresIn=1)
    await world.processed_until(checkout, "expired")
    await world.plan(checkout, refuse={"release": 9})
    await world.pay(checkout)
    await world.call_back(checkout)
    await world.process(checkout)
    row = await until_settled(world, checkout)
    assert row.attention == "operation_rejected"
    await world.asked(checkout, "resolve", decision="dismiss")
    row = await until_settled(world, checkout)
    assert (row.captured, row.attention) == (0, "late_payment"), "it is still the shopper's question"


async def test_a_reopened_order_is_not_cancelled_without_a_lookup(world: Scene):
    checkout = await world.offered(expiresIn=1)
    await world.processed_until(checkout, "expired")
    await world.pay(checkout)
    await world.sql(
        "UPDATE checkouts SET state = 'received', cancel_requested_at = clock() WHERE id = :id", id=checkout
    )
    await world.process(checkout)
    assert await world.state(checkout) == "completed"


async def test_a_decline_after_the_deadline_ends_the_order_at_once(world: Scene):
    checkout = await world.offered()
    payment = await world.pay(checkout, action="open", method="BANK_PAYMENT")
    await world.sql(
        "UPDATE checkouts SET deadline = clock() - interval '10 days' WHERE id = :id", id=checkout
    )
    await world.control("POST", f"payments/{payment}/resolve", {"outcome": "declined"})
    await world.call_back(checkout, kind="notification", body=b"status=declined")
    await world.process(checkout)
    assert await world.state(checkout) == "expired"


async def test_what_is_not_about_money_that_could_go_back_is_not_returned(world: Scene):
    checkout = await world.paid(capture=True)
    (payment,) = await world.ledger(checkout)
    await world.control("POST", f"payments/{payment['paymentId']}/chargeback", {"amountMinor": 5000})
    await world.process(checkout)
    said = await world.asked(checkout, "resolve", decision="return")
    assert said.matches("refused_not_returnable", "charged_back is not about money that could be returned")


async def test_late_money_that_policy_keeps_raises_no_attention_at_a_later_lookup(world: Scene):
    await world.policy(late="keep")
    checkout = await late(world)
    await world.process(checkout)
    assert (await world.row(checkout)).attention is None


async def test_late_money_that_cannot_be_returned_stays_the_same_question(world: Scene):
    checkout = await late(world)
    await world.plan(checkout, refuse={"release": 9})
    await world.asked(checkout, "resolve", decision="return")
    row = await until_settled(world, checkout)
    assert row.attention == "late_payment"
    assert [row.state for row in await world.operations(checkout)] == ["rejected"]


async def test_an_answer_without_a_transaction_whose_lookup_fails_is_settled_by_a_later_lookup(world: Scene):
    checkout = await world.paid()
    called = world.processor.context.gateway.capture

    async def bare(*arguments, **options):
        answer = await called(*arguments, **options)
        await world.plan(checkout, fail={"payments": 1})
        return Done(replace(answer.value, transaction=None))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world.processor.context.gateway, "capture", bare)
        await world.command(checkout, "capture", amount=4000)
        await world.process(checkout)
    assert [row.state for row in await world.operations(checkout)] == ["submitted"]
    row = await until_settled(world, checkout)
    assert row.captured == 4000


async def test_an_operation_that_is_never_sent_needs_a_decision_in_time(world: Scene):
    checkout = await world.paid()
    await world.plan(checkout, fail={"capture": 20}, failStatus=429, retryAfter=0)
    await world.command(checkout, "capture", amount=4000)
    for _ in range(10):
        await world.process(checkout)
    row = await world.row(checkout)
    assert row.attention == "gateway_failing"
    assert [row.attempts for row in await world.operations(checkout)] == [0], "it was never sent"
    await world.plan(checkout)
    await world.process(checkout)
    assert (await until_settled(world, checkout)).captured == 4000

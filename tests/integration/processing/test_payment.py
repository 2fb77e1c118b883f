"""From the offer on: callbacks, lookups, deadlines, late money, and the watch."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from orchestrator.domain import binding, reconciliation
from orchestrator.store import checkouts
from tests.support.scene import Scene, scene

pytestmark = pytest.mark.anyio

DECLINED_CARD = "4180000000000566"


async def test_a_callback_is_followed_by_a_lookup_and_the_gateways_answer_completes_the_order(world: Scene):
    checkout = await world.offered()
    await world.pay(checkout)
    await world.call_back(checkout)
    await world.process(checkout)
    row = await world.row(checkout)
    assert (row.state, row.reserved, row.captured, row.refunded) == ("completed", 13900, 0, 0)
    assert (row.late, row.attention) == (False, None)
    assert [entry["trigger"] for entry in (await world.trail(checkout))[-2:]] == [
        "callback_arrived",
        "payment_found",
    ]
    assert await world.events(checkout) == ["checkout.ready", "checkout.completed"]
    payments = await world.sql(
        "SELECT role, binding, meaning FROM payments WHERE checkout_id = :id", id=checkout
    )
    assert [tuple(row) for row in payments] == [("accepted", "bound", "reserved")]
    assert not await world.sql("SELECT id FROM callbacks WHERE handled_at IS NULL")


async def test_a_lost_callback_is_found_by_a_lookup(world: Scene):
    checkout = await world.offered(capture=True)
    await world.pay(checkout)
    row = await world.processed_until(checkout, "completed")
    assert (row.reserved, row.captured) == (13900, 13900)


async def test_a_callback_that_beats_the_offer_is_read_under_the_same_lease(world: Scene):
    checkout = await world.accept()
    await world.call_back(checkout, body=b"status=new")
    await world.process(checkout)
    assert [entry["trigger"] for entry in (await world.trail(checkout))[-3:]] == [
        "offered",
        "callback_arrived",
        "nothing_found",
    ]


async def test_after_a_declined_attempt_the_next_attempt_is_awaited(world: Scene):
    checkout = await world.offered()
    await world.pay(checkout, card=DECLINED_CARD)
    await world.call_back(checkout, kind="failure", body=b"status=failed")
    await world.process(checkout)
    assert (await world.trail(checkout))[-1]["trigger"] == "payment_declined"
    await world.pay(checkout)
    await world.call_back(checkout)
    row = await world.processed_until(checkout, "completed")
    assert row.reserved == 13900
    assert await world.events(checkout) == [
        "checkout.ready",
        "checkout.attempt_declined",
        "checkout.completed",
    ]


async def test_a_forged_success_completes_nothing(world: Scene):
    checkout = await world.offered()
    await world.call_back(checkout, body=b"status=succeeded&transaction_id=1&amount=139.00")
    await world.process(checkout)
    row = await world.row(checkout)
    assert row.state == "awaiting_payment"
    assert row.due_in.total_seconds() < 1, "a callback came: the next lookup is soon"


async def test_a_late_failure_does_not_unpay_an_order(world: Scene):
    checkout = await world.offered()
    await world.pay(checkout)
    await world.processed_until(checkout, "completed")
    await world.call_back(checkout, kind="failure", body=b"status=failed")
    await world.process(checkout)
    row = await world.row(checkout)
    assert (row.state, row.reserved) == ("completed", 13900)
    assert (await world.trail(checkout))[-1]["action"] == "callback:read"


async def test_a_lookup_that_fails_is_repeated_and_concludes_nothing(world: Scene):
    checkout = await world.offered()
    await world.pay(checkout)
    await world.call_back(checkout)
    await world.plan(checkout, fail={"payments": 3})
    await world.process(checkout)
    assert await world.state(checkout) == "callback_received"
    await world.processed_until(checkout, "completed")


async def test_a_refused_lookup_concludes_nothing_either(world: Scene):
    checkout = await world.offered()
    await world.call_back(checkout)
    await world.plan(checkout, fail={"payments": 1}, failStatus=422)
    await world.process(checkout)
    row = await world.row(checkout)
    assert (row.state, row.last_error) == ("callback_received", "refused")


@pytest.mark.parametrize("before", ["awaiting_payment", "completed"])
async def test_a_failing_lookup_leaves_a_due_time_in_every_state(world: Scene, before: str):
    checkout = await world.offered()
    if before == "completed":
        await world.pay(checkout)
        await world.processed_until(checkout, "completed")
    await world.plan(checkout, fail={"payments": 1}, failStatus=401)
    await world.process(checkout)
    row = await world.row(checkout)
    assert row.state == before
    assert row.attention == "gateway_credentials"
    assert row.due_at is not None


async def test_an_open_payment_keeps_the_order_from_expiring_and_completes_it_later(world: Scene):
    checkout = await world.offered(expiresIn=1)
    payment = await world.pay(checkout, action="open", method="BANK_PAYMENT")
    await world.call_back(checkout, kind="notification", body=b"status=open")
    await world.process(checkout)
    assert (await world.trail(checkout))[-1]["trigger"] == "payment_open"
    await asyncio.sleep(1.5)
    await world.process(checkout)
    assert await world.state(checkout) == "awaiting_payment"
    await world.control("POST", f"payments/{payment}/resolve", {"outcome": "succeeded"})
    await world.processed_until(checkout, "completed")


async def test_an_order_expires_after_its_deadline_a_grace_and_a_lookup(world: Scene):
    checkout = await world.offered(expiresIn=1)
    row = await world.processed_until(checkout, "expired")
    assert row.left.total_seconds() < -world.settings.deadline_grace
    assert (await world.trail(checkout))[-1]["evidence"]["by"] == "lookup"
    assert (await world.events(checkout))[-1] == "checkout.expired"


async def test_money_that_comes_after_the_expiry_completes_the_order_marked_late(world: Scene):
    checkout = await world.offered(expiresIn=1)
    await world.processed_until(checkout, "expired")
    await world.pay(checkout)
    await world.call_back(checkout)
    await world.process(checkout)
    row = await world.row(checkout)
    assert (row.state, row.late, row.reserved) == ("completed", True, 13900)
    assert row.attention == "late_payment"
    assert (await world.events(checkout))[-2:] == ["checkout.completed", "checkout.attention"]


async def test_a_second_payment_for_one_order_is_surplus_and_needs_a_decision(world: Scene):
    checkout = await world.offered()
    await world.pay(checkout)
    await world.processed_until(checkout, "completed")
    await world.pay(checkout)
    await world.call_back(checkout, kind="notification")
    await world.process(checkout)
    row = await world.row(checkout)
    assert (row.reserved, row.attention) == (13900, "surplus_payment")
    roles = await world.sql(
        "SELECT role FROM payments WHERE checkout_id = :id ORDER BY transaction_id", id=checkout
    )
    assert sorted(row.role for row in roles) == ["accepted", "surplus"]


async def test_two_payments_found_in_the_same_lookup_complete_the_order_and_raise_attention(world: Scene):
    checkout = await world.offered()
    await world.pay(checkout)
    await world.pay(checkout)
    await world.call_back(checkout)
    await world.process(checkout)
    row = await world.row(checkout)
    assert (row.state, row.reserved, row.late) == ("completed", 13900, False)
    assert row.attention == "surplus_payment"


@pytest.mark.parametrize("woken", [True, False])
async def test_money_of_another_amount_is_never_taken_for_the_order(world: Scene, *, woken: bool):
    checkout = await world.offered()
    await world.pay(checkout)
    await world.sql("UPDATE checkouts SET amount = 15000 WHERE id = :id", id=checkout)
    if woken:
        await world.call_back(checkout)
    await world.process(checkout)
    row = await world.row(checkout)
    assert row.state == ("callback_received" if woken else "awaiting_payment")
    assert row.attention == "payment_mismatch"
    assert row.due_at is not None
    before = len(await world.trail(checkout))
    await world.process(checkout)
    assert len(await world.trail(checkout)) == before, "the same is not said twice"


async def test_the_token_of_an_offered_order_is_renewed_before_it_runs_out(world: Scene):
    checkout = await world.offered()
    await world.sql(
        "UPDATE sessions SET token_expires_at = clock() + interval '20 seconds' WHERE checkout_id = :id",
        id=checkout,
    )
    await world.process(checkout)
    assert (await world.trail(checkout))[-1]["action"] == "token:renewed"
    left = await world.sql(
        "SELECT token_expires_at - clock() AS left FROM sessions WHERE checkout_id = :id", id=checkout
    )
    assert left[0].left.total_seconds() > 1000


async def test_a_renewal_that_fails_does_not_stop_the_lookups(world: Scene):
    unpaid, paid = await world.offered(), await world.offered()
    await world.pay(paid)
    await world.sql("UPDATE sessions SET token_expires_at = clock()")
    await world.control("PUT", "faults", {"authenticate": {"count": 1000, "status": 503}})
    await world.process(unpaid, paid)
    assert await world.state(paid) == "completed"
    row = await world.row(unpaid)
    assert (row.state, row.last_error) == ("awaiting_payment", "unknown")


async def test_a_payment_that_names_no_checkout_pays_one_of_two_with_the_same_number_only_by_a_decision(
    world: Scene,
):
    closed = await world.offered(expiresIn=1)
    await world.processed_until(closed, "expired")
    await world.pay(closed)
    (row,) = await world.sql("SELECT order_ref FROM checkouts WHERE id = :id", id=closed)
    newer = await world.offered(amount="139.00")
    # As if the gateway did not echo our id: the transaction names an order number that two checkouts have.
    await world.sql("UPDATE checkouts SET order_ref = :ref WHERE id = :id", ref=row.order_ref, id=newer)
    await world.sql("UPDATE checkouts SET hinted = true WHERE id = :id", id=newer)
    (held,) = await checkouts.claim(world.db, [newer], lease_seconds=5)
    assert await checkouts.order_is_shared(world.db, held, [1])
    account = (await world.merchants.get(1)).account
    found = (await world.processor.context.gateway.find_payments(account, order_ref=row.order_ref)).value
    unbound = replace(
        found,
        transactions=tuple(replace(transaction, payment_infos={}) for transaction in found.transactions),
    )
    assert binding.unbound_money(held, unbound)
    reconciled = reconciliation.judge(held, unbound, shared=True)
    assert (reconciled.finding, reconciled.attention.code) == ("unsure", "unbound_payment")


async def test_an_unreadable_or_huge_callback_does_not_keep_an_order_from_completing(world: Scene):
    checkout = await world.offered()
    await world.pay(checkout)
    await world.call_back(checkout, body=b"x" * 200_000)
    await world.call_back(checkout, kind="notification")
    await world.sql("UPDATE callbacks SET body = '\\x00' || body WHERE octet_length(body) < 1000")
    await world.process(checkout)
    assert await world.state(checkout) == "completed"


async def test_many_callbacks_are_read_a_few_at_a_time(world: Scene):
    checkout = await world.offered()
    for number in range(25):
        await world.call_back(checkout, body=b"status=open&n=%d" % number)
    await world.process(checkout)
    assert (await world.row(checkout)).due_in.total_seconds() <= 0, "more may wait"
    await world.take(checkout)
    assert not await world.sql("SELECT id FROM callbacks WHERE handled_at IS NULL")


async def test_a_payment_open_since_long_ago_needs_a_decision(world: Scene):
    checkout = await world.offered()
    await world.pay(checkout, action="open", method="BANK_PAYMENT")
    await world.sql("UPDATE checkouts SET deadline = clock() - interval '3 days' WHERE id = :id", id=checkout)
    await world.process(checkout)
    row = await world.row(checkout)
    assert (row.state, row.attention) == ("awaiting_payment", "open_payment")
    assert row.due_in.total_seconds() > 3600, "and is looked up ever more rarely"
    before = len(await world.trail(checkout))
    await world.process(checkout)
    assert len(await world.trail(checkout)) == before


async def test_a_payment_released_at_the_gateway_leaves_no_reservation_in_the_books(world: Scene):
    checkout = await world.offered()
    await world.pay(checkout)
    await world.processed_until(checkout, "completed")
    (payment,) = await world.sql("SELECT transaction_id FROM payments WHERE checkout_id = :id", id=checkout)
    released = await world.http.post(
        f"{world.settings.gateway_url}/merchant/API/releaseReservation",
        data={"transaction_id": payment.transaction_id},
        auth=("shop", "sandbox password"),
    )
    assert released.is_success
    await world.process(checkout)
    row = await world.row(checkout)
    assert (row.state, row.reserved, row.attention) == ("completed", 0, "payment_released")


# ── Cancelling ────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_order_that_was_never_offered_is_cancelled_at_once(world: Scene):
    checkout = await world.accept()
    await world.command(checkout)
    await world.process(checkout)
    assert await world.state(checkout) == "cancelled"
    assert await world.events(checkout) == ["checkout.cancelled"]
    assert [entry["actor"] for entry in await world.trail(checkout)][1] == "client:shop"


async def test_an_offered_order_is_cancelled_after_a_grace_and_a_lookup(world: Scene):
    checkout = await world.offered()
    await world.command(checkout)
    await world.process(checkout)
    row = await world.row(checkout)
    assert row.state == "awaiting_payment"
    assert row.cancel_requested_at is not None
    assert row.due_in.total_seconds() <= world.settings.cancel_grace + 0.1
    await world.processed_until(checkout, "cancelled")


async def test_a_payment_beats_the_cancelling(world: Scene):
    checkout = await world.offered()
    await world.command(checkout)
    await world.pay(checkout)
    await world.call_back(checkout)
    await world.process(checkout)
    row = await world.row(checkout)
    assert (row.state, row.late) == ("completed", False)


async def test_cancelling_waits_for_an_open_payment(world: Scene):
    checkout = await world.offered()
    payment = await world.pay(checkout, action="open", method="BANK_PAYMENT")
    await world.command(checkout)
    await world.process(checkout)
    await asyncio.sleep(0.3)
    await world.process(checkout)
    assert await world.state(checkout) == "awaiting_payment"
    await world.control("POST", f"payments/{payment}/resolve", {"outcome": "declined"})
    await world.processed_until(checkout, "cancelled")


async def test_a_command_that_comes_too_late_twice_or_on_old_knowledge_is_refused_and_audited(world: Scene):
    done = await world.offered()
    await world.pay(done)
    await world.processed_until(done, "completed")
    await world.command(done)
    twice = await world.offered()
    await world.command(twice)
    await world.command(twice)
    stale = await world.offered()
    await world.command(stale, version=1)
    await world.process(done, twice, stale)
    results = await world.sql("SELECT checkout_id AS id, result FROM commands ORDER BY requested_at, id")
    assert [(row.id, row.result) for row in results] == [
        (done, "refused_not_cancellable"),
        (twice, "accepted"),
        (twice, "refused_cancelling"),
        (stale, "refused_version_changed"),
    ]
    assert "command:refused" in [entry["action"] for entry in await world.trail(done)]
    assert (await world.row(stale)).cancel_requested_at is None


# ── The watch ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_captured_order_is_settled_when_its_watch_has_run_out(database_url: str, gateway_url: str):
    async with scene(database_url, gateway_url, post_settlement_checks=(0.2, 0.4)) as world:
        checkout = await world.offered(capture=True)
        await world.pay(checkout)
        await world.processed_until(checkout, "completed")
        async with asyncio.timeout(5):
            while (await world.row(checkout)).due_at is not None:
                await world.take(checkout)
                await asyncio.sleep(0.05)
        assert (await world.trail(checkout))[-1]["action"] == "watch:ended"


async def test_an_expired_order_is_settled_when_its_watch_has_run_out(database_url: str, gateway_url: str):
    async with scene(database_url, gateway_url, post_settlement_checks=(0.2,)) as world:
        checkout = await world.offered(expiresIn=1)
        await world.processed_until(checkout, "expired")
        await asyncio.sleep(0.25)
        await world.process(checkout)
        assert (await world.row(checkout)).due_at is None


async def test_without_a_watch_a_failed_order_is_settled_at_once_and_a_paid_order_is_still_checked(
    database_url: str, gateway_url: str
):
    async with scene(database_url, gateway_url, post_settlement_checks=()) as world:
        failed = await world.accept()
        await world.plan(failed, fail={"session": 1}, failStatus=422)
        await world.process(failed)
        assert (await world.row(failed)).due_at is None
        paid = await world.offered()
        await world.pay(paid)
        row = await world.processed_until(paid, "completed")
        assert row.due_at is not None


async def test_a_reservation_that_is_not_captured_is_never_settled(database_url: str, gateway_url: str):
    async with scene(database_url, gateway_url, post_settlement_checks=(0.01,)) as world:
        checkout = await world.offered()
        await world.pay(checkout)
        await world.processed_until(checkout, "completed")
        await asyncio.sleep(0.05)
        await world.process(checkout)
        assert (await world.row(checkout)).due_at is not None


async def test_a_refund_made_at_the_gateway_is_booked(world: Scene):
    checkout = await world.offered(capture=True)
    payment = await world.pay(checkout)
    await world.processed_until(checkout, "completed")
    await world.control("POST", f"payments/{payment}/refund", {"amountMinor": 900})
    await world.process(checkout)
    row = await world.row(checkout)
    assert (row.captured, row.refunded) == (13900, 900)
    assert (await world.events(checkout))[-1] == "payment.refunded"


async def test_a_payment_that_the_gateway_no_longer_shows_needs_a_decision(world: Scene):
    checkout = await world.offered()
    await world.pay(checkout)
    await world.processed_until(checkout, "completed")
    await world.sql("UPDATE payments SET transaction_id = 'gone' WHERE checkout_id = :id", id=checkout)
    await world.process(checkout)
    row = await world.row(checkout)
    assert (row.state, row.reserved) == ("completed", 13900)
    assert row.attention == "payment_gone"

"""A payment that comes before its order: it is found by its order number, and the order that comes later is
not paid a second time.
"""

from __future__ import annotations

import asyncio
import re
from uuid import UUID

import pytest

from orchestrator import audit, auth
from orchestrator.devkit.client import Client
from tests.support.shop import WHOLE, Shop

pytestmark = pytest.mark.anyio


async def unmatched(world: Shop, order: str, *, looked_up: bool = True, **changes: object) -> UUID:
    """Return the checkout that was created from a payment for an order number that no shop handed over."""
    await world.unexpected_payment(order, **changes)
    (row,) = await world.sql("SELECT id FROM checkouts")
    world.orders[row.id] = order
    if looked_up:
        await world.follow(row.id)
    return row.id


async def read(world: Shop, path: str, **params: str) -> dict:
    token = auth.issue(
        world.settings, merchant="default", scopes=("checkouts:read",), lifetime=60, subject="shop-1"
    )
    async with Client(world.settings.public_url, token, attempts=1) as client:
        return await client.get(path, **params)


# ── Found by any order number ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "order",
    ["usd_plan::1_" + "0123456789" * 6, "4711 special invoice", "A#1/2023", "Ærø 7 [/b]", "%", "'; --"],
)
async def test_an_unmatched_payment_is_found_by_its_order_number(world: Shop, order: str):
    checkout = await unmatched(world, order)
    (found,) = (await read(world, "/v1/checkouts", orderId=order))["checkouts"]
    assert (found["id"], found["orderId"], found["state"]) == (str(checkout), order, "completed")
    (payment,) = (await read(world, "/v1/payments", orderId=order))["payments"]
    assert (payment["orderId"], payment["checkoutId"]) == (order, str(checkout))


# ── The order comes later ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("policy", ["ask", "keep"])
async def test_an_intent_that_comes_after_its_payment_is_paid_by_it(world: Shop, policy: str):
    await world.policy(unknown_order=policy)
    order = f"B-1-{policy}"
    checkout = await unmatched(world, order)
    assert (await world.row(checkout)).attention == ("unknown_order" if policy == "ask" else None)
    answers = [await world.post(order) for _ in range(2)]
    assert [(answer.status_code, answer.json()["id"], answer.json()["state"]) for answer in answers] == [
        (200, str(checkout), "completed")
    ] * 2
    await world.follow(checkout)
    row = await world.row(checkout)
    assert (row.state, row.late, row.attention, row.reserved) == ("completed", False, None, WHOLE)
    raised = ["checkout.attention", "checkout.attention_resolved"] if policy == "ask" else []
    assert await world.events(checkout) == ["checkout.completed", *raised]
    ids = await world.sql("SELECT DISTINCT correlation_id FROM events")
    assert len(ids) == 1, "one trace for all events of a checkout"
    shown = await read(world, f"/v1/checkouts/{checkout}")
    assert [payment["role"] for payment in shown["payments"]] == ["accepted"]
    trail = await world.trail(checkout)
    (matched,) = [entry for entry in trail if entry["action"] == "intent:matched"]
    assert matched["actor"] == "client:default/shop-1"
    assert matched["evidence"]["amount"] == WHOLE
    assert (await audit.verify(world.db, world.encryptor)).problems == []
    assert len(await world.sql("SELECT id FROM checkouts")) == 1
    explained = str(await read(world, f"/v1/checkouts/{checkout}/explain"))
    assert "handed the order over, after its payment" in explained
    other = await world.post(order, amount="140.00")
    assert other.status_code == 409, "other content for an order that is there"
    await world.agree(checkout)


async def test_an_order_that_was_to_be_captured_by_the_gateway_is_captured_by_a_worker(world: Shop):
    checkout = await unmatched(world, "B-2")
    assert (await world.post("B-2", capture=True)).status_code == 200
    await world.follow(checkout)
    async with asyncio.timeout(15):
        while await world.operating(checkout):
            await world.follow(checkout)
            await asyncio.sleep(0.02)
    assert await world.movements(checkout) == [("captured", WHOLE)]
    await world.agree(checkout)


async def test_an_intent_that_does_not_fit_its_payment_is_refused_with_the_ways_out(world: Shop):
    checkout = await unmatched(world, "B-3")
    for _ in range(2):
        answer = await world.post("B-3", amount="149.00")
        assert answer.status_code == 409
        said = answer.json()["detail"]
        (payment,) = await world.sql("SELECT transaction_id FROM payments")
        assert payment.transaction_id in said
        assert "139.00 DKK" in said
        assert f"/v1/checkouts/{checkout}/resolve" in said
        assert "another order number" not in said
        assert answer.json()["checkoutId"] == str(checkout)
    assert len(await world.sql("SELECT id FROM checkouts")) == 1
    # The way out, as the answer names it.
    assert (await world.asked(checkout, "resolve", decision="return")).code == "accepted"
    await world.follow(checkout)
    answer = await world.post("B-3", amount="149.00")
    assert answer.status_code == 202
    assert answer.json()["id"] != str(checkout)


async def test_after_a_decision_to_keep_the_intent_with_the_amount_of_the_payment_is_paid_by_it(world: Shop):
    checkout = await unmatched(world, "B-4")
    await world.asked(checkout, "resolve", decision="keep")
    refused = await world.post("B-4", amount="149.00")
    assert refused.status_code == 409
    assert f"/v1/checkouts/{checkout}/refund" in refused.json()["detail"]
    answer = await world.post("B-4")
    assert (answer.status_code, answer.json()["id"]) == (200, str(checkout))


async def test_a_payment_that_the_gateway_does_not_show_pays_no_order(world: Shop):
    checkout = await unmatched(world, "B-5", looked_up=False)
    world.wire.bent["B-5"] = lambda _: (
        b'<?xml version="1.0"?><APIResponse version="20170228"><Header><Date/><Path>API/payments</Path><ErrorCode>0</ErrorCode><ErrorMessage/></Header><Body><Result/></Body></APIResponse>'
    )
    await world.follow(checkout)
    assert (await world.row(checkout)).state == "failed"
    answer = await world.post("B-5")
    assert answer.status_code == 202
    assert answer.json()["id"] != str(checkout)


# ── At the same moment ────────────────────────────────────────────────────────────────────────────────────


async def test_an_intent_waits_for_the_lookup_of_its_payment(world: Shop):
    checkout = await unmatched(world, "B-6", looked_up=False)
    posting = asyncio.create_task(world.post("B-6"))
    await asyncio.sleep(0.2)
    assert not posting.done()
    await world.follow(checkout)
    answer = await posting
    assert (answer.status_code, answer.json()["id"]) == (200, str(checkout))


async def test_many_intents_for_one_payment_at_once_are_one_order(world: Shop):
    checkout = await unmatched(world, "B-7")
    answers = await asyncio.gather(*(world.post("B-7") for _ in range(20)))
    assert {(answer.status_code, answer.json()["id"]) for answer in answers} == {(200, str(checkout))}
    trail = await world.trail(checkout)
    assert [entry["action"] for entry in trail].count("intent:matched") == 1
    others = await asyncio.gather(*(world.post("B-7", amount=f"{amount}.00") for amount in range(140, 145)))
    assert {answer.status_code for answer in others} == {409}


async def test_where_both_come_before_any_lookup_the_payment_is_left_to_the_order(world: Shop):
    """No worker looks it up in time, so the order is a checkout of its own: the payment may not count twice,
    nor need a decision.
    """
    first = await unmatched(world, "B-8", looked_up=False)
    answer = await world.post("B-8")
    assert answer.status_code == 202
    order = UUID(answer.json()["id"])
    world.orders[order] = "B-8"
    assert order != first
    await world.follow(order)
    assert await world.state(order) == "awaiting_payment"
    await world.follow(first)
    assert (await world.row(first)).state == "failed"
    assert (await world.row(order)).wake > 0
    async with asyncio.timeout(10):
        while await world.state(order) != "completed":
            await world.follow(first, order)
            await asyncio.sleep(0.05)
    row = await world.row(order)
    assert (row.state, row.late, row.attention, row.reserved) == ("completed", False, None, WHOLE)
    assert (await world.row(first)).attention is None
    payments = await world.sql("SELECT checkout_id, role FROM payments")
    assert [(payment.checkout_id, payment.role) for payment in payments] == [(order, "accepted")]
    assert (await audit.verify(world.db, world.encryptor)).problems == []


async def test_a_payment_from_long_before_an_order_of_its_number_is_not_left_to_that_order(world: Shop):
    """Order numbers come again, after a year or in a new system: what the earlier order was paid with pays no
    later order.
    """
    earlier = await unmatched(world, "B-9", looked_up=False)
    world.wire.bent["B-9"] = lambda answer: re.sub(
        r"<CreatedDate>[^<]*<", "<CreatedDate>2025-01-02 03:04:05<", answer
    )
    answer = await world.post("B-9")
    assert answer.status_code == 202
    order = UUID(answer.json()["id"])
    world.orders[order] = "B-9"
    assert order != earlier
    await world.follow(order)
    wakes = (await world.row(order)).wake
    await world.follow(earlier)
    row = await world.row(earlier)
    assert row.state == "failed"
    assert row.attention == "unbound_payment"
    await world.follow(order)
    row = await world.row(order)
    assert (row.state, row.attention, row.wake) == ("awaiting_payment", None, wakes)
    # A decision says which order it belongs to.
    await world.asked(earlier, "resolve", decision="keep")
    await world.follow(earlier, order)
    row = await world.row(earlier)
    assert (row.state, row.reserved) == ("completed", WHOLE)
    assert await world.state(order) == "awaiting_payment"
    payments = await world.sql("SELECT checkout_id, role FROM payments")
    assert [(payment.checkout_id, payment.role) for payment in payments] == [(earlier, "accepted")]
    assert (await audit.verify(world.db, world.encryptor)).problems == []

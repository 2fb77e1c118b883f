"""The events of a whole lifecycle: every event is valid, in order, without a gap, and its
totals are the books.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.integration.processing.test_money import until_settled
from tests.integration.processing.test_payment import DECLINED_CARD
from tests.support.cloud_events import documents

if TYPE_CHECKING:
    from tests.support.scene import Scene

pytestmark = pytest.mark.anyio


async def told(world: Scene, checkout) -> list[dict]:
    """Return a checkout's documents in full, all of them checked."""
    await world.events(checkout)
    rows = await world.sql("SELECT * FROM events WHERE checkout_id = :id ORDER BY sequence", id=checkout)
    return [documents(row)["full"] for row in rows]


async def test_a_whole_lifecycle_has_its_events_in_order_and_without_a_gap(world: Scene):
    checkout = await world.offered()
    await world.pay(checkout, card=DECLINED_CARD)
    await world.call_back(checkout, kind="failure", body=b"status=failed&error_message=Card+Declined")
    await world.process(checkout)
    await world.pay(checkout, card=DECLINED_CARD)
    await world.call_back(checkout, kind="failure", body=b"status=failed&error_message=Not+enough+money")
    await world.process(checkout)
    payment = await world.pay(checkout)
    await world.call_back(checkout)
    await world.processed_until(checkout, "completed")
    await world.asked(checkout, "capture", amount=4000)
    await world.asked(checkout, "capture", amount=200_000)
    await world.asked(checkout, "capture")
    await world.asked(checkout, "refund", amount=1000)
    await world.control("POST", f"payments/{payment}/refund", {"amountMinor": 500})
    await world.process(checkout)
    await world.control("POST", f"payments/{payment}/chargeback", {"amountMinor": 5000})
    await world.process(checkout)
    await world.asked(checkout, "resolve", decision="dismiss")
    await until_settled(world, checkout)

    events = await told(world, checkout)
    assert [event["type"] for event in events] == [
        "checkout.ready",
        "checkout.attempt_declined",
        "checkout.attempt_declined",
        "checkout.completed",
        "payment.captured",
        "payment.operation_rejected",
        "payment.captured",
        "payment.refunded",
        "payment.refunded",
        "payment.chargeback",
        "checkout.attention",
        "checkout.attention_resolved",
    ]
    data = [event["data"] for event in events]
    assert [details.get("reason") for details in data[1:3]] == ["Card Declined", "Not enough money"]
    assert data[1]["transactionIds"] != data[2]["transactionIds"]
    assert [details["paymentStatus"] for details in data] == [
        "unpaid",
        "unpaid",
        "unpaid",
        "authorized",
        "partially_captured",
        "partially_captured",
        "captured",
        "partially_refunded",
        "partially_refunded",
        "charged_back",
        "charged_back",
        "charged_back",
    ]
    assert data[5]["operation"] == "capture"
    assert data[5]["details"]["reason"].startswith("only 99.00 DKK are left")
    assert [details["cause"] for details in data[4:9:4]] == ["asked", "gateway"]
    assert data[10]["attention"] == data[11]["attention"] == "charged_back"
    assert len({event["traceparent"].split("-")[1] for event in events}) == 1
    row = await world.row(checkout)
    assert data[-1]["money"] == {
        name: value / 100
        for name, value in (
            ("reserved", row.reserved),
            ("captured", row.captured),
            ("refunded", row.refunded),
            ("chargedBack", row.charged_back),
        )
    }
    for kind, total in (
        ("payment.captured", row.captured),
        ("payment.refunded", row.refunded),
        ("payment.chargeback", row.charged_back),
    ):
        changes = [event["data"]["change"]["value"] for event in events if event["type"] == kind]
        assert round(100 * sum(changes)) == total, (kind, changes)


async def test_money_that_the_gateway_captures_by_itself_has_an_event_with_the_completion(world: Scene):
    checkout = await world.offered(capture=True)
    await world.pay(checkout)
    await world.processed_until(checkout, "completed")
    ready, completed, captured = await told(world, checkout)
    assert (ready["type"], completed["type"], captured["type"]) == (
        "checkout.ready",
        "checkout.completed",
        "payment.captured",
    )
    assert (captured["data"]["cause"], captured["data"]["change"]["value"]) == ("gateway", 139.0)
    assert completed["data"]["transactionIds"] == [captured["data"]["transactionId"]]


async def test_a_declined_attempt_whose_callback_was_lost_is_reported_once_by_a_lookup(world: Scene):
    checkout = await world.offered()
    await world.pay(checkout, card=DECLINED_CARD)
    await world.process(checkout)
    await world.process(checkout)
    await world.call_back(checkout, kind="failure", body=b"status=failed&error_message=Card+Declined")
    await world.process(checkout)
    assert Counter(event["type"] for event in await told(world, checkout)) == {
        "checkout.ready": 1,
        "checkout.attempt_declined": 1,
    }


async def test_an_attempt_that_names_no_checkout_is_reported_once_where_a_callback_names_it(
    world: Scene,
):
    """It has the order number alone; its row belongs to the checkout that saw it first, so another would see
    it as new each time.
    """
    first = await world.offered(expiresIn=1)
    await world.plan(first, bindings=False)
    await world.pay(first, card=DECLINED_CARD)
    (attempt,) = await world.ledger(first)
    body = f"status=failed&transaction_id={attempt['transactionId']}&error_message=Card+Declined"
    await world.call_back(first, kind="failure", body=body.encode())
    await world.process(first)
    assert (await world.events(first)).count("checkout.attempt_declined") == 1
    await world.processed_until(first, "expired")
    (row,) = await world.sql("SELECT order_ref FROM checkouts WHERE id = :id", id=first)
    newer = await world.offered()
    await world.sql("UPDATE checkouts SET order_ref = :ref WHERE id = :id", ref=row.order_ref, id=newer)
    for _ in range(3):
        await world.process(newer)
    assert await world.events(newer) == ["checkout.ready"]
    assert (await world.events(first)).count("checkout.attempt_declined") == 1


async def test_the_text_of_a_callback_that_proves_nothing_reaches_no_shopper(world: Scene):
    checkout = await world.offered()
    await world.pay(checkout, card=DECLINED_CARD)
    await world.call_back(checkout, kind="failure", body=b"status=failed&error_message=Pay+at+evil.example")
    await world.sql("UPDATE callbacks SET grade = 'checksum' WHERE checkout_id = :id", id=checkout)
    await world.process(checkout)
    _, declined = await told(world, checkout)
    assert (declined["type"], declined["data"]["reason"]) == ("checkout.attempt_declined", None)


async def test_every_raised_attention_has_an_event_and_so_has_its_end(world: Scene):
    """Also where the same write ends the checkout, and where a person has it tried again."""
    checkout = await world.offered()
    await world.sql(
        "UPDATE checkouts SET attention = 'gateway_failing', attention_details = '{}', attention_since = clock() WHERE id = :id",
        id=checkout,
    )
    assert (await world.asked(checkout, "retry")).code.startswith("done")
    kinds = [event["type"] for event in await told(world, checkout)]
    assert kinds == ["checkout.ready", "checkout.attention_resolved"]


async def test_an_order_that_ends_without_money_has_an_event_with_its_code(world: Scene):
    checkout = await world.accept(expiresIn=1)
    await world.sql("UPDATE checkouts SET session_count = 4, state = 'received' WHERE id = :id", id=checkout)
    await world.processed_until(checkout, "failed")
    failed, attention = await told(world, checkout)
    assert (failed["type"], failed["data"]["code"], failed["data"]["paymentStatus"]) == (
        "checkout.failed",
        "order_number_used_up",
        "unpaid",
    )
    assert (attention["type"], attention["data"]["attention"]) == (
        "checkout.attention",
        "order_number_used_up",
    )

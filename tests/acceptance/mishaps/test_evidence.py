"""What a move rests on: the gateway's own answer, matched to its checkout; never the content of a callback,
and no guess.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.said import of_attention
from tests.support.shop import WHOLE, Shop, with_agreement, with_status

if TYPE_CHECKING:
    from uuid import UUID

pytestmark = pytest.mark.anyio

UNPROVEN = {"badSignature": "wrong", "noSignature": "missing", "staleTimestamp": "stale"}
SECOND = {"merchant_api_url": None, "username": "shop", "password": "sandbox password"}


async def evidence(world: Shop, checkout: UUID, trigger: str) -> dict[str, object]:
    """Return what the trail says that a move rested on."""
    (entry,) = [entry for entry in await world.trail(checkout) if entry["trigger"] == trigger]
    return dict(entry["evidence"])


async def undecided(world: Shop, checkout: UUID, word: str) -> None:
    """A decision is needed: the shop got one event, nothing was concluded, and lookups go on, also
    past the deadline.
    """
    await world.follow(checkout)
    for _ in range(3):
        await world.later(hours=2)
        await world.follow(checkout)
        row = await world.row(checkout)
        assert row.state in {"awaiting_payment", "callback_received"}
        assert row.attention == word
        assert (row.reserved, row.captured) == (0, 0)
        assert row.due_at is not None
    events = await world.events(checkout)
    assert events.count("checkout.attention") == 1
    assert not {"checkout.completed", "checkout.expired", "checkout.cancelled"} & set(events)


# ── Callbacks ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("tamper", UNPROVEN)
async def test_an_unproven_callback_is_refused_and_causes_a_lookup_that_finds_the_payment(
    world: Shop, tamper: str
):
    checkout = await world.offered()
    await world.plan(checkout, callbacks={"tamper": tamper})
    await world.pay(checkout)
    sent = await world.told(checkout)
    assert {callback["answerStatus"] for callback in sent} == {401}
    rows = await world.sql("SELECT DISTINCT grade, network FROM callbacks")
    assert [tuple(row) for row in rows] == [(UNPROVEN[tamper], "inside")]
    await world.follow(checkout)
    assert await world.state(checkout) == "completed"
    assert await world.moved(checkout) == ["payment_found"], "the callback itself moved nothing"
    told = await evidence(world, checkout, "payment_found")
    assert told["by"] == "lookup"
    assert {callback["grade"] for callback in told["callbacks"]} == {UNPROVEN[tamper]}
    await world.agree(checkout)


@pytest.mark.parametrize("secret", [None, "another issuer's secret"])
async def test_a_forged_success_causes_a_lookup_and_completes_no_order(world: Shop, secret: str | None):
    await world.policy(capture="automatic")
    checkout = await world.offered(capture=True)
    (row,) = await world.sql("SELECT order_ref FROM checkouts WHERE id = :id", id=checkout)
    before = world.lookups(checkout)
    forged = (
        f"shop_orderid={row.order_ref}&status=succeeded&payment_status=captured&amount=139.00&currency=208"
    )
    assert await world.called(checkout, forged.encode(), secret=secret) == 401
    await world.follow(checkout)
    assert world.lookups(checkout) == before + 1
    assert (await world.state(checkout), await world.moved(checkout)) == ("awaiting_payment", [])
    assert await world.events(checkout) == ["checkout.ready"]
    await world.agree(checkout)


async def test_an_authentic_success_completes_nothing_without_the_gateways_answer(world: Shop):
    checkout = await world.offered()
    assert (
        await world.called(checkout, b"status=succeeded&transaction_id=1&amount=139.00&currency=208") == 200
    )
    await world.follow(checkout)
    assert await world.state(checkout) == "awaiting_payment"
    assert await world.moved(checkout) == ["callback_arrived", "nothing_found"]
    await world.agree(checkout)


@pytest.mark.parametrize(("tamper", "captured"), [("badSignature", 0), (None, WHOLE)])
async def test_a_capture_is_left_to_us_only_where_the_gateway_says_so(
    world: Shop, tamper: str | None, captured: int
):
    checkout = await world.offered(capture=True)
    await world.plan(checkout, requireCapture=True, callbacks={"tamper": tamper})
    await world.pay(checkout)
    await world.told(checkout)
    await world.follow(checkout)
    assert await world.state(checkout) == "completed"
    assert (await world.row(checkout)).captured == captured
    assert await world.movements(checkout) == ([("captured", WHOLE)] if captured else [])
    await world.agree(checkout)


async def test_the_announcement_of_a_payment_is_acknowledged_and_asks_nothing_of_the_gateway(world: Shop):
    checkout = await world.offered()
    await world.started(checkout)
    (sent,) = await world.told(checkout, notification=1)
    assert (sent["status"], sent["answerStatus"]) == ("new", 200)
    before = world.lookups(checkout)
    await world.follow(checkout)
    assert world.lookups(checkout) == before
    assert (await world.trail(checkout))[-1]["action"] == "callback:read"
    assert await world.moved(checkout) == []
    row = await world.row(checkout)
    assert row.due_in.total_seconds() < 5, "a sign of life: the next lookup is soon"
    await world.agree(checkout)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"status=teleported&colour=blue", "application/x-www-form-urlencoded"),
        (b'{"status": "TELEPORTED", "colour": 1}', "application/json"),
    ],
    ids=["form", "json"],
)
async def test_an_unknown_status_is_kept_flagged_and_needs_a_decision(
    world: Shop, body: bytes, content_type: str
):
    checkout = await world.offered()
    await world.plan(checkout, callbacks={"success": False, "notification": False})
    await world.pay(checkout)
    assert await world.called(checkout, body, content_type=content_type) == 200
    await world.follow(checkout)
    assert await world.state(checkout) == "completed"
    (told,) = (await evidence(world, checkout, "callback_arrived"))["callbacks"]
    assert told["status"] == "teleported"
    assert told["flags"] == ["status_unknown"]
    await world.agree(checkout)


# ── Reading ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("capture", [True, False])
async def test_a_subscriptions_double_rows_pay_once_and_raise_no_attention(world: Shop, *, capture: bool):
    await world.policy(surplus="return")
    checkout = await world.offered(capture=capture)
    world.wire.bent[world.orders[checkout]] = with_agreement
    await world.pay(checkout)
    await world.told(checkout)
    await world.follow(checkout)
    for _ in range(2):
        await world.until_due(checkout)
    row = await world.row(checkout)
    assert (row.state, row.reserved, row.captured) == ("completed", WHOLE, WHOLE if capture else 0)
    assert row.attention is None
    rows = await world.sql("SELECT role, meaning, reserved FROM payments ORDER BY role")
    assert [tuple(row) for row in rows] == [
        ("accepted", "captured" if capture else "reserved", WHOLE),
        ("attempt", "agreement", 0),
    ]
    captured = ["payment.captured"] if capture else []
    assert await world.events(checkout) == ["checkout.ready", "checkout.completed", *captured]
    assert await world.operations(checkout) == []
    await world.agree(checkout)


async def test_a_transaction_in_an_unknown_status_is_kept_flagged_and_needs_a_decision(
    world: Shop,
):
    checkout = await world.offered(expiresIn=600)
    world.wire.bent[world.orders[checkout]] = with_status("teleported")
    await world.pay(checkout)
    await world.told(checkout)
    await undecided(world, checkout, "unclear_payment")
    (row,) = await world.sql("SELECT role, status, meaning, flags FROM payments")
    assert (row.role, row.status, row.meaning, row.flags) == (
        "unknown",
        "teleported",
        "unknown",
        ["status_unknown"],
    )
    world.wire.bent.clear()
    await world.until_due(checkout)
    row = await world.row(checkout)
    assert (row.state, row.attention, row.late) == ("completed", None, False)
    await world.agree(checkout)


async def test_an_answer_with_as_many_rows_as_it_may_have_ends_no_order(world: Shop):
    checkout = await world.offered(expiresIn=600)
    await world.plan(checkout, noiseRows=250)
    await world.later(seconds=640)
    await undecided(world, checkout, "lookup_at_limit")
    await world.plan(checkout)
    await world.until_due(checkout)
    assert await world.state(checkout) == "expired"
    await world.until_due(checkout)
    assert (await world.row(checkout)).attention is None
    await world.agree(checkout)


@pytest.mark.parametrize("rows", [10, 100])
async def test_a_history_that_is_read_to_its_end_ends_the_order(world: Shop, rows: int):
    checkout = await world.offered(expiresIn=600)
    await world.plan(checkout, noiseRows=rows)
    await world.later(seconds=640)
    await world.follow(checkout)
    await world.until_due(checkout)
    row = await world.row(checkout)
    assert (row.state, row.attention) == ("expired", None)
    await world.agree(checkout)


async def test_a_payment_among_as_many_rows_as_an_answer_may_have_completes_the_order(world: Shop):
    checkout = await world.offered()
    await world.plan(checkout, noiseRows=100)
    await world.pay(checkout)
    await world.told(checkout)
    await world.follow(checkout)
    assert await world.state(checkout) == "completed"
    assert await world.roles(checkout) == ["accepted"], "the others belong to another order"
    await world.agree(checkout)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"amountMinor": 100}, "holds 1.00 DKK, the order is 139.00 DKK"),
        ({"amountMinor": 13901}, "holds 139.01 DKK, the order is 139.00 DKK"),
        ({"currency": "EUR"}, "holds 139.00 EUR, the order is 139.00 DKK"),
    ],
    ids=["less", "more", "currency"],
)
async def test_money_of_another_amount_or_currency_never_completes_the_order(
    world: Shop, other: dict[str, object], said: str
):
    checkout = await world.offered(expiresIn=600)
    await world.plan(checkout, **other)
    await world.pay(checkout)
    await world.told(checkout)
    await undecided(world, checkout, "payment_mismatch")
    assert of_attention(await world.row(checkout)).endswith(said)
    assert await world.movements(checkout) == []
    await world.agree(checkout)
    # The right amount beside it completes the order, and the wrong amount still needs a decision.
    await world.plan(checkout)
    await world.pay(checkout)
    await world.told(checkout, notification=4, success=2)
    await world.follow(checkout)
    row = await world.row(checkout)
    assert (row.state, row.reserved) == ("completed", WHOLE)
    assert row.attention is not None
    assert await world.roles(checkout) == ["accepted", "unknown"]
    await world.agree(checkout)


# ── Binding ───────────────────────────────────────────────────────────────────────────────────────────────


async def two_merchants(world: Shop, order: str) -> tuple[UUID, UUID]:
    """Return the checkouts of two merchants with one account at the gateway who chose the same
    order number.
    """
    assert await world.merchants.add(
        "second", gateway_url=world.settings.gateway_url, callback_secrets=(), **SECOND
    )
    await world.merchants.everyone()
    (row,) = await world.sql("SELECT id FROM merchants WHERE name = 'second'")
    ours = await world.offered(order=order, expiresIn=600)
    theirs = await world.offered(order=order, merchant_id=row.id, expiresIn=600)
    return ours, theirs


async def test_of_two_merchants_with_the_same_order_number_the_paid_checkout_is_completed(world: Shop):
    ours, theirs = await two_merchants(world, "shared-bound")
    await world.pay(theirs)
    await world.told(theirs)
    for _ in range(2):
        await world.follow(ours, theirs)
        await world.later(seconds=200)
    await world.follow(ours, theirs)
    assert await world.state(theirs) == "completed"
    row = await world.row(ours)
    assert (row.state, row.attention, await world.roles(ours)) == ("awaiting_payment", None, [])
    await world.later(seconds=300)
    await world.follow(ours)
    assert await world.state(ours) == "expired"
    await world.agree(ours, theirs)


async def test_a_payment_without_a_name_for_a_number_that_two_merchants_share_completes_neither(world: Shop):
    ours, theirs = await two_merchants(world, "shared-unbound")
    await world.plan(ours, bindings=False)
    await world.pay(ours)
    await world.told(ours)
    for checkout in (ours, theirs):
        if checkout == theirs:
            await world.until_due(checkout)
        await undecided(world, checkout, "unbound_payment")
        assert (await world.events(checkout)).count("checkout.completed") == 0
    for checkout in (ours, theirs):
        assert await world.roles(checkout) == ["unknown"]
    await world.agree(ours)


async def test_a_payment_that_names_no_checkout_is_weaker_evidence_and_says_so(world: Shop):
    checkout = await world.offered()
    await world.plan(checkout, bindings=False)
    await world.pay(checkout)
    await world.told(checkout)
    await world.follow(checkout)
    row = await world.row(checkout)
    assert (row.state, row.attention) == ("completed", None)
    (seen,) = await world.sql("SELECT role, binding FROM payments")
    assert (seen.role, seen.binding) == ("accepted", "order_ref")
    told = await evidence(world, checkout, "payment_found")
    assert [transaction["binding"] for transaction in told["transactions"]] == ["order_ref"]
    await world.agree(checkout)


async def test_a_payment_that_names_another_checkout_is_not_ours(world: Shop):
    first = await world.expired(order="used-again")
    second = await world.offered(order="used-again", expiresIn=660)
    await world.pay(first)
    await world.told(first)
    await world.later(seconds=200)
    await world.follow(first, second)
    late = await world.row(first)
    assert (late.state, late.late, late.attention) == ("completed", True, "late_payment")
    row = await world.row(second)
    assert (row.state, row.attention) == ("awaiting_payment", None)
    await world.later(seconds=500)
    await world.follow(second)
    assert await world.state(second) == "expired"
    await world.agree(first, second)

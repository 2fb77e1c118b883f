"""What a person decides on payments that are not what was ordered: executed to the minor unit, or refused."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.support.said import of_attention
from tests.support.shop import WHOLE, with_status

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from tests.support.shop import Shop


pytestmark = pytest.mark.anyio


def with_element(name: str, value: str) -> Callable[[str], str]:
    """Put an element into every transaction of an answer, in place of an element of that name."""

    def bend(answer: str) -> str:
        without = re.sub(f"<{name}>.*?</{name}>|<{name}/>", "", answer)
        return without.replace("</Transaction>", f"<{name}>{value}</{name}></Transaction>")

    return bend


async def asked_about(world: Shop, checkout: UUID, word: str) -> None:
    await world.told(checkout)
    await world.follow(checkout)
    row = await world.row(checkout)
    assert row.attention is not None
    assert row.attention == word
    assert row.state in {"awaiting_payment", "callback_received"}


async def mismatched(world: Shop, amount: int) -> UUID:
    """Return a checkout for 139.00 DKK under which the gateway holds another amount."""
    checkout = await world.offered(expiresIn=600)
    await world.plan(checkout, amountMinor=amount)
    await world.pay(checkout)
    await asked_about(world, checkout, "payment_mismatch")
    return checkout


async def over_and_over(world: Shop, checkout: UUID) -> None:
    """Let the deadline and more pass, and every lookup that comes with it."""
    for _ in range(3):
        await world.later(hours=2)
        await world.follow(checkout)


@pytest.mark.parametrize("amount", [100, 13899, 20000])
async def test_a_mismatch_that_is_kept_completes_the_order_with_that_amount_and_never_expires(
    world: Shop, amount: int
):
    checkout = await mismatched(world, amount)
    assert (await world.asked(checkout, "resolve", decision="keep")).matches(
        "done_kept", "the order is completed"
    )
    row = await world.row(checkout)
    assert (row.state, row.reserved, row.attention) == ("completed", amount, None)
    assert await world.roles(checkout) == ["accepted"]
    await over_and_over(world, checkout)
    row = await world.row(checkout)
    assert (row.state, row.reserved) == ("completed", amount)
    assert (await world.events(checkout)).count("checkout.completed") == 1
    await world.agree(checkout)


async def test_a_kept_mismatch_can_be_captured_and_refunded_for_its_own_amount(world: Shop):
    checkout = await mismatched(world, 5000)
    await world.asked(checkout, "resolve", decision="keep")
    assert (await world.asked(checkout, "capture")).code == "accepted"
    assert (await world.asked(checkout, "refund", amount=2000)).code == "accepted"
    assert await world.movements(checkout) == [("captured", 5000), ("refunded", 2000)]
    row = await world.row(checkout)
    assert (row.captured, row.refunded) == (5000, 2000)
    await world.agree(checkout)


async def test_a_mismatch_is_not_dismissed_while_the_gateway_holds_it(world: Shop):
    checkout = await mismatched(world, 100)
    said = await world.asked(checkout, "resolve", decision="dismiss")
    assert said.matches("refused_money_held", "the gateway holds money for this order under ")
    await over_and_over(world, checkout)
    row = await world.row(checkout)
    assert row.state in {"awaiting_payment", "callback_received"}
    assert row.attention == "payment_mismatch"
    await world.agree(checkout)


@pytest.mark.parametrize("method", ["CARD", "BANK_PAYMENT"])
async def test_a_mismatch_that_was_returned_is_not_asked_about_again_and_returned_once(
    world: Shop, method: str
):
    checkout = await world.offered(expiresIn=600)
    await world.plan(checkout, amountMinor=100)
    await world.pay(checkout, method=method, action="pay" if method == "CARD" else "accept")
    await asked_about(world, checkout, "payment_mismatch")
    assert (await world.asked(checkout, "resolve", decision="return")).code == "accepted"
    await world.follow(checkout)
    row = await world.row(checkout)
    assert (row.attention, row.reserved) == (None, 0)
    assert (await world.asked(checkout, "resolve", decision="return")).matches(
        "refused_nothing_to_decide", "nothing is waiting"
    )
    assert len([kind for kind, _ in await world.movements(checkout) if kind in {"released", "refunded"}]) == 1
    await over_and_over(world, checkout)
    row = await world.row(checkout)
    assert (row.state, row.attention) == ("expired", None)
    await world.agree(checkout)


async def test_an_unclear_payment_that_is_kept_pays_the_order_as_long_as_it_holds_that_amount(world: Shop):
    checkout = await world.offered(expiresIn=600)
    world.wire.bent[world.orders[checkout]] = with_status("teleported")
    await world.pay(checkout)
    await asked_about(world, checkout, "unclear_payment")
    await world.asked(checkout, "resolve", decision="keep")
    row = await world.row(checkout)
    assert (row.state, row.reserved, row.attention) == ("completed", WHOLE, None)
    await over_and_over(world, checkout)
    assert (await world.row(checkout)).attention is None
    world.wire.bent[world.orders[checkout]] = with_status("released")
    await world.until_due(checkout)
    row = await world.row(checkout)
    assert (row.state, row.reserved) == ("completed", 0)
    assert row.attention == "payment_released"


async def test_parts_are_kept_as_a_whole_and_moved_singly(world: Shop):
    checkout = await world.offered(expiresIn=600)
    for amount in (3000, WHOLE - 3000):
        await world.plan(checkout, amountMinor=amount)
        await world.pay(checkout)
    await asked_about(world, checkout, "payment_mismatch")
    row = await world.row(checkout)
    numbers = sorted(transaction["transactionId"] for transaction in await world.ledger(checkout))
    assert all(number in of_attention(row) for number in numbers)
    assert "139.00 DKK together" in of_attention(row)
    await world.asked(checkout, "resolve", decision="keep")
    row = await world.row(checkout)
    assert (row.state, row.reserved, row.attention) == ("completed", WHOLE, None)
    assert await world.roles(checkout) == ["accepted", "accepted"]
    said = await world.asked(checkout, "capture")
    assert said.matches("refused_several_payments", "this order is paid by transactions ")
    for number in numbers:
        assert (await world.asked(checkout, "capture", transactionId=number)).code == "accepted"
    row = await world.row(checkout)
    assert (row.captured, row.attention) == (WHOLE, None)
    await over_and_over(world, checkout)
    await world.agree(checkout)


async def test_automatic_capture_takes_all_parts_that_were_kept(world: Shop):
    await world.policy(capture="automatic")
    checkout = await world.offered(expiresIn=600)
    for amount in (5000, WHOLE - 5000):
        await world.plan(checkout, amountMinor=amount)
        await world.pay(checkout)
    await asked_about(world, checkout, "payment_mismatch")
    await world.asked(checkout, "resolve", decision="keep")
    await world.follow(checkout)
    assert sorted(await world.movements(checkout)) == [("captured", 5000), ("captured", WHOLE - 5000)]
    assert (await world.row(checkout)).captured == WHOLE
    await world.agree(checkout)


@pytest.mark.parametrize("policy", ["ask", "keep"])
async def test_a_surcharge_is_shown_and_pays_the_order_by_policy_or_by_decision(world: Shop, policy: str):
    await world.policy(surcharge=policy)
    checkout = await world.offered(expiresIn=600)
    await world.plan(checkout, amountMinor=14100)
    world.wire.bent[world.orders[checkout]] = with_element("SurchargeAmount", "2.00")
    await world.pay(checkout)
    if policy == "ask":
        await asked_about(world, checkout, "payment_mismatch")
        assert "a surcharge of 2.00 DKK" in of_attention(await world.row(checkout))
        await world.asked(checkout, "resolve", decision="keep")
    await world.told(checkout)
    await world.follow(checkout)
    row = await world.row(checkout)
    assert (row.state, row.reserved, row.attention) == ("completed", 14100, None)
    (payment,) = await world.sql("SELECT surcharge FROM payments WHERE checkout_id = :id", id=checkout)
    assert payment.surcharge == 200


@pytest.mark.parametrize(
    ("element", "value", "word"),
    [
        ("ChargebackEvents", "<ChargebackEvent><Type>Pre-arbitration</Type><Amount>139.00</Amount><Currency>DKK</Currency></ChargebackEvent>",
         "chargeback_unclear"),
        ("ChargebackEvents", "<ChargebackEvent><Type>Chargeback</Type><Amount>139,00</Amount><Currency>EUR</Currency></ChargebackEvent>",
         "chargeback_unclear"),
        ("RefundedAmount", "150.00", "over_refund"),
        ("CapturedAmount", "150.00", "over_capture"),
        ("CreditedAmount", "20.00", "credited"),
    ],
)  # fmt: skip
async def test_money_that_is_taken_back_in_another_way_raises_attention(
    world: Shop, element: str, value: str, word: str
):
    checkout = await world.paid()
    await world.asked(checkout, "capture")
    world.wire.bent[world.orders[checkout]] = with_element(element, value)
    await world.asked(checkout, "reconcile")
    row = await world.row(checkout)
    assert row.state == "completed"
    assert row.attention == word
    assert (await world.events(checkout))[-1] == "checkout.attention"
    await world.asked(checkout, "resolve", decision="dismiss")
    await world.asked(checkout, "reconcile")
    assert (await world.row(checkout)).attention is None


async def reopened_and_paid_in_the_session_before(world: Shop, amount: int = WHOLE) -> UUID:
    """Return a reopened checkout that could not be offered again yet, while the shopper paid in the tab of
    the first session.
    """
    checkout = await world.expired()
    await world.plan(checkout, fail={"session": 99})
    assert (await world.asked(checkout, "reopen", expiresIn=600)).code == "done_reopened"
    await world.process(checkout)
    assert await world.state(checkout) == "authenticated"
    paid = {
        "orderId": world.orders[checkout],
        "amountMinor": amount,
        "currency": "DKK",
        "checkout": str(checkout),
    }
    await world.control("POST", "payments/unmatched", paid)
    return checkout


async def test_an_order_that_could_once_be_paid_fails_only_after_a_lookup(world: Shop):
    checkout = await reopened_and_paid_in_the_session_before(world)
    await world.plan(checkout, fail={"session": 99}, failStatus=422)
    await world.process(checkout)
    assert await world.state(checkout) == "completed"
    assert "checkout.failed" not in await world.events(checkout)
    await world.agree(checkout)


async def test_an_order_that_could_once_be_paid_does_not_fail_while_a_person_is_asked_about_its_money(
    world: Shop,
):
    checkout = await reopened_and_paid_in_the_session_before(world, amount=13000)
    await world.plan(checkout, fail={"session": 99}, failStatus=422)
    for _ in range(3):
        await world.process(checkout)
        row = await world.row(checkout)
        assert (row.state, row.lease) == ("authenticated", None)
        assert row.attention == "payment_mismatch"
        assert row.due_at is not None
    assert (await world.events(checkout)).count("checkout.attention") == 1, "the same is not asked twice"
    assert "checkout.failed" not in await world.events(checkout)
    assert (await world.asked(checkout, "resolve", decision="keep")).code == "done_kept"
    row = await world.row(checkout)
    assert (row.state, row.reserved, row.attention) == ("completed", 13000, None)
    await world.agree(checkout)


async def test_an_order_that_could_once_be_paid_does_not_fail_while_the_gateway_says_nothing(world: Shop):
    checkout = await reopened_and_paid_in_the_session_before(world)
    await world.control("PUT", "faults", {"share": 1.0, "shareStatus": 503})
    await world.later(hours=1)
    for _ in range(3):
        await world.process(checkout)
    assert await world.state(checkout) == "authenticated"
    await world.control("DELETE", "faults")
    await world.process(checkout)
    assert await world.state(checkout) == "completed"
    await world.agree(checkout)


async def test_an_order_that_could_not_be_offered_again_fails_once_a_lookup_shows_no_payment(world: Shop):
    checkout = await world.expired()
    await world.plan(checkout, fail={"session": 99})
    await world.asked(checkout, "reopen", expiresIn=600)
    await world.later(hours=1)
    await world.process(checkout)
    assert await world.state(checkout) == "failed"
    await world.agree(checkout)

"""What the gateway's damaged, unreadable and odd answers come to: money behind them is found, or attention is
raised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.said import of_attention

if TYPE_CHECKING:
    from tests.support.scene import Scene

pytestmark = pytest.mark.anyio


def bend(world: Scene, monkeypatch: pytest.MonkeyPatch, change):
    """Change the bytes of every answer to a lookup before they are read."""
    wire = world.processor.context.gateway._wire
    exchange = wire.exchange

    async def bent(request, **more):
        answer = await exchange(request, **more)
        return change(answer) if isinstance(answer, bytes) and "/payments?" in str(request.url) else answer

    monkeypatch.setattr(wire, "exchange", bent)


CUSTOMER = b"<CustomerInfo><Firstname>%s</Firstname></CustomerInfo></Transaction>"


@pytest.mark.parametrize(
    "name",
    [b"Ada\x1c", b"S&oslash;s", b"Smith & Sons", "Søs".encode("latin-1")],
    ids=["control", "entity", "ampersand", "latin-1"],
)
async def test_money_behind_a_damaged_answer_completes_the_order(world: Scene, monkeypatch, name):
    checkout = await world.offered()
    await world.pay(checkout)
    bend(world, monkeypatch, lambda raw: b"\r\n" + raw.replace(b"</Transaction>", CUSTOMER % name))
    await world.call_back(checkout)
    await world.process(checkout)
    row = await world.row(checkout)
    assert (row.state, row.reserved, row.attention) == ("completed", 13900, None)
    (payment,) = await world.sql("SELECT flags, raw_amounts FROM payments")
    assert (payment.flags, payment.raw_amounts) == (["answer_repaired"], None)


async def test_an_answer_that_stays_unreadable_raises_attention_after_three_failures(
    world: Scene, monkeypatch
):
    checkout = await world.offered()
    await world.pay(checkout)
    await world.call_back(checkout)
    bend(world, monkeypatch, lambda raw: raw[:-20])
    for attempt in (1, 2, 3, 4):
        await world.process(checkout)
        row = await world.row(checkout)
        assert (row.attempts, row.attention is not None) == (attempt, attempt >= 3)
    assert row.attention == "gateway_failing"
    assert of_attention(row).startswith("the gateway's answer to payments for order " + row.order_ref)
    assert "is not XML" in of_attention(row)
    assert (await world.events(checkout)).count("checkout.attention") == 1
    monkeypatch.undo()
    await world.process(checkout)
    row = await world.row(checkout)
    assert (row.state, row.attention) == ("completed", None)


async def test_rows_that_stand_elsewhere_are_money_all_the_same(world: Scene, monkeypatch):
    checkout = await world.offered()
    await world.pay(checkout)
    await world.call_back(checkout)
    bend(
        world,
        monkeypatch,
        lambda raw: raw.replace(b"<Transactions>", b"<Actions><Action><Transactions>").replace(
            b"</Transactions>", b"</Transactions></Action></Actions>"
        ),
    )
    await world.process(checkout)
    assert (await world.row(checkout)).state == "completed"


async def test_an_amount_that_cannot_be_read_is_kept_as_written_until_it_can(world: Scene, monkeypatch):
    checkout = await world.offered()
    await world.pay(checkout)
    await world.call_back(checkout)
    bend(
        world,
        monkeypatch,
        lambda raw: raw.replace(b"<ReservedAmount>139.00<", b"<ReservedAmount>1.390,00<").replace(
            b"<MerchantCurrencyAlpha>DKK<", b"<MerchantCurrencyAlpha>QQQ<"
        ),
    )
    await world.process(checkout)
    assert (await world.row(checkout)).attention == "unclear_payment"
    (payment,) = await world.sql("SELECT currency, role, raw_amounts FROM payments")
    assert (payment.currency, payment.role) == ("", "unknown")
    assert payment.raw_amounts["reserved"] == "1.390,00"
    assert payment.raw_amounts["currency"] == "QQQ / 208"
    transactions = (await world.trail(checkout))[-1]["evidence"]["transactions"]
    assert transactions[0]["raw"] == payment.raw_amounts
    monkeypatch.undo()
    await world.process(checkout)
    row = await world.row(checkout)
    assert (row.state, row.reserved) == ("completed", 13900)
    (payment,) = await world.sql("SELECT currency, raw_amounts FROM payments")
    assert (payment.currency, payment.raw_amounts) == ("DKK", None)


async def test_money_of_which_it_is_not_clear_what_it_is_is_not_returned_from_here(world: Scene, monkeypatch):
    checkout = await world.offered()
    await world.pay(checkout)
    await world.call_back(checkout)
    bend(
        world,
        monkeypatch,
        lambda raw: raw.replace(b"<TransactionStatus>preauth<", b"<TransactionStatus>teleported<"),
    )
    await world.process(checkout)
    asked = await world.row(checkout)
    assert asked.attention == "unclear_payment"
    (payment,) = await world.sql("SELECT transaction_id, meaning FROM payments")
    assert await world.asked(checkout, "resolve", decision="return") == (
        "refused_payment_unclear",
        f"what transaction {payment.transaction_id} holds is not clear: give its money back in the gateway's own interface, then reconcile",
    )
    assert payment.meaning == "unknown"
    assert await world.operations(checkout) == []
    assert await world.movements(checkout) == []
    row = await world.row(checkout)
    assert (row.state, row.attention) == (asked.state, asked.attention), "it is still asked"
    assert (await world.trail(checkout))[-1]["action"] == "command:refused"
    # As answered: given back at the gateway, then looked up.
    released = await world.http.post(
        f"{world.settings.gateway_url}/merchant/API/releaseReservation",
        data={"transaction_id": payment.transaction_id},
        auth=("shop", "sandbox password"),
    )
    assert released.is_success
    await world.asked(checkout, "reconcile")
    row = await world.row(checkout)
    assert (row.state, row.attention) == ("awaiting_payment", None)
    await world.agree(checkout)


async def test_an_attempt_that_ended_in_an_error_without_money_lets_the_order_expire(
    world: Scene, monkeypatch
):
    checkout = await world.offered(expiresIn=600)
    await world.pay(checkout, card="4180000000000566")
    bend(
        world,
        monkeypatch,
        lambda raw: raw.replace(b"<Result>Success</Result>", b"<Result>Error</Result>").replace(
            b">preauth_failed<", b">preauth<"
        ),
    )
    await world.sql("UPDATE checkouts SET deadline = clock() - interval '1 hour'")
    await world.process(checkout)
    row = await world.row(checkout)
    assert (row.state, row.attention) == ("expired", None)

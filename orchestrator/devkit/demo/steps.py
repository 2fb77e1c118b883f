"""What happens to the orders of the scripts.

Shoppers are late or pay twice, the shop captures and returns, the gateway does something by itself, and a
person decides. Each act waits for what it has begun, so that whatever comes next in a script meets it done.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from orchestrator.api.contract.bodies import ALL
from orchestrator.devkit.demo.shop import Unscripted
from orchestrator.domain.attention import AttentionCode
from orchestrator.domain.records import CommandKind
from orchestrator.domain.states import State

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from orchestrator.devkit.demo.shopper import Shopper

_AFTER_DEADLINE: Final = 3.0
"""Seconds beyond a deadline after which a checkout without an open payment would have expired."""

# ── Group `checkout` ───────────────────────────────────────────────────────────────────────────────────────


async def pay_and_return(shopper: Shopper) -> None:
    await shopper.pay()
    shopper.expect_page("thanks")


async def pay_seeing_no_shop(shopper: Shopper) -> None:
    await shopper.pay()
    shopper.expect_page(None)


async def be_declined(shopper: Shopper) -> None:
    await shopper.be_declined()
    shopper.expect_page("sorry")


async def be_declined_then_pay(shopper: Shopper) -> None:
    await be_declined(shopper)
    await pay_and_return(shopper)


# ── After the payment ─────────────────────────────────────────────────────────────────────────────────────


async def pay(shopper: Shopper) -> None:
    await pay_and_return(shopper)
    await shopper.paid()


async def capture(shopper: Shopper) -> None:
    await pay(shopper)
    await shopper.ask(CommandKind.CAPTURE, amount=ALL)


async def capture_in_parts(shopper: Shopper) -> None:
    await pay(shopper)
    whole = shopper.order.amount
    await shopper.refused(CommandKind.CAPTURE, why="too-much", amount=shopper.price(whole + 1))
    await shopper.ask(CommandKind.CAPTURE, amount=shopper.price(whole // 3))
    await shopper.ask(CommandKind.CAPTURE, amount=shopper.price(whole - whole // 3))
    await shopper.refused(CommandKind.CAPTURE, why="nothing-left", amount=shopper.price(1))


async def refund_in_parts(shopper: Shopper) -> None:
    await capture(shopper)
    whole = shopper.order.amount
    await shopper.ask(CommandKind.REFUND, amount=shopper.price(whole // 4))
    await shopper.refused(CommandKind.REFUND, why="too-much", amount=shopper.price(whole))
    await shopper.ask(CommandKind.REFUND, amount=shopper.price(whole - whole // 4))
    await shopper.refused(CommandKind.REFUND, why="nothing-left", amount=shopper.price(1))


async def release(shopper: Shopper) -> None:
    await pay(shopper)
    await shopper.ask(CommandKind.RELEASE, reason="the goods are sold out")
    await shopper.refused(CommandKind.CAPTURE, why="nothing-left", amount=ALL)


async def capture_twice_with_one_key(shopper: Shopper) -> None:
    await pay(shopper)
    key, body = str(uuid4()), {"amount": shopper.price(shopper.order.amount)}

    async def ask() -> UUID:
        return (await shopper.client.command(shopper.known, CommandKind.CAPTURE, body, key=key)).command.id

    commands = await asyncio.gather(*(ask() for _ in range(3)))
    if len(set(commands)) != 1:
        raise Unscripted(expected="one command for one key", seen=", ".join(map(str, commands)))
    await shopper.executed(commands[0])
    if await ask() != commands[0]:
        raise Unscripted(expected="the same command for the same key afterwards", seen="another")
    await shopper.refused(CommandKind.CAPTURE, why="idempotency-key-reused", key=key, amount=shopper.price(1))


async def refund(shopper: Shopper) -> None:
    await capture(shopper)
    await shopper.ask(CommandKind.REFUND, amount=ALL)


async def capture_after_hand(shopper: Shopper) -> None:
    await pay(shopper)
    # The callbacks that came are read by then: another lookup would put the capture into the books first.
    await shopper.ask(CommandKind.RECONCILE)
    row = await shopper.paid_row()
    await shopper.shop.capture_by_hand(shopper.order, row["transactionId"])
    await shopper.ask(CommandKind.CAPTURE, amount=ALL)


async def capture_refused_then_done(shopper: Shopper) -> None:
    await pay(shopper)
    await shopper.ask(CommandKind.CAPTURE, fails=True, amount=ALL)
    await shopper.ask(CommandKind.CAPTURE, amount=ALL)


async def pay_captured_by_itself(shopper: Shopper) -> None:
    await pay(shopper)
    await shopper.until("all of it captured", lambda found: found.money.captured == found.amount.value)


async def charge_back(shopper: Shopper) -> None:
    await capture(shopper)
    await shopper.at_gateway("chargeback")
    await shopper.decide(AttentionCode.CHARGED_BACK, "dismiss", reason="answered at the gateway")


async def refunded_at_gateway(shopper: Shopper) -> None:
    await capture(shopper)
    await shopper.at_gateway("refund", amountMinor=shopper.order.amount // 2)
    await shopper.until("the gateway's refund in our books", lambda found: bool(found.money.refunded))
    # What is left, and no more than that, can be refunded by us.
    await shopper.refused(CommandKind.REFUND, why="too-much", amount=shopper.price(shopper.order.amount))
    await shopper.ask(CommandKind.REFUND, amount=ALL)


async def released_at_gateway(shopper: Shopper) -> None:
    await pay(shopper)
    await shopper.at_gateway("release")
    await shopper.decide(
        AttentionCode.PAYMENT_RELEASED, "dismiss", reason="the shop released it at the gateway"
    )


# ── Evidence ──────────────────────────────────────────────────────────────────────────────────────────────


async def pay_unheard(shopper: Shopper) -> None:
    """Pay while callbacks are rejected or lost: a lookup finds the payment."""
    await pay_seeing_no_shop(shopper)
    await shopper.paid()


async def fail_after_success(shopper: Shopper) -> None:
    """Pay, go back and send the empty form: the gateway calls the failure page, and holds the money."""
    await pay(shopper)
    await shopper.at_gateway("send", kind="failure", status="failed")
    await shopper.callback("signed", status="failed")


async def be_forged_then_pay(shopper: Shopper) -> None:
    page = await shopper.open_page()
    for _ in range(2):
        status = await shopper.shop.forge(shopper.order, shopper.known)
        if status != 401:  # noqa: PLR2004 - HTTP
            raise Unscripted(expected="401 to a forged callback", seen=str(status))
    await shopper.callback("wrong")
    read = await shopper.client.checkout(shopper.known)
    if read.state != State.AWAITING_PAYMENT:
        raise Unscripted(expected="a forged success to move nothing", seen=f"state {read.state}")
    await shopper.pay_on(page)
    shopper.expect_page("thanks")
    await shopper.paid()


# ── Late, surplus and unknown money ───────────────────────────────────────────────────────────────────────


async def _let_end(shopper: Shopper, state: State) -> str:
    """Open the gateway's page, wait until the checkout has ended so; return the page, still payable."""
    page = await shopper.open_page()
    if state is State.CANCELLED:
        await shopper.merchant_cancels()
    await shopper.until(f"state {state}", lambda found: found.state == state)
    return page


async def pay_late(shopper: Shopper) -> None:
    await shopper.pay_on(await _let_end(shopper, State.EXPIRED))
    await shopper.paid()


def late_and_a_person(decision: str) -> Callable[[Shopper], Any]:
    async def act(shopper: Shopper) -> None:
        await pay_late(shopper)
        await shopper.decide(AttentionCode.LATE_PAYMENT, decision, reason="asked the shopper")

    return act


async def be_cancelled_then_pay(shopper: Shopper) -> None:
    await shopper.pay_on(await _let_end(shopper, State.CANCELLED))
    await shopper.paid()
    await shopper.decide(AttentionCode.LATE_PAYMENT, "keep", reason="the shopper wants the goods after all")


async def be_reopened_then_pay(shopper: Shopper) -> None:
    await _let_end(shopper, State.EXPIRED)
    await shopper.ask(CommandKind.REOPEN, expiresIn=60, reason="the shopper is back")
    await pay(shopper)


async def pay_in_two_tabs(shopper: Shopper) -> None:
    tabs = [await shopper.open_page(), await shopper.open_page()]
    await asyncio.gather(*(shopper.pay_on(tab) for tab in tabs))
    await shopper.until("both payments in our books", lambda found: len(found.payments) == len(tabs))


async def surplus_by_hand(shopper: Shopper) -> None:
    await pay_in_two_tabs(shopper)
    found = await shopper.attention(AttentionCode.SURPLUS_PAYMENT)
    [second] = [payment.transaction_id for payment in found.payments if payment.role == "surplus"]
    await shopper.ask(CommandKind.RELEASE, transactionId=second, reason="paid twice")
    await shopper.without_attention()


async def surplus_by_policy(shopper: Shopper) -> None:
    await pay_in_two_tabs(shopper)
    await _returned_by_policy(shopper)


async def _pay_elsewhere(shopper: Shopper) -> None:
    """Pay an order number without an intent: it becomes a checkout of its own."""
    shop, order = shopper.shop, shopper.order
    await shop.pay_elsewhere(order)
    found = (await shop.client.checkouts(orderId=order.id)).checkouts
    if len(found) != 1:
        raise Unscripted(expected="one checkout created from the payment", seen=str(len(found)))
    shopper.checkout = found[0].id
    await shopper.paid()


async def unknown_order_kept(shopper: Shopper) -> None:
    await _pay_elsewhere(shopper)
    await shopper.decide(AttentionCode.UNKNOWN_ORDER, "keep", reason="an order by telephone")


async def _returned_by_policy(shopper: Shopper) -> None:
    await shopper.until(
        "the money returned", lambda found: {each.state for each in found.operations} == {"succeeded"}
    )
    await shopper.ask(CommandKind.RECONCILE)
    await shopper.without_attention()


async def late_returned_by_policy(shopper: Shopper) -> None:
    await pay_late(shopper)
    await _returned_by_policy(shopper)


async def unknown_order_returned(shopper: Shopper) -> None:
    await _pay_elsewhere(shopper)
    await _returned_by_policy(shopper)


async def pay_another_amount(shopper: Shopper) -> None:
    await shopper.pay()
    found = await shopper.attention(AttentionCode.PAYMENT_MISMATCH)
    if found.state == State.COMPLETED:
        raise Unscripted(expected="an order that is not completed by another amount", seen="completed")
    await shopper.ask(CommandKind.RESOLVE, decision="return", reason="not what the order costs")
    await shopper.without_attention()


async def pay_open_until_after_deadline(shopper: Shopper) -> None:
    await shopper.leave_open()
    found = await shopper.client.checkout(shopper.known)
    left = (found.deadline - datetime.now(UTC)).total_seconds()
    await asyncio.sleep(left + _AFTER_DEADLINE)
    found = await shopper.client.checkout(shopper.known)
    if found.state != State.AWAITING_PAYMENT:
        raise Unscripted(expected="an open payment to keep its checkout alive", seen=f"state {found.state}")
    [row] = await shopper.shop.ledger(shopper.order)
    await shopper.shop.control("POST", f"payments/{row['paymentId']}/resolve", {"outcome": "succeeded"})
    await shopper.paid()

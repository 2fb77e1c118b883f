"""The scripts of group `money`: captures, refunds and releases, lost answers and callbacks, late, surplus and unknown money.

Each says what ledger and books must hold in the end, and what we may have asked the gateway for on the way: whatever happens twice
in a script (a capture asked for again, an answer that is lost, a policy that two looks obey), the money moves once.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from orchestrator.demo.scripts import SHORT, Script
from orchestrator.demo.shop import Unscripted
from orchestrator.states import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.demo.shopper import Shopper
    from orchestrator.demo.told import Sums, Told

ASKS: Final = "demo-ask"
KEEPS: Final = "demo-keep"
RETURNS: Final = "demo-return"
CAPTURES: Final = "demo-capture"

MERCHANTS: Final[dict[str, dict[str, object]]] = {
    name: {"late": late, "surplus": late, "unknown_order": late, "capture": capture, "looks_per_minute": 6000}
    for name, late, capture in (
        (ASKS, "ask", "manual"), (KEEPS, "keep", "manual"), (RETURNS, "return", "manual"), (CAPTURES, "ask", "automatic"),
    )
}  # fmt: skip
"""The merchants of these scripts by name, with their policies; all have the one account at the gateway.

Nobody waits for a place among the looks: here everything is looked at within seconds, as it is in hours elsewhere.
"""

_AFTER_DEADLINE: Final = 3.0
"""Seconds beyond a deadline after which a checkout without an open payment would have expired."""

# ── What the books say in the end, by the order's amount ────────────────────────────────────────────────────────────────


def _reserved(amount: int) -> Sums:
    return amount, 0, 0


def _captured(amount: int) -> Sums:
    return amount, amount, 0


def _refunded(amount: int) -> Sums:
    return amount, amount, amount


def _nothing(_: int) -> Sums:
    return 0, 0, 0


# ── What happens: after the payment ─────────────────────────────────────────────────────────────────────────────────────


async def _pay(shopper: Shopper) -> None:
    await shopper.pay()
    shopper.expect_page("thanks")
    await shopper.paid()


async def _capture(shopper: Shopper) -> None:
    await _pay(shopper)
    await shopper.ask("capture")


async def _capture_in_parts(shopper: Shopper) -> None:
    await _pay(shopper)
    whole = shopper.order.amount
    await shopper.refused("capture", why="too-much", amount=shopper.price(whole + 1))
    await shopper.ask("capture", amount=shopper.price(whole // 3))
    await shopper.ask("capture", amount=shopper.price(whole - whole // 3))
    await shopper.refused("capture", why="nothing-left", amount=shopper.price(1))


async def _refund_in_parts(shopper: Shopper) -> None:
    await _capture(shopper)
    whole = shopper.order.amount
    await shopper.ask("refund", amount=shopper.price(whole // 4))
    await shopper.refused("refund", why="too-much", amount=shopper.price(whole))
    await shopper.ask("refund", amount=shopper.price(whole - whole // 4))
    await shopper.refused("refund", why="nothing-left", amount=shopper.price(1))


async def _release(shopper: Shopper) -> None:
    await _pay(shopper)
    await shopper.ask("release", reason="the goods are sold out")
    await shopper.refused("capture", why="nothing-left")


async def _capture_twice_with_one_key(shopper: Shopper) -> None:
    await _pay(shopper)
    key, body = str(uuid4()), {"amount": shopper.price(shopper.order.amount)}
    commands = await asyncio.gather(
        *(shopper.shop.command(shopper.known, "capture", body, key=key) for _ in range(3))
    )
    if len(set(commands)) != 1:
        raise Unscripted(expected="one command for one key", seen=", ".join(commands))
    await shopper.obeyed(commands[0])
    if await shopper.shop.command(shopper.known, "capture", body, key=key) != commands[0]:
        raise Unscripted(expected="the same command for the same key afterwards", seen="another")
    await shopper.refused("capture", why="idempotency-key-reused", key=key, amount=shopper.price(1))


async def _refund(shopper: Shopper) -> None:
    await _capture(shopper)
    await shopper.ask("refund")


async def _capture_after_hand(shopper: Shopper) -> None:
    await _pay(shopper)
    row = await shopper.paid_row()
    await shopper.shop.capture_by_hand(shopper.order, row["transactionId"])
    await shopper.ask("capture")


async def _capture_refused_then_done(shopper: Shopper) -> None:
    await _pay(shopper)
    await shopper.ask("capture", fails=True)
    await shopper.ask("capture")


async def _pay_captured_by_itself(shopper: Shopper) -> None:
    await _pay(shopper)
    await shopper.until("all of it captured", _all_captured, ended=True)


async def _charge_back(shopper: Shopper) -> None:
    await _capture(shopper)
    await shopper.shop.at_gateway((await shopper.paid_row())["paymentId"], "chargeback", {})
    await shopper.attention("charged_back")
    await shopper.ask("resolve", decision="dismiss", reason="answered at the gateway")
    await shopper.calm()


async def _refunded_at_gateway(shopper: Shopper) -> None:
    await _capture(shopper)
    part = {"amountMinor": shopper.order.amount // 2}
    payment = (await shopper.paid_row())["paymentId"]
    await shopper.shop.at_gateway(payment, "refund", part)
    await shopper.until(
        "the gateway's refund in our books", lambda found: found["money"]["refunded"] > 0, ended=True
    )
    # What is left, and no more than that, can be refunded by us.
    await shopper.refused("refund", why="too-much", amount=shopper.price(shopper.order.amount))
    await shopper.ask("refund")


async def _released_at_gateway(shopper: Shopper) -> None:
    await _pay(shopper)
    await shopper.shop.at_gateway((await shopper.paid_row())["paymentId"], "release", {})
    await shopper.attention("payment_released")
    await shopper.ask("resolve", decision="dismiss", reason="the shop released it at the gateway")
    await shopper.calm()


# ── What happens: evidence ──────────────────────────────────────────────────────────────────────────────────────────────


async def _pay_unheard(shopper: Shopper) -> None:
    """Pay while no callback is believed, or none comes: a look finds the payment."""
    await shopper.pay()
    shopper.expect_page(None)
    await shopper.paid()


async def _fail_after_success(shopper: Shopper) -> None:
    """Pay, go back in the browser and send the empty form: the gateway calls the failure page although it holds the money."""
    await _pay(shopper)
    payment = (await shopper.paid_row())["paymentId"]
    await shopper.shop.at_gateway(payment, "send", {"kind": "failure", "status": "failed"})
    await shopper.letter("signed", status="failed")


async def _be_forged_then_pay(shopper: Shopper) -> None:
    page = await shopper.open_page()
    for _ in range(2):
        status = await shopper.shop.forge(shopper.order, shopper.known)
        if status != 401:  # noqa: PLR2004 - HTTP
            raise Unscripted(expected="401 to a forged callback", seen=str(status))
    await shopper.letter("wrong")
    read = await shopper.shop.read(shopper.known)
    if read["state"] != State.AWAITING_PAYMENT:
        raise Unscripted(expected="a forged success to move nothing", seen=f"state {read['state']}")
    await shopper.pay_on(page)
    shopper.expect_page("thanks")
    await shopper.paid()


# ── What happens: late, surplus and unknown money ───────────────────────────────────────────────────────────────────────


async def _let_expire(shopper: Shopper) -> str:
    """Open the gateway's page and wait until the checkout is expired; return the page, on which can still be paid."""
    page = await shopper.open_page()
    await shopper.until("state expired", lambda found: found["state"] == State.EXPIRED, ended=True)
    return page


async def _pay_late(shopper: Shopper) -> None:
    await shopper.pay_on(await _let_expire(shopper))
    await shopper.paid()


def _late_and_a_person(decision: str) -> Callable[[Shopper], Any]:
    async def act(shopper: Shopper) -> None:
        await _pay_late(shopper)
        await shopper.attention("late_payment")
        await shopper.ask("resolve", decision=decision, reason="asked the shopper")
        await shopper.calm()

    return act


async def _be_cancelled_then_pay(shopper: Shopper) -> None:
    page = await shopper.open_page()
    await shopper.merchant_cancels()
    await shopper.until("state cancelled", lambda found: found["state"] == State.CANCELLED, ended=True)
    await shopper.pay_on(page)
    await shopper.paid()
    await shopper.attention("late_payment")
    await shopper.ask("resolve", decision="keep", reason="the shopper wants the goods after all")
    await shopper.calm()


async def _be_reopened_then_pay(shopper: Shopper) -> None:
    await _let_expire(shopper)
    await shopper.ask("reopen", expiresIn=60, reason="the shopper is back")
    await _pay(shopper)


async def _pay_in_two_tabs(shopper: Shopper) -> None:
    tabs = [await shopper.open_page(), await shopper.open_page()]
    await asyncio.gather(*(shopper.pay_on(tab) for tab in tabs))
    await shopper.until(
        "both payments in our books", lambda found: len(found["payments"]) == len(tabs), ended=True
    )


async def _surplus_by_hand(shopper: Shopper) -> None:
    await _pay_in_two_tabs(shopper)
    found = await shopper.attention("surplus_payment")
    [second] = [one["transactionId"] for one in found["payments"] if one["role"] == "surplus"]
    await shopper.ask("release", transactionId=second, reason="paid twice")
    await shopper.calm()


async def _surplus_by_policy(shopper: Shopper) -> None:
    await _pay_in_two_tabs(shopper)
    await _returned_by_policy(shopper)


async def _pay_elsewhere(shopper: Shopper) -> None:
    """Pay an order number that nobody has handed over: it becomes a checkout of its own."""
    shop, order = shopper.shop, shopper.order
    await shop.pay_elsewhere(order)
    found = await shop.find(order)
    if len(found) != 1:
        raise Unscripted(expected="one checkout adopted for the payment", seen=str(len(found)))
    shopper.checkout = found[0]
    await shopper.paid()


async def _unknown_order_kept(shopper: Shopper) -> None:
    await _pay_elsewhere(shopper)
    await shopper.attention("unknown_order")
    await shopper.ask("resolve", decision="keep", reason="an order by telephone")
    await shopper.calm()


async def _returned_by_policy(shopper: Shopper) -> None:
    await shopper.until("the money returned", _operations_over, ended=True)
    await shopper.ask("reconcile")
    await shopper.calm()


async def _late_returned_by_policy(shopper: Shopper) -> None:
    await _pay_late(shopper)
    await _returned_by_policy(shopper)


async def _unknown_order_returned(shopper: Shopper) -> None:
    await _pay_elsewhere(shopper)
    await _returned_by_policy(shopper)


async def _pay_another_amount(shopper: Shopper) -> None:
    await shopper.pay()
    found = await shopper.attention("payment_mismatch")
    if found["state"] == State.COMPLETED:
        raise Unscripted(expected="an order that is not completed by another amount", seen="completed")
    await shopper.ask("resolve", decision="return", reason="not what the order costs")
    await shopper.calm()


async def _pay_open_until_after_deadline(shopper: Shopper) -> None:
    await shopper.leave_open()
    found = await shopper.shop.read(shopper.known)
    left = (datetime.fromisoformat(found["deadline"]) - datetime.now(UTC)).total_seconds()
    await asyncio.sleep(left + _AFTER_DEADLINE)
    found = await shopper.shop.read(shopper.known)
    if found["state"] != State.AWAITING_PAYMENT:
        raise Unscripted(
            expected="an open payment to keep its checkout alive", seen=f"state {found['state']}"
        )
    [row] = await shopper.shop.ledger(shopper.order)
    await shopper.shop.at_gateway(row["paymentId"], "resolve", {"outcome": "succeeded"})
    await shopper.paid()


# ── What a checkout shows ───────────────────────────────────────────────────────────────────────────────────────────────


def _all_captured(found: dict[str, Any]) -> bool:
    return bool(found["money"]["captured"] == found["amount"]["value"])


def _operations_over(found: dict[str, Any]) -> bool:
    return bool(found["operations"]) and all(one["state"] == "succeeded" for one in found["operations"])


# ── What must be found afterwards ───────────────────────────────────────────────────────────────────────────────────────


def _all(*parts: Callable[[Told], str | None]) -> Callable[[Told], str | None]:
    return lambda told: next((missing for part in parts if (missing := part(told)) is not None), None)


def _proven(told: Told) -> str | None:
    """Every callback that was read was signed, and came from the gateway's own network."""
    read = {(letter["grade"], letter["network"]) for letter in told.letters()}
    return (
        None
        if read == {("signed", "inside")}
        else f"signed callbacks from inside alone, and not {sorted(read)}"
    )


def _settled_by(**wanted: int) -> Callable[[Told], str | None]:
    """So many operations succeeded for each cause (asked, automatic, returned), and no others."""

    def evidence(told: Told) -> str | None:
        seen = [one["cause"] for one in told.operations if one["state"] == "succeeded"]
        counted = {cause: seen.count(cause) for cause in seen}
        return None if counted == wanted else f"operations that succeeded {wanted}, and not {counted}"

    return evidence


def _entries(**wanted: int) -> Callable[[Told], str | None]:
    """So many entries in the trail of these actions of an operation (`unknown`, `submitted` and so on)."""

    def evidence(told: Told) -> str | None:
        for action, count in wanted.items():
            seen = told.actions(f"money:{action}")
            if seen != count:
                return f"{count} entries money:{action} in the trail, and not {seen}"
        return None

    return evidence


def _late(told: Told) -> str | None:
    return None if told.checkout["late"] else "a checkout that is marked late"


def _in_time(told: Told) -> str | None:
    return "a checkout that is not marked late" if told.checkout["late"] else None


def _unasked(told: Told) -> str | None:
    return "no operation of ours" if told.operations else None


def _found_by_looking(told: Told) -> str | None:
    if any(True for _ in told.letters()):
        return "no callback in the trail"
    lost = [one for one in told.callbacks() if one["answerStatus"] is not None]
    return "no callback that was delivered" if lost else None


def _disbelieved(grade: str, *, never: bool) -> Callable[[Told], str | None]:
    """Callbacks were read that proved nothing; `never`: no callback moved the checkout at all."""

    def evidence(told: Told) -> str | None:
        if grade not in {letter["grade"] for letter in told.letters()}:
            return f"a callback with grade {grade} in the trail"
        arrived = [entry for entry in told.trail if entry["trigger"] == "callback_arrived"]
        if never:
            return "no callback that moved the checkout" if arrived else None
        proven = all(
            any(letter["grade"] == "signed" for letter in entry["evidence"]["callbacks"]) for entry in arrived
        )
        return None if proven else "none but signed callbacks to move the checkout"

    return evidence


def _refused_401(told: Told) -> str | None:
    answers = {one["answerStatus"] for one in told.callbacks()}
    return None if answers == {401} else f"401 as the answer to every callback, and not {sorted(answers)}"


def _charged_back(told: Told) -> str | None:
    ours = told.checkout["money"]["chargedBack"]
    return (
        None
        if ours == told.checkout["amount"]["value"]
        else f"all of it charged back in our books, and not {ours}"
    )


def _never_completed(told: Told) -> str | None:
    return "an order that was never completed" if told.moves(State.COMPLETED) else None


def _bound_by(binding: str) -> Callable[[Told], str | None]:
    """The payment was known as the order's by this, and by nothing better."""

    def evidence(told: Told) -> str | None:
        seen = {one["binding"] for one in told.checkout["payments"]}
        return None if seen == {binding} else f"payments bound by {binding}, and not {sorted(seen)}"

    return evidence


def _reopened(told: Told) -> str | None:
    once = told.actions("checkout:reopened") == 1
    return None if once else "one entry checkout:reopened in the trail"


_LOST: Final = {"callbacks": {"success": False, "failure": False, "notification": False}}
_PAID: Final[dict[str, Any]] = {
    "ends": State.COMPLETED,
    "merchant": ASKS,
    "method": "CARD",
    "auto_capture": False,
}


def _lost_answer(call: str, **more: object) -> dict[str, Any]:
    """Return a plan by which one call takes effect, and its answer never comes."""
    return {"fail": {call: 1}, "failAfter": True, "failStatus": "reset", **more}


SCRIPTS: Final = (
    Script(
        name="captured_in_parts", says="pays; captured in two parts, and never more", act=_capture_in_parts, **_PAID,
        holds=_captured, moves=("captured",) * 2, evidence=_all(_proven, _settled_by(asked=2), _entries(submitted=2)),
    ),
    Script(
        name="refunded_in_parts", says="pays; captured, refunded in two parts, a third is refused", act=_refund_in_parts,
        **_PAID, holds=_refunded, moves=("captured", "refunded", "refunded"), evidence=_all(_proven, _settled_by(asked=3)),
    ),
    Script(
        name="released", says="pays; the shop releases the money", act=_release, **_PAID, holds=_nothing, moves=("released",),
        evidence=_all(_proven, _settled_by(asked=1)),
    ),
    Script(
        name="captured_with_one_key", says="pays; one capture is asked for four times over", act=_capture_twice_with_one_key,
        **_PAID, holds=_captured, moves=("captured",), evidence=_all(_settled_by(asked=1), _entries(submitted=1)),
    ),
    Script(
        name="capture_answer_lost", says="pays; the capture is done, its answer lost", act=_capture, **_PAID, holds=_captured,
        moves=("captured",), plan=_lost_answer("capture"), evidence=_all(_settled_by(asked=1), _entries(submitted=1, unknown=1)),
    ),
    Script(
        name="capture_call_lost", says="pays; the capture is lost on its way, and sent again", act=_capture, **_PAID,
        holds=_captured, moves=("captured",), plan={"fail": {"capture": 1}, "failStatus": "reset"},
        evidence=_all(_settled_by(asked=1), _entries(submitted=2, unknown=1, withdrawn=1)),
    ),
    Script(
        name="refund_answer_lost", says="pays; a refund's answer is lost, its name never shown", act=_refund, **_PAID,
        holds=_refunded, moves=("captured", "refunded"), plan=_lost_answer("refund", echo=False),
        evidence=_all(_settled_by(asked=2), _entries(submitted=2, unknown=1)),
    ),
    Script(
        name="captured_by_hand", says="pays; captured by hand at the gateway, then asked for", act=_capture_after_hand, **_PAID,
        holds=_captured, moves=("captured",), evidence=_all(_settled_by(asked=1), _entries(submitted=0)),
    ),
    Script(
        name="capture_refused", says="pays; the gateway refuses a capture, then does it", act=_capture_refused_then_done,
        **_PAID, holds=_captured, moves=("captured",), plan={"refuse": {"capture": 1}},
        evidence=_all(_settled_by(asked=1), _entries(submitted=2, rejected=1)),
    ),
    Script(
        name="gateway_captures", says="pays; the gateway captures by itself", act=_pay_captured_by_itself,
        **{**_PAID, "auto_capture": True}, holds=_captured, evidence=_all(_proven, _unasked),
    ),
    Script(
        name="capture_required", says="pays; the gateway was to capture, and leaves it to us", act=_pay_captured_by_itself,
        **{**_PAID, "auto_capture": True}, holds=_captured, moves=("captured",), plan={"requireCapture": True},
        evidence=_all(_proven, _settled_by(automatic=1)),
    ),
    Script(
        name="policy_captures", says="pays; captured as the merchant's policy says", act=_pay_captured_by_itself,
        **{**_PAID, "merchant": CAPTURES}, holds=_captured, moves=("captured",), evidence=_settled_by(automatic=1),
    ),
    Script(
        name="callbacks_lost", says="pays; every callback is lost: found by looking", act=_pay_unheard, **_PAID,
        holds=_reserved, plan=_LOST, evidence=_all(_found_by_looking, _in_time),
    ),
    Script(
        name="callbacks_forged", says="is forged a success (401, not believed), then pays", act=_be_forged_then_pay, **_PAID,
        holds=_reserved, evidence=_disbelieved("wrong", never=False),
    ),
    Script(
        name="callbacks_replayed", says="pays; all signatures are too old: found by looking", act=_pay_unheard, **_PAID,
        holds=_reserved, plan={"callbacks": {"tamper": "staleTimestamp"}},
        evidence=_all(_disbelieved("stale", never=True), _refused_401),
    ),
    Script(
        name="callbacks_garbled", says="pays; the XML in every callback is broken", act=_pay, **_PAID, holds=_reserved,
        plan={"callbacks": {"tamper": "invalidXml"}}, evidence=_all(_proven, _in_time),
    ),
    Script(
        name="failure_after_success", says="pays, goes back: a failure is called after the success", act=_fail_after_success,
        **_PAID, holds=_reserved, evidence=_all(_proven, _in_time),
    ),
    Script(
        name="unbound", says="pays; the gateway gives our id back nowhere", act=_pay, **_PAID, holds=_reserved,
        plan={"bindings": False}, evidence=_all(_proven, _bound_by("order_ref")),
    ),
    Script(
        name="late_kept_by_person", says="pays after the deadline; a person keeps it", act=_late_and_a_person("keep"),
        **_PAID, holds=_reserved, expires_in=SHORT, evidence=_all(_late, _unasked),
    ),
    Script(
        name="late_returned_by_person", says="pays after the deadline; a person returns it", act=_late_and_a_person("return"),
        **_PAID, holds=_nothing, moves=("released",), expires_in=SHORT, evidence=_all(_late, _settled_by(returned=1)),
    ),
    Script(
        name="late_kept_by_policy", says="pays after the deadline; policy keeps it", act=_pay_late,
        **{**_PAID, "merchant": KEEPS}, holds=_reserved, expires_in=SHORT, evidence=_all(_late, _unasked),
    ),
    Script(
        name="late_returned_by_policy", says="pays after the deadline; policy releases it", act=_late_returned_by_policy,
        **{**_PAID, "merchant": RETURNS}, holds=_nothing, moves=("released",), expires_in=SHORT,
        evidence=_all(_late, _settled_by(returned=1), _entries(submitted=1)),
    ),
    Script(
        name="late_bank_money_refunded", says="pays by bank after the deadline; policy refunds it", act=_late_returned_by_policy,
        **{**_PAID, "merchant": RETURNS, "method": "BANK_PAYMENT"}, holds=_refunded, moves=("refunded",), expires_in=SHORT,
        evidence=_all(_late, _settled_by(returned=1), _entries(submitted=1)),
    ),
    Script(
        name="cancelled_then_paid", says="pays after the shop cancelled; a person keeps it", act=_be_cancelled_then_pay, **_PAID,
        holds=_reserved, evidence=_all(_late, _unasked),
    ),
    Script(
        name="reopened_then_paid", says="is too late, comes back, pays", act=_be_reopened_then_pay, **_PAID, holds=_reserved,
        expires_in=SHORT, evidence=_all(_in_time, _reopened),
    ),
    Script(
        name="surplus_released_by_hand", says="pays in two tabs; the second payment is released", act=_surplus_by_hand, **_PAID,
        holds=_reserved, moves=("released",), evidence=_settled_by(asked=1),
    ),
    Script(
        name="surplus_returned_by_policy", says="pays in two tabs; policy returns the second", act=_surplus_by_policy,
        **{**_PAID, "merchant": RETURNS}, holds=_reserved, moves=("released",),
        evidence=_all(_settled_by(returned=1), _entries(submitted=1)),
    ),
    Script(
        name="unknown_order_kept", says="pays an order that nobody knows; a person keeps it", act=_unknown_order_kept, **_PAID,
        holds=_reserved, handed_over=False, evidence=_all(_late, _unasked),
    ),
    Script(
        name="unknown_order_returned", says="pays an order that nobody knows; policy returns it", act=_unknown_order_returned,
        **{**_PAID, "merchant": RETURNS}, holds=_nothing, moves=("released",), handed_over=False,
        evidence=_all(_late, _settled_by(returned=1), _entries(submitted=1)),
    ),
    Script(
        name="wrong_amount", says="is charged another amount: never completed, returned", act=_pay_another_amount,
        **{**_PAID, "ends": State.EXPIRED}, holds=_nothing, moves=("released",), plan={"amountMinor": 1_999},
        expires_in=SHORT, evidence=_all(_never_completed, _settled_by(returned=1)),
    ),
    Script(
        name="wrong_currency", says="is charged in another currency: never completed, returned", act=_pay_another_amount,
        **{**_PAID, "ends": State.EXPIRED}, holds=_nothing, moves=("released",), plan={"currency": "NOK"},
        expires_in=SHORT, evidence=_all(_never_completed, _settled_by(returned=1)),
    ),
    Script(
        name="charged_back", says="pays, and takes it back at the bank", act=_charge_back, **_PAID, holds=_captured,
        moves=("captured",), evidence=_all(_charged_back, _settled_by(asked=1)),
    ),
    Script(
        name="refunded_at_gateway", says="pays; half is refunded at the gateway, the rest by us", act=_refunded_at_gateway,
        **_PAID, holds=_refunded, moves=("captured", "refunded"), evidence=_settled_by(asked=2),
    ),
    Script(
        name="released_at_gateway", says="pays; the money is released at the gateway", act=_released_at_gateway, **_PAID,
        holds=_nothing, evidence=_unasked,
    ),
    Script(
        name="open_beyond_deadline", says="pays by bank, which says so after the deadline", act=_pay_open_until_after_deadline,
        **{**_PAID, "method": "BANK_PAYMENT"}, holds=_captured, expires_in=SHORT, evidence=_all(_in_time, _unasked),
    ),
)  # fmt: skip

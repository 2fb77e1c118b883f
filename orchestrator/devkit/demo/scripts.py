"""What a script is, and the scripts of both groups: what a shopper does, what goes wrong on the way, how the
order must end.

A script is data and one function over what a shopper can do (`steps`). `plan` is sent to the sandbox for the
order beforehand, and `evidence` checks ledger and trail afterwards, so that an order which ended well for
another reason than its script's is found. Group `money` states what ledger and books must hold in the end,
and which calls the gateway may have got on the way: whatever happens twice in a script (a repeated capture,
an answer that is lost, a policy that two lookups follow), the money moves once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from orchestrator.devkit.demo import steps
from orchestrator.devkit.demo.evidence import (
    bound_by_number,
    charged_back,
    disbelieved,
    entries,
    every,
    found_by_lookup,
    in_time,
    late,
    never_completed,
    never_tried,
    one_declined,
    only,
    proven,
    refused_401,
    reopened,
    settled_by,
    three_of_each,
    two_failures,
    unasked,
)
from orchestrator.devkit.demo.shopper import Shopper
from orchestrator.domain.states import State

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from orchestrator.devkit.demo.evidence import Evidence, Sums

Method = Literal["CARD", "BANK_PAYMENT", "MOBILE_WALLET"]

SHORT: Final = 6
"""Seconds that a shopper gets who will not pay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """One way in which an order can go. `evidence` returns what is missing, or None."""

    name: str
    says: str
    act: Callable[[Shopper], Awaitable[object]]
    ends: State = State.COMPLETED
    evidence: Evidence
    plan: dict[str, Any] = field(default_factory=dict)
    expires_in: int | None = None
    method: Method | None = None
    """None: any that the shopper is offered. Only a card can be declined by its number, only a bank leaves a
    payment open."""
    merchant: str = "default"
    auto_capture: bool | None = None
    """None: as the seed has it."""
    handed_over: bool = True
    """Whether the shop sends the order to the orchestrator; otherwise it is paid elsewhere, without an
    intent.
    """
    holds: Sums | None = None
    """What the books say of the payment that pays, in the end, as multiples of the order's amount; None: it
    is reserved, if paid."""
    moves: tuple[str, ...] = ()
    """What we ask the gateway to do to the money, all in all; it may do nothing else for us."""

    @property
    def paid(self) -> bool:
        """Whether the shopper's money is held at the end."""
        return self.ends is State.COMPLETED


# ── Group `checkout` ──

_RACE: Final = {"callbacks": {"times": 3, "simultaneous": True, "order": "race"}}


def _script(
    name: str, says: str, act: Callable[[Shopper], Awaitable[object]], *evidence: Evidence, **more: Any
) -> Script:
    """Return a script of which all evidence is wanted."""
    return Script(name=name, says=says, act=act, evidence=every(*evidence), **more)


_CHECKOUT: Final = (
    _script("pays_at_once", "pays at once", steps.pay_and_return),
    _script(
        "declined_then_pays", "is declined, tries again and pays", steps.be_declined_then_pay, one_declined, method="CARD",
    ),
    _script(
        "declined_and_leaves", "is declined and leaves", steps.be_declined, one_declined, ends=State.EXPIRED, method="CARD",
        expires_in=SHORT,
    ),
    _script(
        "only_notification", "pays; only the notification arrives", steps.pay_seeing_no_shop, only("notification", "success"),
        plan={"callbacks": {"success": False, "failure": False}},
    ),
    _script(
        "only_success_page", "pays; only the success page is called", steps.pay_and_return, only("success", "notification"),
        plan={"callbacks": {"notification": False}},
    ),
    _script(
        "success_and_notification_race", "pays; both callbacks at once, three times each", steps.pay_and_return,
        three_of_each, plan=_RACE,
    ),
    _script(
        "gateway_fails_twice", "pays after the gateway failed twice", steps.pay_and_return, two_failures,
        plan={"fail": {"session": 1, "payment-methods": 1}},
    ),
    _script(
        "merchant_cancels", "waits too long: the merchant cancels", Shopper.merchant_cancels, never_tried,
        ends=State.CANCELLED,
    ),
    _script(
        "leaves_without_paying", "opens the page and leaves", Shopper.open_page, never_tried, ends=State.EXPIRED,
        expires_in=SHORT,
    ),
)  # fmt: skip

# ── Group `money` ──

ASKS: Final = "demo-ask"
KEEPS: Final = "demo-keep"
RETURNS: Final = "demo-return"
CAPTURES: Final = "demo-capture"

MERCHANTS: Final[dict[str, dict[str, object]]] = {
    name: {"late": word, "surplus": word, "unknown_order": word, "capture": capture, "lookups_per_minute": 6000}
    for name, word, capture in (
        (ASKS, "ask", "manual"), (KEEPS, "keep", "manual"), (RETURNS, "return", "manual"), (CAPTURES, "ask", "automatic"),
    )
}  # fmt: skip
"""The merchants of these scripts by name, with their policies; all have the same account at the gateway.

Lookups do not wait for slots: here everything is looked up within seconds, as it is in hours elsewhere.
"""


RESERVED: Final = (1, 0, 0)
CAPTURED: Final = (1, 1, 0)
REFUNDED: Final = (1, 1, 1)
NOTHING: Final = (0, 0, 0)
"""What the books say in the end: reserved, captured and refunded, each as a multiple of the
order's amount.
"""

LOST: Final = {"callbacks": {"success": False, "failure": False, "notification": False}}


def _lost_answer(call: str, **more: object) -> dict[str, Any]:
    """Return a plan by which a call takes effect, and its answer is lost."""
    return {"fail": {call: 1}, "failAfter": True, "failStatus": "reset", **more}


def _paid(
    name: str,
    says: str,
    act: Callable[[Shopper], Awaitable[object]],
    holds: Sums,
    *evidence: Evidence,
    **more: Any,
) -> Script:
    """Return a script about money: paid by card where it does not say otherwise."""
    usual = {"holds": holds, "merchant": ASKS, "method": "CARD", "auto_capture": False}
    return _script(name, says, act, *evidence, **(usual | more))


_MONEY: Final = (
    _paid(
        "captured_in_parts", "pays; captured in two parts, and never more", steps.capture_in_parts, CAPTURED, proven,
        settled_by(asked=2), entries(submitted=2), moves=("captured",) * 2,
    ),
    _paid(
        "refunded_in_parts", "pays; captured, refunded in two parts, a third is refused", steps.refund_in_parts, REFUNDED,
        proven, settled_by(asked=3), moves=("captured", "refunded", "refunded"),
    ),
    _paid(
        "released", "pays; the shop releases the money", steps.release, NOTHING, proven, settled_by(asked=1),
        moves=("released",),
    ),
    _paid(
        "captured_with_one_key", "pays; one capture is asked for four times over", steps.capture_twice_with_one_key, CAPTURED,
        settled_by(asked=1), entries(submitted=1), moves=("captured",),
    ),
    _paid(
        "capture_answer_lost", "pays; the capture is done, its answer lost", steps.capture, CAPTURED, settled_by(asked=1),
        entries(submitted=1, unknown=1), moves=("captured",), plan=_lost_answer("capture"),
    ),
    _paid(
        "capture_call_lost", "pays; the capture is lost on its way, and sent again", steps.capture, CAPTURED,
        settled_by(asked=1), entries(submitted=2, unknown=1, withdrawn=1), moves=("captured",),
        plan={"fail": {"capture": 1}, "failStatus": "reset"},
    ),
    _paid(
        "refund_answer_lost", "pays; a refund's answer is lost, its name never shown", steps.refund, REFUNDED,
        settled_by(asked=2), entries(submitted=2, unknown=1), moves=("captured", "refunded"),
        plan=_lost_answer("refund", echo=False),
    ),
    _paid(
        "captured_by_hand", "pays; captured by hand at the gateway, then asked for", steps.capture_after_hand, CAPTURED,
        settled_by(asked=1), entries(submitted=0), moves=("captured",),
    ),
    _paid(
        "capture_refused", "pays; the gateway refuses a capture, then does it", steps.capture_refused_then_done, CAPTURED,
        settled_by(asked=1), entries(submitted=2, rejected=1), moves=("captured",), plan={"refuse": {"capture": 1}},
    ),
    _paid(
        "gateway_captures", "pays; the gateway captures by itself", steps.pay_captured_by_itself, CAPTURED, proven, unasked,
        auto_capture=True,
    ),
    _paid(
        "capture_required", "pays; the gateway was to capture, and leaves it to us", steps.pay_captured_by_itself, CAPTURED,
        proven, settled_by(automatic=1), auto_capture=True, moves=("captured",), plan={"requireCapture": True},
    ),
    _paid(
        "policy_captures", "pays; captured as the merchant's policy says", steps.pay_captured_by_itself, CAPTURED,
        settled_by(automatic=1), merchant=CAPTURES, moves=("captured",),
    ),
    _paid(
        "callbacks_lost", "pays; every callback is lost: found by a lookup", steps.pay_unheard, RESERVED, found_by_lookup,
        in_time, plan=LOST,
    ),
    _paid(
        "callbacks_forged", "is forged a success (401, not believed), then pays", steps.be_forged_then_pay, RESERVED,
        disbelieved("wrong", never=False),
    ),
    _paid(
        "callbacks_replayed", "pays; all signatures are too old: found by a lookup", steps.pay_unheard, RESERVED,
        disbelieved("stale", never=True), refused_401, plan={"callbacks": {"tamper": "staleTimestamp"}},
    ),
    _paid(
        "callbacks_garbled", "pays; the XML in every callback is broken", steps.pay, RESERVED, proven, in_time,
        plan={"callbacks": {"tamper": "invalidXml"}},
    ),
    _paid(
        "failure_after_success", "pays, goes back: a failure is called after the success", steps.fail_after_success, RESERVED,
        proven, in_time,
    ),
    _paid(
        "unbound", "pays; the gateway gives our id back nowhere", steps.pay, RESERVED, proven, bound_by_number,
        plan={"bindings": False},
    ),
    _paid(
        "late_kept_by_person", "pays after the deadline; a person keeps it", steps.late_and_a_person("keep"), RESERVED, late,
        unasked, expires_in=SHORT,
    ),
    _paid(
        "late_returned_by_person", "pays after the deadline; a person returns it", steps.late_and_a_person("return"), NOTHING,
        late, settled_by(returned=1), moves=("released",), expires_in=SHORT,
    ),
    _paid(
        "late_kept_by_policy", "pays after the deadline; policy keeps it", steps.pay_late, RESERVED, late, unasked,
        merchant=KEEPS, expires_in=SHORT,
    ),
    _paid(
        "late_returned_by_policy", "pays after the deadline; policy releases it", steps.late_returned_by_policy, NOTHING,
        late, settled_by(returned=1), entries(submitted=1), merchant=RETURNS, moves=("released",), expires_in=SHORT,
    ),
    _paid(
        "late_bank_money_refunded", "pays by bank after the deadline; policy refunds it", steps.late_returned_by_policy,
        REFUNDED, late, settled_by(returned=1), entries(submitted=1), merchant=RETURNS, method="BANK_PAYMENT",
        moves=("refunded",), expires_in=SHORT,
    ),
    _paid(
        "cancelled_then_paid", "pays after the shop cancelled; a person keeps it", steps.be_cancelled_then_pay, RESERVED,
        late, unasked,
    ),
    _paid(
        "reopened_then_paid", "is too late, comes back, pays", steps.be_reopened_then_pay, RESERVED, in_time, reopened,
        expires_in=SHORT,
    ),
    _paid(
        "surplus_released_by_hand", "pays in two tabs; the second payment is released", steps.surplus_by_hand, RESERVED,
        settled_by(asked=1), moves=("released",),
    ),
    _paid(
        "surplus_returned_by_policy", "pays in two tabs; policy returns the second", steps.surplus_by_policy, RESERVED,
        settled_by(returned=1), entries(submitted=1), merchant=RETURNS, moves=("released",),
    ),
    _paid(
        "unknown_order_kept", "pays an order without an intent; a person keeps it", steps.unknown_order_kept, RESERVED, late,
        unasked, handed_over=False,
    ),
    _paid(
        "unknown_order_returned", "pays an order without an intent; policy returns it", steps.unknown_order_returned, NOTHING,
        late, settled_by(returned=1), entries(submitted=1), merchant=RETURNS, moves=("released",), handed_over=False,
    ),
    _paid(
        "wrong_amount", "is charged another amount: never completed, returned", steps.pay_another_amount, NOTHING,
        never_completed, settled_by(returned=1), ends=State.EXPIRED, moves=("released",), plan={"amountMinor": 1_999},
        expires_in=SHORT,
    ),
    _paid(
        "wrong_currency", "is charged in another currency: never completed, returned", steps.pay_another_amount, NOTHING,
        never_completed, settled_by(returned=1), ends=State.EXPIRED, moves=("released",), plan={"currency": "NOK"},
        expires_in=SHORT,
    ),
    _paid(
        "charged_back", "pays, and takes it back at the bank", steps.charge_back, CAPTURED, charged_back, settled_by(asked=1),
        moves=("captured",),
    ),
    _paid(
        "refunded_at_gateway", "pays; half is refunded at the gateway, the rest by us", steps.refunded_at_gateway, REFUNDED,
        settled_by(asked=2), moves=("captured", "refunded"),
    ),
    _paid("released_at_gateway", "pays; the money is released at the gateway", steps.released_at_gateway, NOTHING, unasked),
    _paid(
        "open_beyond_deadline", "pays by bank, which says so after the deadline", steps.pay_open_until_after_deadline,
        CAPTURED, in_time, unasked, method="BANK_PAYMENT", expires_in=SHORT,
    ),
)  # fmt: skip

# ── Which are played ──

USUAL: Final = "checkout"

GROUPS: Final[dict[str, tuple[Script, ...]]] = {
    USUAL: _CHECKOUT,
    "money": _MONEY,
    "all": (*_CHECKOUT, *_MONEY),
}


def scripts_of(name: str) -> tuple[Script, ...]:
    """Return the scripts of a group, or the script of this name; `KeyError` if there is neither."""
    named = {script.name: (script,) for script in GROUPS["all"]}
    return (GROUPS | named)[name]


def choose(names: Iterable[str]) -> list[Script]:
    """Return the scripts of some names, without any the usual group; `ValueError` says what there is."""
    chosen: dict[str, Script] = {}
    for name in list(names) or [USUAL]:
        try:
            chosen |= {script.name: script for script in scripts_of(name)}
        except KeyError:
            groups, single = ", ".join(GROUPS), ", ".join(script.name for script in GROUPS["all"])
            message = f"{name} does not exist: choose a group ({groups}) or a script ({single})"
            raise ValueError(message) from None
    return list(chosen.values())

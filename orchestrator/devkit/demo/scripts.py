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
    bound_by,
    charged_back,
    disbelieved,
    entries,
    every,
    found_by_lookup,
    in_time,
    late,
    never_completed,
    never_tried,
    nothing_more,
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
from orchestrator.domain.states import State

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from orchestrator.devkit.demo.evidence import Observations, Sums
    from orchestrator.devkit.demo.shopper import Shopper

Method = Literal["CARD", "BANK_PAYMENT", "MOBILE_WALLET"]

SHORT: Final = 6
"""Seconds that a shopper gets who will not pay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """One way in which an order can go. `evidence` returns what is missing, or None."""

    name: str
    says: str
    act: Callable[[Shopper], Awaitable[None]]
    ends: State
    evidence: Callable[[Observations], str | None]
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

_CHECKOUT: Final = (
    Script(name="pays_at_once", says="pays at once", act=steps.pay_and_return, ends=State.COMPLETED, evidence=nothing_more),
    Script(
        name="declined_then_pays", says="is declined, tries again and pays", act=steps.be_declined_then_pay,
        ends=State.COMPLETED, evidence=one_declined, method="CARD",
    ),
    Script(
        name="declined_and_leaves", says="is declined and leaves", act=steps.be_declined, ends=State.EXPIRED,
        evidence=one_declined, method="CARD", expires_in=SHORT,
    ),
    Script(
        name="only_notification", says="pays; only the notification arrives", act=steps.pay_seeing_no_shop,
        ends=State.COMPLETED, evidence=only("notification", "success"),
        plan={"callbacks": {"success": False, "failure": False}},
    ),
    Script(
        name="only_success_page", says="pays; only the success page is called", act=steps.pay_and_return, ends=State.COMPLETED,
        evidence=only("success", "notification"), plan={"callbacks": {"notification": False}},
    ),
    Script(
        name="success_and_notification_race", says="pays; both callbacks at once, three times each", act=steps.pay_and_return,
        ends=State.COMPLETED, evidence=three_of_each, plan=_RACE,
    ),
    Script(
        name="gateway_fails_twice", says="pays after the gateway failed twice", act=steps.pay_and_return, ends=State.COMPLETED,
        evidence=two_failures, plan={"fail": {"session": 1, "payment-methods": 1}},
    ),
    Script(
        name="merchant_cancels", says="waits too long: the merchant cancels", act=steps.merchant_cancels,
        ends=State.CANCELLED, evidence=never_tried,
    ),
    Script(
        name="leaves_without_paying", says="opens the page and leaves", act=steps.abandon, ends=State.EXPIRED,
        evidence=never_tried, expires_in=SHORT,
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

_LOST: Final = {"callbacks": {"success": False, "failure": False, "notification": False}}
_PAID: Final[dict[str, Any]] = {
    "ends": State.COMPLETED,
    "merchant": ASKS,
    "method": "CARD",
    "auto_capture": False,
}


def _lost_answer(call: str, **more: object) -> dict[str, Any]:
    """Return a plan by which a call takes effect, and its answer is lost."""
    return {"fail": {call: 1}, "failAfter": True, "failStatus": "reset", **more}


_MONEY: Final = (
    Script(
        name="captured_in_parts", says="pays; captured in two parts, and never more", act=steps.capture_in_parts, **_PAID,
        holds=CAPTURED, moves=("captured",) * 2, evidence=every(proven, settled_by(asked=2), entries(submitted=2)),
    ),
    Script(
        name="refunded_in_parts", says="pays; captured, refunded in two parts, a third is refused", act=steps.refund_in_parts,
        **_PAID, holds=REFUNDED, moves=("captured", "refunded", "refunded"), evidence=every(proven, settled_by(asked=3)),
    ),
    Script(
        name="released", says="pays; the shop releases the money", act=steps.release, **_PAID, holds=NOTHING, moves=("released",),
        evidence=every(proven, settled_by(asked=1)),
    ),
    Script(
        name="captured_with_one_key", says="pays; one capture is asked for four times over", act=steps.capture_twice_with_one_key,
        **_PAID, holds=CAPTURED, moves=("captured",), evidence=every(settled_by(asked=1), entries(submitted=1)),
    ),
    Script(
        name="capture_answer_lost", says="pays; the capture is done, its answer lost", act=steps.capture, **_PAID, holds=CAPTURED,
        moves=("captured",), plan=_lost_answer("capture"), evidence=every(settled_by(asked=1), entries(submitted=1, unknown=1)),
    ),
    Script(
        name="capture_call_lost", says="pays; the capture is lost on its way, and sent again", act=steps.capture, **_PAID,
        holds=CAPTURED, moves=("captured",), plan={"fail": {"capture": 1}, "failStatus": "reset"},
        evidence=every(settled_by(asked=1), entries(submitted=2, unknown=1, withdrawn=1)),
    ),
    Script(
        name="refund_answer_lost", says="pays; a refund's answer is lost, its name never shown", act=steps.refund, **_PAID,
        holds=REFUNDED, moves=("captured", "refunded"), plan=_lost_answer("refund", echo=False),
        evidence=every(settled_by(asked=2), entries(submitted=2, unknown=1)),
    ),
    Script(
        name="captured_by_hand", says="pays; captured by hand at the gateway, then asked for", act=steps.capture_after_hand, **_PAID,
        holds=CAPTURED, moves=("captured",), evidence=every(settled_by(asked=1), entries(submitted=0)),
    ),
    Script(
        name="capture_refused", says="pays; the gateway refuses a capture, then does it", act=steps.capture_refused_then_done,
        **_PAID, holds=CAPTURED, moves=("captured",), plan={"refuse": {"capture": 1}},
        evidence=every(settled_by(asked=1), entries(submitted=2, rejected=1)),
    ),
    Script(
        name="gateway_captures", says="pays; the gateway captures by itself", act=steps.pay_captured_by_itself,
        **{**_PAID, "auto_capture": True}, holds=CAPTURED, evidence=every(proven, unasked),
    ),
    Script(
        name="capture_required", says="pays; the gateway was to capture, and leaves it to us", act=steps.pay_captured_by_itself,
        **{**_PAID, "auto_capture": True}, holds=CAPTURED, moves=("captured",), plan={"requireCapture": True},
        evidence=every(proven, settled_by(automatic=1)),
    ),
    Script(
        name="policy_captures", says="pays; captured as the merchant's policy says", act=steps.pay_captured_by_itself,
        **{**_PAID, "merchant": CAPTURES}, holds=CAPTURED, moves=("captured",), evidence=settled_by(automatic=1),
    ),
    Script(
        name="callbacks_lost", says="pays; every callback is lost: found by a lookup", act=steps.pay_unheard, **_PAID,
        holds=RESERVED, plan=_LOST, evidence=every(found_by_lookup, in_time),
    ),
    Script(
        name="callbacks_forged", says="is forged a success (401, not believed), then pays", act=steps.be_forged_then_pay, **_PAID,
        holds=RESERVED, evidence=disbelieved("wrong", never=False),
    ),
    Script(
        name="callbacks_replayed", says="pays; all signatures are too old: found by a lookup", act=steps.pay_unheard, **_PAID,
        holds=RESERVED, plan={"callbacks": {"tamper": "staleTimestamp"}},
        evidence=every(disbelieved("stale", never=True), refused_401),
    ),
    Script(
        name="callbacks_garbled", says="pays; the XML in every callback is broken", act=steps.pay, **_PAID, holds=RESERVED,
        plan={"callbacks": {"tamper": "invalidXml"}}, evidence=every(proven, in_time),
    ),
    Script(
        name="failure_after_success", says="pays, goes back: a failure is called after the success", act=steps.fail_after_success,
        **_PAID, holds=RESERVED, evidence=every(proven, in_time),
    ),
    Script(
        name="unbound", says="pays; the gateway gives our id back nowhere", act=steps.pay, **_PAID, holds=RESERVED,
        plan={"bindings": False}, evidence=every(proven, bound_by("order_ref")),
    ),
    Script(
        name="late_kept_by_person", says="pays after the deadline; a person keeps it", act=steps.late_and_a_person("keep"),
        **_PAID, holds=RESERVED, expires_in=SHORT, evidence=every(late, unasked),
    ),
    Script(
        name="late_returned_by_person", says="pays after the deadline; a person returns it", act=steps.late_and_a_person("return"),
        **_PAID, holds=NOTHING, moves=("released",), expires_in=SHORT, evidence=every(late, settled_by(returned=1)),
    ),
    Script(
        name="late_kept_by_policy", says="pays after the deadline; policy keeps it", act=steps.pay_late,
        **{**_PAID, "merchant": KEEPS}, holds=RESERVED, expires_in=SHORT, evidence=every(late, unasked),
    ),
    Script(
        name="late_returned_by_policy", says="pays after the deadline; policy releases it", act=steps.late_returned_by_policy,
        **{**_PAID, "merchant": RETURNS}, holds=NOTHING, moves=("released",), expires_in=SHORT,
        evidence=every(late, settled_by(returned=1), entries(submitted=1)),
    ),
    Script(
        name="late_bank_money_refunded", says="pays by bank after the deadline; policy refunds it", act=steps.late_returned_by_policy,
        **{**_PAID, "merchant": RETURNS, "method": "BANK_PAYMENT"}, holds=REFUNDED, moves=("refunded",), expires_in=SHORT,
        evidence=every(late, settled_by(returned=1), entries(submitted=1)),
    ),
    Script(
        name="cancelled_then_paid", says="pays after the shop cancelled; a person keeps it", act=steps.be_cancelled_then_pay, **_PAID,
        holds=RESERVED, evidence=every(late, unasked),
    ),
    Script(
        name="reopened_then_paid", says="is too late, comes back, pays", act=steps.be_reopened_then_pay, **_PAID, holds=RESERVED,
        expires_in=SHORT, evidence=every(in_time, reopened),
    ),
    Script(
        name="surplus_released_by_hand", says="pays in two tabs; the second payment is released", act=steps.surplus_by_hand, **_PAID,
        holds=RESERVED, moves=("released",), evidence=settled_by(asked=1),
    ),
    Script(
        name="surplus_returned_by_policy", says="pays in two tabs; policy returns the second", act=steps.surplus_by_policy,
        **{**_PAID, "merchant": RETURNS}, holds=RESERVED, moves=("released",),
        evidence=every(settled_by(returned=1), entries(submitted=1)),
    ),
    Script(
        name="unknown_order_kept", says="pays an order without an intent; a person keeps it", act=steps.unknown_order_kept, **_PAID,
        holds=RESERVED, handed_over=False, evidence=every(late, unasked),
    ),
    Script(
        name="unknown_order_returned", says="pays an order without an intent; policy returns it", act=steps.unknown_order_returned,
        **{**_PAID, "merchant": RETURNS}, holds=NOTHING, moves=("released",), handed_over=False,
        evidence=every(late, settled_by(returned=1), entries(submitted=1)),
    ),
    Script(
        name="wrong_amount", says="is charged another amount: never completed, returned", act=steps.pay_another_amount,
        **{**_PAID, "ends": State.EXPIRED}, holds=NOTHING, moves=("released",), plan={"amountMinor": 1_999},
        expires_in=SHORT, evidence=every(never_completed, settled_by(returned=1)),
    ),
    Script(
        name="wrong_currency", says="is charged in another currency: never completed, returned", act=steps.pay_another_amount,
        **{**_PAID, "ends": State.EXPIRED}, holds=NOTHING, moves=("released",), plan={"currency": "NOK"},
        expires_in=SHORT, evidence=every(never_completed, settled_by(returned=1)),
    ),
    Script(
        name="charged_back", says="pays, and takes it back at the bank", act=steps.charge_back, **_PAID, holds=CAPTURED,
        moves=("captured",), evidence=every(charged_back, settled_by(asked=1)),
    ),
    Script(
        name="refunded_at_gateway", says="pays; half is refunded at the gateway, the rest by us", act=steps.refunded_at_gateway,
        **_PAID, holds=REFUNDED, moves=("captured", "refunded"), evidence=settled_by(asked=2),
    ),
    Script(
        name="released_at_gateway", says="pays; the money is released at the gateway", act=steps.released_at_gateway, **_PAID,
        holds=NOTHING, evidence=unasked,
    ),
    Script(
        name="open_beyond_deadline", says="pays by bank, which says so after the deadline", act=steps.pay_open_until_after_deadline,
        **{**_PAID, "method": "BANK_PAYMENT"}, holds=CAPTURED, expires_in=SHORT, evidence=every(in_time, unasked),
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
    """Return the scripts of some names, each once, the usual group without any; `ValueError` says what there
    is instead.
    """
    chosen: dict[str, Script] = {}
    for name in list(names) or [USUAL]:
        try:
            chosen |= {script.name: script for script in scripts_of(name)}
        except KeyError:
            groups, single = ", ".join(GROUPS), ", ".join(script.name for script in GROUPS["all"])
            message = f"{name} does not exist: choose a group ({groups}) or a script ({single})"
            raise ValueError(message) from None
    return list(chosen.values())

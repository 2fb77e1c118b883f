"""The scripts of group `money`: captures, refunds and releases, lost answers and callbacks, late, surplus and unknown money.

Each says what ledger and books must hold in the end, and what we may have asked the gateway for on the way: whatever happens twice
in a script (a capture asked for again, an answer that is lost, a policy that two lookups follow), the money moves once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from orchestrator.devkit.demo import steps
from orchestrator.devkit.demo.assertions import (
    bound_by,
    charged_back,
    disbelieved,
    entries,
    every,
    found_by_lookup,
    in_time,
    late,
    never_completed,
    proven,
    refused_401,
    reopened,
    settled_by,
    unasked,
)
from orchestrator.devkit.demo.scripts import SHORT, Script
from orchestrator.domain.states import State

if TYPE_CHECKING:
    from orchestrator.devkit.demo.observations import Sums

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
"""The merchants of these scripts by name, with their policies; all have the one account at the gateway.

Nobody waits for a place in the queue of lookups: here everything is looked up within seconds, as it is in hours elsewhere.
"""


# ── What the books say in the end, by the order's amount ────────────────────────────────────────────────────────────────


def _reserved(amount: int) -> Sums:
    return amount, 0, 0


def _captured(amount: int) -> Sums:
    return amount, amount, 0


def _refunded(amount: int) -> Sums:
    return amount, amount, amount


def _nothing(_: int) -> Sums:
    return 0, 0, 0


# ── The scripts ───────────────────────────────────────────────────────────────────────────────────────────────────────

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
        name="captured_in_parts", says="pays; captured in two parts, and never more", act=steps.capture_in_parts, **_PAID,
        holds=_captured, moves=("captured",) * 2, evidence=every(proven, settled_by(asked=2), entries(submitted=2)),
    ),
    Script(
        name="refunded_in_parts", says="pays; captured, refunded in two parts, a third is refused", act=steps.refund_in_parts,
        **_PAID, holds=_refunded, moves=("captured", "refunded", "refunded"), evidence=every(proven, settled_by(asked=3)),
    ),
    Script(
        name="released", says="pays; the shop releases the money", act=steps.release, **_PAID, holds=_nothing, moves=("released",),
        evidence=every(proven, settled_by(asked=1)),
    ),
    Script(
        name="captured_with_one_key", says="pays; one capture is asked for four times over", act=steps.capture_twice_with_one_key,
        **_PAID, holds=_captured, moves=("captured",), evidence=every(settled_by(asked=1), entries(submitted=1)),
    ),
    Script(
        name="capture_answer_lost", says="pays; the capture is done, its answer lost", act=steps.capture, **_PAID, holds=_captured,
        moves=("captured",), plan=_lost_answer("capture"), evidence=every(settled_by(asked=1), entries(submitted=1, unknown=1)),
    ),
    Script(
        name="capture_call_lost", says="pays; the capture is lost on its way, and sent again", act=steps.capture, **_PAID,
        holds=_captured, moves=("captured",), plan={"fail": {"capture": 1}, "failStatus": "reset"},
        evidence=every(settled_by(asked=1), entries(submitted=2, unknown=1, withdrawn=1)),
    ),
    Script(
        name="refund_answer_lost", says="pays; a refund's answer is lost, its name never shown", act=steps.refund, **_PAID,
        holds=_refunded, moves=("captured", "refunded"), plan=_lost_answer("refund", echo=False),
        evidence=every(settled_by(asked=2), entries(submitted=2, unknown=1)),
    ),
    Script(
        name="captured_by_hand", says="pays; captured by hand at the gateway, then asked for", act=steps.capture_after_hand, **_PAID,
        holds=_captured, moves=("captured",), evidence=every(settled_by(asked=1), entries(submitted=0)),
    ),
    Script(
        name="capture_refused", says="pays; the gateway refuses a capture, then does it", act=steps.capture_refused_then_done,
        **_PAID, holds=_captured, moves=("captured",), plan={"refuse": {"capture": 1}},
        evidence=every(settled_by(asked=1), entries(submitted=2, rejected=1)),
    ),
    Script(
        name="gateway_captures", says="pays; the gateway captures by itself", act=steps.pay_captured_by_itself,
        **{**_PAID, "auto_capture": True}, holds=_captured, evidence=every(proven, unasked),
    ),
    Script(
        name="capture_required", says="pays; the gateway was to capture, and leaves it to us", act=steps.pay_captured_by_itself,
        **{**_PAID, "auto_capture": True}, holds=_captured, moves=("captured",), plan={"requireCapture": True},
        evidence=every(proven, settled_by(automatic=1)),
    ),
    Script(
        name="policy_captures", says="pays; captured as the merchant's policy says", act=steps.pay_captured_by_itself,
        **{**_PAID, "merchant": CAPTURES}, holds=_captured, moves=("captured",), evidence=settled_by(automatic=1),
    ),
    Script(
        name="callbacks_lost", says="pays; every callback is lost: found by a lookup", act=steps.pay_unheard, **_PAID,
        holds=_reserved, plan=_LOST, evidence=every(found_by_lookup, in_time),
    ),
    Script(
        name="callbacks_forged", says="is forged a success (401, not believed), then pays", act=steps.be_forged_then_pay, **_PAID,
        holds=_reserved, evidence=disbelieved("wrong", never=False),
    ),
    Script(
        name="callbacks_replayed", says="pays; all signatures are too old: found by a lookup", act=steps.pay_unheard, **_PAID,
        holds=_reserved, plan={"callbacks": {"tamper": "staleTimestamp"}},
        evidence=every(disbelieved("stale", never=True), refused_401),
    ),
    Script(
        name="callbacks_garbled", says="pays; the XML in every callback is broken", act=steps.pay, **_PAID, holds=_reserved,
        plan={"callbacks": {"tamper": "invalidXml"}}, evidence=every(proven, in_time),
    ),
    Script(
        name="failure_after_success", says="pays, goes back: a failure is called after the success", act=steps.fail_after_success,
        **_PAID, holds=_reserved, evidence=every(proven, in_time),
    ),
    Script(
        name="unbound", says="pays; the gateway gives our id back nowhere", act=steps.pay, **_PAID, holds=_reserved,
        plan={"bindings": False}, evidence=every(proven, bound_by("order_ref")),
    ),
    Script(
        name="late_kept_by_person", says="pays after the deadline; a person keeps it", act=steps.late_and_a_person("keep"),
        **_PAID, holds=_reserved, expires_in=SHORT, evidence=every(late, unasked),
    ),
    Script(
        name="late_returned_by_person", says="pays after the deadline; a person returns it", act=steps.late_and_a_person("return"),
        **_PAID, holds=_nothing, moves=("released",), expires_in=SHORT, evidence=every(late, settled_by(returned=1)),
    ),
    Script(
        name="late_kept_by_policy", says="pays after the deadline; policy keeps it", act=steps.pay_late,
        **{**_PAID, "merchant": KEEPS}, holds=_reserved, expires_in=SHORT, evidence=every(late, unasked),
    ),
    Script(
        name="late_returned_by_policy", says="pays after the deadline; policy releases it", act=steps.late_returned_by_policy,
        **{**_PAID, "merchant": RETURNS}, holds=_nothing, moves=("released",), expires_in=SHORT,
        evidence=every(late, settled_by(returned=1), entries(submitted=1)),
    ),
    Script(
        name="late_bank_money_refunded", says="pays by bank after the deadline; policy refunds it", act=steps.late_returned_by_policy,
        **{**_PAID, "merchant": RETURNS, "method": "BANK_PAYMENT"}, holds=_refunded, moves=("refunded",), expires_in=SHORT,
        evidence=every(late, settled_by(returned=1), entries(submitted=1)),
    ),
    Script(
        name="cancelled_then_paid", says="pays after the shop cancelled; a person keeps it", act=steps.be_cancelled_then_pay, **_PAID,
        holds=_reserved, evidence=every(late, unasked),
    ),
    Script(
        name="reopened_then_paid", says="is too late, comes back, pays", act=steps.be_reopened_then_pay, **_PAID, holds=_reserved,
        expires_in=SHORT, evidence=every(in_time, reopened),
    ),
    Script(
        name="surplus_released_by_hand", says="pays in two tabs; the second payment is released", act=steps.surplus_by_hand, **_PAID,
        holds=_reserved, moves=("released",), evidence=settled_by(asked=1),
    ),
    Script(
        name="surplus_returned_by_policy", says="pays in two tabs; policy returns the second", act=steps.surplus_by_policy,
        **{**_PAID, "merchant": RETURNS}, holds=_reserved, moves=("released",),
        evidence=every(settled_by(returned=1), entries(submitted=1)),
    ),
    Script(
        name="unknown_order_kept", says="pays an order that nobody knows; a person keeps it", act=steps.unknown_order_kept, **_PAID,
        holds=_reserved, handed_over=False, evidence=every(late, unasked),
    ),
    Script(
        name="unknown_order_returned", says="pays an order that nobody knows; policy returns it", act=steps.unknown_order_returned,
        **{**_PAID, "merchant": RETURNS}, holds=_nothing, moves=("released",), handed_over=False,
        evidence=every(late, settled_by(returned=1), entries(submitted=1)),
    ),
    Script(
        name="wrong_amount", says="is charged another amount: never completed, returned", act=steps.pay_another_amount,
        **{**_PAID, "ends": State.EXPIRED}, holds=_nothing, moves=("released",), plan={"amountMinor": 1_999},
        expires_in=SHORT, evidence=every(never_completed, settled_by(returned=1)),
    ),
    Script(
        name="wrong_currency", says="is charged in another currency: never completed, returned", act=steps.pay_another_amount,
        **{**_PAID, "ends": State.EXPIRED}, holds=_nothing, moves=("released",), plan={"currency": "NOK"},
        expires_in=SHORT, evidence=every(never_completed, settled_by(returned=1)),
    ),
    Script(
        name="charged_back", says="pays, and takes it back at the bank", act=steps.charge_back, **_PAID, holds=_captured,
        moves=("captured",), evidence=every(charged_back, settled_by(asked=1)),
    ),
    Script(
        name="refunded_at_gateway", says="pays; half is refunded at the gateway, the rest by us", act=steps.refunded_at_gateway,
        **_PAID, holds=_refunded, moves=("captured", "refunded"), evidence=settled_by(asked=2),
    ),
    Script(
        name="released_at_gateway", says="pays; the money is released at the gateway", act=steps.released_at_gateway, **_PAID,
        holds=_nothing, evidence=unasked,
    ),
    Script(
        name="open_beyond_deadline", says="pays by bank, which says so after the deadline", act=steps.pay_open_until_after_deadline,
        **{**_PAID, "method": "BANK_PAYMENT"}, holds=_captured, expires_in=SHORT, evidence=every(in_time, unasked),
    ),
)  # fmt: skip

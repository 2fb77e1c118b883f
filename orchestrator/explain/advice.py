"""What a person may do: for each kind of attention, what it means and the ways out, with the call or the command that takes each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from orchestrator.domain import decisions
from orchestrator.domain.records import OperationKind, Role, left_to
from orchestrator.domain.states import CLOSED, State
from orchestrator.explain.record import moment
from orchestrator.explain.trail import plain

if TYPE_CHECKING:
    from orchestrator.domain.records import PaymentRecord
    from orchestrator.explain.record import Record

_WAYS: Final = {
    "keep": ("Keep the money, and with it the order", "resolve", '{"decision": "keep"}', "resolve {id} keep"),
    "return": ("Return the money to the shopper", "resolve", '{"decision": "return"}', "resolve {id} return"),
    "dismiss": ("Dismiss: no action needed", "resolve", '{"decision": "dismiss"}', "resolve {id} dismiss"),
    "capture": (
        "Capture all of it, or an amount",
        "capture",
        '{"amount": …} and an Idempotency-Key',
        "capture {id}",
    ),
    "refund": (
        "Refund all of it, or an amount",
        "refund",
        '{"amount": …} and an Idempotency-Key',
        "refund {id}",
    ),
    "release": ("Release the reservation", "release", "", "release {id}"),
    "reopen": ("Reopen it for a shopper who tries again", "reopen", '{"expiresIn": …}', "reopen {id}"),
    "cancel": ("Cancel it, unless its money is there by then", "cancel", "", "cancel {id}"),
    "retry": ("Have it tried again at once", "retry", "", "retry {id}"),
    "reconcile": ("Have the gateway asked at once", "reconcile", "", "reconcile {id}"),
}
"""Way → what it does, the call, its body, the command."""

_WHY: Final = {
    "late_payment": "The money came after the checkout had ended without it, so a person decides whether the order is kept.",
    "surplus_payment": "More than one payment holds money for this order; one pays it, and the others are too much.",
    "unknown_order": "The gateway holds money under an order number that no shop has handed over.",
    "payment_mismatch": "A payment for this order holds another amount or currency than was asked for, so it was not taken for it.",
    "unbound_payment": "A payment names no checkout, and several checkouts have its order number: it may be any one's.",
    "unclear_payment": "The status and the amounts of a payment do not say together what it means, and nobody guesses about money.",
    "chargeback_unclear": "The gateway tells of a chargeback or a dispute that does not say how much of which payment it takes back.",
    "over_refund": "More is refunded at the gateway than was captured.",
    "over_capture": "More is captured at the gateway than was reserved.",
    "credited": "The gateway shows a credit to the shopper that is no refund of a payment.",
    "lookup_at_limit": "The gateway's answer had as many rows as it may have, so a payment may be missing from it.",
    "payment_released": "The payment that paid this order was released at the gateway: the order is not paid any more.",
    "payment_gone": "The gateway no longer shows the payment that paid this order.",
    "open_payment": "A payment has been open since long before the deadline, and the gateway never ends one by itself.",
    "reservation_lapses": "The reservation will soon be too old for a capture that is sure to work.",
    "charged_back": "The shopper's bank has taken money of this order back.",
    "operation_unclear": "A money operation left for the gateway, and neither its answer nor the gateway's books tell what came of it.",
    "operation_rejected": "The gateway refused a money operation.",
    "gateway_credentials": "The gateway refuses this merchant's user name and password; that is about the merchant and not about this order.",
    "gateway_failing": "Calls to the gateway for this order keep failing.",
    "step_broke": "A step of this order broke in a way that the software had not foreseen.",
    "poisoned": "Every worker that took this order stopped in the middle of it, so it is not processed for a while.",
    "order_number_used_up": "This order number was used as often as the gateway takes one.",
    "no_payment_methods": "The gateway offers no payment method for this order.",
}
_FIRST: Final = {
    "unbound_payment": "Look the payment up in the gateway's own interface, to see whose it is.",
    "lookup_at_limit": "Look the order number up in the gateway's own interface.",
    "payment_released": "Do not ship the order before it is paid otherwise.",
    "payment_gone": "Ask the gateway's support what became of the payment.",
    "open_payment": "Ask the shopper or the gateway whether the payment is still to come.",
    "charged_back": "Answer the chargeback at the acquirer, if it is wrong.",
    "chargeback_unclear": "Read the case in the gateway's own interface, and answer it at the acquirer.",
    "over_refund": "Compare the refunds in the gateway's own interface with those below.",
    "over_capture": "Compare the captures in the gateway's own interface with those below; refund what is too much.",
    "credited": "Look the credit up in the gateway's own interface: it was not made here.",
    "unclear_payment": "Look the payment up in the gateway's own interface, to see what it holds.",
    "operation_unclear": "Look the transaction up in the gateway's own interface; do not send the same operation there by hand before.",
    "operation_rejected": "Read below why the gateway refused it, and ask for it again when that is mended.",
    "gateway_credentials": "Correct the merchant's user name and password; every order of the merchant waits for them.",
    "gateway_failing": "Run `orchestrator doctor` to see whether the gateway can be reached.",
    "step_broke": "Read the workers' logs of this checkout, and tell whoever maintains the software.",
    "poisoned": "Read the workers' logs of this checkout, and tell whoever maintains the software.",
    "order_number_used_up": "Hand the order over again under another order number.",
    "no_payment_methods": "Check the merchant's terminals, and the order's country, currency and amount; then reopen it.",
}
"""What helps before, or instead of, a command of ours."""

_OUT: Final[dict[str, tuple[str, ...]]] = {
    "late_payment": ("keep", "return"),
    "surplus_payment": ("return", "keep"),
    "unknown_order": ("return", "keep", "dismiss"),
    "payment_mismatch": ("return", "keep", "dismiss"),
    "reservation_lapses": ("dismiss",),
    "gateway_credentials": ("retry",),
    "gateway_failing": ("retry",),
    "step_broke": ("retry",),
    "poisoned": ("retry",),
    "unclear_payment": ("reconcile", "keep", "dismiss"),
    "unbound_payment": ("keep", "dismiss"),
    "payment_gone": ("reconcile", "dismiss"),
    "open_payment": ("reconcile", "dismiss"),
    "operation_unclear": ("reconcile", "dismiss"),
}
"""Ways out for each word; for those that are not here a person can only dismiss it."""


def attention(record: Record) -> list[str]:
    """Say why it needs a decision; nothing if it needs none."""
    if record.attention is None:
        return []
    word = _word(record)
    said = [_WHY.get(word, f"It needs a decision: {plain(record.attention)}.")]
    if word in {"surplus_payment", "unknown_order", *decisions.PROBLEMS}:
        said += [_unexpected(record, one) for one in record.unexpected_payments]
    if word in {*decisions.PROBLEMS, *decisions.IRREGULAR}:
        sentence = plain(record.attention)
        said.append(f"{sentence[:1].upper()}{sentence[1:]}.")
    if word == "reservation_lapses" and record.reserved_until is not None:
        said.append(f"It is sure to be worth a capture until {moment(record.reserved_until)}.")
    if word == "charged_back" and record.charged_back:
        said.append(f"{record.price(record.charged_back)} were charged back.")
    if word in {"gateway_failing", "step_broke"} and record.last_error:
        said.append(f"The last error was: {plain(record.last_error)}.")
    return said


def ways(record: Record) -> list[str]:
    """Say what a person may do now, the most fitting first."""
    said: list[str] = []
    names: list[str] = []
    if record.attention is not None:
        word = _word(record)
        said += [_FIRST[word]] if word in _FIRST else []
        names += _OUT.get(word, ("dismiss",))
    said += [_back(record, one) for one in record.unexpected_payments if one.role == Role.SURPLUS]
    left = left_to(OperationKind.CAPTURE, record)
    if record.state is State.COMPLETED and not record.open_operations:
        names += ["capture"] if left > 0 and not record.auto_capture else []
        names += ["release"] if left > 0 and record.captured == 0 else []
        names += ["refund"] if left_to(OperationKind.REFUND, record) > 0 else []
    elif record.state in CLOSED:
        names += [] if record.from_payment else ["reopen"]
    elif record.state is not State.COMPLETED and record.cancel_requested_at is None:
        names.append("cancel")
    names.append("reconcile")
    return [*said, *(_way(record, name) for name in dict.fromkeys(names))]


def _word(record: Record) -> str:
    return (record.attention or "").partition(":")[0]


def _way(record: Record, name: str) -> str:
    does, call, body, command = _WAYS[name]
    carrying = f" with {body}" if body else ""
    return f"{does}: POST /v1/checkouts/{record.id}/{call}{carrying}, or `orchestrator checkouts {command.format(id=record.id)}`."


def _unexpected(record: Record, one: PaymentRecord) -> str:
    role = "beside the accepted payment" if one.role == Role.SURPLUS else "not taken for this order"
    return f"Transaction {one.transaction_id} holds {record.holding(one)}, {role}."


def _back(record: Record, one: PaymentRecord) -> str:
    """Name the way back for money that is too much: a reservation is released, captured money refunded."""
    verb = "refund" if one.captured > 0 else "release"
    key = " and an Idempotency-Key" if verb == "refund" else ""
    return (
        f"Return transaction {one.transaction_id} alone: POST /v1/checkouts/{record.id}/{verb} with "
        f'{{"transactionId": "{one.transaction_id}"}}{key}, or `orchestrator checkouts {verb} {record.id} '
        f"--transaction {one.transaction_id}`."
    )

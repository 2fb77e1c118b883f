"""What a person may do: for each kind of attention, what it means and the ways out, with the call or the
command that takes each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from orchestrator.domain import decisions, reconciliation, sentences
from orchestrator.domain.attention import IRREGULAR, PROBLEMS, WAYS_OUT, AttentionCode, Way
from orchestrator.domain.records import OperationKind, Role, left_to
from orchestrator.domain.states import CLOSED, State
from orchestrator.explain.record import moment
from orchestrator.explain.trail import plain
from orchestrator.text import sentence

if TYPE_CHECKING:
    from orchestrator.domain.attention import Attention
    from orchestrator.domain.records import PaymentRecord
    from orchestrator.explain.record import Record

WAYS: Final = {
    "keep": ("Keep {money}, {kept}", "resolve", '{"decision": "keep"}', "resolve {id} keep"),
    "return": (
        "Return {money} to the shopper, which cannot be undone",
        "resolve",
        '{"decision": "return"}',
        "resolve {id} return",
    ),
    "dismiss": (
        "Dismiss: leave money and order as they are",
        "resolve",
        '{"decision": "dismiss"}',
        "resolve {id} dismiss",
    ),
    "capture": (
        "Capture all of it, or an amount",
        "capture",
        '{"amount": "all"} or {"amount": …}, and an Idempotency-Key',
        "capture {id} --all",
    ),
    "refund": (
        "Refund all of it, or an amount",
        "refund",
        '{"amount": "all"} or {"amount": …}, and an Idempotency-Key',
        "refund {id} --all",
    ),
    "release": (
        "Release the reservation that pays the order: it is then not paid",
        "release",
        "",
        "release {id}",
    ),
    "reopen": ("Reopen it for a shopper who tries again", "reopen", '{"expiresIn": …}', "reopen {id}"),
    "cancel": ("Cancel it, unless its money is there by then", "cancel", "", "cancel {id}"),
    "retry": ("Have it tried again at once", "retry", "", "retry {id}"),
    "reconcile": ("Look it up at the gateway at once", "reconcile", "", "reconcile {id}"),
}
"""Way → what it does, the call, its body, the command."""

NAMED: Final = 3
"""Payments that a decision names."""
_OF_OPERATION: Final = {
    "keep": "Say that the operation was done at the gateway",
    "dismiss": "Say that the operation was not done at the gateway",
}
"""What decisions mean where the result of an operation is unknown."""

MEANING: Final = {
    AttentionCode.LATE_PAYMENT: "The money came after the checkout had ended without it, so a person decides whether the order is kept.",
    AttentionCode.SURPLUS_PAYMENT: "More than one payment holds money for this order; one pays it, and the others are too much.",
    AttentionCode.UNKNOWN_ORDER: "The gateway holds money under an order number without an intent.",
    AttentionCode.PAYMENT_MISMATCH: "A payment for this order holds another amount or currency than the order, so it does not count as its payment.",
    AttentionCode.UNBOUND_PAYMENT: "A payment names no checkout, and several checkouts have its order number: it may belong to any of them.",
    AttentionCode.UNCLEAR_PAYMENT: "The status and the amounts of a payment together have no clear meaning, and the orchestrator does not guess about money.",
    AttentionCode.CHARGEBACK_UNCLEAR: "The gateway reports a chargeback or a dispute without a clear amount or payment.",
    AttentionCode.OVER_REFUND: "More is refunded at the gateway than was captured.",
    AttentionCode.OVER_CAPTURE: "More is captured at the gateway than was reserved.",
    AttentionCode.CREDITED: "The gateway shows a credit to the shopper that is no refund of a payment.",
    AttentionCode.LOOKUP_AT_LIMIT: "The gateway's answer had as many rows as it may have, so a payment may be missing from it.",
    AttentionCode.PAYMENT_RELEASED: "The payment that paid this order was released at the gateway: the order is not paid any more.",
    AttentionCode.PAYMENT_GONE: "The gateway no longer shows the payment that paid this order.",
    AttentionCode.OPEN_PAYMENT: "A payment has been open since long before the deadline, and the gateway never ends one by itself.",
    AttentionCode.RESERVATION_LAPSES: "The reservation will soon be too old for a capture that is sure to work.",
    AttentionCode.CHARGED_BACK: "The shopper's bank has taken money of this order back.",
    AttentionCode.OPERATION_UNCLEAR: "A money operation left for the gateway, and neither its answer nor the gateway's books show its result.",
    AttentionCode.OPERATION_REJECTED: "The gateway refused a money operation.",
    AttentionCode.GATEWAY_CREDENTIALS: "The gateway refuses this merchant's user name and password; that is about the merchant and not about this order.",
    AttentionCode.GATEWAY_FAILING: "Calls to the gateway for this order keep failing.",
    AttentionCode.STEP_BROKE: "A step of this order broke in a way that the software had not foreseen.",
    AttentionCode.POISONED: "Every worker that took this order stopped in the middle of it, so it is not processed for a while.",
    AttentionCode.ORDER_NUMBER_USED_UP: "This order number was used as often as the gateway takes one.",
    AttentionCode.NO_PAYMENT_METHODS: "The gateway offers no payment method for this order.",
    AttentionCode.OTHER: "It needs a decision, for a reason that this version has no code for.",
}
FIRST: Final = {
    AttentionCode.UNBOUND_PAYMENT: "Look the payment up in the gateway's own interface, to see whose it is.",
    AttentionCode.LOOKUP_AT_LIMIT: "Look the order number up in the gateway's own interface.",
    AttentionCode.PAYMENT_RELEASED: "Do not ship the order before it is paid otherwise.",
    AttentionCode.PAYMENT_GONE: "Ask the gateway's support what became of the payment.",
    AttentionCode.OPEN_PAYMENT: "Ask the shopper or the gateway whether the payment is still to come.",
    AttentionCode.CHARGED_BACK: "Answer the chargeback at the acquirer, if it is wrong.",
    AttentionCode.CHARGEBACK_UNCLEAR: "Read the case in the gateway's own interface, and answer it at the acquirer.",
    AttentionCode.OVER_REFUND: "Compare the refunds in the gateway's own interface with those below.",
    AttentionCode.OVER_CAPTURE: "Compare the captures in the gateway's own interface with those below; refund what is too much.",
    AttentionCode.CREDITED: "Look the credit up in the gateway's own interface: it was not made here.",
    AttentionCode.UNCLEAR_PAYMENT: "Look the payment up in the gateway's own interface, to see what it holds.",
    AttentionCode.OPERATION_UNCLEAR: "Look the transaction up in the gateway's own interface; do not send the same operation there by hand before.",
    AttentionCode.OPERATION_REJECTED: "Read below why the gateway refused it, and repeat the request when that is fixed.",
    AttentionCode.GATEWAY_CREDENTIALS: "Correct the merchant's user name and password; every order of the merchant waits for them.",
    AttentionCode.GATEWAY_FAILING: "Run `orchestrator doctor` to see whether the gateway can be reached.",
    AttentionCode.STEP_BROKE: "Read the workers' logs of this checkout, and report them to the maintainers of the software.",
    AttentionCode.POISONED: "Read the workers' logs of this checkout, and report them to the maintainers of the software.",
    AttentionCode.ORDER_NUMBER_USED_UP: "Hand the order over again under another order number.",
    AttentionCode.NO_PAYMENT_METHODS: "Check the merchant's terminals, and the order's country, currency and amount; then reopen it.",
}
"""What helps before, or instead of, a command of ours."""


def attention(record: Record) -> list[str]:
    """Say why it needs a decision; nothing if it needs none."""
    if record.attention is None:
        return []
    asked = record.attention
    said = [MEANING[asked.code]]
    if asked.code is AttentionCode.OTHER:
        said.append(_sentence(asked))
    if asked.code in {AttentionCode.SURPLUS_PAYMENT, AttentionCode.UNKNOWN_ORDER, *PROBLEMS}:
        said += [_unexpected(record, payment) for payment in record.unexpected_payments]
    if asked.code in {*PROBLEMS, *IRREGULAR}:
        said.append(_sentence(asked))
    if asked.code is AttentionCode.RESERVATION_LAPSES and record.reserved_until is not None:
        said.append(f"It is sure to be worth a capture until {moment(record.reserved_until)}.")
    if asked.code is AttentionCode.CHARGED_BACK and record.charged_back:
        said.append(f"{record.price(record.charged_back)} were charged back.")
    failing = {AttentionCode.GATEWAY_FAILING, AttentionCode.STEP_BROKE}
    if asked.code in failing and record.last_error is not None:
        said.append(f"The last error was: {plain(sentences.of(record.last_error))}.")
    return said


def _sentence(asked: Attention) -> str:
    return sentence(plain(sentences.of(asked)))


def ways(record: Record) -> list[str]:
    """Say what a person may do now, the most fitting first."""
    said: list[str] = []
    names: list[str] = []
    if record.attention is not None:
        code = record.attention.code
        said += [FIRST[code]] if code in FIRST else []
        names += [way for way in WAYS_OUT[code] if _possible(record, record.attention, way)]
    answers = len(names)
    left = left_to(OperationKind.CAPTURE, record)
    if record.state is State.COMPLETED and not record.open_operations:
        names += ["capture"] if left > 0 and not record.auto_capture else []
        names += ["release"] if left > 0 and record.captured == 0 else []
        names += ["refund"] if left_to(OperationKind.REFUND, record) > 0 else []
    elif record.state in CLOSED:
        names += [] if record.from_payment or record.erased_at is not None else ["reopen"]
    elif record.state is not State.COMPLETED and record.cancel_requested_at is None:
        names.append("cancel")
    names.append("reconcile")
    unclear = record.attention is not None and record.attention.code is AttentionCode.OPERATION_UNCLEAR
    told = [_way(record, name, unclear=unclear) for name in dict.fromkeys(names)]
    back = [_back(record, payment) for payment in record.unexpected_payments if payment.role == Role.SURPLUS]
    return [*said, *told[:answers], *back, *told[answers:]]


def _possible(record: Record, asked: Attention, way: Way) -> bool:
    """Return whether this answer would be carried out as the payments are now."""
    if way not in {Way.KEEP, Way.DISMISS}:
        return True
    completed = record.state is State.COMPLETED
    return decisions.refusal(record, record.payments, asked, way, completed=completed) is None


def _way(record: Record, name: str, *, unclear: bool = False) -> str:
    does, call, body, command = WAYS[name]
    does = (
        _OF_OPERATION.get(name, does)
        if unclear
        else does.format(money=_money(record, name), kept=_kept(record))
    )
    carrying = f" with {body}" if body else ""
    return f"{does}: POST /v1/checkouts/{record.id}/{call}{carrying}, or `orchestrator checkouts {command.format(id=record.id)}`."


def _money(record: Record, way: str) -> str:
    """Name the money that a decision is about: amount and transaction of each payment."""
    about = reconciliation.returned(record) if way == Way.RETURN else reconciliation.concerned(record)
    held = [f"{record.holding(each)} (transaction {each.transaction_id})" for each in about if each.left > 0]
    more = [f"{len(held) - NAMED} more"] if len(held) > NAMED else []
    return " and ".join([*held[:NAMED], *more]) or "the money"


def _kept(record: Record) -> str:
    """Say what becomes of the order where money is kept."""
    asked = record.attention
    if asked is not None and asked.code is AttentionCode.SURPLUS_PAYMENT:
        return "beside the payment of the order"
    return f"and with it the order of {record.price(record.amount)}"


def _unexpected(record: Record, payment: PaymentRecord) -> str:
    role = "beside the accepted payment" if payment.role == Role.SURPLUS else "not taken for this order"
    return f"Transaction {payment.transaction_id} holds {record.holding(payment)}, {role}."


def _back(record: Record, payment: PaymentRecord) -> str:
    """Name the way back for money that is too much: a reservation is released, captured money refunded."""
    verb, much, key, everything = "release", "", "", ""
    if payment.captured > 0:
        verb, much, key, everything = "refund", ', "amount": "all"', " and an Idempotency-Key", " --all"
    return (
        f"Return {record.holding(payment)} of transaction {payment.transaction_id} alone: POST /v1/checkouts/{record.id}/{verb} with "
        f'{{"transactionId": "{payment.transaction_id}"{much}}}{key}, or `orchestrator checkouts {verb} {record.id} '
        f"--transaction {payment.transaction_id}{everything}`."
    )

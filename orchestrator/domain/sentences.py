"""The only place that makes sentences of codes: attention, last errors, and results of commands.

Pure, and total over what is stored.

A sentence begins with a small letter and has no full stop at its end, so that it may follow a colon.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from orchestrator.domain import money
from orchestrator.domain.attention import Attention, AttentionCode, PaymentAmount
from orchestrator.domain.command_progress import CommandState
from orchestrator.domain.command_result import CommandResult, ResultCode
from orchestrator.domain.last_error import ErrorCode, LastError
from orchestrator.domain.last_error import stored as stored_error
from orchestrator.domain.records import OperationState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from orchestrator.domain.records import Operation

    Facts: TypeAlias = Mapping[str, Any]
    Sentence: TypeAlias = str | Callable[[Facts], str]

MOST_NAMED: Final = 10
"""Payments that one sentence names."""


def of(value: Attention | LastError | CommandResult) -> str:
    """Return the sentence of a code and its facts: their `text`, where an earlier version wrote other words
    for the code.

    Where facts are missing or strange it is the words of the code.
    """
    try:
        said = str(value.facts.get("text") or _said(value))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        said = ""
    return said or value.code.replace("_", " ")


def or_none(value: Attention | LastError | CommandResult | None) -> str | None:
    return None if value is None else of(value)


def coded(value: Attention | LastError | CommandResult) -> dict[str, object]:
    """Return code and sentence, as events and the trail have them."""
    return {"code": value.code, "reason": of(value)}


def of_command(state: CommandState, result: CommandResult, operations: Sequence[Operation]) -> str:
    """Return what a command came to by now: its result, or what became of what it began."""
    if result.code is not ResultCode.ACCEPTED or state is CommandState.UNDER_WAY:
        return of(result) if result.code is not ResultCode.ACCEPTED else "it is under way"
    ended = [_ended(operation) for operation in operations]
    if ended:
        return "; ".join(ended)
    if state is CommandState.FAILED:
        return "a payment was found before it took effect, and the order is completed"
    return "it is done"


def _ended(operation: Operation) -> str:
    what = f"the {operation.kind} of {money.spelled(operation.amount, operation.currency)} on transaction {operation.transaction_id}"
    if operation.state is not OperationState.REJECTED:
        return f"{what} is done"
    return f"{what} was rejected ({or_none(operation.last_error) or 'no reason was given'})"


def _said(value: Attention | LastError | CommandResult) -> str:
    match value:
        case Attention():
            said = _of_attention(value)
            if value.beside:
                said = f"{said}; transactions {_names(value.beside)} hold money for it"
            return said
        case LastError(code=ErrorCode.NEEDS_DECISION):
            return "" if value.attention is None else of(value.attention)
        case LastError(code=code, facts=facts):
            return _filled(_ERRORS[code], facts)
        case CommandResult(code=result, facts=facts):
            return _filled(_RESULTS[result], facts)


def _filled(sentence: Sentence, facts: Facts) -> str:
    """Return a sentence with its facts: a text with their names in braces, or a function of them."""
    return sentence.format_map(facts) if isinstance(sentence, str) else sentence(facts)


def _amount(facts: Facts, name: str) -> str:
    return money.spelled(facts[name], facts["currency"])


def _held(payment: PaymentAmount) -> str:
    return (
        "an unreadable amount" if payment.amount is None else money.spelled(payment.amount, payment.currency)
    )


def _names(payments: Sequence[PaymentAmount]) -> str:
    return ", ".join(payment.transaction_id for payment in payments)


def _more(payments: Sequence[PaymentAmount]) -> list[str]:
    rest = len(payments) - MOST_NAMED
    return [f"and {rest} more"] if rest > 0 else []


# ── Attention ─────────────────────────────────────────────────────────────────────────────────────────────


def _of_attention(value: Attention) -> str:
    facts, payments = value.facts, value.payments
    if value.code in _QUESTIONS:
        return _QUESTIONS[value.code](facts, payments)
    if value.code in _IRREGULAR:
        return _IRREGULAR[value.code](facts, f"transaction {payments[0].transaction_id}", payments[0])
    return _filled(_ATTENTIONS[value.code], facts)


def _problem(facts: Facts, payments: Sequence[PaymentAmount]) -> str:
    """Say of each payment why it is not taken for the order's."""
    ordered = _amount(facts, "ordered")
    if all(payment.problem is AttentionCode.PAYMENT_MISMATCH for payment in payments):
        return _mismatch(facts, payments, ordered)
    sentence = "; ".join([*(_told(facts, payment) for payment in payments[:MOST_NAMED]), *_more(payments)])
    if any(payment.problem is AttentionCode.PAYMENT_MISMATCH for payment in payments):
        sentence += f"; the order is {ordered}"
    return sentence


def _mismatch(facts: Facts, payments: Sequence[PaymentAmount], ordered: str) -> str:
    if len(payments) == 1:
        held = f"transaction {payments[0].transaction_id} holds {_held(payments[0])}"
        if "surcharge" in facts:
            return f"{held}, which is the order of {ordered} and a surcharge of {_amount(facts, 'surcharge')}"
        return f"{held}, the order is {ordered}"
    named = ", ".join(
        [f"{payment.transaction_id} ({_held(payment)})" for payment in payments[:MOST_NAMED]]
        + _more(payments)
    )
    amounts = [payment.amount for payment in payments if payment.amount is not None]
    if len(amounts) == len(payments) and len({payment.currency for payment in payments}) == 1:
        together = money.spelled(sum(amounts), payments[0].currency)
        return f"transactions {named} hold {together} together, the order is {ordered}"
    return f"transactions {named} hold money, the order is {ordered}"


def _told(facts: Facts, payment: PaymentAmount) -> str:
    named = f"transaction {payment.transaction_id}"
    if payment.problem is AttentionCode.UNCLEAR_PAYMENT:
        return f"{named} is {payment.status or 'without a status'} with amounts that do not say what it means"
    if payment.problem is AttentionCode.PAYMENT_MISMATCH:
        return f"{named} holds {_held(payment)}"
    if payment.repeated:
        return f"{named} names more than one checkout"
    return f"{named} names no checkout, and several checkouts have order number {facts['orderId']}"


def _surplus(facts: Facts, payments: Sequence[PaymentAmount]) -> str:
    if facts.get("released"):
        return f"transactions {_names(payments)} hold money for it"
    return f"transactions {_names(payments)} also hold money for this order"


def _rejected(facts: Facts) -> str:
    why = _error(facts)
    if facts.get("authentic") is False:
        return f"{facts['kind']} {facts['operation']} was not sent: {why}; compare the gateway's books and the audit trail"
    return f"the {facts['kind']} of transaction {facts['transaction']} was not done: {why}"


def _failing(facts: Facts) -> str:
    if "call" in facts:
        return (
            f"the gateway's answer to {facts['call']} for order {facts['orderId']} cannot be read, {facts['attempts']} times in a row, "
            f"last {_error(facts)}"
        )
    return f"{facts['attempts']} failed calls in a row, last {_error(facts)}"


def _error(facts: Facts) -> str:
    """Return the sentence of the error that an attention rests on."""
    stored = facts["error"]
    error = stored_error(stored["code"], stored.get("facts"))
    return "" if error is None else of(error)


def error_fact(error: LastError) -> dict[str, object]:
    return {"code": error.code.value, **({"facts": dict(error.facts)} if error.facts else {})}


def _lapses(facts: Facts) -> str:
    until = datetime.fromisoformat(facts["until"])
    return f"the reservation is sure to be worth a capture until {until:%Y-%m-%d %H:%M} UTC only; capture or release it"


_NO_METHODS: Final = "the gateway offers none for this order; check the merchant's terminals, and the order's country, currency and amount"

_USED_UP: Final = "{sessions} sessions were opened for it, and the gateway takes about {most}"

_QUESTIONS: Final[dict[AttentionCode, Callable[[Facts, Sequence[PaymentAmount]], str]]] = {
    AttentionCode.PAYMENT_MISMATCH: _problem,
    AttentionCode.UNCLEAR_PAYMENT: _problem,
    AttentionCode.UNBOUND_PAYMENT: _problem,
    AttentionCode.SURPLUS_PAYMENT: _surplus,
    AttentionCode.PAYMENT_RELEASED: lambda _, payments: (
        f"transaction {_names(payments)}, which paid this order, was released at the gateway"
    ),
}
_IRREGULAR: Final[dict[AttentionCode, Callable[[Facts, str, PaymentAmount], str]]] = {
    AttentionCode.CHARGEBACK_UNCLEAR: lambda facts, named, _: (
        f"the gateway tells of a chargeback or a dispute of {named} that cannot be counted: {'; '.join(facts['events'])}"
    ),
    AttentionCode.OVER_REFUND: lambda facts, named, _: (
        f"of {named} {_amount(facts, 'refunded')} are refunded, and {_amount(facts, 'captured')} were captured"
    ),
    AttentionCode.OVER_CAPTURE: lambda facts, named, _: (
        f"of {named} {_amount(facts, 'captured')} are captured, and {_amount(facts, 'reserved')} were reserved"
    ),
    AttentionCode.CREDITED: lambda facts, named, _: (
        f"the gateway shows a credit of {'; '.join(facts['credits'])} to the shopper beside {named}"
    ),
}
_ATTENTIONS: Final[dict[AttentionCode, Sentence]] = {
    AttentionCode.LATE_PAYMENT: (
        "the money came after the checkout had ended; keep the order, or return the money"
    ),
    AttentionCode.UNKNOWN_ORDER: (
        "a payment came for order number {orderId}, which no shop has handed over; keep it, or return it"
    ),
    AttentionCode.LOOKUP_AT_LIMIT: (
        "the gateway's answer has as many rows as it may have, so it proves no absence"
    ),
    AttentionCode.PAYMENT_GONE: "the gateway no longer shows the payment that completed this checkout",
    AttentionCode.OPEN_PAYMENT: (
        "a payment has been open since long before the deadline; ask the gateway or the shopper"
    ),
    AttentionCode.RESERVATION_LAPSES: _lapses,
    AttentionCode.CHARGED_BACK: lambda facts: (
        f"the shopper's bank took back {_amount(facts, 'amount')}; answer it at the gateway"
    ),
    AttentionCode.OPERATION_UNCLEAR: _error,
    AttentionCode.OPERATION_REJECTED: _rejected,
    AttentionCode.GATEWAY_CREDENTIALS: (
        "the gateway refuses this merchant's user name and password; correct them"
    ),
    AttentionCode.GATEWAY_FAILING: _failing,
    AttentionCode.STEP_BROKE: "{error} while {state}; see the workers' logs",
    AttentionCode.POISONED: (
        "every worker that took this checkout stopped in the middle; see the workers' logs"
    ),
    AttentionCode.ORDER_NUMBER_USED_UP: _USED_UP,
    AttentionCode.NO_PAYMENT_METHODS: _NO_METHODS,
    AttentionCode.OTHER: "",
}  # fmt: skip

# ── Last errors ────────────────────────────────────────────────────────────────────────────────────────────


_ERRORS: Final[dict[ErrorCode, Sentence]] = {
    ErrorCode.THROTTLED: "{reason}",
    ErrorCode.NOT_SENT: "{reason}",
    ErrorCode.BUSY: "{reason}",
    ErrorCode.CIRCUIT_OPEN: "{reason}",
    ErrorCode.UNKNOWN_OUTCOME: "{reason}",
    ErrorCode.UNAUTHORIZED: "{reason}",
    ErrorCode.REFUSED: "{reason}",
    ErrorCode.GATEWAY_REFUSED: "{reason}",
    ErrorCode.TOKEN_REFUSED: "the gateway refuses a token that it issued a moment ago",
    ErrorCode.NO_PAYMENT_METHODS: _NO_METHODS,
    ErrorCode.ORDER_NUMBER_USED_UP: _USED_UP,
    ErrorCode.DEADLINE_PASSED: "the deadline passed before it could be offered again",
    ErrorCode.UNKNOWN_ORDER: "a payment came for an order number without an intent",
    ErrorCode.LEFT_TO_ORDER: "the order has checkout {checkout}, which the payment is left to",
    ErrorCode.NEEDS_DECISION: "",
    ErrorCode.STEP_BROKE: "{error} while {state}; see the workers' logs",
    ErrorCode.NOT_AUTHENTIC: "its row was not written by a worker of this installation, or was changed since",
    ErrorCode.GATEWAY_ANSWERED: "the gateway answered {answer}",
    ErrorCode.NOTHING_LEFT: lambda facts: (
        f"only {_amount(facts, 'left')} are left to {facts['kind']}, not {_amount(facts, 'amount')}"
    ),
    ErrorCode.TOTAL_CHANGED: lambda facts: (
        f"the gateway's total is {_amount(facts, 'total')} and was {_amount(facts, 'before')} when this was asked for: decide again"
    ),
    ErrorCode.ALREADY_CAPTURED: "it has been captured: refund it instead",
    ErrorCode.HOLDS_NO_MONEY: "the transaction is {status}: it holds no money",
    ErrorCode.CALL_UNDER_WAY: "its call may still be on its way",
    ErrorCode.TRANSACTION_UNKNOWN: (
        "the gateway does not know transaction {transaction} of operation {operation} any more"
    ),
    ErrorCode.STATUS_UNCLEAR: "the transaction is {status} with amounts that do not say what it means",
    ErrorCode.RELEASE_UNCLEAR: "transaction is {status}",
    ErrorCode.TOTAL_UNCLEAR: lambda facts: (
        f"the gateway's total is {_amount(facts, 'total')}, and with or without this it would be "
        f"{money.spelled(facts['before'] + facts['amount'], facts['currency'])} or {_amount(facts, 'before')}"
    ),
    ErrorCode.NEVER_IN_BOOKS: "it was sent {sends} times, and the gateway's books never had it",
    ErrorCode.DECIDED: "{state} by decision of a person",
    ErrorCode.OTHER: "",
}

# ── Results of commands ────────────────────────────────────────────────────────────────────────────────────

SHOWS: Final[Mapping[str, str]] = {
    "paid": "money held for this order",
    "open": "a payment that is still open",
    "declined": "only attempts that are over without money",
    "nothing": "no attempt to pay",
    "released": "that the payment was released",
    "unsure": "something that needs a decision",
}
"""What a lookup shows, by its `LookupOutcome`."""

_RESULTS: Final[dict[ResultCode, Sentence]] = {
    ResultCode.ACCEPTED: lambda facts: ", ".join(facts.get("operations", ())) or "it is under way",
    ResultCode.DONE_RETRIED: lambda facts: (
        f"calls to its gateway are paused until {facts['until']}: it is tried again soon after that, or after the next pause if they fail again"
        if "until" in facts
        else "it is tried again now"
    ),
    ResultCode.DONE_LOOKED_UP: lambda facts: f"the gateway shows {SHOWS[facts['finding']]}",
    ResultCode.DONE_REOPENED: "it is reopened",
    ResultCode.DONE_KEPT: "the order is completed with these payments, if the gateway still holds the same",
    ResultCode.DONE_DECIDED: "it is not asked again",
    ResultCode.DONE_OPERATION_DECIDED: "it is {state}, as you found it",
    ResultCode.DONE_CHANGED: "the order is changed",
    ResultCode.REFUSED_NOT_CHANGEABLE: lambda facts: (
        f"a checkout that is {facts['state']} cannot be changed"
        if "state" in facts
        else "its deadline has passed, and it cannot be changed any more"
    ),
    ResultCode.REFUSED_NOT_AN_INTENT: "with the changes before it, {field} {problem}",
    ResultCode.REFUSED_NOT_AUTHENTIC: (
        "its row was not written by the API or the command line of this installation, or was changed since"
    ),
    ResultCode.REFUSED_REPEATED: "it was taken before, and its row was changed since",
    ResultCode.REFUSED_VERSION_CHANGED: (
        "it was asked for version {asked}, and the checkout is at version {version} now"
    ),
    ResultCode.REFUSED_NOT_CANCELLABLE: "a checkout that is {state} cannot be cancelled",
    ResultCode.REFUSED_CANCELLING: "it is being cancelled already",
    ResultCode.REFUSED_NOT_CLOSED: "a checkout that is {state} cannot be reopened",
    ResultCode.REFUSED_ERASED: "its personal data was erased, and the order with it",
    ResultCode.REFUSED_NOT_AN_ORDER: "order {orderId} has no intent: there is nothing to open a session with",
    ResultCode.REFUSED_ORDER_TAKEN: "order {orderId} belongs to checkout {checkout} now",
    ResultCode.REFUSED_ORDER_NUMBER_USED_UP: (
        "order number {orderId} has been used {sessions} times at the gateway, which takes about {most}"
    ),
    ResultCode.REFUSED_PAYMENT_SHOWN: "the gateway shows this order as {finding}",
    ResultCode.REFUSED_NOT_PAID: "a checkout that is {state} has no payment",
    ResultCode.REFUSED_SEVERAL_PAYMENTS: lambda facts: (
        f"this order is paid by transactions {', '.join(facts['transactions'])}: name one of them"
    ),
    ResultCode.REFUSED_UNKNOWN_TRANSACTION: "no lookup has seen transaction {transaction} for this order",
    ResultCode.REFUSED_NOT_ITS_PAYMENT: lambda facts: (
        f"transaction {facts['unsure']} is not surely this order's: move its money at the gateway"
        if "unsure" in facts
        else "only the payment that completed the checkout can be captured; surplus is released or refunded"
    ),
    ResultCode.REFUSED_CAPTURES_ITSELF: (
        "the gateway captures this payment by itself (autoCapture), and has not said that it will not"
    ),
    ResultCode.REFUSED_ALREADY_CAPTURED: "it has been captured: refund it instead",
    ResultCode.REFUSED_NOTHING_LEFT: "nothing is left to {kind}",
    ResultCode.REFUSED_TOO_MUCH: lambda facts: (
        f"only {_amount(facts, 'left')} are left to {facts['kind']}, and {_amount(facts, 'amount')} were asked for"
    ),
    ResultCode.REFUSED_NOTHING_TO_DECIDE: "nothing is waiting for a decision",
    ResultCode.REFUSED_PAYMENTS_CHANGED: (
        "the payments that it is about have changed: read the checkout again and decide again"
    ),
    ResultCode.REFUSED_AMOUNT_UNREADABLE: (
        "the amounts of transaction {transaction} cannot be read: look it up at the gateway, give the money back there or "
        "take another payment for the order"
    ),
    ResultCode.REFUSED_OTHER_CURRENCY: lambda facts: (
        f"transaction {facts['transaction']} is in {facts['currency'] or 'an unknown currency'} and the order in {facts['ordered']}: "
        "it cannot pay this order; return it"
    ),
    ResultCode.REFUSED_HOLD_NO_MONEY: lambda facts: (
        f"transactions {', '.join(facts['transactions'][:MOST_NAMED])} do not all hold money: say dismiss, or reconcile"
    ),
    ResultCode.REFUSED_MONEY_HELD: lambda facts: (
        f"the gateway holds money for this order under {_payments(facts['payments'])}: say keep or return"
    ),
    ResultCode.REFUSED_MONEY_POSSIBLE: lambda facts: (
        f"transaction {facts['transaction']} names this order and is {facts['status'] or 'without a status'}: say keep, or give "
        "its money back in the gateway's own interface, then reconcile"
    ),
    ResultCode.REFUSED_KEEP_OR_DISMISS: "say keep if it was done at the gateway, or dismiss if it was not",
    ResultCode.REFUSED_NOT_RETURNABLE: (
        "{attention} is not about money that could be returned: say keep or dismiss"
    ),
    ResultCode.REFUSED_PAYMENT_UNCLEAR: (
        "what transaction {transaction} holds is not clear: give its money back in the gateway's own interface, then reconcile"
    ),
    ResultCode.REFUSED_NOTHING_TO_RETURN: (
        "no transaction that this is about holds money that is surely this order's"
    ),
    ResultCode.OTHER: "",
}


def _payments(payments: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(
        f"{payment['transaction']} ({money.spelled(payment['amount'], payment['currency'])})"
        for payment in payments
    )

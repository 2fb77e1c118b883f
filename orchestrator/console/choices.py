"""What a person may do with an order, each with the amount and the transaction that it is about, and what
follows from it.

Whether something may be done is asked of `domain.command_rules`, the rule of the API and of the workers.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from orchestrator import text
from orchestrator.domain import command_rules, money, reconciliation
from orchestrator.domain.attention import RETURNABLE, WAYS_OUT, AttentionCode, Way
from orchestrator.domain.command_rules import CommandRequest
from orchestrator.domain.records import MOVES_MONEY, CommandKind, Decision, Role
from orchestrator.domain.states import ENDED, State

if TYPE_CHECKING:
    from orchestrator.domain.command_rules import CheckoutView
    from orchestrator.domain.records import PaymentRecord

KINDS: Final = tuple(kind for kind in CommandKind if kind is not CommandKind.CHANGE)
NAMED: Final = 3
"""Payments that the label of a decision names."""
TAKES_AMOUNT: Final = frozenset({CommandKind.CAPTURE, CommandKind.REFUND})

FOLLOWS: Final = {
    CommandKind.CANCEL: "The shopper can no longer pay. After a lookup that shows no payment the order is cancelled; if the money is "
    "there by then, the order is completed instead.",
    CommandKind.REOPEN: "The order is offered to the shopper again, with a new session at the gateway.",
    CommandKind.CAPTURE: "The gateway moves the amount from the shopper's reservation to the merchant. A capture is undone by a "
    "refund only.",
    CommandKind.REFUND: "The gateway sends the amount back to the shopper. A refund cannot be undone.",
    CommandKind.RELEASE: "The reservation ends, and the shopper's bank frees the money. A release cannot be undone.",
    CommandKind.RETRY: "What waits for its next try is tried at once or, while calls to its gateway are paused, soon after they are made again. Money that "
    "may have left is never sent again.",
    CommandKind.RECONCILE: "The gateway is asked what it holds for the order, and the order follows what it answers. No money "
    "moves by that.",
}
"""What follows from each command, in one or two sentences."""
_KEPT: Final = {
    AttentionCode.LATE_PAYMENT: "The late payment counts as the payment of the order. The shop is told by an event and ships as usual.",
    AttentionCode.SURPLUS_PAYMENT: "Nothing is sent back: the payment beside the accepted one stays with the merchant.",
    AttentionCode.UNKNOWN_ORDER: "The payment stays with the merchant, under an order that no shop has handed over.",
    AttentionCode.UNCLEAR_PAYMENT: "The payment counts as the payment of the order.",
    AttentionCode.UNBOUND_PAYMENT: "The payment counts as the payment of this order, and of no other.",
    AttentionCode.OPERATION_UNCLEAR: "The operation counts as done at the gateway. Nothing is sent.",
}
_RESERVED: Final = {
    AttentionCode.LATE_PAYMENT: "It is only reserved: it must be captured before the reservation lapses, or it goes back to the shopper.",
    AttentionCode.SURPLUS_PAYMENT: "Nothing is sent back now. The payment beside the accepted one is only reserved: it must be captured in "
    "the gateway's own interface before the reservation lapses, or it goes back to the shopper.",
}
"""What follows where what is kept is not captured: beside `_KEPT`, or instead of it."""
_RETURNED: Final = {
    AttentionCode.SURPLUS_PAYMENT: "The money beside the payment of the order goes back to the shopper: a reservation is released, "
    "captured money is refunded. That cannot be undone. The order stays as it is, with its own payment{paying}.",
}
_DISMISSED: Final = {
    AttentionCode.OPERATION_UNCLEAR: "The operation counts as not done at the gateway. It may be asked for again.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Something that may be done; or may not, and `refused` says why.

    `amount` is what can be moved at the most, in minor units of `currency`.
    """

    kind: CommandKind
    label: str
    follows: str
    transaction_id: str | None = None
    decision: Decision | None = None
    pays: bool = False
    """It is about the payment of the order."""
    amount: int | None = None
    currency: str = ""
    refused: str | None = None
    first: bool = False
    """It is a way out of what waits for a decision."""

    @property
    def query(self) -> dict[str, str | None]:
        """The query parameters of its page; None: left out."""
        return {"transaction": self.transaction_id, "decision": self.decision}


def of(view: CheckoutView) -> list[Choice]:
    """Return what may be done with an order, what waits for a decision first."""
    found = [*_decisions(view)]
    # A release or a refund beside a decision that returns the money would do the same.
    returns = any(choice.decision is Decision.RETURN and not choice.refused for choice in found)
    decided = {payment.transaction_id for payment in _about(view)} if returns else set()
    for payment in view.payments_seen:
        kinds = [CommandKind.CAPTURE] if payment.role == Role.ACCEPTED else []
        if payment.transaction_id not in decided:
            kinds += [CommandKind.RELEASE, CommandKind.REFUND]
        found += [_of_payment(view, payment, kind) for kind in kinds]
    kinds = [CommandKind.RECONCILE, CommandKind.RETRY]
    if view.state is not State.COMPLETED:
        kinds[:0] = [CommandKind.CANCEL, CommandKind.REOPEN]
    found += [one(view, kind) for kind in kinds]
    named = {(choice.kind, choice.transaction_id) for choice in found if choice.first}
    return [choice for choice in found if choice.first or (choice.kind, choice.transaction_id) not in named]


def one(
    view: CheckoutView,
    kind: CommandKind,
    *,
    transaction_id: str | None = None,
    decision: Decision | None = None,
) -> Choice:
    """Return one choice, with why it is refused, if it is."""
    if kind is CommandKind.RESOLVE:
        return _decision(view, decision or Decision.DISMISS)
    payment = view.payment(transaction_id)
    if kind in MOVES_MONEY and payment is not None:
        return _of_payment(view, payment, kind)
    request = CommandRequest(kind=kind, transaction_id=transaction_id, version=view.version)
    labels = {
        CommandKind.CANCEL: "Cancel the order",
        CommandKind.REOPEN: "Reopen the order",
        CommandKind.RETRY: "Retry now",
        CommandKind.RECONCILE: "Look it up at the gateway",
    }
    return Choice(
        kind=kind,
        label=labels.get(kind, kind.value.capitalize()),
        follows=FOLLOWS[kind],
        transaction_id=transaction_id,
        refused=_refused(view, request),
    )


def sentence(view: CheckoutView, choice: Choice, amount: int | None) -> str:
    """Say what would be done: "Refund 129.00 of 139.00 DKK of transaction 17 of order A-1001"."""
    order = f"order {view.order_ref}"
    match choice.kind:
        case CommandKind.CAPTURE | CommandKind.REFUND | CommandKind.RELEASE:
            most, currency = choice.amount or 0, choice.currency
            much = money.spelled(most, currency, grouped=True)
            if amount is None or amount == most:
                much = f"{much} (all of it)"
            else:
                decimal = money.decimal_or_none(amount, currency)
                much = f"{amount if decimal is None else decimal:,} of {much}"
            return (
                f"{choice.kind.value.capitalize()} {much} of transaction {choice.transaction_id} of {order}"
            )
        case CommandKind.RESOLVE:
            return f"{choice.label}, {order}"
        case CommandKind.CANCEL | CommandKind.REOPEN:
            return f"{choice.kind.value.capitalize()} {order} for {money.spelled(view.amount, view.currency, grouped=True)}"
        case CommandKind.RETRY:
            return f"Retry {order} now"
        case _:
            return f"Look {order} up at the gateway now"


def at_stake(view: CheckoutView, choice: Choice, amount: int | None) -> dict[str, int]:
    """Return how much money a choice moves, as our books have it: minor units by currency; nothing where it
    moves none.
    """
    if choice.kind in MOVES_MONEY:
        return {choice.currency: choice.amount or 0 if amount is None else amount}
    if choice.decision is not Decision.RETURN:
        return {}
    found: Counter[str] = Counter()
    for payment in reconciliation.returned(view):
        found[payment.currency] += payment.left
    # A payment that our books do not have yet: at the most what was ordered is returned without a question.
    return dict(found) or {view.currency: view.amount}


def _decisions(view: CheckoutView) -> list[Choice]:
    """Return the ways out of what waits for a decision."""
    if view.attention is None:
        return []
    found = []
    for way in WAYS_OUT[view.attention.code]:
        if way in {Way.KEEP, Way.RETURN, Way.DISMISS}:
            found.append(_decision(view, Decision(way.value)))
        else:
            found.append(replace(one(view, CommandKind(way.value)), first=True))
    return found


def _about(view: CheckoutView) -> list[PaymentRecord]:
    """Return the payments that the decision is about."""
    if view.attention is None or view.attention.code not in RETURNABLE:
        return []
    return list(reconciliation.concerned(view))


def _kept(view: CheckoutView, code: AttentionCode) -> str:
    if code is AttentionCode.PAYMENT_MISMATCH:
        return _kept_mismatch(view)
    said = _KEPT.get(code, "The money stays with the merchant, and with it the order.")
    if code not in _RESERVED or not any(
        payment.left > 0 and payment.captured == 0 for payment in _about(view)
    ):
        return said
    return _RESERVED[code] if code is AttentionCode.SURPLUS_PAYMENT else f"{said} {_RESERVED[code]}"


def _kept_mismatch(view: CheckoutView) -> str:
    """Say how much more or less than ordered is kept, and that the order is completed with it."""
    about = _about(view)
    done = "stays completed" if view.state is State.COMPLETED else "is completed"
    if any(payment.raw_amounts or payment.currency != view.currency for payment in about):
        return f"The order {done} with the payment, for the amount that it holds."
    held = sum(payment.left for payment in about)
    spelled = [
        money.spelled(minor, view.currency, grouped=True)
        for minor in (held, view.amount, abs(held - view.amount))
    ]
    if held == view.amount:
        return f"The order {done} with the {spelled[0]} that are held, as ordered."
    than, rest = "less", "The shop is told by an event, and decides whether it ships or asks for the rest."
    if held > view.amount:
        than, rest = "more", "What is too much can be refunded once it is captured."
    return f"The order of {spelled[1]} {done} with the {spelled[0]} that are held: {spelled[2]} {than} than ordered. {rest}"


def _after_return(view: CheckoutView) -> str:
    """Say what becomes of the order once a payment that was not accepted for it has gone back."""
    if view.state in ENDED:
        return f"The order has ended and stays as it is: {view.state.value}."
    if view.cancelling is not None:
        return "A cancel of the order was requested: without another payment the order is then cancelled."
    return (
        "The order then waits for another payment until its deadline, and expires without one; if the deadline has passed by "
        "then, it expires."
    )


def _named(view: CheckoutView, decision: Decision) -> str:
    """Return the payments that a decision is about, each with what our books have of it now."""
    left = {payment.transaction_id: payment.left for payment in view.payments_seen if not payment.raw_amounts}
    named = [
        (left.get(payment.transaction_id, payment.amount), payment.currency, payment.transaction_id)
        for payment in (view.attention.payments if view.attention is not None else ())
    ]
    if decision is Decision.RETURN and (returned := reconciliation.returned(view)):
        named = [(payment.left, payment.currency, payment.transaction_id) for payment in returned]
    held = [
        f"{'an unreadable amount' if amount is None else money.spelled(amount, currency, grouped=True)} (transaction {transaction})"
        for amount, currency, transaction in named[:NAMED]
    ]
    more = len(named) - NAMED
    return (f" {' and '.join(held)}" if held else "") + (f" and {more} more" if more > 0 else "")


def _decision(view: CheckoutView, decision: Decision) -> Choice:
    asked = view.attention
    request = CommandRequest(kind=CommandKind.RESOLVE, decision=decision, version=view.version)
    code = asked.code if asked is not None else AttentionCode.OTHER
    about = _named(view, decision)
    unclear = code is AttentionCode.OPERATION_UNCLEAR
    match decision:
        case Decision.KEEP:
            label = "It was done at the gateway" if unclear else f"Keep{about or ' the money'}"
            follows = _kept(view, code)
        case Decision.RETURN:
            label = f"Return{about or ' the money'} to the shopper"
            paying = ", ".join(payment.transaction_id for payment in view.paying)
            follows = _RETURNED.get(
                code,
                "The money goes back to the shopper: a reservation is released, captured money is refunded. That cannot be undone.",
            ).format(paying=f" (transaction {paying})" if paying else "")
            if code is AttentionCode.PAYMENT_MISMATCH:
                follows = f"{follows} {_after_return(view)}"
        case _:
            label = (
                "It was not done at the gateway" if unclear else "Dismiss: leave money and order as they are"
            )
            follows = _DISMISSED.get(
                code, "The question is closed. No money moves, and the order stays as it is."
            )
    return Choice(
        kind=CommandKind.RESOLVE,
        decision=decision,
        label=label,
        follows=follows,
        refused=_refused(view, request),
        first=True,
    )


def _of_payment(view: CheckoutView, payment: PaymentRecord, kind: CommandKind) -> Choice:
    left = view.left(payment, kind)
    request = CommandRequest(
        kind=kind,
        amount=None if kind is CommandKind.RELEASE else max(left, 1),
        transaction_id=payment.transaction_id,
        version=view.version,
    )
    pays = payment.role == Role.ACCEPTED
    label = kind.value.capitalize()
    if pays and kind is CommandKind.RELEASE:
        label = f"{label} the order's payment" + ("," if left > 0 else "")
    if left > 0:
        up_to = "up to " if kind in TAKES_AMOUNT else ""
        label = f"{label} {up_to}{money.spelled(left, payment.currency, grouped=True)}"
    again = " The order would have to be paid again."
    return Choice(
        kind=kind,
        label=label,
        follows=FOLLOWS[kind] + (again if pays and kind is CommandKind.RELEASE else ""),
        transaction_id=payment.transaction_id,
        pays=pays,
        amount=left,
        currency=payment.currency,
        refused=_refused(view, request),
    )


def _refused(view: CheckoutView, request: CommandRequest) -> str | None:
    found = command_rules.rejection(view, request)
    return None if found is None else text.sentence(found.sentence)

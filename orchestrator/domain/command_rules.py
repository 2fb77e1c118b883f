"""What a command may do as a checkout stands, and why it may not: asked before it is stored, and again under
the lease.

Our books may be younger or older than what the gateway holds, so whatever passes when it is stored is decided
again. A refusal names the reason and the way out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.domain import decisions, money, sentences
from orchestrator.domain.attention import AttentionCode
from orchestrator.domain.command_result import ResultCode, result
from orchestrator.domain.payment_meaning import PaymentMeaning
from orchestrator.domain.records import (
    MOVES_MONEY,
    Binding,
    CommandKind,
    Decision,
    OperationKind,
    PaymentRecord,
    Role,
    left_to,
)
from orchestrator.domain.states import CLOSED, ENDED, State

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from orchestrator.domain.attention import Attention
    from orchestrator.domain.claimed_checkout import ClaimedCheckout
    from orchestrator.domain.command_result import CommandResult
    from orchestrator.domain.records import Command


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRequest:
    """A requested command.

    `amount` in minor units (None: all that is left), `expires_in` in seconds. `change` is the merge patch of
    a changed order, encrypted and in base64.
    """

    kind: CommandKind
    amount: int | None = None
    transaction_id: str | None = None
    expires_in: float | None = None
    decision: Decision | None = None
    change: str | None = None
    version: int | None = None

    @property
    def arguments(self) -> dict[str, object]:
        """The command's fields beside its kind."""
        match self.kind:
            case CommandKind.CAPTURE | CommandKind.REFUND:
                return {"amount": self.amount, "transactionId": self.transaction_id}
            case CommandKind.RELEASE:
                return {"transactionId": self.transaction_id}
            case CommandKind.REOPEN:
                return {"expiresIn": self.expires_in}
            case CommandKind.RESOLVE:
                return {"decision": self.decision}
            case CommandKind.CHANGE:
                return {"change": self.change}
            case _:
                return {}


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a command is refused: a code, a sentence with the remedy, and the field that is wrong, if a field
    is.

    `result` is stored with a command that is refused under the lease.
    """

    kind: str
    sentence: str
    result: CommandResult
    field: str | None = None
    facts: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True)
class Pending:
    """Money that an open operation or an unread command will move.

    `amount` None is all; no transaction: the accepted payment.
    """

    kind: str
    transaction_id: str | None
    amount: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckoutView:
    """The present state of a checkout.

    `cancelling` is the cancel under way, `rival` the live checkout that has its order number.

    `met` is the command that the idempotency key was used for, with the fingerprint of its content. A
    `from_payment` checkout was created from a payment for an order number without an intent.
    `captures_itself`: the gateway was requested to capture, which is checked under the lease.
    """

    id: UUID
    merchant_id: int
    order_ref: str
    state: State
    version: int
    currency: str
    amount: int
    attention: Attention | None
    payments_seen: tuple[PaymentRecord, ...]
    under_way: tuple[Pending, ...]
    from_payment: bool = False
    cancelling: UUID | None = None
    rival: UUID | None = None
    met: tuple[UUID, bytes] | None = None
    captures_itself: bool = False
    # Its data key was destroyed, and with it what would be offered.
    erased: bool = False

    @property
    def known(self) -> tuple[PaymentRecord, ...]:
        """Its payments, as a claimed checkout names them."""
        return self.payments_seen

    @property
    def paying(self) -> tuple[PaymentRecord, ...]:
        """What pays the checkout: a single transaction, or the parts that a person decided to keep as a
        whole.
        """
        return tuple(payment for payment in self.payments_seen if payment.role == Role.ACCEPTED)

    def payment(self, transaction_id: str | None) -> PaymentRecord | None:
        """Return the payment with a transaction id; without an id, the single payment that pays the
        checkout.
        """
        if transaction_id is None:
            paying = self.paying
            return paying[0] if len(paying) == 1 else None
        return next(
            (payment for payment in self.payments_seen if payment.transaction_id == transaction_id), None
        )

    def currency_of(self, transaction_id: str | None) -> str:
        """Return the currency in which an amount of this transaction is meant."""
        payment = self.payment(transaction_id)
        return self.currency if payment is None else payment.currency

    def left(self, payment: PaymentRecord, kind: str) -> int:
        """Return how much of a transaction can still be captured, released or refunded once all that is under
        way has succeeded.
        """
        left = left_to(OperationKind(kind), payment)
        for pending in self.busy(payment, kind):
            left = 0 if pending.amount is None else left - pending.amount
        return max(left, 0)

    def busy(self, payment: PaymentRecord, kind: str) -> list[Pending]:
        """Return what is under way with the money that a capture or release, or a refund, of this transaction
        would move.
        """
        return [
            pending
            for pending in self.under_way
            if self.payment(pending.transaction_id) == payment
            and (pending.kind == CommandKind.REFUND) == (kind == CommandKind.REFUND)
        ]


def rejection(view: CheckoutView, request: CommandRequest) -> Rejection | None:
    """Return why a command cannot be executed on the checkout as stored; None if it may be stored."""
    found = (
        _about_money(view, request)
        if request.kind in MOVES_MONEY
        else _about_state(view, request.kind, request.decision)
    )
    if found is None and request.version is not None and request.version != view.version:
        return Rejection(
            "version-changed",
            f"checkout {view.id} has version {view.version} by now, and the {request.kind} was based on {request.version}: "
            "read it again and decide again",
            result(ResultCode.REFUSED_VERSION_CHANGED, asked=request.version, version=view.version),
            facts={"version": view.version},
        )
    return found


def _about_state(view: CheckoutView, kind: CommandKind, decision: str | None) -> Rejection | None:
    match kind:
        case CommandKind.CANCEL if view.state in ENDED:
            paid = "is completed: its money is there, so release or refund it instead of cancelling"
            over = f"is {view.state} already: there is nothing left to cancel"
            said = f"checkout {view.id} {paid if view.state is State.COMPLETED else over}"
            ended = result(ResultCode.REFUSED_NOT_CANCELLABLE, state=view.state.value)
            return Rejection("already-ended", said, ended, facts={"state": view.state})
        case CommandKind.CHANGE:
            return _about_order(view)
        case CommandKind.REOPEN:
            return _about_reopening(view)
        case CommandKind.RESOLVE if view.attention is None:
            said = f"nothing about checkout {view.id} waits for a decision: its attention is empty"
            return Rejection("nothing-to-resolve", said, result(ResultCode.REFUSED_NOTHING_TO_DECIDE))
        case CommandKind.RESOLVE if view.attention is not None and decision in {
            Decision.KEEP,
            Decision.DISMISS,
        }:
            completed = view.state is State.COMPLETED
            undecidable = decisions.refusal(
                view, view.payments_seen, view.attention, decision, completed=completed
            )
            if undecidable is None:
                return None
            return Rejection("not-decidable", sentences.of(undecidable), undecidable, "decision")
        case _:
            return None


def _about_reopening(view: CheckoutView) -> Rejection | None:
    if view.state not in CLOSED:
        paid = view.state is State.COMPLETED
        why = "its money is there" if paid else "it has not ended, so the shopper may go on with it"
        said = f"checkout {view.id} is {_word(view.state)}: {why}; only what failed, expired or was cancelled is reopened"
        refused = result(ResultCode.REFUSED_NOT_CLOSED, state=view.state.value)
        return Rejection("not-closed", said, refused, facts={"state": view.state})
    if view.erased:
        said = f"the personal data of checkout {view.id} was erased, and its order with it: hand the order over as a new checkout"
        return Rejection("erased", said, result(ResultCode.REFUSED_ERASED))
    if view.from_payment:
        said = (
            f"no shop has handed order {view.order_ref} over, so checkout {view.id} has nothing to offer: hand the order over "
            "as a new checkout"
        )
        return Rejection(
            "not-an-order", said, result(ResultCode.REFUSED_NOT_AN_ORDER, orderId=view.order_ref)
        )
    if view.rival is None:
        return None
    said = (
        f"order {view.order_ref} has another live checkout, {view.rival}: let the shopper pay that one, or cancel it "
        f"before reopening {view.id}"
    )
    refused = result(ResultCode.REFUSED_ORDER_TAKEN, orderId=view.order_ref, checkout=str(view.rival))
    return Rejection("order-taken", said, refused, facts={"checkoutId": str(view.rival)})


def _about_order(view: CheckoutView) -> Rejection | None:
    """An order is changed before its payment: afterwards the money that is there is moved instead."""
    state = {"state": view.state}
    open_payment = result(ResultCode.REFUSED_PAYMENT_SHOWN, finding="open")
    if view.state in ENDED:
        paid = "paid: capture less, or refund the difference, and hand over what was added as an order of its own"
        over = f"{view.state}: reopen it before changing it, or hand the order over as a new checkout"
        said = f"checkout {view.id} is {paid if view.state is State.COMPLETED else over}"
        ended = result(ResultCode.REFUSED_NOT_CHANGEABLE, state=view.state.value)
        return Rejection("already-ended", said, ended, facts=state)
    if view.cancelling is not None:
        said = f"checkout {view.id} is being cancelled: hand the changed order over as a new checkout once it is cancelled"
        return Rejection("being-cancelled", said, result(ResultCode.REFUSED_CANCELLING), facts=state)
    seen = next(
        (payment for payment in view.payments_seen if payment.meaning != PaymentMeaning.NOTHING), None
    )
    if seen is None and view.state is State.CALLBACK_RECEIVED:
        said = (
            f"a callback about a payment of checkout {view.id} is being verified at the gateway: read the checkout again, and "
            "change it if it is awaiting_payment then"
        )
        return Rejection("payment-under-way", said, open_payment, facts=state)
    if seen is None:
        return None
    if seen.meaning == PaymentMeaning.OPEN:
        said = (
            f"transaction {seen.transaction_id} may still pay checkout {view.id}: read the checkout again, and change it once the "
            "transaction has ended without money"
        )
        return Rejection("payment-under-way", said, open_payment, facts=state)
    said = (
        f"transaction {seen.transaction_id} is a payment of checkout {view.id}: once it is completed, capture less or refund the "
        "difference, and hand over what was added as an order of its own"
    )
    shown = result(ResultCode.REFUSED_PAYMENT_SHOWN, finding="paid")
    return Rejection("payment-seen", said, shown, facts=state)


def _about_money(view: CheckoutView, request: CommandRequest) -> Rejection | None:
    payment = view.payment(request.transaction_id)
    if payment is None and request.transaction_id is not None:
        said = (
            f"checkout {view.id} has no transaction {request.transaction_id!r}: its payments say which it has; leave transactionId "
            "out for the one that pays it"
        )
        refused = result(ResultCode.REFUSED_UNKNOWN_TRANSACTION, transaction=request.transaction_id)
        return Rejection("unknown-transaction", said, refused, "transactionId")
    if payment is None and len(view.paying) > 1:
        parts = sorted(payment.transaction_id for payment in view.paying)
        said = f"checkout {view.id} is paid by several transactions, {', '.join(parts)}: name one of them"
        refused = result(ResultCode.REFUSED_SEVERAL_PAYMENTS, transactions=parts)
        return Rejection("several-payments", said, refused, "transactionId")
    if payment is None or payment.role == Role.ACCEPTED:
        unpaid = result(ResultCode.REFUSED_NOT_PAID, state=view.state.value)
        if view.state is not State.COMPLETED:
            said = f"checkout {view.id} is {_word(view.state)} and not paid: there is nothing to {request.kind} before it is completed"
            return Rejection("not-paid", said, unpaid, facts={"state": view.state})
        if payment is None:
            said = f"the payment of checkout {view.id} is not in our books: ask for a reconcile, and again after it"
            return Rejection("not-paid", said, unpaid, facts={"state": view.state})
    elif (found := _not_ours(view, request, payment)) is not None:
        return found
    if view.captures_itself and request.kind == CommandKind.CAPTURE:
        said = "the gateway captures this payment by itself (autoCapture), and has not said that it will not"
        return Rejection("captures-itself", said, result(ResultCode.REFUSED_CAPTURES_ITSELF))
    return _not_so_much(view, request, payment)


def _not_ours(view: CheckoutView, request: CommandRequest, payment: PaymentRecord) -> Rejection | None:
    """Of payments beside the accepted one only money that surely belongs to this checkout can be moved, and
    only back.
    """
    named = f"transaction {payment.transaction_id}"
    refused = result(ResultCode.REFUSED_NOT_ITS_PAYMENT)
    if payment.role == Role.ATTEMPT:
        refused = result(ResultCode.REFUSED_NOTHING_LEFT, kind=request.kind.value)
        said = f"{named} is an attempt that holds no money: there is nothing to {request.kind}"
    elif payment.role == Role.UNKNOWN and payment.binding != Binding.BOUND:
        refused = result(ResultCode.REFUSED_NOT_ITS_PAYMENT, unsure=payment.transaction_id)
        said = f"{named} is not surely a payment of checkout {view.id}: look it up at the gateway, and move its money there"
    elif request.kind == CommandKind.CAPTURE:
        said = f"{named} is not the payment that pays checkout {view.id}: its money can only be returned, by release or refund"
    else:
        return None
    return Rejection("not-its-payment", said, refused, "transactionId")


def _not_so_much(view: CheckoutView, request: CommandRequest, payment: PaymentRecord) -> Rejection | None:
    left, named = view.left(payment, request.kind), f"transaction {payment.transaction_id}"
    has, nothing = _books(payment), result(ResultCode.REFUSED_NOTHING_LEFT, kind=request.kind.value)
    if request.kind == CommandKind.RELEASE:
        if payment.captured > 0:
            said = f"of {named} {_amount(payment.captured, payment)} is captured, and a release gives back whole reservations only: "
            captured = result(ResultCode.REFUSED_ALREADY_CAPTURED)
            return Rejection("captured", f"{said}refund what is captured", captured)
        if 0 < left < payment.reserved:
            said = f"a capture of {named} is under way: wait for its end, and refund it instead"
            return Rejection("under-way", said, nothing)
    if left == 0:
        more = "; what is under way takes the rest" if view.busy(payment, request.kind) else ""
        said = f"nothing is left to {request.kind} of {named} ({has}{more})"
        hint = {
            "capture": ": read the checkout again",
            "refund": ": only captured money is refunded; a reservation is released",
            "release": ": captured money is refunded instead",
        }[request.kind]
        return Rejection("nothing-left", said + hint, nothing, None if request.amount is None else "amount")
    if request.amount is not None and request.amount > left:
        said = (
            f"{_amount(request.amount, payment)} is more than the {_amount(left, payment)} that is left to {request.kind} of {named} "
            f"({has}): ask for {_amount(left, payment)} at most"
        )
        too_much = result(
            ResultCode.REFUSED_TOO_MUCH,
            kind=request.kind.value,
            left=left,
            amount=request.amount,
            currency=payment.currency,
        )
        facts = {"left": money.decimal_or_none(left, payment.currency)}
        return Rejection("too-much", said, too_much, "amount", facts)
    return None


def _books(payment: PaymentRecord) -> str:
    names: tuple[Any, ...] = (
        ("reserved", payment.reserved),
        ("captured", payment.captured),
        ("refunded", payment.refunded),
        ("charged back", payment.charged_back),
    )
    told = [f"{name} {_amount(minor, payment)}" for name, minor in names if minor]
    return ", ".join(told) or "it holds no money"


def _amount(minor: int, payment: PaymentRecord) -> str:
    return money.spelled(minor, payment.currency)


def _word(state: State) -> str:
    return state.value.replace("_", " ")


def ready(held: ClaimedCheckout) -> Command | None:
    """Return the oldest command that can be taken now; None while all wait for an operation on their
    transaction.
    """
    return next((command for command in held.commands if not _blocked(held, command)), None)


def _blocked(held: ClaimedCheckout, command: Command) -> bool:
    if not isinstance(command.arguments, dict):
        # The operation was not made by this system: it is rejected when it is executed.
        return False
    if command.kind is CommandKind.RESOLVE and command.arguments.get("decision") == Decision.RETURN:
        unclear = held.attention is not None and held.attention.code is AttentionCode.OPERATION_UNCLEAR
        return held.operation is not None and not unclear
    if command.kind is CommandKind.CHANGE:
        # The payment that the callback is about is looked up first.
        return held.state is State.CALLBACK_RECEIVED
    if command.kind not in MOVES_MONEY:
        return False
    targets = {command.transaction_id} if command.transaction_id else held.accepted
    return any(operation.open and operation.transaction_id in targets for operation in held.operations)

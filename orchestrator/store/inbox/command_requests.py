"""Where a checkout stands for whoever wants something of it, and why a command is refused before it is stored.

Our books may be younger or older than what the gateway holds, so whatever passes here is decided again under the lease. What is
refused here is refused with the reason and the way out, while the person who asked is still there to read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from sqlalchemy import text

from orchestrator import audit
from orchestrator.domain import attention, decisions, money, sentences
from orchestrator.domain.states import CLOSED, ENDED, State
from orchestrator.store.tables import IS_LIVE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from orchestrator.domain.attention import Attention
    from orchestrator.store.database import Database
    from orchestrator.store.inbox.commands import CommandKind

_FROM_PAYMENT: Final = " OR ".join(
    f"CAST(a.entry AS jsonb) #> '{{evidence,{word}}}' = 'true'" for word in audit.FROM_PAYMENT
)

# One statement, so that a used key and the books are seen at one moment: whoever repeats a capture meets either the first
# request, or books on which nothing of it was booked yet.
_STANDING = text(f"""
    SELECT c.id, c.merchant_id, c.order_ref, c.state, c.version, c.currency, c.amount, c.attention, c.attention_details,
           m.id AS met, m.fingerprint AS met_print,
           EXISTS (SELECT FROM audit_entries a
                    WHERE a.checkout_id = c.id AND a.sequence = 1
                      AND ({_FROM_PAYMENT})) AS from_payment,
           (SELECT k.id FROM commands k
             WHERE k.checkout_id = c.id AND k.kind = 'cancel'
               AND (k.handled_at IS NULL OR c.cancel_requested_at IS NOT NULL AND k.result = 'accepted')
             ORDER BY k.requested_at DESC LIMIT 1) AS cancelling,
           (SELECT o.id FROM checkouts o
             WHERE o.merchant_id = c.merchant_id AND o.order_ref = c.order_ref AND o.id <> c.id AND {IS_LIVE}) AS rival,
           (SELECT json_agg(json_build_object(
                       'transaction_id', p.transaction_id, 'role', p.role, 'binding', p.binding, 'currency', p.currency,
                       'reserved', p.reserved, 'captured', p.captured, 'refunded', p.refunded,
                       'charged_back', p.charged_back, 'surcharge', p.surcharge, 'status', p.status, 'meaning', p.meaning,
                       'flags', p.flags, 'decided', p.decided))
              FROM payments p WHERE p.checkout_id = c.id) AS payments,
           (SELECT json_agg(json_build_object('kind', w.kind, 'transaction_id', w.transaction_id, 'amount', w.amount))
              FROM (SELECT o.kind, o.transaction_id, o.amount FROM money_operations o
                     WHERE o.checkout_id = c.id AND o.state IN ('requested', 'submitted', 'unknown')
                    UNION ALL
                    SELECT k.kind, k.arguments ->> 'transactionId', CAST(k.arguments ->> 'amount' AS int8) FROM commands k
                     WHERE k.checkout_id = c.id AND k.handled_at IS NULL AND k.kind IN ('capture', 'refund', 'release')
                   ) w) AS under_way
      FROM checkouts c LEFT JOIN commands m ON m.merchant_id = c.merchant_id AND m.idempotency_key = :key
     WHERE c.id = :id AND c.merchant_id = coalesce(CAST(:merchant_id AS int), c.merchant_id)
""")  # noqa: S608 - made of our own constant

_MOVES_MONEY: Final = frozenset({"capture", "refund", "release"})


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRequest:
    """What somebody wants of a checkout. `amount` in minor units (None: all that is left), `expires_in` in seconds."""

    kind: CommandKind
    amount: int | None = None
    transaction_id: str | None = None
    expires_in: float | None = None
    decision: Literal["keep", "return", "dismiss"] | None = None
    version: int | None = None

    @property
    def arguments(self) -> dict[str, object]:
        """What the command carries beside its kind."""
        match self.kind:
            case "capture" | "refund":
                return {"amount": self.amount, "transactionId": self.transaction_id}
            case "release":
                return {"transactionId": self.transaction_id}
            case "reopen":
                return {"expiresIn": self.expires_in}
            case "resolve":
                return {"decision": self.decision}
            case _:
                return {}


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a command is refused: a word for programs, a sentence with the way out, and the field to blame, if it is one's fault."""

    kind: str
    sentence: str
    field: str | None = None
    facts: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True)
class PaymentView:
    """One gateway transaction of the checkout in our books; minor units of its own currency."""

    transaction_id: str
    role: str
    binding: str
    currency: str
    reserved: int
    captured: int
    refunded: int
    charged_back: int
    surcharge: int = 0
    status: str = ""
    meaning: str = ""
    flags: tuple[str, ...] = ()
    decided: str | None = None


@dataclass(frozen=True, slots=True)
class Pending:
    """Money that an open operation or an unread command will move. `amount` None is all; no transaction: the accepted one."""

    kind: str
    transaction_id: str | None
    amount: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckoutView:
    """Where a checkout stands. `cancelling` is the cancel that runs, `rival` the live checkout that has its order number.

    `met` is the command that the idempotency key was used for, with the fingerprint of its content. A `from_payment` was created from a payment
    for an order number that no shop had handed over.
    """

    id: UUID
    merchant_id: int
    order_ref: str
    state: State
    version: int
    currency: str
    amount: int
    attention: Attention | None
    from_payment: bool
    cancelling: UUID | None
    rival: UUID | None
    met: tuple[UUID, bytes] | None
    payments_seen: tuple[PaymentView, ...]
    under_way: tuple[Pending, ...]

    @property
    def paying(self) -> tuple[PaymentView, ...]:
        """What pays the checkout: one transaction, or the parts that a person decided to keep as a whole."""
        return tuple(one for one in self.payments_seen if one.role == "accepted")

    def payment(self, transaction_id: str | None) -> PaymentView | None:
        """Return what is held under a transaction; without one, under the one transaction that pays the checkout."""
        if transaction_id is None:
            paying = self.paying
            return paying[0] if len(paying) == 1 else None
        return next((one for one in self.payments_seen if one.transaction_id == transaction_id), None)

    def currency_of(self, transaction_id: str | None) -> str:
        """Return the currency in which an amount of this transaction is meant."""
        payment = self.payment(transaction_id)
        return self.currency if payment is None else payment.currency

    def left(self, payment: PaymentView, kind: str) -> int:
        """Return how much of a transaction can still be captured, released or refunded when all that is under way has come true."""
        left = (
            payment.captured - payment.refunded - payment.charged_back
            if kind == "refund"
            else payment.reserved - payment.captured
        )
        for one in self.busy(payment, kind):
            left = 0 if one.amount is None else left - one.amount
        return max(left, 0)

    def busy(self, payment: PaymentView, kind: str) -> list[Pending]:
        """Return what is under way with the money that a capture or release, or a refund, of this transaction would move."""
        return [
            one
            for one in self.under_way
            if self.payment(one.transaction_id) == payment and (one.kind == "refund") == (kind == "refund")
        ]


async def checkout_view(
    db: Database, checkout_id: UUID, *, merchant_id: int | None = None, key: str | None = None
) -> CheckoutView | None:
    """Return where a checkout stands; None if there is none of this id, or it is not this merchant's (None: anybody's).

    `key` is the idempotency key of the request, if it has one.
    """
    rows = await db.read(_STANDING, {"id": checkout_id, "merchant_id": merchant_id, "key": key})
    if not rows:
        return None
    row = rows[0]
    return CheckoutView(
        id=row.id,
        merchant_id=row.merchant_id,
        order_ref=row.order_ref,
        state=State(row.state),
        version=row.version,
        currency=row.currency,
        amount=row.amount,
        attention=attention.stored(row.attention, row.attention_details),
        from_payment=row.from_payment,
        cancelling=row.cancelling,
        rival=row.rival,
        met=None if row.met is None else (row.met, bytes(row.met_print)),
        payments_seen=tuple(
            PaymentView(**{**one, "flags": tuple(one["flags"])}) for one in row.payments or ()
        ),
        under_way=tuple(Pending(**one) for one in row.under_way or ()),
    )


def rejection(view: CheckoutView, request: CommandRequest) -> Rejection | None:
    """Say why a command cannot be carried out as the checkout stands by our books; None if it may be stored."""
    found = (
        _about_money(view, request)
        if request.kind in _MOVES_MONEY
        else _about_state(view, request.kind, request.decision)
    )
    if found is None and request.version is not None and request.version != view.version:
        return Rejection(
            "version-changed",
            f"checkout {view.id} has version {view.version} by now, and the {request.kind} was based on {request.version}: "
            "read it again and decide again",
            facts={"version": view.version},
        )
    return found


def _about_state(view: CheckoutView, kind: CommandKind, decision: str | None) -> Rejection | None:
    state = {"state": view.state}
    match kind:
        case "cancel" if view.state is State.COMPLETED:
            said = "is completed: its money is there, so release or refund it instead of cancelling"
            return Rejection("already-ended", f"checkout {view.id} {said}", facts=state)
        case "cancel" if view.state in ENDED:
            said = f"is {view.state} already: there is nothing left to cancel"
            return Rejection("already-ended", f"checkout {view.id} {said}", facts=state)
        case "reopen" if view.state not in CLOSED:
            paid = view.state is State.COMPLETED
            why = "its money is there" if paid else "it has not ended, so the shopper may go on with it"
            said = f"checkout {view.id} is {_word(view.state)}: {why}; only what failed, expired or was cancelled is reopened"
            return Rejection("not-closed", said, facts=state)
        case "reopen" if view.from_payment:
            said = (
                f"no shop has handed order {view.order_ref} over, so checkout {view.id} has nothing to offer: hand the order over "
                "as a new checkout"
            )
            return Rejection("not-an-order", said)
        case "reopen" if view.rival is not None:
            said = (
                f"order {view.order_ref} has another live checkout, {view.rival}: let the shopper pay that one, or cancel it "
                f"before reopening {view.id}"
            )
            return Rejection("order-taken", said, facts={"checkoutId": str(view.rival)})
        case "resolve" if view.attention is None:
            said = f"nothing about checkout {view.id} waits for a decision: its attention is empty"
            return Rejection("nothing-to-resolve", said)
        case "resolve" if view.attention is not None and decision in {"keep", "dismiss"}:
            completed = view.state is State.COMPLETED
            refused = decisions.refusal(
                view, view.payments_seen, view.attention, decision, completed=completed
            )
            return None if refused is None else Rejection("not-decidable", sentences.of(refused), "decision")
        case _:
            return None


def _about_money(view: CheckoutView, request: CommandRequest) -> Rejection | None:
    payment = view.payment(request.transaction_id)
    if payment is None and request.transaction_id is not None:
        said = (
            f"checkout {view.id} has no transaction {request.transaction_id!r}: its payments say which it has; leave transactionId "
            "out for the one that pays it"
        )
        return Rejection("unknown-transaction", said, "transactionId")
    if payment is None and len(view.paying) > 1:
        parts = ", ".join(one.transaction_id for one in view.paying)
        said = f"checkout {view.id} is paid by several transactions, {parts}: name one of them"
        return Rejection("several-payments", said, "transactionId")
    if payment is None or payment.role == "accepted":
        if view.state is not State.COMPLETED:
            said = f"checkout {view.id} is {_word(view.state)} and not paid: there is nothing to {request.kind} before it is completed"
            return Rejection("not-paid", said, facts={"state": view.state})
        if payment is None:
            said = f"the payment of checkout {view.id} is not in our books: ask for a reconcile, and again after it"
            return Rejection("not-paid", said, facts={"state": view.state})
    elif (found := _not_ours(view, request, payment)) is not None:
        return found
    return _not_so_much(view, request, payment)


def _not_ours(view: CheckoutView, request: CommandRequest, payment: PaymentView) -> Rejection | None:
    """Of payments beside the accepted one only money that is surely this checkout's can be moved, and only back."""
    named = f"transaction {payment.transaction_id}"
    if payment.role == "attempt":
        said = f"{named} is an attempt that holds no money: there is nothing to {request.kind}"
    elif payment.role == "unknown" and payment.binding != "bound":
        said = f"{named} is not surely a payment of checkout {view.id}: look it up at the gateway, and move its money there"
    elif request.kind == "capture":
        said = f"{named} is not the payment that pays checkout {view.id}: its money can only be returned, by release or refund"
    else:
        return None
    return Rejection("not-its-payment", said, "transactionId")


def _not_so_much(view: CheckoutView, request: CommandRequest, payment: PaymentView) -> Rejection | None:
    left, named = view.left(payment, request.kind), f"transaction {payment.transaction_id}"
    has = _books(payment)
    if request.kind == "release":
        if payment.captured > 0:
            said = f"of {named} {_amount(payment.captured, payment)} is captured, and a release gives back whole reservations only: "
            return Rejection("captured", f"{said}refund what is captured")
        if 0 < left < payment.reserved:
            said = f"a capture of {named} is under way: wait for its end, and refund it instead"
            return Rejection("under-way", said)
    if left == 0:
        more = "; what is under way takes the rest" if view.busy(payment, request.kind) else ""
        said = f"nothing is left to {request.kind} of {named} ({has}{more})"
        hint = {
            "capture": ": read the checkout again",
            "refund": ": only captured money is refunded; a reservation is released",
            "release": ": captured money is refunded instead",
        }[request.kind]
        return Rejection("nothing-left", said + hint, None if request.amount is None else "amount")
    if request.amount is not None and request.amount > left:
        said = (
            f"{_amount(request.amount, payment)} is more than the {_amount(left, payment)} that is left to {request.kind} of {named} "
            f"({has}): ask for {_amount(left, payment)} at most"
        )
        return Rejection("too-much", said, "amount", {"left": money.decimal_or_none(left, payment.currency)})
    return None


def _books(payment: PaymentView) -> str:
    names: tuple[Any, ...] = (
        ("reserved", payment.reserved),
        ("captured", payment.captured),
        ("refunded", payment.refunded),
        ("charged back", payment.charged_back),
    )
    told = [f"{name} {_amount(minor, payment)}" for name, minor in names if minor]
    return ", ".join(told) or "it holds no money"


def _amount(minor: int, payment: PaymentView) -> str:
    return money.spelled(minor, payment.currency)


def _word(state: State) -> str:
    return state.value.replace("_", " ")

"""The state of the gateway: sessions, payments, their transactions, and the money on each.

The only module that changes money. Every change is marked in the store before it returns; callers answer
after `Store.flushed`. Amounts are minor units. A payment is one `POST /payment`; a transaction comes into
being when the shopper submits, and a new one with each further try on the same page, so an abandoned page
leaves no transaction. As in the vendor's fixtures, ReservedAmount is not reduced by capture, release or
refund; `held_minor` is.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrator.devkit.sandbox.methods import Method, MethodKind
from orchestrator.devkit.sandbox.rules import AuthorizationResult, Outcome
from orchestrator.domain import money

if TYPE_CHECKING:
    from decimal import Decimal

    from orchestrator.devkit.sandbox.store import Store

FIRST_TRANSACTION = 539_101


class Session(msgspec.Struct):
    """One checkout session: `body` is the JSON as merged from POST and PUTs, the rest is read from it."""

    session_id: str
    body: bytes
    created_at: float
    order_id: str | None = None
    currency: str | None = None
    amount_minor: int | None = None
    country: str | None = None


class Delivery(msgspec.Struct):
    """One callback as it was sent, or kept back (`note`)."""

    kind: str
    status: str
    sent_at: float
    transaction_id: str | None = None
    answer_status: int | None = None
    note: str | None = None


class Reconciliation(msgspec.Struct):
    """One movement of money with the merchant's name for it; `echoed` where the method shows that name."""

    identifier: str
    amount_minor: int
    type: str
    at: float
    unique_id: str
    echoed: bool = True


class Movement(msgspec.Struct):
    """A movement of a transaction's money, by whom, under the merchant's name for it (or "")."""

    type: str  # captured, refunded, released, charged_back, chargeback_reversed
    amount_minor: int
    identifier: str
    by: str  # merchant or gateway
    at: float


class Transaction(msgspec.Struct):
    """One attempt to pay, with the money that it moved."""

    transaction_id: str
    status: str
    created_at: float
    updated_at: float
    outcome: str = Outcome.OPEN
    masked_pan: str = ""
    expiry: str = ""
    token: str = ""
    three_d_secure: str = "Not_Applicable"
    message: str = ""
    merchant_message: str = ""
    must_show: bool = False
    fraud_recommendation: str = ""
    fraud_score: int = 0
    fraud_explanation: str = ""
    reserved_minor: int = 0
    captured_minor: int = 0
    refunded_minor: int = 0
    reconciliation: list[Reconciliation] = []
    chargebacks: list[tuple[float, int]] = []
    """When and how much; a reversal is less than 0."""
    movements: list[Movement] = []

    @property
    def charged_back_minor(self) -> int:
        """What the shopper's bank took back and did not return."""
        return sum(minor for _, minor in self.chargebacks)

    @property
    def held_minor(self) -> int:
        """What the shopper is out of: reservations and captures, less what came back."""
        if self.status == "released":
            return 0
        kept = max(self.reserved_minor, self.captured_minor)
        return kept - self.refunded_minor - self.charged_back_minor


class Payment(msgspec.Struct):
    """One `POST /payment`: what was ordered at that moment and what became of it."""

    payment_id: str
    session_id: str
    order_id: str
    terminal: str
    kind: str
    nature: str
    currency: str
    amount_minor: int
    auto_capture: bool
    created_at: float
    body_format: str = "XML"
    customer: dict[str, Any] = {}
    transaction_info: dict[str, str] = {}
    callbacks: dict[str, str] = {}
    echoes_reconciliation: bool = True
    echoes_infos: bool = True
    leaves_capture: bool = False
    """autoCapture was asked for, and the gateway leaves it to the merchant all the same
    (`require_capture`).
    """
    reserved_seconds: float | None = None
    """How long a reservation is held; None: as the card's scheme has it."""
    transactions: list[Transaction] = []
    deliveries: list[Delivery] = []

    @property
    def amount(self) -> Decimal:
        return money.to_decimal(self.amount_minor, self.currency)

    @property
    def latest(self) -> Transaction | None:
        """The newest attempt, if the shopper submitted anything yet."""
        return self.transactions[-1] if self.transactions else None

    @property
    def paid(self) -> Transaction | None:
        return next((each for each in self.transactions if each.outcome == Outcome.SUCCEEDED), None)

    @property
    def echoed_infos(self) -> dict[str, str]:
        """What callbacks and answers show of `transactionInfo`."""
        return self.transaction_info if self.echoes_infos else {}

    @property
    def type(self) -> str:
        """The payment request type of the callbacks (part 3)."""
        return "paymentAndCapture" if self.auto_capture else "payment"


class Order(msgspec.Struct):
    """All that happened under one order number; `number` is its place in the ledger."""

    order_id: str
    number: int
    sessions: list[str] = []
    payments: list[str] = []


class Books:
    """Everything by its keys, in memory, written through to the store."""

    def __init__(self, store: Store, *, seed: int) -> None:
        self._store = store
        self._seed = seed
        self.sessions: dict[str, Session] = {}
        self.payments: dict[str, Payment] = {}
        self.orders: dict[str, Order] = {}
        self.by_transaction: dict[str, Payment] = {}
        self._orders_by_age: list[Order] = []
        self._next_transaction = FIRST_TRANSACTION
        for _, packed in store.load("session"):
            self._index_session(msgspec.msgpack.decode(packed, type=Session))
        for _, packed in store.load("payment"):
            self._index_payment(msgspec.msgpack.decode(packed, type=Payment))

    # Sessions

    def open_session(self, body: bytes, **facts: Any) -> Session:
        """Create a session; its id depends on seed, order number and the sessions before."""
        order_id: str | None = facts.get("order_id")
        order = self.orders.get(order_id) if order_id else None
        nth = len(order.sessions) if order else (0 if order_id else len(self.sessions))
        session_id = self._new_id("session", order_id, nth, self.sessions)
        session = Session(session_id=session_id, body=body, created_at=time.time(), **facts)
        self._index_session(session)
        self._store.put("session", session_id, session)
        return session

    def change_session(self, session: Session, body: bytes, **facts: Any) -> None:
        """Replace a session's content; the order number may change by this (C1)."""
        session.body = body
        for name, value in facts.items():
            setattr(session, name, value)
        self._index_session(session)
        self._store.put("session", session.session_id, session)

    def lose_session(self, session_id: str) -> bool:
        """Delete a session, as if it had expired; return whether there was one."""
        if self.sessions.pop(session_id, None) is None:
            return False
        self._store.remove("session", session_id)
        return True

    # Payments

    def open_payment(self, session_id: str, method: Method, **facts: Any) -> Payment:
        """Create a payment for a complete session, or for none (""), as another system would."""
        order_id = facts["order_id"]
        nth = len(self.order(order_id).payments)
        payment = Payment(
            payment_id=self._new_id("payment", order_id, nth, self.payments),
            session_id=session_id,
            terminal=method.terminal,
            kind=method.kind,
            nature=method.nature,
            created_at=time.time(),
            echoes_reconciliation=method.echoes_reconciliation,
            **facts,
        )
        self._index_payment(payment)
        self._store.put("payment", payment.payment_id, payment)
        return payment

    def start_attempt(self, payment: Payment, *, masked_pan: str = "", expiry: str = "") -> Transaction:
        """Begin a transaction: the shopper has submitted something."""
        now = time.time()
        number = str(self._next_transaction)
        self._next_transaction += 1
        digest = hashlib.sha256(f"{self._seed}/{masked_pan}/{payment.order_id}".encode()).hexdigest()
        transaction = Transaction(
            transaction_id=number,
            status="created",
            outcome=Outcome.CHALLENGED,
            created_at=now,
            updated_at=now,
            masked_pan=masked_pan,
            expiry=expiry,
            token=digest[:40] if masked_pan else "",
            three_d_secure="Not_Attempted" if masked_pan else "Not_Applicable",
        )
        payment.transactions.append(transaction)
        self.by_transaction[number] = payment
        self.touch(payment)
        return transaction

    def conclude(self, payment: Payment, transaction: Transaction, verdict: AuthorizationResult) -> None:
        """End an attempt as acquirer or bank decided; before captures money moves only here."""
        transaction.outcome = verdict.outcome
        transaction.status = verdict.status or _status_of(payment, verdict.outcome)
        transaction.message = verdict.message
        transaction.merchant_message = verdict.merchant_message
        transaction.must_show = verdict.must_show
        if verdict.fraud is not None:
            transaction.fraud_recommendation = verdict.fraud.recommendation
            transaction.fraud_score = verdict.fraud.score
            transaction.fraud_explanation = verdict.fraud.explanation
        if verdict.outcome is Outcome.SUCCEEDED:
            transaction.reserved_minor = payment.amount_minor
            if transaction.status in {"captured", "bank_payment_finalized"}:
                transaction.captured_minor = payment.amount_minor
                self._note(transaction, "captured", payment.amount_minor)
        transaction.updated_at = time.time()
        self.touch(payment)

    def capture(self, payment: Payment, transaction: Transaction, minor: int, *, identifier: str) -> None:
        """Take part or all of a reservation for the merchant; the caller has checked that it may."""
        transaction.captured_minor += minor
        transaction.status = "captured"
        self._reconcile(payment, transaction, "captured", minor, identifier=identifier, by="merchant")

    def refund(
        self, payment: Payment, transaction: Transaction, minor: int, *, identifier: str, by: str
    ) -> None:
        """Give back part or all of what was captured; the caller has checked that it may."""
        transaction.refunded_minor += minor
        transaction.status = "bank_payment_refunded" if payment.kind == MethodKind.BANK else "refunded"
        self._reconcile(payment, transaction, "refunded", minor, identifier=identifier, by=by)

    def release(self, payment: Payment, transaction: Transaction, *, by: str) -> None:
        """Let a reservation go; ReservedAmount stays as it was (C12 fixtures)."""
        transaction.status = "released"
        self._note(transaction, "released", transaction.reserved_minor, by=by)
        self.touch(payment)

    def charge_back(self, payment: Payment, transaction: Transaction, minor: int) -> None:
        """Book a chargeback against a captured transaction, or a reversal (less than 0)."""
        transaction.chargebacks.append((time.time(), minor))
        self._note(transaction, "charged_back" if minor > 0 else "chargeback_reversed", abs(minor))
        self.touch(payment)

    def touch(self, payment: Payment) -> None:
        self._store.put("payment", payment.payment_id, payment)

    # Reading

    def order(self, order_id: str) -> Order:
        """Return the entry of an order number, made at its first use."""
        order = self.orders.get(order_id)
        if order is None:
            order = self.orders[order_id] = Order(order_id=order_id, number=len(self._orders_by_age) + 1)
            self._orders_by_age.append(order)
        return order

    def payments_of(self, order: Order) -> list[Payment]:
        return [self.payments[each] for each in order.payments]

    def orders_after(self, number: int, limit: int) -> list[Order]:
        return self._orders_by_age[max(number, 0) : max(number, 0) + limit]

    def _index_session(self, session: Session) -> None:
        self.sessions[session.session_id] = session
        if session.order_id is not None:
            order = self.order(session.order_id)
            if session.session_id not in order.sessions:
                order.sessions.append(session.session_id)

    def _index_payment(self, payment: Payment) -> None:
        self.payments[payment.payment_id] = payment
        self.order(payment.order_id).payments.append(payment.payment_id)
        for transaction in payment.transactions:
            self.by_transaction[transaction.transaction_id] = payment
            self._next_transaction = max(self._next_transaction, int(transaction.transaction_id) + 1)

    def _new_id(self, purpose: str, order_id: str | None, nth: int, taken: dict[str, Any]) -> str:
        while True:
            digest = hashlib.sha256(f"{self._seed}/{purpose}/{order_id or ''}/{nth}".encode()).digest()
            candidate = str(uuid.UUID(bytes=digest[:16], version=4))
            if candidate not in taken:
                return candidate
            nth += 1

    def _note(
        self, transaction: Transaction, kind: str, minor: int, *, identifier: str = "", by: str = "gateway"
    ) -> None:
        transaction.updated_at = time.time()
        transaction.movements.append(Movement(kind, minor, identifier, by, transaction.updated_at))

    def _reconcile(
        self, payment: Payment, transaction: Transaction, kind: str, minor: int, *, identifier: str, by: str
    ) -> None:
        self._note(transaction, kind, minor, identifier=identifier, by=by)
        nth = len(transaction.reconciliation)
        unique = self._new_id(f"reconciliation/{transaction.transaction_id}", payment.order_id, nth, {})
        transaction.reconciliation.append(
            Reconciliation(
                identifier=identifier or unique,
                amount_minor=minor,
                type=kind,
                at=transaction.updated_at,
                unique_id=unique,
                echoed=payment.echoes_reconciliation,
            )
        )
        self.touch(payment)


def _status_of(payment: Payment, outcome: Outcome) -> str:
    """Return the TransactionStatus (part 3) that an outcome means for a kind of method."""
    card = payment.kind == MethodKind.CARD
    match outcome:
        case Outcome.SUCCEEDED if payment.kind == MethodKind.BANK:
            return "bank_payment_finalized"
        case Outcome.SUCCEEDED if payment.kind == MethodKind.INVOICE:
            return "invoice_initialized"  # an invoice is captured when goods are sent, never by itself
        case Outcome.SUCCEEDED:
            return "captured" if payment.auto_capture and not payment.leaves_capture else "preauth"
        case Outcome.CANCELLED:
            return "preauth_failed" if card else "epayment_cancelled"
        case Outcome.DECLINED:
            return "preauth_failed" if card else "epayment_declined"
        case Outcome.FAILED:
            return "preauth_failed"
        case Outcome.ERROR:
            return "preauth_error"
        case Outcome.OPEN:
            return "pending"
        case Outcome.CHALLENGED:
            return "created"

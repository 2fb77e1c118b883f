"""The ledger as the control API shows it: what became of each payment's money."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any, Final

from orchestrator.devkit.sandbox.books import Transaction

if TYPE_CHECKING:
    from orchestrator.devkit.sandbox.books import Order, Payment


def entry(order: Order, payments: list[Payment]) -> dict[str, Any]:
    rows = [row for payment in payments for row in rows_of(payment)]
    return {"orderId": order.order_id, "sessions": order.sessions, "payments": rows}


_AMOUNTS: Final = ("reserved_minor", "captured_minor", "refunded_minor", "charged_back_minor", "held_minor")


def _fields(document: object, *names: str) -> dict[str, Any]:
    """Return fields of a document under their names in JSON."""
    return {_camel(name): getattr(document, name) for name in names}


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def rows_of(payment: Payment) -> list[dict[str, Any]]:
    """Return a row for each transaction, or one without a `transactionId` before the first submission."""
    shared = {
        **_fields(payment, "payment_id", "order_id", "terminal", "currency", "amount_minor"),
        "sessionId": payment.session_id or None,
        "checkout": payment.transaction_info.get("checkout"),
    }
    transactions = payment.transactions or [
        Transaction("", "initiated", payment.created_at, payment.created_at, outcome="")
    ]
    return [
        {
            **shared,
            **_fields(each, "status", *_AMOUNTS),
            "transactionId": each.transaction_id or None,
            "outcome": each.outcome or None,
            "movements": [
                {**_fields(movement, "type", "amount_minor", "identifier", "by"), "at": _iso(movement.at)}
                for movement in each.movements
            ],
            "createdAt": _iso(each.created_at),
            "callbacks": _callbacks(payment, each),
        }
        for each in transactions
    ]


def _callbacks(payment: Payment, transaction: Transaction) -> list[dict[str, Any]]:
    """Return a transaction's callbacks; the `new` of the payment stands with its first transaction."""
    number = transaction.transaction_id
    first = not payment.transactions or transaction is payment.transactions[0]
    return [
        {**_fields(each, "kind", "status", "answer_status", "note"), "sentAt": _iso(each.sent_at)}
        for each in payment.deliveries
        if each.transaction_id == number or (first and each.transaction_id is None)
    ]


def totals(payments: list[Payment]) -> dict[str, Any]:
    currencies: dict[str, dict[str, int]] = {}
    for payment in payments:
        sums = currencies.setdefault(
            payment.currency, dict.fromkeys(("transactions", *map(_camel, _AMOUNTS)), 0)
        )
        for each in payment.transactions:
            sums["transactions"] += 1
            for name in _AMOUNTS:
                sums[_camel(name)] += getattr(each, name)
    callbacks = sum(len(payment.deliveries) for payment in payments)
    return {"payments": len(payments), "callbacks": callbacks, "currencies": currencies}


def _iso(moment: float) -> str:
    return dt.datetime.fromtimestamp(moment, dt.UTC).isoformat(timespec="milliseconds")

"""The ledger as the control API shows it: what became of each payment's money."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from orchestrator.devkit.sandbox.books import Order, Payment, Transaction


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
    """Return one row for each transaction, or one with `transactionId` null while the shopper has not
    submitted.
    """
    shared = {
        **_fields(payment, "payment_id", "order_id", "terminal", "currency", "amount_minor"),
        "sessionId": payment.session_id or None,
        "checkout": payment.transaction_info.get("checkout"),
    }
    rows: list[dict[str, Any]] = [
        {
            **_fields(each, "transaction_id", "status", "outcome", *_AMOUNTS),
            "movements": [
                {**_fields(movement, "type", "amount_minor", "identifier", "by"), "at": _iso(movement.at)}
                for movement in each.movements
            ],
            "createdAt": _iso(each.created_at),
            "callbacks": _callbacks(payment, each),
        }
        for each in payment.transactions
    ] or [
        {
            "transactionId": None,
            "status": "initiated",
            "outcome": None,
            **dict.fromkeys(map(_camel, _AMOUNTS), 0),
            "movements": [],
            "createdAt": _iso(payment.created_at),
            "callbacks": _callbacks(payment, None),
        }
    ]
    return [{**shared, **row} for row in rows]


def _callbacks(payment: Payment, transaction: Transaction | None) -> list[dict[str, Any]]:
    """Return a transaction's callbacks; the `new` of the payment stands with its first transaction."""
    number = transaction.transaction_id if transaction is not None else None
    first = transaction is None or transaction is payment.transactions[0]
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

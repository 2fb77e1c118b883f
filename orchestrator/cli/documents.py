"""Checkouts and payments as the JSON of commands; amounts in minor units of the currency beside them.

Nothing of the customer and no secret is in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.domain import sentences

if TYPE_CHECKING:
    from sqlalchemy import Row

    from orchestrator.domain.attention import Attention
    from orchestrator.domain.command_result import CommandResult
    from orchestrator.domain.last_error import LastError
    from orchestrator.domain.records import Command, Operation
    from orchestrator.store.free_text import Reasons
    from orchestrator.store.read_model import CheckoutSummary


def coded(value: Attention | LastError | CommandResult | None, **more: object) -> dict[str, object] | None:
    """Return a code with its sentence and facts."""
    if value is None:
        return None
    return {"code": value.code, "message": sentences.of(value), "facts": value.facts, **more}


def facts_of(row: CheckoutSummary, merchant: str) -> dict[str, object]:
    """Return a checkout as data; amounts in minor units of the currency beside them."""
    asked = row.attention
    payments = [
        {"transactionId": payment.transaction_id, "amount": payment.amount, "currency": payment.currency}
        for payment in (() if asked is None else (*asked.payments, *asked.beside))
    ]
    return {
        "id": row.id,
        "orderId": row.order_ref,
        "merchant": merchant,
        "state": row.state,
        "paymentStatus": row.payment_status,
        "late": row.late,
        "amount": row.amount,
        "currency": row.currency,
        "reserved": row.reserved,
        "captured": row.captured,
        "refunded": row.refunded,
        "chargedBack": row.charged_back,
        "createdAt": row.created_at,
        "deadline": row.deadline,
        "endedAt": row.ended_at,
        "dueAt": row.due_at,
        "attention": coded(asked, since=row.attention_since, payments=payments),
        "lastError": coded(row.last_error),
    }


def operation_facts(row: Operation) -> dict[str, object]:
    """Return a money operation as data."""
    return {
        "id": row.id,
        "kind": row.kind,
        "transactionId": row.transaction_id,
        "amount": row.amount,
        "currency": row.currency,
        "state": row.state,
        "cause": row.cause,
        "commandId": row.command_id,
        "requestedAt": row.requested_at,
        "settledAt": row.settled_at,
        "error": coded(row.last_error),
    }


def command_facts(row: Command, reasons: Reasons) -> dict[str, object]:
    """Return a command as data; its reason only where the key of the checkout decrypts it."""
    return {
        "id": row.id,
        "kind": row.kind,
        "actor": row.actor,
        "reason": reasons.shown(row.reason),
        "requestedAt": row.requested_at,
        "handledAt": row.handled_at,
        "result": coded(row.result),
    }


def payment_facts(row: Row[tuple[object, ...]], merchant: str) -> dict[str, object]:
    """Return a payment as data; `raw` has what the gateway wrote for amounts that cannot be read."""
    return {
        "transactionId": row.transaction_id,
        "merchant": merchant,
        "orderId": row.order_ref,
        "checkoutId": row.checkout_id,
        "role": row.role,
        "status": row.status,
        "meaning": row.meaning,
        "currency": row.currency,
        "reserved": row.reserved,
        "captured": row.captured,
        "refunded": row.refunded,
        "chargedBack": row.charged_back,
        "raw": row.raw_amounts,
        "firstSeenAt": row.first_seen_at,
    }

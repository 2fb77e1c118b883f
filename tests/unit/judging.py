"""A checkout of 139.00 DKK as its holder has it, and transactions as the gateway shows them, for tests of
what a lookup proves.
"""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from orchestrator.domain.claimed_checkout import ClaimedCheckout
from orchestrator.domain.records import PaymentRecord
from orchestrator.domain.states import State
from orchestrator.domain.transaction import Transaction

OURS = UUID("0190a5a0-0000-7000-8000-000000000001")
ANOTHERS = UUID("0190a5a0-0000-7000-8000-000000000002")
NOW = datetime(2026, 1, 2, tzinfo=UTC)


def checkout(**changes):
    values = {
        "id": OURS,
        "merchant_id": 1,
        "order_ref": "T-1",
        "state": State.AWAITING_PAYMENT,
        "version": 5,
        "lease": OURS,
        "wake": 0,
        "currency": "DKK",
        "amount": 13900,
        "reserved": 0,
        "captured": 0,
        "refunded": 0,
        "late": False,
        "deadline": NOW,
        "offered_at": NOW,
        "cancel_requested_at": None,
        "ended_at": None,
        "claims": 1,
        "attempts": 0,
        "lookups": 0,
        "session_count": 1,
        "last_error": None,
        "attention": None,
        "correlation_id": "c",
        "audit_sequence": 5,
        "audit_head": b"h" * 32,
        "event_sequence": 1,
        "token": None,
        "token_expires_at": None,
        "session_id": "s",
        "methods": None,
        "intent": None,
        "data_key": None,
        "charged_back": 0,
        "reserved_until": None,
        "auto_capture": False,
        "require_capture": False,
        "slot_reserved": False,
        "expires_in": None,
        "claimed_at": NOW,
        "claimed_tick": 0.0,
        "lease_ends": 60.0,
        **changes,
    }
    return ClaimedCheckout(**values)


def known(name, role="accepted", *, meaning="reserved", amounts=(13900, 0, 0), decided=None):
    return PaymentRecord(name, role, "bound", meaning, "DKK", *amounts, 0, decided)


def transaction(name, status, amounts=(0, 0, 0), *, bound=OURS, **changes):
    reserved, captured, refunded = amounts
    values = {
        "transaction_id": name,
        "payment_id": f"p-{name}",
        "order_ref": "T-1",
        "status": status,
        "currency": "DKK",
        "reserved": reserved,
        "captured": captured,
        "refunded": refunded,
        "credited": 0,
        "created_at": f"2026-01-02 03:04:{name:>02}",
        "payment_infos": {} if bound is None else {"checkout": str(bound)},
        **changes,
    }
    return Transaction(**values)

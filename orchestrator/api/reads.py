"""What may be read of a checkout, in the words of the contract. Reads only, always of one merchant, never another's.

Amounts leave as decimals of their currency. The session with its token is shown only while the shopper may pay with it: offered,
not withdrawn nor about to be, before the deadline, and with a token that has not expired.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec
from sqlalchemy import select, text, union_all

from orchestrator import log, money
from orchestrator.models import IS_LIVE, IS_OPEN, checkouts
from orchestrator.states import CLOSED, ENDED, State
from orchestrator.vault import VaultError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from sqlalchemy import Row, Select

    from orchestrator.db import Database
    from orchestrator.vault import Vault

_log = log.get(__name__)

OFFERED: Final = frozenset({State.AWAITING_PAYMENT, State.CALLBACK_RECEIVED})

_ONE = text("""
    SELECT c.id, c.order_ref, c.state, c.version, c.currency, c.amount, c.reserved, c.captured, c.refunded, c.late,
           c.deadline, c.due_at, c.offered_at, c.withdrawn_at, c.ended_at, c.attention, c.last_error, c.correlation_id,
           c.created_at, c.updated_at, clock() AS now,
           EXISTS (SELECT FROM commands k
                    WHERE k.checkout_id = c.id AND k.kind = 'cancel' AND k.handled_at IS NULL) AS cancelling,
           s.session_id, s.token, s.token_expires_at, s.methods, i.data_key,
           (SELECT json_agg(json_build_object(
                       'transactionId', p.transaction_id, 'paymentId', p.payment_id, 'role', p.role, 'binding', p.binding,
                       'status', p.status, 'reading', p.reading, 'currency', p.currency, 'reserved', p.reserved,
                       'captured', p.captured, 'refunded', p.refunded, 'flags', p.flags, 'firstSeenAt', p.first_seen_at,
                       'updatedAt', p.updated_at) ORDER BY p.first_seen_at, p.transaction_id)
              FROM payments p WHERE p.checkout_id = c.id) AS payments
      FROM checkouts c LEFT JOIN sessions s ON s.checkout_id = c.id LEFT JOIN intents i ON i.checkout_id = c.id
     WHERE c.id = :id AND c.merchant_id = :merchant_id
""")
_STANDING = text("""
    SELECT c.id, c.order_ref, c.state, c.version,
           c.withdrawn_at IS NOT NULL OR EXISTS (
               SELECT FROM commands k
                WHERE k.checkout_id = c.id AND k.kind = 'cancel' AND k.handled_at IS NULL) AS cancelling
      FROM checkouts c WHERE c.id = :id AND c.merchant_id = :merchant_id
""")
_AUDIT = text("""
    SELECT a.sequence, a.entry, a.key_id, a.mac
      FROM checkouts c LEFT JOIN LATERAL (
           SELECT sequence, entry, key_id, mac FROM audit_entries
            WHERE checkout_id = c.id AND sequence > :after ORDER BY sequence LIMIT :most) a ON true
     WHERE c.id = :id AND c.merchant_id = :merchant_id ORDER BY a.sequence
""")
_WORKERS = text("""
    SELECT count(*) AS alive FROM workers WHERE kind = 'worker' AND seen_at > clock() - make_interval(secs => :seconds)
""")

_c = checkouts.c
_SUMMARY: Final = (
    _c.id, _c.order_ref, _c.state, _c.version, _c.currency, _c.amount, _c.reserved, _c.captured, _c.refunded, _c.late,
    _c.deadline, _c.due_at, _c.offered_at, _c.withdrawn_at, _c.ended_at, _c.attention, _c.last_error, _c.correlation_id,
    _c.created_at, _c.updated_at,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a checkout stands, for whoever wants to change it. `cancelling`: somebody asked for that already."""

    id: UUID
    order_ref: str
    state: State
    version: int
    cancelling: bool


async def checkout(
    db: Database, vault: Vault, merchant_id: int, checkout_id: UUID
) -> dict[str, object] | None:
    """Return everything about one checkout, or None if the merchant has none of this id."""
    rows = await db.read(_ONE, {"id": checkout_id, "merchant_id": merchant_id})
    if not rows:
        return None
    row = rows[0]
    session = _session(row, vault)
    return {
        **_summary(row),
        "session": session,
        "paymentMethods": row.methods if session is not None and row.methods else [],
        "payments": [_payment(payment) for payment in row.payments or ()],
        "correlationId": row.correlation_id,
        "links": links_of(row.id),
    }


async def page(
    db: Database,
    merchant_id: int,
    *,
    order_ref: str | None = None,
    states: Sequence[State] = (),
    attention: bool | None = None,
    before: UUID | None = None,
    limit: int,
) -> tuple[list[dict[str, object]], UUID | None]:
    """Return one page of a merchant's checkouts, the youngest first, and the cursor of the next (None: this is the last)."""
    wanted = select(*_SUMMARY).where(_c.merchant_id == merchant_id)
    if attention is not None:
        wanted = wanted.where(_c.attention.is_not(None) if attention else _c.attention.is_(None))
    if before is not None:
        wanted = wanted.where(_c.id < before)
    wanted = wanted.order_by(_c.id.desc()).limit(limit + 1)
    parts = _by_index(wanted, order_ref, frozenset(states))
    if len(parts) > 1:
        both = union_all(*(part.subquery().select() for part in parts)).subquery("found")
        rows = await db.read(select(both).order_by(both.c.id.desc()).limit(limit + 1))
    else:
        rows = await db.read(parts[0])
    more = rows[limit - 1].id if len(rows) > limit else None
    return [{**_summary(row), "links": links_of(row.id)} for row in rows[:limit]], more


def _by_index(wanted: Select[Any], order_ref: str | None, states: frozenset[State]) -> list[Select[Any]]:
    """Return what is wanted in parts, each in the very words of a partial index: through parameters the planner sees none."""
    if order_ref is not None:
        mine = wanted.where(_c.order_ref == order_ref)
        if states:
            mine = mine.where(_c.state.in_(sorted(states)))
        return [mine.where(text(IS_LIVE)), mine.where(text(f"NOT ({IS_LIVE})"))]
    if not states:
        return [wanted]
    groups = (
        (states - ENDED, IS_OPEN),
        (states & CLOSED, f"NOT ({IS_LIVE})"),
        (states & ENDED - CLOSED, "true"),
    )
    return [wanted.where(_c.state.in_(sorted(group)), text(words)) for group, words in groups if group]


async def standing(db: Database, merchant_id: int, checkout_id: UUID) -> Standing | None:
    """Return where a checkout stands, or None if the merchant has none of this id."""
    rows = await db.read(_STANDING, {"id": checkout_id, "merchant_id": merchant_id})
    if not rows:
        return None
    row = rows[0]
    return Standing(row.id, row.order_ref, State(row.state), row.version, row.cancelling)


async def audit(
    db: Database, merchant_id: int, checkout_id: UUID, *, after: int, limit: int
) -> tuple[list[dict[str, object]], int | None] | None:
    """Return audit entries after a number, and the number to go on after; None if the merchant has no such checkout."""
    asked = {"id": checkout_id, "merchant_id": merchant_id, "after": after, "most": limit + 1}
    rows = await db.read(_AUDIT, asked)
    if not rows:
        return None
    entries = [_entry(row) for row in rows[:limit] if row.sequence is not None]
    return entries, (rows[limit - 1].sequence if len(rows) > limit else None)


async def workers_alive(db: Database, *, within: float) -> int:
    """Return how many workers were seen within so many seconds."""
    return int((await db.read(_WORKERS, {"seconds": within}))[0].alive)


def links_of(checkout_id: UUID) -> dict[str, str]:
    """Return where to go on from a checkout; paths, because a merchant may know us by another name than the gateway does."""
    own = f"/v1/checkouts/{checkout_id}"
    return {"self": own, "cancel": f"{own}/cancel", "audit": f"{own}/audit"}


def _summary(row: Row[Any]) -> dict[str, object]:
    currency: str = row.currency
    return {
        "id": row.id,
        "orderId": row.order_ref,
        "state": row.state,
        "outcome": _outcome(State(row.state)),
        "late": row.late,
        "amount": {"value": money.to_decimal(row.amount, currency), "currency": currency},
        "money": {
            name: money.to_decimal(minor, currency)
            for name, minor in (
                ("reserved", row.reserved),
                ("captured", row.captured),
                ("refunded", row.refunded),
            )
        },
        "deadline": row.deadline,
        "dueAt": row.due_at,
        "offeredAt": row.offered_at,
        "withdrawnAt": row.withdrawn_at,
        "endedAt": row.ended_at,
        "attention": row.attention,
        "lastError": row.last_error,
        "version": row.version,
        "createdAt": row.created_at,
        "updatedAt": row.updated_at,
    }


def _outcome(state: State) -> str | None:
    """Return how it ended, in the merchant's words; None while it has not."""
    if state not in ENDED:
        return None
    return "paid" if state is State.COMPLETED else state.value


def _session(row: Row[Any], vault: Vault) -> dict[str, object] | None:
    offered = (
        State(row.state) in OFFERED
        and row.session_id is not None
        and row.token is not None
        and row.withdrawn_at is None
        and not row.cancelling
        and row.deadline > row.now
        and row.token_expires_at > row.now
    )
    if not offered:
        return None
    try:
        token = vault.data_key(row.id, row.data_key).open(row.token, purpose="token").decode()
    except VaultError as error:
        _log.warning("session_sealed_for_good", checkout=str(row.id), error=str(error))
        return None
    return {"id": row.session_id, "token": token, "expiresAt": row.token_expires_at}


def _payment(payment: dict[str, Any]) -> dict[str, object]:
    currency = payment["currency"]
    amounts = {
        name: money.to_decimal(payment[name], currency) for name in ("reserved", "captured", "refunded")
    }
    times = {name: datetime.fromisoformat(payment[name]) for name in ("firstSeenAt", "updatedAt")}
    return {**payment, **amounts, **times}


def _entry(row: Row[Any]) -> dict[str, object]:
    return {**msgspec.json.decode(row.entry), "keyId": row.key_id, "mac": bytes(row.mac).hex()}

"""What may be read of a checkout and of payments, in the words of the contract. Reads only, always of one merchant, never another's.

Amounts leave as decimals of their currency. The session with its token is shown only while the shopper may pay with it: offered,
not cancelled nor about to be, before the deadline, and with a token that has not expired.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec
from sqlalchemy import bindparam, or_, select, text, tuple_, union_all

from orchestrator import log
from orchestrator.api.contract import answers
from orchestrator.api.contract.values import made
from orchestrator.crypto import EncryptionError
from orchestrator.domain import attention, command_result, last_error, money, sentences
from orchestrator.domain.attention import AttentionCode
from orchestrator.domain.payment_status import GONE, PaymentStatus, condition, payment_status
from orchestrator.domain.states import CLOSED, ENDED, State
from orchestrator.store.tables import IS_LISTED, IS_LIVE, IS_OPEN, checkouts, payments

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from sqlalchemy import Row, Select

    from orchestrator.crypto import Encryptor
    from orchestrator.store.database import Database

_log = log.get(__name__)

OFFERED: Final = frozenset({State.AWAITING_PAYMENT, State.CALLBACK_RECEIVED})

_ONE = text("""
    SELECT c.id, c.order_ref, c.state, c.version, c.currency, c.amount, c.reserved, c.captured, c.refunded, c.charged_back,
           c.late, c.auto_capture, c.reserved_until, c.deadline, c.due_at, c.offered_at, c.cancel_requested_at, c.ended_at,
           c.attention, c.attention_details, c.attention_since, c.last_error, c.last_error_details, c.correlation_id, c.created_at, c.updated_at, clock() AS now,
           EXISTS (SELECT FROM commands k
                    WHERE k.checkout_id = c.id AND k.kind = 'cancel' AND k.handled_at IS NULL) AS cancelling,
           s.session_id, s.token, s.token_expires_at, s.methods, i.data_key,
           (SELECT max(a.at) FROM archived_heads h JOIN archives a ON a.sequence = h.archive
             WHERE h.checkout_id = c.id) AS archived_at,
           (SELECT json_agg(json_build_object(
                       'transactionId', p.transaction_id, 'paymentId', p.payment_id, 'role', p.role, 'binding', p.binding,
                       'status', p.status, 'meaning', p.meaning, 'currency', p.currency, 'reserved', p.reserved,
                       'captured', p.captured, 'refunded', p.refunded, 'chargedBack', p.charged_back,
                       'surcharge', p.surcharge, 'flags', p.flags, 'raw', p.raw_amounts,
                       'firstSeenAt', p.first_seen_at, 'updatedAt', p.updated_at)
                       ORDER BY p.first_seen_at, p.transaction_id)
              FROM payments p WHERE p.checkout_id = c.id) AS payments,
           (SELECT json_agg(json_build_object(
                       'id', o.id, 'kind', o.kind, 'transactionId', o.transaction_id, 'amount', o.amount,
                       'currency', o.currency, 'state', o.state, 'cause', o.cause,
                       'reconciliationIdentifier', o.reconciliation_identifier, 'commandId', o.command_id,
                       'requestedAt', o.requested_at, 'submittedAt', o.submitted_at, 'settledAt', o.settled_at,
                       'error', o.last_error, 'errorDetails', o.last_error_details) ORDER BY o.requested_at, o.id)
              FROM money_operations o WHERE o.checkout_id = c.id) AS operations,
           (SELECT json_agg(json_build_object(
                       'id', k.id, 'kind', k.kind, 'requestedAt', k.requested_at, 'handledAt', k.handled_at,
                       'result', k.result, 'resultDetails', k.result_details) ORDER BY k.requested_at, k.id)
              FROM (SELECT * FROM commands WHERE checkout_id = c.id ORDER BY requested_at DESC, id DESC LIMIT :most) k
           ) AS commands
      FROM checkouts c LEFT JOIN sessions s ON s.checkout_id = c.id LEFT JOIN intents i ON i.checkout_id = c.id
     WHERE c.id = :id AND c.merchant_id = :merchant_id
""")
_AUDIT = text("""
    SELECT a.sequence, a.entry, a.key_id, a.mac
      FROM checkouts c LEFT JOIN LATERAL (
           SELECT sequence, entry, key_id, mac FROM audit_entries
            WHERE checkout_id = c.id AND sequence > :after ORDER BY sequence LIMIT :most) a ON true
     WHERE c.id = :id AND c.merchant_id = :merchant_id ORDER BY a.sequence
""")
_ARCHIVED = text("""
    SELECT a.file, a.at, h.sequence FROM archived_heads h JOIN archives a ON a.sequence = h.archive
     WHERE h.checkout_id = :id ORDER BY h.sequence
""")
# Payments have no index by order number; their checkouts have, and payments of no checkout are few.
_OF_ORDER = text(f"""
    SELECT id FROM checkouts WHERE merchant_id = :merchant_id AND order_ref = :order_ref AND {IS_LIVE}
    UNION ALL
    SELECT id FROM checkouts WHERE merchant_id = :merchant_id AND order_ref = :order_ref AND NOT ({IS_LIVE})
""")  # noqa: S608 - made of our own constant

_c, _p = checkouts.c, payments.c
_SUMMARY: Final = (
    _c.id, _c.order_ref, _c.state, _c.version, _c.currency, _c.amount, _c.reserved, _c.captured, _c.refunded,
    _c.charged_back, _c.late, _c.auto_capture, _c.reserved_until, _c.deadline, _c.due_at, _c.offered_at, _c.cancel_requested_at,
    _c.ended_at, _c.attention, _c.attention_details, _c.attention_since, _c.last_error, _c.last_error_details, _c.correlation_id, _c.created_at, _c.updated_at,
)  # fmt: skip


async def checkout(
    db: Database, encryptor: Encryptor, merchant_id: int, checkout_id: UUID
) -> answers.Checkout | None:
    """Return everything about one checkout, or None if the merchant has none of this id."""
    rows = await db.read(
        _ONE, {"id": checkout_id, "merchant_id": merchant_id, "most": answers.COMMANDS_SHOWN}
    )
    if not rows:
        return None
    row = rows[0]
    session = _session(row, encryptor)
    return answers.Checkout(
        **_facts(row),
        session=session,
        payment_methods=row.methods if session is not None and row.methods else [],
        payments=[_payment(payment) for payment in row.payments or ()],
        operations=[_operation(operation) for operation in row.operations or ()],
        commands=[_command(command) for command in row.commands or ()],
        archived_at=row.archived_at,
        correlation_id=row.correlation_id,
        links=links_of(row.id),
    )


async def page(
    db: Database,
    merchant_id: int,
    *,
    order_ref: str | None = None,
    states: Sequence[State] = (),
    statuses: Sequence[PaymentStatus] = (),
    waiting: bool | AttentionCode | None = None,
    before: UUID | None = None,
    limit: int,
) -> answers.CheckoutPage:
    """Return one page of a merchant's checkouts, the youngest first, with the cursor of the next (None: this is the last).

    `waiting`: only those that wait for a decision, or for one of this code, or only the others.
    """
    wanted = select(*_SUMMARY).where(_c.merchant_id == merchant_id)
    among = frozenset(states)
    if statuses:
        wanted = wanted.where(text(condition(statuses)))
        among = (among or frozenset(State)) & _states_of(frozenset(statuses))
        if not among:
            return answers.CheckoutPage(checkouts=[], next_cursor=None)
    if isinstance(waiting, AttentionCode):
        # With the words of the partial index beside it: through a parameter the planner does not recognise it.
        wanted = wanted.where(_c.attention.is_not(None), _c.attention == waiting)
    elif waiting is not None:
        wanted = wanted.where(_c.attention.is_not(None) if waiting else _c.attention.is_(None))
    if before is not None:
        wanted = wanted.where(_c.id < before)
    wanted = wanted.order_by(_c.id.desc()).limit(limit + 1)
    parts = _by_index(wanted, order_ref, among)
    if len(parts) > 1:
        both = union_all(*(part.subquery().select() for part in parts)).subquery("found")
        rows = await db.read(select(both).order_by(both.c.id.desc()).limit(limit + 1))
    else:
        rows = await db.read(parts[0])
    more = rows[limit - 1].id if len(rows) > limit else None
    found = [answers.CheckoutSummary(**_facts(row), links=links_of(row.id)) for row in rows[:limit]]
    return answers.CheckoutPage(checkouts=found, next_cursor=more)


def _states_of(statuses: frozenset[PaymentStatus]) -> frozenset[State]:
    """Return the states that a checkout of one of these statuses can have: with them a part that cannot match is not read."""
    paid = frozenset({State.COMPLETED})
    if PaymentStatus.UNPAID not in statuses:
        return paid
    return frozenset(State) - paid if len(statuses) == 1 else frozenset(State)


def _by_index(wanted: Select[Any], order_ref: str | None, states: frozenset[State]) -> list[Select[Any]]:
    """Return what is wanted in parts, each in the very words of a partial index: through parameters the planner sees none."""
    if order_ref is not None:
        mine = wanted.where(_c.order_ref == order_ref)
        if states:
            mine = mine.where(_c.state.in_(sorted(states)))
        return [mine.where(text(IS_LIVE)), mine.where(text(f"NOT ({IS_LIVE})"))]
    if not states or len(states) == len(State):
        return [wanted.where(text(IS_LISTED))]
    groups = (
        (states - ENDED, IS_OPEN),
        (states & CLOSED, f"NOT ({IS_LIVE})"),
        (states & ENDED - CLOSED, IS_LISTED),
    )
    return [wanted.where(_c.state.in_(sorted(group)), text(words)) for group, words in groups if group]


async def payments_page(
    db: Database,
    merchant_id: int,
    *,
    role: answers.Role | None = None,
    order_ref: str | None = None,
    before: str | None = None,
    limit: int,
) -> answers.PaymentPage | None:
    """Return one page of a merchant's payments, the youngest first, with the cursor of the next (None: this is the last).

    None if `before` is no cursor of ours.
    """
    place = None if before is None else _place(before)
    if before is not None and place is None:
        return None
    wanted = select(payments).where(_p.merchant_id == merchant_id)
    if role is not None:
        # As a literal: through a parameter the planner would not see that a partial index will do.
        wanted = wanted.where(_p.role == bindparam("role", role, literal_execute=True))
    if order_ref is not None:
        named = {"merchant_id": merchant_id, "order_ref": order_ref}
        ids = [row.id for row in await db.read(_OF_ORDER, named)]
        wanted = wanted.where(
            _p.order_ref == order_ref, or_(_p.checkout_id.in_(ids), _p.checkout_id.is_(None))
        )
    if place is not None:
        wanted = wanted.where(tuple_(_p.first_seen_at, _p.transaction_id) < place)
    wanted = wanted.order_by(_p.first_seen_at.desc(), _p.transaction_id.desc()).limit(limit + 1)
    rows = await db.read(wanted)
    more = _cursor(rows[limit - 1]) if len(rows) > limit else None
    return answers.PaymentPage(payments=[_payment_alone(row) for row in rows[:limit]], next_cursor=more)


async def audit(
    db: Database, merchant_id: int, checkout_id: UUID, *, after: int, limit: int
) -> answers.AuditTrail | None:
    """Return audit entries after a number, the number to go on after, and where entries went that are not here any more.

    None if the merchant has no such checkout.
    """
    asked = {"id": checkout_id, "merchant_id": merchant_id, "after": after, "most": limit + 1}
    rows = await db.read(_AUDIT, asked)
    if not rows:
        return None
    archived = await db.read(_ARCHIVED, {"id": checkout_id})
    return answers.AuditTrail(
        checkout_id=checkout_id,
        entries=[_entry(row) for row in rows[:limit] if row.sequence is not None],
        next_after=rows[limit - 1].sequence if len(rows) > limit else None,
        archived=[answers.ArchivedTrail(until=one.sequence, file=one.file, at=one.at) for one in archived],
    )


def links_of(checkout_id: UUID) -> answers.Links:
    """Return where to go on from a checkout."""
    own = f"/v1/checkouts/{checkout_id}"
    return answers.Links(own=own, cancel=f"{own}/cancel", audit=f"{own}/audit", explain=f"{own}/explain")


def _facts(row: Row[Any]) -> dict[str, Any]:
    """Return what a list and a checkout alone both show."""
    currency: str = row.currency
    state = State(row.state)
    status = payment_status(
        state,
        reserved=row.reserved,
        captured=row.captured,
        refunded=row.refunded,
        charged_back=row.charged_back,
    )
    amounts = _valued(
        currency,
        {
            "amount": row.amount,
            "reserved": row.reserved,
            "captured": row.captured,
            "refunded": row.refunded,
            "chargedBack": row.charged_back,
        },
        None,
    )
    amount, raw = amounts.pop("amount"), amounts.pop("raw")
    error = last_error.stored(row.last_error, row.last_error_details)
    return {
        "id": row.id,
        "order_id": row.order_ref,
        "state": state,
        "outcome": _outcome(state, status),
        "payment_status": status,
        "late": row.late,
        "amount": answers.OrderAmount(value=amount, currency=currency),
        "raw": raw,
        "money": made(answers.HeldMoney, amounts),
        "auto_capture": row.auto_capture,
        "reserved_until": row.reserved_until,
        "deadline": row.deadline,
        "due_at": row.due_at,
        "offered_at": row.offered_at,
        "cancel_requested_at": row.cancel_requested_at,
        "ended_at": row.ended_at,
        "attention": _attention(row),
        "last_error": sentences.or_none(error),
        "last_error_code": None if error is None else error.code,
        "version": row.version,
        "created_at": row.created_at,
        "updated_at": row.updated_at,
    }


def _attention(row: Row[Any]) -> answers.Attention | None:
    asked = attention.stored(row.attention, row.attention_details)
    if asked is None:
        return None
    return answers.Attention(
        code=asked.code,
        message=sentences.of(asked),
        since=row.attention_since,
        payments=[
            answers.AttentionPayment(
                transaction_id=one.transaction_id,
                amount=None if one.amount is None else money.decimal_or_none(one.amount, one.currency),
                currency=one.currency,
            )
            for one in (*asked.payments, *asked.beside)
        ],
    )


def _outcome(state: State, status: PaymentStatus) -> str | None:
    """Return how it ended; None while it has not. Paid is only what still holds money; else the payment's status says it."""
    if state not in ENDED:
        return None
    if state is not State.COMPLETED:
        return state.value
    return status if status in GONE else "paid"


def _session(row: Row[Any], encryptor: Encryptor) -> answers.Session | None:
    offered = (
        State(row.state) in OFFERED
        and row.session_id is not None
        and row.token is not None
        and row.cancel_requested_at is None
        and not row.cancelling
        and row.deadline > row.now
        and row.token_expires_at > row.now
    )
    if not offered:
        return None
    try:
        token = encryptor.data_key(row.id, row.data_key).decrypt(row.token, purpose="token").decode()
    except EncryptionError as error:
        _log.warning("session_not_decryptable", checkout=str(row.id), error=str(error))
        return None
    return answers.Session(id=row.session_id, token=token, expires_at=row.token_expires_at)


def _payment(payment: dict[str, Any]) -> answers.Payment:
    amounts = {
        name: payment[name] for name in ("reserved", "captured", "refunded", "chargedBack", "surcharge")
    }
    read = {**payment, **_valued(payment["currency"], amounts, payment["raw"])}
    return made(answers.Payment, _timed(read, "firstSeenAt", "updatedAt"))


def _operation(operation: dict[str, Any]) -> answers.Operation:
    amount = money.decimal_or_none(operation["amount"], operation["currency"])
    error = last_error.stored(operation["error"], operation.pop("errorDetails"))
    read = {
        **operation,
        "amount": amount,
        "error": sentences.or_none(error),
        "errorCode": None if error is None else error.code,
    }
    return made(answers.Operation, _timed(read, "requestedAt", "submittedAt", "settledAt"))


def _command(command: dict[str, Any]) -> answers.Command:
    result = command_result.stored(command["result"], command.pop("resultDetails"))
    read = {
        **command,
        "result": sentences.or_none(result),
        "resultCode": None if result is None else result.code,
    }
    return made(answers.Command, _timed(read, "requestedAt", "handledAt"))


def _valued(currency: str, amounts: Mapping[str, int], raw: Mapping[str, str] | None) -> dict[str, Any]:
    """Return amounts as decimals, and `raw`, the texts of those that have none: null stands for what cannot be read, and never 0.

    `raw` are the gateway's own texts by name, if it wrote what cannot be read; without them an amount of a currency that is not
    known is told in minor units.
    """
    told, values = dict(raw or {}), {}
    for name, minor in amounts.items():
        value = None if name in told else money.decimal_or_none(minor, currency)
        if value is None and minor:
            told.setdefault(name, money.spelled(minor, currency))
        values[name] = value
    return {**values, "raw": told or None}


def _timed(row: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return a row of JSON from Postgres with these times in the form that all other times have."""
    return {**row, **{name: datetime.fromisoformat(row[name]) for name in names if row[name] is not None}}


def _payment_alone(row: Row[Any]) -> answers.PlacedPayment:
    """Return a payment as it stands alone, with the checkout that it belongs to, if it does to any."""
    amounts = {
        "reserved": row.reserved,
        "captured": row.captured,
        "refunded": row.refunded,
        "chargedBack": row.charged_back,
        "surcharge": row.surcharge,
    }
    return made(
        answers.PlacedPayment,
        _valued(row.currency, amounts, row.raw_amounts),
        transaction_id=row.transaction_id,
        payment_id=row.payment_id,
        checkout_id=row.checkout_id,
        order_id=row.order_ref,
        role=row.role,
        binding=row.binding,
        status=row.status,
        meaning=row.meaning,
        currency=row.currency,
        flags=row.flags,
        first_seen_at=row.first_seen_at,
        updated_at=row.updated_at,
    )


def _cursor(row: Row[Any]) -> str:
    """Return the place of a payment in the list; a text that goes into a URL as it is."""
    place = f"{row.first_seen_at.isoformat()} {row.transaction_id}"
    return urlsafe_b64encode(place.encode()).decode().rstrip("=")


def _place(cursor: str) -> tuple[datetime, str] | None:
    try:
        place = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
        at, _, transaction_id = place.partition(" ")
        moment = datetime.fromisoformat(at)
    except ValueError:
        return None
    return None if moment.tzinfo is None else (moment, transaction_id)


def _entry(row: Row[Any]) -> answers.AuditEntry:
    told = {**msgspec.json.decode(row.entry), "keyId": row.key_id, "mac": bytes(row.mac).hex()}
    try:
        return msgspec.convert(told, answers.AuditEntry)
    except msgspec.ValidationError:
        # Not in the words of the trail, which verification says: it is shown as it stands.
        return cast("answers.AuditEntry", told)

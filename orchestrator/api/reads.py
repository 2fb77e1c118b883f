"""Reads of checkouts and of payments, in the words of the contract.

Reads only, always of one merchant, never another's.

Amounts leave as decimals of their currency. The session with its token is shown only while the shopper may
pay with it: offered, not cancelled nor about to be, before the deadline, and with a token that has not
expired.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import fields
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import msgspec
from msgspec import Struct, structs

from orchestrator import log
from orchestrator.api.contract import answers
from orchestrator.api.contract.values import made
from orchestrator.crypto import EncryptionError
from orchestrator.domain import money, sentences
from orchestrator.domain.command_result import ResultCode
from orchestrator.domain.payment_status import GONE, PaymentStatus
from orchestrator.domain.records import Command, CommandKind, Operation, PaymentRecord, Role
from orchestrator.domain.states import ENDED, State
from orchestrator.store import read_model
from orchestrator.store.free_text import Reasons
from orchestrator.store.read_model import CheckoutRecord, CheckoutSummary, CommandRecord

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from sqlalchemy import Row

    from orchestrator.crypto import Encryptor
    from orchestrator.domain.attention import AttentionCode
    from orchestrator.store.database import Database

_log = log.get(__name__)

OFFERED: Final = frozenset({State.AWAITING_PAYMENT, State.CALLBACK_RECEIVED})

_ONE = read_model.statement(
    "s.session_id, s.token, s.token_expires_at, s.methods, i.data_key",
    joined="LEFT JOIN sessions s ON s.checkout_id = c.id LEFT JOIN intents i ON i.checkout_id = c.id",
)
P = TypeVar("P", bound=answers.Payment)


def _same(shown: type[Struct], kept: type, *changed: str) -> tuple[str, ...]:
    """Return what an answer shows as it is kept, under the same name."""
    names = {field.name for field in fields(kept)}
    return tuple(name for name in shown.__struct_fields__ if name in names and name not in changed)


_FACTS: Final = _same(answers.CheckoutSummary, CheckoutSummary, "amount", "attention", "last_error")
_PAYMENT: Final = _same(
    answers.Payment, PaymentRecord, "reserved", "captured", "refunded", "charged_back", "surcharge"
)
_OPERATION: Final = _same(answers.Operation, Operation, "amount")
_COMMAND: Final = _same(answers.Command, Command, "result")


async def checkout(
    db: Database, encryptor: Encryptor, merchant_id: int, checkout_id: UUID
) -> answers.Checkout | None:
    """Return everything about one checkout, or None if the merchant has none of this id."""
    rows = await db.read(_ONE, {"id": checkout_id, "merchant_id": merchant_id})
    if not rows:
        return None
    record = read_model.record(rows[0])
    session = _session(rows[0], record, encryptor)
    return answers.Checkout(
        **_facts(record),
        session=session,
        payment_methods=rows[0].methods if session is not None and rows[0].methods else [],
        payments=[_payment(answers.Payment, payment) for payment in record.payments],
        operations=[_operation(operation) for operation in record.operations],
        commands=[_command(command) for command in record.commands[-read_model.COMMANDS_SHOWN :]],
        archived_at=record.archived[-1].at if record.archived else None,
        erased_at=record.erased_at,
        correlation_id=record.correlation_id,
        links=links_of(record.id),
    )


async def command(db: Database, merchant_id: int, command_id: UUID) -> answers.CommandProgress | None:
    """Return how far a command is, or None if the merchant has none of this id."""
    found = await read_model.commands(db, (command_id,), merchant_id=merchant_id)
    return told_of(found[command_id]) if command_id in found else None


def told_of(record: CommandRecord) -> answers.CommandProgress:
    """Return a command in the words of the contract."""
    asked, minor, currency = record.command, record.amount, record.currency
    result = asked.result
    amount = None
    if minor is not None:
        amount = answers.OrderAmount(value=money.decimal_or_none(minor, currency), currency=currency)
    proven = result is None or result.code is not ResultCode.REFUSED_NOT_AUTHENTIC
    return answers.CommandProgress(
        id=asked.id,
        checkout_id=record.checkout_id,
        order_id=record.order_ref,
        kind=asked.kind,
        state=record.state,
        amount=amount,
        transaction_id=asked.transaction_id,
        result=None
        if result is None
        else answers.CommandOutcome(
            code=result.code, message=sentences.of_command(record.state, result, record.operations)
        ),
        operations=[_operation(operation) for operation in record.operations],
        requested_at=cast("datetime", asked.requested_at),
        finished_at=record.finished_at,
        requested_by=asked.actor if proven else None,
        links=answers.CommandLinks(own=path_of(asked.id), checkout=f"/v1/checkouts/{record.checkout_id}"),
    )


def path_of(command_id: UUID) -> str:
    """Return where a command is followed."""
    return f"/v1/commands/{command_id}"


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
    """Return one page of a merchant's checkouts, the youngest first, with the cursor of the next (None: this
    is the last).

    `waiting`: only those that wait for a decision, only those with this attention code, or only the others.
    """
    rows = await read_model.checkouts(
        db,
        merchant_id=merchant_id,
        order_ref=order_ref,
        states=states,
        statuses=statuses,
        waiting=waiting,
        before=before,
        limit=limit + 1,
    )
    more = rows[limit - 1].id if len(rows) > limit else None
    found = [answers.CheckoutSummary(**_facts(row), links=links_of(row.id)) for row in rows[:limit]]
    return answers.CheckoutPage(checkouts=found, next_cursor=more)


async def payments_page(
    db: Database,
    merchant_id: int,
    *,
    role: Role | None = None,
    order_ref: str | None = None,
    before: str | None = None,
    limit: int,
) -> answers.PaymentPage | None:
    """Return one page of a merchant's payments, the youngest first, with the cursor of the next (None: this
    is the last).

    None if `before` is no valid cursor.
    """
    place = None if before is None else _place(before)
    if before is not None and place is None:
        return None
    rows = await read_model.payments(
        db, merchant_id=merchant_id, role=role, order_ref=order_ref, before=place, limit=limit + 1
    )
    more = _cursor(rows[limit - 1]) if len(rows) > limit else None
    found = [
        _payment(answers.PlacedPayment, row, checkout_id=row.checkout_id, order_id=row.order_ref)
        for row in rows[:limit]
    ]
    return answers.PaymentPage(payments=found, next_cursor=more)


async def audit(
    db: Database, encryptor: Encryptor, merchant_id: int, checkout_id: UUID, *, after: int, limit: int
) -> answers.AuditTrail | None:
    """Return audit entries after a number, the number to go on after, and where entries went that are not
    here any more.

    None if the merchant has no such checkout.
    """
    found = await read_model.trail(db, checkout_id, merchant_id=merchant_id, after=after, most=limit + 1)
    if found is None:
        return None
    rows, archived = found
    reasons = await Reasons.of(db, encryptor, checkout_id)
    return answers.AuditTrail(
        checkout_id=checkout_id,
        entries=[_entry(row, reasons) for row in rows[:limit]],
        next_after=rows[limit - 1].sequence if len(rows) > limit else None,
        archived=[
            answers.ArchivedTrail(until=archive.until, file=archive.file, at=archive.at)
            for archive in archived
        ],
    )


def links_of(checkout_id: UUID) -> answers.Links:
    """Return where to go on from a checkout."""
    own = f"/v1/checkouts/{checkout_id}"
    return answers.Links(own=own, cancel=f"{own}/cancel", audit=f"{own}/audit", explain=f"{own}/explain")


def command_links_of(checkout_id: UUID, command_id: UUID) -> answers.CommandAcceptedLinks:
    """Return where to go on from a checkout of which something was asked."""
    links = structs.asdict(links_of(checkout_id))
    return answers.CommandAcceptedLinks(**links, command=path_of(command_id))


def _facts(row: CheckoutSummary) -> dict[str, Any]:
    """Return what a list and a checkout alone both show."""
    currency, state, status = row.currency, row.state, row.payment_status
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
    return {
        **{name: getattr(row, name) for name in _FACTS},
        "order_id": row.order_ref,
        "outcome": _outcome(state, status),
        "payment_status": status,
        "amount": answers.OrderAmount(value=amount, currency=currency),
        "raw": raw,
        "money": made(answers.HeldMoney, amounts),
        "attention": _attention(row),
        "last_error": sentences.or_none(row.last_error),
        "last_error_code": None if row.last_error is None else row.last_error.code,
    }


def _attention(row: CheckoutSummary) -> answers.Attention | None:
    asked = row.attention
    if asked is None:
        return None
    return answers.Attention(
        code=asked.code,
        message=sentences.of(asked),
        since=row.attention_since,
        payments=[
            answers.AttentionPayment(
                transaction_id=payment.transaction_id,
                amount=None
                if payment.amount is None
                else money.decimal_or_none(payment.amount, payment.currency),
                currency=payment.currency,
            )
            for payment in (*asked.payments, *asked.beside)
        ],
    )


def _outcome(state: State, status: PaymentStatus) -> str | None:
    """Return how it ended; None while it has not.

    Paid is only what still holds money; else the payment's status says it.
    """
    if state not in ENDED:
        return None
    if state is not State.COMPLETED:
        return state.value
    return status if status in GONE else "paid"


def _session(row: Row[Any], record: CheckoutRecord, encryptor: Encryptor) -> answers.Session | None:
    cancelling = record.cancel_requested_at is not None or any(
        command.kind is CommandKind.CANCEL and command.handled_at is None for command in record.commands
    )
    offered = (
        record.state in OFFERED
        and row.session_id is not None
        and row.token is not None
        and not cancelling
        and record.deadline > record.now
        and row.token_expires_at > record.now
    )
    if not offered:
        return None
    try:
        token = encryptor.data_key(row.id, row.data_key).decrypt(row.token, purpose="token").decode()
    except EncryptionError as error:
        _log.warning("session_not_decryptable", checkout=str(row.id), error=str(error))
        return None
    return answers.Session(id=row.session_id, token=token, expires_at=row.token_expires_at)


def _payment(kind: type[P], payment: PaymentRecord | Row[Any], **more: object) -> P:
    amounts = {
        "reserved": payment.reserved,
        "captured": payment.captured,
        "refunded": payment.refunded,
        "chargedBack": payment.charged_back,
        "surcharge": payment.surcharge,
    }
    same = {name: getattr(payment, name) for name in _PAYMENT}
    return made(kind, _valued(payment.currency, amounts, payment.raw_amounts), **same, **more)


def _operation(operation: Operation) -> answers.Operation:
    return answers.Operation(
        **{name: getattr(operation, name) for name in _OPERATION},
        amount=money.decimal_or_none(operation.amount, operation.currency),
        reconciliation_identifier=operation.identifier,
        error=sentences.or_none(operation.last_error),
        error_code=None if operation.last_error is None else operation.last_error.code,
    )


def _command(command: Command) -> answers.Command:
    return answers.Command(
        **{name: getattr(command, name) for name in _COMMAND},
        result=sentences.or_none(command.result),
        result_code=None if command.result is None else command.result.code,
    )


def _valued(currency: str, amounts: Mapping[str, int], raw: Mapping[str, str] | None) -> dict[str, Any]:
    """Return amounts as decimals, and `raw`, the texts of those that have none: null means unreadable, and 0
    is never shown for it.

    `raw` are the gateway's own texts by name, if they cannot be read; without them an amount of an unknown
    currency is shown in minor units.
    """
    told, values = dict(raw or {}), {}
    for name, minor in amounts.items():
        value = None if name in told else money.decimal_or_none(minor, currency)
        if value is None and minor:
            told.setdefault(name, money.spelled(minor, currency))
        values[name] = value
    return {**values, "raw": told or None}


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
    # Postgres takes no text with NUL, and no id of the gateway has one.
    return None if moment.tzinfo is None or "\0" in transaction_id else (moment, transaction_id)


def _entry(row: Row[Any], reasons: Reasons) -> answers.AuditEntry:
    told = {**msgspec.json.decode(row.entry), "keyId": row.key_id, "mac": bytes(row.mac).hex()}
    if isinstance(told.get("evidence"), dict):
        told["evidence"] = reasons.in_evidence(told["evidence"])
    try:
        return msgspec.convert(told, answers.AuditEntry)
    except msgspec.ValidationError:
        # Not in the words of the trail, which verification says: it is shown as it stands.
        return cast("answers.AuditEntry", told)

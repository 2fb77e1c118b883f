"""What a merchant reads: a checkout, a list, its trail, its explanation, payments, and refused intents of the
queue.

Reads only, always of one merchant, never another's. Amounts leave as decimals of their currency. The session
with its token is shown only while the shopper may pay with it: offered, not cancelled nor about to be, before
the deadline, and with a token that has not expired.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar, cast
from uuid import UUID

import msgspec
from fastapi import Query, Request
from pydantic import BeforeValidator
from starlette.responses import Response  # noqa: TC002 - FastAPI reads the annotations of what it calls

from orchestrator import explain, intents, log
from orchestrator.api.contract import answers
from orchestrator.api.contract.values import like
from orchestrator.api.dependencies import admit, in_time
from orchestrator.api.problems import answer, id_of, unknown, wrong
from orchestrator.crypto import EncryptionError
from orchestrator.domain import money, sentences
from orchestrator.domain.attention import AttentionCode
from orchestrator.domain.command_result import ResultCode
from orchestrator.domain.payment_status import GONE, PaymentStatus
from orchestrator.domain.records import Command, CommandKind, Operation, PaymentRecord, Role
from orchestrator.domain.states import ENDED, State
from orchestrator.store import read_model
from orchestrator.store.free_text import Reasons
from orchestrator.store.inbox import rejected

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from decimal import Decimal

    from sqlalchemy import Row

    from orchestrator.crypto import Encryptor
    from orchestrator.store.database import Database
    from orchestrator.store.read_model import CheckoutRecord, CheckoutSummary, CommandRecord

_log = log.get(__name__)

SCOPE: Final = "checkouts:read"
_OFFERED: Final = frozenset({State.AWAITING_PAYMENT, State.CALLBACK_RECEIVED})
_ONE: Final = read_model.statement(
    "s.session_id, s.token, s.token_expires_at, s.methods, i.data_key",
    joined="LEFT JOIN sessions s ON s.checkout_id = c.id LEFT JOIN intents i ON i.checkout_id = c.id",
)
_HELD: Final = dict(
    zip(answers.HeldMoney.__struct_fields__, answers.HeldMoney.__struct_encode_fields__, strict=True)
)
"""Amounts of a checkout and of a payment, with their names in the contract."""

OrderNumber = Annotated[
    str | None,
    Query(alias="orderId", max_length=intents.LONGEST_ORDER, description="The shop's order number"),
]
Cursor = Annotated[UUID | None, Query(description="`nextCursor` of the page before")]
Limit = Annotated[int, Query(ge=1, le=answers.PAGE)]
C = TypeVar("C", answers.CheckoutSummary, answers.Checkout)
P = TypeVar("P", bound=answers.Payment)


async def show(request: Request, checkout_id: str) -> Response:
    """Return everything about one checkout."""
    services, _, merchant = await admit(request, SCOPE)
    asked = {"id": id_of("checkout", checkout_id), "merchant_id": merchant.id}
    rows = await in_time(services.db.read(_ONE, asked))
    if not rows:
        raise unknown("checkout", checkout_id)
    return answer(_checkout(rows[0], services.encryptor))


def _known_attention(value: object) -> object:
    """Refuse a value that is neither true or false nor a code, as one error."""
    if value not in {None, "true", "false", *AttentionCode}:
        message = (
            f"must be true, false or a code, and {str(value)[:40]!r} is neither: the runbook has the codes"
        )
        raise ValueError(message)
    return value


async def search(  # noqa: PLR0917 - FastAPI calls it by name
    request: Request,
    order_id: OrderNumber = None,
    state: Annotated[list[State] | None, Query(max_length=len(State), description="May be repeated")] = None,
    payment_status: Annotated[
        list[PaymentStatus] | None,
        Query(
            alias="paymentStatus",
            max_length=len(PaymentStatus),
            description="What is held of the shopper's money; may be repeated",
        ),
    ] = None,
    attention: Annotated[
        bool | AttentionCode | None,
        BeforeValidator(_known_attention),
        Query(
            description="Only those that wait for a decision (`true`), or for one of this code, or only the others (`false`)"
        ),
    ] = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Response:
    """A merchant's checkouts, the youngest first, page by page."""
    services, _, merchant = await admit(request, SCOPE)
    rows: list[CheckoutSummary] = []
    if order_id is None or intents.may_be_order(order_id):  # no order has another number
        rows = await in_time(
            read_model.checkouts(
                services.db,
                merchant_id=merchant.id,
                order_ref=order_id,
                states=state or (),
                statuses=payment_status or (),
                waiting=attention,
                before=cursor,
                limit=limit + 1,
            )
        )
    found = [_shown(answers.CheckoutSummary, row) for row in rows[:limit]]
    more = rows[limit - 1].id if len(rows) > limit else None
    return answer(answers.CheckoutPage(checkouts=found, next_cursor=more))


async def show_explanation(request: Request, checkout_id: str) -> Response:
    """Why a checkout is where it is, what happens next and when, and what a person may do."""
    services, _, merchant = await admit(request, SCOPE)
    asked = id_of("checkout", checkout_id)
    record = await in_time(explain.gather(services.db, services.settings, asked, merchant_id=merchant.id))
    if record is None:
        raise unknown("checkout", checkout_id)
    told = explain.explain(record)
    return answer(like(answers.Explanation, told, next=like(answers.Next, told.next)))


async def show_payments(  # noqa: PLR0917 - FastAPI calls it by name
    request: Request,
    role: Annotated[
        Role | None, Query(description="`surplus` and `unknown` are money that belongs to no order")
    ] = None,
    order_id: OrderNumber = None,
    cursor: Annotated[
        str | None, Query(max_length=400, description="`nextCursor` of the page before")
    ] = None,
    limit: Limit = 50,
) -> Response:
    """A merchant's payments as the gateway showed them, the youngest first, page by page."""
    services, _, merchant = await admit(request, SCOPE)
    rows: Sequence[Row[Any]] = ()
    if order_id is None or intents.may_be_order(order_id):  # no order has another number
        rows = await in_time(
            read_model.payments(
                services.db,
                merchant_id=merchant.id,
                role=role,
                order_ref=order_id,
                before=None if cursor is None else _place(cursor),
                limit=limit + 1,
            )
        )
    found = [_payment(answers.PlacedPayment, row, order_id=row.order_ref) for row in rows[:limit]]
    more = _cursor(rows[limit - 1]) if len(rows) > limit else None
    return answer(answers.PaymentPage(payments=found, next_cursor=more))


async def show_audit(
    request: Request,
    checkout_id: str,
    after: Annotated[int, Query(ge=0, le=2**31 - 1, description="`nextAfter` of the page before")] = 0,
    limit: Annotated[int, Query(ge=1, le=answers.AUDIT_PAGE)] = 500,
) -> Response:
    """Return the audit trail of one checkout, the oldest entry first."""
    services, _, merchant = await admit(request, SCOPE)
    asked = id_of("checkout", checkout_id)
    trail = audit(services.db, services.encryptor, merchant.id, asked, after=after, limit=limit)
    found = await in_time(trail)
    if found is None:
        raise unknown("checkout", checkout_id)
    return answer(found)


async def show_rejected(
    request: Request, order_id: OrderNumber = None, cursor: Cursor = None, limit: Limit = 50
) -> Response:
    """Refused intents of the merchant, the youngest first, page by page."""
    services, _, merchant = await admit(request, SCOPE)
    rows: list[rejected.RejectedIntent] = []
    if order_id is None or intents.may_be_order(order_id):
        rows = await in_time(
            rejected.page(services.db, merchant.id, order_ref=order_id, before=cursor, limit=limit + 1)
        )
    found = [
        like(
            answers.RejectedIntent,
            row,
            order_id=row.order_ref,
            errors=tuple(like(answers.FieldProblem, problem) for problem in row.problems),
            rejected_at=row.created_at,
        )
        for row in rows[:limit]
    ]
    more = rows[limit - 1].id if len(rows) > limit else None
    return answer(answers.RejectedIntentPage(rejected_intents=found, next_cursor=more))


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
        archived=[like(answers.ArchivedTrail, archive) for archive in archived],
    )


def told_of(record: CommandRecord) -> answers.CommandProgress:
    """Return a command in the words of the contract."""
    asked, minor, currency = record.command, record.amount, record.currency
    amount = outcome = None
    if minor is not None:
        amount = answers.OrderAmount(value=money.decimal_or_none(minor, currency), currency=currency)
    if asked.result is not None:
        message = sentences.of_command(record.state, asked.result, record.operations)
        outcome = answers.CommandOutcome(code=asked.result.code, message=message)
    proven = outcome is None or outcome.code is not ResultCode.REFUSED_NOT_AUTHENTIC
    return like(
        answers.CommandProgress,
        record,
        id=asked.id,
        order_id=record.order_ref,
        kind=asked.kind,
        amount=amount,
        transaction_id=asked.transaction_id,
        result=outcome,
        operations=[_operation(operation) for operation in record.operations],
        requested_at=asked.requested_at,
        requested_by=asked.actor if proven else None,
        links=answers.CommandLinks(own=path_of(asked.id), checkout=f"/v1/checkouts/{record.checkout_id}"),
    )


def path_of(command_id: UUID) -> str:
    """Return where a command is followed."""
    return f"/v1/commands/{command_id}"


def links_of(checkout_id: UUID) -> answers.Links:
    """Return where to go on from a checkout."""
    own = f"/v1/checkouts/{checkout_id}"
    return answers.Links(own=own, cancel=f"{own}/cancel", audit=f"{own}/audit", explain=f"{own}/explain")


def session_of(
    encryptor: Encryptor, checkout_id: UUID, row: Row[Any], *, expires_at: datetime
) -> answers.Session | None:
    """Return the session of a row with `session_id`, `token` and `data_key`; None if no key decrypts it."""
    try:
        token = encryptor.data_key(checkout_id, row.data_key).decrypt(row.token, purpose="token").decode()
    except EncryptionError as error:
        _log.warning("session_not_decryptable", checkout=str(checkout_id), error=str(error))
        return None
    return answers.Session(id=row.session_id, token=token, expires_at=expires_at)


def _checkout(row: Row[Any], encryptor: Encryptor) -> answers.Checkout:
    record = read_model.record(row)
    session = None
    if _is_offered(row, record):
        session = session_of(encryptor, row.id, row, expires_at=row.token_expires_at)
    return _shown(
        answers.Checkout,
        record,
        session=session,
        payment_methods=row.methods if session is not None and row.methods else [],
        payments=[_payment(answers.Payment, payment) for payment in record.payments],
        operations=[_operation(operation) for operation in record.operations],
        commands=[_command(command) for command in record.commands[-read_model.COMMANDS_SHOWN :]],
        archived_at=record.archived[-1].at if record.archived else None,
    )


def _is_offered(row: Row[Any], record: CheckoutRecord) -> bool:
    cancelling = record.cancel_requested_at is not None or any(
        command.kind is CommandKind.CANCEL and command.handled_at is None for command in record.commands
    )
    return (
        record.state in _OFFERED
        and row.session_id is not None
        and row.token is not None
        and not cancelling
        and record.deadline > record.now
        and row.token_expires_at > record.now
    )


def _shown(kind: type[C], row: CheckoutSummary, **more: object) -> C:
    """Return a checkout, with what a list and a checkout alone both show."""
    values, raw = _valued(row, {"amount": "amount", **_HELD}, None)
    return like(
        kind,
        row,
        order_id=row.order_ref,
        outcome=_outcome(row.state, row.payment_status),
        amount=answers.OrderAmount(value=values.pop("amount"), currency=row.currency),
        raw=raw,
        money=answers.HeldMoney(**values),
        attention=_attention(row),
        last_error=sentences.or_none(row.last_error),
        last_error_code=None if row.last_error is None else row.last_error.code,
        links=links_of(row.id),
        **more,
    )


def _attention(row: CheckoutSummary) -> answers.Attention | None:
    asked = row.attention
    if asked is None:
        return None
    payments = [
        like(
            answers.AttentionPayment,
            payment,
            amount=None
            if payment.amount is None
            else money.decimal_or_none(payment.amount, payment.currency),
        )
        for payment in (*asked.payments, *asked.beside)
    ]
    return answers.Attention(
        code=asked.code, message=sentences.of(asked), since=row.attention_since, payments=payments
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


def _payment(kind: type[P], payment: PaymentRecord | Row[Any], **more: object) -> P:
    values, raw = _valued(payment, {**_HELD, "surcharge": "surcharge"}, payment.raw_amounts)
    return like(kind, payment, **values, raw=raw, **more)


def _operation(operation: Operation) -> answers.Operation:
    return like(
        answers.Operation,
        operation,
        amount=money.decimal_or_none(operation.amount, operation.currency),
        reconciliation_identifier=operation.identifier,
        error=sentences.or_none(operation.last_error),
        error_code=None if operation.last_error is None else operation.last_error.code,
    )


def _command(command: Command) -> answers.Command:
    return like(
        answers.Command,
        command,
        result=sentences.or_none(command.result),
        result_code=None if command.result is None else command.result.code,
    )


def _valued(
    row: CheckoutSummary | PaymentRecord | Row[Any], names: Mapping[str, str], raw: Mapping[str, str] | None
) -> tuple[dict[str, Decimal | None], dict[str, str] | None]:
    """Return amounts of a row as decimals, and the texts of those that have none, by their names in the
    contract: null means unreadable, and 0 is never shown for it.

    `raw` are the gateway's own texts, if they cannot be read; without them an amount of an unknown currency
    is shown in minor units.
    """
    told, values = dict(raw or {}), {}
    for name, called in names.items():
        minor = getattr(row, name)
        values[name] = None if called in told else money.decimal_or_none(minor, row.currency)
        if values[name] is None and minor:
            told.setdefault(called, money.spelled(minor, row.currency))
    return values, told or None


def _cursor(row: Row[Any]) -> str:
    """Return the place of a payment in the list; a text that goes into a URL as it is."""
    place = f"{row.first_seen_at.isoformat()} {row.transaction_id}"
    return urlsafe_b64encode(place.encode()).decode().rstrip("=")


def _place(cursor: str) -> tuple[datetime, str]:
    try:
        place = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
        at, _, transaction_id = place.partition(" ")
        moment = datetime.fromisoformat(at)
        # Postgres takes no text with NUL, and no id of the gateway has one.
        if moment.tzinfo is not None and "\0" not in transaction_id:
            return moment, transaction_id
    except ValueError:
        pass
    message = "must be the nextCursor of an earlier page"
    raise wrong("cursor", message, kind="invalid-request", said=f"cursor {message}")


def _entry(row: Row[Any], reasons: Reasons) -> answers.AuditEntry:
    told = {**msgspec.json.decode(row.entry), "keyId": row.key_id, "mac": bytes(row.mac).hex()}
    if isinstance(told.get("evidence"), dict):
        told["evidence"] = reasons.in_evidence(told["evidence"])
    try:
        return msgspec.convert(told, answers.AuditEntry)
    except msgspec.ValidationError:
        # Not in the words of the trail, which verification says: it is shown as it stands.
        return cast("answers.AuditEntry", told)

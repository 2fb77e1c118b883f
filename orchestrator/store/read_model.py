"""What is read of a checkout: API, explanations and command line show it from these statements.

Nothing is written here.

Nothing of the customer and no secret is in a record. A caller that shows more, such as the session,
adds columns to `statement`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime  # noqa: TC003 - JSON of Postgres is converted by these annotations
from typing import TYPE_CHECKING, Any, Final

import msgspec
from sqlalchemy import bindparam, or_, select, text, true, tuple_, union_all

from orchestrator.domain.attention import AttentionCode
from orchestrator.domain.command_progress import FINAL, CommandState, progress
from orchestrator.domain.payment_status import PaymentStatus, condition, payment_status
from orchestrator.domain.records import Command, Operation, PaymentRecord, Role
from orchestrator.domain.states import CLOSED, ENDED, State
from orchestrator.store import columns
from orchestrator.store.tables import IS_LISTED, IS_LIVE, IS_OPEN
from orchestrator.store.tables import checkouts as _checkouts
from orchestrator.store.tables import payments as _payments
from orchestrator.store.tables.installation import merchants as _merchants

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from uuid import UUID

    from sqlalchemy import ColumnElement, Row, Select, TextClause

    from orchestrator.domain.attention import Attention
    from orchestrator.domain.last_error import LastError
    from orchestrator.store.database import Database

COMMANDS_SHOWN: Final = 20
"""Commands of a record: the last so many, and all that no worker has acted on."""


@dataclass(frozen=True, slots=True)
class Archived:
    """The archive that has the trail until an entry."""

    until: int
    file: str
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckoutSummary:
    """The row of a checkout, as a list shows it. Amounts in minor units."""

    id: UUID
    order_ref: str
    state: State
    version: int
    currency: str
    amount: int
    created_at: datetime
    deadline: datetime
    merchant_id: int = 0
    reserved: int = 0
    captured: int = 0
    refunded: int = 0
    charged_back: int = 0
    late: bool = False
    auto_capture: bool = False
    session_count: int = 0
    due_at: datetime | None = None
    offered_at: datetime | None = None
    cancel_requested_at: datetime | None = None
    ended_at: datetime | None = None
    reserved_until: datetime | None = None
    attention: Attention | None = None
    attention_since: datetime | None = None
    last_error: LastError | None = None
    attempts: int = 0
    slot_reserved: bool = False
    correlation_id: str = ""
    updated_at: datetime | None = None

    @property
    def payment_status(self) -> PaymentStatus:
        """What is held of the shopper's money."""
        return payment_status(self.state, self)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckoutRecord(CheckoutSummary):
    """One checkout at one moment (`now`), with all that belongs to it.

    `leased_until` is set while a worker holds it, `erased_at` once its personal data was erased.
    """

    merchant: str
    now: datetime
    leased_until: datetime | None = None
    erased_at: datetime | None = None
    payments: tuple[PaymentRecord, ...] = ()
    operations: tuple[Operation, ...] = ()
    commands: tuple[Command, ...] = ()
    archived: tuple[Archived, ...] = ()

    @property
    def accepted(self) -> list[PaymentRecord]:
        """The payments that pay it: a single one, or the parts that a person decided to keep as a whole."""
        return [payment for payment in self.payments if payment.role == Role.ACCEPTED]


_ROW: Final = tuple(field.name for field in fields(CheckoutSummary))
_LISTED: Final = columns.with_details(_ROW)
_LAST: Final = f"""(k.handled_at IS NULL OR k.id IN (
    SELECT id FROM commands WHERE checkout_id = c.id ORDER BY requested_at DESC, id DESC LIMIT {COMMANDS_SHOWN}))"""  # noqa: S608 - a number of ours
_ARCHIVED: Final = """(SELECT CAST(json_agg(json_build_object('until', h.sequence, 'file', f.file, 'at', f.at) ORDER BY h.sequence) AS text)
    FROM archived_heads h JOIN archives f ON f.sequence = h.archive WHERE h.checkout_id = c.id)"""
_READ_ARCHIVED: Final = msgspec.json.Decoder(tuple[Archived, ...])


def statement(*more: str, joined: str = "") -> TextClause:
    """Return the statement for one checkout `c` by :id, of the merchant :merchant_id (null: of any); `more`
    are further columns.
    """
    shown = [
        columns.listed(_LISTED, "c"),
        "m.name AS merchant",
        "clock() AS now",
        "CASE WHEN c.leased_until > clock() THEN c.leased_until END AS leased_until",
        "(SELECT e.erased_at FROM intents e WHERE e.checkout_id = c.id) AS erased_at",
        f"{columns.payments_of('c.id')} AS payments",
        f"{columns.operations_of('c.id')} AS operations",
        f"{columns.commands_of('c.id', _LAST)} AS commands",
        f"{_ARCHIVED} AS archived",
        *more,
    ]
    return text(f"""
        SELECT {", ".join(shown)} FROM checkouts c JOIN merchants m ON m.id = c.merchant_id {joined}
         WHERE c.id = :id AND c.merchant_id = coalesce(CAST(:merchant_id AS int), c.merchant_id)
    """)  # noqa: S608 - made of our own names


def values(row: Row[Any]) -> dict[str, Any]:
    """Return the fields of a record from a row of `statement`."""
    return summary(row) | {
        "merchant": row.merchant,
        "now": row.now,
        "leased_until": row.leased_until,
        "erased_at": row.erased_at,
        "payments": columns.payments(row.payments),
        "operations": columns.operations(row.operations),
        "commands": columns.commands(row.commands),
        "archived": _archived(row.archived),
    }


def summary(row: Row[Any]) -> dict[str, Any]:
    """Return the fields of a summary from a row that has its columns."""
    told = columns.coded(row, "attention", "last_error")
    return {name: getattr(row, name) for name in _ROW} | told | {"state": State(row.state)}


_ONE: Final = statement()


async def checkout(db: Database, checkout_id: UUID) -> CheckoutRecord | None:
    """Return the record of a checkout of any merchant; None if there is none of this id."""
    rows = await db.read(_ONE, {"id": checkout_id, "merchant_id": None})
    return CheckoutRecord(**values(rows[0])) if rows else None


# ── Commands ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRecord:
    """One command with what it began.

    `currency` is that of the payment that it is about, or else of its checkout.
    """

    command: Command
    merchant_id: int
    checkout_id: UUID
    order_ref: str
    currency: str
    operations: tuple[Operation, ...]
    state: CommandState
    finished_at: datetime | None = None

    @property
    def finished(self) -> bool:
        """Whether its state changes no more."""
        return self.state in FINAL

    @property
    def amount(self) -> int | None:
        """What was asked for, in minor units; None: all that was left, or it is not about an amount."""
        asked = self.command.arguments.get("amount") if isinstance(self.command.arguments, dict) else None
        return asked if isinstance(asked, int) and not isinstance(asked, bool) else None


_COMMANDS: Final = text(f"""
    SELECT a.id, c.merchant_id, c.id AS checkout_id, c.order_ref, c.state, c.late, c.cancel_requested_at, c.ended_at,
           coalesce((SELECT nullif(p.currency, '') FROM payments p
                      WHERE p.checkout_id = c.id AND p.transaction_id = a.arguments ->> 'transactionId'),
                    (SELECT nullif(min(p.currency), '') FROM payments p
                      WHERE p.checkout_id = c.id AND p.role = 'accepted' AND a.arguments ->> 'transactionId' IS NULL
                     HAVING count(*) = 1),
                    c.currency) AS currency,
           {columns.commands_of("c.id", "k.id = a.id")} AS command,
           {columns.operations_of("c.id", "o.command_id = a.id")} AS operations
      FROM commands a JOIN checkouts c ON c.id = a.checkout_id
     WHERE a.id = ANY(CAST(:ids AS uuid[])) AND c.merchant_id = coalesce(CAST(:merchant_id AS int), c.merchant_id)
""")  # noqa: S608 - made of our own names


async def commands(
    db: Database, ids: Collection[UUID], *, merchant_id: int | None = None
) -> dict[UUID, CommandRecord]:
    """Return commands by their ids: of a merchant, or of all (None). Unknown ids are left out."""
    rows = await db.read(_COMMANDS, {"ids": sorted(ids), "merchant_id": merchant_id})
    return {row.id: _command(row) for row in rows}


def _command(row: Row[Any]) -> CommandRecord:
    (told,), begun = columns.commands(row.command), columns.operations(row.operations)
    state, finished_at = progress(
        told,
        begun,
        state=State(row.state),
        late=row.late,
        cancel_requested_at=row.cancel_requested_at,
        ended_at=row.ended_at,
    )
    return CommandRecord(
        command=told,
        merchant_id=row.merchant_id,
        checkout_id=row.checkout_id,
        order_ref=row.order_ref,
        currency=row.currency,
        operations=begun,
        state=state,
        finished_at=finished_at,
    )


# ── The trail ─────────────────────────────────────────────────────────────────────────────────────────────

_TRAIL: Final = text(f"""
    WITH c AS MATERIALIZED (
        SELECT c.id, c.audit_sequence, {_ARCHIVED} AS archived FROM checkouts c
         WHERE c.id = :id AND c.merchant_id = coalesce(CAST(:merchant_id AS int), c.merchant_id)
    )
    SELECT a.sequence, a.entry, a.key_id, a.mac, c.archived
      FROM c LEFT JOIN LATERAL (
           SELECT sequence, entry, key_id, mac FROM audit_entries
            WHERE checkout_id = c.id AND sequence > CAST(:after AS int) + CASE WHEN :after < 0 THEN c.audit_sequence ELSE 0 END
            ORDER BY sequence LIMIT CAST(:most AS int)) a ON true
     ORDER BY a.sequence
""")  # noqa: S608 - made of our own constants


async def trail(
    db: Database,
    checkout_id: UUID,
    *,
    merchant_id: int | None = None,
    after: int = 0,
    most: int | None = None,
) -> tuple[list[Row[Any]], tuple[Archived, ...]] | None:
    """Return the entries after a number, the oldest first (`sequence`, `entry`, `key_id`, `mac`), and the
    archives that have others. A number below 0 is counted from the end: the last so many.

    None if there is no such checkout, or it is not this merchant's (None: of any).
    """
    asked = {"id": checkout_id, "merchant_id": merchant_id, "after": after, "most": most}
    rows = await db.read(_TRAIL, asked)
    if not rows:
        return None
    return [row for row in rows if row.sequence is not None], _archived(rows[0].archived)


def entry(row: Row[Any]) -> dict[str, Any]:
    """Return the content of an entry of `trail`."""
    told: dict[str, Any] = msgspec.json.decode(row.entry)
    return told


def _archived(told: str | None) -> tuple[Archived, ...]:
    return () if told is None else _READ_ARCHIVED.decode(told)


# ── Lists ─────────────────────────────────────────────────────────────────────────────────────────────────

_c, _p = _checkouts.c, _payments.c


@dataclass(frozen=True, slots=True, kw_only=True)
class Among:
    """A choice for operators: checkouts with these ids, or of a period, and of one amount; None: whatever.

    `after` is an id below those of the period, so that the statement reads no others; `amount` is in minor
    units of the currency beside it.
    """

    ids: Collection[UUID] | None = None
    after: UUID | None = None
    since: datetime | None = None
    until: datetime | None = None
    amount: tuple[int, str] | None = None

    @property
    def conditions(self) -> list[ColumnElement[bool]]:
        """What a checkout must be."""
        found: list[ColumnElement[bool]] = []
        if self.ids is not None:
            found.append(_c.id.in_(sorted(self.ids)))
        if self.after is not None:
            found.append(_c.id > self.after)
        if self.since is not None:
            found.append(_c.created_at >= self.since)
        if self.until is not None:
            found.append(_c.created_at < self.until)
        if self.amount is not None:
            found += [_c.amount == self.amount[0], _c.currency == self.amount[1]]
        return found


# A transaction's number is unique for a merchant: each merchant's index is asked, and nothing is scanned.
_OF_TRANSACTION: Final = text("""
    SELECT p.checkout_id FROM merchants m CROSS JOIN LATERAL (
        SELECT checkout_id FROM payments WHERE merchant_id = m.id AND transaction_id = :transaction_id LIMIT 1) p
     WHERE p.checkout_id IS NOT NULL LIMIT 100
""")


async def of_transaction(db: Database, transaction_id: str) -> list[UUID]:
    """Return the ids of the checkouts with a payment of this number, of any merchants."""
    rows = await db.read(_OF_TRANSACTION, {"transaction_id": transaction_id})
    return [row.checkout_id for row in rows]


# Each merchant's indexes are asked, as for a transaction: no index begins with an order number. The order is
# by text, or the planner may walk all checkouts of a merchant in the order of their ids.
_OF_ORDER: Final = text(f"""
    SELECT c.id, m.name AS merchant FROM merchants m CROSS JOIN LATERAL (
        (SELECT id FROM checkouts WHERE merchant_id = m.id AND order_ref = :order_ref AND {IS_LIVE} LIMIT 1)
        UNION ALL
        (SELECT id FROM checkouts WHERE merchant_id = m.id AND order_ref = :order_ref AND NOT ({IS_LIVE})
          ORDER BY CAST(id AS text) DESC LIMIT 1)) c
     ORDER BY c.id DESC LIMIT 100
""")  # noqa: S608 - made of our own words


async def of_order(db: Database, order_ref: str) -> Sequence[Row[Any]]:
    """Return `id` and `merchant` (its name) of the checkouts with an order number, the youngest first: of
    each merchant the live one, and the youngest of those that are not live.
    """
    return await db.read(_OF_ORDER, {"order_ref": order_ref})


async def checkouts(  # noqa: PLR0913 - what a list is chosen by
    db: Database,
    *,
    merchant_id: int | None = None,
    order_ref: str | None = None,
    states: Sequence[State] = (),
    statuses: Sequence[PaymentStatus] = (),
    waiting: bool | AttentionCode | None = None,
    before: UUID | None = None,
    among: Among | None = None,
    limit: int,
) -> list[CheckoutSummary]:
    """Return checkouts, the youngest first: of a merchant, or of all.

    `waiting`: only those that wait for a decision, only those with this attention code, or only the others.
    """
    wanted = select(*(_c[name] for name in _LISTED))
    if among is not None:
        wanted = wanted.where(*among.conditions)
    if merchant_id is not None:
        wanted = wanted.where(_c.merchant_id == merchant_id)
    allowed = frozenset(states)
    if statuses:
        wanted = wanted.where(text(condition(statuses)))
        allowed = (allowed or frozenset(State)) & _states_of(frozenset(statuses))
        if not allowed:
            return []
    if isinstance(waiting, AttentionCode):
        # With the words of the partial index beside it: through a parameter the planner does not recognise
        # it.
        wanted = wanted.where(_c.attention.is_not(None), _c.attention == waiting)
    elif waiting is not None:
        wanted = wanted.where(_c.attention.is_not(None) if waiting else _c.attention.is_(None))
    if before is not None:
        wanted = wanted.where(_c.id < before)
    youngest = wanted.order_by(_c.id.desc()).limit(limit)
    parts = _by_index(youngest, order_ref, allowed, each=merchant_id is None)
    if len(parts) == 1:
        chosen = parts[0]
    else:
        both = union_all(*(part.subquery().select() for part in parts)).subquery("found")
        chosen = select(both).order_by(both.c.id.desc()).limit(limit)
    return [CheckoutSummary(**summary(row)) for row in await db.read(chosen)]


def _states_of(statuses: frozenset[PaymentStatus]) -> frozenset[State]:
    """Return the states that a checkout of one of these statuses can have: with them a part that cannot match
    is not read.
    """
    paid = frozenset({State.COMPLETED})
    if PaymentStatus.UNPAID not in statuses:
        return paid
    return frozenset(State) - paid if len(statuses) == 1 else frozenset(State)


def _by_index(
    wanted: Select[Any], order_ref: str | None, states: frozenset[State], *, each: bool
) -> list[Select[Any]]:
    """Return what is wanted in parts, each in the very words of a partial index: through parameters the
    planner sees none.

    `each`: of every merchant, one after the other, where the index begins with the merchant.
    """
    if order_ref is not None:
        mine = wanted.where(_c.order_ref == order_ref)
        if states:
            mine = mine.where(_c.state.in_(sorted(states)))
        parts = [mine.where(text(IS_LIVE)), mine.where(text(f"NOT ({IS_LIVE})"))]
        return [_of_each_merchant(part) for part in parts] if each else parts
    if not states or len(states) == len(State):
        return [wanted.where(text(IS_LISTED))]
    groups = (
        (states - ENDED, IS_OPEN),
        (states & CLOSED, f"NOT ({IS_LIVE})"),
        (states & ENDED - CLOSED, IS_LISTED),
    )
    return [wanted.where(_c.state.in_(sorted(group)), text(words)) for group, words in groups if group]


def _of_each_merchant(wanted: Select[Any]) -> Select[Any]:
    rows = wanted.where(_c.merchant_id == _merchants.c.id).correlate(_merchants).lateral()
    return select(rows).select_from(_merchants.join(rows, true()))


async def payments(
    db: Database,
    *,
    merchant_id: int | None = None,
    role: Role | None = None,
    order_ref: str | None = None,
    before: tuple[datetime, str] | None = None,
    limit: int,
) -> Sequence[Row[Any]]:
    """Return the rows of payments, the youngest first: of a merchant, or of all.

    `before` is when a payment was first seen, and its id.
    """
    wanted = select(_payments)
    if merchant_id is not None:
        wanted = wanted.where(_p.merchant_id == merchant_id)
    if role is not None:
        # As a literal: through a parameter the planner would not see that a partial index will do.
        wanted = wanted.where(_p.role == bindparam("role", role, literal_execute=True))
    if order_ref is not None:
        # Payments have no index by order number; their checkouts have, and payments of no checkout are few.
        ids = select(_c.id) if merchant_id is None else select(_c.id).where(_c.merchant_id == merchant_id)
        named = await db.read(union_all(*_by_index(ids, order_ref, frozenset(), each=merchant_id is None)))
        wanted = wanted.where(
            _p.order_ref == order_ref,
            or_(_p.checkout_id.in_([row.id for row in named]), _p.checkout_id.is_(None)),
        )
    if before is not None:
        wanted = wanted.where(tuple_(_p.first_seen_at, _p.transaction_id) < before)
    return await db.read(wanted.order_by(_p.first_seen_at.desc(), _p.transaction_id.desc()).limit(limit))

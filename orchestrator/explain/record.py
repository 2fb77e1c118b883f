"""What an explanation is made from: everything that is known of one checkout at one moment, without its customer and its secrets."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import msgspec
from sqlalchemy import text

from orchestrator import audit
from orchestrator.domain import attention, decisions, last_error, money, operations
from orchestrator.domain.payment_status import PaymentStatus, payment_status
from orchestrator.domain.states import State

if TYPE_CHECKING:
    from orchestrator.domain.attention import Attention
    from orchestrator.domain.last_error import LastError
    from orchestrator.settings import Settings
    from orchestrator.store.database import Database

# The last entries, and the last that moved it, which may lie further back behind failed calls.
_GATHER = text("""
    SELECT c.id, c.order_ref, c.state, c.version, c.currency, c.amount, c.reserved, c.captured, c.refunded, c.charged_back,
           c.late, c.auto_capture, c.session_count, c.created_at, c.deadline, c.due_at, c.offered_at, c.cancel_requested_at, c.ended_at,
           c.reserved_until, c.attention, c.attention_details, c.attention_since, c.last_error, c.last_error_details, c.attempts, c.slot_reserved, m.name AS merchant, clock() AS now,
           CASE WHEN c.leased_until > clock() THEN c.leased_until END AS leased_until,
           (SELECT s.token_expires_at FROM sessions s WHERE s.checkout_id = c.id) AS token_expires_at,
           (SELECT count(*) FROM callbacks b WHERE b.checkout_id = c.id AND b.handled_at IS NULL) AS callbacks,
           (SELECT CAST(json_agg(json_build_object(
                       'transaction_id', p.transaction_id, 'role', p.role, 'binding', p.binding, 'status', p.status,
                       'meaning', p.meaning, 'currency', p.currency, 'reserved', p.reserved, 'captured', p.captured,
                       'refunded', p.refunded, 'charged_back', p.charged_back, 'surcharge', p.surcharge,
                       'flags', p.flags, 'decided', p.decided, 'raw_amounts', p.raw_amounts)
                       ORDER BY p.first_seen_at, p.transaction_id) AS text)
              FROM payments p WHERE p.checkout_id = c.id) AS payments,
           (SELECT CAST(json_agg(json_build_object(
                       'id', o.id, 'kind', o.kind, 'transaction_id', o.transaction_id, 'amount', o.amount,
                       'currency', o.currency, 'state', o.state, 'cause', o.cause, 'requested_at', o.requested_at,
                       'submitted_at', o.submitted_at, 'settled_at', o.settled_at, 'last_error', o.last_error,
                       'last_error_details', o.last_error_details)
                       ORDER BY o.requested_at, o.id) AS text)
              FROM money_operations o WHERE o.checkout_id = c.id) AS operations,
           (SELECT CAST(json_agg(json_build_object('kind', k.kind, 'actor', k.actor, 'requested_at', k.requested_at,
                                                   'transaction_id', k.arguments ->> 'transactionId')
                                 ORDER BY k.requested_at, k.id) AS text)
              FROM commands k WHERE k.checkout_id = c.id AND k.handled_at IS NULL) AS commands,
           (SELECT json_agg(a.entry ORDER BY a.sequence) FROM (
               (SELECT sequence, entry FROM audit_entries WHERE checkout_id = c.id ORDER BY sequence DESC LIMIT :most)
               UNION
               (SELECT sequence, entry FROM audit_entries WHERE checkout_id = c.id
                   AND action IN ('checkout:received', 'checkout:moved', 'checkout:reopened')
                 ORDER BY sequence DESC LIMIT :moves)) a) AS entries,
           (SELECT CAST(json_build_object('until', h.sequence, 'file', f.file, 'at', f.at) AS text)
              FROM archived_heads h JOIN archives f ON f.sequence = h.archive
             WHERE h.checkout_id = c.id ORDER BY h.sequence DESC LIMIT 1) AS archived,
           CASE WHEN c.slot_reserved THEN (
               SELECT CAST(json_build_object('before', count(*),
                           'age', coalesce(extract(epoch FROM clock() - min(o.updated_at)), 0)) AS text)
                 FROM checkouts o WHERE o.merchant_id = c.merchant_id AND o.slot_reserved AND o.due_at < c.due_at) END AS queue
      FROM checkouts c JOIN merchants m ON m.id = c.merchant_id
     WHERE c.id = :id AND c.merchant_id = coalesce(CAST(:merchant_id AS int), c.merchant_id)
""")
_ENTRIES: Final = 30
_MOVES: Final = 4


class Entry(msgspec.Struct, frozen=True, kw_only=True, rename={"before": "from"}):
    """One entry of the trail."""

    at: datetime
    action: str
    actor: str
    to: str
    before: str | None = None
    trigger: str | None = None
    evidence: dict[str, Any] = {}

    @property
    def moved(self) -> bool:
        """Whether it brought the checkout where it is, or was before the next one."""
        return self.before != self.to


class Payment(msgspec.Struct, frozen=True, kw_only=True):
    """One gateway transaction in our books; minor units of its currency."""

    transaction_id: str
    role: str
    binding: str
    status: str
    meaning: str
    currency: str
    reserved: int = 0
    captured: int = 0
    refunded: int = 0
    charged_back: int = 0
    surcharge: int = 0
    flags: tuple[str, ...] = ()
    decided: str | None = None
    raw_amounts: dict[str, str] | None = None


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """A capture, refund or release."""

    id: UUID
    kind: str
    transaction_id: str
    amount: int
    currency: str
    state: str
    cause: str
    requested_at: datetime
    submitted_at: datetime | None = None
    settled_at: datetime | None = None
    last_error: str | None = None
    last_error_details: dict[str, Any] | None = None

    @property
    def error(self) -> LastError | None:
        """Why it came to nothing, or has not been done yet."""
        return last_error.stored(self.last_error, self.last_error_details)


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody asked for and nobody has acted on yet."""

    kind: str
    actor: str
    requested_at: datetime
    transaction_id: str | None = None


class Archived(msgspec.Struct, frozen=True, kw_only=True):
    """The archive that has the trail until an entry."""

    until: int
    file: str
    at: datetime


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """The lookups of the merchant that come before this one: how many, and for how many seconds the oldest has waited."""

    before: int
    age: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One checkout at one moment (`now`). Amounts in minor units, graces in seconds, `watch` in seconds after the end.

    `leased_until` is set while a worker holds it; `callbacks` is the number of callbacks that nobody has acted on;
    `slot_reserved` says that its lookup waits for its turn within the merchant's budget, and `queue` behind which others.
    """

    id: UUID
    merchant: str
    order_ref: str
    state: State
    version: int
    currency: str
    amount: int
    created_at: datetime
    deadline: datetime
    now: datetime
    reserved: int = 0
    captured: int = 0
    refunded: int = 0
    charged_back: int = 0
    late: bool = False
    auto_capture: bool = False
    session_count: int = 0
    due_at: datetime | None = None
    leased_until: datetime | None = None
    offered_at: datetime | None = None
    cancel_requested_at: datetime | None = None
    ended_at: datetime | None = None
    reserved_until: datetime | None = None
    token_expires_at: datetime | None = None
    attention: Attention | None = None
    attention_since: datetime | None = None
    last_error: LastError | None = None
    attempts: int = 0
    slot_reserved: bool = False
    callbacks: int = 0
    entries: tuple[Entry, ...] = ()
    payments: tuple[Payment, ...] = ()
    operations: tuple[Operation, ...] = ()
    commands: tuple[Command, ...] = ()
    archived: Archived | None = None
    queue: Queue | None = None
    deadline_grace: float = 30.0
    cancel_grace: float = 30.0
    watch: tuple[float, ...] = ()

    @property
    def accepted(self) -> list[Payment]:
        """The payments that pay it: one, or the parts that a person decided to keep as a whole."""
        return [one for one in self.payments if one.role == "accepted"]

    @property
    def payment_status(self) -> PaymentStatus:
        """What is held of the shopper's money."""
        return payment_status(
            self.state,
            reserved=self.reserved,
            captured=self.captured,
            refunded=self.refunded,
            charged_back=self.charged_back,
        )

    @property
    def from_payment(self) -> bool:
        """Whether it was created from a payment for an order number that no shop had handed over."""
        return any(one.before is None and audit.from_unmatched_payment(one.evidence) for one in self.entries)

    @property
    def unexpected_payments(self) -> list[Payment]:
        """Payments beside the accepted one that hold money, or may."""
        return [one for one in self.payments if one.role in {"surplus", "unknown"}]

    @property
    def open_operations(self) -> list[Operation]:
        """Operations that may still have an effect."""
        return [one for one in self.operations if one.state in {"requested", "submitted", "unknown"}]

    @property
    def blocked_commands(self) -> list[Command]:
        """Money commands that wait for an open operation on their transaction."""
        busy = {one.transaction_id for one in self.open_operations}
        accepted = {one.transaction_id for one in self.accepted}
        return [
            one
            for one in self.commands
            if one.kind in operations.KINDS
            and busy & ({one.transaction_id} if one.transaction_id else accepted)
        ]

    @property
    def deadline_end(self) -> datetime:
        """From when on a lookup that shows nothing expires it."""
        return self.deadline + timedelta(seconds=self.deadline_grace)

    @property
    def cancel_end(self) -> datetime | None:
        """From when on a lookup that shows nothing cancels it, if that was asked for."""
        return (
            None
            if self.cancel_requested_at is None
            else self.cancel_requested_at + timedelta(seconds=self.cancel_grace)
        )

    @property
    def watch_end(self) -> datetime | None:
        """Until when it is watched for late money, refunds and chargebacks."""
        if self.ended_at is None or not self.watch:
            return None
        return self.ended_at + timedelta(seconds=self.watch[-1])

    def price(self, minor: int, currency: str | None = None) -> str:
        """Write an amount for people."""
        code = currency or self.currency
        return money.spelled(minor, code)

    def holding(self, one: Payment) -> str:
        """Write what a payment holds for people; amounts that cannot be read as the gateway wrote them."""
        raw = one.raw_amounts
        unread = [
            f"{name} {money.as_stored(getattr(one, name), one.currency, name, raw)}"
            for name in ("reserved", "captured", "refunded")
            if raw and name in raw
        ]
        if unread:
            return f"amounts that cannot be read ({', '.join(unread)})"
        return self.price(decisions.left(one), one.currency or "an unknown currency")


def moment(at: datetime) -> str:
    """Write a time: UTC, to the second."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


async def gather(
    db: Database, settings: Settings, checkout_id: UUID, *, merchant_id: int | None = None
) -> Record | None:
    """Read the record of a checkout; None if there is none of this id, or it is not this merchant's (None: anybody's)."""
    asked = {"id": checkout_id, "merchant_id": merchant_id, "most": _ENTRIES, "moves": _MOVES}
    rows = await db.read(_GATHER, asked)
    if not rows:
        return None
    row = rows[0]._asdict()
    lists: dict[str, Any] = {
        name: msgspec.json.decode(row.pop(name) or "[]", type=kind)
        for name, kind in (
            ("payments", tuple[Payment, ...]),
            ("operations", tuple[Operation, ...]),
            ("commands", tuple[Command, ...]),
        )
    }
    entries = tuple(msgspec.json.decode(one, type=Entry) for one in row.pop("entries") or ())
    archived, queue = row.pop("archived"), row.pop("queue")
    state = State(row.pop("state"))
    needed = attention.stored(row.pop("attention"), row.pop("attention_details"))
    error = last_error.stored(row.pop("last_error"), row.pop("last_error_details"))
    return Record(
        **row,
        attention=needed,
        last_error=error,
        **lists,
        state=state,
        entries=entries,
        archived=None if archived is None else msgspec.json.decode(archived, type=Archived),
        queue=None if queue is None else msgspec.json.decode(queue, type=Queue),
        deadline_grace=settings.deadline_grace,
        cancel_grace=settings.cancel_grace,
        watch=settings.post_settlement_checks,
    )

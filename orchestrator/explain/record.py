"""The data of an explanation: all rows of one checkout at one moment, without its customer and its secrets;
the reasons of commands are in it, as those who gave them wrote them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import msgspec
from sqlalchemy import text

from orchestrator import audit
from orchestrator.crypto import Encryptor
from orchestrator.domain import money
from orchestrator.domain.attention import RETURNABLE
from orchestrator.domain.records import MOVES_MONEY, Command, CommandKind, Operation, PaymentRecord, Role
from orchestrator.gateway.client import gateway_of
from orchestrator.store import read_model
from orchestrator.store.columns import record
from orchestrator.store.free_text import Reasons
from orchestrator.store.read_model import CheckoutRecord
from orchestrator.store.readiness import SEEN_WITHIN

if TYPE_CHECKING:
    from uuid import UUID

    from orchestrator.settings import Settings
    from orchestrator.store.database import Database

# The last entries, and the last that moved it, which may lie further back behind failed calls.
_GATHER = read_model.statement(
    "(SELECT m.paused_at FROM merchants m WHERE m.id = c.merchant_id) AS paused_at",
    "(SELECT s.token_expires_at FROM sessions s WHERE s.checkout_id = c.id) AS token_expires_at",
    "(SELECT count(*) FROM callbacks b WHERE b.checkout_id = c.id AND b.handled_at IS NULL) AS callbacks",
    """(SELECT json_agg(a.entry ORDER BY a.sequence) FROM (
        (SELECT sequence, entry FROM audit_entries WHERE checkout_id = c.id ORDER BY sequence DESC LIMIT :most)
        UNION
        (SELECT sequence, entry FROM audit_entries WHERE checkout_id = c.id
            AND action IN ('checkout:received', 'checkout:moved', 'checkout:reopened', 'order:changed')
          ORDER BY sequence DESC LIMIT :moves)) a) AS entries""",
    """CASE WHEN c.slot_reserved THEN (
        SELECT CAST(json_build_object('before', count(*),
                    'age', coalesce(extract(epoch FROM clock() - min(o.updated_at)), 0)) AS text)
          FROM checkouts o WHERE o.merchant_id = c.merchant_id AND o.slot_reserved AND o.due_at < c.due_at) END AS queue""",
)
# Open circuits as workers that saw the failures tell of them, and where the merchant's gateways are.
_CIRCUITS = text("""
    SELECT m.gateway_url, m.merchant_api_url, clock() AS now,
           (SELECT json_agg(json_build_object('age', extract(epoch FROM clock() - w.seen_at), 'circuits', w.progress->'circuits'))
              FROM workers w WHERE w.kind = 'worker' AND w.progress ? 'circuits'
               AND w.seen_at > clock() - make_interval(secs => :within)) AS told
      FROM checkouts c JOIN merchants m ON m.id = c.merchant_id WHERE c.id = :id
""")
_ENTRIES: Final = 30
_MOVES: Final = 4


class Entry(msgspec.Struct, frozen=True, kw_only=True, rename={"before": "from"}):
    at: datetime
    action: str
    actor: str
    to: str
    before: str | None = None
    trigger: str | None = None
    evidence: dict[str, Any] = {}

    @property
    def moved(self) -> bool:
        """Whether it moved the checkout into its state, or was before the next one."""
        return self.before != self.to


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """The lookups of the merchant that come before this one: how many, and for how many seconds the oldest
    has waited.
    """

    before: int
    age: float


@dataclass(frozen=True, slots=True)
class Circuit:
    """The open circuit of a checkout's gateway: the last failure, since when calls fail, and when they start
    again.
    """

    reason: str
    since: datetime
    until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Record(CheckoutRecord):
    """A checkout, and the data that explains it. Grace periods in seconds, `watch` in seconds after the end.

    `callbacks` is the number of callbacks that were not handled yet; `slot_reserved`: its lookup waits for
    its slot within the merchant's budget, and `queue` has the lookups before it. `paused_at`: since when its
    merchant's gateway is not called.
    """

    paused_at: datetime | None = None
    token_expires_at: datetime | None = None
    callbacks: int = 0
    entries: tuple[Entry, ...] = ()
    queue: Queue | None = None
    circuit: Circuit | None = None
    deadline_grace: float = 30.0
    cancel_grace: float = 30.0
    watch: tuple[float, ...] = ()

    @property
    def from_payment(self) -> bool:
        """Whether it was created from a payment for an order number that no shop had handed over."""
        return any(
            entry.before is None and audit.from_unmatched_payment(entry.evidence) for entry in self.entries
        )

    @property
    def unexpected_payments(self) -> list[PaymentRecord]:
        """Payments beside the accepted one that hold money, or may."""
        return [payment for payment in self.payments if payment.role in {Role.SURPLUS, Role.UNKNOWN}]

    @property
    def open_operations(self) -> list[Operation]:
        """Operations that may still have an effect."""
        return [operation for operation in self.operations if operation.open]

    @property
    def open_commands(self) -> list[Command]:
        return [command for command in self.commands if command.handled_at is None]

    @property
    def blocked_commands(self) -> list[Command]:
        """Money commands that wait for an open operation on their transaction."""
        busy = {operation.transaction_id for operation in self.open_operations}
        accepted = {payment.transaction_id for payment in self.accepted}
        return [
            command
            for command in self.open_commands
            if command.kind in MOVES_MONEY
            and busy & ({command.transaction_id} if command.transaction_id else accepted)
        ]

    @property
    def deciding(self) -> bool:
        """Whether a decision on what waits for one was given, and is not carried out yet."""
        asked = self.attention
        if asked is None:
            return False
        moving = {operation.command_id for operation in self.open_operations}
        return any(
            command.handled_at is None or (command.id in moving and asked.code in RETURNABLE)
            for command in self.commands
            if command.kind is CommandKind.RESOLVE
        )

    @property
    def known(self) -> tuple[PaymentRecord, ...]:
        """Its payments, as a claimed checkout names them."""
        return tuple(self.payments)

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
        code = currency or self.currency
        return money.spelled(minor, code, grouped=True)

    def holding(self, payment: PaymentRecord) -> str:
        """Write what a payment holds for people; amounts that cannot be read as the gateway wrote them."""
        raw = payment.raw_amounts
        unread = [
            f"{name} {money.as_stored(getattr(payment, name), payment.currency, name, raw)}"
            for name in ("reserved", "captured", "refunded")
            if raw and name in raw
        ]
        if unread:
            return f"amounts that cannot be read ({', '.join(unread)})"
        return self.price(payment.left, payment.currency or "an unknown currency")


async def circuit_of(db: Database, settings: Settings, checkout_id: UUID) -> Circuit | None:
    """Read what workers say of the gateways of a checkout's merchant; None where no circuit is open."""
    rows = await db.read(_CIRCUITS, {"id": checkout_id, "within": SEEN_WITHIN})
    if not rows or not rows[0].told:
        return None
    row = rows[0]
    url = row.gateway_url or settings.gateway_url or ""
    ours = {
        gateway_of(url),
        gateway_of(row.merchant_api_url or (url if row.gateway_url else settings.merchant_api)),
    }
    found = [
        Circuit(
            reason=str(circuit.get("reason", "")),
            since=row.now - timedelta(seconds=float(circuit.get("since", 0.0)) + float(worker["age"])),
            until=row.now
            + timedelta(seconds=max(float(circuit.get("seconds", 0.0)) - float(worker["age"]), 0.0)),
        )
        for worker in row.told
        for circuit in worker["circuits"]
        if circuit.get("gateway") in ours
    ]
    # Each worker saw failures of its own: the first of them is the beginning, the last pause the end.
    return (
        Circuit(
            max(found, key=lambda circuit: circuit.until).reason,
            min(circuit.since for circuit in found),
            max(circuit.until for circuit in found),
        )
        if found
        else None
    )


def moment(at: datetime | None) -> str:
    """Write a time: UTC, to the second."""
    return "a time that is not known" if at is None else at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


async def gather(
    db: Database, settings: Settings, checkout_id: UUID, *, merchant_id: int | None = None
) -> Record | None:
    """Read the record of a checkout; None if there is none of this id, or it is not this merchant's (None:
    any merchant's).
    """
    asked = {"id": checkout_id, "merchant_id": merchant_id, "most": _ENTRIES, "moves": _MOVES}
    rows = await db.read(_GATHER, asked)
    if not rows:
        return None
    row = rows[0]
    values = read_model.values(row)
    if any(command.reason for command in values["commands"]):
        reasons = await Reasons.of(db, Encryptor(settings.secret_keys), checkout_id)
        values["commands"] = tuple(
            replace(command, reason=reasons.shown(command.reason)) for command in values["commands"]
        )
    return record(
        Record,
        row,
        **values,
        circuit=await circuit_of(db, settings, checkout_id) if row.due_at is not None else None,
        entries=tuple(msgspec.json.decode(entry, type=Entry) for entry in row.entries or ()),
        queue=None if row.queue is None else msgspec.json.decode(row.queue, type=Queue),
        deadline_grace=settings.deadline_grace,
        cancel_grace=settings.cancel_grace,
        watch=settings.post_settlement_checks,
    )

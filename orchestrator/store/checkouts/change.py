"""One move: the fact or the note that the holder writes, and the rows that it becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict, TypeVar
from uuid import UUID

import msgspec

from orchestrator import audit
from orchestrator.domain import events
from orchestrator.domain.attention import Attention
from orchestrator.domain.claimed_checkout import ClaimedCheckout
from orchestrator.domain.command_result import CommandResult
from orchestrator.domain.events import Event, Totals
from orchestrator.domain.last_error import LastError
from orchestrator.domain.records import Operation, PaymentRecord
from orchestrator.domain.states import ENDED, State, Trigger
from orchestrator.store.checkouts.row_macs import sign_operation
from orchestrator.store.columns import PAYMENT, named, parts, picked

if TYPE_CHECKING:
    from sqlalchemy import Row

    from orchestrator.crypto import Encryptor

T = TypeVar("T")


class Keep(Enum):
    """Says that a value stays as it is."""

    IT = "keep"


KEEP: Final = Keep.IT
Kept = Literal[Keep.IT]


def given(value: T | Kept, otherwise: T) -> T:
    """Return a value of a move, or another one where it is KEEP."""
    return otherwise if isinstance(value, Keep) else value


@dataclass(frozen=True, slots=True)
class Fact:
    """A fact and what it rests on; it has an audit entry of its own. None leaves the checkout where it is."""

    trigger: Trigger | None
    evidence: Mapping[str, object]


class ChangedOrder(msgspec.Struct, frozen=True, kw_only=True):
    """A changed order: `amount` in minor units, the whole intent (`body`, encrypted), its fingerprint, and
    the tag of the e-mail address (`email_search`).
    """

    amount: int
    body: bytes
    fingerprint: bytes
    email_tag: bytes | None = None


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """One write by the holder: a fact that moves the checkout (`trigger`), or one that leaves its state
    (None).

    Without an `action` nothing is audited: a lease is released, or a lookup showed nothing new. Such a write
    moves nothing, makes no new version, and always releases.

    `due_in` is KEEP to continue under the same lease, a number of seconds to release with that due time, or
    None to release a settled checkout for good. Fields left at KEEP stay as they are.
    """

    held: ClaimedCheckout
    trigger: Trigger | None
    action: audit.Action | None
    evidence: Mapping[str, object] = msgspec.field(default_factory=dict)
    # Facts that are established by then too, in their order; no call is made between them.
    further: tuple[Fact, ...] = ()
    actor: str = audit.SYSTEM
    due_in: float | Kept | None = KEEP
    # Seconds from now for which the lease lasts at least once the move has landed; only where it is kept.
    extends: float | None = None
    attempts: int = 0
    lookups: int | Kept = KEEP
    session_count: int | Kept = KEEP
    last_error: LastError | Kept | None = KEEP
    attention: Attention | Kept | None = KEEP
    deadline_in: float | Kept = KEEP
    offered: bool = False
    cancel_requested: bool = False
    late: bool = False
    slot_reserved: bool = False
    expires_in: float | Kept | None = KEEP
    money: tuple[int, int, int] | Kept = KEEP
    charged_back: int | Kept = KEEP
    reserved_until: datetime | Kept | None = KEEP
    require_capture: bool = False
    operations: tuple[Operation, ...] = ()
    # What was decided on which transactions (see `decisions.mark`); never together with `payments`.
    decided: Mapping[str, str] | None = None
    token: bytes | Kept = KEEP
    token_lifetime: float = 0.0
    session_id: str | Kept | None = KEEP
    methods: Sequence[Mapping[str, object]] | Kept | None = KEEP
    order: ChangedOrder | None = None
    # Whether the session has the order as it was before a change; one with another id has it as it is.
    outdated: bool | Kept = KEEP
    payments: tuple[PaymentRecord, ...] = ()
    read: tuple[UUID, ...] = ()
    done: tuple[tuple[UUID, CommandResult], ...] = ()
    events: tuple[Event, ...] = ()

    @property
    def changes_order(self) -> bool:
        """Whether the order, or whether the session has it, is written."""
        return self.order is not None or not isinstance(self.outdated, Keep)

    @property
    def releases(self) -> bool:
        """Say whether the lease is given back by this write."""
        return not isinstance(self.due_in, Keep)


class Changes(TypedDict, total=False):
    """What a move may change, as in `Move` (a test compares); what is left out stays as it is."""

    further: tuple[Fact, ...]
    due_in: float | Kept | None
    extends: float | None
    attempts: int
    lookups: int | Kept
    session_count: int | Kept
    last_error: LastError | Kept | None
    attention: Attention | Kept | None
    deadline_in: float | Kept
    offered: bool
    cancel_requested: bool
    late: bool
    slot_reserved: bool
    expires_in: float | Kept | None
    money: tuple[int, int, int] | Kept
    charged_back: int | Kept
    reserved_until: datetime | Kept | None
    require_capture: bool
    decided: Mapping[str, str] | None
    token: bytes | Kept
    token_lifetime: float
    session_id: str | Kept | None
    methods: Sequence[Mapping[str, object]] | Kept | None
    order: ChangedOrder | None
    outdated: bool | Kept
    payments: tuple[PaymentRecord, ...]
    read: tuple[UUID, ...]
    done: tuple[tuple[UUID, CommandResult], ...]
    events: tuple[Event, ...]


class MoveFields(Changes, total=False):
    """All of a move beside the checkout, the trigger and the action."""

    evidence: Mapping[str, object]
    actor: str
    operations: tuple[Operation, ...]


def events_of(move: Move) -> tuple[Event, ...]:
    """Return a move's events for the merchant: its own, and the change of attention."""
    if isinstance(move.attention, Keep):
        return move.events
    return (*move.events, *events.attention_changed(move.held.attention, move.attention))


def totals(move: Move) -> Totals:
    """Return the checkout's amounts after a move."""
    held = move.held
    reserved, captured, refunded = given(move.money, (held.reserved, held.captured, held.refunded))
    return Totals(
        reserved,
        max(held.captured, captured),
        max(held.refunded, refunded),
        given(move.charged_back, held.charged_back),
    )


def event_rows(
    checkout: ClaimedCheckout | Row[Any], announced: Sequence[Event], to: State, amounts: Totals
) -> list[dict[str, object]]:
    """Return the rows of new events of a checkout, which has this state and these amounts after them."""
    return [
        {
            "checkout_id": checkout.id,
            "sequence": number,
            "kind": event.type,
            "payload": events.stored(
                event,
                order_ref=checkout.order_ref,
                state=to,
                currency=checkout.currency,
                amount=checkout.amount,
                totals=amounts,
            ),
        }
        for number, event in enumerate(announced, start=checkout.event_sequence + 1)
    ]


_OPERATION: Final = named(Operation, "last_error", "mac")


def rows_beside(
    encryptor: Encryptor, move: Move, entries: Sequence[audit.Entry], announced: Sequence[dict[str, object]]
) -> dict[str, Sequence[dict[str, object]]]:
    """Return the rows that a move writes beside its checkout, by the parameter that takes them."""
    held = move.held
    checkout = {"checkout_id": held.id}
    return {
        "entries": [checkout | entry.row for entry in entries],
        "events": announced,
        "operations": [
            checkout
            | picked(operation, _OPERATION)
            | parts("last_error", operation.last_error)
            | {
                "reconciliation_identifier": operation.identifier,
                "mac": sign_operation(encryptor, held.id, held.merchant_id, operation),
            }
            for operation in move.operations
        ],
        "payments": [checkout | picked(payment, PAYMENT) for payment in move.payments],
        "read": [checkout | {"id": callback} for callback in move.read],
        "done": [checkout | {"id": command} | parts("result", result) for command, result in move.done],
    }


GUARD: Final = ("id", "merchant_id", "lease", "version", "wake")
"""Columns that decide whether a row may be written."""
_ASKED: Final = tuple("extends attempts offered cancel_requested late slot_reserved decided".split())
KEPT: Final = tuple(
    "lookups session_count last_error attention expires_in charged_back reserved_until session_id methods".split()
)
"""Fields of a move that are written as they are, or as the holder has them where the move says KEEP."""


def kept(move: Move) -> dict[str, Any]:
    """Return these fields as they stand after the move."""
    held = move.held
    return {name: getattr(held, name) if (value := getattr(move, name)) is KEEP else value for name in KEPT}


def row(
    move: Move,
    to: State,
    entries: Sequence[audit.Entry],
    *,
    announced: int,
    amounts: Totals,
    after: Mapping[str, Any],
) -> dict[str, object]:
    """Return the row of a checkout after a move with so many events; `after` is what `kept` returns."""
    held, order = move.held, move.order
    written: dict[str, object] = {
        **after,
        **parts("attention", after["attention"]),
        **parts("last_error", after["last_error"]),
        **picked(held, GUARD),
        **picked(move, _ASKED),
        "state": to,
        "release": move.releases,
        "due_in": given(move.due_in, None),
        "deadline_in": given(move.deadline_in, None),
        "ended": to in ENDED and held.state is not to,
        "reopened": move.trigger is Trigger.REOPENED,
        "require_capture": held.require_capture or move.require_capture,
        "reserved": amounts.reserved,
        "captured": amounts.captured,
        "refunded": amounts.refunded,
        "entries": len(entries),
        "audit_sequence": held.audit_sequence + len(entries),
        "mac": entries[-1].mac if entries else None,
        "event_sequence": held.event_sequence + announced,
        "correlation_id": held.correlation_id,
        "keeps_session": move.token is KEEP and move.session_id is KEEP and move.methods is KEEP,
        "token": given(move.token, None),
        "token_lifetime": None if move.token is KEEP else move.token_lifetime,
    }
    if move.changes_order:
        written["outdated"] = given(move.outdated, None)
    if order is not None:
        written |= msgspec.structs.asdict(order)
    return written

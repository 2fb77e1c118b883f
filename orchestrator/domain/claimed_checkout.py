"""A checkout under a lease, as its holder reads it: no judgement looks at anything else."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import msgspec

from orchestrator.domain.attention import Attention
from orchestrator.domain.last_error import LastError
from orchestrator.domain.records import Callback, Command, Operation, PaymentRecord, Role
from orchestrator.domain.states import State


def tick() -> float:
    """Return seconds of a clock that never goes back, and that also counts while this machine is suspended,
    where it has such a clock.

    A lease that a suspended machine holds has ended when the machine resumes, and its process must detect
    that.
    """
    return time.clock_gettime(_CLOCK)


_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Renewal:
    """When a lease ends by its last renewal (see `tick`).

    All copies of one `ClaimedCheckout` have the same one.
    """

    __slots__ = ("ends",)

    def __init__(self) -> None:
        self.ends = float("-inf")


# Not a dataclass: a move makes a copy with 50 fields.
class ClaimedCheckout(msgspec.Struct, frozen=True, kw_only=True):
    """A checkout under our lease, as it stood when claimed or after our own last move."""

    id: UUID
    merchant_id: int
    order_ref: str
    state: State
    version: int
    lease: UUID
    wake: int
    currency: str
    amount: int
    reserved: int
    captured: int
    refunded: int
    late: bool
    deadline: datetime
    offered_at: datetime | None
    cancel_requested_at: datetime | None
    ended_at: datetime | None
    charged_back: int
    reserved_until: datetime | None
    auto_capture: bool
    require_capture: bool
    slot_reserved: bool
    expires_in: float | None
    claims: int
    attempts: int
    lookups: int
    session_count: int
    last_error: LastError | None
    attention: Attention | None
    correlation_id: str
    audit_sequence: int
    audit_head: bytes
    event_sequence: int
    token: bytes | None
    token_expires_at: datetime | None
    session_id: str | None
    methods: list[dict[str, object]] | None
    intent: bytes | None
    data_key: bytes | None
    # What earlier lookups found at the gateway, and the decisions on it since.
    known: tuple[PaymentRecord, ...] = ()
    operations: tuple[Operation, ...] = ()
    callbacks: tuple[Callback, ...] = ()
    commands: tuple[Command, ...] = ()
    # Postgres's clock when we claimed, our own then (see `tick`), and when our own clock says that the lease
    # ends.
    claimed_at: datetime
    claimed_tick: float
    lease_ends: float
    renewal: Renewal = msgspec.field(default_factory=Renewal)
    # It was woken while we held it: the release has set the due time to now.
    woken: bool = False
    # The session at the gateway has the order as it was before a change.
    outdated: bool = False
    created_at: datetime | None = None

    def now(self) -> datetime:
        """Return Postgres's time, as far as our own clock has run since the claim."""
        return self.claimed_at + timedelta(seconds=tick() - self.claimed_tick)

    def lease_left(self) -> float:
        """Return how many seconds of the lease are left; no money call may be begun that could outlast it."""
        return max(self.lease_ends, self.renewal.ends) - tick()

    def held_for(self) -> float:
        """Return the seconds since it was claimed."""
        return tick() - self.claimed_tick

    @property
    def accepted(self) -> frozenset[str]:
        """The gateway transactions that completed it: a single one, or the parts that a person decided to
        keep as a whole.
        """
        return frozenset(payment.transaction_id for payment in self.known if payment.role == Role.ACCEPTED)

    @property
    def captures_itself(self) -> bool:
        """Whether the gateway captures the payment, as requested and unless it reported otherwise."""
        return self.auto_capture and not self.require_capture

    @property
    def operation(self) -> Operation | None:
        """The oldest operation that is not settled: one at a time is executed."""
        return next((operation for operation in self.operations if operation.open), None)

    @property
    def eventful(self) -> bool:
        """Whether a callback, a command or an operation requires the next step, and not only a due time."""
        return bool(self.callbacks or self.commands or self.operation)

"""Records of a checkout beside its row: callbacks, commands, the gateway's transactions, and money
operations.

There is one type of each, for all readers. Rows and JSON of Postgres are converted by the annotations; an
unknown word becomes the word that proves least.
"""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - rows are converted by these annotations
from dataclasses import dataclass, field
from datetime import datetime  # noqa: TC003 - as above
from enum import StrEnum
from typing import Any, Final, Protocol, Self
from uuid import UUID  # noqa: TC003 - as above

from orchestrator.domain.command_result import CommandResult  # noqa: TC001 - as above
from orchestrator.domain.last_error import LastError  # noqa: TC001 - as above
from orchestrator.domain.payment_meaning import PaymentMeaning


class Role(StrEnum):
    """What a transaction is to its checkout."""

    ACCEPTED = "accepted"
    SURPLUS = "surplus"
    ATTEMPT = "attempt"
    UNKNOWN = "unknown"


class Binding(StrEnum):
    """How a transaction was matched with the checkout."""

    BOUND = "bound"
    ORDER_REF = "order_ref"

    @classmethod
    def _missing_(cls, _: object) -> Self:
        return cls("order_ref")


class OperationKind(StrEnum):
    """What an operation does with money."""

    CAPTURE = "capture"
    REFUND = "refund"
    RELEASE = "release"


class OperationState(StrEnum):
    """`requested`: nothing has left.

    `submitted`: it may have. `unknown`: it has, and what came of it is not known.
    """

    REQUESTED = "requested"
    SUBMITTED = "submitted"
    SUCCEEDED = "succeeded"
    REJECTED = "rejected"
    UNKNOWN = "unknown"


class Cause(StrEnum):
    """The cause of an operation: a request; the order itself, which wants a capture; or a return of money by
    policy or by a person.
    """

    ASKED = "asked"
    AUTOMATIC = "automatic"
    RETURNED = "returned"


class CommandKind(StrEnum):
    """What may be asked of a checkout."""

    CANCEL = "cancel"
    REOPEN = "reopen"
    CAPTURE = "capture"
    REFUND = "refund"
    RELEASE = "release"
    RETRY = "retry"
    RECONCILE = "reconcile"
    RESOLVE = "resolve"
    CHANGE = "change"
    """The order, before its payment."""


class Decision(StrEnum):
    """What a person says of money that waits for a decision."""

    KEEP = "keep"
    RETURN = "return"
    DISMISS = "dismiss"


MOVES_MONEY: Final = frozenset({CommandKind.CAPTURE, CommandKind.REFUND, CommandKind.RELEASE})
"""Commands that become an operation."""
OPEN_OPERATIONS: Final = frozenset(
    {OperationState.REQUESTED, OperationState.SUBMITTED, OperationState.UNKNOWN}
)


@dataclass(frozen=True, slots=True)
class Callback:
    """A callback in the inbox that was not handled yet."""

    id: UUID
    kind: str
    grade: str
    # Whether the sender's address is one of the gateway's: inside, outside, unchecked.
    network: str
    # Sealed; the body is None where it is too large to be worth reading for its status.
    sender: bytes | None
    body: bytes | None
    digest: bytes
    received_at: datetime


@dataclass(frozen=True, slots=True)
class Command:
    """A requested command (cancel, capture, …), stored and not yet executed."""

    id: UUID
    kind: CommandKind
    actor: str
    reason: str | None = None
    expected_version: int | None = None
    # Names and values; in a row written from outside it may be anything.
    arguments: Any = field(default_factory=dict)
    # Under our key (see `checkouts.row_macs`); None: it was not stored by us.
    mac: bytes | None = None
    # The trail names it: it was taken before, whatever its row says.
    taken: bool = False
    requested_at: datetime | None = None
    handled_at: datetime | None = None
    result: CommandResult | None = None

    @property
    def transaction_id(self) -> str | None:
        """The transaction that it names, if any."""
        named = self.arguments.get("transactionId") if isinstance(self.arguments, dict) else None
        return named if isinstance(named, str) else None


class Amounts(Protocol):
    """What the gateway reports of a payment, in minor units of its currency."""

    @property
    def reserved(self) -> int: ...
    @property
    def captured(self) -> int: ...
    @property
    def refunded(self) -> int: ...
    @property
    def charged_back(self) -> int: ...


def still_held(amounts: Amounts) -> int:
    """Return what is held of the shopper's money: the reservation, or what was captured and did not go back.

    A capture of a part leaves the rest of the reservation to the shopper's bank in time; it is ours no more
    than nothing.
    """
    return max(left_to(OperationKind.REFUND, amounts), 0) if amounts.captured > 0 else amounts.reserved


def left_to(kind: OperationKind, amounts: Amounts) -> int:
    """Return how much can still be captured, refunded or released; less than 0 where more was done than there
    was.

    What the shopper's bank took back is with the shopper already.
    """
    if kind == OperationKind.REFUND:
        return amounts.captured - amounts.refunded - amounts.charged_back
    return amounts.reserved - amounts.captured


@dataclass(frozen=True, slots=True)
class PaymentRecord:
    """One gateway transaction, as a lookup shows it or as stored; amounts in minor units of its currency.

    `decided` holds the decisions on it (see `decisions`). `raw_amounts` are the texts of amounts that cannot
    be read, whose numbers here mean nothing; None where all are read. The accepted payment is never demoted.
    """

    transaction_id: str
    role: Role
    binding: Binding
    meaning: PaymentMeaning
    currency: str
    reserved: int
    captured: int
    refunded: int
    charged_back: int = 0
    decided: str | None = None
    status: str = ""
    surcharge: int = 0
    flags: tuple[str, ...] = ()
    payment_id: str | None = None
    order_ref: str = ""
    raw_amounts: Mapping[str, str] | None = None
    first_seen_at: datetime | None = None
    updated_at: datetime | None = None

    @property
    def left(self) -> int:
        """What it still holds of the shopper's money, in minor units."""
        return 0 if self.meaning == PaymentMeaning.NOTHING else still_held(self)

    def is_decided(self, *words: str) -> bool:
        """Whether a person decided on any of these words for it, on whatever facts."""
        return any(mark.partition("=")[0] in words for mark in (self.decided or "").split())


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A capture, refund or release: requested → submitted → succeeded | rejected | unknown.

    Amounts in minor units. `total_before` is what the gateway had captured (for a refund: refunded) of the
    transaction before it was submitted.
    """

    id: UUID
    transaction_id: str
    kind: OperationKind
    amount: int
    currency: str
    state: OperationState
    cause: Cause
    actor: str
    reason: str | None = None
    command_id: UUID | None = None
    total_before: int | None = None
    attempts: int = 0
    last_error: LastError | None = None
    requested_at: datetime | None = None
    submitted_at: datetime | None = None
    settled_at: datetime | None = None
    # Of the row as it was read, under our key (see `checkouts.row_macs`); None: no worker wrote it, or it was
    # not read.
    mac: bytes | None = None

    @property
    def open(self) -> bool:
        """Whether it may still have, or get, an effect at the gateway."""
        return self.state in OPEN_OPERATIONS

    @property
    def identifier(self) -> str:
        """The reconciliation identifier by which the gateway's books name it (at most 100 characters; D8)."""
        return str(self.id)

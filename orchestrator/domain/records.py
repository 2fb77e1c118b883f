"""What the holder of a checkout knows beside its row: callbacks, commands, the gateway's transactions, and money operations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from uuid import UUID

    from orchestrator.domain.last_error import LastError

OPEN_OPERATIONS: Final = frozenset({"requested", "submitted", "unknown"})


@dataclass(frozen=True, slots=True)
class Callback:
    """A callback in the inbox that nobody has acted on yet."""

    id: UUID
    kind: str
    grade: str
    content_type: str
    # Whether the sender's address is one of the gateway's: inside, outside, unchecked.
    network: str
    # Sealed; None where it is too large to be worth reading for its status.
    body: bytes | None
    digest: bytes


@dataclass(frozen=True, slots=True)
class Command:
    """What somebody asked for (cancel, capture, …), stored and not yet acted on."""

    id: UUID
    kind: str
    actor: str
    reason: str | None
    expected_version: int | None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    # Under our key (see `checkouts.row_macs`); None: it was not stored by us.
    mac: bytes | None = None
    # The trail names it: it was taken before, whatever its row says.
    taken: bool = False


@dataclass(frozen=True, slots=True)
class PaymentRecord:
    """A gateway transaction as an earlier lookup left it. `decided` holds what was decided on it (see `decisions`)."""

    transaction_id: str
    role: str
    binding: str
    meaning: str
    currency: str
    reserved: int
    captured: int
    refunded: int
    charged_back: int
    decided: str | None
    status: str = ""
    surcharge: int = 0
    flags: tuple[str, ...] = ()

    @property
    def left(self) -> int:
        """What of the shopper's money it still holds, in minor units."""
        return money_left(self.meaning, self.reserved, self.captured, self.refunded + self.charged_back)

    def is_decided(self, *words: str) -> bool:
        """Whether a person decided on any of these words for it, on whatever facts."""
        return any(mark.partition("=")[0] in words for mark in (self.decided or "").split())


def money_left(meaning: str, reserved: int, captured: int, back: int) -> int:
    """Return what a transaction still holds of the shopper's money: its reservation, or what was captured and is not `back` again.

    A capture of a part leaves the rest of the reservation to the shopper's bank in time; it is ours no more than nothing.
    """
    if meaning == "nothing":
        return 0
    return max(captured - back, 0) if captured > 0 else reserved


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A capture, refund or release: requested → submitted → succeeded | rejected | unknown. Amounts in minor units.

    `requested`: nothing has left for the gateway. `submitted`: it may have. `unknown`: it has, and what came of it is not known.
    `total_before` is what the gateway had captured (for a refund: refunded) of the transaction before it was submitted.
    """

    id: UUID
    transaction_id: str
    kind: str
    amount: int
    currency: str
    state: str
    cause: str
    actor: str
    reason: str | None = None
    command_id: UUID | None = None
    total_before: int | None = None
    attempts: int = 0
    last_error: LastError | None = None
    submitted_at: datetime | None = None
    # Of the row as it was read, under our key (see `checkouts.row_macs`); None: no worker wrote it, or it was not read.
    mac: bytes | None = None

    @property
    def open(self) -> bool:
        """Whether it may still have, or get, an effect at the gateway."""
        return self.state in OPEN_OPERATIONS

    @property
    def identifier(self) -> str:
        """The reconciliation identifier by which the gateway's books name it (at most 100 characters; D8)."""
        return str(self.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedPayment:
    """One gateway transaction as a lookup showed it; amounts in minor units. The accepted one is never demoted.

    `raw_amounts` are the texts of amounts that cannot be read, whose numbers here mean nothing; None where all are read.
    """

    transaction_id: str
    payment_id: str | None
    order_ref: str
    role: str
    binding: str
    status: str
    meaning: str
    currency: str
    reserved: int
    captured: int
    refunded: int
    charged_back: int = 0
    surcharge: int = 0
    flags: tuple[str, ...] = ()
    raw_amounts: Mapping[str, str] | None = None

"""How far a command is, from its row and from what it began."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

from orchestrator.domain.command_result import DONE, ResultCode
from orchestrator.domain.records import CommandKind, OperationState
from orchestrator.domain.states import ENDED, State

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from orchestrator.domain.records import Command, Operation


class CommandState(StrEnum):
    """How far a command is; the last three are final."""

    PENDING = "pending"
    """Stored; no worker has taken it up."""
    UNDER_WAY = "under_way"
    """A worker has accepted it, and what it began has not ended: a money operation, or a cancellation."""
    DONE = "done"
    REFUSED = "refused"
    """Nothing was done; the result says why."""
    FAILED = "failed"
    """What it began came to nothing: the gateway rejected the operation, or a payment was found before the
    cancellation took effect."""


FINAL: Final = frozenset({CommandState.DONE, CommandState.REFUSED, CommandState.FAILED})


def progress(
    command: Command,
    operations: Sequence[Operation],
    *,
    state: State,
    late: bool,
    cancel_requested_at: datetime | None,
    ended_at: datetime | None,
) -> tuple[CommandState, datetime | None]:
    """Return how far a command is, and when it ended (None while it has not).

    `operations` are those that it began; the rest is how its checkout stands.
    """
    handled_at, result = command.handled_at, command.result
    if handled_at is None or result is None:
        return CommandState.PENDING, None
    if result.refused:
        return CommandState.REFUSED, handled_at
    if operations:
        if any(one.open for one in operations):
            return CommandState.UNDER_WAY, None
        ended = [one.settled_at for one in operations if one.settled_at is not None]
        rejected = any(one.state == OperationState.REJECTED for one in operations)
        return CommandState.FAILED if rejected else CommandState.DONE, max(ended, default=handled_at)
    if command.kind is not CommandKind.CANCEL or result.code in DONE or result.code is ResultCode.OTHER:
        return CommandState.DONE, handled_at
    if cancel_requested_at is None or cancel_requested_at > handled_at:
        # It took effect, and the checkout was reopened afterwards.
        return CommandState.DONE, handled_at
    if state not in ENDED:
        return CommandState.UNDER_WAY, None
    # Money that came after the end does not undo it.
    found = state is State.COMPLETED and not late
    return CommandState.FAILED if found else CommandState.DONE, ended_at or handled_at

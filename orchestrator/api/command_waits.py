"""Waiting for commands (`Prefer: wait=10`): one poller for all that wait in a process."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from orchestrator.api.long_poll import LongPoll, Waiter
from orchestrator.store import read_model

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from uuid import UUID

    from orchestrator.store.database import Database
    from orchestrator.store.read_model import CommandRecord

LONGEST_WAIT: Final = 20
"""Seconds."""
_WAIT: Final = re.compile(r"""wait\s*=\s*("?)([0-9]{1,9})\1\s*(;.*)?""", re.IGNORECASE)


@dataclass(slots=True, eq=False)
class CommandWait(Waiter["CommandRecord | None"]):
    """A client that waits until a command is finished."""

    command: UUID

    def unanswered(self) -> CommandRecord | None:
        """Return nothing: it is not finished yet."""
        return None


class CommandWaits(LongPoll[CommandWait, "CommandRecord | None"]):
    """The clients of one process that wait for commands."""

    name = "command-waits"

    def __init__(self, db: Database, *, most: int) -> None:
        super().__init__(most=most)
        self._db = db

    async def _ask(self, clients: Sequence[CommandWait]) -> bool:
        found = await read_model.commands(self._db, {client.command for client in clients})
        for client in clients:
            record = found.get(client.command)
            if record is not None and record.finished and not client.found.done():
                client.found.set_result(record)
        return False


def wait_of(preferences: Iterable[str]) -> int | None:
    """Return the seconds of `wait` in headers `Prefer` (RFC 7240), at most `LONGEST_WAIT`; None where there
    is none that could be honoured. The first counts; what is not known is ignored.
    """
    for preference in ",".join(preferences).split(","):
        if (found := _WAIT.fullmatch(preference.strip())) is not None:
            return min(int(found[2]), LONGEST_WAIT)
    return None

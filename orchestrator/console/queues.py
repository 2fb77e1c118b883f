"""The queues of the broker for the overview: read in a thread of their own, at most every few seconds, and
never waited for by a page.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from orchestrator import log
from orchestrator.messaging.publisher import reason_of
from orchestrator.messaging.queue_depths import QueueDepths

if TYPE_CHECKING:
    from orchestrator.messaging.queue_depths import QueueDepth
    from orchestrator.settings import Settings

_log = log.get(__name__)

EVERY: Final = 5.0
OLD: Final = 3 * EVERY
"""Seconds after which figures are not shown as present ones any more."""
WAIT: Final = 0.25
"""Seconds for which a page waits for the first reading, and for one that it begins where the last is old."""


@dataclass(frozen=True, slots=True)
class Read:
    """What was read last; `trouble`: why the broker did not answer; `since`: when there were figures last,
    where there are no present ones.
    """

    rows: tuple[QueueDepth, ...] = ()
    trouble: str | None = None
    known: bool = False
    since: datetime | None = None


class Queues:
    """The last reading of one process; on its event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._depths: QueueDepths | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="console-queues")
        self._reading: asyncio.Future[Read] | None = None
        self._read = Read()
        self._at = float("-inf")
        self._figures_at: datetime | None = None

    async def read(self) -> Read:
        """Return the last reading, and begin another where it is old."""
        if self._settings.broker_url is None:
            return self._read
        waits = not self._read.known
        if self._reading is None and time.monotonic() - self._at >= EVERY:
            self._reading = asyncio.get_running_loop().run_in_executor(self._thread, self._ask)
            self._reading.add_done_callback(self._note)
            waits = waits or self._old
        if self._reading is not None and waits:
            await asyncio.wait((self._reading,), timeout=WAIT)
        if self._old and self._read.trouble is None:
            return Read(known=True, since=self._figures_at)
        return self._read

    @property
    def _old(self) -> bool:
        return self._read.known and time.monotonic() - self._at >= OLD

    def _note(self, reading: asyncio.Future[Read]) -> None:
        self._read, self._reading, self._at = reading.result(), None, time.monotonic()
        if self._read.trouble is None:
            self._figures_at = datetime.now(UTC)
        else:
            self._read = replace(self._read, since=self._figures_at)

    def _ask(self) -> Read:
        try:
            if self._depths is None:
                self._depths = QueueDepths(self._settings)
            return Read(tuple(self._depths.read()), known=True)
        except Exception as error:  # noqa: BLE001 - the page says it, whatever it was
            _log.info("queues_not_read", **log.cause(error))
            return Read(trouble=reason_of(error), known=True)

    def close(self) -> None:
        """Close the connection once the thread is done with it; a reading that hangs is not waited for."""
        if self._depths is not None:
            self._thread.submit(self._depths.close)
        self._thread.shutdown(wait=False)

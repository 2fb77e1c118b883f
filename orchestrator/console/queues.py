"""The queues of the broker for the overview: read in a thread of their own, at most every few seconds, and
never waited for by a page.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from orchestrator import log
from orchestrator.messaging.publisher import reason_of
from orchestrator.messaging.queue_depths import QueueDepths

if TYPE_CHECKING:
    from orchestrator.messaging.queue_depths import QueueDepth
    from orchestrator.settings import Settings

_log = log.get(__name__)

EVERY: Final = 5.0
WAIT: Final = 0.25
"""Seconds for which the first page waits for the first reading."""


@dataclass(frozen=True, slots=True)
class Read:
    """What was read last; `trouble`: why the broker did not answer."""

    rows: tuple[QueueDepth, ...] = ()
    trouble: str | None = None
    known: bool = False


class Queues:
    """The last reading of one process; on its event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._depths: QueueDepths | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="console-queues")
        self._reading: asyncio.Future[Read] | None = None
        self._read = Read()
        self._at = float("-inf")

    async def read(self) -> Read:
        """Return the last reading, and begin another where it is old."""
        if self._settings.broker_url is None:
            return self._read
        if self._reading is None and time.monotonic() - self._at >= EVERY:
            self._reading = asyncio.get_running_loop().run_in_executor(self._thread, self._ask)
            self._reading.add_done_callback(self._note)
        if self._reading is not None and not self._read.known:
            await asyncio.wait((self._reading,), timeout=WAIT)
        return self._read

    def _note(self, reading: asyncio.Future[Read]) -> None:
        self._read, self._reading, self._at = reading.result(), None, time.monotonic()

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

"""The last resort of a process that was asked to end and does not come to its end, whatever hangs in it."""

from __future__ import annotations

import os
import threading
from typing import Final

from orchestrator import log

_log = log.get(__name__)

FAILED: Final = 1
"""The exit status of a process that ended by a fault, or that left work behind."""


def end_within(seconds: float, process: str, *, status: int = FAILED) -> None:
    """End this process by force if it still runs after so long; what it holds is in Postgres, with its due time."""

    def end() -> None:
        # In a thread of its own: what hangs may be whatever reads our log.
        line = threading.Thread(
            target=lambda: _log.error("shutdown_timed_out", process=process, seconds=seconds), daemon=True
        )
        line.start()
        line.join(1.0)
        os._exit(status)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()

"""The end of a process: its background tasks end, or are given up, and if something hangs the process is
ended by force.
"""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING, Any, Final

from orchestrator import log

if TYPE_CHECKING:
    from collections.abc import Iterable

_log = log.get(__name__)

FAILED: Final = 1
"""The exit status of a process that ended by a fault, or that left work behind."""

AGAIN_AFTER: Final = 3.0
"""Seconds after which a task that did not end is cancelled again."""
MOST_CANCELS: Final = 3
"""Cancellations of one task, after which it is given up."""


async def cancelled(tasks: Iterable[asyncio.Task[Any]], *, again_after: float = AGAIN_AFTER) -> None:
    """Cancel tasks, and wait until they have ended or are given up, which is logged; their errors are
    dropped.

    A client may answer a cancellation with an error of its own, and a loop that continues after errors then
    continues.
    """
    every = tuple(tasks)
    left = {task for task in every if not task.done()}
    for _ in range(MOST_CANCELS):
        for task in left:
            task.cancel()
        if left:
            _, left = await asyncio.wait(left, timeout=again_after)
    for task in left:
        _log.error("background_task_not_ended", task=task.get_name())
    await asyncio.gather(*(task for task in every if task not in left), return_exceptions=True)


def end_within(seconds: float, process: str) -> None:
    """End this process by force after so long; what it holds is in Postgres with its due time."""

    def end() -> None:
        # In a thread of its own: what hangs may be whatever reads our log.
        line = threading.Thread(
            target=lambda: _log.error("shutdown_timed_out", process=process, seconds=seconds), daemon=True
        )
        line.start()
        line.join(1.0)
        os._exit(FAILED)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()

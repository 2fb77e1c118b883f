"""The end of a process that makes no progress.

A worker whose event loop stands still, or whose dispatcher claims nothing while hints wait, does no work and
seems alive. It logs that and ends with a status that restarts it. All is counted in checks of this thread,
not in seconds of a clock: a machine that was suspended has not stood still for hours.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.processing.dispatcher import Dispatcher

CHECK_INTERVAL: Final = 1.0
"""Seconds between two checks."""


class Watchdog:
    """Watches one event loop and the dispatcher on it; `most` checks without progress are a fault, logged
    once.
    """

    def __init__(self, *, most: int, fault: Callable[[str], None]) -> None:
        self._most, self._tell = most, fault
        self._dispatcher: Dispatcher | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self.ticks = 0
        """Grows while the event loop runs; the loop itself counts it up at least once between two checks."""

    def start(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._thread.start()

    def stop(self) -> None:
        """Look no more: the process ends in order."""
        self._ended.set()

    def _watch(self) -> None:
        dispatcher = self._dispatcher
        assert dispatcher is not None  # noqa: S101 - `start` has set it
        ticks, rounds, sticky, stuck = -1, -1, 0, 0
        while not self._ended.wait(CHECK_INTERVAL):
            sticky = sticky + 1 if self.ticks == ticks else 0
            stuck = stuck + 1 if dispatcher.waiting and dispatcher.rounds == rounds else 0
            ticks, rounds = self.ticks, dispatcher.rounds
            fault = (
                "the dispatcher ended"
                if dispatcher.ended
                else "the event loop stands still"
                if sticky >= self._most
                else "the dispatcher claims nothing while hints wait"
                if stuck >= self._most
                else None
            )
            if fault is not None:
                self._tell(fault)
                return

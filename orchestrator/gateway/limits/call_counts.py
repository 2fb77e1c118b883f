"""Counts of the calls to one gateway in the last minute or two, for people: how many, how many failed, how
long they took.
"""

from __future__ import annotations

import time
from typing import Final, NamedTuple

WINDOW: Final = 60.0
"""Seconds; what is shown has the last whole window and the one that has begun."""


class Counted(NamedTuple):
    """Calls, those that the gateway did not serve, and seconds of all calls together."""

    calls: int
    failed: int
    seconds: float


class CallCounts:
    """The counts of one gateway; a call costs three additions."""

    __slots__ = ("_before", "_began", "_calls", "_failed", "_seconds")

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._calls = self._failed = 0
        self._seconds = 0.0
        self._before = Counted(0, 0, 0.0)

    def add(self, seconds: float, *, failed: bool) -> None:
        self._turn()
        self._calls += 1
        self._failed += failed
        self._seconds += seconds

    def read(self) -> Counted:
        self._turn()
        calls, failed, seconds = self._before
        return Counted(calls + self._calls, failed + self._failed, seconds + self._seconds)

    def _turn(self) -> None:
        age = time.monotonic() - self._began
        if age < WINDOW:
            return
        last = Counted(self._calls, self._failed, self._seconds)
        self._before = last if age < 2 * WINDOW else Counted(0, 0, 0.0)
        self._began += age - age % WINDOW
        self._calls = self._failed = 0
        self._seconds = 0.0

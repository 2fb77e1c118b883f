"""The circuit breaker of one gateway: after a run of calls that it did not serve, its circuit is open for a
while, then a few calls try it.

closed ── a run of failures, none older than a minute ──► open ── its pause is over ──► half-open: a few
probes at a time closed ◄── any call that it serves ── open or half-open        half-open ── a probe fails ──►
open, for twice as long

Served is whatever shows that the gateway works, refusals and declines too. Arithmetic only; `now` is seconds
of a monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

WINDOW: Final = 60.0
"""Seconds after which a failure begins a new run: what fails so seldom is no gateway that is down."""
FIRST_PAUSE: Final = 2.0
"""Seconds of the first pause; it doubles with each probe that fails."""
PROBES: Final = 3
"""Calls of one process that try a gateway at once when its pause is over."""
SAME: Final = 0.5
"""Seconds by which one pause's end may differ between clocks."""
PROBING: Final = 1.0
"""Seconds after which to come again while others try."""


@dataclass(slots=True)
class CircuitBreaker:
    """Opens after `run` failures in a row (0: never), for at most `longest` seconds at a time."""

    run: int
    longest: float
    failures: int = 0
    """In a row, while it is closed."""
    _failed_at: float = float("-inf")
    _until: float | None = None
    """The end of the pause; None while it is closed."""
    _pauses: int = 0
    _probes: int = 0

    @property
    def closed(self) -> bool:
        return self._until is None

    def wait(self, now: float) -> float:
        """Return the seconds until a call may be made; 0: now."""
        if self._until is None:
            return 0.0
        if now < self._until:
            return self._until - now
        return PROBING if self._probes >= PROBES else 0.0

    def enter(self) -> bool:
        """Begin a call that need not wait; say whether it is a probe, which must `leave`."""
        if self._until is None:
            return False
        self._probes += 1
        return True

    def leave(self) -> None:
        """End a probe, whatever came of it."""
        self._probes -= 1

    def served(self) -> bool:
        """Note that the gateway works; say whether that is news."""
        news = self._until is not None
        self.failures, self._until, self._pauses = 0, None, 0
        return news

    def failed(self, now: float) -> float | None:
        """Note a call that was not served; return for how many seconds the circuit is open, if news."""
        if self._until is None:
            self.failures = self.failures + 1 if now - self._failed_at <= WINDOW else 1
            self._failed_at = now
            if not self.run or self.failures < self.run:
                return None
        elif now < self._until:
            return None  # it was under way when the pause began
        pause = min(FIRST_PAUSE * 2.0**self._pauses, self.longest)
        self._begin(now + pause)
        return pause

    def observe(self, until: float, now: float) -> bool:
        """Note until when another process sends nothing, at most as long as we would; say if it is news."""
        until = min(until, now + self.longest)
        if self._until is not None and until <= self._until + SAME:
            return False
        news = self._until is None
        self._begin(until)
        return news

    def _begin(self, until: float) -> None:
        self.failures, self._until = 0, until
        self._pauses = min(self._pauses + 1, 30)

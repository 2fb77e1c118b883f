"""How many deliveries to one endpoint are under way at a time: as many as it can handle, measured by its
answers.

The allowance grows with each delivery that succeeds, and shrinks to three fifths when the endpoint is
overloaded (429, 502, 503, 504, no connection, no answer). The allowance at the overload is stored: it is
approached fast, and passed slowly, so that few deliveries are refused. Below one it means a distance in time:
at an allowance of a half, a delivery begins when twice the time of an answer has passed. That time is the one
that answers took while the allowance was one or more: a rate that an endpoint takes has nothing to do with
how fast it answers one delivery at a time. Pure values; the caller gives the time in seconds of any clock
that does not go back.
"""

from __future__ import annotations

from typing import Final

FIRST: Final = 4.0
LEAST: Final = 1 / 1024
IN_A_ROW: Final = 3
"""Times that the allowance shrinks while no event is taken and no answer says that they are too many."""
DECREASE: Final = 0.6
NEAR: Final = 0.75
FAR: Final = 4.0
"""Between these parts of where it was refused last, the allowance grows slowly: an endpoint may bear more for
a moment than it bears for long."""
SLOWLY: Final = 0.002
CAREFULLY: Final = 0.03
"""Parts of the usual growth: near to where it was refused last, and beyond it."""
SHORTEST: Final = 0.001
"""Seconds that an answer counts as at least."""
LONGEST_DISTANCE: Final = 60.0
_SMOOTHING: Final = 0.2


class Pace:
    """The allowance of one endpoint in one process; at most `limit` at a time."""

    __slots__ = (
        "_ceiling",
        "_decreased_at",
        "_refused",
        "_seconds",
        "allowance",
        "begins_at",
        "in_flight",
        "limit",
    )

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.allowance = min(FIRST, float(limit))
        self.in_flight = 0
        self.begins_at = float("-inf")
        """Nothing is to begin before this time."""
        self._ceiling: float | None = None
        self._decreased_at = float("-inf")
        self._refused = 0
        """Times that the allowance shrank since an event was taken."""
        self._seconds = SHORTEST

    def free(self, now: float) -> int:
        """Return how many deliveries may begin now."""
        if now < self.begins_at:
            return 0
        return max(min(int(self.allowance), self.limit), 1) - self.in_flight

    def begin(self, now: float) -> float:
        """Count a delivery as under way; return when it began, for the methods below."""
        self.in_flight += 1
        if self.allowance < 1:
            self.begins_at = now + min(self._seconds / self.allowance, LONGEST_DISTANCE)
        return now

    def ended(self, began: float, now: float) -> None:
        """Count an answer that shows nothing about the endpoint's load."""
        self.in_flight -= 1
        if self.allowance >= 1:
            self._seconds += _SMOOTHING * (max(now - began, SHORTEST) - self._seconds)

    def succeeded(self, began: float, now: float) -> None:
        """Count an answer that took the event."""
        self.ended(began, now)
        self._refused = 0
        grown = min(1 / self.allowance, self.allowance * 0.1)
        if self._ceiling is not None:
            passed = self.allowance / self._ceiling
            if NEAR <= passed < FAR:
                grown *= min(max((passed - 1) ** 3, SLOWLY), CAREFULLY)
        self.allowance = min(self.allowance + grown, float(self.limit))

    def overloaded(self, began: float, now: float, *, throttled: bool = True) -> None:
        """Count an overload of the endpoint; `throttled`: its answer says that there are too many deliveries.

        Deliveries that were under way when the allowance shrank last concern the same overload, and shrink it
        no more. Nor does an endpoint that takes nothing for a moment, because it is started anew: that shows
        nothing about the load that it takes, and if it lasts, the circuit opens.
        """
        self.in_flight -= 1
        if began < self._decreased_at or (self._refused >= IN_A_ROW and not throttled):
            return
        self._decreased_at = now
        self._refused += 1
        self._ceiling = self.allowance
        self.allowance = max(self.allowance * DECREASE, LEAST)

    def restart(self) -> None:
        """Restart with one delivery at a time: the endpoint works again, or is to be tried again.

        Failures before that say nothing about the load that it takes now.
        """
        self._ceiling, self._refused = None, 0
        self.allowance, self.begins_at = min(1.0, float(self.limit)), float("-inf")

"""A gateway's budget of calls per second: permits on a schedule (GCRA), taken in batches, from the shared
budget or from this process's part.

`Schedule` is the arithmetic, for one process; `SCRIPT` is the same in Redis, for all of them. A process keeps
a tenth of a second's permits in hand, so that a call costs no round trip; permits not used within a second
are lost, so that no process saves up for a burst. Together the calls of no second are more than a third above
the budget.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, NamedTuple

BURST: Final = 0.2
"""Seconds of the budget that may be called ahead of the schedule."""
BATCH: Final = 0.1
"""Seconds of the budget that a process takes at once."""
KEPT: Final = 1.0
"""Seconds for which permits in hand are good."""

# The next free moment of the schedule, in microseconds of Redis's clock; it is removed when it has passed.
# Whatever value Redis has, it is no further ahead than a burst, as the schedule leaves it.
SCRIPT: Final = """
local now = redis.call('TIME')
now = now[1] * 1000000 + now[2]
local apart, burst, want = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local next = math.min(math.max(now, tonumber(redis.call('GET', KEYS[1]) or 0) or 0), now + burst)
local granted = math.min(want, math.floor((now + burst - next) / apart))
if granted < 1 then return {0, next + apart - burst - now} end
next = next + granted * apart
redis.call('SET', KEYS[1], string.format('%.0f', next), 'PX', math.ceil((next - now) / 1000) + 1000)
return {granted, 0}
"""


class Grant(NamedTuple):
    """So many permits; if none, the seconds after which to ask again."""

    permits: int
    wait: float


def batch(rate: float) -> int:
    return max(int(rate * BATCH), 1)


def arguments(rate: float) -> tuple[int, int]:
    """Return the script's arguments: microseconds between two permits, and how far one may be ahead."""
    apart = 1_000_000 / rate
    return math.ceil(apart), math.ceil(max(BURST * 1_000_000, apart))


@dataclass(slots=True)
class Schedule:
    """The schedule of one process alone; `now` is seconds of a monotonic clock."""

    _next: float = float("-inf")

    def take(self, want: int, rate: float, now: float) -> Grant:
        apart = 1.0 / rate
        ahead = max(BURST, apart)
        start = max(self._next, now)
        # A hair more than nothing, against rounding: the moment that was named must be late enough.
        granted = min(want, math.floor((now + ahead - start) / apart + 1e-6))
        if granted < 1:
            return Grant(0, start + apart - ahead - now)
        self._next = start + granted * apart
        return Grant(granted, 0.0)

"""When a delivery is tried again: soon at first, then every twelve hours, for thirty days."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

DELAYS: Final = (5.0, 30.0, 120.0, 600.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 43_200.0)
"""Seconds after the first failure, the second, and so on; the last one holds from then on."""
JITTER: Final = 0.2
"""A delay is up to so much longer, as a part of it."""
GIVE_UP_AFTER: Final = 30 * 86_400.0
"""Seconds since the first failure after which an event is tried no more."""
RETRY_AFTER_CAP: Final = 86_400.0
"""Seconds. An endpoint may ask for a day at the most."""
OPEN_FIRST: Final = 5.0
OPEN_CAP: Final = 300.0
"""Seconds for which a circuit is open at first, and at the most; it doubles with each probe that fails."""


def delay(failures: int, *, at_least: float = 0.0, draw: Callable[[], float] = random.random) -> float:
    """Return the seconds until the next try after so many failures (1 or more) of one event, and not before
    `at_least`.
    """
    base = DELAYS[min(failures, len(DELAYS)) - 1]
    return max(base, at_least) * (1 + JITTER * draw())


def open_for(times: int, *, at_least: float = 0.0, draw: Callable[[], float] = random.random) -> float:
    """Return the seconds for which a circuit is open that has opened so many times in a row (1 or more)."""
    base: float = min(OPEN_FIRST * 2.0 ** min(times - 1, 10), OPEN_CAP)
    return max(base, at_least) * (1 + JITTER * draw())

"""The search for the highest rate that is held: up by a quarter until a rate is not, then twice the middle
between the two.

How a rate is tried is up to the caller. `Try` defines what counts as held: nothing lost or doubled,
everything answered and soon, and the backlog at the end of the arrivals gone within seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

STEP: Final = 1.25
BISECTIONS: Final = 2
MOST_STEPS: Final = 40
LEAST_RATE: Final = 1.0

INTAKE_P99: Final = 1000.0
"""Milliseconds."""
DRAINS_WITHIN: Final = 5.0
"""Seconds after the last shopper can have paid."""


@dataclass(frozen=True, slots=True)
class Try:
    """The result of one rate."""

    rate: float
    clean: bool
    """Nothing was lost, doubled or unequal."""
    failed: int
    """Intents that were not taken."""
    intake_p99: float
    drained_after: float | None
    """Seconds from the end of the arrivals, less what the last shopper thought; None: it did not drain."""

    @property
    def held(self) -> bool:
        return (
            self.clean
            and not self.failed
            and self.intake_p99 < INTAKE_P99
            and self.drained_after is not None
            and self.drained_after <= DRAINS_WITHIN
        )

    @property
    def why(self) -> str:
        """Say in a few words why it was not held, or how well it was."""
        if not self.clean:
            return "lost, doubled or unequal orders"
        if self.failed:
            return f"{self.failed} intents were not taken"
        if self.drained_after is None:
            return "the backlog did not drain"
        return f"intake p99 {self.intake_p99:.0f} ms, drained after {max(self.drained_after, 0):.1f} s"


async def search(start: float, attempt: Callable[[float], Awaitable[Try]]) -> tuple[float | None, list[Try]]:
    """Return the highest rate that was held (None: not even a slow one), and all that was tried."""
    tries: list[Try] = []
    held: float | None = None
    refused: float | None = None
    rate = start

    async def holds(rate: float) -> bool:
        tries.append(await attempt(rate))
        return tries[-1].held

    while len(tries) < MOST_STEPS and (held is None or refused is None) and rate >= LEAST_RATE:
        if await holds(rate):
            held, rate = rate, rate * STEP
        else:
            refused, rate = rate, rate / 2
    if held is not None and refused is not None:
        for _ in range(BISECTIONS):
            middle = (held + refused) / 2
            held, refused = (middle, refused) if await holds(middle) else (held, middle)
    return held, tries

"""The gateway's client, counting its calls by name, and recording when it looks payments up."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from orchestrator.gateway.client import Gateway

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.settings import Settings


class Counting(Gateway):
    """Times are in seconds: those that really went by, and those that were `skipped`."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.calls: Counter[str] = Counter()
        self.lookups: list[float] = []
        self.skipped = 0.0
        self._began = time.monotonic()

    async def _call(self, name, *arguments, **options):
        self.calls[name] += 1
        if name == "find_payments":
            self.lookups.append(self.skipped + time.monotonic() - self._began)
        return await super()._call(name, *arguments, **options)


def fullest(times: Sequence[float], seconds: float = 60.0) -> int:
    """Return how many of them lie within so many seconds at most, wherever these begin."""
    most, first, ordered = 0, 0, sorted(times)
    for last, at in enumerate(ordered):
        while ordered[first] <= at - seconds:
            first += 1
        most = max(most, last - first + 1)
    return most

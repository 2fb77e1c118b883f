"""The latency of the light gateway: none, a constant, or log-normal, as in real services.

A log-normal distribution is given by two of its percentiles in milliseconds, the usual way to describe a
service. Numbers drawn here are seconds.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from random import Random

Z99: Final = 2.3263478740408408
"""Standard deviations below which 99 % of a normal distribution lie."""
LONGEST: Final = 60_000.0
"""Milliseconds; no call of ours waits longer."""

_TAKES: Final = "0, a number of milliseconds, or lognormal:P50,P99 such as lognormal:120,380"


@dataclass(frozen=True, slots=True)
class Latency:
    """Answer times: `median` in seconds, `sigma` of its logarithm (0: always the median)."""

    median: float
    sigma: float = 0.0

    def draw(self, random: Random) -> float:
        if not self.sigma:
            return self.median
        return self.median * math.exp(random.gauss(0.0, self.sigma))


def parse(text: str) -> Latency:
    """Read a latency as it is typed; `ValueError` with what it takes."""
    kind, separator, rest = text.strip().partition(":")
    with suppress(ValueError):
        if not separator:
            return Latency(_seconds(kind))
        median, high = (_seconds(part) for part in rest.split(","))
        if kind == "lognormal" and 0 < median <= high:
            return Latency(median, math.log(high / median) / Z99)
    message = f"must be {_TAKES}, not {text!r}"
    raise ValueError(message)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value <= LONGEST:  # NaN compares false
        raise ValueError
    return value / 1000

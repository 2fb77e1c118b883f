"""The arithmetic of a run: percentiles of what was measured, and counts of what happened in each second."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

TOLD: Final = {"p50": 50.0, "p95": 95.0, "p99": 99.0}
"""The percentiles that a result names."""


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return a percentile of ascending values by nearest rank: a measured value, never one in between."""
    if not ordered:
        message = "there is no percentile of nothing"
        raise ValueError(message)
    # Rounded first: 99 % of 100 is 99, and not a hair more.
    rank = math.ceil(round(share / 100 * len(ordered), 9))
    return ordered[max(rank, 1) - 1]


def summary(values: Iterable[float]) -> dict[str, float | None]:
    """Return the percentiles that a result names, with two decimals; None where nothing was measured."""
    ordered = sorted(values)
    return {name: round(percentile(ordered, share), 2) if ordered else None for name, share in TOLD.items()}


def per_second(moments: Iterable[float], *, seconds: int) -> list[int]:
    """Count moments (seconds from the beginning) by second; what is outside is left out."""
    counts = [0] * seconds
    for moment in moments:
        if 0 <= moment < seconds:
            counts[int(moment)] += 1
    return counts


def waiting(begins: Iterable[float], ends: Iterable[float], *, seconds: int) -> list[int]:
    """Return how many had begun and not ended at the end of each second."""
    left, series = 0, []
    began, ended = per_second(begins, seconds=seconds), per_second(ends, seconds=seconds)
    for more, fewer in zip(began, ended, strict=True):
        left += more - fewer
        series.append(left)
    return series

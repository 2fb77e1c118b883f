"""What a process counts of its own work, in memory: counters and histograms, each a dictionary of numbers.

A count costs less than a microsecond and no I/O; heartbeats carry all of them to Postgres (`snapshot`), where
they outlive the process (`store/heartbeats.py`). Labels are bounded: a metric keeps at most `MOST` different
combinations, and the rest is counted under `other`. Labels hold no personal data and nothing of a merchant.

The key of a series is `name|label|label`; of a histogram `name|label|#0` and so on for its buckets, in
order and not added up, and `name|label|sum`.
"""

from __future__ import annotations

import os
import resource
import time
from bisect import bisect_left
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST: Final = 600
"""Combinations of labels that a metric keeps."""
OTHER: Final = "other"
SEPARATOR: Final = "|"
_LONGEST: Final = 80
"""Characters of a label."""

SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0)
"""Upper bounds of durations."""
ROWS: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
"""Upper bounds of the sizes of batches."""


class Counter:
    """A number that grows, for each combination of `labels`."""

    __slots__ = ("help", "labels", "name", "values")

    def __init__(self, name: str, text: str, *labels: str) -> None:
        self.name, self.help, self.labels = name, text, labels
        # From 0 on: Prometheus sees no increase in a series that begins with its first count.
        self.values: dict[tuple[str, ...], float] = {} if labels else {(): 0.0}
        _ALL[name] = self

    def add(self, *values: str, by: float = 1.0) -> None:
        """Count something; `values` are those of the labels, in their order."""
        known = self.values
        try:
            known[values] += by
        except KeyError:
            if len(known) >= MOST:
                values = (OTHER,) * len(self.labels)
            known[values] = known.get(values, 0.0) + by

    def knows(self, *values: str) -> bool:
        return values in self.values


class Histogram:
    """A distribution in buckets with these upper `bounds`, for each combination of `labels`."""

    __slots__ = ("bounds", "help", "labels", "name", "values")

    def __init__(self, name: str, text: str, *labels: str, bounds: tuple[float, ...] = SECONDS) -> None:
        self.name, self.help, self.labels, self.bounds = name, text, labels, bounds
        self.values: dict[tuple[str, ...], list[float]] = {} if labels else {(): self._empty()}
        _ALL[name] = self

    def observe(self, value: float, *values: str) -> None:
        """Count a value, in the unit of the bounds; `values` are those of the labels."""
        buckets = self.values.get(values)
        if buckets is None:
            if len(self.values) >= MOST:
                values = (OTHER,) * len(self.labels)
            buckets = self.values.setdefault(values, self._empty())
        buckets[bisect_left(self.bounds, value)] += 1.0
        buckets[-1] += value

    def _empty(self) -> list[float]:
        return [0.0] * (len(self.bounds) + 2)


_ALL: Final[dict[str, Counter | Histogram]] = {}

gateway_calls: Final = Counter(
    "gateway_calls",
    "Calls to gateways that were sent, by how they ended; `gateway` is scheme, host and port.",
    "gateway", "call", "outcome",
)  # fmt: skip
gateway_calls_withheld: Final = Counter(
    "gateway_calls_withheld",
    "Calls that were not made because the circuit of the gateway was open.",
    "gateway",
)
gateway_call_seconds: Final = Histogram("gateway_call_seconds", "How long calls to gateways took.", "call")
callbacks: Final = Counter(
    "callbacks", "Callbacks that came, by kind and by the grade of their proof.", "kind", "grade"
)
callback_lag_seconds: Final = Histogram(
    "callback_lag_seconds", "From a callback's arrival to the write in which a worker has handled it."
)
offer_seconds: Final = Histogram(
    "offer_seconds", "From the intake of an order to its offer to the shopper; first offers only."
)
moves: Final = Counter("moves", "Moves of checkouts that landed, by the state that they led to.", "to")
deliveries: Final = Counter("deliveries", "Attempts to deliver an event to a webhook, by outcome.", "outcome")
delivery_seconds: Final = Histogram("delivery_seconds", "How long attempts to deliver took.")
batch_rows: Final = Histogram("batch_rows", "Rows of one batch of the batch writer.", "batch", bounds=ROWS)
batch_seconds: Final = Histogram("batch_seconds", "How long a batch took to be written.", "batch")
lease_losses: Final = Counter("lease_losses", "Steps whose result was dropped because the lease was lost.")
sweeps: Final = Counter("sweeps", "Sweeps for due checkouts.", "by")
swept_checkouts: Final = Counter("swept_checkouts", "Due checkouts that sweeps have found.")
hints: Final = Counter("hints", "Checkouts that were named by hints, by queue.", "queue")
queued_intents: Final = Counter(
    "queued_intents", "Intents of the broker's queue `intents`, by what became of them.", "result"
)
http_requests: Final = Counter(
    "http_requests", "Requests that the API answered, by route and status.", "method", "route", "status"
)
http_request_seconds: Final = Histogram("http_request_seconds", "How long answers took, by route.", "route")
cpu_seconds: Final = Counter("process_cpu_seconds", "Processor time of processes of a kind.", "kind")


def known() -> Mapping[str, Counter | Histogram]:
    """Return every metric that processes count, by name."""
    return _ALL


def snapshot(kind: str) -> dict[str, float]:
    """Return all counts of this process, of the kind `worker`, `api` and so on, as one flat mapping."""
    cpu_seconds.values[kind,] = round(time.process_time(), 3)
    told: dict[str, float] = {}
    for name, metric in _ALL.items():
        for labels, value in metric.values.items():
            key = SEPARATOR.join((name, *map(_label, labels)))
            if isinstance(value, float):
                told[key] = value
                continue
            told[f"{key}{SEPARATOR}sum"] = round(value[-1], 6)
            told |= {f"{key}{SEPARATOR}#{at}": number for at, number in enumerate(value[:-1]) if number}
    return told


def memory_bytes() -> int:
    """Return the memory of this process that is in RAM; where the system does not say it, the most it was."""
    with suppress(OSError, ValueError, IndexError), open("/proc/self/statm", "rb") as statm:  # noqa: PTH123 - no disk
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Bounded:
    """The first `most` different values of a label; any other is `other`."""

    __slots__ = ("_most", "_seen")

    def __init__(self, most: int) -> None:
        self._most, self._seen = most, set[str]()

    def of(self, value: str) -> str:
        if value in self._seen:
            return value
        if len(self._seen) >= self._most:
            return OTHER
        self._seen.add(value)
        return value


def _label(value: str) -> str:
    return value[:_LONGEST].replace(SEPARATOR, "_").replace("\0", "_")

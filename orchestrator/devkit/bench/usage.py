"""What a run costs: CPU time and memory of every process, by kind, sampled while it runs.

A process that ends and is started again keeps what it had used. Of Postgres all backends count, also those
that have ended; a server that was not started here has no figures. The disk's flush time is measured beside
it, because it bounds what any database can commit.
"""

from __future__ import annotations

import os
import statistics
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

MEGABYTE: Final = 1_000_000
_FLUSHES: Final = 60
_BLOCK: Final = 8192
"""Bytes; a page of the write-ahead log."""


@dataclass(slots=True)
class _Meter:
    """One process: the CPU seconds that it had at the beginning, and has now."""

    kind: str
    first: float
    latest: float
    rss: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Sample:
    """CPU seconds used by each kind of process since the beginning, at a moment (seconds since 1970)."""

    at: float
    used: dict[str, float]


class Usage:
    """A meter over processes by name and number; `worker-1` and `worker-2` are of one kind."""

    def __init__(self, processes: Callable[[], Mapping[str, int]]) -> None:
        self._processes = processes
        self._meters: dict[int, _Meter] = {}
        self._machine = machine()
        self._counts_from_start = False
        self.samples: list[Sample] = []

    def begin(self) -> None:
        self._meters.clear()
        self.samples.clear()
        self._machine = machine()
        self._counts_from_start = False
        self.sample()
        # What appears from now on was started meanwhile, and all that it uses is of this run.
        self._counts_from_start = True

    def sample(self) -> None:
        for name, number in self._processes().items():
            with suppress(psutil.NoSuchProcess):
                self._sample_process(name.partition("-")[0], psutil.Process(number))
        self.samples.append(Sample(time.time(), self.used()))

    def used(self) -> dict[str, float]:
        """Return the CPU seconds of each kind since the beginning."""
        used: dict[str, float] = {}
        for meter in self._meters.values():
            used[meter.kind] = used.get(meter.kind, 0.0) + meter.latest - meter.first
        return used

    def memory(self, kind: str) -> list[tuple[float, float]]:
        """Return for each process of a kind the peak and the last of its resident memory, in megabytes."""
        return [
            (max(meter.rss) / MEGABYTE, meter.rss[-1] / MEGABYTE)
            for meter in self._meters.values()
            if meter.kind == kind and meter.rss
        ]

    def others(self) -> float:
        """Return the share of the machine's CPU time that went to processes not measured here."""
        busy, whole = (now - before for now, before in zip(machine(), self._machine, strict=True))
        return max(busy - sum(self.used().values()), 0.0) / whole if whole > 0 else 0.0

    def _sample_process(self, kind: str, process: psutil.Process) -> None:
        family = kind == "postgres"
        with process.oneshot():
            own, rss = spent(process, ended=family), process.memory_info().rss
        if family:
            own += sum(map(spent, process.children(recursive=True)))
        meter = self._meters.get(process.pid)
        if meter is None:
            meter = self._meters[process.pid] = _Meter(kind, 0.0 if self._counts_from_start else own, own)
        # A backend that ends between two readings is counted a moment late: time used never becomes less.
        meter.latest = max(meter.latest, own)
        meter.rss.append(rss)


def spent(process: psutil.Process, *, ended: bool = False) -> float:
    """Return the CPU seconds of a process, and with `ended` of its children that have ended; 0 if gone."""
    with suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        # The postmaster counts ended backends.
        children = times.children_user + times.children_system if ended else 0.0
        return float(times.user + times.system + children)
    return 0.0


def machine() -> tuple[float, float]:
    """Return the seconds for which the machine's CPUs were busy, and all of their seconds."""
    times = psutil.cpu_times()
    # Time of guests is in the user's already.
    whole = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return whole - times.idle - getattr(times, "iowait", 0.0), whole


def cores() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def flush_time(directory: Path) -> float:
    """Return the median milliseconds that this disk takes to make one page durable."""
    path = directory / "flush.probe"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    taken = []
    try:
        for _ in range(_FLUSHES):
            os.pwrite(descriptor, b"\0" * _BLOCK, 0)
            began = time.perf_counter()
            os.fsync(descriptor)
            taken.append((time.perf_counter() - began) * 1000)
    finally:
        os.close(descriptor)
        path.unlink()
    return statistics.median(taken)

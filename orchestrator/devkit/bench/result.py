"""A run as figures: one JSON object for programs, and the main figures for people.

Times of a stage are taken from the moment at which the shop (or the gateway) was due to send: an answer from
the scheduled arrival, readiness likewise, completion from the payment at the gateway, a callback from the
moment at which it was to be sent.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from orchestrator.devkit.bench import load
from orchestrator.devkit.bench.ramp import Try

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from orchestrator.devkit.bench.setup import Run

PRODUCT: Final = ("api", "worker", "scheduler", "deliverer")
BESIDE: Final = ("postgres", "redis", "gateway", "load", "bench")
TOLD: Final = {"p50": 50.0, "p95": 95.0, "p99": 99.0}
"""The percentiles that a result names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """Under what a result was measured."""

    version: str
    python: str
    cpus: int
    postgres: str
    durable: bool
    flush_ms: float
    workers: int
    gateway_latency: str
    faults: float
    think_s: float
    """The longest that a shopper waits before paying; 0 where no shopper pays."""

    def document(self) -> dict[str, object]:
        beside = {"flush_ms", "think_s"}
        return {name: value for name, value in asdict(self).items() if name not in beside}


def latencies(run: Run) -> dict[str, list[float]]:
    """Return the milliseconds of all answers, readiness, completions and callbacks of taken orders."""
    due = {
        load.order_ref(run.job.prefix, number): moment
        for number, (moment, status) in enumerate(zip(run.sent.due, run.sent.statuses, strict=True))
        if load.accepted(status)
    }
    paid_at = run.paid_at
    return {
        "intake": [
            took
            for took, status in zip(run.sent.milliseconds, run.sent.statuses, strict=True)
            if load.accepted(status)
        ],
        "ready": [
            (row.offered_at - due[row.order_ref]) * 1000
            for row in run.rows
            if row.offered_at is not None and row.order_ref in due
        ],
        "completed": [
            (row.ended_at - paid_at[row.order_ref]) * 1000
            for row in run.rows
            if row.ended_at is not None and row.completed and row.order_ref in paid_at
        ],
        "callback": [took for told in run.gateway.callbacks.values() for took in told.milliseconds],
    }


def throughput(run: Run) -> float:
    """Return orders a second: under an open load from the first end to the last, of a batch from its
    beginning to the last end.
    """
    ended = run.ended
    if len(ended) < 2:  # noqa: PLR2004 - two moments make a span
        return 0.0
    if run.job.orders:
        return len(ended) / (ended[-1] - run.sent.began)
    span = ended[-1] - ended[0]
    return (len(ended) - 1) / span if span > 0 else 0.0


def drained_after(run: Run, *, think: float) -> float | None:
    """Return the seconds from the last arrival and its shopper's thinking to the last end; None: not all."""
    ended = run.ended
    if len(ended) < run.taken or not ended:
        return None
    return ended[-1] - run.sent.began - run.sent.moments[-1] - think


def tried(run: Run, *, think: float) -> Try:
    """Return what a run says of its rate."""
    intake = sorted(latencies(run)["intake"])
    return Try(
        rate=run.job.rate,
        clean=run.ledger.clean,
        failed=run.failed,
        intake_p99=percentile(intake, 99) if intake else float("inf"),
        drained_after=drained_after(run, think=think),
    )


def document(
    run: Run, conditions: Conditions, *, tries: Sequence[Try] = (), extra: Mapping[str, object] | None = None
) -> dict[str, Any]:
    """Return a run as the object that `--json` prints."""
    orders = max(run.taken, 1)
    cpu = {kind: round(run.cpu[kind] * 1000 / orders, 3) for kind in (*PRODUCT, *BESIDE) if kind in run.cpu}
    measured = tried(run, think=conditions.think_s)
    return {
        "stage": "whole" if run.whole else "ready",
        "orders": run.taken,
        "failed": run.failed,
        **{wrong: len(getattr(run.ledger, wrong)) for wrong in ("lost", "doubled", "unequal")},
        "rate": run.job.rate or None,
        "seconds": run.job.seconds or None,
        "held": measured.held if run.job.rate else None,
        "drained_after_s": None if measured.drained_after is None else round(measured.drained_after, 2),
        "orders_per_s": round(throughput(run), 2),
        "cpu_ms_per_order": cpu,
        "product_cpu_ms_per_order": round(sum(cpu.get(kind, 0.0) for kind in PRODUCT), 3),
        "latency_ms": {name: summary(values) for name, values in latencies(run).items()},
        "worker_rss_mb": round(max((peak for peak, _ in run.workers), default=0.0), 1),
        "workers_rss_mb": [{"peak": round(peak, 1), "final": round(last, 1)} for peak, last in run.workers],
        "flush_ms": round(conditions.flush_ms, 3),
        "others_cpu_percent": round(run.others * 100, 1),
        "gateway": {
            "calls": run.gateway.calls,
            "faults": run.gateway.faults,
            "callbacks": {kind: told.answers for kind, told in run.gateway.callbacks.items()},
        },
        "webhook": None if run.events is None else asdict(run.events),
        "ramp": [{"rate": round(each.rate, 2), "held": each.held, "why": each.why} for each in tries] or None,
        "conditions": conditions.document(),
        **(extra or {}),
    }


# ── Arithmetic: percentiles of what was measured, and counts of what happened in each second ──


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

"""What must be shown: each row with what is wanted at least, what is aimed at, what was measured, and whether
it was reached.

Arithmetic over the document of a run (`build/benchmarks.json`), and nothing else: a row whose measurement is
missing says so. Ratios are taken within each round, so that what slowed a round down is in both of its
figures, and their median counts.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tests.benchmarks.bars import number

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NOT_MEASURED: Final = "not measured"
HISTORY: Final = 2_000_000
"""Finished checkouts. With fewer the row on growth is not measured; likewise the rows below."""
MINUTE: Final = 60.0
"""Seconds for which a rate must be held."""
STEADY: Final = 100.0
"""Orders a second."""
LEAST: Final = {"in_flight": 2000, "sequential": 100}
"""Orders in a run."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One row. `more` says that more is better; `aim` of None: there is none beyond `at_least`."""

    key: str
    what: str
    at_least: float
    aim: float | None
    unit: str
    measured: float | None = None
    more: bool = True

    def _good(self, wanted: float) -> bool:
        if self.measured is None:
            return False
        return self.measured >= wanted if self.more else self.measured <= wanted

    @property
    def reached(self) -> bool | None:
        """Whether what is wanted at least was reached; None if it was not measured."""
        return None if self.measured is None else self._good(self.at_least)

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return NOT_MEASURED
        if not self._good(self.at_least):
            return "no"
        if self.aim is None:
            return "yes"
        return "yes, and the aim" if self._good(self.aim) else "yes"

    def told(self, value: float | None) -> str:
        """Write a value of this row as people read it."""
        if value is None:
            return "—"
        sign = "" if self.more else "≤ "
        return f"{sign}{number(value)} {self.unit}"

    def document(self) -> dict[str, Any]:
        shown = {name: getattr(self, name) for name in ("key", "what", "at_least", "aim", "unit")}
        measured = None if self.measured is None else round(self.measured, 3)
        return {**shown, "measured": measured, "reached": self.reached, "verdict": self.verdict}


# ── From the document of a run ────────────────────────────────────────────────────────────────────────────


def rates(document: Mapping[str, Any], peer: str, latency: int) -> dict[int, float]:
    """Return orders a second by round."""
    return {
        figure["round"]: figure["orders_per_s"]
        for figure in document["figures"]
        if figure["peer"] == peer and figure["latency_ms"] == latency
    }


def ratio(document: Mapping[str, Any], peer: str, *others: str, latency: int) -> float | None:
    """Return how many times as fast a design is as the fastest of others: the median over the rounds that
    have both.
    """
    mine = rates(document, peer, latency)
    best: dict[int, float] = {}
    for other in others:
        for key, rate in rates(document, other, latency).items():
            best[key] = max(rate, best.get(key, 0.0))
    both = [mine[key] / best[key] for key in sorted(mine.keys() & best.keys())]
    return statistics.median(both) if both else None


def _minutes(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [run for run in document.get("lifecycle", {}).get("highest", []) if run["seconds"] >= MINUTE]


def _held(document: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the run with the highest rate that was held for a minute."""
    held = [run for run in _minutes(document) if run["held"] and not _wrong(run)]
    return max(held, key=lambda run: float(run["rate"]), default=None)


def _highest(document: Mapping[str, Any]) -> float | None:
    """Return the highest rate that was held for a minute; 0 if none of those tried was, None if none was
    tried.
    """
    held = _held(document)
    return float(held["rate"]) if held else 0.0 if _minutes(document) else None


def _cpu(document: Mapping[str, Any]) -> float | None:
    held = _held(document)
    return float(held["product_cpu_ms_per_order"]) if held else None


def _wrong(run: Mapping[str, Any]) -> int:
    return int(run["lost"] + run["doubled"] + run["unequal"])


def _at(document: Mapping[str, Any], name: str, *path: str) -> float | None:
    """Return a figure of one of the runs of `orchestrator bench`; None if there was none, or a run that is
    too small to count.
    """
    found: Any = document.get("lifecycle", {}).get(name)
    if found is None or (name == "steady" and found["rate"] < STEADY) or found["orders"] < LEAST.get(name, 0):
        return None
    for key in path:
        found = found[key]
    return None if found is None else float(found)


def _answers(document: Mapping[str, Any]) -> float | None:
    both = [_at(document, "steady", "latency_ms", kind, "p99") for kind in ("intake", "callback")]
    found = [value for value in both if value is not None]
    return max(found) if len(found) == len(both) else None


def _growth(document: Mapping[str, Any]) -> float | None:
    growth = document.get("growth", {})
    pairs: Sequence[Mapping[str, float]] = growth["rounds"] if growth.get("finished", 0) >= HISTORY else []
    return statistics.median(pair["full"] / pair["empty"] for pair in pairs) if pairs else None


def _quiet(document: Mapping[str, Any]) -> float | None:
    found = document.get("quiet_merchant")
    return found["beside_p99_ms"] / found["alone_p99_ms"] if found else None


def claims(document: Mapping[str, Any]) -> list[Claim]:
    """Return all rows with what this run measured."""
    return [
        Claim(
            "celery_0", "intake → awaiting_payment, 0 ms gateway, against the usual Celery design", 10, 15, "×",
            ratio(document, "product", "a", latency=0),
        ),
        Claim("dbos_0", "the same against DBOS Transact", 8, 12, "×", ratio(document, "product", "c", "c2", latency=0)),
        Claim("bare_0", "the same against the bare limit", 0.5, 0.7, "×", ratio(document, "product", "e", latency=0)),
        Claim(
            "celery_200", "200 ms gateway, against the usual Celery design with 8 processes", 40, 60, "×",
            ratio(document, "product", "a", latency=200),
        ),
        Claim(
            "highest",
            "whole lifecycle, gateway log-normal p50 120 ms / p99 380 ms, 0.7 % faults, 60 s open model: highest rate "
            "held, nothing lost or doubled", 150, 250, "/s", _highest(document),
        ),
        Claim(
            "answers", "the same at 100/s: intake answer p99 and callback answer p99, the greater of them", 100, 50, "ms",
            _answers(document), more=False,
        ),
        Claim(
            "cpu", "CPU of api + worker + scheduler per whole lifecycle, at that highest rate", 5, 3, "ms", _cpu(document),
            more=False,
        ),
        Claim(
            "sequential", "one order at a time: intake → awaiting_payment beyond the gateway's own time, p50", 20, 10, "ms",
            _at(document, "sequential", "beyond_gateway_ms", "p50"), more=False,
        ),
        Claim(
            "memory", "memory of a worker process with 1,000 orders in flight", 200, None, "MB",
            _at(document, "in_flight", "worker_rss_mb"), more=False,
        ),
        Claim(
            "growth", "throughput with 2 million finished checkouts in the tables, against empty tables", 0.9, None, "×",
            _growth(document),
        ),
        Claim(
            "quiet", "p99 of a quiet merchant while another sends 20 × its rate, against alone", 2, None, "×",
            _quiet(document), more=False,
        ),
    ]  # fmt: skip

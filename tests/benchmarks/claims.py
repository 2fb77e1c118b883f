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

from orchestrator.devkit.bench.figures import number

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One row. `more` says that more is better; `aim` of None: there is none beyond `at_least`."""

    key: str
    what: str
    at_least: float
    aim: float | None
    unit: str
    more: bool
    measured: float | None = None

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
        return {
            "key": self.key,
            "what": self.what,
            "at_least": self.at_least,
            "aim": self.aim,
            "unit": self.unit,
            "measured": None if self.measured is None else round(self.measured, 3),
            "reached": self.reached,
            "verdict": self.verdict,
        }


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
            key="celery_0",
            what="intake → awaiting_payment, 0 ms gateway, against the usual Celery design",
            at_least=10,
            aim=15,
            unit="×",
            more=True,
            measured=ratio(document, "product", "a", latency=0),
        ),
        Claim(
            key="dbos_0",
            what="the same against DBOS Transact",
            at_least=8,
            aim=12,
            unit="×",
            more=True,
            measured=ratio(document, "product", "c", "c2", latency=0),
        ),
        Claim(
            key="bare_0",
            what="the same against the bare limit",
            at_least=0.5,
            aim=0.7,
            unit="×",
            more=True,
            measured=ratio(document, "product", "e", latency=0),
        ),
        Claim(
            key="celery_200",
            what="200 ms gateway, against the usual Celery design with 8 processes",
            at_least=40,
            aim=60,
            unit="×",
            more=True,
            measured=ratio(document, "product", "a", latency=200),
        ),
        Claim(
            key="highest",
            what="whole lifecycle, gateway log-normal p50 120 ms / p99 380 ms, 0.7 % faults, 60 s open model: highest rate "
            "held, nothing lost or doubled",
            at_least=150,
            aim=250,
            unit="/s",
            more=True,
            measured=_highest(document),
        ),
        Claim(
            key="answers",
            what="the same at 100/s: intake answer p99 and callback answer p99, the greater of them",
            at_least=100,
            aim=50,
            unit="ms",
            more=False,
            measured=_answers(document),
        ),
        Claim(
            key="cpu",
            what="CPU of api + worker + scheduler per whole lifecycle, at that highest rate",
            at_least=5,
            aim=3,
            unit="ms",
            more=False,
            measured=_cpu(document),
        ),
        Claim(
            key="sequential",
            what="one order at a time: intake → awaiting_payment beyond the gateway's own time, p50",
            at_least=20,
            aim=10,
            unit="ms",
            more=False,
            measured=_at(document, "sequential", "beyond_gateway_ms", "p50"),
        ),
        Claim(
            key="memory",
            what="memory of a worker process with 1,000 orders in flight",
            at_least=200,
            aim=None,
            unit="MB",
            more=False,
            measured=_at(document, "in_flight", "worker_rss_mb"),
        ),
        Claim(
            key="growth",
            what="throughput with 2 million finished checkouts in the tables, against empty tables",
            at_least=0.9,
            aim=None,
            unit="×",
            more=True,
            measured=_growth(document),
        ),
        Claim(
            key="quiet",
            what="p99 of a quiet merchant while another sends 20 × its rate, against alone",
            at_least=2,
            aim=None,
            unit="×",
            more=False,
            measured=_quiet(document),
        ),
    ]

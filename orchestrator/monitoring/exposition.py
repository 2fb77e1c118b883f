"""The page of `/metrics`: figures that are young enough, in the text format of Prometheus.

Each group of figures is read at most once in a second, and for at most a fiftieth of the time: what took long
is read in the background, and the last result is shown with its age. So a scrape takes some milliseconds,
whatever the tables hold, and however many scrape.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from orchestrator import counters, log
from orchestrator.monitoring.catalogue import GAUGES, PREFIX
from orchestrator.monitoring.queries import GROUPS, Values
from orchestrator.store.database import Database, is_away

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

_log = log.get(__name__)

FRESH: Final = 1.0
"""Seconds for which figures are shown again without a query."""
SHARE: Final = 50.0
"""A group of figures is not read again for this many times the duration of its last statement."""
PAUSES: Final = {"now": 45.0, "waiting": 45.0}
"""Seconds after which a group is read again at the latest: alerts that page depend on it."""
QUICK: Final = 0.015
"""Seconds that a scrape waits for figures that it has in an older version."""
FIRST: Final = 5.0
"""Seconds that a scrape waits for figures that it has not got at all."""
STATEMENT: Final = 30_000
"""Milliseconds for one statement in Postgres."""
OLDEST: Final = 900.0
"""Seconds after which figures are not shown any more."""


@dataclass(slots=True)
class _Group:
    name: str
    values: Values = field(default_factory=dict)
    read_at: float = float("-inf")
    took: float = 0.0
    tried_at: float = float("-inf")
    failed: bool = False
    reading: asyncio.Task[None] | None = None

    @property
    def due(self) -> bool:
        busy = self.reading is not None and not self.reading.done()
        pause = min(max(FRESH, SHARE * self.took), PAUSES.get(self.name, OLDEST))
        return not busy and time.monotonic() - self.tried_at >= pause


class Monitor:
    """The figures of an installation, for one event loop; its connection opens with the first scrape."""

    def __init__(self, database_url: str, *, grace: float, prepared: str = "auto") -> None:
        """Take the database, and the seconds between a hint and its due time."""
        self._grace = grace
        self._db = Database(
            database_url,
            # One for each group, so that a slow one makes no other wait.
            pool_size=len(GROUPS),
            name="orchestrator-metrics",
            pool_timeout=FIRST,
            statement_timeout=STATEMENT,
            prepared=prepared,  # type: ignore[arg-type]  # the words of the setting
        )
        self._groups = {name: _Group(name) for name in GROUPS}
        self._began = time.monotonic()

    async def close(self) -> None:
        """End what is being read, and close the connections."""
        reading = [group.reading for group in self._groups.values() if group.reading is not None]
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
        await self._db.close()

    async def page(self, *, ready: bool = True, problems: int = 0) -> bytes:
        """Return the metrics; without Postgres those that say so, and the counts of this process."""
        for group in self._groups.values():
            if group.due:
                group.reading = asyncio.create_task(self._read(group))
        for known, timeout in ((True, QUICK), (False, FIRST)):
            waited_for = [
                group.reading
                for group in self._groups.values()
                if group.reading is not None and (group.read_at > float("-inf")) is known
            ]
            if waited_for:
                await asyncio.wait(waited_for, timeout=timeout)
        now = time.monotonic()
        # Figures that could not be read again are not the truth of this moment.
        shown = [g for g in self._groups.values() if not g.failed and now - g.read_at < OLDEST]
        # The age of figures that cannot be read goes on growing, also where they never could be.
        ages: dict[tuple[str, ...], float] = {
            (group.name,): now - max(group.read_at, self._began) for group in self._groups.values()
        }
        merged: Values = {
            "database_up": {(): float(self._groups["now"] in shown)},
            "ready": {(): float(ready)},
            "problems": {(): float(problems)},
            "reading_age_seconds": ages,
        }
        for group in shown:
            for name, values in group.values.items():
                merged.setdefault(name, {}).update(values)
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Page(merged))
        return generate_latest(registry)

    async def _read(self, group: _Group) -> None:
        began = group.tried_at = time.monotonic()
        try:
            group.values = await GROUPS[group.name](self._db, self._grace)
        except Exception as error:  # noqa: BLE001 - the page says that it is not read
            _log.warning(
                "metrics_not_read",
                group=group.name,
                **log.cause(error),
                exc_info=None if is_away(error) else error,
            )
            # It is tried again after twice the time that it took to fail.
            group.failed, group.took = True, 2 * (time.monotonic() - began) / SHARE
        else:
            group.failed = False
            group.read_at = time.monotonic()
            group.took = group.read_at - began


class _Page(Collector):
    """One page, as the library writes it."""

    def __init__(self, values: Values) -> None:
        self._values = values

    def collect(self) -> Iterator[Metric]:
        for name, gauge in GAUGES.items():
            if name in self._values:
                family = GaugeMetricFamily(PREFIX + name, gauge.help, labels=gauge.labels)
                for labels, value in sorted(self._values[name].items()):
                    family.add_metric(labels, value)
                yield family
        for name, metric in counters.known().items():
            values = self._values.get(name, {})
            if isinstance(metric, counters.Counter):
                total = CounterMetricFamily(PREFIX + name, metric.help, labels=metric.labels)
                for labels, value in sorted(values.items()):
                    if len(labels) == len(metric.labels):
                        total.add_metric(labels, value)
                yield total
            else:
                yield _histogram(metric, values)


def _histogram(metric: counters.Histogram, values: dict[tuple[str, ...], float]) -> Metric:
    family = HistogramMetricFamily(PREFIX + metric.name, metric.help, labels=metric.labels)
    bounds = (*map(str, metric.bounds), "+Inf")
    # What another version has counted may have other labels.
    for labels in sorted({key[:-1] for key in values if len(key) == len(metric.labels) + 1}):
        numbers = accumulate(values.get((*labels, f"#{at}"), 0.0) for at in range(len(bounds)))
        family.add_metric(labels, list(zip(bounds, numbers, strict=True)), values.get((*labels, "sum"), 0.0))
    return family

"""Measuring the designs in turn: round by round, each from its first order accepted to its last awaiting
payment.

Both moments are read from Postgres's clock. A run counts only if every order has arrived with the trail that
it should have; a wrong count, a dead process or a standstill fails everything. The order of the designs turns
round with every round, so that what drifts, or what a neighbour on this machine does for a while, hits all of
them.
"""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import psycopg

from tests.benchmarks import work
from tests.benchmarks.ground import TIMEOUT, BenchmarkFailed, asked, end
from tests.benchmarks.peers import PEERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.benchmarks.ground import Ground, Process
    from tests.benchmarks.peers import Installed, Peer

WARM_UP: Final = 60
"""Orders before those that count: pools open, code is loaded, plans are made."""
STANDSTILL: Final = 60.0
"""Seconds without any progress after which a run has failed."""
_POLL_EVERY: Final = 0.5
"""Seconds between two reads of how far a run is; its times are taken from the rows, so that rare reads
makes nothing late."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One design at one latency in one round."""

    peer: str
    latency: int
    round: int
    orders: int
    seconds: float
    cpu_ms: dict[str, float]
    """CPU milliseconds for one order, of the design's own processes (`own`, intake included), of Postgres and
    of Redis."""
    calls: float
    """Calls to the gateway for one order."""
    others: float
    """The share of the machine's CPU that went to processes that are not ours."""

    @property
    def rate(self) -> float:
        return self.orders / self.seconds

    def document(self) -> dict[str, Any]:
        return {
            "peer": self.peer,
            "latency_ms": self.latency,
            "round": self.round,
            "orders": self.orders,
            "seconds": round(self.seconds, 3),
            "orders_per_s": round(self.rate, 2),
            "cpu_ms_per_order": {name: round(value, 3) for name, value in self.cpu_ms.items()},
            "gateway_calls_per_order": round(self.calls, 3),
            "others_cpu_percent": round(self.others * 100, 1),
        }


def measure(
    ground: Ground,
    *,
    keys: Sequence[str],
    latencies: Sequence[int],
    rounds: int,
    seconds: float,
    show: Callable[[str], None],
) -> Iterator[Figure]:
    """Yield the figures of all rounds as they come.

    `seconds` is about how long one run takes on two cores.
    """
    for number in range(1, rounds + 1):
        for latency in latencies:
            for key in keys if number % 2 else list(reversed(keys)):
                peer = PEERS[key]
                orders = max(round(peer.cells[latency].rate * seconds / 10) * 10, 20)
                with ground.database(f"{key}_{latency}_{number}") as url:
                    yield run(ground, peer, url, latency=latency, number=number, orders=orders, show=show)


def run(
    ground: Ground,
    peer: Peer,
    database_url: str,
    *,
    latency: int,
    number: int,
    orders: int,
    show: Callable[[str], None],
    mark: str = "run",
) -> Figure:
    """Start a design on a database, warm it up, have it process the orders, check whether they are all there,
    and end it.

    `mark` begins the order numbers; a database that is measured on more than once needs another each time.
    """
    ground.empty_redis()
    here = work.Surroundings(database_url, ground.servers.redis_url, ground.gateway(latency))
    place = ground.place / f"{peer.key}-{latency}-{number}-{time.monotonic_ns()}"
    place.mkdir()
    installed = peer.install(here, latency, place)
    title = f"{peer.title}, {latency} ms, round {number}"
    with ExitStack() as held:
        workers: list[Process] = []
        held.callback(end, workers)
        workers.extend(
            ground.spawned(start.name, start.arguments, start.environment) for start in installed.workers
        )
        connection = held.enter_context(psycopg.connect(database_url, autocommit=True))
        show(f"{title}: starting")
        _await_up(installed, workers)
        run = _Run(ground, peer, installed, workers, connection, title, show)
        run.process(f"warm-{mark}", WARM_UP)
        asked(here.gateway_url, "POST", "/bench/reset")
        before = ground.meter(workers)
        seconds, intake = run.process(mark, orders)
        after = ground.meter(workers)
        calls = json.loads(asked(here.gateway_url, "GET", "/bench/state") or b"{}").get("calls", {})
    spent = after.since(before, intake=intake)
    return Figure(
        peer=peer.key,
        latency=latency,
        round=number,
        orders=orders,
        seconds=seconds,
        cpu_ms={name: value * 1000 / orders for name, value in spent.items()},
        calls=sum(calls.values()) / orders,
        others=after.others(before, intake=intake),
    )


def _await_up(installed: Installed, workers: Sequence[Process]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not installed.up():
        for process in workers:
            process.check()
        if time.monotonic() > deadline:
            raise BenchmarkFailed(f"{workers[0].name} did not answer:\n{workers[0].last_words()}")
        time.sleep(_POLL_EVERY)


@dataclass(frozen=True, slots=True)
class _Run:
    """A design that is up."""

    ground: Ground
    peer: Peer
    installed: Installed
    workers: Sequence[Process]
    connection: psycopg.Connection[Any]
    title: str
    show: Callable[[str], None]

    def process(self, mark: str, orders: int) -> tuple[float, float]:
        """Hand orders over and wait until the last has arrived; return the seconds, and the CPU seconds of
        the intake.
        """
        start = self.installed.take
        intake = self.ground.spawned(start.name, [*start.arguments, mark, str(orders)], start.environment)
        try:
            done, moved_at = -1, time.monotonic()
            while True:
                known, carried, ended = self._progress(mark)
                self.show(
                    f"{self.title}: {carried} of {orders}"
                    + (" (warming up)" if mark.startswith("warm") else "")
                )
                if carried == orders and intake.child.poll() is not None:
                    break
                self._check(intake)
                if carried + known != done:
                    done, moved_at = carried + known, time.monotonic()
                elif time.monotonic() - moved_at > STANDSTILL:
                    raise BenchmarkFailed(
                        f"{self.title}: {carried} of {orders} orders, and nothing has moved for {STANDSTILL:g} s\n{self._words()}"
                    )
                time.sleep(_POLL_EVERY)
        finally:
            end([intake])
        self._check(intake)
        wrong = self._count(self.peer.wrong, {"refs": f"{mark}-%", "way": list(work.WAY)})
        if wrong or known != orders:
            raise BenchmarkFailed(
                f"{self.title}: {wrong} of {known} orders are not awaiting payment with {work.MOVES} moves in their trail"
            )
        told = _told(intake)
        return ended - told["began"], told["spent"]

    def _progress(self, mark: str) -> tuple[int, int, float]:
        row = self.connection.execute(self.peer.carried, (f"{mark}-%",)).fetchone()
        assert row is not None
        return int(row[0]), int(row[1]), float(row[2] or 0)

    def _count(self, statement: str, parameters: dict[str, object]) -> int:
        row = self.connection.execute(statement, parameters).fetchone()
        assert row is not None
        return int(row[0])

    def _check(self, intake: Process) -> None:
        for process in self.workers:
            process.check()
        if intake.child.poll():
            raise BenchmarkFailed(
                f"{intake.name} ended with status {intake.child.returncode}:\n{intake.last_words()}"
            )

    def _words(self) -> str:
        return "\n".join(f"{process.name}:\n{process.last_words()}" for process in self.workers)


def _told(intake: Process) -> dict[str, float]:
    """Return what the intake has said: when it began, and what it cost, which of several processes is the
    sum.
    """
    told = {"spent": 0.0}
    for line in intake.log.read_text(errors="replace").splitlines():
        if line.startswith('{"'):
            for name, value in json.loads(line).items():
                told[name] = told.get(name, 0.0) + float(value)
    if "began" not in told:
        raise BenchmarkFailed(f"{intake.name} did not say when it began:\n{intake.last_words()}")
    return told

"""The designs that are measured, with which settings at which latency of the gateway, and how each is
started.

The settings were tuned on two cores, each design by what its documentation says and by trying; what was tried
and found slower is said beside them. Nothing of a design is imported here: each runs in processes of its own.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import psycopg

from orchestrator import auth
from orchestrator.devkit.local.keys import generated
from orchestrator.devkit.local.servers.files import free_port
from orchestrator.settings import environment, load
from orchestrator.store import schema
from tests.benchmarks import product, work
from tests.benchmarks.ground import answers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from orchestrator.settings import Settings

SOON: Final = 0
FAR: Final = 200
LATENCIES: Final = (SOON, FAR)
"""Milliseconds that the gateway takes to answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One design at one latency.

    `rate` is about what it reaches on two cores: it decides how many orders a run has.
    """

    rate: float
    said: str
    """Its settings in words."""
    processes: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)
    options: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A process to start."""

    name: str
    arguments: Sequence[str]
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """A design on a database of its own, ready to be started."""

    workers: Sequence[Start]
    take: Start
    """Takes orders in; MARK and ORDERS are added to its arguments."""
    api_url: str | None = None

    def up(self) -> bool:
        """Say whether what answers requests does so already."""
        return self.api_url is None or answers(self.api_url, "/readyz")


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A design that has its orders in the peers' common tables."""

    key: str
    title: str
    what: str
    """What it is, in about two lines."""
    module: str
    packages: Sequence[str]
    """Whose versions matter."""
    cells: Mapping[int, Cell]
    carried: str = work.UNOFFERED
    wrong: str = work.WRONG

    def install(self, here: work.Surroundings, latency: int, place: Path) -> Installed:  # noqa: ARG002 - the product needs it
        """Make its tables, and return its processes."""
        with psycopg.connect(here.database_url, autocommit=True) as connection:
            connection.execute(work.TABLES)
        cell = self.cells[latency]
        surroundings = {**here.environment(), **cell.environment}
        return Installed(
            workers=[
                Start(name=f"{self.key}-worker-{number}", arguments=arguments, environment=surroundings)
                for number, arguments in enumerate(self._workers(cell), 1)
            ],
            take=Start(name=f"{self.key}-intake", arguments=self._take(), environment=surroundings),
        )

    def _workers(self, cell: Cell) -> list[list[str]]:
        return [[*_start(self.module), "work", *cell.options] for _ in range(cell.processes)]

    def _take(self) -> list[str]:
        return [*_start(self.module), "take"]


def _start(module: str) -> tuple[str, str, str]:
    return "-m", "tests.benchmarks.start", module


class Schemed(Peer):
    """A library with tables of its own, made before anything starts."""

    def install(self, here: work.Surroundings, latency: int, place: Path) -> Installed:
        installed = Peer.install(self, here, latency, place)
        subprocess.run(
            [sys.executable, *_start(self.module), "prepare"],
            env=here.environment(),
            cwd=work.ROOT,
            check=True,
        )
        return installed


class Celery(Peer):
    def _workers(self, cell: Cell) -> list[list[str]]:
        usual = "--without-gossip --without-mingle --without-heartbeat -O fair --loglevel WARNING".split()
        return [["-m", "celery", "-A", f"tests.benchmarks.{self.module}", "worker", *usual, *cell.options]]


class Bare(Peer):
    def _workers(self, cell: Cell) -> list[list[str]]:  # noqa: ARG002 - the processes that take the orders in also process them
        return []


class Product(Peer):
    def install(self, here: work.Surroundings, latency: int, place: Path) -> Installed:
        schema.migrate(here.database_url)
        cell = self.cells[latency]
        port = free_port(place / "api.port")
        url = f"http://127.0.0.1:{port}"
        settings = self._settings(here, cell, place, url)
        own = environment(settings)
        commands = {"api": ["api", "--host", "127.0.0.1", "--port", str(port)], "scheduler": ["scheduler"]}
        commands |= {f"worker-{number}": ["worker"] for number in range(1, cell.processes + 1)}
        token = auth.issue(
            settings, merchant="default", scopes=("checkouts:write",), lifetime=86_400.0, subject="bench"
        )
        shop = {**here.environment(), "BENCH_API_URL": url, "BENCH_TOKEN": token}
        return Installed(
            workers=[
                Start(name=f"product-{name}", arguments=["-m", "orchestrator", *command], environment=own)
                for name, command in commands.items()
            ],
            take=Start(name="product-intake", arguments=self._take(), environment=shop),
            api_url=url,
        )

    def _settings(self, here: work.Surroundings, cell: Cell, place: Path, url: str) -> Settings:
        keys = generated(place)
        given: dict[str, Any] = {
            "database_url": here.database_url,
            "broker_url": here.broker_url,
            "redis_url": here.broker_url,
            "gateway_url": here.gateway_url,
            "gateway_username": work.USERNAME,
            "gateway_password": work.PASSWORD,
            "public_url": url,
            "secret_keys": keys.secret_keys,
            "jwt_secrets": keys.jwt_secrets,
            "log_format": "json",
        }
        return load({**given, **cell.environment})


def _environment(**values: float) -> dict[str, str]:
    return {f"BENCH_{name.upper()}": str(value) for name, value in values.items()}


A: Final = Celery(
    key="a",
    title="usual Celery, prefork",
    what="A Celery task per step that sends the next task after its commit; SQLAlchemy ORM; one transaction a step (SELECT … FOR UPDATE, "
    "the call, the move, the audit row); one synchronous httpx client a process; late acknowledgement; no result backend.",
    module="usual_celery",
    packages=("celery", "kombu", "redis", "sqlalchemy", "psycopg", "httpx"),
    cells={
        SOON: Cell(rate=60, said="`-P prefork -c 2 -O fair`, prefetch 1", options=("--pool", "prefork", "--concurrency", "2")),
        FAR: Cell(rate=12, said="`-P prefork -c 8 -O fair`, prefetch 1", options=("--pool", "prefork", "--concurrency", "8")),
    },
)  # fmt: skip
_THREADS: Final = ("--pool", "threads", "--concurrency", "32")
B: Final = Celery(
    key="b",
    title="usual Celery, threads",
    what="The same app on `-P threads`: one process, one pool of 32 database connections, one httpx client for all threads.",
    module="usual_celery",
    packages=A.packages,
    cells={
        SOON: Cell(rate=60, said="`-P threads -c 32`, prefetch 1", environment=_environment(at_once=32), options=_THREADS),
        FAR: Cell(rate=40, said="`-P threads -c 32`, prefetch 1", environment=_environment(at_once=32), options=_THREADS),
    },
)  # fmt: skip
_DBOS: Final = (
    "An asynchronous workflow with a step for each move, started from a DBOS queue, on uvloop; aiohttp; each step writes its move and "
    "audit row as one statement. Enqueued in the transaction that stores the orders. Its synchronous form was as fast at 0 ms and slower "
    "at 200 ms; polling more often, fewer threads and fewer connections made no difference."
)
C: Final = Schemed(
    key="c",
    title="DBOS Transact",
    what=_DBOS,
    module="durable_dbos",
    packages=("dbos", "sqlalchemy", "psycopg", "aiohttp"),
    cells={
        SOON: Cell(
            rate=85, said="one process, `worker_concurrency` 100, polled every 0.1 s, 20 connections each for steps and system tables",
            environment=_environment(at_once=100, poll=0.1, pool=20, threads=32),
        ),
        FAR: Cell(
            rate=70, said="one process, `worker_concurrency` 200, polled every 0.1 s, 20 connections each for steps and system tables",
            environment=_environment(at_once=200, poll=0.1, pool=20, threads=32),
        ),
    },
)  # fmt: skip
C2: Final = Schemed(
    key="c2",
    title="DBOS Transact, twice",
    what="The same in two processes, one for each core. The ratio to DBOS is taken to the faster of both.",
    module="durable_dbos",
    packages=C.packages,
    cells={
        SOON: Cell(
            rate=90, processes=2, said="two processes with `worker_concurrency` 50 and 12 connections twice each",
            environment=_environment(at_once=50, poll=0.1, pool=12, threads=16),
        ),
        FAR: Cell(
            rate=70, processes=2, said="two processes with `worker_concurrency` 100 and 12 connections twice each",
            environment=_environment(at_once=100, poll=0.1, pool=12, threads=16),
        ),
    },
)  # fmt: skip
D: Final = Schemed(
    key="d",
    title="procrastinate",
    what="An asynchronous task per order on uvloop that goes through the steps, one transaction a step; psycopg's async connector, aiohttp; "
    "deferred in bulk in the transaction that stores the orders; finished jobs are deleted.",
    module="jobs_procrastinate",
    packages=("procrastinate", "psycopg", "psycopg-pool", "aiohttp"),
    cells={
        SOON: Cell(rate=220, processes=2, said="2 workers with concurrency 50 and 20 connections twice each", environment=_environment(at_once=50, pool=20)),
        FAR: Cell(rate=150, processes=2, said="2 workers with concurrency 100 and 20 connections twice each", environment=_environment(at_once=100, pool=20)),
    },
)  # fmt: skip
E: Final = Bare(
    key="e",
    title="bare limit",
    what="One event loop (uvloop) per core, the same calls as ready bytes over raw httptools connections, moves and audit rows of all orders "
    "in flight gathered into multi-row statements; no broker, leases, versions, retries or encryption. A ceiling, not a design. (A call costs "
    "0.04 ms of CPU this way and 0.13 with aiohttp, so aiohttp is not what it uses.)",
    module="bare",
    packages=("httptools", "psycopg", "uvloop"),
    cells={
        SOON: Cell(rate=1800, said="2 processes, 200 orders in flight each", environment=_environment(processes=2, at_once=200, connections=200)),
        FAR: Cell(rate=1500, said="2 processes, 2,000 orders in flight each", environment=_environment(processes=2, at_once=2000, connections=2000)),
    },
)  # fmt: skip
PRODUCT: Final = Product(
    key="product",
    title="this product",
    what="API, worker and scheduler as real processes; intake over HTTP in batches of 100. It also keeps leases, due times, events and a keyed "
    "audit chain, and encrypts what is personal.",
    module="product",
    packages=("celery", "sqlalchemy", "psycopg", "aiohttp", "uvloop"),
    carried=product.UNOFFERED,
    wrong=product.WRONG,
    cells={
        SOON: Cell(rate=1100, processes=2, said="1 API, 2 workers, 1 scheduler; default settings"),
        FAR: Cell(rate=900, processes=2, said="1 API, 2 workers, 1 scheduler; `GATEWAY_POOL_SIZE` 1000", environment={"gateway_pool_size": "1000"}),
    },
)  # fmt: skip
PEERS: Final[Mapping[str, Peer]] = {peer.key: peer for peer in (A, B, C, C2, D, E, PRODUCT)}

"""The servers that all designs are measured on: one Postgres with fsync, one Redis, one light gateway for
each latency, for a whole run.

Each measurement gets a database of its own and an empty Redis, so that no design pays for what another left
behind. Everything is started here, lives in one directory, and ends with this process, however it ends.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit, urlunsplit

import psutil
import psycopg
import redis
from psycopg import sql

from orchestrator.devkit.bench import usage
from orchestrator.devkit.local.servers import Embedded
from orchestrator.devkit.local.servers.children import spawn
from orchestrator.devkit.local.servers.files import free_port
from tests.benchmarks.work import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

TIMEOUT: Final = 30.0
_POLL_EVERY: Final = 0.05
_STOPPING: Final = 10.0
_LAST_WORDS: Final = 15


class BenchmarkFailed(Exception):  # noqa: N818 - named for the fact
    """A design could not be measured, or did not do the work; the sentence says why."""


@dataclass(slots=True)
class Process:
    """One process of a design, in a session of its own."""

    name: str
    child: subprocess.Popen[bytes]
    log: Path

    @property
    def family(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self.child.pid)
            return [parent, *parent.children(recursive=True)]
        return []

    def last_words(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-_LAST_WORDS:])

    def check(self) -> None:
        if self.child.poll() is not None:
            raise BenchmarkFailed(
                f"{self.name} ended with status {self.child.returncode}:\n{self.last_words()}"
            )


class Ground:
    """What is there for all; made by `start`."""

    def __init__(self, place: Path, servers: Embedded, held: ExitStack) -> None:
        self.place, self.servers, self._held = place, servers, held
        self._gateways: dict[int, str] = {}
        self._spawned = 0

    @classmethod
    @contextmanager
    def start(cls) -> Iterator[Ground]:
        """Start the servers; main thread only."""
        with ExitStack() as held:
            place = Path(tempfile.mkdtemp(prefix="benchmarks-"))
            held.callback(shutil.rmtree, place, ignore_errors=True)
            servers = held.enter_context(Embedded.start(place / "servers"))
            yield cls(place, servers, held)

    def gateway(self, latency: int) -> str:
        """Return the URL of the gateway that answers after `latency` milliseconds; no shopper pays there."""
        if latency not in self._gateways:
            port = free_port(self.place / f"gateway-{latency}.port")
            command = f"-m orchestrator bench-gateway --port {port} --latency {latency} --no-shoppers".split()
            process = self._held.enter_context(self.running(f"gateway-{latency}", command, dict(os.environ)))
            url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + TIMEOUT
            while not answers(url, "/healthz"):
                process.check()
                if time.monotonic() > deadline:
                    raise BenchmarkFailed(f"the light gateway did not answer within {TIMEOUT:g} s")
                time.sleep(_POLL_EVERY)
            self._gateways[latency] = url
        return self._gateways[latency]

    @contextmanager
    def database(self, name: str) -> Iterator[str]:
        """Give a new database; it is removed at the end."""
        named = sql.Identifier(name)
        with self.administering() as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(named))
        parts = urlsplit(self.servers.administrator_url)
        try:
            yield urlunsplit(parts._replace(path=f"/{name}"))
        finally:
            with self.administering() as connection:
                connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(named))
                # What one design wrote is on the disk before the time of the next begins.
                connection.execute("CHECKPOINT")

    @contextmanager
    def administering(self) -> Iterator[psycopg.Connection[Any]]:
        with psycopg.connect(self.servers.administrator_url, autocommit=True) as connection:
            yield connection

    def empty_redis(self) -> None:
        """Forget all messages of the design before."""
        with redis.Redis.from_url(self.servers.redis_url) as client:
            client.flushall()

    @contextmanager
    def running(
        self, name: str, arguments: Sequence[str], environment: Mapping[str, str]
    ) -> Iterator[Process]:
        """Run our interpreter with these arguments; at the end it is asked to stop, and then made to."""
        process = self.spawned(name, arguments, environment)
        try:
            yield process
        finally:
            end([process])

    def spawned(self, name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> Process:
        self._spawned += 1
        log = self.place / f"{self._spawned:03}-{name}.log"
        with log.open("wb") as file:
            child = spawn(
                [sys.executable, *arguments],
                last_signal=signal.SIGKILL,
                log=file.fileno(),
                cwd=ROOT,
                environment=dict(environment),
            )
        return Process(name, child, log)

    def meter(self, processes: Sequence[Process]) -> Meter:
        """Read what these, Postgres and Redis have used so far, and all that we have started together beside
        the whole machine.
        """
        postmaster, here = psutil.Process(self.servers.pids["postgres"]), psutil.Process()
        ended = usage.spent(postmaster, ended=True) - usage.spent(postmaster)
        busy, whole = usage.machine()
        return Meter(
            own=sum(map(usage.spent, (member for process in processes for member in process.family))),
            postgres=ended + sum(map(usage.spent, [postmaster, *postmaster.children(recursive=True)])),
            redis=usage.spent(psutil.Process(self.servers.pids["redis"])),
            ours=ended + sum(map(usage.spent, [here, *here.children(recursive=True)])),
            busy=busy,
            whole=whole,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    """CPU seconds so far: of a design's processes, of Postgres, of Redis, of all of ours, of the whole
    machine, and all that there were.
    """

    own: float
    postgres: float
    redis: float
    ours: float
    busy: float
    whole: float

    def since(self, before: Meter, *, intake: float) -> dict[str, float]:
        """Return the seconds that a run took of each; the intake's process has ended and has reported its
        own.
        """
        return {
            "own": self.own - before.own + intake,
            "postgres": self.postgres - before.postgres,
            "redis": self.redis - before.redis,
        }

    def others(self, before: Meter, *, intake: float) -> float:
        """Return the share of the machine that others had meanwhile: it was missing to what was measured."""
        ours, busy = self.ours - before.ours + intake, self.busy - before.busy
        return max(busy - ours, 0.0) / max(self.whole - before.whole, 1e-9)


def end(processes: Sequence[Process]) -> None:
    """Ask these to stop, wait, and kill what is left of their sessions."""
    for process in processes:
        if process.child.poll() is None:
            process.child.terminate()
    deadline = time.monotonic() + _STOPPING
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.child.wait(max(deadline - time.monotonic(), 0.1))
        # Their own children too: each process leads a session.
        with suppress(ProcessLookupError):
            os.killpg(process.child.pid, signal.SIGKILL)
        process.child.wait()


def answers(url: str, path: str) -> bool:
    """Say whether one of our own processes answers with 200."""
    return asked(url, "GET", path) is not None


def asked(url: str, method: str, path: str) -> bytes | None:
    """Return what one of our own processes answers, or nothing."""
    import http.client

    parts = urlsplit(url)
    connection = http.client.HTTPConnection(str(parts.hostname), int(parts.port or 80), timeout=5)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return body if answer.status == 200 else None

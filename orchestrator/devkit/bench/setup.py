"""The running product with a merchant for the bench, and one measurement on it: load, drain, all books read,
a `Run`.

The load and the light gateway are processes of their own; this one starts them, watches, and reads at the
end. It reads Postgres twice a second by a query over what is under way, and the processes' meters once a
second.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec

from orchestrator import auth
from orchestrator.crypto import Encryptor
from orchestrator.delivery import signature
from orchestrator.devkit.bench import http_pool, ledger, load
from orchestrator.devkit.bench.database_probe import DatabaseProbe, Left
from orchestrator.devkit.bench.gateway import WEBHOOK
from orchestrator.devkit.bench.usage import Usage
from orchestrator.devkit.client import Client
from orchestrator.devkit.errors import BenchFailed
from orchestrator.store import webhooks
from orchestrator.store.database import Database, is_away
from orchestrator.store.merchant_fields import MAX_LOOKUPS_PER_MINUTE
from orchestrator.store.merchants import Merchants

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from orchestrator.devkit.bench.ledger import Ledger, Row
    from orchestrator.devkit.bench.usage import Sample
    from orchestrator.devkit.local.up import Up

NAMED: Final = "bench-"
"""How the names of a bench's merchants begin."""
TIMEOUT: Final = 60.0
"""Seconds after the last arrival in which every order must have come to its end."""

_POLL_EVERY: Final = 0.5
_METER_EVERY: Final = 1.0
_SLEEP: Final = 0.1
_ONE_BY_ONE: Final = 0.003
_START_TIMEOUT: Final = 30.0
_TELLING_TIMEOUT: Final = 10.0
_TOKEN_LIFETIME: Final = 86_400.0


@dataclass(slots=True)
class Progress:
    title: str
    began: float = field(default_factory=time.monotonic)
    sent: load.LoadProgress = field(default_factory=load.LoadProgress)
    left: Left = field(default_factory=lambda: Left(0, 0))
    over: bool = False
    """All intents have been sent; what is left is under way."""

    @property
    def ready(self) -> int:
        return max(self.sent.taken - self.left.unready, 0)

    @property
    def ended(self) -> int:
        return max(self.sent.taken - self.left.open, 0)


@dataclass(frozen=True, slots=True)
class Events:
    """How many events the orders of a run have, and how many of them the webhook's endpoint got."""

    written: int
    received: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Everything that was measured in one run."""

    whole: bool
    job: load.Job
    sent: load.Sent
    rows: list[Row]
    gateway: ledger.Books
    ledger: Ledger
    cpu: dict[str, float]
    """Seconds by kind of process."""
    samples: list[Sample]
    workers: list[tuple[float, float]]
    """Peak and last memory of each worker, in megabytes."""
    others: float
    """Share of the machine's CPU that processes took which are not ours."""
    events: Events | None = None
    """None where there is no webhook."""

    @property
    def taken(self) -> int:
        return sum(map(load.accepted, self.sent.statuses))

    @property
    def failed(self) -> int:
        return len(self.sent.statuses) - self.taken

    @property
    def paid_at(self) -> dict[str, float]:
        return {payment.order_ref: payment.at for payment in self.gateway.payments}

    @property
    def ended(self) -> list[float]:
        """When each order came to its end, or to its offer where the run is about that; ascending."""
        moments = (row.ended_at if self.whole else row.offered_at for row in self.rows)
        return sorted(moment for moment in moments if moment is not None)


class BenchRun:
    """The product, up and known to itself, ready to be loaded; made by `prepared`."""

    def __init__(self, up: Up, db: Database, *, merchant: str, merchant_id: int, webhook: bool) -> None:
        self.probe = DatabaseProbe(db, merchant_id)
        self._up, self._merchant, self._webhook = up, merchant, webhook
        self.token = auth.issue_own(
            up.settings,
            merchant=merchant,
            scopes=("checkouts:write", "checkouts:read"),
            lifetime=_TOKEN_LIFETIME,
            subject="bench",
        )
        self._runs = 0
        self._load_pid: int | None = None
        self._usage = Usage(self._processes)
        self._api = _address(up.url)
        self._gateway = _address(str(up.sandbox_url))

    def job(self, **what: Any) -> load.Job:
        """Return a job against the API, under order numbers that no other has."""
        self._runs += 1
        host, port = self._api
        prefix = f"{self._merchant.removeprefix(NAMED)}-{self._runs}"
        return load.Job(host=host, port=port, token=self.token, prefix=prefix, **what)

    async def measure(
        self,
        job: load.Job,
        *,
        whole: bool,
        title: str,
        show: Callable[[Progress], None],
        timeout: float = TIMEOUT,
    ) -> Run:
        """Do a job from the first intent until the last order has come to its end, or `timeout` is over."""
        await self._control("POST", "/bench/reset")
        progress = Progress(title)
        watching = None
        try:
            async with self._loading(job) as sending:
                self._usage.begin()
                progress.began = time.monotonic()
                watching = asyncio.get_running_loop().create_task(self._watch(job.prefix, progress, show))
                sent = await sending(progress)
            progress.over = True
            await self._drained(job.prefix, whole=whole, timeout=timeout)
        finally:
            if watching is not None:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
        self._usage.sample()
        return await self._read(job, sent, whole=whole)

    async def one_by_one(self, orders: int, *, show: Callable[[Progress], None]) -> tuple[Run, list[float]]:
        """Process orders one after the other; return the run, and the milliseconds beside the gateway's."""
        await self._control("POST", "/bench/reset")
        job, beyond = self.job(orders=orders, at_once=1), []
        lines, progress = http_pool.HttpPool(job.host, job.port, most=1), Progress("one order at a time")
        self._usage.begin()
        sent = load.Sent(time.time(), [], [], [])
        for number in range(orders):
            before, request = await self._waited(), load.request(job, number)
            began, ticked = time.time(), time.perf_counter()
            answer = await lines.exchange(request)
            sent.milliseconds.append((time.perf_counter() - ticked) * 1000)
            sent.moments.append(began - sent.began)
            sent.statuses.append(answer.status)
            if not load.accepted(answer.status):
                said = answer.body[:200].decode(errors="replace")
                raise BenchFailed(f"an intent was answered with {answer.status}: {said}")
            ready = await self._offered(load.order_ref(job.prefix, number), began)
            beyond.append((ready - (await self._waited() - before)) * 1000)
            progress.sent = load.LoadProgress(number + 1, number + 1, 0, sent.milliseconds[-1])
            show(progress)
        lines.close()
        self._usage.sample()
        return await self._read(job, sent, whole=False), beyond

    async def _waited(self) -> float:
        """Return how long the gateway has taken for all its answers, in seconds."""
        return float((await self._state())["waitedSeconds"])

    async def _offered(self, order_ref: str, began: float) -> float:
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            offered_at = await self.probe.offered_at(order_ref)
            if offered_at is not None:
                return offered_at - began
            await asyncio.sleep(_ONE_BY_ONE)
        raise BenchFailed(f"order {order_ref} was not ready within {TIMEOUT:g} s")

    # While a run is under way.

    @asynccontextmanager
    async def _loading(self, job: load.Job) -> AsyncIterator[Callable[[Progress], Awaitable[load.Sent]]]:
        """Start the load's process; what is given does the job in it and returns what it sent."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "orchestrator", "bench-load"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=load.LONGEST_LINE,
        )
        assert process.stdin is not None  # noqa: S101 - asked for above
        assert process.stdout is not None  # noqa: S101 - as above
        stdin, stdout = process.stdin, process.stdout

        async def said() -> load.Line:
            raw = await stdout.readline()
            if not raw:
                raise BenchFailed(f"the load's process ended with status {await process.wait()}")
            return msgspec.json.decode(raw, type=load.Line)

        async def sending(progress: Progress) -> load.Sent:
            stdin.write(msgspec.json.encode(job) + b"\n")
            while True:
                line = await said()
                if line.progress is not None:
                    progress.sent = line.progress
                if line.sent is not None:
                    return line.sent

        try:
            await said()  # it has read its program
            self._load_pid = process.pid
            yield sending
            self._usage.sample()
        finally:
            self._load_pid = None
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def _watch(self, prefix: str, progress: Progress, show: Callable[[Progress], None]) -> None:
        metered = time.monotonic()
        while True:
            try:
                progress.left = await self.probe.left(prefix)
            except Exception as error:
                if not is_away(error):
                    raise
            show(progress)
            if time.monotonic() - metered >= _METER_EVERY:
                metered = time.monotonic()
                self._usage.sample()
            await asyncio.sleep(_POLL_EVERY)

    async def _drained(self, prefix: str, *, whole: bool, timeout: float) -> None:
        async def under_way() -> bool:
            left = await self.probe.left(prefix)
            return bool(left.open if whole else left.unready)

        async def telling() -> bool:
            return bool((await self._state())["telling"])

        await _over(under_way, timeout)
        # A callback may be answered after the order has ended by the other one.
        await _over(telling, _TELLING_TIMEOUT)
        if self._webhook:
            await _over(self.probe.undelivered, _TELLING_TIMEOUT)

    async def _read(self, job: load.Job, sent: load.Sent, *, whole: bool) -> Run:
        rows = await self.probe.rows(job.prefix)
        books = msgspec.json.decode(await self._control("GET", "/bench/books"), type=ledger.Books)
        taken = [
            load.order_ref(job.prefix, number)
            for number, status in enumerate(sent.statuses)
            if load.accepted(status)
        ]
        written = await self.probe.events(job.prefix) if self._webhook else set()
        return Run(
            whole=whole,
            job=job,
            sent=sent,
            rows=rows,
            gateway=books,
            ledger=ledger.check(taken, rows, books, whole=whole),
            cpu=self._usage.used(),
            samples=list(self._usage.samples),
            workers=self._usage.memory("worker"),
            others=self._usage.others(),
            events=Events(len(written), len(written.intersection(books.events))) if self._webhook else None,
        )

    def _processes(self) -> dict[str, int]:
        found = {name.removeprefix(NAMED): pid for name, pid in self._up.pids.items()}
        found["bench"] = os.getpid()
        return found if self._load_pid is None else {**found, "load": self._load_pid}

    async def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = msgspec.json.decode(await self._control("GET", "/bench/state"))
        return state

    async def _control(self, method: str, path: str) -> bytes:
        """Ask the light gateway itself. A connection for each call: they are few, and it closes none."""
        host, port = self._gateway
        lines = http_pool.HttpPool(host, port, most=1)
        try:
            return (await lines.exchange(http_pool.request(method, f"{host}:{port}", path, headers={}))).body
        finally:
            lines.close()


async def _over(unfinished: Callable[[], Awaitable[bool]], within: float) -> None:
    """Wait until nothing is unfinished, or so many seconds."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline and await unfinished():  # noqa: ASYNC110 - other processes work
        await asyncio.sleep(_SLEEP)


@asynccontextmanager
async def prepared(up: Up, *, run: str, webhook: bool = False) -> AsyncIterator[BenchRun]:
    """Give the bench a merchant of its own at the light gateway, whose lookups are not limited, and wait
    until the API serves it.

    `webhook`: its events are delivered, too; the light gateway takes them.
    """
    name = f"{NAMED}{run}"
    async with Database(up.settings.need("database_url"), pool_size=3, name="orchestrator-bench") as db:
        encryptor = Encryptor(up.settings.secret_keys)
        merchants = Merchants(db, encryptor, up.settings)
        secrets = tuple(secret.get_secret_value() for secret in up.settings.gateway_secrets)
        await merchants.add(
            name,
            gateway_url=str(up.sandbox_url),
            merchant_api_url=None,
            username="bench",
            password=name,
            callback_secrets=secrets,
        )
        await merchants.set_policies(name, {"lookups_per_minute": MAX_LOOKUPS_PER_MINUTE})
        found = await merchants.named(name)
        if found is None:
            raise BenchFailed(f"merchant {name} could not be added")
        if webhook:
            await webhooks.add(
                db,
                encryptor,
                merchant_id=found.id,
                url=f"{up.sandbox_url}{WEBHOOK.decode()}",
                description="",
                kinds=None,
                content="thin",
                secret=signature.new_secret(),
            )
        bench_run = BenchRun(up, db, merchant=name, merchant_id=found.id, webhook=webhook)
        async with Client(up.url, bench_run.token) as client:
            await client.until_known(_START_TIMEOUT)
        yield bench_run


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or 80

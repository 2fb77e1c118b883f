"""The load: a process of its own that sends intents over HTTP on their schedule and records how long each
answer took.

Its job comes as one line of JSON on stdin, its results go as lines of JSON to stdout: its progress, now and
then, and at the end everything. It ends when stdin closes, so that it never outlives its parent. The sender
is a process apart from measuring, drawing and counting: otherwise a late intent could be the load's fault.

An open model: arrivals come on their schedule whether or not what came before is done, and latency counts
from the scheduled moment. So a product that falls behind is seen to fall behind.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import time
from random import Random
from typing import TYPE_CHECKING, Final

import msgspec
import uvloop

from orchestrator.devkit.bench import http_pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONNECTIONS: Final = 128
"""To the API. A shop has a few; more are used only while answers are late."""
LONGEST_LINE: Final = 64 * 1024 * 1024
"""Bytes of the last line; a million orders have about thirty each."""

_TELL_EVERY: Final = 0.25
_START: Final = 0.1
"""Seconds between the decision on the schedule and its beginning."""


class Job(msgspec.Struct, frozen=True, rename="camel"):
    """What to send: `rate` a second for `seconds`, or `orders`, as fast as `at_once` requests allow."""

    host: str
    port: int
    token: str
    prefix: str
    rate: float = 0.0
    seconds: float = 0.0
    evenly: bool = False
    seed: int = 1
    orders: int = 0
    at_once: int = 32

    def __repr__(self) -> str:
        """Hide the token."""
        return f"Job(prefix={self.prefix!r})"


class LoadProgress(msgspec.Struct, rename="camel"):
    """The progress of the load; `slowest` is the longest answer, in milliseconds, since the last report."""

    sent: int = 0
    taken: int = 0
    failed: int = 0
    slowest: float = 0.0


class Sent(msgspec.Struct, rename="camel"):
    """What was sent, one entry for each order in turn.

    `began` is the beginning of the schedule in seconds since 1970, `moments` when each intent was to leave
    after that, `milliseconds` how long after that its answer came (or that there was none), `statuses` the
    answers (0: none).
    """

    began: float
    moments: list[float]
    milliseconds: list[float]
    statuses: list[int]

    @property
    def due(self) -> list[float]:
        """When each intent was to leave, in seconds since 1970."""
        return [self.began + moment for moment in self.moments]


class Line(msgspec.Struct, omit_defaults=True):
    progress: LoadProgress | None = None
    sent: Sent | None = None


def run() -> None:
    """Say that we are there, and do the job that stdin names."""
    _say()
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
    # One run is bounded, and a collection in the middle of it would be measured as lateness.
    gc.disable()
    uvloop.run(_until_done(job))


async def _until_done(job: Job) -> None:
    working = asyncio.current_task()
    assert working is not None  # noqa: S101 - there is a current task

    def orphaned() -> None:
        if not os.read(sys.stdin.fileno(), 1):
            working.cancel()

    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), orphaned)
    sent = await fire(job, tell=_say)
    _say(sent=sent)


def _say(progress: LoadProgress | None = None, sent: Sent | None = None) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(Line(progress, sent)) + b"\n")
    sys.stdout.buffer.flush()


class _Load:
    def __init__(self, job: Job) -> None:
        self._job = job
        self._lines = http_pool.HttpPool(job.host, job.port, most=CONNECTIONS)
        self.progress = LoadProgress()
        # Every moment is decided on, and there is room for the answers, before anything is sent.
        planned = [0.0] * job.orders or moments(job.rate, job.seconds, evenly=job.evenly, seed=job.seed)
        self.sent = Sent(0.0, planned, [0.0] * len(planned), [0] * len(planned))

    async def on_schedule(self) -> None:
        """Send every intent at its moment, and wait for the last answer."""
        loop = asyncio.get_running_loop()
        begin = loop.time() + _START
        self.sent.began = time.time() + _START
        async with asyncio.TaskGroup() as tasks:
            for number, moment in enumerate(self.sent.moments):
                ahead = begin + moment - loop.time()
                if ahead > 0:
                    await asyncio.sleep(ahead)
                tasks.create_task(self._send(number, begin + moment))
        self._lines.close()

    async def in_a_batch(self) -> None:
        """Send all intents, so many at once; latency counts from the moment at which each is sent."""
        loop = asyncio.get_running_loop()
        begin, self.sent.began = loop.time(), time.time()
        numbers = iter(range(len(self.sent.moments)))
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._job.at_once):
                tasks.create_task(self._send_on(numbers, begin))
        self._lines.close()

    async def _send_on(self, numbers: Iterator[int], begin: float) -> None:
        for number in numbers:
            now = asyncio.get_running_loop().time()
            self.sent.moments[number] = now - begin
            await self._send(number, now)

    async def _send(self, number: int, due: float) -> None:
        progress = self.progress
        progress.sent += 1
        try:
            status = (await self._lines.exchange(request(self._job, number))).status
        except OSError:
            status = 0
        took = (asyncio.get_running_loop().time() - due) * 1000
        self.sent.milliseconds[number], self.sent.statuses[number] = round(took, 2), status
        if accepted(status):
            progress.taken += 1
        else:
            progress.failed += 1
        progress.slowest = max(progress.slowest, took)


async def fire(job: Job, *, tell: Callable[[LoadProgress], None]) -> Sent:
    """Do a job on this event loop; `tell` is called now and then with the progress."""
    load = _Load(job)

    async def keep_telling() -> None:
        while True:
            await asyncio.sleep(_TELL_EVERY)
            tell(load.progress)
            load.progress.slowest = 0.0

    telling = asyncio.get_running_loop().create_task(keep_telling())
    try:
        await (load.in_a_batch() if job.orders else load.on_schedule())
    finally:
        telling.cancel()
    tell(load.progress)
    return load.sent


def accepted(status: int) -> bool:
    """Return whether an answer means that the intent is stored; 200 is the answer to an existing one."""
    return status in {200, 202}


# ── What is sent, and when: decided before the first intent leaves ──

LEAST: Final = 10_000
"""Minor units of the smallest order; amounts differ so that money given to the wrong order shows."""
_SPREAD: Final = 90_000
_STEP: Final = 37


def moments(rate: float, seconds: float, *, evenly: bool, seed: int) -> list[float]:
    """Return all arrivals in seconds from the beginning: Poisson, as of independent shoppers, or evenly."""
    if evenly:
        return [number / rate for number in range(int(rate * seconds))]
    random = Random(seed)  # noqa: S311 - a run is to be repeatable
    found: list[float] = []
    moment = random.expovariate(rate)
    while moment < seconds:
        found.append(moment)
        moment += random.expovariate(rate)
    return found


def amount(number: int) -> int:
    return LEAST + number * _STEP % _SPREAD


def request(job: Job, number: int) -> bytes:
    headers = {"Authorization": f"Bearer {job.token}", "Content-Type": "application/json"}
    body = intent(job.prefix, number)
    return http_pool.request("POST", f"{job.host}:{job.port}", "/v1/checkouts", headers=headers, body=body)


def order_ref(prefix: str, number: int) -> str:
    return f"{prefix}-{number}"


def intent(prefix: str, number: int) -> bytes:
    """Return the JSON of an intent: an order of a single line, with everything that a shop sends."""
    whole = amount(number)
    tax = whole // 5
    return (
        b'{"order":{"orderId":"%b","amount":{"value":%b,"currency":"DKK"},"orderLines":[{"itemId":"lamp","description":"Desk lamp",'
        b'"quantity":1,"unitPrice":%b,"taxAmount":%b,"goodsType":"item"}],"customer":{"firstName":"Test","lastName":"Shopper",'
        b'"email":"shopper@shop.example","billingAddress":{"street":"Example Road 1","city":"Exampletown","country":"DK",'
        b'"zipCode":"1000"}}},"callbacks":{"success":{"type":"URL","value":"https://shop.example/thanks"},'
        b'"failure":{"type":"URL","value":"https://shop.example/sorry"},"redirect":"https://shop.example/one-moment"},'
        b'"configuration":{"paymentType":"PAYMENT","autoCapture":false,"country":"DK","language":"en"}}'
    ) % (order_ref(prefix, number).encode(), _decimal(whole), _decimal(whole - tax), _decimal(tax))


def _decimal(minor: int) -> bytes:
    return b"%d.%02d" % divmod(minor, 100)

"""The board: what all workers share about gateways, in Redis: who is left alone until when, who works, permits of a shared budget.

Redis is never waited for on the way of a call. What others wrote is read twice a second in the background, what we write goes out
by itself, and permits are waited for a moment only. While Redis is away or slow, each process goes by what it knows itself. Times
are Redis's own, so the workers' clocks need not agree. The only client of Redis beside Celery's.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import time
from typing import TYPE_CHECKING, Any, Final, Self

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from orchestrator import log as logs
from orchestrator.gateway import rate

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from orchestrator.settings import Settings

log = logs.get(__name__)

REFRESH: Final = 0.5
"""Seconds between two looks at what the others wrote."""
PATIENCE: Final = 0.5
"""Seconds for anything that nobody waits for."""
MOMENT: Final = 0.05
"""Seconds for permits, which a call waits for."""
PRESENT: Final = 5.0
"""Seconds after its last look for which a worker counts."""

_WORKERS: Final = "orchestrator:gateways:workers"
_ALONE: Final = "orchestrator:gateways:alone"
_RATE: Final = "orchestrator:gateways:rate:"
_NOW: Final = "local t = redis.call('TIME') local now = t[1] * 1000 + math.floor(t[2] / 1000) "
_LOOK: Final = (
    _NOW
    + """
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[2]))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
local alone = redis.call('ZRANGE', KEYS[2], 0, -1, 'WITHSCORES')
for i = 2, #alone, 2 do alone[i] = alone[i] - now end
return {redis.call('ZCARD', KEYS[1]), alone}
"""
)
_READ: Final = (
    _NOW
    + """
local alone = redis.call('ZRANGEBYSCORE', KEYS[1], now, '+inf', 'WITHSCORES')
for i = 2, #alone, 2 do alone[i] = alone[i] - now end
return alone
"""
)
_LEAVE: Final = (
    _NOW
    + """
redis.call('ZADD', KEYS[1], 'GT', now + tonumber(ARGV[2]), ARGV[1])
redis.call('PEXPIRE', KEYS[1], 7200000)
"""
)


class Board:
    """What this process knows of the others; a context in which it is kept up to date. Without a URL it knows of nobody."""

    def __init__(self, url: str | None, *, name: str = "") -> None:
        self._url, self._name = url, name or f"{socket.gethostname()}:{os.getpid()}"
        self._redis: Redis | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.away = True
        """Whether Redis cannot be asked: until it has answered for the first time, and while it does not."""
        self._missed = False
        self.workers = 1
        """How many workers there were when Redis last told, ourselves counted."""
        self._alone: dict[str, float] = {}

    async def __aenter__(self) -> Self:
        """Begin to look."""
        if self._url is not None:
            self._redis = connect(self._url)
            self.start(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop looking."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._redis is not None:
            await self._redis.aclose()

    @property
    def anything_alone(self) -> bool:
        """Whether anything was to be left alone when Redis last told."""
        return bool(self._alone)

    def alone_until(self, name: str) -> float:
        """Return until when (monotonic) somebody wants this left alone; the past, if nobody does."""
        return self._alone.get(name, float("-inf"))

    def leave_alone(self, name: str, seconds: float) -> None:
        """Tell everybody to leave this alone for so long, and return at once."""
        self._tell(_LEAVE, 1, _ALONE, name, int(seconds * 1000) + 1)

    def take_back(self, name: str) -> None:
        """Tell everybody that it need not be left alone any more, and return at once."""
        self._alone.pop(name, None)
        self._tell("redis.call('ZREM', KEYS[1], ARGV[1])", 1, _ALONE, name)

    async def permits(self, name: str, per_second: float, want: int) -> rate.Grant | None:
        """Take permits from everybody's budget; None if Redis does not answer in a moment."""
        if self.away:
            return None
        try:
            async with asyncio.timeout(MOMENT):
                told = await self._run(rate.SCRIPT, 1, _RATE + name, *rate.arguments(per_second), want)
        except (RedisError, OSError) as error:
            self._lost(error)
            return None
        return rate.Grant(int(told[0]), int(told[1]) / 1_000_000)

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Have something done in the background, until the board is closed."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _tell(self, script: str, *arguments: str | int) -> None:
        if not self.away:
            self.start(self._quietly(script, *arguments))

    async def _quietly(self, script: str, *arguments: str | int) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                await self._run(script, *arguments)
        except (RedisError, OSError) as error:
            self._lost(error)

    async def _watch(self) -> None:
        while True:
            try:
                async with asyncio.timeout(PATIENCE):
                    self.workers, alone = await self._run(
                        _LOOK, 2, _WORKERS, _ALONE, self._name, int(PRESENT * 1000)
                    )
            except (RedisError, OSError) as error:
                self._lost(error)
            else:
                now = time.monotonic()
                self._alone = {name: now + seconds for name, seconds in _pairs(alone).items()}
                if self._missed:
                    log.info("gateway_board_back")
                self.away = self._missed = False
            await asyncio.sleep(REFRESH * random.uniform(0.8, 1.2))  # noqa: S311 - jitter

    def _lost(self, error: Exception) -> None:
        if not self._missed:
            log.warning("gateway_board_away", **logs.cause(error))
        self.away = self._missed = True

    async def _run(self, script: str, *arguments: str | int) -> Any:
        assert self._redis is not None  # noqa: S101 - nobody asks before it is open
        return await self._redis.eval(script, *arguments)  # type: ignore[arg-type]  # it writes numbers as text


def url_of(settings: Settings) -> str | None:
    """Return where the board is: Redis's own URL, or the broker's where that is Redis."""
    if settings.redis_url is not None:
        return settings.redis_url
    broker = settings.broker_url
    return broker if broker is not None and broker.startswith("redis") else None


async def left_alone(url: str) -> dict[str, float]:
    """Return what is left alone at this moment, and for how many seconds; Redis's errors pass through."""
    redis = connect(url)
    try:
        return _pairs(await redis.eval(_READ, 1, _ALONE))
    finally:
        await redis.aclose()


def connect(url: str) -> Redis:
    """Return a client that gives up soon and repeats nothing."""
    return Redis.from_url(
        url, socket_timeout=PATIENCE, socket_connect_timeout=PATIENCE, retry=Retry(NoBackoff(), 0), max_connections=8
    )  # fmt: skip


def _pairs(told: list[Any]) -> dict[str, float]:
    return {name.decode(): int(left) / 1000 for name, left in zip(told[::2], told[1::2], strict=True)}

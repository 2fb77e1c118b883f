"""What all workers share about gateways, in Redis: open circuits with their ends, live workers, permits of a
shared budget.

No gateway call waits for Redis. The entries of other workers are read twice a second in the background, this
worker's are written in the background, and permits are waited for a moment only. While Redis is away or slow,
each process uses its own state. Times are Redis's own, so the workers' clocks need not agree. `connect` makes
the only clients of Redis beside Celery's.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import socket
import time
from typing import TYPE_CHECKING, Any, Final, Self

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from orchestrator import log as logs
from orchestrator.gateway.limits import rate
from orchestrator.shutdown import cancelled

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from orchestrator.settings.broker_url import Endpoint

log = logs.get(__name__)

REFRESH: Final = 0.5
"""Seconds between two reads of what the others wrote."""
TIMEOUT: Final = 0.5
"""Seconds for any request that no call waits for."""
MOMENT: Final = 0.05
"""Seconds for permits, which a call waits for."""
LONGEST: Final = 60.0
"""Seconds for which a circuit is open at most, unless the settings say otherwise."""
MOST: Final = 1000
"""Entries that are read at most."""
PRESENT: Final = 5.0
"""Seconds after its last read for which a worker counts."""

_WORKERS: Final = "orchestrator:gateways:workers"
_OPEN_CIRCUITS: Final = "orchestrator:gateways:alone"
_RATE: Final = "orchestrator:gateways:rate:"
_NOW: Final = "local t = redis.call('TIME') local now = t[1] * 1000 + math.floor(t[2] / 1000) "
_REFRESH: Final = (
    _NOW
    + """
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[2]))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
local last = now + tonumber(ARGV[3])
for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. string.format('%.0f', last), '+inf', 'LIMIT', 0, ARGV[4])) do
    redis.call('ZADD', KEYS[2], last, name)
end
local circuits = redis.call('ZRANGE', KEYS[2], 0, ARGV[4] - 1, 'WITHSCORES')
for i = 2, #circuits, 2 do circuits[i] = circuits[i] - now end
return {redis.call('ZCARD', KEYS[1]), circuits}
"""
)
_READ: Final = (
    _NOW
    + """
local alone = redis.call('ZRANGEBYSCORE', KEYS[1], now, '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[1])
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


class SharedGatewayState:
    """What this process has read of the others; a context in which it is kept up to date.

    Without an endpoint it has no other worker.

    Circuit times are limited to `longest` seconds, whatever value Redis has: a client of Redis may not stop a
    gateway's calls for a day.
    """

    def __init__(self, endpoint: Endpoint | None, *, name: str = "", longest: float = LONGEST) -> None:
        self._endpoint = endpoint
        # Processes of two containers may have the same host name and the same id.
        self._name = name or f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._longest = longest
        self._redis: Redis | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.away = True
        """Whether Redis cannot be asked: until it has answered for the first time, and while it does not."""
        self._missed = self._closing = False
        self.workers = 1
        """The number of workers at the last read of Redis, with this one."""
        self._open_circuits: dict[str, float] = {}

    async def __aenter__(self) -> Self:
        if self._endpoint is not None:
            self._redis = connect(self._endpoint)
            self.start(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop: a client may end a cancelled call with another error, after which nothing is begun."""
        self._closing = True
        await cancelled(self._tasks)
        if self._redis is not None:
            await close(self._redis)

    @property
    def any_circuit_open(self) -> bool:
        """Whether any circuit was open at the last read of Redis."""
        return bool(self._open_circuits)

    def open_until(self, name: str) -> float:
        """Return until when (monotonic) this circuit is open; the past, if it is closed."""
        return self._open_circuits.get(name, float("-inf"))

    def open_circuit(self, name: str, seconds: float) -> None:
        """Publish to all workers that a gateway's circuit is open for so long, and return at once."""
        self._tell(_LEAVE, 1, _OPEN_CIRCUITS, name, int(seconds * 1000) + 1)

    def close_circuit(self, name: str) -> None:
        """Tell all workers that its circuit is closed, and return at once."""
        self._open_circuits.pop(name, None)
        self._tell("redis.call('ZREM', KEYS[1], ARGV[1])", 1, _OPEN_CIRCUITS, name)

    async def permits(self, name: str, per_second: float, want: int) -> rate.Grant | None:
        """Take permits from the shared budget; None if Redis does not answer in a moment."""
        if self.away:
            return None
        budget = rate.arguments(per_second)
        answer = await self._ask(MOMENT, rate.SCRIPT, 1, _RATE + name, *budget, want)
        return None if answer is None else rate.Grant(int(answer[0]), int(answer[1]) / 1_000_000)

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Have something done in the background, until it is closed."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _tell(self, script: str, *arguments: str | int) -> None:
        if not self.away:
            self.start(self._ask(TIMEOUT, script, *arguments))

    async def _ask(self, seconds: float, script: str, *arguments: str | int) -> Any:
        """Return what a script returns; None where Redis does not answer in time."""
        try:
            async with asyncio.timeout(seconds):
                return await self._run(script, *arguments)
        except (RedisError, OSError) as error:
            self._lost(error)
            return None

    async def _watch(self) -> None:
        assert self._redis is not None  # noqa: S101 - it is open
        while not self._closing:
            try:
                async with asyncio.timeout(TIMEOUT):
                    if self.away and self._missed:
                        # After a failover the old primary may live on, read-only: what is connected to it is
                        # given up.
                        await self._redis.connection_pool.disconnect(inuse_connections=False)
                    self.workers, alone = await self._run(
                        _REFRESH,
                        2,
                        _WORKERS,
                        _OPEN_CIRCUITS,
                        self._name,
                        int(PRESENT * 1000),
                        int(self._longest * 1000),
                        MOST,
                    )
            except Exception as error:  # noqa: BLE001 - whatever Redis holds, each process then uses its own state
                self._lost(error)
            else:
                now = time.monotonic()
                self._open_circuits = {name: now + seconds for name, seconds in _pairs(alone).items()}
                if self._missed:
                    log.info("shared_gateway_state_back")
                self.away = self._missed = False
            await asyncio.sleep(REFRESH * random.uniform(0.8, 1.2))  # noqa: S311 - jitter

    def _lost(self, error: Exception) -> None:
        if not self._missed:
            log.warning("shared_gateway_state_away", **logs.cause(error))
        self.away = self._missed = True

    async def _run(self, script: str, *arguments: str | int) -> Any:
        assert self._redis is not None  # noqa: S101 - it is open whenever this runs
        return await self._redis.eval(script, *arguments)  # type: ignore[arg-type]  # it writes numbers as text


async def circuits_open(endpoint: Endpoint) -> dict[str, float]:
    """Return which circuits are open now, and for how many seconds; Redis's errors pass through."""
    redis = connect(endpoint)
    try:
        return _pairs(await redis.eval(_READ, 1, _OPEN_CIRCUITS, MOST))
    finally:
        await close(redis)


def connect(endpoint: Endpoint) -> Redis:
    """Return a client that gives up soon and repeats nothing."""
    common: dict[str, Any] = {"retry": Retry(NoBackoff(), 0), "max_connections": 8}
    tls: dict[str, Any] = endpoint.tls.for_redis() if endpoint.tls is not None else {}
    if endpoint.kind != "sentinel":
        return Redis.from_url(
            endpoint.urls[0], socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT, **common, **tls
        )
    # One that does not answer leaves time for the next.
    asked: dict[str, Any] = {"socket_timeout": TIMEOUT / 4, "socket_connect_timeout": TIMEOUT / 4, **tls}
    if endpoint.sentinel_password is not None:
        asked |= {"username": endpoint.sentinel_username, "password": endpoint.sentinel_password}
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        endpoint.sentinels,
        sentinel_kwargs={**asked, "ssl": bool(tls), **common},
        username=endpoint.username,
        password=endpoint.password,
        db=endpoint.db,
        ssl=bool(tls),
        socket_timeout=TIMEOUT / 4,
        socket_connect_timeout=TIMEOUT / 4,
        **common,
        **tls,
    )
    client: Redis = sentinel.master_for(endpoint.master, redis_class=Redis)
    return client


async def close(redis: Redis) -> None:
    """Close a client, and its clients of Sentinel."""
    await redis.aclose()
    await redis.connection_pool.disconnect()
    manager = getattr(redis.connection_pool, "sentinel_manager", None)
    for sentinel in manager.sentinels if manager is not None else ():
        await sentinel.aclose()


def _pairs(pairs: list[Any]) -> dict[str, float]:
    return {
        name.decode(errors="replace"): int(left) / 1000
        for name, left in zip(pairs[::2], pairs[1::2], strict=True)
    }

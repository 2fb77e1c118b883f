"""Limits of requests: for each merchant, each client token, and each address whose tokens prove nothing.

A request is decided in memory, without a round trip: each key has the moment at which its schedule is free
again (GCRA). What was taken is added to the schedules in Redis four times a second, in the background, and
the answer replaces the process's own schedule, so several processes together keep a limit, but for what they
take within a quarter of a second. While Redis is away, or where there is none, each process keeps the limits
by itself. Addresses stand in Redis under a keyed hash.
"""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Final

from redis.exceptions import RedisError

from orchestrator import log
from orchestrator.api.problems import Refusal
from orchestrator.gateway.limits import shared_state
from orchestrator.shutdown import cancelled

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from starlette.types import Scope

    from orchestrator.crypto import Encryptor
    from orchestrator.settings import Settings

_log = log.get(__name__)

INTERVAL: Final = 0.25
"""Seconds between two exchanges with Redis."""
TIMEOUT: Final = 0.5
KEYS_AT_ONCE: Final = 500
MOST_KEYS: Final = 20_000
"""Schedules of one process: the oldest are dropped beyond it."""
APPLIED: Final = "orchestrator.limits"
"""Where a request's scope has what the headers `RateLimit` and `RateLimit-Policy` say."""

_PURPOSE: Final = "limit-address"
_PREFIX: Final = "orchestrator:limits:"
# Each key is the moment at which its schedule is free, in microseconds of Redis's clock. Its lead is bounded,
# whatever the processes report and whatever value a key has.
_SCRIPT: Final = """
local now = redis.call('TIME')
now = now[1] * 1000000 + now[2]
local leads = {}
for i, key in ipairs(KEYS) do
    local apart, most, taken = tonumber(ARGV[3 * i - 2]), tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i])
    local free = math.max(now, tonumber(redis.call('GET', key) or 0) or 0) + apart * taken
    free = math.min(free, now + most)
    redis.call('SET', key, string.format('%.0f', free), 'PX', math.ceil((free - now) / 1000) + 1000)
    leads[i] = string.format('%.0f', free - now)
end
return leads
"""


@dataclass(frozen=True)
class Limit:
    """So many requests a second, and `burst` of them at once; `name` is said to callers."""

    name: str
    per_second: float
    burst: int

    @classmethod
    def of(cls, name: str, per_second: float, *, seconds: float) -> Limit | None:
        """Return a limit with so many seconds' worth at once; None for 0, which is unlimited."""
        return cls(name, per_second, max(round(per_second * seconds), 1)) if per_second > 0 else None

    @cached_property
    def apart(self) -> float:
        """Seconds between two requests on the schedule."""
        return 1 / self.per_second

    @cached_property
    def ahead(self) -> float:
        """Seconds that the schedule may be ahead of the clock."""
        return self.burst / self.per_second

    @cached_property
    def policy(self) -> tuple[bytes, bytes]:
        """The header `RateLimit-Policy`: `burst` requests in the seconds that they take to come back."""
        item = f'"{self.name}";q={self.burst};w={max(math.ceil(self.ahead), 1)}'
        return b"ratelimit-policy", item.encode()


@dataclass(slots=True)
class _Schedule:
    """When a key is free (seconds of a monotonic clock), and what Redis has not been told of."""

    limit: Limit
    key: str
    free: float = float("-inf")
    untold: int = 0


class Limits:
    """The limits of one process, shared with others through Redis once `start` was called."""

    def __init__(self, settings: Settings, encryptor: Encryptor) -> None:
        self.merchant = Limit.of("merchant", settings.merchant_requests_per_second, seconds=5)
        self.client = Limit.of("client-token", settings.client_requests_per_second, seconds=4)
        self.failures = Limit.of(
            "failed-authentications", settings.failed_authentications_per_minute / 60, seconds=60
        )
        self._endpoint, self._encryptor = settings.redis, encryptor
        # By limit: a flood of addresses drops no merchant's schedule.
        self._tables: dict[str, dict[str, _Schedule]] = {}
        self._task: asyncio.Task[None] | None = None
        self.away = True
        """Whether Redis does not answer, or was not asked yet."""

    def start(self) -> None:
        """Share with other processes from now on, where there is a Redis."""
        if self._endpoint is not None and self._task is None:
            self._task = asyncio.create_task(self._share(), name="limits")

    async def close(self) -> None:
        """Stop sharing."""
        if self._task is not None:
            await cancelled([self._task])

    def take(self, scope: Scope, limit: Limit | None, key: str) -> None:
        """Count a request, and leave what its headers say; 429 where the limit is reached."""
        if limit is None:
            return
        schedule, now = self._of(limit, key), time.monotonic()
        lead = max(schedule.free - now, 0.0)
        # A hair more, against rounding: the moment that is named must be late enough.
        if lead + limit.apart > limit.ahead + 1e-6:
            scope[APPLIED] = limit, 0, lead
            raise _reached(limit, lead)
        schedule.free = now + lead + limit.apart
        schedule.untold += 1
        scope[APPLIED] = limit, int((limit.ahead - lead - limit.apart) / limit.apart + 1e-6), lead

    def refuse_failing(self, source: str | None) -> None:
        """Refuse an address that has used up its failed authentications; None is not limited."""
        limit = self.failures
        if limit is None or source is None:
            return
        schedule = self._tables.get(limit.name, {}).get(self._address(source))
        lead = 0.0 if schedule is None else schedule.free - time.monotonic()
        if lead + limit.apart > limit.ahead + 1e-6:
            raise _reached(limit, lead)

    def count_failure(self, source: str | None) -> None:
        """Count a failed authentication of an address."""
        if self.failures is None or source is None:
            return
        schedule = self._of(self.failures, self._address(source))
        schedule.free = max(schedule.free, time.monotonic()) + self.failures.apart
        schedule.untold += 1

    def _address(self, source: str) -> str:
        with suppress(ValueError):
            address = ip_address(source)
            if isinstance(address, IPv6Address):
                # One caller usually has all addresses of a /64.
                source = str(int(address) >> 64)
        return self._encryptor.sign(_PURPOSE, source.encode()).hex()

    def _of(self, limit: Limit, key: str) -> _Schedule:
        table = self._tables.setdefault(limit.name, {})
        schedule = table.get(key)
        if schedule is None:
            if len(table) >= MOST_KEYS:
                _forget(table)
            schedule = table[key] = _Schedule(limit, key)
        return schedule

    async def _share(self) -> None:
        """Exchange what was taken with the other processes, until cancelled."""
        assert self._endpoint is not None  # noqa: S101 - `start` asks
        redis = shared_state.connect(self._endpoint)
        missed = False
        try:
            while True:
                await asyncio.sleep(INTERVAL)
                try:
                    if missed:
                        # What is connected to the old primary of a failover is given up.
                        await redis.connection_pool.disconnect(inuse_connections=False)
                        await redis.ping()
                    await self._exchange(redis)
                except (RedisError, OSError) as error:
                    if not missed:
                        _log.warning("shared_limits_away", **log.cause(error))
                    self.away = missed = True
                    for schedule in self._untold():
                        schedule.untold = 0  # it is on the process's own schedule
                else:
                    if missed:
                        _log.info("shared_limits_back")
                    self.away = missed = False
        finally:
            await shared_state.close(redis)

    async def _exchange(self, redis: Redis) -> None:
        waiting = self._untold()
        for start in range(0, len(waiting), KEYS_AT_ONCE):
            part = waiting[start : start + KEYS_AT_ONCE]
            told = [schedule.untold for schedule in part]
            arguments = [
                str(round(number))
                for schedule in part
                for number in (
                    schedule.limit.apart * 1_000_000,
                    schedule.limit.ahead * 2_000_000,
                    schedule.untold,
                )
            ]
            names = [f"{_PREFIX}{schedule.limit.name}:{schedule.key}" for schedule in part]
            async with asyncio.timeout(TIMEOUT):
                leads = await redis.eval(_SCRIPT, len(names), *names, *arguments)
            now = time.monotonic()
            for schedule, taken, lead in zip(part, told, leads, strict=True):
                schedule.untold -= taken
                schedule.free = now + int(lead) / 1_000_000 + schedule.untold * schedule.limit.apart

    def _untold(self) -> list[_Schedule]:
        """Return the schedules that Redis has to be told of."""
        return [schedule for table in self._tables.values() for schedule in table.values() if schedule.untold]


def _forget(table: dict[str, _Schedule]) -> None:
    """Drop schedules that are free; where too few are, the oldest."""
    now = time.monotonic()
    for key in [key for key, schedule in table.items() if schedule.free <= now]:
        del table[key]
    for key in list(table)[: max(len(table) - MOST_KEYS * 9 // 10, 0)]:
        del table[key]


def _reached(limit: Limit, lead: float) -> Refusal:
    seconds = max(math.ceil(lead + limit.apart - limit.ahead), 1)
    said = {
        "merchant": f"the merchant may send {limit.per_second:g} requests a second",
        "client-token": f"a client token may be used {limit.per_second:g} times a second",
        "failed-authentications": f"an address may fail {limit.per_second * 60:g} times a minute to prove who it is",
    }[limit.name]
    return Refusal(
        429,
        f"{said}, {limit.burst} at once: wait for {seconds} s",
        kind="too-many-requests",
        headers={"Retry-After": str(seconds)},
        facts={"limit": limit.name},
    )


def headers_of(scope: Scope) -> tuple[tuple[bytes, bytes], ...]:
    """Return the headers of the limit that counted a request (draft-ietf-httpapi-ratelimit-headers)."""
    applied = scope.get(APPLIED)
    if applied is None:
        return ()
    limit, left, lead = applied
    return (
        limit.policy,
        (b"ratelimit", f'"{limit.name}";r={left};t={max(math.ceil(lead), 1)}'.encode()),
    )

"""The limits of gateways: how many calls are made at once, how many in a second, and when the circuit of a
gateway is open.

A gateway is scheme, host and port. Each has connections of its own, so that a slow gateway uses no connection
of another; waiting calls are served round-robin, by merchant and by kind of call. While a circuit is open
nothing is sent and nothing waits: the outcome is `Busy`, with the seconds left. Only failures of the gateway
open its circuit, or answers that cost this process more than allowed (`allowance`).
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from orchestrator import log as logs
from orchestrator.gateway.limits import rate
from orchestrator.gateway.limits.answer_cost import CostLimit
from orchestrator.gateway.limits.call_counts import CallCounts
from orchestrator.gateway.limits.circuit_breaker import CircuitBreaker
from orchestrator.gateway.limits.round_robin import RoundRobinSemaphore
from orchestrator.gateway.outcomes import Busy, Done, NotSent, Refused, Throttled, Unauthorized, Unknown

if TYPE_CHECKING:
    from collections.abc import Hashable

    from orchestrator.gateway.limits.shared_state import SharedGatewayState
    from orchestrator.gateway.outcomes import Outcome
    from orchestrator.settings import Settings

log = logs.get(__name__)

MOST_COUNTED: Final = 20
"""Gateways whose calls are shown."""
_NOT_SERVED: Final = (NotSent, Unknown)
"""What counts as a failed call, as in the alert GatewayFails."""
LARGE_AT_ONCE: Final = 2
"""Large answers of one gateway that are in memory at once: one is read while the next comes in."""
MOST_TOLD: Final = 20
"""Open circuits that a heartbeat names."""
LONGEST_THROTTLE: Final = 60.0
"""Seconds for which a merchant's calls pause at most because one of them was throttled. The call itself waits
for as long as the gateway requested."""


class LimitsRegistry:
    """The limits of all gateways that a process calls."""

    def __init__(self, settings: Settings, shared_state: SharedGatewayState) -> None:
        self._settings, self._shared_state = settings, shared_state
        self._places = RoundRobinSemaphore(settings.gateway_pool_total)
        self._limits: dict[str, GatewayLimits] = {}

    def of(self, gateway: str) -> GatewayLimits:
        found = self._limits.get(gateway)
        if found is None:
            found = GatewayLimits(gateway, self._settings, self._shared_state, self._places)
            self._limits[gateway] = found
        return found

    def counts(self) -> list[dict[str, object]]:
        """Return the calls of the last minutes by gateway, for how many seconds its circuit is open, and for
        how many its calls fail, with the last reason.
        """
        shown: list[dict[str, object]] = []
        for name, limits in list(self._limits.items())[:MOST_COUNTED]:
            calls, failed, seconds = limits.calls.read()
            open_for = limits.open_for()
            if calls or not limits.breaker.closed:
                counted = {"calls": calls, "failed": failed, "seconds": round(seconds, 3)}
                shown.append({"gateway": name, **counted, "openFor": round(open_for, 1)})
                shown[-1] |= {"open": not limits.breaker.closed, **limits.failing}
        return shown

    @property
    def troubles(self) -> list[dict[str, object]]:
        """The gateways whose circuit is open after failures that this process saw."""
        found = (limits.trouble for limits in self._limits.values())
        return [trouble for trouble in found if trouble is not None][:MOST_TOLD]


class GatewayLimits:
    """The limits of one gateway; `places` are the slots that all gateways share."""

    def __init__(
        self, gateway: str, settings: Settings, shared_state: SharedGatewayState, places: RoundRobinSemaphore
    ) -> None:
        self.gateway, self._shared_state, self._everybodys = gateway, shared_state, places
        self._slots = RoundRobinSemaphore(settings.gateway_pool_size)
        self._large = RoundRobinSemaphore(LARGE_AT_ONCE)
        self._cost_limit = CostLimit()
        self._costly = False
        self.breaker = CircuitBreaker(settings.breaker_failures, settings.breaker_pause)
        per_second = settings.gateway_calls_per_second
        self._rate = RateLimiter(gateway, per_second, shared_state) if per_second else None
        self._throttled: dict[str, float] = {}
        self.calls = CallCounts()
        self._failing: tuple[float, str] | None = None
        """Since when its calls fail one after the other, by the monotonic clock, and the last reason."""

    def open_for(self) -> float:
        """Return for how many seconds the circuit is open; 0: it is closed."""
        return self.breaker.wait(time.monotonic())

    @property
    def failing(self) -> dict[str, object]:
        """Since when its calls fail one after the other (`failingFor`, in seconds), and the last `reason`."""
        if self._failing is None:
            return {}
        return {"failingFor": round(time.monotonic() - self._failing[0], 1), "reason": self._failing[1]}

    @property
    def trouble(self) -> dict[str, object] | None:
        """What is known of its open circuit: `gateway`, `seconds` until calls are made, `since` (seconds
        ago) and the last `reason`; None while it is closed, and where only other processes saw it fail.
        """
        if self.breaker.closed or self._failing is None:
            return None
        since, reason = self._failing
        left, ago = round(self.open_for(), 1), round(time.monotonic() - since, 1)
        return {"gateway": self.gateway, "seconds": left, "since": ago, "reason": reason}

    # Whether to call at all.

    def wait(self, merchant: str) -> float:
        """Return the seconds for which this merchant's calls are not to be made; 0: none."""
        if self.breaker.closed and not (
            self._costly or self._throttled or self._shared_state.any_circuit_open
        ):
            return 0.0
        now = time.monotonic()
        elsewhere = self._shared_state.open_until(self.gateway)
        if elsewhere > now and self.breaker.observe(elsewhere, now):
            log.warning("gateway_paused", gateway=self.gateway, seconds=round(elsewhere - now, 1), heard=True)
        name = self._name(merchant)
        told = min(self._shared_state.open_until(name), now + LONGEST_THROTTLE)
        throttled = max(self._throttled.get(name, now), told) - now
        return max(self.breaker.wait(now), throttled, self._too_costly())

    def spend(self, seconds: float) -> None:
        """Record what an answer cost this process beyond an ordinary answer."""
        self._cost_limit.spend(seconds)
        wait = self._cost_limit.wait()
        if wait > 0 and not self._costly:
            self._costly = True
            why = "its answers cost too much"
            log.warning("gateway_paused", gateway=self.gateway, seconds=round(wait, 1), reason=why)

    def _too_costly(self) -> float:
        wait = self._cost_limit.wait() if self._costly else 0.0
        if self._costly and wait == 0:
            self._costly = False
            log.info("gateway_back", gateway=self.gateway)
        return wait

    def note(self, merchant: str, outcome: Outcome[object], seconds: float = 0.0) -> None:
        """Learn from what a call came to, and how long it took."""
        if not isinstance(outcome, Busy):
            self.calls.add(seconds, failed=isinstance(outcome, _NOT_SERVED))
        match outcome:
            case Done() | Refused() | Unauthorized():
                self._failing = None
                if self.breaker.served():
                    self._shared_state.close_circuit(self.gateway)
                    log.info("gateway_back", gateway=self.gateway)
                if self._throttled:
                    self._unthrottle(merchant)
            case Throttled(retry_after=float() | int() as seconds) if seconds > 0:
                self._throttle(merchant, min(seconds, LONGEST_THROTTLE))
            case NotSent() | Unknown() | Throttled():
                now = time.monotonic()
                self._failing = now if self._failing is None else self._failing[0], outcome.reason
                pause = self.breaker.failed(now)
                if pause is not None:
                    self._shared_state.open_circuit(self.gateway, pause)
                    log.warning("gateway_paused", gateway=self.gateway, seconds=pause, reason=outcome.reason)
            case Busy():
                pass  # it was not asked

    def _throttle(self, merchant: str, seconds: float) -> None:
        name, until = self._name(merchant), time.monotonic() + seconds
        if name not in self._throttled:
            log.warning(
                "gateway_paused", gateway=self.gateway, merchant=merchant, seconds=seconds, reason="throttled"
            )
        if until > self._throttled.get(name, 0.0):
            self._throttled[name] = until
            self._shared_state.open_circuit(name, seconds)

    def _unthrottle(self, merchant: str) -> None:
        name = self._name(merchant)
        if self._throttled.get(name, float("inf")) <= time.monotonic():
            del self._throttled[name]
            log.info("gateway_back", gateway=self.gateway, merchant=merchant)

    def _name(self, merchant: str) -> str:
        return f"{self.gateway} {merchant}"

    # When to call.

    def enter_now(self) -> bool:
        """Take a place and a permit, if they are there."""
        if not self._slots.take_now():
            return False
        if not self._everybodys.take_now():
            self._slots.give_back()
            return False
        if self._rate is not None and not self._rate.take_now():
            self.leave()
            return False
        return True

    async def enter(self, queue_key: Hashable) -> None:
        """Take a permit and a slot, round-robin with all other waiting calls."""
        if self._rate is not None:
            await self._rate.take(queue_key)
        await self._slots.take(queue_key)
        try:
            await self._everybodys.take(self.gateway)
        except asyncio.CancelledError:
            self._slots.give_back()
            raise

    def leave(self) -> None:
        self._everybodys.give_back()
        self._slots.give_back()

    def large(self) -> Large:
        return Large(self._large)


class Large:
    """A slot for a large answer of one gateway: taken as soon as the answer turns out to be large, and
    released once it is read.
    """

    __slots__ = ("_places", "_taken")

    def __init__(self, places: RoundRobinSemaphore) -> None:
        self._places, self._taken = places, False

    async def take(self) -> None:
        if not self._taken:
            await self._places.take(None)
            self._taken = True

    def give_back(self) -> None:
        if self._taken:
            self._taken = False
            self._places.give_back()


class RateLimiter:
    """The calls that a gateway's budget allows: in hand, or fetched in batches while calls wait."""

    def __init__(self, gateway: str, per_second: float, shared_state: SharedGatewayState) -> None:
        self._gateway, self._rate, self._shared_state = gateway, per_second, shared_state
        self._batch = rate.batch(per_second)
        self._alone = rate.Schedule()
        self._hand = RoundRobinSemaphore(0)
        self._fetched_at = 0.0
        self._fetching: asyncio.Task[None] | None = None

    def take_now(self) -> bool:
        if time.monotonic() - self._fetched_at > rate.KEPT:
            self._hand.withdraw_free()
        taken = self._hand.take_now()
        if self._hand.free * 2 < self._batch:
            self._fetch()
        return taken

    async def take(self, queue_key: Hashable) -> None:
        self._fetch()
        await self._hand.take(queue_key)

    def _fetch(self) -> None:
        if self._fetching is None or self._fetching.done():
            self._fetching = self._shared_state.start(self._fetched())

    async def _fetched(self) -> None:
        """Fetch a batch, and more while calls wait."""
        while True:
            grant = await self._shared_state.permits(self._gateway, self._rate, self._batch)
            if grant is None:
                own = self._rate / max(self._shared_state.workers, 1)
                grant = self._alone.take(self._batch, own, time.monotonic())
            self._fetched_at = time.monotonic()
            self._hand.add(grant.permits)
            if not self._hand.waiting:
                return
            await asyncio.sleep(grant.wait)

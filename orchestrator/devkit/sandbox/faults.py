"""Faults that scripts and tests order from the gateway: plans for one order number, and faults for all calls.

A plan is consumed call by call and survives a restart like everything else. Every random choice comes from
its own generator keyed by (seed, purpose, order number, count), so a run repeats whatever the interleaving.
This module decides; `misbehave` executes it on the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from http import HTTPStatus
from typing import TYPE_CHECKING, Literal

import msgspec
from starlette.responses import Response, StreamingResponse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

    from orchestrator.devkit.sandbox.store import Store

Endpoint = Literal[
    "authenticate", "session", "payment-methods", "payment", "payments", "capture", "refund", "release", "all"
]
Misbehaviour = int | Literal["timeout", "reset", "malformed", "empty", "huge", "html"]
Outcome = Literal["succeeded", "declined", "error", "open"]
MoneyEndpoint = Literal["capture", "refund", "release"]
Resolution = Literal["succeeded", "declined"]
Sequence = Literal["race", "notificationFirst", "successFirst"]
Tampering = Literal[
    "badSignature",
    "staleTimestamp",
    "noSignature",
    "noChecksum",
    "badChecksum",
    "noTransactions",
    "invalidXml",
    "emptyXml",
]
_HUGE_CHUNKS = 1024
_CHUNK = b"x" * 65536


class CallbackPlan(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """Which callbacks of an order go out, how often, in which order; `delay_ms` holds all of them back."""

    success: bool = True
    failure: bool = True
    notification: bool = True
    redirect: bool = True
    times: int = 1
    simultaneous: bool = False
    order: Sequence = "race"
    delay_ms: int = 0
    tamper: Tampering | None = None


class Plan(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """The faults of one order number; what is None or left out is as the gateway has it.

    `fail` counts down per endpoint, and `fail_after` fails after the effect took place. `refuse` counts down
    too: the call is answered, without effect, with `refuse_result`. `lose_session` loses that many sessions
    when their methods are requested. Fields about a payment (`amount_minor`, `currency`, `require_capture`,
    `bindings`, `expires_in_seconds`) are read when the payment is opened, everything else when it matters.
    """

    fail: dict[Endpoint, int] = {}
    fail_status: Misbehaviour = 503
    fail_after: bool = False
    retry_after: int = 1
    delay_ms: dict[Endpoint, int] = {}
    callbacks: CallbackPlan = msgspec.field(default_factory=CallbackPlan)
    outcome: Outcome | None = None
    resolve_after_ms: int | None = None
    resolve_to: Resolution = "succeeded"
    amount_minor: int | None = None
    currency: str | None = None
    echo: bool | None = None
    bindings: bool = True
    require_capture: bool = False
    expires_in_seconds: float | None = None
    refuse: dict[MoneyEndpoint, int] = {}
    refuse_result: Literal["Error", "Failed"] = "Error"
    lose_session: int = 0
    token_lifetime: float | None = None
    noise_rows: int = 0


class Fault(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """What to do instead of serving a call, or after its effect."""

    status: Misbehaviour = 503
    after: bool = False
    retry_after: int = 1


class Burst(Fault, kw_only=True):
    """The next `count` calls of an endpoint fail."""

    count: int


class GlobalFaults(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """The faults of all calls: a share of failing calls, bursts per endpoint, lost callbacks, latency."""

    share: float = 0.0
    share_status: Misbehaviour = 503
    retry_after: int = 1
    authenticate: Burst | None = None
    session: Burst | None = None
    payment_methods: Burst | None = msgspec.field(default=None, name="payment-methods")
    payment: Burst | None = None
    payments: Burst | None = None
    capture: Burst | None = None
    refund: Burst | None = None
    release: Burst | None = None
    all: Burst | None = None
    callbacks: Literal["lost", "normal"] = "normal"
    latency_ms: dict[Endpoint, int] = {}
    token_lifetime: float | None = None
    """Seconds after which a token is refused, whatever its `exp` says; None: as it says."""


class Faults:
    """All orders to misbehave, and how many calls they have been asked about."""

    def __init__(self, store: Store, *, seed: int) -> None:
        self._store = store
        self._seed = seed
        self._asked: dict[tuple[str, str], int] = {}
        self.plans = {key: msgspec.msgpack.decode(packed, type=Plan) for key, packed in store.load("plan")}
        stored = dict(store.load("faults"))
        self.everywhere = (
            msgspec.msgpack.decode(stored["everywhere"], type=GlobalFaults)
            if "everywhere" in stored
            else GlobalFaults()
        )

    def plan(self, order_id: str) -> Plan:
        """Return the plan of an order number, or a plan that changes nothing."""
        return self.plans.get(order_id) or _NO_PLAN

    def set_plan(self, order_id: str, plan: Plan) -> None:
        self.plans[order_id] = plan
        self._store.put("plan", order_id, plan)

    def drop_plan(self, order_id: str) -> None:
        self.plans.pop(order_id, None)
        self._store.remove("plan", order_id)

    def set_everywhere(self, faults: GlobalFaults) -> None:
        self.everywhere = faults
        self._store.put("faults", "everywhere", faults)

    def delay(self, endpoint: Endpoint, order_id: str | None) -> float:
        """Return how many seconds a call is held back."""
        latency = self.everywhere.latency_ms
        held = latency.get(endpoint, latency.get("all", 0)) if latency else 0
        if order_id is not None and (plan := self.plans.get(order_id)) is not None:
            held += plan.delay_ms.get(endpoint, plan.delay_ms.get("all", 0))
        return held / 1000

    def refuses(self, endpoint: MoneyEndpoint, order_id: str) -> str | None:
        """Take the refusal that a money call meets, if any: the word of its Result."""
        plan = self.plans.get(order_id)
        if plan is None or plan.refuse.get(endpoint, 0) <= 0:
            return None
        plan.refuse[endpoint] -= 1
        self._store.put("plan", order_id, plan)
        return plan.refuse_result

    def loses_session(self, order_id: str | None) -> bool:
        """Say whether the session whose methods are asked for is to be lost, and count it."""
        plan = self.plans.get(order_id) if order_id is not None else None
        if plan is None or order_id is None or plan.lose_session <= 0:
            return False
        plan.lose_session -= 1
        self._store.put("plan", order_id, plan)
        return True

    def token_lifetime(self, order_id: str | None) -> float | None:
        """Return the seconds after which a token is refused early, in all calls or an order's."""
        planned = self.plan(order_id).token_lifetime if order_id is not None else None
        given = [each for each in (planned, self.everywhere.token_lifetime) if each is not None]
        return min(given, default=None)

    def next(self, endpoint: Endpoint, order_id: str | None) -> Fault | None:
        """Take the fault that a call meets, if any: the order's plan, then bursts, then the share."""
        if order_id is not None and (plan := self.plans.get(order_id)) is not None:
            key: Endpoint = endpoint if plan.fail.get(endpoint, 0) > 0 else "all"
            if plan.fail.get(key, 0) > 0:
                plan.fail[key] -= 1
                self._store.put("plan", order_id, plan)
                return Fault(status=plan.fail_status, after=plan.fail_after, retry_after=plan.retry_after)
        everywhere = self.everywhere
        own: Burst | None = getattr(everywhere, endpoint.replace("-", "_"), None)
        for burst in (own, everywhere.all):
            if burst is not None and burst.count > 0:
                burst.count -= 1
                self._store.put("faults", "everywhere", everywhere)
                return burst
        if everywhere.share > 0 and self._unlucky(endpoint, order_id):
            return Fault(status=everywhere.share_status, retry_after=everywhere.retry_after)
        return None

    def _unlucky(self, endpoint: str, order_id: str | None) -> bool:
        key = (endpoint, order_id or "")
        nth = self._asked[key] = self._asked.get(key, 0) + 1
        # One generator per decision: no other call can shift it.
        generator = random.Random(f"{self._seed}/share/{endpoint}/{order_id}/{nth}")  # noqa: S311 - repeatable on purpose
        return generator.random() < self.everywhere.share


_NO_PLAN = Plan()


async def misbehave(request: Request, fault: Fault, *, media_type: str, hang_seconds: float) -> Response:
    """Answer a call as badly as ordered; 'reset' and 'timeout' end the connection without an answer."""
    match fault.status:
        case "timeout":
            await _until_gone(request, hang_seconds)
            _abort(request)
            return Response(status_code=504)
        case "reset":
            _abort(request)
            return Response(status_code=500)
        case "malformed":
            return Response(
                '{"token": "eyJ' if "json" in media_type else "<APIResponse><Body>", media_type=media_type
            )
        case "empty":
            return Response(b"", media_type=media_type)
        case "huge":
            return StreamingResponse(_huge(media_type), media_type=media_type)
        case "html":
            page = "<!doctype html><html><head><title>Welcome</title></head><body>It works!</body></html>"
            return Response(page, media_type="text/html")
        case int(status):
            headers = (
                {"retry-after": str(fault.retry_after)} if status == HTTPStatus.TOO_MANY_REQUESTS else {}
            )
            body = (
                f'{{"status":{status},"error":"Ordered by a sandbox script"}}' if "json" in media_type else ""
            )
            return Response(body, status_code=status, media_type=media_type, headers=headers)


async def _huge(media_type: str) -> AsyncIterator[bytes]:
    yield b'{"padding":"' if "json" in media_type else b"<APIResponse><Body><Padding>"
    for _ in range(_HUGE_CHUNKS):
        yield _CHUNK
    yield b'"}' if "json" in media_type else b"</Padding></Body></APIResponse>"


async def _until_gone(request: Request, seconds: float) -> None:
    """Hold the connection open until the caller hangs up or the time is over."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while (await request.receive())["type"] != "http.disconnect":
                pass


def _abort(request: Request) -> None:
    """Reset the connection: uvicorn's own request cycle is behind `receive` and has the transport."""
    cycle = getattr(request.receive, "__self__", None)
    transport = getattr(cycle, "transport", None)
    if transport is None:
        return
    if (raw := transport.get_extra_info("socket")) is not None:
        # Linger 0 turns the close into a reset instead of an orderly end.
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()

"""An endpoint of a merchant: it takes deliveries, checks each with the public package of Standard Webhooks,
and keeps them in order.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web
from standardwebhooks.webhooks import Webhook

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


@dataclass(frozen=True, slots=True)
class Received:
    """One delivery as it came in, and what it was answered with."""

    event: dict[str, Any]
    headers: dict[str, str]
    path: str
    body: bytes
    status: int

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


@dataclass(slots=True)
class Receiver:
    """What came in; `answer` says what is answered: a status, or a status, headers and a body."""

    port: int = 0
    secrets: list[str] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)
    answer: Callable[[dict[str, Any]], Any] = lambda _: 200
    unverified: int = 0
    connections: int = 0
    delay: float = 0.0
    in_flight: int = 0
    most_in_flight: int = 0

    def url(self, path: str = "/hook") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    @property
    def taken(self) -> list[Received]:
        """The deliveries that were answered with success."""
        return [delivery for delivery in self.received if 200 <= delivery.status < 300]

    def by_checkout(self) -> dict[str, list[int]]:
        """The sequences of each checkout, in the order in which they were taken."""
        found: dict[str, list[int]] = defaultdict(list)
        for delivery in self.taken:
            found[delivery.event["subject"]].append(int(delivery.event["sequence"]))
        return found

    async def until(self, condition: Callable[[], bool], *, seconds: float = 30.0) -> None:
        """Wait for something that must happen; the bound is for a test that fails."""
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110 - what is waited for happens in other tasks and processes
                await asyncio.sleep(0.01)

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self.delay:
                await asyncio.sleep(self.delay)
            event = json.loads(body)
            for secret in self.secrets:
                try:
                    Webhook(secret).verify(body, dict(request.headers))
                    break
                except Exception:  # noqa: BLE001, S112 - another secret may fit
                    continue
            else:
                self.unverified += 1
            said = self.answer(event)
            if asyncio.iscoroutine(said):
                said = await said
            status, headers, text = said if isinstance(said, tuple) else (said, {}, "")
            self.received.append(
                Received(
                    event,
                    {name.lower(): value for name, value in request.headers.items()},
                    request.path_qs,
                    body,
                    status,
                )
            )
            return web.Response(status=status, headers=headers, text=text)
        finally:
            self.in_flight -= 1


@asynccontextmanager
async def receiving(port: int = 0) -> AsyncIterator[Receiver]:
    """Serve a receiver on this machine."""
    receiver = Receiver()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", receiver._take)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    receiver.port = runner.addresses[0][1]
    try:
        yield receiver
    finally:
        await runner.cleanup()

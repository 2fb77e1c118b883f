"""`/metrics`: the figures of all merchants, for the operator's Prometheus alone.

Behind a token of its own, or on a port of its own. No token of the API opens it, and without either setting
there is nothing at the address.
"""

from __future__ import annotations

import asyncio
import hmac
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Final

import uvicorn
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.responses import Response

from orchestrator import log
from orchestrator.api.problems import nothing_here, refused
from orchestrator.auth import AccessDenied
from orchestrator.monitoring import Monitor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from fastapi import Request
    from starlette.types import Receive, Scope, Send

    from orchestrator.api.health import Health
    from orchestrator.settings import Settings

_log = log.get(__name__)

PATH: Final = "/metrics"
_MEDIA: Final = CONTENT_TYPE_PLAIN_0_0_4


class Metrics:
    """The figures as this process shows them."""

    def __init__(self, settings: Settings, health: Health) -> None:
        self._settings, self._health = settings, health
        self._monitor: Monitor | None = None

    async def page(self) -> Response:
        """Return the page."""
        if self._monitor is None:
            settings = self._settings
            self._monitor = Monitor(
                settings.need("database_url"),
                grace=settings.hint_grace,
                prepared=settings.database_prepared_statements,
            )
        broken, problems = await self._health.check()
        page = await self._monitor.page(ready=broken is None, problems=len(problems) + (broken is not None))
        return Response(page, media_type=_MEDIA)

    async def prepare(self) -> None:
        """Read all figures before the first scrape, which would wait for the slowest; nothing where there
        is no scrape to come.
        """
        if self._settings.metrics_listen is not None or self._settings.metrics_token.get_secret_value():
            await self.page()

    async def close(self) -> None:
        """Close the connections."""
        if self._monitor is not None:
            await self._monitor.close()


async def show(request: Request) -> Response:
    """Answer a scrape that shows the token."""
    state = request.app.state
    expected = state.services.settings.metrics_token.get_secret_value()
    if not expected:
        return refused(nothing_here())
    given = request.headers.get("authorization", "")
    if not hmac.compare_digest(given.encode(), f"Bearer {expected}".encode()):
        return refused(AccessDenied(401, "the token of ORCHESTRATOR_METRICS_TOKEN is missing or wrong"))
    page: Response = await state.metrics.page()
    return page


@asynccontextmanager
async def listening(metrics: Metrics, address: str | None) -> AsyncIterator[None]:
    """Listen on a port for scrapes alone, where one is configured, beside the API in the same process; one
    that is taken is logged, and the API serves without.
    """
    if not address:
        yield
        return

    async def show_alone(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["path"] == PATH and scope["method"] == "GET":
            response = await metrics.page()
        else:
            response = Response("metrics are at /metrics\n", 404, media_type="text/plain")
        await response(scope, receive, send)

    host, _, port = address.rpartition(":")
    config = uvicorn.Config(
        show_alone,
        host=host.strip("[]"),
        port=int(port),
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    server = SignalFree(config)

    async def serve() -> None:
        try:
            await server.serve()
        except SystemExit:
            _log.error("metrics_not_served", host=config.host, port=config.port)

    task = asyncio.create_task(serve(), name="metrics")
    try:
        yield
    finally:
        server.should_exit = True
        with suppress(asyncio.CancelledError):
            await task


class SignalFree(uvicorn.Server):
    """uvicorn's server, which leaves the signals to who runs it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take no signal."""
        yield

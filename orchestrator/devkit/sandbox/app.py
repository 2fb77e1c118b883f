"""The sandbox's app and server: routes in the order of their traffic, start and end of its life.

`create_app` builds everything from the config and the state file; `run` serves it until a signal comes. A
refusal anywhere is an answer in the gateway's own form; anything else that goes wrong is a bug and answers
500.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from orchestrator.devkit.sandbox import checkout_api, control, merchant_api, pages
from orchestrator.devkit.sandbox.core import Refused, Sandbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

    from orchestrator.devkit.sandbox.config import SandboxConfig

_GRACE = 2  # seconds that open requests get when the server ends; a hanging call is cut


class _CheckoutCors:
    """CORS for the Checkout API alone: shoppers' browsers have its token by design (D1), in any shop."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._open = CORSMiddleware(app, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_checkout = scope["type"] == "http" and scope["path"].startswith("/checkout/")
        await (self._open if is_checkout else self._app)(scope, receive, send)


def create_app(config: SandboxConfig) -> Starlette:
    """Return the app; its lifespan opens the pool for callbacks and closes the store."""
    sandbox = Sandbox(config)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await sandbox.courier.start()
        sandbox.resume()
        try:
            yield
        finally:
            await sandbox.courier.stop()
            sandbox.store.close()

    app = Starlette(
        routes=[*checkout_api.ROUTES, *merchant_api.ROUTES, *pages.ROUTES, *control.ROUTES],
        middleware=[Middleware(_CheckoutCors)],
        exception_handlers={Refused: _refuse},
        lifespan=lifespan,
    )
    app.state.sandbox = sandbox
    return app


def run(config: SandboxConfig, host: str = "127.0.0.1", port: int = 8001) -> None:
    server = uvicorn.Config(
        create_app(config),
        host=host,
        port=port,
        http="httptools",
        loop="uvloop",
        lifespan="on",
        access_log=False,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        backlog=2048,
        timeout_graceful_shutdown=_GRACE,
    )
    uvicorn.Server(server).run()


async def _refuse(_: Request, error: Exception) -> Response:
    if not isinstance(error, Refused):
        raise error
    return error.answer()

"""The app: what serves each connection, and what begins and ends with it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final, Protocol

from fastapi import FastAPI, Request

from orchestrator.api import callbacks, checkouts, docs, front_door, health, metrics, problems
from orchestrator.api.callback_intake import CallbackIntake
from orchestrator.api.middleware import Envelope, always, count_from_zero
from orchestrator.api.request_log import AccessLog, SecurityLog
from orchestrator.api.routes import UNWATCHED, routes
from orchestrator.auth import AccessDenied
from orchestrator.shutdown import cancelled
from orchestrator.store.heartbeats import Heart

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.routing import BaseRoute
    from starlette.types import Receive, Scope, Send

    from orchestrator.api.dependencies import Services

LAST_HEARTBEAT: Final = 2.0
"""Seconds for what the process has counted, at its end."""
VERSION: Final = "1"
"""Of the contract, as in the paths."""


class Pages(Protocol):
    """Pages for persons beside the API, of a package above it."""

    entry: tuple[str, str, str]
    """What the root page has of them: address, name, what is there."""

    def routes(self) -> list[BaseRoute]:
        """Return where they are."""

    def start(self) -> None:
        """Begin; on the event loop that serves."""

    def stop(self) -> None:
        """End what would wait: the process ends."""

    async def close(self) -> None:
        """End everything, before the services are closed."""


class _App(FastAPI):
    """Takes intents and callbacks past the layers of the frameworks, which cost more than they do; everything
    else through them.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection or request."""
        is_request = scope["type"] == "http"
        if is_request and ("//" in scope["path"] or scope["path"].endswith("/")):
            scope["path"] = callbacks.tidy(scope["path"])
        if is_request and scope["method"] == "POST" and _is_hot(scope):
            scope["app"] = self
            await _HOT(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def _is_hot(scope: Scope) -> bool:
    """Say whether a POST is an intent or a checkout's callback, and note which endpoint takes it."""
    path = scope["path"]
    if path == "/v1/checkouts":
        scope["endpoint"], scope["path_params"] = checkouts.accept, {}
        return True
    match path.split("/"):
        case ["", "callbacks", kind, checkout_id, signed] if kind != "merchant" and checkout_id and signed:
            scope["endpoint"] = callbacks.accept
            scope["path_params"] = {"kind": kind, "checkout_id": checkout_id, "signed": signed}
            return True
    return False


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    try:
        response = await scope["endpoint"](Request(scope, receive, send))
    except (problems.Refusal, AccessDenied) as error:
        problems.note_denied(scope, error)
        response = problems.refused(error)
    await response(scope, receive, send)


_HOT: Final = Envelope(_answer)


def create_app(services: Services, *, pages: Callable[[Services], Pages] | None = None) -> FastAPI:
    """Build the app, with pages beside the API; when its lifespan ends it writes what has gathered and closes
    the services.
    """
    shown = None if pages is None else pages(services)
    if shown is not None:
        services.ending.append(shown.stop)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        watch = asyncio.create_task(services.merchants.watch(), name="merchants")
        heart = Heart(services.inlet, "api")
        beating = asyncio.create_task(heart.run(), name="heartbeat")
        preparing = asyncio.create_task(app.state.metrics.prepare(), name="metrics")
        services.limits.start()
        if shown is not None:
            shown.start()
        try:
            yield
        finally:
            await cancelled([watch, beating, preparing])
            with suppress(TimeoutError):
                async with asyncio.timeout(min(LAST_HEARTBEAT, services.settings.shutdown_timeout / 5)):
                    await heart.end()
            await app.state.metrics.close()
            if shown is not None:
                await shown.close()
            await services.close()
            if app.state.access_log is not None:
                app.state.access_log.flush()
            app.state.security_log.flush()

    app = _App(
        title="Checkout orchestrator",
        version=VERSION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry=UNWATCHED,
    )
    app.state.services = services
    app.state.entries = () if shown is None else (shown.entry,)
    app.state.always = always(services.settings)
    app.state.health = health.Health(services)
    app.state.metrics = metrics.Metrics(services.settings, app.state.health)
    app.state.callback_intake = CallbackIntake(services)
    depth = services.settings.trusted_proxies
    app.state.security_log = SecurityLog(depth=depth)
    app.state.access_log = AccessLog(depth=depth) if services.settings.access_log else None
    app.add_middleware(Envelope)
    problems.install(app)
    app.add_exception_handler(404, front_door.missing)
    docs.install(app)
    app.router.routes.extend(routes())
    if shown is not None:
        app.router.routes.extend(shown.routes())
    count_from_zero(app)
    return app

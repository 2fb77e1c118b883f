"""The demo shop as an app and a server: its pages' policy, and the page for what went wrong."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from orchestrator.api import static_files
from orchestrator.devkit.shop.stage import DemoShop, integrity_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

_GRACE = 2
"""Seconds that open requests get when the server ends."""


def create_app(url: str, api: str, token: str, *, sandbox: str, control: str) -> Starlette:
    """Return the app of a shop that browsers reach at `url`; run it with its lifespan."""
    script = static_files.newest()
    policy = static_files.policy(
        script, api=api, gateways=[sandbox], also=[integrity_of("stage.js")], called=[url]
    )
    shop = DemoShop(
        url,
        api,
        token,
        sandbox=sandbox,
        control=control,
        script_url=f"{api}{static_files.PREFIX}{script.name}",
        script_integrity=script.integrity,
        policy=policy,
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        registering = asyncio.create_task(shop.resume_webhook())
        try:
            yield
        finally:
            registering.cancel()
            await asyncio.gather(registering, return_exceptions=True)
            await shop.close()

    async def failed(_: Request, __: Exception) -> Response:
        why = (
            "The orchestrator did not answer as it should. Nothing is lost: load the page again in a moment."
        )
        return shop.page("missing.html", status=503, heading="The shop cannot go on just now", why=why)

    return Starlette(
        routes=[*shop.routes(), Route("/", _lead_on), Route("/healthz", _alive)],
        exception_handlers={httpx.HTTPError: failed},
        lifespan=lifespan,
    )


def run(app: Starlette, host: str, port: int) -> None:
    server = uvicorn.Config(
        app,
        host=host,
        port=port,
        http="httptools",
        loop="uvloop",
        access_log=False,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_GRACE,
    )
    uvicorn.Server(server).run()


async def _lead_on(_: Request) -> Response:
    return RedirectResponse("/shop", 303)


async def _alive(_: Request) -> Response:
    return JSONResponse({"status": "ok"})

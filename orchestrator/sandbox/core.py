"""The sandbox as one object: books, store, tokens, faults and courier, built once per app and found from each request.

`attend` is the one path of every gateway endpoint: hold back, fail as ordered, serve, commit, answer. No endpoint answers
before what it changed is in the store.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from orchestrator.sandbox.books import Books
from orchestrator.sandbox.callbacks import Courier
from orchestrator.sandbox.faults import Faults, misbehave
from orchestrator.sandbox.store import Store
from orchestrator.sandbox.tokens import Tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request
    from starlette.responses import Response

    from orchestrator.sandbox.config import SandboxConfig
    from orchestrator.sandbox.faults import Endpoint

BODY_LIMIT = 1_000_000


class Refused(Exception):  # noqa: N818 - it is an answer, not an error of ours
    """A call that the gateway does not serve, with the status and the sentence for the caller."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Sandbox:
    """Everything behind the endpoints of one sandbox."""

    def __init__(self, config: SandboxConfig) -> None:
        self.config = config
        self.store = Store(config.state_file)
        self.books = Books(self.store, seed=config.seed)
        self.tokens = Tokens(
            self.store, seconds=config.token_seconds, reuse_seconds=config.token_reuse_seconds
        )
        self.faults = Faults(self.store, seed=config.seed)
        self.courier = Courier(config, self.books, self.store, self.faults)
        self.store.flush()  # a new signing key, before anybody holds a token

    def knows(self, request: Request) -> bool:
        """Check HTTP Basic credentials; both APIs take the same user (D2)."""
        scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "basic":
            return False
        try:
            given = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            return False
        return hmac.compare_digest(given, f"{self.config.username}:{self.config.password}".encode())

    def bears_token(self, request: Request) -> bool:
        """Check the bearer token."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and self.tokens.accepts(token.strip())

    async def attend(
        self,
        request: Request,
        endpoint: Endpoint,
        order_id: str | None,
        serve: Callable[[], Response],
        *,
        media_type: str = "application/json",
    ) -> Response:
        """Serve a call, or do what scripts ordered for it instead or afterwards."""
        fault = self.faults.next(endpoint, order_id)
        if delay := self.faults.delay(endpoint, order_id):
            await asyncio.sleep(delay)
        if fault is None:
            response = serve()
            await self.store.flushed()
            return response
        if fault.after:
            serve()  # it took place, but the caller will not hear of it
        await self.store.flushed()
        return await misbehave(request, fault, media_type=media_type, hang_seconds=self.config.hang_seconds)


def sandbox_of(request: Request) -> Sandbox:
    """Return the sandbox that an app was built with."""
    sandbox: Sandbox = request.app.state.sandbox
    return sandbox


def base_url(request: Request) -> str:
    """Return the public base of this sandbox as the caller sees it: its own Host header."""
    return f"{request.url.scheme}://{request.headers.get('host', '127.0.0.1')}"


async def body_of(request: Request) -> bytes:
    """Read a body of bounded size."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > BODY_LIMIT:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body has more than {BODY_LIMIT} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


async def form_of(request: Request) -> dict[str, str]:
    """Read a URL-encoded form; of a repeated field the last value counts."""
    return dict(parse_qsl((await body_of(request)).decode("utf-8", "replace"), keep_blank_values=True))

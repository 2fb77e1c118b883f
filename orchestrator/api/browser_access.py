"""What pages of other origins may read (CORS): status, stream and session of a checkout, nothing else.

No cookie is involved: a page reads with the client token that its shop gave it, so an origin is let in or not
by the setting alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from starlette.responses import Response

from orchestrator.settings.access import ANY_ORIGIN

if TYPE_CHECKING:
    from collections.abc import Collection

    from fastapi import Request
    from starlette.types import Scope

PREFIX: Final = "/v1/checkouts/"
ENDS: Final = ("/status", "/stream", "/session")

_VARY: Final = (b"vary", b"Origin")
_EXPOSED: Final = (
    b"access-control-expose-headers",
    b"Retry-After, RateLimit, RateLimit-Policy, X-Correlation-Id",
)
_PREFLIGHT: Final = {
    "Allow": "GET, HEAD, OPTIONS",
    "Access-Control-Allow-Methods": "GET",
    "Access-Control-Allow-Headers": "Authorization, Last-Event-ID, X-Correlation-Id",
    "Access-Control-Max-Age": "7200",
}


def is_open(path: str) -> bool:
    """Say whether pages of other origins may read an address."""
    return path.endswith(ENDS) and path.startswith(PREFIX)


def headers_of(scope: Scope, origins: Collection[str]) -> list[tuple[bytes, bytes]]:
    """Return what an answer at such an address, also an error, says of the request's origin."""
    given = next((value for name, value in scope["headers"] if name == b"origin"), b"")
    origin = given.decode("latin-1")
    if not origin or not (ANY_ORIGIN in origins or origin in origins):
        return [_VARY]
    return [_VARY, (b"access-control-allow-origin", given), _EXPOSED]


async def preflight(request: Request) -> Response:
    """Say what a page may send; whether its origin may at all, the middleware adds to every answer."""
    origins = request.app.state.services.settings.browser_origins
    allowed = len(headers_of(request.scope, origins)) > 1
    return Response(status_code=204, headers=_PREFLIGHT if allowed else {"Allow": _PREFLIGHT["Allow"]})

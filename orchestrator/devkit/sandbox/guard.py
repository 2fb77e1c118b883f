"""Who may use the control API: the holder of the sandbox's own token, and no web page.

The token comes in the header X-Sandbox-Token (in a GET also as `?token=`, for a person's browser). A request that names another host
than this machine (DNS rebinding), or that comes from a page of another origin, is refused with the token as well.
"""

from __future__ import annotations

import hmac
from functools import wraps
from http import HTTPStatus
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from orchestrator.devkit.sandbox.config import is_loopback
from orchestrator.devkit.sandbox.core import Refused, sandbox_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request
    from starlette.responses import Response

TOKEN_HEADER: Final = "X-Sandbox-Token"  # noqa: S105 - its name


def permit(request: Request) -> None:
    """Refuse what is not sent by the holder of the token to this machine's own name."""
    host = request.url.hostname or ""
    config = sandbox_of(request).config
    # A name with a domain may be anybody's, and lead here since a moment ago (DNS rebinding).
    if not (is_loopback(host) or _is_address(host) or "." not in host or host in config.callback_hosts):
        raise Refused(
            HTTPStatus.FORBIDDEN,
            f"the control API is not served for the host {host[:100]!r}: call it by its address",
        )
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
        raise Refused(HTTPStatus.FORBIDDEN, "the control API is not for pages of another origin")
    if not config.control_token:
        return
    given = request.headers.get(TOKEN_HEADER) or (
        request.query_params.get("token", "") if request.method in {"GET", "HEAD"} else ""
    )
    if not hmac.compare_digest(given.encode(), config.control_token.encode()):
        raise Refused(
            HTTPStatus.UNAUTHORIZED,
            f"the control API needs the header {TOKEN_HEADER}: its value is ORCHESTRATOR_SANDBOX_TOKEN, or was printed at the start",
        )


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def guarded(endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """Return an endpoint that refuses who may not call it."""

    @wraps(endpoint)
    async def serve(request: Request) -> Response:
        permit(request)
        return await endpoint(request)

    return serve

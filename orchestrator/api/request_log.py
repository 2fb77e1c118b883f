"""Logs of requests: a line for each where that is configured, and refused ones always, counted and never in
floods.

`AccessLog` costs a request two microseconds: lines are gathered and written together five times a second,
past the steps of ordinary log lines. That is safe because nothing in them is free text: the route and not the
path (callback links are signed), no query, no header but the addresses of proxies, no body. A shopper's own
address is not logged. Gathered lines are lost with a killed process.

`SecurityLog` takes failed authentication, refused scopes, and callbacks without proof or with a wrong link.
Of each kind a limited number of lines a minute is written; the number of the others follows when the minute
is over.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from orchestrator import log
from orchestrator.api import browser_access, client_address, correlation

if TYPE_CHECKING:
    from starlette.types import Scope

DENIED: Final = "orchestrator.denied"
"""Where an endpoint leaves in the scope why a caller was denied: a sentence of ours, without anything of the
token."""
LINES_A_MINUTE: Final = 20
"""Of each kind of security event."""
WINDOW: Final = 60.0
FLUSH_AFTER: Final = 0.2

_ACCESS: Final = "orchestrator.access"
_security = log.get("orchestrator.security")


class AccessLog:
    """One line for each request. `depth` is the number of proxies in front of us that are trusted."""

    def __init__(self, *, depth: int) -> None:
        self._depth = depth
        self._rows: list[tuple[float, Scope, int, float, int, str]] = []

    def note(self, scope: Scope, *, status: int, seconds: float, size: int) -> None:
        """Take down a request that was answered; in its task."""
        self._rows.append((time.time(), scope, status, seconds, size, correlation.current()))
        if len(self._rows) == 1:
            asyncio.get_running_loop().call_later(FLUSH_AFTER, self.flush)

    def flush(self) -> None:
        """Write what has gathered."""
        rows, self._rows = self._rows, []
        if not rows:
            return
        log.write_plain(
            _ACCESS,
            [
                {
                    "event": "request_answered",
                    "timestamp": datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z"),
                    "method": scope["method"],
                    "route": route_of(scope),
                    "status": status,
                    "ms": round(seconds * 1000, 1),
                    "bytes": size,
                    "correlation_id": log.scrub(correlation_id),
                    "source": source_of(scope, depth=self._depth),
                }
                for at, scope, status, seconds, size, correlation_id in rows
            ],
        )


class SecurityLog:
    """Refused requests by kind: the first of each minute as lines, the rest as a count."""

    def __init__(self, *, depth: int) -> None:
        self._depth = depth
        self._counts: dict[str, int] = {}

    def note(self, scope: Scope, status: int) -> None:
        """Take down a request that was refused, if it concerns security; on the event loop."""
        event = _event_of(scope, status)
        if event is None:
            return
        count = self._counts.get(event, 0)
        if not self._counts:
            asyncio.get_running_loop().call_later(WINDOW, self.flush)
        self._counts[event] = count + 1
        if count < LINES_A_MINUTE:
            _security.warning(
                event,
                route=route_of(scope),
                status=status,
                reason=scope.get(DENIED),
                source=source_of(scope, depth=self._depth),
            )

    def flush(self) -> None:
        """End the minute: say how many lines of each kind were left out."""
        counts, self._counts = self._counts, {}
        for event, count in counts.items():
            if count > LINES_A_MINUTE:
                _security.warning(
                    "security_events_left_out", kind=event, left_out=count - LINES_A_MINUTE, seconds=WINDOW
                )


def _event_of(scope: Scope, status: int) -> str | None:
    callback = scope["path"].startswith("/callbacks/")
    match status:
        case 401 if callback:
            return "callback_without_proof"
        case 404 if callback:
            return "callback_link_refused"
        case 401:
            return "authentication_failed"
        case 403:
            return "request_forbidden"
        case 429:
            return "request_limited"
    return None


def route_of(scope: Scope) -> str | None:
    """Return the route that answered, such as /v1/checkouts/{checkout_id}; None where there is none."""
    endpoint = scope.get("endpoint")
    return None if endpoint is None else _routes(scope["app"]).get(endpoint)


@lru_cache(maxsize=8)
def _routes(app: Any) -> dict[Any, str]:
    return {route.endpoint: route.path for route in app.routes if hasattr(route, "endpoint")}


def source_of(scope: Scope, *, depth: int) -> str | None:
    """Return who called, as far as it is logged: None for a shopper's own browser."""
    if scope.get("path_params", {}).get("kind") == "redirect" or browser_access.is_open(scope["path"]):
        return None
    return caller_of(scope, depth=depth)


def caller_of(scope: Scope, *, depth: int) -> str | None:
    """Return the address that called, as far as proxies that are trusted say."""
    client = scope.get("client")
    forwarded = [
        value.decode("latin-1") for name, value in scope["headers"] if depth and name == b"x-forwarded-for"
    ]
    address, _ = client_address.caller(client[0] if client else None, forwarded, depth=depth)
    return None if address is None else str(address)

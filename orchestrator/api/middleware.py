"""The middleware of every request: its correlation id, its log line, the headers that every answer has, and
the answer when something broke.

The log gets the route and never the URL, because callback URLs are signed. An unexpected error becomes a
problem without internals; an error that means that Postgres is out of reach becomes 503.
"""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from orchestrator import counters, log, traces
from orchestrator.api import browser_access, correlation, limits
from orchestrator.api.problems import Refusal, away, problem
from orchestrator.api.request_body import Disconnected
from orchestrator.api.request_log import route_of
from orchestrator.store.database import DatabaseAway, is_away
from orchestrator.store.sqlstates import OTHER_SCHEMA, state_of

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from orchestrator.settings import Settings

_log = log.get(__name__)

HEAD: Final = "orchestrator.head"
"""Set in the scope of a HEAD, which is answered like a GET without the body."""

_ALWAYS: Final = (
    (b"x-content-type-options", b"nosniff"),
    # The shop's page must not learn our signed URL, and no cache may keep a session token.
    (b"referrer-policy", b"no-referrer"),
)
NO_STORE: Final = (b"cache-control", b"no-store")
NO_PAGE: Final = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
"""Of whatever names no policy itself: it is no page, and no page may frame it."""
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_INTAKE: Final = frozenset({"/v1/checkouts", "/v1/checkouts/batch"})
_CALLBACKS: Final = "/callbacks/"
"""Their answers may stand in a frame: a shop may frame the gateway's payment page, which leads here."""


def always(settings: Settings) -> tuple[tuple[bytes, bytes], ...]:
    """Return the headers of every answer."""
    if not settings.hsts_max_age:
        return _ALWAYS
    return (*_ALWAYS, (b"strict-transport-security", f"max-age={settings.hsts_max_age}".encode()))


def count_from_zero(app: FastAPI) -> None:
    """Begin the counts of failed intake, since Prometheus sees no increase in a series that begins late."""
    for route in app.routes:
        path = getattr(route, "path", "")
        if path in _INTAKE or path.startswith(_CALLBACKS):
            for status in ("500", "503"):
                counters.http_requests.add("POST", path, status, by=0.0)


class Envelope:
    """The outermost middleware of ours."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        chosen = correlation.begin(scope["headers"]).encode()
        # A HEAD is answered like a GET without the body; callbacks distinguish them, since a GET there is
        # stored.
        head = scope["method"] == "HEAD" and not scope["path"].startswith("/callbacks/")
        if head:
            scope = {**scope, "method": "GET", HEAD: True}
        status = size = 0

        async def send_out(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message["headers"] = list(message.get("headers", ()))
                headers.append((correlation.HEADER, chosen))
                _complete(scope, headers)
            elif head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            else:
                size += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, send_out)
        except Disconnected:
            return
        except Exception as error:  # whatever it is, the caller gets an answer and we get a line
            refusal = _explain(error)
            if status:
                raise  # the answer is half sent: the server ends the connection
            await problem(refusal)(scope, receive, send_out)
        _note(scope, status=status, seconds=time.perf_counter() - started, size=size)


def _complete(scope: Scope, headers: list[tuple[bytes, bytes]]) -> None:
    """Add what every answer says: how it may be used, and how much of a limit is left."""
    state, path = scope["app"].state, scope["path"]
    given = {name for name, _ in headers}
    headers.extend(state.always)
    if b"cache-control" not in given:
        headers.append(NO_STORE)
    if b"content-security-policy" not in given and not path.startswith(_CALLBACKS):
        headers.append(NO_PAGE)
    if limits.APPLIED in scope:
        headers.extend(limits.headers_of(scope))
    if browser_access.is_open(path):
        headers.extend(browser_access.headers_of(scope, state.services.settings.browser_origins))


def _note(scope: Scope, *, status: int, seconds: float, size: int) -> None:
    state = scope["app"].state
    route = route_of(scope) or "none"
    # Callers choose the word: any but those of HTTP is one label.
    method = scope["method"] if scope["method"] in _METHODS else "other"
    counters.http_requests.add(method, route, str(status))
    counters.http_request_seconds.observe(seconds, route)
    if traces.on:
        header = next((value for name, value in scope["headers"] if name == correlation.TRACEPARENT), None)
        traces.request(
            f"{method} {route}",
            correlation.current(),
            header.decode("latin-1") if header else None,
            seconds=seconds,
            status=status,
            intake=method == "POST" and route in _INTAKE,
        )
    if status >= HTTPStatus.BAD_REQUEST:
        state.security_log.note(scope, status)
    if state.access_log is not None:
        state.access_log.note(scope, status=status, seconds=seconds, size=size)


def _explain(error: Exception) -> Refusal:
    if isinstance(error, DatabaseAway) or (is_away(error) and state_of(error) not in OTHER_SCHEMA):
        _log.warning("database_away", **log.cause(error))
        return away()
    _log.error("request_failed", exc_info=error)
    return Refusal(
        500, "something went wrong here: name the correlation id when you ask about it", kind="internal"
    )

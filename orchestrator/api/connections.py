"""What one connection, and all connections together, may cost an API process.

uvicorn's httptools protocol sets no bound on the head of a request, on trailers, on the number of pipelined
requests, on the time that a head takes, or on the number of connections. `Connection` adds those bounds and
`Connections` counts for the process. A request that passes a bound is answered with a problem (RFC 9457)
where the answer can still be written, and its connection is closed. Refusals are logged as numbers, one line
in a period, so that an attack cannot fill a log.

When the process has as many connections as it may have, the ones that wait for a request are closed, the
oldest first. Where every connection has a request under way, new ones come from a reserve that serves
callbacks only.
"""

from __future__ import annotations

import asyncio
import resource
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, cast

import httptools
import msgspec
from starlette.responses import Response
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from orchestrator import log
from orchestrator.api.contract.answers import Problem

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send
    from uvicorn import Config
    from uvicorn.server import ServerState

_log = log.get(__name__)

Headers = tuple[tuple[bytes, bytes], ...]

HEAD_LIMIT: Final = 64 * 1024
"""Bytes of a request that are not its body: request line and headers, or trailers and chunk extensions."""
URL_LIMIT: Final = 8 * 1024
"""Bytes of a request's target. The longest callback URL of ours has about 3,000."""
HEADERS_LIMIT: Final = 100
PIPELINE_LIMIT: Final = 16
"""Requests that may wait on one connection while another is answered."""
HEAD_SECONDS: Final = 20.0
"""From the start of a connection, or the first byte of a further request, to the end of the head."""
REQUEST_SECONDS: Final = 30.0
"""From the same moment to the end of the body. An endpoint that reads a body waits for 20 s at most."""
WRITE_SECONDS: Final = 60.0
"""How long a caller may leave an answer unread."""
LINGER_SECONDS: Final = 2.0
"""How long a refused caller gets to read why, before the connection is cut."""
SUMMARY_SECONDS: Final = 60.0
"""Between two lines about refusals."""

_SLICE: Final = 16 * 1024
"""Bytes that the parser gets at once: how far a bound may be passed before it is noticed."""
_DISCARD_LIMIT: Final = 1024 * 1024
_OTHER_FILES: Final = 128
"""Open files of an API process that are not connections of callers: Postgres, the broker, logs, libraries."""
_LEAST_CONNECTIONS: Final = 16
_INTERVAL: Final = 1.0

_SENTENCES: Final = {
    "upgrade_with_body": (
        400,
        "a request with a body must not offer another protocol: send it without the header Upgrade",
    ),
    "request_malformed": (400, "this is not an HTTP/1.1 request"),
    "head_too_slow": (408, f"the head of the request did not come within {HEAD_SECONDS:.0f} s"),
    "body_too_slow": (408, f"the request did not come within {REQUEST_SECONDS:.0f} s"),
    "url_too_long": (414, f"the URL is longer than {URL_LIMIT} bytes"),
    "head_too_large": (431, f"the head of the request is longer than {HEAD_LIMIT} bytes"),
    "too_many_headers": (431, f"the request has more than {HEADERS_LIMIT} headers"),
    "too_many_connections": (503, "too many connections at the moment: send it again"),
}


def _document(status: int, detail: str) -> bytes:
    """Return a problem document. It has no correlation id, because the request was not read."""
    title = STATUS_LINE[status][13:-2].decode()
    return msgspec.json.encode(
        Problem(kind="about:blank", title=title, status=status, detail=detail, errors=())
    )


def _answer(status: int, detail: str, always: Headers) -> bytes:
    body = _document(status, detail)
    head = (
        "content-type: application/problem+json\r\n"
        + "".join(f"{name.decode()}: {value.decode()}\r\n" for name, value in always)
        + f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return STATUS_LINE[status] + head.encode() + body


class Connections:
    """The connections of one process: their number, their time limits, and a count of refusals by reason."""

    def __init__(self, limit: int, *, files: int, always: Headers = ()) -> None:
        """Take the wanted number of connections; `files` is what else of the process's open files is spoken
        for, `always` the headers of every answer.
        """
        self.answers = {reason: _answer(*said, always) for reason, said in _SENTENCES.items()}
        headers = {"Retry-After": "1", "Connection": "close"}
        said = _document(*_SENTENCES["too_many_connections"])
        self.busy = Response(said, 503, headers, "application/problem+json")
        self.busy.raw_headers.extend(always)
        allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if allowed == resource.RLIM_INFINITY:
            allowed = limit * 2 + files + _OTHER_FILES
        # A reserve of an eighth of the limit comes on top of it.
        possible = (allowed - files - _OTHER_FILES) * 8 // 9
        self.limit = max(min(limit, possible), _LEAST_CONNECTIONS)
        self.reserve = max(self.limit // 8, 1)
        if self.limit < limit:
            _log.info("connections_limited_by_open_files", wanted=limit, limit=self.limit, open_files=allowed)
        self.refused: Counter[str] = Counter()
        self.open: set[Connection] = set()
        self._told_at = float("-inf")

    @property
    def unanswered(self) -> int:
        """How many requests were read to their end and have no answer that their callers could read."""
        return sum(connection.is_unanswered for connection in self.open)

    def protocol(self, **given: Any) -> Connection:
        """Return the protocol of a new connection; uvicorn calls it."""
        return Connection(self, **given)

    def admit(self, newcomer: Connection) -> None:
        """Find a place for a connection that has just been made."""
        self.open.add(newcomer)
        if len(self.open) <= self.limit:
            return
        waiting = [
            connection for connection in self.open if connection is not newcomer and connection.is_waiting
        ]
        # A batch at once: the list is not sorted again for each connection of a flood.
        waiting.sort(key=Connection.waiting_order)
        for connection in waiting[: max(self.limit // 16, 1)]:
            self.refused["closed_while_waiting"] += 1
            connection.cut()
        if len(self.open) <= self.limit:
            return
        self.refused["too_many_connections"] += 1
        if len(self.open) <= self.limit + self.reserve:
            newcomer.serve_callbacks_only()
        else:
            newcomer.cut()

    async def watch(self) -> None:
        """Close connections that are too slow and log refusals, once a second; until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_INTERVAL)
            now = loop.time()
            for connection in list(self.open):
                connection.check(now)
            if self.refused and now - self._told_at >= SUMMARY_SECONDS:
                self.tell()
                self._told_at = now

    def tell(self) -> None:
        """Log how much was refused since the last time."""
        if self.refused:
            _log.warning("connections_refused", open=len(self.open), **dict(sorted(self.refused.items())))
            self.refused.clear()


class _Flow(FlowControl):
    """Flow control that does not read on while requests of the same connection wait."""

    def __init__(self, transport: asyncio.Transport, waiting: Any) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        if not self._waiting:
            super().resume_reading()


class _Refused(Exception):  # noqa: N818 - never leaves this module
    """Stops the parser; the reason is noted on the connection."""


class Connection(HttpToolsProtocol):
    """uvicorn's protocol with bounds. Times are those of the event loop."""

    def __init__(
        self,
        connections: Connections,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._connections = connections
        self._reason = "request_malformed"
        # Whether what comes next is body (or trailers) of a request whose head was complete.
        self._in_body = False
        # Since when the rest of a request is missing; None: nothing is missing.
        self._since: float | None = None
        # Bytes since the start of the message, or since the last byte of its body.
        self._framing = 0
        self._closing_since: float | None = None
        self._blocked_since: float | None = None
        # Since when an answer to a refused request may be read.
        self._refused_at: float | None = None
        # Bytes that came after the last request that is answered; None: all is read.
        self._discarded: int | None = None

    # ── Life of a connection ───────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Begin; the first request has to come in time."""
        super().connection_made(transport)
        self.flow = _Flow(transport, self.pipeline)
        self._since = self.loop.time()
        self._connections.admit(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._connections.open.discard(self)
        super().connection_lost(exc)

    @property
    def _latest(self) -> RequestResponseCycle | None:
        """The newest request; uvicorn does not say that there may be none."""
        return self.cycle

    @property
    def is_waiting(self) -> bool:
        """Say whether no request is under way."""
        return not self._in_body and ((latest := self._latest) is None or latest.response_complete)

    @property
    def is_unanswered(self) -> bool:
        """Say whether the answer is owed by us: the request is read, and the caller does not leave an answer
        unread.
        """
        latest = self._latest
        owed = latest is not None and not latest.response_complete
        return owed and not self._in_body and self._blocked_since is None

    def waiting_order(self) -> tuple[bool, float]:
        """Return the key by which connections are closed, least loss first: never used ones, then by age."""
        return self._latest is not None, self._since or float("inf")

    def serve_callbacks_only(self) -> None:
        """Answer 503 to everything but callbacks, since this connection is from the reserve."""
        app, busy = cast("ASGIApp", self.app), self._connections.busy

        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and scope["path"].startswith("/callbacks/"):
                await app(scope, receive, send)
            else:
                await busy(scope, receive, send)

        self.app = cast("Any", serve)

    def cut(self) -> None:
        """End at once."""
        self._connections.open.discard(self)
        self.connections.discard(self)
        self.transport.abort()

    def check(self, now: float) -> None:
        """End what takes too long."""
        if self.transport.is_closing() and self._closing_since is None:
            self._closing_since = now
        if self._is_stalled(now):
            self.cut()
        elif self._since is None or self._discarded is not None or self.flow.read_paused:
            return  # nothing of a request is missing, or its data is ignored
        elif self._in_body:
            if now - self._since > REQUEST_SECONDS:
                self._refuse("body_too_slow")
        elif now - self._since > HEAD_SECONDS:
            self._refuse("head_too_slow" if self._framing else "silent")

    def _is_stalled(self, now: float) -> bool:
        """Say whether the caller leaves unread what was written. TCP itself would wait for it for ever."""
        waits = (
            (self._refused_at, LINGER_SECONDS),
            (self._closing_since, WRITE_SECONDS),
            (self._blocked_since, WRITE_SECONDS),
        )
        return any(since is not None and now - since > most for since, most in waits)

    def pause_writing(self) -> None:
        """Note since when the caller reads too slowly."""
        self._blocked_since = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        """Note that the caller reads again."""
        self._blocked_since = None
        super().resume_writing()

    # ── Reading ────────────────────────────────────────────────────────────────────────────────────────────

    def data_received(self, data: bytes) -> None:
        """Parse what came, in slices."""
        if self._discarded is not None:
            self._discarded += len(data)
            if self._discarded > _DISCARD_LIMIT:
                self.cut()
            return
        self._unset_keepalive_if_required()
        if self._since is None:
            self._since = self.loop.time()
        if len(data) <= _SLICE:
            self._feed(data)
            return
        view = memoryview(data)
        for start in range(0, len(data), _SLICE):
            self._feed(view[start : start + _SLICE])
            if self._is_done_reading:
                return

    @property
    def _is_done_reading(self) -> bool:
        return self._discarded is not None or self.transport.is_closing()

    def _feed(self, data: bytes | memoryview) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # No other protocol is spoken here. The request is answered as it is, and what follows it is not
            # read.
            self._discarded = 0
            if (latest := self._latest) is not None:
                latest.keep_alive = False
            return
        except httptools.HttpParserError:
            self._refuse(self._reason)
            return
        if self._since is not None:
            self._framing += len(data)
            if self._framing > HEAD_LIMIT + _SLICE:
                self._refuse("head_too_large")

    def on_message_begin(self) -> None:
        """Begin a request."""
        if len(self.pipeline) >= PIPELINE_LIMIT:
            self._stop("pipeline_too_deep")
        if self._since is None:
            self._since = self.loop.time()
        self._framing = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header.

        Trailers are dropped: they must not add to the headers that a request was judged by.
        """
        if self._in_body:
            return
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Start the request, if its head is within bounds."""
        if len(self.url) > URL_LIMIT:
            self._stop("url_too_long")
        if len(self.headers) > HEADERS_LIMIT:
            self._stop("too_many_headers")
        if self.parser.should_upgrade() and any(
            name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
            for name, value in self.headers
        ):
            # httptools takes what follows the head for the other protocol: the body would be lost without a
            # word.
            self._stop("upgrade_with_body")
        super().on_headers_complete()
        self._in_body = True

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._framing = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End the request."""
        self._in_body = False
        self._since = None
        super().on_message_complete()

    # ── Refusing ───────────────────────────────────────────────────────────────────────────────────────────

    def _stop(self, reason: str) -> None:
        self._reason = reason
        raise _Refused(reason)

    def _refuse(self, reason: str) -> None:
        """Read no further, and answer if the answer cannot be taken for that of another request."""
        self._connections.refused[reason] += 1
        if self._is_done_reading:
            return
        self._discarded = 0
        latest = self._latest
        under_way = latest if latest is not None and not latest.response_complete else None
        if under_way is not None and not self._in_body:
            # What was taken before is answered first.
            under_way.keep_alive = False
        elif reason == "silent" or (
            self._in_body and (under_way is None or under_way.response_started or self.pipeline)
        ):
            self.cut()
        else:
            if under_way is not None:
                under_way.disconnected = True
                under_way.message_event.set()
            self._refused_at = self.loop.time()
            answers = self._connections.answers
            self.transport.write(answers.get(reason) or answers["request_malformed"])
            self.transport.write_eof()

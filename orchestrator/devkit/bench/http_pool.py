"""A cheap HTTP/1.1 client for load: few kept connections, requests that are ready bytes, answers that are a
status and a body.

Made to cost little beside what is measured, and only for our own processes on this machine: no TLS, no
redirects, no cookies. A connection that was closed while it was idle is detected by its first request, which
is sent once more on a new connection.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, NamedTuple, cast

import httptools

if TYPE_CHECKING:
    from collections.abc import Mapping

TIMEOUT: Final = 30.0
"""Seconds for one answer, the wait for a free connection counted."""


class Answer(NamedTuple):
    status: int
    body: bytes


class HttpPool:
    """Connections to one address, kept, at most `most` at a time; on one event loop."""

    def __init__(self, host: str, port: int, *, most: int) -> None:
        self._host, self._port = host, port
        self._room = asyncio.Semaphore(most)
        self._idle: list[_Line] = []

    async def exchange(self, request: bytes, *, timeout: float = TIMEOUT) -> Answer:
        """Return the answer to a request; `OSError` (`TimeoutError` is one) where none came."""
        async with asyncio.timeout(timeout), self._room:
            line = self._kept()
            if line is not None:
                try:
                    return await self._ask(line, request)
                except ConnectionResetError:
                    if line.received:
                        raise
            connecting = asyncio.get_running_loop().create_connection(_Line, self._host, self._port)
            return await self._ask((await connecting)[1], request)

    def close(self) -> None:
        for line in self._idle:
            line.close()
        self._idle.clear()

    def _kept(self) -> _Line | None:
        # The connection used last: others grow old, and are closed by the other side.
        while self._idle:
            line = self._idle.pop()
            if line.open:
                return line
        return None

    async def _ask(self, line: _Line, request: bytes) -> Answer:
        try:
            answer = await line.ask(request)
        except BaseException:
            line.close()  # what comes on it now would be taken for the answer to another request
            raise
        if line.open:
            self._idle.append(line)
        return answer


class _Line(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiting: asyncio.Future[Answer] | None = None
        self._body: list[bytes] = []
        self.received = False
        """Whether anything came since the last request."""

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def ask(self, request: bytes) -> Answer:
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError
        self.received = False
        self._body = []
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._waiting

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of asyncio's

    def data_received(self, data: bytes) -> None:
        self.received = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._fail(ConnectionResetError("the answer is not HTTP"))
            self.close()

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result(Answer(self._parser.get_status_code(), b"".join(self._body)))
        if not self._parser.should_keep_alive() and self._transport is not None:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._fail(
            ConnectionResetError("the connection was closed before the answer") if error is None else error
        )

    def _fail(self, error: Exception) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_exception(error)


def request(
    method: str, host: str, path: str, *, headers: Mapping[str, str], body: bytes | None = None
) -> bytes:
    lines = [
        f"{method} {path} HTTP/1.1",
        f"Host: {host}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")

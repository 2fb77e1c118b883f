"""A server on 127.0.0.1 that answers as it is set, byte by byte, and keeps what it was asked."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable

    Answer = Callable[["Exchange"], Awaitable[None]]


@dataclass
class Exchange:
    """One request that arrived, and the writer to answer it with."""

    request_line: str
    headers: dict[str, str]
    body: bytes
    connection: int
    writer: asyncio.StreamWriter

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def respond(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Answer properly; header names are written with underscores."""
        fields = {"content_length": str(len(body)), "content_type": "application/json", **headers}
        head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
        await self.write(f"HTTP/1.1 {status} Whatever\r\n{head}\r\n".encode() + body)

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """Close with RST, as a peer that crashed does."""
        sock: socket.socket = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@dataclass
class Misbehaving:
    """The server; `answer` is called for each request and may be changed between them."""

    answer: Answer
    tls: ssl.SSLContext | None = None
    asked: list[Exchange] = field(default_factory=list)
    connections: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self.tls)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer, self.connections))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        # What a client does when it has had enough is not what is tested here.
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            try:
                while not writer.is_closing():
                    line, *fields = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
                    headers = {
                        name.lower(): value.strip() for name, _, value in (f.partition(":") for f in fields)
                    }
                    body = await reader.readexactly(int(headers.get("content-length", "0")))
                    exchange = Exchange(line, headers, body, number, writer)
                    self.asked.append(exchange)
                    await self.answer(exchange)
            finally:
                writer.close()


def answering(status: int, body: bytes = b"", **headers: str) -> Answer:
    async def answer(exchange: Exchange) -> None:
        await exchange.respond(status, body, **headers)

    return answer

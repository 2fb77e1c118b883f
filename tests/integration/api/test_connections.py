"""What a caller may do to an API process before any request of it is read."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
import threading
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import uvicorn

from orchestrator.api import connections
from orchestrator.api.connections import (
    HEADERS_LIMIT,
    PIPELINE_LIMIT,
    URL_LIMIT,
    Connections,
)
from tests.integration.api.process import Server, api_process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

pytestmark = pytest.mark.anyio

MEBIBYTE = 1024 * 1024
HEAD = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
CHUNKED = b"POST /nowhere HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"


def header_lines() -> Iterator[bytes]:
    yield HEAD
    for number in itertools.count():
        yield b"".join(b"X-%d-%d: y\r\n" % (number, each) for each in range(500))


def header_without_end() -> Iterator[bytes]:
    yield HEAD + b"X: "
    yield from itertools.repeat(b"y" * 8192)


def url_without_end() -> Iterator[bytes]:
    yield b"GET /"
    yield from itertools.repeat(b"y" * 8192)


def blank_lines() -> Iterator[bytes]:
    yield from itertools.repeat(b"\r\n" * 4096)


def trailers() -> Iterator[bytes]:
    yield CHUNKED + b"0\r\n"
    for number in itertools.count():
        yield b"".join(b"X-%d-%d: y\r\n" % (number, each) for each in range(500))


def chunk_extension() -> Iterator[bytes]:
    yield CHUNKED + b"5;"
    yield from itertools.repeat(b"y" * 8192)


def pipeline() -> Iterator[bytes]:
    yield from itertools.repeat((HEAD + b"\r\n") * 400)


STREAMS = (
    header_lines,
    header_without_end,
    url_without_end,
    blank_lines,
    trailers,
    chunk_extension,
    pipeline,
)


def test_a_stream_without_end_costs_neither_memory_nor_the_time_of_others(server: Server):
    idle, most, slowest = server.memory, 0, 0.0
    for stream in STREAMS:
        sent = _pour(server, stream(), most=64 * MEBIBYTE)
        assert sent < 16 * MEBIBYTE, f"{stream.__name__}: {sent} bytes were taken"
        started = time.perf_counter()
        assert server.client.get("/healthz").status_code == 200
        slowest = max(slowest, time.perf_counter() - started)
        most = max(most, server.memory)
    assert most - idle < 60 * MEBIBYTE
    assert slowest < 5
    assert server.stop() == 0
    told: dict[str, int] = {}
    for line in server.logged("connections_refused"):
        for reason, number in line.items():
            if isinstance(number, int):
                told[reason] = told.get(reason, 0) + number
    assert {"head_too_large", "pipeline_too_deep"} <= told.keys()
    assert len(server.log.read_text().splitlines()) < 100


def _pour(server: Server, stream: Iterator[bytes], *, most: int) -> int:
    """Send until the server ends the connection; return how many bytes it let in."""
    sent = 0
    with server.connect() as caller:
        reading = threading.Thread(target=_read_to_the_end, args=(caller,), daemon=True)
        reading.start()
        caller.settimeout(5)
        with contextlib.suppress(OSError):
            for part in stream:
                caller.sendall(part)
                sent += len(part)
                if sent >= most:
                    break
    return sent


def _read_to_the_end(caller: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while caller.recv(MEBIBYTE):
            pass


def test_connections_beyond_the_open_files_shut_no_caller_out(database_url, servers, tmp_path):
    """1,100 silent callers, and a limit of 1,024 open files, as many systems have it."""
    with api_process(database_url, servers.redis_url, tmp_path, open_files=1024) as server:
        with contextlib.ExitStack() as silent:
            for _ in range(1100):
                with contextlib.suppress(OSError):
                    silent.enter_context(server.connect())
            server.client.close()
            with server.connect() as caller:
                caller.sendall(HEAD + b"Connection: close\r\n\r\n")
                assert _answer(caller).startswith(b"HTTP/1.1 200")
            with server.connect() as caller:
                caller.sendall(
                    b"POST /callbacks/success/x/y HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
                )
                assert _answer(caller).startswith(b"HTTP/1.1 404")  # not signed by us, but it was read
        assert server.stop() == 0
        assert server.logged("connections_limited_by_open_files")[0]["limit"] < 1024
        assert sum(line["closed_while_waiting"] for line in server.logged("connections_refused")) > 100


def _answer(caller: socket.socket) -> bytes:
    read = b""
    with contextlib.suppress(OSError):
        while part := caller.recv(65_536):
            read += part
    return read


@pytest.mark.slow
def test_a_silent_connection_and_a_slow_head_are_closed_within_thirty_seconds(server: Server):
    with server.connect() as silent, server.connect() as slow, server.connect() as again:
        slow.sendall(b"GET /healthz HTTP/1.1\r\nHost")
        again.sendall(HEAD + b"\r\n")
        assert again.recv(65_536).startswith(b"HTTP/1.1 200")
        # A blank line stops the timer of a kept-alive connection.
        again.sendall(b"\r\n")
        started = time.monotonic()
        for client in (silent, slow, again):
            client.settimeout(40)
        assert silent.recv(10) == b""
        assert slow.recv(65_536).startswith(b"HTTP/1.1 408")
        with contextlib.suppress(ConnectionError):
            while again.recv(65_536):
                pass
        assert time.monotonic() - started < 30


# ── The protocol by itself, with an app that returns what it was asked ──────────────────────────────────────


class Echo:
    """Answers the path, the headers' names and the size of the body; `/held` waits until it is let go."""

    def __init__(self) -> None:
        self.held = asyncio.Event()
        self.asked: list[str] = []

    async def __call__(self, scope, receive, send) -> None:
        path = scope["path"]
        self.asked.append(path)
        if path.endswith("/held"):
            await self.held.wait()
        size = 0
        while path != "/unread":
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            size += len(message.get("body", b""))
            if not message.get("more_body"):
                break
        names = [name.decode() for name, _ in scope["headers"]]
        body = json.dumps({"path": path, "headers": names, "size": size}).encode()
        if path == "/large":
            body = b"x" * 8 * MEBIBYTE
        head = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": body})


class Wire:
    def __init__(self, app: Echo, held: Connections, port: int) -> None:
        self.app, self.connections, self._port = app, held, port
        self._writers: list[asyncio.StreamWriter] = []

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers.append(writer)
        return reader, writer

    async def close(self) -> None:
        for writer in self._writers:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def ask(self, raw: bytes) -> bytes:
        """Send bytes and return all that is answered until the connection ends."""
        reader, writer = await self.open()
        writer.write(raw)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        read = b""
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(10):
                while part := await reader.read(65_536):
                    read += part
        return read

    async def closed(self, reader: asyncio.StreamReader) -> bytes:
        async with asyncio.timeout(20):
            with contextlib.suppress(ConnectionError):
                return await reader.read()
            return b""


@asynccontextmanager
async def wire(limit: int = 200, *, summaries: bool = False) -> AsyncIterator[Wire]:
    app, held = Echo(), Connections(limit, files=10)
    if not summaries:
        held._told_at = asyncio.get_running_loop().time()
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=held.protocol, ws="none", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    watching = asyncio.create_task(held.watch())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    served = Wire(app, held, listening.getsockname()[1])
    try:
        yield served
    finally:
        app.held.set()
        await served.close()
        server.should_exit = server.force_exit = True
        await serving
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - it happens in the server
        await asyncio.sleep(0.02)


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


def document(answer: bytes) -> dict:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head
    assert b"connection: close" in head
    return json.loads(body)


GET = b"GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%s\r\n"
REFUSED = {
    "a URL that is too long": (GET % (b"/" + b"x" * URL_LIMIT, b""), 414),
    "a query that is too long": (GET % (b"/?" + b"a&" * (URL_LIMIT // 2), b""), 414),
    "too many headers": (GET % (b"/", b"X: y\r\n" * HEADERS_LIMIT), 431),
    "headers that are too long": (GET % (b"/", b"X: " + b"y" * 100_000 + b"\r\n"), 431),
    "a length and chunks": (
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "two lengths": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc", 400),
    "a length below zero": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
    "an unknown coding": (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, x\r\n\r\n", 400),
    "NUL in the path": (GET % (b"/a\x00b", b""), 400),
    "a folded header": (GET % (b"/", b"X: y\r\n z\r\n"), 400),
    "a line feed alone": (b"GET / HTTP/1.1\nHost: x\n\n", 400),
    "a space before the colon": (GET % (b"/", b"X : y\r\n"), 400),
    "HTTP/2 by prior knowledge": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "a tunnel": (b"CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "a chunk of no length": (
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        400,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_no_request_of_ours_is_refused_in_one_answer(name):
    raw, wanted = REFUSED[name]
    async with wire() as server:
        answer = await server.ask(raw)
        assert status(answer) == wanted, answer
        assert document(answer)["status"] == wanted
        assert answer.count(b"content-length") == 1


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (b"GET /a HTTP/1.0\r\n\r\n", "/a"),
        (b"GET http://other.example/a?b=c HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "/a"),
        (b"\r\n\r\nGET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "/a"),
        (b"GET /a%00%0d%0ab HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "/a\x00\r\nb"),
        # No other protocol is spoken: the request is answered as it is, and nothing behind it is read as
        # another request.
        (b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\nGET /b HTTP/1.1\r\n\r\n", "/a"),
        (b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", "/a"),
    ],
)  # fmt: skip
async def test_what_is_unusual_and_a_request_is_answered_once(raw, path):
    async with wire() as server:
        answer = await server.ask(raw)
        assert status(answer) == 200
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["path"] == path
        assert server.app.asked == [path]


async def test_a_caller_that_waits_for_permission_to_send_gets_it():
    async with wire() as server:
        reader, writer = await server.open()
        writer.write(b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
        writer.write(b"ab")
        assert b'"size": 2' in await reader.readuntil(b"}")


async def test_a_body_beside_the_offer_of_another_protocol_is_refused_and_not_lost():
    """Java's own client offers HTTP/2 with each request to an http:// address."""
    async with wire() as server:
        offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAA\r\n"
        for length in (
            b"Content-Length: 2\r\n\r\nab",
            b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
        ):
            answer = await server.ask(b"POST /a HTTP/1.1\r\nHost: x\r\n" + offer + length)
            assert status(answer) == 400
            assert "without the header Upgrade" in document(answer)["detail"]
        assert server.app.asked == []
        empty = b"Content-Length: 0\r\n\r\n"
        assert status(await server.ask(b"POST /a HTTP/1.1\r\nHost: x\r\n" + offer + empty)) == 200


async def test_trailers_add_nothing_to_the_headers():
    async with wire() as server:
        raw = (
            b"POST /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"2\r\nab\r\n0\r\nAuthorization: Bearer x\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n"
        )
        answer = json.loads((await server.ask(raw)).partition(b"\r\n\r\n")[2])
        assert answer == {"path": "/a", "headers": ["host", "connection", "transfer-encoding"], "size": 2}


async def test_pipelined_requests_are_answered_in_order_up_to_the_limit():
    async with wire() as server:
        raw = b"".join(
            b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(PIPELINE_LIMIT + 40)
        )
        answer = await server.ask(raw)
        assert answer.count(b"HTTP/1.1 200") == PIPELINE_LIMIT + 1
        assert server.app.asked == [f"/{number}" for number in range(PIPELINE_LIMIT + 1)]
        assert server.connections.refused["pipeline_too_deep"] == 1


async def test_nothing_is_read_while_requests_of_a_connection_wait():
    async with wire() as server:
        reader, writer = await server.open()
        writer.write(b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n" + b"GET /b HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.sleep(0.2)
        connection = next(iter(server.connections.open))
        assert connection.flow.read_paused
        server.app.held.set()
        assert b'"/held"' in await reader.readuntil(b"}")
        assert b'"/b"' in await reader.readuntil(b"}")
        writer.write(b"GET /c HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b'"/c"' in await reader.readuntil(b"}")


async def test_a_body_in_many_small_parts_is_taken():
    async with wire() as server:
        reader, writer = await server.open()
        writer.write(b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(3000):
            writer.write(b"40\r\n" + b"x" * 64 + b"\r\n")
        writer.write(b"0\r\n\r\n")
        assert b'"size": 192000' in await reader.readuntil(b"}")
        writer.write(b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n" + b"x" * 3_000_000)
        assert b'"size": 3000000' in await reader.readuntil(b"}")


SLOW: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], bytes, int, str]] = {
    "silence": (lambda patch: patch.setattr(connections, "HEAD_SECONDS", 0.5), b"", 0, "silent"),
    "half a head": (
        lambda patch: patch.setattr(connections, "HEAD_SECONDS", 0.5),
        b"GET / HTTP/1.1\r\nHo",
        408,
        "head_too_slow",
    ),
    "half a body": (
        lambda patch: patch.setattr(connections, "REQUEST_SECONDS", 0.5),
        b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc",
        408,
        "body_too_slow",
    ),
    "half a body that no endpoint reads": (
        lambda patch: patch.setattr(connections, "REQUEST_SECONDS", 0.5),
        b"POST /unread HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc",
        200,
        "body_too_slow",
    ),
    "half a head after a request": (
        lambda patch: patch.setattr(connections, "HEAD_SECONDS", 0.5),
        b"GET /a HTTP/1.1\r\nHost: x\r\n\r\nGET /b HT",
        200,
        "head_too_slow",
    ),
}


@pytest.mark.parametrize("name", SLOW)
async def test_what_does_not_come_in_time_is_closed(name, monkeypatch):
    shorten, raw, wanted, reason = SLOW[name]
    shorten(monkeypatch)
    async with wire() as server:
        reader, writer = await server.open()
        writer.write(raw)
        assert status(await server.closed(reader)) == wanted
        assert server.connections.refused[reason] == 1


async def test_an_answer_that_is_not_read_is_given_up(monkeypatch):
    monkeypatch.setattr(connections, "WRITE_SECONDS", 0.5)
    async with wire() as server:
        _, writer = await server.open()
        writer.write(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(20):
            await until(lambda: server.app.asked and not server.connections.open)


async def test_a_full_process_closes_what_waits_and_goes_on_serving():
    async with wire(limit=32) as server:
        for _ in range(100):
            await server.open()
        assert len(server.connections.open) <= 32 + server.connections.reserve
        assert status(await server.ask(GET % (b"/a", b""))) == 200
        assert server.connections.refused["closed_while_waiting"] >= 60


async def test_where_all_connections_are_busy_callbacks_still_come_in():
    async with wire(limit=32) as server:
        busy = []
        for _ in range(32):
            busy.append(await server.open())
            busy[-1][1].write(b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(10):
            await until(lambda: len(server.app.asked) == 32)
        refused = await server.ask(GET % (b"/v1/checkouts", b""))
        assert status(refused) == 503
        assert document(refused)["detail"] == "too many connections at the moment: send it again"
        assert status(await server.ask(GET % (b"/callbacks/success/a/b", b""))) == 200
        for _ in range(server.connections.reserve):
            _, writer = await server.open()
            writer.write(GET % (b"/callbacks/held", b""))
        async with asyncio.timeout(10):
            await until(lambda: server.app.asked.count("/callbacks/held") == server.connections.reserve)
        assert await server.ask(GET % (b"/callbacks/success/a/b", b"")) == b""
        server.app.held.set()
        for reader, _ in busy:
            assert b'"/held"' in await reader.readuntil(b"}")


async def test_refusals_are_logged_as_numbers(monkeypatch):
    lines = []
    monkeypatch.setattr(connections._log, "warning", lambda event, **facts: lines.append((event, facts)))
    monkeypatch.setattr(connections, "SUMMARY_SECONDS", 3)
    async with wire(summaries=True) as server:
        for _ in range(50):
            await server.ask(b"\x16\x03\x01\r\n\r\n")
        async with asyncio.timeout(20):
            await until(lambda: sum(facts["request_malformed"] for _, facts in lines) == 50)
        assert len(lines) < 10

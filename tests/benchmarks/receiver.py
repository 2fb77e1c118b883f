"""Endpoints of merchants in one process of their own: light, so that they cost little beside what is
measured.

Endpoint N is at the path /N. Each notes the moment of the first byte of each event, its answers, and events
of a checkout that came out of order; its conduct can be changed while it runs.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import re
import time
from collections import Counter, defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import uvloop

if TYPE_CHECKING:
    from collections.abc import Iterator

TARGET: Final = re.compile(rb"POST /(\d+) ")
ID: Final = re.compile(rb"\r\nwebhook-id: (([0-9a-f-]{36})-(\d+))\r\n")
LENGTH: Final = re.compile(rb"(?i)\r\ncontent-length: (\d+)")
ANSWERS: Final = {
    204: b"HTTP/1.1 204 No Content\r\n\r\n",
    429: b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n",
    500: b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n",
    503: b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
}
BURST: Final = 0.1
"""Seconds of its rate that an endpoint takes at once."""
KEPT: Final = 500
"""One request in so many is kept as it came, so that its signature can be checked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conduct:
    """What an endpoint answers with anything but 204."""

    poisoned: bool = False
    """About one checkout in a hundred is answered with 500, for ever."""
    away: bool = False
    """All is answered with 503."""
    rate: float = 0.0
    """Requests a second that it bears; those beyond are answered with 429. 0: any number."""
    at_once: int = 0
    """Requests that it works on at a time; those beyond are answered with 503. 0: any number."""
    seconds: float = 0.0
    """How long it works on one."""


@dataclass(slots=True)
class Seen:
    """What came to one endpoint."""

    first: dict[bytes, float] = field(default_factory=dict)
    """The first byte of each event, in seconds since 1970."""
    answers: Counter[int] = field(default_factory=Counter)
    disordered: int = 0
    kept: list[bytes] = field(default_factory=list)


def is_poisoned(checkout: bytes) -> bool:
    """Say whether the events of this checkout are those that a poisoned endpoint refuses."""
    return int(checkout[32:36], 16) % 100 == 0


class _Endpoint:
    def __init__(self) -> None:
        self.conduct, self.seen = Conduct(), Seen()
        self.working = 0
        self._taken: defaultdict[bytes, int] = defaultdict(int)
        self._tokens, self._at = 0.0, 0.0

    def answer(self, event: bytes, checkout: bytes, sequence: int, began: float) -> int:
        status = self._status(checkout)
        self.seen.answers[status] += 1
        self.seen.first.setdefault(event, began)
        if status == 204:
            self.seen.disordered += sequence not in {self._taken[checkout], self._taken[checkout] + 1}
            self._taken[checkout] = sequence
        return status

    def _status(self, checkout: bytes) -> int:
        conduct = self.conduct
        if conduct.away or (conduct.at_once and self.working >= conduct.at_once):
            return 503
        if conduct.rate and not self._has_token(conduct.rate):
            return 429
        return 500 if conduct.poisoned and is_poisoned(checkout) else 204

    def _has_token(self, rate: float) -> bool:
        now = time.monotonic()
        self._tokens = min(self._tokens + (now - self._at) * rate, max(rate * BURST, 1.0))
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class _Connection(asyncio.Protocol):
    def __init__(self, endpoints: dict[int, _Endpoint]) -> None:
        self._endpoints, self._buffer, self._began, self._number = endpoints, b"", 0.0, 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._began = self._began or time.time()
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        if not separator or len(body) < int(LENGTH.search(head)[1]):  # type: ignore[index]
            return
        target, found = TARGET.match(head), ID.search(head)
        assert target is not None
        assert found is not None
        endpoint = self._endpoints[int(target[1])]
        status = endpoint.answer(found[1], found[2], int(found[3]), self._began)
        if endpoint.seen.answers[204] % KEPT == 1:
            endpoint.seen.kept.append(self._buffer)
        self._buffer, self._began = b"", 0.0
        if endpoint.conduct.seconds and status == 204:
            endpoint.working += 1
            asyncio.get_running_loop().call_later(endpoint.conduct.seconds, self._done, endpoint)
        else:
            self._transport.write(ANSWERS[status])

    def _done(self, endpoint: _Endpoint) -> None:
        endpoint.working -= 1
        self._transport.write(ANSWERS[204])


def _serve(pipe: Any) -> None:
    endpoints: defaultdict[int, _Endpoint] = defaultdict(_Endpoint)

    async def serve() -> None:
        loop, over = asyncio.get_running_loop(), asyncio.Event()
        server = await loop.create_server(lambda: _Connection(endpoints), "127.0.0.1", 0, backlog=1024)

        def asked() -> None:
            try:
                what, number, given = pipe.recv()
            except EOFError:
                over.set()
                return
            endpoint = endpoints[number]
            if what == "reset":
                endpoints[number] = _Endpoint()
                pipe.send(None)
            elif what == "conduct":
                endpoint.conduct = given
                pipe.send(None)
            elif what == "count":
                pipe.send((len(endpoint.seen.first), endpoint.seen.answers))
            else:
                pipe.send(endpoint.seen)

        loop.add_reader(pipe.fileno(), asked)
        # The loop has made it one that does not block, and what is sent may be longer than its buffer.
        os.set_blocking(pipe.fileno(), True)
        pipe.send(server.sockets[0].getsockname()[1])
        await over.wait()

    uvloop.run(serve())


class Receiver:
    """The endpoints, for the process that measures; made by `receiving`."""

    def __init__(self, pipe: Any, pid: int) -> None:
        self._pipe, self.pid = pipe, pid
        self.port = int(pipe.recv())

    def url(self, number: int) -> str:
        return f"http://127.0.0.1:{self.port}/{number}"

    def reset(self, number: int) -> None:
        """Have an endpoint know nothing."""
        self._ask("reset", number)

    def conduct(self, number: int, conduct: Conduct) -> None:
        """Have an endpoint answer in this way from now on."""
        self._ask("conduct", number, conduct)

    def count(self, number: int) -> tuple[int, Counter[int]]:
        """Return how many events have come to an endpoint, and how often it answered with each status."""
        count, answers = self._ask("count", number)
        return count, answers

    def seen(self, number: int) -> Seen:
        """Return all that has come to an endpoint."""
        seen: Seen = self._ask("seen", number)
        return seen

    def _ask(self, what: str, number: int, given: object = None) -> Any:
        self._pipe.send((what, number, given))
        return self._pipe.recv()


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Run the endpoints."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    try:
        assert process.pid is not None
        yield Receiver(ours, process.pid)
    finally:
        ours.close()
        process.join(5)
        process.kill()
        process.join()

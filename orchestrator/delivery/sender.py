"""One delivery over HTTP: a POST out, and its outcome.

It ends within the total timeout whatever the other side does, and the cost of its answer is bounded. No
redirect is followed, no cookie kept, no proxy or other setting of the environment used; certificates are
verified against the name of the URL, to which the connection goes at an address that was checked
(`addresses`). Nothing is logged here: URLs and answers are the merchant's.
"""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
import time
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from http import HTTPStatus
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

import aiohttp
from aiohttp import hdrs
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.http_exceptions import HttpProcessingError
from msgspec import Struct
from yarl import URL

from orchestrator.delivery.addresses import (
    AddressForbidden,
    AddressPolicy,
    NameUnknown,
    Resolver,
    WebhookUrlRejected,
    checked_url,
)
from orchestrator.delivery.retries import RETRY_AFTER_CAP
from orchestrator.delivery.wire import public_tls
from orchestrator.retry_after import retry_after

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from aiohttp.client_reqrep import ConnectionKey

KEPT: Final = 1024
"""Bytes of an answer that are kept."""
READ: Final = 16_384
"""Bytes of an answer that are read, so that its connection can be used again; a longer answer closes it."""
TARGETS: Final = 1000
"""URLs that are kept as they were read."""
KEEPALIVE: Final = 4.0
"""Seconds that an idle connection is kept: less than common servers keep it, so that few are closed while
they are taken."""


class Outcome(StrEnum):
    """What came of an attempt; stored, and shown to merchants. Those that name a broker are of tasks."""

    DELIVERED = "delivered"
    REFUSED = "refused"
    SERVER_ERROR = "server_error"
    REDIRECT = "redirect"
    THROTTLED = "throttled"
    UNAVAILABLE = "unavailable"
    GONE = "gone"
    TIMED_OUT = "timed_out"
    NOT_CONNECTED = "not_connected"
    NAME_NOT_FOUND = "name_not_found"
    NOT_SECURE = "not_secure"
    FORBIDDEN_ADDRESS = "forbidden_address"
    WRONG_URL = "wrong_url"
    CONNECTION_LOST = "connection_lost"
    NOT_HTTP = "not_http"
    UNROUTABLE = "unroutable"
    """The broker, a RabbitMQ, has no such queue."""
    ACCESS_REFUSED = "access_refused"
    """A broker refuses the login, the virtual host, or a right."""
    BROKER_ERROR = "broker_error"
    """A broker answers with another error, or something that is no broker answers."""
    UNREADABLE = "unreadable"
    """The event was stored by another version, or the endpoint's secret does not open."""


OVERLOAD: Final = frozenset(
    {
        Outcome.THROTTLED,
        Outcome.UNAVAILABLE,
        Outcome.TIMED_OUT,
        Outcome.NOT_CONNECTED,
        Outcome.CONNECTION_LOST,
    }
)
"""Outcomes of an overloaded endpoint."""
_UNAVAILABLE: Final = frozenset({502, 503, 504})
_INTERIM: Final = frozenset(range(100, 200)) - {HTTPStatus.SWITCHING_PROTOCOLS}
"""Statuses of answers that another one follows, the final one."""


class Answer(Struct, frozen=True):
    """The outcome of one attempt; `wait` is the endpoint's Retry-After, in seconds."""

    outcome: Outcome
    seconds: float
    status: int | None = None
    body: bytes = b""
    wait: float | None = None

    @property
    def delivered(self) -> bool:
        """Whether the endpoint took the event."""
        return self.outcome is Outcome.DELIVERED


class _CheckedResolver(AbstractResolver):
    def __init__(self, resolver: Resolver, *, named_only: bool) -> None:
        self._resolver, self._named_only = resolver, named_only

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.addresses(host, port, named_only=self._named_only)
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=number,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for number, address in found
            if family in {socket.AF_UNSPEC, number}
        ]

    async def close(self) -> None:
        pass


class _Where(aiohttp.ClientRequest):
    """Says where to connect to; it is never sent itself."""

    @cached_property
    def connection_key(self) -> ConnectionKey:  # there a property, computed each time
        return super().connection_key


@dataclass(frozen=True, slots=True)
class _Target:
    """A URL that was checked, with what its requests have in common."""

    loop: asyncio.AbstractEventLoop
    """To ask for the running one costs a system call."""
    connector: aiohttp.TCPConnector
    where: _Where
    head: str
    """The request line, and the name of the host."""


class Sender:
    """The connections of one process to merchants' endpoints.

    Connections, TLS, their pool and the parser of answers are aiohttp's. Requests are written here and not by
    its session, which costs as much as the rest of an exchange, and offers nothing that is wanted here.
    """

    def __init__(
        self,
        policy: AddressPolicy,
        *,
        connect_timeout: float,
        total_timeout: float,
        lookup: Callable[..., Any] = socket.getaddrinfo,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._policy, self._total = policy, total_timeout
        self._resolver = Resolver(policy, lookup=lookup)
        connect = min(connect_timeout, total_timeout)
        self._timeout = aiohttp.ClientTimeout(connect=connect, sock_connect=connect, ceil_threshold=math.inf)
        self._tls = tls
        self._targets: dict[str, _Target] = {}
        self._connectors: dict[str, aiohttp.TCPConnector] = {}

    async def close(self) -> None:
        """Close every connection."""
        for connector in self._connectors.values():
            await connector.close()
        self._resolver.close()

    async def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Send one event; return the outcome, and raise nothing but a cancellation."""
        began = time.monotonic()
        try:
            target = self._target(url)
            request = _request(target.head, headers, body)
            try:
                return await self._exchange(target, request, began)
            except aiohttp.ServerDisconnectedError:
                # A kept connection that was closed as it was taken: repeat once on a new one, with the same
                # id.
                async with asyncio.timeout(began + self._total - time.monotonic()):
                    return await self._exchange(target, request, began)
        except WebhookUrlRejected:
            return Answer(Outcome.WRONG_URL, time.monotonic() - began)
        except (aiohttp.ClientError, HttpProcessingError, TimeoutError, OSError, ValueError) as error:
            return Answer(_fault(error), time.monotonic() - began)

    def _target(self, url: str) -> _Target:
        """Return a URL that was checked; its text is checked once, its addresses with each connection."""
        target = self._targets.get(url)
        if target is None:
            if len(self._targets) >= TARGETS:
                self._targets.clear()
            read = URL(checked_url(url, self._policy), encoded=True)
            loop = asyncio.get_running_loop()
            target = self._targets[url] = _Target(
                loop,
                self._connector(read.scheme),
                _Where(hdrs.METH_POST, read, loop=loop, ssl=True),
                f"POST {read.raw_path_qs} HTTP/1.1\r\nHost: {read.host_port_subcomponent}\r\n",
            )
        return target

    def _connector(self, scheme: str) -> aiohttp.TCPConnector:
        connector = self._connectors.get(scheme)
        if connector is None:
            named_only = scheme == "http"

            def checked_socket(info: Any) -> socket.socket:
                # The last word before each connection: whatever led here, this address is checked.
                family, kind, protocol, _, address = info
                self._resolver.check(ip_address(str(address[0])), named_only=named_only)
                return socket.socket(family, kind, protocol)

            connector = self._connectors[scheme] = aiohttp.TCPConnector(
                limit=0,
                ssl=self._tls or public_tls(),
                resolver=_CheckedResolver(self._resolver, named_only=named_only),
                use_dns_cache=False,
                keepalive_timeout=KEEPALIVE,
                family=socket.AF_UNSPEC,
                socket_factory=checked_socket,
            )
        return connector

    async def _exchange(self, target: _Target, request: bytes, began: float) -> Answer:
        try:
            connection = await target.connector.connect(target.where, [], self._timeout)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError from error
        handler, transport = connection.protocol, connection.transport
        timed_out = False
        try:
            if handler is None or transport is None or handler.should_close:
                # It was closed meanwhile, or data came on it that answers no request.
                raise aiohttp.ServerDisconnectedError  # noqa: TRY301 - handled like one that is met later

            def end() -> None:
                nonlocal timed_out
                timed_out = True
                transport.abort()

            # A timer of the loop: `asyncio.timeout` costs several times as much.
            left = began + self._total - time.monotonic()
            timer = target.loop.call_later(left, end)
            try:
                handler.set_response_params(read_until_eof=True, auto_decompress=False, read_bufsize=READ)
                transport.write(request)
                message, content = await handler.read()
                while message.code in _INTERIM:
                    message, content = await handler.read()
                kept = content.read_nowait(KEPT) if content.is_eof() else await _beginning(content)
            finally:
                timer.cancel()
            if timed_out:  # and what had come by then was read as the whole answer
                raise TimeoutError  # noqa: TRY301
            connection.release()  # which closes it unless its answer has come to its end
        except Exception as error:
            if timed_out:
                raise TimeoutError from error
            raise
        finally:
            connection.close()  # unless it was released
        outcome, wait = _meaning(message.code), None
        if outcome is Outcome.THROTTLED or outcome is Outcome.UNAVAILABLE:
            wait = retry_after(message.headers, cap=RETRY_AFTER_CAP)
        return Answer(outcome, time.monotonic() - began, message.code, kept, wait)


def _request(head: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """Return a request as it is sent; `ValueError` where a header would be more than one line of ASCII."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if lines.count("\n") != len(headers) or lines.count("\r") != len(headers) or not lines.isascii():
        raise ValueError("a header must be one line of ASCII")
    return f"{head}{lines}Content-Length: {len(body)}\r\n\r\n".encode("ascii") + body


async def _beginning(stream: aiohttp.StreamReader) -> bytes:
    """Return the first bytes of an answer, and read on as far as is needed to use its connection again."""
    kept, size = b"", 0
    while size <= READ:
        chunk = await stream.readany()
        if not chunk:
            break
        size += len(chunk)
        if len(kept) < KEPT:
            kept += chunk[: KEPT - len(kept)]
    return kept


def _meaning(status: int) -> Outcome:
    match status:
        case _ if 200 <= status < 300:  # noqa: PLR2004 - the class of success
            return Outcome.DELIVERED
        case HTTPStatus.GONE:
            return Outcome.GONE
        case HTTPStatus.TOO_MANY_REQUESTS:
            return Outcome.THROTTLED
        case _ if 300 <= status < 400:  # noqa: PLR2004
            return Outcome.REDIRECT
        case _ if 400 <= status < 500:  # noqa: PLR2004
            return Outcome.REFUSED
        case _:
            return Outcome.UNAVAILABLE if status in _UNAVAILABLE else Outcome.SERVER_ERROR


# First match wins.
_FAULTS: Final[Sequence[tuple[tuple[type[BaseException], ...], Outcome]]] = (
    ((AddressForbidden,), Outcome.FORBIDDEN_ADDRESS),
    ((NameUnknown, aiohttp.ClientConnectorDNSError), Outcome.NAME_NOT_FOUND),
    ((aiohttp.ClientSSLError, ssl.SSLError), Outcome.NOT_SECURE),
    ((aiohttp.InvalidURL,), Outcome.WRONG_URL),
    ((aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError), Outcome.NOT_CONNECTED),
    ((TimeoutError,), Outcome.TIMED_OUT),
    (
        (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, ConnectionError),
        Outcome.CONNECTION_LOST,
    ),
    ((HttpProcessingError,), Outcome.NOT_HTTP),
)


def _fault(error: BaseException) -> Outcome:
    """Return the outcome of an error on the connection; one of ours that aiohttp wraps counts for itself."""
    inner = getattr(error, "os_error", None)
    if isinstance(inner, AddressForbidden | NameUnknown):
        error = inner
    return next((outcome for kinds, outcome in _FAULTS if isinstance(error, kinds)), Outcome.CONNECTION_LOST)

"""One delivery over HTTP: a POST out, and its outcome.

It ends within the total timeout whatever the other side does, and the cost of its answer is bounded. No
redirect is followed, no cookie kept, no proxy or other setting of the environment used; certificates are
verified against the name of the URL, to which the connection goes at an address that was checked
(`addresses`). Nothing is logged here: URLs and answers are the merchant's.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
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


@dataclass(frozen=True, slots=True)
class Answer:
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


class Sender:
    """The connections of one process to merchants' endpoints."""

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
        # `send` times the whole: a timer of each read would be one too many.
        self._timeout = aiohttp.ClientTimeout(
            total=None, connect=connect_timeout, sock_connect=connect_timeout, sock_read=None
        )
        self._tls = tls
        self._targets: dict[str, URL] = {}
        self._sessions: dict[str, aiohttp.ClientSession] = {}

    async def close(self) -> None:
        """Close every connection."""
        for session in self._sessions.values():
            await session.close()
        self._resolver.close()

    async def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Send one event; return the outcome, and raise nothing but a cancellation."""
        began = time.monotonic()
        try:
            target = self._target(url)
            async with asyncio.timeout(self._total):
                try:
                    return await self._exchange(target, headers, body, began)
                except aiohttp.ServerDisconnectedError:
                    # A kept connection that was closed as it was taken: repeat once on a new one, with the
                    # same id.
                    return await self._exchange(target, headers, body, began)
        except WebhookUrlRejected:
            return Answer(Outcome.WRONG_URL, time.monotonic() - began)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            return Answer(_fault(error), time.monotonic() - began)

    def _target(self, url: str) -> URL:
        """Return a URL that was checked; its text is checked once, its addresses with each connection."""
        target = self._targets.get(url)
        if target is None:
            if len(self._targets) >= TARGETS:
                self._targets.clear()
            target = self._targets[url] = URL(checked_url(url, self._policy), encoded=True)
        return target

    def _session(self, scheme: str) -> aiohttp.ClientSession:
        session = self._sessions.get(scheme)
        if session is None:
            named_only = scheme == "http"

            def checked_socket(info: Any) -> socket.socket:
                # The last word before each connection: whatever led here, this address is checked.
                family, kind, protocol, _, address = info
                self._resolver.check(ip_address(str(address[0])), named_only=named_only)
                return socket.socket(family, kind, protocol)

            session = self._sessions[scheme] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0,
                    ssl=self._tls or public_tls(),
                    resolver=_CheckedResolver(self._resolver, named_only=named_only),
                    use_dns_cache=False,
                    keepalive_timeout=KEEPALIVE,
                    family=socket.AF_UNSPEC,
                    socket_factory=checked_socket,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                auto_decompress=False,
                timeout=self._timeout,
                skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
                read_bufsize=READ,
            )
        return session

    async def _exchange(self, url: URL, headers: Mapping[str, str], body: bytes, began: float) -> Answer:
        response = await self._session(url.scheme).post(
            url, headers=headers, data=body, allow_redirects=False
        )
        try:
            kept = await _beginning(response.content)
            outcome = _meaning(response.status)
            wait = (
                retry_after(response.headers, cap=RETRY_AFTER_CAP)
                if outcome in {Outcome.THROTTLED, Outcome.UNAVAILABLE}
                else None
            )
            return Answer(outcome, time.monotonic() - began, response.status, kept, wait)
        finally:
            response.close()  # a connection whose answer has come to its end is already kept for others


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
        case HTTPStatus.GONE:
            return Outcome.GONE
        case HTTPStatus.TOO_MANY_REQUESTS:
            return Outcome.THROTTLED
        case _ if 200 <= status < 300:  # noqa: PLR2004 - the class of success
            return Outcome.DELIVERED
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
    ((aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError), Outcome.WRONG_URL),
    ((aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError), Outcome.NOT_CONNECTED),
    ((TimeoutError,), Outcome.TIMED_OUT),
    (
        (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, ConnectionError),
        Outcome.CONNECTION_LOST,
    ),
    ((aiohttp.ClientResponseError,), Outcome.NOT_HTTP),
)


def _fault(error: BaseException) -> Outcome:
    """Return the outcome of an error on the connection; one of ours that aiohttp wraps counts for itself."""
    inner = getattr(error, "os_error", None)
    if isinstance(inner, AddressForbidden | NameUnknown):
        error = inner
    return next((outcome for kinds, outcome in _FAULTS if isinstance(error, kinds)), Outcome.CONNECTION_LOST)

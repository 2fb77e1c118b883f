"""HTTP to the gateway: one request out, the bytes of a 2xx answer back, or an outcome instead.

Guarantees: an exchange ends within `gateway_total_timeout`, whatever the other side sends (nothing, too much,
nonsense, for ever), and the cost of its answer is bounded; only cancellation passes through. A request with a
`GuardedBody` leaves at most once and only past its lease guard, and an unsent request is distinguished from
one that may have been sent. No redirect is followed, no cookie kept, no proxy or other setting of the
environment used; certificates are verified. Nothing here depends on what a request is about, and nothing is
logged.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field
from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeAlias

import aiohttp
import certifi

from orchestrator.gateway.lease_guard import GuardedBody
from orchestrator.gateway.limits.answer_cost import Connector, TooCostlyError
from orchestrator.gateway.outcomes import Busy, NotSent, Refused, Throttled, Unauthorized, Unknown
from orchestrator.retry_after import retry_after

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from yarl import URL

    from orchestrator.gateway.limits import GatewayLimits, Large
    from orchestrator.settings import Settings

Failure: TypeAlias = Refused | Unauthorized | NotSent | Busy | Unknown | Throttled

RETRY_AFTER_CAP = 3600.0
"""Seconds. We ask again within the hour: the due time belongs to us, not to the gateway."""
KEEPALIVE = 15.0
"""Seconds that an idle connection is kept; short: the gateway rarely closes it just as it is used."""
BUFFER = 16_384
"""Bytes of an answer that are parsed ahead of its reader."""
LARGE = 65_536
"""Bytes of an answer from which on it takes one of its gateway's slots for large answers."""


@cache
def _tls() -> ssl.SSLContext:
    """Return the one TLS context of the process, which verifies: reading the roots takes tens of ms."""
    return ssl.create_default_context(cafile=certifi.where())


@dataclass(frozen=True, slots=True)
class Request:
    """One request; its body, if it has one, brings its own Content-Type."""

    method: str
    url: URL
    headers: Mapping[str, str] = field(repr=False)
    body: aiohttp.Payload | None = field(repr=False)


class Wire:
    """The connections of one process.

    An exchange begins when the limits of its gateway allow it. If that takes more than half of the total
    timeout, the outcome is `Busy`.
    """

    def __init__(self, settings: Settings) -> None:
        self._total = settings.gateway_total_timeout
        self._limit = settings.gateway_answer_limit
        # aiohttp's "sock_connect" is one socket's; its "connect" runs from the request to a connection that
        # can be used, so it is what bounds name lookup, several addresses and TLS. Waiting for the limits is
        # over by then.
        connect, read = settings.gateway_connect_timeout, settings.gateway_read_timeout
        self._timeout = aiohttp.ClientTimeout(connect=connect, sock_connect=connect, sock_read=read)
        self._tls = _tls()
        self._sessions: dict[str, aiohttp.ClientSession] = {}

    def _open(self, limits_of_gateway: GatewayLimits) -> aiohttp.ClientSession:
        # No limit of its own: the limits of the gateway have theirs, and no call waits twice.
        session = self._sessions[limits_of_gateway.gateway] = aiohttp.ClientSession(
            connector=Connector(limits_of_gateway.spend, limit=0, keepalive_timeout=KEEPALIVE, ssl=self._tls),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            timeout=self._timeout,
            read_bufsize=BUFFER,
        )
        return session

    async def close(self) -> None:
        for session in tuple(self._sessions.values()):
            await session.close()

    async def exchange(
        self, request: Request, *, limits_of_gateway: GatewayLimits, large: Large, queue_key: Hashable = None
    ) -> bytes | Failure:
        """Send one request and return the body of a 2xx answer, or an outcome instead.

        `queue_key` names the queue it waits in: the queues are served round-robin. `large` is taken for a
        large answer, for as long as the caller uses it.
        """
        guarded = request.body if isinstance(request.body, GuardedBody) else None
        try:
            outcome = await self._exchange(request, limits_of_gateway, large, queue_key)
        finally:
            if guarded is not None:
                guarded.withdraw()  # after an answer, a timeout or a cancellation nothing may follow
        return outcome if guarded is None else _past_lease_guard(guarded, outcome)

    async def _exchange(
        self, request: Request, limits_of_gateway: GatewayLimits, large: Large, queue_key: Hashable
    ) -> bytes | Failure:
        deadline = asyncio.get_running_loop().time() + self._total
        if not limits_of_gateway.enter_now():
            try:
                async with asyncio.timeout(self._total / 2):
                    await limits_of_gateway.enter(queue_key)
            except TimeoutError:
                return Busy("Every connection to the gateway was busy.")
        try:
            async with asyncio.timeout_at(deadline):
                session = self._sessions.get(limits_of_gateway.gateway) or self._open(limits_of_gateway)
                response = await session.request(
                    request.method,
                    request.url,
                    headers=request.headers,
                    data=request.body,
                    allow_redirects=False,
                )
                try:
                    if response.status == HTTPStatus.NO_CONTENT and request.method == "PUT":
                        return b""  # done, and deliberately nothing to say
                    if response.status in range(200, 300):
                        return await self._body(response.content, large)
                    return _refusal(request, response)
                finally:
                    response.close()  # a connection whose answer has come to its end is already kept for others
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            return _fault(error)
        finally:
            limits_of_gateway.leave()

    async def _body(self, stream: aiohttp.StreamReader, large: Large) -> bytes | Unknown:
        chunks, size = [], 0
        while chunk := await stream.readany():
            size += len(chunk)
            if size > self._limit:
                return Unknown("The gateway's answer went beyond the size limit.", unreadable=True)
            chunks.append(chunk)
            if size > LARGE:
                await large.take()
                await asyncio.sleep(0)  # what was kept of it is parsed in the moment in which it is read
        if not size:
            return Unknown("The gateway answered without a body.")
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)


# ── What came back instead of an answer ───────────────────────────────────────────────────────────────────

_NOT_HTTP = NotSent("The gateway's URL of this merchant is not an HTTP URL.")
# First match wins: a connection that could not be made (ClientConnectorError) is one kind of a connection
# that failed. A kept connection that the gateway closed meanwhile: aiohttp itself repeats a GET once on a new
# one (a repeated lookup is harmless); a POST is `Unknown`, because it may have been read before the
# connection closed.
_FAULTS: dict[type[BaseException], NotSent | Unknown] = {
    aiohttp.ClientConnectorDNSError: NotSent("The gateway's host name was not found."),
    aiohttp.ClientSSLError: NotSent("No secure connection to the gateway could be made."),
    aiohttp.ClientConnectorError: NotSent("The gateway could not be connected to."),
    aiohttp.ConnectionTimeoutError: NotSent("The gateway did not take the connection in time."),
    aiohttp.InvalidURL: _NOT_HTTP,
    aiohttp.NonHttpUrlClientError: _NOT_HTTP,
    aiohttp.SocketTimeoutError: Unknown("The gateway fell silent."),
    TooCostlyError: Unknown(
        "The gateway's answer came in a way that costs more than an answer may.", unreadable=True
    ),
    aiohttp.ClientConnectionError: Unknown("The connection to the gateway was lost before it answered."),
    aiohttp.ClientPayloadError: Unknown(
        "The connection to the gateway was lost in the middle of its answer."
    ),
    aiohttp.ClientResponseError: Unknown("The gateway's answer is not HTTP."),
    TimeoutError: Unknown("The gateway did not finish its answer in time."),
}


def _fault(error: Exception) -> NotSent | Unknown:
    """Tell what a failure on the way means. Anything not in the table counts as sent."""
    for kind, meaning in _FAULTS.items():
        if isinstance(error, kind):
            return meaning
    return Unknown("The exchange with the gateway broke off.")


def _past_lease_guard(body: GuardedBody, outcome: bytes | Failure) -> bytes | Failure:
    """Correct the outcome of a guarded body: what did not leave was not sent, however the exchange ended."""
    if body.left:
        # No failure on the way is expected to say so of a request that left; none may.
        return (
            Unknown("The exchange with the gateway broke off.") if isinstance(outcome, NotSent) else outcome
        )
    if isinstance(outcome, NotSent | Busy):
        return outcome
    if body.refused:
        return NotSent("The lease ran out before the call left.")
    return NotSent("The connection to the gateway ended before the call left.")


# A proxy in between may produce these for a request that went through; 409 and 425 say "not now", not
# "never".
_UNSETTLED = frozenset({408, 409, 425})


def _refusal(request: Request, response: aiohttp.ClientResponse) -> Failure:
    """Read a status other than 2xx, and no body: its shape is not documented, its text may be personal."""
    status = response.status
    if status == HTTPStatus.UNAUTHORIZED:
        return Unauthorized("The gateway did not accept the token or the credentials.")
    pause = retry_after(response.headers, cap=RETRY_AFTER_CAP)
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return Throttled(pause, "The gateway asked for fewer calls.")
    # A proxy may send this for a request that went through. A repeated lookup is harmless; a repeated
    # movement of money is not.
    harmless = not isinstance(request.body, GuardedBody)
    if status == HTTPStatus.SERVICE_UNAVAILABLE and "retry-after" in response.headers and harmless:
        return Throttled(pause, "The gateway is unavailable and named a time.")
    if status in range(400, 500) and status not in _UNSETTLED:
        return Refused(status, f"The gateway refused with HTTP {status}.")
    return Unknown(f"The gateway answered HTTP {status}.")

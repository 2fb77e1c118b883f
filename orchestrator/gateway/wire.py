"""The wire to the gateway: one request out, the bytes of a 2xx answer back, or what it came to instead.

Guarantees: an exchange ends within `gateway_total_timeout`, whatever the other side sends (nothing, too much, nonsense, for
ever); only cancellation passes through. A request with a `FencedBody` leaves at most once and only past its fence, and what did
not leave is told apart from what may have. No redirect is followed, no cookie kept, no proxy or other word of the environment
heard; certificates are verified. Nothing here knows what a request is about, and nothing is logged.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import TYPE_CHECKING, TypeAlias

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from orchestrator.gateway.fence import FencedBody
from orchestrator.gateway.outcomes import Busy, NotSent, Refused, Throttled, Unauthorized, Unknown

if TYPE_CHECKING:
    import ssl
    from collections.abc import Hashable

    from orchestrator.gateway.doors import Door
    from orchestrator.settings import Settings

Failure: TypeAlias = Refused | Unauthorized | NotSent | Busy | Unknown | Throttled

RETRY_AFTER_CAP = 3600.0
"""Seconds. Whatever a Retry-After says, we ask again within the hour: the alarm belongs to us, not to the gateway."""
KEEPALIVE = 15.0
"""Seconds that an idle connection is kept; short, so that the gateway rarely closes one while we start to use it."""


@cache
def _tls() -> ssl.SSLContext:
    """Return the one TLS context of the process: certificates verified, and reading the roots takes tens of milliseconds."""
    return httpx.create_ssl_context(trust_env=False)


class Wire:
    """The connections of one process.

    An exchange begins when its gateway's door lets it pass. One that is not let in within half of the total timeout is `Busy`.
    """

    def __init__(self, settings: Settings) -> None:
        """Take limits and timeouts; connections open as they are needed."""
        self._total = settings.gateway_total_timeout
        self._limit = settings.gateway_answer_limit
        # The transport's "connect" is one socket's; its "pool" runs from the request to a connection that can be used, so it
        # is what bounds name lookup, several addresses and TLS. Waiting at the door is over by then.
        connect, read = settings.gateway_connect_timeout, settings.gateway_read_timeout
        self._extensions = {"timeout": {"connect": connect, "pool": connect, "read": read}}
        self._transport = AiohttpTransport(verify=_tls(), trust_env=False, client=self._open_pool)

    def _open_pool(self) -> aiohttp.ClientSession:
        # No limit of its own: the doors have theirs, and nobody may wait twice.
        connector = aiohttp.TCPConnector(
            limit=0, keepalive_timeout=KEEPALIVE, ssl=self._transport.ssl_context
        )
        return aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._transport.aclose()

    async def exchange(
        self, request: httpx.Request, *, door: Door, whose: Hashable = None
    ) -> bytes | Failure:
        """Send one request and return the body of a 2xx answer, or what it came to instead.

        `whose` says in which line it waits before the door: nobody's line is served twice before another's.

        The transport is driven without httpx's client: a third of the CPU time, and nothing that would have to be switched
        off (redirects, cookies, the environment, a log line with the URL).
        """
        body = request.stream
        if not isinstance(body, FencedBody):
            return await self._exchange(request, door, whose)
        try:
            outcome = await self._exchange(request, door, whose)
        finally:
            body.withdraw()  # after an answer, a timeout or a cancellation nothing may follow
        return _past_fence(body, outcome)

    async def _exchange(self, request: httpx.Request, door: Door, whose: Hashable) -> bytes | Failure:
        request.extensions = self._extensions
        request.headers.encoding = (
            "latin-1"  # else httpx finds it out anew for each header that the transport reads
        )
        deadline = asyncio.get_running_loop().time() + self._total
        if not door.enter_now():
            try:
                async with asyncio.timeout(self._total / 2):
                    await door.enter(whose)
            except TimeoutError:
                return Busy("Every connection to the gateway was busy.")
        try:
            async with asyncio.timeout_at(deadline):
                response = await self._transport.handle_async_request(request)
                stream = response.stream
                assert isinstance(stream, httpx.AsyncByteStream)  # noqa: S101 - narrows httpx's union of streams
                try:
                    return await self._body(stream) if response.is_success else _refusal(request, response)
                finally:
                    await stream.aclose()
        except (httpx.HTTPError, aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            return _fault(error)
        finally:
            door.leave()

    async def _body(self, stream: httpx.AsyncByteStream) -> bytes | Unknown:
        chunks, size = [], 0
        async for chunk in stream:
            size += len(chunk)
            if size > self._limit:
                return Unknown("The gateway's answer went beyond the size limit.")
            chunks.append(chunk)
        if not size:
            return Unknown("The gateway answered without a body.")
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)


# ── What came back instead of an answer ─────────────────────────────────────────────────────────────────────────────────

# aiohttp's own errors decide, not the httpx errors that the transport makes of them: it calls a connection that was lost after
# the request left (ServerDisconnectedError, ClientOSError) a ConnectTimeout, which would read as "not sent". First match wins.
# A kept connection that the gateway closed meanwhile: aiohttp itself repeats a GET once on a new one (looking twice harms
# nobody); a POST is `Unknown`, because nothing tells whether it was read before the connection closed.
_FAULTS: tuple[tuple[tuple[type[BaseException], ...], NotSent | Unknown], ...] = (
    ((aiohttp.ClientConnectorDNSError,), NotSent("The gateway's host name was not found.")),
    ((aiohttp.ClientSSLError,), NotSent("No secure connection to the gateway could be made.")),
    ((aiohttp.ClientConnectorError,), NotSent("The gateway could not be connected to.")),
    ((aiohttp.ConnectionTimeoutError,), NotSent("The gateway did not take the connection in time.")),
    (
        (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError, httpx.UnsupportedProtocol),
        NotSent("The gateway's URL of this merchant is not an HTTP URL."),
    ),
    ((aiohttp.SocketTimeoutError,), Unknown("The gateway fell silent.")),
    ((aiohttp.ClientConnectionError,), Unknown("The connection to the gateway was lost before it answered.")),
    (
        (aiohttp.ClientPayloadError,),
        Unknown("The connection to the gateway was lost in the middle of its answer."),
    ),
    ((aiohttp.ClientResponseError,), Unknown("The gateway's answer is not HTTP.")),
    ((TimeoutError,), Unknown("The gateway did not finish its answer in time.")),
)


def _fault(error: Exception) -> NotSent | Unknown:
    """Tell what a failure on the way means. Anything not in the table counts as sent."""
    origin = error.__cause__ if isinstance(error, httpx.HTTPError) and error.__cause__ else error
    for kinds, meaning in _FAULTS:
        if isinstance(origin, kinds):
            return meaning
    return Unknown("The exchange with the gateway broke off.")


def _past_fence(body: FencedBody, outcome: bytes | Failure) -> bytes | Failure:
    """Correct an outcome by what is known of a fenced body: what did not leave was not sent, however the exchange ended."""
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


# A proxy in between may produce these for a request that went through; 409 and 425 say "not now", not "never".
_UNSETTLED = frozenset({408, 409, 425})


def _refusal(request: httpx.Request, response: httpx.Response) -> Failure:
    """Read a status that is not 2xx. The body is not looked at: its shape is not documented, its text may be personal."""
    status = response.status_code
    if status == httpx.codes.UNAUTHORIZED:
        return Unauthorized("The gateway did not accept the token or the credentials.")
    if status == httpx.codes.TOO_MANY_REQUESTS:
        return Throttled(_retry_after(response.headers), "The gateway asked for fewer calls.")
    # A proxy may say so of a request that went through. Looking or asking twice harms nobody; moving money twice does.
    harmless = not isinstance(request.stream, FencedBody)
    if status == httpx.codes.SERVICE_UNAVAILABLE and "retry-after" in response.headers and harmless:
        return Throttled(_retry_after(response.headers), "The gateway is unavailable and named a time.")
    if response.is_client_error and status not in _UNSETTLED:
        return Refused(status, f"The gateway refused with HTTP {status}.")
    return Unknown(f"The gateway answered HTTP {status}.")


def _retry_after(headers: httpx.Headers) -> float | None:
    """Read Retry-After, seconds or a date, as seconds between 0 and the cap; None for what is neither."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:10]), RETRY_AFTER_CAP)
    when = _date(text)
    if when is None:
        return None
    # The gateway's own clock, where it tells it: a date is only as good as the clock that it was read from.
    now = _date(headers.get("date", "")) or datetime.now(UTC)
    return min(max((when - now).total_seconds(), 0.0), RETRY_AFTER_CAP)


def _date(text: str) -> datetime | None:
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return when if when.tzinfo else when.replace(tzinfo=UTC)

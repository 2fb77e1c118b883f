"""A client of our own API: typed answers, errors made of problem+json, every wait and every answer bounded.

A request that is safe to repeat is sent again after a pause with jitter: reads, intents (the same order
number is the same checkout) and commands, each of which has an `Idempotency-Key`. No answer, 429, 502, 503
and 504 cause another attempt; a request that the API has refused is not repeated.

    ClientError
    ├── NoAnswer          no connection, no answer in time, or an incomplete answer
    ├── BadAnswer         not what the contract says, or more than `LARGEST_ANSWER`
    └── Refused           a problem: status, kind, detail and fields
        ├── Denied        401, 403: no token, an invalid one, or one without the scope
        ├── NotFound      404
        ├── Conflict      409: the checkout is not in a state for it
        ├── Invalid       422: a field, or the use of a key, is wrong
        └── Unavailable   429, 5xx: later, perhaps
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, TypeVar
from uuid import UUID, uuid4

import httpx
import msgspec

from orchestrator.api.contract import answers
from orchestrator.errors import OrchestratorError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from orchestrator.domain.records import CommandKind

T = TypeVar("T")
Param = str | int | list[str]

TIMEOUT: Final = 20.0
"""Seconds of one attempt, from the wait for a connection to the end of the answer."""
ATTEMPTS: Final = 4
LARGEST_ANSWER: Final = 16_000_000
"""Bytes."""
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 5.0
"""Seconds between two attempts: a random share of ever more, and at least the Retry-After of an answer, up to
the longest."""
LONGEST_WAIT: Final = 20
"""Seconds that one request waits for a command, as the API bounds it."""
NOT_WAITED: Final = 1.0
"""Seconds until a command is asked for again where the API did not wait."""
_PROBLEM: Final = "urn:checkout-orchestrator:problem:"
_PASSING: Final = frozenset({429, 502, 503, 504})


class ClientError(OrchestratorError):
    """The API did not do what it was asked to."""

    passing = False
    """Whether the same request may well be answered later."""
    retry_after = 0.0


class NoAnswer(ClientError):  # noqa: N818 - named for the fact
    """There was no answer; `sent` is false where the request cannot have reached the API."""

    passing = True

    def __init__(self, request: str, why: str, *, sent: bool) -> None:
        super().__init__(f"{request} was not answered: {why}")
        self.sent = sent


class BadAnswer(ClientError):  # noqa: N818 - named for the fact
    """The answer is not what the contract says."""


class Refused(ClientError):  # noqa: N818 - named for the fact
    """The API answered with a problem. `kind` is the last word of its type, empty where it has none."""

    def __init__(self, request: str, problem: answers.Problem, *, retry_after: float = 0.0) -> None:
        super().__init__(f"{request} was answered {problem.status}: {problem.detail}")
        self.problem, self.status, self.detail = problem, problem.status, problem.detail
        self.kind = problem.kind.removeprefix(_PROBLEM) if problem.kind.startswith(_PROBLEM) else ""
        self.retry_after, self.passing = retry_after, problem.status in _PASSING


class Denied(Refused):
    """401 or 403."""


class NotFound(Refused):
    """404."""


class Conflict(Refused):
    """409."""


class Invalid(Refused):
    """422."""


class Unavailable(Refused):
    """429 or 5xx."""


_BY_STATUS: Final = {401: Denied, 403: Denied, 404: NotFound, 409: Conflict, 422: Invalid, 429: Unavailable}


class Created(NamedTuple):
    """The checkout of an intent; `new` is false where the same intent had been handed over before."""

    checkout: answers.Accepted
    new: bool


class RawEvents(msgspec.Struct):
    """A page of the feed: each event in the bytes in which it was sent, and the position to go on after."""

    events: list[msgspec.Raw]
    next: str


class Client:
    """The API at `url` for the holder of a token; on one event loop.

    A client that is given `http` leaves it open.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        http: httpx.AsyncClient | None = None,
        timeout: float = TIMEOUT,
        attempts: int = ATTEMPTS,
    ) -> None:
        self._url, self._timeout, self._attempts = url.rstrip("/"), timeout, attempts
        self._headers = {"authorization": f"Bearer {token}", "accept": "application/json"}
        self._own = httpx.AsyncClient(trust_env=False, timeout=timeout) if http is None else None
        self._http: httpx.AsyncClient = http or self._own  # type: ignore[assignment]  # either of the two

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections that are this client's own."""
        if self._own is not None:
            await self._own.aclose()

    # Checkouts.

    async def create(self, intent: Mapping[str, Any] | bytes) -> Created:
        body = intent if isinstance(intent, bytes) else msgspec.json.encode(intent)
        status, raw = await self._sent("POST", "/v1/checkouts", body=body)
        return Created(_read("POST /v1/checkouts", raw, answers.Accepted), status == httpx.codes.ACCEPTED)

    async def checkout(self, checkout: UUID | str) -> answers.Checkout:
        return await self._got(f"/v1/checkouts/{checkout}", answers.Checkout)

    async def checkouts(self, **filters: str | int) -> answers.CheckoutPage:
        """Return a page of checkouts; filters by the names of the API, such as `orderId`."""
        return await self._got("/v1/checkouts", answers.CheckoutPage, filters)

    async def until_known(self, within: float) -> None:
        """Wait until the API serves the merchant of the token: it may not have read a merchant that was just
        added.

        `Denied` after `within` seconds.
        """
        deadline = time.monotonic() + within
        while True:
            try:
                await self.checkouts(limit=1)
            except Denied as denied:
                if denied.status != httpx.codes.FORBIDDEN or time.monotonic() > deadline:
                    raise
            else:
                return
            await asyncio.sleep(FIRST_PAUSE)

    async def explain(self, checkout: UUID | str) -> answers.Explanation:
        return await self._got(f"/v1/checkouts/{checkout}/explain", answers.Explanation)

    async def trail(self, checkout: UUID | str) -> list[answers.AuditEntry]:
        """Return the audit entries of a checkout, the oldest first."""
        entries: list[answers.AuditEntry] = []
        after: int | None = 0
        while after is not None:
            page = await self._got(f"/v1/checkouts/{checkout}/audit", answers.AuditTrail, {"after": after})
            entries += page.entries
            after = page.next_after
        return entries

    async def command(
        self,
        checkout: UUID | str,
        kind: CommandKind,
        body: Mapping[str, object] | None = None,
        *,
        key: str | None = None,
    ) -> answers.CommandAccepted:
        """Send a command for a checkout, under a key of its own or this key."""
        return await self._asked("POST", f"/v1/checkouts/{checkout}/{kind}", body or {}, key)

    async def change(
        self, checkout: UUID | str, patch: Mapping[str, object], *, key: str | None = None
    ) -> answers.CommandAccepted:
        """Change the order of a checkout by a merge patch, under a key of its own or this key."""
        return await self._asked("PATCH", f"/v1/checkouts/{checkout}", patch, key)

    async def finished(
        self,
        checkout: UUID | str,
        kind: CommandKind,
        body: Mapping[str, object] | None = None,
        *,
        key: str | None = None,
        within: float = 60.0,
    ) -> answers.CommandProgress:
        """Send a command; return it once it is finished, or as it stands after about `within` seconds."""
        path, deadline = f"/v1/checkouts/{checkout}/{kind}", time.monotonic() + within
        encoded, key = msgspec.json.encode(body or {}), key or str(uuid4())
        while True:
            left = max(deadline - time.monotonic(), 0.0)
            wait, begun = int(min(left, self._timeout / 2, LONGEST_WAIT)), time.monotonic()
            _, raw = await self._sent("POST", path, body=encoded, key=key, prefer=f"wait={wait}")
            told = _read(f"POST {path}", raw, answers.CommandProgress)
            if told.finished_at is not None or wait == 0:
                return told
            if time.monotonic() - begun < wait / 2:
                # No slot was free for another client that waits.
                await asyncio.sleep(NOT_WAITED)

    async def progress(self, command: UUID | str) -> answers.CommandProgress:
        return await self._got(f"/v1/commands/{command}", answers.CommandProgress)

    async def events(
        self, *, after: int, limit: int = 100, wait: int = 0, kinds: Sequence[str] = (), content: str = "thin"
    ) -> RawEvents:
        """Return the events after a position of the feed, as they were sent; it waits so many seconds for
        one, fewer than this client's own time-out.
        """
        params: dict[str, Param] = {"after": after, "limit": limit, "wait": wait, "content": content}
        return await self._got("/v1/events", RawEvents, params | ({"type": list(kinds)} if kinds else {}))

    async def get(self, path: str, **params: str | int) -> dict[str, Any]:
        """Return the JSON object at any path, as it was sent."""
        return await self._got(path, dict[str, Any], params)

    async def _asked(
        self, method: str, path: str, body: Mapping[str, object], key: str | None
    ) -> answers.CommandAccepted:
        _, raw = await self._sent(method, path, body=msgspec.json.encode(body), key=key or str(uuid4()))
        return _read(f"{method} {path}", raw, answers.CommandAccepted)

    async def _got(self, path: str, kind: type[T], params: Mapping[str, Param] | None = None) -> T:
        _, raw = await self._sent("GET", path, params=params)
        return _read(f"GET {path}", raw, kind)

    async def _sent(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Param] | None = None,
        body: bytes | None = None,
        key: str | None = None,
        prefer: str | None = None,
    ) -> tuple[int, bytes]:
        """Send a request that may be repeated, until it is answered; return status and body."""
        kind = None if body is None else "application/json"
        more = {"content-type": kind, "idempotency-key": key, "prefer": prefer}
        headers = self._headers | {name: value for name, value in more.items() if value is not None}
        left, most = self._attempts, FIRST_PAUSE
        while True:
            request = self._http.build_request(
                method,
                self._url + path,
                params=params or None,
                content=body,
                headers=headers,
                timeout=self._timeout,
            )
            try:
                return await self._once(request, f"{method} {path}")
            except ClientError as error:
                left -= 1
                if not left or not error.passing:
                    raise
                pause = random.uniform(0, most)  # noqa: S311 - spreads load, hides nothing
                await asyncio.sleep(min(max(pause, error.retry_after), LONGEST_PAUSE))
                most = min(most * 2, LONGEST_PAUSE)

    async def _once(self, request: httpx.Request, name: str) -> tuple[int, bytes]:
        body = bytearray()
        try:
            async with asyncio.timeout(self._timeout):
                response = await self._http.send(request, stream=True, follow_redirects=False)
                try:
                    async for part in response.aiter_bytes():
                        body += part
                        if len(body) > LARGEST_ANSWER:
                            raise BadAnswer(f"{name} was answered with more than {LARGEST_ANSWER} bytes")
                finally:
                    await response.aclose()
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise NoAnswer(name, str(error) or type(error).__name__, sent=False) from error
        except (httpx.HTTPError, TimeoutError) as error:
            raise NoAnswer(name, str(error) or type(error).__name__, sent=True) from error
        if response.is_success:
            return response.status_code, bytes(body)
        raise _refusal(name, response, bytes(body))


def _read(name: str, raw: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.DecodeError as error:
        raise BadAnswer(f"{name} was not answered as the contract says: {error}") from error


def _refusal(name: str, response: httpx.Response, raw: bytes) -> Refused:
    """Return the error of an answer; one that is no problem document (a proxy's page) has its status."""
    status = response.status_code
    try:
        problem = msgspec.json.decode(raw, type=answers.Problem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        detail = raw[:200].decode(errors="replace").replace("\n", " ")
        problem = answers.Problem(
            kind="about:blank", title=response.reason_phrase, status=status, detail=detail, errors=()
        )
    given = response.headers.get("retry-after", "")
    server_error = status >= httpx.codes.INTERNAL_SERVER_ERROR
    kind = _BY_STATUS.get(status, Unavailable if server_error else Refused)
    return kind(name, problem, retry_after=float(given) if given.isascii() and given.isdigit() else 0.0)

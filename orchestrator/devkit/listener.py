"""Events for a shop's developer: each event of a merchant's feed is sent to an address of the developer's
machine, as a webhook would have it.

The feed is read over the public API. An event is sent after the one before it was accepted or given up, with
the headers of Standard Webhooks under a secret of this run. Where nothing listens at the address, the event
waits, and those after it. Every call has a time-out, every answer a bound, every pause a limit and jitter.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import httpx
import msgspec

from orchestrator.delivery import signature
from orchestrator.devkit.client import LONGEST_WAIT, BadAnswer, Client, ClientError, Denied, Refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

AGENT: Final = "checkout-orchestrator-listen/1"
PAGE: Final = 100
API_TIMEOUT: Final = LONGEST_WAIT + 10.0
SEND_TIMEOUT: Final = 15.0
"""Seconds for one attempt, from the connection to the end of what is read of the answer."""
READ: Final = 65_536
"""Bytes of an answer that are read."""
ATTEMPTS: Final = 5
"""Attempts of an event that is answered with another status than 2xx, or not in time. A connection that is
refused does not count."""
FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 10.0
TOKEN_AGE: Final = 1800.0
"""Seconds after which a new token is asked for."""
YOUNG: Final = 30.0
"""Seconds for which a token that is refused is not asked for again."""
_HIGHEST: Final = 10**18 - 1


class Said(msgspec.Struct, rename="camel"):
    """What a line says of an event."""

    order_id: str = ""
    state: str = ""


class Event(msgspec.Struct):
    """What is read of an event; what is sent are the bytes in which it came."""

    id: str
    type: str
    position: str
    data: Said = msgspec.field(default_factory=Said)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """One attempt: the status, or why there was none, and how long it took in seconds.

    `then` says what follows: accepted, retried or given up.
    """

    event: Event
    attempt: int
    status: int | None
    why: str
    seconds: float
    then: str


@dataclass(slots=True, kw_only=True)
class Listener:
    """One run: reads the feed of the merchant of `token`, and sends to `target`.

    `position` is the place in the feed up to which everything was accepted or given up. `say` takes sentences
    for people, `show` each attempt.
    """

    api: str
    token: Callable[[], str]
    target: str
    secret: bytes = field(repr=False)
    kinds: Sequence[str] = ()
    content: str = "thin"
    position: int = 0
    say: Callable[[str], None]
    show: Callable[[Sent], None]
    _made_at: float = field(default=float("-inf"), init=False)
    _client: Client | None = field(default=None, init=False)

    async def run(self, *, limit: int | None = None) -> None:
        """Send events as they come; end after `limit` of them, or never."""
        left = limit
        async with (
            httpx.AsyncClient(trust_env=False, timeout=API_TIMEOUT) as feed,
            httpx.AsyncClient(trust_env=False, timeout=SEND_TIMEOUT) as http,
        ):
            async for raw, event in self._coming(feed):
                await self._deliver(http, raw, event)
                self.position = int(event.position)
                left = None if left is None else left - 1
                if left == 0:
                    return

    async def end_of_feed(self) -> int:
        """Return the last position of the feed, by some forty short requests.

        A position beyond the end is refused (422), and the API has no other word for it.
        """
        async with httpx.AsyncClient(trust_env=False, timeout=API_TIMEOUT) as http:
            within, beyond = 0, 1
            while beyond < _HIGHEST and await self._is_within(http, beyond):
                within, beyond = beyond, beyond * 2
            while beyond - within > 1:
                middle = (within + beyond) // 2
                if await self._is_within(http, middle):
                    within = middle
                else:
                    beyond = middle
            return within

    async def _is_within(self, http: httpx.AsyncClient, position: int) -> bool:
        try:
            await self._connected(http).events(after=position, limit=1)
        except Refused as refusal:
            if refusal.status == httpx.codes.GONE:
                return True  # it was in the feed, and is not kept any more
            if refusal.kind != "invalid-request":
                raise
            return False
        return True

    def _connected(self, http: httpx.AsyncClient) -> Client:
        """Return a client with a token that is young enough."""
        if self._client is None or time.monotonic() - self._made_at > TOKEN_AGE:
            self._client = Client(self.api, self.token(), http=http, timeout=API_TIMEOUT, attempts=1)
            self._made_at = time.monotonic()
        return self._client

    async def _coming(self, http: httpx.AsyncClient) -> AsyncIterator[tuple[bytes, Event]]:
        """Give the events after the position; wait and go on where the API is away."""
        self._client = None  # of another connection
        failures = 0
        after = self.position
        while True:
            try:
                page = await self._connected(http).events(
                    after=after, limit=PAGE, wait=LONGEST_WAIT, kinds=self.kinds, content=self.content
                )
            except ClientError as error:
                gone = isinstance(error, Refused) and error.status == httpx.codes.GONE
                oldest = error.problem.oldest if isinstance(error, Refused) and gone else None
                if isinstance(oldest, str):
                    self.say(f"Events up to position {oldest} are not kept any more; going on after it.")
                    after = int(oldest)
                elif isinstance(error, Denied) and time.monotonic() - self._made_at > YOUNG:
                    self._client = None  # the token may have expired
                elif error.passing:
                    failures = await self._paused(error, failures)
                else:
                    raise
                continue
            if failures:
                self.say("The API answers again.")
            failures = 0
            for raw in page.events:
                # What cannot be read ends the run: to leave it out would hide it.
                event = _read(raw)
                yield _as_webhook(raw), event
            after = int(page.next)

    async def _paused(self, error: ClientError, failures: int) -> int:
        if not failures:
            self.say(f"{error}; it is asked again until it answers.")
        await asyncio.sleep(max(pause(failures), min(error.retry_after, LONGEST_PAUSE)))
        return failures + 1

    async def _deliver(self, http: httpx.AsyncClient, raw: bytes, event: Event) -> None:
        """Send one event until it is accepted, or answered otherwise too often."""
        attempt = refused = 0
        while True:
            attempt += 1
            sent, counts = await self._send(http, raw, event, attempt)
            refused += counts
            if sent.then != "accepted" and refused < ATTEMPTS:
                self.show(sent)
                await asyncio.sleep(pause(attempt - 1))
                continue
            self.show(sent if sent.then == "accepted" else replace(sent, then="given up"))
            return

    async def _send(
        self, http: httpx.AsyncClient, raw: bytes, event: Event, attempt: int
    ) -> tuple[Sent, bool]:
        """Send one event once; return what came of it, and whether the attempt counts."""
        signed = signature.headers(event.id, raw, (self.secret,), at=int(time.time()))
        headers = {"content-type": "application/cloudevents+json", "user-agent": AGENT, **signed}
        began, status, why, counts = time.monotonic(), None, "", True
        try:
            async with asyncio.timeout(SEND_TIMEOUT):
                request = http.build_request("POST", self.target, content=raw, headers=headers)
                answer = await http.send(request, stream=True, follow_redirects=False)
                status = answer.status_code
                try:
                    await _beginning(answer)
                finally:
                    await answer.aclose()
        except httpx.ConnectError:
            why, counts = "nothing listens there", False
        except (TimeoutError, httpx.TimeoutException):
            status, why = None, f"no answer within {SEND_TIMEOUT:g} s"
        except httpx.HTTPError as error:
            status, why = None, str(error) or type(error).__name__
        accepted = status is not None and httpx.codes.is_success(status)
        sent = Sent(
            event=event,
            attempt=attempt,
            status=status,
            why=why,
            seconds=time.monotonic() - began,
            then="accepted" if accepted else "retried",
        )
        return sent, counts and not accepted


def pause(failures: int) -> float:
    """Return the seconds until the next attempt after so many failures before: ever more, with jitter."""
    most = min(FIRST_PAUSE * 2.0 ** min(failures, 10), LONGEST_PAUSE)
    return most * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, hides nothing


async def _beginning(answer: httpx.Response) -> None:
    """Read an answer up to its bound, so that its connection can be kept where it is short."""
    size = 0
    async for part in answer.aiter_raw():
        size += len(part)
        if size > READ:
            return


def _as_webhook(raw: msgspec.Raw) -> bytes:
    """Return an event as an endpoint gets it: without its position, every value in its own bytes."""
    members = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    return msgspec.json.encode({name: value for name, value in members.items() if name != "position"})


def _read(raw: msgspec.Raw) -> Event:
    try:
        return msgspec.json.decode(raw, type=Event)
    except msgspec.DecodeError as error:
        raise BadAnswer(f"an event of the feed is not as the contract says: {error}") from error

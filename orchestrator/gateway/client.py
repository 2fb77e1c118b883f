"""Calls to the gateway: authenticate, open a session, list its payment methods, look payments up, move money.

Every call returns one of `outcomes`, in bounded time and for any answer; only cancellation passes through.
Each writes one log line. A large answer is read in another process (`reader_process`), so that one gateway's
answers delay no other call. Bodies, tokens, URLs and free text of the gateway reach neither a log nor a
reason.
"""

from __future__ import annotations

import base64
import logging
import re
import time
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Self, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import msgspec
from aiohttp import BytesPayload, hdrs
from yarl import URL

from orchestrator import counters, traces
from orchestrator import log as logs
from orchestrator.domain import money
from orchestrator.gateway import answers, payments
from orchestrator.gateway.answers import Methods, Reader, Session, Token
from orchestrator.gateway.http import Request, Wire
from orchestrator.gateway.lease_guard import GuardedBody
from orchestrator.gateway.limits import LimitsRegistry
from orchestrator.gateway.limits.shared_state import SharedGatewayState
from orchestrator.gateway.outcomes import WORDS, Busy, Done, NotSent, Outcome, Refused, Unknown
from orchestrator.gateway.reader_process import ReaderProcess

if TYPE_CHECKING:
    from collections.abc import Mapping
    from decimal import Decimal
    from types import TracebackType

    from aiohttp import Payload

    from orchestrator.domain.transaction import Found
    from orchestrator.gateway.lease_guard import LeaseGuard
    from orchestrator.gateway.payments import Movement
    from orchestrator.settings import Settings

T = TypeVar("T")
log = logs.get(__name__)
_LEVEL = logging.getLogger(__name__)

USER_AGENT = "altapay-orchestrator"
USER_AGENT_LIMIT = 512
"""Real browsers stay below 300 characters; a shopper may send anything."""

LONGEST_IDENTIFIER = 100
"""Characters of a `reconciliation_identifier` (part 1.7)."""

_SESSION_PATH = "/checkout/v1/api/session"
_MERCHANT_API = "/merchant/API"
"""What the paths of the Merchant API begin with, which may stand elsewhere."""
CIRCUIT_OPEN = "Calls to the gateway are paused after failures."

_LABELS = counters.Bounded(16)
"""The gateways that are counted by name."""
_FAILURES = (WORDS[Unknown], WORDS[NotSent])

_TOKEN: Reader[Token] = Reader("token")
_SESSION: Reader[Session] = Reader("session")
_METHODS: Reader[Methods] = Reader("methods")
_TOO_LARGE = Unknown("The gateway's answer holds far more than was asked for.", unreadable=True)
_UNPRINTABLE = re.compile(r"[^ -~]+")
# Amounts are decimal numbers in the gateway's JSON (D4); msgspec would write a Decimal as a string.
_ENCODER = msgspec.json.Encoder(decimal_format="number")


@dataclass(frozen=True, slots=True)
class Account:
    """A merchant's gateway URLs (bases without a trailing path) and credentials."""

    merchant: str
    url: str
    merchant_api_url: str
    username: str
    password: str = field(repr=False)


@lru_cache(maxsize=1024)
def _basic(username: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


@lru_cache(maxsize=1024)
def gateway_of(url: str) -> str:
    """Return which gateway a URL leads to: scheme, host and port; a URL that has none is its own."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return url
    return f"{parts.scheme}://{parts.hostname}:{port}" if parts.hostname else url


class Gateway:
    """All calls of one process; use it as a context manager on the event loop that makes the calls."""

    def __init__(self, settings: Settings, shared_state: SharedGatewayState | None = None) -> None:
        """Take limits, timeouts and what is shared with other workers; connections open as needed."""
        self._shared_state = shared_state or SharedGatewayState(None)
        self.limits = LimitsRegistry(settings, self._shared_state)
        """What it knows of its gateways: their calls of the last minutes, and open circuits."""
        self._wire = Wire(settings)
        self._reader_process = ReaderProcess(settings.gateway_total_timeout / 2)
        # Gateways that support the parameter `limit`, as seen.
        self._limiting: set[str] = set()

    async def __aenter__(self) -> Self:
        await self._shared_state.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader_process.close()
        await self._shared_state.__aexit__(kind, error, trace)
        await self._wire.close()

    async def authenticate(self, account: Account) -> Outcome[Token]:
        """Fetch a token for one customer session (D1, D2): Basic credentials, no body."""
        return await self._call(
            "authenticate", account, _TOKEN, "/checkout/v1/api/authenticate", method="POST"
        )

    async def open_session(
        self, account: Account, token: str, body: Mapping[str, object], *, user_agent: str | None
    ) -> Outcome[Session]:
        """Open a session (D4, C1) with the request object of the facts; decimals become numbers."""
        content = _json(body)
        if isinstance(content, Refused):
            return content
        headers = _headers(f"Bearer {token}", user_agent)
        return await self._call(
            "open_session", account, _SESSION, _SESSION_PATH, method="POST", headers=headers, body=content
        )

    async def change_session(
        self,
        account: Account,
        token: str,
        session_id: str,
        body: Mapping[str, object],
        *,
        amount: Decimal,
        user_agent: str | None,
    ) -> Outcome[None]:
        """Change a session, such as its lines and `amount` (PUT; D4, C1); it may be repeated."""
        content = _json(body)
        if isinstance(content, Refused):
            return content
        reader: Reader[None] = Reader("changed", str(amount))
        path, headers = _path_of(session_id), _headers(f"Bearer {token}", user_agent)
        return await self._call(
            "change_session", account, reader, path, method="PUT", headers=headers, body=content
        )

    async def list_methods(
        self, account: Account, token: str, session_id: str, *, user_agent: str | None
    ) -> Outcome[tuple[dict[str, object], ...]]:
        """List what the shopper may pay with (D5, C1).

        The device decides, so the shopper's own User-Agent is passed on.

        An empty tuple is a real answer: the merchant's configuration or the session leaves nothing (D5).
        """
        path, headers = f"{_path_of(session_id)}/payment-methods", _headers(f"Bearer {token}", user_agent)
        outcome = await self._call("list_methods", account, _METHODS, path, headers=headers)
        if not isinstance(outcome, Done):
            return outcome
        methods = outcome.value
        if methods.skipped:
            log.warning(
                "methods_skipped",
                merchant=account.merchant,
                skipped=methods.skipped,
                usable=len(methods.usable),
                reason=methods.reason,
            )
        return Done(methods.usable)

    async def find_payments(
        self,
        account: Account,
        *,
        order_ref: str | None = None,
        transaction_id: str | None = None,
    ) -> Outcome[Found]:
        """Look transactions up in the Merchant API (D8), newest first, at most a hundred of them.

        At least one of the two filters is required. The API user may see several shops: a found transaction
        may belong to another. Where the number of rows leaves open whether there are more, one more call
        tries to prove that there are none; a `Found` that still has `at_limit` may lack rows.
        """
        filters = {"shop_orderid": order_ref, "transaction_id": transaction_id}
        wanted = {name: value for name, value in filters.items() if value}
        if not wanted:
            raise ValueError("find_payments needs a filter")
        outcome = await self._find(account, wanted, "desc")
        if isinstance(outcome, Done) and outcome.value.at_limit:
            return Done(await self._completed(account, wanted, outcome.value))
        return outcome

    async def _find(
        self, account: Account, wanted: Mapping[str, str], sort: str, limit: int = payments.MOST_ROWS
    ) -> Outcome[Found]:
        reader: Reader[Found] = Reader("payments", limit)
        query = {**wanted, "sort": sort, "limit": str(limit)}
        return await self._call("find_payments", account, reader, f"{_MERCHANT_API}/payments", query=query)

    async def _completed(self, account: Account, wanted: Mapping[str, str], found: Found) -> Found:
        """Return a lookup's result without the doubt that there is more, if another call can remove it.

        Exactly the default number of rows, fewer than requested: either these are all, or the gateway does
        not support `limit`, which is tested once for each gateway by requesting fewer. Otherwise the list is
        read from its other end: where both ends meet, by the dates of their rows, none is missing.
        """
        gateway = gateway_of(account.merchant_api_url)
        fewer = len(found.transactions) == payments.DEFAULT_ROWS
        if fewer and gateway in self._limiting:
            return replace(found, at_limit=False)
        limit = payments.DEFAULT_ROWS - 1 if fewer else payments.MOST_ROWS
        outcome = await self._find(account, wanted, "asc", limit)
        if not isinstance(outcome, Done):
            return found
        oldest = outcome.value
        if fewer and payments.is_cut_short(found, oldest):
            self._limiting.add(gateway)
            return replace(found, at_limit=False)
        return payments.joined(found, oldest) or found

    async def capture(
        self,
        account: Account,
        *,
        transaction_id: str,
        amount: int,
        currency: str,
        identifier: str,
        lease_guard: LeaseGuard,
    ) -> Outcome[Movement]:
        """Capture part or all of a reservation: `amount` in minor units, `identifier` to find the movement
        by.

        `Done` says that the gateway answered, not that money moved. What was captured already gets Result
        "error" (part 1.7). For this and the other two: a `lease_guard` that says no is `NotSent`; its module
        says what window remains. 503 is `Unknown` even where it names a time.
        """
        moved = _sum(amount, currency, identifier)
        return await self._move("capture", "captureReservation", account, transaction_id, moved, lease_guard)

    async def refund(
        self,
        account: Account,
        *,
        transaction_id: str,
        amount: int,
        currency: str,
        identifier: str,
        lease_guard: LeaseGuard,
    ) -> Outcome[Movement]:
        """Refund part or all of what was captured, never more: the gateway may not refund above it."""
        moved = _sum(amount, currency, identifier)
        return await self._move(
            "refund", "refundCapturedReservation", account, transaction_id, moved, lease_guard
        )

    async def release(
        self, account: Account, *, transaction_id: str, lease_guard: LeaseGuard
    ) -> Outcome[Movement]:
        """Release a whole reservation, there being no other way; some providers make a refund of it (D8)."""
        return await self._move("release", "releaseReservation", account, transaction_id, {}, lease_guard)

    async def _move(  # noqa: PLR0917 - all of a movement
        self,
        name: str,
        method: str,
        account: Account,
        transaction_id: str,
        moved: Mapping[str, str] | Refused,
        lease_guard: LeaseGuard,
    ) -> Outcome[Movement]:
        if isinstance(moved, Refused):
            return moved
        if not transaction_id:
            raise ValueError(f"{name} needs the id of a transaction")
        reader: Reader[Movement] = Reader("movement", transaction_id)
        form = urlencode({"transaction_id": transaction_id, **moved}).encode()
        body = GuardedBody(form, lease_guard)
        return await self._call(name, account, reader, f"{_MERCHANT_API}/{method}", method="POST", body=body)

    def paused(self, account: Account, *, merchant_api: bool) -> float:
        """Return the seconds for which calls of this account to one of its two APIs are not made; 0: none."""
        gateway = gateway_of(account.merchant_api_url if merchant_api else account.url)
        return self.limits.of(gateway).wait(account.merchant)

    async def _call(
        self,
        name: str,
        account: Account,
        reader: Reader[T],
        path: str,
        *,
        method: str = "GET",
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Payload | None = None,
    ) -> Outcome[T]:
        """Make one call, read its answer, write one log line; the account proves it without `headers`."""
        span = traces.begin(f"gateway {name}") if traces.on else None
        started = time.perf_counter()
        outcome: Outcome[T]
        gateway = "none"
        base = account.merchant_api_url if path.startswith(_MERCHANT_API) else account.url
        try:
            target = URL(base.rstrip("/") + path)
            headers = headers or _headers(_basic(account.username, account.password), None)
        except ValueError:
            outcome = NotSent("The gateway's URL of this merchant is not a URL.")
        else:
            limits_of_gateway = self.limits.of(gateway_of(base))
            alone = limits_of_gateway.wait(account.merchant)
            if alone > 0:
                counters.gateway_calls_withheld.add(_LABELS.of(limits_of_gateway.gateway))
                return Busy(CIRCUIT_OPEN, alone)
            gateway = limits_of_gateway.gateway
            request = Request(method, target.with_query(query) if query else target, headers, body)
            probes, large = limits_of_gateway.breaker.enter(), limits_of_gateway.large()
            try:
                answer = await self._wire.exchange(
                    request,
                    limits_of_gateway=limits_of_gateway,
                    large=large,
                    queue_key=(account.merchant, name),
                )
                if not isinstance(answer, bytes):
                    outcome = answer
                elif answers.is_light(answer):
                    outcome = reader.read(answer)
                elif reader.kind in answers.NEVER_LARGE:
                    outcome = _TOO_LARGE
                else:
                    outcome = await self._reader_process.read(
                        reader, answer, queue_key=limits_of_gateway.gateway
                    )
                # The lease guard's no is about our lease.
                if not (isinstance(body, GuardedBody) and body.refused):
                    limits_of_gateway.note(account.merchant, outcome, time.perf_counter() - started)
            finally:
                large.give_back()
                if probes:
                    limits_of_gateway.breaker.leave()
        _note(name, account.merchant, gateway, outcome, time.perf_counter() - started)
        if span is not None:
            word = WORDS[type(outcome)]
            span.end(kind="client", error=word in {"unknown", "not_sent"}, outcome=word, gateway=gateway)
        return outcome


def _note(name: str, merchant: str, gateway: str, outcome: Outcome[object], seconds: float) -> None:  # noqa: PLR0917 - all of a call
    labels = (_LABELS.of(gateway), name)
    if not counters.gateway_calls.knows(*labels, _FAILURES[0]):
        # Failures are counted from zero, so that the first of them is an increase.
        for failure in _FAILURES:
            counters.gateway_calls.add(*labels, failure, by=0.0)
    counters.gateway_calls.add(*labels, WORDS[type(outcome)])
    counters.gateway_call_seconds.observe(seconds, name)
    took = round(seconds * 1000, 1)
    if not isinstance(outcome, Done):
        kind, why = type(outcome).__name__, outcome.reason
        log.info("gateway_called", call=name, merchant=merchant, outcome=kind, ms=took, reason=why)
    elif _LEVEL.isEnabledFor(logging.DEBUG):  # a line that is not written costs as much as all counting
        log.debug("gateway_called", call=name, merchant=merchant, outcome="Done", ms=took)


def _json(body: Mapping[str, object]) -> BytesPayload | Refused:
    try:
        return BytesPayload(_ENCODER.encode(body), content_type="application/json")
    except UnicodeEncodeError:  # half a surrogate pair is a str to Python, but not valid text
        return Refused(0, "The session's content holds a character that cannot be sent.")


def _path_of(session_id: str) -> str:
    return f"{_SESSION_PATH}/{quote(session_id, safe='')}"


def _sum(amount: int, currency: str, identifier: str) -> dict[str, str] | Refused:
    """Return the fields of an amount, which is never left out: the gateway would move all there is."""
    if amount <= 0 or not 1 <= len(identifier) <= LONGEST_IDENTIFIER:
        raise ValueError(
            f"moving money needs an amount of more than 0 and an identifier, not {amount} and {identifier!r}"
        )
    try:
        decimal = money.for_gateway(amount, currency)
    except money.MoneyError:
        return Refused(0, "The amount cannot be put into the decimals that the gateway holds.")
    return {"amount": str(decimal), "reconciliation_identifier": identifier}


def _headers(authorization: str, user_agent: str | None) -> dict[str, str]:
    return {
        hdrs.AUTHORIZATION: authorization,
        hdrs.USER_AGENT: _plain(user_agent) if user_agent else USER_AGENT,
        hdrs.ACCEPT: "application/json, application/xml;q=0.9, */*;q=0.1",
        # Compressed answers would need a second limit, on what they unfold to.
        hdrs.ACCEPT_ENCODING: "identity",
    }


def _plain(user_agent: str) -> str:
    """Make a header value of what a shopper's device called itself: printable ASCII and not endless."""
    return _UNPRINTABLE.sub("", user_agent[:USER_AGENT_LIMIT]).strip() or USER_AGENT

"""Calls to the gateway: authenticate, open a session, list its payment methods, look payments up, move money.

Every call comes back as one of `outcomes`, in bounded time and whatever was answered; only cancellation passes through. Each
leaves one log line. Bodies, tokens, URLs and what the gateway wrote in free text reach neither a log nor a reason.
"""

from __future__ import annotations

import base64
import re
import time
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Self, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import jwt
import msgspec
from aiohttp import BytesPayload, hdrs
from yarl import URL

from orchestrator import log as logs
from orchestrator import money
from orchestrator.gateway import payments
from orchestrator.gateway.board import Board
from orchestrator.gateway.doors import Doors
from orchestrator.gateway.fence import FencedBody
from orchestrator.gateway.outcomes import Busy, Done, NotSent, Outcome, Refused, Unknown
from orchestrator.gateway.payments import Found, Malformed, Movement, RequestError
from orchestrator.gateway.wire import Request, Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from aiohttp import Payload

    from orchestrator.gateway.fence import Fence
    from orchestrator.settings import Settings

T = TypeVar("T")
log = logs.get(__name__)

USER_AGENT = "altapay-orchestrator"
USER_AGENT_LIMIT = 512
"""Real browsers stay below 300 characters; a shopper may send anything."""

ASSUMED_LIFETIME = 1200.0
"""Seconds. Two thirds of the shortest lifetime seen (1800 s in the sample of D2, though its text says an hour)."""
LONGEST_LIFETIME = 86_400.0
LONGEST_IDENTIFIER = 100
"""Characters of a `reconciliation_identifier` (part 1.7)."""
METHOD_DEPTH = 32
"""A method is two levels deep (C1, C4); far deeper nesting is an attack on whoever walks over the answer next."""

_MERCHANT_API = frozenset({"find_payments", "capture", "refund", "release"})
"""The calls that go to the Merchant API, which may stand elsewhere."""
LEFT_ALONE = "The gateway is left alone for a while."

# Seconds since 1970. NaN compares false with it, and a far larger integer would not fit into a float.
_LATEST = 10**12
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{1,8192}")
_SESSION = re.compile(r"[A-Za-z0-9_-]{1,100}")
_UNPRINTABLE = re.compile(r"[^ -~]+")
# Amounts are decimal numbers in the gateway's JSON (D4); msgspec would write a Decimal as a string.
_ENCODER = msgspec.json.Encoder(decimal_format="number")


@dataclass(frozen=True, slots=True)
class Account:
    """Where and as whom a merchant talks to the gateway. `url` and `merchant_api_url` are bases without a trailing path."""

    merchant: str
    url: str
    merchant_api_url: str
    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token and the seconds it lives, counted from its receipt.

    `assumed` says that the token named no sane `iat` and `exp` and that the lifetime is our cautious guess.
    """

    value: str = field(repr=False)
    lifetime: float
    assumed: bool = False


@dataclass(frozen=True, slots=True)
class Session:
    """A session that the gateway opened."""

    session_id: str


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What every call of one account repeats, parsed and encoded once."""

    authenticate: URL
    session: URL
    sessions: str
    payments: str
    movements: str
    basic: str
    checkout_gateway: str
    merchant_gateway: str


@lru_cache(maxsize=1024)
def _prepare(account: Account) -> _Prepared:
    checkout = account.url.rstrip("/") + "/checkout/v1/api"
    merchant = account.merchant_api_url.rstrip("/") + "/merchant/API"
    credentials = f"{account.username}:{account.password}".encode()
    return _Prepared(
        authenticate=URL(checkout + "/authenticate"),
        session=URL(checkout + "/session"),
        sessions=checkout + "/session/",
        payments=merchant + "/payments?",
        movements=merchant + "/",
        basic="Basic " + base64.b64encode(credentials).decode(),
        checkout_gateway=gateway_of(account.url),
        merchant_gateway=gateway_of(account.merchant_api_url),
    )


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

    def __init__(self, settings: Settings, board: Board | None = None) -> None:
        """Take limits and timeouts, and the board that is shared with other workers; connections open as they are needed."""
        self._board = board or Board(None)
        self._doors = Doors(settings, self._board)
        self._wire = Wire(settings)

    async def __aenter__(self) -> Self:
        """Be ready to call; connections open as they are needed."""
        await self._board.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close every connection."""
        await self._board.__aexit__(kind, error, trace)
        await self._wire.close()

    async def authenticate(self, account: Account) -> Outcome[Token]:
        """Fetch a token for one customer session (D1, D2): Basic credentials, no body."""
        return await self._call(
            "authenticate", account, _read_token, method="POST", url=lambda known: known.authenticate
        )

    async def open_session(
        self, account: Account, token: str, body: Mapping[str, object], *, user_agent: str | None
    ) -> Outcome[Session]:
        """Open a session (D4, C1). `body` is the request object of the facts; decimals are written as numbers."""
        try:
            content = _ENCODER.encode(body)
        except UnicodeEncodeError:  # half a surrogate pair is a str to Python, and no text to anybody else
            return Refused(0, "The session's content holds a character that cannot be sent.")
        return await self._call(
            "open_session",
            account,
            _read_session,
            method="POST",
            url=lambda known: known.session,
            token=token,
            body=BytesPayload(content, content_type="application/json"),
            user_agent=user_agent,
        )

    async def list_methods(
        self, account: Account, token: str, session_id: str, *, user_agent: str | None
    ) -> Outcome[tuple[dict[str, object], ...]]:
        """List what the shopper may pay with (D5, C1). The device decides, so the shopper's own User-Agent is passed on.

        An empty tuple is a real answer: the merchant's configuration or the session leaves nothing (D5).
        """
        return await self._call(
            "list_methods",
            account,
            _read_methods,
            url=lambda known: URL(f"{known.sessions}{quote(session_id, safe='')}/payment-methods"),
            token=token,
            user_agent=user_agent,
        )

    async def find_payments(
        self,
        account: Account,
        *,
        order_ref: str | None = None,
        transaction_id: str | None = None,
        payment_id: str | None = None,
        limit: int = 100,
    ) -> Outcome[Found]:
        """Look transactions up in the Merchant API (D8), newest first, at most `limit` (1 to 100) of them.

        At least one of the three filters is required. The API user may see several shops: what is found is not yet ours.
        """
        filters = {"shop_orderid": order_ref, "transaction_id": transaction_id, "payment_id": payment_id}
        wanted = {name: value for name, value in filters.items() if value}
        if not wanted or not 1 <= limit <= payments.MOST_ROWS:
            message = f"find_payments needs a filter and a limit of 1 to {payments.MOST_ROWS}, not {limit}"
            raise ValueError(message)
        query = urlencode({**wanted, "sort": "desc", "limit": limit})
        return await self._call(
            "find_payments",
            account,
            lambda raw: _read_payments(raw, limit),
            url=lambda known: URL(known.payments + query),
        )

    async def capture(
        self,
        account: Account,
        *,
        transaction_id: str,
        amount: int,
        currency: str,
        identifier: str,
        fence: Fence,
    ) -> Outcome[Movement]:
        """Capture part or all of a reservation: `amount` in minor units, `identifier` to find the movement by.

        `Done` says that the gateway answered, not that money moved. What was captured already gets Result "error" (part 1.7).
        For this and the other two: a `fence` that says no is `NotSent`; its module says what window remains. 503 is `Unknown`
        even where it names a time.
        """
        fields = {"transaction_id": transaction_id, **_sum(amount, currency, identifier)}
        return await self._move("capture", "captureReservation", account, fields=fields, fence=fence)

    async def refund(
        self,
        account: Account,
        *,
        transaction_id: str,
        amount: int,
        currency: str,
        identifier: str,
        fence: Fence,
    ) -> Outcome[Movement]:
        """Refund part or all of what was captured, never more: the gateway is not allowed to refund above it."""
        fields = {"transaction_id": transaction_id, **_sum(amount, currency, identifier)}
        return await self._move("refund", "refundCapturedReservation", account, fields=fields, fence=fence)

    async def release(self, account: Account, *, transaction_id: str, fence: Fence) -> Outcome[Movement]:
        """Release a whole reservation, there being no other way; some providers make a refund of it (D8)."""
        return await self._move(
            "release", "releaseReservation", account, fields={"transaction_id": transaction_id}, fence=fence
        )

    async def _move(
        self, name: str, method: str, account: Account, *, fields: Mapping[str, str], fence: Fence
    ) -> Outcome[Movement]:
        if not fields["transaction_id"]:
            message = f"{name} needs the id of a transaction"
            raise ValueError(message)
        return await self._call(
            name,
            account,
            lambda raw: _read_movement(raw, fields["transaction_id"]),
            method="POST",
            url=lambda known: URL(known.movements + method),
            body=FencedBody(urlencode(fields).encode(), fence),
        )

    async def _call(
        self,
        name: str,
        account: Account,
        read: Callable[[bytes], Outcome[T]],
        *,
        url: Callable[[_Prepared], URL],
        method: str = "GET",
        token: str | None = None,
        body: Payload | None = None,
        user_agent: str | None = None,
    ) -> Outcome[T]:
        """Make one call, read its answer, leave one log line."""
        started = time.perf_counter()
        outcome: Outcome[T]
        try:
            known = _prepare(account)
            target = url(known)
        except ValueError:
            outcome = NotSent("The gateway's URL of this merchant is not a URL.")
        else:
            door = self._doors.of(known.merchant_gateway if name in _MERCHANT_API else known.checkout_gateway)
            alone = door.wait(account.merchant)
            if alone > 0:
                return Busy(LEFT_ALONE, alone)
            headers = _headers(f"Bearer {token}" if token else known.basic, user_agent)
            request = Request(method, target, headers, body)
            probes = door.begin()
            try:
                answer = await self._wire.exchange(request, door=door, whose=(account.merchant, name))
                outcome = read(answer) if isinstance(answer, bytes) else answer
                if not (isinstance(body, FencedBody) and body.refused):  # the fence's no is about our lease
                    door.note(account.merchant, outcome)
            finally:
                if probes:
                    door.end()
        took = round((time.perf_counter() - started) * 1000, 1)
        if isinstance(outcome, Done):
            log.debug("gateway_called", call=name, merchant=account.merchant, outcome="Done", ms=took)
        else:
            kind, why = type(outcome).__name__, outcome.reason
            log.info(
                "gateway_called", call=name, merchant=account.merchant, outcome=kind, ms=took, reason=why
            )
        return outcome


def _sum(amount: int, currency: str, identifier: str) -> dict[str, str]:
    """Return the fields of an amount. Without one the gateway would move all there is, so it is never left out."""
    if amount <= 0 or not 1 <= len(identifier) <= LONGEST_IDENTIFIER:
        message = (
            f"moving money needs an amount of more than 0 and an identifier, not {amount} and {identifier!r}"
        )
        raise ValueError(message)
    return {"amount": str(money.to_decimal(amount, currency)), "reconciliation_identifier": identifier}


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


# ── Reading answers ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _decode(raw: bytes) -> dict[str, object] | Unknown:
    try:
        answer = msgspec.json.decode(raw)
    except (ValueError, RecursionError):  # msgspec.DecodeError and UnicodeDecodeError are ValueErrors
        return Unknown("The gateway's answer is not JSON.")
    if not isinstance(answer, dict):
        return Unknown("The gateway's answer is not a JSON object.")
    return answer


def _read_token(raw: bytes) -> Outcome[Token]:
    answer = _decode(raw)
    if isinstance(answer, Unknown):
        return answer
    value = answer.get("token")
    if not isinstance(value, str) or not _TOKEN.fullmatch(value):
        return Unknown("The gateway's answer holds no usable token.")
    lifetime = _lifetime(value)
    return Done(Token(value, ASSUMED_LIFETIME, assumed=True) if lifetime is None else Token(value, lifetime))


def _lifetime(token: str) -> float | None:
    """Return exp - iat in seconds, or None when the token does not say it in a believable way.

    The difference, because our clock need not agree with the gateway's; unverified, because the token is the gateway's to
    check, and came from it over TLS.
    """
    try:
        claims = jwt.decode(token, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError, RecursionError):
        return None
    issued, expires = _seconds(claims.get("iat")), _seconds(claims.get("exp"))
    if issued is None or expires is None:
        return None
    lifetime = expires - issued
    return lifetime if 1 <= lifetime <= LONGEST_LIFETIME else None


def _seconds(claim: object) -> float | None:
    """Return a JWT's NumericDate; None for anything else, also for a number that no date reaches."""
    if not isinstance(claim, int | float) or isinstance(claim, bool) or not 0 <= claim < _LATEST:
        return None
    return float(claim)


def _read_session(raw: bytes) -> Outcome[Session]:
    answer = _decode(raw)
    if isinstance(answer, Unknown):
        return answer
    value = answer.get("sessionId")
    if not isinstance(value, str) or not _SESSION.fullmatch(value):
        return Unknown("The gateway's answer holds no usable sessionId.")
    return Done(Session(value))


def _read_methods(raw: bytes) -> Outcome[tuple[dict[str, object], ...]]:
    answer = _decode(raw)
    if isinstance(answer, Unknown):
        return answer
    methods = answer.get("methods")
    if not isinstance(methods, list):
        return Unknown("The gateway's answer holds no list of methods.")
    if b"\\u0000" in raw:  # Postgres stores no NUL
        return Unknown("The gateway's methods hold a NUL character.")
    for method in methods:
        if not isinstance(method, dict) or not isinstance(method.get("id"), str):
            return Unknown("The gateway's list of methods holds something that is not a method.")
        if not _shallow(method, METHOD_DEPTH):
            return Unknown("The gateway's methods are nested too deeply.")
    return Done(tuple(methods))


def _shallow(value: object, depth: int) -> bool:
    if not isinstance(value, dict | list):
        return True
    inner = value.values() if isinstance(value, dict) else value
    return depth > 0 and all(_shallow(item, depth - 1) for item in inner)


def _read_payments(raw: bytes, limit: int) -> Outcome[Found]:
    match payments.parse(raw, limit=limit):
        case Found(transactions=(), result=result) if result.lower() not in payments.QUIET_RESULTS:
            # A lookup that went wrong inside the gateway must not pass for "there is no payment".
            return Unknown("The gateway's lookup ended neither in payments nor in success.")
        case Found() as found:
            return Done(found)
        case RequestError(code=code):
            return Refused(HTTPStatus.OK, "The gateway refused the lookup.", code)
        case Malformed(reason=reason):
            return Unknown(reason)


def _read_movement(raw: bytes, transaction_id: str) -> Outcome[Movement]:
    match payments.parse_movement(raw, transaction_id=transaction_id):
        case Movement() as movement:
            return Done(movement)
        case RequestError(code=code):
            return Refused(HTTPStatus.OK, "The gateway refused the request.", code)
        case Malformed(reason=reason):
            return Unknown(reason)

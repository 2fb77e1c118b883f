"""The gateway's answers, read: the bytes of each call into the value that the call is for, or into the reason
why not.

`Reader.read` raises nothing, whatever the gateway wrote, and no reason quotes it.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode
from collections.abc import Callable, Mapping  # noqa: TC003
from dataclasses import dataclass, field
from decimal import Decimal
from http import HTTPStatus
from typing import Annotated, Any, Final, Generic, TypeVar

import msgspec

from orchestrator.gateway import payments, xml
from orchestrator.gateway.outcomes import Done, Outcome, Refused, Unknown
from orchestrator.gateway.payments import RequestError
from orchestrator.gateway.xml import Malformed

T = TypeVar("T")

ASSUMED_LIFETIME = 1200.0
"""Seconds: two thirds of the shortest lifetime seen (1800 s in D2's sample; its text says an hour)."""
LONGEST_LIFETIME = 86_400.0
LIGHT: Final = 32_768
"""Bytes up to which an answer may be read on the event loop. A whole lifecycle's answers stay below a quarter
of it."""
LIGHT_MARKS: Final = 2_000
"""Characters that cost (of tags, attributes, references, lists and values, controls, and all outside ASCII)
in such an answer at most."""
LIGHT_ROWS: Final = 60
"""Tags that begin with `Transaction` in such an answer at most: each row has four, and costs most."""
SHORT: Final = 1_000
"""Bytes that hold too little to be checked."""
LARGE = 65_536
"""Bytes up to which the size alone bounds how many values a JSON answer has."""
MOST_VALUES = 60_000
"""Brackets, commas and colons of a JSON answer, at most. A hundred methods have a few thousand."""
LONGEST_METHOD_ID = 255
"""Characters. A uuid has 36 (1.3)."""
METHOD_DEPTH = 32
"""A method has two levels (C1, C4); far deeper nesting attacks the code that reads the answer next."""


_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{1,8192}")
_SESSION = re.compile(r"[A-Za-z0-9_-]{1,100}")


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token and the seconds it lives, counted from its receipt."""

    value: str = field(repr=False)
    lifetime: float


@dataclass(frozen=True, slots=True)
class Session:
    """A session that the gateway opened."""

    session_id: str


@dataclass(frozen=True, slots=True)
class Methods:
    """The usable methods of the list, how many others it had, and why the first of those cannot be used."""

    usable: tuple[dict[str, object], ...]
    skipped: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Reader(Generic[T]):
    """How the answer to a call is read: which reader, and its arguments from the call."""

    kind: str
    argument: int | str = 0

    def read(self, raw: bytes) -> Outcome[T]:
        try:
            return Done(_READERS[self.kind](raw, self.argument))
        except Malformed as error:
            return Unknown(str(error), unreadable=True)
        except RequestError as error:
            asked = "lookup" if self.kind == "payments" else "request"
            return Refused(HTTPStatus.OK, f"The gateway refused the {asked}.", str(error))


def is_light(raw: bytes) -> bool:
    """Say whether reading an answer takes at most about as long as a step of a checkout does."""
    size = len(raw)
    return size <= SHORT or (
        size <= LIGHT
        and size - len(raw.translate(None, _MARKS)) <= LIGHT_MARKS
        and raw.count(b"<Transaction") <= LIGHT_ROWS
    )


_MARKS: Final = bytes({*b"<=&,[{", *range(0x20), *range(0x7F, 0x100)} - set(b"\t\n\r"))


def _decode(raw: bytes) -> dict[str, object]:
    if len(raw) > LARGE and sum(map(raw.count, (b"{", b"[", b",", b":"))) > MOST_VALUES:
        raise Malformed("The gateway's JSON holds more values than an answer has.")
    try:
        answer = msgspec.json.decode(raw)
    except (ValueError, RecursionError):  # msgspec.DecodeError and UnicodeDecodeError are ValueErrors
        answer = _decode_damaged(raw)
    if not isinstance(answer, dict):
        raise Malformed("The gateway's answer is not a JSON object.")
    return answer


def _decode_damaged(raw: bytes) -> object:
    """Decode JSON behind a byte order mark, or in another encoding than UTF-8."""
    try:
        return msgspec.json.decode(xml.decoded(raw).strip("\ufeff\x00 \t\r\n"))
    except (ValueError, RecursionError):
        raise Malformed("The gateway's answer is not JSON.") from None


def _read_token(raw: bytes) -> Token:
    value = _decode(raw).get("token")
    if not isinstance(value, str) or not _TOKEN.fullmatch(value):
        raise Malformed("The gateway's answer holds no usable token.")
    return Token(value, _lifetime(value) or ASSUMED_LIFETIME)


# Seconds since 1970.
_Moment = Annotated[float, msgspec.Meta(ge=0, lt=10**12)]


class _Claims(msgspec.Struct):
    iat: _Moment
    exp: _Moment


_CLAIMS: Final = msgspec.json.Decoder(_Claims)


def _lifetime(token: str) -> float | None:
    """Return exp - iat in seconds, or None when the token does not say it in a believable way.

    The difference, because our clock need not agree with the gateway's; unverified, because the token is the
    gateway's to check, and came from it over TLS.
    """
    try:
        # Its second segment only: decoding the whole token by a library costs ten times as much.
        payload = token.split(".", 2)[1]
        claims = _CLAIMS.decode(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (IndexError, ValueError, RecursionError):
        return None
    lifetime = claims.exp - claims.iat
    return lifetime if 1 <= lifetime <= LONGEST_LIFETIME else None


def _read_session(raw: bytes) -> Session:
    value = _decode(raw).get("sessionId")
    if not isinstance(value, str) or not _SESSION.fullmatch(value):
        raise Malformed("The gateway's answer holds no usable sessionId.")
    return Session(value)


def _read_change(raw: bytes, amount: str) -> None:
    """Read the answer to a change of a session, which is not documented: nothing (HTTP 204), or JSON, such as
    an echo of the session.

    An echo of another amount than the `amount` that was sent shows that nothing was changed.
    """
    match _decode(raw) if raw else {}:
        case {"order": {"amount": {"value": int() | float() as value}}} if Decimal(str(value)) != Decimal(
            amount
        ):
            raise Malformed("The gateway's answer shows another amount than the change.")


def _read_methods(raw: bytes) -> Methods:
    """Read the list of methods; unusable ones are left out and counted, a list of such alone is unknown."""
    methods = _decode(raw).get("methods")
    if not isinstance(methods, list):
        raise Malformed("The gateway's answer holds no list of methods.")
    holds_nul = b"\\u0000" in raw
    problems = [_problem_of(method, holds_nul=holds_nul) for method in methods]
    usable = tuple(method for method, problem in zip(methods, problems, strict=True) if problem is None)
    reasons = [problem for problem in problems if problem is not None]
    if reasons and not usable:
        raise Malformed(reasons[0])
    return Methods(usable, len(reasons), reasons[0] if reasons else "")


def _problem_of(method: object, *, holds_nul: bool) -> str | None:
    """Return why a method cannot be offered, or None; `holds_nul`: the list holds a NUL character."""
    identifier = method.get("id") if isinstance(method, dict) else None
    if not isinstance(identifier, str) or not identifier.strip() or len(identifier) > LONGEST_METHOD_ID:
        return "The gateway's list of methods holds something that is not a method."
    if not _shallow(method, METHOD_DEPTH):
        return "The gateway's methods are nested too deeply."
    if holds_nul and b"\\u0000" in msgspec.json.encode(method):  # Postgres stores no NUL
        return "The gateway's methods hold a NUL character."
    return None


def _shallow(value: object, depth: int) -> bool:
    if not isinstance(value, dict | list):
        return True
    inner = value.values() if isinstance(value, dict) else value
    return depth > 0 and all(_shallow(item, depth - 1) for item in inner)


_READERS: Final[Mapping[str, Callable[[bytes, Any], Any]]] = {
    "token": lambda raw, _: _read_token(raw),
    "session": lambda raw, _: _read_session(raw),
    "changed": _read_change,
    "methods": lambda raw, _: _read_methods(raw),
    "payments": lambda raw, limit: payments.parse(raw, limit=limit),
    "movement": lambda raw, transaction: payments.parse_movement(raw, transaction_id=transaction),
}
NEVER_LARGE: Final = frozenset({"token", "session", "changed"})
"""What holds a token or an id, and nothing that could be as large as a list is."""

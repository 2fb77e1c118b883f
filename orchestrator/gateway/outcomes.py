"""The outcomes of a gateway call: a closed set of values, never an exception.

The important line runs between `NotSent` and `Busy` (nothing reached the gateway: repeat freely) and
`Unknown` (it may have been done: repeat only what may be done twice, otherwise look it up). Reasons are short
fixed sentences for logs and people; they hold no token, no personal data, no URL and no free text of the
gateway.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Generic, TypeAlias, TypeVar

T_co = TypeVar("T_co", covariant=True)

FINAL_STATUSES: Final = frozenset({0, 200, 400, 402, 413, 415, 422})
"""Statuses of `Refused` that are about what was sent, so that the same order would be refused again.

0: the request could not be encoded; 200: the Merchant API's own error code; the others: the gateway read it
and refused. Every other status (403, 404, 405, 407, ...) also comes from a firewall, a proxy, a deployment or
a wrong base URL, and would then fail every order of those minutes: the step retries it. Calls to which 404 or
410 is an answer judge it themselves.
"""


@dataclass(frozen=True, slots=True)
class Done(Generic[T_co]):
    """The gateway did it, and its answer was understood."""

    value: T_co


@dataclass(frozen=True, slots=True)
class Refused:
    """An HTTP status or error code that says no; whether it is for good depends on the status
    (`FINAL_STATUSES`).

    `status` is the HTTP status, 0 for what could not even be put into words to send; `code` is the gateway's
    own error code (Merchant API: Header/ErrorCode) or empty.
    """

    status: int
    reason: str
    code: str = ""


@dataclass(frozen=True, slots=True)
class Unauthorized:
    """HTTP 401: the token ran out, or the credentials are wrong."""

    reason: str


@dataclass(frozen=True, slots=True)
class NotSent:
    """Nothing reached the gateway (no connection, no name): safe to repeat."""

    reason: str


@dataclass(frozen=True, slots=True)
class Busy:
    """Not sent: safe to repeat, and no sign that anything is wrong with what was to be sent.

    All our own connections were taken; or its circuit is open, and then `retry_after` is for how many seconds
    more.
    """

    reason: str
    retry_after: float = 0.0


@dataclass(frozen=True, slots=True)
class Unknown:
    """Sent, but no usable answer came back: it may have been done.

    `unreadable`: an answer came, and no reader of ours makes anything of it, so that the same call will most
    likely meet the same.
    """

    reason: str
    unreadable: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Throttled:
    """The gateway throttled the call and did nothing; `retry_after` is in seconds, None when it gives no
    time.
    """

    retry_after: float | None
    reason: str


Outcome: TypeAlias = Done[T_co] | Refused | Unauthorized | NotSent | Busy | Unknown | Throttled

WORDS: Final[dict[type[object], str]] = {
    Done: "done",
    Refused: "refused",
    Unauthorized: "unauthorized",
    NotSent: "not_sent",
    Busy: "busy",
    Unknown: "unknown",
    Throttled: "throttled",
}
"""The word of each outcome in metrics."""

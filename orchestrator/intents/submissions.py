"""Messages of the queue `intents`: the task `orchestrator.submit(intents, token)` in the format of Celery's
protocol 2. Nothing in a message is trusted.

Intents stay the JSON that was sent, so that amounts are never read through a float. A malformed message
raises `SubmissionRejected` with the reason. A token is never part of what is kept.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec

from orchestrator.errors import OrchestratorError
from orchestrator.intents.fields import Problem, kind_of
from orchestrator.intents.reading import ORDER_NUMBER

if TYPE_CHECKING:
    from collections.abc import Mapping

TASK: Final = "orchestrator.submit"
MESSAGE_BYTES: Final = 4 * 1024 * 1024
MOST_INTENTS: Final = 500
TOKEN_REMOVED: Final = b"[token]"
_PARTS: Final = 3
SHORTEST_TOKEN: Final = 32
"""Characters. A shorter text is no token, and may be part of any word."""
# Begins at the beginning of a word only: the time is proportional to the length of the message.
_MAY_BE_TOKEN: Final = re.compile(rb"(?<![\w-])(?=[\w-]*eyJ)[\w-]{11,}\.[\w-]{8,}\.[\w-]*")
_TOKEN_BEGINS: Final = b"eyJ"
_SAFE_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_BODY: Final = msgspec.json.Decoder(list[msgspec.Raw])
_NAMED: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class SubmissionRejected(OrchestratorError):  # noqa: N818 - named for the fact
    """A message that is not a list of intents with a token; `problem` names the wrong part."""

    def __init__(self, part: str, reason: str) -> None:
        super().__init__(f"{part}: {reason}")
        self.problem = Problem(part, reason)


@dataclass(frozen=True, slots=True)
class Submission:
    """A list of intents, each the JSON that was sent, and the token of the sender."""

    intents: tuple[bytes, ...] = field(repr=False)
    token: str = field(repr=False)


def read(headers: Mapping[str, Any], content_type: object, body: bytes) -> Submission:
    """Read a message; raise `SubmissionRejected` if it is malformed."""
    if headers.get("compression"):
        raise SubmissionRejected("headers.compression", "must not be set: send the message uncompressed")
    if len(body) > MESSAGE_BYTES:
        reason = f"has more than the {MESSAGE_BYTES} bytes that a message may have: send several"
        raise SubmissionRejected("body", reason)
    if headers.get("task") != TASK:
        raise SubmissionRejected("headers.task", f"must be {TASK} (Celery's message protocol 2)")
    if content_type is not None and content_type != "application/json":
        raise SubmissionRejected("contentType", "must be application/json")
    if headers.get("eta") or headers.get("expires"):
        raise SubmissionRejected("headers.eta", "and expires must not be set: intents are stored at once")
    try:
        arguments, named = _arguments(body)
        return _submission(arguments, named)
    except (ValueError, RecursionError):  # msgspec and Unicode errors are ValueErrors
        reason = "must be the JSON list [[intents, token], {}, {}] (Celery's message protocol 2)"
        raise SubmissionRejected("body", reason) from None


def _arguments(body: bytes) -> tuple[list[msgspec.Raw], dict[str, msgspec.Raw]]:
    parts = _BODY.decode(body)
    if len(parts) != _PARTS:
        raise ValueError
    return _BODY.decode(parts[0]), _NAMED.decode(parts[1])


def _submission(arguments: list[msgspec.Raw], named: dict[str, msgspec.Raw]) -> Submission:
    values = dict(zip(("intents", "token"), arguments, strict=False)) | named
    unknown = values.keys() - {"intents", "token"}
    if len(arguments) > 2 or unknown:  # noqa: PLR2004 - the two of the task
        raise SubmissionRejected("arguments", "must be intents and token, and nothing else")
    if len(values) < len(arguments) + len(named):
        raise SubmissionRejected("arguments", "must name intents and token once each")
    if "token" not in values:
        raise SubmissionRejected("token", "is missing: the second argument is a token of the API")
    token = msgspec.json.decode(values["token"])
    if not isinstance(token, str):
        raise SubmissionRejected("token", f"must be a text, not {kind_of(token)}")
    if "intents" not in values:
        raise SubmissionRejected("intents", "is missing: the first argument is a list of intents")
    if not bytes(values["intents"]).lstrip().startswith(b"["):
        raise SubmissionRejected("intents", "must be a list of intents")
    rows = _BODY.decode(values["intents"])
    if not 1 <= len(rows) <= MOST_INTENTS:
        reason = f"has {len(rows)} intents, and a message takes 1 to {MOST_INTENTS}: send several messages"
        raise SubmissionRejected("intents", reason)
    return Submission(tuple(bytes(row) for row in rows), token)


def intents_in(kept: bytes) -> tuple[bytes, ...]:
    """Return the intents of what is kept of a refused message: an intent, a list of intents, or the whole
    body. Raises `SubmissionRejected` where it cannot be submitted as it is.
    """
    try:
        found = _intents_in(kept)
    except (ValueError, RecursionError):
        raise SubmissionRejected("body", "is not kept whole, or is no JSON: send it again") from None
    if any(TOKEN_REMOVED in raw for raw in found):
        reason = "had a text in it that may be a token, and that was not kept: send it again"
        raise SubmissionRejected("body", reason)
    return found


def _intents_in(kept: bytes) -> tuple[bytes, ...]:
    if not kept.lstrip().startswith(b"["):
        return (kept,)
    parts = _BODY.decode(kept)
    if parts and bytes(parts[0]).lstrip().startswith(b"["):
        return _submission(*_arguments(kept)).intents
    return tuple(bytes(part) for part in parts)


def message_id(headers: Mapping[str, Any], properties: Mapping[str, Any]) -> str | None:
    """Return the id that the sender gave: the task's or an AMQP property; None if none is safe to show."""
    for value in (headers.get("id"), properties.get("message_id"), properties.get("correlation_id")):
        if isinstance(value, str) and _SAFE_ID.fullmatch(value):
            return value
    return None


def order_number(raw: bytes) -> str | None:
    """Return the order number of an intent, also of an invalid one; None if it has no valid number."""
    try:
        number = msgspec.json.decode(raw)["order"]["orderId"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return None
    return number if isinstance(number, str) and ORDER_NUMBER.fullmatch(number) else None


def order_numbers(kept: bytes) -> tuple[str, ...]:
    """Return the order numbers in what is kept of a message, as far as it can be read, each once."""
    try:
        found = _intents_in(kept)
    except (ValueError, RecursionError, SubmissionRejected):
        return ()
    if len(found) > MOST_INTENTS:
        return ()
    return tuple(dict.fromkeys(number for raw in found if (number := order_number(raw)) is not None))


def without_tokens(raw: bytes) -> bytes:
    """Return a message in which `[token]` stands for every text that may be a token: three parts with a dot
    between, the first of which has the beginning of a JSON object in base64url.
    """
    return _MAY_BE_TOKEN.sub(lambda found: found[0][: found[0].index(_TOKEN_BEGINS)] + TOKEN_REMOVED, raw)


def without_token(raw: bytes, token: str) -> bytes:
    """Return intents in which `[token]` stands for the token of their message. Any other text stays: it is
    the shop's own, and the intents may be submitted again.
    """
    return raw.replace(token.encode(), TOKEN_REMOVED) if len(token) >= SHORTEST_TOKEN else raw

"""Messages of the queue `intents`: the task `orchestrator.submit(intents, token)`, as Celery's protocol 2
frames it, and read without trusting anything in it.

Intents stay the JSON that was sent, so that amounts are never read through a float. Whatever is malformed
raises `SubmissionRejected` with what is known: a message changes nothing and stops nothing. A token is never
part of what is kept.
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
_PARTS: Final = 3
# Always matches a run to its end, so that a long one is read once and not once for each `ey` in it.
_MAY_BE_TOKEN: Final = re.compile(rb"ey[A-Za-z0-9_.-]*")
_SAFE_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_BODY: Final = msgspec.json.Decoder(list[msgspec.Raw])
_NAMED: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class SubmissionRejected(OrchestratorError):  # noqa: N818 - named for the fact
    """A message that is no list of intents with a token."""

    def __init__(self, where: str, message: str) -> None:
        super().__init__(f"{where}: {message}")
        self.problem = Problem(where, message)


@dataclass(frozen=True, slots=True)
class Submission:
    """A list of intents, each the JSON that was sent, and the token of whoever sent it."""

    intents: tuple[bytes, ...] = field(repr=False)
    token: str = field(repr=False)


def read(headers: Mapping[str, Any], content_type: object, body: bytes) -> Submission:
    """Read a message; raise `SubmissionRejected` for what is none."""
    if headers.get("compression"):
        raise SubmissionRejected("headers.compression", "must not be set: send the message uncompressed")
    if len(body) > MESSAGE_BYTES:
        said = f"has more than the {MESSAGE_BYTES} bytes that a message may have: send several"
        raise SubmissionRejected("body", said)
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
        said = "must be the JSON list [[intents, token], {}, {}] (Celery's message protocol 2)"
        raise SubmissionRejected("body", said) from None


def _arguments(body: bytes) -> tuple[list[msgspec.Raw], dict[str, msgspec.Raw]]:
    parts = _BODY.decode(body)
    if len(parts) != _PARTS:
        raise ValueError
    return _BODY.decode(parts[0]), _NAMED.decode(parts[1])


def _submission(arguments: list[msgspec.Raw], named: dict[str, msgspec.Raw]) -> Submission:
    given = dict(zip(("intents", "token"), arguments, strict=False)) | named
    unknown = sorted(given.keys() - {"intents", "token"})
    if len(arguments) > 2 or unknown:  # noqa: PLR2004 - the two of the task
        raise SubmissionRejected("arguments", "must be intents and token, and nothing else")
    if len(given) < len(arguments) + len(named):
        raise SubmissionRejected("arguments", "must name intents and token once each")
    if "token" not in given:
        raise SubmissionRejected("token", "is missing: the second argument is a token of the API")
    token = msgspec.json.decode(given["token"])
    if not isinstance(token, str):
        raise SubmissionRejected("token", f"must be a text, not {kind_of(token)}")
    if "intents" not in given:
        raise SubmissionRejected("intents", "is missing: the first argument is a list of intents")
    if not bytes(given["intents"]).lstrip().startswith(b"["):
        raise SubmissionRejected("intents", "must be a list of intents")
    rows = _BODY.decode(given["intents"])
    if not 1 <= len(rows) <= MOST_INTENTS:
        said = f"has {len(rows)} intents, and a message takes 1 to {MOST_INTENTS}: send several messages"
        raise SubmissionRejected("intents", said)
    return Submission(tuple(bytes(row) for row in rows), token)


def message_id(headers: Mapping[str, Any], properties: Mapping[str, Any]) -> str | None:
    """Return the id that its sender gave a message: the task's, or AMQP's own; None without one that is
    safe to show.
    """
    for given in (headers.get("id"), properties.get("message_id"), properties.get("correlation_id")):
        if isinstance(given, str) and _SAFE_ID.fullmatch(given):
            return given
    return None


def order_number(raw: bytes) -> str | None:
    """Return the order number of an intent that may be wrong otherwise; None where it has none."""
    try:
        found = msgspec.json.decode(raw)["order"]["orderId"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return None
    return found if isinstance(found, str) and ORDER_NUMBER.fullmatch(found) else None


def without_tokens(raw: bytes) -> bytes:
    """Return a message with every text that looks like a token left out."""
    return _MAY_BE_TOKEN.sub(lambda found: b"[token]" if b"." in found[0][3:-1] else found[0], raw)

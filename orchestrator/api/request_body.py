"""Request bodies: read while they stream in, never beyond their limit and never for ever; and the fields of
JSON bodies, read one by one, so that every problem is said at once.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from decimal import InvalidOperation
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

import msgspec

from orchestrator.api.problems import Refusal
from orchestrator.errors import OrchestratorError
from orchestrator.intents.fields import Fields, hint, repeated, repeated_name, shown
from orchestrator.text import unmarked

if TYPE_CHECKING:
    from fastapi import Request

TIMEOUT: Final = 20.0
"""Seconds in which a body has to have come in."""
MOST_SKIPPED: Final = 1_048_576
SKIP_TIMEOUT: Final = 2.0
"""Bytes and seconds that a refused body is read for, before the connection is closed."""
_DAY: Final = 86_400
# What is left of a refused body would be read as the next request.
_CLOSE: Final = {"Connection": "close"}


class Disconnected(OrchestratorError):  # noqa: N818 - named for the fact
    """The client disconnected in the middle of the body: no answer can be sent."""


async def read(request: Request, *, limit: int) -> bytes:
    """Return the body; 413 as soon as it is known to be longer than `limit` bytes, 408 if it does
    not come.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise too_large(limit)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(TIMEOUT):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise Disconnected
                chunk: bytes = message.get("body", b"")
                size += len(chunk)
                if size > limit:
                    raise too_large(limit)
                chunks.append(chunk)
                if not message.get("more_body", False):
                    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
    except TimeoutError:
        raise Refusal(408, f"the body did not come within {TIMEOUT:.0f} s", headers=_CLOSE) from None


async def skip(request: Request) -> None:
    """Read the rest of a refused body, within bounds, and drop it.

    A connection that is closed while its client still sends may lose the answer, which redirects the shopper.
    """
    size = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(SKIP_TIMEOUT):
            while size <= MOST_SKIPPED:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise Disconnected
                size += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return


async def read_json(request: Request, *, limit: int, optional: bool = False) -> bytes:
    """Return a JSON body without a byte order mark; 415 for another content type.

    An optional body may be empty, of any type.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
    if not is_json and not optional:
        raise _not_json(kind)
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding not in {"", "identity"}:
        raise Refusal(
            415, "the body must not be compressed: send it as it is", kind="wrong-content", headers=_CLOSE
        )
    raw = await read(request, limit=limit)
    if raw and not is_json:
        raise _not_json(kind)
    return unmarked(raw)


def _not_json(kind: str) -> Refusal:
    said = f"not {kind[:100]}" if kind else "and there is none"
    return Refusal(
        415, f"the Content-Type must be application/json, {said}", kind="wrong-content", headers=_CLOSE
    )


def too_large(limit: int, *, read: bool = False) -> Refusal:
    """Return the refusal of a body of more than `limit` bytes; it ends the connection unless the body was
    `read` to its end.
    """
    return Refusal(
        413,
        f"the body is longer than {limit} bytes, which is the most here",
        kind="too-large",
        headers=None if read else _CLOSE,
    )


class BodyFields(Fields):
    """The body of a request; a subclass names its longest size in bytes and the kind of its problems.

    Without a `shape` the names of its fields are judged elsewhere.
    """

    __slots__ = ("given",)
    limit: ClassVar[int]
    kind: ClassVar[str]
    must_be: ClassVar[str] = "a JSON object"
    decoder: ClassVar[msgspec.json.Decoder[Any]] = msgspec.json.Decoder()

    def __init__(self, raw: bytes, shape: type[msgspec.Struct] | None) -> None:
        super().__init__()
        self.given = self._object(raw)
        known = frozenset(self.given if shape is None else shape.__struct_encode_fields__)
        for name in sorted(self.given.keys() - known):
            self.wrong(shown(name), f"is not a known field: {hint(name, known)}")

    @classmethod
    async def of(cls, request: Request, shape: type[msgspec.Struct], *, optional: bool = False) -> Self:
        """Read the body of a request; one that is `optional` may be empty."""
        return cls(await read_json(request, limit=cls.limit, optional=optional), shape)

    def judge(self) -> None:
        """Refuse the request if anything is wrong with it."""
        if self.problems:
            first = self.problems[0]
            raise Refusal(422, f"{first.field}: {first.message}", kind=self.kind, errors=self.problems)

    def overlap(self, usual: int, *, most: int) -> int:
        """Read for how many seconds a secret that is replaced is still used."""
        given = self.given.get("overlap", usual)
        if isinstance(given, int) and not isinstance(given, bool) and 0 <= given <= most:
            return given
        self.wrong("overlap", f"must be a whole number of seconds from 0 to {most} ({most // _DAY} days)")
        return 0

    def _object(self, raw: bytes) -> dict[str, Any]:
        if not raw:
            return {}
        try:
            body = self.decoder.decode(raw)
        except (ValueError, RecursionError, InvalidOperation):
            raise Refusal(422, "the body is not JSON", kind=self.kind) from None
        if (name := repeated_name(raw)) is not None:
            self.problems.append(repeated(name))
        if isinstance(body, dict):
            return body
        self.wrong("body", f"must be {self.must_be}")
        self.judge()
        return {}

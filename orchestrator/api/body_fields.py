"""The fields of a JSON body that an endpoint reads one by one, so that every problem is said at once."""

from __future__ import annotations

from decimal import InvalidOperation
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

import msgspec

from orchestrator.api import request_body
from orchestrator.api.problems import Refusal
from orchestrator.intents.fields import Fields, hint, repeated, repeated_name, shown

if TYPE_CHECKING:
    from fastapi import Request

_DAY: Final = 86_400


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
        return cls(await request_body.read_json(request, limit=cls.limit, optional=optional), shape)

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

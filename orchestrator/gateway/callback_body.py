"""The body of a callback as bytes: compressed or not, with a byte order mark or not, as a form of either
kind.

Pure functions with bounds: neither a small body that inflates to a large one nor a form of endless fields
costs more than a body of the largest accepted size. An unreadable body is a `BodyError` with the flag for the
facts.
"""

from __future__ import annotations

import re
import zlib
from typing import Final
from urllib.parse import parse_qsl

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from orchestrator.errors import OrchestratorError
from orchestrator.text import unmarked

LARGEST: Final = 262_144
"""Bytes of a body, as it came and inflated."""
MOST_FIELDS: Final = 500
"""Form fields. About forty are documented, and `transactionInfo` may add fifty (D8)."""

_GZIP: Final = b"\x1f\x8b"
_GZIP_FORMAT: Final = 16 + zlib.MAX_WBITS
_DOCUMENT: Final = re.compile(r"(^|&)xml=[^&]+")
_MARK_IN_FORM: Final = "%EF%BB%BF"
_DISPOSITION: Final = b"content-disposition"


class BodyError(OrchestratorError):
    """A body that cannot be read; `flag` is the word for it in `CallbackFacts.flags`."""

    def __init__(self, flag: str) -> None:
        super().__init__(f"the body of the callback cannot be read: {flag}")
        self.flag = flag


def plain(raw: bytes) -> bytes:
    """Return a body inflated (gzip, detected by its first bytes) and without a byte order mark.

    Raises `BodyError` with `too_large` for more than `LARGEST` bytes, `not_gzip` for what is broken. The
    signature covers `raw`.
    """
    return unmarked(_inflated(raw) if raw.startswith(_GZIP) else raw)


def inflates_beyond(raw: bytes) -> bool:
    """Say whether a body, inflated, is larger than `LARGEST`; at most so much of it is inflated."""
    if not raw.startswith(_GZIP):
        return False
    try:
        _inflated(raw)
    except BodyError as error:
        return error.flag == "too_large"
    return False


def _inflated(raw: bytes) -> bytes:
    inflater = zlib.decompressobj(_GZIP_FORMAT)
    try:
        body = inflater.decompress(raw, LARGEST + 1)
    except zlib.error:
        raise BodyError("not_gzip") from None
    if len(body) > LARGEST:
        raise BodyError("too_large")
    if not inflater.eof:
        raise BodyError("not_gzip")
    return body


def boundary_of(content_type: str, body: bytes) -> bytes | None:
    """Return the boundary of a multipart form; None if the type names none or the body begins otherwise."""
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    return boundary if boundary and body.lstrip().startswith(b"--" + boundary) else None


def form_pairs(body: bytes) -> list[tuple[str, str]]:
    """Read a form body as (name, value) in order; `BodyError` with `too_many_fields`.

    The value of `xml` is left out: decoding it would be most of the work, and a lookup gives all of its
    facts.
    """
    text = _DOCUMENT.sub(r"\1xml=", body.decode("utf-8", "replace"))
    if text[: len(_MARK_IN_FORM)].upper() == _MARK_IN_FORM:
        text = text[len(_MARK_IN_FORM) :]
    try:
        return parse_qsl(text, keep_blank_values=True, max_num_fields=MOST_FIELDS)
    except ValueError:
        raise BodyError("too_many_fields") from None


def multipart_pairs(boundary: bytes, body: bytes) -> list[tuple[str, str]]:
    """Read a multipart form as (name, value) in order; `BodyError` with `too_many_fields` or `not_form`.

    Parts without a name are left out, and so is the content of files.
    """
    parts = _Parts()
    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": parts.begin,
            "on_header_field": parts.header_name,
            "on_header_value": parts.header_value,
            "on_header_end": parts.header_end,
            "on_part_data": parts.data,
            "on_part_end": parts.end,
            "on_end": parts.finish,
        },
        max_size=LARGEST,
    )
    try:
        parser.write(body.lstrip())
    except FormParserError:
        raise BodyError("not_form") from None
    if not parts.finished:
        raise BodyError("not_form")
    return parts.pairs


class _Parts:
    """Gathers the parts of one multipart form, as its parser requests them."""

    __slots__ = ("_data", "_disposition", "_name", "_value", "count", "finished", "pairs")

    def __init__(self) -> None:
        self.pairs: list[tuple[str, str]] = []
        self.count = 0
        self.finished = False
        self._data = bytearray()
        self._disposition = b""
        self._name = self._value = b""

    def begin(self) -> None:
        self.count += 1
        if self.count > MOST_FIELDS:
            raise BodyError("too_many_fields")
        self._data = bytearray()
        self._disposition = b""

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        if self._name.strip().lower() == _DISPOSITION:
            self._disposition = self._value
        self._name = self._value = b""

    def data(self, data: bytes, start: int, end: int) -> None:
        self._data += data[start:end]

    def end(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if not name or b"filename" in options:
            return
        self.pairs.append((name, "" if name == "xml" else self._data.decode("utf-8", "replace")))

    def finish(self) -> None:
        self.finished = True

"""The gateway's XML as a tree: bounded before it is parsed, without document types, and repaired only where
the strict parse failed.

Guarantees: `tree` raises `Malformed` alone, and its cost is bounded by the size limits below, whatever the
document holds. A document that is not well formed is repaired once: text before its declaration, its
encoding, control characters, and unknown references. A repair changes no tag and adds none; an undecodable
character becomes U+FFFD, so that a damaged identifier never equals an intact one.
"""

from __future__ import annotations

import codecs
import re
from contextlib import suppress
from html.entities import html5
from typing import TYPE_CHECKING, Final, NamedTuple
from xml.etree.ElementTree import TreeBuilder
from xml.parsers import expat
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

LARGEST: Final = 2_000_000
"""Bytes. A hundred transactions take about 400,000."""
SMALL: Final = 65_536
"""Bytes up to which the size alone bounds the cost; a few transactions take a tenth of it."""
MOST_MARKS: Final = 60_000
"""Opening angle brackets, and equals signs, of a document at most. A hundred transactions have about 16,000
of the first."""
LARGEST_REPAIRED: Final = 500_000
"""Bytes of a document that is repaired, at most."""
MOST_REPAIRS: Final = 20_000
"""Bytes outside ASCII, and ampersands, of a repaired document at most: each may be handled alone."""
LONGEST_TEXT: Final = 255
"""Characters of a text that is read from a document; what is longer is cut."""
DAMAGED: Final = "\N{REPLACEMENT CHARACTER}"
"""Replaces an undecodable character."""

_DECLARATION = re.compile(r"<\?xml\s[^>]{0,200}\?>")
_SINGLE_BYTE = re.compile(
    rb"""encoding=["'](iso[-_]?8859-?\d{1,2}|windows-125\d|cp125\d)["']""", re.IGNORECASE
)
_AROUND = "\ufeff \t\r\n" + DAMAGED
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_REFERENCE = re.compile(r"&(?:#([0-9]{1,7})|#[xX]([0-9A-Fa-f]{1,6})|([A-Za-z][A-Za-z0-9]{0,31}));|&")
_OWN_NAMES: Final = frozenset({"amp", "lt", "gt", "quot", "apos"})
_CDATA, _CDATA_END = "<![CDATA[", "]]>"


class Malformed(Exception):  # noqa: N818 - an outcome of reading
    """An answer that cannot be read; the text says why, without quoting it."""


class Tree(NamedTuple):
    """The root of a document; `repaired` says that the gateway sent it not well formed, and that it was read
    all the same.
    """

    root: Element
    repaired: bool = False


def tree(document: bytes) -> Tree:
    """Parse a document without a document type, the only place where entities could be declared."""
    size = len(document)
    if size > LARGEST:
        raise Malformed("The gateway's XML goes beyond the size limit.")
    if size > SMALL and max(document.count(b"<"), document.count(b"=")) > MOST_MARKS:
        raise Malformed("The gateway's XML holds more elements or attributes than an answer has.")
    try:
        return Tree(_parsed(document))
    except (
        expat.ExpatError,
        ValueError,
        LookupError,
    ) as error:  # LookupError: an encoding that does not exist
        return _second_try(document, error)


def text_of(element: Element, name: str) -> str:
    """Return the text of the first child of this name, "" where there is none."""
    return (element.findtext(name) or "").strip()[:LONGEST_TEXT]


def _second_try(document: bytes, error: Exception) -> Tree:
    """Parse a document that is not well formed once more, repaired."""
    repaired = _repaired(document)
    if repaired is not None and repaired != document:
        with suppress(expat.ExpatError, ValueError):  # the first error says more about what the gateway sent
            return Tree(_parsed(repaired), repaired=True)
    why = "its encoding is unknown"
    if isinstance(error, expat.ExpatError):
        # Expat's own words: a closed set that quotes nothing.
        why = f"{expat.ErrorString(error.code)} in line {error.lineno}"
    raise Malformed(f"The gateway's answer is not XML: {why}.")


def _refuse(*_: object) -> None:
    raise Malformed("The gateway's XML declares a DTD or an entity.")


def _parsed(document: bytes) -> Element:
    """Return the root. The parser calls the tree's builder without a line of Python between them.

    A large document goes in pieces: between two of them the interpreter may serve another thread.
    """
    parser, builder = expat.ParserCreate(namespace_separator="}"), TreeBuilder()
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = _refuse
    parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
    parser.CharacterDataHandler = builder.data
    for start in range(0, len(document) - SMALL, SMALL):
        parser.Parse(document[start : start + SMALL], False)  # noqa: FBT003 - that more follows
    parser.Parse(document[max(len(document) - 1, 0) // SMALL * SMALL :], True)  # noqa: FBT003 - that this is all of it
    return builder.close()


# ── Repair ────────────────────────────────────────────────────────────────────────────────────────────────


def _repaired(document: bytes) -> bytes | None:
    """Return a document as UTF-8 without a declaration, its characters and references made ones that XML has;
    None: beyond repair.
    """
    if len(document) > LARGEST_REPAIRED:
        return None
    outside_ascii = len(document) - len(document.decode("ascii", errors="ignore"))
    if max(outside_ascii, document.count(b"&")) > MOST_REPAIRS:
        return None
    text = decoded(document)
    text = _FORBIDDEN.sub(DAMAGED, text).strip(_AROUND)
    declaration = _DECLARATION.match(text)
    if declaration is not None:
        text = text[declaration.end() :]
    outside, *sections = text.split(_CDATA)
    parts = [_REFERENCE.sub(_reference, outside)]
    for section in sections:
        inside, end, outside = section.partition(_CDATA_END)
        parts += (_CDATA, inside, end, _REFERENCE.sub(_reference, outside))
    return "".join(parts).encode()


def decoded(document: bytes) -> str:
    """Decode by byte order mark, by a declared encoding of single bytes, or as UTF-8 with Windows-1252."""
    if document.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return document.decode("utf-16", errors="replace")
    declared = _SINGLE_BYTE.search(document, 0, 200)
    if declared is not None:
        try:
            return document.decode(declared[1].decode(), errors="replace")
        except LookupError:
            pass
    return document.decode(errors=_SINGLE_BYTES)


_SINGLE_BYTES: Final = "orchestrator.windows-1252"


def _as_windows_1252(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return error.object[error.start : error.end].decode("cp1252", errors="replace"), error.end


codecs.register_error(_SINGLE_BYTES, _as_windows_1252)


def _reference(match: re.Match[str]) -> str:
    """Return a reference that XML has in place of one that it may not have."""
    whole, (decimal, hexadecimal, name) = match[0], match.groups()
    if name is not None:
        if name in _OWN_NAMES:
            return whole
        known = html5.get(name + ";")
        return escape(known) if known is not None else "&amp;" + whole[1:]
    if decimal is None and hexadecimal is None:
        return "&amp;"
    point = int(decimal) if decimal is not None else int(hexadecimal, 16)
    if point > 0x10FFFF or _FORBIDDEN.match(chr(point)):  # noqa: PLR2004 - the last code point
        return DAMAGED
    return whole

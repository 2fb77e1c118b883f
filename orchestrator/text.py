"""Text from outside, made safe to show: no control character, no escape sequence and no change of the writing
direction in it.

An order number, a status of the gateway or a line of a callback may hold anything. On a terminal a control
character can clear the screen or write over it, and a bidirectional control shows a text in another order
than it has. `neutralised` is for one value in one line, so that line breaks and tabs count too;
`neutralised_lines` keeps line breaks and tabs; `escaped_json` is for a document of JSON that is printed.
`unmarked` takes the byte order mark off a body, `sentence` makes a sentence of words, and `duration`
writes seconds for people.
"""

from __future__ import annotations

import codecs
import re
from typing import Final

REPLACEMENT: Final = "\ufffd"

# Unicode's Bidi_Control, and the two separators that end a line.
_BIDI: Final = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_LINES: Final = "\u2028\u2029"
# Half of a pair, which no output can be encoded with.
_HALVES: Final = "\ud800-\udfff"
# UTF-32 comes first: its little-endian mark begins with that of UTF-16.
_MARKS: Final = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_UNSAFE: Final = re.compile(rf"[\x00-\x1f\x7f-\x9f{_BIDI}{_LINES}{_HALVES}]")
_UNSAFE_BUT_LINES: Final = re.compile(rf"[\x00-\x08\x0b-\x1f\x7f-\x9f{_BIDI}{_LINES}{_HALVES}]")
_UNESCAPED: Final = re.compile(rf"[\x7f-\x9f{_BIDI}{_LINES}{_HALVES}]")


def neutralised(text: str) -> str:
    """Return a text in one line, each control character and bidirectional control replaced by U+FFFD."""
    return text if text.isascii() and text.isprintable() else _UNSAFE.sub(REPLACEMENT, text)


def neutralised_lines(text: str) -> str:
    """Return `text` as `neutralised` does, with its line breaks and tabs kept."""
    return text if text.isascii() and text.isprintable() else _UNSAFE_BUT_LINES.sub(REPLACEMENT, text)


def escaped_json(document: str) -> str:
    r"""Return a JSON document with the same content in which those characters are escapes (``\u001b``).

    JSON escapes C0 characters by itself. All others of the set can only stand inside a string.
    """
    return document if document.isascii() and document.isprintable() else _UNESCAPED.sub(_escape, document)


def _escape(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def unmarked(raw: bytes) -> bytes:
    """Return UTF-8 without its byte order mark; other bytes, and what a mark says wrongly, stay."""
    if raw.startswith(codecs.BOM_UTF8):
        return raw[len(codecs.BOM_UTF8) :]
    for mark, encoding in _MARKS:
        if raw.startswith(mark):
            try:
                return raw.decode(encoding).encode()
            except UnicodeError:
                return raw
    return raw


def sentence(said: str) -> str:
    """Return words as a sentence: with a capital at the beginning and a full stop at the end."""
    return f"{said[:1].upper()}{said[1:]}."


def duration(seconds: float) -> str:
    """Write a duration for people, rounded down, in one or two units: 90 s, 3 min, 2 h 10 min, 4 d 3 h."""
    whole = max(int(seconds), 0)
    if whole < 2 * _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min"
    large, small, names = (_HOUR, _MINUTE, ("h", "min")) if whole < _DAY else (_DAY, _HOUR, ("d", "h"))
    rest = whole % large // small
    return f"{whole // large} {names[0]}" + (f" {rest} {names[1]}" if rest else "")

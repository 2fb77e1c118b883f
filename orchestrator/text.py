"""Text from outside: what it may hold before it is kept or printed."""

from __future__ import annotations

import codecs
import re
from typing import Final

# Control characters (C0, DEL, C1), and the characters that change the direction of what follows them.
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
# UTF-32 comes first: its little-endian mark begins with that of UTF-16.
_MARKS: Final = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def neutralised(text: str) -> str:
    """Return a text in which each control character and each direction mark is U+FFFD.

    The result moves no cursor, ends no line and shows its characters in the order in which they stand.
    """
    return text if text.isascii() and text.isprintable() else _CONTROLS.sub("\ufffd", text)


def unmarked(raw: bytes) -> bytes:
    """Return the bytes of a text in UTF-8 without a byte order mark.

    Bytes without a mark, and bytes that are not what their mark says, are returned as they are.
    """
    if raw.startswith(codecs.BOM_UTF8):
        return raw[len(codecs.BOM_UTF8) :]
    for mark, encoding in _MARKS:
        if raw.startswith(mark):
            try:
                return raw.decode(encoding).encode()
            except UnicodeError:
                return raw
    return raw

"""Text from outside: neither its control characters nor its byte order mark reach what is kept."""

from __future__ import annotations

import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.text import neutralised, unmarked

DIRECTIONS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


@pytest.mark.parametrize(
    "character", ["\0", "\t", "\n", "\r", "\x1b", "\x7f", "\x80", "\x9b", "\x9f", *DIRECTIONS]
)
def test_a_control_character_or_a_direction_mark_is_replaced(character):
    assert neutralised(f"a{character}b") == "a\ufffdb"


@pytest.mark.parametrize(
    "text", ["", "A-1001", "4711 special invoice", "Sø#_::[/b]", "\u05d0\u05d1", "\U0001f600"]
)
def test_what_is_readable_stays_as_it_is(text):
    assert neutralised(text) == text


@given(st.text())
def test_no_text_keeps_a_control_character(text):
    read = neutralised(text)
    assert len(read) == len(text)
    assert not any(ord(one) < 32 or 0x7F <= ord(one) <= 0x9F or one in DIRECTIONS for one in read)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_is_read_and_dropped(encoding):
    assert unmarked("Sø".encode(encoding)) == "Sø".encode()


@pytest.mark.parametrize("mark", [codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE])
def test_the_other_byte_order_is_read_too(mark):
    encoding = "utf-16-be" if mark == codecs.BOM_UTF16_BE else "utf-32-be"
    assert unmarked(mark + "Sø".encode(encoding)) == "Sø".encode()


@given(st.binary())
def test_no_bytes_make_it_raise(raw):
    assert isinstance(unmarked(raw), bytes)
    assert unmarked(codecs.BOM_UTF16_LE + raw) is not None
    if not raw.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")):
        assert unmarked(raw) == raw

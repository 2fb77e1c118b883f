"""Nothing that comes from outside can steer a terminal, whichever character it tries."""

from __future__ import annotations

import codecs
import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.text import escaped_json, neutralised, neutralised_lines, unmarked

HOSTILE = {
    "\x1b[2JPaid: yes": "\ufffd[2JPaid: yes",
    "\x1b]8;;https://evil.example\x1b\\click\x1b]8;;\x1b\\": "\ufffd]8;;https://evil.example\ufffd\\click\ufffd]8;;\ufffd\\",
    "\x9b2J": "\ufffd2J",
    "A-1\nPaid: yes": "A-1\ufffdPaid: yes",
    "A-1\r\nX": "A-1\ufffd\ufffdX",
    "A\tB": "A\ufffdB",
    "\x7f\x00\x08": "\ufffd\ufffd\ufffd",
    "A-\u202e1002\u202c": "A-\ufffd1002\ufffd",
    "\u2066x\u2069\u200e\u200f\u061c": "\ufffdx\ufffd\ufffd\ufffd\ufffd",
    "a\u2028b\u2029c": "a\ufffdb\ufffdc",
}


@pytest.mark.parametrize(("given_text", "shown"), tuple(HOSTILE.items()), ids=ascii)
def test_what_steers_a_terminal_becomes_a_replacement_character(given_text, shown):
    assert neutralised(given_text) == shown


@given(st.text())
def test_no_control_and_no_direction_is_left_and_all_else_stays(text):
    said = neutralised(text)
    assert len(said) == len(text)
    for before, after in zip(text, said, strict=True):
        steers = unicodedata.category(before) == "Cc" or unicodedata.bidirectional(before) in {
            "LRE",
            "RLE",
            "LRO",
            "RLO",
            "PDF",
            "LRI",
            "RLI",
            "FSI",
            "PDI",
        }
        steers = steers or before in "\u200e\u200f\u061c\u2028\u2029"
        assert after == ("\ufffd" if steers else before)
    assert neutralised(said) == said


@pytest.mark.parametrize(
    "text", ["Ordre 42 — Ærø", "注文", "عربي", "👩‍👩‍👧", "[/b]held", "a\u00a0b", "\ufeffx"]
)
def test_texts_of_any_language_stay_as_they_are(text):
    assert neutralised(text) == neutralised_lines(text) == text


def test_several_lines_keep_their_breaks_and_nothing_else():
    assert neutralised_lines("a\n\tb\r\n\x1b[2Jc\u202e") == "a\n\tb\ufffd\n\ufffd[2Jc\ufffd"


@given(
    st.recursive(st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
)
def test_a_document_of_json_keeps_its_content_and_holds_no_raw_control(value):
    document = json.dumps(value, ensure_ascii=False)
    printed = escaped_json(document)
    assert json.loads(printed) == value
    assert neutralised(printed) == printed


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

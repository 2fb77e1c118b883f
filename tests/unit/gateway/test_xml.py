"""Documents that are not well formed are read where nothing has to be guessed; and what a document costs is
bounded.
"""

from __future__ import annotations

import tracemalloc
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.payment_meaning import PaymentMeaning, read
from orchestrator.domain.transaction import Found
from orchestrator.gateway import xml as xml_of_gateway
from orchestrator.gateway.xml import DAMAGED, LARGEST, MOST_MARKS, SMALL, Malformed, Tree
from tests.unit.gateway.test_payments import parse, parse_movement, row, tried, xml

tree = partial(tried, xml_of_gateway.tree)
PLAIN = xml(row("<CustomerInfo><Firstname>NAME</Firstname></CustomerInfo>"))


def named(name: bytes, document: bytes = PLAIN) -> bytes:
    return document.replace(b"NAME", name)


def undeclared(document: bytes) -> bytes:
    return document.partition(b"?>")[2]


def declared(encoding: str, text: str) -> bytes:
    return (
        PLAIN.decode()
        .replace("NAME", text)
        .replace('"1.0"?', f'"1.0" encoding="{encoding}"?')
        .encode(encoding)
    )


DAMAGES = {
    "control byte": (named(b"Ada\x1c"), "Ada" + DAMAGED),
    "NUL": (named(b"Ada\x00"), "Ada" + DAMAGED),
    "reference to a control": (named(b"Ada&#28;&#x1F;"), "Ada" + DAMAGED * 2),
    "reference beyond all": (named(b"Ada&#x110000;"), "Ada" + DAMAGED),
    "HTML entity": (named(b"S&oslash;s"), "Søs"),
    "HTML entity of markup": (named(b"a &LT; b &nbsp;&AMP;"), "a < b \xa0&"),
    "unknown entity": (named(b"S&frobnicate;s"), "S&frobnicate;s"),
    "bare ampersand": (named(b"Smith & Sons&co"), "Smith & Sons&co"),
    "own entities stay": (named(b"A &amp; B & C &#229; &lt;"), "A & B & C å <"),
    "Latin-1": (named("Søs".encode("latin-1")), "Søs"),
    "Latin-1 undeclared": (undeclared(named("Søs".encode("latin-1"))), "Søs"),
    "Windows-1252": (named("Søs € “x”".encode("cp1252")), "Søs € “x”"),
    "Windows-1252 beside UTF-8": (named("Ærø ".encode() + b"S\xf8s"), "Ærø Søs"),
    "a byte of no character": (named(b"Ada\x81"), "Ada" + DAMAGED),
    "Latin-1 declared, and a control byte": (declared("iso-8859-1", "Søs\x1c"), "Søs" + DAMAGED),
    "Latin-2 declared, and a control byte": (declared("iso-8859-2", "Łódź\x1c"), "Łódź" + DAMAGED),
    "unknown encoding": (declared("latin-1", "Søs").replace(b"latin-1", b"klingon"), "Søs"),
    "an encoding of several bytes": (named(b"Ada").replace(b'"1.0"?', b'"1.0" encoding="shift_jis"?'), "Ada"),
    "white space first": (b"\r\n \t" + named(b"Ada"), "Ada"),
    "two marks": (b"\xef\xbb\xbf\xef\xbb\xbf" + named(b"Ada"), "Ada"),
    "white space and a mark": (b" \xef\xbb\xbf\n" + named(b"Ada"), "Ada"),
    "NULs behind": (named(b"Ada") + b"\x00\x00", "Ada"),
    "CDATA stays as it is": (named(b"<![CDATA[a & b &amp; c]]> & d"), "a & b &amp; c & d"),
}


@pytest.mark.parametrize(("document", "name"), DAMAGES.values(), ids=DAMAGES)
def test_an_answer_that_is_damaged_is_read_and_says_so(document, name):
    parsed = tree(document)
    assert isinstance(parsed, Tree)
    assert parsed.repaired
    assert parsed.root.findtext(".//Firstname") == name
    found = parse(document)
    assert isinstance(found, Found)
    (payment,) = found.transactions
    assert (payment.raw_flags, payment.reserved, read(payment)) == (
        ("answer_repaired",),
        13900,
        PaymentMeaning.RESERVED,
    )
    movement = parse_movement(document, transaction_id="539101")
    assert getattr(movement, "transaction", None) == payment


@pytest.mark.parametrize(
    "document",
    [
        named(b"Ada"),
        named("Søs".encode()),
        declared("iso-8859-1", "Søs"),
        b"\xef\xbb\xbf" + named(b"Ada"),
        "\ufeff".encode("utf-16-le") + undeclared(named(b"Ada")).decode().encode("utf-16-le"),
    ],
)
def test_what_is_well_formed_is_not_called_repaired(document):
    found = parse(document)
    assert isinstance(found, Found)
    assert found.transactions[0].raw_flags == ()


@pytest.mark.parametrize(
    "document",
    [
        b"\x1c" + b'<!DOCTYPE a [<!ENTITY b "c">]>' + undeclared(PLAIN),
        b" " + PLAIN.replace(b"?>", b'?><!DOCTYPE a SYSTEM "http://example.com/a.dtd">', 1),
        named(b"&b;").replace(b"?>", b'?><!DOCTYPE a [<!ENTITY b "c">]>', 1),
        named(b"S\xf8s").replace(b"?>", b"?><!DOCTYPE APIResponse>", 1),
    ],
)
def test_no_repair_lets_a_document_type_in(document):
    assert str(tree(document)) == "The gateway's XML declares a DTD or an entity."


@pytest.mark.parametrize(
    "document",
    [
        PLAIN[:-30] + b"&",
        b" " + PLAIN + b"<more/>",
        PLAIN.replace(b"</Body>", b"\x1c</Bodi>"),
        named(b"a < b & c"),
        named(b"<![CDATA[\x1c"),
        b"Temporarily unavailable & sorry",
        b"\x00\x00",
    ],
)
def test_what_no_repair_makes_whole_says_how_it_is_broken(document):
    answer = parse(document)
    assert isinstance(answer, Malformed)
    assert str(answer).startswith("The gateway's answer is not XML: ")
    assert " in line " in str(answer)


@pytest.mark.parametrize("field", ["TransactionId", "ShopOrderId"])
def test_a_damaged_identifier_is_no_identifier(field):
    """It would stand for another transaction or another order, and hide the money of this order."""
    assert isinstance(parse(xml(row(**{field: "539\x1c101"}))), Malformed)


def test_damaged_values_prove_nothing():
    damaged = parse(xml(row(ReservedAmount="1\x1c39.00")))
    assert isinstance(damaged, Found)
    assert damaged.transactions[0].raw_amounts == {"reserved": f"1{DAMAGED}39.00"}
    assert read(damaged.transactions[0]) is PaymentMeaning.UNKNOWN
    bound = parse(xml(row('<PaymentInfos><PaymentInfo name="checkout">0\x1c1</PaymentInfo></PaymentInfos>')))
    assert isinstance(bound, Found)
    assert (bound.transactions[0].payment_infos, "info_repeated" in bound.transactions[0].raw_flags) == (
        {},
        True,
    )


def test_a_repaired_answer_without_rows_is_absence_only_in_the_documented_shape():
    assert parse(b" " + xml(result="")) == Found(())
    assert isinstance(parse(xml(result="").replace(b"</Body>", b"&oslash;</Body>")), Malformed)


@given(st.binary(max_size=60), st.integers(0, len(PLAIN)))
def test_no_damage_is_read_as_absence(damage, at):
    answer = parse(PLAIN[:at] + damage + PLAIN[at:])
    assert not (isinstance(answer, Found) and not answer.transactions)


@given(st.binary(max_size=300))
def test_no_bytes_raise(document):
    assert isinstance(tree(document), Tree | Malformed)


# ── Bounds ────────────────────────────────────────────────────────────────────────────────────────────────

SHORT = "<Transaction><TransactionId>1</TransactionId></Transaction>"
HOSTILE = {
    "rows": xml(SHORT * 28_000),
    "rows in a small document": xml(SHORT * 1_000),
    "elements": xml("<a/>" * 400_000),
    "depth": xml("<a>" * 240_000 + "</a>" * 240_000),
    "depth in a small document": xml("<a>" * 9_000 + "</a>" * 9_000),
    "attributes": xml("<a " + " ".join(f'a{n}=""' for n in range(150_000)) + "/>"),
    "attributes of many": xml('<a b="" c="" d="" e=""/>' * 80_000),
    "references": xml("&" * 390_000),
    "sections": xml("<![CDATA[" * 200_000),
    "bytes of no character": named(b"\x81" * 1_900_000),
    "open brackets": b"<" * LARGEST,
}


@pytest.mark.parametrize("document", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_document_is_refused_before_it_costs(document):
    assert len(document) <= LARGEST
    tracemalloc.start()
    try:
        assert isinstance(parse(document), Malformed)
        assert tracemalloc.get_traced_memory()[1] < 12 * LARGEST
    finally:
        tracemalloc.stop()


def test_a_document_of_many_pieces_is_read_like_a_single_piece():
    rows = "".join(row(TransactionId=str(number)) for number in range(100))
    document = xml(rows)
    assert len(document) > SMALL
    assert document.count(b"<") < MOST_MARKS
    found = parse(document)
    assert isinstance(found, Found)
    assert [transaction.transaction_id for transaction in found.transactions] == [
        str(number) for number in range(100)
    ]
    for padding in range(SMALL - 3, SMALL + 4):
        sized = xml(row()).replace(b"</Shop>", b"x" * padding + b"</Shop>")
        assert isinstance(parse(sized), Found)

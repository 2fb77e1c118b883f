"""Rows of files of orders: each becomes an intent, or has problems with its line number."""

from __future__ import annotations

import codecs
import io
import json
import tracemalloc
from typing import Any

import pytest

from orchestrator import intents
from orchestrator.intents import rows
from orchestrator.intents.reading import BODY_LIMIT
from tests.support.scene import intent

HEAD = "orderId,amount,currency,email,success,failure,redirect"
PAGES = "https://shop.example/ok,https://shop.example/no,https://shop.example/wait"


def csv(*lines: str, head: str = HEAD, encoding: str = "utf-8") -> list[rows.Row]:
    return list(rows.delimited(io.BytesIO("\n".join((head, *lines)).encode(encoding))))


def test_a_row_of_csv_is_an_intent_with_one_line():
    (row,) = csv(f"A-1,139.00,DKK,a@b.example,{PAGES}")
    read = intents.parse(row.raw)
    assert (row.line, read.order_ref, read.amount, read.currency) == (2, "A-1", 13900, "DKK")
    document = json.loads(read.document)
    assert document["order"]["orderLines"][0]["unitPrice"] == 139
    assert document["callbacks"]["success"] == {"type": "URL", "value": "https://shop.example/ok"}


def test_every_column_is_a_field_of_an_intent():
    values = {
        "orderId": "A-1", "amount": "250.50", "currency": "DKK", "itemId": "i", "description": "A, lamp", "quantity": "2",
        "unitPrice": "100.20", "taxAmount": "50.10", "goodsType": "item", "firstName": "Åse", "lastName": "B", "email": "a@b.example",
        "success": "https://shop.example/ok", "failure": "https://shop.example/no", "redirect": "https://shop.example/w",
        "notification": "https://shop.example/n", "autoCapture": "true", "paymentDisplayType": "REDIRECT", "country": "DK", "language": "da",
        "expiresIn": "600", "transactionInfo.shop": "7",
        **{f"{kind}{name}": value for kind in ("billing", "shipping")
           for name, value in (("Street", "Road 1"), ("City", "Town"), ("ZipCode", "1000"), ("Country", "DK"))},
    }  # fmt: skip
    assert {name for name in values if not name.startswith(rows.INFO)} == set(rows.COLUMNS)
    (row,) = csv(",".join(f'"{value}"' for value in values.values()), head=",".join(values))
    read = intents.parse(row.raw)
    assert (read.amount, read.auto_capture, read.expires_in) == (25050, True, 600)
    document = json.loads(read.document)
    assert document["order"]["customer"]["shippingAddress"]["zipCode"] == "1000"
    assert document["order"]["transactionInfo"] == {"shop": "7"}
    assert document["order"]["orderLines"][0]["description"] == "A, lamp"


def test_a_byte_order_mark_empty_lines_and_empty_cells_are_ignored():
    found = csv("", f"A-1,139.00,DKK,a@b.example,{PAGES}", "", encoding="utf-8-sig")
    assert [row.line for row in found] == [3]
    assert intents.parse(found[0].raw).order_ref == "A-1"


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (f'A-1,"139,00",DKK,a@b.example,{PAGES}', "amount"),
        (f"A-1,1.139.00,DKK,a@b.example,{PAGES}", "amount"),
        (f"A-1,139.00,DKK,a@b.example,{PAGES},more", "body"),
        (f'A-1,139.00,DKK,"a"b,{PAGES}', "body"),
    ],
)
def test_a_wrong_row_is_named_and_the_next_is_read(line: str, field: str):
    good = f"A-2,1.00,DKK,a@b.example,{PAGES}"
    first, second = csv(line, good)
    assert (first.line, first.problems[0].field, first.raw) == (2, field, b"")
    assert intents.parse(second.raw).order_ref == "A-2"


def test_a_row_that_is_not_utf_8_is_named():
    first, second = csv(
        f"A-1,1.00,DKK,a@b.example,{PAGES}", f"A-2,1.00,DKK,å@b.example,{PAGES}", encoding="latin-1"
    )
    assert first.problems == ()
    assert "UTF-8" in second.problems[0].message


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        ("", "empty"),
        ("orderID,amount", "did you mean orderId"),
        ("orderId,orderId", "twice"),
        ("\x1b[31m", "one of them"),
    ],
)
def test_a_wrong_header_ends_the_file_with_a_sentence(head: str, reason: str):
    with pytest.raises(rows.HeaderRejected, match=reason):
        csv("A-1", head=head)


def test_a_field_of_an_intent_is_named_by_its_column():
    (row,) = csv(f"A-1,-5.00,DKK,shopper,{PAGES}")
    with pytest.raises(intents.IntentRejected) as error:
        intents.parse(row.raw)
    assert {rows.column_of(problem.field) for problem in error.value.problems} >= {"amount", "email"}
    assert rows.column_of("order.orderLines") is None


def test_each_line_of_ndjson_is_an_intent_and_a_line_that_is_too_long_does_not_stop_the_next():
    first, last = intent("A-1"), intent("A-2")
    long = b'{"order": "' + b"a" * (2 * BODY_LIMIT) + b'"}'
    found = list(rows.ndjson(io.BytesIO(b"\n".join((first, b"", long, b"\xff", last)))))
    assert [row.line for row in found] == [1, 3, 4, 5]
    assert [bool(row.problems) for row in found] == [False, True, False, False]
    assert intents.parse(found[3].raw).order_ref == "A-2"


def test_a_byte_order_mark_at_the_start_of_ndjson_is_left_out():
    first, second = rows.ndjson(io.BytesIO(codecs.BOM_UTF8 + intent("A-1") + b"\n" + intent("A-2")))
    assert first.raw == intent("A-1")
    assert second.line == 2
    with pytest.raises(rows.HeaderRejected, match="save it as UTF-8"):
        list(rows.ndjson(io.BytesIO("{}\n".encode("utf-16"))))


class Counted(io.RawIOBase):
    """A file of CSV with one endless line in it; counts the bytes that are read at once."""

    def __init__(self, *parts: tuple[bytes, int]) -> None:
        super().__init__()
        self._parts = [part for part, times in parts for _ in range(times)]

    def readable(self) -> bool:
        return True

    def readinto(self, room: Any) -> int:
        part = self._parts.pop(0) if self._parts else b""
        room[: len(part)] = part
        return len(part)


@pytest.mark.parametrize(
    ("middle", "times", "end"),
    [(b"a" * 8000, 4000, b"\n"), (b"," * 8000, 4000, b"\n"), (b'"a\n",' * 1000, 60, b'"\n')],
)
def test_a_row_of_csv_without_an_end_is_skipped_without_being_kept(middle: bytes, times: int, end: bytes):
    row = f"A-1,1.00,DKK,a@b.example,{PAGES}\n".encode()
    file = Counted((f"{HEAD}\n".encode() + row, 1), (middle, times), (end + row, 1))
    found = rows.delimited(io.BufferedReader(file))
    tracemalloc.start()
    try:
        first, second = next(found), next(found)
        for last in found:  # noqa: B007 - the last of them
            pass
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 12_000_000, "32 MB were read"
    assert (first.line, first.problems) == (2, ())
    assert second.line == 3
    assert "longer than" in second.problems[0].message
    assert last.problems == ()

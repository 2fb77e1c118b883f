"""Files of intents, row by row: NDJSON, an intent in each line, and CSV, an order with one order line in each
row.

A row becomes the JSON of an intent, which is then read like any other. A row that cannot be read has a
problem with its line number, and the next row follows; only a wrong header ends a CSV file. Rows are read one
at a time, and a line or a row of CSV that is longer than an intent may be is skipped without being kept.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Final, Self

import msgspec

from orchestrator.errors import OrchestratorError
from orchestrator.intents.fields import Problem, hint
from orchestrator.intents.reading import BODY_LIMIT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_PATHS: Final = """
    orderId            order.orderId
    amount             order.amount.value
    currency           order.amount.currency
    itemId             order.orderLines.0.itemId
    description        order.orderLines.0.description
    quantity           order.orderLines.0.quantity
    unitPrice          order.orderLines.0.unitPrice
    taxAmount          order.orderLines.0.taxAmount
    goodsType          order.orderLines.0.goodsType
    firstName          order.customer.firstName
    lastName           order.customer.lastName
    email              order.customer.email
    billingStreet      order.customer.billingAddress.street
    billingCity        order.customer.billingAddress.city
    billingZipCode     order.customer.billingAddress.zipCode
    billingCountry     order.customer.billingAddress.country
    shippingStreet     order.customer.shippingAddress.street
    shippingCity       order.customer.shippingAddress.city
    shippingZipCode    order.customer.shippingAddress.zipCode
    shippingCountry    order.customer.shippingAddress.country
    success            callbacks.success.value
    failure            callbacks.failure.value
    redirect           callbacks.redirect
    notification       callbacks.notification
    autoCapture        configuration.autoCapture
    paymentDisplayType configuration.paymentDisplayType
    country            configuration.country
    language           configuration.language
    expiresIn          expiresIn
"""
COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    name: tuple(path.split(".")) for name, path in map(str.split, _PATHS.strip().splitlines())
}
"""Columns of CSV, and the field of an intent that each holds."""
INFO: Final = "transactionInfo."
"""Prefix of the columns that hold entries of transactionInfo."""
_NUMBERS: Final = frozenset({"amount", "quantity", "unitPrice", "taxAmount", "expiresIn"})
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,30})(?:\.[0-9]{1,30})?")
_FLAGS: Final = {"true": True, "false": False}
_FIELDS: Final = {
    re.sub(r"\.0\.", "[0].", ".".join(path)).removesuffix(".value" if path[0] == "callbacks" else ""): name
    for name, path in COLUMNS.items()
}


class HeaderRejected(OrchestratorError):  # noqa: N818 - named for the fact
    """A file that is not UTF-8, or the first line of which does not name known columns, each once."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a file: its line, counted from 1, and the JSON of its intent, or the problems of the row."""

    line: int
    raw: bytes = field(default=b"", repr=False)
    problems: tuple[Problem, ...] = ()


def column_of(path: str) -> str | None:
    """Return the column that holds a field of an intent, by the field's path; None if there is none."""
    return _FIELDS.get(path)


def ndjson(file: IO[bytes]) -> Iterator[Row]:
    """Read an intent from each line that is not empty; raises `HeaderRejected`."""
    number = 0
    while line := file.readline(BODY_LIMIT + 2):
        number += 1
        if number == 1:
            line = _unmarked(line)
        if len(line) > BODY_LIMIT + 1 and not line.endswith(b"\n"):
            while (rest := file.readline(BODY_LIMIT)) and not rest.endswith(b"\n"):
                pass
            reason = f"is longer than the {BODY_LIMIT} bytes that an intent may have: send fewer order lines"
            yield _wrong(number, reason)
        elif line.strip():
            yield Row(number, line.strip())


def delimited(file: IO[bytes]) -> Iterator[Row]:
    """Read an order from each row of UTF-8 CSV whose first line names columns; raises `HeaderRejected`."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    csv.field_size_limit(BODY_LIMIT)
    lines = _Lines(text)
    reader = csv.reader(lines, strict=True)
    try:
        columns = next(reader, [])
    except csv.Error as error:
        raise HeaderRejected(f"the first line is not CSV: {error}") from None
    _check(columns)
    while True:
        first_line = lines.begin_row()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            reason = f"is not a row of CSV ({error}): put cells with quotes or line breaks in quotes"
            yield _wrong(first_line, reason)
            continue
        if cells:
            yield _row(first_line, columns, cells)


def _wrong(line: int, reason: str) -> Row:
    return Row(line, problems=(Problem("body", reason),))


class _Lines:
    """The lines of a CSV file for its reader; `csv.Error` for a row that is too long, then the next line."""

    def __init__(self, text: IO[str]) -> None:
        self._text = text
        self._number = 0
        self._room = BODY_LIMIT

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        line = self._text.readline(self._room + 1)
        if not line:
            raise StopIteration
        self._number += 1
        self._room -= len(line)
        if self._room < 0:
            while not line.endswith(("\n", "\r")) and (line := self._text.readline(BODY_LIMIT)):
                pass
            raise csv.Error(f"it is longer than the {BODY_LIMIT} characters that an intent may have")
        return line

    def begin_row(self) -> int:
        """Return the number of the next line, which begins a row."""
        self._room = BODY_LIMIT
        return self._number + 1


def _unmarked(line: bytes) -> bytes:
    """Return the first line of a file without a byte order mark."""
    if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)):
        raise HeaderRejected("the file is UTF-16 or UTF-32: save it as UTF-8")
    return line.removeprefix(codecs.BOM_UTF8)


def _check(columns: list[str]) -> None:
    if not columns:
        raise HeaderRejected("the file is empty: its first line must name the columns")
    for name in columns:
        if name not in COLUMNS and not (name.startswith(INFO) and len(name) > len(INFO)):
            shown = name if name.isprintable() and len(name) <= 40 else "one of them"  # noqa: PLR2004 - for a sentence
            raise HeaderRejected(f"column {shown!r} is not known: {hint(name, frozenset(COLUMNS))}")
    if twice := sorted(name for name, count in Counter(columns).items() if count > 1):
        raise HeaderRejected(f"column {twice[0]!r} is there twice: remove one")


def _row(line: int, columns: list[str], cells: list[str]) -> Row:
    if len(cells) > len(columns):
        there = f"has {len(cells)} cells, and there are {len(columns)} columns"
        return _wrong(line, f"{there}: put cells with commas in quotes")
    document: dict[str, Any] = {"configuration": {"paymentType": "PAYMENT"}}
    values = {name: cell.strip() for name, cell in zip(columns, cells, strict=False) if cell.strip()}
    problems = [
        Problem(name, "must be a number such as 139.00, with a point and no other separator")
        for name, cell in values.items()
        if name in _NUMBERS and not _NUMBER.fullmatch(cell)
    ]
    if problems:
        return Row(line, problems=tuple(problems))
    # Defaults of the order line.
    values = {
        "itemId": values.get("orderId", ""),
        "description": values.get("orderId", ""),
        "quantity": "1",
        "unitPrice": values.get("amount", ""),
        "taxAmount": "0",
        **values,
    }
    for name, cell in values.items():
        if name.startswith(INFO):
            _put(document, ("order", "transactionInfo", name.removeprefix(INFO)), cell)
        elif cell:
            _put(document, COLUMNS[name], _value(name, cell))
    document["order"]["orderLines"] = [document["order"]["orderLines"]["0"]]
    for page in ("success", "failure"):
        if page in document.get("callbacks", {}):
            document["callbacks"][page]["type"] = "URL"
    try:
        return Row(line, msgspec.json.encode(document))
    except UnicodeEncodeError:
        return _wrong(line, "is not UTF-8: save the file as UTF-8")


def _put(document: dict[str, Any], path: tuple[str, ...], value: object) -> None:
    for name in path[:-1]:
        document = document.setdefault(name, {})
    document[path[-1]] = value


def _value(name: str, cell: str) -> object:
    """Return a cell as a value of an intent, whose rules refuse a flag that is neither true nor false."""
    if name in _NUMBERS:
        return msgspec.Raw(cell.encode())
    if name == "autoCapture":
        return _FLAGS.get(cell.lower(), cell)
    return cell

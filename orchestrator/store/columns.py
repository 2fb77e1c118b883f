"""SQL that follows from the tables and the records: a column is named once, in the record."""

from __future__ import annotations

from dataclasses import fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from sqlalchemy.dialects import postgresql

from orchestrator.domain import attention, command_result, last_error
from orchestrator.domain.attention import Attention
from orchestrator.domain.records import Command, Operation, PaymentRecord
from orchestrator.store.tables import IS_LIVE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from _typeshed import DataclassInstance
    from sqlalchemy import Row, Table

    from orchestrator.domain.command_result import CommandResult
    from orchestrator.domain.last_error import LastError

_CODED: Final = {
    "attention": attention.stored, "last_error": last_error.stored, "result": command_result.stored,
}  # fmt: skip
"""Values of a code and its facts, in two columns: of the name itself, and with `_details`."""


def with_details(names: Iterable[str]) -> tuple[str, ...]:
    """Return the columns in which these values are stored."""
    return tuple(
        column for name in names for column in ((name, f"{name}_details") if name in _CODED else (name,))
    )


_DIALECT: Final = postgresql.dialect()  # type: ignore[no-untyped-call]


def json_text(value: object) -> str:
    """Return JSON as a statement takes it (rows for json_to_recordset, or a document); bytes are base64."""
    return msgspec.json.encode(value).decode()


def without(names: Iterable[str], *left_out: str) -> tuple[str, ...]:
    """Return the names but some."""
    return tuple(name for name in names if name not in left_out)


def named(kind: type[DataclassInstance], *left_out: str) -> tuple[str, ...]:
    """Return the names of a record's fields but some."""
    return without((field.name for field in fields(kind)), *left_out)


def picked(record: object, names: Iterable[str]) -> dict[str, Any]:
    """Return fields of a record by their names."""
    return {name: getattr(record, name) for name in names}


def listed(names: Iterable[str], alias: str = "") -> str:
    """Return `a.x, a.y`: columns to select or to insert."""
    return ", ".join(f"{alias}.{name}" if alias else name for name in names)


def typed(table: Table, names: Iterable[str]) -> str:
    """Return `x text, y bigint`: what json_to_recordset makes of a row."""
    return ", ".join(f"{name} {table.c[name].type.compile(_DIALECT)}" for name in names)


PAYMENT: Final = named(PaymentRecord)
OPERATION: Final = with_details(named(Operation))


def by_order(names: str, of: str) -> str:
    """Return the SQL of the checkouts that have the merchant and the order number of `of`: the live one, then
    the youngest closed one, each by its partial index.
    """
    order = f"FROM checkouts WHERE merchant_id = {of}.merchant_id AND order_ref = {of}.order_ref"
    return f"""
            (SELECT {names} {order} AND {IS_LIVE} LIMIT 1)
            UNION ALL
            (SELECT {names} {order} AND NOT ({IS_LIVE}) ORDER BY id DESC LIMIT 1)"""


def payments_of(checkout: str, names: Iterable[str] = PAYMENT) -> str:
    """Return the SQL of a checkout's payments, as they were seen first, as text for `payments`."""
    return _all("payments p", names, checkout, "true", "first_seen_at", "transaction_id")


def operations_of(checkout: str, which: str = "true") -> str:
    """Return the SQL of a checkout's money operations `o`, the oldest first, as text for `operations`."""
    return _all("money_operations o", _OPERATION_SHOWN, checkout, which, "requested_at", "id")


def commands_of(checkout: str, which: str = "true") -> str:
    """Return the SQL of a checkout's commands `k`, the oldest first, as text for `commands`."""
    return _all("commands k", _COMMAND_SHOWN, checkout, which, "requested_at", "id")


def _all(table: str, names: Iterable[str], checkout: str, which: str, *order: str) -> str:
    alias = table[-1]
    pairs = ", ".join(f"'{name}', {alias}.{name}" for name in names)
    found = f"json_agg(json_build_object({pairs}) ORDER BY {listed(order, alias)})"
    rows = f"{table} WHERE {alias}.checkout_id = {checkout} AND {which}"
    return f"(SELECT CAST(coalesce({found}, '[]') AS text) FROM {rows})"  # noqa: S608 - our own names


_OPERATION_SHOWN: Final = without(OPERATION, "mac")
_COMMAND_SHOWN: Final = with_details(named(Command, "mac", "taken"))
_PAYMENTS: Final = msgspec.json.Decoder(tuple[PaymentRecord, ...])
_ROWS: Final = msgspec.json.Decoder(tuple[dict[str, Any], ...])


def payments(text: str) -> tuple[PaymentRecord, ...]:
    """Read what `payments_of` selects."""
    return _PAYMENTS.decode(text)


def operations(text: str) -> tuple[Operation, ...]:
    """Read what `operations_of` selects."""
    return tuple(operation(row) for row in _ROWS.decode(text))


def commands(text: str) -> tuple[Command, ...]:
    """Read what `commands_of` selects."""
    return tuple(command(row) for row in _ROWS.decode(text))


def operation(row: Mapping[str, Any]) -> Operation:
    """Make an operation of its columns."""
    return msgspec.convert({**row, "last_error": _made("last_error", row)}, Operation)


def command(row: Mapping[str, Any]) -> Command:
    """Make a command of its columns."""
    return msgspec.convert({**row, "result": _made("result", row)}, Command)


def _made(name: str, row: Mapping[str, Any]) -> Any:
    return _CODED[name](row.get(name), row.get(f"{name}_details"))


def coded(row: Row[Any], *names: str) -> dict[str, Any]:
    """Return values of a code and its facts in a row; None where there is no code. It raises for nothing."""
    return {name: _CODED[name](getattr(row, name), getattr(row, f"{name}_details")) for name in names}


def parts(name: str, value: Attention | LastError | CommandResult | None) -> dict[str, object]:
    """Return the two columns in which such a value is stored."""
    if value is None:
        return {name: None, f"{name}_details": None}
    return {
        name: value.code,
        f"{name}_details": value.details if isinstance(value, Attention) else value.facts,
    }


T = TypeVar("T", bound="DataclassInstance | msgspec.Struct")


def record(kind: type[T], row: Row[Any], /, **made: Any) -> T:
    """Make a record of the columns that have the names of its fields; `made` are its other fields."""
    key = (kind, *made)
    names, read = _READERS.get(key) or _READERS.setdefault(key, _reader(kind, made))
    return kind(**dict(zip(names, read(row), strict=True)), **made)


_READERS: Final[dict[tuple[object, ...], tuple[tuple[str, ...], Callable[[object], tuple[Any, ...]]]]] = {}
"""How the columns of a kind of record are read, by the kind and the names that are made."""


def _reader(kind: Any, made: Iterable[str]) -> tuple[tuple[str, ...], Callable[[object], tuple[Any, ...]]]:
    every = kind.__struct_fields__ if issubclass(kind, msgspec.Struct) else kind.__dataclass_fields__
    names = without(every, *made)
    # Of a single name, `attrgetter` would return no tuple.
    several = len(names) > 1
    return names, attrgetter(*names) if several else lambda row: tuple(getattr(row, name) for name in names)

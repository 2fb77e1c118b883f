"""SQL that follows from the tables and the records: a column is named once, in the record, with its type in the table."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Final

import msgspec
from sqlalchemy.dialects import postgresql

from orchestrator.domain.records import Command, Operation, PaymentRecord

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Table

PAYMENT: Final = tuple(one.name for one in fields(PaymentRecord))
OPERATION: Final = tuple(one.name for one in fields(Operation))

_DIALECT: Final = postgresql.dialect()  # type: ignore[no-untyped-call]


def json_text(value: object) -> str:
    """Return JSON as a statement takes it: rows for json_to_recordset, a document for jsonb."""
    return msgspec.json.encode(value).decode()


def without(names: Iterable[str], *left_out: str) -> tuple[str, ...]:
    """Return the names but some."""
    return tuple(name for name in names if name not in left_out)


def listed(names: Iterable[str], alias: str = "") -> str:
    """Return `a.x, a.y`: columns to select or to insert."""
    return ", ".join(f"{alias}.{name}" if alias else name for name in names)


def typed(table: Table, names: Iterable[str]) -> str:
    """Return `x text, y bigint`: what json_to_recordset makes of a row."""
    return ", ".join(f"{name} {table.c[name].type.compile(_DIALECT)}" for name in names)


def as_json(names: Iterable[str], alias: str) -> str:
    """Return the SQL of an object with these columns."""
    pairs = ", ".join(f"'{name}', {alias}.{name}" for name in names)
    return f"json_build_object({pairs})"


def payments_of(checkout: str, names: Iterable[str] = PAYMENT) -> str:
    """Return the SQL of a checkout's payments, in the order in which they were seen, as text for `payments`."""
    return _all(
        as_json(names, "p"),
        f"payments p WHERE p.checkout_id = {checkout}",
        "p.first_seen_at, p.transaction_id",
    )


def operations_of(checkout: str) -> str:
    """Return the SQL of a checkout's money operations, the oldest first, as text for `operations`."""
    return _all(
        as_json(_OPERATION_SHOWN, "o"),
        f"money_operations o WHERE o.checkout_id = {checkout}",
        "o.requested_at, o.id",
    )


def commands_of(checkout: str, which: str = "true") -> str:
    """Return the SQL of those of a checkout's commands (`k`), the oldest first, as text for `commands`."""
    return _all(
        as_json(_COMMAND_SHOWN, "k"),
        f"commands k WHERE k.checkout_id = {checkout} AND {which}",
        "k.requested_at, k.id",
    )


def _all(one: str, rows: str, order: str) -> str:
    return f"(SELECT CAST(json_agg({one} ORDER BY {order}) AS text) FROM {rows})"  # noqa: S608 - our own names


_OPERATION_SHOWN: Final = without(OPERATION, "mac")
_COMMAND_SHOWN: Final = without((one.name for one in fields(Command)), "mac", "taken")
_PAYMENTS: Final = msgspec.json.Decoder(tuple[PaymentRecord, ...])
_OPERATIONS: Final = msgspec.json.Decoder(tuple[Operation, ...])
_COMMANDS: Final = msgspec.json.Decoder(tuple[Command, ...])


def payments(text: str | None) -> tuple[PaymentRecord, ...]:
    """Read what `payments_of` selects."""
    return () if text is None else _PAYMENTS.decode(text)


def operations(text: str | None) -> tuple[Operation, ...]:
    """Read what `operations_of` selects."""
    return () if text is None else _OPERATIONS.decode(text)


def commands(text: str | None) -> tuple[Command, ...]:
    """Read what `commands_of` selects."""
    return () if text is None else _COMMANDS.decode(text)

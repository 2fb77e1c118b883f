"""What the shapes of the contract are made of: kinds of values with their bounds, and how a shape is
described and made.

Bounds describe and are not checked here: what is stored is shown whatever it is, and bodies are read
elsewhere.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar
from uuid import UUID

from msgspec import Meta, Struct

from orchestrator.domain.money import MOST_DIGITS

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T", bound=Struct)

MOST_ITEMS: Final = 10_000
"""Of a list in an answer that has no limit of its own."""
LONGEST_TEXT: Final = 10_000


def about(description: str | None = None, *examples: object, **schema: object) -> Meta:
    """Describe a type or a field, with examples and what else the schema says of it."""
    return Meta(description=description, examples=list(examples) or None, extra_json_schema=schema or None)


Text = Annotated[str, about(maxLength=LONGEST_TEXT)]
Id = Annotated[UUID, about(maxLength=36)]
Time = Annotated[datetime, about(format="date-time", maxLength=40)]
Count = Annotated[int, about(minimum=0, maximum=2**31 - 1)]
Ordinal = Annotated[int, about(minimum=1, maximum=2**31 - 1)]
Version = Ordinal
NextCursor = Annotated[Id | None, about("`cursor` of the next page; null on the last")]
PaymentMethods = Annotated[
    list[dict[str, Any]], about("As the gateway lists them, while the shopper may pay", maxItems=MOST_ITEMS)
]
Money = Annotated[
    Decimal,
    about(
        "Decimal number, exact; no more decimals than the currency has",
        minimum=-(10**MOST_DIGITS),
        maximum=10**MOST_DIGITS,
    ),
]
Currency = Annotated[str, about("ISO 4217", "DKK", pattern="^[A-Za-z]{3}$", maxLength=3)]


class Shape(Struct, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """An object of the contract; `rename` makes `order_id` `orderId`."""


def made(kind: type[T], named: Mapping[str, Any], /, **more: object) -> T:
    """Make a struct of values by the names of the contract, and of `more` by those of Python; nothing is
    converted or checked.

    `KeyError` for a name that the struct does not have.
    """
    fields = dict(zip(kind.__struct_encode_fields__, kind.__struct_fields__, strict=True))
    return kind(**{fields[name]: value for name, value in named.items()}, **more)


def like(kind: type[T], source: object, /, **other: object) -> T:
    """Make a struct of what `source` has under the same names of Python, and of `other`, which counts where
    both have a name; nothing is converted or checked.
    """
    same = {name: getattr(source, name) for name in kind.__struct_fields__ if name not in other}
    return kind(**same, **other)

"""The history of one checkout, from its audit trail, for people."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from rich.table import Table
from rich.text import Text

from orchestrator.domain import money
from orchestrator.domain.states import State
from orchestrator.text import neutralised

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

STYLES: Final[dict[str, str]] = {
    State.RECEIVED: "cyan",
    State.AUTHENTICATED: "cyan",
    State.SESSION_CREATED: "cyan",
    State.METHODS_FETCHED: "cyan",
    State.AWAITING_PAYMENT: "yellow",
    State.CALLBACK_RECEIVED: "magenta",
    State.COMPLETED: "green",
    State.FAILED: "red",
    State.EXPIRED: "bright_black",
    State.CANCELLED: "bright_black",
}
_LONGEST: Final = 60
UNTOLD: Final = frozenset({"intent", "orderId", "by", "currency"})
"""Evidence that adds nothing for a person."""

_AMOUNTS: Final = frozenset(
    {"amount", "amountBefore", "reserved", "captured", "refunded", "chargedBack", "totalBefore"}
)


def price(minor: int, currency: str) -> str:
    """Write a stored amount for people; it never fails, since what is stored is shown whatever its currency
    is.
    """
    return money.spelled(minor, currency, grouped=True)


def told(name: str, value: object, currency: str | None) -> str:
    """Write a fact of an event or entry for people: an amount, stored in minor units, as a price where the
    currency is known.
    """
    if name in _AMOUNTS and isinstance(value, int) and currency is not None:
        return price(value, currency)
    return str(value)


def timeline(entries: Sequence[Mapping[str, Any]]) -> Table:
    """Draw audit entries (the oldest first): when, what, by whom, on which evidence."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("after", justify="right")
    table.add_column("what")
    table.add_column("state")
    table.add_column("evidence", overflow="fold")
    began: datetime | None = None
    # A checkout has one currency, and its first entry names it.
    currency = next(
        (str(entry["evidence"]["currency"]) for entry in entries if "currency" in entry["evidence"]), None
    )
    for entry in entries:
        at = datetime.fromisoformat(str(entry["at"]))
        began = began or at
        state = str(entry["to"])
        moved = entry["from"] != entry["to"]
        table.add_row(
            f"{(at - began).total_seconds():.3f} s",
            str(entry["trigger"] or entry["action"]),
            Text(state if moved else "", style=STYLES.get(state, "")),
            Text(neutralised(_evidence(entry, currency)), style="dim"),
        )
    return table


def _evidence(entry: Mapping[str, Any], currency: str | None) -> str:
    facts = [
        f"{name} {shown}"
        for name, value in entry["evidence"].items()
        if name not in UNTOLD
        and (
            shown := told(name, value, currency)
            if name in _AMOUNTS and value is not None
            else shown_of(value)
        )
    ]
    actor = str(entry["actor"])
    if not actor.startswith("system:"):
        facts.insert(0, f"by {actor}")
    return "; ".join(facts)


def shown_of(value: Any) -> str:
    """Write a fact of an entry for people, in short; nothing where there is none."""
    if value in (None, "", [], {}):
        return ""
    match value:
        case list():
            return ", ".join(shown_of(item) for item in value)
        case dict():
            # Of a transaction or a callback: what it is, not every amount and digest of it.
            words = [
                str(value[name])
                for name in ("kind", "id", "status", "meaning", "role", "grade")
                if value.get(name)
            ]
            return " ".join(word if len(word) <= 20 else word[:8] for word in words)  # noqa: PLR2004 - an id in short
        case _:
            text = str(value)
            return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"

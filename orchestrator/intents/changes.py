"""A changed order: a JSON Merge Patch (RFC 7396) of what was handed over, read by the rules of an intent.

Only `CHANGEABLE` may be named: the order number and the currency are what payments are matched by, and the
configuration says who captures.
"""

from __future__ import annotations

import hashlib
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from orchestrator.intents.fields import MOST_PROBLEMS, NAMES, Problem, kind_of, shown
from orchestrator.intents.reading import BODY_LIMIT, DECODER, ENCODER, Intent, IntentRejected, parse

if TYPE_CHECKING:
    from collections.abc import Mapping

CHANGEABLE: Final[Mapping[str, frozenset[str]]] = {
    "order": NAMES["order"] - {"orderId"},
    "callbacks": NAMES["callbacks"],
}
"""The members of each object that a change may name."""
DEEPEST: Final = 8
"""Levels of a change; an intent has four."""


def problems_of(change: Mapping[str, Any]) -> list[Problem]:
    """Return what a change names that cannot be changed, or is too deep; at most `MOST_PROBLEMS`."""
    found: list[Problem] = []
    otherwise = "hand the order over as a new checkout otherwise"
    for part, content in change.items():
        if part not in CHANGEABLE:
            parts = " and ".join(CHANGEABLE)
            found.append(Problem(shown(part), f"cannot be changed: a change is of {parts}"))
        elif not isinstance(content, dict):
            found.append(Problem(part, f"must be an object with what is changed, not {kind_of(content)}"))
        else:
            known = ", ".join(sorted(CHANGEABLE[part]))
            found += [
                Problem(f"{part}.{shown(name)}", f"cannot be changed, only {known}: {otherwise}")
                for name in sorted(content.keys() - CHANGEABLE[part])
            ]
    if not change:
        found.append(Problem("order", "is missing: name what is changed, such as amount and orderLines"))
    if not _is_shallow(change, DEEPEST):
        found.append(Problem("body", f"is nested more than {DEEPEST} levels deep"))
    return found[:MOST_PROBLEMS]


def _is_shallow(value: object, levels: int) -> bool:
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return levels > 0 and all(_is_shallow(member, levels - 1) for member in inner)
    return True


def encoded(change: Mapping[str, Any]) -> bytes:
    """Return the JSON of a change, as it is stored (encrypted)."""
    return ENCODER.encode(change)


def fingerprint(change: Mapping[str, Any]) -> bytes:
    """Return what identifies a repeat: the SHA-256 of the content, whatever the order of its names, and
    whether an amount is written 139 or 139.00.
    """
    return hashlib.sha256(ENCODER.encode(_plain(change))).digest()


def _plain(value: object) -> object:
    match value:
        case dict():
            return {name: _plain(member) for name, member in value.items()}
        case list():
            return [_plain(member) for member in value]
        case Decimal() | int() if not isinstance(value, bool):
            # Never written out: 1e1000000 is ten characters, and a million digits otherwise.
            sign, digits, exponent = Decimal(value).as_tuple()
            figures = "".join(map(str, digits)).lstrip("0")
            short = figures.rstrip("0")
            return [sign, short, int(exponent) + len(figures) - len(short) if short else 0]
        case _:
            return value


def changed(document: bytes, change: bytes) -> Intent:
    """Return the intent that a stored document and a change make; raise `IntentRejected` if it is not one."""
    before = DECODER.decode(document)
    merged = merge(before, DECODER.decode(change))
    raw = ENCODER.encode(merged)
    if len(raw) > BODY_LIMIT:
        raise IntentRejected((Problem("order", f"would make an order of more than {BODY_LIMIT} bytes"),))
    intent = parse(raw)
    ordered = before["order"]["amount"]["currency"]
    if intent.currency != ordered:
        said = f"must be {ordered}: an order in another currency is handed over as a new checkout"
        raise IntentRejected((Problem("order.amount.currency", said),))
    return intent


def merge(target: object, change: object) -> object:
    """Apply a merge patch (RFC 7396): objects are merged, null removes, everything else replaces."""
    if not isinstance(change, dict):
        return change
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in change.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name), value)
    return merged

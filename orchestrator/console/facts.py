"""Facts of events and of the audit trail in words: names, amounts with their currency, durations."""

from __future__ import annotations

import re
from typing import Any, Final

from orchestrator.domain.payment_meaning import PaymentMeaning
from orchestrator.explain import timeline
from orchestrator.text import duration

MOST: Final = 20
_INNER: Final = re.compile("(?<=[a-z])[A-Z]")
_AMOUNTS: Final = frozenset({"change", "surcharge", "left", "total", "before"})
"""Amounts in minor units, beside those of `timeline`."""
_IDENTIFIERS: Final = frozenset({"command", "commandId", "operation", "operationId", "operations", "digest"})
"""Ids of our own rows, which say nothing to a person; the audit trail of the API has them."""
_CODES: Final = frozenset(
    {"attention", "binding", "call", "cause", "code", "decision", "finding", "grade", "kind", "meaning", "policy", "role"}
)  # fmt: skip
"""Names whose values are words of the program."""
_SECONDS: Final = frozenset({"expiresIn", "lifetime"})
_NAMES: Final = {
    "transactionId": "transaction",
    "transactionIds": "transactions",
    "rejectedIntentId": "rejected intent",
    "sessionCount": "sessions",
}
MEANS: Final = {PaymentMeaning.NOTHING.value: "holds nothing", PaymentMeaning.UNKNOWN.value: "unclear"}


def words(name: str) -> str:
    """Write a name of a program in words: `inFlight` is "in flight", `money:done` is "money done"."""
    return _INNER.sub(lambda found: f" {found[0].lower()}", name).replace("_", " ").replace(":", " ")


def of(evidence: Any, currency: str) -> list[tuple[str, str]]:
    """Return evidence as names and short texts."""
    if not isinstance(evidence, dict):
        return []
    shown = []
    for name, value in list(evidence.items())[:MOST]:
        if name in timeline.UNTOLD or (name in _IDENTIFIERS and not _is_kind(value)):
            continue
        text = _text(name, value, currency)
        if text:
            shown.append((_NAMES.get(name) or words(name), text))
    return shown


def status(word: str, meaning: str) -> str:
    """Write the status of a transaction at the gateway, with what it means where that is another word."""
    means = MEANS.get(meaning, meaning)
    if not word or word == meaning:
        return means or word
    return f"{word} ({means})"


def title(entry: dict[str, Any]) -> str:
    """Write what an entry of the trail says: its trigger or action; of money, which operation it is about."""
    subject, _, fact = str(entry.get("action") or "").partition(":")
    evidence = entry.get("evidence")
    kind = evidence.get("kind") if isinstance(evidence, dict) else None
    if subject == "money" and _is_kind(kind):
        return f"{kind} {fact}"
    return str(entry.get("trigger") or entry.get("action") or "")


def _is_kind(value: object) -> bool:
    """Whether the value of `operation` is its kind (as events have it), and not an id."""
    return isinstance(value, str) and value in {"capture", "refund", "release"}


def _text(name: str, value: Any, currency: str) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case int() if name in _AMOUNTS:
            return timeline.price(value, currency)
        case int() | float() if name in _SECONDS:
            return duration(value)
        case dict():
            return _item(value)
        case list():
            return ", ".join(text for each in value if (text := _text(name, each, currency)))
        case str() if name in _CODES:
            return timeline.shown_of(value.replace("_", " "))
    price = timeline.told(name, value, currency)
    return timeline.shown_of(value) if price == str(value) and name != "reason" else price


def _item(value: dict[str, Any]) -> str:
    """Write a transaction or a callback of an entry: what it is, not every amount and digest of it."""
    said = str(value.get("id") or "")
    if value.get("meaning"):
        parts = [status(str(value.get("status") or ""), str(value["meaning"])), str(value.get("role") or "")]
        return " ".join(part for part in (said, ", ".join(part for part in parts if part)) if part)
    if value.get("grade"):
        kind, grade = (str(value.get(name) or "callback").replace("_", " ") for name in ("kind", "grade"))
        return f"{kind} ({grade})" + (f" with status {value['status']}" if value.get("status") else "")
    return timeline.shown_of(value).replace("_", " ")

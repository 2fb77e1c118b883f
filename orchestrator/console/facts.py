"""Facts of events and of the audit trail in words: names, amounts with their currency, durations."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from orchestrator.audit import Action
from orchestrator.domain.payment_meaning import PaymentMeaning
from orchestrator.domain.records import Cause, CommandKind, Decision, Role
from orchestrator.domain.states import Trigger
from orchestrator.explain import timeline
from orchestrator.text import duration

if TYPE_CHECKING:
    from collections.abc import Mapping

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
_DECISIONS: Final = frozenset(Decision)
ROLES: Final[Mapping[str, str]] = {
    Role.ACCEPTED: "pays the order",
    Role.SURPLUS: "surplus",
    Role.ATTEMPT: "pays nothing",
    Role.UNKNOWN: "not accepted",
}
"""What a transaction is to its order."""
_RETURNED: Final = {"release": "reservation released", "refund": "money refunded"}
_TITLES: Final = {Trigger.PAYMENT_DECLINED.value: "no payment, all attempts ended without money"}
"""Entries of the trail whose own word says too little, or something else, to a person."""
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
    return f"{word.replace('preauth', 'pre-authorization').replace('_', ' ')} ({means})"


def title(entry: dict[str, Any], *, returned: str | None = None) -> str:
    """Write what an entry of the trail says: its trigger or action; of money, which operation it is about.

    `returned` is the operation by which a decision gave money back since the last move.
    """
    subject, _, fact = str(entry.get("action") or "").partition(":")
    evidence = entry.get("evidence")
    about = evidence if isinstance(evidence, dict) else {}
    kind, decision = about.get("kind"), about.get("decision")
    if subject == "money" and _is_kind(kind):
        return f"{kind} {fact}"
    if kind == CommandKind.RESOLVE and decision in _DECISIONS:
        return f"decision to {decision}"
    trigger = entry.get("trigger")
    if trigger == Trigger.PAYMENT_DECLINED and returned in _RETURNED:
        return f"{_RETURNED[returned]} because of the decision"
    return _TITLES.get(str(trigger)) or str(trigger or entry.get("action") or "")


def returned(entry: dict[str, Any]) -> str | None:
    """Return the kind of the operation of an entry that gave money back; None of every other entry."""
    evidence = entry.get("evidence")
    about = evidence if isinstance(evidence, dict) else {}
    gave = entry.get("action") == Action.MONEY_SUCCEEDED and about.get("cause") == Cause.RETURNED
    return str(about.get("kind")) if gave else None


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
        parts = [
            status(str(value.get("status") or ""), str(value["meaning"])),
            ROLES.get(value.get("role") or "", ""),
        ]
        return " ".join(part for part in (said, ", ".join(part for part in parts if part)) if part)
    if value.get("grade"):
        kind, grade = (str(value.get(name) or "callback").replace("_", " ") for name in ("kind", "grade"))
        return f"{kind} ({grade})" + (f" with status {value['status']}" if value.get("status") else "")
    return timeline.shown_of(value).replace("_", " ")

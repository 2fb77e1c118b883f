"""Money at risk, counted row by row: a recount of `orchestrator_money_at_risk` that shares no statement with
it.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    Row = Mapping[str, Any]

STATEMENTS = {
    **{
        name: f"SELECT to_jsonb(r) AS row FROM {name} r"
        for name in ("checkouts", "payments", "money_operations", "callbacks", "merchants")
    },
    "clock": "SELECT to_jsonb(clock()) AS row",
}
"""What `recount` takes, by name: the rows of these."""
UNSETTLED = {"requested", "submitted", "unknown"}
HOLDING = {"reserved", "captured", "refunded", "unknown"}
DAY, HOUR, TEN_MINUTES = 86_400, 3_600, 600


def recount(rows: Mapping[str, Iterable[Any]]) -> dict[tuple[str, str, str], float]:
    """Return the sums by currency, kind and bucket of ages, in units of a currency with two decimals."""
    (clock,) = rows["clock"]
    now = datetime.fromisoformat(clock)
    sums: dict[tuple[str, str, str], int] = defaultdict(int)
    for kind, currency, amount, since in _each(rows):
        if amount:
            sums[currency, kind, _bucket((now - datetime.fromisoformat(since)).total_seconds())] += amount
    return {key: amount / 100 for key, amount in sums.items()}


def _bucket(age: float) -> str:
    if age < TEN_MINUTES:
        return "under_10m"
    if age < HOUR:
        return "10m_to_1h"
    return "1h_to_1d" if age < DAY else "over_1d"


def _each(rows: Mapping[str, Iterable[Row]]) -> Iterator[tuple[str, str, int, str]]:
    """Yield each amount at risk with its kind, its currency and since when."""
    checkouts = {row["id"]: row for row in rows["checkouts"]}
    for operation in rows["money_operations"]:
        if operation["state"] in UNSETTLED:
            since = operation["submitted_at"] or operation["requested_at"]
            yield "operation", operation["currency"], operation["amount"], since
    for checkout in checkouts.values():
        if checkout["attention"]:
            for currency, amount in _decided(checkout):
                yield "attention", currency, amount, checkout["attention_since"]
        if checkout["state"] == "completed":
            left = max(checkout["reserved"] - checkout["captured"], 0)
            yield "uncaptured", checkout["currency"], left, checkout["ended_at"]
    for payment in rows["payments"]:
        checkout = checkouts.get(payment["checkout_id"])
        open_still = checkout is None or checkout["attention"] is not None
        if payment["role"] in {"surplus", "unknown"} and open_still and payment["meaning"] in HOLDING:
            captured = payment["captured"]
            left = captured - payment["refunded"] - payment["charged_back"]
            held = left if captured else payment["reserved"]
            yield payment["role"], payment["currency"], max(held, 0), payment["first_seen_at"]
    yield from _unverified(rows, checkouts)


def _decided(checkout: Row) -> Iterator[tuple[str, int]]:
    """Yield the amounts that a decision is about."""
    named = (checkout["attention_details"] or {}).get("payments")
    if checkout["attention"] == "charged_back":
        yield checkout["currency"], checkout["charged_back"]
    elif not named:
        yield checkout["currency"], checkout["amount"]
    else:
        for payment in named:
            yield payment.get("currency", checkout["currency"]), max(payment["amount"] or 0, 0)


def _unverified(
    rows: Mapping[str, Iterable[Row]], checkouts: Mapping[str, Row]
) -> Iterator[tuple[str, str, int, str]]:
    """Yield orders with a proven callback that no lookup has confirmed, since the first of these."""
    paused = {merchant["id"] for merchant in rows["merchants"] if merchant["paused_at"]}
    first: dict[str, str] = {}
    for callback in sorted(rows["callbacks"], key=lambda row: datetime.fromisoformat(row["received_at"])):
        proven = callback["grade"] in {"signed", "checksum"} and callback["kind"] in {
            "success",
            "notification",
        }
        if proven and callback["handled_at"] is None and callback["checkout_id"]:
            first.setdefault(callback["checkout_id"], callback["received_at"])
    for checkout, since in first.items():
        row = checkouts[checkout]
        if row["state"] != "completed" and row["merchant_id"] not in paused:
            yield "callback", row["currency"], row["amount"], since

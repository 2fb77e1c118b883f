"""What `doctor` says of money that waits: how much, for what, for how long, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from orchestrator.text import duration

if TYPE_CHECKING:
    from orchestrator.cli.report import Report
    from orchestrator.settings import Settings
    from orchestrator.store.database import Database

_MEANING: Final = {
    "operation": (
        "of captures, refunds and releases have no result yet",
        "the gateway's books are looked up until they show it; `orchestrator checkouts explain ID` says why",
    ),
    "callback": (
        "of orders wait for a proven callback to be verified with the gateway",
        "paid orders may be among them; look at the gateway, then `orchestrator checkouts reconcile ID`",
    ),
    "surplus": (
        "are held by payments beside the accepted one",
        "`orchestrator payments list`, and the chapter surplus_payment of docs/runbook.md",
    ),
    "unknown": (
        "are held by payments that cannot be read",
        "`orchestrator payments list`, and the chapter unclear_payment of docs/runbook.md",
    ),
}
_NORMAL: Final = {"operation", "callback"}
"""Kinds that are ordinary while they are young."""
_AGES: Final = {
    "under_10m": "for less than ten minutes",
    "10m_to_1h": "for more than ten minutes",
    "1h_to_1d": "for more than an hour",
    "over_1d": "for more than a day",
}
_OVERDUE: Final = 900.0
"""Seconds after which a command that waits is named."""


async def examine(settings: Settings, db: Database, report: Report, *, stopped: bool) -> None:
    """Look at money at risk, at decisions that wait, and at commands that no worker has executed."""
    from orchestrator.monitoring import queries

    now = await queries.read_now(db, settings.hint_grace)
    waiting = await queries.read_waiting(db, settings.hint_grace)
    report_attention(now, report)
    found = False
    for (currency, kind, age), amount in sorted(now["money_at_risk"].items()):
        if kind not in _MEANING or (kind in _NORMAL and age == "under_10m"):
            continue
        found = True
        what, do = _MEANING[kind]
        report.ill("money", f"{amount:,.2f} {currency} {what} {_AGES[age]}: {do}")
    if not found:
        report.well("money", "none waits for long for a result, a lookup or a decision on a payment")
    number, age_of = waiting["waiting"]["commands",], waiting["oldest_due_seconds"]["commands",]
    if number and age_of > _OVERDUE and not stopped:
        report.ill(
            "commands",
            f"{number:.0f} wait, the oldest for {duration(age_of)}: `orchestrator checkouts explain ID` says for what; an operation "
            "without a result blocks those on its payment",
        )


def report_attention(now: dict[str, dict[tuple[str, ...], float]], report: Report) -> None:
    """Say which decisions wait, for how long, and about how much money."""
    if not now["attention"]:
        return
    codes = ", ".join(
        f"{number:.0f} {code[0]} (the oldest for {duration(now['attention_oldest_seconds'][code])})"
        for code, number in sorted(now["attention"].items())
    )
    sums: dict[str, float] = {}
    for (currency, kind, _), amount in now["money_at_risk"].items():
        if kind == "attention":
            sums[currency] = sums.get(currency, 0.0) + amount
    money = ", ".join(f"{amount:,.2f} {currency}" for currency, amount in sorted(sums.items()))
    total = sum(now["attention"].values())
    report.ill(
        "attention",
        f"{total:.0f} checkouts need a person, for orders of {money}: {codes}; `orchestrator checkouts list --attention`",
    )

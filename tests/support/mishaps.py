"""What goes wrong in real shops, row by row, and the table that says at the end of a test run which test
reproduces each row.

The rows are what the changelogs and commits of gateway plugins report; each test of a row has
`@pytest.mark.mishap(row)`. The table is printed by the process that holds the reports: the process itself, or
the controller of several (xdist), to which a test's properties come with its reports. A row whose tests did
not run says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import pytest

ROWS: Final = (
    "ok and notification at the same moment",
    "a coarse lock makes callbacks fail or wait",
    "notification before ok",
    "late or repeated ok sets the status again",
    "late fail, or the same cart twice, cancels a paid order",
    "fail callback although money is held",
    "fail of another transaction undoes the payment",
    "two payments for one order",
    "shopper does not return from the bank, and the order doubles",
    "repeated notifications release the payment",
    "captured twice",
    "shop and gateway disagree about a capture",
    "whole reservation captured instead of the order's total",
    "only the notification arrives",
    "failed first, paid on the second try",
    "unpaid orders never end, or end wrongly; browser back",
    "refunded or released at the gateway",
    "slow shop code in the ok callback",
    "notifications overwrite each other; order unknown",
    "callbacks blocked by a firewall",
    "gateway outage: no callbacks for minutes",
    "invalid or empty XML",
    "session changes while the order is placed",
    "confirmation sent twice",
)
"""Every row, in the order in which they were collected."""

REPORT: Final = "mishap_report"
"""The property (`record_property`) of a test that has something to print below the table."""

_MARKER: Final = "mishap"
# From good to bad: of a test's cases and phases the worst counts.
_OUTCOMES: Final = ("passed", "xfailed", "skipped", "xpassed", "failed", "error")
_WIDEST: Final = max(map(len, ROWS))


def pytest_itemcollected(item: pytest.Item) -> None:
    """Write the row onto the test, so that its reports bring it along from another process."""
    for mark in item.iter_markers(_MARKER):
        item.user_properties.append((_MARKER, mark.args[0]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table, if any test of a row ran."""
    ran: dict[str, dict[str, list[str]]] = {}
    told: list[str] = []
    for outcome in _OUTCOMES:
        for report in terminalreporter.stats.get(outcome, ()):
            for name, value in getattr(report, "user_properties", ()):
                if name == REPORT:
                    told.append(value)
                elif name == _MARKER:
                    # The path of a case may hold any text, so its brackets go first.
                    test = report.nodeid.partition("[")[0].rpartition("/")[2]
                    ran.setdefault(value, {}).setdefault(test, []).append(outcome)
    if not ran:
        return
    terminalreporter.section("what goes wrong in real shops")
    for row in (*ROWS, *sorted(ran.keys() - set(ROWS))):
        tests = ran.get(row, {"no test of it ran": ["-"]})
        for number, (test, outcomes) in enumerate(sorted(tests.items())):
            worst = max(outcomes, key=lambda word: _OUTCOMES.index(word) if word in _OUTCOMES else -1)
            cases = f" ({len(outcomes)} cases)" if len(outcomes) > 1 else ""
            first = row if number == 0 else ""
            terminalreporter.write_line(f"{first:{_WIDEST}} | {test}{cases} | {worst}")
    for printed in told:
        terminalreporter.write_line(f"\n{printed}")

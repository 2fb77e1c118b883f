"""A run as people read it: tables for the terminal and docs/benchmarks.md, and the pictures beside it.

All but the end of the page is made from the document of a run alone, so that the page can be made again from
`build/benchmarks.json`.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.table import Table

from tests.benchmarks import delivery_report
from tests.benchmarks.bars import LIMIT, OURS, THEIRS, Bar, bars, number
from tests.benchmarks.bars import table as rows_of
from tests.benchmarks.claims import NOT_MEASURED, Claim, claims, rates

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PRODUCT: Final = "product"
BARE: Final = "e"
APART: Final = Path(__file__).with_name("apart.md")
"""The end of the page, written by hand: what has a measurement or a soak test of its own."""
_KINDS: Final = ("own", "postgres", "redis")


# ── The terminal ──────────────────────────────────────────────────────────────────────────────────────────


def table(rows: Sequence[Claim]) -> Table:
    """Draw what must be shown."""
    drawn = Table(title="Must show", title_justify="left")
    drawn.add_column("what", ratio=1)
    for name in ("at least", "aim", "measured"):
        drawn.add_column(name, justify="right", no_wrap=True)
    drawn.add_column("reached", no_wrap=True)
    colours = {True: "green", False: "red", None: "dim"}
    for row in rows:
        verdict = f"[{colours[row.reached]}]{row.verdict}[/]"
        drawn.add_row(row.what, row.told(row.at_least), row.told(row.aim), measured(row), verdict)
    return drawn


def measured(row: Claim) -> str:
    return "—" if row.measured is None else f"{number(row.measured)} {row.unit}"


# ── The page ──────────────────────────────────────────────────────────────────────────────────────────────


def page(document: Mapping[str, Any]) -> str:
    """Return docs/benchmarks.md."""
    events = document.get("deliveries")
    parts = (*_head(document), *_shown(document), *_designs(document), *_product(document))
    told = (delivery_report.section(events),) if events else ()
    return "\n\n".join((*parts, APART.read_text(encoding="utf-8").rstrip("\n"), *told)) + "\n"


def _head(document: Mapping[str, Any]) -> list[str]:
    under = document["conditions"]
    facts = (
        ("measured", under["at"]),
        (
            "machine",
            f"{under['cores']} cores ({under['processor']}), {number(under['memory_gb'])} GB, {under['system']}",
        ),
        (
            "load before the start",
            f"{number(under['load_before'])} (others on the machine; 0 is what is wanted)",
        ),
        (
            "Postgres",
            f"{under['postgres']}, {under['durability']}; a flush takes {number(under['flush_ms'])} ms on this disk",
        ),
        ("Redis, Python", f"{under['redis']}, {under['python']}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in document["versions"].items())),
        ("command", f"`make bench{_arguments(document)}`, {document['rounds']} rounds"),
    )
    return [
        "# Benchmarks",
        (
            "The product beside other ways to build it, and against the bare limit of the machine; everything in one run on one machine: "
            "Postgres, Redis, gateway, load, and what is measured. Only the ratios mean something on another machine. This page, its "
            "pictures and `build/benchmarks.json` are written by `make bench`."
        ),
        rows_of(("", ""), facts),
    ]


def _arguments(document: Mapping[str, Any]) -> str:
    return f' ARGS="{document["arguments"]}"' if document["arguments"] else ""


def _shown(document: Mapping[str, Any]) -> list[str]:
    rows = [
        (row.what, row.told(row.at_least), row.told(row.aim), measured(row), row.verdict)
        for row in claims(document)
    ]
    lines = ["## What must be shown", rows_of(("what", "at least", "aim", "measured", "reached"), rows)]
    if any(row[-1] == NOT_MEASURED for row in rows):
        lines.append("What was not measured was left out by an option of the run, or cannot be measured yet.")
    return lines


def _designs(document: Mapping[str, Any]) -> list[str]:
    latencies = sorted({figure["latency_ms"] for figure in document["figures"]})
    parts = [
        "## The same work in other designs",
        (
            "The work: N orders from `received` to `awaiting_payment`, which is three calls to the gateway (authenticate, session, payment "
            "methods) and four moves, each with its row in the audit trail. The clock runs from the first order handed over to the last order "
            "awaiting payment, both by Postgres's clock; the processes are up and warm before. At the end of every run each order must be "
            "there with the gateway's token, session and methods and a trail of exactly its intake and these four moves, or everything "
            "fails. Each run has a database of its own and an empty Redis; the order of the designs turns round with every round."
        ),
        (
            "In favour of the others: their intake stores 100 orders in one transaction and enqueues in bulk, without HTTP; their rows "
            "are written without leases, versions to lose, encryption, events or a chained audit, by one statement a step but for the "
            "ORM's; their HTTP clients are the cheapest that fit the design."
        ),
    ]
    for latency in latencies:
        parts += [
            f"### Gateway that answers after {latency} ms",
            _rates(document, latency),
            f"![orders a second, {latency} ms](benchmarks-{latency}ms.svg)",
        ]
    parts.append("### What each is, and how it was set")
    parts += [_peer(peer, latencies) for peer in document["peers"]]
    return parts


def _rates(document: Mapping[str, Any], latency: int) -> str:
    rows = []
    for peer in document["peers"]:
        by_round = rates(document, peer["key"], latency)
        if not by_round:
            continue
        mine = [
            figure
            for figure in document["figures"]
            if (figure["peer"], figure["latency_ms"]) == (peer["key"], latency)
        ]
        cpu = (statistics.median(figure["cpu_ms_per_order"][kind] for figure in mine) for kind in _KINDS)
        values = list(by_round.values())
        rows.append(
            (
                peer["title"],
                number(statistics.median(values)),
                f"{number(min(values))} – {number(max(values))}",
                *map(number, cpu),
                f"{mine[0]['orders']:,}",
                f"{number(statistics.median(figure['others_cpu_percent'] for figure in mine))} %",
            )
        )
    head = (
        "design",
        "orders/s (median)",
        "least – greatest",
        "own CPU ms per order",
        "Postgres's",
        "Redis's",
        "orders in a run",
        "CPU that others had",
    )
    return rows_of(head, rows)


def _peer(peer: Mapping[str, Any], latencies: Sequence[int]) -> str:
    said = "; ".join(f"{latency} ms: {peer['settings'][str(latency)]}" for latency in latencies)
    callback = "" if peer["key"] == PRODUCT else f"({peer['key']}) "
    return f"**{callback}{peer['title']}** (`tests/benchmarks/{peer['module']}.py`). {peer['what']} Settings: {said}."


def _product(document: Mapping[str, Any]) -> list[str]:
    runs = document.get("lifecycle")
    if not runs:
        return []
    named = [("highest rate", run) for run in runs["highest"]]
    named += [
        ("steady", runs["steady"]),
        ("one at a time", runs["sequential"]),
        ("in flight", runs["in_flight"]),
    ]
    head = (
        "run",
        "rate",
        "orders",
        "orders/s",
        "intake p50 / p99 ms",
        "ready p50 / p99",
        "completed p50 / p99",
        "callback p50 / p99",
        "CPU ms api + worker + scheduler",
        "worker MB",
    )
    rows = [
        (
            name,
            "—"
            if run["rate"] is None
            else f"{number(run['rate'])}/s" + ("" if run["held"] else " (not held)"),
            f"{run['orders']:,}",
            number(run["orders_per_s"]),
            *(_pair(run["latency_ms"][kind]) for kind in ("intake", "ready", "completed", "callback")),
            number(run["product_cpu_ms_per_order"]),
            number(run["worker_rss_mb"]),
        )
        for name, run in named
    ]
    parts = [
        "## The product alone",
        (
            "`orchestrator bench`: orders arrive by chance at a rate (an open model, so that waiting is not hidden), shoppers pay, the gateway "
            "calls back twice at once, and at the end its books and ours are compared to the minor unit. Highest and steady: gateway "
            "log-normal with p50 120 ms and p99 380 ms, 0.7 % of its calls broken. One at a time: gateway of 0 ms. In flight: gateway of "
            "1 s, so that all that is claimed waits for it."
        ),
        rows_of(head, rows),
    ]
    growth = document.get("growth")
    if growth:
        pairs = ", ".join(f"{number(pair['empty'])} and {number(pair['full'])}" for pair in growth["rounds"])
        parts.append(
            f"With {growth['finished']:,} finished checkouts in the tables ({number(growth['size_gb'])} GB): orders a second on empty and "
            f"on full tables, by round: {pairs}."
        )
    return parts


def _pair(latency: Mapping[str, float | None]) -> str:
    middle, high = latency["p50"], latency["p99"]
    return "—" if middle is None or high is None else f"{number(middle)} / {number(high)}"


# ── Pictures ──────────────────────────────────────────────────────────────────────────────────────────────


def pictures(document: Mapping[str, Any]) -> dict[str, str]:
    """Return the pictures of the page by file name."""
    drawn = {}
    for latency in sorted({figure["latency_ms"] for figure in document["figures"]}):
        rows = []
        for peer in document["peers"]:
            values = list(rates(document, peer["key"], latency).values())
            if values:
                colour = {PRODUCT: OURS, BARE: LIMIT}.get(peer["key"], THEIRS)
                rows.append(Bar(peer["title"], statistics.median(values), min(values), max(values), colour))
        title = f"received → awaiting_payment, gateway of {latency} ms"
        drawn[f"benchmarks-{latency}ms.svg"] = bars(title, rows, unit="orders/s")
    return drawn

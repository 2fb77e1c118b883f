"""The section of docs/benchmarks.md about events and endpoints, made of the document of
`deliveries` alone.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any, Final

from orchestrator.devkit.bench.result import PRODUCT
from tests.benchmarks.bars import number, table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

TITLE: Final = "## Events to endpoints"
ORDERS: Final = {
    "orders": ("at one rate", "rate"),
    "overload": ("more arrive than can be completed", "orders_per_s"),
}
"""Parts that run `orchestrator bench`: what they are called, and where their rate is."""
DAY: Final = 50 * 86_400
"""Events."""
CONVOY: Final = 127
"""Milliseconds: Convoy's published latency at 200 events a second."""


def placed(page: str, document: Mapping[str, Any]) -> str:
    """Return the page with this section instead of the one that was there, or at its end."""
    before, _, old = page.partition(f"\n{TITLE}\n")
    _, following, after = old.partition("\n\n## ")
    return f"{before.rstrip()}\n\n{section(document)}{following or chr(10)}{after}"


def section(document: Mapping[str, Any]) -> str:
    """Return the section; parts that were not measured are left out."""
    under = document.get("conditions")
    parts = [TITLE]
    if under is not None:
        parts.append(
            f"`python -m tests.benchmarks.deliveries`, {under['at']}, {under['cores']} cores ({under['processor']}), {under['durability']}; "
            f"load before the start {number(under['load_before'])}. Postgres, the writer of events with the sequencer, the deliverer and the "
            "endpoints are on this machine; the endpoints are one light process, deliveries are signed, and each attempt is stored."
        )
    if document.get("note"):
        parts.append(document["note"])
    rows = lines(document)
    if rows:
        parts.append(
            table(
                ("what", "must be", "measured", "reached"),
                [(what, wanted, measured, "yes" if good else "no") for what, wanted, measured, good in rows],
            )
        )
    for name, drawn in (
        ("stream", _stream),
        ("backlog", _backlog),
        ("poison", _poison),
        ("outage", _outage),
        ("clients", _clients),
    ):
        if name in document:
            parts += drawn(document[name])
    parts += _orders(document)
    return "\n\n".join(parts)


def lines(document: Mapping[str, Any]) -> list[tuple[str, str, str, bool]]:
    """Return what must be shown: what, what is wanted, what was measured, and whether it was reached."""
    found: list[tuple[str, str, str, bool]] = []
    if "stream" in document:
        runs = [document["stream"][0], *document.get("poison", {}).get("without", ())]
        p95 = [run["p95_ms"] for run in runs]
        found.append(
            (
                (
                    f"commit → first byte at the endpoint, p95 at {number(runs[0]['rate'])} events/s, median of {len(runs)} runs "
                    f"(Convoy publishes {CONVOY} ms at 200/s)"
                ),
                "≤ 50 ms",
                f"{number(statistics.median(p95))} ms ({number(min(p95))} – {number(max(p95))})",
                statistics.median(p95) <= 50,
            )
        )
    if "backlog" in document:
        best = max(document["backlog"], key=lambda run: float(run["per_second"]))
        found.append(
            (
                "signed deliveries a second, everything on these cores",
                "≥ 1,000 /s",
                f"{number(best['per_second'])} /s",
                best["per_second"] >= 1000,
            )
        )
    if "poison" in document:
        ratio = document["poison"]["ratio"]
        found.append(
            (
                "1 % of checkouts answered with 500 for ever: p99 of the others at that endpoint, against without",
                "≤ 1.2 ×",
                f"{number(ratio)} ×",
                ratio <= 1.2,
            )
        )
    for run in document.get("outage", ()):
        bears = _bears(run)
        found += [
            (
                f"down for a day, {bears}: answers of 429 or 503 while it is caught up with",
                "< 1 %",
                f"{run['refused_percent']:.2f} %",
                run["refused_percent"] < 1,
            ),
            (
                "the same: p99 of another merchant's endpoint, against without",
                "≤ 1.2 ×",
                f"{number(run['ratio'])} ×",
                run["ratio"] <= 1.2,
            ),
        ]
    if any(part in document for part in ORDERS):
        ratios = order_ratios(document)
        for what, value, worse in (
            (
                "`orchestrator bench --webhook`: CPU of api + worker + scheduler an order, against without",
                0,
                1.1,
            ),
            ("the same with the deliverer's", 1, 1.1),
            ("the same with the deliverer's, while more orders arrive than can be completed", 2, 1.1),
            ("the highest rate: orders completed a second while more arrive, against without", 3, 0.9),
        ):
            ratio = ratios[value]
            if ratio is not None:
                good = ratio <= worse if worse > 1 else ratio >= worse
                found.append((what, "within 10 %", f"{ratio * 100 - 100:+.0f} %", good))
    return found


def order_ratios(document: Mapping[str, Any]) -> tuple[float | None, ...]:
    """Return CPU an order without and with the deliverer's, CPU with the deliverer's while more orders arrive
    than can be completed, and how many are completed a second then, with a webhook as parts of those without:
    medians over the turns.
    """

    def ratio(part: str, figure: Callable[[Mapping[str, Any]], float]) -> float | None:
        turns = document.get(part, {})
        pairs = zip(turns.get("with", ()), turns.get("without", ()), strict=True)
        found = [figure(that) / figure(this) for that, this in pairs]
        return statistics.median(found) if found else None

    def own(run: Mapping[str, Any]) -> float:
        return sum(run["cpu_ms_per_order"][kind] for kind in ("api", "worker", "scheduler"))

    def product(run: Mapping[str, Any]) -> float:
        return float(run["product_cpu_ms_per_order"])

    return (
        ratio("orders", own),
        ratio("orders", product),
        ratio("overload", product),
        ratio("overload", lambda run: float(run["orders_per_s"])),
    )


def _stream(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    head = ("events/s × endpoints", "deliveries", "p50 / p95 / p99 ms", *_CPU)
    rows = [
        (
            f"{number(run['rate'])} × {run['endpoints']}",
            f"{run['events']:,}",
            " / ".join(number(run[f"p{share}_ms"]) for share in (50, 95, 99)),
            *_cpu(run),
        )
        for run in runs
    ]
    return [
        "Events are committed one at a time, each of a checkout of its own. From the moment after the commit to the first byte:",
        table(head, rows),
    ]


def _backlog(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    head = ("deliverers", "deliveries", "deliveries/s", *_CPU)
    rows = [
        (str(run["deliverers"]), f"{run['deliveries']:,}", number(run["per_second"]), *_cpu(run))
        for run in runs
    ]
    one = runs[0]
    return [
        f"What waits ({one['checkouts']:,} checkouts of 4 events, {one['endpoints']} endpoints), from the first delivery to the last:",
        table(head, rows),
    ]


def _poison(found: Mapping[str, Any]) -> list[str]:
    pairs = zip(found["without"], found["with"], strict=True)
    times = ", ".join(f"{number(this['p99_ms'])} and {number(that['p99_ms'])}" for this, that in pairs)
    return [
        (
            f"An endpoint that refuses none and one that refuses one checkout in a hundred for ever, in turn at {number(found['rate'])} events/s "
            f"({found['refused']} refusals): p99 ms of the others by turn: {times}."
        )
    ]


def _outage(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    head = (
        "it bears",
        "events of the day",
        "caught up in s",
        "deliveries/s",
        "refused of requests",
        "another's p99 ms alone / beside",
    )
    rows = [
        (
            _bears(run),
            f"{run['events']:,}",
            number(run["seconds"]),
            number(run["per_second"]),
            f"{run['refused']:,} of {run['requests']:,}",
            f"{number(run['other_alone']['p99_ms'])} / {number(run['other_beside']['p99_ms'])}",
        )
        for run in runs
    ]
    return [
        (
            "An endpoint answers with 503 for 24 hours (Postgres's clock is moved on hour by hour) in which the events of a day at 50/s are "
            f"written, scaled by 1:{DAY / runs[0]['events']:.0f}. Then it bears what the table says and refuses what is beyond; it is not resumed by hand. Before, "
            "after and meanwhile 50 events a second come for it and 50 for another merchant's endpoint."
        ),
        table(head, rows),
    ]


def _clients(found: Mapping[str, Any]) -> list[str]:
    cpu = found["cpu_ms"]
    return [
        (
            f"CPU of the sending process for a signed delivery, {found['at_once']} at a time, {found['deliveries']:,} in each turn: the product's "
            f"sender (aiohttp, its addresses checked) {number(cpu['sender'])} ms, aiohttp alone {number(cpu['aiohttp'])}, "
            f"httpx over aiohttp {number(cpu['httpx_aiohttp'])}, httpx {number(cpu['httpx'])}, which is "
            f"{number(cpu['httpx'] / cpu['sender'])} times as much as the sender's."
        )
    ]


def _orders(document: Mapping[str, Any]) -> list[str]:
    rows = []
    for part, (title, figure) in ORDERS.items():
        for name in ("without", "with"):
            runs = document.get(part, {}).get(name, ())
            if runs:
                cpu = {
                    kind: statistics.median(run["cpu_ms_per_order"].get(kind, 0.0) for run in runs)
                    for kind in (*PRODUCT, "postgres", "gateway")
                }
                rate = statistics.median(run[figure] for run in runs)
                product = statistics.median(run["product_cpu_ms_per_order"] for run in runs)
                rows.append(
                    (title, name, number(rate), number(product), *(number(each) for each in cpu.values()))
                )
    head = ("run", "webhook", "orders/s", "CPU ms an order", *PRODUCT, "Postgres", "gateway and endpoint")
    if not rows:
        return []
    return [
        "`orchestrator bench` with one webhook endpoint and without, in turn; the light gateway takes the deliveries:",
        table(head, rows),
    ]


_CPU: Final = (
    "CPU ms a delivery: deliverer",
    "Postgres",
    "writer, sequencer",
    "endpoints",
    "CPU that others had",
)


def _cpu(run: Mapping[str, Any]) -> tuple[str, ...]:
    cpu = run["cpu_ms"]
    return (
        *(number(cpu[name]) for name in ("deliverer", "postgres", "writer and sequencer", "endpoints")),
        f"{number(run['cpu_percent']['others'])} %",
    )


def _bears(run: Mapping[str, Any]) -> str:
    bears = run["bears"]
    if bears["rate"]:
        return f"{number(bears['rate'])}/s (429 beyond)"
    return f"{bears['at_once']} at a time, {number(bears['seconds'] * 1000)} ms each (503 beyond)"

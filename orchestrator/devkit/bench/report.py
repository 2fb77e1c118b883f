"""A run as one page that needs nothing else: key figures, plots as inline SVG, tables, conditions.

No script, no font, no address: it can be sent by mail and read in ten years. Nothing in it is about a
shopper.
"""

from __future__ import annotations

import html
import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from orchestrator.devkit.bench import figures, result
from orchestrator.devkit.bench.charts import Series, lines
from orchestrator.devkit.bench.display import NAMES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.devkit.bench.setup import Run

_NONE: Final = "·"
_SHARES: Final = (25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9)
_FEWEST: Final = 100.0
"""A percentile is drawn where at least one value lies beyond it."""

_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1a1a1a; --dim: #666; --line: #ddd; --paper: #fff; --card: #f6f6f4 }
@media (prefers-color-scheme: dark) { :root { --ink: #eaeaea; --dim: #a0a0a0; --line: #3a3a3a; --paper: #161616; --card: #202020 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1180px; margin: 2rem auto; padding: 0 1.2rem }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1rem; margin: 0 0 .5rem } p { margin: .3rem 0 1.2rem; color: var(--dim) }
.good { color: #009e73 } .bad { color: #d55e00; font-weight: 600 }
.keys { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0 }
.keys div { background: var(--card); border-radius: 8px; padding: .6rem 1rem; min-width: 8rem }
.keys b { display: block; font-size: 1.45rem; font-weight: 600 } .keys span { color: var(--dim); font-size: .82rem }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 1.2rem }
figure { margin: 0; background: var(--card); border-radius: 8px; padding: .9rem }
svg { width: 100%; height: auto; display: block } svg text { fill: var(--dim); font-size: 11px }
svg .grid { stroke: var(--line) } .legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .82rem; color: var(--dim) }
.legend i { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .4em }
table { border-collapse: collapse; margin: 0 0 1rem; width: 100% }
td, th { padding: .2rem .6rem .2rem 0; text-align: right; border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums }
td:first-child, th:first-child { text-align: left } th { font-weight: 400; color: var(--dim) }
"""


def page(run: Run, document: dict[str, Any]) -> str:
    """Return the page."""
    wrong = run.ledger.sentences()
    verdict = (
        f'<span class="bad">{html.escape("; ".join(wrong))}</span>'
        if wrong
        else '<span class="good">Nothing was lost or doubled; both books agree to the minor unit.</span>'
    )
    conditions = document["conditions"]
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8"/><title>orchestrator bench</title>',
            f'<meta name="viewport" content="width=device-width"/><style>{_STYLE}</style></head><body>',
            f"<h1>{document['orders']} orders, {document['orders_per_s']:.1f} a second</h1><p>{verdict}</p>",
            _keys(document),
            '<div class="plots">',
            *(_figure(title, drawn) for title, drawn in _plots(run)),
            _figure("Times in milliseconds", _times(document)),
            _figure("CPU milliseconds for one order", _costs(document)),
            *([_figure("Rates tried", _tries(document["ramp"]))] if document.get("ramp") else []),
            _figure(
                "Conditions",
                _table(
                    ("", ""), [(name.replace("_", " "), str(value)) for name, value in conditions.items()]
                ),
            ),
            "</div></body></html>",
        ]
    )


def _keys(document: dict[str, Any]) -> str:
    latency = document["latency_ms"]
    keys = [
        (f"{document['rate']:.1f}/s" if document["rate"] else "as fast as taken", "arrivals"),
        (_ms(latency["intake"]["p99"]), "intake answered, p99"),
        (_ms(latency["ready"]["p50"]), "until it can be paid, p50"),
        (_ms(latency["completed"]["p99"]), "payment to completed, p99"),
        (_ms(latency["callback"]["p99"]), "callback answered, p99"),
        (f"{document['product_cpu_ms_per_order']:.2f} ms", "CPU of the product for one order"),
        (f"{document['worker_rss_mb']:.0f} MB", "memory of a worker, at most"),
        (f"{document['flush_ms']:.2f} ms", "a flush of the disk"),
        (f"{document['others_cpu_percent']:.0f} %", "of the machine's CPU taken by others"),
    ]
    return (
        '<div class="keys">'
        + "".join(f"<div><b>{key}</b><span>{what}</span></div>" for key, what in keys)
        + "</div>"
    )


def _ms(value: float | None) -> str:
    return _NONE if value is None else f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms"  # noqa: PLR2004 - three digits


def _plots(run: Run) -> list[tuple[str, str]]:
    began = run.sent.began
    last = max([*run.ended, *(run.sent.due or [began])], default=began) - began
    seconds = max(math.ceil(last + 0.001), 1)
    arrived = run.sent.moments
    ready = [row.offered_at - began for row in run.rows if row.offered_at is not None]
    ended = [moment - began for moment in run.ended]
    rates = [
        ("arrived", arrived),
        ("ready to be paid", ready),
        *([("completed", ended)] if run.whole else []),
    ]
    left = [("not ready yet", ready), *([("not completed yet", ended)] if run.whole else [])]

    def over_time(counts: Sequence[int]) -> list[tuple[float, float]]:
        return [(second + 0.5, float(count)) for second, count in enumerate(counts)]

    return [
        ("Latency by percentile, milliseconds", _percentiles(run)),
        (
            "Orders a second",
            lines(
                [Series(name, over_time(figures.per_second(each, seconds=seconds))) for name, each in rates],
                along="seconds",
            ),
        ),
        (
            "Orders under way",
            lines(
                [
                    Series(name, over_time(figures.waiting(arrived, each, seconds=seconds)))
                    for name, each in left
                ],
                along="seconds",
            ),
        ),
        ("CPU, percent of one core", lines(_processor(run), along="seconds")),
    ]


def _percentiles(run: Run) -> str:
    """Draw each percentile's time; towards the right the rare ones are pulled apart, as logarithms."""
    series = []
    for name, values in result.latencies(run).items():
        ordered = sorted(values)
        shares = [share for share in _SHARES if len(ordered) * (100 - share) >= _FEWEST]
        points = [(_nines(share), max(figures.percentile(ordered, share), 0.1)) for share in shares]
        if points:
            series.append(Series(NAMES[name], points))
    marks = [(_nines(share), f"p{share:g}") for share in (50, 90, 99, 99.9)]
    return lines(series, along="", marks=marks, logarithmic=True)


def _nines(share: float) -> float:
    return -math.log10(1 - share / 100)


def _processor(run: Run) -> list[Series]:
    samples, series = run.samples, []
    for kind in (*result.PRODUCT, *result.BESIDE):
        points = [
            (
                (before.at + after.at) / 2 - run.sent.began,
                max(after.used.get(kind, 0.0) - before.used.get(kind, 0.0), 0.0)
                / (after.at - before.at)
                * 100,
            )
            for before, after in pairwise(samples)
            if after.at - before.at > 0.1  # noqa: PLR2004 - a shorter span says nothing
        ]
        if points and kind in run.cpu:
            series.append(Series(kind, points))
    return series


def _figure(title: str, inside: str) -> str:
    return f"<figure><h2>{html.escape(title)}</h2>{inside}</figure>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return (
        f"<table>{row(head, 'th') if any(head) else ''}{''.join(row(cells, 'td') for cells in rows)}</table>"
    )


def _times(document: dict[str, Any]) -> str:
    spans = {NAMES[name]: values for name, values in document["latency_ms"].items()}
    rows = [
        (name, *(_NONE if values[share] is None else f"{values[share]:.1f}" for share in figures.TOLD))
        for name, values in spans.items()
    ]
    return _table(("", *figures.TOLD), rows)


def _costs(document: dict[str, Any]) -> str:
    cpu = document["cpu_ms_per_order"]
    rows = [(kind, f"{value:.2f}") for kind, value in cpu.items()]
    return _table(
        ("process", "ms"),
        [*rows, ("api + worker + scheduler + deliverer", f"{document['product_cpu_ms_per_order']:.2f}")],
    )


def _tries(ramp: Sequence[dict[str, Any]]) -> str:
    rows = [
        (f"{attempt['rate']:.1f}/s", "held" if attempt["held"] else "not held", attempt["why"])
        for attempt in ramp
    ]
    return _table(("rate", "", "why"), rows)

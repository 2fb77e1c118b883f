"""A run as one page that needs nothing else: key figures, plots as inline SVG, tables, conditions.

No script, no font, no address: it can be sent by mail and read in ten years. Nothing in it is about a
shopper. The colours of the plots can be distinguished by colour-blind readers.
"""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import jinja2
from markupsafe import Markup

from orchestrator.devkit.bench import result
from orchestrator.devkit.bench.display import NAMES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from orchestrator.devkit.bench.setup import Run

_NONE: Final = "·"
_SHARES: Final = (25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9)
_FEWEST: Final = 100.0
"""A percentile is drawn where at least one value lies beyond it."""
_TEMPLATES: Final = jinja2.Environment(
    loader=jinja2.PackageLoader("orchestrator.devkit.bench"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
)


def page(run: Run, document: dict[str, Any]) -> str:
    product = ("api + worker + scheduler + deliverer", document["product_cpu_ms_per_order"])
    cpu = [(kind, f"{spent:.2f}") for kind, spent in (*document["cpu_ms_per_order"].items(), product)]
    times = [
        (NAMES[name], *(_NONE if each[share] is None else f"{each[share]:.1f}" for share in result.TOLD))
        for name, each in document["latency_ms"].items()
    ]
    tried = [
        (f"{each['rate']:.1f}/s", "held" if each["held"] else "not held", each["why"])
        for each in document.get("ramp") or ()
    ]
    tables: list[tuple[str, Any, Any]] = [
        ("Times in milliseconds", [("", *result.TOLD)], times),
        ("CPU milliseconds for one order", [("process", "ms")], cpu),
        *([("Rates tried", [("rate", "", "why")], tried)] if tried else ()),
        (
            "Conditions",
            [],
            [(name.replace("_", " "), value) for name, value in document["conditions"].items()],
        ),
    ]
    shown = {"keys": _keys(document), "plots": _plots(run), "tables": tables}
    template = _TEMPLATES.get_template("report.html")
    return template.render(document=document, wrong=run.ledger.sentences(), **shown)


def _keys(document: dict[str, Any]) -> list[tuple[str, str]]:
    latency = document["latency_ms"]
    return [
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


def _ms(value: float | None) -> str:
    return _NONE if value is None else f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms"  # noqa: PLR2004 - three digits


def _plots(run: Run) -> list[tuple[str, Markup]]:
    began = run.sent.began
    last = max([*run.ended, *(run.sent.due or [began])], default=began) - began
    seconds = max(math.ceil(last + 0.001), 1)
    arrived = run.sent.moments
    ready = [row.offered_at - began for row in run.rows if row.offered_at is not None]
    ended = [moment - began for moment in run.ended]
    rates = {"arrived": arrived, "ready to be paid": ready}
    left = {"not ready yet": ready}
    if run.whole:
        rates["completed"] = left["not completed yet"] = ended

    def over_time(counted: dict[str, list[int]]) -> Markup:
        middles = {
            name: [(second + 0.5, float(n)) for second, n in enumerate(counts)]
            for name, counts in counted.items()
        }
        return lines([Series(*each) for each in middles.items()], along="seconds")

    arrivals = {name: result.per_second(each, seconds=seconds) for name, each in rates.items()}
    waiting = {name: result.waiting(arrived, each, seconds=seconds) for name, each in left.items()}
    return [
        ("Latency by percentile, milliseconds", _percentiles(run)),
        ("Orders a second", over_time(arrivals)),
        ("Orders under way", over_time(waiting)),
        ("CPU, percent of one core", lines(_processor(run), along="seconds")),
    ]


def _percentiles(run: Run) -> Markup:
    """Draw each percentile's time; towards the right the rare ones are pulled apart, as logarithms."""
    series = []
    for name, values in result.latencies(run).items():
        ordered = sorted(values)
        shares = [share for share in _SHARES if len(ordered) * (100 - share) >= _FEWEST]
        points = [(_nines(share), max(result.percentile(ordered, share), 0.1)) for share in shares]
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


# ── Charts ──

COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#b8a900")
"""Okabe and Ito."""

_WIDTH, _HEIGHT = 560, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 22, 12, 34
_TICKS: Final = 5


@dataclass(frozen=True, slots=True)
class Series:
    name: str
    points: list[tuple[float, float]]


def lines(
    series: Sequence[Series],
    *,
    along: str,
    marks: Sequence[tuple[float, str]] = (),
    logarithmic: bool = False,
) -> Markup:
    """Return lines with a grid and a legend, as HTML; `marks` replace the numbers of the axis `along`."""
    points = [point for line in series for point in line.points]
    if not points:
        return Markup("<p>Nothing was measured.</p>")
    low, high = min(x for x, _ in points), max(x for x, _ in points)
    most = max(y for _, y in points)
    ticks = _powers(min(y for _, y in points), most) if logarithmic else _steps(most)
    scaled: Callable[[float], float] = math.log10 if logarithmic else float
    bottom, top = scaled(ticks[0]), scaled(ticks[-1])

    def across(x: float) -> float:
        return _LEFT + (x - low) / ((high - low) or 1) * (_WIDTH - _LEFT - _RIGHT)

    def up(y: float) -> float:
        return _HEIGHT - _BOTTOM - (scaled(y) - bottom) / ((top - bottom) or 1) * (_HEIGHT - _TOP - _BOTTOM)

    def text(x: object, y: object, words: str, anchor: str) -> str:
        return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{html.escape(words)}</text>'

    drawn = [
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{up(tick):.1f}" y2="{up(tick):.1f}"/>'
        + text(_LEFT - 6, f"{up(tick) + 4:.1f}", f"{tick:g}", "end")
        for tick in ticks
    ]
    drawn += [
        text(f"{across(x):.1f}", _HEIGHT - _BOTTOM + 16, name, "middle")
        for x, name in marks or [(x, f"{x:g}") for x in _steps(high)]
        if low <= x <= high
    ]
    drawn.append(text(_WIDTH - _RIGHT, _HEIGHT - 4, along, "end"))
    legend = ""
    for place, line in enumerate(series):
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in line.points)
        colour = COLOURS[place % len(COLOURS)]
        drawn.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8" stroke-linejoin="round"/>'
        )
        legend += f'<span><i style="background:{colour}"></i>{html.escape(line.name)}</span>'
    return Markup(  # noqa: S704 - every text in it is escaped
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{"".join(drawn)}</svg><div class="legend">{legend}</div>'
    )


def _steps(most: float) -> list[float]:
    """Return round numbers from 0 to at least `most`."""
    if most <= 0:
        return [0.0, 1.0]
    rough = most / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [round(step * number, 10) for number in range(math.ceil(round(most / step, 9)) + 1)]


def _powers(least: float, most: float) -> list[float]:
    """Return the powers of ten from at most `least` to at least `most`."""
    first, last = math.floor(math.log10(least)), math.ceil(math.log10(most))
    return [10.0**power for power in range(first, max(last, first + 1) + 1)]

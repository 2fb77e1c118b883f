"""Charts as SVG, without any package: lines with a grid and a legend for a page, bars for a document.

No script, no font, no address. The colours can be distinguished by colour-blind readers. Text in an inline
chart is styled by its page; a picture of bars has its own style, light or dark.
"""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from orchestrator.devkit.bench.figures import number

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#b8a900")
"""Okabe and Ito."""
OURS, LIMIT, THEIRS = COLOURS[0], COLOURS[4], "#999999"


# ── Lines ─────────────────────────────────────────────────────────────────────────────────────────────────

_WIDTH, _HEIGHT = 560, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 22, 12, 34
_TICKS: Final = 5


@dataclass(frozen=True, slots=True)
class Series:
    """One line."""

    name: str
    points: list[tuple[float, float]]


def lines(
    series: Sequence[Series],
    *,
    along: str,
    marks: Sequence[tuple[float, str]] = (),
    logarithmic: bool = False,
) -> str:
    """Return lines with a grid and a legend, as HTML; `along` names the axis to the right, on which `marks`
    take the place of numbers.
    """
    points = [point for line in series for point in line.points]
    if not points:
        return "<p>Nothing was measured.</p>"
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
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{"".join(drawn)}</svg><div class="legend">{legend}</div>'


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


# ── Bars ──

_BARS_WIDTH: Final = 760
_NAMES: Final = 190
_VALUES: Final = 130
_ROW: Final = 34
_BAR: Final = 18
_HEAD: Final = 46

_STYLE: Final = (
    "text{font:13px system-ui,sans-serif;fill:#333}.title{font-weight:600;font-size:14px}.value{font-variant-numeric:tabular-nums}"
    "line{stroke:#333}@media(prefers-color-scheme:dark){text{fill:#ddd}line{stroke:#ddd}}"
)


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: what it is, its median, and the least and greatest of its rounds, to which a thin line
    reaches.
    """

    name: str
    value: float
    least: float
    greatest: float
    colour: str = THEIRS


def bars(title: str, rows: Sequence[Bar], *, unit: str) -> str:
    """Return a picture of bars on one linear scale that begins at 0."""
    most = max((row.greatest for row in rows), default=0.0) or 1.0
    room = _BARS_WIDTH - _NAMES - _VALUES

    def across(value: float) -> float:
        return round(_NAMES + room * value / most, 1)

    height = _HEAD + _ROW * len(rows) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_BARS_WIDTH} {height}" role="img" aria-label="{html.escape(title)}">',
        f"<style>{_STYLE}</style>",
        f'<text class="title" x="8" y="24">{html.escape(title)}</text>',
    ]
    for place, row in enumerate(rows):
        top = _HEAD + place * _ROW
        middle = top + _BAR / 2
        parts += [
            f'<text x="{_NAMES - 10}" y="{middle + 5}" text-anchor="end">{html.escape(row.name)}</text>',
            f'<rect x="{_NAMES}" y="{top}" width="{round(across(row.value) - _NAMES, 1)}" height="{_BAR}" fill="{row.colour}"/>',
            f'<line x1="{across(row.least)}" x2="{across(row.greatest)}" y1="{middle}" y2="{middle}"/>',
            f'<text class="value" x="{across(row.greatest) + 8}" y="{middle + 5}">{number(row.value)} {html.escape(unit)}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])

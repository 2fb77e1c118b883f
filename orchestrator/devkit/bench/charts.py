"""Charts as SVG, without any package: lines with a grid and a legend for a page.

No script, no font, no address. The colours can be distinguished by colour-blind readers. The text of a chart
is styled by its page.
"""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#b8a900")
"""Okabe and Ito."""


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

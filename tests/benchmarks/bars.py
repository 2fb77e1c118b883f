"""How figures are written in a document: numbers, tables of Markdown, and pictures of bars as SVG, light or
dark by a style of their own.
"""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from orchestrator.devkit.bench.report import COLOURS

if TYPE_CHECKING:
    from collections.abc import Sequence

OURS, LIMIT, THEIRS = COLOURS[0], COLOURS[4], "#999999"

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


def number(value: float) -> str:
    """Write a number with three digits that count, and no more than two decimals."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = min(max(2 - math.floor(math.log10(abs(value))), 0), 2)
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table of Markdown."""
    drawn = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*drawn, *(f"| {' | '.join(row)} |" for row in rows)])


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

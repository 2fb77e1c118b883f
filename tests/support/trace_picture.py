"""Draws the spans of an order as the picture of docs/traces.md: a bar for each span, below its parent."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_ROW, _LEFT, _WIDTH, _TOP = 18, 290, 560, 40
_COLOURS = {"SERVER": "#4c78a8", "CLIENT": "#f58518", "PRODUCER": "#54a24b", "INTERNAL": "#9d9da8"}


def draw(spans: Sequence[Any]) -> str:
    """Return an SVG: each trace with a scale of its own, in the order of their beginnings."""
    traces: dict[int, list[Any]] = {}
    for span in sorted(spans, key=lambda span: span.start_time):
        traces.setdefault(span.context.trace_id, []).append(span)
    first = min(span.start_time for span in spans)
    parts, top = [], 10
    for trace, members in traces.items():
        begin, end = min(s.start_time for s in members), max(s.end_time for s in members)
        title = f"trace {trace:032x}"
        if linked := next((link for span in members for link in span.links), None):
            title += f", {_ago(begin - first)} later, linked to {linked.context.trace_id:032x}"
        parts.append(f'<text x="10" y="{top + 14}" font-weight="bold">{escape(title)}</text>')
        top += 24
        scale = _WIDTH / max(end - begin, 1)
        for span, depth in _tree(members):
            left = _LEFT + (span.start_time - begin) * scale
            width = max((span.end_time - span.start_time) * scale, 1.5)
            took = (span.end_time - span.start_time) / 1e6
            parts += [
                f'<text x="{10 + 12 * depth}" y="{top + 12}">{escape(span.name)}</text>',
                f'<rect x="{left:.1f}" y="{top + 2}" width="{width:.1f}" height="12" fill="{_COLOURS[span.kind.name]}"/>',
                f'<text x="{_LEFT + _WIDTH + 8}" y="{top + 12}">{took:.1f} ms</text>',
            ]
            top += _ROW
        top += 14
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 90}" height="{top}" font-family="sans-serif" font-size="11">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )


def _tree(members: Sequence[Any]) -> list[tuple[Any, int]]:
    ids = {span.context.span_id for span in members}
    children: dict[int, list[Any]] = {}
    for span in members:
        parent = span.parent.span_id if span.parent is not None and span.parent.span_id in ids else 0
        children.setdefault(parent, []).append(span)
    rows: list[tuple[Any, int]] = []

    def add(parent: int, depth: int) -> None:
        for span in children.get(parent, ()):
            rows.append((span, depth))
            add(span.context.span_id, depth + 1)

    add(0, 0)
    return rows


def _ago(nanoseconds: int) -> str:
    hours = nanoseconds / 3.6e12
    return f"{hours / 24:.1f} days" if hours >= 24 else f"{hours:.1f} hours"

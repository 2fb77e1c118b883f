"""The terminal output of a run: its progress, as a drawing or as lines, and its result."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from rich.console import Group
from rich.table import Table
from rich.text import Text

from orchestrator.devkit.bench.result import BESIDE, PRODUCT
from orchestrator.devkit.local.terminal import bars

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from orchestrator.devkit.bench.setup import Progress
    from orchestrator.devkit.local.terminal import Terminal

NAMES: Final = {
    "intake": "intake answered", "ready": "intake → awaiting_payment", "completed": "payment → completed",
    "callback": "callback answered",
}  # fmt: skip
"""The four times that a run measures."""
_NOTICED: Final = 5.0
"""Percent."""


@contextmanager
def watching(terminal: Terminal) -> Iterator[Callable[[Progress], None]]:
    with terminal.watching(transient=True) as show:
        yield lambda progress: show(lambda: _drawn(progress), lambda: line(progress))


def line(progress: Progress) -> str:
    sent, seconds = progress.sent, time.monotonic() - progress.began
    failed = f", {sent.failed} not taken" if sent.failed else ""
    what = "waiting for the last" if progress.over else f"slowest answer {sent.slowest:.0f} ms"
    return (
        f"{progress.title}  {seconds:3.0f} s  {sent.sent} sent{failed}, {progress.ready} ready, {progress.ended} ended, "
        f"{progress.left.open} under way; {what}"
    )


def _drawn(progress: Progress) -> Group:
    sent = progress.sent
    rows = (
        ("sent", sent.sent, "bright_black"),
        ("taken", sent.taken, "cyan"),
        ("ready to be paid", progress.ready, "blue"),
        ("ended", progress.ended, "green"),
        ("under way", progress.left.open, "yellow"),
        ("not taken", sent.failed, "red"),
    )
    table = bars(rows, most=max(sent.sent, 1))
    seconds = time.monotonic() - progress.began
    what = "waiting for the last orders" if progress.over else f"slowest answer {sent.slowest:.0f} ms"
    return Group(Text(f"\n  {progress.title}   {seconds:.0f} s   {what}", style="dim"), table)


def summary(document: dict[str, Any]) -> Table:
    """Draw the times that a run measured."""
    times = Table(box=None, padding=(0, 2, 0, 2), header_style="dim", pad_edge=False)
    for title in ("milliseconds", "p50", "p95", "p99"):
        times.add_column(title, justify="left" if title == "milliseconds" else "right", no_wrap=True)
    spans = {NAMES[name]: values for name, values in document["latency_ms"].items() if name in NAMES}
    beyond = document.get("beyond_gateway_ms")
    if beyond:
        spans["beyond the gateway's own time"] = beyond
    for name, values in spans.items():
        if values["p50"] is not None:
            times.add_row(name, *(f"{values[share]:.1f}" for share in ("p50", "p95", "p99")))
    return times


def facts(document: dict[str, Any]) -> Sequence[tuple[str, str]]:
    """Return the other figures of a run, a line each."""
    conditions, gateway = document["conditions"], document["gateway"]
    durable = "every commit is on disk" if conditions["durable"] else "commits may be lost with the machine"
    cpu = document["cpu_ms_per_order"]
    ours, beside = (
        ", ".join(f"{kind} {cpu[kind]:.2f}" for kind in kinds if kind in cpu) for kinds in (PRODUCT, BESIDE)
    )
    memory = (
        f"worker {worker['peak']:.0f} MB at most, {worker['final']:.0f} MB at the end"
        for worker in document["workers_rss_mb"]
    )
    rows = {
        "Processed": f"{document['orders']} orders, {document['orders_per_s']:.1f}/s",
        "CPU": f"{document['product_cpu_ms_per_order']:.2f} ms an order: {ours}; beside it {beside}",
        "Memory": ", ".join(memory),
        "Postgres": f"{conditions['postgres']}, {durable}; a flush of this disk takes {document['flush_ms']:.2f} ms",
    }
    if gateway["calls"]:
        calls, faults = (sum(gateway[name].values()) for name in ("calls", "faults"))
        latency = conditions["gateway_latency"]
        rows["Gateway"] = f"{calls} calls, {faults} of them broken; latency {latency}"
    if delivered := document["webhook"]:
        rows["Webhook"] = f"{delivered['received']} of {delivered['written']} events delivered"
    others = document["others_cpu_percent"]
    if others >= _NOTICED:
        rows["Machine"] = (
            f"{others:.0f} % of its CPU went to other processes: figures are worse than they would be alone"
        )
    return [row for row in rows.items() if row[1]]

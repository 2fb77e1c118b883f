"""The product against other designs and against what it must show, in one run: `make bench ARGS="…"`.

Writes `build/benchmarks.json`, `build/benchmarks.md` and the pictures beside it; a whole run also
docs/benchmarks.md. The exit status says whether everything could be measured and every order was where it
should be, not whether it was fast.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from rich.console import Console
from rich.markup import escape

from orchestrator.devkit.local.servers import EmbeddedError
from orchestrator.store import schema
from tests.benchmarks import claims, deliveries, growth, isolation, lifecycle, report, rounds
from tests.benchmarks.conditions import conditions, versions
from tests.benchmarks.ground import BenchmarkFailed, Ground
from tests.benchmarks.peers import LATENCIES, PEERS, PRODUCT, SOON
from tests.benchmarks.work import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.benchmarks.rounds import Figure

WHOLE_ROUNDS = 3


def arguments(given: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rounds",
        type=int,
        default=WHOLE_ROUNDS,
        help="how often each design is measured (default: %(default)s)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=6.0,
        help="about how long one design is measured in a round (default: %(default)g)",
    )
    parser.add_argument(
        "--only",
        type=_keys,
        default=list(PEERS),
        metavar="a,c,product",
        help="these designs alone: " + ", ".join(f"{key} ({peer.title})" for key, peer in PEERS.items()),
    )
    parser.add_argument(
        "--latency",
        type=int,
        action="append",
        choices=LATENCIES,
        help="this latency of the gateway alone, in ms",
    )
    parser.add_argument(
        "--no-lifecycle",
        action="store_true",
        help="leave out what `orchestrator bench` measures of the product alone",
    )
    parser.add_argument("--no-deliveries", action="store_true", help="leave out events to webhook endpoints")
    parser.add_argument(
        "--full",
        action="store_true",
        help="also with 2 million finished checkouts (15 GB of disk, some minutes more)",
    )
    parser.add_argument("--finished", type=int, default=claims.HISTORY, help=argparse.SUPPRESS)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a smoke run: everything once and short; its figures mean nothing",
    )
    parser.add_argument(
        "--page", type=Path, metavar="JSON", help="measure nothing: make the page again from this document"
    )
    found = parser.parse_args(given)
    if found.quick:
        found.rounds, found.seconds = 1, min(found.seconds, 1.0)
    if found.rounds < 1 or found.seconds <= 0:
        parser.error("--rounds and --seconds must be greater than 0")
    return found


def _keys(text: str) -> list[str]:
    wanted = text.split(",")
    unknown = [key for key in wanted if key not in PEERS]
    if unknown:
        message = f"must be some of {','.join(PEERS)}, not {','.join(unknown)}"
        raise argparse.ArgumentTypeError(message)
    return [key for key in PEERS if key in wanted]


class Display:
    """The progress output: one line that changes on a terminal, and a line for each figure."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        if not self.console.is_terminal:
            self.console.width = 160

    def figure(self, figure: Figure) -> None:
        cpu = " ".join(f"{name} {value:.2f}" for name, value in figure.cpu_ms.items())
        self.console.print(
            f"  {PEERS[figure.peer].title:22} {figure.latency:3} ms  round {figure.round} {figure.orders:6,} orders in "
            f"{figure.seconds:6.2f} s  {figure.rate:8.1f}/s   CPU ms an order: {cpu}; others {figure.others:.0%}"
        )
        if abs(figure.calls - 3) > 0.01:
            self.console.print(f"    {figure.calls:.2f} calls to the gateway for one order, and not 3")


def measure(given: argparse.Namespace, document: dict[str, Any], display: Display) -> None:
    """Measure what is asked for, and note it in the document as it comes."""
    console = display.console

    def say(told: str) -> None:
        console.print(f"  {told}")

    length = deliveries.QUICK if given.quick else deliveries.Length()
    with console.status("starting") as status, Ground.start() as ground:
        under = document["conditions"] = conditions(ground)
        say(
            f"{under['cores']} cores, Postgres {under['postgres']} ({under['durability']}), flush {under['flush_ms']} ms, load "
            f"{under['load_before']}"
        )
        if under["load_before"] > 0.5:
            say("[yellow]Others use this machine: figures will be worse and more scattered.[/]")
        for figure in rounds.measure(
            ground,
            keys=given.only,
            latencies=given.latency or LATENCIES,
            rounds=given.rounds,
            seconds=given.seconds,
            show=status.update,
        ):
            display.figure(figure)
            document["figures"].append(figure.document())
        if given.full:
            document["growth"] = grown(ground, given, display, status.update)
        if not given.no_deliveries:
            document["deliveries"] = {
                "conditions": under,
                **deliveries.measure(ground, length, status.update, parts=deliveries.ON_GROUND),
            }
    if not given.no_lifecycle:
        document["quiet_merchant"] = isolation.quiet_merchant(seconds=5.0 if given.quick else 100.0, show=say)
        document["lifecycle"] = lifecycle.measure(lifecycle.QUICK if given.quick else lifecycle.Length(), say)
    if not given.no_deliveries:
        document["deliveries"] |= deliveries.measure(None, length, say, parts=("orders", "overload"))


def grown(
    ground: Ground, given: argparse.Namespace, display: Display, show: Callable[[str], None]
) -> dict[str, Any]:
    """Measure the product on empty tables and on tables full of history, in turn."""
    orders = max(round(PRODUCT.cells[SOON].rate * given.seconds), 20)
    pairs: list[dict[str, float]] = []
    with ground.database("full") as full:
        schema.migrate(full)
        took = growth.grow(full, finished=given.finished, show=show)
        with psycopg.connect(full) as connection:
            row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
            assert row is not None
            size = int(row[0]) / 1e9
        display.console.print(f"  {given.finished:,} finished checkouts, {size:.1f} GB, made in {took:.0f} s")
        for number in range(1, given.rounds + 1):
            with ground.database(f"empty_{number}") as empty:
                found = {
                    name: rounds.run(
                        ground,
                        PRODUCT,
                        url,
                        latency=SOON,
                        number=number,
                        orders=orders,
                        show=show,
                        mark=f"{name}-{number}",
                    )
                    for name, url in (("empty", empty), ("full", full))[:: 1 if number % 2 else -1]
                }
            for name, figure in found.items():
                display.console.print(f"  {name} tables:")
                display.figure(figure)
            with psycopg.connect(full) as connection:
                # The orders of this round are no work for the processes of the next.
                connection.execute(
                    "UPDATE checkouts SET due_at = due_at + interval '1 day' WHERE due_at IS NOT NULL"
                )
            pairs.append({name: round(figure.rate, 2) for name, figure in found.items()})
    return {"finished": given.finished, "size_gb": round(size, 2), "seconds": round(took, 1), "rounds": pairs}


def _described(key: str) -> dict[str, Any]:
    peer = PEERS[key]
    return {
        "key": key,
        "title": peer.title,
        "what": peer.what,
        "module": peer.module,
        "settings": {str(latency): cell.said for latency, cell in peer.cells.items()},
    }


def write(document: dict[str, Any], place: Path) -> None:
    """Write the page and its pictures into a directory."""
    place.mkdir(exist_ok=True)
    (place / "benchmarks.md").write_text(report.page(document))
    for name, picture in report.pictures(document).items():
        (place / name).write_text(picture)


def main(given: Sequence[str]) -> int:
    asked = arguments(given)
    display = Display()
    if asked.page:
        write(json.loads(asked.page.read_text()), ROOT / "docs")
        return 0
    document: dict[str, Any] = {
        "rounds": asked.rounds,
        "arguments": " ".join(given),
        "versions": versions(package for key in asked.only for package in PEERS[key].packages),
        "peers": [_described(key) for key in asked.only],
        "figures": [],
    }
    # A SIGTERM unwinds like Ctrl-C, so that no server and no directory is left behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    failed = False
    try:
        measure(asked, document, display)
    except (BenchmarkFailed, EmbeddedError) as error:
        document["failed"], failed = str(error), True
    except KeyboardInterrupt:
        document["failed"], failed = "broken off", True
    document["claims"] = [row.document() for row in claims.claims(document)]
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    (build / "benchmarks.json").write_text(json.dumps(document, indent=2) + "\n")
    if failed:
        display.console.print(f"[bold red]Failed:[/] {escape(document['failed'])}")
        display.console.print("  what was measured before is in build/benchmarks.json")
        return 1
    parts = not asked.no_lifecycle and not asked.no_deliveries
    whole = asked.only == list(PEERS) and not asked.latency and parts and not asked.quick
    places = [build, *([ROOT / "docs"] if whole and asked.rounds >= WHOLE_ROUNDS else [])]
    display.console.print(report.table(claims.claims(document)))
    for place in places:
        write(document, place)
        display.console.print(f"  {place.relative_to(ROOT)}/benchmarks.md")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

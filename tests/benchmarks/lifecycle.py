"""What `orchestrator bench` measures of the product alone: the whole lifecycle under an open load, one order
at a time, memory.

Each is a run of the command as a user would start it, with its own servers in a directory that is removed
afterwards. A run in which an order was doubled fails everything, and so does a run in which an order was
lost; but at a given rate a slow machine may fall behind: then orders are left over, and the rate was not
held.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tests.benchmarks.ground import BenchmarkFailed
from tests.benchmarks.work import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# One worker, as `up` starts it: a second would halve the batches of both, and these rates do not fill a core
# with it.
WHOLE: Final = ("--gateway-latency", "lognormal:120,380", "--faults", "0.007")
STEP_DOWN: Final = 0.85
"""A rate that a short try held may be too much for a minute: then once more with so much of it."""
STEPS_DOWN: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """How long the runs are."""

    ramp: bool = True
    highest_seconds: int = 60
    steady_rate: int = 100
    steady_seconds: int = 30
    sequential: int = 200
    in_flight: int = 4000


QUICK: Final = Length(
    ramp=False, highest_seconds=5, steady_rate=20, steady_seconds=5, sequential=20, in_flight=400
)


def measure(length: Length, show: Callable[[str], None]) -> dict[str, Any]:
    """Return the documents of all runs."""
    show(f"whole lifecycle at {length.steady_rate}/s")
    rate, seconds = str(length.steady_rate), str(length.steady_seconds)
    steady = bench(*WHOLE, "--rate", rate, "--seconds", seconds, behind=True)
    show("one order at a time")
    sequential = bench("--sequential", str(length.sequential), "--gateway-latency", "0")
    show("memory with more than 1,000 orders in flight")
    # A gateway of one second and enough connections: what is claimed is in flight.
    in_flight = bench(
        "--stage",
        "ready",
        "--orders",
        str(length.in_flight),
        "--gateway-latency",
        "1000",
        environment={"ORCHESTRATOR_GATEWAY_POOL_SIZE": "2000"},
    )
    return {
        "highest": _highest(length, show),
        "steady": steady,
        "sequential": sequential,
        "in_flight": in_flight,
    }


def _highest(length: Length, show: Callable[[str], None]) -> list[dict[str, Any]]:
    """Find the highest rate, and return the runs at it, the last of which was held if any was."""
    show("whole lifecycle: the highest rate held")
    ramp = ("--ramp",) if length.ramp else ()
    seconds = ("--seconds", str(length.highest_seconds))
    runs = [bench(*WHOLE, *ramp, "--rate", str(length.steady_rate), *seconds, behind=True)]
    while not runs[-1]["held"] and len(runs) <= STEPS_DOWN:
        rate = runs[-1]["rate"] * STEP_DOWN
        show(f"not held for {length.highest_seconds} s; once more at {rate:.0f}/s")
        runs.append(bench(*WHOLE, "--rate", f"{rate:.2f}", *seconds, behind=True))
    return runs


def bench(
    *arguments: str, environment: Mapping[str, str] | None = None, behind: bool = False
) -> dict[str, Any]:
    """Run the command and return its document; with `behind` orders may be left that it had no time for."""
    command = [sys.executable, "-m", "orchestrator", "bench", "--json", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **(environment or {})}, stdout=subprocess.PIPE, check=False
    )
    lines = done.stdout.decode().splitlines()
    if not lines:
        raise BenchmarkFailed(f"orchestrator {' '.join(command[3:])} ended with status {done.returncode}")
    found: dict[str, Any] = json.loads(lines[-1])
    wrong = {name: found[name] for name in ("lost", "doubled", "unequal") if found[name]}
    if wrong and not (behind and wrong.keys() == {"lost"}):
        raise BenchmarkFailed(f"orchestrator {' '.join(command[3:])}: the books do not agree: {wrong}")
    return found

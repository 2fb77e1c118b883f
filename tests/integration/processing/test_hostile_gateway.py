"""One hostile gateway beside another merchant's: whatever it answers, the other merchant's lookups take no
longer.

Two merchants at two gateways in one process, as in a worker. The hostile gateway is asked as often whether it
answers well or not, and its breaker is off, since its circuit would soon be open: what is compared is how its
answers are read, and nothing else.
"""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING

import httpx
import pytest

from orchestrator import gc_tuning
from tests.support.scene import Scene, scene

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from uuid import UUID

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(900)]

SCRIPT = Path(__file__).parents[1] / "gateway" / "hostile.py"
TURN = 1.5
"""Seconds of one turn; short, so that whatever else the machine does meets both kinds of turns."""
LEAST, MOST = 10, 30
"""Turns of each kind: as many as at least are measured, and as many as a noisy machine is given."""
ASKED, BESIDE = 40.0, 8.0
"""Lookups a second at the merchant that is measured, and at the hostile gateway's."""
BOUND = 1.5
FLOOR = 0.003
"""Seconds by which the slowest lookups may differ whatever their ratio is: that is noise."""


@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
def _settled() -> Iterator[None]:
    """Have the garbage collector set up as in a worker, and restore it for the next test."""
    found = gc.get_threshold()
    gc_tuning.settle()
    yield
    gc.unfreeze()
    gc.set_threshold(*found)


@contextmanager
def gateway(*, nice: int) -> Iterator[str]:
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), str(nice)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


async def lookups(world: Scene, checkouts: Sequence[UUID], *, per_second: float) -> list[float]:
    """Have checkouts looked up in turn for one turn, on a schedule; return how long each step took, in
    seconds.
    """
    loop, took, busy = asyncio.get_running_loop(), [], set()

    async def process_once(checkout: UUID) -> None:
        began = time.perf_counter()
        await world.process(checkout)
        took.append(time.perf_counter() - began)
        busy.discard(checkout)

    began = loop.time()
    async with asyncio.TaskGroup() as group:
        for number in range(int(TURN * per_second)):
            await asyncio.sleep(max(began + number / per_second - loop.time(), 0.0))
            free = next((checkout for checkout in checkouts if checkout not in busy), None)
            if free is not None:
                busy.add(free)
                group.create_task(process_once(free))
    return took


async def turn(world: Scene, quiet: Sequence[UUID], beside: Sequence[UUID]) -> float:
    """Return the 99th percentile of the measured merchant's steps, in seconds."""
    took, _ = await asyncio.gather(
        lookups(world, quiet, per_second=ASKED), lookups(world, beside, per_second=BESIDE)
    )
    return quantiles(took, n=100, method="inclusive")[-1]


@pytest.mark.usefixtures("_settled")
async def test_a_hostile_gateway_makes_no_other_merchants_lookups_slower(capsys, database_url: str):
    with gateway(nice=0) as well, gateway(nice=19) as hostile:
        async with (
            scene(
                database_url, well, gateway_total_timeout=5, gateway_read_timeout=4, lease_seconds=10
            ) as world,
            httpx.AsyncClient(timeout=30) as http,
        ):
            await world.policy(lookups_per_minute=100_000)
            other = await world.second_merchant("hostile", gateway_url=hostile)
            await world.merchants.set_policies("hostile", {"lookups_per_minute": 100_000})
            quiet = [await world.offered() for _ in range(30)]
            beside = [await world.offered(merchant=other) for _ in range(40)]
            spent: dict[str, list[float]] = {"absent": [], "mixed": []}
            holds = False
            while len(spent["mixed"]) < MOST and not (holds and len(spent["mixed"]) >= LEAST):
                for kind, slots in spent.items():
                    (await http.get(f"{hostile}/kind/{kind}")).raise_for_status()
                    slots.append(await turn(world, quiet, beside))
                before, after = median(spent["absent"]), median(spent["mixed"])
                holds = after <= max(BOUND * before, before + FLOOR)
            failed = await world.sql(
                "SELECT count(*) AS n FROM checkouts WHERE merchant_id = :other AND last_error IS NOT NULL",
                other=other,
            )
    with capsys.disabled():
        print(
            f"\nthe other merchant's steps, 99th percentile: {before * 1000:.1f} ms beside a gateway that answers well, "
            f"{after * 1000:.1f} ms beside a hostile gateway: × {after / before:.2f} (medians of {len(spent['mixed'])} turns each)"
        )
    assert failed[0].n > 0, "its answers came, and were of no use"
    assert holds, spent

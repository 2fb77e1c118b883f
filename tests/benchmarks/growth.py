"""What finished checkouts cost those under way: the core on an empty database and on a crowded one, in turns on one durable Postgres.

    python -m tests.benchmarks.growth [--finished 2000000] [--rounds 8] [--orders 1500]

Prints, for each stage of an order, orders per second and the CPU time of Postgres, and the ratio of the crowded to the empty one. The
medians of pairs count: on a machine that others use, rates vary more than the CPU time does.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import psycopg

from orchestrator import inbox, lifecycle
from orchestrator.db import Database
from orchestrator.embedded import Embedded
from orchestrator.lifecycle import Lifecycle
from orchestrator.schema import migrate
from orchestrator.vault import Vault
from tests.benchmarks.__main__ import accepted, carried
from tests.conftest import make_settings
from tests.factories import arrival
from tests.finished import fill

if TYPE_CHECKING:
    from collections.abc import Iterator

AT_ONCE, HINT = 200, 50
Costs = dict[str, tuple[float, float]]


def server_cpu(postmaster: int) -> float:
    """Return the CPU seconds of Postgres with all of its processes that live."""
    total = 0.0
    for one in (psutil.Process(postmaster), *psutil.Process(postmaster).children(recursive=True)):
        try:
            spent = one.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += spent.user + spent.system
    return total


async def measured(url: str, vault: Vault, postmaster: int, orders: int) -> Costs:
    """Take orders in, claim, carry and call back; return (orders per second, CPU microseconds an order) by stage."""
    costs: Costs = {}

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        began, spent = time.perf_counter(), server_cpu(postmaster)
        yield
        seconds = time.perf_counter() - began
        costs[name] = (orders / seconds, (server_cpu(postmaster) - spent) / orders * 1e6)

    async with Database(url, pool_size=6) as db:
        intents, moves = inbox.Intents(db, vault, grace=60), Lifecycle(db, vault)
        callbacks = inbox.Callbacks(db, vault, grace=60)
        warm = await accepted(intents, 200, at_once=AT_ONCE)
        await carried(moves, await lifecycle.claim(db, warm, lease_seconds=600), at_once=AT_ONCE)
        with stage("intake"):
            ids = await accepted(intents, orders, at_once=AT_ONCE)
        held = []
        with stage("claim"):
            for first in range(0, orders, HINT):
                held += await lifecycle.claim(db, ids[first : first + HINT], lease_seconds=600)
        with stage("four moves"):
            await carried(moves, held, at_once=AT_ONCE)
        with stage("callback"):
            await asyncio.gather(*(callbacks.take(arrival(one)) for one in ids))
        for batch in (intents, moves, callbacks):
            await batch.close()
    return costs


async def compare(urls: dict[str, str], postmaster: int, *, rounds: int, orders: int) -> None:
    vault = Vault(make_settings().secret_keys)
    found: dict[str, list[Costs]] = defaultdict(list)
    for number in range(rounds + 1):
        for name in sorted(urls, reverse=number % 2 == 1):
            with psycopg.connect(urls[name], autocommit=True) as admin:
                admin.execute("CHECKPOINT")
            costs = await measured(urls[name], vault, postmaster, orders)
            if number:  # the first round warms the caches
                found[name].append(costs)
    print(f"{'':12} {'empty':>20} {'crowded':>20} {'ratio of rates':>16} {'of CPU':>8}")
    for stage in found["empty"][0]:
        means = [
            statistics.mean(costs[stage][which] for costs in found[name])
            for which in (0, 1)
            for name in ("empty", "crowded")
        ]
        rates = statistics.median(
            crowded[stage][0] / empty[stage][0]
            for empty, crowded in zip(found["empty"], found["crowded"], strict=True)
        )
        told = [f"{means[n]:.0f}/s {means[n + 2]:.0f} µs" for n in (0, 1)]
        print(f"{stage:12} {told[0]:>20} {told[1]:>20} {rates:>16.2f} {means[3] / means[2]:>8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.growth")
    parser.add_argument("--finished", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--orders", type=int, default=1500)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, Embedded.start(Path(place), redis=False) as servers:
        urls = {}
        before, _, options = servers.database_url.partition("?")
        for name in ("empty", "crowded"):
            with psycopg.connect(servers.database_url, autocommit=True) as admin:
                admin.execute(f"CREATE DATABASE {name}")
            urls[name] = f"{before.rpartition('/')[0]}/{name}?{options}"
            migrate(urls[name])
        began = time.perf_counter()
        fill(urls["crowded"], given.finished)
        print(f"{given.finished} finished checkouts written in {time.perf_counter() - began:.0f} s")
        pid = next(Path(place).rglob("postmaster.pid")).read_text().splitlines()[0]
        asyncio.run(compare(urls, int(pid), rounds=given.rounds, orders=given.orders))


if __name__ == "__main__":
    main()

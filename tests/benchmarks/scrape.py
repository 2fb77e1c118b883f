"""What a scrape costs among many checkouts: `python -m tests.benchmarks.scrape`, with Postgres beside it.

Prints the milliseconds of a scrape (the first one apart), how long each group of figures took to read, and
how old the oldest figures were.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psycopg

from orchestrator.devkit.local.servers import Embedded
from orchestrator.monitoring import Monitor
from orchestrator.store import schema
from tests.support.finished import FILL, STEP

if TYPE_CHECKING:
    from collections.abc import Sequence

OPEN: Final = """
    UPDATE checkouts SET state = 'awaiting_payment', ended_at = NULL, due_at = now() + interval '1 hour'
     WHERE id IN (SELECT id FROM checkouts ORDER BY id DESC LIMIT %s)
"""
WAITING: Final = """
    UPDATE checkouts SET due_at = now() - interval '5 seconds', hinted = true
     WHERE id IN (SELECT id FROM checkouts WHERE due_at IS NOT NULL ORDER BY id LIMIT %s)
"""
ATTENTION: Final = """
    UPDATE checkouts SET attention = 'late_payment', attention_since = now()
     WHERE id IN (SELECT id FROM checkouts WHERE due_at IS NULL ORDER BY id LIMIT %s)
"""


def fill(url: str, number: int) -> None:
    """Write so many checkouts: three in a hundred under way, two thousand waiting, five hundred decisions."""
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute("SET synchronous_commit = off")
        for first in range(1, number + 1, STEP):
            span = {"first": first, "last": min(first + STEP - 1, number), "apart": 25_000_000_000 // number}
            for statement in FILL[:3]:
                admin.execute(statement, span)
        for statement, rows in ((OPEN, number * 3 // 100), (WAITING, 2000), (ATTENTION, 500)):
            admin.execute(statement, [rows])
        admin.execute("VACUUM ANALYZE checkouts")


async def scrape(url: str, times: int) -> tuple[Sequence[float], dict[str, float], float]:
    """Scrape once in a second; return the seconds of each, of each group of figures, and the oldest age."""
    monitor, took, oldest = Monitor(url, grace=30.0), [], 0.0
    for _ in range(times):
        began = time.perf_counter()
        page = await monitor.page()
        took.append(time.perf_counter() - began)
        ages = [
            float(line.split()[-1])
            for line in page.decode().splitlines()
            if line.startswith("orchestrator_reading_age")
        ]
        oldest = max([oldest, *ages])
        await asyncio.sleep(1)
    groups = {name: group.took for name, group in monitor._groups.items()}
    await monitor.close()
    return took, groups, oldest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkouts", type=int, default=1_000_000)
    parser.add_argument("--scrapes", type=int, default=60)
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as place,
        Embedded.start(Path(place) / "servers", redis=False, durable=False) as servers,
    ):
        schema.migrate(servers.owner_url)
        fill(servers.administrator_url, given.checkouts)
        took, groups, oldest = asyncio.run(scrape(servers.database_url, given.scrapes))
    later = sorted(took[1:])
    shown = {
        "checkouts": given.checkouts,
        "first_ms": round(took[0] * 1000, 1),
        "median_ms": round(statistics.median(later) * 1000, 1),
        "p95_ms": round(later[int(len(later) * 0.95)] * 1000, 1),
        "max_ms": round(later[-1] * 1000, 1),
        "groups_ms": {name: round(seconds * 1000, 1) for name, seconds in groups.items()},
        "oldest_figures_s": round(oldest, 1),
        "load": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(shown), flush=True)


if __name__ == "__main__":
    main()

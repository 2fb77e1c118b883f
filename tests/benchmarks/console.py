"""How long pages of the console take among many checkouts: `python -m tests.benchmarks.console`.

Prints the milliseconds of server time of each page, in turns over all pages (a first turn apart), and those
of the preview of a bulk action over 100,000 orders, with Postgres beside it. The goals: 100 ms at p99, and
2 s for the preview. No test asserts times: that no statement reads more than 10,000 rows is in
`integration/test_finished.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import psycopg

from orchestrator import log
from orchestrator.console import Console
from orchestrator.devkit.bench.result import percentile
from orchestrator.devkit.local.servers import Embedded
from orchestrator.store import schema
from tests.conftest import make_settings
from tests.integration.api.test_console import PAGES, Person
from tests.support.api_scene import serving
from tests.support.console_data import ConsoleData

if TYPE_CHECKING:
    from orchestrator.settings import Settings

STEP: Final = 100_000
FILL: Final = """
    INSERT INTO checkouts (id, merchant_id, order_ref, state, deadline, ended_at, currency, amount, reserved, captured, audit_sequence,
                           audit_head, event_sequence, correlation_id, created_at)
    SELECT CAST(lpad(to_hex(CAST(extract(epoch FROM now()) * 1000 AS int8) - 2500000000 + n * 2500), 12, '0') || '7'
                || substr(md5(CAST(n AS text)), 1, 3) || '8' || substr(md5(CAST(n AS text)), 4, 15) AS uuid),
           1, 'F-' || n, (ARRAY['completed', 'expired', 'cancelled', 'failed'])[n %% 4 + 1], now(), now(), 'DKK', 13900,
           CASE n %% 4 WHEN 0 THEN 13900 ELSE 0 END, CASE n %% 8 WHEN 0 THEN 13900 ELSE 0 END, 6, '', 2, 'c',
           now() - make_interval(secs => (1000000 - n) * 2.5)
      FROM generate_series(%(first)s::int8, %(last)s) n
"""
PREVIEW: Final = "/console/bulk/new?kind=reconcile&state=failed"
"""A preview stops at 100,000 orders."""


def fill(url: str, number: int) -> None:
    """Write so many checkouts that have ended, a quarter of each outcome."""
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute("SET synchronous_commit = off")
        for first in range(1, number + 1, STEP):
            admin.execute(FILL, {"first": first, "last": min(first + STEP - 1, number)})
        admin.execute("VACUUM ANALYZE checkouts")


async def measure(settings: Settings, turns: int) -> tuple[dict[str, list[float]], float]:
    """Return the seconds of each page, each read so often, and those of the preview."""
    made: list[Console] = []

    def pages(services: Any) -> Console:
        made.append(Console(services))
        return made[0]

    took: dict[str, list[float]] = defaultdict(list)
    async with serving(settings, timeout=60.0, pages=pages) as api:
        data = ConsoleData(api.services.db, api.services.encryptor)
        named = await data.everything()
        person = await Person(SimpleNamespace(api=api), "a").signed_in()
        paths = [
            *PAGES,
            f"/console/orders/{named['surplus_payment']}",
            "/console/orders?state=authenticated",
            "/console/orders?merchant=default&status=refunded",
            "/console/orders?state=completed&currency=DKK&least=1",
            f"/console/deliveries/{named['endpoint']}",
        ]
        for turn in range(turns + 1):
            for path in paths:
                # One reading serves all viewers for a second: here each page reads anew.
                made[0].live._read_at = float("-inf")
                began = time.perf_counter()
                await person.get(path)
                if turn:  # the first reads templates and opens connections
                    took[path].append(time.perf_counter() - began)
        began = time.perf_counter()
        page = await person.get(PREVIEW)
        previewed = time.perf_counter() - began
        if "100000 orders" not in page:
            raise SystemExit(f"the preview does not name 100,000 orders: {page[:2000]}")
        await made[0].close()
        await data.close()
    return took, previewed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkouts", type=int, default=1_000_000, help="at least 400,000")
    parser.add_argument("--turns", type=int, default=100)
    given = parser.parse_args()
    log.configure(style="json", level="error")
    with (
        tempfile.TemporaryDirectory() as place,
        Embedded.start(Path(place) / "servers", redis=False, durable=True) as servers,
    ):
        schema.migrate(servers.owner_url)
        fill(servers.owner_url, given.checkouts)
        took, previewed = asyncio.run(measure(make_settings(database_url=servers.database_url), given.turns))
    for path, seconds in took.items():
        figures = {f"p{q}_ms": round(1000 * percentile(sorted(seconds), q), 1) for q in (50, 99)}
        print(json.dumps({"page": path, **figures}))
    print(json.dumps({"preview_ms": round(1000 * previewed), "load": round(os.getloadavg()[0], 1)}))


if __name__ == "__main__":
    main()

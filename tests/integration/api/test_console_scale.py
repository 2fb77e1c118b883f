"""The console over a million checkouts: each page within 100 ms, a preview of 100,000 orders within 2 s."""

from __future__ import annotations

import time
from types import SimpleNamespace

import psycopg
import pytest

from orchestrator.console import Console
from tests.integration.api.test_console import PAGES, Person
from tests.support.api_scene import serving
from tests.support.console_data import ConsoleData

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(1800)]

CHECKOUTS, STEP, PREVIEWED = 1_000_000, 100_000, 100_000
ROUNDS, TIMES = 5, 20
PAGE, PREVIEW = 0.1, 2.0
"""Seconds of server time: at p99 in the best of some rounds, since other programs may run beside it."""
FILL = """
    INSERT INTO checkouts (id, merchant_id, order_ref, state, deadline, ended_at, currency, amount, reserved, captured, audit_sequence,
                           audit_head, event_sequence, correlation_id, created_at)
    SELECT CAST(lpad(to_hex(CAST(extract(epoch FROM now()) * 1000 AS int8) - 2500000000 + n * 2500), 12, '0') || '7'
                || substr(md5(CAST(n AS text)), 1, 3) || '8' || substr(md5(CAST(n AS text)), 4, 15) AS uuid),
           1, 'F-' || n, (ARRAY['completed', 'expired', 'cancelled', 'failed'])[n %% 4 + 1], now(), now(), 'DKK', 13900,
           CASE n %% 4 WHEN 0 THEN 13900 ELSE 0 END, CASE n %% 8 WHEN 0 THEN 13900 ELSE 0 END, 6, '', 2, 'c',
           now() - make_interval(secs => (1000000 - n) * 2.5)
      FROM generate_series(%(first)s::int8, %(last)s) n
"""


async def test_pages_and_a_preview_over_a_million_checkouts(settings):
    with psycopg.connect(settings.database_url, autocommit=True) as admin:
        admin.execute("SET synchronous_commit = off")
        for first in range(1, CHECKOUTS + 1, STEP):
            admin.execute(FILL, {"first": first, "last": first + STEP - 1})
        admin.execute("VACUUM ANALYZE checkouts")
    made = []

    def pages(services):
        made.append(Console(services))
        return made[0]

    async with serving(settings, pages=pages) as api:
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
        slow = {path: took for path in paths if (took := await _p99(made[0], person, path)) > PAGE}
        assert slow == {}
        started = time.perf_counter()
        page = await person.get("/console/bulk/new?kind=reconcile&state=failed")
        took = time.perf_counter() - started
        assert f"{PREVIEWED} orders" in page
        assert took <= PREVIEW
        await made[0].close()
        await data.close()


async def _p99(console, person, path: str) -> float:
    """Return the longest of the times of a page, of the best round; the overview is read each time."""
    best = float("inf")
    for _ in range(ROUNDS):
        longest = 0.0
        for _ in range(TIMES):
            console.live._read_at = float("-inf")
            started = time.perf_counter()
            await person.get(path)
            longest = max(longest, time.perf_counter() - started)
        best = min(best, longest)
    return best

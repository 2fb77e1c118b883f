"""Peer (f): the product itself, as real processes: API, worker, scheduler.

Orders come in over `POST /v1/checkouts/batch`.

It does more than the others for the same order: leases and versions, due times, an event for the shop, an
audit trail that is chained and keyed, everything personal encrypted. Its own tables are read for the
count and for the trail.

    python -m tests.benchmarks.start product take MARK ORDERS       hands the orders over
"""

from __future__ import annotations

import asyncio
import json
import os
from urllib.parse import urlsplit

import psycopg
import uvloop

from orchestrator.devkit.bench import http_pool
from tests.benchmarks import work

AT_ONCE = 4
"""Batches under way; each is work.CHUNK orders."""

# By the index over what is unsettled: reading it must cost nothing beside what is measured, however long the
# history is.
UNOFFERED = """
    SELECT count(*) AS orders, count(*) FILTER (WHERE state = 'awaiting_payment') AS carried,
           extract(epoch FROM max(offered_at)) AS ended
      FROM checkouts WHERE due_at IS NOT NULL AND order_ref LIKE %s
"""
# Four moves, each with its entry, after the entry of the intake; and what the gateway gave is there.
WRONG = """
    SELECT count(*) FROM checkouts c LEFT JOIN sessions s ON s.checkout_id = c.id LEFT JOIN LATERAL (
        SELECT array_agg(entry::jsonb ->> 'to' ORDER BY sequence) AS way FROM audit_entries a WHERE a.checkout_id = c.id) AS trail ON true
     WHERE due_at IS NOT NULL AND order_ref LIKE %(refs)s AND (state <> 'awaiting_payment' OR way IS DISTINCT FROM %(way)s
           OR token IS NULL OR session_id IS NULL OR methods IS NULL)
"""


async def hand_over(url: str, token: str, mark: str, orders: int) -> None:
    parts = urlsplit(url)
    lines = http_pool.HttpPool(str(parts.hostname), int(parts.port or 80), most=AT_ONCE)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    room = asyncio.Semaphore(AT_ONCE)

    async def send(request: bytes) -> None:
        async with room:
            status, body = await lines.exchange(request)
        results = json.loads(body)["results"] if status == 200 else []
        if not results or any(result["status"] != 202 for result in results):
            raise RuntimeError(f"a batch was answered with {status}: {body[:300]!r}")

    requests = [
        http_pool.request(
            "POST",
            parts.netloc,
            "/v1/checkouts/batch",
            headers=headers,
            body=json.dumps([work.intent(ref) for ref in chunk]).encode(),
        )
        for chunk in _batched(work.refs(mark, orders), work.CHUNK)
    ]
    with psycopg.connect(os.environ["BENCH_DATABASE_URL"], autocommit=True) as connection:
        since = work.tell_began(connection)
    await asyncio.gather(*map(send, requests))
    work.tell_spent(since)
    lines.close()


def _batched(items: list[str], size: int) -> list[list[str]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def main(_take: str, mark: str, orders: str) -> None:
    uvloop.run(hand_over(os.environ["BENCH_API_URL"], os.environ["BENCH_TOKEN"], mark, int(orders)))

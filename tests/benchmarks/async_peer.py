"""What the asynchronous peers share: calls to the gateway by aiohttp, and moves as one statement each over
a pool of their own.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
from psycopg_pool import AsyncConnectionPool

from tests.benchmarks import work

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Tools:
    """What the worker's loop keeps."""

    http: aiohttp.ClientSession
    rows: AsyncConnectionPool


@asynccontextmanager
async def tools(here: work.Surroundings, *, at_once: int, pool: int) -> AsyncIterator[None]:
    """Open what a worker needs for as long as the block lasts."""
    rows = AsyncConnectionPool(
        here.database_url, kwargs={"autocommit": True}, min_size=pool, max_size=pool, open=False
    )
    connector = aiohttp.TCPConnector(limit=at_once)
    async with aiohttp.ClientSession(here.gateway_url, connector=connector) as Tools.http, rows as Tools.rows:
        yield


async def asked(
    method: str, path: str, authorization: str, body: dict[str, Any] | None = None
) -> dict[str, Any]:
    headers = {"Authorization": authorization}
    async with Tools.http.request(method, work.API + path, headers=headers, json=body) as answer:
        answer.raise_for_status()
        found: dict[str, Any] = await answer.json()
        return found


async def fetched(order_id: str) -> Any:
    """Return state, document, token and session of an order."""
    async with Tools.rows.connection() as connection:
        row = await (await connection.execute(work.FETCH, (order_id,))).fetchone()
    assert row is not None
    return row


async def move(order_id: str, step: int, evidence: str = "{}", **gained: object) -> None:
    async with Tools.rows.connection() as connection:
        await connection.execute(work.MOVE, work.moved(order_id, step, evidence=evidence, **gained))

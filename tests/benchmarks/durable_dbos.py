"""Peer (c): DBOS Transact, a durable workflow with a step for each move, in one process, its system tables in the same Postgres.

Each step makes its call and writes its move with its audit row in one statement, guarded by the state, so that a step that is
run again after a crash changes nothing twice; DBOS then records the step. That is fewer commits than a step for the call and a
transaction step for the move.
The intake stores a chunk of orders and enqueues their workflows in the same transaction (`enqueue_in_transaction`).

    python -m tests.benchmarks.durable_dbos work              runs the worker
    python -m tests.benchmarks.durable_dbos take MARK ORDERS  takes the orders in
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from functools import cache
from typing import TYPE_CHECKING, Any

import aiohttp
import httpx
import psycopg
import uvloop
from dbos import DBOS, DBOSClient, DBOSConfig
from psycopg.rows import tuple_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool
from sqlalchemy import create_engine, text

from orchestrator.db import driver_url
from tests.benchmarks import work

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = work.Surroundings.here()
QUEUE = "orders"
AT_ONCE = int(os.environ.get("BENCH_AT_ONCE", "100"))
POLL = float(os.environ.get("BENCH_POLL", "0.1"))
POOL = int(os.environ.get("BENCH_POOL", "20"))
THREADS = int(os.environ.get("BENCH_THREADS", "32"))


# ── Asynchronous ────────────────────────────────────────────────────────────────────────────────────────────────────────

_made: dict[str, Any] = {}


async def http() -> aiohttp.ClientSession:
    if "http" not in _made:
        _made["http"] = aiohttp.ClientSession(HERE.gateway_url, connector=aiohttp.TCPConnector(limit=AT_ONCE))
    session: aiohttp.ClientSession = _made["http"]
    return session


async def rows() -> AsyncConnectionPool:
    if "pool" not in _made:
        _made["pool"] = AsyncConnectionPool(HERE.database_url, kwargs={"autocommit": True}, min_size=POOL, max_size=POOL, open=False)
        await _made["pool"].open(wait=True)
    pool: AsyncConnectionPool = _made["pool"]
    await pool.open()
    return pool


async def asked(method: str, path: str, authorization: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    session = await http()
    async with session.request(method, work.API + path, headers={"Authorization": authorization}, json=body) as answer:
        answer.raise_for_status()
        found: dict[str, Any] = await answer.json()
        return found


async def write(order_id: str, number: int, evidence: str = "{}", **gained: object) -> None:
    async with (await rows()).connection() as connection:
        await connection.execute(work.MOVE, work.moved(order_id, number, evidence=evidence, **gained))


@DBOS.step()
async def authenticate(order_id: str) -> str:
    token: str = (await asked("POST", "/authenticate", work.BASIC))["token"]
    await write(order_id, 0, token=token)
    return token


@DBOS.step()
async def open_session(order_id: str, token: str) -> str:
    async with (await rows()).connection() as connection:
        row = await (await connection.execute(work.FETCH, (order_id,))).fetchone()
    session: str = (await asked("POST", "/session", f"Bearer {token}", work.session_body(order_id, row[1])))["sessionId"]
    await write(order_id, 1, json.dumps({"session": session}), session_id=session)
    return session


@DBOS.step()
async def list_methods(order_id: str, token: str, session: str) -> None:
    methods = (await asked("GET", f"/session/{session}/payment-methods", f"Bearer {token}"))["methods"]
    await write(order_id, 2, json.dumps({"methods": len(methods)}), methods=json.dumps(methods))


@DBOS.step()
async def offer(order_id: str) -> None:
    await write(order_id, 3)


@DBOS.workflow()
async def carry(order_id: str) -> None:
    token = await authenticate(order_id)
    session = await open_session(order_id, token)
    await list_methods(order_id, token, session)
    await offer(order_id)


# ── Synchronous ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@cache
def http_sync() -> httpx.Client:
    return httpx.Client(base_url=HERE.gateway_url + work.API, limits=httpx.Limits(max_connections=THREADS, max_keepalive_connections=THREADS), trust_env=False)


@cache
def rows_sync() -> ConnectionPool:
    return ConnectionPool(HERE.database_url, kwargs={"autocommit": True}, min_size=POOL, max_size=POOL)


def asked_sync(method: str, path: str, authorization: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    answer = http_sync().request(method, path, headers={"Authorization": authorization}, json=body)
    answer.raise_for_status()
    return answer.json()


def write_sync(order_id: str, number: int, evidence: str = "{}", **gained: object) -> None:
    with rows_sync().connection() as connection:
        connection.execute(work.MOVE, work.moved(order_id, number, evidence=evidence, **gained))


@DBOS.step()
def authenticate_sync(order_id: str) -> str:
    token: str = asked_sync("POST", "/authenticate", work.BASIC)["token"]
    write_sync(order_id, 0, token=token)
    return token


@DBOS.step()
def open_session_sync(order_id: str, token: str) -> str:
    with rows_sync().connection() as connection:
        row = connection.execute(work.FETCH, (order_id,)).fetchone()
    session: str = asked_sync("POST", "/session", f"Bearer {token}", work.session_body(order_id, row[1]))["sessionId"]
    write_sync(order_id, 1, json.dumps({"session": session}), session_id=session)
    return session


@DBOS.step()
def list_methods_sync(order_id: str, token: str, session: str) -> None:
    methods = asked_sync("GET", f"/session/{session}/payment-methods", f"Bearer {token}")["methods"]
    write_sync(order_id, 2, json.dumps({"methods": len(methods)}), methods=json.dumps(methods))


@DBOS.step()
def offer_sync(order_id: str) -> None:
    write_sync(order_id, 3)


@DBOS.workflow()
def carry_sync(order_id: str) -> None:
    token = authenticate_sync(order_id)
    session = open_session_sync(order_id, token)
    list_methods_sync(order_id, token, session)
    offer_sync(order_id)


async def run() -> None:
    """Launch DBOS on this loop, which then runs the workflows, and stay."""
    config: DBOSConfig = {
        "name": "peer",
        "system_database_url": HERE.database_url,
        "sys_db_pool_size": POOL,
        "log_level": "WARNING",
        "max_executor_threads": THREADS,
    }
    DBOS(config=config)
    DBOS.launch()
    await DBOS.register_queue_async(QUEUE, worker_concurrency=AT_ONCE or None, polling_interval_sec=POLL)
    await asyncio.Event().wait()


def take(mark: str, orders: int, flow: str) -> None:
    client = DBOSClient(system_database_url=HERE.database_url, application_name="peer")
    engine = create_engine(driver_url(HERE.database_url))
    options = {"queue_name": QUEUE, "workflow_name": flow}
    with engine.begin() as connection:
        moment = work.began(connection.connection.driver_connection)
    work.tell_began(moment)
    for chunk in work.chunks(mark, orders):
        with engine.begin() as connection:
            connection.connection.driver_connection.execute(work.TAKE, chunk.parameters())
            for order_id in chunk.ids:
                client.enqueue_in_transaction(connection, options, str(order_id))
    client.destroy()


if __name__ == "__main__":
    if sys.argv[1] == "work":
        (uvloop if os.environ.get('UV','1')=='1' else asyncio).run(run())
    else:
        take(sys.argv[2], int(sys.argv[3]), os.environ.get("BENCH_FLOW", "carry"))

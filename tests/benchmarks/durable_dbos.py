"""Peer (c): DBOS Transact, a durable workflow with a step for each move, in one process, its system tables in
the same Postgres.

Each step makes its call and writes its move with its audit row in one statement, guarded by the state, so
that a step that is run again after a crash changes nothing twice; DBOS then records the step. That is fewer
commits than a step for the call and a transaction step for the move. The intake stores a chunk of orders and
enqueues their workflows in the same transaction (`enqueue_in_transaction`).

    python -m tests.benchmarks.start durable_dbos prepare           makes DBOS's tables
    python -m tests.benchmarks.start durable_dbos work              runs the worker
    python -m tests.benchmarks.start durable_dbos take MARK ORDERS  takes the orders in
"""

from __future__ import annotations

import asyncio
import json
import os

import psycopg
import uvloop
from dbos import DBOS, DBOSClient, DBOSConfig, EnqueueOptions, run_dbos_database_migrations
from sqlalchemy import create_engine

from tests.benchmarks import work
from tests.benchmarks.async_peer import asked, fetched, move, tools

HERE = work.Surroundings.here()
NAME = "peer"
QUEUE = "orders"
AT_ONCE = int(os.environ.get("BENCH_AT_ONCE", "100"))
POLL = float(os.environ.get("BENCH_POLL", "0.1"))
POOL = int(os.environ.get("BENCH_POOL", "20"))
THREADS = int(os.environ.get("BENCH_THREADS", "32"))


@DBOS.step()
async def authenticate(order_id: str) -> str:
    token: str = (await asked("POST", "/authenticate", work.BASIC))["token"]
    await move(order_id, 0, token=token)
    return token


@DBOS.step()
async def open_session(order_id: str, token: str) -> str:
    body = work.session_body(order_id, (await fetched(order_id))[1])
    session: str = (await asked("POST", "/session", f"Bearer {token}", body))["sessionId"]
    await move(order_id, 1, json.dumps({"session": session}), session_id=session)
    return session


@DBOS.step()
async def list_methods(order_id: str, token: str, session: str) -> None:
    methods = (await asked("GET", f"/session/{session}/payment-methods", f"Bearer {token}"))["methods"]
    await move(order_id, 2, json.dumps({"methods": len(methods)}), methods=json.dumps(methods))


@DBOS.step()
async def offer(order_id: str) -> None:
    await move(order_id, 3)


@DBOS.workflow()
async def process(order_id: str) -> None:
    token = await authenticate(order_id)
    session = await open_session(order_id, token)
    await list_methods(order_id, token, session)
    await offer(order_id)


async def work_off() -> None:
    """Launch DBOS on this loop, which then runs the workflows, and stay."""
    config: DBOSConfig = {
        "name": NAME,
        "system_database_url": HERE.database_url,
        "sys_db_pool_size": POOL,
        "max_executor_threads": THREADS,
        "log_level": "WARNING",
    }
    async with tools(HERE, at_once=AT_ONCE, pool=POOL):
        DBOS(config=config)
        DBOS.launch()
        await DBOS.register_queue_async(QUEUE, worker_concurrency=AT_ONCE, polling_interval_sec=POLL)
        await asyncio.Event().wait()


def take(mark: str, orders: int) -> None:
    client = DBOSClient(system_database_url=HERE.database_url, application_name=NAME)
    engine = create_engine("postgresql+psycopg://" + HERE.database_url.partition("://")[2])
    options: EnqueueOptions = {"queue_name": QUEUE, "workflow_name": process.__qualname__}
    with psycopg.connect(HERE.database_url, autocommit=True) as clock:
        since = work.tell_began(clock)
    for chunk in work.chunks(mark, orders):
        with engine.begin() as connection:
            connection.exec_driver_sql(work.TAKE, chunk.parameters())
            for order_id in chunk.ids:
                client.enqueue_in_transaction(connection, options, str(order_id))
    work.tell_spent(since)
    client.destroy()


def main(command: str, *rest: str) -> None:
    match command, *rest:
        case ["prepare"]:
            run_dbos_database_migrations(system_database_url=HERE.database_url)
        case ["work"]:
            uvloop.run(work_off())
        case ["take", mark, orders]:
            take(mark, int(orders))

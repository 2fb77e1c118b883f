"""Peer (d): procrastinate, jobs on Postgres.

An asynchronous task takes one order through all its steps on the worker's event loop.

One transaction a step: the guard on the state, the move and its audit row are one statement. A job that is
run again after a crash goes on at the order's present step, so one job an order is enough; a job for each
step would cost three more times fetching and finishing. The intake stores a chunk of orders and defers their
jobs in bulk, in the same transaction.

    python -m tests.benchmarks.start jobs_procrastinate prepare           makes procrastinate's tables
    python -m tests.benchmarks.start jobs_procrastinate work              runs a worker
    python -m tests.benchmarks.start jobs_procrastinate take MARK ORDERS  takes the orders in
"""

from __future__ import annotations

import json
import logging
import os

import procrastinate
import psycopg
import uvloop

from tests.benchmarks import work
from tests.benchmarks.async_peer import asked, fetched, move, tools

HERE = work.Surroundings.here()
AT_ONCE = int(os.environ.get("BENCH_AT_ONCE", "50"))
POOL = int(os.environ.get("BENCH_POOL", "20"))

app = procrastinate.App(
    connector=procrastinate.PsycopgConnector(conninfo=HERE.database_url, min_size=1, max_size=POOL)
)


@app.task(name="carry", retry=procrastinate.RetryStrategy(max_attempts=10, exponential_wait=2))
async def process(order_id: str) -> None:
    state, document, token, session = await fetched(order_id)
    if state == "received":
        token = (await asked("POST", "/authenticate", work.BASIC))["token"]
        await move(order_id, 0, token=token)
        state = "authenticated"
    if state == "authenticated":
        body = work.session_body(order_id, document)
        session = (await asked("POST", "/session", f"Bearer {token}", body))["sessionId"]
        await move(order_id, 1, json.dumps({"session": session}), session_id=session)
        state = "session_created"
    if state == "session_created":
        methods = (await asked("GET", f"/session/{session}/payment-methods", f"Bearer {token}"))["methods"]
        await move(order_id, 2, json.dumps({"methods": len(methods)}), methods=json.dumps(methods))
        state = "methods_fetched"
    if state == "methods_fetched":
        await move(order_id, 3)


async def work_off() -> None:
    # The rows have a pool of their own: procrastinate's checks each connection each time.
    async with tools(HERE, at_once=AT_ONCE, pool=POOL), app.open_async():
        await app.run_worker_async(
            concurrency=AT_ONCE, delete_jobs="successful", fetch_job_polling_interval=1
        )


async def prepare() -> None:
    async with app.open_async():
        await app.schema_manager.apply_schema_async()


async def take(mark: str, orders: int) -> None:
    with psycopg.connect(HERE.database_url, autocommit=True) as clock:
        async with app.open_async(), app.connector.pool.connection() as connection:  # type: ignore[attr-defined]
            since = work.tell_began(clock)
            for chunk in work.chunks(mark, orders):
                await connection.execute(work.TAKE, chunk.parameters())
                jobs = [{"order_id": str(order_id)} for order_id in chunk.ids]
                await process.configure(connection=connection).batch_defer_async(*jobs)
                await connection.commit()
            work.tell_spent(since)


def main(command: str, *rest: str) -> None:
    logging.basicConfig(level=logging.WARNING)
    match command, *rest:
        case ["prepare"]:
            uvloop.run(prepare())
        case ["work"]:
            uvloop.run(work_off())
        case ["take", mark, orders]:
            uvloop.run(take(mark, int(orders)))

"""Peer (e): the bare limit.

One event loop per core, the same HTTP calls as bytes over raw connections, multi-row SQL, nothing else.

No broker, no leases, no versions to lose, no retries, no encryption, no parsing of what need not be
understood: what is lost here when a process dies is lost. Moves of all orders in flight gather while the last
commit runs and are written as one statement with their audit rows, as the product does it; each order waits
for each of its moves to be durable. This is not a design to use but the ceiling of this machine, to measure
the others by.

    python -m tests.benchmarks.start bare take MARK ORDERS          takes the orders in and processes them
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import sys
import time
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec
import psycopg
import uvloop

from orchestrator.devkit.bench import http_pool
from tests.benchmarks import work

if TYPE_CHECKING:
    from multiprocessing.synchronize import Barrier, Event

HERE = work.Surroundings.here()
PROCESSES = int(os.environ.get("BENCH_PROCESSES", "2"))
AT_ONCE = int(os.environ.get("BENCH_AT_ONCE", "500"))
"""Orders in flight in one process."""
CONNECTIONS = int(os.environ.get("BENCH_CONNECTIONS", "500"))
WRITERS = int(os.environ.get("BENCH_WRITERS", "1"))
BATCH = 500

_MOVES = """
    WITH i AS MATERIALIZED (
        SELECT * FROM unnest(%(ids)s::uuid[], %(steps)s::int[], %(tokens)s::text[], %(sessions)s::text[], %(methods)s::jsonb[],
                             %(evidence)s::jsonb[]) AS i(id, step, token, session_id, methods, evidence)),
    moved AS (
        UPDATE orders o SET state = (%(way)s::text[])[i.step + 2], version = version + 1, token = coalesce(i.token, o.token),
               session_id = coalesce(i.session_id, o.session_id), methods = coalesce(i.methods, o.methods),
               updated_at = clock_timestamp()
          FROM i WHERE o.id = i.id)
    INSERT INTO audit (order_id, sequence, action, from_state, to_state, evidence)
    SELECT id, step + 2, 'order:moved', (%(way)s::text[])[step + 1], (%(way)s::text[])[step + 2], evidence FROM i
"""
_Moved = tuple[Any, int, str | None, str | None, str | None, str]


class _Token(msgspec.Struct):
    token: str


class _Session(msgspec.Struct, rename="camel"):
    session_id: str


class _Methods(msgspec.Struct):
    methods: msgspec.Raw


_token, _session, _methods = (msgspec.json.Decoder(kind) for kind in (_Token, _Session, _Methods))


class CheckoutProcessor:
    """One process's event loop: its connections to the gateway and to Postgres, and the moves that wait to be
    written.
    """

    def __init__(self) -> None:
        parts = urlsplit(HERE.gateway_url)
        self._host = parts.netloc
        self._lines = http_pool.HttpPool(str(parts.hostname), int(parts.port or 80), most=CONNECTIONS)
        self._waiting: list[tuple[_Moved, asyncio.Future[None]]] = []
        self._wakeup = asyncio.Event()
        self._room = asyncio.Semaphore(AT_ONCE)
        self._authenticate = self._request("POST", "/authenticate", work.BASIC)

    def _request(self, method: str, path: str, authorization: str, body: bytes | None = None) -> bytes:
        headers = {"Authorization": authorization, "Content-Type": "application/json"}
        return http_pool.request(method, self._host, work.API + path, headers=headers, body=body)

    async def write(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Write what has gathered, until cancelled."""
        while True:
            await self._wakeup.wait()
            self._wakeup.clear()
            while self._waiting:
                await asyncio.sleep(0)
                batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
                if not batch:
                    break
                batch.sort(key=lambda waiting: waiting[0][0])
                names = ("ids", "steps", "tokens", "sessions", "methods", "evidence")
                columns = zip(names, zip(*(moved for moved, _ in batch), strict=True), strict=True)
                parameters = {name: list(column) for name, column in columns}
                await connection.execute(_MOVES, {**parameters, "way": list(work.WAY)}, prepare=True)
                for _, done in batch:
                    done.set_result(None)

    async def _moved(self, moved: _Moved) -> None:
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((moved, done))
        self._wakeup.set()
        await done

    async def _asked(self, request: bytes) -> bytes:
        status, body = await self._lines.exchange(request)
        if status != 200:
            raise RuntimeError(f"the gateway answered {status}: {body[:200]!r}")
        return body

    async def _process(self, order_id: object, document: str) -> None:
        async with self._room:
            token = _token.decode(await self._asked(self._authenticate)).token
            await self._moved((order_id, 0, token, None, None, "{}"))
            bearer = f"Bearer {token}"
            body = json.dumps(work.session_body(order_id, json.loads(document))).encode()
            answer = await self._asked(self._request("POST", "/session", bearer, body))
            session = _session.decode(answer).session_id
            await self._moved((order_id, 1, None, session, None, f'{{"session":"{session}"}}'))
            answer = await self._asked(self._request("GET", f"/session/{session}/payment-methods", bearer))
            methods = bytes(_methods.decode(answer).methods).decode()
            await self._moved((order_id, 2, None, None, methods, "{}"))
            await self._moved((order_id, 3, None, None, None, "{}"))

    async def run(self, share: Share) -> None:
        """Take this process's share of the orders in, chunk by chunk, and process them."""
        chunks = list(islice(work.chunks(share.mark, share.orders), share.number, None, PROCESSES))
        connections = [
            await psycopg.AsyncConnection.connect(HERE.database_url, autocommit=True)
            for _ in range(WRITERS + 1)
        ]
        writers = [asyncio.create_task(self.write(connection)) for connection in connections[1:]]
        share.ready.wait()
        share.go.wait()
        since = time.process_time()
        async with asyncio.TaskGroup() as carrying:
            for chunk in chunks:
                await connections[0].execute(work.TAKE, chunk.parameters())
                for order_id, document in zip(chunk.ids, chunk.documents, strict=True):
                    carrying.create_task(self._process(order_id, document))
        work.tell_spent(since)
        for writer in writers:
            writer.cancel()
        await asyncio.gather(*writers, return_exceptions=True)
        for connection in connections:
            await connection.close()


@dataclass(frozen=True, slots=True)
class Share:
    """What one process is to do, and what it waits for."""

    mark: str
    orders: int
    number: int
    go: Event
    ready: Barrier


def live(share: Share) -> None:
    async def main() -> None:
        await CheckoutProcessor().run(share)

    uvloop.run(main())


def take(mark: str, orders: int) -> None:
    """Start the processes, and let them go once all are ready."""
    context = multiprocessing.get_context("spawn")
    go, ready = context.Event(), context.Barrier(PROCESSES + 1)
    processes = [
        context.Process(target=live, args=(Share(mark, orders, number, go, ready),))
        for number in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    ready.wait()
    with psycopg.connect(HERE.database_url, autocommit=True) as connection:
        work.tell_began(connection)
    go.set()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        sys.exit(1)


def main(_take: str, mark: str, orders: str) -> None:
    take(mark, int(orders))

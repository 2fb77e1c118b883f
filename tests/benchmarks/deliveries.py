"""How fast events reach an endpoint: `python -m tests.benchmarks.deliveries`, with Postgres, the writer, a
deliverer and the receiver on one machine.

Two measurements. A backlog: events for as many checkouts wait, and deliveries a second are counted from the
first to the last. A stream: events are committed at a steady rate, and the time from each commit to the first
byte of its delivery is received, by one clock.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import psutil
from sqlalchemy import text

from orchestrator.crypto import Encryptor
from orchestrator.delivery import signature
from orchestrator.devkit.local.servers import Embedded
from orchestrator.domain.ids import uuid7
from orchestrator.settings import environment
from orchestrator.store import events, schema, webhooks
from orchestrator.store.database import Database
from orchestrator.worker.sequencer import Sequencer
from tests.conftest import make_settings

PAYLOAD: Final = (
    '{"orderId": "A-1001", "state": "awaiting_payment", "currency": "DKK", "amount": 13900, "reserved": 0, "captured": 0, "refunded": 0, '
    '"chargedBack": 0, "facts": {"paymentMethods": 3}}'
)
INSERT = text("""
    INSERT INTO events (checkout_id, sequence, merchant_id, kind, payload, correlation_id)
    SELECT id, 1, 1, 'checkout.ready', CAST(:payload AS jsonb), 'bench' FROM unnest(CAST(:ids AS uuid[])) AS i(id)
""")
BEATING: Final = text("SELECT 1 FROM workers WHERE kind = 'deliverer'")
UNTRIED: Final = text("""
    SELECT 1 FROM events e WHERE e.position IS NULL UNION ALL SELECT 1 FROM delivery_streams s WHERE s.attempts = 0 LIMIT 1
""")
ID: Final = re.compile(rb"webhook-id: ([0-9a-f-]{36})-")
ANSWER: Final = b"HTTP/1.1 204 No Content\r\n\r\n"
REFUSAL: Final = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"


def receive(pipe: Any) -> None:
    """Take deliveries in a process of its own: the time of each first byte by checkout, until it is stopped.

    While it is set to, it answers about one checkout in a hundred with 500, for ever.
    """
    seen: dict[bytes, float] = {}
    poisoned = False

    class Endpoint(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport, self.buffer, self.began = transport, b"", 0.0

        def data_received(self, data: bytes) -> None:
            self.began = self.began or time.time()
            self.buffer += data
            head, separator, body = self.buffer.partition(b"\r\n\r\n")
            if not separator or len(body) < int(re.search(rb"(?i)content-length: (\d+)", head)[1]):  # type: ignore[index]
                return
            found = ID.search(head)
            assert found is not None
            seen.setdefault(found[1], self.began)
            self.buffer, self.began = b"", 0.0
            self.transport.write(REFUSAL if poisoned and is_poisoned(found[1]) else ANSWER)

    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(Endpoint, "127.0.0.1", 0)
        nonlocal poisoned
        pipe.send(server.sockets[0].getsockname()[1])
        while True:
            await asyncio.sleep(0.02)
            if pipe.poll():
                wanted = pipe.recv()
                if wanted is None:
                    return
                if wanted == "poison":
                    poisoned = True
                pipe.send((len(seen), seen if wanted == "all" else None))

    asyncio.run(serve())


def is_poisoned(checkout: bytes) -> bool:
    """Say whether this checkout's events are refused: about one in a hundred is."""
    return int(checkout[-4:], 16) % 100 == 0


def counted(pipe: Any) -> int:
    pipe.send("count")
    return int(pipe.recv()[0])


async def backlog(
    db: Database, pipe: Any, *, number: int, deliverer: list[str], env: dict[str, str]
) -> dict[str, float]:
    """Have so many events wait, then start the deliverer."""
    before = counted(pipe)
    for _ in range(number // 1000):
        await db.write(INSERT, {"ids": [uuid7() for _ in range(1000)], "payload": PAYLOAD})
        await events.place(db)
    while await events.waiting(db):
        await events.place(db)
    with subprocess.Popen(deliverer, env=env) as process:  # noqa: ASYNC220 - started once
        while counted(pipe) == before:  # noqa: ASYNC110 - another process counts
            await asyncio.sleep(0.05)
        began, first = time.monotonic(), counted(pipe)
        while (now := counted(pipe)) < before + number:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.05)
        seconds = time.monotonic() - began
        used = psutil.Process(process.pid).cpu_times()
        process.terminate()
    return {
        "deliveries_per_second": round((now - first) / seconds, 1),
        "deliverer_cpu_ms_each": round((used.user + used.system) * 1000 / number, 3),
    }


async def stream(
    db: Database, pipe: Any, *, rate: float, seconds: float, deliverer: list[str], env: dict[str, str]
) -> dict[str, float]:
    """Commit events at a rate, and compare the times of commits with those of first bytes."""
    sequencer = Sequencer(db, retention=1e9)
    running = asyncio.create_task(sequencer.run())
    committed: dict[bytes, float] = {}
    with subprocess.Popen(deliverer, env=env) as process:  # noqa: ASYNC220 - started once
        # A process that has only just been started imports for a while.
        while not await db.read(BEATING):  # noqa: ASYNC110 - another process starts
            await asyncio.sleep(0.05)

        async def commit() -> None:
            checkout = uuid7()
            await db.write(INSERT, {"ids": [checkout], "payload": PAYLOAD})
            committed[str(checkout).encode()] = time.time()
            sequencer.wake()

        tasks = []
        began = time.monotonic()
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(began + number / rate - time.monotonic(), 0))
            tasks.append(asyncio.create_task(commit()))
        await asyncio.gather(*tasks)
        # Events of one checkout each, so that as many streams are left as were refused.
        async with asyncio.timeout(120):
            while await db.read(UNTRIED):  # noqa: ASYNC110 - another process delivers
                await asyncio.sleep(0.05)
        pipe.send("all")
        seen = pipe.recv()[1]
        process.terminate()
    running.cancel()
    taken = sorted((seen[event] - at) * 1000 for event, at in committed.items() if not is_poisoned(event))

    def percentile(share: float) -> float:
        return round(taken[min(int(len(taken) * share), len(taken) - 1)], 1)

    return {
        "rate": rate,
        "p50_ms": percentile(0.5),
        "p95_ms": percentile(0.95),
        "p99_ms": percentile(0.99),
        "max_ms": round(taken[-1], 1),
    }


async def measure(number: int, rate: float, seconds: float) -> None:
    with (
        tempfile.TemporaryDirectory() as place,
        Embedded.start(Path(place), redis=False, durable=True) as servers,
    ):
        schema.migrate(servers.owner_url)
        settings = make_settings(
            database_url=servers.database_url, webhook_allowed_networks=("127.0.0.0/8",), log_level="warning"
        )
        env = {**os.environ, **environment(settings, "deliverer")}
        command = [sys.executable, "-m", "orchestrator", "deliverer"]
        ours, theirs = multiprocessing.Pipe()
        receiver = multiprocessing.Process(target=receive, args=(theirs,), daemon=True)
        receiver.start()
        port = ours.recv()
        async with Database(servers.database_url, pool_size=8, name="bench") as db:
            await webhooks.add(
                db,
                Encryptor(settings.secret_keys),
                merchant_id=1,
                url=f"http://127.0.0.1:{port}/",
                description="",
                kinds=None,
                content="thin",
                secret=signature.new_secret(),
            )
            print(
                "stream ",
                await stream(db, ours, rate=rate, seconds=seconds, deliverer=command, env=env),
                flush=True,
            )
            ours.send("poison")
            ours.recv()
            told = await stream(db, ours, rate=rate, seconds=seconds, deliverer=command, env=env)
            print("stream, 1 % of checkouts answered 500", told, flush=True)
            print(
                "backlog, 1 % of checkouts answered 500",
                await backlog(db, ours, number=number, deliverer=command, env=env),
                flush=True,
            )
        ours.send(None)
        receiver.join(5)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=20_000)
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--seconds", type=float, default=20)
    given = parser.parse_args()
    asyncio.run(measure(given.number, given.rate, given.seconds))

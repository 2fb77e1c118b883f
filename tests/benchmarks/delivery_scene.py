"""A database with webhook endpoints on it, deliverers, a sequencer, and the events that are committed there:
what `deliveries` measures.
"""

from __future__ import annotations

import asyncio
import base64
import os
import time
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final

import psutil
from sqlalchemy import text

from orchestrator.crypto import Encryptor
from orchestrator.delivery import signature
from orchestrator.devkit.bench import usage
from orchestrator.domain.ids import uuid7
from orchestrator.settings import environment, load
from orchestrator.store import events, schema, webhooks
from orchestrator.store.database import Database
from orchestrator.worker.sequencer import Sequencer
from tests.benchmarks.ground import BenchmarkFailed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from uuid import UUID

    from tests.benchmarks.ground import Ground
    from tests.benchmarks.receiver import Receiver, Seen

NEARLY_NONE: Final = 20
"""Fewer checkouts are under way all the time while events come."""
WAIT: Final = 600.0
"""Seconds within which what must come has come."""
PAYLOAD: Final = (
    '{"orderId": "A-1001", "state": "awaiting_payment", "currency": "DKK", "amount": 13900, "reserved": 0, "captured": 0, "refunded": 0, '
    '"chargedBack": 0, "facts": {"paymentMethods": 3}}'
)
INSERT: Final = text("""
    INSERT INTO events (checkout_id, sequence, merchant_id, kind, payload, correlation_id)
    SELECT id, sequence, :merchant, 'checkout.ready', CAST(:payload AS jsonb), CAST(id AS text)
      FROM unnest(CAST(:ids AS uuid[])) AS i(id), generate_series(1, :each) AS s(sequence)
""")
BEATING: Final = text("SELECT count(*) AS number FROM workers WHERE kind = 'deliverer'")
OPENED: Final = text("SELECT opened FROM webhook_endpoints WHERE id = :id")
UNSENT: Final = text("""
    SELECT count(*) AS number FROM (SELECT FROM delivery_streams WHERE endpoint_id = :id LIMIT :most) s
""")
LATER: Final = text("UPDATE clock_skew SET seconds = seconds + :seconds")


class Scene:
    """A database with endpoints, a sequencer that runs, and what is committed and delivered there."""

    def __init__(self, ground: Ground, receiver: Receiver, url: str, db: Database) -> None:
        self._ground, self.receiver, self._db = ground, receiver, db
        self._settings = load(
            {
                "database_url": url,
                "secret_keys": (base64.b64encode(os.urandom(32)).decode(),),
                "webhook_allowed_networks": ("127.0.0.0/8",),
                "log_level": "warning",
            }
        )
        self._sequencer = Sequencer(db, retention=1e9)
        self._deliverers: dict[str, int] = {}
        self.secrets: dict[int, bytes] = {}

    async def endpoint(self, number: int, *, merchant: int = 1) -> UUID:
        """Add endpoint N of a merchant; return its id."""
        self.receiver.reset(number)
        self.secrets[number] = secret = signature.new_secret()
        added = await webhooks.add(
            self._db,
            Encryptor(self._settings.secret_keys),
            merchant_id=merchant,
            url=self.receiver.url(number),
            description="",
            kinds=None,
            content="thin",
            secret=secret,
        )
        return added.id

    async def merchant(self, name: str) -> int:
        await self._db.write(text("INSERT INTO merchants (name) VALUES (:name)"), {"name": name})
        found = await self._db.read(text("SELECT id FROM merchants WHERE name = :name"), {"name": name})
        return int(found[0].id)

    @contextmanager
    def deliverer(self, name: str = "deliverer") -> Iterator[None]:
        """Run a deliverer."""
        env = environment(self._settings, "deliverer")
        with self._ground.running(name, ["-m", "orchestrator", "deliverer"], env) as process:
            self._deliverers[name] = process.child.pid
            try:
                yield
            finally:
                del self._deliverers[name]

    async def beating(self, number: int = 1) -> None:
        """Wait until so many deliverers run: one that was only just started imports for a while."""
        async with asyncio.timeout(60):
            while (await self._db.read(BEATING))[0].number < number:  # noqa: ASYNC110 - other processes start
                await asyncio.sleep(0.05)

    @asynccontextmanager
    async def numbering(self) -> AsyncIterator[None]:
        running = asyncio.create_task(self._sequencer.run())
        try:
            yield
        finally:
            running.cancel()

    async def fill(self, checkouts: int, *, each: int = 1, merchant: int = 1) -> None:
        """Commit events for as many checkouts, and give them their positions."""
        for done in range(0, checkouts, 1000):
            ids = [uuid7() for _ in range(min(1000, checkouts - done))]
            asked = {"ids": ids, "each": each, "merchant": merchant, "payload": PAYLOAD}
            await self._db.write(INSERT, asked)
            while await events.waiting(self._db):
                await events.place(self._db)

    async def stream(
        self,
        rate: float,
        *,
        merchant: int = 1,
        seconds: float = float("inf"),
        over: asyncio.Event | None = None,
    ) -> dict[bytes, float]:
        """Commit an event at a time at a steady rate, each of a checkout of its own; return the moment after
        each commit, in seconds since 1970.
        """
        committed: dict[bytes, float] = {}

        async def commit() -> None:
            checkout = uuid7()
            asked = {"ids": [checkout], "each": 1, "merchant": merchant, "payload": PAYLOAD}
            await self._db.write(INSERT, asked)
            committed[f"{checkout}-1".encode()] = time.time()
            self._sequencer.wake()

        tasks: set[asyncio.Task[None]] = set()
        began, number = time.monotonic(), 0
        while number < rate * seconds and not (over and over.is_set()):
            await asyncio.sleep(max(began + number / rate - time.monotonic(), 0))
            task = asyncio.create_task(commit())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            number += 1
        await asyncio.gather(*tasks)
        return committed

    async def received(self, number: int, at_least: int) -> None:
        """Wait until so many events have come to an endpoint."""
        async with asyncio.timeout(WAIT):
            while self.receiver.count(number)[0] < at_least:  # noqa: ASYNC110 - another process counts
                await asyncio.sleep(0.02)

    async def opened(self, endpoint: UUID) -> int:
        """Return how often the circuit of an endpoint has opened in a row."""
        return int((await self._db.read(OPENED, {"id": endpoint}))[0].opened)

    async def waiting(self, endpoint: UUID) -> int:
        """Return for how many checkouts something is unsent, `NEARLY_NONE` at the most."""
        return int((await self._db.read(UNSENT, {"id": endpoint, "most": NEARLY_NONE}))[0].number)

    async def later(self, seconds: int) -> None:
        """Move Postgres's clock on."""
        await self._db.write(LATER, {"seconds": seconds})

    def spent(self) -> dict[str, float]:
        """Return the CPU seconds of each kind of process so far."""
        meter = self._ground.meter(())
        return {
            "deliverer": sum(usage.spent(psutil.Process(pid)) for pid in self._deliverers.values()),
            "postgres": meter.postgres,
            "endpoints": usage.spent(psutil.Process(self.receiver.pid)),
            "writer and sequencer": usage.spent(psutil.Process()),
            "others": meter.busy - meter.ours,
            "machine": meter.whole,
        }

    def check(self, number: int, seen: Seen) -> None:
        """Check the signatures that were kept, and the order."""
        for raw in seen.kept:
            head, _, body = raw.partition(b"\r\n\r\n")
            given = dict(line.split(": ", 1) for line in head.decode().lower().split("\r\n")[1:])
            at = int(given["webhook-timestamp"])
            made = signature.headers(given["webhook-id"], body, [self.secrets[number]], at=at)
            if made["webhook-signature"].lower() != given["webhook-signature"]:
                raise BenchmarkFailed("a delivery is not signed with the endpoint's secret")
        if seen.disordered:
            raise BenchmarkFailed(f"{seen.disordered} events came out of the order of their checkouts")


@asynccontextmanager
async def scene(ground: Ground, receiver: Receiver, name: str) -> AsyncIterator[Scene]:
    with ground.database(name) as url:
        schema.migrate(url)
        async with Database(url, pool_size=8, name="bench") as db:
            made = Scene(ground, receiver, url, db)
            async with made.numbering():
                yield made

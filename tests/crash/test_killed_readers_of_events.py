"""20,000 events while whatever writes, numbers, serves, sends and reads them is killed at random: by the feed
and by a webhook each is seen, those of a checkout in order and without a gap.

By task the guarantee ends at the broker: `test_killed_task_queues.py`.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import sys
from collections import Counter, defaultdict
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from orchestrator import auth
from orchestrator.domain.ids import uuid7
from orchestrator.store.database import Database
from tests.conftest import make_settings
from tests.support.brokers import redis_server
from tests.support.forked import Popen
from tests.support.receivers import receiving
from tests.support.scene import intent
from tests.support.world import World, world

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path
    from uuid import UUID

    from tests.support.brokers import Server

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(1200)]

EVENTS, EACH = 20_000, 8
WRITERS = 16
ORDERS = 60
"""Orders that come by the API beside them: their events are written by workers."""
PROCESSES = ("api", "worker-1", "worker-2", "scheduler", "deliverer-1", "deliverer-2")
# The loop of docs/events.md: events and cursor are kept in one transaction.
CONSUMER = """
import sqlite3, sys, time, httpx

url, token, place = sys.argv[1:]
books = sqlite3.connect(place, isolation_level=None)
books.execute("CREATE TABLE IF NOT EXISTS cursors (id INTEGER PRIMARY KEY, next TEXT)")
books.execute(
    "CREATE TABLE IF NOT EXISTS seen (number INTEGER PRIMARY KEY, id TEXT UNIQUE, subject TEXT, sequence INTEGER, position INTEGER)")
client = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=40)
while True:
    (cursor,) = books.execute("SELECT next FROM cursors").fetchone() or ("0",)
    try:
        answer = client.get("/v1/events", params={"after": cursor, "wait": 5, "limit": 200})
        answer.raise_for_status()
    except httpx.HTTPError:
        time.sleep(0.1)
        continue
    page = answer.json()
    books.execute("BEGIN IMMEDIATE")
    for event in page["events"]:
        books.execute("INSERT INTO seen (id, subject, sequence, position) VALUES (?, ?, ?, ?)",
                      (event["id"], event["subject"], int(event["sequence"]), int(event["position"])))
    books.execute("INSERT INTO cursors VALUES (1, ?) ON CONFLICT (id) DO UPDATE SET next = excluded.next", (page["next"],))
    books.execute("COMMIT")
"""
PAYLOAD = (
    '{"orderId": "A-1", "state": "awaiting_payment", "currency": "DKK", "amount": 13900, "reserved": 0, "captured": 0, "refunded": 0, '
    '"chargedBack": 0, "facts": {"paymentMethods": 3}}'
)


async def write_events(url: str, events: int = EVENTS) -> None:
    """Write so many events of many checkouts at once, each in a transaction of its own; those of a checkout
    in turn, some of them together.
    """
    from sqlalchemy import text

    insert = text("""
        INSERT INTO events (checkout_id, sequence, merchant_id, kind, payload, correlation_id)
        VALUES (:checkout, :sequence, 1, 'checkout.ready', CAST(:payload AS jsonb), 'crash')
    """)
    async with Database(url, pool_size=WRITERS) as db:

        async def happen(checkouts: list[UUID]) -> None:
            for checkout in checkouts:
                sequence = 1
                while sequence <= EACH:
                    together = min(random.choice((1, 1, 1, 2)), EACH + 1 - sequence)
                    async with db.transaction() as tx:
                        for number in range(sequence, sequence + together):
                            asked = {"checkout": checkout, "sequence": number, "payload": PAYLOAD}
                            await tx.execute(insert, asked)
                        await asyncio.sleep(random.choice((0.0, 0.0, 0.0, 0.02)))
                    sequence += together
                    await asyncio.sleep(random.uniform(0.0, 0.08))

        made = [uuid7() for _ in range(events // EACH)]
        await asyncio.gather(*(happen(made[writer::WRITERS]) for writer in range(WRITERS)))


async def hand_over(installation: World) -> None:
    """Hand orders over, each again until it is answered: the API is killed meanwhile."""
    for number in range(ORDERS):
        while True:
            with suppress(Exception):
                await asyncio.to_thread(installation.api().create, intent(f"KR-{number}"))
                break
            await asyncio.sleep(0.2)
        await asyncio.sleep(random.uniform(0.0, 1.0))


class Consumer:
    """A shop that reads the feed, in a process that can be killed."""

    def __init__(self, url: str, place: Path) -> None:
        self._url, self._place = url, place / "shop.db"
        self._token = auth.issue(
            make_settings(), merchant="default", scopes=("events:read",), lifetime=7200, subject="test"
        )
        self.process: subprocess.Popen[Any] | None = None

    def start(self) -> None:
        self.process = Popen([sys.executable, "-c", CONSUMER, self._url, self._token, str(self._place)])

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def count(self) -> int:
        return len(self.seen())

    def seen(self) -> list[tuple[str, int, int]]:
        """Return subject, sequence and position of each event, in the order in which they were read."""
        with sqlite3.connect(self._place) as books:
            return books.execute("SELECT subject, sequence, position FROM seen ORDER BY number").fetchall()


async def kill_at_random(
    installation: World, broker: Server, consumer: Consumer, over: asyncio.Event
) -> Counter[str]:
    """Kill one after the other and start it again, until it is over; return how often each was killed."""
    kills: Counter[str] = Counter()
    names = (*PROCESSES, "broker", "consumer")

    def kill_one(name: str) -> None:
        match name:
            case "broker":
                broker.kill()
            case "consumer":
                consumer.kill()
            case _:
                installation.kill(name)

    def start_one(name: str) -> None:
        match name:
            case "broker":
                broker.start()
            case "consumer":
                consumer.start()
            case _:
                installation.start(name)

    while not over.is_set() or not kills.keys() >= set(names):
        # Two at a time every now and then; each at least once.
        chosen = random.sample(names, random.choice((1, 1, 2)))
        for name in chosen:
            await asyncio.to_thread(kill_one, name)
            kills[name] += 1
        await asyncio.sleep(random.uniform(0.0, 0.8))
        for name in chosen:
            await asyncio.to_thread(start_one, name)
        await asyncio.sleep(random.uniform(0.1, 1.2))
    return kills


def in_order(found: dict[str, list[int]]) -> bool:
    """Say whether each checkout's events came in order from the first without a gap; an event may come
    again, but none after a later one.
    """
    return all(
        sequences == sorted(sequences) and sorted(set(sequences)) == list(range(1, sequences[-1] + 1))
        for sequences in found.values()
    )


async def test_20000_events_are_all_seen_in_order_while_everything_is_killed_at_random(
    servers, database_url, tmp_path
):
    seed = random.randrange(1 << 30)
    random.seed(seed)
    print(f"seed {seed}")
    with (
        redis_server(tmp_path / "broker") as broker,
        world(
            servers,
            database_url,
            tmp_path,
            broker_url=f"redis://127.0.0.1:{broker.port}/0",
            redis_url=f"redis://127.0.0.1:{broker.port}/0",
            webhook_allowed_networks=["127.0.0.0/8"],
            webhook_total_timeout=5,
        ) as installation,
    ):
        for name in ("sandbox", *PROCESSES):
            await asyncio.to_thread(installation.start, name)
        async with receiving() as receiver:
            added = await asyncio.to_thread(installation.command, "webhooks", "add", receiver.url())
            assert added.returncode == 0, added.stderr
            receiver.secrets.append(added.stdout.split("\n")[1])
            receiver.answer = lambda _: random.choice((500, 503)) if random.random() < 0.01 else 204
            consumer = Consumer(installation.api_url, tmp_path)
            consumer.start()
            over = asyncio.Event()
            try:
                killing = asyncio.create_task(kill_at_random(installation, broker, consumer, over))
                await asyncio.gather(write_events(database_url), hand_over(installation))
                over.set()
                kills = await killing
                receiver.answer = lambda _: 204

                def settled() -> bool:
                    return not installation.sql(
                        "SELECT 1 WHERE EXISTS (SELECT FROM events WHERE position IS NULL) OR EXISTS (SELECT FROM delivery_streams) "
                        "OR EXISTS (SELECT FROM checkouts WHERE state <> 'awaiting_payment')"
                    ) and consumer.count() == int(
                        installation.sql("SELECT count(*) AS n FROM events")[0]["n"]
                    )

                # Leases of killed deliverers end, and what was refused twice waits for half a minute.
                async with asyncio.timeout(300):
                    while not await asyncio.to_thread(settled):  # noqa: ASYNC110 - other processes do it
                        await asyncio.sleep(0.5)
            finally:
                consumer.kill()
        assert receiver.unverified == 0
        rows = installation.sql("SELECT checkout_id, sequence FROM events ORDER BY checkout_id, sequence")
        assert len(rows) >= EVENTS + ORDERS
        written: dict[str, list[int]] = defaultdict(list)
        for row in rows:
            written[str(row["checkout_id"])].append(row["sequence"])
        seen = consumer.seen()
        assert [position for _, _, position in seen] == list(range(1, len(rows) + 1)), "a gap in the feed"
        by_feed: dict[str, list[int]] = defaultdict(list)
        for subject, sequence, _ in seen:
            by_feed[subject].append(sequence)
        assert by_feed == written
        by_webhook = receiver.by_checkout()
        assert in_order(by_webhook)
        assert {subject: sorted(set(sequences)) for subject, sequences in by_webhook.items()} == written
        again = sum(map(len, by_webhook.values())) - len(rows)
        print(f"{len(rows)} events, killed: {dict(kills)}; {again} deliveries came again, with the same id")

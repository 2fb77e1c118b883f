"""Events as Celery tasks while broker, deliverers and consumer are killed at random: where the guarantee
ends.

On RabbitMQ an event counts as delivered once the broker has confirmed it, so that a durable queue and a
consumer that acknowledges late lose none. On Redis a message is in memory alone, and gone with the broker or
with a consumer that has taken it: the test prints how many, and finds each of them in the feed.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import sys
from collections import Counter, defaultdict
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from tests.crash.test_killed_readers_of_events import write_events
from tests.support.brokers import RabbitMQServer, rabbitmq_server, redis_server
from tests.support.forked import Popen
from tests.support.task_consumers import declare
from tests.support.world import World, world

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from orchestrator.devkit.local.servers import Embedded

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(1500)]

QUEUE = "shop-events"
KILLS = 4
"""Of each of them at the least."""
DELIVERERS = ("deliverer-1", "deliverer-2")
BOOKS = """
import base64, json, sqlite3, sys, time

port, queue, place = sys.argv[1:]
books = sqlite3.connect(place, isolation_level=None)
books.execute("CREATE TABLE IF NOT EXISTS seen (number INTEGER PRIMARY KEY, id TEXT UNIQUE, subject TEXT, sequence INTEGER, again INTEGER)")
books.execute("CREATE TABLE IF NOT EXISTS taken (number INTEGER PRIMARY KEY)")

def keep(body, again=False):
    ((event,), _, _) = json.loads(body)
    books.execute("BEGIN IMMEDIATE")
    books.execute("INSERT OR IGNORE INTO seen (id, subject, sequence, again) VALUES (?, ?, ?, ?)",
                  (event["id"], event["subject"], int(event["sequence"]), again))
    books.execute("INSERT INTO taken DEFAULT VALUES")
    books.execute("COMMIT")
"""
RABBITMQ = f"""{BOOKS}
import amqp

while True:
    try:
        with amqp.Connection(f"127.0.0.1:{{port}}", "guest", "guest", connect_timeout=5, read_timeout=60) as connection:
            channel = connection.channel()
            channel.basic_qos(0, 20, False)

            def take(message):
                keep(message.body, message.delivery_info["redelivered"])
                channel.basic_ack(message.delivery_tag)

            channel.basic_consume(queue, callback=take)
            while True:
                connection.drain_events()
    except (OSError, amqp.AMQPError):
        time.sleep(0.2)
"""
REDIS = f"""{BOOKS}
import redis

client = redis.Redis(port=int(port), socket_timeout=5)
while True:
    try:
        # As Celery's transport takes it: it is off the list before anything is done with it.
        found = client.brpop(queue, timeout=2)
    except redis.RedisError:
        time.sleep(0.2)
        continue
    if found:
        keep(base64.b64decode(json.loads(found[1])["body"]))
"""


class Consumer:
    """A merchant's worker, in a process that can be killed."""

    def __init__(self, code: str, port: int, place: Path) -> None:
        self._command = [sys.executable, "-c", code, str(port), QUEUE, str(place)]
        self._place = place
        self.process: subprocess.Popen[Any] | None = None

    def start(self) -> None:
        self.process = Popen(self._command)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def seen(self, *, again: bool = True) -> dict[str, list[int]]:
        """Return the sequences of each checkout, each once, in the order in which they came first; `again`:
        also those that the broker had given to a consumer before, which was killed.
        """
        found: dict[str, list[int]] = defaultdict(list)
        with sqlite3.connect(self._place, timeout=30) as books:
            rows = books.execute("SELECT subject, sequence, again FROM seen ORDER BY number")
            for subject, sequence, given_again in rows:
                if again or not given_again:
                    found[subject].append(sequence)
        return found

    def taken(self) -> int:
        with sqlite3.connect(self._place, timeout=30) as books:
            return int(books.execute("SELECT count(*) FROM taken").fetchone()[0])


def restart_rabbitmq(server: RabbitMQServer) -> None:
    server.start()
    server.wait()


async def kill_at_random(
    installation: World,
    consumer: Consumer,
    broker: tuple[Callable[[], None], Callable[[], None]],
    over: asyncio.Event,
) -> Counter[str]:
    """Kill one after the other, and start it again, until it is over; return how often each was killed."""
    kills: Counter[str] = Counter()
    names = (*DELIVERERS, "broker", "consumer")
    ways: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
        "broker": broker,
        "consumer": (consumer.kill, consumer.start),
        **{
            name: (lambda name=name: installation.kill(name), lambda name=name: installation.start(name))  # type: ignore[misc]
            for name in DELIVERERS
        },
    }
    while not over.is_set() or min(kills[name] for name in names) < KILLS:
        for name in random.sample(names, random.choice((1, 1, 2))):
            kill, start = ways[name]
            await asyncio.to_thread(kill)
            kills[name] += 1
            await asyncio.sleep(random.uniform(0.0, 0.5))
            await asyncio.to_thread(start)
        await asyncio.sleep(random.uniform(0.1, 1.0))
    return kills


@pytest.mark.parametrize("kind", ["rabbitmq", "redis"])
async def test_by_task_rabbitmq_loses_none_and_what_redis_loses_is_in_the_feed(
    servers: Embedded, database_url: str, tmp_path: Path, kind: str
):
    seed = random.randrange(1 << 30)
    random.seed(seed)
    print(f"seed {seed}")
    with ExitStack() as stack:
        if kind == "rabbitmq":
            rabbitmq = stack.enter_context(rabbitmq_server())
            declare(rabbitmq.url, QUEUE, queue_type="quorum", delivery_limit=1_000_000)
            url, port, code = rabbitmq.url, rabbitmq.port, RABBITMQ
            broker = (rabbitmq.kill, lambda: restart_rabbitmq(rabbitmq))
        else:
            cache = stack.enter_context(redis_server(tmp_path / "broker"))
            url, port, code = f"redis://127.0.0.1:{cache.port}/0", cache.port, REDIS
            broker = (cache.kill, cache.start)
        installation = stack.enter_context(
            world(
                servers,
                database_url,
                tmp_path,
                webhook_allowed_networks=["127.0.0.0/8"],
                webhook_total_timeout=5,
            )
        )
        for name in ("api", "worker-1", "scheduler", *DELIVERERS):
            await asyncio.to_thread(installation.start, name)
        added = await asyncio.to_thread(
            lambda: installation.command(
                "webhooks", "add-task", "shop.events", QUEUE, "--broker-from", "-", given=f"{url}\n"
            )
        )
        assert added.returncode == 0, added.stderr
        endpoint = added.stdout.split()[1]
        consumer = Consumer(code, port, tmp_path / "shop.db")
        consumer.start()
        over = asyncio.Event()
        try:
            killing = asyncio.create_task(kill_at_random(installation, consumer, broker, over))
            await write_events(database_url)
            over.set()
            kills = await killing

            def delivered() -> bool:
                return not installation.sql(
                    "SELECT 1 WHERE EXISTS (SELECT FROM events WHERE position IS NULL) OR EXISTS (SELECT FROM delivery_streams)"
                )

            async with asyncio.timeout(400):
                while not await asyncio.to_thread(delivered):
                    # What failed twice waits for half a minute: it is tried now.
                    await asyncio.to_thread(installation.command, "webhooks", "resume", endpoint)
                    await asyncio.sleep(3)
            before = -1
            while (now := consumer.taken()) != before:
                before = now
                await asyncio.sleep(5)
        finally:
            consumer.kill()
        written: dict[str, list[int]] = defaultdict(list)
        for row in installation.sql(
            "SELECT checkout_id, sequence FROM events ORDER BY checkout_id, sequence"
        ):
            written[str(row["checkout_id"])].append(row["sequence"])
        number = sum(map(len, written.values()))
        seen = consumer.seen()
        lost = {
            (subject, sequence)
            for subject, sequences in written.items()
            for sequence in sequences
            if sequence not in seen.get(subject, ())
        }
        print(
            f"{kind}, {number} events, killed: {dict(kills)}; {len(lost)} lost by the queue, "
            f"{now - sum(map(len, seen.values()))} came again, with the same id"
        )
        # What RabbitMQ takes back from a killed consumer may come after what another one is given meanwhile.
        given = consumer.seen(again=False)
        assert all(sequences == sorted(sequences) for sequences in given.values())
        if kind == "rabbitmq":
            assert lost == set()
        assert lost <= await asyncio.to_thread(in_the_feed, installation)


def in_the_feed(installation: World) -> set[tuple[str, int]]:
    """Return subject and sequence of every event of the feed."""
    from orchestrator import auth
    from tests.conftest import make_settings

    token = auth.issue(
        make_settings(), merchant="default", scopes=("events:read",), lifetime=600, subject="test"
    )
    found: set[tuple[str, int]] = set()
    after = "0"
    while True:
        page = installation.http.get(
            f"{installation.api_url}/v1/events",
            params={"after": after, "limit": 1000},
            headers={"Authorization": f"Bearer {token}"},
        ).json()
        if not page["events"]:
            return found
        found |= {(event["subject"], int(event["sequence"])) for event in page["events"]}
        after = page["next"]

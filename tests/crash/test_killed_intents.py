"""Consumers of the queue `intents` that are killed at any moment: on RabbitMQ no order is lost or doubled; on
Redis the transport may lose a message with its consumer, and the test prints how many.
"""

from __future__ import annotations

import random
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.support.brokers import rabbitmq_server
from tests.support.jobs import FAR, Producer, accepted_orders, make_overdue, unacknowledged
from tests.support.scene import intent
from tests.support.world import World, world

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.devkit.local.servers import Embedded

EACH_TIME = 60
"""Messages that are published before each kill; each has two orders, every tenth also an invalid intent."""


def count(installation: World, table: str) -> int:
    return int(installation.sql(f"SELECT count(*) AS number FROM {table}")[0]["number"])


def kill_repeatedly(installation: World, producer: Producer, kills: int) -> tuple[int, int]:
    """Kill the consumer repeatedly while it stores; return how many orders and invalid intents were sent."""
    orders = wrong = 0
    for kill in range(kills):
        before = count(installation, "checkouts")
        installation.start("worker-1")
        if kill == 0:
            installation.until(producer.declared, "the queue is declared", seconds=90)
        lists = []
        for message in range(EACH_TIME):
            rows = [intent(f"K-{kill}-{message}-{place}") for place in range(2)]
            orders += 2
            if message % 10 == 0:
                rows.append(intent(f"K-{kill}-{message}-wrong", amount="-1.00"))
                wrong += 1
            lists.append(rows)
        producer.send(lists)
        if producer.broker_url.startswith("redis"):
            make_overdue(producer.broker_url)
        installation.until(
            lambda before=before: count(installation, "checkouts") > before, "it stores", seconds=90
        )
        time.sleep(random.uniform(0, 0.15))
        installation.kill("worker-1")
    return orders, wrong


def settled(installation: World, producer: Producer) -> None:
    """Wait until the queue is empty and no message is delivered again."""
    installation.start("worker-1")
    quiet, seen = 0, -1
    while quiet < 20:
        if producer.broker_url.startswith("redis"):
            make_overdue(producer.broker_url)
        time.sleep(0.25)
        now = count(installation, "checkouts") + count(installation, "rejected_intents")
        waiting = producer.waiting()
        if producer.broker_url.startswith("redis"):
            waiting += unacknowledged(producer.broker_url)
        quiet = quiet + 1 if now == seen and waiting == 0 else 0
        seen = now
    assert installation.stop("worker-1", seconds=30) == 0


def on_rabbitmq(servers: Embedded, database_url: str, place: Path, kills: int) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(rabbitmq_server())
        installation = stack.enter_context(
            world(servers, database_url, place, broker_url=server.url, redis_url=servers.redis_url, **FAR)
        )
        producer = Producer(server.url)
        orders, wrong = kill_repeatedly(installation, producer, kills)
        settled(installation, producer)
        assert len(set(accepted_orders(installation, orders))) == count(installation, "checkouts") == orders
        assert count(installation, "rejected_intents") == wrong
        events = installation.sql("SELECT count(*) AS number FROM events WHERE kind = 'intent.rejected'")
        assert events[0]["number"] == wrong
        print(
            f"RabbitMQ, {kills} kills: none of {orders} orders lost or doubled, nor of {wrong} refused ones"
        )


def on_redis(servers: Embedded, database_url: str, place: Path, kills: int) -> None:
    with world(servers, database_url, place, **FAR) as installation:
        producer = Producer(servers.redis_url)
        orders, wrong = kill_repeatedly(installation, producer, kills)
        settled(installation, producer)
        lost = orders - count(installation, "checkouts")
        lost_wrong = wrong - count(installation, "rejected_intents")
        print(f"Redis, {kills} kills: {lost} of {orders} orders lost, {lost_wrong} of {wrong} refused ones")
        # A killed consumer can lose only the message that it was popping.
        assert 0 <= lost <= 2 * kills
        assert 0 <= lost_wrong <= kills
        # What is lost must not hide what is doubled.
        found = accepted_orders(installation, orders - lost)
        assert len(set(found)) == len(found)
        refused = installation.sql(
            "SELECT count(*) AS rows, count(DISTINCT order_ref) AS orders FROM rejected_intents"
        )
        assert refused[0]["rows"] == refused[0]["orders"]


@pytest.mark.timeout(400)
def test_killed_consumers_of_intents_lose_and_double_none_on_rabbitmq(
    servers: Embedded, database_url: str, tmp_path: Path
):
    on_rabbitmq(servers, database_url, tmp_path, 4)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_killed_consumers_of_intents_double_none_on_redis(
    servers: Embedded, database_url: str, tmp_path: Path
):
    on_redis(servers, database_url, tmp_path, 4)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_300_kills_on_rabbitmq_lose_and_double_none(servers: Embedded, database_url: str, tmp_path: Path):
    on_rabbitmq(servers, database_url, tmp_path, 300)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_300_kills_on_redis_double_none(servers: Embedded, database_url: str, tmp_path: Path):
    on_redis(servers, database_url, tmp_path, 300)

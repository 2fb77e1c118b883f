"""The example of a consumer of events as Celery tasks, on the installation's own broker of each kind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis

from orchestrator import auth
from tests.conftest import make_settings
from tests.support.task_consumers import Sent, declare, read_rabbitmq, read_redis

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.jobs import Producer
    from tests.support.world import World

pytestmark = [pytest.mark.timeout(400), pytest.mark.slow]

EXAMPLE = Path(__file__).resolve().parents[2] / "docs/examples/events.py"
QUEUE, PREFIX = "events:default", "events:default:"


@contextmanager
def consuming(installation: World, broker: str) -> Iterator[Path]:
    """Run the example's worker; yield its log."""
    token = auth.issue(
        make_settings(), merchant="default", scopes=("events:read",), lifetime=600, subject="test"
    )
    place = installation.place / "shop"
    place.mkdir()
    environment = {
        **os.environ,
        "BROKER_URL": broker,
        "QUEUE": QUEUE,
        "KEY_PREFIX": PREFIX,
        "FEED_URL": installation.api_url,
        "TOKEN": token,
        "EVERY": "1",
        "PYTHONPATH": str(EXAMPLE.parent),
    }
    log = place / "worker.log"
    command = [
        sys.executable,
        "-m",
        "celery",
        "--app",
        EXAMPLE.stem,
        "worker",
        "--beat",
        "--concurrency",
        "1",
    ]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=environment, cwd=place, stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )
    try:
        yield log
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def test_the_example_fills_what_the_queue_has_lost_from_the_feed(shop: tuple[World, Producer]):
    installation, producer = shop
    broker = producer.broker_url
    for name in ("sandbox", "api", "scheduler", "deliverer"):
        installation.start(name)
    on_redis = broker.startswith("redis")
    if not on_redis:
        declare(broker, QUEUE, queue_type="quorum")
    added = installation.command("webhooks", "add-task", "shop.events", QUEUE)
    assert added.returncode == 0, added.stderr
    endpoint = added.stdout.split()[1]
    tested = installation.command("webhooks", "test", endpoint)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    orders = [installation.order() for _ in range(3)]
    for order in orders:
        installation.until_state(order, "awaiting_payment")
        installation.pay(order)
        installation.until_state(order, "completed")
    installation.until(
        lambda: (
            not installation.sql(
                "SELECT 1 FROM delivery_streams UNION ALL SELECT 1 FROM events WHERE position IS NULL"
            )
        ),
        "everything is published",
    )
    sent = read_redis(broker, f"{PREFIX}{QUEUE}") if on_redis else read_rabbitmq(broker, QUEUE)
    assert {each.event["subject"] for each in sent} > set(orders)
    first, middle, last = orders
    # The queue loses the first event of one order, the last of another, and all of the third.
    kept = [
        each
        for each in sent
        if (each.event["subject"], each.event["sequence"]) not in {(first, "1"), (last, "2")}
        and each.event["subject"] != middle
    ]
    for each in kept:
        put(producer, each)
    # The feed does not keep its beginning any more, with an event that the queue has lost.
    (feed,) = installation.sql(
        "UPDATE event_feeds SET kept_after = (SELECT position FROM events WHERE checkout_id = CAST(%s AS uuid) AND sequence = 1)"
        " RETURNING kept_after",
        first,
    )
    written = installation.sql(
        "SELECT checkout_id, sequence FROM events WHERE position > %s", feed["kept_after"]
    )
    expected = {f"{row['checkout_id']}-{row['sequence']}" for row in written}
    expected |= {
        f"{each.event['subject']}-{each.event['sequence']}"
        for each in kept
        if each.event["subject"] in orders
    }
    assert f"{first}-1" not in expected
    with consuming(installation, broker) as log:

        def handled() -> list[str]:
            return re.findall(r"handled ([0-9a-f-]+)", log.read_text())

        installation.until(
            lambda: set(handled()) == expected, "the example has handled every event", seconds=60
        )
        told = handled()
    assert len(told) == len(set(told)), "each once"
    for order in orders:
        sequences = [int(each.rpartition("-")[2]) for each in told if each.startswith(order)]
        assert sequences == sorted(sequences)
    listed = installation.command("webhooks", "list")
    assert "shop.events" in listed.stdout
    assert installation.command("webhooks", "rotate-secret", endpoint).returncode == 2
    for wrong in (("a b", QUEUE), ("t", "checkouts"), ("t", "events:other")):
        assert installation.command("webhooks", "add-task", *wrong).returncode == 2
    refused = installation.command(
        "webhooks", "add-task", "t", "q", "--broker-from", "-", given="amqp://h.example\n"
    )
    assert refused.returncode == 2
    assert "must start with amqps://" in refused.stderr
    assert installation.stop("deliverer") == 0
    assert "Traceback" not in installation.log("deliverer")
    installation.agree()


def put(producer: Producer, sent: Sent) -> None:
    """Put a message back as it was."""
    if producer.broker_url.startswith("redis"):
        with redis.Redis.from_url(producer.broker_url) as client:
            client.lpush(f"{PREFIX}{QUEUE}", sent.raw)
        return
    import amqp

    properties: dict[str, Any] = {
        key: value for key, value in sent.properties.items() if key != "application_headers"
    }
    with producer.channel() as channel:
        channel.basic_publish(
            amqp.Message(sent.raw, application_headers=sent.headers, **properties), routing_key=QUEUE
        )
    assert json.loads(sent.raw)

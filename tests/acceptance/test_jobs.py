"""Merchants hand orders over through the broker: each is a checkout or is refused with its reasons, on Redis
and on RabbitMQ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.support.jobs import FAR, Producer, overdue, taken
from tests.support.pooler import direct
from tests.support.scene import intent
from tests.support.world import World, world

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.devkit.local.servers import Embedded

pytestmark = pytest.mark.timeout(400)


def refused(one: World, number: int) -> list[dict[str, object]]:
    def rows() -> list[dict[str, object]]:
        return one.sql("SELECT * FROM rejected_intents ORDER BY id")

    one.until(lambda: len(rows()) >= number, f"{number} are refused", seconds=60)
    return rows()


def test_orders_are_handed_over_by_celery_once_and_refused_ones_are_told(shop: tuple[World, Producer]):
    one, producer = shop
    lists = [[intent(f"J-{number}-{place}") for place in range(10)] for number in range(10)]
    producer.send(lists)
    producer.send(lists[:3])
    assert len(taken(one, 100)) == 100
    producer.send([[intent("J-0-0", amount="1.00")]])
    (row,) = refused(one, 1)
    assert row["code"] == "order_taken"
    assert len(taken(one, 100)) == 100
    listed = one.command("rejected-intents", "list", "--merchant", "default")
    assert listed.returncode == 0, listed.stderr
    assert "J-0-0" in listed.stdout
    shown = one.command("rejected-intents", "show", str(row["id"]), "--body")
    assert "already has checkout" in shown.stdout
    assert "shopper@shop.example" in shown.stdout
    one.until(
        lambda: one.sql("SELECT 1 FROM events WHERE kind = 'intent.rejected' AND position IS NOT NULL"),
        "it is in the feed",
    )
    one.until(lambda: producer.left() == 0, "nothing waits")
    one.until(
        lambda: one.sql("SELECT 1 FROM workers WHERE (progress->>'intentMessages')::int >= 14"),
        "the worker says what it took",
    )
    assert one.stop("worker-1", seconds=30) == 0
    assert "Traceback" not in one.log("worker-1")


ADDRESSED = b'"headers": {}, "properties": {"delivery_info": {"exchange": "", "routing_key": "intents"}, "delivery_tag": '
GARBAGE = [
    b"\x00\xff not JSON",
    b"[1, 2]",
    b"{}",
    b"[" * 50_000,
    b'{"body": "x", "properties": {}}',
    b'{"body": 10000000000, ' + ADDRESSED + b'"a number"}}',
    b'{"body": ["x"], "content-type": ["x"], ' + ADDRESSED + b'"a list"}}',
    b'{"body": "x", ' + ADDRESSED + b"null}}",
]


def test_what_is_no_message_is_kept_as_refused_and_the_next_is_taken(shop: tuple[World, Producer]):
    one, producer = shop
    for body in GARBAGE:
        producer.send_raw(body)
    if producer.broker_url.startswith("amqp"):
        headers = {"task": "orchestrator.submit", "compression": "application/x-gzip"}
        producer.send_raw(b"\x1f\x8b nothing that inflates", headers, content_type="application/json")
    producer.send([[intent("J-1")]], token="nonsense")
    producer.send([[intent("J-2")]])
    assert taken(one, 1) == ["J-2"]
    expected = len(GARBAGE) + 1 + producer.broker_url.startswith("amqp")
    rows = refused(one, expected)
    assert len(rows) == expected
    assert sorted({str(row["code"]) for row in rows}) == ["access_denied", "malformed"]
    assert one.running["worker-1"].poll() is None
    assert "Traceback" not in one.log("worker-1")


def test_while_postgres_takes_no_write_a_message_is_not_acknowledged(shop: tuple[World, Producer]):
    one, producer = shop
    producer.send([[intent("J-1")]])
    taken(one, 1)
    with psycopg.connect(direct(one.database_url)) as blocker:
        blocker.execute("LOCK TABLE intents IN ACCESS EXCLUSIVE MODE")
        producer.send([[intent(f"J-{number}")] for number in range(2, 30)])
        one.until(lambda: "batch_postponed" in one.log("worker-1"), "a write was tried", seconds=60)
        # What it has in hand goes back when its connection ends.
        one.kill("worker-1")
    if producer.broker_url.startswith("redis"):
        # Or its messages would be delivered again after the visibility timeout of 300 s.
        overdue(producer.broker_url)
    one.start("worker-1")
    assert len(taken(one, 29)) == 29


def test_no_token_of_a_worker_means_that_no_intent_is_consumed(
    servers: Embedded, database_url: str, tmp_path: Path
):
    with world(servers, database_url, tmp_path, **FAR) as one:
        producer = Producer(servers.redis_url)
        producer.send([[intent("J-1")]])
        one.settings["jwt_secrets"] = ""
        one.start("worker-1")
        one.until(lambda: one.sql("SELECT 1 FROM workers WHERE kind = 'worker'"), "it lives", seconds=60)
        assert producer.left() == 1
        assert one.sql("SELECT 1 FROM rejected_intents") == []
        assert one.stop("worker-1", seconds=30) == 0

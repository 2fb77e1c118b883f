"""Merchants submit orders through the broker: each becomes a checkout or is refused with its reasons, on
Redis and on RabbitMQ.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING
from uuid import uuid4

import jwt
import psycopg
import pytest

from tests.conftest import JWT_SECRET
from tests.support.jobs import FAR, Producer, accepted_orders, make_overdue
from tests.support.pooler import direct
from tests.support.scene import intent
from tests.support.world import World, token, world

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.devkit.local.servers import Embedded

pytestmark = pytest.mark.timeout(400)


def refused(installation: World, number: int) -> list[dict[str, object]]:
    def rows() -> list[dict[str, object]]:
        return installation.sql("SELECT * FROM rejected_intents ORDER BY id")

    installation.until(lambda: len(rows()) >= number, f"{number} are refused", seconds=60)
    return rows()


def test_orders_that_celery_submits_are_created_once_and_refused_intents_are_listed(
    shop: tuple[World, Producer],
):
    installation, producer = shop
    lists = [[intent(f"J-{number}-{place}") for place in range(10)] for number in range(10)]
    producer.send(lists)
    producer.send(lists[:3])
    assert len(accepted_orders(installation, 100)) == 100
    producer.send([[intent("J-0-0", amount="1.00")]])
    (row,) = refused(installation, 1)
    assert row["code"] == "order_taken"
    assert len(accepted_orders(installation, 100)) == 100
    listed = installation.command("rejected-intents", "list", "--merchant", "default")
    assert listed.returncode == 0, listed.stderr
    assert "J-0-0" in listed.stdout
    shown = installation.command("rejected-intents", "show", str(row["id"]), "--body")
    assert "already has checkout" in shown.stdout
    assert "shopper@shop.example" in shown.stdout
    installation.until(
        lambda: installation.sql(
            "SELECT 1 FROM events WHERE kind = 'intent.rejected' AND position IS NOT NULL"
        ),
        "it is in the feed",
    )
    installation.until(lambda: producer.waiting() == 0, "no message waits")
    installation.until(
        lambda: installation.sql("SELECT 1 FROM workers WHERE (progress->>'intentMessages')::int >= 14"),
        "the heartbeat counts the messages",
    )
    assert installation.stop("worker-1", seconds=30) == 0
    assert "Traceback" not in installation.log("worker-1")


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


def test_bytes_that_are_no_message_are_kept_as_refused_and_the_next_message_is_accepted(
    shop: tuple[World, Producer],
):
    installation, producer = shop
    for body in GARBAGE:
        producer.send_raw(body)
    if producer.broker_url.startswith("amqp"):
        headers = {"task": "orchestrator.submit", "compression": "application/x-gzip"}
        producer.send_raw(b"\x1f\x8b nothing that inflates", headers, content_type="application/json")
    producer.send([[intent("J-1")]], token="nonsense")
    producer.send([[intent("J-2")]])
    assert accepted_orders(installation, 1) == ["J-2"]
    expected = len(GARBAGE) + 1 + producer.broker_url.startswith("amqp")
    rows = refused(installation, expected)
    assert len(rows) == expected
    assert sorted({str(row["code"]) for row in rows}) == ["access_denied", "malformed"]
    assert installation.running["worker-1"].poll() is None
    assert "Traceback" not in installation.log("worker-1")


def test_while_postgres_takes_no_write_a_message_is_not_acknowledged(shop: tuple[World, Producer]):
    installation, producer = shop
    producer.send([[intent("J-1")]])
    accepted_orders(installation, 1)
    with psycopg.connect(direct(installation.database_url)) as blocker:
        blocker.execute("LOCK TABLE intents IN ACCESS EXCLUSIVE MODE")
        producer.send([[intent(f"J-{number}")] for number in range(2, 30)])
        installation.until(
            lambda: "batch_postponed" in installation.log("worker-1"), "a write was tried", seconds=60
        )
        # Its unacknowledged messages are delivered again when its connection ends.
        installation.kill("worker-1")
    if producer.broker_url.startswith("redis"):
        # Or its messages would be delivered again after the visibility timeout of 300 s.
        make_overdue(producer.broker_url)
    installation.start("worker-1")
    assert len(accepted_orders(installation, 29)) == 29


def test_the_doctor_says_how_many_messages_wait(shop: tuple[World, Producer]):
    installation, producer = shop
    installation.kill("worker-1")
    producer.send([[intent(f"J-{number}")] for number in range(3)])
    installation.until(lambda: producer.waiting() == 3, "three wait")
    said = installation.command("doctor").stdout
    assert "3 messages wait in the queue intents" in said
    installation.settings["intents_prefetch"] = 0
    said = installation.command("doctor").stdout
    assert (
        "problem  intents     3 messages wait in the queue intents, and ORCHESTRATOR_INTENTS_PREFETCH is 0"
        in said
    )


def results(said: str) -> list[tuple[object, object]]:
    return [(row["status"], row["orderId"]) for row in map(json.loads, said.splitlines())]


@pytest.mark.parametrize("shop", ["redis"], indirect=True)
def test_messages_that_were_refused_are_submitted_again_by_one_command(shop: tuple[World, Producer]):
    installation, producer = shop
    producer.send(
        [[intent(f"J-{message}-{place}") for place in range(3)] for message in range(2)], token=expired()
    )
    producer.send([[intent("J-9"), intent("J-10", amount="-1.00")]], token="nonsense")
    rows = refused(installation, 3)
    assert sorted(str(row["code"]) for row in rows) == ["access_denied", "token_expired", "token_expired"]
    again = installation.command("rejected-intents", "resubmit", "--code", "token_expired")
    assert again.returncode == 0, again.stderr
    orders = [f"J-{message}-{place}" for message in range(2) for place in range(3)]
    assert sorted(results(again.stdout)) == [("created", order) for order in orders]
    assert accepted_orders(installation, 6) == orders
    repeated = installation.command(
        "rejected-intents", "resubmit", "--code", "token_expired", "--merchant", "default"
    )
    assert sorted(results(repeated.stdout)) == [("existing", order) for order in orders]
    (denied,) = [str(row["id"]) for row in rows if row["code"] == "access_denied"]
    unproven = installation.command("rejected-intents", "resubmit", denied)
    assert unproven.returncode == 1
    assert "name it with --merchant" in unproven.stdout
    named = installation.command("rejected-intents", "resubmit", denied, "--merchant", "default")
    assert named.returncode == 1
    assert sorted(results(named.stdout)) == [("created", "J-9"), ("rejected", "J-10")]
    actors = installation.sql(
        "SELECT DISTINCT entry::json->>'actor' AS actor FROM audit_entries WHERE sequence = 1"
    )
    assert [row["actor"].partition(":")[0] for row in actors] == ["operator"]
    for wrong in ((), (denied, "--code", "internal"), ("nonsense",), (str(uuid4()),)):
        assert installation.command("rejected-intents", "resubmit", *wrong).returncode == 2
    assert installation.command("rejected-intents", "list", "--order", "J-9").returncode == 2
    assert denied in installation.command("rejected-intents", "list").stdout


def expired() -> str:
    """Return a token of the merchant that was valid until a minute ago."""
    claims = jwt.decode(token("default"), options={"verify_signature": False})
    past = {"iat": int(time.time()) - 3600, "exp": int(time.time()) - 60}
    return jwt.encode({**claims, **past}, JWT_SECRET, algorithm="HS256")


def test_a_worker_without_a_key_of_tokens_consumes_no_intent(
    servers: Embedded, database_url: str, tmp_path: Path
):
    with world(servers, database_url, tmp_path, **FAR) as installation:
        producer = Producer(servers.redis_url)
        producer.send([[intent("J-1")]])
        installation.settings["jwt_secrets"] = ""
        installation.start("worker-1")
        installation.until(
            lambda: installation.sql("SELECT 1 FROM workers WHERE kind = 'worker'"),
            "it has a heartbeat",
            seconds=60,
        )
        assert producer.waiting() == 1
        assert installation.sql("SELECT 1 FROM rejected_intents") == []
        assert installation.stop("worker-1", seconds=30) == 0

"""A merchant's side of the queue `intents`: messages that Celery sends, and messages of any AMQP client."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import amqp
import redis
from celery import Celery

from orchestrator.messaging.app import INTENTS
from tests.support.world import World, token

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FAR = {"retry_base": 60, "retry_cap": 300}
"""Settings of an installation without a gateway: checkouts wait for their next try."""

KEY = "orchestrator:intents"
"""The queue's list on Redis."""


class Producer:
    """Publishes lists of intents as a merchant's own Celery app does."""

    def __init__(self, broker_url: str, *, merchant: str = "default") -> None:
        self.broker_url, self.token = broker_url, token(merchant)
        self._app = Celery("shop", broker=broker_url)
        amqps = broker_url.startswith("amqp")
        self._app.conf.broker_transport_options = (
            {"confirm_publish": True} if amqps else {"global_keyprefix": "orchestrator:"}
        )

    def send(self, lists: Sequence[Sequence[bytes]], *, token: str | None = None) -> None:
        """Send a message for each list of intents."""
        with self._app.connection_for_write() as connection:
            producer = self._app.amqp.Producer(connection)
            for intents in lists:
                documents = [json.loads(intent) for intent in intents]
                self._app.send_task(
                    "orchestrator.submit",
                    args=[documents, self.token if token is None else token],
                    queue=INTENTS,
                    producer=producer,
                    argsrepr="",
                )

    def send_raw(self, body: bytes, headers: dict[str, Any] | None = None, **properties: Any) -> None:
        """Send any bytes: as an AMQP message, or as an item of a Redis list."""
        if self.broker_url.startswith("redis"):
            with redis.Redis.from_url(self.broker_url) as client:
                client.lpush(KEY, body)
            return
        with self.channel() as channel:
            message = amqp.Message(body, application_headers=headers or {}, **properties)
            channel.basic_publish(message, routing_key="intents")

    @contextmanager
    def channel(self) -> Iterator[Any]:
        host = self.broker_url.partition("@")[2].partition("/")[0]
        with amqp.Connection(host, "guest", "guest", connect_timeout=5) as connection:
            connection.connect()
            channel = connection.channel()
            channel.queue_declare("intents", passive=True)
            yield channel

    def declared(self) -> bool:
        """Return whether the queue exists; on Redis it always does."""
        if self.broker_url.startswith("redis"):
            return True
        try:
            with self.channel():
                return True
        except (OSError, amqp.AMQPError):
            return False

    def waiting(self) -> int:
        """Return how many messages wait, without those that were delivered and are not acknowledged."""
        if self.broker_url.startswith("redis"):
            with redis.Redis.from_url(self.broker_url) as client:
                return int(client.llen(KEY))
        with self.channel() as channel:
            return int(channel.queue_declare("intents", passive=True).message_count)


def shortest_message(intents: Sequence[object], token: str) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of the shortest valid message, as docs/jobs.md shows it."""
    body = json.dumps([[intents, token], {}, {}]).encode()
    return body, {"task": "orchestrator.submit", "id": str(uuid4())}


def accepted_orders(installation: World, number: int, *, seconds: float = 60) -> list[str]:
    """Wait until `number` orders are accepted; return the order numbers of all."""

    def orders() -> list[str]:
        return [
            row["order_ref"] for row in installation.sql("SELECT order_ref FROM checkouts ORDER BY order_ref")
        ]

    installation.until(lambda: len(orders()) >= number, f"{number} orders are accepted", seconds=seconds)
    return orders()


def unacknowledged(broker_url: str) -> int:
    """Return how many messages on Redis were delivered and are not acknowledged."""
    with redis.Redis.from_url(broker_url) as client:
        return int(client.hlen("orchestrator:unacked"))


def make_overdue(broker_url: str) -> None:
    """Let unacknowledged messages be delivered again at once, without waiting for the visibility timeout."""
    with redis.Redis.from_url(broker_url) as client:
        client.delete("orchestrator:unacked_mutex")
        for tag in client.zrange("orchestrator:unacked_index", 0, -1):
            client.zadd("orchestrator:unacked_index", {tag: 1})

"""A merchant's side of the queue `intents`: messages as Celery sends them, and as any AMQP client can."""

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
"""Of a world without a gateway: checkouts wait for their next try."""

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
                read = [json.loads(one) for one in intents]
                self._app.send_task(
                    "orchestrator.submit",
                    args=[read, self.token if token is None else token],
                    queue=INTENTS,
                    producer=producer,
                    argsrepr="",
                )

    def send_raw(self, body: bytes, headers: dict[str, Any] | None = None, **properties: Any) -> None:
        """Send any bytes: as a message of AMQP, or as what is pushed on a list of Redis."""
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
        """Say whether the queue is there; on Redis it always is."""
        if self.broker_url.startswith("redis"):
            return True
        try:
            with self.channel():
                return True
        except (OSError, amqp.AMQPError):
            return False

    def left(self) -> int:
        """Return how many messages wait, without those that a consumer has in hand."""
        if self.broker_url.startswith("redis"):
            with redis.Redis.from_url(self.broker_url) as client:
                return int(client.llen(KEY))
        with self.channel() as channel:
            return int(channel.queue_declare("intents", passive=True).message_count)


def hello(intents: Sequence[object], given: str) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of the shortest message that is one, as docs/jobs.md shows it."""
    body = json.dumps([[intents, given], {}, {}]).encode()
    return body, {"task": "orchestrator.submit", "id": str(uuid4())}


def taken(one: World, number: int, *, seconds: float = 60) -> list[str]:
    """Wait until so many orders are taken; return the numbers of all."""

    def orders() -> list[str]:
        return [row["order_ref"] for row in one.sql("SELECT order_ref FROM checkouts ORDER BY order_ref")]

    one.until(lambda: len(orders()) >= number, f"{number} orders are taken", seconds=seconds)
    return orders()


def in_hand(broker_url: str) -> int:
    """Return how many messages on Redis a consumer has taken and not acknowledged."""
    with redis.Redis.from_url(broker_url) as client:
        return int(client.hlen("orchestrator:unacked"))


def overdue(broker_url: str) -> None:
    """Have what a killed worker had in hand delivered again at once, and not after the visibility timeout."""
    with redis.Redis.from_url(broker_url) as client:
        client.delete("orchestrator:unacked_mutex")
        for tag in client.zrange("orchestrator:unacked_index", 0, -1):
            client.zadd("orchestrator:unacked_index", {tag: 1})

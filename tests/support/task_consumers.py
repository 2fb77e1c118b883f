"""A merchant's broker: RabbitMQ or Redis with a queue of events, read by a client that is not ours."""

from __future__ import annotations

import base64
import json
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import amqp
import redis

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Sent:
    """A message in a queue: its headers, and the event that is its argument."""

    headers: dict[str, Any]
    event: dict[str, Any]
    properties: dict[str, Any]
    raw: bytes
    """The body on RabbitMQ; the whole item on Redis."""

    @property
    def id(self) -> str:
        return str(self.headers["id"])


@contextmanager
def channel(url: str) -> Iterator[Any]:
    host = url.partition("@")[2].partition("/")[0]
    with amqp.Connection(host, "guest", "guest", connect_timeout=5) as connection:
        connection.connect()
        yield connection.channel()


def declare(url: str, queue: str, **arguments: Any) -> None:
    """Make a durable queue, or a quorum queue with `x-queue-type`."""
    with channel(url) as opened:
        opened.queue_declare(
            queue,
            durable=True,
            auto_delete=False,
            arguments={f"x-{key.replace('_', '-')}": value for key, value in arguments.items()},
        )


def read_rabbitmq(url: str, queue: str) -> list[Sent]:
    """Take every message of a queue."""
    found = []
    with channel(url) as opened:
        while (message := opened.basic_get(queue, no_ack=True)) is not None:
            ((event,), named, _) = json.loads(message.body)
            assert named == {}
            found.append(Sent(message.headers, event, message.properties, message.body))
    return found


def read_redis(url: str, key: str) -> list[Sent]:
    """Take every message of a list, in the order in which Celery reads it."""
    found = []
    with redis.Redis.from_url(url) as client:
        while (item := client.rpop(key)) is not None:
            message = json.loads(item)
            ((event,), named, _) = json.loads(base64.b64decode(message["body"]))
            assert named == {}
            found.append(Sent(message["headers"], event, message["properties"], item))
    return found

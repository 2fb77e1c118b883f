"""kombu's Redis transports, which continue after a message that is not in kombu's format.

kombu pops such a message off its queue and raises; Celery treats that as a fault of the worker. Here it is
counted, and the next message is read. On the queue `intents`, where it is the only copy of what a merchant
sent, its bytes are kept for the consumer. RabbitMQ's client needs none of this: whatever it delivers is a
message.
"""

from __future__ import annotations

from collections import deque
from queue import Empty
from typing import Any, Final

from kombu.transport import redis
from redis.exceptions import DataError

from orchestrator.messaging.dropped_messages import dropped

unreadable: Final[deque[bytes]] = deque()
"""Bytes from the queue `intents` that are not a message; its consumer stores them as refused."""


class _Tolerant:
    def _brpop_read(self, **options: Any) -> bool:
        return _read(self, super()._brpop_read, options)  # type: ignore[misc]  # the class beside it has it


class Channel(_Tolerant, redis.Channel):
    """A channel to one Redis server."""


class SentinelChannel(_Tolerant, redis.SentinelChannel):
    """A channel to the primary that Sentinel names."""


def _read(channel: Any, read: Any, options: dict[str, Any]) -> bool:
    _record_popped(channel)
    try:
        return bool(read(**options))
    except (KeyError, DataError) as error:
        # kombu treats both as errors of the connection; here a message lacks a member, or has a tag that
        # Redis cannot store.
        _drop(channel, error)
        return True
    except (*channel.connection_errors, *channel.connection.channel_errors, Empty):
        raise
    except Exception as error:  # noqa: BLE001 - whatever bytes were in it, the message is off its queue
        _drop(channel, error)
        return True


def _record_popped(channel: Any) -> None:
    """Have a channel's client keep the last reply that it read, because kombu's error does not contain it."""
    channel.popped = None
    client = channel.client
    if getattr(channel, "recorded_client", None) is client:
        return
    parse = client.parse_response

    def recorded(*arguments: Any, **options: Any) -> Any:
        channel.popped = parse(*arguments, **options)
        return channel.popped

    client.parse_response, channel.recorded_client = recorded, client


def _drop(channel: Any, error: Exception) -> None:
    dropped.add(type(error).__name__)
    match channel.popped:
        case [bytes(queue), bytes(item)] if queue.partition(channel.sep.encode())[0] == b"intents":
            unreadable.append(item)
        case [str(queue), bytes(item)] if queue.partition(channel.sep)[0] == "intents":
            unreadable.append(item)


class Transport(redis.Transport):
    """Redis."""

    Channel = Channel


class SentinelTransport(redis.SentinelTransport):
    """Redis behind Sentinel."""

    Channel = SentinelChannel

"""kombu's Redis transports, which outlive a message that is not kombu's.

kombu reads such a message off its queue and raises; Celery takes that for a fault of the worker. Here it is
counted, and the next message is read; on the queue `intents`, where it is the only copy of what a merchant
sent, it is handed on as it came. RabbitMQ's client needs nothing of the kind: what it delivers is a
message, whatever is in it.
"""

from __future__ import annotations

from collections import deque
from queue import Empty
from typing import Any, Final

from kombu.transport import redis
from redis.exceptions import DataError

from orchestrator.messaging.dropped_messages import dropped

unreadable: Final[deque[bytes]] = deque()
"""What came by the queue `intents` and is no message; its consumer takes it from here."""


class Channel(redis.Channel):
    """A channel to one Redis server."""

    def _brpop_read(self, **options: Any) -> bool:
        return _read(self, super()._brpop_read, options)  # type: ignore[misc]  # its stubs declare less


class SentinelChannel(redis.SentinelChannel):
    """A channel to the primary that Sentinel names."""

    def _brpop_read(self, **options: Any) -> bool:
        return _read(self, super()._brpop_read, options)  # type: ignore[misc]  # its stubs declare less


def _read(channel: Any, read: Any, options: dict[str, Any]) -> bool:
    _note_popped(channel)
    try:
        return bool(read(**options))
    except (KeyError, DataError) as error:
        # kombu counts them among the lost connections; here a message lacks what it should have, or has a tag
        # that Redis cannot hold.
        _drop(channel, error)
        return True
    except (*channel.connection_errors, *channel.connection.channel_errors, Empty):
        raise
    except Exception as error:  # noqa: BLE001 - whatever bytes were in it, the message is off its queue
        _drop(channel, error)
        return True


def _note_popped(channel: Any) -> None:
    """Have a channel's client note what it pops last: kombu's own error does not say."""
    channel.popped = None
    client = channel.client
    if getattr(channel, "noting", None) is client:
        return
    parse = client.parse_response

    def noted(*given: Any, **options: Any) -> Any:
        channel.popped = parse(*given, **options)
        return channel.popped

    client.parse_response, channel.noting = noted, client


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

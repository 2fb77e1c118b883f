"""kombu's Redis transports, which outlive a message that is not kombu's.

kombu reads such a message off its queue and raises; Celery takes that for a fault of the worker. Here it is
counted, and the next message is read. RabbitMQ's client needs nothing of the kind: what it delivers is a
message, whatever is in it.
"""

from __future__ import annotations

from queue import Empty
from typing import Any

from kombu.transport import redis

from orchestrator.messaging.dropped_messages import dropped


class Channel(redis.Channel):
    """A channel to one Redis server."""

    def _brpop_read(self, **options: Any) -> bool:
        return _read(self, super()._brpop_read, options)  # type: ignore[misc]  # its stubs declare less


class SentinelChannel(redis.SentinelChannel):
    """A channel to the primary that Sentinel names."""

    def _brpop_read(self, **options: Any) -> bool:
        return _read(self, super()._brpop_read, options)  # type: ignore[misc]  # its stubs declare less


def _read(channel: Any, read: Any, options: dict[str, Any]) -> bool:
    try:
        return bool(read(**options))
    except (
        KeyError
    ) as error:  # kombu counts it among the lost connections; here a message lacks what it should have
        dropped.add(type(error).__name__)
        return True
    except (*channel.connection_errors, *channel.connection.channel_errors, Empty):
        raise
    except Exception as error:  # noqa: BLE001 - whatever bytes were in it, the message is off its queue
        dropped.add(type(error).__name__)
        return True


class Transport(redis.Transport):
    """Redis."""

    Channel = Channel


class SentinelTransport(redis.SentinelTransport):
    """Redis behind Sentinel."""

    Channel = SentinelChannel

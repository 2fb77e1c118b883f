"""How many messages wait in our queues, and how old the oldest one is.

A worker takes messages within milliseconds, so a queue that is not empty for seconds has no worker that reads
it. RabbitMQ shows no message without taking it: there the age is how long the queue was not empty as far as
this process has seen.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple

from orchestrator.messaging.app import INTENTS, QUEUES, configure
from orchestrator.messaging.publisher import DEPTH_TIMEOUT, Publisher

if TYPE_CHECKING:
    from orchestrator.settings import Settings

NAMES: Final = (INTENTS.name, *QUEUES)


class QueueDepth(NamedTuple):
    """One queue; `age` in seconds: of the oldest message, or (`at_least`) since when it was not empty."""

    name: str
    number: int
    age: float | None
    at_least: bool


class QueueDepths:
    """Reads the queues of the broker; one thread at a time uses it. Errors of the broker pass through."""

    def __init__(self, settings: Settings) -> None:
        self._publisher = Publisher(configure(settings), timeout=DEPTH_TIMEOUT)
        self._since: dict[str, float] = {}

    def read(self) -> list[QueueDepth]:
        """Return all queues; blocks for some seconds at the most."""
        return [self._read(name) for name in NAMES]

    def _read(self, name: str) -> QueueDepth:
        number = self._publisher.waiting(name)
        if not number:
            self._since.pop(name, None)
            return QueueDepth(name, 0, None, at_least=False)
        since = self._since.setdefault(name, time.monotonic())
        sent = self._publisher.oldest(name)
        if sent is None:
            return QueueDepth(name, number, time.monotonic() - since, at_least=True)
        return QueueDepth(name, number, max(time.time() - sent, 0.0), at_least=False)

    def close(self) -> None:
        self._publisher.close()

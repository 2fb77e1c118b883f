"""Hints: published from a background thread."""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from contextlib import closing
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from orchestrator.messaging.app import INTENTS, PROCESS, configure
from orchestrator.messaging.publisher import DEPTH_TIMEOUT, BackOff, Message, Publisher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from uuid import UUID

    from orchestrator.messaging.app import QueueName
    from orchestrator.settings import Settings

T = TypeVar("T")

SHARE: Final = 0.02
"""The most of its time that the thread publishes. A message costs far more than another id in it, here and at
the worker, so a burst of hints gathers for as long as the last publishing makes it worth; a hint that comes
alone waits for nothing."""
LONGEST_DELAY: Final = 0.1
PROBE_EVERY: Final = 5.0
"""Seconds without a hint after which a probe is written, to find out whether the broker would take a hint."""
PROVE_TIMEOUT: Final = 1.0
"""Seconds for each answer of the broker where a person waits for the result."""
STUCK_AFTER: Final = 5.0
"""Seconds of a single try after which the broker counts as silent."""


class _Hint(NamedTuple):
    queue: str
    ids: tuple[UUID, ...]
    alone: bool
    merchant_id: int | None


class _Delay(NamedTuple):
    """Until when the hints of a burst gather; one of another merchant ends that, once in its time."""

    until: float
    burst: frozenset[int | None] = frozenset()
    kept_until: float = float("-inf")


class HintPublisher:
    """Publishes hints from a background thread, never in the way of a request.

    A hint that cannot be published is dropped: its checkout becomes due by itself. `trouble` says what the
    last try met; while no hint comes the thread tries by itself.
    """

    def __init__(self, settings: Settings) -> None:
        self._app = configure(settings)
        self._publisher = Publisher(self._app)
        self._link = BackOff("publisher")
        self._size = settings.hint_size
        self._waiting: deque[_Hint] = deque()
        self._arrived = threading.Event()
        # Merchants whose hints do not wake the thread now, because it gathers them.
        self._gathering: frozenset[int | None] = frozenset()
        self._thread: threading.Thread | None = None
        self._ending = threading.Event()
        self._room = 200_000
        self._trying_since: float | None = None

    @property
    def trouble(self) -> str | None:
        """Why hints do not reach the broker; None while they do, as far as the last try has shown."""
        if self._link.away:
            return self._link.reason
        since = self._trying_since
        return "it does not answer" if since is not None and time.monotonic() - since > STUCK_AFTER else None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="hint-publisher", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Publish what waits (within seconds), then stop."""
        if self._thread is not None:
            self._ending.set()
            self._arrived.set()
            self._thread.join(timeout=5)
            self._thread = None

    def publish(
        self,
        ids: Iterable[UUID],
        *,
        queue: QueueName = "checkouts",
        alone: bool = False,
        merchant_id: int | None = None,
    ) -> None:
        """Hint at checkouts of a merchant; returns at once. `alone` keeps others out of the message."""
        if len(self._waiting) < self._room:
            self._waiting.append(_Hint(queue, tuple(ids), alone, merchant_id))
            # The thread changes what is read here before it takes what there is: no hint stays behind.
            if merchant_id not in self._gathering and not self._arrived.is_set():
                self._arrived.set()

    def depth(self, name: QueueName) -> int:
        """Return how many messages wait in a queue, for any thread; raises kombu's errors."""
        with closing(Publisher(self._app, timeout=DEPTH_TIMEOUT)) as publisher:
            return publisher.depth(name)

    def depths(self) -> dict[str, int]:
        """Return how many messages wait in each queue of work, as `depth`."""
        with closing(Publisher(self._app, timeout=DEPTH_TIMEOUT)) as publisher:
            return {
                "checkouts": publisher.depth("checkouts"),
                "callbacks": publisher.depth("callbacks"),
                "intents": publisher.waiting(INTENTS.name),
            }

    def prove(self) -> tuple[int, int]:
        """Return how many hints, and how many messages of merchants that no worker holds, wait.

        Raises what keeps the broker from taking another hint. For any thread.
        """
        with closing(Publisher(self._app, timeout=PROVE_TIMEOUT)) as publisher:
            publisher.prove("checkouts")
            hints = publisher.depth("checkouts") + publisher.depth("callbacks")
            return hints, publisher.waiting(INTENTS.name)

    def _run(self) -> None:
        delay = _Delay(float("-inf"))
        self._try(self._publisher.prove, "checkouts")
        while True:
            hints, delayed = self._gathered(delay)
            begun = time.monotonic()
            if hints:
                self._try(self._publish, hints)
            if self._ending.is_set() and not self._waiting:
                self._publisher.close()
                return
            if not hints:
                self._try(self._publisher.prove, "checkouts")
                continue
            ended = time.monotonic()
            length = min((ended - begun) / SHARE, LONGEST_DELAY)
            # Where hints come one after the other, each after the one before is done, a delay gathers
            # nothing.
            burst = bool(self._waiting) or (delayed and len(hints) > 1)
            broken = ended + length if delayed and begun < delay.until else delay.kept_until
            delay = _Delay(
                ended + length if burst else ended,
                frozenset(hint.merchant_id for hint in hints),
                kept_until=broken,
            )

    def _try(self, what: Callable[[T], None], argument: T) -> None:
        """Try something of the broker, and note what it met; wait after a failure, unless it ends."""
        self._trying_since = time.monotonic()
        try:
            what(argument)
            self._link.worked()
        except Exception as error:  # noqa: BLE001 - the thread outlives every error of a broker
            self._ending.wait(self._link.failed(error))
        finally:
            self._trying_since = None

    def _gathered(self, delay: _Delay) -> tuple[list[_Hint], bool]:
        """Wait for a hint, and for the end of the delay; return whatever has come, and whether there was a
        delay.

        Nothing where no hint comes for long, at once while the broker is away and at the end. The thread is
        not woken by each hint of a burst: that would stop the event loop, which holds Python's lock, as
        often.
        """
        most = 0.001 if self._link.away else PROBE_EVERY
        while not (self._waiting or self._ending.is_set()) and self._arrived.wait(most):
            self._arrived.clear()  # set for a hint that was taken already, or for one that is there now
        left = delay.until - time.monotonic()
        if self._waiting and left > 0:
            if delay.kept_until >= delay.until:
                self._ending.wait(left)
            else:
                self._gathering = delay.burst
                self._arrived.clear()
                more = all(hint.merchant_id in delay.burst for hint in self._waiting.copy())
                if more and not self._ending.is_set():
                    self._arrived.wait(left)
                self._gathering = frozenset()
        self._arrived.clear()
        hints: list[_Hint] = []
        while self._waiting and len(hints) < self._size * 20:
            hints.append(self._waiting.popleft())
        if self._waiting:
            self._arrived.set()
        return hints, left > 0

    def _publish(self, hints: list[_Hint]) -> None:
        together: dict[str, dict[UUID, None]] = defaultdict(dict)
        for hint in hints:
            if not hint.alone:
                together[hint.queue].update(dict.fromkeys(hint.ids))
        messages = [(hint.queue, hint.ids) for hint in hints if hint.alone]
        for name, ids in together.items():
            listed = tuple(ids)
            messages += [
                (name, listed[start : start + self._size]) for start in range(0, len(listed), self._size)
            ]
        if not messages:
            return
        self._publisher.publish(
            Message(PROCESS, name, [[str(checkout_id) for checkout_id in listed]])
            for name, listed in messages
        )

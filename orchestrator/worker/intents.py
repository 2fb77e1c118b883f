"""The consumer of the queue `intents`, in a thread of its own beside the worker's Celery.

A message here is the only copy of what a merchant sent, so it is acknowledged only once everything of it is
stored. It is none of Celery's tasks: a task would hold one of the threads that dispatch checkouts while it
waits for a commit, and Celery drops what it cannot read, which here is kept as refused. Lists of messages are
under way at once, up to the prefetch of this consumer. One thread alone speaks to the broker.
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from kombu import Consumer, compression

from orchestrator.intents.submissions import MESSAGE_BYTES
from orchestrator.messaging import transport
from orchestrator.messaging.app import INTENTS, configure
from orchestrator.messaging.publisher import BackOff, discard, goodbye
from orchestrator.worker.submissions import Message

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from kombu import Connection

    from orchestrator.settings import Settings

IDLE: Final = 0.5
"""Seconds that it waits for a message while nothing is under way."""
BUSY: Final = 0.02
"""The same while something is, which may be done at any moment."""
WELL_AFTER: Final = 2.0
"""Seconds that a connection must last to count as well."""


class IntentConsumer:
    """Consumes until it is closed; `take` hands a message to the event loop and returns at once."""

    def __init__(self, settings: Settings, take: Callable[[Message], Future[None]]) -> None:
        self._app = configure(settings)
        self._prefetch, self._take = settings.intents_prefetch, take
        self._closing = min(5.0, settings.shutdown_timeout / 5)
        self._link = BackOff("intents")
        self._ending = threading.Event()
        self._started = False
        self._thread = threading.Thread(target=self._run, name="intents", daemon=True)
        self._under_way: list[tuple[Any, Future[None]]] = []
        # A few bytes may inflate to gigabytes: what is compressed is refused as it came. Nothing else that a
        # worker consumes is compressed.
        compression._decoders.clear()  # type: ignore[attr-defined]  # noqa: SLF001 - it has no other way

    @property
    def trouble(self) -> str | None:
        """Why no intents are consumed; None while they are."""
        if self._started and not self._thread.is_alive() and not self._ending.is_set():
            return "its consumer ended: restart this worker"
        return self._link.reason if self._link.away else None

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()
        self._started = True

    def stop(self) -> None:
        """Take nothing new; returns at once."""
        self._ending.set()

    def close(self) -> None:
        """Wait, for seconds, until what is under way is stored and acknowledged; the rest is delivered
        again.
        """
        self.stop()
        if self._thread.is_alive():
            self._thread.join(self._closing + 2.0)

    def _run(self) -> None:
        while not self._ending.is_set():
            # Without heartbeats RabbitMQ keeps what a vanished worker has in hand for half an hour.
            connection = self._app.connection_for_read(heartbeat=self._app.conf.broker_heartbeat)
            try:
                connection.connect()
                self._consume(connection)
                self._abandon()
                goodbye(connection)
            except Exception as error:  # noqa: BLE001 - no error of a broker ends a worker
                self._ending.wait(self._link.failed(error))
            finally:
                self._abandon()
                discard(connection)

    def _abandon(self) -> None:
        """Give up what is under way: it is delivered again on another connection, and what is stored by then
        is met, and is the same.
        """
        for _, future in self._under_way:
            future.cancel()
        self._under_way.clear()

    def _consume(self, connection: Connection) -> None:
        channel: Any = connection.channel()
        # Of this consumer alone: quorum queues refuse a bound that is shared by a channel's consumers.
        channel.basic_qos(0, self._prefetch, False)  # noqa: FBT003 - AMQP's own signature
        consumer = Consumer(
            channel, queues=[INTENTS], on_message=self._received, tag_prefix="intents-", accept=None
        )
        consumer.on_decode_error = lambda message, _: self._received(message)
        consumer.consume()
        well = time.monotonic() + WELL_AFTER
        end = float("inf")
        while time.monotonic() < end:
            if self._ending.is_set() and end == float("inf"):
                end = time.monotonic() + self._closing
                consumer.cancel()
            if end < float("inf") and not self._under_way:
                return
            if len(self._under_way) > self._prefetch:
                # The prefetch does not count what is no message, nor what Redis delivers again.
                time.sleep(BUSY)
            else:
                with suppress(TimeoutError):
                    connection.drain_events(timeout=BUSY if self._under_way else IDLE)
            if connection.supports_heartbeats:
                connection.heartbeat_check()
            while transport.unreadable:
                self._hand_over(None, Message({}, {}, None, _bounded(transport.unreadable.popleft())))
            self._acknowledge()
            if self._link.away and time.monotonic() >= well:
                self._link.worked()

    def _received(self, message: Any) -> None:
        """Hand a message to the loop; nothing that is in it may raise here, where kombu would drop it."""
        headers = message.headers if isinstance(message.headers, dict) else {}
        properties = message.properties if isinstance(message.properties, dict) else {}
        self._hand_over(message, Message(headers, properties, message.content_type, _bounded(message.body)))

    def _hand_over(self, message: Any, given: Message) -> None:
        self._under_way.append((message, self._take(given)))

    def _acknowledge(self) -> None:
        """Acknowledge what is stored."""
        done: list[tuple[Any, Future[None]]] = []
        left: list[tuple[Any, Future[None]]] = []
        for entry in self._under_way:
            # Checked once: a future that ends between two checks would be in neither list.
            (done if entry[1].done() else left).append(entry)
        self._under_way = left
        for message, future in done:
            if message is not None and not future.cancelled() and future.exception() is None:
                message.ack()


def _bounded(body: object) -> bytes:
    """Return a body as bytes, at most one more than a message may have; on Redis it may be any JSON value."""
    match body:
        case bytes():
            raw = body
        case str():
            raw = body.encode(errors="replace")
        case None:
            raw = b""
        case bytearray() | memoryview():
            raw = bytes(body)
        case _:
            # Of a number `bytes` would make as many zeros.
            try:
                raw = json.dumps(body, default=str).encode()
            except (ValueError, RecursionError):
                raw = b""
    return raw[: MESSAGE_BYTES + 1]

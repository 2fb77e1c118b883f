"""The consumer of the queue `intents`, in a thread of its own beside the worker's Celery.

A message here is the only copy of what a merchant sent, so it is acknowledged only once everything of it is
stored. It is not a Celery task: a task would hold a thread that dispatches checkouts while it waits for a
commit, and Celery drops what it cannot read, which here is kept as refused. Several messages are under way at
once, up to the prefetch. Only this thread uses the connection to the broker.
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
from orchestrator.messaging.publisher import BackOff, discard, release
from orchestrator.worker.submissions import Message

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from kombu import Connection

    from orchestrator.settings import Settings

IDLE: Final = 0.5
"""Seconds for which the consumer waits for a message while none is under way."""
BUSY: Final = 0.02
"""The same while messages are under way, each of which may be stored at any moment."""
WELL_AFTER: Final = 2.0
"""Seconds for which a connection must last before the broker counts as back."""


class IntentConsumer:
    """Consumes until it is closed; `accept` passes a message to the event loop and returns at once."""

    def __init__(self, settings: Settings, accept: Callable[[Message], Future[None]]) -> None:
        self._app = configure(settings)
        self._prefetch, self._accept = settings.intents_prefetch, accept
        self._closing = min(5.0, settings.shutdown_timeout / 5)
        self._link = BackOff("intents")
        self._ending = threading.Event()
        self._started = False
        self._thread = threading.Thread(target=self._run, name="intents", daemon=True)
        self._under_way: list[tuple[Any, Future[None]]] = []
        # A few bytes may inflate to gigabytes: a compressed message is refused without being decompressed. A
        # worker consumes nothing else that is compressed.
        compression._decoders.clear()  # type: ignore[attr-defined]  # noqa: SLF001 - kombu offers no other way

    @property
    def trouble(self) -> str | None:
        """Why no intents are consumed; None while they are."""
        if self._started and not self._thread.is_alive() and not self._ending.is_set():
            return "its consumer ended: restart this worker"
        return self._link.reason if self._link.away else None

    def start(self) -> None:
        self._thread.start()
        self._started = True

    def stop(self) -> None:
        """Consume no new message; returns at once."""
        self._ending.set()

    def close(self) -> None:
        """Wait some seconds until what is under way is stored and acknowledged; the rest is delivered
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
                release(connection)
            except Exception as error:  # noqa: BLE001 - no error of a broker ends a worker
                self._ending.wait(self._link.failed(error))
            finally:
                self._abandon()
                discard(connection)

    def _abandon(self) -> None:
        """Cancel what is under way: it is delivered again on another connection, and what is already stored
        is not stored twice.
        """
        left: list[tuple[Any, Future[None]]] = []
        for delivery, future in self._under_way:
            if delivery is None and not self._ending.is_set():
                left.append((delivery, future))  # bytes that were no message are not delivered again
            else:
                future.cancel()
        self._under_way = left

    def _consume(self, connection: Connection) -> None:
        channel: Any = connection.channel()
        # For this consumer only: quorum queues refuse a limit that all consumers of a channel share.
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
                # The prefetch counts neither unreadable messages nor those that Redis delivers again.
                time.sleep(BUSY)
            else:
                with suppress(TimeoutError):
                    connection.drain_events(timeout=BUSY if self._under_way else IDLE)
            if connection.supports_heartbeats:
                connection.heartbeat_check()
            while transport.unreadable:
                self._pass_on(None, Message({}, {}, None, _bounded(transport.unreadable.popleft())))
            self._acknowledge()
            if self._link.away and time.monotonic() >= well:
                self._link.worked()

    def _received(self, message: Any) -> None:
        """Pass a message to the event loop; whatever it contains, nothing is raised, because kombu would drop
        it.
        """
        headers = message.headers if isinstance(message.headers, dict) else {}
        properties = message.properties if isinstance(message.properties, dict) else {}
        self._pass_on(message, Message(headers, properties, message.content_type, _bounded(message.body)))

    def _pass_on(self, delivery: Any, message: Message) -> None:
        self._under_way.append((delivery, self._accept(message)))

    def _acknowledge(self) -> None:
        done: list[tuple[Any, Future[None]]] = []
        left: list[tuple[Any, Future[None]]] = []
        for entry in self._under_way:
            # Each future is checked once: one that ends between two checks would be in neither list.
            (done if entry[1].done() else left).append(entry)
        self._under_way = left
        for delivery, future in done:
            if delivery is not None and not future.cancelled() and future.exception() is None:
                delivery.ack()


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
            # `bytes` of a number would be that many zeros.
            try:
                raw = json.dumps(body, default=str).encode()
            except (ValueError, RecursionError):
                raw = b""
    return raw[: MESSAGE_BYTES + 1]

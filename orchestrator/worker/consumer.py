"""The consumer: Celery's, which continues after any error of the broker and after any message.

Celery's own consumer ends the worker where an error is not in its transport's list of lost connections: a
Redis that became a replica (READONLY), a queue that RabbitMQ still holds for a connection that was cut. Here
every error means: drop the connection, wait (back-off with jitter), connect anew. Meanwhile the worker sweeps
by itself.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any, Final

from celery.utils import threads
from celery.worker import loops
from celery.worker.consumer import consumer
from celery.worker.state import maybe_shutdown

from orchestrator.messaging.app import PROCESS, SEAL, SWEEP
from orchestrator.messaging.dropped_messages import dropped
from orchestrator.messaging.publisher import CLOSE_TIMEOUT, BackOff, discard

if TYPE_CHECKING:
    from collections.abc import Callable

    from kombu import Connection

link: Final = BackOff("consumer")
"""The link by which this process receives messages of the broker."""

# More than their stubs declare.
_consumer: Any = consumer
_loops: Any = loops
_threads: Any = threads

WELL_AFTER: Final = 2.0
"""Seconds that a connection must last to count as well: a replica takes connections too, and refuses what
comes next."""
MOST_IDS: Final = 1000
"""Checkouts that one message may name: HINT_SIZE's own bound."""
_ID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""A checkout's id as `publish` writes it."""


class Consumer(consumer.Consumer):
    """Consumes until the worker must end."""

    hub: Any
    _well: Any = None

    def start(self) -> None:
        """Connect and consume, again after every error, until the worker ends."""
        while self.blueprint.state not in _consumer.STOP_CONDITIONS:
            maybe_shutdown()
            self.restart_count += 1
            if self.hub is not None:
                self.timer_entries_before_start = _loops._timer_entries(self.hub.timer)  # noqa: SLF001
                self.timer_entries_registered = None
            try:
                self.blueprint.start(self)
            except Exception as error:  # noqa: BLE001 - no error of a broker ends a worker
                maybe_shutdown()
                if self.blueprint.state not in _consumer.STOP_CONDITIONS:
                    self._begin_anew(error)

    def _begin_anew(self, error: Exception) -> None:
        pause = link.failed(error)
        if self._well is not None:
            self._well.cancel()
        connection, self.connection = self.connection, None
        if connection is not None:
            discard(connection)
        self.on_close()
        super()._cancel_connection_timer_entries()  # type: ignore[misc]  # as above
        self.blueprint.restart(self)
        until = time.monotonic() + pause
        while time.monotonic() < until:
            maybe_shutdown()
            time.sleep(0.05)

    def stop(self) -> None:
        """Close the link to the broker; a broker that hangs is waited for only a moment, queue by queue."""
        if self.connection is not None:
            _threads.bound_open_broker_sockets(self.connection, CLOSE_TIMEOUT)
        super().stop()

    def ensure_connected(self, conn: Connection) -> Connection:
        """Connect, once: `start` tries again."""
        try:
            conn.connect()
        except BaseException:
            discard(conn)
            raise
        return conn

    def on_ready(self) -> None:
        super().on_ready()
        self._well = self.timer.call_after(WELL_AFTER, link.worked)

    # Messages that cannot be processed. Every queue is consumed without acknowledgement: the broker has
    # dropped the message already, and RabbitMQ would close the channel over an answer to it.

    def create_task_handler(self, *arguments: Any, **options: Any) -> Callable[[Any], None]:
        """Return Celery's handler of a message, behind a check of ours."""
        handle = super().create_task_handler(*arguments, **options)

        def received(message: Any) -> None:
            try:
                reason = flaw(message)
                if reason is None:
                    handle(message)
                else:
                    dropped.add(reason)
            except Exception as error:  # noqa: BLE001 - whatever is in a message, it stops nothing
                dropped.add(type(error).__name__)

        return received

    def on_decode_error(self, message: Any, exc: Exception) -> None:  # noqa: ARG002 - Celery's signature
        dropped.add(type(exc).__name__)

    def on_unknown_message(self, body: Any, message: Any) -> None:  # noqa: ARG002
        dropped.add("not_a_task")

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:  # noqa: ARG002
        dropped.add("unknown_task")

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:  # noqa: ARG002
        dropped.add(type(exc).__name__)


def flaw(message: Any) -> str | None:
    """Return why a message is not valid; None if it is. Raises whatever decoding it raises."""
    headers = message.headers
    name = headers.get("task") if isinstance(headers, dict) else None
    if name not in (PROCESS, SWEEP, SEAL):
        return "unknown_task" if isinstance(name, str) else "not_a_task"
    # Nothing here has another time than now: a time would be compared with this host's clock, which may be
    # wrong.
    headers["eta"] = headers["expires"] = None
    body = message.payload
    if not (isinstance(body, list) and len(body) == 3 and isinstance(body[0], list)):  # noqa: PLR2004 - Celery's protocol 2
        return "no_arguments"
    arguments, named, embedded = body
    if named or (isinstance(embedded, dict) and any(embedded.values())):
        return "wrong_arguments"
    if name != PROCESS:
        return "wrong_arguments" if arguments else None
    return None if len(arguments) == 1 and _are_ids(arguments[0]) else "wrong_arguments"


def _are_ids(value: object) -> bool:
    if not isinstance(value, list) or len(value) > MOST_IDS:
        return False
    return all(isinstance(item, str) and _ID.fullmatch(item) for item in value)

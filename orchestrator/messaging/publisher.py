"""The publisher: tasks sent to the broker over one connection, which is made anew after any error.

After a failover the old primary may stay up and refuse every write, so after any error of a publish its
connection is not used again. One thread uses a publisher.
"""

from __future__ import annotations

import errno
import random
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from amqp.exceptions import ChannelError
from celery.utils import threads

from orchestrator import log
from orchestrator.errors import OrchestratorError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from celery import Celery
    from kombu import Connection

_log = log.get(__name__)
_threads: Any = threads  # more than its stubs declare

CLOSE_TIMEOUT: Final = 2.0
"""Seconds for closing a connection to a broker that may not answer."""
FIRST_PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 3.0
ANSWER_TIMEOUT: Final = 10.0
"""Seconds that the broker may take to answer, or to take what is sent."""
DEPTH_TIMEOUT: Final = 3.0
"""The same for the question how many messages wait: a caller can do without its answer. A client waits for it
twice, because it tries again after a time-out."""
_BOUNDS: Final = {"socket_timeout", "read_timeout", "write_timeout"}
"""The options of kombu's transports for Redis and RabbitMQ that bound an answer."""
NOT_FOUND: Final = "404"
"""AMQP's code for a queue that does not exist."""
PROBE_EXPIRY: Final = 60
"""Seconds that Redis keeps what was written to see whether it can be."""


class Message(NamedTuple):
    """A task by its name, its arguments, and the queue that it goes to."""

    task: str
    queue: str
    arguments: Sequence[object] = ()


class Silent(OrchestratorError):  # noqa: N818 - named for the fact
    """The broker did not answer in time, and said why before."""


class _Properties(msgspec.Struct):
    timestamp: int | None = None


class _Waiting(msgspec.Struct):
    """What is read of a message in a list of Redis: any client of that server may have written it."""

    properties: _Properties


class Publisher:
    """Publishes tasks. Kombu's and the transport's errors pass through; the next publish connects anew."""

    def __init__(self, app: Celery, *, timeout: float = ANSWER_TIMEOUT) -> None:
        self._app, self._timeout = app, timeout
        self._connection: Connection | None = None
        self._producer: Any = None
        self._blocked = False

    def publish(self, messages: Iterable[Message]) -> None:
        """Send these, in order; after an error some may have been sent."""
        with self._link() as producer:
            for message in messages:
                self._app.send_task(
                    message.task,
                    args=list(message.arguments),
                    queue=message.queue,
                    producer=producer,
                    retry=False,
                    ignore_result=True,
                    # A text of the arguments costs more than the rest of a message, and has no reader.
                    argsrepr="",
                    kwargsrepr="",
                    # When it was sent, in seconds since 1970: `oldest` reads it.
                    timestamp=int(time.time()),
                )

    def depth(self, queue: str) -> int:
        """Return how many messages wait in a queue; it is declared where it does not exist."""
        # As kombu declares a queue that says nothing else.
        how = {"durable": True, "exclusive": False, "auto_delete": False}
        with self._link() as producer:
            return int(producer.channel.queue_declare(queue=queue, **how).message_count)

    def waiting(self, queue: str) -> int:
        """Return how many messages wait in a queue, which is not declared: 0 where it does not exist."""
        try:
            with self._link() as producer:
                # On Redis a list is no queue with arguments, and kombu looks for it without the keys' prefix.
                passive = getattr(producer.channel, "client", None) is None
                return int(producer.channel.queue_declare(queue=queue, passive=passive).message_count)
        except ChannelError as error:
            if str(error.reply_code) == NOT_FOUND:
                return 0
            raise

    def oldest(self, queue: str) -> float | None:
        """Return when the oldest message of a queue was sent, in seconds since 1970; None where the broker
        does not show it, or the sender did not say.
        """
        with self._link() as producer:
            client = getattr(producer.channel, "client", None)
            if client is None:
                return None
            prefix = self._app.conf.broker_transport_options.get("global_keyprefix", "")
            raw = client.execute_command("LINDEX", f"{prefix}{queue}", -1)
        try:
            sent = msgspec.json.decode(raw or b"", type=_Waiting).properties.timestamp
        except msgspec.MsgspecError:
            return None
        return None if sent is None else float(sent)

    def prove(self, queue: str) -> None:
        """Write something that no consumer reads, and query a queue; raises what keeps a hint from being
        published.

        A replica, and a Redis that is out of memory, answer queries and take no hint.
        """
        try:
            with self._link() as producer:
                client = getattr(producer.channel, "client", None)
                if client is not None:
                    client.set("probe", "1", ex=PROBE_EXPIRY)
                else:
                    # RabbitMQ drops what leads to no queue; where it takes no messages, it answers nothing
                    # after this.
                    producer.publish("", exchange="", routing_key="probe", serializer="json", retry=False)
                self.depth(queue)
        except TimeoutError as error:
            if not self._blocked:
                raise
            raise Silent(
                "it takes no messages, because it is short of memory or disk: its log says which"
            ) from error

    @contextmanager
    def _link(self) -> Iterator[Any]:
        """Yield the producer of a connection; after an error the connection is given up, as it is."""
        try:
            yield self._connected()
        except BaseException:
            self._end(discard)
            raise

    def _connected(self) -> Any:
        if self._producer is None:
            named = self._app.conf.broker_transport_options
            bounds = dict.fromkeys(_BOUNDS & named.keys(), self._timeout)
            self._connection = self._app.connection_for_write(transport_options=bounds)
            self._connection.connect()
            _threads.bound_open_broker_sockets(self._connection, self._timeout)
            self._blocked = False
            link: Any = self._connection.connection
            if hasattr(link, "on_blocked"):
                link.on_blocked = self._note_blocked
            self._producer = self._app.amqp.Producer(self._connection)
        return self._producer

    def _note_blocked(self, _: str) -> None:
        self._blocked = True

    def close(self) -> None:
        self._end(release)

    def _end(self, end: Callable[[Connection], None]) -> None:
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            end(connection)


def release(connection: Any) -> None:
    """Close a kombu connection that works; on Redis, unacknowledged messages go back to their queue."""
    _threads.bound_open_broker_sockets(connection, CLOSE_TIMEOUT)
    with suppress(Exception):
        connection.release()


def discard(connection: Any) -> None:
    """Close the sockets of a kombu connection that is of no use any more, whatever state it is in."""
    _threads.bound_open_broker_sockets(connection, CLOSE_TIMEOUT)
    for close in (lambda: connection.collect(socket_timeout=CLOSE_TIMEOUT), connection.release):
        with suppress(Exception):
            close()


def reason_of(error: BaseException) -> str:
    """Say in words what a try met; without login."""
    said = log.scrub(str(error))[:200]
    if said == "timed out" or (not said and isinstance(error, TimeoutError)):
        return "it does not answer"
    if isinstance(error, OSError) and error.errno == errno.EINVAL:
        # Linux's error for setting an option of a socket that the other side has closed.
        return "it closed the connection"
    return said or type(error).__name__


class BackOff:
    """The pauses of one link to the broker, and the log lines at the beginning and end of an outage."""

    def __init__(self, link: str) -> None:
        self._link = link
        self._pause = 0.0
        self.away = False
        self.reason = ""
        """What the last try met, while the broker is away."""

    def failed(self, error: BaseException) -> float:
        """Note a failure; return the seconds until the next try: full jitter below a ceiling that doubles."""
        reason = reason_of(error)
        if not self.away:
            _log.warning("broker_away", link=self._link, error=type(error).__name__, reason=reason)
        self.away, self.reason = True, reason
        self._pause = min(max(self._pause * 2, FIRST_PAUSE), LONGEST_PAUSE)
        return random.uniform(self._pause / 2, self._pause)  # noqa: S311 - jitter

    def worked(self) -> None:
        """Note that the broker took something."""
        if self.away:
            _log.info("broker_back", link=self._link)
        self.away, self._pause = False, 0.0

"""Messages to one queue of one broker, published in lists over one connection.

On RabbitMQ a message counts as delivered once the broker has confirmed it: it is in a queue, and where that
queue is durable also on disk (a quorum queue: on most of its members). One that leads to no queue is
returned, and has failed. On Redis it counts once the list has it, in Redis's memory. After any error the
connection is closed. One thread at a time uses a link; every call ends by a time that the caller sets.
"""

from __future__ import annotations

import ssl
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Final

import amqp
from amqp import exceptions
from amqp.transport import TCPTransport
from redis import exceptions as redis_exceptions
from redis.connection import Connection as RedisConnection

from orchestrator.delivery.addresses import AddressForbidden
from orchestrator.delivery.sender import KEPT, Answer, Outcome
from orchestrator.delivery.wire import NotConnected, TooMuch
from orchestrator.messaging.task_message import CONTENT_TYPE, ENCODING, PERSISTENT, redis_item
from orchestrator.text import neutralised

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from orchestrator.delivery.task_target import Broker
    from orchestrator.delivery.wire import Wire
    from orchestrator.messaging.task_message import TaskMessage

CLOSING: Final = 1.0
"""Seconds that closing a connection may take."""
FULL: Final = "as many messages wait in the queue as may"
BLOCKED: Final = "it takes no messages, because it is short of memory or disk"


class Link(ABC):
    """A connection to one queue; `limit`: messages that may wait in it, where that is ours to say."""

    echoes: ClassVar[int]
    """How many times what is sent may come back."""

    def __init__(self, broker: Broker, queue: str, *, limit: int | None = None) -> None:
        self._broker, self._queue, self._limit = broker, queue, limit
        self._wire: Wire | None = None
        self._connection: Any = None
        self._messages: Sequence[TaskMessage] = ()
        self._answers: list[Answer | None] = []
        self._began = 0.0

    def usable(self) -> bool:
        """Return whether there is a connection on which nothing unexpected has come."""
        return self._wire is not None and self._wire.idle()

    def publish(
        self, messages: Sequence[TaskMessage], dial: Callable[[], Wire], *, until: float
    ) -> list[Answer]:
        """Publish messages in order, and return what came of each; raise nothing. `dial` connects where there
        is no connection.
        """
        self._began, self._messages, self._answers = time.monotonic(), messages, [None] * len(messages)
        try:
            if not self.usable():
                self.close()
                self._wire = dial()
                self._wire.allow(until=until)
                self._connect(self._wire)
            assert self._wire is not None  # noqa: S101 - just connected
            size = sum(len(message.body) for message in messages)
            self._wire.allow(until=until, echoed=self.echoes * size)
            room = len(messages)
            if self._limit is not None:
                room = max(min(room, self._limit - self._waiting()), 0)
            self._exchange(messages[:room])
            missing = Answer(Outcome.THROTTLED, self._seconds(), body=FULL.encode())
        except Exception as error:  # noqa: BLE001 - whatever a broker sends is its answer
            missing = _answer(error, self._seconds())
            self._drop()
        return [missing if answer is None else answer for answer in self._answers]

    def close(self) -> None:
        """Close the connection."""
        self._drop()

    def _drop(self) -> None:
        wire, self._wire, self._connection = self._wire, None, None
        if wire is not None:
            wire.end()

    def _seconds(self) -> float:
        return time.monotonic() - self._began

    @abstractmethod
    def _connect(self, wire: Wire) -> None:
        """Log in over a connection that is open."""

    @abstractmethod
    def _waiting(self) -> int:
        """Return how many messages wait in the queue."""

    @abstractmethod
    def _exchange(self, messages: Sequence[TaskMessage]) -> None:
        """Publish messages, and put the answer to each where it has its place."""


def link_to(broker: Broker, queue: str, *, prefix: str = "", limit: int | None = None) -> Link:
    """Return a link; `prefix` is that of kombu's keys on Redis."""
    if broker.kind == "amqp":
        return RabbitMqLink(broker, queue, limit=limit)
    return RedisLink(broker, queue, prefix=prefix, limit=limit)


class _Blocked(Exception):  # noqa: N818 - named for the fact
    """RabbitMQ has said that it takes no messages for now."""


class _Transport(TCPTransport):
    """py-amqp's transport over a connection that is open."""

    wire: Any

    def _connect(self, *_: object) -> None:
        self.sock = self.wire

    def _set_socket_options(self, *_: object) -> None:
        """Leave options as they are: py-amqp's are for a socket on which nothing was sent."""


class _Connection(amqp.Connection):
    def __init__(self, wire: Wire, **given: Any) -> None:
        self._wire = wire
        super().__init__(**given)

    def Transport(self, host: str, *_: object, **__: object) -> _Transport:  # noqa: N802 - py-amqp's name
        transport = _Transport(host)
        transport.wire = self._wire
        return transport


class RabbitMqLink(Link):
    """A queue of RabbitMQ."""

    echoes = 2

    def __init__(self, broker: Broker, queue: str, *, limit: int | None = None) -> None:
        super().__init__(broker, queue, limit=limit)
        self._channel: Any = None
        self._tag = 0
        self._blocked = False
        self._unconfirmed: dict[int, int] = {}
        """Places in the list of messages, by the broker's numbers."""
        self._returned: dict[str, str] = {}
        """Why a message leads to no queue, by its id."""

    def usable(self) -> bool:
        """As `Link`; a broker that takes no messages is not."""
        return not self._blocked and super().usable()

    def close(self) -> None:
        """As `Link`."""
        if self._wire is not None and self._connection is not None:
            self._wire.allow(until=time.monotonic() + CLOSING)
            with suppress(Exception):  # it may be gone
                self._connection.close()
        self._drop()

    def _connect(self, wire: Wire) -> None:
        self._tag, self._blocked = 0, False
        self._connection = _Connection(
            wire,
            # Nothing is resolved: the wire is open.
            host="broker:5672",
            login_method="PLAIN",
            userid=self._broker.username or "guest",
            password=self._broker.password or "guest",
            virtual_host=self._broker.vhost,
            on_blocked=self._note_blocked,
            on_unblocked=self._note_unblocked,
            client_properties={"product": "checkout-orchestrator"},
        )
        self._connection.connect()
        # Or py-amqp would read before each message, without waiting.
        self._connection.client_properties["capabilities"].pop("connection.blocked", None)
        self._channel = self._connection.channel()
        self._channel.confirm_select()
        self._channel.events["basic_ack"].add(self._confirmed)
        self._channel.events["basic_nack"].add(self._nacked)
        self._channel.events["basic_return"].add(self._note_returned)

    def _waiting(self) -> int:
        # On a channel of its own: RabbitMQ closes it where there is no such queue, and py-amqp reopens it.
        channel = self._connection.channel()
        try:
            return int(channel.queue_declare(self._queue, passive=True).message_count)
        except exceptions.NotFound:
            return 0  # the message will be returned, and says so
        finally:
            channel.close()

    def _exchange(self, messages: Sequence[TaskMessage]) -> None:
        self._unconfirmed, self._returned = {}, {}
        for place, message in enumerate(messages):
            self._send(place, message)
        while self._unconfirmed:
            self._connection.drain_events()
            if self._blocked and self._unconfirmed:
                raise _Blocked(BLOCKED)

    def _send(self, place: int, message: TaskMessage) -> None:
        made = amqp.Message(
            message.body,
            content_type=CONTENT_TYPE,
            content_encoding=ENCODING,
            application_headers=message.headers,
            delivery_mode=PERSISTENT,
            correlation_id=message.id,
            message_id=message.id,
        )
        self._tag += 1
        self._unconfirmed[self._tag] = place
        self._channel.basic_publish(made, exchange="", routing_key=self._queue, mandatory=True)

    def _confirmed(self, tag: int, multiple: bool) -> None:  # noqa: FBT001 - called by py-amqp
        for place in self._settled(tag, multiple=multiple):
            reason = self._returned.get(self._messages[place].id)
            self._answers[place] = (
                Answer(Outcome.DELIVERED, self._seconds())
                if reason is None
                else Answer(Outcome.UNROUTABLE, self._seconds(), body=neutralised(reason).encode()[:KEPT])
            )

    def _nacked(self, tag: int, multiple: bool) -> None:  # noqa: FBT001 - as above
        for place in self._settled(tag, multiple=multiple):
            # A queue that is full and refuses what is published, or one that could not store it.
            self._answers[place] = Answer(Outcome.THROTTLED, self._seconds(), body=b"NACK")

    def _settled(self, tag: int, *, multiple: bool) -> list[int]:
        tags = [each for each in self._unconfirmed if each <= tag] if multiple else [tag]
        return [self._unconfirmed.pop(each) for each in tags if each in self._unconfirmed]

    def _note_returned(self, error: Exception, _exchange: str, _key: str, message: Any) -> None:
        """Note a message that leads to no queue; the confirmation of it follows."""
        self._returned[str(message.properties.get("correlation_id", ""))] = str(error)

    def _note_blocked(self, _reason: str) -> None:
        self._blocked = True

    def _note_unblocked(self) -> None:
        self._blocked = False


class _RedisConnection(RedisConnection):
    """redis-py's connection over one that is open."""

    def __init__(self, wire: Wire, **given: Any) -> None:
        super().__init__(**given)  # type: ignore[no-untyped-call]
        self._wire = wire

    def _connect(self) -> Any:
        return self._wire


class RedisLink(Link):
    """A list of Redis; `prefix` is that of kombu's keys."""

    echoes = 0

    def __init__(self, broker: Broker, queue: str, *, prefix: str = "", limit: int | None = None) -> None:
        super().__init__(broker, queue, limit=limit)
        self._key = f"{prefix}{queue}"

    def _connect(self, wire: Wire) -> None:
        self._connection = _RedisConnection(
            wire,
            host=self._broker.host,
            port=self._broker.port,
            db=self._broker.db,
            username=self._broker.username,
            password=self._broker.password,
            protocol=2,
            driver_info=None,
            socket_timeout=None,
        )
        self._connection.connect()

    def _waiting(self) -> int:
        self._connection.send_command("LLEN", self._key)
        return int(self._connection.read_response())

    def _exchange(self, messages: Sequence[TaskMessage]) -> None:
        commands = [("LPUSH", self._key, redis_item(message, self._queue)) for message in messages]
        if commands:
            self._connection.send_packed_command(self._connection.pack_commands(commands))
        for place in range(len(commands)):
            try:
                self._connection.read_response()
                self._answers[place] = Answer(Outcome.DELIVERED, self._seconds())
            except redis_exceptions.ResponseError as error:
                # An answer to this command alone; the others have theirs.
                self._answers[place] = _answer(error, self._seconds())


# The first match holds. RabbitMQ says 403 and 530 of a login, a virtual host or a right, and 312 and 404 of a
# queue.
_FAULTS: Final[Sequence[tuple[tuple[type[BaseException], ...], Outcome]]] = (
    ((AddressForbidden,), Outcome.FORBIDDEN_ADDRESS),
    ((NotConnected,), Outcome.NOT_CONNECTED),
    ((_Blocked, redis_exceptions.OutOfMemoryError), Outcome.THROTTLED),
    (
        (
            exceptions.AccessRefused,
            exceptions.NotAllowed,
            redis_exceptions.AuthenticationError,
            redis_exceptions.AuthorizationError,
            redis_exceptions.NoPermissionError,
        ),
        Outcome.ACCESS_REFUSED,
    ),
    (
        (
            exceptions.ResourceError,
            exceptions.ConnectionForced,
            redis_exceptions.ReadOnlyError,
            redis_exceptions.BusyLoadingError,
            redis_exceptions.MasterDownError,
        ),
        Outcome.UNAVAILABLE,
    ),
    ((TooMuch, exceptions.UnexpectedFrame, redis_exceptions.InvalidResponse), Outcome.BROKER_ERROR),
    ((ssl.SSLError, ssl.CertificateError), Outcome.NOT_SECURE),
    ((TimeoutError, redis_exceptions.TimeoutError), Outcome.TIMED_OUT),
    (
        (exceptions.RecoverableConnectionError, redis_exceptions.ConnectionError, OSError),
        Outcome.CONNECTION_LOST,
    ),
)
_WORDS: Final = {
    **dict.fromkeys(
        ("MISCONF", "NOREPLICAS", "LOADING", "MASTERDOWN", "TRYAGAIN", "CLUSTERDOWN"), Outcome.UNAVAILABLE
    ),
    **dict.fromkeys(("NOAUTH", "NOPERM", "WRONGPASS"), Outcome.ACCESS_REFUSED),
}
"""Words with which Redis begins an error that redis-py has no class for."""


def _answer(error: BaseException, seconds: float) -> Answer:
    """Return what an error means for a message that was not confirmed, with the broker's own words."""
    said = neutralised(str(error))
    outcome = next((meaning for kinds, meaning in _FAULTS if isinstance(error, kinds)), Outcome.BROKER_ERROR)
    if outcome is Outcome.BROKER_ERROR and isinstance(error, redis_exceptions.ResponseError):
        outcome = _WORDS.get(said.partition(" ")[0], outcome)
    return Answer(outcome, seconds, body=(said or type(error).__name__).encode()[:KEPT])

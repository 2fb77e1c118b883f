"""One delivery as a Celery task: a message out, and its outcome.

Messages to one endpoint gather while those before them are published, and go out in one list: brokers confirm
a list almost as fast as one message. A merchant's broker is reached as its webhook would be: the name is
resolved once for each connection, every address is checked, and the connection goes to one of them. It ends
within the total timeout, whatever the other side does. Nothing is logged here.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

from redis.exceptions import RedisError
from redis.sentinel import Sentinel

from orchestrator.delivery.addresses import (
    AddressForbidden,
    AddressPolicy,
    NameUnknown,
    Resolver,
    WebhookUrlRejected,
)
from orchestrator.delivery.broker_links import link_to
from orchestrator.delivery.sender import Answer, Outcome
from orchestrator.delivery.task_target import Broker, broker_of, own_key_prefix
from orchestrator.delivery.wire import dial, public_tls, tls_of
from orchestrator.messaging.task_message import message

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from uuid import UUID

    from orchestrator.delivery.broker_links import Link
    from orchestrator.delivery.wire import Wire
    from orchestrator.messaging.task_message import TaskMessage
    from orchestrator.settings.broker_url import Endpoint
    from orchestrator.store.webhooks import Webhook

TOGETHER: Final = 64
"""Messages that are published in one list at the most."""
IDLE: Final = 30.0
"""Seconds that an unused connection is kept."""
THREADS: Final = 256
"""Lists that are published at a time in one process, each to another endpoint."""
_SENTINEL: Final = {"socket_timeout": 2.0, "socket_connect_timeout": 2.0}
_EVERYWHERE: Final = AddressPolicy([ip_network("0.0.0.0/0"), ip_network("::/0")])


class OwnBroker(NamedTuple):
    """Our own broker; at most `limit` messages may wait in a queue of events, none at all with 0."""

    endpoint: Endpoint
    limit: int


class _Waiting(NamedTuple):
    message: TaskMessage
    until: float
    answer: asyncio.Future[Answer]


@dataclass(slots=True, eq=False)
class _Line:
    """The link of one endpoint, and the messages that wait for it."""

    secret: bytes
    target: str
    broker: Broker | None
    """None: our own."""
    link: Link
    waiting: deque[_Waiting] = field(default_factory=deque)
    running: asyncio.Task[None] | None = None
    used_at: float = 0.0
    watched: bool = False
    """Whether a timer will see whether it is idle."""


class TaskSender:
    """The connections of one process to brokers of events."""

    def __init__(
        self,
        policy: AddressPolicy,
        *,
        own: OwnBroker | None,
        connect_timeout: float,
        total_timeout: float,
        lookup: Callable[..., Any] = socket.getaddrinfo,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._policy, self._own = policy, own
        self._connect, self._total, self._tls = connect_timeout, total_timeout, tls
        self._resolver = Resolver(policy, lookup=lookup)
        self._own_resolver = Resolver(_EVERYWHERE)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="brokers")
        self._lines: dict[UUID, _Line] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Close every connection."""
        lines, self._lines = list(self._lines.values()), {}
        for line in lines:
            if line.running is not None:
                line.running.cancel()
        await asyncio.gather(
            *(line.running for line in lines if line.running is not None), return_exceptions=True
        )
        for line in lines:
            self._retire(line)
        await asyncio.gather(*self._closing, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._resolver.close()
        self._own_resolver.close()

    async def send(self, webhook: Webhook, secret: bytes, identity: str, body: bytes) -> Answer:
        """Publish one event; return the outcome, and raise nothing but a cancellation.

        `secret`: the URL of the merchant's broker with its login, empty for our own.
        """
        began = time.monotonic()
        try:
            line = self._line(webhook, secret)
        except (WebhookUrlRejected, UnicodeDecodeError) as error:
            return Answer(Outcome.WRONG_URL, time.monotonic() - began, body=str(error).encode()[:1024])
        if line is None:
            reason = b"events on the orchestrator's own broker are not enabled"
            return Answer(Outcome.NOT_CONNECTED, time.monotonic() - began, body=reason)
        assert webhook.task is not None  # noqa: S101 - a constraint of the table
        made = message(webhook.task, identity, body)
        waiting = _Waiting(made, began + self._total, asyncio.get_running_loop().create_future())
        line.waiting.append(waiting)
        if line.running is None:
            line.running = asyncio.create_task(self._run(line), name="broker-link")
        try:
            # The link ends within its time by itself; this is for one that a thread is waited for.
            async with asyncio.timeout(self._total + 1):
                return await waiting.answer
        except TimeoutError:
            return Answer(Outcome.TIMED_OUT, time.monotonic() - began)

    def _line(self, webhook: Webhook, secret: bytes) -> _Line | None:
        line = self._lines.get(webhook.id)
        if line is not None and (line.secret, line.target) == (secret, webhook.target):
            return line
        queue = str(webhook.queue)
        broker: Broker | None = None
        if secret:
            broker = broker_of(secret.decode(), self._policy)
            made = link_to(broker, queue)
        elif self._own is None or not self._own.limit:
            return None
        else:
            own = _own_broker(self._own.endpoint)
            made = link_to(own, queue, prefix=own_key_prefix(queue), limit=self._own.limit)
        if line is not None:
            self._retire(line)
        self._lines[webhook.id] = line = _Line(secret, webhook.target, broker, made)
        return line

    # ── One list after the other ───────────────────────────────────────────────────────────────────────────

    async def _run(self, line: _Line) -> None:
        """Publish what waits, in lists, until nothing waits."""
        try:
            while line.waiting:
                together = [line.waiting.popleft() for _ in range(min(len(line.waiting), TOGETHER))]
                if in_time := self._in_time(together):
                    await self._answer(line, in_time)
        finally:
            line.running, line.used_at = None, time.monotonic()
            if not line.watched:
                self._check_idle_in(IDLE, line)

    def _in_time(self, together: list[_Waiting]) -> list[_Waiting]:
        """Return those for which there is time to connect and to publish, and answer the others.

        A list has the time of its oldest message: one that waited too long must not take the others' time.
        """
        now, least = time.monotonic(), min(self._connect, self._total / 2)
        in_time = []
        for each in together:
            if each.answer.done():
                continue
            if each.until - now < least:
                each.answer.set_result(Answer(Outcome.TIMED_OUT, self._total - (each.until - now)))
            else:
                in_time.append(each)
        return in_time

    async def _answer(self, line: _Line, together: list[_Waiting]) -> None:
        try:
            answers = await self._publish(line, together)
        except Exception as error:  # noqa: BLE001 - a fault of ours, which each delivery reports
            for each in together:
                if not each.answer.done():
                    each.answer.set_exception(error)
            return
        for each, answer in zip(together, answers, strict=True):
            if not each.answer.done():
                each.answer.set_result(answer)

    async def _publish(self, line: _Line, together: list[_Waiting]) -> list[Answer]:
        began = time.monotonic()
        until = min(each.until for each in together)

        def connect() -> Wire:
            return dialled(until=min(until, time.monotonic() + self._connect))

        # Where there is a connection no other is opened.
        dialled = partial(dial, (), 0, host="", tls=None, check=_permitted)
        failed: Outcome | None = None
        try:
            if not line.link.usable():
                async with asyncio.timeout(self._connect):
                    dialled = await self._dialler(line)
        except AddressForbidden:
            failed = Outcome.FORBIDDEN_ADDRESS
        except NameUnknown:
            failed = Outcome.NAME_NOT_FOUND
        except (TimeoutError, OSError, RedisError):
            failed = Outcome.NOT_CONNECTED
        if failed is not None:
            return [Answer(failed, time.monotonic() - began)] * len(together)
        messages = [each.message for each in together]
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._threads, lambda: line.link.publish(messages, connect, until=until)
        )

    async def _dialler(self, line: _Line) -> partial[Wire]:
        """Return what connects, by a time: to one of the addresses of a broker, all of which were checked."""
        broker = line.broker
        if broker is None:
            assert self._own is not None  # noqa: S101 - a line of it exists
            endpoint = self._own.endpoint
            host, port = await self._own_address(endpoint)
            found = await self._own_resolver.addresses(host, port, named_only=False)
            return partial(dial, found, port, host=host, tls=tls_of(endpoint.tls), check=_permitted)
        named_only = not broker.secure

        def check(address: Any) -> None:
            # The last word before each connection.
            self._resolver.check(ip_address(str(address)), named_only=named_only)

        found = await self._resolver.addresses(broker.host, broker.port, named_only=named_only)
        tls = (self._tls or public_tls()) if broker.secure else None
        return partial(dial, found, broker.port, host=broker.host, tls=tls, check=check)

    async def _own_address(self, endpoint: Endpoint) -> tuple[str, int]:
        if endpoint.kind != "sentinel":
            broker = _own_broker(endpoint)
            return broker.host, broker.port

        def primary() -> tuple[str, int]:
            asked: dict[str, Any] = {**_SENTINEL, "ssl": endpoint.tls is not None}
            if endpoint.tls is not None:
                asked |= endpoint.tls.for_redis()
            if endpoint.sentinel_password is not None:
                asked |= {"username": endpoint.sentinel_username, "password": endpoint.sentinel_password}
            sentinel = Sentinel(endpoint.sentinels, sentinel_kwargs=asked)  # type: ignore[no-untyped-call]
            try:
                host, port = sentinel.discover_master(endpoint.master)  # type: ignore[no-untyped-call]
                return str(host), int(port)
            finally:
                for each in sentinel.sentinels:
                    each.close()

        return await asyncio.get_running_loop().run_in_executor(self._threads, primary)

    # ── Connections that are not used any more ─────────────────────────────────────────────────────────────

    def _check_idle_in(self, seconds: float, line: _Line) -> None:
        line.watched = True
        asyncio.get_running_loop().call_later(seconds, self._check_idle, line)

    def _check_idle(self, line: _Line) -> None:
        """Close a connection that was not used for long, or look again later."""
        line.watched = False
        if line not in self._lines.values():
            return
        left = line.used_at + IDLE - time.monotonic()
        if line.running is None and left <= 0:
            self._lines = {key: value for key, value in self._lines.items() if value is not line}
            self._retire(line)
        else:
            self._check_idle_in(max(left, 1.0), line)

    def _retire(self, line: _Line) -> None:
        """Close the connection of a line in the background, once nothing of it is under way."""

        async def close() -> None:
            if line.running is not None:
                with suppress(Exception):
                    await line.running
            await asyncio.get_running_loop().run_in_executor(self._threads, line.link.close)

        task = asyncio.create_task(close(), name="broker-link-closing")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def _permitted(_: object) -> None:
    """Allow every address: our own broker is where the settings say."""


def _own_broker(endpoint: Endpoint) -> Broker:
    """Return our own broker as a merchant's is described."""
    parts = urlsplit(endpoint.urls[0])
    amqp = endpoint.kind == "amqp"
    usual = (5671 if endpoint.tls else 5672) if amqp else 6379
    return Broker(
        kind="amqp" if amqp else "redis",
        secure=endpoint.tls is not None,
        host=endpoint.host,
        port=parts.port or usual,
        username=endpoint.username,
        password=endpoint.password,
        vhost=unquote(parts.path[1:]) or "/",
        db=endpoint.db,
    )

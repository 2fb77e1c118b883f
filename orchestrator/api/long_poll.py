"""Clients that wait: one poller for all of a kind in a process, so that a hundred waiting clients cost one
small query at a time.

A client that waits holds a slot, and neither a thread nor a connection to Postgres. The slots are bounded,
and no merchant takes more than a share of them. `EventFeed` is for events, whose cursors are positions in
Postgres, so a client may continue at any process of the API; `CommandWaits` for the results of commands.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import Counter
from contextvars import Context
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from orchestrator import log
from orchestrator.api.problems import RETRY_AFTER, Refusal
from orchestrator.errors import OrchestratorError
from orchestrator.store import events, read_model
from orchestrator.store.events import Page
from orchestrator.store.read_model import CommandRecord

if TYPE_CHECKING:
    from collections.abc import Collection
    from uuid import UUID

    from fastapi import Request
    from starlette.types import Receive

    from orchestrator.store.database import Database
    from orchestrator.store.events import FeedRow

_log = log.get(__name__)

INTERVAL: Final = 0.05
"""Seconds between two queries while a client waits."""
AFTER_A_FAILURE: Final = 1.0
"""Seconds from a query that failed to the next."""
MERCHANT_SHARE: Final = 5
"""The clients of one merchant may take a fifth of the slots of a process."""
MOST_AT_ONCE: Final = 500
"""Events of one merchant in one query."""

T = TypeVar("T")
C = TypeVar("C")
W = TypeVar("W", bound="Waiter[Any]")


class TooManyWaiting(OrchestratorError):  # noqa: N818 - named for the fact
    """As many clients wait in this process as may; `own`: as many of this merchant's."""

    def __init__(self, number: int, *, own: bool) -> None:
        super().__init__(f"{number} clients wait already")
        self.number, self.own = number, own

    def refusal(self, said: str, *, kind: str) -> Refusal:
        """Return the problem that says so: 429 where the merchant has too many itself, else 503."""
        return Refusal(429 if self.own else 503, said, kind=kind, headers={"Retry-After": RETRY_AFTER})


@dataclass(slots=True, eq=False)
class Waiter(Generic[T]):
    """A client that waits."""

    merchant_id: int
    found: asyncio.Future[T | None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future(), kw_only=True
    )


class Poller(ABC, Generic[C]):
    """Asks for all clients of one process together, while there are any; on one event loop."""

    name: str
    """Of its task, and in logs."""
    interval = INTERVAL

    def __init__(self, db: Database, *, most: int) -> None:
        self._db, self.most = db, most
        self._clients: dict[C, None] = {}
        self._poller: asyncio.Task[None] | None = None
        self.stopping = False
        """Whether the process ends, and every wait with it."""
        self.queries = 0
        """How many queries the poller has made."""

    def __len__(self) -> int:
        """Return how many clients there are."""
        return len(self._clients)

    @abstractmethod
    async def _ask(self) -> bool:
        """Ask for all clients, and answer those for whom there is something; whether more is there to be read
        at once.
        """

    @abstractmethod
    def _end(self, client: C) -> None:
        """Let a client go: the process ends."""

    def add(self, client: C) -> None:
        """Ask for a client, until `discard`."""
        self._clients[client] = None
        if self._poller is None or self._poller.done():
            # It works for all clients, so its log lines carry the correlation id of no request.
            self._poller = asyncio.create_task(self._poll(), name=self.name, context=Context())

    def discard(self, client: C) -> None:
        """Ask for a client no more."""
        self._clients.pop(client, None)

    def stop(self) -> None:
        """Answer all clients, and let none wait any more: the process ends."""
        self.stopping = True
        for client in self._clients:
            self._end(client)

    async def close(self) -> None:
        """Answer all clients, and end the poller."""
        self.stop()
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.gather(self._poller, return_exceptions=True)

    async def _poll(self) -> None:
        while self._clients and not self.stopping:
            self.queries += 1
            try:
                more = await self._ask()
            except Exception as error:  # noqa: BLE001 - clients are answered in their time, whatever it was
                self._note(error)
                await asyncio.sleep(AFTER_A_FAILURE)
            else:
                if not more:
                    await asyncio.sleep(self.interval)

    def _note(self, error: Exception) -> None:
        _log.warning("long_poll_failed", poller=self.name, **log.cause(error))


class LongPoll(Poller[W], Generic[W, T]):
    """The clients of one process that wait, at most `most` at a time."""

    async def wait(self, client: W, *, seconds: float) -> T | None:
        """Return what a client waits for; None if it has not come after so many seconds.

        `TooManyWaiting` if no slot is free.
        """
        if self.stopping:
            return None
        of_merchant = Counter(each.merchant_id for each in self._clients)[client.merchant_id]
        if len(self._clients) >= self.most:
            raise TooManyWaiting(len(self._clients), own=False)
        if of_merchant >= max(self.most // MERCHANT_SHARE, 1):
            raise TooManyWaiting(of_merchant, own=True)
        self.add(client)
        try:
            # Not `timeout`, which would drop what is found at the moment at which the time is over.
            await asyncio.wait((client.found,), timeout=seconds)
            found: T | None = client.found.result() if client.found.done() else None
            return found
        finally:
            self.discard(client)

    def _end(self, client: W) -> None:
        if not client.found.done():
            client.found.set_result(None)


async def while_connected(request: Request, poll: LongPoll[W, T], client: W, *, seconds: float) -> T | None:
    """Return what a client waits for (see `LongPoll.wait`); None, and its slot is free again, as soon as it
    has closed its connection.
    """
    waiting = asyncio.create_task(poll.wait(client, seconds=seconds))
    gone = asyncio.create_task(disconnected(request.receive))
    try:
        await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
        return waiting.result() if waiting.done() else None
    finally:
        for task in (waiting, gone):
            task.cancel()
        await asyncio.gather(waiting, gone, return_exceptions=True)


async def disconnected(receive: Receive) -> None:
    """Return when the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


# ── For events ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True, eq=False)
class Waiting(Waiter[Page]):
    """A client that waits for events of its merchant after a position; `after` advances over events that it
    did not request.
    """

    after: int
    limit: int
    kinds: Collection[str] | None = None
    checkout: UUID | None = None

    def wants(self, row: FeedRow) -> bool:
        """Say whether an event is among those that the client asked for."""
        return (
            row.position > self.after
            and (self.kinds is None or row.kind in self.kinds)
            and (self.checkout is None or row.checkout_id == self.checkout)
        )

    def offer(self, rows: list[FeedRow]) -> None:
        """Answer the client if what it asked for is among the next events of its merchant."""
        if self.found.done() or not rows:
            return
        wanted = [row for row in rows if self.wants(row)][: self.limit]
        until = max(self.after, wanted[-1].position if len(wanted) == self.limit else rows[-1].position)
        if wanted:
            self.found.set_result(Page(wanted, until))
        self.after = until


class EventFeed(LongPoll[Waiting, Page]):
    """The clients of one process that wait for events."""

    name = "event-feed"

    async def _ask(self) -> bool:
        """Ask for the next events of all clients' merchants."""
        cursors: dict[int, int] = {}
        for client in self._clients:
            cursors[client.merchant_id] = min(client.after, cursors.get(client.merchant_id, client.after))
        found = await events.since(self._db, cursors, most=MOST_AT_ONCE)
        for client in tuple(self._clients):
            # A client that came meanwhile may stand before what was read: the next query reads that.
            if client.merchant_id in cursors and client.after >= cursors[client.merchant_id]:
                client.offer(found.get(client.merchant_id, []))
        return any(len(rows) >= MOST_AT_ONCE for rows in found.values())


# ── For commands ──────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True, eq=False)
class CommandWait(Waiter[CommandRecord]):
    """A client that waits until a command is finished."""

    command: UUID


class CommandWaits(LongPoll[CommandWait, CommandRecord]):
    """The clients of one process that wait for commands."""

    name = "command-waits"

    async def _ask(self) -> bool:
        clients = tuple(self._clients)
        found = await read_model.commands(self._db, {client.command for client in clients})
        for client in clients:
            record = found.get(client.command)
            if record is not None and record.finished and not client.found.done():
                client.found.set_result(record)
        return False

"""Clients that wait: one poller for all of a kind in a process, so that a hundred waiting clients cost one
small query at a time.

A client that waits holds a slot, and neither a thread nor a connection to Postgres. The slots are bounded,
and no merchant takes more than a share of them.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import Counter
from contextvars import Context
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from orchestrator import log
from orchestrator.errors import OrchestratorError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi import Request
    from starlette.types import Receive

_log = log.get(__name__)

INTERVAL: Final = 0.05
"""Seconds between two queries while a client waits."""
AFTER_A_FAILURE: Final = 1.0
"""Seconds from a query that failed to the next."""
MERCHANT_SHARE: Final = 5
"""The clients of one merchant may take a fifth of the slots of a process."""

T = TypeVar("T")


class TooManyWaiting(OrchestratorError):  # noqa: N818 - named for the fact
    """As many clients wait in this process as may; `own`: as many of this merchant's."""

    def __init__(self, number: int, *, own: bool) -> None:
        super().__init__(f"{number} clients wait already")
        self.number, self.own = number, own


@dataclass(slots=True, eq=False)
class Waiter(ABC, Generic[T]):
    """A client that waits."""

    merchant_id: int
    found: asyncio.Future[T] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future(), kw_only=True
    )

    @abstractmethod
    def unanswered(self) -> T:
        """Return what the client is told where it has waited for nothing."""


W = TypeVar("W", bound=Waiter[Any])


class LongPoll(ABC, Generic[W, T]):
    """The clients of one process that wait, at most `most` at a time; on one event loop."""

    name: str
    """Of the poller, in logs."""

    def __init__(self, *, most: int) -> None:
        self.most = max(most, 1)
        self._waiting: dict[W, None] = {}
        self._poller: asyncio.Task[None] | None = None
        self._stopping = False
        self.queries = 0
        """How many queries the poller has made."""

    def __len__(self) -> int:
        """Return how many clients wait."""
        return len(self._waiting)

    @abstractmethod
    async def _ask(self, clients: Sequence[W]) -> bool:
        """Make one query for these clients, and answer those among all for whom there is something; whether
        more is there to be read at once.
        """

    async def wait(self, client: W, *, seconds: float) -> T:
        """Return what a client waits for, or what it is told without it after so many seconds.

        `TooManyWaiting` if no slot is free.
        """
        if self._stopping:
            return self._told(client)
        of_merchant = Counter(each.merchant_id for each in self._waiting)[client.merchant_id]
        if len(self._waiting) >= self.most:
            raise TooManyWaiting(len(self._waiting), own=False)
        if of_merchant >= max(self.most // MERCHANT_SHARE, 1):
            raise TooManyWaiting(of_merchant, own=True)
        self._waiting[client] = None
        if self._poller is None or self._poller.done():
            # It works for all clients, so its log lines carry the correlation id of no request.
            self._poller = asyncio.create_task(self._poll(), name=self.name, context=Context())
        try:
            # Not `timeout`, which would drop what is found at the moment at which the time is over.
            await asyncio.wait((client.found,), timeout=seconds)
            return self._told(client)
        finally:
            self._waiting.pop(client, None)

    def stop(self) -> None:
        """Answer all clients that wait, and let none wait any more: the process ends."""
        self._stopping = True
        for client in self._waiting:
            if not client.found.done():
                client.found.set_result(client.unanswered())

    async def close(self) -> None:
        """Answer all clients, and end the poller."""
        self.stop()
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.gather(self._poller, return_exceptions=True)

    def _told(self, client: W) -> T:
        told: T = client.found.result() if client.found.done() else client.unanswered()
        return told

    async def _poll(self) -> None:
        """Ask for all clients, until no client waits."""
        while self._waiting and not self._stopping:
            self.queries += 1
            try:
                more = await self._ask(tuple(self._waiting))
            except Exception as error:  # noqa: BLE001 - clients are answered in their time, whatever it was
                _log.warning("long_poll_failed", poller=self.name, **log.cause(error))
                await asyncio.sleep(AFTER_A_FAILURE)
                continue
            if not more:
                await asyncio.sleep(INTERVAL)


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

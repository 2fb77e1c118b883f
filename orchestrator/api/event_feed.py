"""Waiting for events: one poller for all long polls of a process, so that a hundred waiting clients cost one
small query at a time.

Cursors are positions in Postgres, so a client may continue at any process of the API.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextvars import Context
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from orchestrator import log
from orchestrator.errors import OrchestratorError
from orchestrator.store import events
from orchestrator.store.events import Page

if TYPE_CHECKING:
    from collections.abc import Collection
    from uuid import UUID

    from orchestrator.store.database import Database
    from orchestrator.store.events import FeedRow

_log = log.get(__name__)

INTERVAL: Final = 0.05
"""Seconds between two queries while a client waits."""
AFTER_A_FAILURE: Final = 1.0
"""Seconds from a query that failed to the next."""
MOST_AT_ONCE: Final = 500
"""Events of one merchant in one query."""
MERCHANT_SHARE: Final = 5
"""The clients of one merchant may take a fifth of the slots of a process."""


class TooManyWaiting(OrchestratorError):  # noqa: N818 - named for the fact
    """As many clients wait in this process as may; `own`: as many of this merchant's."""

    def __init__(self, number: int, *, own: bool) -> None:
        super().__init__(f"{number} clients wait for events already")
        self.number, self.own = number, own


@dataclass(slots=True, eq=False)
class Waiting:
    """A client that waits for events of its merchant after a position; `after` advances over events that it
    did not request.
    """

    merchant_id: int
    after: int
    limit: int
    kinds: Collection[str] | None = None
    checkout: UUID | None = None
    found: asyncio.Future[Page] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

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

    def dismiss(self) -> None:
        """Answer the client without events."""
        if not self.found.done():
            self.found.set_result(Page((), self.after))


class EventFeed:
    """The clients of one process that wait for events, at most `most` at a time; on one event loop."""

    def __init__(self, db: Database, *, most: int) -> None:
        self._db = db
        self.most = max(most, 1)
        self._waiting: dict[Waiting, None] = {}
        self._poller: asyncio.Task[None] | None = None
        self._stopping = False
        self.queries = 0
        """How many queries the poller has made."""

    def __len__(self) -> int:
        """Return how many clients wait."""
        return len(self._waiting)

    async def wait(self, client: Waiting, *, seconds: float) -> Page:
        """Return the next events that a client asked for, or none after so many seconds.

        `TooManyWaiting` if no slot is free.
        """
        if self._stopping:
            return Page((), client.after)
        of_merchant = Counter(each.merchant_id for each in self._waiting)[client.merchant_id]
        if len(self._waiting) >= self.most:
            raise TooManyWaiting(len(self._waiting), own=False)
        if of_merchant >= max(self.most // MERCHANT_SHARE, 1):
            raise TooManyWaiting(of_merchant, own=True)
        self._waiting[client] = None
        if self._poller is None or self._poller.done():
            # It works for all clients, so its log lines have the correlation id of no request.
            self._poller = asyncio.create_task(self._poll(), name="event-feed", context=Context())
        try:
            # Not `timeout`, which would drop what is found at the moment at which the time is over, and with
            # it skip events.
            await asyncio.wait((client.found,), timeout=seconds)
            return client.found.result() if client.found.done() else Page((), client.after)
        finally:
            self._waiting.pop(client, None)

    def stop(self) -> None:
        """Answer all clients that wait, and let none wait any more: the process ends."""
        self._stopping = True
        for client in self._waiting:
            client.dismiss()

    async def close(self) -> None:
        """Answer all clients, and end the poller."""
        self.stop()
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.gather(self._poller, return_exceptions=True)

    async def _poll(self) -> None:
        """Ask for the next events of all clients' merchants, until no client waits."""
        while self._waiting and not self._stopping:
            cursors: dict[int, int] = {}
            for client in self._waiting:
                cursors[client.merchant_id] = min(client.after, cursors.get(client.merchant_id, client.after))
            self.queries += 1
            try:
                found = await events.since(self._db, cursors, most=MOST_AT_ONCE)
            except Exception as error:  # noqa: BLE001 - clients are answered in their time, whatever it was
                _log.warning("events_not_read", **log.cause(error))
                await asyncio.sleep(AFTER_A_FAILURE)
                continue
            for client in tuple(self._waiting):
                # A client that came meanwhile may stand before what was read: the next query reads that.
                if client.merchant_id in cursors and client.after >= cursors[client.merchant_id]:
                    client.offer(found.get(client.merchant_id, []))
            if not any(len(rows) >= MOST_AT_ONCE for rows in found.values()):
                await asyncio.sleep(INTERVAL)

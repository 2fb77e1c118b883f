"""Waiting for events: one poller for all long polls of a process, so that a hundred waiting clients cost one small query at a time."""

from __future__ import annotations

import asyncio
from collections import Counter
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
"""Seconds between two queries while somebody waits."""
AWAY: Final = 1.0
"""The same after one that failed."""
MOST_AT_ONCE: Final = 500
"""Events of one merchant in one query."""
MERCHANT_SHARE: Final = 5
"""One merchant's clients may take one in so many of the places of a process."""


class TooManyWaiting(OrchestratorError):  # noqa: N818 - named for the fact
    """As many clients wait in this process as may; `own`: as many of this merchant's."""

    def __init__(self, number: int, *, own: bool) -> None:
        super().__init__(f"{number} clients wait for events already")
        self.number, self.own = number, own


@dataclass(slots=True, eq=False)
class Waiting:
    """A client that waits for events of its merchant after a position; it goes on with the ones that it does not want."""

    merchant_id: int
    after: int
    limit: int
    kinds: Collection[str] | None = None
    checkout: UUID | None = None
    found: asyncio.Future[Page] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def wants(self, row: FeedRow) -> bool:
        """Say whether an event is one that the client asked for."""
        return (
            row.position > self.after
            and (self.kinds is None or row.kind in self.kinds)
            and (self.checkout is None or row.checkout_id == self.checkout)
        )

    def look(self, rows: list[FeedRow]) -> None:
        """Take what is wanted of the next events of the merchant."""
        if self.found.done() or not rows:
            return
        wanted = [row for row in rows if self.wants(row)][: self.limit]
        until = max(self.after, wanted[-1].position if len(wanted) == self.limit else rows[-1].position)
        if wanted:
            self.found.set_result(Page(wanted, until))
        self.after = until


class EventFeed:
    """The clients of one process that wait for events, at most `most` at a time; on one event loop."""

    def __init__(self, db: Database, *, most: int) -> None:
        self._db = db
        self.most = max(most, 1)
        self._waiting: dict[Waiting, None] = {}
        self._poller: asyncio.Task[None] | None = None
        self._stopping = False
        self.queries = 0
        """How many times it has asked Postgres."""

    def __len__(self) -> int:
        """Return how many clients wait."""
        return len(self._waiting)

    async def wait(self, one: Waiting, *, seconds: float) -> Page:
        """Return the next events that a client wants, or none after so many seconds. `TooManyWaiting` if there is no place."""
        if self._stopping:
            return Page((), one.after)
        of_merchant = Counter(each.merchant_id for each in self._waiting)[one.merchant_id]
        if len(self._waiting) >= self.most:
            raise TooManyWaiting(len(self._waiting), own=False)
        if of_merchant >= max(self.most // MERCHANT_SHARE, 1):
            raise TooManyWaiting(of_merchant, own=True)
        self._waiting[one] = None
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll(), name="event-feed")
        try:
            # Not `timeout`, which would drop what is found in the moment in which the time is over, and with it skip events.
            await asyncio.wait((one.found,), timeout=seconds)
            return one.found.result() if one.found.done() else Page((), one.after)
        finally:
            self._waiting.pop(one, None)

    def stop(self) -> None:
        """Answer everybody who waits, and let nobody wait any more: the process ends."""
        self._stopping = True
        for one in self._waiting:
            if not one.found.done():
                one.found.set_result(Page((), one.after))

    async def _poll(self) -> None:
        """Ask for news of all who wait, until nobody does."""
        while self._waiting and not self._stopping:
            cursors: dict[int, int] = {}
            for one in self._waiting:
                cursors[one.merchant_id] = min(one.after, cursors.get(one.merchant_id, one.after))
            self.queries += 1
            try:
                found = await events.since(self._db, cursors, most=MOST_AT_ONCE)
            except Exception as error:  # noqa: BLE001 - those who wait are answered in their time, whatever it was
                _log.warning("events_not_read", **log.cause(error))
                await asyncio.sleep(AWAY)
                continue
            for one in tuple(self._waiting):
                # Who came meanwhile may stand further on, or before what was read: that is for the next round.
                if one.merchant_id in cursors and one.after >= cursors[one.merchant_id]:
                    one.look(found.get(one.merchant_id, []))
            if not any(len(rows) >= MOST_AT_ONCE for rows in found.values()):
                await asyncio.sleep(INTERVAL)

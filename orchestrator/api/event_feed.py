"""Waiting for events: one poller for all long polls of a process.

Cursors are positions in Postgres, so a client may continue at any process of the API.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from orchestrator.api.long_poll import LongPoll, Waiter
from orchestrator.store import events
from orchestrator.store.events import Page

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from uuid import UUID

    from orchestrator.store.database import Database
    from orchestrator.store.events import FeedRow

MOST_AT_ONCE: Final = 500
"""Events of one merchant in one query."""


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

    def unanswered(self) -> Page:
        """Return the page without events."""
        return Page((), self.after)


class EventFeed(LongPoll[Waiting, Page]):
    """The clients of one process that wait for events."""

    name = "event-feed"

    def __init__(self, db: Database, *, most: int) -> None:
        super().__init__(most=most)
        self._db = db

    async def _ask(self, clients: Sequence[Waiting]) -> bool:
        """Ask for the next events of all clients' merchants."""
        cursors: dict[int, int] = {}
        for client in clients:
            cursors[client.merchant_id] = min(client.after, cursors.get(client.merchant_id, client.after))
        found = await events.since(self._db, cursors, most=MOST_AT_ONCE)
        for client in tuple(self._waiting):
            # A client that came meanwhile may stand before what was read: the next query reads that.
            if client.merchant_id in cursors and client.after >= cursors[client.merchant_id]:
                client.offer(found.get(client.merchant_id, []))
        return any(len(rows) >= MOST_AT_ONCE for rows in found.values())

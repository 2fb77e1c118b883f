"""A round-robin semaphore: a few slots, and a queue for each key; the keys are served in turn.

However long the queue of one key is, the first waiter of another waits for one round at the most. No task
waits while a slot is free, and taking one then costs no task switch. For one event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable


class RoundRobinSemaphore:
    """So many `places`; who took one gives it back, or uses it up (then others must be added)."""

    def __init__(self, places: int) -> None:
        self.free = places
        """Slots that any task may take now."""
        # In the order of their turns; a key whose line is served goes behind the others.
        self._lines: dict[Hashable, deque[asyncio.Future[None]]] = {}
        self.waiting = 0
        """How many wait, or have just been given a place."""

    def take_now(self) -> bool:
        if self.free <= 0:
            return False
        self.free -= 1
        return True

    async def take(self, key: Hashable) -> None:
        """Take a slot, as soon as this key is next."""
        if self.take_now():
            return
        place = asyncio.get_running_loop().create_future()
        self._lines.setdefault(key, deque()).append(place)
        self.waiting += 1
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():
                self.give_back()  # it was given at a moment when no task waited any more
            raise
        finally:
            self.waiting -= 1

    def give_back(self) -> None:
        """Pass a slot on to the next key."""
        while self._lines:
            key, line = next(iter(self._lines.items()))
            del self._lines[key]
            while line:
                place = line.popleft()
                if not place.done():
                    if line:
                        self._lines[key] = line
                    place.set_result(None)
                    return
        self.free += 1

    def add(self, places: int) -> None:
        for _ in range(places):
            self.give_back()

    def withdraw_free(self) -> None:
        """Take away what is free; what is taken stays taken."""
        self.free = 0

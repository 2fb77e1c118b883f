"""A round-robin semaphore: a few slots, and a queue for each key; the keys are served in turn.

However long one key's line is, another's first in line waits for one round at the most. Nobody waits while a
place is free, and taking one then costs no task switch. For one event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable


class RoundRobinSemaphore:
    """So many `places`; whoever took one gives it back, or lets it be used up (then somebody else must `add`
    new ones).
    """

    def __init__(self, places: int) -> None:
        self._free = places
        # In the order of their turns; a key whose line is served goes behind the others.
        self._lines: dict[Hashable, deque[asyncio.Future[None]]] = {}
        self.waiting = 0
        """How many wait, or have just been given a place."""

    @property
    def free(self) -> int:
        """Places that anybody may take now."""
        return self._free

    def take_now(self) -> bool:
        """Take a place if one is free."""
        if self._free <= 0:
            return False
        self._free -= 1
        return True

    async def take(self, key: Hashable) -> None:
        """Take a place, as soon as it is this key's turn."""
        if self.take_now():
            return
        place = asyncio.get_running_loop().create_future()
        self._lines.setdefault(key, deque()).append(place)
        self.waiting += 1
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():
                self.give_back()  # it was given in the moment in which nobody wanted it any more
            raise
        finally:
            self.waiting -= 1

    def give_back(self) -> None:
        """Pass a place on to whose turn it is."""
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
        self._free += 1

    def add(self, places: int) -> None:
        """Make more places."""
        for _ in range(places):
            self.give_back()

    def withdraw_free(self) -> None:
        """Take away what is free; what is taken stays taken."""
        self._free = 0

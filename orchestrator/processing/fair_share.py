"""Fair shares: how many checkouts a process has in flight, and which merchants get the slots when there are
too few.

Slots are shared max-min fair: the next slot always goes to the flow that has the fewest. A single flow may
use all slots but a small reserve, which is for flows with next to none, so that a second flow begins at once.
The slots of one gateway are limited by the same rule, so that a slow gateway cannot use all of them.
Arithmetic only.
"""

from __future__ import annotations

import heapq
from collections import Counter
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

K = TypeVar("K")
QueueKind: TypeAlias = Literal["callbacks", "checkouts"]
"""The queue that a hint came by: `callbacks` where a sender waits, `checkouts` for the rest."""
RESERVE: Final = 10
"""The part of all slots (one in so many) that is kept for flows with next to none in flight."""
NEWCOMER: Final = 100
"""The part of all slots (one in so many, at least one slot) that counts as next to none."""


class FlowKey(NamedTuple):
    """The merchant and the queue of work: a merchant's callbacks do not wait behind its own new orders."""

    merchant_id: int
    queue: QueueKind


class SlotDemand(NamedTuple):
    """What a flow could use: so many slots, at this gateway."""

    gateway: str
    number: int


class FairShare:
    """The slots of one process: `places` in all, `each` for one gateway."""

    def __init__(self, *, places: int, each: int) -> None:
        self._places, self._each = places, min(each, places)
        self._held: Counter[FlowKey] = Counter()
        self._at: Counter[str] = Counter()
        self.taken = 0

    @property
    def full(self) -> bool:
        """Whether no flow can get a slot."""
        return self.taken >= self._places

    @property
    def smallest(self) -> int:
        """The smallest limit that applies to any flow."""
        return self._each

    def held(self, flow: FlowKey) -> int:
        return self._held[flow]

    def fits(self, number: int) -> bool:
        """Return whether there are slots for so many checkouts, of any merchant and gateway."""
        return self.taken + number <= _open(self._each)

    def enter(self, flow: FlowKey, gateway: str) -> None:
        self.taken += 1
        self._held[flow] += 1
        self._at[gateway] += 1

    def leave(self, flow: FlowKey, gateway: str) -> None:
        self.taken -= 1
        _less(self._held, flow)
        _less(self._at, gateway)

    def share(
        self, demands: Mapping[FlowKey, SlotDemand], *, most: int, busy: bool = False
    ) -> dict[FlowKey, int]:
        """Return how many slots each flow may take now, at most `most` in all; a flow that gets none is left
        out.

        `busy`: there is enough work for all free slots; only flows with next to none get any.
        """
        given: dict[FlowKey, int] = {}
        taken, at = self.taken, Counter(self._at)
        queue = [(self._held[flow], number, flow) for number, flow in enumerate(demands)]
        heapq.heapify(queue)
        left = most
        while queue and left:
            held, number, flow = heapq.heappop(queue)
            demand = demands[flow]
            if not (
                _admits(self._places, taken, held, busy=busy)
                and _admits(self._each, at[demand.gateway], held, busy=busy)
            ):
                continue  # its limit is reached for the rest of this round
            given[flow] = given.get(flow, 0) + 1
            taken, left = taken + 1, left - 1
            at[demand.gateway] += 1
            if given[flow] < demand.number:
                heapq.heappush(queue, (held + 1, number, flow))
        return given


def _open(bound: int) -> int:
    """Return how many slots of a limit are open to every flow."""
    return bound - (max(bound // RESERVE, 1) if bound > 1 else 0)


def _admits(bound: int, taken: int, held: int, *, busy: bool) -> bool:
    if taken < _open(bound) and not busy:
        return True
    return taken < bound and held < max(bound // NEWCOMER, 1)


def _less(counter: Counter[K], key: K) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]

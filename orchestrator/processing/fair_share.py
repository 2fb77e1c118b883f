"""Fair shares: how many checkouts a process has in flight, and which merchants get the slots when there are
not enough for all.

Places are shared as fairly as they can be (max-min): the next one always goes to the flow that has the
fewest. A flow that is alone may have all of them but a small reserve, which is for flows that have next to
nothing; so whoever comes second begins at once. The places of one gateway are bounded too, by the same rule,
so that a slow one cannot take them all. Arithmetic only.
"""

from __future__ import annotations

import heapq
from collections import Counter
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

K = TypeVar("K")
QueueKind: TypeAlias = Literal["callbacks", "checkouts"]
"""The queue that a hint came by: what somebody waits for with a callback, and everything else."""
RESERVE: Final = 10
"""One place in so many is kept for flows with next to nothing in flight."""
NEWCOMER: Final = 100
"""One place in so many is next to nothing; but one at least."""


class FlowKey(NamedTuple):
    """Whose work it is, and how it came: a merchant's callbacks do not wait behind its own new orders."""

    merchant_id: int
    queue: QueueKind


class SlotDemand(NamedTuple):
    """What a flow could use: so many places, at this gateway."""

    gateway: str
    number: int


class FairShare:
    """The places of one process: `places` in all, `each` for one gateway."""

    def __init__(self, *, places: int, each: int) -> None:
        self._places, self._each = places, min(each, places)
        self._held: Counter[FlowKey] = Counter()
        self._at: Counter[str] = Counter()
        self.taken = 0

    @property
    def full(self) -> bool:
        """Whether nobody can get anything."""
        return self.taken >= self._places

    @property
    def smallest(self) -> int:
        """The tightest bound that a flow may meet."""
        return self._each

    def held(self, flow: FlowKey) -> int:
        """Return how many places a flow has."""
        return self._held[flow]

    def fits(self, number: int) -> bool:
        """Say whether there are slots for so many, of whatever merchant and gateway."""
        return self.taken + number <= _open(self._each)

    def enter(self, flow: FlowKey, gateway: str) -> None:
        """Take a place."""
        self.taken += 1
        self._held[flow] += 1
        self._at[gateway] += 1

    def leave(self, flow: FlowKey, gateway: str) -> None:
        """Give a place back."""
        self.taken -= 1
        _less(self._held, flow)
        _less(self._at, gateway)

    def share(
        self, demands: Mapping[FlowKey, SlotDemand], *, most: int, busy: bool = False
    ) -> dict[FlowKey, int]:
        """Return how many places each flow may take now, at most `most` in all; who gets none is left out.

        `busy`: there is work enough, whatever places are free; only who has next to nothing gets any.
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
                continue  # what is full for it now gets no emptier in this round
            given[flow] = given.get(flow, 0) + 1
            taken, left = taken + 1, left - 1
            at[demand.gateway] += 1
            if given[flow] < demand.number:
                heapq.heappush(queue, (held + 1, number, flow))
        return given


def _open(bound: int) -> int:
    """Return how many places of a bound are for everybody."""
    return bound - (max(bound // RESERVE, 1) if bound > 1 else 0)


def _admits(bound: int, taken: int, held: int, *, busy: bool) -> bool:
    if taken < _open(bound) and not busy:
        return True
    return taken < bound and held < max(bound // NEWCOMER, 1)


def _less(counter: Counter[K], key: K) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]

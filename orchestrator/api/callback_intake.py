"""Callback intake: stores callbacks, publishes hints off the request path, counts and logs them.

A caller waits for a moment only. Neither URL nor body reaches a log, and a flood cannot fill it: a callback
is logged once a minute for each checkout.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from orchestrator import counters, log
from orchestrator.store.batch import Unwritten
from orchestrator.store.database import DatabaseAway, is_away

if TYPE_CHECKING:
    from collections.abc import Coroutine, Hashable
    from uuid import UUID

    from orchestrator.api.dependencies import Services
    from orchestrator.store.inbox import Arrival, MerchantCallback, Stored, StoredCallback

_log = log.get(__name__)

TIMEOUT: Final = 2.5
"""Seconds that a callback waits for Postgres: a shopper gets three, a notification five (D7)."""
MOST_WAITING: Final = 64 * 1024 * 1024
"""Bytes of callbacks that may wait for Postgres; beyond that they are answered as if it were away."""
FIRST_PAUSE: Final = 5.0
LONGEST_PAUSE: Final = 60.0
"""Seconds for which further visits of a shopper to a checkout wake nothing: the pause doubles from the first
to the longest. The status checks continue meanwhile, and a visit makes the next ones quick."""
_FORGOTTEN: Final = 600.0
_MOST_VISITED: Final = 10_000
_LOGGED_AGAIN: Final = 60.0
_MOST_LOGGED: Final = 10_000

T = TypeVar("T")


class _Visited(NamedTuple):
    """When a checkout was last woken for a visit (monotonic seconds), and the pause after that."""

    at: float
    pause: float


class CallbackIntake:
    """Accepts callbacks for one process: stores them, wakes their checkouts, counts them, and keeps the
    number that still waits for Postgres.

    `arrived` and `over_limit` count by (kind, grade): all that came, and those of them that were not kept
    because there are too many of their checkout already. `unproven` counts by (kind, grade, network) those
    that were answered 401.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._waiting = 0
        self._tasks: set[asyncio.Task[object]] = set()
        self._logged_at: dict[Hashable, float] = {}
        self._visited: dict[UUID, _Visited] = {}
        self.arrived: Counter[tuple[str, str]] = Counter()
        self.over_limit: Counter[tuple[str, str]] = Counter()
        self.unproven: Counter[tuple[str, str, str]] = Counter()

    async def accept(self, arrival: Arrival, *, merchant_id: int | None) -> bool:
        """Store a callback of a merchant and publish a hint; False if the result is not known within the
        timeout.

        Anyone with the link can repeat the visit of a shopper's browser (`redirect`), so a visit within the
        pause of this process costs no write.
        """
        checkout = str(arrival.checkout_id)
        self._count(arrival.kind, arrival, checkout=checkout)
        if arrival.kind == "redirect" and self._pauses(arrival.checkout_id):
            return True
        stored = await self._with_timeout(
            self._store(arrival, merchant_id), size=len(arrival.body), kind=arrival.kind, checkout=checkout
        )
        if stored is not None and not stored.kept:
            self._beyond(arrival.kind, arrival.grade, checkout=checkout)
        return stored is not None

    def _pauses(self, checkout: UUID) -> bool:
        """Say whether the last visit that woke this checkout is too young for another; if not, the pause
        begins anew.
        """
        now = time.monotonic()
        last = self._visited.get(checkout)
        pause = FIRST_PAUSE
        if last is not None:
            if now - last.at < last.pause:
                return True
            if now - last.at < _FORGOTTEN:
                pause = min(last.pause * 2, LONGEST_PAUSE)
        if len(self._visited) >= _MOST_VISITED:
            self._visited = {
                checkout_id: seen for checkout_id, seen in self._visited.items() if now - seen.at < seen.pause
            }
        if len(self._visited) < _MOST_VISITED:
            self._visited[checkout] = _Visited(now, pause)
        return False

    async def accept_unmatched(self, callback: MerchantCallback, *, merchant: str) -> StoredCallback | None:
        """Store a callback to a merchant's own address and wake its checkout, if it has one; None where
        `accept` returns False.
        """
        self._count("merchant", callback, merchant=merchant)
        placed = await self._with_timeout(
            self._place(callback), size=len(callback.body), kind="merchant", merchant=merchant
        )
        if placed is None:
            return None
        checkout = None if placed.checkout_id is None else str(placed.checkout_id)
        if not placed.kept:
            where = {"merchant": merchant} if checkout is None else {"checkout": checkout}
            self._beyond("merchant", callback.grade, **where)
        if placed.created:
            _log.warning("checkout_created_from_payment", merchant=merchant, checkout=checkout)
        elif placed.over_limit:
            if self._may_log("unconfirmed_payments_over_limit", merchant):
                _log.warning("unconfirmed_payments_over_limit", merchant=merchant, grade=callback.grade)
        elif checkout is None and self._may_log("unmatched_callback_stored", merchant):
            _log.warning(
                "unmatched_callback_stored", merchant=merchant, grade=callback.grade, network=callback.network
            )
        return placed

    async def _store(self, arrival: Arrival, merchant_id: int | None) -> Stored:
        stored = await self._services.callbacks.store(arrival)
        if stored.wakes:
            self._services.hint_publisher.publish(
                [arrival.checkout_id], queue="callbacks", merchant_id=merchant_id
            )
        return stored

    async def _place(self, callback: MerchantCallback) -> StoredCallback:
        placed = await self._services.unmatched.store(callback)
        if placed.checkout_id is not None and (placed.wakes or placed.created):
            self._services.hint_publisher.publish(
                [placed.checkout_id], queue="callbacks", merchant_id=callback.payment.merchant_id
            )
        return placed

    async def _with_timeout(
        self, storing: Coroutine[None, None, T], *, size: int, kind: str, **named: str
    ) -> T | None:
        """Wait a moment for a write; None if its result is not known by then, or it failed.

        The write continues and may still land.
        """
        if self._waiting + size > MOST_WAITING:
            storing.close()
            if self._may_log("callback_not_stored", *named.values()):
                _log.warning("callback_not_stored", kind=kind, waiting=self._waiting, **named)
            return None

        async def store() -> T | None:
            try:
                return await storing
            except Exception as error:  # noqa: BLE001 - logged, and the shopper is sent on
                expected = isinstance(error, DatabaseAway | Unwritten) or is_away(error)
                _log.warning(
                    "callback_not_stored",
                    kind=kind,
                    **log.cause(error),
                    exc_info=None if expected else error,
                    **named,
                )
                return None
            finally:
                self._waiting -= size

        self._waiting += size
        task = asyncio.create_task(store())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        done, _ = await asyncio.wait({task}, timeout=TIMEOUT)
        if not done:
            _log.warning("callback_waits", kind=kind, **named)
            return None
        return task.result()

    def _count(self, kind: str, came: Arrival | MerchantCallback, **named: str) -> None:
        grade, network = came.grade, came.network
        self.arrived[kind, grade] += 1
        counters.callbacks.add(kind, grade)
        if self._services.callbacks.unproven(grade, network):
            self.unproven[kind, grade, network] += 1
            if self._may_log("callback_unproven", kind, grade, network, *named.values()):
                _log.warning("callback_unproven", kind=kind, grade=grade, network=network, **named)

    def _beyond(self, kind: str, grade: str, **named: str) -> None:
        self.over_limit[kind, grade] += 1
        if self._may_log("callback_over_limit", *named.values()):
            _log.warning("callback_over_limit", kind=kind, grade=grade, **named)

    def _may_log(self, *about: str) -> bool:
        """Return whether this may be logged: not within a minute of the last time."""
        now = time.monotonic()
        if now - self._logged_at.get(about, float("-inf")) < _LOGGED_AGAIN:
            return False
        if len(self._logged_at) >= _MOST_LOGGED:
            self._logged_at = {what: at for what, at in self._logged_at.items() if now - at < _LOGGED_AGAIN}
            if len(self._logged_at) >= _MOST_LOGGED:
                return False
        self._logged_at[about] = now
        return True

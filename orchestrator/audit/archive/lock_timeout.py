"""Waiting without being in the way: a short lock timeout, and another try after a pause that grows."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Final, TypeVar

from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from orchestrator import log
from orchestrator.audit.archive.errors import ArchiveBusy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncConnection

_log = log.get(__name__)
T = TypeVar("T")

LOCK_TIMEOUT: Final = 200
"""Milliseconds. Whoever queues behind a lock that we wait for waits no longer than this."""
_TRIES: Final = 12
_LONGEST_PAUSE: Final = 5.0
_NOT_AVAILABLE: Final = "55P03"
_TIMEOUT = text(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT}")


async def set_lock_timeout(tx: AsyncConnection) -> None:
    """Have no statement of this transaction wait for a lock longer than a moment."""
    await tx.execute(_TIMEOUT)


async def patiently(attempt: Callable[[], Awaitable[T]], *, tries: int = _TRIES, pause: float = 0.1) -> T:
    """Try again after a growing pause while a lock is not available; `ArchiveBusy` when that lasts."""
    for number in range(tries):
        try:
            return await attempt()
        except OperationalError as error:
            if getattr(error.orig, "sqlstate", None) != _NOT_AVAILABLE:
                raise
            _log.info("lock_not_available", tries=number + 1)
            longest = min(pause * 2**number, _LONGEST_PAUSE)
            await asyncio.sleep(random.uniform(longest / 2, longest))  # noqa: S311 - jitter
    raise ArchiveBusy(
        f"a lock was not to be had in {tries} tries: run it again when the database is less busy"
    )

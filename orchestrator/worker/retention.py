"""Erases personal data by itself, where the setting `personal_data_retention_days` says after how long.

Every few minutes it reads on through the checkouts by id, a bounded number, and erases in lists those that
ended long enough ago and of which nothing is left to be done; after the last it begins again. So what cannot
be erased yet is met again. Each worker does this, and several at once are harmless. Without the setting no
checkout is erased.

Callbacks that belong to no checkout are deleted after 30 days, or earlier by the setting. A payment that one
of them reported is a checkout by then, or was refused with 503 and sent again by the gateway.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Final

from orchestrator import audit, log
from orchestrator.store import checkouts
from orchestrator.store.inbox import unmatched

if TYPE_CHECKING:
    from uuid import UUID

    from orchestrator.crypto import Encryptor
    from orchestrator.store.database import Database

_log = log.get(__name__)

EVERY: Final = 300.0
"""Seconds between two rounds."""
STRETCHES: Final = 40
"""Statements of one round that read on through the checkouts."""
BETWEEN: Final = 0.05
"""Seconds between two lists."""
UNMATCHED: Final = 30 * 86_400.0
"""Seconds after which a callback that belongs to no checkout is deleted at the latest: so many of a merchant
are kept, and those of the past must not take the place of those to come."""


class Retention:
    """Erases for one worker; `days` is the setting."""

    def __init__(self, db: Database, encryptor: Encryptor, *, days: float | None) -> None:
        self._db, self._encryptor = db, encryptor
        self._seconds = None if days is None else days * 86_400
        self._after: UUID | None = None

    async def run(self) -> None:
        """Erase until it is cancelled; no error ends it."""
        while True:
            await asyncio.sleep(EVERY * random.uniform(0.5, 1.0))  # noqa: S311 - not all workers at once
            try:
                await self.erase()
            except Exception as error:  # noqa: BLE001 - the next round tries again after any error
                _log.warning("personal_data_not_erased", **log.cause(error))

    async def erase(self) -> int:
        """Do one round; return how many checkouts were erased."""
        number = 0 if self._seconds is None else await self._erase_checkouts(self._seconds)
        kept = UNMATCHED if self._seconds is None else min(self._seconds, UNMATCHED)
        while deleted := await unmatched.forget(self._db, older_than=kept):
            _log.info("callbacks_forgotten", callbacks=deleted)
        if number:
            _log.info("personal_data_erased", checkouts=number)
        return number

    async def _erase_checkouts(self, seconds: float) -> int:
        number = 0
        for _ in range(STRETCHES):
            stretch = await checkouts.ended_before(self._db, seconds=seconds, settled=True, after=self._after)
            for ids in checkouts.erasure_lists(stretch.ids):
                fates = await checkouts.erase(
                    self._db, self._encryptor, ids, actor=audit.SYSTEM, cause="retention"
                )
                number += sum(fate.erased for fate in fates)
                await asyncio.sleep(BETWEEN)
            self._after = stretch.until
            if self._after is None:
                break
        return number

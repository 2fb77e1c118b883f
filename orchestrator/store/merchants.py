"""Merchants in memory: what the processes know of each, read again from the table every few seconds.

The merchant `default` exists from the first migration on, and fields that its row leaves empty come from the
settings. How a row is opened, and which rows are refused: `merchant_accounts`. Rows are read again after ten
seconds, by one reader for all waiting callers, and a row that has not changed is not decrypted again; while
Postgres is away, the rows read before stay in use. `known` reads from memory only.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from orchestrator import log
from orchestrator.crypto import EncryptionError
from orchestrator.store.database import DatabaseAway, is_away
from orchestrator.store.merchant_accounts import COLUMNS, TABLES, Merchant, opened
from orchestrator.store.merchant_fields import GatewayNotAllowed, UnknownMerchant
from orchestrator.store.merchant_writes import MerchantWrites

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Row

    from orchestrator.crypto import Encryptor
    from orchestrator.gateway.client import Account
    from orchestrator.settings import Settings
    from orchestrator.store.database import Database

_log = log.get(__name__)

FRESH: Final = 10.0
"""Seconds after which a change of a merchant is known to every process, while Postgres answers."""
# An unknown merchant may have been added a moment ago, and Postgres may be back a moment
# after it failed.
_MOMENT: Final = 1.0
_WATCHED: Final = 5.0
_STALE: Final = 60.0
_READ = text(f"SELECT {COLUMNS} FROM {TABLES}")  # noqa: S608 - our own words


class Merchants(MerchantWrites):
    """All merchants of the installation, kept in memory for ten seconds."""

    def __init__(self, db: Database, encryptor: Encryptor, settings: Settings) -> None:
        super().__init__(db, encryptor, settings)
        self._by_id: dict[int, Merchant] = {}
        self._by_name: dict[str, Merchant] = {}
        self._rows: dict[int, Row[Any]] = {}
        self._read_at = self._failed_at = float("-inf")
        # Changes made here, and how many of them what was read last contains.
        self._made = self._seen = 0
        self._reading = asyncio.Lock()

    async def get(self, merchant_id: int) -> Merchant:
        """Return the merchant with this id; `UnknownMerchant` if there is none."""
        await self._refresh(missing=merchant_id not in self._by_id)
        try:
            return self._by_id[merchant_id]
        except KeyError:
            raise UnknownMerchant(merchant_id) from None

    async def named(self, name: str) -> Merchant | None:
        await self._refresh(missing=name not in self._by_name)
        return self._by_name.get(name)

    def at_hand(self, name: str) -> Merchant | None:
        """Return the merchant with this name where `named` would make no query either; None otherwise."""
        return self._by_name.get(name) if self._fresh(missing=False) else None

    async def everyone(self) -> list[Merchant]:
        """Return all merchants, by id."""
        await self._refresh(missing=True)
        return sorted(self._by_id.values(), key=lambda merchant: merchant.id)

    async def sharing(self, account: Account) -> list[int]:
        """Return the merchants whose payments a lookup with this account may show."""
        same = (account.merchant_api_url, account.username)
        return [
            merchant.id
            for merchant in await self.everyone()
            if (merchant.account.merchant_api_url, merchant.account.username) == same
        ]

    def known(self, merchant_id: int) -> Merchant | None:
        """Return a merchant from memory, without a query; None if it was last read over a minute ago."""
        if time.monotonic() - self._read_at > _STALE:
            return None
        return self._by_id.get(merchant_id)

    async def watch(self) -> None:
        """Keep what is known young, for those who cannot wait for Postgres; until it is cancelled."""
        while True:
            try:
                await self.everyone()
            except Exception as error:  # noqa: BLE001 - each caller that needs a merchant gets the error, and the watch continues
                _log.warning("merchants_not_watched", **log.cause(error))
            await asyncio.sleep(_WATCHED)

    def _changed(self) -> None:
        # What is known stays known to those who cannot wait; the others read it again.
        self._made += 1

    async def _refresh(self, *, missing: bool) -> None:
        if self._fresh(missing=missing):
            return
        async with self._reading:
            # The first caller has read, or failed, for all that waited.
            if self._fresh(missing=missing):
                return
            if time.monotonic() - self._failed_at < _MOMENT:
                if missing:
                    raise DatabaseAway(
                        "the merchants could not be read a moment ago: Postgres is out of reach"
                    )
                return
            made = self._made
            try:
                rows = await self._db.read(_READ)
            except Exception as error:
                if not is_away(error):
                    raise
                self._failed_at = time.monotonic()
                _log.warning("merchants_not_read", known=len(self._by_id), **log.cause(error))
                # No merchant is reported unknown because Postgres is away.
                if missing:
                    raise
                return
            self._take(rows)
            self._seen = made

    def _fresh(self, *, missing: bool) -> bool:
        return self._seen == self._made and time.monotonic() - self._read_at < (_MOMENT if missing else FRESH)

    def _take(self, rows: Sequence[Row[Any]]) -> None:
        everyone = []
        for row in rows:
            before = self._rows.get(row.id)
            # Where secrets are retired, the time decides on what is known, too.
            if before is not None and row.retired is None and tuple(before)[:-1] == tuple(row)[:-1]:
                everyone.append(self._by_id[row.id])
                continue
            try:
                everyone.append(opened(self._encryptor, row, self._settings))
            except (EncryptionError, GatewayNotAllowed) as error:
                # One merchant whose secrets no key opens must not take the others along.
                _log.error("merchant_unreadable", merchant=row.name, reason=str(error))
        self._by_id = {merchant.id: merchant for merchant in everyone}
        self._by_name = {merchant.name: merchant for merchant in everyone}
        self._rows = {row.id: row for row in rows if row.id in self._by_id}
        self._read_at = time.monotonic()

"""Callbacks to a merchant's own address, which names no checkout: matched with a checkout, or kept.

What a merchant's terminals send by default goes there. It is stored as a callback of the checkout that it
names, by id or by order number; a payment for an order number without an intent gets a checkout of its
own. All others, and callbacks that prove nothing, are kept for the record and cause nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final
from uuid import UUID

from sqlalchemy import text

from orchestrator.store import checkouts
from orchestrator.store.batch import Again, Batch, Batched
from orchestrator.store.columns import json_text, named, picked
from orchestrator.store.inbox.callbacks import FITS, UNPROVEN, Arrival, Received, bounded

if TYPE_CHECKING:
    from orchestrator.crypto import Encryptor
    from orchestrator.store.database import Database
    from orchestrator.store.inbox.callbacks import Callbacks

# Counted as for one checkout, by the merchant. Two processes at once may each keep a batch more.
_KEEP = text(f"""
    WITH a AS MATERIALIZED (
        SELECT * FROM json_to_recordset(CAST(:payments AS json)) AS a(
            id uuid, merchant_id int, kind text, grade text, network text, sender text, body text, digest bytea, times int, unproven boolean)
    ), {bounded("merchant_id", kept="b.checkout_id IS NULL AND b.merchant_id = c.merchant_id", same="id = a.id")}
    INSERT INTO callbacks AS b (id, merchant_id, kind, grade, network, sender, body, digest, times, handled_at)
    SELECT n.id, n.merchant_id, n.kind, n.grade, n.network, decode(n.sender, 'base64'), decode(n.body, 'base64'), n.digest,
           n.times, clock()
      FROM numbered n JOIN room r USING (merchant_id)
     WHERE {FITS}
     ORDER BY n.id
    ON CONFLICT (id) DO UPDATE SET times = b.times + excluded.times, repeated_at = clock()
    RETURNING id
""")  # noqa: S608 - our own names
_RECEIVED: Final = named(Received, "id")
DELETED_AT_ONCE: Final = 1000
_FORGET = text("""
    DELETE FROM callbacks WHERE id = ANY(ARRAY(
        SELECT id FROM callbacks WHERE checkout_id IS NULL AND received_at < clock() - make_interval(secs => :seconds)
         LIMIT :most FOR UPDATE SKIP LOCKED))
    RETURNING id
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class MerchantCallback(Received):
    """A callback to a merchant's own address, and the payment that it reports."""

    payment: checkouts.UnmatchedPayment

    @property
    def kept_as(self) -> UUID:
        """The id of one without a checkout: the same callback to a merchant has the same (RFC 9562, 5.8)."""
        proof = b"" if self.grade not in UNPROVEN else b"unproven"
        digest = hashlib.sha256(b"%d\0%b\0%b" % (self.payment.merchant_id, proof, self.body)).digest()
        return UUID(int=int.from_bytes(digest[:16]) & ~(0xF << 76) & ~(0x3 << 62) | 0x8 << 76 | 0x2 << 62)


@dataclass(frozen=True, slots=True)
class StoredCallback:
    """The checkout that the callback belongs to now, if any; `wakes` and `kept` as for any callback.
    `over_limit`: it reports a payment, and too many of those wait for a lookup that confirms them.
    """

    checkout_id: UUID | None
    created: bool = False
    wakes: bool = False
    kept: bool = False
    over_limit: bool = False


class UnmatchedCallbacks(Batched):
    """Finds or makes the checkouts of callbacks that name none in their address, and hands them on."""

    def __init__(
        self,
        db: Database,
        encryptor: Encryptor,
        callbacks: Callbacks,
        *,
        grace: float,
        batch_limit: int = 500,
        timeout: float = 30.0,
    ) -> None:
        self._db, self._encryptor, self._callbacks, self._grace = db, encryptor, callbacks, grace
        self._batch: Batch[MerchantCallback, StoredCallback] = Batch(
            self._write,
            keys=lambda callback: (callback.id,),
            limit=batch_limit,
            timeout=timeout,
            name="unmatched",
        )

    async def store(self, callback: MerchantCallback) -> StoredCallback:
        """Store the callback with its checkout and wake that; `DatabaseAway` after the timeout."""
        placed = await self._batch.put(callback)
        if placed.checkout_id is None:
            return placed
        stored = await self._callbacks.store(
            Arrival(checkout_id=placed.checkout_id, **picked(callback, _RECEIVED))
        )
        return replace(placed, wakes=stored.wakes, kept=stored.kept)

    async def _write(self, batch: list[MerchantCallback]) -> list[StoredCallback | Again]:
        believed = [callback for callback in batch if not self._unproven(callback)]
        matches: dict[UUID, checkouts.PaymentMatch | None] = {}
        async with self._db.transaction() as tx:
            if believed:
                payments = [callback.payment for callback in believed]
                found = await checkouts.create_from_payment(tx, self._encryptor, payments, grace=self._grace)
                matches = {callback.id: matched for callback, matched in zip(believed, found, strict=True)}
            unmatched = [callback for callback in batch if matches.get(callback.id) is None]
            kept = {row.id for row in await tx.execute(_KEEP, self._parameters(unmatched))}
        return [
            StoredCallback(
                None,
                kept=callback.kept_as in kept,
                over_limit=callback.payment.complete and not self._unproven(callback),
            )
            if (matched := matches.get(callback.id)) is None
            else StoredCallback(matched.id, matched.created)
            for callback in batch
        ]

    def _unproven(self, callback: MerchantCallback) -> bool:
        return self._callbacks.unproven(callback.grade, callback.network)

    def _parameters(self, unmatched: list[MerchantCallback]) -> dict[str, object]:
        same: dict[UUID, list[MerchantCallback]] = {}
        for callback in unmatched:
            same.setdefault(callback.kept_as, []).append(callback)
        rows = [
            {
                # There is no checkout with a data key to encrypt it under, so its own id is used.
                **self._callbacks.row(first, kept_as, None, len(repeats) + 1),
                "id": kept_as,
                "merchant_id": first.payment.merchant_id,
            }
            for kept_as, (first, *repeats) in same.items()
        ]
        return {"payments": json_text(rows), **self._callbacks.bounds}


async def forget(db: Database, *, older_than: float) -> int:
    """Delete some callbacks without a checkout that came so many seconds ago or more; return how many."""
    return len(await db.write(_FORGET, {"seconds": older_than, "most": DELETED_AT_ONCE}))

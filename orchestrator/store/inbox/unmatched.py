"""Callbacks that came to a merchant's own address and name no checkout in it: matched with a checkout, or
kept.

What a merchant's terminals send by default goes there. It is stored as a callback of the checkout that it
names, by checkout id or by order number; a payment for an order number without an intent gets a checkout of
its own (`checkouts.create_from_payment`). All others, and callbacks that prove nothing, are kept for the
record without a checkout, and cause nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from uuid import UUID

from sqlalchemy import text

from orchestrator.store import checkouts
from orchestrator.store.batch import Again, Batch, Batched
from orchestrator.store.columns import json_text
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
_NOW = text("SELECT clock() AS now")
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
        """The id under which it is kept without a checkout: the same callback to the same merchant has the
        same (RFC 9562, 5.8).
        """
        proof = b"" if self.grade not in UNPROVEN else b"unproven"
        digest = hashlib.sha256(b"%d\0%b\0%b" % (self.payment.merchant_id, proof, self.body)).digest()
        return UUID(int=int.from_bytes(digest[:16]) & ~(0xF << 76) & ~(0x3 << 62) | 0x8 << 76 | 0x2 << 62)


@dataclass(frozen=True, slots=True)
class StoredCallback:
    """The result: the checkout that the callback belongs to now, if any; `wakes` and `kept` as for any
    callback.

    `over_limit`: it reports a payment, and too many of those wait for a lookup that confirms them.
    """

    checkout_id: UUID | None
    created: bool
    wakes: bool
    kept: bool
    over_limit: bool = False


@dataclass(frozen=True, slots=True)
class _Fate:
    matched: checkouts.PaymentMatch | None
    kept: bool


class UnmatchedCallbacks(Batched):
    """Finds, or makes, the checkouts of callbacks that name none in their address, and hands them on to
    `callbacks`.
    """

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
        self._batch: Batch[MerchantCallback, _Fate] = Batch(
            self._write,
            keys=lambda callback: (callback.id,),
            limit=batch_limit,
            timeout=timeout,
            name="unmatched",
        )

    async def store(self, callback: MerchantCallback) -> StoredCallback:
        """Store the callback with its checkout and wake that; `DatabaseAway` if Postgres does not answer
        within the timeout.
        """
        fate = await self._batch.put(callback)
        if fate.matched is None:
            over_limit = callback.payment.complete and not self._unproven(callback)
            return StoredCallback(None, created=False, wakes=False, kept=fate.kept, over_limit=over_limit)
        stored = await self._callbacks.store(
            Arrival(
                checkout_id=fate.matched.id,
                kind="notification",
                grade=callback.grade,
                network=callback.network,
                content_type=callback.content_type,
                headers=callback.headers,
                source=callback.source,
                body=callback.body,
            )
        )
        return StoredCallback(fate.matched.id, fate.matched.created, stored.wakes, stored.kept)

    async def _write(self, batch: list[MerchantCallback]) -> list[_Fate | Again]:
        believed = [callback for callback in batch if not self._unproven(callback)]
        matches: dict[UUID, checkouts.PaymentMatch | None] = {}
        async with self._db.transaction() as tx:
            if believed:
                at = (await tx.execute(_NOW)).scalar_one()
                found = await checkouts.create_from_payment(
                    tx, self._encryptor, [callback.payment for callback in believed], at=at, grace=self._grace
                )
                matches = {callback.id: matched for callback, matched in zip(believed, found, strict=True)}
            unmatched = [callback for callback in batch if matches.get(callback.id) is None]
            kept = {row.id for row in await tx.execute(_KEEP, self._parameters(unmatched))}
        return [_Fate(matches.get(callback.id), callback.kept_as in kept) for callback in batch]

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
    """Delete some callbacks that belong to no checkout and came more than so many seconds ago; return how
    many.
    """
    return len(await db.write(_FORGET, {"seconds": older_than, "most": DELETED_AT_ONCE}))

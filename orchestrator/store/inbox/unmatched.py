"""Callbacks that came to a merchant's own address and name no checkout in it: whose they are, and what is
kept of the others.

What a merchant's terminals send by default goes there. It is stored as a callback of the checkout that it
names, by our id or by its order number; a payment for an order number that nobody asked for gets a checkout
of its own (`checkouts.create_from_payment`). The rest, and whatever proves nothing, is kept for the record
without a checkout, and nothing comes of it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy import text

from orchestrator.domain.ids import uuid7
from orchestrator.store import checkouts
from orchestrator.store.batch import Again, Batch, Writes
from orchestrator.store.columns import json_text
from orchestrator.store.inbox.callbacks import UNPROVEN, Arrival, encrypt_body

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.crypto import Encryptor
    from orchestrator.store.database import Database
    from orchestrator.store.inbox.callbacks import Callbacks

# Counted as for one checkout, by the merchant: how much can be read is bounded by what may be kept. Two
# processes at once may each keep a batch more.
_KEEP = text("""
    WITH a AS MATERIALIZED (
        SELECT * FROM json_to_recordset(CAST(:payments AS json)) AS a(
            id uuid, merchant_id int, grade text, network text, content_type text, headers jsonb, source text, body text,
            digest bytea, times int, unproven boolean)
    ),
    room AS MATERIALIZED (
        SELECT m.merchant_id,
               (SELECT count(*) FROM (SELECT FROM callbacks b WHERE b.checkout_id IS NULL AND b.merchant_id = m.merchant_id
                 LIMIT :most) AS found) AS kept,
               (SELECT count(*) FROM (SELECT FROM callbacks b WHERE b.checkout_id IS NULL AND b.merchant_id = m.merchant_id
                   AND (b.grade = ANY(CAST(:worthless AS text[])) OR (:strict AND b.network = 'outside'))
                 LIMIT :most_unproven) AS found) AS kept_unproven
          FROM (SELECT DISTINCT merchant_id FROM a) AS m
    ),
    numbered AS (
        SELECT a.*, b.id IS NOT NULL AS again,
               row_number() OVER (PARTITION BY a.merchant_id, b.id IS NULL ORDER BY a.unproven, a.id) AS place,
               row_number() OVER (PARTITION BY a.merchant_id, b.id IS NULL, a.unproven ORDER BY a.id) AS place_of_its_kind
          FROM a LEFT JOIN LATERAL (SELECT id FROM callbacks WHERE id = a.id LIMIT 1) b ON true
    )
    INSERT INTO callbacks AS b (id, merchant_id, kind, grade, network, content_type, headers, source, body, digest, times,
                                handled_at)
    SELECT n.id, n.merchant_id, 'notification', n.grade, n.network, n.content_type, n.headers, n.source,
           decode(n.body, 'hex'), n.digest, n.times, clock()
      FROM numbered n JOIN room r USING (merchant_id)
     WHERE n.again OR (r.kept + n.place <= :most
                       AND (NOT n.unproven OR r.kept_unproven + n.place_of_its_kind <= :most_unproven))
     ORDER BY n.id
    ON CONFLICT (id) DO UPDATE SET times = b.times + excluded.times, repeated_at = clock()
    RETURNING id
""")
_NOW = text("SELECT clock() AS now")


@dataclass(frozen=True, slots=True, kw_only=True)
class MerchantCallback:
    """A callback to a merchant's own address: how it came, and what it says of a payment (`told`)."""

    told: checkouts.UnmatchedPayment
    grade: str
    network: str
    content_type: str
    headers: Mapping[str, str]
    source: str | None
    body: bytes
    id: UUID = field(default_factory=uuid7)

    @property
    def kept_as(self) -> UUID:
        """The id under which it is kept without a checkout: the same callback to the same merchant has the
        same (RFC 9562, 5.8).
        """
        proof = b"" if self.grade not in UNPROVEN else b"unproven"
        digest = hashlib.sha256(b"%d\0%b\0%b" % (self.told.merchant_id, proof, self.body)).digest()
        return UUID(int=int.from_bytes(digest[:16]) & ~(0xF << 76) & ~(0x3 << 62) | 0x8 << 76 | 0x2 << 62)


@dataclass(frozen=True, slots=True)
class StoredCallback:
    """What became of it: the checkout whose callback it is now, if there is one; `wakes` and `kept` as for
    any callback.

    `over_limit`: it tells of a payment, and too many of those wait for a lookup that confirms them.
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


class UnmatchedCallbacks:
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
            self._write, keys=lambda one: (one.id,), limit=batch_limit, timeout=timeout, name="unmatched"
        )

    async def store(self, one: MerchantCallback) -> StoredCallback:
        """Store it where it belongs and wake the checkout; `DatabaseAway` if Postgres does not answer within
        the patience.
        """
        fate = await self._batch.put(one)
        if fate.matched is None:
            over_limit = one.told.complete and not self._unproven(one)
            return StoredCallback(None, created=False, wakes=False, kept=fate.kept, over_limit=over_limit)
        stored = await self._callbacks.store(
            Arrival(
                checkout_id=fate.matched.id,
                kind="notification",
                grade=one.grade,
                network=one.network,
                content_type=one.content_type,
                headers=one.headers,
                source=one.source,
                body=one.body,
            )
        )
        return StoredCallback(fate.matched.id, fate.matched.created, stored.wakes, stored.kept)

    @property
    def writes(self) -> Writes:
        """How writing fares, for health."""
        return self._batch.writes

    async def close(self) -> None:
        """Write what has gathered, then stop."""
        await self._batch.close()

    async def _write(self, batch: list[MerchantCallback]) -> list[_Fate | Again]:
        believed = [one for one in batch if not self._unproven(one)]
        matches: dict[UUID, checkouts.PaymentMatch | None] = {}
        async with self._db.transaction() as tx:
            if believed:
                at = (await tx.execute(_NOW)).scalar_one()
                found = await checkouts.create_from_payment(
                    tx, self._encryptor, [one.told for one in believed], at=at, grace=self._grace
                )
                matches = {one.id: matched for one, matched in zip(believed, found, strict=True)}
            unmatched = [one for one in batch if matches.get(one.id) is None]
            kept = {row.id for row in await tx.execute(_KEEP, self._parameters(unmatched))}
        return [_Fate(matches.get(one.id), one.kept_as in kept) for one in batch]

    def _unproven(self, one: MerchantCallback) -> bool:
        return self._callbacks.unproven(one.grade, one.network)

    def _parameters(self, unmatched: list[MerchantCallback]) -> dict[str, object]:
        rows: dict[UUID, dict[str, object]] = {}
        times: dict[UUID, int] = {}
        for one in unmatched:
            known_as = one.kept_as
            times[known_as] = times.get(known_as, 0) + 1
            if known_as in rows:
                continue
            rows[known_as] = {
                "id": known_as,
                "merchant_id": one.told.merchant_id,
                "grade": one.grade,
                "network": one.network,
                "content_type": one.content_type,
                "headers": dict(one.headers),
                "source": one.source,
                # There is no checkout whose data key it could be sealed under, so its own id stands for one.
                "body": encrypt_body(self._encryptor, known_as, None, one.body).hex(),
                "digest": "\\x" + hashlib.sha256(b"notification\0" + one.body).hexdigest(),
                "unproven": self._unproven(one),
            }
        kept = [{**row, "times": times[known_as]} for known_as, row in rows.items()]
        return {"payments": json_text(kept), **self._callbacks.bounds}

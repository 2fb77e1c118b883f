"""Intents: an order number becomes a checkout once, however often and by however many it is sent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec
from sqlalchemy import text

from orchestrator import lifecycle
from orchestrator.db import AGAIN, Again, Batch, Database
from orchestrator.inbox.errors import IntakeError, KeyReused, OrderTaken
from orchestrator.models import uuid7

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import Row
    from sqlalchemy.ext.asyncio import AsyncConnection

    from orchestrator.vault import Vault


@dataclass(frozen=True, slots=True, kw_only=True)
class Intake:
    """A validated intent on its way in. `document` is what is stored (sealed), `fingerprint` what makes it the same again.

    `auto_capture`: the gateway is asked to capture by itself.
    """

    merchant_id: int
    order_ref: str
    currency: str
    amount: int
    expires_in: float
    document: bytes
    fingerprint: bytes
    actor: str
    correlation_id: str
    auto_capture: bool = False
    idempotency_key: str | None = None
    id: UUID = field(default_factory=uuid7)


@dataclass(frozen=True, slots=True)
class Accepted:
    """The checkout of an intent: created by it (`fresh`) or met by it."""

    id: UUID
    order_ref: str
    state: str
    fresh: bool
    created_at: datetime
    deadline: datetime


# What a request meets: the checkout that its key was answered with before, else the live one of its order number, else the last
# closed one.
_MEET = text("""
    SELECT i.id AS asked, c.id, c.state, c.created_at, c.deadline, f.fingerprint, k.fingerprint AS key_print,
           clock() AS now
      FROM json_to_recordset(CAST(:asked AS json)) AS i(id uuid, merchant_id int, order_ref text, key text)
      LEFT JOIN idempotency_keys k ON k.merchant_id = i.merchant_id AND k.key = i.key
      LEFT JOIN LATERAL (
            (SELECT id, state, created_at, deadline FROM checkouts WHERE id = k.checkout_id)
            UNION ALL
            (SELECT id, state, created_at, deadline FROM checkouts
              WHERE merchant_id = i.merchant_id AND order_ref = i.order_ref
                AND state NOT IN ('cancelled', 'expired', 'failed') AND NOT late LIMIT 1)
            UNION ALL
            (SELECT id, state, created_at, deadline FROM checkouts
              WHERE merchant_id = i.merchant_id AND order_ref = i.order_ref
                AND NOT (state NOT IN ('cancelled', 'expired', 'failed') AND NOT late) ORDER BY id DESC LIMIT 1)
            LIMIT 1) c ON true
      LEFT JOIN intents f ON f.checkout_id = c.id
""")
_FREE_KEYS = text("DELETE FROM idempotency_keys WHERE checkout_id = ANY(CAST(:unborn AS uuid[]))")
_KEEP_KEYS = text("""
    INSERT INTO idempotency_keys (merchant_id, key, fingerprint, checkout_id)
    SELECT merchant_id, key, decode(print, 'hex'), checkout_id
      FROM json_to_recordset(CAST(:keys AS json)) AS k(merchant_id int, key text, print text, checkout_id uuid)
     ORDER BY merchant_id, key
    ON CONFLICT (merchant_id, key) DO NOTHING
""")
_CLOSED: Final = frozenset({"cancelled", "expired", "failed"})


class Intents:
    """Takes intents from everything in flight in this process and stores them together."""

    def __init__(
        self, db: Database, vault: Vault, *, grace: float, batch_limit: int = 500, patience: float = 10.0
    ) -> None:
        self._db, self._vault, self._grace = db, vault, grace
        self._batch: Batch[Intake, Accepted | IntakeError] = Batch(
            self._write, key=lambda asked: asked.id, limit=batch_limit, patience=patience, name="intents",
        )  # fmt: skip

    async def accept(self, asked: Intake) -> Accepted:
        """Store an intent; return its checkout, whether new or met.

        Raises `OrderTaken` or `KeyReused` for other content, `db.Unwritten` if Postgres refuses the row, `db.DatabaseAway`
        if it is not known whether it was stored: the same request may be sent again.
        """
        fate = await self._batch.put(asked)
        if isinstance(fate, IntakeError):
            raise fate
        return fate

    async def close(self) -> None:
        """Write what has gathered, then stop."""
        await self._batch.close()

    async def _write(self, batch: list[Intake]) -> list[Accepted | IntakeError | Again]:
        fates: dict[UUID, Accepted | IntakeError] = {}
        async with self._db.transaction() as tx:
            met = await _meet(tx, batch)
            fates.update(_fates(batch, met))
            new = _firsts(asked for asked in batch if asked.id not in fates)
            if new:
                now = next(iter(met.values())).now
                births = [_birth(asked, self._vault) for asked in new]
                born = await lifecycle.create(tx, self._vault, births, at=now, grace=self._grace)
                fates.update(
                    (
                        one.id,
                        Accepted(
                            one.id,
                            one.order_ref,
                            "received",
                            fresh=True,
                            created_at=born[one.id].created_at,
                            deadline=born[one.id].deadline,
                        ),
                    )
                    for one in new
                    if one.id in born
                )
                unborn = [asked.id for asked in new if asked.id not in born]
                if unborn:
                    await tx.execute(_FREE_KEYS, {"unborn": unborn})
                later = [asked for asked in batch if asked.id not in fates]
                if later:
                    # Somebody was first, in this batch or between our two looks: a younger snapshot shows them.
                    taken = {(asked.merchant_id, asked.idempotency_key) for asked in new}
                    fated = _fates(later, await _meet(tx, later))
                    # A key that would only be noted now, behind an order number that we hold, is noted by the next batch: the other
                    # way round, two processes would wait in a circle.
                    fates.update(
                        (asked.id, fated[asked.id])
                        for asked in later
                        if asked.id in fated
                        and (
                            asked.idempotency_key is None
                            or (asked.merchant_id, asked.idempotency_key) in taken
                        )
                    )
            await _keep_keys(tx, batch, fates)
        return [fates.get(asked.id, AGAIN) for asked in batch]


def _firsts(asked: Iterable[Intake]) -> list[Intake]:
    """Leave out what repeats an order number or a key of the same batch: it meets the first one once that is born."""
    orders: set[tuple[int, str]] = set()
    keys: set[tuple[int, str]] = set()
    firsts = []
    for one in asked:
        order, key = (one.merchant_id, one.order_ref), (one.merchant_id, one.idempotency_key or "")
        if order in orders or (one.idempotency_key is not None and key in keys):
            continue
        orders.add(order)
        keys.add(key)
        firsts.append(one)
    return firsts


async def _meet(tx: AsyncConnection, batch: Sequence[Intake]) -> dict[UUID, Row[Any]]:
    asked = [{"id": one.id, "merchant_id": one.merchant_id, "order_ref": one.order_ref, "key": one.idempotency_key}
             for one in batch]  # fmt: skip
    return {row.asked: row for row in await tx.execute(_MEET, {"asked": _json(asked)})}


def _fates(batch: Sequence[Intake], met: Mapping[UUID, Row[Any]]) -> dict[UUID, Accepted | IntakeError]:
    """Decide for those that meet a checkout or a used key; whoever meets nothing is left out."""
    fates: dict[UUID, Accepted | IntakeError] = {}
    for asked in batch:
        row = met[asked.id]
        if row.key_print is not None and bytes(row.key_print) != asked.fingerprint:
            fates[asked.id] = KeyReused(asked.idempotency_key or "")
        elif row.id is None:
            continue
        elif bytes(row.fingerprint) == asked.fingerprint:
            fates[asked.id] = Accepted(
                row.id, asked.order_ref, row.state, row.id == asked.id, row.created_at, row.deadline
            )
        elif row.state not in _CLOSED:
            fates[asked.id] = OrderTaken(asked.order_ref, row.id)
    return fates


async def _keep_keys(
    tx: AsyncConnection, batch: Sequence[Intake], fates: Mapping[UUID, Accepted | IntakeError]
) -> None:
    """Note the keys of requests that met their checkout, so that the key refuses other content from now on."""
    keys = [
        {
            "merchant_id": asked.merchant_id,
            "key": asked.idempotency_key,
            "print": asked.fingerprint.hex(),
            "checkout_id": fate.id,
        }
        for asked in batch
        if asked.idempotency_key is not None
        and isinstance(fate := fates.get(asked.id), Accepted)
        and fate.id != asked.id
    ]
    if keys:
        await tx.execute(_KEEP_KEYS, {"keys": _json(keys)})


def _birth(asked: Intake, vault: Vault) -> lifecycle.Birth:
    key, wrapped = vault.new_data_key(asked.id)
    return lifecycle.Birth(
        id=asked.id,
        merchant_id=asked.merchant_id,
        order_ref=asked.order_ref,
        currency=asked.currency,
        amount=asked.amount,
        expires_in=asked.expires_in,
        correlation_id=asked.correlation_id,
        actor=asked.actor,
        fingerprint=asked.fingerprint,
        proof=key.mac(asked.fingerprint),
        body=key.seal(asked.document, purpose="intent"),
        data_key=wrapped,
        auto_capture=asked.auto_capture,
        idempotency_key=asked.idempotency_key,
        idempotency_print=asked.fingerprint if asked.idempotency_key is not None else b"",
    )


def _json(rows: Sequence[Mapping[str, object]]) -> str:
    return msgspec.json.encode(rows).decode()

"""Intents: an order number becomes a checkout once, however often and by however many it is sent."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, assert_never

from sqlalchemy import text

from orchestrator.domain.states import CLOSED
from orchestrator.store import checkouts
from orchestrator.store.batch import AGAIN, Again, Batch, Batched
from orchestrator.store.checkouts import NO_INTENT_PRINT
from orchestrator.store.columns import by_order, json_text, picked
from orchestrator.store.database import Database, run
from orchestrator.store.inbox.errors import IntakeError, KeyReused, OrderTaken, PaidBefore

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import Row
    from sqlalchemy.ext.asyncio import AsyncConnection

    from orchestrator.crypto import Encryptor
    from orchestrator.errors import OrchestratorError
    from orchestrator.store.checkouts import Intake


@dataclass(frozen=True, slots=True)
class Accepted:
    """The checkout of an intent: created by it (`fresh`), or already there."""

    id: UUID
    order_ref: str
    state: str
    deadline: datetime
    fresh: bool


# What a request meets: the checkout of an earlier request with its key, else that of its order number. Each
# key is looked up by itself: joined as a table, a planner that expects a hundred requests reads all keys.
_MEET = text(f"""
    SELECT i.id AS asked, c.id, c.state, c.deadline, f.fingerprint, k.fingerprint AS key_print,
           clock() AS now
      FROM json_to_recordset(CAST(:asked AS json)) AS i(id uuid, merchant_id int, order_ref text, idempotency_key text)
      LEFT JOIN LATERAL (
            SELECT checkout_id, fingerprint FROM idempotency_keys WHERE merchant_id = i.merchant_id AND key = i.idempotency_key LIMIT 1) k ON true
      LEFT JOIN LATERAL (
            (SELECT id, state, deadline FROM checkouts WHERE id = k.checkout_id)
            UNION ALL {by_order("id, state, deadline", "i")}
            LIMIT 1) c ON true
      LEFT JOIN intents f ON f.checkout_id = c.id
""")  # noqa: S608 - made of our own names
_FREE_KEYS = text("DELETE FROM idempotency_keys WHERE checkout_id = ANY(CAST(:not_created AS uuid[]))")
_KEEP_KEYS = text("""
    INSERT INTO idempotency_keys (merchant_id, key, fingerprint, checkout_id)
    SELECT merchant_id, key, decode(print, 'base64'), checkout_id
      FROM json_to_recordset(CAST(:keys AS json)) AS k(merchant_id int, key text, print text, checkout_id uuid)
     ORDER BY merchant_id, key
    ON CONFLICT (merchant_id, key) DO NOTHING
    RETURNING merchant_id, key
""")


class Intents(Batched):
    """Takes intents from everything in flight in this process and stores them together."""

    def __init__(
        self,
        db: Database,
        encryptor: Encryptor,
        *,
        grace: float,
        batch_limit: int = 500,
        timeout: float = 10.0,
    ) -> None:
        self._db, self._encryptor, self._grace = db, encryptor, grace
        self._batch: Batch[Intake, Accepted] = Batch(
            self._write,
            keys=lambda _: (),  # each has an id of its own
            limit=batch_limit,
            timeout=timeout,
            name="intents",
        )

    async def accept(self, asked: Intake) -> Accepted:
        """Store an intent; return its checkout, whether new or met.

        Raises `OrderTaken` or `KeyReused` for other content, `Unwritten` if Postgres refuses the row,
        `DatabaseAway` if it is not known whether it was stored: the same request may be sent again.
        """
        return await self._batch.put(asked)

    async def accept_all(self, asked: Sequence[Intake]) -> list[Accepted | OrchestratorError]:
        """Store a list of intents; return for each its checkout, or the error that `accept` would raise."""
        return await self._batch.put_all(asked)

    async def _write(self, batch: list[Intake]) -> list[Accepted | IntakeError | Again]:
        async with self._db.transaction() as tx:
            fates, unnoted = await self._settle(tx, batch)
        # In a transaction that holds no order number: else two processes, each with a number that the other
        # waits for, would deadlock.
        noted = await _keep_keys(self._db, unnoted) if unnoted else set()
        for asked, _ in unnoted:
            if asked.id not in noted:
                del fates[asked.id]  # another transaction took the key: the next batch meets its checkout
        return [fates.get(asked.id, AGAIN) for asked in batch]

    async def _settle(
        self, tx: AsyncConnection, batch: list[Intake]
    ) -> tuple[dict[UUID, Accepted | IntakeError], list[tuple[Intake, UUID]]]:
        """Create what is new; return the fates, and the intents whose key their met checkout lacks."""
        met = await _meet(tx, batch)
        fates = _fates(batch, met)
        matching = [asked for asked in batch if asked.id not in fates and _met_payment(met[asked.id])]
        waiting = await self._match(matching, met, fates) if matching else frozenset()
        new = _firsts(asked for asked in batch if asked.id not in fates and asked.id not in waiting)
        if new:
            now = next(iter(met.values())).now
            created = await checkouts.create(tx, self._encryptor, new, at=now, grace=self._grace)
            not_created = []
            for asked in new:
                if (deadline := created.get(asked.id)) is None:
                    not_created.append(asked.id)
                else:
                    fates[asked.id] = Accepted(asked.id, asked.order_ref, "received", deadline, fresh=True)
            if not_created:
                await run(tx, _FREE_KEYS, {"not_created": not_created})
            later = [asked for asked in batch if asked.id not in fates and asked.id not in waiting]
            if later:
                # Another request was first, in this batch or between our two reads: a new snapshot shows it.
                younger = await _meet(tx, later)
                met.update(younger)
                fates.update(_fates(later, younger))
        unnoted = [
            (asked, fate.id)
            for asked in batch
            if asked.idempotency_key is not None
            and isinstance(fate := fates.get(asked.id), Accepted)
            and fate.id != asked.id
            and met[asked.id].key_print is None
        ]
        return fates, unnoted

    async def _match(
        self,
        matching: Sequence[Intake],
        met: Mapping[UUID, Row[Any]],
        fates: dict[UUID, Accepted | IntakeError],
    ) -> frozenset[UUID]:
        """Decide for intents that came after their payment; return those for which it is too early.

        An intent that is neither decided nor waiting is an order like any other. Of several for one checkout
        the first is decided; the others meet the result.
        """
        waiting: set[UUID] = set()
        seen: set[UUID] = set()
        for asked in matching:
            checkout = met[asked.id].id
            if checkout in seen:
                waiting.add(asked.id)
                continue
            seen.add(checkout)
            found = await checkouts.match(self._db, self._encryptor, checkout, asked)
            match found:
                case checkouts.Matched(state, deadline):
                    fates[asked.id] = Accepted(checkout, asked.order_ref, state, deadline, fresh=False)
                case checkouts.Unsuited(payment, undecided):
                    fates[asked.id] = PaidBefore(asked.order_ref, checkout, payment, undecided=undecided)
                case checkouts.Undecided(wait) if _age(asked) < wait:
                    waiting.add(asked.id)
                case checkouts.Undecided():
                    pass
                case _:
                    assert_never(found)
        return frozenset(waiting)


def _met_payment(row: Row[Any]) -> bool:
    """Say whether a request meets the checkout of a payment that came before any intent."""
    return row.id is not None and bytes(row.fingerprint) == NO_INTENT_PRINT


def _age(asked: Intake) -> float:
    """Return the seconds since a request came in; its id was made then (UUIDv7)."""
    return time.time() - (asked.id.int >> 80) / 1000


def _firsts(asked: Iterable[Intake]) -> list[Intake]:
    """Leave out repeats of an order number or a key: they meet the first once that is created."""
    taken: set[tuple[int, str, str]] = set()
    firsts = []
    for intake in asked:
        names = {(intake.merchant_id, "order", intake.order_ref)}
        if intake.idempotency_key is not None:
            names.add((intake.merchant_id, "key", intake.idempotency_key))
        if taken.isdisjoint(names):
            taken |= names
            firsts.append(intake)
    return firsts


async def _meet(tx: AsyncConnection, batch: Sequence[Intake]) -> dict[UUID, Row[Any]]:
    asked = [picked(intake, ("id", "merchant_id", "order_ref", "idempotency_key")) for intake in batch]
    return {row.asked: row for row in await run(tx, _MEET, {"asked": json_text(asked)})}


def _fates(batch: Sequence[Intake], met: Mapping[UUID, Row[Any]]) -> dict[UUID, Accepted | IntakeError]:
    """Decide for intents that meet a checkout or a used key; the others are left out."""
    fates: dict[UUID, Accepted | IntakeError] = {}
    for asked in batch:
        row = met[asked.id]
        if row.key_print is not None and bytes(row.key_print) != asked.fingerprint:
            fates[asked.id] = KeyReused(asked.idempotency_key or "")
        elif row.id is None or _met_payment(row):
            continue
        elif bytes(row.fingerprint) == asked.fingerprint:
            fates[asked.id] = Accepted(
                row.id, asked.order_ref, row.state, row.deadline, fresh=row.id == asked.id
            )
        elif row.state not in CLOSED:
            fates[asked.id] = OrderTaken(asked.order_ref, row.id)
    return fates


async def _keep_keys(db: Database, unnoted: Sequence[tuple[Intake, UUID]]) -> set[UUID]:
    """Note keys of requests that met their checkout, to refuse other content; return whose were free."""
    firsts: dict[tuple[int, str], tuple[Intake, UUID]] = {}
    for asked, checkout in unnoted:
        firsts.setdefault(_key_of(asked), (asked, checkout))
    keys = [
        {"merchant_id": merchant, "key": key, "print": asked.fingerprint, "checkout_id": checkout}
        for (merchant, key), (asked, checkout) in firsts.items()
    ]
    free = {(row.merchant_id, row.key) for row in await db.write(_KEEP_KEYS, {"keys": json_text(keys)})}
    return {
        asked.id
        for asked, _ in unnoted
        if (name := _key_of(asked)) in free and asked.fingerprint == firsts[name][0].fingerprint
    }


def _key_of(asked: Intake) -> tuple[int, str]:
    return asked.merchant_id, asked.idempotency_key or ""

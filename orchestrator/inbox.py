"""What comes in from outside: intents, callbacks, commands. Stored, answered, rung; decided elsewhere.

Each kind goes in as a list in one transaction. An intent becomes a checkout once, however often it is sent. A callback is stored
raw before anybody reads it; a repeat rings again unless the first was acted on. A command is a row with who asked and which
version they saw. Nothing here moves a checkout and nothing here talks to the gateway.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
from sqlalchemy import text

from orchestrator import lifecycle
from orchestrator.db import AGAIN, Again, Batch, Database
from orchestrator.errors import OrchestratorError
from orchestrator.models import uuid7
from orchestrator.vault import VaultError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import Row
    from sqlalchemy.ext.asyncio import AsyncConnection

    from orchestrator.vault import Vault

CallbackKind = Literal["success", "failure", "notification", "redirect"]


class IntakeError(OrchestratorError):
    """An intent or a command that cannot be taken; the sentence says why and what to do."""


class OrderTaken(IntakeError):  # noqa: N818 - named for the fact
    """The order number belongs to a checkout with other content (HTTP 409)."""

    def __init__(self, order_ref: str, checkout: UUID) -> None:
        super().__init__(
            f"order {order_ref} already has checkout {checkout} with other content: send the same content again, "
            "cancel that checkout first, or use another order number"
        )
        self.order_ref, self.checkout = order_ref, checkout


class KeyReused(IntakeError):  # noqa: N818 - named for the fact
    """The idempotency key came before with other content (HTTP 422)."""

    def __init__(self, key: str) -> None:
        super().__init__(
            f"the Idempotency-Key {key!r} was used before with other content: use a new key for a new request"
        )
        self.key = key


@dataclass(frozen=True, slots=True, kw_only=True)
class Intake:
    """A validated intent on its way in. `document` is what is stored (sealed), `fingerprint` what makes it the same again."""

    merchant_id: int
    order_ref: str
    currency: str
    amount: int
    expires_in: float
    document: bytes
    fingerprint: bytes
    actor: str
    correlation_id: str
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
                    fates.update(_fates(later, await _meet(tx, later)))
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
        idempotency_key=asked.idempotency_key,
        idempotency_print=asked.fingerprint if asked.idempotency_key is not None else b"",
    )


def _json(rows: Sequence[Mapping[str, object]]) -> str:
    return msgspec.json.encode(rows).decode()


# ── Callbacks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A callback as it came: raw body, white-listed headers, where it came from, and how well it proves its sender."""

    checkout_id: UUID
    kind: CallbackKind
    grade: str
    content_type: str
    headers: Mapping[str, str]
    source: str | None
    body: bytes
    id: UUID = field(default_factory=uuid7)

    @property
    def digest(self) -> bytes:
        """SHA-256 of kind and raw body: the same callback has the same."""
        return hashlib.sha256(self.kind.encode() + b"\0" + self.body).digest()


@dataclass(frozen=True, slots=True)
class Stored:
    """The callback is safe. `rings`: somebody has to look, so publish a hint."""

    rings: bool


# The checkouts are locked before their callbacks, as by a mover, which marks callbacks as read: nobody waits in a circle. One
# that somebody else holds comes again, so that a held row stalls no other callback.
_MINE = text("""
    WITH locked AS MATERIALIZED (
        SELECT id FROM checkouts WHERE id = ANY(CAST(:ids AS uuid[])) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
    )
    SELECT c.id, i.data_key, l.id IS NOT NULL AS mine
      FROM checkouts c LEFT JOIN intents i ON i.checkout_id = c.id LEFT JOIN locked l ON l.id = c.id
     WHERE c.id = ANY(CAST(:ids AS uuid[]))
""")
# A repeat is not stored twice; it counts, and rings while nobody has acted on the first. An empty body says too little to be
# told from an earlier one, so it always rings.
_STORE = text("""
    INSERT INTO callbacks AS b (id, checkout_id, kind, grade, content_type, headers, source, body, digest, times)
    SELECT id, checkout_id, kind, grade, content_type, headers, source, decode(body, 'hex'), decode(digest, 'hex'), times
      FROM json_to_recordset(CAST(:arrivals AS json)) AS a(
           id uuid, checkout_id uuid, kind text, grade text, content_type text, headers jsonb, source text, body text,
           digest text, times int, empty boolean)
     ORDER BY checkout_id, kind, digest
    ON CONFLICT (checkout_id, kind, digest) DO UPDATE
       SET times = b.times + excluded.times, repeated_at = clock(),
           handled_at = CASE WHEN b.digest = ANY(CAST(:empty AS bytea[])) THEN NULL ELSE b.handled_at END
    RETURNING checkout_id, kind, digest, handled_at IS NULL AS open
""")
_EMPTY: Final = [
    hashlib.sha256(kind + b"\0").digest() for kind in (b"success", b"failure", b"notification", b"redirect")
]


class Callbacks:
    """Takes callbacks from everything in flight in this process, stores them together and rings their checkouts."""

    def __init__(
        self, db: Database, vault: Vault, *, grace: float, batch_limit: int = 500, patience: float = 30.0
    ) -> None:
        self._db, self._vault, self._grace = db, vault, grace
        self._batch: Batch[Arrival, Stored] = Batch(
            self._write,
            key=lambda arrival: arrival.id,
            limit=batch_limit,
            patience=patience,
            name="callbacks",
        )

    async def take(self, arrival: Arrival) -> Stored:
        """Store a callback and ring; `db.DatabaseAway` if Postgres does not answer within the patience."""
        return await self._batch.put(arrival)

    async def close(self) -> None:
        """Write what has gathered, then stop."""
        await self._batch.close()

    async def _write(self, batch: list[Arrival]) -> list[Stored | Again]:
        same = {arrival.id: (arrival.checkout_id, arrival.kind, arrival.digest) for arrival in batch}
        times = Counter(same.values())
        first = {same[arrival.id]: arrival for arrival in reversed(batch)}
        async with self._db.transaction() as tx:
            ids = sorted({arrival.checkout_id for arrival in batch})
            known = {row.id: row for row in await tx.execute(_MINE, {"ids": ids})}
            held = {checkout for checkout, row in known.items() if not row.mine}
            keys = {checkout: row.data_key for checkout, row in known.items()}
            rows = [
                self._row(one, keys.get(one.checkout_id), times[what])
                for what, one in first.items()
                if one.checkout_id not in held
            ]
            stored = await tx.execute(_STORE, {"arrivals": _json(rows), "empty": _EMPTY})
            is_open = {(row.checkout_id, row.kind, bytes(row.digest)): row.open for row in stored}
            rung = sorted({checkout for (checkout, _, _), rings in is_open.items() if rings})
            if rung:
                await lifecycle.ring(tx, rung, grace=self._grace)
        return [
            AGAIN if arrival.checkout_id in held else Stored(is_open[same[arrival.id]]) for arrival in batch
        ]

    def _row(self, arrival: Arrival, wrapped: bytes | None, times: int) -> dict[str, object]:
        return {
            "id": arrival.id,
            "checkout_id": arrival.checkout_id,
            "kind": arrival.kind,
            "grade": arrival.grade,
            "content_type": arrival.content_type,
            "headers": dict(arrival.headers),
            "source": arrival.source,
            "body": seal_body(self._vault, arrival.checkout_id, wrapped, arrival.body).hex(),
            "digest": arrival.digest.hex(),
            "times": times,
        }


def seal_body(vault: Vault, checkout: UUID, wrapped: bytes | None, body: bytes) -> bytes:
    """Seal a raw callback under its checkout's data key, or under the installation's where that key is gone."""
    try:
        return b"\0" + vault.data_key(checkout, wrapped).seal(body, purpose="callback")
    except VaultError:
        # Erased, unknown, or sealed under a key that is gone: it is taken all the same.
        return b"\1" + vault.seal(body, purpose=f"callback/{checkout}")


def open_body(vault: Vault, checkout: UUID, wrapped: bytes | None, sealed: bytes) -> bytes:
    """Open what `seal_body` made; `vault.VaultError` if the customer was erased since."""
    if sealed[:1] == b"\1":
        return vault.open(sealed[1:], purpose=f"callback/{checkout}")
    return vault.data_key(checkout, wrapped).open(sealed[1:], purpose="callback")


# ── Commands ────────────────────────────────────────────────────────────────────────────────────────────────────────────

CommandKind = Literal["cancel"]

_ORDER = text("""
    INSERT INTO commands (id, checkout_id, kind, actor, reason, expected_version)
    SELECT :id, c.id, :kind, :actor, :reason, :expected_version FROM checkouts c
     WHERE c.id = :checkout_id AND c.merchant_id = :merchant_id
    RETURNING id
""")


async def request(
    db: Database,
    checkout_id: UUID,
    *,
    merchant_id: int,
    kind: CommandKind,
    actor: str,
    reason: str | None = None,
    expected_version: int | None = None,
    grace: float,
) -> UUID | None:
    """Store a command and ring; return its id, or None if the merchant has no such checkout. Publish a hint afterwards."""
    command = {
        "id": uuid7(), "checkout_id": checkout_id, "merchant_id": merchant_id, "kind": kind, "actor": actor, "reason": reason,
        "expected_version": expected_version,
    }  # fmt: skip
    async with db.transaction() as tx:
        stored = (await tx.execute(_ORDER, command)).first()
        if stored is None:
            return None
        await lifecycle.ring(tx, [checkout_id], grace=grace)
    return command["id"]  # type: ignore[return-value]  # a dict of mixed values

"""Commands: rows with actor, kind, reason, and the version that the actor saw; executed under the lease.

One with an idempotency key is stored once: a repeat, at the same moment from another process or days
later, gets the first, and wakes nothing. Each is signed with a key that the database does not have.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
from sqlalchemy import text

from orchestrator.crypto import Erased
from orchestrator.domain.ids import uuid7
from orchestrator.domain.records import Command
from orchestrator.store import checkouts, free_text
from orchestrator.store.checkouts.row_macs import sign_command
from orchestrator.store.columns import json_text, named, picked
from orchestrator.store.database import run
from orchestrator.store.inbox.errors import KeyReused, ReasonNotKept

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from uuid import UUID

    from orchestrator.crypto import Encryptor
    from orchestrator.domain.records import CommandKind
    from orchestrator.store.database import Database

# A used key returns the command that it was used for: the update changes nothing, and waits for a transaction
# that is storing the same command. Such a repeat must not wake the checkout in the same transaction, or it
# would hold a row that the mover of its checkout may need.
_STORE = text("""
    INSERT INTO commands AS k (id, merchant_id, checkout_id, kind, actor, reason, expected_version, arguments,
                               idempotency_key, fingerprint, mac)
    SELECT a.id, c.merchant_id, c.id, a.kind, a.actor, a.reason, a.expected_version, a.arguments, a.idempotency_key,
           decode(a.fingerprint, 'base64'), decode(a.mac, 'base64')
      FROM json_to_recordset(CAST(:asked AS json)) AS a(
           id uuid, merchant_id int, checkout_id uuid, kind text, actor text, reason text, expected_version int,
           arguments jsonb, idempotency_key text, fingerprint text, mac text)
     CROSS JOIN LATERAL (SELECT id, merchant_id FROM checkouts
                          WHERE id = a.checkout_id AND merchant_id = a.merchant_id LIMIT 1) c
     ORDER BY a.id
    ON CONFLICT (merchant_id, idempotency_key) WHERE idempotency_key IS NOT NULL
       DO UPDATE SET idempotency_key = k.idempotency_key
    RETURNING id, checkout_id, fingerprint
""")

_MERCHANTS = text("""
    SELECT c.id, c.merchant_id, i.data_key FROM checkouts c LEFT JOIN intents i ON i.checkout_id = c.id
     WHERE c.id = ANY(CAST(:ids AS uuid[])) ORDER BY c.id
""")


_WRITTEN: Final = named(Command, "mac", "taken", "requested_at", "handled_at", "result")


@dataclass(frozen=True, slots=True)
class Requested:
    """A command that is stored: by this request (`fresh`), or by an earlier one with the same key."""

    id: UUID
    fresh: bool


def fingerprint_of(
    checkout_id: UUID,
    kind: CommandKind,
    arguments: Mapping[str, object],
    *,
    reason: str | None = None,
    expected_version: int | None = None,
) -> bytes:
    """Return what makes a request the same again: the SHA-256 of all that was asked, but not of who asked."""
    asked = [checkout_id, kind, arguments, reason, expected_version]
    return hashlib.sha256(msgspec.json.encode(asked, order="sorted")).digest()


async def request(  # noqa: PLR0913 - the columns of a command
    db: Database,
    encryptor: Encryptor,
    checkout_id: UUID,
    *,
    merchant_id: int,
    kind: CommandKind,
    actor: str,
    reason: str | None = None,
    expected_version: int | None = None,
    arguments: Mapping[str, object] | None = None,
    idempotency_key: str | None = None,
    fingerprint: bytes | None = None,
    grace: float,
) -> Requested | None:
    """Store a command and wake its checkout; None if the merchant has no such checkout. Publish a hint
    afterwards.

    With a key that was used before, the same content returns the first command, and other content raises
    `KeyReused`; nothing is stored in either case. `fingerprint` is what counts as the content; without it
    all arguments are. A reason is stored under the data key; `ReasonNotKept` where that was destroyed.
    """
    told = dict(arguments or {})
    if fingerprint is None:
        fingerprint = fingerprint_of(
            checkout_id, kind, told, reason=reason, expected_version=expected_version
        )
    if reason is not None:
        found = await db.read(_MERCHANTS, {"ids": [checkout_id]})
        if not found:
            return None
        try:
            reason = free_text.seal(encryptor.data_key(checkout_id, found[0].data_key), reason)
        except Erased:
            raise ReasonNotKept(checkout_id) from None
    command = Command(uuid7(), kind, actor, reason, expected_version, told)
    row = _row(encryptor, checkout_id, merchant_id, command)
    if idempotency_key is not None:
        row |= {"idempotency_key": idempotency_key, "fingerprint": fingerprint}
    async with db.transaction() as tx:
        rows = await run(tx, _STORE, {"asked": json_text([row])})
        if not rows:
            return None
        (stored,) = rows
        if stored.id == command.id:
            await checkouts.wake(tx, [checkout_id], grace=grace)
            return Requested(stored.id, fresh=True)
        if bytes(stored.fingerprint) != fingerprint:
            raise KeyReused(idempotency_key or "")
        return Requested(stored.id, fresh=False)


async def request_all(
    db: Database,
    encryptor: Encryptor,
    ids: Iterable[UUID],
    *,
    kind: CommandKind,
    actor: str,
    grace: float,
) -> dict[UUID, UUID]:
    """Store a command for many checkouts, of any merchants, and wake them; return the command of each that
    exists. Publish hints afterwards, or let them become due after `grace` seconds.
    """
    rows = [
        _row(encryptor, found.id, found.merchant_id, Command(uuid7(), kind, actor))
        for found in await db.read(_MERCHANTS, {"ids": sorted(set(ids))})
    ]
    async with db.transaction() as tx:
        stored = await run(tx, _STORE, {"asked": json_text(rows)})
        await checkouts.wake(tx, [row.checkout_id for row in stored], grace=grace)
    return {row.checkout_id: row.id for row in stored}


def _row(encryptor: Encryptor, checkout_id: UUID, merchant_id: int, command: Command) -> dict[str, object]:
    return {
        **picked(command, _WRITTEN),
        "merchant_id": merchant_id,
        "checkout_id": checkout_id,
        "mac": sign_command(encryptor, checkout_id, merchant_id, command),
    }

"""Who changed what of a merchant: one append-only chain for each merchant, made and verified here.

An entry is canonical JSON text with a number in its merchant's sequence; its MAC is HMAC-SHA256 over the
previous MAC and the text, under a key derived from the secret keys. No entry holds a secret: of a password it
says that it was changed. A changed, moved or missing entry is found; a removed tail is not, so keep copies of
`audit export`.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import msgspec
from sqlalchemy import text

from orchestrator.audit.chain import CHANGED, START, chain_mac, unproven
from orchestrator.audit.findings import every

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Row
    from sqlalchemy.ext.asyncio import AsyncConnection

    from orchestrator.audit.findings import Findings
    from orchestrator.crypto import Encryptor
    from orchestrator.store.database import Database

PURPOSE: Final = "merchant-changes"
_END = text("""
    SELECT e.sequence, e.mac, clock() AS now
      FROM (SELECT 1) one
      LEFT JOIN (SELECT sequence, mac FROM merchant_changes WHERE merchant_id = :merchant_id
                  ORDER BY sequence DESC LIMIT 1) e ON true
""")
_ADD = text("""
    INSERT INTO merchant_changes (merchant_id, sequence, at, entry, key_id, mac)
    VALUES (:merchant_id, :sequence, :at, :entry, :key_id, :mac)
""")
CHANGES = text("""
    SELECT merchant_id, sequence, at, entry, key_id, mac FROM merchant_changes
     WHERE (merchant_id, sequence) > (:merchant_id, :sequence) ORDER BY merchant_id, sequence LIMIT 1000
""")
_OF = text("""
    SELECT merchant_id, sequence, at, entry, key_id, mac FROM merchant_changes
     WHERE merchant_id = :merchant_id AND sequence < :before ORDER BY sequence DESC LIMIT :most
""")


class MerchantAction(StrEnum):
    """What an entry says, as subject:fact."""

    ADDED = "merchant:added"
    CHANGED = "merchant:changed"
    DISABLED = "merchant:disabled"
    ENABLED = "merchant:enabled"
    PAUSED = "merchant:paused"
    RESUMED = "merchant:resumed"
    SECRETS_SET = "callback_secrets:set"
    SECRET_ROTATED = "callback_secret:rotated"  # noqa: S105 - a word of the trail


class MerchantChange(msgspec.Struct, frozen=True):
    """What an entry says; `details` has the changed fields, and never a secret."""

    merchant: str
    merchant_id: int
    sequence: int
    at: str
    actor: str
    action: MerchantAction
    details: dict[str, Any]


_READ: Final = msgspec.json.Decoder(MerchantChange)


async def record(
    tx: AsyncConnection,
    encryptor: Encryptor,
    *,
    merchant_id: int,
    merchant: str,
    action: MerchantAction,
    actor: str,
    details: Mapping[str, object],
) -> None:
    """Write a merchant's next entry in the transaction of the change, which holds the lock on its row."""
    end = (await tx.execute(_END, {"merchant_id": merchant_id})).one()
    said = MerchantChange(
        merchant, merchant_id, (end.sequence or 0) + 1, _moment(end.now), actor, action, dict(details)
    )
    entry = msgspec.json.encode(said, order="sorted").decode()
    key = encryptor.newest
    before = START if end.mac is None else bytes(end.mac)
    row = {
        "merchant_id": merchant_id,
        "sequence": said.sequence,
        "at": end.now,
        "entry": entry,
        "key_id": key.id,
        "mac": chain_mac(key, before, entry, PURPOSE),
    }
    await tx.execute(_ADD, row)


def time_of(change: MerchantChange) -> datetime:
    return datetime.fromisoformat(change.at)


async def changes(db: Database, merchant_id: int, *, before: int, limit: int) -> list[MerchantChange]:
    """Return a merchant's changes, the youngest first, before a number: the last of the previous page."""
    rows = await db.read(_OF, {"merchant_id": merchant_id, "before": before, "most": limit})
    return [_READ.decode(row.entry) for row in rows]


async def verify_merchants(db: Database, encryptor: Encryptor, found: Findings) -> None:
    """Walk the chain of every merchant, and name the first entry of each that does not hold."""
    merchant, sequence, mac, broken = -1, 0, START, False
    async for row in every(db, CHANGES, merchant_id=merchant, sequence=sequence):
        if row.merchant_id != merchant:
            merchant, sequence, mac, broken = row.merchant_id, 0, START, False
        if not broken and (problem := _problem(encryptor, row, after=sequence, mac=mac)) is not None:
            found.problems.append(problem)
            broken = True
        sequence, mac = row.sequence, bytes(row.mac)


def _problem(encryptor: Encryptor, row: Row[Any], *, after: int, mac: bytes) -> str | None:
    """Say what is wrong with an entry that stands after another; None if nothing is."""
    where = f"change {row.sequence} of merchant {row.merchant_id}"
    if row.sequence != after + 1:
        return f"change {after + 1} of merchant {row.merchant_id} is missing"
    problem = unproven(
        encryptor, mac, row.entry, key_id=row.key_id, mac=row.mac, purpose=PURPOSE, changed=CHANGED
    )
    if problem is not None:
        return f"{where} {problem}"
    try:
        said = _READ.decode(row.entry)
    except msgspec.DecodeError:
        return f"{where} is not in the words of the trail"
    if (said.merchant_id, said.sequence, said.at) != (row.merchant_id, row.sequence, _moment(row.at)):
        return f"{where} disagrees with its own columns"
    return None


def _moment(at: Any) -> str:
    return str(at.isoformat(timespec="microseconds"))

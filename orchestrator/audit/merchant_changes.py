"""Who changed what of a merchant: one append-only chain for each merchant, made and verified here.

An entry is canonical JSON text with a number in its merchant's sequence; its MAC is HMAC-SHA256 over the
previous MAC and the text, under a key derived from the secret keys. No entry holds a secret: of a password it
says that it was changed. A changed, moved or missing entry is found; a removed tail is not, so keep copies of
`audit export`.
"""

from __future__ import annotations

import hmac
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import msgspec
from sqlalchemy import text

from orchestrator.audit.chain import START

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from sqlalchemy import Row
    from sqlalchemy.ext.asyncio import AsyncConnection

    from orchestrator.audit.findings import Findings
    from orchestrator.crypto import Encryptor, Key
    from orchestrator.store.database import Database

PURPOSE: Final = "merchant-changes"
_PAGE: Final = 1000
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
_ALL = text("""
    SELECT merchant_id, sequence, at, entry, key_id, mac FROM merchant_changes
     WHERE (merchant_id, sequence) > (:merchant_id, :sequence) ORDER BY merchant_id, sequence LIMIT :most
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
    """Write the next entry of a merchant, in the transaction of the change.

    The caller holds the lock on the merchant's row, so that its changes are numbered one after the other.
    """
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
        "mac": _mac(key, before, entry),
    }
    await tx.execute(_ADD, row)


def time_of(change: MerchantChange) -> datetime:
    """Return when a change was made."""
    return datetime.fromisoformat(change.at)


async def changes(db: Database, merchant_id: int, *, before: int, limit: int) -> list[MerchantChange]:
    """Return what was changed of a merchant, the youngest first; `before`: the number of the last one of the
    previous page.
    """
    rows = await db.read(_OF, {"merchant_id": merchant_id, "before": before, "most": limit})
    return [_READ.decode(row.entry) for row in rows]


async def verify_merchants(db: Database, encryptor: Encryptor, found: Findings) -> None:
    """Walk the chain of every merchant, and name the first entry of each that does not hold."""
    merchant, sequence, mac, broken = -1, 0, START, False
    while rows := await _page(db, merchant, sequence):
        for row in rows:
            if row.merchant_id != merchant:
                merchant, sequence, mac, broken = row.merchant_id, 0, START, False
            if not broken:
                problem = _problem(encryptor, row, after=sequence, mac=mac)
                if problem is not None:
                    found.problems.append(problem)
                    broken = True
            sequence, mac = row.sequence, bytes(row.mac)


async def export_merchants(db: Database) -> AsyncIterator[str]:
    """Yield each entry as a line of JSON."""
    merchant, sequence = -1, 0
    while rows := await _page(db, merchant, sequence):
        for row in rows:
            line = {"merchantChange": row.entry, "keyId": row.key_id, "mac": row.mac.hex()}
            yield msgspec.json.encode(line).decode()
        merchant, sequence = rows[-1].merchant_id, rows[-1].sequence


async def _page(db: Database, merchant: int, sequence: int) -> Sequence[Row[Any]]:
    return await db.read(_ALL, {"merchant_id": merchant, "sequence": sequence, "most": _PAGE})


def _problem(encryptor: Encryptor, row: Row[Any], *, after: int, mac: bytes) -> str | None:
    """Say what is wrong with an entry that stands after another; None if nothing is."""
    where = f"change {row.sequence} of merchant {row.merchant_id}"
    if row.sequence != after + 1:
        return f"change {after + 1} of merchant {row.merchant_id} is missing"
    key = encryptor.known(row.key_id)
    if key is None:
        return f"{where} was made under key {row.key_id}, which SECRET_KEYS does not have"
    if not hmac.compare_digest(_mac(key, mac, row.entry), bytes(row.mac)):
        return f"{where} was changed: its text and its mac do not agree"
    try:
        said = _READ.decode(row.entry)
    except msgspec.DecodeError:
        return f"{where} is not in the words of the trail"
    if (said.merchant_id, said.sequence, said.at) != (row.merchant_id, row.sequence, _moment(row.at)):
        return f"{where} disagrees with its own columns"
    return None


def _moment(at: Any) -> str:
    return str(at.isoformat(timespec="microseconds"))


def _mac(key: Key, before: bytes, entry: str) -> bytes:
    return hmac.digest(key.derived(PURPOSE), before + entry.encode(), "sha256")

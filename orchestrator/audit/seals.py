"""Seals: the heads of all chains that grew, and the archives that were made, each in a chain of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from sqlalchemy import text

from orchestrator.audit.chain import START, chain_mac, unproven
from orchestrator.audit.findings import every

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Row
    from sqlalchemy.ext.asyncio import AsyncConnection

    from orchestrator.audit.findings import Findings
    from orchestrator.crypto import Encryptor
    from orchestrator.store.database import Database

PURPOSE: Final = "audit-seal"
ARCHIVE: Final = "archive"
"""The first word of a line that names an archive instead of the head of a chain."""

SEALS = text(
    "SELECT sequence, at, heads, key_id, mac FROM audit_seals WHERE sequence > :sequence ORDER BY sequence LIMIT 50"
)
# A seal of an archive says nothing of the chains that grew before it.
_NEXT_SEAL = text("""
    SELECT coalesce(max(sequence), 0) + 1 AS sequence,
           coalesce((SELECT mac FROM audit_seals ORDER BY sequence DESC LIMIT 1), decode(repeat('00', 32), 'hex')) AS before,
           coalesce((SELECT at FROM audit_seals WHERE left(heads, 8) <> 'archive ' ORDER BY sequence DESC LIMIT 1), 'epoch') AS since,
           clock() AS now
      FROM audit_seals
""")
# Entries are written with a time that can lag their commit, so a seal reads further back than the end of the
# previous seal.
_GROWN = text("""
    SELECT DISTINCT ON (checkout_id) checkout_id, sequence, mac FROM audit_entries
     WHERE at > CAST(:since AS timestamptz) - interval '10 minutes'
     ORDER BY checkout_id, sequence DESC
""")
_LOCK = text("SELECT pg_advisory_xact_lock(hashtext('orchestrator.audit_seals'))")
_WRITE_SEAL = text("""
    INSERT INTO audit_seals (sequence, at, heads, key_id, mac) VALUES (:sequence, :at, :heads, :key_id, :mac)
""")
# A head below the head in an archive is in that archive.
_SEALED = text("""
    SELECT h.id, h.sequence FROM unnest(CAST(:ids AS uuid[]), CAST(:sequences AS int[]), CAST(:macs AS bytea[]))
        AS h(id, sequence, mac)
     WHERE NOT EXISTS (SELECT FROM audit_entries a
                        WHERE a.checkout_id = h.id AND a.sequence = h.sequence AND a.mac = h.mac)
       AND NOT EXISTS (SELECT FROM archived_heads a
                        WHERE a.checkout_id = h.id AND (a.sequence > h.sequence OR a.sequence = h.sequence AND a.mac = h.mac))
""")
_LONG: Final = 35.0
"""Seconds for a statement of a seal: it may wait for another sealer, and reads what has grown."""
_ARCHIVED = text("SELECT EXISTS (SELECT FROM archives WHERE sequence = :sequence AND mac = :mac) AS known")


def _text(sequence: int, at: datetime, heads: str) -> str:
    return f"{sequence}\n{at.isoformat(timespec='microseconds')}\n{heads}"


async def seal(db: Database, encryptor: Encryptor) -> int:
    """Seal the heads of all chains that grew since the last seal; return how many. One sealer at a time."""
    async with db.transaction(timeout=_LONG) as tx:
        await tx.execute(_LOCK)
        place = (await tx.execute(_NEXT_SEAL)).one()
        grown = (await tx.execute(_GROWN, {"since": place.since})).all()
        if not grown:
            return 0
        heads = "\n".join(f"{row.checkout_id} {row.sequence} {row.mac.hex()}" for row in grown)
        await _write(tx, encryptor, place, heads)
        return len(grown)


async def seal_archive(tx: AsyncConnection, encryptor: Encryptor, sequence: int, mac: bytes) -> None:
    """Seal an archive in the transaction that makes it: the seal misses an archive that is taken back."""
    await tx.execute(_LOCK)
    place = (await tx.execute(_NEXT_SEAL)).one()
    await _write(tx, encryptor, place, f"{ARCHIVE} {sequence} {mac.hex()}")


async def _write(tx: AsyncConnection, encryptor: Encryptor, place: Row[Any], heads: str) -> None:
    key = encryptor.newest
    said = _text(place.sequence, place.now, heads)
    mac = chain_mac(key, bytes(place.before), said, PURPOSE)
    seal = {"sequence": place.sequence, "at": place.now, "heads": heads, "key_id": key.id, "mac": mac}
    await tx.execute(_WRITE_SEAL, seal)


async def verify_seals(db: Database, encryptor: Encryptor, found: Findings) -> None:
    """Verify the chain of seals, and find each head and archive that they name."""
    before, expected = START, 1
    async for row in every(db, SEALS, sequence=0):
        found.seals += 1
        if row.sequence != expected:
            found.problems.append(f"seal {expected} is missing")
            return
        said = _text(row.sequence, row.at, row.heads)
        problem = unproven(encryptor, before, said, key_id=row.key_id, mac=row.mac, purpose=PURPOSE)
        if problem is not None:
            found.problems.append(f"seal {row.sequence} {problem}")
            return
        await _verify_sealed(db, row, found)
        before, expected = bytes(row.mac), expected + 1


async def _verify_sealed(db: Database, row: Row[Any], found: Findings) -> None:
    lines = [line.split(" ") for line in row.heads.splitlines()]
    for word, sequence, mac in lines:
        if word == ARCHIVE:
            named = {"sequence": int(sequence), "mac": bytes.fromhex(mac)}
            if not (await db.read(_ARCHIVED, named))[0].known:
                found.problems.append(
                    f"archive {sequence} stood when seal {row.sequence} was made, and no longer does"
                )
    heads = [line for line in lines if line[0] != ARCHIVE]
    for start in range(0, len(heads), 1000):
        part = heads[start : start + 1000]
        gone = await db.read(
            _SEALED,
            {
                "ids": [UUID(head[0]) for head in part],
                "sequences": [int(head[1]) for head in part],
                "macs": [bytes.fromhex(head[2]) for head in part],
            },
        )
        found.problems.extend(
            f"checkout {lost.id} had {lost.sequence} entries when seal {row.sequence} was made, and no longer has"
            for lost in gone
        )

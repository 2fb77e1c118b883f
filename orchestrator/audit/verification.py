"""Verification of the whole trail, and a copy of it: every chain from its beginning, or from where an archive
has it, and every seal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec
from sqlalchemy import text

from orchestrator.audit.archives import ARCHIVES, verify_archives
from orchestrator.audit.chain import Head, walk
from orchestrator.audit.findings import Findings, every
from orchestrator.audit.merchant_changes import CHANGES, verify_merchants
from orchestrator.audit.seals import SEALS, verify_seals

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from sqlalchemy import Row

    from orchestrator.crypto import Encryptor
    from orchestrator.store.database import Database

_HEADS = text("""
    SELECT id, audit_sequence, audit_head, state FROM checkouts WHERE id > :after ORDER BY id LIMIT :most
""")
_ENTRIES = text("""
    SELECT checkout_id, sequence, at, action, entry, key_id, mac FROM audit_entries
     WHERE checkout_id > :after AND checkout_id <= :until ORDER BY checkout_id, sequence
""")
_ARCHIVED = text("""
    SELECT DISTINCT ON (checkout_id) checkout_id, sequence, mac, state FROM archived_heads
     WHERE checkout_id > :after AND checkout_id <= :until ORDER BY checkout_id, sequence DESC
""")
_WITHOUT_CHECKOUT = text("""
    SELECT DISTINCT a.checkout_id FROM audit_entries a
     WHERE NOT EXISTS (SELECT FROM checkouts c WHERE c.id = a.checkout_id) ORDER BY 1 LIMIT 100
""")


async def verify(
    db: Database, encryptor: Encryptor, *, progress: Callable[[Findings], None] | None = None
) -> Findings:
    """Walk every chain, every archive's manifest, every seal and the changes of every merchant, and name what
    does not hold.

    Of a checkout whose history is archived the chain is followed from the head that its archive has; the
    archive is proven by the chain of archives, and its file by itself (`open_archive`).
    """
    found = Findings()
    after = UUID(int=0)
    while True:
        async with db.snapshot() as moment:
            heads = (await moment.execute(_HEADS, {"after": after, "most": 500})).all()
            if not heads:
                break
            span = {"after": after, "until": heads[-1].id}
            entries = (await moment.execute(_ENTRIES, span)).all()
            archived = {
                row.checkout_id: Head(row.sequence, bytes(row.mac), row.state)
                for row in await moment.execute(_ARCHIVED, span)
            }
        chains: dict[UUID, list[Row[Any]]] = {head.id: [] for head in heads}
        for row in entries:
            chains.setdefault(row.checkout_id, []).append(row)
        for head in heads:
            found.checkouts += 1
            verify_chain(encryptor, head, chains[head.id], found, after=archived.get(head.id, Head()))
        after = heads[-1].id
        if progress:
            progress(found)
    for row in await db.read(_WITHOUT_CHECKOUT):
        found.problems.append(f"checkout {row.checkout_id} is missing, though its entries exist")
    # Last, so that whatever was taken for archived above is among what is proven here.
    await verify_archives(db, encryptor, found)
    await verify_seals(db, encryptor, found)
    await verify_merchants(db, encryptor, found)
    return found


def verify_chain(
    encryptor: Encryptor, head: Row[Any], entries: Sequence[Row[Any]], found: Findings, *, after: Head
) -> None:
    """Verify the chain of one checkout, from its archived part to the head in its row."""
    end = Head(head.audit_sequence, bytes(head.audit_head), head.state)
    read, problem = walk(encryptor, head.id, entries, after=after, head=end)
    found.entries += read
    if problem is not None:
        found.problems.append(problem)


_EXPORT = text("""
    SELECT checkout_id, sequence, entry, key_id, mac FROM audit_entries
     WHERE (checkout_id, sequence) > (:checkout_id, :sequence) ORDER BY checkout_id, sequence LIMIT 1000
""")


async def export(db: Database) -> AsyncIterator[str]:
    """Yield every entry, seal, archive's manifest and change of a merchant as a line of JSON, for a copy kept
    elsewhere; what is archived is in its file.
    """
    async for row in every(db, _EXPORT, checkout_id=UUID(int=0), sequence=0):
        yield _line(row, entry=row.entry)
    async for row in every(db, SEALS, sequence=0):
        yield _line(row, seal=row.sequence, at=row.at.isoformat(timespec="microseconds"), heads=row.heads)
    async for row in every(db, ARCHIVES, sequence=0):
        yield _line(row, archive=row.sequence, file=row.file, manifest=row.manifest)
    async for row in every(db, CHANGES, merchant_id=-1, sequence=0):
        yield _line(row, merchantChange=row.entry)


def _line(row: Row[Any], **said: object) -> str:
    return msgspec.json.encode(said | {"keyId": row.key_id, "mac": row.mac.hex()}).decode()

"""One batch: some settled checkouts, whose history moves from the tables into one file within one
transaction.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import msgspec
from sqlalchemy import text

from orchestrator import audit
from orchestrator.audit import Head
from orchestrator.audit.archive import files
from orchestrator.audit.archive.errors import ArchiveBusy, ArchiveError, ArchiveUnread
from orchestrator.audit.archive.lock_timeout import set_lock_timeout
from orchestrator.domain.ids import first_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Sequence
    from datetime import datetime
    from pathlib import Path

    from sqlalchemy import Row
    from sqlalchemy.ext.asyncio import AsyncConnection

    from orchestrator.crypto import Encryptor
    from orchestrator.store.database import Database

MOST_BYTES: Final = 64_000_000
"""Bodies of callbacks in one batch: a flooded checkout may have many."""
STRETCH: Final = 20_000
FIRST: Final = UUID(int=0)

_TURN = text("SELECT pg_try_advisory_xact_lock(hashtext('orchestrator.archives')) AS ours")
_NOW = text("SELECT clock() AS now, EXISTS (SELECT FROM events WHERE position IS NOT NULL) AS placing")
_SETTLED: Final = """
      FROM checkouts c LEFT JOIN LATERAL (
           SELECT sequence, mac, state FROM archived_heads WHERE checkout_id = c.id ORDER BY sequence DESC LIMIT 1) h ON true
     WHERE c.id > :after AND c.id < :before AND c.due_at IS NULL AND c.lease IS NULL AND c.attention IS NULL
       AND c.updated_at < :untouched AND coalesce(h.sequence, 0) < c.audit_sequence AND c.id <> ALL(CAST(:but AS uuid[]))
       AND NOT EXISTS (SELECT FROM callbacks b WHERE b.checkout_id = c.id AND b.handled_at IS NULL)
       AND NOT EXISTS (SELECT FROM commands k WHERE k.checkout_id = c.id AND k.handled_at IS NULL)
       AND NOT EXISTS (SELECT FROM money_operations o
                        WHERE o.checkout_id = c.id AND o.state IN ('requested', 'submitted', 'unknown'))
       AND NOT EXISTS (SELECT FROM webhook_endpoints w JOIN delivery_streams d ON d.endpoint_id = w.id AND d.checkout_id = c.id
                        WHERE w.merchant_id = c.merchant_id)
       AND NOT (:placing AND EXISTS (SELECT FROM events e WHERE e.checkout_id = c.id AND e.position IS NULL))
"""
# A statement reads so many checkouts at the most: so it passes checkouts that were archived before without
# running long.
_STRETCH = text(
    "SELECT id FROM checkouts WHERE id > :after AND id < :before ORDER BY id OFFSET :most LIMIT 1"
)
_COUNT = text(f"""
    SELECT count(*) AS checkouts, coalesce(sum(c.audit_sequence - coalesce(h.sequence, 0)), 0)::int8 AS entries {_SETTLED}
""")
# A transaction that locks a checkout is about to wake it: it is left for another time. While the batch holds
# the locks, no row of these checkouts is written: movers and callbacks lock the checkout first, and a command
# wakes it before it is committed.
_TAKE = text(f"""
    SELECT c.id, c.audit_sequence, c.audit_head, c.state, h.sequence AS after_sequence, h.mac AS after_mac, h.state AS after_state,
           (SELECT coalesce(sum(octet_length(body)), 0) FROM callbacks WHERE checkout_id = c.id)::int8 AS bytes
    {_SETTLED} ORDER BY c.id LIMIT :most FOR NO KEY UPDATE OF c SKIP LOCKED
""")  # noqa: S608 - made of our own constant
_NEXT = text("""
    SELECT coalesce(max(sequence), 0) + 1 AS number,
           coalesce((SELECT mac FROM archives ORDER BY sequence DESC LIMIT 1), decode(repeat('00', 32), 'hex')) AS before
      FROM archives
""")
_NOTE = text("""
    INSERT INTO archived_heads (checkout_id, sequence, archive, state, mac)
    SELECT id, audit_sequence, :archive, state, audit_head FROM checkouts WHERE id = ANY(CAST(:ids AS uuid[])) ORDER BY id
""")
_LIST = text("""
    INSERT INTO archives (sequence, at, file, manifest, key_id, mac) VALUES (:sequence, :at, :file, :manifest, :key_id, :mac)
""")
# An entry that is archived already cannot stand here; should it, the walk over the chain finds it, and
# nothing is archived.
_ENTRIES = text("""
    DELETE FROM audit_entries
     WHERE checkout_id BETWEEN :first AND :last AND checkout_id = ANY(CAST(:ids AS uuid[]))
    RETURNING checkout_id, sequence, at, action, entry, key_id, mac
""")


def _gone(table: str, condition: str = "true", *, without: str = "") -> str:
    return f"""
        WITH gone AS (DELETE FROM {table} WHERE checkout_id = ANY(CAST(:ids AS uuid[])) AND {condition} RETURNING *)
        SELECT checkout_id, {_page("gone", without)} AS body FROM gone"""  # noqa: S608 - made of our own constants


def _kept(table: str, condition: str = "true", *, without: str = "") -> str:
    return f"""
        SELECT checkout_id, {_page("r", without)} AS body FROM {table} r
         WHERE checkout_id = ANY(CAST(:ids AS uuid[])) AND {condition}"""  # noqa: S608 - made of our own constants


def _page(row: str, without: str) -> str:
    """Return the SQL of a row as JSON; `without`: the path of what does not go into a file."""
    return f"CAST(to_jsonb({row}) #- '{without}' AS text)" if without else f"CAST(to_json({row}) AS text)"


# A file is never changed, so what is not under the data key and may be about a customer does not go into it
# (docs/privacy.md). What a page says of the books is a copy. A command with a key stays: the same request
# again must meet it.
_ROWS: Final = {
    "checkout": text("""
        SELECT id AS checkout_id, CAST(to_json(c) AS text) AS body FROM checkouts c WHERE id = ANY(CAST(:ids AS uuid[]))"""),
    "payments": text(_kept("payments") + " ORDER BY first_seen_at, transaction_id"),
    "operations": text(_kept("money_operations") + " ORDER BY requested_at, id"),
    "commands": text(
        f"{_gone('commands', 'idempotency_key IS NULL')} UNION ALL "
        + _kept("commands", "idempotency_key IS NOT NULL", without="{fingerprint}")
    ),
    "sessions": text(_gone("sessions", without="{methods}")),
    "callbacks": text(_gone("callbacks", without="{digest}") + " ORDER BY received_at, id"),
    # Copied: they are deleted by the retention of the feed; deleted here, the merchant would never get them.
    "events": text(_kept("events", without="{payload,facts,reason}") + " ORDER BY sequence"),
}


class Unprovable(ArchiveError):  # noqa: N818 - named for the fact
    """The trail of some checkouts does not hold: an archive would bury that, so they stay where they are."""

    def __init__(self, problems: dict[UUID, str]) -> None:
        super().__init__("; ".join(problems.values()))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Choice:
    """Checkouts between two ids, untouched since a moment; `placing`: events get their positions."""

    before: UUID
    untouched: datetime
    placing: bool
    after: UUID = FIRST

    def parameters(self, but: Collection[UUID] = ()) -> dict[str, object]:
        return {**asdict(self), "but": sorted(but)}


@dataclass(frozen=True, slots=True)
class Archived:
    """An archive that was made: its number and file, how much is in it, and the last of its checkouts."""

    number: int
    file: Path
    checkouts: int
    entries: int
    last: UUID


async def choose(db: Database, *, older_than: float) -> Choice:
    """Choose checkouts that were received, and last written, more than so many seconds ago."""
    (row,) = await db.read(_NOW)
    moment = row.now - timedelta(seconds=older_than)
    return Choice(first_id(moment), moment, row.placing)


async def stretches(db: Database, choice: Choice, *, most: int = STRETCH) -> AsyncIterator[Choice]:
    """Cut a choice into stretches of ids, each of so many checkouts at the most, the oldest first."""
    after = choice.after
    while rows := await db.read(_STRETCH, {"after": after, "before": choice.before, "most": most}):
        yield replace(choice, after=after, before=rows[0].id)
        after = UUID(int=rows[0].id.int - 1)
    yield replace(choice, after=after)


async def candidates(db: Database, choice: Choice) -> tuple[int, int]:
    """Return how many checkouts and entries could go now."""
    checkouts = entries = 0
    async for stretch in stretches(db, choice):
        (row,) = await db.read(_COUNT, stretch.parameters())
        checkouts, entries = checkouts + row.checkouts, entries + row.entries
    return checkouts, entries


async def take(
    db: Database,
    encryptor: Encryptor,
    directory: Path,
    choice: Choice,
    *,
    most: int,
    but: Collection[UUID] = (),
) -> Archived | None:
    """Move the history of the first checkouts of a choice, at most so many, into a file; None when there are
    no more.

    Raises `Unprovable` for checkouts whose trail does not hold (nothing was moved: name them in `but`),
    `ArchiveBusy` if another run is under way, `ArchiveError` if the file cannot be written or read back.
    """
    async with db.transaction() as tx:
        await set_lock_timeout(tx)
        if not (await tx.execute(_TURN)).one().ours:
            raise ArchiveBusy("another archive run is under way: one at a time is enough")
        found = (await tx.execute(_TAKE, {**choice.parameters(but), "most": most})).all()
        rows = _within(found, MOST_BYTES)
        if not rows:
            return None
        place = (await tx.execute(_NEXT)).one()
        ids = [row.id for row in rows]
        await tx.execute(_NOTE, {"archive": place.number, "ids": ids})
        pages = await _pages(tx, rows)
        _prove(encryptor, pages)
        now = (await tx.execute(_NOW)).one().now
        draft, manifest, mac = await asyncio.to_thread(
            _write, encryptor, directory, pages, number=place.number, at=now, before=bytes(place.before)
        )
        # Before the file has its name: it may have to wait, and what is given up leaves no file behind.
        await audit.seal_archive(tx, encryptor, place.number, mac)
        path = await asyncio.to_thread(files.name, draft, place.number)
        await tx.execute(
            _LIST,
            {
                "sequence": place.number,
                "at": now,
                "file": path.name,
                "manifest": manifest,
                "key_id": encryptor.newest.id,
                "mac": mac,
            },
        )
    entries = sum(len(page.entries) for page in pages)
    return Archived(place.number, path, len(pages), entries, ids[-1])


def _within(rows: Sequence[Row[Any]], most: int) -> list[Row[Any]]:
    """Return as many of the first rows as are not too large together, at least one."""
    taken: list[Row[Any]] = []
    size = 0
    for row in rows:
        size += row.bytes
        if taken and size > most:
            break
        taken.append(row)
    return taken


async def _pages(tx: AsyncConnection, rows: Sequence[Row[Any]]) -> list[audit.Page]:
    """Take the history of these checkouts out of the tables."""
    ids = [row.id for row in rows]
    entries: dict[UUID, list[Row[Any]]] = defaultdict(list)
    for entry in await tx.execute(_ENTRIES, {"ids": ids, "first": ids[0], "last": ids[-1]}):
        entries[entry.checkout_id].append(entry)
    beside: dict[UUID, dict[str, list[msgspec.Raw]]] = {
        checkout_id: {kind: [] for kind in _ROWS} for checkout_id in ids
    }
    for kind, statement in _ROWS.items():
        for found in await tx.execute(statement, {"ids": ids}):
            beside[found.checkout_id][kind].append(msgspec.Raw(found.body.encode()))
    return [
        audit.Page(
            row.id,
            Head()
            if row.after_sequence is None
            else Head(row.after_sequence, bytes(row.after_mac), row.after_state),
            Head(row.audit_sequence, bytes(row.audit_head), row.state),
            sorted(entries[row.id], key=lambda entry: entry.sequence),
            beside[row.id],
        )
        for row in rows
    ]


def _prove(encryptor: Encryptor, pages: Sequence[audit.Page]) -> None:
    problems = {}
    for page in pages:
        _, problem = audit.walk(encryptor, page.checkout, page.entries, after=page.after, head=page.head)
        if problem is not None:
            problems[page.checkout] = problem
    if problems:
        raise Unprovable(problems)


def _write(
    encryptor: Encryptor,
    directory: Path,
    pages: Sequence[audit.Page],
    *,
    number: int,
    at: datetime,
    before: bytes,
) -> tuple[Path, str, bytes]:
    """Write pages into a draft and read them back: nothing is removed for a file that proves nothing."""
    with files.draft(directory, number) as (path, file):
        manifest, mac = audit.write_archive(
            file, pages, encryptor.newest, archive=number, at=at, before=before
        )
    opened = audit.open_archive(path, encryptor)
    if opened.problems or opened.mac != mac:
        raise ArchiveUnread(
            f"{path} does not prove itself: {'; '.join(opened.problems) or 'it is another file'}"
        )
    return path, manifest, mac

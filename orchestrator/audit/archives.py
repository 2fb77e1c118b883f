"""Archives: the history of settled checkouts in a file that proves itself, and the chain of all archives.

A file is gzip over lines of JSON: a page for each checkout, sorted by id, and the manifest as the last line.
The manifest has counts, a digest over the heads, a digest over all pages, and a MAC that follows the MAC of
the previous archive; the same manifest is in table `archives`. With the secret keys alone a file shows
whether a page, an entry or its end was changed or cut off. Personal data in a page is encrypted under a data
key that stays in the database: erasing a customer reaches the archives too.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import IO, TYPE_CHECKING, Any, Final
from uuid import UUID

import msgspec
from sqlalchemy import text

from orchestrator.audit.chain import START, Head, Link, chain_mac, unproven, walk

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from sqlalchemy import Row

    from orchestrator.audit.findings import Findings
    from orchestrator.crypto import Encryptor, Key
    from orchestrator.store.database import Database

LINE_LIMIT: Final = 128 * 1024 * 1024
"""Bytes of one page: the history of one checkout with all callbacks that are kept for it."""
INFLATION_LIMIT: Final = 200
"""How many times larger than the file its content may be. What is sealed hardly shrinks: an archive has about
a tenth of its content."""
INFLATION_FREE: Final = 4 * 1024 * 1024
"""Bytes of content that any file may have."""

PURPOSE: Final = "audit-archive"

ARCHIVES = text("""
    SELECT sequence, at, file, manifest, key_id, mac FROM archives WHERE sequence > :sequence ORDER BY sequence LIMIT 50
""")
_HEADS = text("""
    SELECT archive, checkout_id, sequence, mac, state FROM archived_heads
     WHERE archive > :after AND archive <= :until ORDER BY archive, checkout_id
""")
_PAYMENTS_ALONE = text("""
    SELECT h.archive, h.checkout_id, EXISTS (SELECT FROM archives a WHERE a.sequence = h.archive) AS listed
      FROM archived_heads h
     WHERE NOT EXISTS (SELECT FROM checkouts c WHERE c.id = h.checkout_id)
        OR NOT EXISTS (SELECT FROM archives a WHERE a.sequence = h.archive)
     ORDER BY 1, 2 LIMIT 100
""")


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an archive says of itself; `before` is the mac of the one before it, `rows` counts by kind."""

    archive: int
    at: datetime
    before: str
    checkouts: int
    entries: int
    rows: dict[str, int]
    first: UUID
    last: UUID
    heads: str
    pages: str


class _Written(msgspec.Struct, rename="camel"):
    """An entry in a page."""

    entry: str
    key_id: str
    mac: str


class _Ended(msgspec.Struct):
    """The head of a chain in a page."""

    sequence: int
    mac: str
    state: str | None

    def head(self) -> Head:
        return Head(self.sequence, bytes.fromhex(self.mac), self.state)


class _Page(msgspec.Struct, tag_field="line", tag="page"):
    """What verification reads of a page."""

    id: UUID
    after: _Ended
    head: _Ended
    entries: list[_Written]


class _Last(msgspec.Struct, rename="camel", tag_field="line", tag="manifest"):
    """The last line."""

    manifest: str
    key_id: str
    mac: str


class _Read(msgspec.Struct):
    """What an entry says of its own place."""

    sequence: int
    at: datetime
    action: str


@dataclass(frozen=True, slots=True)
class Page:
    """The history of one checkout: the head before its first entry, its head, its entries, and rows of other
    kinds as JSON.
    """

    checkout: UUID
    after: Head
    head: Head
    entries: Sequence[Link | Row[Any]]
    rows: Mapping[str, Sequence[msgspec.Raw]]


@dataclass(slots=True)
class Opened:
    """What came of reading a file: its manifest and the mac over it, and what does not hold."""

    manifest: Manifest | None = None
    mac: bytes = b""
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Tally:
    """The totals of pages, for writer and reader."""

    checkouts: int = 0
    entries: int = 0
    first: UUID | None = None
    last: UUID | None = None
    heads: Any = field(default_factory=hashlib.sha256)
    pages: Any = field(default_factory=hashlib.sha256)

    def add(self, line: bytes, checkout: UUID, head: Head, entries: int) -> None:
        self.checkouts += 1
        self.entries += entries
        self.first = self.first or checkout
        self.last = checkout
        self.pages.update(line)
        self.heads.update(_head_line(checkout, head))


def write_archive(
    file: IO[bytes], pages: Iterable[Page], key: Key, *, archive: int, at: datetime, before: bytes
) -> tuple[str, bytes]:
    """Write pages, sorted by id, and their manifest; return the manifest's text and its mac."""
    tally, rows = _Tally(), Counter[str]()
    for page in pages:
        entries = [_Written(entry.entry, entry.key_id, bytes(entry.mac).hex()) for entry in page.entries]
        ends = {"after": _ended(page.after), "head": _ended(page.head)}
        body = {"line": "page", "id": page.checkout, **ends, "entries": entries, **page.rows}
        line = msgspec.json.encode(body) + b"\n"
        file.write(line)
        tally.add(line, page.checkout, page.head, len(page.entries))
        rows.update({kind: len(found) for kind, found in page.rows.items()})
    assert tally.first is not None and tally.last is not None  # noqa: PT018, S101 - there is at least one page
    manifest = Manifest(
        archive=archive,
        at=at,
        before=before.hex(),
        checkouts=tally.checkouts,
        entries=tally.entries,
        rows=rows,
        first=tally.first,
        last=tally.last,
        heads=tally.heads.hexdigest(),
        pages=tally.pages.hexdigest(),
    )
    said = msgspec.json.encode(manifest, order="sorted").decode()
    mac = chain_mac(key, before, said, PURPOSE)
    file.write(msgspec.json.encode(_Last(said, key.id, mac.hex())) + b"\n")
    return said, mac


def _ended(head: Head) -> _Ended:
    return _Ended(head.sequence, bytes(head.mac).hex(), head.state)


def _head_line(checkout: UUID, head: Head) -> bytes:
    return f"{checkout} {head.sequence} {bytes(head.mac).hex()} {head.state}\n".encode()


# ── A file by itself ──────────────────────────────────────────────────────────────────────────────────────

_LINE: Final = msgspec.json.Decoder(_Page | _Last)
_READ: Final = msgspec.json.Decoder(_Read)


def open_archive(path: Path, encryptor: Encryptor) -> Opened:
    """Read a file up to its manifest, and name what does not hold; `OSError` if it cannot be read."""
    opened = Opened()
    try:
        with gzip.open(path, "rb") as file:
            _read(_bounded(file, path.stat().st_size), encryptor, opened)
    except _Inflated as error:
        opened.problems.append(str(error))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        opened.problems.append(f"it is damaged or cut off ({error})")
    return opened


class _Inflated(Exception):  # noqa: N818 - never leaves this module
    """The file inflates to what no archive is."""


def _bounded(file: gzip.GzipFile, size: int) -> Iterator[bytes]:
    """Yield the lines of a file, as far as they can be an archive's."""
    left = INFLATION_FREE + INFLATION_LIMIT * size
    while line := file.readline(min(left, LINE_LIMIT) + 1):
        left -= len(line)
        if left < 0:
            raise _Inflated(
                f"it inflates to more than {INFLATION_LIMIT} times its size, which no archive does"
            )
        if len(line) > LINE_LIMIT:
            raise _Inflated(f"it has a line of more than {LINE_LIMIT} bytes, which no archive has")
        yield line


def _read(lines: Iterable[bytes], encryptor: Encryptor, opened: Opened) -> None:
    tally = _Tally()
    for number, line in enumerate(lines, start=1):
        if opened.manifest is not None:
            opened.problems.append(f"line {number} stands behind the manifest")
            return
        try:
            found = _LINE.decode(line)
            if isinstance(found, _Last):
                _conclude(encryptor, found, tally, opened)
                continue
            after, head = found.after.head(), found.head.head()
            _, problem = walk(encryptor, found.id, map(_link, found.entries), after=after, head=head)
        except (msgspec.DecodeError, ValueError, RecursionError):
            opened.problems.append(f"line {number} is not in the words of an archive")
            return
        if problem is not None:
            opened.problems.append(problem)
        tally.add(line, found.id, head, len(found.entries))
    if opened.manifest is None:
        opened.problems.append("it has no manifest: its end was cut off")


def _link(written: _Written) -> Link:
    told = _READ.decode(written.entry)
    return Link(
        told.sequence, told.at, told.action, written.entry, written.key_id, bytes.fromhex(written.mac)
    )


def _conclude(encryptor: Encryptor, last: _Last, tally: _Tally, opened: Opened) -> None:
    manifest = opened.manifest = msgspec.json.decode(last.manifest, type=Manifest)
    opened.mac = bytes.fromhex(last.mac)
    before = bytes.fromhex(manifest.before)
    problem = unproven(encryptor, before, last.manifest, key_id=last.key_id, mac=opened.mac, purpose=PURPOSE)
    if problem is not None:
        opened.problems.append(f"its manifest {problem}")
    for name, wanted, there in (
        ("checkouts", manifest.checkouts, tally.checkouts),
        ("entries", manifest.entries, tally.entries),
    ):
        if wanted != there:
            opened.problems.append(f"it has {there} {name} and should have {wanted}")
    if manifest.pages != tally.pages.hexdigest() or manifest.heads != tally.heads.hexdigest():
        opened.problems.append("its pages are not those that were written")


# ── The chain of archives ─────────────────────────────────────────────────────────────────────────────────


async def verify_archives(db: Database, encryptor: Encryptor, found: Findings) -> None:
    """Verify that each manifest follows from the one before, and that its heads are those in the tables."""
    before, expected = START, 1
    while True:
        async with db.snapshot() as moment:
            rows = (await moment.execute(ARCHIVES, {"sequence": expected - 1})).all()
            if not rows:
                break
            span = {"after": expected - 1, "until": rows[-1].sequence}
            noted = (await moment.execute(_HEADS, span)).all()
        digests: dict[int, Any] = {}
        for head in noted:
            line = _head_line(head.checkout_id, Head(head.sequence, bytes(head.mac), head.state))
            digests.setdefault(head.archive, hashlib.sha256()).update(line)
        for row in rows:
            found.archives += 1
            if row.sequence != expected:
                found.problems.append(f"archive {expected} is missing")
                return
            problem = _unlisted(encryptor, row, before, digests.get(row.sequence))
            if problem is not None:
                found.problems.append(f"archive {row.sequence} {problem}")
                return
            before, expected = bytes(row.mac), expected + 1
    for missing in await db.read(_PAYMENTS_ALONE):
        said = (
            f"checkout {missing.checkout_id} is missing, though archive {missing.archive} has it"
            if missing.listed
            else f"checkout {missing.checkout_id} is noted as archived in archive {missing.archive}, which does not exist"
        )
        found.problems.append(said)


def _unlisted(encryptor: Encryptor, row: Row[Any], before: bytes, digest: Any) -> str | None:
    problem = unproven(encryptor, before, row.manifest, key_id=row.key_id, mac=row.mac, purpose=PURPOSE)
    if problem is not None:
        return problem
    manifest = msgspec.json.decode(row.manifest, type=Manifest)
    if manifest.archive != row.sequence:
        return f"has the manifest of archive {manifest.archive}"
    if digest is None or digest.hexdigest() != manifest.heads:
        return "does not have the heads that are noted for it"
    return None

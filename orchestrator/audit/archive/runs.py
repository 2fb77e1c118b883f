"""One run of the archive task: batch after batch, then the months.

After a kill at any moment, the next run continues.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from orchestrator import log
from orchestrator.audit.archive import files
from orchestrator.audit.archive.batch import Archived, Choice, Unprovable, choose, stretches, take
from orchestrator.audit.archive.errors import ArchiveError
from orchestrator.audit.archive.lock_timeout import patiently
from orchestrator.audit.archive.months import drop_empty, make_ahead

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path
    from uuid import UUID

    from orchestrator.crypto import Encryptor
    from orchestrator.store.database import Database

_log = log.get(__name__)

MOST_PROBLEMS: Final = 100
"""Trails that do not hold after which the installation is wrong (its keys, say), not some checkouts."""

_FILES = text("SELECT file FROM archives")


@dataclass(slots=True)
class Result:
    """What a run has done. `problems` are checkouts that were left because their trail does not hold."""

    archives: int = 0
    checkouts: int = 0
    entries: int = 0
    problems: list[str] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    # Files in the directory that the database does not name.
    orphans: list[Path] = field(default_factory=list)


async def run(
    db: Database,
    encryptor: Encryptor,
    directory: Path,
    *,
    older_than: float,
    most: int,
    tell: Callable[[Archived], None] | None = None,
) -> Result:
    """Archive what is settled and untouched for so many seconds, at most so many checkouts in a file."""
    result = Result(made=await make_ahead(db))
    choice = await choose(db, older_than=older_than)
    async for stretch in stretches(db, choice):
        async for archived in _batches(
            db, encryptor, directory, stretch, most=most, problems=result.problems
        ):
            result.archives += 1
            result.checkouts += archived.checkouts
            result.entries += archived.entries
            _log.info(
                "archived", archive=archived.number, checkouts=archived.checkouts, entries=archived.entries
            )
            if tell:
                tell(archived)
    result.dropped = await drop_empty(db, before=choice.before)
    result.orphans = files.orphans(directory, {row.file for row in await db.read(_FILES)})
    return result


async def _batches(
    db: Database, encryptor: Encryptor, directory: Path, choice: Choice, *, most: int, problems: list[str]
) -> AsyncIterator[Archived]:
    """Archive all checkouts of one stretch, batch by batch."""
    but: set[UUID] = set()
    while True:
        try:
            archived = await patiently(partial(take, db, encryptor, directory, choice, most=most, but=but))
        except Unprovable as found:
            # Each costs its batch another try; the batch is then written without it.
            but.update(found.problems)
            problems += found.problems.values()
            _log.error("archive_refused", checkouts=len(found.problems))
            if len(problems) >= MOST_PROBLEMS:
                raise ArchiveError(
                    f"the trails of {len(problems)} checkouts and more do not hold (the first: {problems[0]}): see what "
                    "`orchestrator audit verify` says before anything is archived"
                ) from found
            continue
        if archived is None:
            return
        yield archived
        choice = replace(choice, after=archived.last)


def prepare(directory: Path) -> None:
    """Make the directory of the archives, for our own account alone; `ArchiveError` if it cannot be."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ArchiveError(f"{directory} cannot be made ({error.strerror})") from error

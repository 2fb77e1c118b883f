"""The files of archives: whole and on the disk under their name, or not there. None is ever overwritten."""

from __future__ import annotations

import gzip
import os
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Final, cast

from orchestrator.audit.archive.errors import ArchiveError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

_SUFFIX: Final = ".jsonl.gz"
_PREFIX: Final = "archive-"
_LEVEL: Final = 6


@contextmanager
def draft(directory: Path, number: int) -> Iterator[tuple[Path, IO[bytes]]]:
    """Open a file that is no archive yet, in place of a killed run's; after the block it is on the disk."""
    path = directory / f".{_PREFIX}{number:06}.part"
    try:
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as raw:
            with gzip.GzipFile("", "wb", _LEVEL, fileobj=raw, mtime=0) as packed:
                yield path, cast("IO[bytes]", packed)
            raw.flush()
            os.fsync(raw.fileno())
    except OSError as error:
        raise ArchiveError(f"{path} cannot be written ({error.strerror or error})") from error


def name(draft: Path, number: int) -> Path:
    """Give a draft the name of an archive that no file has; return it."""
    for again in range(1, 1000):
        more = "" if again == 1 else f"-{again}"
        path = draft.with_name(f"{_PREFIX}{number:06}{more}{_SUFFIX}")
        try:
            # A link is made only where the name is free.
            os.link(draft, path)
        except FileExistsError:
            continue
        except OSError as error:
            raise ArchiveError(f"{path} cannot be made ({error.strerror})") from error
        draft.unlink()
        _sync(path.parent)
        return path
    raise ArchiveError(
        f"{draft.parent} holds too many files that no archive of this database names: see `orphans`"
    )


def orphans(directory: Path, named: Collection[str]) -> list[Path]:
    """Return archives in a directory that the database does not name: of runs that did not commit."""
    return sorted(path for path in directory.glob(f"{_PREFIX}*{_SUFFIX}") if path.name not in named)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Bringing a database to the schema that this code needs, and telling whether it has it, and is the one that is meant.

A database that cannot be used is one sentence: `NoDatabase`.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.script.revision import ResolutionError
from alembic.util import CommandError
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError, SQLAlchemyError

from orchestrator import log
from orchestrator.db import is_away
from orchestrator.errors import OrchestratorError
from orchestrator.postgres_url import place

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.db import Database

_MIGRATIONS: Final = Path(__file__).resolve().parent.parent / "migrations"
_VERSION = text("SELECT version_num FROM alembic_version")
# Of the youngest checkout, because the primary key finds it at once however long the trail is.
_NEWEST_KEY = text("SELECT key_id FROM audit_entries ORDER BY checkout_id DESC, sequence DESC LIMIT 1")


class NoDatabase(OrchestratorError):  # noqa: N818 - named for the fact
    """Postgres does not answer, or holds no schema that this version can use."""


@contextmanager
def reachable(url: str) -> Iterator[None]:
    """Turn Postgres's own errors within the block into one sentence."""
    try:
        yield
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()
        said = log.scrub(reason[0]) if reason else type(error).__name__
        if not is_away(error):
            raise NoDatabase(f"Postgres refused: {said}") from error
        raise NoDatabase(
            f"Postgres at {place(url)} cannot be used ({said}): start it, or correct ORCHESTRATOR_DATABASE_URL"
        ) from error


def _config(url: str | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["database_url"] = url
    return config


def migrate(url: str, *, to: str = "head", direct: bool = False) -> None:
    """Bring the database at `url` to revision `to`; two at once wait for each other.

    Raises `NoDatabase` behind a pooler, unless the caller says that the URL is `direct`: it leads to a session of its own.
    """
    config = _config(url)
    config.attributes["direct"] = direct
    try:
        command.upgrade(config, to)
    except CommandError as error:
        unknown = error.__cause__.argument if isinstance(error.__cause__, ResolutionError) else to
        if unknown != to and (newer := difference(str(unknown))) is not None:
            raise NoDatabase(newer) from error
        message = f"the database cannot be brought to revision {to!r}: {str(error).rstrip('.')}"
        raise NoDatabase(message) from error


@lru_cache(maxsize=1)
def wanted() -> str:
    """Return the revision that this code needs."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    if head is None:
        message = f"no migrations in {_MIGRATIONS}"
        raise FileNotFoundError(message)
    return head


@lru_cache(maxsize=1)
def _known() -> frozenset[str]:
    return frozenset(one.revision for one in ScriptDirectory.from_config(_config()).walk_revisions())


def difference(found: str | None) -> str | None:
    """Say in a sentence what is wrong with a database that has revision `found`, and what to do; None if it is the one wanted."""
    if found == wanted():
        return None
    if found is None:
        return f"the database has no schema, and needs {wanted()}: run `orchestrator migrate`"
    if found in _known():
        return f"the database has schema {found}, and needs {wanted()}: run `orchestrator migrate`"
    return f"the database has schema {found}, which this code does not know: it is older than the schema, deploy the newer version"


async def current(db: Database) -> str | None:
    """Return the revision that the database has, or None if it has no schema yet."""
    try:
        rows = await db.read(_VERSION)
    except ProgrammingError:
        return None
    return str(rows[0].version_num) if rows else None


async def newest_key(db: Database) -> str | None:
    """Return the id of the secret key under which the youngest checkout's audit trail was last written; None without any."""
    rows = await db.read(_NEWEST_KEY)
    return str(rows[0].key_id) if rows else None

"""Bringing a database to the schema that this code needs, and checking whether it is the intended one.

A database that cannot be used is reported in one sentence: `NoDatabase`.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psycopg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.script.revision import ResolutionError
from alembic.util import CommandError
from psycopg.conninfo import make_conninfo
from sqlalchemy import create_engine, text
from sqlalchemy.exc import ProgrammingError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from orchestrator import log
from orchestrator.errors import OrchestratorError
from orchestrator.settings.postgres_url import parameters, place
from orchestrator.store.database import is_away
from orchestrator.store.sqlstates import NO_SCHEMA, state_of
from orchestrator.store.tables import metadata

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from pydantic import SecretStr
    from sqlalchemy import Connection

    from orchestrator.store.database import Database

OWNER: Final = "orchestrator_owner"
"""The role that owns the schema where migrations/roles.sql made the roles."""
APPLICATION: Final = "orchestrator_app"
"""The role of the processes there; `migrate` grants it what it needs."""

_PACKAGE: Final = Path(__file__).resolve().parents[1]
# A wheel has them inside the package, the repository beside it.
_MIGRATIONS: Final = next(
    path for path in (_PACKAGE / "migrations", _PACKAGE.parent / "migrations") if path.is_dir()
)
# The comment of the table names earlier revisions that the schema serves (`_note_served`).
_VERSION = text(
    "SELECT version_num, obj_description(CAST('alembic_version' AS regclass)) AS served FROM alembic_version"
)
_SERVES: Final = "serves "
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


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def migrate(
    url: str,
    *,
    to: str = "head",
    keys: Sequence[SecretStr] = (),
    grant_to: str | None = None,
    direct: bool = False,
) -> None:
    """Bring the database at `url` to revision `to`; two at once wait for each other. `keys` are SECRET_KEYS,
    newest first: some migrations encrypt or sign rows again. The role `grant_to` is granted what the
    processes need; None: the role `orchestrator_app`, where there is one and the schema is ours. Raises
    `NoDatabase` behind a pooler, unless the URL is `direct`: it leads to a session of its own.
    """
    config = _config(url)
    config.attributes["secret_keys"] = keys
    config.attributes["direct"] = direct
    try:
        _note_served(url, to)
        command.upgrade(config, to)
    except CommandError as error:
        unknown = error.__cause__.argument if isinstance(error.__cause__, ResolutionError) else to
        if unknown != to and (newer := difference(str(unknown))) is not None:
            raise NoDatabase(newer) from error
        message = f"the database cannot be brought to revision {to!r}: {str(error).rstrip('.')}"
        raise NoDatabase(message) from error
    _grant(url, grant_to)


def served() -> list[str]:
    """Return the earlier revisions whose processes may run on this code's schema: those before migrations
    that only add (`SERVES_EARLIER = True` in their modules), the youngest first.
    """
    adding = takewhile(
        lambda script: getattr(script.module, "SERVES_EARLIER", False), _scripts().walk_revisions()
    )
    return [str(script.down_revision) for script in adding]


def _note_served(url: str, to: str) -> None:
    """Write which earlier revisions the schema will serve, before it changes: processes of these versions
    read it once they do not know the revision. What a newer version wrote stays.
    """
    names = served() if to == "head" else []
    said = f"{_SERVES}{' '.join(names)}" if names else None
    with _transaction(url) as connection:
        if connection.exec_driver_sql("SELECT to_regclass('alembic_version')").scalar_one() is not None:
            row = connection.execute(_VERSION).first()
            if row is not None and row.version_num in _known() and row.served != said:
                connection.exec_driver_sql("SET LOCAL lock_timeout = '5s'")
                written = "NULL" if said is None else f"'{said}'"
                connection.exec_driver_sql(f"COMMENT ON TABLE alembic_version IS {written}")


# What a table allows the application where that is less than all four. The trail is written and never
# changed; the rest is kept for ever, or leaves by `orchestrator archive`, which is the owner's; the clock is
# moved by tests alone.
_PRIVILEGES: Final = {
    **dict.fromkeys(("alembic_version", "clock_skew", "archives", "archived_heads"), "SELECT"),
    **dict.fromkeys(
        ("audit_entries", "audit_seals", "console_actions", "merchant_changes"), "SELECT, INSERT"
    ),
    **dict.fromkeys(
        ("merchants", "checkouts", "intents", "payments", "money_operations", "commands", "event_feeds"),
        "SELECT, INSERT, UPDATE",
    ),
}
_OURS: Final = text("""
    SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = :role)
           AND EXISTS (SELECT FROM pg_tables
                        WHERE schemaname = current_schema() AND tablename = 'alembic_version'
                          AND pg_has_role(current_user, tableowner, 'USAGE')) AS ours
""")
_TABLES: Final = text("""
    SELECT c.relname AS name, c.relispartition AS part FROM pg_class c
     WHERE c.relnamespace = CAST(current_schema() AS regnamespace) AND c.relkind IN ('r', 'p')
""")


_ALL: Final = "SELECT, INSERT, UPDATE, DELETE"
_LACKING: Final = text("""
    SELECT n.name, string_agg(n.privilege, ', ') AS privileges
      FROM unnest(CAST(:names AS text[]), CAST(:privileges AS text[])) AS n(name, privilege)
     WHERE NOT has_table_privilege(to_regclass(n.name), n.privilege) GROUP BY n.name ORDER BY n.name
""")
_NEEDED: Final = [
    (name, privilege) for name in metadata.tables for privilege in _PRIVILEGES.get(name, _ALL).split(", ")
]


async def lacking(db: Database) -> dict[str, str]:
    """Return by table what this database's role may not do, and the processes do: "INSERT, UPDATE"."""
    names, privileges = zip(*_NEEDED, strict=True)
    rows = await db.read(_LACKING, {"names": list(names), "privileges": list(privileges)})
    return {row.name: row.privileges for row in rows}


def _grant(url: str, role: str | None) -> None:
    """Let a role do what the processes do and nothing else: what it had on these tables is taken back."""
    with _transaction(url) as connection:
        if role is None:
            role = APPLICATION
            if not connection.execute(_OURS, {"role": role}).scalar_one():
                return
        quote = connection.dialect.identifier_preparer.quote_identifier
        to, schema = quote(role), quote(connection.execute(text("SELECT current_schema()")).scalar_one())
        # Two at once would meet on the same rows of the catalogue.
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('orchestrator.grants'))")
        connection.exec_driver_sql(f"GRANT USAGE ON SCHEMA {schema} TO {to}")
        for table in connection.execute(_TABLES).all():
            name = f"{schema}.{quote(table.name)}"
            connection.exec_driver_sql(f"REVOKE ALL ON {name} FROM {to}")
            if not table.part:
                allowed = _PRIVILEGES.get(table.name, _ALL)
                connection.exec_driver_sql(f"GRANT {allowed} ON {name} TO {to}")
        connection.exec_driver_sql(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {to}")
        connection.exec_driver_sql(f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} TO {to}")


def _transaction(url: str) -> AbstractContextManager[Connection]:
    return create_engine("postgresql+psycopg://", creator=lambda: connect(url), poolclass=NullPool).begin()


def connect(url: str) -> psycopg.Connection:
    """Connect to the server of this URL that takes writes."""
    known = {"connect_timeout": "10", "target_session_attrs": "read-write", **parameters(url)}
    known.pop("prepare_threshold", None)
    return psycopg.connect(make_conninfo("", **known, application_name="orchestrator-migrate"))


def make_roles(url: str, *, owner_password: str, application_password: str) -> None:
    """Make the two roles as a superuser, and give the owner what is there (migrations/roles.sql)."""
    with connect(url) as connection:
        for name, password in (("owner", owner_password), ("application", application_password)):
            connection.execute("SELECT set_config(%s, %s, true)", [f"orchestrator.{name}_password", password])
        connection.execute((_MIGRATIONS / "roles.sql").read_bytes())


@lru_cache(maxsize=1)
def wanted() -> str:
    """Return the revision that this code needs."""
    head = _scripts().get_current_head()
    if head is None:
        message = f"no migrations in {_MIGRATIONS}"
        raise FileNotFoundError(message)
    return head


@lru_cache(maxsize=1)
def _known() -> frozenset[str]:
    return frozenset(script.revision for script in _scripts().walk_revisions())


def difference(found: str | None) -> str | None:
    """Say what is wrong with a database that has revision `found`, and what to do; None: nothing."""
    if found == wanted():
        return None
    if found is None or found in _known():
        has = "no schema" if found is None else f"schema {found}"
        return f"the database has {has}, and needs {wanted()}: run `orchestrator migrate`"
    return f"the database has schema {found}, which this code does not know: it is older than the schema, deploy the newer version"


async def current(db: Database) -> str | None:
    """Return the revision that the database has, or None if it has no schema yet; for a newer one that serves
    this code, the revision that this code needs.
    """
    try:
        rows = await db.read(_VERSION)
    except ProgrammingError as error:
        if state_of(error) not in NO_SCHEMA:
            raise
        return None
    if not rows:
        return None
    revision, said = str(rows[0].version_num), str(rows[0].served or "")
    serves = said.startswith(_SERVES) and wanted() in said.removeprefix(_SERVES).split()
    return wanted() if serves and revision not in _known() else revision


async def newest_key(db: Database) -> str | None:
    """Return the id of the secret key that wrote the youngest checkout's trail last; None without any."""
    rows = await db.read(_NEWEST_KEY)
    return str(rows[0].key_id) if rows else None

"""Alembic's environment: one connection, one lock, and no migration that waits for ever on a busy table."""

import random
import time

from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection, create_engine, pool, text
from sqlalchemy.exc import DBAPIError

from orchestrator import log
from orchestrator.settings import load
from orchestrator.store import schema
from orchestrator.store.tables import PARTITION, metadata

_log = log.get(__name__)


def is_ours(name: str | None, kind: str, _: object) -> bool:
    """Return whether the comparison of tables covers it; partitions are not tables of their own."""
    return kind != "table" or name is None or not PARTITION.fullmatch(name)


def database_url() -> str:
    """Return where to migrate: what the caller says, or the settings."""
    given = context.config.attributes.get("database_url")
    if given:
        return str(given)
    settings = load()
    return settings.migration_url or settings.need("database_url")


URL = database_url()


LOCK = "SELECT pg_try_advisory_lock(hashtext('orchestrator.migrations'))"
OURS = "SELECT pg_backend_pid() = :given"
# What every session of this database starts with. Processes set it for their own sessions too, except behind
# a pooler, where the session is not theirs alone: times are in UTC, every statement goes by index, and a
# statement whose client is gone ends.
DEFAULTS = {"timezone": "UTC", "random_page_cost": "1.1", "client_connection_check_interval": "1s"}
IN_EFFECT = """
    SELECT setting FROM pg_db_role_setting, unnest(setconfig) AS setting
     WHERE setrole IN (0, (SELECT oid FROM pg_roles WHERE rolname = current_user)) AND setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
TIMEOUT = 1800.0
"""Seconds for another migration to come to its end."""


def take_turn(connection: Connection) -> None:
    """Wait for the end of another migration, with no statement open meanwhile: an index built beside the
    traffic waits for all of those.
    """
    deadline = time.monotonic() + TIMEOUT
    while not connection.exec_driver_sql(LOCK).scalar():
        connection.commit()
        if time.monotonic() > deadline:
            message = f"another migration of this database is still running after {TIMEOUT:g} s"
            raise CommandError(message)
        time.sleep(random.uniform(0.1, 0.5))  # noqa: S311 - jitter
    connection.commit()


def need_session(connection: Connection) -> None:
    """Refuse a pooler: the lock, and what a migration sets for its session, would be left with another
    client's server process.
    """
    given = connection.connection.driver_connection.info.backend_pid  # type: ignore[union-attr]
    ours = connection.execute(text(OURS), {"given": given}).scalar()
    connection.commit()
    if not ours:
        message = (
            "this URL leads to a pooler such as PgBouncer, and a migration needs a session of its own: set "
            "ORCHESTRATOR_MIGRATION_URL to Postgres itself"
        )
        raise CommandError(message)


def set_defaults(connection: Connection) -> None:
    """Give the database its defaults, or the role in it where the database is not the role's own.

    Where neither is allowed a process behind a pooler sets in each transaction what matters.
    """
    found = {setting.lower() for setting in connection.exec_driver_sql(IN_EFFECT).scalars()}
    database = connection.exec_driver_sql("SELECT quote_ident(current_database())").scalar()
    connection.commit()
    for setting, value in DEFAULTS.items():
        if f"{setting}={value}".lower() in found:
            continue
        for scope in (f"DATABASE {database}", f"ROLE CURRENT_USER IN DATABASE {database}"):
            try:
                connection.exec_driver_sql(f"ALTER {scope} SET {setting} = '{value}'")
                connection.commit()
                break
            except DBAPIError as error:
                connection.rollback()
                state = getattr(error.orig, "sqlstate", None)
                _log.warning("database_default_not_set", setting=setting, scope=scope, sqlstate=state)


def run() -> None:
    """Run the migrations under an advisory lock, so that two starts at once do not race."""
    if context.is_offline_mode():
        context.configure(dialect_name="postgresql", target_metadata=metadata, literal_binds=True)
        with context.begin_transaction():
            context.run_migrations()
        return
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: schema.connect(URL), poolclass=pool.NullPool
    )
    with engine.connect() as connection:
        if not context.config.attributes.get("direct"):
            need_session(connection)
        take_turn(connection)
        set_defaults(connection)
        context.configure(
            connection=connection,
            target_metadata=metadata,
            compare_server_default=False,
            include_name=is_ours,
        )
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()


run()

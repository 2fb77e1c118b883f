"""Alembic's environment: one connection, one lock, and no migration that waits for ever on a busy table."""

import random
import time

from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection, create_engine, pool

from orchestrator.db import driver_url
from orchestrator.models import PARTITION, metadata
from orchestrator.settings import load


def is_ours(name: str | None, kind: str, _: object) -> bool:
    """Say whether the comparison of tables looks at it; partitions are not tables of their own."""
    return kind != "table" or name is None or not PARTITION.fullmatch(name)


URL = context.config.attributes.get("database_url") or load().need("database_url")


LOCK = "SELECT pg_try_advisory_lock(hashtext('orchestrator.migrations'))"
PATIENCE = 1800.0
"""Seconds for another migration to come to its end."""


def take_turn(connection: Connection) -> None:
    """Wait for whoever migrates now, with no statement open meanwhile: an index built beside the traffic waits for all of those."""
    deadline = time.monotonic() + PATIENCE
    while not connection.exec_driver_sql(LOCK).scalar():
        connection.commit()
        if time.monotonic() > deadline:
            message = f"another migration of this database is still running after {PATIENCE:g} s"
            raise CommandError(message)
        time.sleep(random.uniform(0.1, 0.5))  # noqa: S311 - jitter
    connection.commit()


def run() -> None:
    """Run the migrations under an advisory lock, so that two starts at once do not race."""
    if context.is_offline_mode():
        context.configure(url=driver_url(URL), target_metadata=metadata, literal_binds=True)
        with context.begin_transaction():
            context.run_migrations()
        return
    engine = create_engine(driver_url(URL), poolclass=pool.NullPool, connect_args={"connect_timeout": 10})
    with engine.connect() as connection:
        take_turn(connection)
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

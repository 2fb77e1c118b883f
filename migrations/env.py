"""Alembic's environment: one connection, one lock, and no migration that waits for ever on a busy table."""

from alembic import context
from sqlalchemy import create_engine, pool

from orchestrator.db import driver_url
from orchestrator.models import PARTITION, metadata
from orchestrator.settings import load


def is_ours(name: str | None, kind: str, _: object) -> bool:
    """Say whether the comparison of tables looks at it; partitions are not tables of their own."""
    return kind != "table" or name is None or not PARTITION.fullmatch(name)


URL = context.config.attributes.get("database_url") or load().need("database_url")


def run() -> None:
    """Run the migrations under an advisory lock, so that two starts at once do not race."""
    if context.is_offline_mode():
        context.configure(url=driver_url(URL), target_metadata=metadata, literal_binds=True)
        with context.begin_transaction():
            context.run_migrations()
        return
    engine = create_engine(driver_url(URL), poolclass=pool.NullPool, connect_args={"connect_timeout": 10})
    with engine.connect() as connection:
        connection.exec_driver_sql("SELECT pg_advisory_lock(hashtext('orchestrator.migrations'))")
        connection.commit()
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

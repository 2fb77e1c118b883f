"""A database that an earlier test has used has the content of a new database, or it is not used again."""

from __future__ import annotations

import psycopg
import pytest

CONTENT = """
    SELECT (SELECT array_agg(name ORDER BY id) FROM merchants), (SELECT policies FROM merchants WHERE id = 1),
           (SELECT seconds FROM clock_skew), (SELECT version_num FROM alembic_version), (SELECT count(*) FROM events)
"""


def asked(url, *statements):
    with psycopg.connect(url, autocommit=True) as db:
        for statement in statements:
            found = db.execute(statement)
        return found.fetchone() if found.description else None


def oid(url):
    return asked(url, "SELECT oid FROM pg_database WHERE datname = current_database()")


def used_again(databases) -> bool:
    with databases.database() as first:
        used, fresh = oid(first), asked(first, CONTENT)
        asked(
            first,
            "INSERT INTO merchants (name) VALUES ('second'), ('third')",
            """UPDATE merchants SET policies = '{"lookups_per_minute": 1}', disabled_at = now() WHERE id = 1""",
            "UPDATE clock_skew SET seconds = 60",
        )
        left = psycopg.connect(first)
    with databases.database() as second:
        assert second != first
        assert asked(second, CONTENT) == fresh
        assert asked(second, "INSERT INTO merchants (name) VALUES ('second') RETURNING id") == (2,)
        same = oid(second) == used
    with pytest.raises(psycopg.OperationalError):
        left.execute("SELECT 1")
    left.close()
    return same


def test_a_database_is_used_again_under_a_new_name_with_the_content_of_a_new_database(databases):
    # Autovacuum gathers statistics at any moment, and a database that has them is not used again.
    assert any(used_again(databases) for _ in range(3))


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE more (id int)",
        "DROP INDEX uq_checkouts_live_order",
        "ALTER TABLE checkouts RENAME COLUMN late TO later",
        "ALTER TABLE audit_entries DISABLE TRIGGER ALL",
        "REVOKE UPDATE ON checkouts FROM PUBLIC; GRANT SELECT ON checkouts TO pg_monitor",
        "ALTER FUNCTION clock() COST 7",
        "ANALYZE merchants",
        "DO $$BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = off', current_database()); END$$",
    ],
)
def test_it_is_not_used_again_once_anything_but_rows_was_changed(databases, statement):
    with databases.database() as first:
        used = oid(first)
        asked(first, statement)
    with databases.database() as second:
        assert oid(second) != used

"""The roles of the database: the processes read and write rows, the owner migrates, and neither
can do more.
"""

from __future__ import annotations

import psycopg
import pytest
from psycopg import errors, sql
from psycopg.conninfo import make_conninfo

from orchestrator.store import schema
from orchestrator.store.tables import metadata

ALLOWED = {
    "alembic_version": "SELECT",
    "archived_heads": "SELECT",
    "archives": "SELECT",
    "audit_entries": "INSERT SELECT",
    "audit_seals": "INSERT SELECT",
    "merchant_changes": "INSERT SELECT",
    "checkouts": "INSERT SELECT UPDATE",
    "clock_skew": "SELECT",
    "commands": "INSERT SELECT UPDATE",
    "console_actions": "INSERT SELECT",
    "event_feeds": "INSERT SELECT UPDATE",
    "intents": "INSERT SELECT UPDATE",
    "merchants": "INSERT SELECT UPDATE",
    "money_operations": "INSERT SELECT UPDATE",
    "payments": "INSERT SELECT UPDATE",
}
PRIVILEGES = """
    SELECT c.relname, string_agg(a.privilege_type, ' ' ORDER BY a.privilege_type)
      FROM pg_class c LEFT JOIN LATERAL aclexplode(c.relacl) a ON a.grantee = CAST(%s AS regrole)
     WHERE c.relnamespace = CAST('public' AS regnamespace) AND c.relkind IN ('r', 'p') GROUP BY 1
"""


@pytest.fixture
def as_application(servers, database_url):
    """Log in to the test's own database as the processes of an installation do."""
    with psycopg.connect(
        make_conninfo(servers.database_url, dbname=named(database_url)), autocommit=True
    ) as connection:
        yield connection


def named(url: str) -> str:
    return url.partition("?")[0].rpartition("/")[2]


def test_the_application_may_do_with_each_table_what_it_needs_and_no_more(database_url):
    with psycopg.connect(database_url) as admin:
        found = dict(admin.execute(PRIVILEGES, [schema.APPLICATION]).fetchall())
    usual = "DELETE INSERT SELECT UPDATE"
    for name in {*metadata.tables, "alembic_version"}:
        assert found.pop(name) == ALLOWED.get(name, usual), name
    # Months of the trail are reached through the trail alone.
    assert set(found.values()) == {None}
    assert {name.partition("_2")[0] for name in found} == {
        "audit_entries",
        "audit_entries_before",
        "audit_entries_rest",
    }


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_entries SET action = ''",
        "DELETE FROM audit_entries",
        "DELETE FROM audit_entries_rest",
        "INSERT INTO audit_entries_rest SELECT * FROM audit_entries",
        "TRUNCATE events",
        "ALTER TABLE audit_entries DISABLE TRIGGER ALL",
        "DROP TABLE delivery_streams",
        "CREATE TABLE mine (id int)",
        "CREATE OR REPLACE FUNCTION clock() RETURNS timestamptz LANGUAGE sql AS 'SELECT now()'",
        "UPDATE clock_skew SET seconds = 86400",
        "UPDATE alembic_version SET version_num = '0001'",
        "DELETE FROM commands",
        "DELETE FROM checkouts",
        "INSERT INTO archived_heads SELECT gen_random_uuid(), 1, 1, '', ''",
        "CREATE SCHEMA mine",
        "ALTER DATABASE orchestrator SET log_statement = 'all'",
    ],
)
def test_the_application_cannot_change_the_schema_the_trail_or_the_clock(as_application, statement):
    with pytest.raises(errors.InsufficientPrivilege):
        as_application.execute(statement)


def test_the_application_makes_no_table_of_its_own_in_the_installations_database(servers):
    with psycopg.connect(servers.database_url, autocommit=True) as connection:
        for kind in ("TABLE", "TEMPORARY TABLE"):
            with pytest.raises(errors.InsufficientPrivilege):
                connection.execute(f"CREATE {kind} mine (id int)")


def test_another_name_for_the_role_of_the_processes_is_granted_the_same(servers, database_url):
    role = "processes_of_a_shop"
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(role)))
        try:
            schema.migrate(database_url, grant_to=role)
            found = dict(admin.execute(PRIVILEGES, [role]).fetchall())
            assert found["checkouts"] == "INSERT SELECT UPDATE"
            assert found["events"] == "DELETE INSERT SELECT UPDATE"
        finally:
            admin.execute(
                sql.SQL("DROP OWNED BY {}; DROP ROLE {}").format(sql.Identifier(role), sql.Identifier(role))
            )


def test_a_role_that_is_not_there_is_one_sentence(database_url):
    with (
        pytest.raises(schema.NoDatabase, match='role "no such role" does not exist'),
        schema.reachable(database_url),
    ):
        schema.migrate(database_url, grant_to="no such role")


def test_the_owner_migrates_and_what_it_makes_is_the_applications_to_use(servers, database_url):
    """From nothing, with the rights that roles.sql gives and no others."""
    url = database_url.replace(named(database_url), f"{named(database_url)}_owned")
    name = sql.Identifier(named(url))
    with psycopg.connect(servers.administrator_url, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(name))
        try:
            for _ in range(2):
                schema.make_roles(
                    url,
                    owner_password=password(servers.owner_url),
                    application_password=password(servers.database_url),
                )
            owner = url.replace(login(servers.administrator_url), login(servers.owner_url))
            application = url.replace(login(servers.administrator_url), login(servers.database_url))
            schema.migrate(owner)
            with psycopg.connect(application) as connection:
                assert connection.execute("SELECT name FROM merchants").fetchall() == [("default",)]
                assert connection.execute("SELECT clock() IS NOT NULL").fetchone() == (True,)
            with psycopg.connect(
                servers.administrator_url.replace("/orchestrator?", f"/{named(url)}?")
            ) as other:
                owners = other.execute(
                    "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'"
                )
                assert owners.fetchall() == [(schema.OWNER,)]
        finally:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


def login(url: str) -> str:
    return url.partition("://")[2].partition("@")[0]


def password(url: str) -> str:
    return login(url).partition(":")[2]

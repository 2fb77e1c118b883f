"""Databases for one test each: copied from a template, or used by an earlier test, emptied and under a
new name.

Copying takes several times as long as most tests. A database is used again only if its catalog is what it
was, no statistics were gathered in it, and nothing was set for it. Open connections to it are ended; a later
connection of the earlier test has the old name only.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psycopg
from psycopg import sql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# An object that was made, changed or dropped shows in the number or in the youngest of its catalog's rows.
_CATALOGS = (
    *("pg_class", "pg_proc", "pg_trigger", "pg_constraint", "pg_namespace", "pg_type", "pg_policy", "pg_rewrite"),
    *("pg_default_acl", "pg_attrdef", "pg_extension", "pg_inherits", "pg_statistic", "pg_attribute", "pg_index"),
)  # fmt: skip
_CATALOG = "SELECT " + ", ".join(
    f"(SELECT ROW(count(*), max(CAST(CAST(xmin AS text) AS int8)))::text FROM {name})" for name in _CATALOGS
)
_SET = """
    SELECT count(*) FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase WHERE d.datname = current_database()
"""
_TABLES = """
    SELECT relname FROM pg_class
     WHERE relnamespace = CAST('public' AS regnamespace) AND relkind IN ('r', 'p') AND NOT relispartition ORDER BY relname
"""
_PUT_OUT = """
    SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s AND backend_type = 'client backend'
"""
_SEQUENCES = "SELECT format('%I.%I', schemaname, sequencename), coalesce(last_value, start_value), last_value IS NOT NULL FROM pg_sequences"
_SET_SEQUENCE = "SELECT setval(CAST(%s AS regclass), %s, %s)"


class Databases:
    """What tests of this process use of one server.

    `url` makes the administrator's URL of a name; `template` is migrated.
    """

    def __init__(self, url: Callable[[str], str], administrator: str, template: str) -> None:
        self._url, self._administrator, self._template = url, administrator, template
        self._free: list[tuple[str, Any]] = []
        with self._connected(template) as db:
            self._sequences = db.execute(_SEQUENCES).fetchall()
            self._tables = [name for (name,) in db.execute(_TABLES).fetchall()]
            self._rows = {
                name: rows
                for name in self._tables
                if (
                    rows := db.execute(
                        sql.SQL("SELECT CAST(to_jsonb(t) AS text) FROM {} t").format(sql.Identifier(name))
                    ).fetchall()
                )
            }

    @contextmanager
    def database(self) -> Iterator[str]:
        """Yield the administrator's URL of a database with the schema and nothing else, under a
        name that no earlier test had.
        """
        name = f"test_{uuid4().hex[:12]}"
        if self._free:
            before, catalog = self._free.pop()
            self._admin("ALTER DATABASE {} RENAME TO {}", before, name)
        else:
            self._admin("CREATE DATABASE {} TEMPLATE {}", name, self._template)
            with self._connected(name) as db:
                catalog = self._catalog(db)
        try:
            yield self._url(name)
        finally:
            if self._emptied(name, catalog):
                self._free.append((name, catalog))
            else:
                self._admin("DROP DATABASE {} WITH (FORCE)", name)

    def _emptied(self, name: str, catalog: Any) -> bool:
        """End all connections to a database and leave in it only what the template holds; say whether it
        can be used again.
        """
        try:
            with psycopg.connect(self._administrator, autocommit=True) as admin:
                admin.execute(_PUT_OUT, [name])
            with self._connected(name) as db:
                if self._catalog(db) != catalog:
                    return False
                with db.transaction():
                    # Past the guard of the audit trail; foreign keys are not checked either.
                    db.execute("SET LOCAL session_replication_role = replica")
                    db.execute("SET LOCAL lock_timeout = '5s'")
                    for table in self._tables:
                        db.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(table)))
                    for table, rows in self._rows.items():
                        add = "INSERT INTO {0} OVERRIDING SYSTEM VALUE SELECT * FROM jsonb_populate_record(CAST(NULL AS {0}), CAST(%s AS jsonb))"
                        for row in rows:
                            db.execute(sql.SQL(add).format(sql.Identifier(table)), row)
                    for sequence in self._sequences:
                        db.execute(_SET_SEQUENCE, sequence)
                db.execute("SELECT pg_stat_reset()")
        except psycopg.Error:
            return False
        return True

    @staticmethod
    def _catalog(db: psycopg.Connection[Any]) -> Any:
        return db.execute(_CATALOG).fetchone(), db.execute(_SET).fetchone()

    @contextmanager
    def _connected(self, name: str) -> Iterator[psycopg.Connection[Any]]:
        with psycopg.connect(self._url(name), autocommit=True) as db:
            yield db

    def _admin(self, statement: str, *names: str) -> None:
        with psycopg.connect(self._administrator, autocommit=True) as admin:
            admin.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))

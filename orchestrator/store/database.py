"""Postgres: the engine and short transactions. The only place that commits. A transaction here holds
statements only, never a socket to another server; many small writes go through `batch`.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Self

import psycopg
from psycopg.rows import namedtuple_row
from sqlalchemy import TextClause, event
from sqlalchemy.dialects.postgresql.psycopg import dialect
from sqlalchemy.exc import DBAPIError, InvalidatePoolError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from orchestrator import log
from orchestrator.errors import OrchestratorError
from orchestrator.store.connection import Connection, Server
from orchestrator.store.sqlstates import about_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from sqlalchemy import Executable, Row
    from sqlalchemy.ext.asyncio import AsyncEngine

    from orchestrator.store.connection import Prepared

_log = log.get(__name__)


_LATER: Final = 5.0
"""Seconds by which the client waits longer than Postgres does, where nothing else is said."""
_MAINTENANCE: Final = 86_400.0
"""Seconds for a statement that maintains tables."""
_BEGIN_LOCKED: Final = (
    b"BEGIN ISOLATION LEVEL READ COMMITTED%b; SELECT pg_try_advisory_xact_lock(hashtext('%b'))"
)


class DatabaseAway(OrchestratorError):  # noqa: N818 - named for the fact
    """Postgres could not be reached within the time given. Whether the last write landed is not known."""


def is_away(error: BaseException) -> bool:
    """Say whether an error means that Postgres is out of reach or order, and not that it refused a row."""
    return isinstance(error, DatabaseAway | OSError | TimeoutError) or about_server(error)


class Database:
    """An engine with a small pool, for one event loop; a process has an engine for each kind of work that
    must not wait for another.

    `statement_timeout` is in milliseconds: Postgres itself ends a statement that takes longer, with an error.
    `timeout` is in seconds, and counted here: a statement without an answer by then loses its connection, and
    all connections that are as old are closed too. Give a `timeout` below `statement_timeout` only where
    statements are short and may be repeated. `writes`: whether only a server that takes writes will do; the
    URL's own `target_session_attrs` takes precedence.
    """

    def __init__(
        self,
        url: str,
        *,
        pool_size: int = 6,
        name: str = "orchestrator",
        pool_timeout: float = 30,
        statement_timeout: int = 30_000,
        timeout: float | None = None,
        prepared: Prepared = "auto",
        writes: bool = True,
    ) -> None:
        self._server = Server(
            url,
            name=name,
            statement_timeout=statement_timeout,
            timeout=statement_timeout / 1000 + _LATER if timeout is None else timeout,
            prepared=prepared,
            writes=writes,
        )
        self._engine = create_async_engine(
            "postgresql+psycopg://",
            async_creator=self._server.connect,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=pool_timeout,
            # A failed statement is logged by name; its parameters are people's data.
            hide_parameters=True,
            # A lone statement is a transaction of its own: one round trip instead of three.
            isolation_level="AUTOCOMMIT",
            use_native_hstore=False,
        )
        event.listen(self._engine.sync_engine, "checkout", _leave_outdated)
        self._begun = self._engine.execution_options(isolation_level="READ COMMITTED")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def pooled(self) -> bool:
        """Whether a pooler such as PgBouncer is between, as far as a connection has shown it."""
        return self._server.pooled

    async def close(self) -> None:
        """Close every connection; a statement that is still under way ends as if its connection were lost."""
        for connection in tuple(self._server.waiting):
            connection.cut()
        await self._engine.dispose()
        # The pool closes what it has; what a transaction has between statements would return to no pool.
        self._server.finish()

    @asynccontextmanager
    async def transaction(self, *, timeout: float | None = None) -> AsyncIterator[AsyncConnection]:
        """Open a transaction that the end of the block commits, or an error in it rolls back. `timeout`:
        seconds for each statement, where they may take longer than usual.
        """
        async with self._begun.connect() as connection:
            driver = _driver(connection)
            usual, driver.timeout = driver.timeout, timeout or driver.timeout
            try:
                async with connection.begin():
                    yield connection
            finally:
                driver.timeout = usual

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[AsyncConnection]:
        """Open a read-only transaction in which every statement reads the same snapshot."""
        async with self._engine.connect() as connection:
            await connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            async with connection.begin():
                yield connection

    async def write(self, statement: Executable, parameters: Mapping[str, object]) -> Sequence[Row[Any]]:
        """Run one statement, which is a transaction of its own; return its rows once it is committed."""
        return await self._alone(statement, parameters)

    def kept(self) -> Kept:
        """Return a connection to keep, for a caller whose statements come often and one at a time: to take
        one from the pool and to give it back costs nearly as much as a short statement.
        """
        return Kept(self._engine)

    async def locked(
        self, lock: str, statement: TextClause, parameters: Mapping[str, object]
    ) -> Sequence[Row[Any]] | None:
        """Run one statement in a transaction that has an advisory lock, and return its rows once it is
        committed; None where another transaction has the lock.

        The lock has a statement of its own, since what is read beside a lock is as old as its statement. It
        goes to the server with BEGIN, and nothing above the driver takes part: two thirds of the CPU that
        `transaction` takes.
        """
        async with self._engine.connect() as connection:
            driver = _driver(connection)
            try:
                cursor = await driver.execute(_BEGIN_LOCKED % (driver.local, lock.encode()), prepare=False)
                while cursor.nextset():
                    pass
                row = await cursor.fetchone()
                if row is None or not row[0]:
                    await driver.execute(b"ROLLBACK", prepare=False)
                    return None
                rows = await run(connection, statement, parameters)
                await self._commit(driver)
            except psycopg.Error as error:
                raise await _raised(connection, driver, lock, error) from error
            except asyncio.CancelledError:
                if driver.closed:
                    await connection.invalidate()
                raise
        return rows

    async def _commit(self, driver: Connection) -> None:
        await driver.execute(b"COMMIT", prepare=False)

    async def connect_anew(self) -> None:
        """Connect beside the pool, and close: the pool's own may work where no other one is accepted."""
        try:
            connection = await self._server.connect()
        except psycopg.Error as error:
            raise _wrapped("", error, lost=True) from error
        await connection.close()

    async def maintain(self, statement: str) -> None:
        """Run a long statement outside of transactions, such as VACUUM, on a connection of its own."""
        connection = None
        try:
            connection = await self._server.connect(statement_timeout=0, timeout=_MAINTENANCE)
            await connection.execute(statement.encode())
        except psycopg.Error as error:
            raise _wrapped(statement, error, lost=connection is None or connection.closed) from error
        finally:
            if connection is not None:
                await connection.close()

    async def read(
        self, statement: Executable, parameters: Mapping[str, object] | None = None
    ) -> Sequence[Row[Any]]:
        """Run one reading statement; again where the pooled connection is dead (Postgres was restarted)."""
        try:
            return await self._alone(statement, parameters or {})
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
        return await self._alone(statement, parameters or {})

    async def _alone(self, statement: Executable, parameters: Mapping[str, object]) -> Sequence[Row[Any]]:
        async with self._engine.connect() as connection:
            return await run(connection, statement, parameters)


class Kept:
    """A connection of the pool that stays with its caller, and is taken anew after an error."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._connection: AsyncConnection | None = None

    async def write(self, statement: TextClause, parameters: Mapping[str, object]) -> Sequence[Row[Any]]:
        """Run one statement as `Database.write` does; one at a time."""
        connection = self._connection
        if connection is not None and _driver(connection).outdated:
            await self.close()
            connection = None
        if connection is None:
            connection = self._connection = await self._engine.connect()
        try:
            return await run(connection, statement, parameters)
        except BaseException:
            await asyncio.shield(self.close())
            raise

    async def close(self) -> None:
        """Give the connection back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


async def run(
    connection: AsyncConnection, statement: Executable, parameters: Mapping[str, object]
) -> Sequence[Row[Any]]:
    """Run a statement, in the transaction that the connection is in; return its rows. A text goes to the
    driver as it is, for a third of the time that compiling and results cost.
    """
    if not isinstance(statement, TextClause):
        result = await connection.execute(statement, parameters)
        return result.all() if result.returns_rows else ()
    driver: Any = _driver(connection)
    try:
        async with driver.cursor(row_factory=namedtuple_row) as cursor:
            await cursor.execute(_driver_text(statement), parameters)
            # Named tuples have of a Row what is used here: names, places, _asdict.
            return await cursor.fetchall() if cursor.description else ()
    except psycopg.Error as error:
        raise await _raised(connection, driver, statement.text, error) from error
    except asyncio.CancelledError:
        if driver.closed:
            # Or the pool would try to roll back on it.
            await connection.invalidate()
        raise


async def _raised(
    connection: AsyncConnection, driver: Connection, statement: str, error: psycopg.Error
) -> DBAPIError:
    if driver.closed:
        # SQLAlchemy finds out for itself and throws away what its pool holds from before.
        with suppress(DBAPIError):
            await connection.exec_driver_sql("SELECT 1")
    return _wrapped(statement, error, lost=driver.closed)


def _leave_outdated(connection: Any, *_: object) -> None:
    """Have the pool connect anew where a server takes no writes any more: what is read there grows old."""
    if connection.driver_connection.outdated:
        raise InvalidatePoolError


def _driver(connection: AsyncConnection) -> Connection:
    assert connection.sync_connection is not None  # noqa: S101 - it is, inside the block that connects
    driver: Any = connection.sync_connection.connection.driver_connection
    assert isinstance(driver, Connection)  # noqa: S101 - every one is made by `Server.connect`
    return driver


def _wrapped(statement: str, error: psycopg.Error, *, lost: bool) -> DBAPIError:
    """Return an error of the driver as SQLAlchemy would have raised it."""
    wrapped = DBAPIError.instance(
        statement,
        None,
        error,
        psycopg.Error,
        hide_parameters=True,
        connection_invalidated=lost,
        dialect=_DIALECT,
    )
    assert isinstance(wrapped, DBAPIError)  # noqa: S101 - of an error of psycopg's it is one
    return wrapped


_DIALECT: Final = dialect()  # type: ignore[no-untyped-call]


@lru_cache(maxsize=256)
def _driver_text(statement: TextClause) -> str:
    """Return a statement as psycopg reads it."""
    return str(statement.compile(dialect=_DIALECT))

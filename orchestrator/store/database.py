"""Postgres: the engine, short transactions, and the batch writer. The only place that commits.

A transaction here holds statements only, never a socket to anybody else. `Batch` turns many small writes into
few large ones: it takes whatever has gathered while the last commit ran, so that it adds no wait when idle
and grows under load; where many come at once it lets a few milliseconds' worth of them gather.

The batch writer is exact: no two items of a batch have a key in common; an item whose row somebody else holds
goes into a later batch; a row that Postgres refuses is found by bisection and fails only its own waiter; a
connection lost at COMMIT means *not known*, and the batch is written again, so a write must recognise its own
earlier success.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar

import psycopg
from psycopg.rows import namedtuple_row
from sqlalchemy import TextClause, event
from sqlalchemy.dialects.postgresql.psycopg import dialect
from sqlalchemy.exc import (
    DBAPIError,
    InvalidatePoolError,
)
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from orchestrator import log
from orchestrator.errors import OrchestratorError
from orchestrator.shutdown import cancelled
from orchestrator.store.connection import STRETCH, Connection, Server, Unanswered
from orchestrator.store.sqlstates import about_server, state_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Mapping, Sequence

    from sqlalchemy import Executable, Row

    from orchestrator.store.connection import Prepared

_log = log.get(__name__)

T = TypeVar("T")
R = TypeVar("R")


_REST: Final = 3.0
"""How many times as long as a batch took the next may wait for more, where there is a burst."""
_LONGEST_REST: Final = 0.015
_LATER: Final = 5.0
"""Seconds by which the client waits longer than Postgres does, where nothing else is said."""
_MAINTENANCE: Final = 86_400.0
"""Seconds for a statement that maintains tables."""
_ONE_WRITE: Final = 30.0
"""Seconds for one write of a batch, with everything that it waits for."""
_CLOSING: Final = 10.0
"""Seconds that a batch gets to write what is queued when it is closed."""


class Unwritten(OrchestratorError):  # noqa: N818 - named for the fact
    """Postgres refused this row for good; nothing of it was written, and its batch was written without it."""


class DatabaseAway(OrchestratorError):  # noqa: N818 - named for the fact
    """Postgres could not be reached within the time given. Whether the last write landed is not known."""


class Again:
    """Returned by a write for an item that could not be tried: somebody else holds its row.

    It goes into a later batch.
    """


AGAIN: Final = Again()


def is_away(error: BaseException) -> bool:
    """Say whether an error means that Postgres is out of reach or out of order, rather than that it refused a
    row.
    """
    return isinstance(error, DatabaseAway | OSError | TimeoutError) or about_server(error)


class Database:
    """An engine with a small pool, for one event loop; a process has one for each kind of work that must not
    wait for another.

    `statement_timeout` is in milliseconds: Postgres itself ends a statement that takes longer, and the caller
    is told so. `timeout` is in seconds, and counted here: a statement without an answer by then loses its
    connection, and with it go all that are as old. Give a `timeout` below `statement_timeout` only where
    statements are short and may be repeated. `writes`: whether only a server that takes writes is good
    enough; the URL's own `target_session_attrs` goes before it.
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
        self._server = Server.of(
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
            # A lone statement is a transaction of its own: Postgres opens and commits it, one round trip
            # instead of three.
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
        # The pool closes what it has. A connection that a transaction still has between two statements would
        # go back to a pool that is no more.
        self._server.finish()

    @asynccontextmanager
    async def transaction(self, *, timeout: float | None = None) -> AsyncIterator[AsyncConnection]:
        """Open a transaction that is committed at the end of the block, or rolled back by an error in it.

        `timeout`: seconds for each of its statements, where they may take longer than those of this database
        otherwise do.
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
        """Open a read-only transaction in which every statement sees the same moment."""
        async with self._engine.connect() as connection:
            await connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            async with connection.begin():
                yield connection

    async def write(self, statement: Executable, parameters: Mapping[str, object]) -> Sequence[Row[Any]]:
        """Run one writing statement, which is a transaction of its own; return its rows once it
        is committed.
        """
        return await self._alone(statement, parameters)

    async def knock(self) -> None:
        """Open a connection beside the pool and close it again: those of the pool may go on where no other
        one is let in.
        """
        try:
            connection = await self._server.connect()
        except psycopg.Error as error:
            raise _wrapped("", error, lost=True) from error
        await connection.close()

    async def maintain(self, statement: str) -> None:
        """Run a statement that takes its time and stands in no transaction, such as VACUUM, on a connection
        of its own.
        """
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
        """Run one reading statement; once more where the pooled connection turns out to be dead (Postgres was
        restarted).
        """
        try:
            return await self._alone(statement, parameters or {})
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
        return await self._alone(statement, parameters or {})

    async def _alone(self, statement: Executable, parameters: Mapping[str, object]) -> Sequence[Row[Any]]:
        async with self._engine.connect() as connection:
            return await run(connection, statement, parameters)


async def run(
    connection: AsyncConnection, statement: Executable, parameters: Mapping[str, object]
) -> Sequence[Row[Any]]:
    """Run a statement, in the transaction that the connection is in; return its rows.

    One that is text already goes to the driver as it is, for a third of the time that compiling and results
    cost.
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
        if driver.closed:
            # SQLAlchemy finds out for itself and throws away what its pool holds from before.
            with suppress(DBAPIError):
                await connection.exec_driver_sql("SELECT 1")
        raise _wrapped(statement.text, error, lost=driver.closed) from error
    except asyncio.CancelledError:
        if driver.closed:
            # Or the pool would try to roll back on it.
            await connection.invalidate()
        raise


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


@dataclass(slots=True, eq=False)
class _Waiting(Generic[T, R]):
    item: T
    keys: Sequence[Hashable]
    done: asyncio.Future[R]
    # Why it still waits: the last error, or that somebody else holds its row.
    error: Exception | None = None
    skipped: bool = False


@dataclass(frozen=True, slots=True)
class Writes:
    """How a writer fares: seconds since it last wrote while something waits (0 if nothing does), and the
    SQLSTATE that it failed with.
    """

    name: str
    stalled: float
    error: str
    committed: float | None
    """Seconds since it last wrote; None if it never did."""


class Batch(Generic[T, R]):
    """Gathers items and writes them together; each `put` waits for the fate of its own item.

    `write` takes a list of items, no two of which share any of their `keys`, and returns one result for each,
    in order, or `AGAIN`. It must be safe to repeat: after a lost connection the same list is written again,
    and what had landed must be reported as landed.
    """

    def __init__(
        self,
        write: Callable[[list[T]], Awaitable[Sequence[R | Again]]],
        *,
        keys: Callable[[T], Sequence[Hashable]],
        limit: int = 500,
        backlog: int = 20_000,
        timeout: float = 30.0,
        name: str = "batch",
    ) -> None:
        self._write = write
        self._keys = keys
        self._limit = limit
        self._room = asyncio.Semaphore(backlog)
        self._timeout = timeout
        self._name = name
        self._queue: deque[_Waiting[T, R]] = deque()
        self._wakeup = asyncio.Event()
        self._writing = False
        self._under_way: list[_Waiting[T, R]] = []
        self._wrote = self._waits_since = -math.inf
        self._error = ""
        self._runner: asyncio.Task[None] | None = None

    @property
    def writes(self) -> Writes:
        """How writing fares, for health: by what was written, and not by what could be read."""
        now = time.monotonic()
        waits = any(not waiting.done.done() for waiting in (*self._under_way, *self._queue))
        return Writes(
            self._name,
            now - max(self._wrote, self._waits_since) if waits else 0.0,
            self._error,
            now - self._wrote if self._wrote > -math.inf else None,
        )

    async def put(self, item: T) -> R:
        """Write `item` with whatever else has gathered and return its result.

        Raises `Unwritten` if Postgres refuses this item, `DatabaseAway` if its fate is not known within the
        patience: Postgres is out of reach, hangs in the middle of a write, or somebody else holds the row.
        """
        loop = asyncio.get_running_loop()
        async with self._room:
            waiting: _Waiting[T, R] = _Waiting(item, self._keys(item), loop.create_future())
            if not self._writing and not self._queue:
                self._waits_since = time.monotonic()
            self._queue.append(waiting)
            if self._runner is None:
                self._runner = asyncio.create_task(self._run(), name=f"batch-{self._name}")
            self._wakeup.set()
            timer = loop.call_later(self._timeout, self._give_up, waiting)
            try:
                return await waiting.done
            finally:
                timer.cancel()

    def _give_up(self, waiting: _Waiting[T, R]) -> None:
        why = "another transaction holds the row" if waiting.skipped else "Postgres is out of reach"
        _fail(
            waiting, DatabaseAway(f"not known to be written after {self._timeout:g} s: {why}"), waiting.error
        )

    async def close(self, *, within: float = _CLOSING) -> None:
        """Write what is queued, for so many seconds at most, then stop; what is left fails with
        `DatabaseAway`.
        """
        end = time.monotonic() + within
        try:
            while (self._queue or self._writing) and time.monotonic() < end:  # noqa: ASYNC110 - once in the life of a process
                await asyncio.sleep(0.005)
        finally:
            left = (*self._under_way, *self._queue)
            if self._runner is not None:
                await cancelled([self._runner])
                self._runner = None
            for waiting in left:
                _fail(waiting, DatabaseAway("not known to be written: the process ends"), waiting.error)

    async def _run(self) -> None:
        while True:
            await self._wakeup.wait()
            self._wakeup.clear()
            self._writing = True
            try:
                while self._queue:
                    # One turn of the loop: whoever is ready at this moment gets into this batch.
                    await asyncio.sleep(0)
                    begun = time.monotonic()
                    self._under_way = self._take()
                    progress = await self._settle(self._under_way)
                    if not progress:
                        await asyncio.sleep(random.uniform(0.002, 0.02))  # noqa: S311 - jitter
                    elif self._queue:
                        # A burst: a batch costs far more than another row in it, so let some gather. Whoever
                        # comes alone, or one after the other, never waits.
                        await asyncio.sleep(min((time.monotonic() - begun) * _REST, _LONGEST_REST))
            finally:
                self._writing = False
                self._under_way = []

    def _take(self) -> list[_Waiting[T, R]]:
        taken: list[_Waiting[T, R]] = []
        keys: set[Hashable] = set()
        later: list[_Waiting[T, R]] = []
        while self._queue and len(taken) < self._limit:
            waiting = self._queue.popleft()
            if waiting.done.done():
                continue
            if keys.isdisjoint(waiting.keys):
                keys.update(waiting.keys)
                taken.append(waiting)
            else:
                later.append(waiting)
        self._queue.extendleft(reversed(later))
        return taken

    async def _settle(self, batch: list[_Waiting[T, R]]) -> bool:
        """Write one batch and tell its waiters; return whether anything but waiting came of it."""
        delay, stretch = 0.05, 1.0
        while batch:
            STRETCH.set(stretch)
            try:
                async with asyncio.timeout(_ONE_WRITE):
                    results = await self._write([waiting.item for waiting in batch])
            except Exception as error:  # noqa: BLE001 - a waiter must hear of every failure, whatever it is
                if not is_away(error):
                    await self._bisect(batch, error)
                    return True
                _log.warning("batch_postponed", batch=self._name, size=len(batch), **log.cause(error))
                if isinstance(getattr(error, "orig", None), Unanswered):
                    # Silent, or slow: in that case it gets there in the end.
                    stretch *= 2
                self._error = state_of(error)
                for waiting in batch:
                    waiting.error, waiting.skipped = error, False
                await asyncio.sleep(random.uniform(0, delay))  # noqa: S311 - jitter
                delay = min(delay * 2, 0.5)
                # Whoever has gone (cancelled, or out of patience) is written no more.
                batch = [waiting for waiting in batch if not waiting.done.done()]
            else:
                return self._tell(batch, results)
        return True

    def _tell(self, batch: list[_Waiting[T, R]], results: Sequence[R | Again]) -> bool:
        progress = False
        for waiting, result in zip(batch, results, strict=True):
            if isinstance(result, Again):
                waiting.skipped = True
                self._queue.append(waiting)
                continue
            progress = True
            if not waiting.done.done():
                waiting.done.set_result(result)
        if progress:
            self._wrote, self._error = time.monotonic(), ""
        return progress

    async def _bisect(self, batch: list[_Waiting[T, R]], error: Exception) -> None:
        if len(batch) == 1:
            _log.error("row_refused", batch=self._name, **log.cause(error))
            _fail(batch[0], Unwritten(f"Postgres refused this row ({type(error).__name__})"), error)
            return
        half = len(batch) // 2
        await self._settle(batch[:half])
        await self._settle(batch[half:])


def _fail(waiting: _Waiting[Any, Any], failure: OrchestratorError, cause: BaseException | None) -> None:
    if not waiting.done.done():
        failure.__cause__ = cause
        waiting.done.set_exception(failure)


__all__ = [
    "AGAIN",
    "Again",
    "Batch",
    "Database",
    "DatabaseAway",
    "Unwritten",
    "Writes",
    "is_away",
    "run",
    "state_of",
]

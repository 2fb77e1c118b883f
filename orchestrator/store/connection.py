"""One connection to Postgres: every wait has a bound, and a connection that is no longer usable is closed at
once.

A statement that is not answered within its bound, or whose caller is cancelled, closes its socket: a
connection that may be silent is not used again, neither for a cancel nor for a rollback. A server that became
read-only, shuts down or starts ends the connection with its answer. The pool above (`database`) drops every
older connection when it finds one closed, so that the next statement connects anew.

Behind a pooler in transaction mode (PgBouncer) the server's session belongs to other clients too. It is
recognised: the process id that the pooler gave is not that of the server process. Such a connection leaves
nothing in the session: no setting, and no prepared statement. What neither the database nor the role sets
goes with the BEGIN of each transaction.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
import time
from contextlib import suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar
from weakref import WeakSet

import psycopg
from psycopg import errors, generators, waiting
from psycopg._conninfo_attempts_async import conninfo_attempts_async
from psycopg.pq import ExecStatus, TransactionStatus

from orchestrator.settings.postgres_url import parameters, prepare_threshold
from orchestrator.store.sqlstates import ENDING, OTHERS_STATEMENTS, READ_ONLY

if TYPE_CHECKING:
    from psycopg.abc import ConnMapping, PQGen

Prepared = Literal["auto", "on", "off"]
RV = TypeVar("RV")

_CONNECT_TIMEOUT: Final = 3
"""Seconds for each address of each host."""
_SESSION_TIMEOUT: Final = 3.0
"""Seconds for the first statement of a connection."""
_SUSPECT: Final = 1.0
"""Seconds that a connection without received data gets after another one fell silent."""
_LONGEST: Final = 30.0
"""Seconds to which the bound of a repeated statement grows at most."""
_SHORTEST_IDLE: Final = 1.0
"""Seconds for which a transaction may be without a statement at least, however short its statements are."""
_PREPARE_AFTER: Final = "5"
"""Executions after which psycopg prepares a statement; its own default."""

STRETCH: ContextVar[float] = ContextVar("stretch", default=1.0)
"""How many times its usual bound a statement gets: a batch that passed it is repeated with more."""


class Unanswered(psycopg.OperationalError):
    """No answer within the bound: whether the statement ran is not known; its connection is closed."""


class Server:
    """Where connections go, and how they behave; what the URL says goes before the defaults here.

    `statement_timeout` is kept by the server, in milliseconds; `timeout` is the client's, in seconds.
    `writes`: only a server that takes writes will do.
    """

    def __init__(
        self, url: str, *, name: str, statement_timeout: int, timeout: float, prepared: Prepared, writes: bool
    ) -> None:
        given = parameters(url)
        self.threshold = prepare_threshold(given.pop("prepare_threshold", _PREPARE_AFTER))
        """Executions after which a statement is prepared, where it may be."""
        self.parameters: dict[str, str] = {
            "connect_timeout": str(_CONNECT_TIMEOUT),
            "target_session_attrs": "read-write" if writes else "any",
            # A dead peer is noticed in seconds, not after the kernel's two hours or fifteen minutes.
            "keepalives_idle": "10",
            "keepalives_interval": "5",
            "keepalives_count": "3",
            "tcp_user_timeout": "10000",
            **given,
            "application_name": name,
        }
        self.to_write = self.parameters["target_session_attrs"] == "read-write"
        self.statement_timeout, self.timeout, self.prepared = statement_timeout, timeout, prepared
        # Not longer than a statement: what repeats a write must not wait for the silent transaction's locks.
        self.idle_timeout = round(min(max(timeout, _SHORTEST_IDLE), _LONGEST) * 1000)
        self.pooled = False
        """Whether the last connection was given by a pooler."""
        self.met_others = False
        """Whether prepared statements of other clients were met, which a pooler shows that hides itself."""
        self.waiting: set[Connection] = set()
        self.connections: WeakSet[Connection] = WeakSet()
        """Every connection that was made, until it is gone."""

    async def connect(
        self, *, statement_timeout: int | None = None, timeout: float | None = None
    ) -> Connection:
        """Connect to the first address of the first host that accepts the session, and set it up, in one
        round trip. Whether it takes writes is queried: a pooler keeps announcing the state of its first
        connection.
        """
        limit = self.statement_timeout if statement_timeout is None else statement_timeout
        asked = {**self.parameters, "target_session_attrs": "any"} if self.to_write else self.parameters
        failures = []
        for address in await conninfo_attempts_async(asked):
            try:
                connection = await self._connect_to(address, limit)
            except psycopg.Error as error:
                failures.append(error)
            else:
                connection.timeout = self.timeout if timeout is None else timeout
                return connection
        if len(failures) == 1:
            raise failures[0]
        told = "\n- ".join(str(error).strip() for error in failures)
        raise type(failures[-1])(f"{failures[-1]}\nNo address could be used:\n- {told}") from failures[-1]

    async def _connect_to(self, address: ConnMapping, statement_timeout: int) -> Connection:
        connection = await Connection.connect(**address, autocommit=True)  # type: ignore[arg-type]
        connection.server, connection.timeout = self, _SESSION_TIMEOUT
        try:
            await connection.settle(statement_timeout)
        except BaseException:
            connection.pgconn.finish()
            raise
        self.connections.add(connection)
        return connection

    def finish(self) -> None:
        """Close every connection; a statement that is under way ends as if it were lost."""
        for connection in tuple(self.connections):
            if connection in self.waiting:
                connection.cut()
            else:
                connection.pgconn.finish()


class Connection(psycopg.AsyncConnection[Any]):
    """A connection whose waits are bounded; `timeout` is in seconds and may be changed at any time."""

    server: Server
    timeout: float
    pooled = False
    """Whether the server's session is shared with other clients, by a pooler."""
    local = b""
    """What neither session, role nor database sets: statements for a transaction, each after a `;`."""
    _began = _received_at = -math.inf

    @property
    def outdated(self) -> bool:
        """Whether its server takes no writes any more, which Postgres 14 reports to every session. A pooler
        passes a report to any client, so behind one a write or a new connection has to detect it.
        """
        if self.pooled or not self.server.to_write:
            return False
        told = self.pgconn.parameter_status
        return told(b"default_transaction_read_only") == b"on" or told(b"in_hot_standby") == b"on"

    async def settle(self, statement_timeout: int) -> None:
        """Set the session's settings where it is not shared; where it is, read what is set already. Raises
        `OperationalError` where a server that takes writes is required, and this one does not.

        Both in one statement: its settings end with it unless the server process is that of this
        connection.
        """
        ours = f"pg_backend_pid() = {self.pgconn.backend_pid}"
        wanted = {
            "timezone": "'UTC'",
            # A page anywhere costs about as much as the next one: statements are meant to go by index.
            "random_page_cost": "'1.1'",
            "statement_timeout": f"'{statement_timeout}'",
            "idle_in_transaction_session_timeout": f"'{self.server.idle_timeout}'",
        }
        session = {
            **wanted,
            # A statement whose client has closed its connection is given up. Postgres on Windows cannot.
            "client_connection_check_interval": "CASE WHEN version() ~* 'windows|mingw|visual c' THEN '0' ELSE '1000' END",
        }
        set_up = (f"set_config('{name}', {value}, NOT {ours})" for name, value in session.items())
        # Any bound that is set is enough. The query comes first: a row is computed from left to right.
        in_effect = (
            f"current_setting('{name}') " + ("<> '0'" if name.endswith("timeout") else f"= {value}")
            for name, value in wanted.items()
        )
        only_reads = "current_setting('transaction_read_only') = 'on'"
        cursor = await self.execute(f"SELECT {', '.join((ours, only_reads, *in_effect, *set_up))}")
        row = await cursor.fetchone()
        assert row is not None  # noqa: S101 - a SELECT without FROM has one row
        is_ours, reads, *known = row
        if reads and self.server.to_write:
            message = f"connection to {self.info.host}, port {self.info.port}: session is read-only"
            raise psycopg.OperationalError(message)
        self.pooled = self.server.pooled = not is_ours
        if self.pooled:
            missing = (name for name, set_already in zip(wanted, known, strict=False) if not set_already)
            self.local = "".join(f"; SET LOCAL {name} = {wanted[name]}" for name in missing).encode()
        shared = self.pooled or self.server.met_others
        prepares = self.server.prepared == "on" or (self.server.prepared == "auto" and not shared)
        self.prepare_threshold = self.server.threshold if prepares else None

    def _start_query(self) -> PQGen[None]:
        """Begin a transaction where none is open; what is local to it goes along in the same round trip."""
        if not self.local or self.autocommit or self.pgconn.transaction_status != TransactionStatus.IDLE:
            yield from super()._start_query()
            return
        self.pgconn.send_query(self._get_tx_start_command() + self.local)
        for result in (yield from generators.execute(self.pgconn)):
            if result.status != ExecStatus.COMMAND_OK:
                raise errors.error_from_result(result)

    async def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        """Run one exchange with the server, within the bound; all of psycopg's traffic comes here."""
        bound = self.timeout if timeout is None else timeout
        stretch = STRETCH.get()
        if stretch > 1:
            bound = max(bound, min(bound * stretch, _LONGEST))
        self._began = time.monotonic()
        others = self.server.waiting
        others.add(self)
        try:
            result = await waiting.wait_async(gen, self.pgconn.socket, interval=interval, timeout=bound)
        except errors._WaitTimeout:  # noqa: SLF001 - what `wait_async` says it raises
            self.pgconn.finish()
            self._suspect_others()
            raise Unanswered(f"no answer within {bound:g} s; the connection was closed") from None
        except psycopg.Error as error:
            self._heed(error)
            raise
        except BaseException:
            # The caller is cancelled. The server ends the statement when it finds the connection closed.
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                self.pgconn.finish()
            raise
        else:
            self._received_at = time.monotonic()
            return result
        finally:
            others.discard(self)

    def cut(self) -> None:
        """End the exchange under way, if any, as a lost connection: its caller gets the error at once."""
        with (
            suppress(psycopg.OperationalError, OSError),
            socket.socket(fileno=os.dup(self.pgconn.socket)) as ours,
        ):
            ours.shutdown(socket.SHUT_RDWR)

    def _heed(self, error: psycopg.Error) -> None:
        """Close the connection where the error says that it, or its server, is of no more use."""
        state = error.sqlstate
        if state is None:
            return
        self._received_at = time.monotonic()
        if state in OTHERS_STATEMENTS:
            self.server.met_others = True
        if state == READ_ONLY or state in OTHERS_STATEMENTS or state.startswith(ENDING):
            self.pgconn.finish()

    def _suspect_others(self) -> None:
        """Shorten the wait of others that received nothing since this exchange began: they may be silent."""
        loop = asyncio.get_running_loop()
        for other in self.server.waiting:
            if other is not self and other._received_at < self._began:  # noqa: SLF001 - of the same class
                loop.call_later(_SUSPECT, other._cut_unless_received, other._began)  # noqa: SLF001

    def _cut_unless_received(self, began: float) -> None:
        if self in self.server.waiting and self._began == began:
            self.cut()

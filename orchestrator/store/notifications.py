"""Notifications of Postgres: they start a check at once for work that the next check would find anyway.

None is relied on: a lost one costs delay only. Behind a pooler in transaction mode none arrives, and that is
reported.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import psycopg
from sqlalchemy import text

from orchestrator import log
from orchestrator.store.connection import Server
from orchestrator.store.database import run

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncConnection

    from orchestrator.store.connection import Connection, Prepared

_log = log.get(__name__)

DELIVERIES: Final = "orchestrator_deliveries"
"""Endpoints with new events, as ids separated by blanks; `*`: an endpoint has changed; empty: check all."""
_LONGEST: Final = 7000
"""Bytes of a notification."""
TOLD: Final = (
    f"""pg_notify('{DELIVERIES}', CASE WHEN octet_length(said) <= {_LONGEST} THEN said ELSE '' END)"""
)
"""SQL: tell deliverers after the commit what is new, the text `said`; where it is too long, to check all."""
_NOTIFY = text(f"SELECT {TOLD} FROM CAST(:said AS text) said")  # noqa: S608 - made of our own constants
AGAIN: Final = 5.0
"""Seconds between two connections."""


async def notify(tx: AsyncConnection, said: str) -> None:
    """Tell deliverers after the commit what is new."""
    await run(tx, _NOTIFY, {"said": said})


class Listener:
    """Receives one channel on a connection of its own; `heard` is called on the loop with each payload."""

    def __init__(self, url: str, channel: str, heard: Callable[[str], None], *, prepared: Prepared) -> None:
        self._server = Server(
            url,
            name="orchestrator-listener",
            statement_timeout=10_000,
            timeout=5.0,
            prepared=prepared,
            writes=True,
        )
        self._channel, self._receive = channel, heard
        self.listening = False
        """Whether it receives at this moment."""

    async def run(self) -> None:
        """Listen until cancelled; a lost connection is made again. Returns at once behind a pooler."""
        while True:
            try:
                connection = await self._server.connect()
                if connection.pooled:
                    await connection.close()
                    return
                try:
                    await self._listen(connection)
                finally:
                    self.listening = False
                    connection.pgconn.finish()
            except psycopg.Error as error:
                _log.info("not_listening", **log.cause(error))
            await asyncio.sleep(AGAIN)

    async def _listen(self, connection: Connection) -> None:
        await connection.execute(f"LISTEN {self._channel}".encode())
        loop, lost = asyncio.get_running_loop(), asyncio.Event()
        server = connection.pgconn

        def readable() -> None:
            try:
                server.consume_input()
                while (said := server.notifies()) is not None:
                    self._receive(said.extra.decode(errors="replace"))
            except psycopg.Error:
                loop.remove_reader(number)
                lost.set()

        number = server.socket
        loop.add_reader(number, readable)
        self.listening = True
        # Notifications of earlier commits are not repeated.
        self._receive("")
        try:
            await lost.wait()
        finally:
            loop.remove_reader(number)

"""Notifications of Postgres: what makes a process look at once for work that its next look would find anyway.

None may be relied on: a lost one costs delay only. Behind a pooler in transaction mode nothing is heard, and
that is said.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import psycopg
from sqlalchemy import text

from orchestrator import log
from orchestrator.store.connection import Server

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.store.connection import Connection, Prepared

_log = log.get(__name__)

DELIVERIES: Final = "orchestrator_deliveries"
"""Endpoints for which events came, as ids with a blank between; `*`: an endpoint has changed; nothing: look
at all."""
LONGEST: Final = 7000
"""Bytes of a notification."""
NOTIFY = text("SELECT pg_notify(:channel, :said)")
AGAIN: Final = 5.0
"""Seconds between two connections."""


class Listener:
    """Hears one channel on a connection of its own; `heard` is called on the loop with what was said."""

    def __init__(self, url: str, channel: str, heard: Callable[[str], None], *, prepared: Prepared) -> None:
        self._server = Server.of(
            url,
            name="orchestrator-listener",
            statement_timeout=10_000,
            timeout=5.0,
            prepared=prepared,
            writes=True,
        )
        self._channel, self._heard = channel, heard
        self.listening = False
        """Whether it hears at this moment."""

    async def run(self) -> None:
        """Listen until cancelled; a lost connection is made again. Returns at once behind a pooler."""
        while True:
            try:
                connection = await self._server.connect()
            except psycopg.Error as error:
                _log.info("not_listening", **log.cause(error))
            else:
                if connection.pooled:
                    await connection.close()
                    return
                try:
                    await self._listen(connection)
                except psycopg.Error as error:
                    _log.info("not_listening", **log.cause(error))
                finally:
                    self.listening = False
                    connection.pgconn.finish()
            await asyncio.sleep(AGAIN)

    async def _listen(self, connection: Connection) -> None:
        await connection.execute(f"LISTEN {self._channel}".encode())
        loop, lost = asyncio.get_running_loop(), asyncio.Event()
        server = connection.pgconn

        def readable() -> None:
            try:
                server.consume_input()
                while (said := server.notifies()) is not None:
                    self._heard(said.extra.decode(errors="replace"))
            except psycopg.Error:
                loop.remove_reader(number)
                lost.set()

        number = server.socket
        loop.add_reader(number, readable)
        self.listening = True
        # What was committed before is not told again.
        self._heard("")
        try:
            await lost.wait()
        finally:
            loop.remove_reader(number)

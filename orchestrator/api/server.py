"""One API process: its services, made on the event loop that uses them, and uvicorn around the app."""

from __future__ import annotations

import asyncio
import signal
from functools import partial
from typing import TYPE_CHECKING, Final, cast

import uvicorn
import uvloop

from orchestrator import gc_tuning, log
from orchestrator.api.app import create_app
from orchestrator.api.connections import Connections
from orchestrator.api.dependencies import Services
from orchestrator.api.metrics import SignalFree, listening
from orchestrator.api.middleware import NO_PAGE, NO_STORE, always
from orchestrator.crypto import Encryptor
from orchestrator.messaging.hints import HintPublisher
from orchestrator.shutdown import FAILED, cancelled, end_within
from orchestrator.store import inbox
from orchestrator.store.database import Database
from orchestrator.store.merchants import Merchants

if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket

    from orchestrator.api.app import Pages
    from orchestrator.settings import Settings

_log = log.get(__name__)

GRACE: Final = 10
"""Seconds that requests under way get when the process must end, or four tenths of SHUTDOWN_TIMEOUT where
that is less."""
KEEP_ALIVE: Final = 130
"""Seconds that a connection without a request is kept: longer than proxies keep theirs (nginx 60 s, Caddy 120
s), so that it is the proxy that ends it. The other way round, a request could meet the end of its connection,
and a proxy answers 502 to it."""
POOL_TIMEOUT: Final = 3.0
READ_TIMEOUT: Final = 3_000
"""Milliseconds that one statement of a reading endpoint may take in Postgres."""
INLET: Final = 4
"""Connections beside the pool: three for the writers of intents, of callbacks and of unmatched callbacks, and
one for merchants and health."""

SCRAPED: Final = 2
"""Connections for the figures of `/metrics`, opened by the first scrape."""


def run(settings: Settings, host: str, port: int, *, pages: Callable[[Services], Pages] | None = None) -> int:
    """Serve the API, and pages beside it, until SIGTERM or SIGINT; then finish what is under way, write what
    has gathered, publish its hints.

    Returns the exit status: 0 where every request that was read had its answer, another where some were cut
    off.
    """
    hint_publisher = HintPublisher(settings)
    hint_publisher.start()
    try:
        cut_off = uvloop.run(serve(settings, hint_publisher, host, port, pages=pages))
    finally:
        hint_publisher.close()
    return FAILED if cut_off else 0


def build(settings: Settings, hint_publisher: HintPublisher) -> Services:
    """Make the services of one process; on its event loop."""
    database = partial(
        Database,
        settings.need("database_url"),
        pool_timeout=POOL_TIMEOUT,
        prepared=settings.database_prepared_statements,
    )
    db = database(
        pool_size=settings.database_pool,
        name="orchestrator-api",
        statement_timeout=READ_TIMEOUT,
        # A second later than Postgres itself, which ends a slow listing and keeps the connection.
        timeout=READ_TIMEOUT / 1000 + 1,
    )
    inlet = database(pool_size=INLET, name="orchestrator-inlet", timeout=settings.database_timeout)
    encryptor = Encryptor(settings.secret_keys)
    return Services(
        settings=settings,
        db=db,
        inlet=inlet,
        encryptor=encryptor,
        intents=inbox.Intents(inlet, encryptor, grace=settings.hint_grace, batch_limit=settings.batch_limit),
        callbacks=inbox.Callbacks(
            inlet,
            encryptor,
            grace=settings.hint_grace,
            batch_limit=settings.batch_limit,
            caps=inbox.Caps(settings.callbacks_limit, settings.callbacks_unproven_limit),
            strict_network=settings.require_gateway_network,
        ),
        merchants=Merchants(inlet, encryptor, settings),
        hint_publisher=hint_publisher,
    )


async def serve(
    settings: Settings,
    hint_publisher: HintPublisher,
    host: str,
    port: int,
    *,
    pages: Callable[[Services], Pages] | None = None,
) -> int:
    """Serve on this event loop until a signal comes; return how many requests were cut off at the end."""
    connections = Connections(
        settings.api_connections,
        files=settings.database_pool + INLET + SCRAPED,
        always=(*always(settings), NO_STORE, NO_PAGE),
    )
    services = build(settings, hint_publisher)
    app = create_app(services, pages=pages)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        # uvicorn calls what it is given as a class with its own arguments.
        http=cast("type[asyncio.Protocol]", connections.protocol),
        ws="none",
        # The request log has its own lines; an access line would contain signed URLs.
        access_log=False,
        log_config=None,
        server_header=False,
        # Forwarded headers of proxies are read in one place, as deep as TRUSTED_PROXIES says
        # (`client_address`).
        proxy_headers=False,
        timeout_graceful_shutdown=max(min(GRACE, int(0.4 * settings.shutdown_timeout)), 1),
        timeout_keep_alive=KEEP_ALIVE,
    )
    server = _Server(config, connections, services)

    def asked_to_end(number: int, _: object) -> None:
        end_within(settings.shutdown_timeout, "api")
        server.handle_exit(number, None)

    for number in (signal.SIGTERM, signal.SIGINT):
        # Not the loop's: even if the loop is blocked, for instance by a full log pipe, the process ends.
        signal.signal(number, asked_to_end)
    _log.info("api_serving", host=host, port=port)
    gc_tuning.settle()
    watch = asyncio.create_task(connections.watch(), name="connections")
    try:
        async with listening(app.state.metrics, settings.metrics_listen):
            await server.serve()
    finally:
        await cancelled([watch])
        connections.tell()
    if server.cut_off:
        _log.error("requests_cut_off", requests=server.cut_off)
    _log.info("api_ended")
    return server.cut_off


class _Server(SignalFree):
    """uvicorn's server, which also reports what it cut off.

    uvicorn raises the signal again when it is done, which would end the process before the last hints are
    published: `serve` takes the signals.
    """

    def __init__(self, config: uvicorn.Config, connections: Connections, services: Services) -> None:
        super().__init__(config)
        self._connections, self._services = connections, services
        self.cut_off = 0
        """Requests that had no answer when their time was over."""

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """Answer who waits for events or commands, end streams, then finish what is under way."""
        self._services.end_waits()
        await super().shutdown(sockets)

    async def _wait_tasks_to_complete(self) -> None:
        try:
            await super()._wait_tasks_to_complete()
        except asyncio.CancelledError:
            # The time is over.
            self.cut_off = self._connections.unanswered
            raise

"""One API process: its services, made on the event loop that uses them, and uvicorn around the app."""

from __future__ import annotations

import asyncio
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, cast

import uvicorn
import uvloop

from orchestrator import gc_tuning, log
from orchestrator.api.app import create_app
from orchestrator.api.connections import Connections
from orchestrator.api.dependencies import Services
from orchestrator.crypto import Encryptor
from orchestrator.messaging.hints import HintPublisher
from orchestrator.shutdown import end_within
from orchestrator.store import inbox
from orchestrator.store.database import Database
from orchestrator.store.merchants import Merchants

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.api.dependencies import PublishesHints
    from orchestrator.settings import Settings

_log = log.get(__name__)

GRACE: Final = 10
"""Seconds that requests under way get when the process is asked to end."""
KEEP_ALIVE: Final = 130
"""Seconds that a connection without a request is kept: longer than proxies keep theirs (nginx 60 s, Caddy 120 s), so that it is the
proxy that ends it. The other way round, a request could meet the end of its connection, and a proxy answers 502 to it."""
POOL_PATIENCE: Final = 3.0
READ_PATIENCE: Final = 3_000
"""Milliseconds that one statement of a reading endpoint may take in Postgres."""
INLET: Final = 4
"""Connections beside the pool: one each for the writers of intents, of callbacks and of strays, and one for merchants and health."""


def run(settings: Settings, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT; then finish what is under way, write what has gathered, publish its hints, and return."""
    hint_publisher = HintPublisher(settings)
    hint_publisher.start()
    try:
        uvloop.run(serve(settings, hint_publisher, host, port))
    finally:
        hint_publisher.close()


def build(settings: Settings, hint_publisher: PublishesHints) -> Services:
    """Make the services of one process; on its event loop."""
    url = settings.need("database_url")
    db = Database(
        url,
        pool_size=settings.database_pool,
        name="orchestrator-api",
        pool_timeout=POOL_PATIENCE,
        statement_timeout=READ_PATIENCE,
        # A second later than Postgres itself, which ends a slow listing and keeps the connection.
        timeout=READ_PATIENCE / 1000 + 1,
        prepared=settings.database_prepared_statements,
    )
    inlet = Database(
        url,
        pool_size=INLET,
        name="orchestrator-inlet",
        pool_timeout=POOL_PATIENCE,
        timeout=settings.database_timeout,
        prepared=settings.database_prepared_statements,
    )
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


async def serve(settings: Settings, hint_publisher: PublishesHints, host: str, port: int) -> None:
    """Serve on this event loop until a signal comes."""
    connections = Connections(settings.api_connections, files=settings.database_pool + INLET)
    config = uvicorn.Config(
        create_app(build(settings, hint_publisher)),
        host=host,
        port=port,
        # uvicorn calls what it is given as a class with its own arguments.
        http=cast("type[asyncio.Protocol]", connections.protocol),
        ws="none",
        # Lines of ours say what happened; an access line would carry signed URLs.
        access_log=False,
        log_config=None,
        server_header=False,
        # What a proxy says of its caller is read in one place, as deep as TRUSTED_PROXIES says (`sources`).
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE,
        timeout_keep_alive=KEEP_ALIVE,
    )
    server = _Server(config)
    loop = asyncio.get_running_loop()

    def asked_to_end(number: int) -> None:
        end_within(settings.shutdown_timeout, "api")
        server.handle_exit(number, None)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_end, number)
    _log.info("api_serving", host=host, port=port)
    gc_tuning.settle()
    watch = asyncio.create_task(connections.watch(), name="connections")
    try:
        await server.serve()
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        connections.tell()
    _log.info("api_ended")


class _Server(uvicorn.Server):
    """uvicorn raises the signal again when it is done, which would end the process before the last hints are published."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to `serve`."""
        yield

"""Every process ends in time after SIGTERM, whatever hangs."""

from __future__ import annotations

import signal
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import psutil
import pytest

from orchestrator.embedded import Embedded
from orchestrator.schema import migrate
from tests.brokers import redis_server
from tests.world import world

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LIMIT = 5
"""SHUTDOWN_TIMEOUT here; a process gets half a minute more before it counts as hanging."""


@contextmanager
def frozen(*pids: int) -> Iterator[None]:
    """Stop servers with all their processes: connections stay open, and nothing answers."""
    family = [
        one for pid in pids for one in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True))
    ]
    _send(family, signal.SIGSTOP)
    try:
        yield
    finally:
        _send(family, signal.SIGCONT)


def _send(family: list[psutil.Process], number: signal.Signals) -> None:
    for one in family:
        with suppress(psutil.NoSuchProcess):  # a connection of Postgres that ended meanwhile
            one.send_signal(number)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("hangs", ["postgres", "broker"])
def test_every_process_ends_in_time_after_sigterm_while_a_server_hangs(
    servers: Embedded, tmp_path: Path, hangs: str
):
    place = tmp_path / "servers"
    with redis_server(tmp_path / "redis") as broker, Embedded.start(place, redis=False, durable=False) as own:
        migrate(own.owner_url)
        with world(
            servers,
            own.database_url,
            tmp_path,
            broker_url=f"redis://127.0.0.1:{broker.port}/0",
            shutdown_timeout=LIMIT,
        ) as one:
            names = ("api", "scheduler", "worker-1")
            for name in ("sandbox", *names):
                one.start(name)
            one.until_state(one.order(), "awaiting_payment", seconds=60)
            # No order needs the scheduler. Until it runs it holds nothing, and SIGTERM ends it with the status of any program.
            published = "SELECT name FROM workers WHERE kind = 'scheduler'"
            one.until(lambda: one.sql(published), "the scheduler publishes", seconds=60)
            assert broker.process is not None
            pid = own.pids["postgres"] if hangs == "postgres" else broker.process.pid
            with frozen(pid):
                time.sleep(2)  # in which claims, sweeps and heartbeats come to wait for it
                for name in names:
                    one.signal(name, signal.SIGTERM)
                ends = {name: one.running.pop(name).wait(LIMIT + 30) for name in names}
            assert set(ends.values()) <= {0, 1}, ends

"""The broker of the product, for any test: `pytest --broker redis|valkey|rabbitmq`.

Without the switch, and with `valkey`, it is the embedded server, which is Valkey from a wheel. With `redis`
it is Debian's Redis, and with `rabbitmq` Debian's RabbitMQ, one for each process of a test run; what
processes share beside the broker is then in that Redis, or stays in the embedded server. Commands that would
start a server of their own are given a database (Redis) or a virtual host (RabbitMQ) for each data
directory. A test that names its broker has that one. A test that is about the embedded broker is marked
`embedded_broker(reason)` and skipped with the others.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import amqp
import pytest

from orchestrator.messaging.app import INTENTS, QUEUES
from tests.support.brokers import RABBITMQ, RabbitMQServer, rabbitmq_server, redis_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.devkit.local.servers import Embedded

BROKERS: Final = ("redis", "valkey", "rabbitmq")
_OPTION: Final = "--broker"
_MARKER: Final = "embedded_broker"
_DATABASES: Final = 4096
# Words of the command line that start a broker where no URL is set, or search for the one that was started.
_BRINGS_ITS_OWN: Final = frozenset({"up", "demo", "bench"})


class _Served:
    """The servers of the tests, with another Redis."""

    def __init__(self, servers: Embedded, redis_url: str) -> None:
        self._servers, self.redis_url = servers, redis_url

    def __getattr__(self, name: str) -> Any:
        return getattr(self._servers, name)


class _Broker:
    """The broker of this process of the test run: Redis, or RabbitMQ with Redis beside it."""

    def __init__(self, redis_url: str, rabbitmq: RabbitMQServer | None) -> None:
        self.redis_url, self._rabbitmq = redis_url, rabbitmq
        self._places: dict[str, int] = {}

    @property
    def settings(self) -> dict[str, str]:
        """Return the settings of an installation, which finds no message of the one before."""
        if self._rabbitmq is None:
            return {"broker_url": self.redis_url}
        with amqp.Connection(f"127.0.0.1:{self._rabbitmq.port}", "guest", "guest") as connection:
            channel = connection.channel()
            for name in (*QUEUES, INTENTS.name):
                channel.queue_delete(name)
        return {"broker_url": self._rabbitmq.url, "redis_url": self.redis_url}

    def settings_of(self, place: str) -> dict[str, str]:
        """Return the settings of a data directory."""
        known = place in self._places
        number = self._places.setdefault(place, len(self._places) + 1)
        database = f"{self.redis_url.rpartition('/')[0]}/{number}"
        if self._rabbitmq is None:
            return {"BROKER_URL": database, "REDIS_URL": database}
        host = f"place-{number}"
        if not known:
            self._rabbitmq.ctl("add_vhost", host)
            self._rabbitmq.ctl("set_permissions", "-p", host, "guest", ".*", ".*", ".*")
        return {"BROKER_URL": f"{self._rabbitmq.url[:-1]}{host}", "REDIS_URL": self.redis_url}

    def knows(self, place: str) -> bool:
        return place in self._places


_running: _Broker | None = None


@contextmanager
def between(config: pytest.Config, servers: Embedded, place: Path) -> Iterator[Embedded]:
    """Run the broker that the test run asks for; yield the servers with it."""
    global _running  # noqa: PLW0603 - one for a process, like the servers
    match config.getoption(_OPTION):
        case "redis":
            with redis_server(place, "--databases", str(_DATABASES)) as server:
                url = f"redis://127.0.0.1:{server.port}/0"
                _running = _Broker(url, None)
                yield _Served(servers, url)  # type: ignore[misc]  # in place of them
        case "rabbitmq":
            with rabbitmq_server() as rabbitmq:
                _running = _Broker(servers.redis_url, rabbitmq)
                yield servers
        case _:
            yield servers
    _running = None


def settings_beside(servers: Embedded) -> dict[str, str]:
    """Return the settings that say where an installation's broker is, and Redis where that is another one."""
    return {"broker_url": servers.redis_url} if _running is None else _running.settings


def settings_of(arguments: tuple[object, ...], given: dict[str, str]) -> dict[str, str]:
    """Return what a command line needs besides the settings that it is given (without their prefix) to have
    the broker of the test run.
    """
    if _running is None or not arguments or "BROKER_URL" in given:
        return {}
    words = [str(argument) for argument in arguments]
    place = words[words.index("--data-dir") + 1] if "--data-dir" in words else words[0]
    stopped = _running.knows(place) and not Path(place, "runtime.json").exists()
    return _running.settings_of(place) if _BRINGS_ITS_OWN & {words[0]} or stopped else {}


# ── The switch ────────────────────────────────────────────────────────────────────────────────────────────


def add_option(parser: pytest.Parser) -> None:
    """Add the switch; pytest asks only a conftest.py for it."""
    parser.addoption(_OPTION, choices=BROKERS, help="have every installation use this broker")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", f"{_MARKER}(reason): is about the embedded broker and skipped with {_OPTION} another one"
    )
    if config.getoption(_OPTION) == "rabbitmq" and not (RABBITMQ / "rabbitmq-server").exists():
        message = (
            f"{_OPTION} rabbitmq: RabbitMQ is not installed (on Debian: apt-get install rabbitmq-server)"
        )
        raise pytest.UsageError(message)
    if config.getoption(_OPTION) == "redis":
        from shutil import which

        if which("redis-server") is None:
            message = f"{_OPTION} redis: Redis is not installed (on Debian: apt-get install redis-server)"
            raise pytest.UsageError(message)


def pytest_report_header(config: pytest.Config) -> str | None:
    chosen = config.getoption(_OPTION)
    return None if chosen is None else f"broker: {chosen}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip tests that are marked as being about the embedded broker, with their reason."""
    if config.getoption(_OPTION) in {None, "valkey"}:
        return
    for item in items:
        mark = item.get_closest_marker(_MARKER)
        if mark is not None:
            item.add_marker(pytest.mark.skip(reason=f"not with another broker: {mark.args[0]}"))

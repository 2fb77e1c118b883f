"""A pooler between the product and its databases, for any test: `pytest --through pgbouncer`.

PgBouncer runs in transaction mode with Debian's defaults, one for each process of a test run. Every database
that the fixtures hand out is then reached through it, and so is that of a command with a data directory of
its own, which would otherwise start a Postgres. Migrations get Postgres itself (MIGRATION_URL), as
docs/postgres.md says, and so do tests that read or write the database directly
(`direct`). A test that is about Postgres itself, or about something else than the pooler, is marked
`direct(reason)` and skipped.
"""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql

from orchestrator.store import schema

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.devkit.local.servers import Embedded

POOLERS: Final = ("pgbouncer",)
_OPTION: Final = "--through"
_MARKER: Final = "direct"
# Words of the command line that start a Postgres where no URL of a server is set, or search for the server
# that was started.
_BRINGS_ITS_OWN: Final = frozenset({"up", "demo", "bench"})


class Pooler:
    """The pooler of this process of the test run, before the server of its tests."""

    def __init__(self, servers: Embedded, port: int) -> None:
        self._servers = servers
        self._behind, self._before = (
            f"@127.0.0.1:{listened}/" for listened in (urlsplit(servers.administrator_url).port, port)
        )
        self._places: dict[str, str] = {}

    def pooled(self, url: str) -> str:
        return url.replace(self._behind, self._before)

    def direct(self, url: str) -> str:
        return url.replace(self._before, self._behind)

    def database_of(self, place: str) -> str:
        """Return the name of the database that stands for that of a data directory; made with its roles if
        there is none.
        """
        if place not in self._places:
            name = f"place_{len(self._places)}"
            urls = (self._servers.administrator_url, self._servers.owner_url, self._servers.database_url)
            _, owner, application = (str(urlsplit(url).password) for url in urls)
            with psycopg.connect(urls[0], autocommit=True) as admin:
                admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
            schema.make_roles(_named(urls[0], name), owner_password=owner, application_password=application)
            self._places[place] = name
        return self._places[place]

    def urls_of(self, place: str) -> tuple[str, str, str]:
        """Return how the administrator, the owner and the processes reach the database of a data
        directory.
        """
        name = self.database_of(place)
        servers = self._servers
        administrator, owner = _named(servers.administrator_url, name), _named(servers.owner_url, name)
        return administrator, owner, self.pooled(_named(servers.database_url, name))


_running: Pooler | None = None


@contextmanager
def between(config: pytest.Config, servers: Embedded) -> Iterator[None]:
    """Run the pooler that the test run asks for before these servers, if it asks for a pooler."""
    global _running  # noqa: PLW0603 - one for a process, like the servers
    if config.getoption(_OPTION) is None:
        yield
        return
    from tests.support.postgres import pooling

    urls = (servers.administrator_url, servers.owner_url, servers.database_url)
    logins = {str(url.username): unquote(str(url.password)) for url in map(urlsplit, urls)}
    port = urlsplit(servers.administrator_url).port
    assert port is not None, (
        "Postgres listens on a socket alone, which the account of the pooler may not reach"
    )
    with pooling(port, logins) as pooler:
        _running = Pooler(servers, pooler)
        try:
            yield
        finally:
            _running = None


def pooled(url: str) -> str:
    """Return how the product reaches a database of the tests' server: through the pooler, if it runs."""
    return url if _running is None else _running.pooled(url)


def direct(url: str) -> str:
    """Return how a test reaches the same database without a pooler."""
    return url if _running is None else _running.direct(url)


def settings_of(arguments: tuple[object, ...], given: dict[str, str]) -> dict[str, str]:
    """Return what a command line needs besides the settings that it is given (without their prefix) to go
    through the pooler.
    """
    if _running is None or not (arguments or given):  # no command of ours
        return {}
    if url := given.get("DATABASE_URL"):
        behind = _running.direct(url)
        return {} if behind == url or "MIGRATION_URL" in given else {"MIGRATION_URL": behind}
    words = [str(argument) for argument in arguments]
    place = words[words.index("--data-dir") + 1] if "--data-dir" in words else words[0]
    if not (_BRINGS_ITS_OWN & {words[0]} or _known_and_stopped(place)):
        return {}
    _, owner, processes = _running.urls_of(place)
    return {"DATABASE_URL": processes, "MIGRATION_URL": owner}


def administrator_of(place: Path) -> str | None:
    """Return how a superuser reaches the database that stands for that of a data directory; None without a
    pooler.
    """
    return None if _running is None else _running.urls_of(str(place))[0]


def _known_and_stopped(place: str) -> bool:
    # What runs is attached to, with the settings that it has.
    return _running is not None and place in _running._places and not Path(place, "runtime.json").exists()


def _named(url: str, name: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


# ── The switch ────────────────────────────────────────────────────────────────────────────────────────────


def add_option(parser: pytest.Parser) -> None:
    """Add the switch; pytest asks only a conftest.py for it."""
    parser.addoption(
        _OPTION, choices=POOLERS, help="reach every database through this pooler, in transaction mode"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", f"{_MARKER}(reason): is about Postgres itself and skipped with {_OPTION} a pooler"
    )
    if config.getoption(_OPTION) is None:
        return
    from tests.support.postgres import PGBOUNCER

    if not Path(PGBOUNCER).exists():
        message = f"{_OPTION} pgbouncer: PgBouncer is not installed (on Debian: apt-get install pgbouncer)"
        raise pytest.UsageError(message)


def pytest_report_header(config: pytest.Config) -> str | None:
    if config.getoption(_OPTION) is None:
        return None
    from tests.support.postgres import PGBOUNCER

    said = subprocess.run([PGBOUNCER, "--version"], capture_output=True, text=True, check=False).stdout
    return f"databases: through {said.partition(chr(10))[0]} in transaction mode"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip tests that are marked as not for a pooler, with their reason."""
    if config.getoption(_OPTION) is None:
        return
    for item in items:
        mark = item.get_closest_marker(_MARKER)
        if mark is not None:
            item.add_marker(pytest.mark.skip(reason=f"not through a pooler: {mark.args[0]}"))

"""What every test uses: real Postgres and Redis of this test process, a migrated database of its own for each
test.
"""

from __future__ import annotations

import base64
import logging
import os
import signal
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psycopg
import pytest
import structlog
from hypothesis import settings as profiles
from psycopg import sql

from orchestrator import log
from orchestrator.crypto import Encryptor
from orchestrator.devkit.local.servers import Embedded
from orchestrator.devkit.local.servers.postgres import SOCKET_PATH_LIMIT
from orchestrator.settings import Settings
from orchestrator.store.schema import migrate
from tests.support import broker_option, mishaps, pooler, tracing
from tests.support.databases import Databases
from tests.support.factories import Core, core, empty

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

SECRET_KEY = base64.b64encode(b"k" * 32).decode()
OLDER_KEY = base64.b64encode(b"o" * 32).decode()
JWT_SECRET = "a test's own secret, long enough for HS256"


# One profile for every test: how long an example takes says how busy the machine is.
profiles.register_profile("ours", deadline=None)
profiles.load_profile("ours")

# A logger that a test used while `log.configure` was in force would keep that configuration: no later test of
# this process could capture its lines.
_structlog_configure = structlog.configure


def _configure_without_cache(*args: Any, **given: Any) -> None:
    _structlog_configure(*args, **{**given, "cache_logger_on_first_use": False})


structlog.configure = _configure_without_cache


# A shell without job control starts its background jobs with Ctrl-C ignored, and processes inherit that:
# those of the tests must end at Ctrl-C however the tests were started.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    pooler.add_option(parser)
    broker_option.add_option(parser)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "mishap(row): reproduces one row of tests/support/mishaps.py")
    config.pluginmanager.register(mishaps, "mishaps")
    config.pluginmanager.register(pooler, "pooler")
    config.pluginmanager.register(broker_option, "broker_option")
    config.pluginmanager.register(tracing, "tracing")


@pytest.fixture(scope="session")
def anyio_backend():
    return "asyncio"


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """Restore the umask for the next test: a command that runs in this process keeps its files
    to itself.
    """
    found = os.umask(0o022)
    os.umask(found)
    yield
    os.umask(found)


@pytest.fixture(autouse=True)
def _events(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Check each event that a test has written in this process: its documents, thin and full, are as they are
    promised.
    """
    from tests.support import cloud_events

    wrong = cloud_events.watch(monkeypatch)
    yield
    assert wrong == []


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    """Restore logging for the next test: a command that runs in this process
    configures it.
    """
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    configured = structlog.get_config() if structlog.is_configured() else None
    yield
    root.handlers[:] = [handler for handler in root.handlers if handler in handlers]
    root.handlers.extend(handler for handler in handlers if handler not in root.handlers)
    root.setLevel(level)
    log._console = True
    if configured is None:
        structlog.reset_defaults()
    else:
        structlog.configure(**configured)


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Embedded]:
    """Postgres and Redis for all tests of this process; nothing on them outlives it."""
    # Behind a pooler Postgres has to listen on TCP, as it does where its path is too long for a socket.
    name = "servers" if pytestconfig.getoption("through") is None else "servers".ljust(SOCKET_PATH_LIMIT, "-")
    with (
        Embedded.start(Path(tmp_path_factory.mktemp(name)), durable=False) as running,
        pooler.between(pytestconfig, running),
        broker_option.between(pytestconfig, running, tmp_path_factory.mktemp("broker")) as served,
    ):
        yield served


@pytest.fixture(scope="session", autouse=True)
def _pooler(request: pytest.FixtureRequest) -> None:
    """Have a pooler and a broker run from the beginning where they are asked for: commands with a data
    directory need no fixture to reach them.
    """
    if request.config.getoption("through") is not None or request.config.getoption("broker") is not None:
        request.getfixturevalue("servers")


@pytest.fixture(scope="session")
def template(servers: Embedded) -> str:
    """A migrated database that each test's own is copied from."""
    name = "template_migrated"
    _admin(servers, sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    migrate(_url(servers, name))
    return name


@contextmanager
def copied(servers: Embedded, template: str) -> Iterator[str]:
    """Make a database that is a copy of another database; yield its administrator's URL, past any pooler."""
    name = f"test_{uuid4().hex[:12]}"
    _admin(
        servers,
        sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template)),
    )
    try:
        yield _url(servers, name)
    finally:
        _admin(servers, sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(scope="session")
def databases(servers: Embedded, template: str) -> Databases:
    """The databases of this process's tests, of which each has one for itself."""
    return Databases(lambda name: _url(servers, name), servers.administrator_url, template)


@pytest.fixture
def database_url(databases: Databases) -> Iterator[str]:
    """A database with the schema and nothing else, for one test alone: real commits, nothing to clean up."""
    with databases.database() as url:
        yield pooler.pooled(url)


@pytest.fixture
def settings(database_url: str, servers: Embedded) -> Settings:
    """Settings of an installation with short times: graces of a moment, and a gateway that does not
    answer.
    """
    return make_settings(database_url=database_url, **broker_option.settings_beside(servers))


@pytest.fixture
def encryptor() -> Encryptor:
    return Encryptor(make_settings().secret_keys)


@pytest.fixture(scope="session")
def shared_database_url(servers: Embedded, template: str) -> str:
    """A database for tests in sequence; making a database takes longer than most of them."""
    name = "shared"
    _admin(
        servers,
        sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template)),
    )
    return pooler.pooled(_url(servers, name))


@pytest.fixture(name="core")
async def _core(shared_database_url: str, encryptor: Encryptor) -> AsyncIterator[Core]:
    """The inside of one process on an empty database; nothing becomes due by itself."""
    empty(shared_database_url)
    async with core(shared_database_url, encryptor) as new_core:
        yield new_core


def make_settings(**changes: object) -> Settings:
    """Return settings made from nothing but these values: the environment of the test run does not matter."""
    values: dict[str, object] = {
        "gateway_url": "http://127.0.0.1:9",
        "gateway_username": "shop",
        "gateway_password": "sandbox password",
        "public_url": "http://127.0.0.1:8000",
        "secret_keys": (SECRET_KEY,),
        "jwt_secrets": (JWT_SECRET,),
        "retry_base": 0.05,
        "retry_cap": 0.2,
        "hint_grace": 0.2,
        "deadline_grace": 0.2,
        "cancel_grace": 0.2,
        "first_check_after": 0.5,
        "recheck_after_callback": 0.1,
        "check_interval_cap": 1.0,
        "database_pool": 4,
        # Plans that have one order's calls fail must not open the circuit for the others.
        "breaker_failures": 0,
        **changes,
    }
    return Settings(**values)  # type: ignore[arg-type]


def _url(servers: Embedded, name: str) -> str:
    before, _, options = servers.administrator_url.partition("?")
    base = before.rpartition("/")[0]
    return f"{base}/{name}" + (f"?{options}" if options else "")


def _admin(servers: Embedded, statement: sql.Composed) -> None:
    with psycopg.connect(servers.administrator_url, autocommit=True) as connection:
        connection.execute(statement)

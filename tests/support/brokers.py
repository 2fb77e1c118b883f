"""Real brokers for tests that break them: Redis, Sentinel and RabbitMQ on ports and directories of their own,
and a connection to a broker that can be cut.
"""

from __future__ import annotations

import os
import pwd
import select
import shutil
import socket
import subprocess
import tempfile
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import amqp
import psutil
import pytest
import redis

from tests.integration.gateway.tls import certified
from tests.support.machine import free_port, until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

RABBITMQ = Path("/usr/lib/rabbitmq/bin")


class Server:
    """A process that answers at a port."""

    def __init__(
        self, command: Sequence[str], port: int, place: Path, *, user: int | None = None, **environment: str
    ):
        self.command, self.port, self.place = [str(part) for part in command], port, place
        self._environment = {**os.environ, **environment}
        self._user = user
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.place / "server.log").open("ab") as out:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=self.place,
                env=self._environment,
                user=self._user,
                group=self._user,
                extra_groups=None if self._user is None else [],
            )

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)


@contextmanager
def redis_server(place: Path, *options: str, sentinel: bool = False) -> Iterator[Server]:
    """Start Debian's Redis, or its Sentinel, on a free port."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("needs redis-server, which is not installed here")
    port = free_port()
    place.mkdir(parents=True, exist_ok=True)
    command = [
        binary,
        *(options if sentinel else ("--save", "", *options)),
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--dir",
        str(place),
    ]
    server = Server(command, port, place)
    server.start()
    try:
        with redis.Redis(port=port) as client:
            until(lambda: answers(client), "Redis answers")
        yield server
    finally:
        server.kill()


def answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.AuthenticationError:
        return True
    except redis.RedisError:
        return False


@contextmanager
def rabbitmq_server() -> Iterator[RabbitMQServer]:
    """Start Debian's RabbitMQ on free ports, under an account without rights where we are root.

    Its directory is none of pytest's, which only their owner may pass through.
    """
    if not (RABBITMQ / "rabbitmq-server").exists():
        pytest.skip("needs rabbitmq-server, which is not installed here")
    place = Path(tempfile.mkdtemp(prefix="orchestrator-rabbitmq-"))
    server = RabbitMQServer(place)
    server.start()
    try:
        server.wait()
        yield server
    finally:
        server.end()
        shutil.rmtree(place)


class RabbitMQServer:
    """A broker."""

    def __init__(self, place: Path) -> None:
        self.port, self.tls_port, epmd, distribution = (free_port() for _ in range(4))
        self.place = place
        certified(place)
        self.certificate = place / "server.pem"
        account = pwd.getpwnam("rabbitmq") if os.geteuid() == 0 else None
        self._user = account.pw_uid if account is not None else None
        if account is not None:
            os.chown(place, account.pw_uid, account.pw_gid)
        self.certificate.chmod(0o644)
        (place / "rabbitmq.conf").write_text(
            f"""
            listeners.tcp.1 = 127.0.0.1:{self.port}
            listeners.ssl.1 = 127.0.0.1:{self.tls_port}
            ssl_options.cacertfile = {self.certificate}
            ssl_options.certfile = {self.certificate}
            ssl_options.keyfile = {self.certificate}
            ssl_options.verify = verify_none
            ssl_options.fail_if_no_peer_cert = false
            """.replace(" " * 12, "")
        )
        (place / "plugins").write_text("[].\n")
        self._environment = {
            "HOME": str(place),
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "ERL_EPMD_PORT": str(epmd),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"test{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_MNESIA_BASE": str(place / "mnesia"),
            "RABBITMQ_LOG_BASE": str(place / "log"),
            "RABBITMQ_CONFIG_FILE": str(place / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(place / "plugins"),
            "RABBITMQ_CONF_ENV_FILE": str(place / "none"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1",
        }
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def start(self) -> None:
        with (self.place / "server.log").open("ab") as out:
            self.process = subprocess.Popen(
                [str(RABBITMQ / "rabbitmq-server")],
                env=self._environment,
                cwd=self.place,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                user=self._user,
                group=self._user,
                extra_groups=None if self._user is None else [],
                start_new_session=True,
            )

    def wait(self) -> None:
        until(self._answers, f"RabbitMQ answers; see {self.place}", seconds=90)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.place / "server.log").read_text()
        with suppress(OSError, amqp.AMQPError), self.connection():
            return True
        return False

    def connection(self) -> Any:
        """Return a connection of a client that is not ours."""
        connection = amqp.Connection(f"127.0.0.1:{self.port}", "guest", "guest", connect_timeout=5)
        connection.connect()
        return connection

    def ctl(self, *arguments: str) -> None:
        subprocess.run(
            [str(RABBITMQ / "rabbitmqctl"), *arguments],
            env=self._environment,
            cwd=self.place,
            check=True,
            timeout=90,
            capture_output=True,
            user=self._user,
            group=self._user,
            extra_groups=None if self._user is None else [],
        )

    def kill(self) -> None:
        """Kill the broker as a crash would; it can be started again with what it has on disk."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, 9)
            self.process.wait(10)

    def end(self) -> None:
        self.kill()
        # Erlang's port mapper is started by the broker and outlives it; ours is known by its port.
        for process in psutil.process_iter(["name"]):
            with suppress(psutil.Error):
                if (
                    process.info["name"] == "epmd"
                    and process.environ().get("ERL_EPMD_PORT") == self._environment["ERL_EPMD_PORT"]
                ):
                    process.kill()


class Way:
    """A connection to a server: it can be led elsewhere, cut towards the client alone, or fall silent."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.silent = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._kept: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self.target), timeout=5)
                except OSError:
                    client.close()
                    continue
                self._pairs.append((client, server))
                threading.Thread(target=self._process, args=(client, server), daemon=True).start()

    def _process(self, client: socket.socket, server: socket.socket) -> None:
        # Closed however it ends: a client that is cut while the server sends is in no list any more.
        with client, suppress(OSError, ValueError):
            while True:
                for readable in select.select([client, server], [], [], 1)[0]:
                    data = readable.recv(65536)
                    if not data:
                        return
                    if not self.silent:
                        (server if readable is client else client).sendall(data)

    def cut(self) -> None:
        """Close every connection towards the client; the server gets no notice."""
        for client, server in self._pairs:
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
            self._kept.append(server)
        self._pairs.clear()

    def close(self) -> None:
        self._listener.close()
        for pair in self._pairs:
            for end in pair:
                end.close()
        for kept in self._kept:
            kept.close()

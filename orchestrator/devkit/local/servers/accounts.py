"""The accounts of the servers where root starts them: a number of its own for each, without a name and
without any right of root.

A server that root starts must not be root, and must not share an account with anything else: what runs under
the same number could read its files and its memory. So each server gets a user id that this system gives to
no account and under which no process runs. It is taken from a range that distributions leave free (systemd
lists 60578 to 61183 as unused), and it is remembered as the owner of the server's directory. A directory that
belongs to an ordinary account stays with that account.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
import zlib
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from orchestrator.devkit.errors import EmbeddedError
from orchestrator.devkit.local.servers.children import Account

if TYPE_CHECKING:
    from collections.abc import Iterator

SHARED: Final = "nobody"
"""The account of earlier versions, and of systems that have no further user ids (some user namespaces)."""
READ: Final = 4
EXECUTE: Final = 1
_IDS: Final = range(60578, 61184)


def account_of(place: Path) -> Account:
    """Return the account for the server that works in this directory; for root only.

    `EmbeddedError` if there is none.
    """
    owner = place.stat()
    shared = _shared()
    if owner.st_uid != 0 and (shared is None or owner.st_uid != shared.uid):
        return Account(owner.st_uid, owner.st_gid)
    used = _running()
    start = zlib.crc32(os.fsencode(place))
    for offset in range(len(_IDS)):
        number = _IDS[(start + offset) % len(_IDS)]
        if number in used or _is_named(number):
            continue
        try:
            os.chown(place, number, number, follow_symlinks=False)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # A user namespace without this number.
            break
        os.chown(place, owner.st_uid, owner.st_gid, follow_symlinks=False)
        return Account(number, number)
    return temporary()


def temporary() -> Account:
    """Return an account with a name, for a program that looks its own name up (initdb)."""
    shared = _shared()
    if shared is None:
        raise EmbeddedError(
            f"the servers must not run as root, and this system has no account `{SHARED}` to begin with: "
            "start the orchestrator as an ordinary user, or set ORCHESTRATOR_DATABASE_URL and ORCHESTRATOR_BROKER_URL"
        )
    return shared


def give(tree: Path, account: Account) -> None:
    """Give a tree to an account; the top goes last, so that what is interrupted is done again."""
    if tree.stat().st_uid == account.uid:
        return
    for directory, _, names in os.walk(tree, topdown=False):
        for name in names:
            os.chown(Path(directory, name), account.uid, account.gid, follow_symlinks=False)
        os.chown(directory, account.uid, account.gid, follow_symlinks=False)


@contextmanager
def reached(place: Path, account: Account | None) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name a file or directory so that a child under the account reaches it, whatever directories above it
    are closed.

    What we open, the child may name by its number: then the permissions of the place itself count, and not
    those on the way. Give the child the numbers that come with the name, and close the block once it has
    started. Without an account it is the plain path.
    """
    if account is None:
        yield str(place), ()
        return
    number = os.open(place, os.O_PATH | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{number}", (number,)
    finally:
        os.close(number)


def may(account: Account, path: Path, permission: int) -> bool:
    """Say whether the mode bits let an account do something; to execute a directory is to enter it."""
    found = path.stat()
    shift = 6 if found.st_uid == account.uid else 3 if found.st_gid == account.gid else 0
    return stat.S_IMODE(found.st_mode) >> shift & permission == permission


def closed(account: Account, goal: Path) -> Path | None:
    """Return the first directory on the way to a goal that the account may not enter."""
    return next((step for step in reversed(goal.parents) if not may(account, step, EXECUTE)), None)


def _shared() -> Account | None:
    with suppress(KeyError):
        entry = pwd.getpwnam(SHARED)
        return Account(entry.pw_uid, entry.pw_gid)
    return None


def _is_named(number: int) -> bool:
    try:
        pwd.getpwuid(number)
    except KeyError:
        return False
    return True


def _running() -> set[int]:
    """Return the user ids under which a process runs, as far as this system shows."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            found.add(process.stat().st_uid)
    return found

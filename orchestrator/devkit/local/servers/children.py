"""Child processes that end with their parent, however it ends, and that may run under another account.

A child is started through this very file, run as a script by a fresh interpreter: it requests a signal of
Linux for the end of the parent, drops its privileges and becomes the server (`exec`). No code of this project
runs between fork and exec in a process that may have threads.

Standard library only, and no module of this project: the script runs in isolated mode, before any package can
be found.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
"""A server needs nothing of our environment, and our environment holds secrets."""
PAUSE = 0.02
"""Seconds between two looks at a process."""

# <linux/prctl.h>
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38


@dataclass(frozen=True, slots=True)
class Account:
    """The ids that a child runs under.

    It keeps no capability and can get none: programs with a set-user-id bit give it nothing.
    """

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class _Launch:
    """The arguments of the script, as JSON in its only argument."""

    command: list[str]
    parent: int
    last_signal: int
    account: tuple[int, int] | None


def spawn(
    command: Sequence[str | Path],
    *,
    last_signal: signal.Signals,
    log: int,
    cwd: Path,
    environment: dict[str, str],
    account: Account | None = None,
    kept: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a server that gets `last_signal` when this process is gone, also after `kill -9`.

    Call it from the main thread: Linux sends the signal when the *thread* that started the child ends. The
    child gets a session of its own, so that Ctrl-C in a terminal reaches us alone and we decide who stops
    first. `kept` are open file descriptors that the child has under the same numbers.
    """
    if threading.current_thread() is not threading.main_thread():
        message = "a child that ends with its parent must be started from the main thread: the kernel watches the thread"
        raise RuntimeError(message)
    launch = _Launch(
        command=[str(part) for part in command],
        parent=os.getpid(),
        last_signal=int(last_signal),
        account=(account.uid, account.gid) if account else None,
    )
    return subprocess.Popen(  # noqa: S603 - our own interpreter, this file, and a command built by us
        [sys.executable, "-I", "-S", __file__, json.dumps(asdict(launch))],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        cwd=cwd,
        env=environment,
        start_new_session=True,
        pass_fds=kept,
    )


def end(process: subprocess.Popen[bytes], *steps: tuple[signal.Signals, float]) -> bool:
    """Send each signal in turn and wait so many seconds, until the process has ended; return whether the
    first signal sufficed.

    Harmless for a process that has ended.
    """
    used = steps[0][0]
    for number, timeout in (*steps, (signal.SIGKILL, 5.0)):
        if process.poll() is None:
            used = number
            process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout)
    return used == steps[0][0]


def command_of(pid: int) -> str:
    """Return the command line of a process; nothing if it is gone or a zombie."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def outlived(pid: int, lives: Callable[[], bool], number: signal.Signals, *, seconds: float) -> bool:
    """Send a signal to a process that is no child of ours, and wait for its end; return whether it came."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)
    deadline = time.monotonic() + seconds
    while lives():
        if time.monotonic() > deadline:
            return False
        time.sleep(PAUSE)
    return True


class Server:
    """A server that answers, as one child process."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], *, pid: int, log: Path) -> None:
        self._name, self._process, self.pid, self._log = name, process, pid, log

    def fallen(self) -> str | None:
        """Return a sentence if the server has ended without being stopped."""
        status = self._process.poll()
        if status is None:
            return None
        return f"{self._name} has ended with status {status}; its log is {self._log}"


def _prctl(option: int, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    padded = [*arguments, 0, 0, 0, 0][:4]
    if libc.prctl(option, *(ctypes.c_ulong(argument) for argument in padded)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def _watch(parent: int, last_signal: int) -> None:
    _prctl(_PR_SET_PDEATHSIG, last_signal)
    # The parent may have gone between fork and prctl: then the signal would never come.
    if os.getppid() != parent:
        os._exit(1)


def _become(uid: int, gid: int) -> None:
    """Give up root: `setuid` clears every capability, and no program gives one back."""
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _run(text: str) -> None:
    launch = _Launch(**json.loads(text))
    # What a server writes is for its own account.
    os.umask(0o077)
    if launch.account:
        _become(*launch.account)
    # After the change of account, which makes the kernel drop the signal.
    _watch(launch.parent, launch.last_signal)
    os.execv(launch.command[0], launch.command)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    _run(sys.argv[1])

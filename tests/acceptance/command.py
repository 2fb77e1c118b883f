"""The command `orchestrator` as a person runs it: a process of its own, an environment of its own, what it said and how it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from tests.pooler import settings_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534


def environment(*arguments: str | Path, **settings: str) -> dict[str, str]:
    """The environment of the test run without its settings, and these instead; and what leads this command through a pooler."""
    settings |= settings_of(arguments, settings)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ORCHESTRATOR_")}
    return kept | {f"ORCHESTRATOR_{name}": value for name, value in settings.items()}


def orchestrator(
    *arguments: str | Path, seconds: float = 60, given: str = "", user: int | None = None, **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "orchestrator", *map(str, arguments)],
        cwd=ROOT, env=environment(*arguments, **settings), capture_output=True, text=True, timeout=seconds, input=given, check=False,
        user=user, group=user, extra_groups=None if user is None else [],
    )  # fmt: skip


class Running:
    """A command that goes on, with what it has said so far."""

    def __init__(self, process: subprocess.Popen[str], data_dir: Path) -> None:
        self.process, self.data_dir = process, data_dir
        self.said = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.family: dict[int, psutil.Process] = {}

    def _read(self) -> None:
        for line in self.process.stdout:
            self.said += line

    def until(self, condition: Callable[[], Any], what: str, *, seconds: float = 40) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, f"{what} within {seconds} s; it said:\n{self.said}"
            assert self.process.poll() is None, f"{what}, but it ended:\n{self.said}"
            time.sleep(0.05)
        return found

    def until_said(self, words: str, *, seconds: float = 40) -> None:
        self.until(lambda: words in self.said, repr(words), seconds=seconds)

    def until_up(self) -> dict[str, Any]:
        """Wait until everything answers; return the settings that its processes run with."""
        self.until_said("The orchestrator is up.")
        for one in psutil.Process(self.process.pid).children(recursive=True):
            self.family[one.pid] = one
        settings: dict[str, Any] = json.loads((self.data_dir / "runtime.json").read_text())["settings"]
        return settings

    def child(self, command: str) -> psutil.Process:
        """Wait for the process that runs one command of ours, such as `worker`."""
        found: psutil.Process = self.until(lambda: self.find(command), f"a process for {command}")
        return found

    def find(self, command: str) -> psutil.Process | None:
        """The process that runs one command of ours, if there is one."""
        for one in psutil.Process(self.process.pid).children():
            with suppress(psutil.NoSuchProcess):
                words = one.cmdline()
                if words[1:3] == ["-m", "orchestrator"] and words[3] == command:
                    return one
        return None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def left(self, *, seconds: float = 10) -> list[str]:
        """What still runs of its processes when they have had time to end."""
        _, alive = psutil.wait_procs(list(self.family.values()), timeout=seconds)
        return [" ".join(one.cmdline()) for one in alive if one.status() != psutil.STATUS_ZOMBIE]

    def end(self) -> int:
        """Press Ctrl-C; return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        status = self.process.wait(30)
        self._reader.join(5)
        return status


@contextmanager
def running(
    *arguments: str | Path, data_dir: Path, user: int | None = None, **settings: str
) -> Iterator[Running]:
    """Start a command that goes on (`up`, `demo`) on a data directory; nothing of it outlives the block."""
    arguments = (*arguments, "--data-dir", data_dir)
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", *map(str, arguments)],
        cwd=ROOT, env=environment(*arguments, **settings), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        user=user, group=user, extra_groups=None if user is None else [],
    )  # fmt: skip
    one = Running(process, data_dir)
    try:
        yield one
    finally:
        if process.poll() is None:
            process.kill()  # its children end with it
            process.wait(10)
        one.left()
        process.stdout.close()

"""One child process of `up`: started, asked whether it is well, started again with back-off, ended; what it
says goes to its log file.

It ends with us, also after `kill -9`, because the kernel ends it. The log is a file and no pipe, so that a
child never waits for us; we read along behind it for what a person should see.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from orchestrator.devkit.local.servers.children import spawn
from orchestrator.devkit.local.servers.files import grown
from orchestrator.devkit.local.terminal import said

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence
    from pathlib import Path

FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 15.0
STEADY_AFTER: Final = 30.0
"""Seconds that a child must run for its next end to count as the first."""
_READ_LIMIT: Final = 1_000_000
_ANSWER_WITHIN: Final = 5.0


class Child:
    """A process by its command; at most one is alive at a time."""

    def __init__(
        self, name: str, arguments: Sequence[str], *, environment: dict[str, str], log: Path, cwd: Path
    ) -> None:
        self.name, self.log = name, log
        self._command = [sys.executable, "-m", "orchestrator", *arguments]
        self._environment, self._cwd = environment, cwd
        self._process: subprocess.Popen[bytes] | None = None
        self._read_to = 0
        self._rest = b""
        self._began = self.pause = 0.0
        """When it was started (monotonic), and the seconds between its last end and the next start."""
        self.start_at: float | None = None
        """When to start again (monotonic), while it is down."""

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Start it; main thread only."""
        with grown(self.log) as file:
            self._read_to = file.tell()
            self._rest = b""
            # SIGKILL: when we are gone its database may be too, and what it had in hand is safe with its due
            # times.
            self._process = spawn(
                self._command,
                last_signal=signal.SIGKILL,
                log=file.fileno(),
                cwd=self._cwd,
                environment=self._environment,
            )
        self._began, self.start_at = time.monotonic(), None

    def fallen(self) -> int | None:
        """Return the status of a process that has just ended, and note when to start it again."""
        if self._process is None or self.start_at is not None:
            return None
        status = self._process.poll()
        if status is not None:
            lasted = time.monotonic() - self._began
            longer = min(max(self.pause * 2, FIRST_PAUSE), LONGEST_PAUSE)
            self.pause = FIRST_PAUSE if lasted > STEADY_AFTER else longer
            self.start_at = time.monotonic() + self.pause
        return status

    def last_words(self) -> str:
        """Return what it said last, or where that stands."""
        with suppress(OSError):
            lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
            if lines:
                return said(lines[-1])
        return f"see {self.log}"

    def news(self) -> list[str]:
        """Return the whole lines that it wrote since the last call."""
        with suppress(FileNotFoundError), self.log.open("rb") as file:
            file.seek(self._read_to)
            fresh = file.read(_READ_LIMIT)
            self._read_to += len(fresh)
            *lines, self._rest = (self._rest + fresh).split(b"\n")
            return [line.decode(errors="replace") for line in lines if line.strip()]
        return []

    def tell(self, number: signal.Signals) -> None:
        """Send a signal, if it is alive; it is not started again."""
        self.start_at = None
        if self._process is not None and not self.gone:
            self._process.send_signal(number)

    @property
    def gone(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def end(self) -> int:
        """Kill what is left and wait for it; return its exit status."""
        if self._process is None:
            return 0
        self._process.kill()
        return self._process.wait(10)


async def is_well(url: str) -> bool:
    """Query the health of a process; only the first line of its answer matters."""
    parts = urlsplit(url)
    asked = f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n"
    try:
        async with asyncio.timeout(_ANSWER_WITHIN):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            try:
                writer.write(asked.encode())
                words = (await reader.readline()).split()
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError):
        return False
    return words[1:2] == [b"200"]


def ending(status: int) -> str:
    if status >= 0:
        return f"with status {status}"
    with suppress(ValueError):
        return f"by {signal.Signals(-status).name}"
    return f"by signal {-status}"

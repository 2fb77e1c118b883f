"""The errors of what starts and measures things on this machine; each is one sentence."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from orchestrator.errors import OrchestratorError

if TYPE_CHECKING:
    from pathlib import Path


class UpFailed(OrchestratorError):  # noqa: N818 - named for the fact
    """`up` cannot start or go on; the sentence says why and what to do."""


class NoSandbox(OrchestratorError):  # noqa: N818 - named for the fact
    """The gateway of a merchant does not take scripts with our token: nothing is triggered there."""

    def __init__(self, merchant: str, url: str, why: str) -> None:
        super().__init__(
            f"the gateway of merchant {merchant} at {url or 'no address'} is no sandbox that takes our token ({why}): cases are made "
            "at a sandbox alone, which `orchestrator up` starts"
        )


class BenchFailed(OrchestratorError):  # noqa: N818 - named for the fact
    """The bench could not measure; the sentence says why.

    What it measured and found wrong is a result, and no error.
    """


class EmbeddedError(OrchestratorError):
    """A server that could not be started or found; with `log` the sentence ends in the log's last error."""

    def __init__(self, sentence: str, *, log: Path | None = None) -> None:
        self.log = log
        super().__init__(sentence if log is None else f"{sentence}: {_reason(log)}")


# What Postgres, initdb and Redis begin a line of trouble with, behind whatever time or process stands before
# it.
_TROUBLE: Final = re.compile(
    r".*?\b(?:FATAL|PANIC|ERROR|error|initdb: error|# (?:Fatal|Can't|Could not)[^:]*):?\s+(?P<said>.+)"
)
_FULL: Final = ("No space left on device", "Disk quota exceeded")
_LINES: Final = 40
"""Lines of a log's end that one start writes at the most."""


def _reason(log: Path) -> str:
    """Return what the last start said of its trouble, and where more stands."""
    try:
        lines = log.read_text(errors="replace").splitlines()[-_LINES:]
    except OSError as error:
        return f"its log {log} cannot be read ({error.strerror})"
    if any(full in line for full in _FULL for line in lines):
        return f"the disk of {log.parent} is full: make room there, or choose another --data-dir (its log is {log})"
    found = [trouble["said"] for line in lines if (trouble := _TROUBLE.match(line))]
    last = (
        found[-1]
        if found
        else next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    )
    return f"{last} (its log is {log})"

"""The one error of the embedded servers, in a file of its own so that each server's module can raise it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.errors import OrchestratorError

if TYPE_CHECKING:
    from pathlib import Path


class EmbeddedError(OrchestratorError):
    """A server could not be started or found; with `log`, the sentence ends in the last lines of the server's own words."""

    def __init__(self, sentence: str, *, log: Path | None = None) -> None:
        self.log = log
        super().__init__(sentence if log is None else f"{sentence}\nLast lines of {log}:\n{_tail(log)}")


def _tail(log: Path, lines: int = 15) -> str:
    try:
        text = log.read_text(errors="replace")
    except OSError as error:
        return f"  ({error})"
    return "\n".join(f"  {line}" for line in text.splitlines()[-lines:]) or "  (empty)"

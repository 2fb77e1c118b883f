"""The one error of the bench, in a file of its own so that each of its modules can raise it."""

from __future__ import annotations

from orchestrator.errors import OrchestratorError


class BenchFailed(OrchestratorError):  # noqa: N818 - named for the fact
    """The bench could not measure; the sentence says why. What it measured and found wrong is a result, and no error."""

"""The one error of `up`, in a file of its own so that each of its modules can raise it."""

from __future__ import annotations

from orchestrator.errors import OrchestratorError


class UpFailed(OrchestratorError):  # noqa: N818 - named for the fact
    """`up` cannot start or go on; the sentence says why and what to do."""

"""What keeps a run of the archive task from going on."""

from __future__ import annotations

from orchestrator.errors import OrchestratorError


class ArchiveError(OrchestratorError):
    """The archive task cannot go on; whatever it has committed stands."""


class ArchiveBusy(ArchiveError):  # noqa: N818 - named for the fact
    """Another run is under way, or a transaction holds a table for longer than this task may wait."""


class ArchiveUnread(ArchiveError):  # noqa: N818 - named for the fact
    """A file that was just written does not prove itself when it is read back; nothing was removed for it."""

"""Archiving: the history of settled checkouts leaves the tables for files, batch by batch, and months of the
trail that are empty go.

A batch is one transaction: it takes checkouts that nobody holds and nothing is open of, deletes their
history, writes exactly what it deleted into a file, reads that file back, notes it under our key, and
commits. So whatever happens, a row stands in the tables or in an archive that the tables name, never in
neither and never in both. What the books need stays: the checkout, its intent with its key, its payments, its
operations, and the commands and keys that a repeated request must meet.

Nothing waits here for more than a moment: locks are skipped or given up and tried again, and only settled
checkouts are locked.
"""

from orchestrator.audit.archive.batch import Archived, candidates, choose, take
from orchestrator.audit.archive.errors import ArchiveBusy, ArchiveError, ArchiveUnread
from orchestrator.audit.archive.months import drop_empty, first_id, make_ahead, moment_of, months_of
from orchestrator.audit.archive.runs import Result, prepare, run

__all__ = [
    "ArchiveBusy",
    "ArchiveError",
    "ArchiveUnread",
    "Archived",
    "Result",
    "candidates",
    "choose",
    "drop_empty",
    "first_id",
    "make_ahead",
    "moment_of",
    "months_of",
    "prepare",
    "run",
    "take",
]

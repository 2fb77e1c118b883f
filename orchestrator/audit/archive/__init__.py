"""Archiving: the history of settled checkouts is moved from the tables to files, batch by batch, and empty
months of the trail are dropped.

A batch is one transaction: it takes checkouts without a lease and without open rows, deletes their history,
writes exactly what it deleted into a file, reads that file back, records it under our key, and commits. So
whatever happens, a row is in the tables or in an archive that the tables name, never in neither and never in
both. Rows that are still needed stay: the checkout, its intent with its key, its payments, its operations,
and the commands and keys that a repeated request must meet.

No lock is waited for longer than a moment: it is skipped, or given up and tried again, and only settled
checkouts are locked.
"""

from orchestrator.audit.archive.batch import Archived, candidates, choose, take
from orchestrator.audit.archive.errors import ArchiveBusy, ArchiveError, ArchiveUnread
from orchestrator.audit.archive.months import drop_empty, make_ahead, moment_of, months_of
from orchestrator.audit.archive.runs import Result, prepare, run

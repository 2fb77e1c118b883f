"""Messages that cannot be processed: dropped, counted by their reason, and logged in summary.

Access to the broker is enough to send anything. Such a message changes nothing and stops nothing; what it was
meant to name is in Postgres with its due time.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Final

from orchestrator import log

_log = log.get(__name__)

SUMMARY_EVERY: Final = 60.0
"""Seconds between two log lines about dropped messages; the first is written at once."""


class Dropped:
    """Counts dropped messages of one process; for any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reasons: Counter[str] = Counter()
        self._told_at = float("-inf")
        self.total = 0

    def add(self, reason: str) -> None:
        """Count a message; `reason` is a fixed word or an exception's class, never text of the message."""
        with self._lock:
            self.total += 1
            self._reasons[reason] += 1
        self.tell()

    def tell(self) -> None:
        """Log what was dropped since the last line, if its time has come."""
        with self._lock:
            if not self._reasons or time.monotonic() < self._told_at + SUMMARY_EVERY:
                return
            reasons, self._reasons = dict(self._reasons), Counter()
            self._told_at = time.monotonic()
        _log.warning("messages_dropped", count=sum(reasons.values()), reasons=reasons)


dropped: Final = Dropped()
"""Those of this process."""

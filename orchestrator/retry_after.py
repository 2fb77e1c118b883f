"""The header Retry-After of an answer, within bounds."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def retry_after(headers: Mapping[str, str], *, cap: float) -> float | None:
    """Read Retry-After, seconds or a date, as seconds between 0 and `cap`; None for what is neither."""
    text = headers.get("retry-after", "").strip()[:100]
    if text.isascii() and text.isdigit():
        return min(float(text[:10]), cap)
    when = _date(text)
    if when is None:
        return None
    # A date is only as good as the clock that it was read from: the sender's own, where the answer has it.
    now = _date(headers.get("date", "")[:100]) or datetime.now(UTC)
    return min(max((when - now).total_seconds(), 0.0), cap)


def _date(text: str) -> datetime | None:
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return when if when.tzinfo else when.replace(tzinfo=UTC)

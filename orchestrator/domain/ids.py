"""Ids that sort by time."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final
from uuid import UUID

if TYPE_CHECKING:
    from datetime import datetime

FIRST: Final = UUID(int=0)
LAST: Final = UUID(int=2**128 - 1)
"""Below and above every id, where a list begins."""


def uuid7() -> UUID:
    """Make a UUIDv7 (RFC 9562, 5.7): milliseconds, then 74 random bits.

    Ids sort by time, and can be made before the insert.
    """
    bits = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    return UUID(int=bits & ~(0xF << 76) & ~(0x3 << 62) | 0x7 << 76 | 0x2 << 62)


def first_id(moment: datetime) -> UUID:
    """Return the lowest id that can be made at a moment; of one before 1970 the lowest of all."""
    return UUID(int=max(int(moment.timestamp() * 1000), 0) << 80)

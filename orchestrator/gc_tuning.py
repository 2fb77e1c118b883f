"""The garbage collector of a process that serves: objects of its start are never scanned again, new garbage
less often.
"""

from __future__ import annotations

import gc
from typing import Final

YOUNG: Final = 20_000
"""Objects more than before until the youngest are scanned; Python's own 700 are those of an order or two."""
OLD: Final = 50
"""Rounds of the middle generation until all is scanned: that stops the whole process for its duration."""


def settle() -> None:
    """Put aside what is there (modules, settings, pools); called once, when a process is ready to work.

    Most garbage here is freed by its reference count; what the collector finds are cycles, of which errors
    leave some.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, 20, OLD)

"""What a verification found."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Findings:
    """Counts of what was walked; `problems` is empty when everything holds."""

    checkouts: int = 0
    entries: int = 0
    seals: int = 0
    archives: int = 0
    problems: list[str] = field(default_factory=list)

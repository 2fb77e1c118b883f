"""What a verification found, and the rows that it reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy import Row, TextClause

    from orchestrator.store.database import Database


@dataclass(slots=True)
class Findings:
    """Counts of what was walked; `problems` is empty when everything holds."""

    checkouts: int = 0
    entries: int = 0
    seals: int = 0
    archives: int = 0
    problems: list[str] = field(default_factory=list)


async def every(db: Database, page: TextClause, **after: object) -> AsyncIterator[Row[Any]]:
    """Yield all rows that follow `after`, page by page; `after` has the columns that a page is sorted by."""
    while rows := await db.read(page, after):
        for row in rows:
            yield row
        after = {column: getattr(rows[-1], column) for column in after}

"""docs/privacy.md classifies every column that may hold personal data: a new column fails until it is
there.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from orchestrator.settings import Settings
from orchestrator.store.tables import PARTITION

pytestmark = pytest.mark.anyio

PAGE = Path(__file__).resolve().parents[2] / "docs/privacy.md"
COLUMNS = """
    SELECT table_name, column_name FROM information_schema.columns
     WHERE table_schema = current_schema() AND table_name <> 'alembic_version'
       AND data_type NOT IN ('uuid', 'integer', 'bigint', 'boolean', 'double precision', 'timestamp with time zone')
"""


def classified() -> list[tuple[str, list[str]]]:
    """Return (column, the cells beside it) of the table."""
    return [
        (column, [cell.strip() for cell in cells])
        for line in PAGE.read_text().splitlines()
        if (cells := line.strip("| ").split(" | "))[0].startswith("`")
        for column in re.findall(r"`([a-z_]+\.[a-z_]+)`", cells.pop(0))
    ]


async def test_every_column_of_text_json_or_bytes_is_classified_once(core):
    found = {f"{table}.{name}" for table, name in await core.all(COLUMNS) if not PARTITION.fullmatch(table)}
    named = [column for column, _ in classified()]
    assert sorted(named) == sorted(found)


def test_each_class_says_key_retention_and_what_an_erasure_does():
    settings = {name.upper() for name in Settings.model_fields}
    for column, cells in classified():
        assert len(cells) == 4, column
        _, under, kept, _ = cells
        assert re.match(r"data key|own key|SECRET_KEYS|clear", under), column
        for name in re.findall(r"`([A-Z_]+)`", kept):
            assert name in settings, column

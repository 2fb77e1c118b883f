"""The table is whole: each row of what goes wrong has a test, and each test names a row that exists."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.support import mishaps

TESTS = Path(__file__).resolve().parents[2]


def marked() -> dict[str, set[str]]:
    """Return the rows that tests are marked with, and the tests of each."""
    rows: dict[str, set[str]] = {}
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or not node.name.startswith(
                "test_"
            ):
                continue
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.mishap":
                    (row,) = mark.args
                    rows.setdefault(ast.literal_eval(row), set()).add(node.name)
    return rows


def test_every_mishap_has_a_test_that_reproduces_it():
    rows = marked()
    assert set(mishaps.ROWS) - rows.keys() == set(), "rows without a test"
    assert rows.keys() - set(mishaps.ROWS) == set(), "tests of unknown rows"


def test_the_table_has_each_of_the_collected_mishaps_once():
    assert len(mishaps.ROWS) == len(set(mishaps.ROWS)) == 24

"""What a step may write is the move: the same names with the same types, of which mypy checks each call."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import get_type_hints

from orchestrator.store.checkouts.change import Move, MoveFields

HOUSE = Path(__file__).parents[2]


def test_a_write_takes_the_fields_of_a_move_with_their_types():
    ours = get_type_hints(Move)
    for name in ("held", "trigger", "action"):
        del ours[name]
    assert get_type_hints(MoveFields) == ours


def test_mypy_checks_the_calls_that_it_must_refuse():
    mypy = tomllib.loads((HOUSE / "pyproject.toml").read_text())["tool"]["mypy"]
    assert "tests/architecture/typed_moves.py" in mypy["files"]
    assert mypy["strict"] is True
    assert mypy.get("warn_unused_ignores", True) is True

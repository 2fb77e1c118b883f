"""The commands that `explain` proposes run as they are printed, from wherever it was called."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from orchestrator import cli, explain
from orchestrator.cli.attached import DATA_DIR, as_typed
from orchestrator.domain.attention import WAYS_OUT, AttentionCode
from orchestrator.domain.states import State
from orchestrator.explain import advice
from tests.unit.test_explain import needing, payment, record

PLACE = Path("/srv/our shop/data")
PAID = {"payments": (payment(),), "reserved": 13900}
SURPLUS = {
    "payments": (payment("7", role="surplus"), payment("8", role="surplus", captured=13900)),
    "attention": needing(AttentionCode.SURPLUS_PAYMENT),
}
RECORDS = [
    *(record(state) for state in State),
    *(record(State.COMPLETED, attention=needing(code), **PAID) for code in AttentionCode),
    record(State.COMPLETED, **{**PAID, **SURPLUS}),
    record(State.COMPLETED, reserved=13900, captured=13900),
]
PROPOSED = sorted({way for made in RECORDS for way in explain.explain(made).you_may if "`" in way})


def commands(sentence: str) -> list[list[str]]:
    return [shlex.split(typed) for typed in re.findall("`(orchestrator [^`]+)`", sentence)]


def parsed(words: list[str]) -> click.Context:
    """Have the parser of the command line read a command, which is not executed."""
    assert words[0] == "orchestrator"
    command: click.Command = cli.cli
    at = 1
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), words[at])
        assert found is not None, words
        command, at = found, at + 1
    return command.make_context(words[at - 1], words[at:])


def test_every_way_is_among_them() -> None:
    every = " ".join(PROPOSED)
    ways = {way for code in AttentionCode for way in WAYS_OUT[code]} | {"refund", "cancel", "reopen"}
    ways -= {way for way in ways if f"checkouts {advice.WAYS[way][3].split()[0]}" in every}
    assert not ways


@pytest.mark.parametrize("sentence", PROPOSED)
def test_a_proposed_command_is_one_of_the_command_line_and_finds_the_same_data(sentence: str) -> None:
    for words in commands(as_typed(sentence, PLACE)):
        context = parsed(words)
        assert context.params["data_dir"] == PLACE, words
        # Money is never moved without the question.
        assert not context.params.get("yes", False), words
        if words[1] == "checkouts":
            why = [] if words[2] == "reconcile" else ["--reason", "The shop asks for it"]
            assert parsed([*words, "--as", "Ada", *why]).params["actor"].endswith("/Ada")


def test_where_the_usual_directory_is_meant_none_is_named() -> None:
    assert [as_typed(sentence, Path(DATA_DIR)) for sentence in PROPOSED] == PROPOSED
    assert all(parsed(words) for sentence in PROPOSED for words in commands(sentence))

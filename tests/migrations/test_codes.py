"""Every sentence that the version before migration 0013 could store becomes its code with the values in it,
and the same sentence on the way back.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator.domain import attention, command_result, last_error
from orchestrator.domain.attention import Attention, AttentionCode
from orchestrator.domain.command_result import ResultCode
from orchestrator.domain.last_error import ErrorCode
from tests.unit.test_attention import ATTENTIONS, FACTS, RESULT_FACTS

FILE = Path(__file__).resolve().parents[2] / "migrations/versions/0013_codes_instead_of_sentences.py"
SPEC = importlib.util.spec_from_file_location("codes_instead_of_sentences", FILE)
migration = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(migration)

CHECKOUT = SimpleNamespace(amount=13900, currency="DKK", order_ref="A-1001")
PAYMENTS = {
    number: SimpleNamespace(
        transaction_id=number, role=role, meaning="reserved", currency="DKK", reserved=reserved, captured=0, refunded=0, back=0, unread=False
    )
    for number, role, reserved in (("7", "accepted", 5000), ("8", "surplus", 100))
}  # fmt: skip
NUMBER = "01a21731-746e-7bf8-b06e-61db9c9849e6"


@pytest.mark.parametrize("code", [code for code in AttentionCode if code is not AttentionCode.OTHER])
def test_attention(code):
    values, _ = ATTENTIONS[code]
    wanted = Attention(code=code, **values)
    said = migration._attention_said(code.value, wanted.details)
    assert said.startswith(f"{code}: ")
    found = attention.stored(*migration._attention(said, CHECKOUT, PAYMENTS))
    assert not found.is_news(wanted), "the next lookup that shows the same raises no event"
    assert "text" not in found.facts
    assert migration._attention_said(found.code, found.details) == said


@pytest.mark.parametrize("code", [code for code in ErrorCode if code is not ErrorCode.OTHER])
def test_last_errors(code):
    facts = FACTS | {"state": "rejected"} if code is ErrorCode.DECIDED else FACTS
    said = migration._operation_error_said(code.value, facts)
    made = (migration._operation_error(said), migration._error(said, CHECKOUT))
    coded = next(pair for pair in made if pair[0] == code)
    assert migration._operation_error_said(*coded) == said
    assert last_error.stored(*coded).code is code


SINCE = {
    ResultCode.DONE_CHANGED,
    ResultCode.REFUSED_NOT_CHANGEABLE,
    ResultCode.REFUSED_NOT_AN_INTENT,
    ResultCode.REFUSED_ERASED,
}
"""Results of commands of kind `change` alone, which a downgrade deletes with it."""


@pytest.mark.parametrize("code", [code for code in ResultCode if code not in {ResultCode.OTHER, *SINCE}])
def test_results_of_commands(code):
    facts = RESULT_FACTS | {"operations": [NUMBER]}
    if code is ResultCode.DONE_OPERATION_DECIDED:
        facts["state"] = "succeeded"
    said = migration._result_said(code.value, facts)
    coded = migration._result(said)
    assert coded[0] == code
    assert migration._result_said(*coded) == said
    assert command_result.stored(*coded).code is code


@pytest.mark.parametrize("said", ["circuit_open: The circuit is open.", "left_alone: The circuit is open."])
def test_the_word_for_an_open_circuit_before_migration_0011_is_understood_too(said):
    assert migration._error(said, CHECKOUT) == ("circuit_open", {"reason": "The circuit is open."})


def test_an_operation_that_needs_a_decision_still_needs_it_whatever_its_words_are():
    code, facts = migration._operation_error("operation_unclear: in other words")
    assert code in last_error.UNCLEAR_OPERATION
    assert migration._operation_error_said(code, facts) == "operation_unclear: in other words"
    code, details = migration._attention("operation_unclear: in other words", CHECKOUT, {})
    assert migration._attention_said(code, details) == "operation_unclear: in other words"


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("139.00 DKK", (13900, "DKK")),
        ("500 JPY", (500, "JPY")),
        ("1.230 KWD", (1230, "KWD")),
        ("-1.00 DKK", (-100, "DKK")),
        ("13950 minor units of QQQ", (13950, "QQQ")),
        ("13950 minor units of an unknown currency", (13950, "")),
        ("1.990,50 ISK", None),
    ],
)
def test_amounts_are_read_as_they_were_spelled(said, read):
    assert migration._minor(said) == read

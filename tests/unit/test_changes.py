"""Changes of an order: what may be named, what a merge patch makes of it, and what is the same again."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest

from orchestrator import intents
from orchestrator.intents import IntentRejected, changes
from orchestrator.intents.fields import MOST_PROBLEMS
from orchestrator.intents.reading import DECODER
from tests.support.scene import intent

DOCUMENT = intents.parse(intent("C-1")).document


def change(**parts: object) -> bytes:
    return changes.encoded(parts)


def decoded(text: str) -> dict[str, object]:
    value: dict[str, object] = DECODER.decode(text)
    return value


# The examples of RFC 7396, appendix A.
@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_a_merge_patch_is_that_of_the_rfc(target: object, patch: object, result: object):
    assert changes.merge(target, patch) == result


@pytest.mark.parametrize(
    ("said", "field", "why"),
    [
        ({}, "order", "is missing"),
        ({"configuration": {"autoCapture": True}}, "configuration", "cannot be changed"),
        ({"expiresIn": 60}, "expiresIn", "cannot be changed"),
        ({"order": {"orderId": "C-2"}}, "order.orderId", "hand the order over as a new checkout"),
        ({"order": None}, "order", "must be an object"),
        ({"order": []}, "order", "must be an object"),
        ({"callbacks": {"open": "x"}}, "callbacks.open", "cannot be changed"),
        ({"order": {"customer": {"a": {"b": {"c": {"d": {"e": {"f": {}}}}}}}}}, "body", "nested more than 8"),
        ({"order": {"orderLines": [[[[[[[[1]]]]]]]]}}, "body", "nested more than 8"),
    ],
)
def test_what_cannot_be_changed_is_refused_with_its_field(said: dict[str, object], field: str, why: str):
    (problem,) = changes.problems_of(said)
    assert problem.field == field
    assert why in problem.message


def test_of_many_names_that_cannot_be_changed_some_are_said():
    names = {f"n{number}": 0 for number in range(10_000)}
    assert len(changes.problems_of({"order": names})) == len(changes.problems_of(names)) == MOST_PROBLEMS


def test_what_can_be_changed_is_what_an_intent_has():
    whole = json.loads(intent("C-1"))
    assert changes.problems_of({"callbacks": whole["callbacks"]}) == []
    order = {name: part for name, part in whole["order"].items() if name != "orderId"}
    assert changes.problems_of({"order": order}) == []


def test_a_change_makes_a_valid_intent_of_the_stored_one():
    lines = [{"itemId": "2", "description": "Two", "quantity": 2, "unitPrice": 5, "taxAmount": 0}]
    made = intents.changed(
        DOCUMENT,
        change(order={"amount": {"value": 10}, "orderLines": lines, "customer": {"email": None}}),
    )
    assert (made.amount, made.currency, made.order_ref) == (1000, "DKK", "C-1")
    customer = DECODER.decode(made.document)["order"]["customer"]
    assert "email" not in customer
    assert customer["firstName"] == "Test"
    assert intents.changed(made.document, change(order={"amount": {"value": 10}})).document == made.document


def test_the_order_as_it_is_stays_the_same_bytes():
    assert intents.changed(DOCUMENT, change(order={"amount": {"currency": "dkk"}})).document == DOCUMENT


@pytest.mark.parametrize(
    ("order", "field", "why"),
    [
        ({"amount": {"value": 10}}, "order.orderLines", "the lines sum to"),
        ({"amount": {"currency": "EUR"}}, "order.amount.currency", "must be DKK"),
        ({"amount": None}, "order.amount", "is missing"),
        ({"orderLines": []}, "order.orderLines", "at least one"),
        ({"amount": {"value": 0}}, "order.amount.value", "more than 0"),
        ({"customer": {"email": "x"}}, "order.customer.email", "e-mail address"),
        ({"customer": {"phone": "1"}}, "order.customer.phone", "is not a known field"),
        ({"transactionInfo": {"checkout": "x"}}, "order.transactionInfo.checkout", "is reserved"),
    ],
)
def test_a_change_that_makes_no_order_is_refused_with_the_field(
    order: dict[str, object], field: str, why: str
):
    with pytest.raises(IntentRejected) as refused:
        intents.changed(DOCUMENT, change(order=order))
    assert refused.value.problems[0].field == field
    assert why in refused.value.problems[0].message


def test_a_change_that_makes_the_order_too_long_is_refused():
    lines = [{"itemId": "2", "description": "x" * 40_000, "quantity": 1, "unitPrice": 1, "taxAmount": 0}] * 7
    with pytest.raises(IntentRejected, match="would make an order of more than"):
        intents.changed(DOCUMENT, change(order={"orderLines": lines}))


def test_the_same_change_in_another_form_is_the_same_again():
    first = decoded('{"order": {"amount": {"value": 100}, "customer": {"email": "a@b.c"}}}')
    same = decoded('{"order": {"customer": {"email": "a@b.c"}, "amount": {"value": 100.00}}}')
    assert changes.fingerprint(first) == changes.fingerprint(same)
    for other in (
        '{"order": {"amount": {"value": 10}, "customer": {"email": "a@b.c"}}}',
        '{"order": {"amount": {"value": -100}, "customer": {"email": "a@b.c"}}}',
        '{"order": {"amount": {"value": 100.01}, "customer": {"email": "a@b.c"}}}',
        '{"order": {"amount": {"value": true}, "customer": {"email": "a@b.c"}}}',
        '{"order": {"amount": {"value": null}, "customer": {"email": "a@b.c"}}}',
        '{"order": {"amount": {"value": [100]}, "customer": {"email": "a@b.c"}}}',
        '{"order": {"amount": {"value": 0}, "customer": {"email": "a@b.c"}}}',
    ):
        assert changes.fingerprint(decoded(other)) != changes.fingerprint(first), other


def test_a_number_is_never_written_out():
    huge = {"order": {"amount": {"value": Decimal("1e1000000")}}}
    assert changes.fingerprint(huge) != changes.fingerprint(
        {"order": {"amount": {"value": Decimal("1e999999")}}}
    )
    zero, other = ({"order": {"amount": {"value": Decimal(value)}}} for value in ("0.00", "0e9"))
    assert changes.fingerprint(zero) == changes.fingerprint(other)

"""Facts of events and of the audit trail, as the console writes them for people."""

from __future__ import annotations

from types import SimpleNamespace
from uuid import uuid4

import pytest

from orchestrator.console import choices, facts, pages
from orchestrator.domain.states import State

TRANSACTION = {
    "id": "539135", "status": "captured", "meaning": "captured", "role": "accepted", "binding": "bound", "reserved": 13900,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("late", False, ("late", "no")),
        ("late", True, ("late", "yes")),
        ("surcharge", 0, ("surcharge", "0.00 DKK")),
        ("change", 97429, ("change", "974.29 DKK")),
        ("amount", 1234567, ("amount", "12,345.67 DKK")),
        ("transactionIds", ["539140", "539141"], ("transactions", "539140, 539141")),
        ("paymentMethods", 3, ("payment methods", "3")),
        ("expiresIn", 3600.0, ("expires in", "1 h")),
        ("attention", "surplus_payment", ("attention", "surplus payment")),
        ("transactions", [TRANSACTION], ("transactions", "539135 captured, accepted")),
        (
            "transactions",
            [{**TRANSACTION, "status": "released", "meaning": "nothing", "role": "attempt"}],
            ("transactions", "539135 released (holds nothing), attempt"),
        ),
        (
            "callbacks",
            [{"id": "1", "kind": "notification", "grade": "signed", "digest": "00", "status": "succeeded"}],
            ("callbacks", "notification (signed) with status succeeded"),
        ),
        ("operation", "refund", ("operation", "refund")),
        ("operationId", "019aa000-0000-7000-8000-000000000001", None),
        ("operations", ["019aa000-0000-7000-8000-000000000001"], None),
        ("policy", None, None),
        ("strange", {"a": object}, None),
    ],
)
def test_a_fact_is_written_in_words(name, value, shown):
    assert facts.of({name: value}, "DKK") == ([] if shown is None else [shown])


def test_an_entry_about_money_names_its_operation():
    release = {"action": "money:submitted", "trigger": None, "evidence": {"kind": "release"}}
    assert facts.title(release) == "release submitted"
    assert facts.title({**release, "evidence": {"kind": "resolve"}}) == "money:submitted"
    assert facts.title({"action": "checkout:moved", "trigger": "offered", "evidence": {}}) == "offered"


def test_what_is_no_mapping_has_no_facts_and_many_facts_are_cut():
    assert facts.of("text", "DKK") == []
    many = {f"fact{number}": number for number in range(100)}
    assert len(facts.of(many, "DKK")) == facts.MOST


def test_times_of_a_sentence_are_written_as_in_tables():
    assert pages.TEMPLATES.filters["told"]("At 2026-11-27T13:47:13Z it ended.\u202e") == (
        "At 2026-11-27 13:47:13 it ended.\ufffd"
    )


def test_after_a_return_an_order_with_a_requested_cancel_is_cancelled():
    view = SimpleNamespace(state=State.AWAITING_PAYMENT, cancelling=uuid4())
    assert choices._after_return(view) == (
        "A cancel of the order was requested: without another payment the order is then cancelled."
    )

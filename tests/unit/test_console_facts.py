"""Facts of events and of the audit trail, as the console writes them for people."""

from __future__ import annotations

from types import SimpleNamespace
from uuid import uuid4

import pytest

from orchestrator.console import choices, facts, pages
from orchestrator.domain.attention import Attention, AttentionCode, PaymentAmount
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
        ("transactions", [TRANSACTION], ("transactions", "539135 captured, pays the order")),
        (
            "transactions",
            [{**TRANSACTION, "status": "released", "meaning": "nothing", "role": "attempt"}],
            ("transactions", "539135 released (holds nothing), pays nothing"),
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
    decided = {"action": "money:requested", "evidence": {"kind": "resolve", "decision": "return"}}
    assert facts.title(decided) == "decision to return"
    assert facts.title({"action": "checkout:moved", "trigger": "offered", "evidence": {}}) == "offered"


@pytest.mark.parametrize(
    ("kind", "cause", "said"),
    [
        ("release", "returned", "reservation released because of the decision"),
        ("refund", "returned", "money refunded because of the decision"),
        ("release", "asked", "no payment, all attempts ended without money"),
    ],
)
def test_money_that_a_decision_gave_back_was_not_declined(kind, cause, said):
    given = facts.returned({"action": "money:succeeded", "evidence": {"kind": kind, "cause": cause}})
    declined = {"action": "checkout:moved", "trigger": "payment_declined", "evidence": {}}
    assert facts.title(declined, returned=given) == said


def test_each_cell_of_a_table_names_its_column():
    head = (
        '<thead><tr><th scope="col">Order</th><th scope="col" class="n">Amount</th><th>Left</th></tr></thead>'
    )
    row = '<tr><td class="id">A-1</td><td class="n" colspan="2">none</td></tr>'
    drawn = pages.TEMPLATES.filters["labelled"](f"<table>{head}<tbody>{row}</tbody></table>")
    assert '<td data-label="Order" class="id">A-1</td>' in drawn
    assert '<td data-label="Amount / Left" class="n" colspan="2">' in drawn
    assert head in drawn


def test_words_of_the_program_are_other_words_for_people():
    filters = pages.TEMPLATES.filters
    assert filters["word"](AttentionCode.POISONED) == "dead letter"
    assert filters["figure"]("hints") == "wake-up messages"
    assert filters["figure"]("inFlight") == "in flight"
    assert facts.status("preauth", "reserved") == "pre-authorization (reserved)"
    one = PaymentAmount(transaction_id="9", amount=1, currency="DKK")
    for paid, said in (
        ((one,), "Transaction 9 also holds money for this order."),
        ((one, one), "Transactions 9, 9 also hold money for this order."),
    ):
        asked = Attention(code=AttentionCode.SURPLUS_PAYMENT, payments=paid)
        assert filters["sentence"](asked) == said


@pytest.mark.parametrize(
    ("held", "state", "said"),
    [
        (12_900, State.CALLBACK_RECEIVED, "The order of 139.00 DKK is completed with the 129.00 DKK that are held: 10.00 DKK less than"),
        (14_000, State.CALLBACK_RECEIVED, "The order of 139.00 DKK is completed with the 140.00 DKK that are held: 1.00 DKK more than"),
        (12_900, State.COMPLETED, "The order of 139.00 DKK stays completed with the 129.00 DKK that are held: 10.00 DKK less than"),
    ],
)  # fmt: skip
def test_to_keep_another_amount_says_both_amounts_and_what_becomes_of_the_order(
    held, state, said, monkeypatch
):
    paid = SimpleNamespace(raw_amounts=None, currency="DKK", left=held)
    monkeypatch.setattr(choices, "_about", lambda _: [paid])
    view = SimpleNamespace(state=state, amount=13_900, currency="DKK")
    assert choices._kept(view, AttentionCode.PAYMENT_MISMATCH).startswith(said)
    paid.currency = "SEK"
    assert choices._kept(view, AttentionCode.PAYMENT_MISMATCH).endswith("for the amount that it holds.")


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

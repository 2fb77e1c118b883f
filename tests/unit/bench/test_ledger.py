"""The ledger check finds whatever is lost, done twice or different by one minor unit, and reports nothing
where the books agree.
"""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from orchestrator.devkit.bench.ledger import Books, Payment, Row, check

DONE = Row(
    order_ref="b-0", state="completed", offered_at=10.0, ended_at=12.0, amount=13900, reserved=13900, completions=1, accepted=1
)  # fmt: skip
PAID = Payment(order_ref="b-0", at=11.0, amount=13900, currency="DKK")


def checked(rows=(DONE,), payments=(PAID,), *, taken=("b-0",), doubled=(), whole=True):
    return check(list(taken), list(rows), Books(payments=list(payments), doubled=list(doubled)), whole=whole)


def found(ledger):
    return [name for name in ("lost", "doubled", "unequal") if getattr(ledger, name)]


def test_books_that_agree_are_clean():
    ledger = checked()
    assert ledger.clean
    assert ledger.sentences() == []


@pytest.mark.parametrize(
    ("rows", "payments", "taken", "what"),
    [
        pytest.param([], [], ["b-0"], ["lost"], id="accepted and not stored"),
        pytest.param(
            [replace(DONE, state="awaiting_payment", ended_at=None)],
            [],
            ["b-0"],
            ["lost"],
            id="not completed",
        ),
        pytest.param([replace(DONE, state="expired")], [PAID], ["b-0"], ["lost"], id="paid and expired"),
        pytest.param([], [PAID], [], ["lost"], id="paid and unknown to us"),
        pytest.param([DONE, DONE], [PAID, PAID], ["b-0"], ["doubled"], id="two checkouts"),
        pytest.param([replace(DONE, completions=2)], [PAID], ["b-0"], ["doubled"], id="completed twice"),
        pytest.param([replace(DONE, accepted=2)], [PAID], ["b-0"], ["doubled"], id="two payments taken"),
        pytest.param([replace(DONE, surplus=1)], [PAID], ["b-0"], ["doubled"], id="a payment too many"),
        pytest.param(
            [replace(DONE, captured=1)],
            [PAID],
            ["b-0"],
            ["doubled", "unequal"],
            id="captured more than there is",
        ),
        pytest.param([replace(DONE, reserved=13901)], [PAID], ["b-0"], ["unequal"], id="one minor unit more"),
        pytest.param(
            [DONE],
            [msgspec.structs.replace(PAID, captured=13900)],
            ["b-0"],
            ["unequal"],
            id="a capture we do not know",
        ),
        pytest.param([replace(DONE, currency="EUR")], [PAID], ["b-0"], ["unequal"], id="another currency"),
        pytest.param([DONE], [], ["b-0"], ["unequal"], id="completed and not paid"),
    ],
)
def test_books_that_disagree_are_found_out(rows, payments, taken, what):
    ledger = checked(rows, payments, taken=taken)
    assert found(ledger) == what
    assert not ledger.clean
    assert len(ledger.sentences()) == len(what)


def test_what_the_gateway_saw_twice_is_doubled_though_our_books_are_in_order():
    assert checked(doubled={"b-0"}).doubled == {"b-0": "more than one session or payment at the gateway"}


def test_an_order_that_is_only_to_be_ready_need_not_be_paid():
    ready = replace(DONE, state="awaiting_payment", ended_at=None, reserved=0, completions=0, accepted=0)
    assert checked([ready], [], whole=False).clean
    assert found(checked([replace(ready, offered_at=None)], [], whole=False)) == ["lost"]


def test_an_intent_that_was_not_taken_is_not_lost_and_may_have_been_stored_all_the_same():
    assert checked(taken=()).clean


def test_a_sentence_names_a_few_and_counts_all():
    rows = [replace(DONE, order_ref=f"b-{number}", state="failed") for number in range(9)]
    (sentence,) = checked(rows, [], taken=[row.order_ref for row in rows]).sentences()
    assert sentence.startswith("9 lost (b-0: accepted, and still failed; b-1: ")
    assert "b-4" in sentence
    assert "b-5" not in sentence

"""Whether a capture, refund or release may be sent, and whether it was done: by identifier, else
by totals.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain import operations
from orchestrator.domain.operations import Fate, after_sending, before_sending
from orchestrator.domain.sentences import of
from tests.unit.test_reconciliation import known, transaction

WHOLE = 13900
RESERVED = transaction("1", "preauth", (WHOLE, 0, 0))
PART = transaction("1", "preauth", (WHOLE, 4000, 0))
CAPTURED = transaction("1", "captured", (WHOLE, WHOLE, 0))
REFUNDED = transaction("1", "refunded", (WHOLE, WHOLE, 900))
RELEASED = transaction("1", "released", (WHOLE, 0, 0))
FAILED = transaction("1", "captured_failed", (WHOLE, 0, 0))


def asked(kind, amount, *, before=(WHOLE, 0, 0), **changes):
    meaning = "captured" if before[1] else "reserved"
    operation = operations.ask(
        known("1", meaning=meaning, amounts=before), kind, amount=amount, cause="asked", actor="client:shop"
    )
    return replace(operation, **changes)


@pytest.mark.parametrize(
    ("operation", "seen", "fate"),
    [
        (asked("capture", 4000), RESERVED, Fate.DUE),
        (asked("capture", WHOLE), RESERVED, Fate.DUE),
        (asked("capture", WHOLE + 1), RESERVED, Fate.IMPOSSIBLE),
        (asked("capture", 9900, before=(WHOLE, 4000, 0)), PART, Fate.DUE),
        (asked("capture", WHOLE), CAPTURED, Fate.DONE),
        (asked("capture", 4000), PART, Fate.DONE),
        (asked("capture", 5000), PART, Fate.IMPOSSIBLE),
        (asked("capture", WHOLE), RELEASED, Fate.IMPOSSIBLE),
        (asked("capture", WHOLE), FAILED, Fate.UNCLEAR),
        (asked("refund", 900, before=(WHOLE, WHOLE, 0)), CAPTURED, Fate.DUE),
        (asked("refund", 900, before=(WHOLE, WHOLE, 0)), REFUNDED, Fate.DONE),
        (asked("refund", 1000, before=(WHOLE, WHOLE, 0)), REFUNDED, Fate.IMPOSSIBLE),
        (asked("refund", WHOLE, before=(WHOLE, WHOLE, 900)), REFUNDED, Fate.IMPOSSIBLE),
        (asked("release", WHOLE), RESERVED, Fate.DUE),
        (asked("release", WHOLE), RELEASED, Fate.DONE),
        (asked("release", WHOLE), CAPTURED, Fate.IMPOSSIBLE),
        (asked("release", WHOLE), FAILED, Fate.UNCLEAR),
    ],
)
def test_before_it_is_sent_a_lookup_must_show_the_totals_that_it_was_asked_for(operation, seen, fate):
    judged = before_sending(operation, seen)
    assert judged.fate is fate
    assert (judged.error is None) == (fate in {Fate.DUE, Fate.DONE})
    assert judged.by or of(judged.error)


@pytest.mark.parametrize(
    ("operation", "seen", "fate"),
    [
        (asked("capture", 4000), RESERVED, Fate.ABSENT),
        (asked("capture", 4000), PART, Fate.DONE),
        (asked("capture", 4000), CAPTURED, Fate.UNCLEAR),
        (asked("capture", WHOLE), CAPTURED, Fate.DONE),
        (asked("refund", 900, before=(WHOLE, WHOLE, 0)), CAPTURED, Fate.ABSENT),
        (asked("refund", 900, before=(WHOLE, WHOLE, 0)), REFUNDED, Fate.DONE),
        (asked("refund", 500, before=(WHOLE, WHOLE, 0)), REFUNDED, Fate.UNCLEAR),
        (asked("release", WHOLE), RESERVED, Fate.ABSENT),
        (asked("release", WHOLE), RELEASED, Fate.DONE),
        (asked("release", WHOLE), transaction("1", "refunded", (WHOLE, WHOLE, WHOLE)), Fate.DONE),
        (asked("release", WHOLE), CAPTURED, Fate.UNCLEAR),
    ],
)
def test_after_it_was_sent_the_totals_say_whether_it_was_done(operation, seen, fate):
    assert after_sending(operation, seen).fate is fate


@pytest.mark.parametrize("kind", ["capture", "refund", "release"])
def test_its_own_identifier_in_the_gateways_books_settles_it_whatever_the_totals_say(kind):
    operation = asked(kind, 77)
    seen = replace(FAILED, reconciliations=("another", operation.identifier))
    assert before_sending(operation, seen).fate is Fate.DONE
    assert after_sending(operation, seen).fate is Fate.DONE


@given(
    st.integers(1, WHOLE),
    st.integers(0, WHOLE),
    st.integers(0, WHOLE),
    st.sampled_from(["capture", "refund"]),
)
def test_nothing_is_ever_sent_for_more_than_is_left(amount, before, now, kind):
    captured = (WHOLE, before, 0) if kind == "capture" else (WHOLE, WHOLE, before)
    shown = (WHOLE, now, 0) if kind == "capture" else (WHOLE, WHOLE, now)
    seen = transaction(
        "1",
        "captured" if kind == "refund" and not now else "preauth" if kind == "capture" else "refunded",
        shown,
    )
    operation = asked(kind, amount, before=captured)
    if before_sending(operation, seen).fate is Fate.DUE:
        assert now == before, "the gateway's books are what the decision was based on"
        assert now + amount <= WHOLE


@pytest.mark.parametrize(
    ("amounts", "kind", "amount"),
    [
        ((WHOLE, 0, 0), "release", WHOLE),
        ((WHOLE, WHOLE, 0), "refund", WHOLE),
        ((WHOLE, 4000, 1000), "refund", 3000),
    ],
)
def test_money_goes_back_by_release_before_its_capture_and_by_refund_after_it(amounts, kind, amount):
    meaning = "captured" if amounts[1] else "reserved"
    back = operations.give_back(
        known("9", "surplus", meaning=meaning, amounts=amounts), actor="system", reason="surplus"
    )
    assert (back.kind, back.amount, back.cause, back.state) == (kind, amount, "returned", "requested")

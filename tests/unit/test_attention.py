"""Each code of attention has its sentence, its ways out, a chapter in the runbook and a place that raises it;
errors and results their sentences.
"""

from __future__ import annotations

import re
from pathlib import Path

import click
import msgspec
import pytest

from orchestrator.cli import cli
from orchestrator.domain import attention, command_result, decisions, last_error, sentences
from orchestrator.domain.attention import (
    IRREGULAR,
    PROBLEMS,
    RETURNABLE,
    SHOWN_BY_LOOKUPS,
    WAYS_OUT,
    Attention,
    AttentionCode,
    PaymentAmount,
    Way,
)
from orchestrator.domain.command_result import CommandResult, ResultCode
from orchestrator.domain.last_error import ErrorCode, LastError
from orchestrator.domain.reconciliation import LookupOutcome
from orchestrator.explain import advice

# Commands after which an attention is cleared, where the checkout allows them.
ENDS_THE_CAUSE = {
    AttentionCode.SURPLUS_PAYMENT: (Way.RELEASE, Way.REFUND),
    AttentionCode.RESERVATION_LAPSES: (Way.CAPTURE, Way.RELEASE),
    AttentionCode.OPERATION_REJECTED: (Way.CAPTURE, Way.RELEASE, Way.REFUND),
    AttentionCode.NO_PAYMENT_METHODS: (Way.REOPEN,),
}

ROOT = Path(__file__).resolve().parent.parent.parent
RUNBOOK = (ROOT / "docs/runbook.md").read_text()
CHAPTERS = dict(re.findall(r"^## (\w+)$\n(.*?)(?=^## |\Z)", RUNBOOK, re.MULTILINE | re.DOTALL))
RESOLVE = {Way.KEEP, Way.RETURN, Way.DISMISS}

SEVEN = PaymentAmount(transaction_id="7", amount=5000, currency="DKK")
EIGHT = PaymentAmount(transaction_id="8", amount=100, currency="DKK")
ORDER = {"ordered": 13900, "currency": "DKK", "orderId": "A-1001"}
NEVER = {"code": "never_in_books", "facts": {"sends": 3}}


def problem(struct, code, **more):
    return msgspec.structs.replace(struct, problem=code, **more)


ATTENTIONS = {
    AttentionCode.LATE_PAYMENT: (
        {"payments": (SEVEN,)},
        "the money came after the checkout had ended; keep the order, or return the money",
    ),
    AttentionCode.SURPLUS_PAYMENT: (
        {"payments": (SEVEN, EIGHT)},
        "transactions 7, 8 also hold money for this order",
    ),
    AttentionCode.UNKNOWN_ORDER: (
        {"facts": {"orderId": "A-1001"}},
        "a payment came for order number A-1001, which no shop has handed over; keep it, or return it",
    ),
    AttentionCode.PAYMENT_MISMATCH: (
        {
            "facts": ORDER,
            "payments": (
                problem(SEVEN, AttentionCode.PAYMENT_MISMATCH),
                problem(EIGHT, AttentionCode.PAYMENT_MISMATCH),
            ),
        },
        "transactions 7 (50.00 DKK), 8 (1.00 DKK) hold 51.00 DKK together, the order is 139.00 DKK",
    ),
    AttentionCode.UNCLEAR_PAYMENT: (
        {
            "facts": ORDER,
            "payments": (
                problem(SEVEN, AttentionCode.UNCLEAR_PAYMENT, status="odd"),
                problem(EIGHT, AttentionCode.PAYMENT_MISMATCH),
            ),
        },
        "transaction 7 is odd with amounts that do not say what it means; transaction 8 holds 1.00 DKK; the order is 139.00 DKK",
    ),
    AttentionCode.UNBOUND_PAYMENT: (
        {
            "facts": ORDER,
            "payments": (
                problem(SEVEN, AttentionCode.UNBOUND_PAYMENT),
                problem(EIGHT, AttentionCode.UNBOUND_PAYMENT, repeated=True),
            ),
        },
        "transaction 7 names no checkout, and several checkouts have order number A-1001; transaction 8 names more than one checkout",
    ),
    AttentionCode.CHARGEBACK_UNCLEAR: (
        {"facts": {"events": ["Dispute 50.00 DKK"], "currency": "DKK"}, "payments": (SEVEN,)},
        "the gateway tells of a chargeback or a dispute of transaction 7 that cannot be counted: Dispute 50.00 DKK",
    ),
    AttentionCode.OVER_REFUND: (
        {"facts": {"refunded": 15000, "captured": 13900, "currency": "DKK"}, "payments": (SEVEN,)},
        "of transaction 7 150.00 DKK are refunded, and 139.00 DKK were captured",
    ),
    AttentionCode.OVER_CAPTURE: (
        {"facts": {"captured": 15000, "reserved": 13900, "currency": "DKK"}, "payments": (SEVEN,)},
        "of transaction 7 150.00 DKK are captured, and 139.00 DKK were reserved",
    ),
    AttentionCode.CREDITED: (
        {"facts": {"credits": ["20.00 DKK"], "currency": "DKK"}, "payments": (SEVEN,)},
        "the gateway shows a credit of 20.00 DKK to the shopper beside transaction 7",
    ),
    AttentionCode.LOOKUP_AT_LIMIT: (
        {},
        "the gateway's answer has as many rows as it may have, so it proves no absence",
    ),
    AttentionCode.PAYMENT_RELEASED: (
        {"payments": (SEVEN,), "beside": (EIGHT,)},
        "transaction 7, which paid this order, was released at the gateway; transactions 8 hold money for it",
    ),
    AttentionCode.PAYMENT_GONE: ({}, "the gateway no longer shows the payment that completed this checkout"),
    AttentionCode.OPEN_PAYMENT: (
        {},
        "a payment has been open since long before the deadline; ask the gateway or the shopper",
    ),
    AttentionCode.RESERVATION_LAPSES: (
        {"facts": {"until": "2026-01-12T10:00+00:00"}},
        "the reservation is sure to be worth a capture until 2026-01-12 10:00 UTC only; capture or release it",
    ),
    AttentionCode.CHARGED_BACK: (
        {"facts": {"amount": 5000, "currency": "DKK"}},
        "the shopper's bank took back 50.00 DKK; answer it at the gateway",
    ),
    AttentionCode.OPERATION_UNCLEAR: (
        {"facts": {"error": NEVER}},
        "it was sent 3 times, and the gateway's books never had it",
    ),
    AttentionCode.OPERATION_REJECTED: (
        {"facts": {"kind": "capture", "transaction": "7", "error": {"code": "already_captured"}}},
        "the capture of transaction 7 was not done: it has been captured: refund it instead",
    ),
    AttentionCode.GATEWAY_CREDENTIALS: (
        {},
        "the gateway refuses this merchant's user name and password; correct them",
    ),
    AttentionCode.GATEWAY_FAILING: (
        {"facts": {"attempts": 9, "error": {"code": "unknown", "facts": {"reason": "HTTP 503"}}}},
        "9 failed calls in a row, last HTTP 503",
    ),
    AttentionCode.STEP_BROKE: (
        {"facts": {"error": "KeyError", "state": "received"}},
        "KeyError while received; see the workers' logs",
    ),
    AttentionCode.POISONED: (
        {},
        "every worker that took this checkout stopped in the middle; see the workers' logs",
    ),
    AttentionCode.ORDER_NUMBER_USED_UP: (
        {"facts": {"sessions": 4, "most": 4}},
        "4 sessions were opened for it, and the gateway takes about 4",
    ),
    AttentionCode.NO_PAYMENT_METHODS: (
        {},
        "the gateway offers none for this order; check the merchant's terminals, and the order's country, currency and amount",
    ),
    AttentionCode.OTHER: ({"facts": {"text": "words of old"}}, "words of old"),
}
RAISED_IN = {
    AttentionCode.LATE_PAYMENT: "processing/complete.py",
    AttentionCode.SURPLUS_PAYMENT: "domain/reconciliation.py",
    AttentionCode.UNKNOWN_ORDER: "processing/complete.py",
    AttentionCode.PAYMENT_MISMATCH: "domain/decisions.py",
    AttentionCode.UNCLEAR_PAYMENT: "domain/decisions.py",
    AttentionCode.UNBOUND_PAYMENT: "domain/decisions.py",
    AttentionCode.CHARGEBACK_UNCLEAR: "domain/decisions.py",
    AttentionCode.OVER_REFUND: "domain/decisions.py",
    AttentionCode.OVER_CAPTURE: "domain/decisions.py",
    AttentionCode.CREDITED: "domain/decisions.py",
    AttentionCode.LOOKUP_AT_LIMIT: "domain/reconciliation.py",
    AttentionCode.PAYMENT_RELEASED: "domain/reconciliation.py",
    AttentionCode.PAYMENT_GONE: "processing/monitor.py",
    AttentionCode.OPEN_PAYMENT: "processing/lookup.py",
    AttentionCode.RESERVATION_LAPSES: "processing/monitor.py",
    AttentionCode.CHARGED_BACK: "processing/complete.py",
    AttentionCode.OPERATION_UNCLEAR: "processing/money_operations.py",
    AttentionCode.OPERATION_REJECTED: "processing/money_operations.py",
    AttentionCode.GATEWAY_CREDENTIALS: "processing/step.py",
    AttentionCode.GATEWAY_FAILING: "processing/step.py",
    AttentionCode.STEP_BROKE: "processing/processor.py",
    AttentionCode.POISONED: "processing/step.py",
    AttentionCode.ORDER_NUMBER_USED_UP: "processing/open_session.py",
    AttentionCode.NO_PAYMENT_METHODS: "processing/open_session.py",
    AttentionCode.OTHER: "domain/attention.py",
}
"""The module that raises each; `tests/acceptance/mishaps` and `tests/integration/processing` reach them."""


# ── Attention ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("code", AttentionCode)
def test_every_attention_has_a_sentence_and_is_read_as_it_was_stored(code):
    values, sentence = ATTENTIONS[code]
    needed = Attention(code=code, **values)
    assert sentences.of(needed) == sentence
    details = msgspec.json.decode(msgspec.json.encode(needed.details))
    assert attention.stored(code.value, details) == needed
    assert not needed.is_news(attention.stored(code.value, details))
    assert needed.is_news(None)


@pytest.mark.parametrize("code", AttentionCode)
def test_every_attention_has_its_ways_out(code):
    ways = {*WAYS_OUT[code], *ENDS_THE_CAUSE.get(code, ())}
    assert WAYS_OUT[code]
    assert (Way.RETURN in ways) <= (code in RETURNABLE)
    if code in attention.ABOUT_FAILURES or code is AttentionCode.POISONED:
        assert ways == {Way.RETRY}
    else:
        assert RESOLVE & ways
    if Way.RECONCILE in ways:
        # A lookup takes it back, or settles the operation that raised it.
        assert code in {*SHOWN_BY_LOOKUPS, AttentionCode.OPERATION_UNCLEAR}
    assert ways <= set(advice.WAYS)
    assert advice.MEANING[code]


@pytest.mark.parametrize("code", AttentionCode)
def test_every_attention_has_a_chapter_in_the_runbook_that_names_its_commands(code):
    chapter = CHAPTERS[code]
    assert all(f"**{part}.**" in chapter for part in ("Meaning", "Look at", "Do"))
    named = " ".join(chapter.split())
    for way in (*WAYS_OUT[code], *ENDS_THE_CAUSE.get(code, ())):
        command = f"resolve ID {way}" if way in RESOLVE else f"{way} ID"
        assert f"`orchestrator checkouts {command}" in named, way


def test_the_runbook_has_no_chapter_about_something_else():
    assert set(CHAPTERS) == set(AttentionCode)


def test_every_command_that_the_runbook_names_exists():
    named = re.findall(r"`(orchestrator [^`]+)`", " ".join(RUNBOOK.split())) + re.findall(
        r"^    (orchestrator .*?)(?:  +#.*)?$", RUNBOOK, re.MULTILINE
    )
    assert len(named) > 50
    for line in named:
        words = line.split()[1:]
        command: click.Command = cli
        context = click.Context(command)
        while isinstance(command, click.Group) and words:
            found = command.get_command(context, words.pop(0))
            assert found is not None, line
            command = found
        options = {
            name
            for parameter in command.params
            if isinstance(parameter, click.Option)
            for name in parameter.opts
        }
        assert {word for word in words if word.startswith("--")} <= options, line
        if command.name == "resolve":
            assert Way(words[1]) in RESOLVE, line


@pytest.mark.parametrize("code", AttentionCode)
def test_every_attention_is_raised_somewhere(code):
    source = (ROOT / "orchestrator" / RAISED_IN[code]).read_text()
    assert f"AttentionCode.{code.name}" in source or (code in IRREGULAR and "for code in IRREGULAR" in source)


def test_what_is_read_of_a_row_is_never_an_error():
    assert attention.stored(None, None) is None
    assert attention.stored("late_payment", None) == Attention(code=AttentionCode.LATE_PAYMENT)
    strange = attention.stored("something_new", {"facts": 7})
    assert (strange.code, sentences.of(strange)) == (AttentionCode.OTHER, "something_new")
    odd = attention.stored("payment_mismatch", {"payments": "no list"})
    assert (odd.code, sentences.of(odd)) == (AttentionCode.PAYMENT_MISMATCH, "payment mismatch")


@pytest.mark.parametrize("code", [*AttentionCode])
def test_facts_that_are_missing_leave_the_words_of_the_code(code):
    assert sentences.of(Attention(code=code))
    assert sentences.of(Attention(code=code, facts={"text": "as it was"})) == "as it was"


def test_it_is_news_when_the_question_is_another_and_not_when_a_named_payment_holds_another_amount():
    late = Attention(code=AttentionCode.LATE_PAYMENT, payments=(SEVEN,))
    assert not msgspec.structs.replace(late, payments=(EIGHT,)).is_news(late)
    surplus = Attention(code=AttentionCode.SURPLUS_PAYMENT, payments=(SEVEN,))
    assert not msgspec.structs.replace(surplus, payments=(msgspec.structs.replace(SEVEN, amount=1),)).is_news(
        surplus
    )
    assert msgspec.structs.replace(surplus, payments=(SEVEN, EIGHT)).is_news(surplus)
    released = Attention(code=AttentionCode.PAYMENT_RELEASED, payments=(SEVEN,))
    beside = msgspec.structs.replace(released, beside=(EIGHT,))
    assert beside.is_news(released)
    assert beside.is_same_question(released)
    mismatch = Attention(
        code=AttentionCode.PAYMENT_MISMATCH,
        facts=ORDER,
        payments=(problem(SEVEN, AttentionCode.PAYMENT_MISMATCH),),
    )
    less = problem(msgspec.structs.replace(SEVEN, amount=4900), AttentionCode.PAYMENT_MISMATCH)
    assert msgspec.structs.replace(mismatch, payments=(less,)).is_news(mismatch)


def test_the_codes_of_flags_and_decisions_are_those_of_attention():
    assert {*decisions.PROBLEMS} == PROBLEMS
    assert set(sentences.SHOWS) == set(LookupOutcome)


# ── Last errors and results of commands ───────────────────────────────────────────────────────────────────

FACTS = {
    "reason": "no answer", "sessions": 4, "most": 4, "checkout": "c", "error": "KeyError", "state": "received", "answer": "Open",
    "kind": "capture", "left": 100, "amount": 200, "total": 300, "before": 50, "currency": "DKK", "status": "odd", "transaction": "7",
    "operation": "o", "sends": 3, "attention": {"code": "late_payment"},
}  # fmt: skip
RESULT_FACTS = {
    **FACTS, "operations": ["o"], "finding": "paid", "asked": 1, "version": 2, "field": "order.amount", "problem": "is missing", "orderId": "A-1001", "transactions": ["7", "8"],
    "ordered": "DKK", "payments": [{"transaction": "7", "amount": 100, "currency": "DKK"}], "attention": "charged_back",
}  # fmt: skip


@pytest.mark.parametrize("code", ErrorCode)
def test_every_error_has_a_sentence_and_is_read_as_it_was_stored(code):
    facts = {"text": "words of old"} if code is ErrorCode.OTHER else FACTS
    stored_error = LastError(code=code, facts=facts)
    said = sentences.of(stored_error)
    assert said
    assert said != code.replace("_", " "), "its sentence is made"
    assert not re.search(r"None|\{|\}", said)
    assert last_error.stored(code.value, msgspec.json.decode(msgspec.json.encode(facts))) == stored_error


@pytest.mark.parametrize("code", ResultCode)
def test_every_result_has_a_sentence_and_is_read_as_it_was_stored(code):
    facts = {"text": "words of old"} if code is ResultCode.OTHER else RESULT_FACTS
    stored_result = CommandResult(code=code, facts=facts)
    said = sentences.of(stored_result)
    assert said
    assert said != code.replace("_", " "), "its sentence is made"
    assert not re.search(r"None|\{|\}", said)
    assert command_result.stored(code.value, msgspec.json.decode(msgspec.json.encode(facts))) == stored_result


def test_every_result_is_accepted_done_or_refused():
    for code in ResultCode:
        kind = code.value.partition("_")[0]
        assert (code in command_result.REFUSED, code in command_result.DONE) == (
            kind == "refused",
            kind == "done",
        )


def test_words_that_are_not_known_are_kept():
    assert sentences.of(last_error.stored("Card Declined", None)) == "Card Declined"
    assert sentences.of(command_result.stored("done: nothing new", None)) == "done: nothing new"
    assert last_error.stored(None, None) is None
    assert command_result.stored(None, None) is None

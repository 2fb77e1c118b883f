"""Every state, every reason for a lookup and every operation is explained: what it is, why, what comes next
and when, and what may be done.
"""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import msgspec
import pytest

from orchestrator import explain
from orchestrator.audit import Action
from orchestrator.domain import decisions, reconciliation
from orchestrator.domain.attention import Attention, AttentionCode, PaymentAmount
from orchestrator.domain.last_error import ErrorCode, error
from orchestrator.domain.payment_meaning import PaymentMeaning
from orchestrator.domain.records import (
    Binding,
    Cause,
    Command,
    CommandKind,
    Decision,
    Operation,
    OperationState,
    PaymentRecord,
    Role,
)
from orchestrator.domain.states import CLOSED, ENDED, TRANSITIONS, UNOFFERED, State, Trigger
from orchestrator.explain import Entry, Record
from orchestrator.explain.advice import FIRST, MEANING
from orchestrator.explain.record import Queue
from orchestrator.explain.trail import _SINCE, GRADES
from orchestrator.store.read_model import Archived

NOW = datetime(2026, 1, 5, 10, 0, tzinfo=UTC)
ID = UUID("019aa000-0000-7000-8000-000000000001")
OPERATIONS = ("requested", "submitted", "succeeded", "rejected", "unknown")
ENTRIES = (
    Entry(at=NOW - timedelta(minutes=9), action="checkout:received", actor="client:default/shop-1", to="received", evidence={"amount": 13900}),
)  # fmt: skip
TRANSACTION = {
    "id": "539101", "status": "preauth", "meaning": "reserved", "binding": "bound", "role": "accepted", "reserved": 13900,
    "captured": 0, "refunded": 0,
}  # fmt: skip
CALLBACK = {
    "id": "1",
    "kind": "notification",
    "grade": "signed",
    "digest": "00",
    "status": "succeeded",
    "transaction": "539101",
}


def record(state: State = State.AWAITING_PAYMENT, **changes: object) -> Record:
    values: dict = {
        "id": ID,
        "merchant": "default",
        "order_ref": "A-1001",
        "state": state,
        "version": 5,
        "currency": "DKK",
        "amount": 13900,
        "created_at": NOW - timedelta(minutes=9),
        "deadline": NOW + timedelta(minutes=20),
        "now": NOW,
        "due_at": NOW + timedelta(minutes=3),
        "entries": ENTRIES,
        "watch": (3600.0, 86400.0),
        "ended_at": NOW - timedelta(minutes=1) if state in ENDED else None,
        **changes,
    }
    return Record(**values)


def needing(code: AttentionCode) -> Attention:
    """Return an attention with the facts that any of them may have."""
    amount = PaymentAmount(transaction_id="7", amount=5000, currency="DKK", problem=code, status="preauth")
    facts = {
        "ordered": 13900,
        "currency": "DKK",
        "orderId": "A-1001",
        "refunded": 1,
        "captured": 2,
        "reserved": 3,
        "amount": 4,
        "events": ["Dispute 50.00 DKK"],
        "credits": ["20.00 DKK"],
        "until": "2026-01-12T10:00+00:00",
        "kind": "capture",
        "transaction": "7",
        "attempts": 9,
        "sessions": 4,
        "most": 4,
        "error": {"code": "never_in_books", "facts": {"sends": 3}},
    }
    if code is AttentionCode.OTHER:
        facts = {"text": "something_new: some reason"}
    return Attention(code=code, payments=(amount,), facts=facts)


def payment(transaction_id: str = "539101", **changes: object) -> PaymentRecord:
    values: dict = {
        "transaction_id": transaction_id,
        "role": "accepted",
        "binding": "bound",
        "status": "preauth",
        "meaning": "reserved",
        "currency": "DKK",
        "reserved": 13900,
        "captured": 0,
        "refunded": 0,
        **changes,
    }
    return PaymentRecord(**values)


def operation(state: str, **changes: object) -> Operation:
    values: dict = {
        "id": ID,
        "kind": "capture",
        "transaction_id": "539101",
        "amount": 1000,
        "currency": "DKK",
        "state": state,
        "cause": "asked",
        "actor": "client:shop",
        "requested_at": NOW - timedelta(minutes=2),
        **changes,
    }
    return Operation(**values)


def move(trigger: Trigger, **evidence: object) -> Record:
    """Return a record whose last move was this move."""
    (before, _), to = next((key, to) for key, to in TRANSITIONS.items() if key[1] is trigger)
    entry = Entry(
        at=NOW,
        action="checkout:moved",
        actor="system:orchestrator",
        to=to,
        before=before,
        trigger=trigger,
        evidence=evidence,
    )
    return record(to, entries=(*ENTRIES, entry))


def sentences(made: explain.Explanation) -> list[str]:
    return [made.summary, *made.because, *made.evidence, made.next.what, *made.you_may]


def check(checkout: Record) -> explain.Explanation:
    """Explain, and check every sentence as a reader would."""
    made = explain.explain(checkout)
    every = sentences(made)
    for said in every:
        assert said[0].isupper() or said[0].isdecimal(), said
        assert said.endswith("."), said
        # Calls and commands apart, no identifier of the code is shown to people, and no value that is
        # missing.
        prose = re.sub(r"POST .*?, or |`[^`]*`|“[^”]*”", "X", said)
        assert not re.search(
            r"\bNone\b|\bTrue\b|\bFalse\b|[a-z]+_[a-z]+|State\.|Trigger\.|\{|\}|\.\.|  | ,|:\.", prose
        ), said
        assert not re.search(r"\b\d{4}-\d\d-\d\d(?!T\d\d:\d\d:\d\dZ)", said), said
    assert made.because
    assert made.evidence
    assert made.you_may
    if made.next.at is None:
        assert "othing more happens by itself" in made.next.what
    elif made.next.at > checkout.now:
        assert made.next.at.strftime("%Y-%m-%dT%H:%M:%SZ") in made.next.what
    assert len(set(every)) == len(every)
    return made


# ── Everything ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("attention", [None, *AttentionCode])
def test_every_state_with_every_reason_for_a_lookup_is_explained(state, attention):
    for changes in (
        {},
        {"due_at": NOW - timedelta(seconds=1)},
        {"leased_until": NOW + timedelta(seconds=30)},
        {"slot_reserved": True},
        *({"slot_reserved": True, "queue": Queue(before=before, age=12.3)} for before in (0, 1, 40)),
        {"cancel_requested_at": NOW - timedelta(seconds=5)},
        {
            "attempts": 3,
            "last_error": error(ErrorCode.UNKNOWN_OUTCOME, reason="no answer within 10 s"),
            "callbacks": 2,
        },
        {
            "payments": (
                payment(),
                payment("7", role="surplus"),
                payment("8", role="unknown", captured=13900, currency="EUR"),
            )
        },
        {
            "reserved": 13900,
            "captured": 5000,
            "refunded": 1000,
            "charged_back": 500,
            "reserved_until": NOW,
            "late": True,
        },
        {"deadline": NOW - timedelta(hours=1), "token_expires_at": NOW, "auto_capture": True},
        {"entries": ()},
        *([{"due_at": None}, {"due_at": None, "watch": ()}] if state in ENDED else []),
    ):
        made = check(record(state, attention=None if attention is None else needing(attention), **changes))
        assert (" a decision." in made.summary) == (attention is not None)


@pytest.mark.parametrize("state", OPERATIONS)
@pytest.mark.parametrize("kind", ["capture", "refund", "release"])
@pytest.mark.parametrize("cause", ["asked", "automatic", "returned"])
def test_every_operation_is_explained_wherever_it_stands(state, kind, cause):
    times = (
        {"submitted_at": NOW - timedelta(minutes=1), "settled_at": NOW}
        if state in {"succeeded", "rejected"}
        else {}
    )
    for failed in (None, error(ErrorCode.GATEWAY_REFUSED, reason="Card Declined")):
        moved = operation(state, kind=kind, cause=cause, last_error=failed, **times)
        for checkout in (State.COMPLETED, State.CANCELLED, State.AWAITING_PAYMENT):
            made = check(record(checkout, operations=(moved,), reserved=13900))
            assert any(f"A {kind} of 10.00 DKK on transaction 539101" in said for said in made.because)
            is_open = state in {"requested", "submitted", "unknown"}
            assert (f"A {kind} is under way." in made.summary) == is_open
            assert (f" the {kind}" in made.next.what) == is_open


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize(
    "kind", ["change", "cancel", "reopen", "capture", "refund", "release", "retry", "reconcile", "resolve"]
)
def test_a_command_that_waits_comes_next(state, kind):
    asked = Command(id=ID, kind=kind, actor="operator:command-line", requested_at=NOW)
    made = check(record(state, commands=(asked,)))
    assert f"the requested command ({kind})" in made.next.what
    assert any(f"an operator (command line) requested a {kind}" in said for said in made.because)


@pytest.mark.parametrize("named", [None, "539101"])
@pytest.mark.parametrize("kind", ["capture", "refund", "release"])
def test_a_command_behind_an_unclear_operation_says_what_it_waits_for(kind, named):
    asked = Command(
        id=ID,
        kind=kind,
        actor="operator:command-line",
        arguments={"transactionId": named},
        requested_at=NOW,
    )
    held = record(
        State.COMPLETED,
        commands=(asked,),
        payments=(payment("539101", role="accepted"), payment("539102", role="surplus")),
        operations=(operation("unknown", kind="refund", transaction_id="539101"),),
        attention=needing(AttentionCode.OPERATION_UNCLEAR),
    )
    made = check(held)
    assert any(
        f"requested a {kind}, which waits for the result of the previous operation" in said
        for said in made.because
    )
    assert "the requested command" not in made.next.what
    elsewhere = replace(held, commands=(replace(asked, arguments={"transactionId": "539102"}),))
    assert f"the requested command ({kind})" in check(elsewhere).next.what


@pytest.mark.parametrize("trigger", Trigger)
@pytest.mark.parametrize(
    "evidence",
    [
        {},
        {"by": "lookup", "transactions": [TRANSACTION]},
        {"by": "command"},
        {
            "callbacks": [CALLBACK, {"kind": "strange", "grade": "strange"}],
            "transactions": [{"id": "1", "status": "\0"}],
        },
        {"call": "session", "status": 422, "reason": "refused: the amount is wrong"},
        {"call": "payment-methods", "methods": 0},
        {"sessionCount": 4, "methods": 1, "session": "s-1", "expiresIn": 1800.0},
        {"openings": 4},
    ],
)
def test_every_fact_that_moves_a_checkout_has_an_event(trigger, evidence):
    check(move(trigger, **evidence))


@pytest.mark.parametrize("action", Action)
def test_every_entry_of_the_trail_can_follow(action):
    entry = Entry(
        at=NOW,
        action=action,
        actor="client:default/shop-1",
        to="received",
        before="received",
        evidence={
            "kind": "capture",
            "callbacks": [CALLBACK],
            "transactions": [TRANSACTION],
            "reason": "total_unchanged",
            "why": "still_reserved",
            "shown": "the gateway shows nothing",
            "amount": 100,
            "currency": "DKK",
        },
    )
    made = check(record(State.RECEIVED, entries=(*ENTRIES, entry)))
    assert len(made.evidence) == (2 if action in _SINCE else 1)


def test_every_attention_has_its_meaning():
    assert set(MEANING) == set(AttentionCode)
    assert set(FIRST) <= set(AttentionCode)
    assert set(_SINCE) <= set(Action)


# ── What it says ──────────────────────────────────────────────────────────────────────────────────────────


def test_the_evidence_names_the_callback_and_what_the_gateway_itself_answered():
    arrived = Entry(
        at=NOW - timedelta(seconds=2),
        action="checkout:moved",
        actor="system:orchestrator",
        to="callback_received",
        before="awaiting_payment",
        trigger="callback_arrived",
        evidence={"callbacks": [CALLBACK]},
    )
    found = Entry(
        at=NOW,
        action="checkout:moved",
        actor="system:orchestrator",
        to="completed",
        before="callback_received",
        trigger="payment_found",
        evidence={"by": "lookup", "transactions": [TRANSACTION]},
    )
    made = check(
        record(State.COMPLETED, entries=(*ENTRIES, arrived, found), payments=(payment(),), reserved=13900)
    )
    assert made.evidence == (
        "By 2026-01-05T09:59:58Z a notification about transaction 539101 had arrived with a valid signature; it said “succeeded”.",
        "At 2026-01-05T10:00:00Z a worker looked it up at the gateway, and its own answer showed transaction 539101 as “preauth” (pre-authorization) with 139.00 DKK reserved, matched by checkout id.",
    )
    assert made.summary == "Order A-1001 for 139.00 DKK is completed: its payment is authorized."
    again = msgspec.structs.replace(
        found, evidence={**found.evidence, "callbacks": [CALLBACK]}, at=arrived.at
    )
    assert (
        len(check(record(State.COMPLETED, entries=(*ENTRIES, arrived, again), reserved=13900)).evidence) == 2
    )


@pytest.mark.parametrize("grade", GRADES)
def test_the_grade_of_a_callback_is_shown(grade):
    made = check(move(Trigger.CALLBACK_ARRIVED, callbacks=[{**CALLBACK, "grade": grade}]))
    assert GRADES[grade] in made.evidence[0]


def test_an_amount_is_shown_in_the_currency_of_its_payment():
    odd = replace(
        move(Trigger.PAYMENT_FOUND, transactions=[{**TRANSACTION, "reserved": 500}]),
        payments=(payment(currency="JPY"),),
    )
    assert "500 JPY reserved" in check(odd).evidence[-1]


def test_a_chargeback_that_a_lookup_showed_is_told():
    """By the names under which a lookup's evidence has the amounts."""
    seen = PaymentRecord(
        transaction_id="539101",
        payment_id=None,
        order_ref="A-1001",
        role=Role.ACCEPTED,
        binding=Binding.BOUND,
        status="captured",
        meaning=PaymentMeaning.REFUNDED,
        currency="DKK",
        reserved=13900,
        captured=13900,
        refunded=500,
        charged_back=13400,
    )
    evidence = reconciliation._evidence((seen,), foreign=0)
    told = check(move(Trigger.PAYMENT_FOUND, **evidence)).evidence[-1]
    assert "139.00 DKK captured and 5.00 DKK refunded and 134.00 DKK charged back" in told


@pytest.mark.parametrize("word", ["unmatched_payment", "stray"])
def test_a_payment_of_an_unknown_order_says_so(word):
    """Also in an entry of a version before migration 0011, which has another word for it."""
    first = Entry(
        at=NOW, action="checkout:received", actor="system:orchestrator", to="failed", evidence={word: True}
    )
    made = check(record(State.FAILED, entries=(first,), attention=needing(AttentionCode.UNKNOWN_ORDER)))
    assert "without an intent" in made.evidence[0]
    assert "was handed over by no shop" in made.summary
    assert "/reopen" not in " ".join(made.you_may)


@pytest.mark.parametrize("state", [State.AWAITING_PAYMENT, State.CALLBACK_RECEIVED])
def test_what_is_offered_says_until_when_and_what_ends_it(state):
    made = check(record(state))
    assert "The shopper may pay until the deadline, 2026-01-05T10:20:00Z." in made.because
    assert "30 s or more after the deadline of 2026-01-05T10:20:00Z, expires it" in made.next.what
    made = check(record(state, cancel_requested_at=NOW - timedelta(seconds=10)))
    assert "the session is no longer handed out" in made.because[0]
    assert "after 2026-01-05T10:00:20Z that shows no payment cancels it" in made.next.what
    made = check(
        record(state, deadline=NOW - timedelta(hours=1), payments=(payment(meaning="open", role="attempt"),))
    )
    assert any("A payment is open" in said for said in made.because)
    made = check(record(state, token_expires_at=NOW - timedelta(seconds=1)))
    assert any("The session's token expired at 2026-01-05T09:59:59Z" in said for said in made.because)


@pytest.mark.parametrize("state", [State.AWAITING_PAYMENT, State.CALLBACK_RECEIVED])
def test_a_payment_that_does_not_fit_waits_for_a_decision_and_does_not_expire(state):
    made = check(record(state, attention=needing(AttentionCode.PAYMENT_MISMATCH)))
    assert made.summary == (
        "Order A-1001 for 139.00 DKK holds a payment that does not fit. It waits for a decision."
    )
    assert "expires it" not in made.next.what
    assert "neither completed nor ended before the decision" in made.next.what


def test_a_decision_that_was_taken_stands_in_the_evidence():
    def entry(**evidence: object) -> Entry:
        return _entry("attention:cleared", State.COMPLETED, State.COMPLETED, evidence=evidence)

    decided = record(State.COMPLETED, entries=(*ENTRIES, entry(decision="keep"), entry(decision="<odd>")))
    assert check(decided).evidence[-2:] == (
        "At 2026-01-05T10:00:00Z the shop's client shop-1 decided: keep.",
        "At 2026-01-05T10:00:00Z the shop's client shop-1 cleared the attention.",
    )


@pytest.mark.parametrize("answered", [False, True])
def test_a_decision_that_is_carried_out_is_not_needed_any_more(answered):
    command = Command(
        id=uuid4(),
        kind=CommandKind.RESOLVE,
        actor="operator:a",
        requested_at=NOW,
        handled_at=NOW if answered else None,
    )
    release = operation(state=OperationState.SUBMITTED, cause=Cause.RETURNED, command_id=command.id)
    for code, under_way in (
        (AttentionCode.SURPLUS_PAYMENT, True),
        (AttentionCode.CHARGED_BACK, not answered),
    ):
        made = check(
            record(State.COMPLETED, attention=needing(code), commands=(command,), operations=(release,))
        )
        assert ("A worker carries out the decision." in made.summary) is under_way
        assert ("It needs a decision." in made.summary) is not under_way


@pytest.mark.parametrize("state", UNOFFERED)
def test_what_is_not_offered_yet_says_what_failed_and_when_it_gives_up(state):
    made = check(record(state, attempts=3, last_error=error(ErrorCode.NOT_SENT, reason="connection refused")))
    assert any("failed 3 times in a row" in said and "connection refused" in said for said in made.because)
    assert "once more" in made.next.what
    assert "by 2026-01-05T10:20:00Z, it fails" in made.next.what


def test_a_late_payment_says_that_it_came_late_and_offers_to_keep_or_return_it():
    made = check(
        record(
            State.COMPLETED,
            late=True,
            attention=needing(AttentionCode.LATE_PAYMENT),
            payments=(payment(),),
            reserved=13900,
        )
    )
    assert "the money came after it had been closed" in made.summary
    assert [said.partition(":")[0] for said in made.you_may][:2] == [
        "Keep 139.00 DKK (transaction 539101), and with it the order of 139.00 DKK",
        "Return 139.00 DKK (transaction 539101) to the shopper, which cannot be undone",
    ]


def test_money_that_is_too_much_is_returned_by_what_it_is():
    unmatched = (payment(), payment("7", role="surplus"), payment("8", role="surplus", captured=13900))
    made = check(
        record(
            State.COMPLETED,
            payments=unmatched,
            attention=needing(AttentionCode.SURPLUS_PAYMENT),
            reserved=13900,
        )
    )
    assert any(
        "Transaction 7 holds 139.00 DKK, beside the accepted payment." in said for said in made.because
    )
    names = "139.00 DKK (transaction 7) and 139.00 DKK (transaction 8)"
    assert [said.partition(":")[0] for said in made.you_may][:4] == [
        f"Return {names} to the shopper, which cannot be undone",
        f"Keep {names}, beside the payment of the order",
        "Return 139.00 DKK of transaction 7 alone",
        "Return 139.00 DKK of transaction 8 alone",
    ]
    assert any("/release with" in said and '"7"' in said for said in made.you_may)
    assert any(
        "/refund with" in said
        and '"8", "amount": "all"' in said
        and "Idempotency-Key" in said
        and said.endswith("--transaction 8 --all`.")
        for said in made.you_may
    )


@pytest.mark.parametrize(
    ("held", "offered"),
    [
        ({"reserved": 100}, {"return", "keep"}),
        ({"reserved": 13900, "currency": "EUR"}, {"return"}),
        ({"binding": "order_ref"}, {"keep", "dismiss"}),
    ],
)
def test_a_decision_that_would_be_refused_is_not_offered(held, offered):
    seen = payment("7", **{"role": "unknown", **held})
    asking = record(State.AWAITING_PAYMENT, payments=(seen,))
    asked = decisions.problem(asking, decisions.open_problems(asking, asking.payments)).attention
    ways = " ".join(check(replace(asking, attention=asked)).you_may)
    assert {way for way in Decision if f"resolve {ID} {way}" in ways} == offered
    refusals = {
        way: decisions.refusal(asking, asking.payments, asked, way, completed=False) for way in Decision
    }
    assert all(refusals[way] is None for way in offered)


def test_what_may_be_done_with_money_is_what_is_left_of_it():
    def ways(**money: int) -> str:
        return " ".join(check(record(State.COMPLETED, **money)).you_may)

    assert "/capture" in ways(reserved=13900)
    assert "/release" in ways(reserved=13900)
    assert "/refund" not in ways(reserved=13900)
    assert "/release" not in ways(reserved=13900, captured=100)
    assert "/refund" in ways(reserved=13900, captured=100)
    assert "/capture" not in ways(reserved=13900, captured=13900)
    assert "/refund" not in ways(reserved=13900, captured=100, refunded=60, charged_back=40)
    assert "/capture" not in " ".join(
        check(record(State.COMPLETED, reserved=13900, operations=(operation("submitted"),))).you_may
    )


@pytest.mark.parametrize("state", State)
def test_only_what_can_be_is_offered(state):
    ways = " ".join(check(record(state)).you_may)
    assert ("/reopen" in ways) == (state in CLOSED)
    assert ("/cancel" in ways) == (state not in ENDED)
    assert "/reconcile" in ways
    assert "/cancel" not in " ".join(check(record(state, cancel_requested_at=NOW)).you_may)


def test_a_settled_checkout_says_that_nothing_more_happens():
    made = check(record(State.CANCELLED, due_at=None))
    assert made.next.at is None
    assert "ran out at 2026-01-06T09:59:00Z" in made.next.what


# ── Archived ──────────────────────────────────────────────────────────────────────────────────────────────


def test_an_archived_trail_is_shown_with_its_file_and_what_came_after():
    archived = Archived(until=7, file="archive-000003.jsonl.gz", at=NOW - timedelta(minutes=5))
    where = (
        "Its trail up to entry 7 was archived at 2026-01-05T09:55:00Z, in the file “archive-000003.jsonl.gz”."
    )
    made = check(record(State.COMPLETED, entries=(), archived=(archived,), due_at=None))
    assert made.evidence == (where,)
    later = Entry(
        at=NOW,
        action="command:refused",
        actor="client:default/shop-1",
        to="completed",
        before="completed",
        evidence={"kind": "cancel", "refusal": "it is paid"},
    )
    made = check(record(State.COMPLETED, entries=(later,), archived=(archived,)))
    assert made.evidence[0] == where
    assert len(made.evidence) == 2
    moved = replace(move(Trigger.PAYMENT_FOUND, transactions=[TRANSACTION]), archived=(archived,))
    assert check(moved).evidence[0] == where


def test_amounts_that_cannot_be_read_are_shown_as_they_were_written():
    raw = {"reserved": "1.990,50"}
    odd = payment("2", role="unknown", meaning="unknown", currency="ISK", reserved=0, raw_amounts=raw)
    evidence = {"by": "lookup", "transactions": [{**TRANSACTION, "id": "2", "reserved": 0, "raw": raw}]}
    said = "\n".join(
        sentences(
            check(
                replace(
                    move(Trigger.PAYMENT_DECLINED, **evidence),
                    payments=(odd,),
                    attention=needing(AttentionCode.UNCLEAR_PAYMENT),
                )
            )
        )
    )
    assert (
        "Transaction 2 holds amounts that cannot be read (reserved “1.990,50” ISK), not taken for this order."
        in said
    )
    assert "“1.990,50” ISK reserved" in said
    assert "0 ISK" not in said


@pytest.mark.parametrize("currency", ["QQQ", ""])
def test_a_payment_in_an_unknown_currency_is_never_shown_to_hold_nothing(currency):
    raw = {"currency": "QQQ", "reserved": "139.00", "captured": "0.00", "refunded": "0.00"}
    odd = payment("2", role="unknown", meaning="unknown", currency="", reserved=0, raw_amounts=raw)
    found = record(
        payments=(odd,), currency=currency or "DKK", attention=needing(AttentionCode.UNCLEAR_PAYMENT)
    )
    said = "\n".join(sentences(check(found)))
    assert "reserved “139.00” QQQ" in said
    assert "holds 0" not in said
    assert ("13900 minor units of QQQ" in said) == bool(currency)


# ── A changed order ───────────────────────────────────────────────────────────────────────────────────────

CHANGED = {"amountBefore": 13900, "amount": 9950, "currency": "DKK", "kind": "change"}


def _entry(action: str, before: State, to: State, **more: object) -> Entry:
    values: dict = {"at": NOW, "actor": "client:default/shop-1", **more}
    return Entry(action=action, before=before, to=to, **values)


def test_a_changed_order_says_from_which_price_to_which():
    moved = _entry(
        "order:changed",
        State.AWAITING_PAYMENT,
        State.SESSION_CREATED,
        trigger="order_changed",
        evidence=CHANGED,
    )
    carried = _entry("session:changed", State.SESSION_CREATED, State.SESSION_CREATED)
    for entries in ((moved,), (moved, carried)):
        made = check(record(State.SESSION_CREATED, entries=(*ENTRIES, *entries), offered_at=NOW))
        assert any("changed the order, from 139.00 DKK to 99.50 DKK" in said for said in made.evidence)
        assert "The shopper cannot pay it now." in made.because
    assert any("was changed to the order as it is" in said for said in made.evidence)


def test_an_order_that_was_changed_before_its_session_says_so():
    changed = _entry("order:changed", State.RECEIVED, State.RECEIVED, evidence=CHANGED)
    made = check(record(State.RECEIVED, entries=(*ENTRIES, changed)))
    assert any("changed the order, from 139.00 DKK to 99.50 DKK" in said for said in made.evidence)


def test_a_session_that_was_not_changed_says_why_and_that_another_is_opened():
    evidence = {"session": "s-1", "status": 422, "reason": "HTTP 422"}
    lost = _entry(
        "checkout:moved",
        State.SESSION_CREATED,
        State.AUTHENTICATED,
        trigger="session_lost",
        evidence=evidence,
    )
    made = check(record(State.AUTHENTICATED, entries=(*ENTRIES, lost), offered_at=NOW))
    assert any(
        "did not change the session to the changed order" in said and "another session is opened" in said
        for said in made.evidence
    )

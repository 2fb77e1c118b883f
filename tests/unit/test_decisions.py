"""Payments that are not what was ordered: what needs a decision, and for what exactly a decision holds."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain import decisions
from orchestrator.domain.attention import Attention, AttentionCode
from orchestrator.domain.command_result import ResultCode
from orchestrator.domain.payment_meaning import TABLE, PaymentMeaning, read
from orchestrator.domain.reconciliation import LookupOutcome, Role, concerned, judge, marks
from orchestrator.domain.records import PaymentRecord
from orchestrator.domain.sentences import of
from orchestrator.domain.states import State
from orchestrator.domain.transaction import Found
from tests.unit.judging import ANOTHERS, OURS, checkout, transaction

ABSENT = {LookupOutcome.NOTHING, LookupOutcome.DECLINED}


def booked(held, reconciled):
    """Return the checkout as it stands after a lookup: its payments in the books, and what a
    person is asked.
    """
    before = {payment.transaction_id: payment.decided for payment in held.known}
    known = tuple(
        replace(payment, decided=before.get(payment.transaction_id)) for payment in reconciled.payments
    )
    return checkout(known=known, attention=reconciled.attention, state=held.state)


def decided(held, decision):
    """Return the checkout after a person's decision on what is asked."""
    said = marks(held, decision)
    known = tuple(
        replace(payment, decided=f"{payment.decided or ''} {said[payment.transaction_id]}".strip())
        if payment.transaction_id in said
        else payment
        for payment in held.known
    )
    return checkout(known=known, attention=None, state=held.state)


def asked(*transactions, **options):
    found = Found(transactions)
    return booked(checkout(), judge(checkout(), found, **options)), found


def refused(held, decision):
    return decisions.refusal(
        held, held.known, held.attention, decision, completed=held.state is State.COMPLETED
    )


LESS = transaction("7", "preauth", (5000, 0, 0))
MORE = transaction("8", "captured", (20000, 20000, 0))
GIFT = transaction("1", "captured", (3000, 3000, 0))
CARD = transaction("2", "preauth", (10900, 0, 0))
THIRD = transaction("3", "preauth", (1, 0, 0))
ODD = transaction("6", "[/b]held", (13900, 0, 0))
NAMELESS = transaction("11", "preauth", (13900, 0, 0), bound=None)
EUROS = transaction("9", "preauth", (13900, 0, 0), currency="EUR")
FAILED_UNREAD = transaction("6", "preauth_failed")
EXTRA = transaction("12", "preauth", (14100, 0, 0), surcharge=200)


@pytest.mark.parametrize(
    ("transactions", "options", "word"),
    [
        ((LESS,), {}, "payment_mismatch"),
        ((MORE,), {}, "payment_mismatch"),
        ((GIFT, CARD), {}, "payment_mismatch"),
        ((GIFT, CARD, THIRD), {}, "payment_mismatch"),
        ((EXTRA,), {}, "payment_mismatch"),
        ((ODD,), {}, "unclear_payment"),
        ((NAMELESS,), {"shared": True}, "unbound_payment"),
    ],
)
def test_what_a_person_keeps_completes_the_order_with_exactly_that(transactions, options, word):
    held, found = asked(*transactions, **options)
    assert held.attention.code == word
    assert refused(held, "keep") is None
    reconciled = judge(decided(held, "keep"), found, **options)
    assert reconciled.finding is LookupOutcome.PAID
    assert {payment.transaction_id for payment in reconciled.paying} == {
        transaction.transaction_id for transaction in transactions
    }
    assert reconciled.money[0] == sum(transaction.reserved for transaction in transactions)
    assert reconciled.money[1] == sum(transaction.captured for transaction in transactions)
    assert reconciled.attention is None
    # And it stays so at the next lookup, when the books know them as accepted.
    later = booked(checkout(state=State.COMPLETED, known=decided(held, "keep").known), reconciled)
    again = judge(checkout(state=State.COMPLETED, known=later.known), found, **options)
    assert (again.finding, again.money, again.attention) == (LookupOutcome.PAID, reconciled.money, None)


@pytest.mark.parametrize("change", ["amount", "another", "gone"])
def test_a_decision_does_not_count_for_other_amounts_or_payments(change):
    held, _ = asked(GIFT, CARD)
    found = {
        "amount": Found((GIFT, transaction("2", "preauth", (10901, 0, 0)))),
        "another": Found((GIFT, CARD, THIRD)),
        "gone": Found((GIFT,)),
    }[change]
    reconciled = judge(decided(held, "keep"), found)
    if change == "another":
        # The two are kept, and the third is asked about.
        assert {payment.transaction_id for payment in reconciled.paying} == {"1", "2"}
        assert reconciled.attention.code is AttentionCode.PAYMENT_MISMATCH
        assert of(reconciled.attention).startswith("transaction 3 holds 0.01 DKK")
    else:
        assert reconciled.finding is LookupOutcome.UNSURE
        assert reconciled.paying == ()
        assert reconciled.attention.code is AttentionCode.PAYMENT_MISMATCH


def test_parts_are_one_decision_that_names_all_of_them_and_their_sum():
    held, _ = asked(CARD, GIFT)
    assert of(held.attention) == (
        "transactions 1 (30.00 DKK), 2 (109.00 DKK) hold 139.00 DKK together, the order is 139.00 DKK"
    )
    assert {payment.transaction_id for payment in concerned(held)} == {"1", "2"}


def test_a_surcharge_is_shown_and_pays_the_order_where_the_policy_says_so():
    held, found = asked(EXTRA)
    assert of(held.attention) == (
        "transaction 12 holds 141.00 DKK, which is the order of 139.00 DKK and a surcharge of 2.00 DKK"
    )
    reconciled = judge(checkout(), found, surcharges=True)
    assert (reconciled.finding, reconciled.money, reconciled.attention) == (
        LookupOutcome.PAID,
        (14100, 0, 0),
        None,
    )
    other = transaction("12", "preauth", (14101, 0, 0), surcharge=200)
    assert judge(checkout(), Found((other,)), surcharges=True).finding is LookupOutcome.UNSURE


@pytest.mark.parametrize(
    ("case", "decision", "why"),
    [
        (EUROS, "keep", "transaction 9 is in EUR and the order in DKK"),
        (LESS, "dismiss", "the gateway holds money for this order under 7 (50.00 DKK): say keep or return"),
        (
            replace(ODD, raw_flags=("amount_unreadable",)),
            "keep",
            "the amounts of transaction 6 cannot be read",
        ),
        (transaction("6", "no_such_status"), "keep", "do not all hold money"),
        (ODD, "dismiss", "transaction 6 names this order and is [/b]held: say keep"),
        (replace(FAILED_UNREAD, raw_flags=("amount_unreadable",)), "dismiss", "names this order"),
        (
            transaction("6", "captured_failed", (13900, 0, 0)),
            "dismiss",
            "names this order and is captured_failed",
        ),
    ],
)
def test_a_decision_that_cannot_be_carried_out_is_refused_with_the_reason(case, decision, why):
    held, _ = asked(case)
    assert why in of(refused(held, decision))


@pytest.mark.parametrize(
    ("code", "role", "other"),
    [
        (AttentionCode.SURPLUS_PAYMENT, Role.SURPLUS, Role.ACCEPTED),
        (AttentionCode.LATE_PAYMENT, Role.ACCEPTED, Role.SURPLUS),
    ],
)
def test_money_that_is_only_kept_or_returned_is_not_dismissed_while_it_is_held(code, role, other):
    _, found = asked(CARD)
    (payment,) = judge(checkout(), found).payments
    beside = replace(payment, transaction_id="3", role=other)
    asks = Attention(code=code)
    for state in (State.COMPLETED, State.EXPIRED):
        held = checkout(known=(replace(payment, role=role), beside), attention=asks, state=state)
        assert of(refused(held, "dismiss")).endswith("under 2 (109.00 DKK): say keep or return")
        assert refused(held, "keep") is None
        kept = replace(payment, role=role, transaction_id="4", decided=f"{code}=keep@held")
        gone = replace(payment, role=role, captured=10900, refunded=10900)
        assert refused(checkout(known=(gone, kept), attention=asks, state=state), "dismiss") is None
        assert refused(checkout(known=(gone, beside), attention=asks, state=state), "dismiss") is None


def test_a_decision_on_what_has_changed_since_is_refused():
    held, _ = asked(LESS)
    other = msgspec.structs.replace(held.attention.payments[0], amount=4900)
    stale = checkout(known=held.known, attention=msgspec.structs.replace(held.attention, payments=(other,)))
    assert of(stale.attention) == "transaction 7 holds 49.00 DKK, the order is 139.00 DKK"
    assert refused(stale, "keep").code is ResultCode.REFUSED_PAYMENTS_CHANGED


FAILED = transaction("6", "preauth_failed", (13900, 0, 0))
UNBOUND_ODD = replace(ODD, payment_infos={})
NOTHING_IN_IT = transaction("6", "no_such_status")


@pytest.mark.parametrize(
    ("transactions", "options"),
    [((NAMELESS,), {"shared": True}), ((FAILED,), {}), ((UNBOUND_ODD,), {}), ((NOTHING_IN_IT,), {})],
)
def test_what_a_person_dismisses_is_no_money_of_the_order(transactions, options):
    held, found = asked(*transactions, **options)
    assert refused(held, "dismiss") is None
    reconciled = judge(decided(held, "dismiss"), found, **options)
    assert (reconciled.finding, reconciled.attention) == (LookupOutcome.DECLINED, None)


@pytest.mark.parametrize(
    "back",
    [
        transaction("7", "bank_payment_refunded", (0, 100, 100)),
        transaction("7", "refunded", (5000, 5000, 5000)),
        transaction("7", "captured", (5000, 5000, 0), charged_back=5000),
        transaction("7", "released", (5000, 0, 0)),
    ],
)
def test_a_mismatch_that_went_back_is_not_asked_about_again(back):
    reconciled = judge(checkout(), Found((back,)))
    assert (reconciled.finding, reconciled.attention) == (LookupOutcome.DECLINED, None)
    assert [payment.left for payment in reconciled.payments] == [0]


@pytest.mark.parametrize("blank", ["", " ", "\t \n"])
def test_a_blank_payment_info_names_no_checkout(blank):
    payment = transaction("1", "preauth", (13900, 0, 0), payment_infos={"checkout": blank})
    assert judge(checkout(), Found((payment,))).finding is LookupOutcome.PAID


@pytest.mark.parametrize(
    "status", ["created", "pending", "captured", "preauth", "who_knows", "preauth_failed"]
)
@pytest.mark.parametrize("amount", [13900, 100])
@pytest.mark.parametrize("shared", [True, False])
def test_a_payment_of_long_before_that_names_no_checkout_does_not_count_for_this_order(
    status, amount, shared
):
    old = transaction("1", status, (amount, 0, 0), bound=None, created_at="2023-01-05 10:00:00")
    reconciled = judge(checkout(), Found((old,)), shared=shared)
    assert (reconciled.finding, reconciled.attention, reconciled.payments) == (
        LookupOutcome.NOTHING,
        None,
        (),
    )
    assert reconciled.evidence["foreign"] == 1
    # What names the checkout is its own, whatever the gateway's clock says.
    bound = transaction("1", "preauth", (13900, 0, 0), created_at="2023-01-05 10:00:00")
    assert judge(checkout(), Found((bound,))).finding is LookupOutcome.PAID


def test_a_payment_that_pays_another_checkout_does_not_count_for_this_order():
    reconciled = judge(checkout(), Found((NAMELESS,)), shared=True, elsewhere={"11"})
    assert (reconciled.finding, reconciled.attention) == (LookupOutcome.NOTHING, None)


def test_several_checkouts_are_only_named_where_there_are_several():
    twice = transaction("1", "preauth", (13900, 0, 0), bound=None, raw_flags=("info_repeated",))
    said = judge(checkout(), Found((twice,))).attention
    assert (said.code, of(said)) == ("unbound_payment", "transaction 1 names more than one checkout")


@pytest.mark.parametrize(
    ("flag", "amounts", "said"),
    [
        ("over_refund", (13900, 13900, 15000), "150.00 DKK are refunded, and 139.00 DKK were captured"),
        ("over_capture", (13900, 15000, 0), "150.00 DKK are captured, and 139.00 DKK were reserved"),
        ("credited", (13900, 13900, 0), "a credit"),
        ("chargeback_unclear", (13900, 13900, 0), "a chargeback or a dispute"),
    ],
)
def test_money_taken_back_keeps_its_attention_until_it_is_dismissed_and_gets_it_again_when_it_changes(
    flag, amounts, said
):
    status = "refunded" if amounts[2] else "captured"
    payment = transaction("1", status, amounts, raw_flags=(flag,))
    paid = checkout(
        state=State.COMPLETED,
        known=(PaymentRecord("1", "accepted", "bound", "captured", "DKK", 13900, 13900, 0, 0, None),),
    )
    reconciled = judge(paid, Found((payment,)))
    assert reconciled.attention.code == flag
    assert said in of(reconciled.attention)
    seen = booked(paid, reconciled)
    assert judge(seen, Found((payment,))).attention == reconciled.attention
    done = decided(seen, "dismiss")
    assert judge(done, Found((payment,))).attention is None
    if flag.startswith("over"):
        more = replace(
            payment, refunded=payment.refunded and 16000, captured=13900 if payment.refunded else 16000
        )
        assert judge(done, Found((more,))).attention.code == flag


@pytest.mark.parametrize("amounts", [(13900, 0, 100), (13900, 0, 0), (13900, 13900, 0)])
def test_a_payment_that_was_kept_although_its_status_is_not_clear_pays_the_order_at_every_later_lookup(
    amounts,
):
    found = Found((transaction("1", "created", amounts),))
    held = booked(checkout(), judge(checkout(), found))
    held = decided(held, "keep")
    for _ in range(3):
        reconciled = judge(held, found)
        assert (reconciled.finding, reconciled.attention) == (LookupOutcome.PAID, None)
        assert [payment.role for payment in reconciled.payments] == ["accepted"]
        held = booked(held, reconciled)


@pytest.mark.parametrize(
    ("status", "amounts", "code"),
    [
        ("preauth", (13900, 0, 0), AttentionCode.SURPLUS_PAYMENT),
        ("captured", (13900, 13900, 0), AttentionCode.SURPLUS_PAYMENT),
        ("captured", (13900, 13900, 5000), AttentionCode.SURPLUS_PAYMENT),
        ("preauth", (5000, 0, 0), AttentionCode.PAYMENT_MISMATCH),
    ],
)
def test_other_money_is_no_absence_though_the_gateway_shows_no_more_what_was_kept(status, amounts, code):
    found = Found((transaction("2", "created", (13900, 0, 0)),))
    held = decided(booked(checkout(), judge(checkout(), found)), "keep")
    held = booked(held, judge(held, found))
    reconciled = judge(held, Found((transaction("1", status, amounts),)))
    assert reconciled.finding is LookupOutcome.UNSURE
    assert reconciled.attention.code == code


# ── Whatever the gateway shows and whatever was decided ───────────────────────────────────────────────────

MINOR = st.sampled_from([0, 1, 100, 5000, 13900, 14100, 20000])
TRANSACTIONS = st.lists(
    st.builds(
        lambda name, status, amounts, bound, surcharge, currency: transaction(
            str(name), status, amounts, bound=bound, surcharge=surcharge, currency=currency
        ),
        st.integers(1, 9), st.sampled_from([*TABLE, "no_such_status"]), st.tuples(MINOR, MINOR, MINOR),
        st.sampled_from([OURS, OURS, None, ANOTHERS]), st.sampled_from([0, 0, 200]), st.sampled_from(["DKK", "DKK", "EUR"]),
    ),
    unique_by=lambda payment: payment.transaction_id, max_size=4,
)  # fmt: skip
DECISIONS = st.lists(st.sampled_from(["keep", "dismiss"]), max_size=3)


@given(TRANSACTIONS, DECISIONS, TRANSACTIONS, st.tuples(st.booleans(), st.booleans()))
def test_no_decision_makes_an_absence_of_money_that_is_bound_to_the_order(before, answers, after, options):
    """An order expires or is cancelled on a lookup that shows an absence: none does so while money is held
    for it.
    """
    held, (shared, surcharges) = checkout(), options
    dismissed = set()
    for answer in answers:
        held = booked(held, judge(held, Found(tuple(before)), shared=shared, surcharges=surcharges))
        if held.attention and refused(held, answer) is None:
            about = concerned(held)
            held = decided(held, answer)
            if answer == "dismiss":
                dismissed |= {payment.transaction_id for payment in about if payment.meaning == "unknown"}
    for shown in (before, after):
        reconciled = judge(held, Found(tuple(shown)), shared=shared, surcharges=surcharges)
        bound = [payment for payment in shown if payment.payment_infos.get("checkout") == str(OURS)]
        sure = [
            payment
            for payment in bound
            if read(payment) in {PaymentMeaning.RESERVED, PaymentMeaning.CAPTURED, PaymentMeaning.REFUNDED}
        ]
        kept = [payment for payment in sure if payment.captured == 0 or payment.captured > payment.refunded]
        unclear = [
            payment
            for payment in bound
            if read(payment) is PaymentMeaning.UNKNOWN and payment.transaction_id not in dismissed
        ]
        if kept or unclear or any(read(payment) is PaymentMeaning.OPEN for payment in bound):
            assert reconciled.finding not in ABSENT, (held.known, shown)
        if reconciled.finding is LookupOutcome.UNSURE:
            assert reconciled.attention is not None
        accepted = [payment for payment in reconciled.payments if payment.role == Role.ACCEPTED]
        assert bool(accepted) == (reconciled.finding is LookupOutcome.PAID)
        assert all(payment.currency == "DKK" for payment in accepted)

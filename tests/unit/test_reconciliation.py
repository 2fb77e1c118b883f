"""What an answer of the gateway proves for a checkout, and when the next lookup is."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.attention import Attention, AttentionCode
from orchestrator.domain.binding import bind
from orchestrator.domain.reconciliation import Binding, LookupOutcome, Role, judge
from orchestrator.domain.schedule import back_off, next_lookup, next_watch, quiet_lookups, thinned
from orchestrator.domain.sentences import of
from orchestrator.domain.states import State
from orchestrator.domain.transaction import Found
from tests.conftest import make_settings
from tests.unit.judging import ANOTHERS, NOW, checkout, known, transaction

WHOLE = (13900, 0, 0)
PAID = transaction("1", "preauth", WHOLE)
CAPTURED = transaction("2", "captured", (13900, 13900, 0))
REFUNDED = transaction("3", "refunded", (13900, 13900, 500))
DECLINED = transaction("4", "preauth_failed")
OPEN = transaction("5", "created")
ODD = transaction("6", "no_such_status", WHOLE)
LESS = transaction("7", "preauth", (13800, 0, 0))
EUROS = transaction("8", "captured", (13900, 13900, 0), currency="EUR")
SECOND = transaction("9", "preauth", WHOLE)
ANOTHER = transaction("10", "preauth", WHOLE, bound=ANOTHERS)
NAMELESS = transaction("11", "preauth", WHOLE, bound=None)
ELSEWHERE = transaction("12", "preauth", WHOLE, order_ref="T-2")

VERDICTS = {
    "nothing": ((), LookupOutcome.NOTHING),
    "a declined attempt": ((DECLINED,), LookupOutcome.DECLINED),
    "an open attempt": ((OPEN,), LookupOutcome.OPEN),
    "declined, then open": ((DECLINED, OPEN), LookupOutcome.OPEN),
    "reserved": ((PAID,), LookupOutcome.PAID),
    "captured": ((CAPTURED,), LookupOutcome.PAID),
    "refunded": ((REFUNDED,), LookupOutcome.PAID),
    "declined, then paid": ((DECLINED, PAID), LookupOutcome.PAID),
    "paid, and another is open": ((PAID, OPEN), LookupOutcome.PAID),
    "paid by what names no checkout": ((NAMELESS,), LookupOutcome.PAID),
    "paid for another checkout of this order": ((ANOTHER,), LookupOutcome.NOTHING),
    "paid for another order": ((ELSEWHERE,), LookupOutcome.NOTHING),
    "of another amount": ((LESS,), LookupOutcome.UNSURE),
    "of another currency": ((EUROS,), LookupOutcome.UNSURE),
    "of an unknown status": ((ODD,), LookupOutcome.UNSURE),
    "unclear beside open": ((ODD, OPEN), LookupOutcome.UNSURE),
    "unclear beside paid": ((ODD, PAID), LookupOutcome.PAID),
}


@pytest.mark.parametrize(("transactions", "finding"), tuple(VERDICTS.values()), ids=tuple(VERDICTS))
def test_an_answer_proves(transactions, finding):
    reconciled = judge(checkout(), Found(transactions))
    assert reconciled.finding is finding
    assert (reconciled.attention is not None) == (finding is LookupOutcome.UNSURE or ODD in transactions)


def test_what_names_no_checkout_pays_none_of_several_with_its_order_number():
    reconciled = judge(checkout(), Found((NAMELESS,)), shared=True)
    assert (reconciled.finding, reconciled.attention.code) == (LookupOutcome.UNSURE, "unbound_payment")
    assert judge(checkout(), Found((PAID,)), shared=True).finding is LookupOutcome.PAID
    assert (
        judge(checkout(known=(known("11"),)), Found((NAMELESS,)), shared=True).finding is LookupOutcome.PAID
    )


def test_a_released_payment_holds_nothing_any_more():
    released = transaction("1", "released", WHOLE)
    reconciled = judge(
        checkout(state=State.COMPLETED, known=(known("1"),), reserved=13900), Found((released,))
    )
    assert (reconciled.finding, reconciled.money) == (LookupOutcome.RELEASED, (0, 0, 0))
    assert reconciled.attention.code is AttentionCode.PAYMENT_RELEASED
    assert of(reconciled.attention).startswith("transaction 1")


def test_a_due_time_grows_with_the_age_of_what_it_is_for():
    assert [thinned(100.0, age) for age in (-5.0, 500.0, 86_400.0, 1e9)] == [100.0, 100.0, 8640.0, 604_800.0]


def test_the_binding_is_our_own_id_or_else_the_order_number_alone():
    assert bind(checkout(), PAID) is Binding.BOUND
    assert bind(checkout(), NAMELESS) is Binding.ORDER_REF
    assert bind(checkout(), ANOTHER) is None
    assert bind(checkout(), ELSEWHERE) is None


def test_anothers_money_is_counted_as_foreign_and_booked_nowhere():
    reconciled = judge(checkout(), Found((ANOTHER, ELSEWHERE, PAID)))
    assert reconciled.evidence["foreign"] == 2
    assert [payment.transaction_id for payment in reconciled.payments] == ["1"]


@pytest.mark.parametrize(
    ("transaction", "code", "sentence"),
    [
        (LESS, "payment_mismatch", "transaction 7 holds 138.00 DKK, the order is 139.00 DKK"),
        (EUROS, "payment_mismatch", "transaction 8 holds 139.00 EUR, the order is 139.00 DKK"),
        (
            ODD,
            "unclear_payment",
            "transaction 6 is no_such_status with amounts that do not say what it means",
        ),
    ],
)
def test_unsure_says_why_and_concludes_nothing(transaction, code, sentence):
    reconciled = judge(checkout(reserved=7), Found((transaction,)))
    assert (reconciled.finding, reconciled.attention.code, reconciled.money) == (
        LookupOutcome.UNSURE,
        code,
        (7, 0, 0),
    )
    assert of(reconciled.attention) == sentence
    assert [seen.role for seen in reconciled.payments] == [Role.UNKNOWN]


def test_of_two_payments_the_first_is_accepted_and_the_other_is_surplus():
    reconciled = judge(checkout(), Found((SECOND, PAID)))
    assert reconciled.finding is LookupOutcome.PAID
    assert {payment.transaction_id: payment.role for payment in reconciled.payments} == {
        "1": Role.ACCEPTED,
        "9": Role.SURPLUS,
    }
    assert reconciled.attention.code is AttentionCode.SURPLUS_PAYMENT
    assert of(reconciled.attention) == "transactions 9 also hold money for this order"
    assert reconciled.money == WHOLE


def test_what_is_bound_goes_before_what_came_first():
    reconciled = judge(checkout(), Found((transaction("0", "preauth", WHOLE, bound=None), PAID)))
    assert {payment.transaction_id: (payment.role, payment.binding) for payment in reconciled.payments} == {
        "0": (Role.SURPLUS, Binding.ORDER_REF),
        "1": (Role.ACCEPTED, Binding.BOUND),
    }


def test_the_accepted_payment_stays_accepted_whatever_else_holds_money():
    reconciled = judge(checkout(known=(known("9"),), state=State.COMPLETED), Found((PAID, SECOND)))
    assert {payment.transaction_id: payment.role for payment in reconciled.payments} == {
        "1": Role.SURPLUS,
        "9": Role.ACCEPTED,
    }


def test_another_payment_never_replaces_the_accepted_payment():
    gone = transaction("9", "released", WHOLE)
    reconciled = judge(
        checkout(known=(known("9"),), reserved=13900, state=State.COMPLETED), Found((PAID, gone))
    )
    assert reconciled.finding is not LookupOutcome.PAID
    assert {payment.transaction_id: payment.role for payment in reconciled.payments} == {
        "1": Role.SURPLUS,
        "9": Role.ATTEMPT,
    }
    assert reconciled.money == (0, 0, 0)
    assert of(reconciled.attention).endswith("; transactions 1 hold money for it")


def test_an_unclear_payment_beside_the_accepted_payment_needs_a_decision():
    reconciled = judge(checkout(), Found((PAID, LESS)))
    assert reconciled.finding is LookupOutcome.PAID
    assert reconciled.attention.code is AttentionCode.PAYMENT_MISMATCH
    assert of(reconciled.attention) == "transaction 7 holds 138.00 DKK, the order is 139.00 DKK"


@pytest.mark.parametrize(
    ("transactions", "finding"),
    [
        ((), LookupOutcome.UNSURE),
        ((DECLINED,), LookupOutcome.UNSURE),
        ((OPEN,), LookupOutcome.OPEN),
        ((PAID,), LookupOutcome.PAID),
    ],
)
def test_an_answer_as_long_as_answers_get_proves_no_absence(transactions, finding):
    reconciled = judge(checkout(), Found(transactions, at_limit=True))
    assert reconciled.finding is finding
    assert reconciled.evidence.get("atLimit") is (True if finding is LookupOutcome.UNSURE else None)
    asked = finding is LookupOutcome.UNSURE
    assert reconciled.attention == (Attention(code=AttentionCode.LOOKUP_AT_LIMIT) if asked else None)


def test_the_evidence_holds_amounts_and_ids_of_each_transaction():
    flagged = transaction("3", "refunded", (13900, 13900, 500), raw_flags=("credited",))
    assert judge(checkout(), Found((flagged,))).evidence == {
        "by": "lookup",
        "transactions": [
            {
                "id": "3",
                "status": "refunded",
                "meaning": "refunded",
                "binding": "bound",
                "role": "accepted",
                "reserved": 13900,
                "captured": 13900,
                "refunded": 500,
                "flags": ["credited"],
            }
        ],
    }
    assert judge(checkout(), Found((flagged,))).money == (13900, 13900, 500)


@given(st.permutations([PAID, SECOND, CAPTURED, DECLINED, OPEN, LESS, ANOTHER, NAMELESS]))
def test_the_order_of_the_answer_changes_no_reconciliation(transactions):
    reconciled = judge(checkout(), Found(tuple(transactions)))
    assert reconciled == judge(
        checkout(), Found((PAID, SECOND, CAPTURED, DECLINED, OPEN, LESS, ANOTHER, NAMELESS))
    )


MIXED = st.lists(
    st.sampled_from([PAID, SECOND, CAPTURED, REFUNDED, DECLINED, OPEN, LESS, ODD, NAMELESS]),
    unique_by=lambda transaction: transaction.transaction_id,
)


@given(MIXED)
def test_never_is_more_than_one_accepted_and_never_is_money_called_an_absence(transactions):
    reconciled = judge(checkout(), Found(tuple(transactions)))
    accepted = [payment for payment in reconciled.payments if payment.role == Role.ACCEPTED]
    assert len(accepted) == (reconciled.finding is LookupOutcome.PAID)
    if any(transaction in transactions for transaction in (PAID, SECOND, CAPTURED, REFUNDED, NAMELESS)):
        assert reconciled.finding is LookupOutcome.PAID
    if LESS in transactions or ODD in transactions:
        assert reconciled.finding in {LookupOutcome.PAID, LookupOutcome.UNSURE}


# ── The next lookup ─────────────────────────────────────────────────────────────────────────────────────

SECONDS = st.floats(min_value=0.01, max_value=10_000)
PLAIN = make_settings()


def with_settings(**changes):
    """Return settings without reading the environment again for each example."""
    return PLAIN.model_copy(update=changes)


@given(SECONDS, SECONDS, st.integers(0, 10_000))
def test_a_lookup_is_never_further_away_than_its_cap_nor_nearer_than_its_base(base, cap, lookups):
    settings = with_settings(recheck_after_callback=min(base, 3600), check_interval_cap=cap)
    bound = min(settings.recheck_after_callback * 2.0 ** min(lookups, 40), cap)
    assert 0.8 * bound <= next_lookup(settings, lookups) <= 1.2 * bound


def test_lookups_come_less_and_less_often():
    settings = with_settings(recheck_after_callback=1.0, check_interval_cap=1000.0)
    assert [round(next_lookup(settings, lookups) / 2.0**lookups) for lookups in range(9)] == [1] * 9


@given(SECONDS, SECONDS)
def test_a_checkout_without_a_callback_has_its_first_lookup_when_it_is_due(base, first):
    settings = with_settings(
        recheck_after_callback=min(base, 3600), first_check_after=first, check_interval_cap=7 * 86400
    )
    lookups = quiet_lookups(settings)
    assert settings.recheck_after_callback * 2.0**lookups >= first
    assert lookups == 0 or settings.recheck_after_callback * 2.0 ** (lookups - 1) < first


@given(st.floats(0.01, 60), st.floats(0.01, 3600), st.integers(0, 10_000), st.floats(0, 1000))
def test_a_retry_is_after_what_the_gateway_asked_for_and_within_the_cap(base, cap, attempts, at_least):
    settings = with_settings(retry_base=base, retry_cap=cap)
    ceiling = min(base * 2.0 ** min(attempts, 40), cap)
    delay = back_off(settings, attempts, at_least=at_least)
    assert at_least + 0.05 * ceiling <= delay <= at_least + ceiling


def test_retries_are_spread():
    settings = with_settings(retry_base=10.0, retry_cap=10.0)
    delays = sorted(back_off(settings, 0) for _ in range(500))
    assert delays[0] < 1.5
    assert delays[-1] > 9.0


@pytest.mark.parametrize(
    ("since", "expected"), [(0, 60.0), (59, 1.0), (60, 3540.0), (3599, 1.0), (3600, None), (10_000, None)]
)
def test_the_watch_of_an_ended_checkout_has_its_lookups_and_then_ends(since, expected):
    settings = with_settings(post_settlement_checks=(60.0, 3600.0))
    assert next_watch(settings, NOW, NOW + timedelta(seconds=since)) == expected


def test_without_a_watch_nothing_is_watched():
    assert next_watch(with_settings(post_settlement_checks=()), NOW, NOW) is None

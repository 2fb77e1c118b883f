"""What is held of the shopper's money, in one word."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.payment_status import GONE, PaymentStatus, payment_status
from orchestrator.domain.states import State

MINOR = st.integers(0, 10**6)


@pytest.mark.parametrize(
    ("amounts", "word"),
    [
        ((13900, 0, 0, 0), "authorized"),
        ((13900, 5000, 0, 0), "partially_captured"),
        ((13900, 13900, 0, 0), "captured"),
        ((0, 13900, 0, 0), "captured"),
        ((13900, 13900, 1, 0), "partially_refunded"),
        ((13900, 5000, 4999, 0), "partially_refunded"),
        ((13900, 13900, 13900, 0), "refunded"),
        ((13900, 13900, 15000, 0), "refunded"),
        ((0, 0, 0, 0), "released"),
        ((13900, 13900, 0, 13900), "charged_back"),
        ((13900, 13900, 5000, 100), "charged_back"),
    ],
)
def test_a_completed_order_says_what_is_held(amounts, word):
    names = ("reserved", "captured", "refunded", "charged_back")
    assert payment_status(State.COMPLETED, SimpleNamespace(**dict(zip(names, amounts, strict=True)))) == word


@given(st.sampled_from(State), MINOR, MINOR, MINOR)
def test_only_a_completed_order_is_paid_and_none_that_holds_money_is_called_gone(
    state, reserved, captured, refunded
):
    paying = SimpleNamespace(reserved=reserved, captured=captured, refunded=refunded, charged_back=0)
    word = payment_status(state, paying)
    assert (word is PaymentStatus.UNPAID) == (state is not State.COMPLETED)
    held = captured - refunded if captured else reserved
    if state is State.COMPLETED:
        assert (word in GONE) == (held <= 0)

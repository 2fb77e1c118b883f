"""The budget of calls: no second has more calls than the budget, and unused calls do not accumulate."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.gateway.limits.rate import BURST, Schedule, arguments, batch


@given(
    per_second=st.floats(0.5, 2000),
    gaps=st.lists(st.floats(0, 0.5), min_size=1, max_size=200),
    want=st.integers(1, 50),
)
def test_no_span_has_more_permits_than_the_budget_and_a_little(per_second, gaps, want):
    schedule, now, granted = Schedule(), 100.0, []
    for gap in gaps:
        now += gap
        permits, wait = schedule.take(want, per_second, now)
        assert 0 <= permits <= want
        assert (permits == 0) == (wait > 0)
        granted.append((now, permits))
    for index, (began, _) in enumerate(granted):
        total = 0
        for at, permits in granted[index:]:
            total += permits
            assert total <= (at - began) * per_second + max(BURST * per_second, 1) + 1e-3


def test_after_the_time_that_is_named_there_is_a_permit():
    schedule, now = Schedule(), 5.0
    for _ in range(1000):
        permits, wait = schedule.take(7, 30.0, now)
        if not permits:
            now += wait
            permits, wait = schedule.take(7, 30.0, now)
            assert permits >= 1
        now += 0.001


def test_no_permits_accumulate_while_no_call_is_made():
    schedule = Schedule()
    schedule.take(1000, 10.0, 0.0)
    assert schedule.take(1000, 10.0, 3600.0).permits == int(BURST * 10)


def test_a_slow_budget_grants_single_calls():
    schedule = Schedule()
    assert schedule.take(5, 0.5, 0.0) == (1, 0.0)
    assert schedule.take(5, 0.5, 0.0) == (0, pytest.approx(2.0))


def test_batches_and_the_scripts_words():
    assert (batch(1000), batch(3)) == (100, 1)
    assert arguments(1000) == (1000, 200_000)
    assert arguments(0.5) == (2_000_000, 2_000_000)

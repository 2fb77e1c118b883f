"""The breaker: opens after a run, doubles its pause, tries with a few, and closes as soon as the gateway
serves anything.
"""

from __future__ import annotations

import pytest

from orchestrator.gateway.limits.circuit_breaker import (
    FIRST_PAUSE,
    PROBES,
    PROBING,
    SAME,
    WINDOW,
    CircuitBreaker,
)


def opened(*, run: int = 3, longest: float = 30.0) -> CircuitBreaker:
    one = CircuitBreaker(run, longest)
    for now in range(run - 1):
        assert one.failed(float(now)) is None
    assert one.failed(float(run)) == min(FIRST_PAUSE, longest)
    return one


def test_it_opens_after_a_run_of_failures_and_says_so_once():
    one = opened()
    assert not one.closed
    assert one.wait(3.5) == pytest.approx(FIRST_PAUSE - 0.5)
    assert one.failed(3.6) is None, "what was under way when the pause began is no news"
    assert one.wait(3.5) == pytest.approx(FIRST_PAUSE - 0.5)


def test_anything_that_is_served_ends_the_run():
    one = CircuitBreaker(2, 30.0)
    for now in range(10):
        assert one.failed(now) is None
        assert not one.served(), "it was closed: no news"
    assert one.closed


def test_failures_that_are_far_apart_are_no_run():
    one = CircuitBreaker(2, 30.0)
    assert [one.failed(number * (WINDOW + 1)) for number in range(5)] == [None] * 5


def test_it_never_opens_where_it_is_switched_off():
    one = CircuitBreaker(0, 30.0)
    assert [one.failed(0.0) for _ in range(100)] == [None] * 100


def test_when_the_pause_is_over_a_few_try():
    one, now = opened(), 3.0 + FIRST_PAUSE
    for _ in range(PROBES):
        assert one.wait(now) == 0.0
        assert one.enter()
    assert one.wait(now) == PROBING
    one.leave()
    assert one.wait(now) == 0.0


def test_a_probe_that_is_served_closes_it():
    one = opened()
    assert one.enter()
    assert one.served()
    one.leave()
    assert (one.closed, one.wait(0.0), one.enter()) == (True, 0.0, False)
    assert one.failed(100.0) is None, "a new run begins"


def test_each_probe_that_fails_doubles_the_pause_up_to_the_longest():
    one, now, pauses = opened(longest=10.0), 100.0, []
    for _ in range(4):
        pauses.append(one.failed(now))
        now += 1000.0
    assert pauses == [4.0, 8.0, 10.0, 10.0]
    one.served()
    assert [one.failed(now) for _ in range(3)][-1] == FIRST_PAUSE, "and it begins anew"


def test_of_probes_that_fail_together_one_counts():
    one = opened()
    assert [one.failed(100.0), one.failed(100.0), one.failed(100.0)] == [2 * FIRST_PAUSE, None, None]


def test_a_circuit_that_another_process_opened_is_open_here_too():
    one = CircuitBreaker(3, 30.0)
    assert one.observe(10.0, 0.0)
    assert one.wait(4.0) == 6.0
    assert not one.observe(10.0 + SAME / 2, 0.0), "the same pause, as another clock tells it"
    assert one.wait(4.0) == 6.0
    assert not one.observe(20.0, 0.0), "it lasts longer, and was known"
    assert one.wait(4.0) == 16.0
    assert not one.observe(5.0, 0.0), "never shorter"
    assert one.failed(25.0) == 8.0, "the pauses of others count"


def test_a_pause_never_grows_without_end():
    one, now = opened(longest=600.0), 10.0
    for _ in range(2000):
        now += 1000.0
        assert one.failed(now) <= 600.0


def test_what_another_process_tells_is_heard_no_longer_than_our_own_longest_pause():
    one = CircuitBreaker(run=2, longest=30.0)
    assert one.observe(100.0 + 86_400.0, 100.0)
    assert one.wait(100.0) == 30.0
    assert one.wait(130.0) == 0.0

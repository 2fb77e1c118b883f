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
    breaker = CircuitBreaker(run, longest)
    for now in range(run - 1):
        assert breaker.failed(float(now)) is None
    assert breaker.failed(float(run)) == min(FIRST_PAUSE, longest)
    return breaker


def test_it_opens_after_a_run_of_failures_and_says_so_once():
    breaker = opened()
    assert not breaker.closed
    assert breaker.wait(3.5) == pytest.approx(FIRST_PAUSE - 0.5)
    assert breaker.failed(3.6) is None, "what was under way when the pause began is no news"
    assert breaker.wait(3.5) == pytest.approx(FIRST_PAUSE - 0.5)


def test_anything_that_is_served_ends_the_run():
    breaker = CircuitBreaker(2, 30.0)
    for now in range(10):
        assert breaker.failed(now) is None
        assert not breaker.served(), "it was closed: no news"
    assert breaker.closed


def test_failures_that_are_far_apart_are_no_run():
    breaker = CircuitBreaker(2, 30.0)
    assert [breaker.failed(number * (WINDOW + 1)) for number in range(5)] == [None] * 5


def test_it_never_opens_where_it_is_switched_off():
    breaker = CircuitBreaker(0, 30.0)
    assert [breaker.failed(0.0) for _ in range(100)] == [None] * 100


def test_when_the_pause_is_over_a_few_try():
    breaker, now = opened(), 3.0 + FIRST_PAUSE
    for _ in range(PROBES):
        assert breaker.wait(now) == 0.0
        assert breaker.enter()
    assert breaker.wait(now) == PROBING
    breaker.leave()
    assert breaker.wait(now) == 0.0


def test_a_probe_that_is_served_closes_it():
    breaker = opened()
    assert breaker.enter()
    assert breaker.served()
    breaker.leave()
    assert (breaker.closed, breaker.wait(0.0), breaker.enter()) == (True, 0.0, False)
    assert breaker.failed(100.0) is None, "a new run begins"


def test_each_probe_that_fails_doubles_the_pause_up_to_the_longest():
    breaker, now, pauses = opened(longest=10.0), 100.0, []
    for _ in range(4):
        pauses.append(breaker.failed(now))
        now += 1000.0
    assert pauses == [4.0, 8.0, 10.0, 10.0]
    breaker.served()
    assert [breaker.failed(now) for _ in range(3)][-1] == FIRST_PAUSE, "and it begins anew"


def test_of_probes_that_fail_together_one_counts():
    breaker = opened()
    assert [breaker.failed(100.0), breaker.failed(100.0), breaker.failed(100.0)] == [
        2 * FIRST_PAUSE,
        None,
        None,
    ]


def test_a_circuit_that_another_process_opened_is_open_here_too():
    breaker = CircuitBreaker(3, 30.0)
    assert breaker.observe(10.0, 0.0)
    assert breaker.wait(4.0) == 6.0
    assert not breaker.observe(10.0 + SAME / 2, 0.0), "the same pause, by another clock"
    assert breaker.wait(4.0) == 6.0
    assert not breaker.observe(20.0, 0.0), "it lasts longer, and was known"
    assert breaker.wait(4.0) == 16.0
    assert not breaker.observe(5.0, 0.0), "never shorter"
    assert breaker.failed(25.0) == 8.0, "the pauses of others count"


def test_a_pause_never_grows_without_end():
    breaker, now = opened(longest=600.0), 10.0
    for _ in range(2000):
        now += 1000.0
        assert breaker.failed(now) <= 600.0


def test_a_pause_from_another_process_is_no_longer_than_our_own_longest_pause():
    breaker = CircuitBreaker(run=2, longest=30.0)
    assert breaker.observe(100.0 + 86_400.0, 100.0)
    assert breaker.wait(100.0) == 30.0
    assert breaker.wait(130.0) == 0.0

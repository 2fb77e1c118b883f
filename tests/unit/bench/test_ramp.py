"""The search for the highest rate that is held, with a product whose limit is known."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator.devkit.bench import ramp
from orchestrator.devkit.bench.ramp import Try


def tried(rate, **changes):
    values = {"clean": True, "failed": 0, "intake_p99": 20.0, "drained_after": 0.5, **changes}
    return Try(rate=rate, **values)


def searched(start, limit):
    async def attempt(rate):
        return tried(rate, drained_after=0.5 if rate <= limit else None)

    return asyncio.run(ramp.search(start, attempt))


def test_it_goes_up_by_a_quarter_and_then_takes_the_middle_twice():
    found, tries = searched(40, 70)
    assert [attempt.rate for attempt in tries] == [40, 50, 62.5, 78.125, 70.3125, 66.40625]
    assert found == 66.40625


@pytest.mark.parametrize("limit", [3, 41, 99, 250, 1234])
def test_it_ends_near_the_limit_and_never_above(limit):
    found, tries = searched(40, limit)
    assert found is not None
    assert found <= limit < found * (1.1 if limit >= 40 else 1.5)
    assert max(attempt.rate for attempt in tries if attempt.held) == found


def test_where_the_first_rate_is_too_much_it_goes_down_until_a_rate_is_held():
    found, tries = searched(40, 9)
    assert [attempt.rate for attempt in tries] == [40, 20, 10, 5, 7.5, 8.75]
    assert found == 8.75


def test_where_no_rate_is_held_there_is_none():
    found, tries = searched(40, 0.1)
    assert found is None
    assert min(attempt.rate for attempt in tries) >= ramp.LEAST_RATE


def test_a_product_without_a_limit_ends_the_search_too():
    found, tries = searched(40, float("inf"))
    assert len(tries) == ramp.MOST_STEPS
    assert found == tries[-1].rate


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"clean": False}, "lost, doubled"),
        ({"failed": 3}, "3 intents were not taken"),
        ({"intake_p99": 1000.0}, "intake p99 1000 ms"),
        ({"drained_after": None}, "did not drain"),
        ({"drained_after": 5.1}, "drained after 5.1 s"),
    ],
)
def test_a_rate_is_held_only_if_everything_is_well(changes, why):
    attempt = tried(100, **changes)
    assert not attempt.held
    assert why in attempt.why
    assert tried(100).held

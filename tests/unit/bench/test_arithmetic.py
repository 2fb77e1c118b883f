"""The arithmetic of the bench: percentiles, seconds, schedules, latencies; exact, and the same at
each run.
"""

from __future__ import annotations

import math
import statistics
from itertools import pairwise
from random import Random

import msgspec
import pytest

from orchestrator import intents
from orchestrator.devkit.bench import latency, load, result

# ── Percentiles ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("share", "expected"), [(0, 1), (1, 1), (50, 50), (95, 95), (99, 99), (99.9, 100), (100, 100)]
)
def test_a_percentile_is_a_value_that_was_measured(share, expected):
    assert result.percentile(range(1, 101), share) == expected


def test_a_percentile_of_few_values_is_not_made_up():
    assert result.percentile([7.0], 50) == 7.0
    assert result.percentile([1.0, 2.0, 30.0], 99) == 30.0


def test_there_is_no_percentile_of_nothing():
    with pytest.raises(ValueError, match="nothing"):
        result.percentile([], 50)
    assert result.summary([]) == {"p50": None, "p95": None, "p99": None}


def test_a_summary_does_not_depend_on_the_order_of_what_was_measured():
    values = [float(number) for number in range(1, 1001)]
    shuffled = list(values)
    Random(3).shuffle(shuffled)
    assert result.summary(shuffled) == result.summary(values) == {"p50": 500.0, "p95": 950.0, "p99": 990.0}


# ── Seconds ───────────────────────────────────────────────────────────────────────────────────────────────


def test_moments_are_counted_by_second_and_those_outside_are_left_out():
    assert result.per_second([0.0, 0.9, 1.0, 2.99, 3.0, -0.1], seconds=3) == [2, 1, 1]


def test_what_waits_is_what_began_and_has_not_ended():
    assert result.waiting([0.1, 0.2, 1.5, 2.5], [0.9, 2.1, 2.2], seconds=4) == [1, 2, 1, 1]


# ── Schedules ─────────────────────────────────────────────────────────────────────────────────────────────


def test_an_even_schedule_has_equal_distances():
    assert load.moments(4, 2, evenly=True, seed=1) == [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75]


def test_a_schedule_by_chance_keeps_its_rate_and_is_the_same_for_the_same_seed():
    moments = load.moments(100, 60, evenly=False, seed=7)
    assert moments == sorted(moments)
    assert moments[0] >= 0
    assert moments[-1] < 60
    assert len(moments) == pytest.approx(6000, rel=0.05)
    gaps = [after - before for before, after in pairwise(moments)]
    # What makes it Poisson: distances scatter as much as they are long.
    assert statistics.stdev(gaps) == pytest.approx(statistics.mean(gaps), rel=0.1)
    assert moments == load.moments(100, 60, evenly=False, seed=7)
    assert moments != load.moments(100, 60, evenly=False, seed=8)


@pytest.mark.parametrize("number", [0, 1, 2431, 2432, 99_999])
def test_every_intent_is_accepted_as_it_is(number):
    intent = intents.parse(load.intent("b1-2", number))
    assert (intent.order_ref, intent.amount, intent.currency) == (
        f"b1-2-{number}",
        load.amount(number),
        "DKK",
    )
    order = msgspec.json.decode(load.intent("b1-2", number))["order"]
    lines = sum(round((line["unitPrice"] + line["taxAmount"]) * 100) for line in order["orderLines"])
    assert lines == intent.amount


def test_orders_near_each_other_cost_different_amounts():
    assert len({load.amount(number) for number in range(1000)}) == 1000


# ── Latencies ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_latency_without_spread_is_always_the_same():
    latency_given = latency.parse("200")
    assert {latency_given.draw(Random(1)) for _ in range(10)} == {0.2}
    assert latency.parse("0").draw(Random(1)) == 0


def test_a_lognormal_latency_has_the_percentiles_that_it_is_given_by():
    latency_given, random = latency.parse("lognormal:120,380"), Random(5)
    drawn = sorted(latency_given.draw(random) * 1000 for _ in range(50_000))
    assert result.percentile(drawn, 50) == pytest.approx(120, rel=0.02)
    assert result.percentile(drawn, 99) == pytest.approx(380, rel=0.04)
    assert latency_given.sigma == pytest.approx(math.log(380 / 120) / 2.3263, rel=1e-4)


@pytest.mark.parametrize(
    "text", ["", "fast", "-1", "nan", "61000", "lognormal:", "lognormal:120", "lognormal:0,5", "lognormal:380,120",
             "normal:1,2", "lognormal:1,2,3"],
)  # fmt: skip
def test_a_latency_that_is_none_is_refused_with_what_it_takes(text):
    with pytest.raises(ValueError, match=r"must be 0, a number of milliseconds, or lognormal:P50,P99"):
        latency.parse(text)

"""The arithmetic of `make bench`: what counts as reached, ratios within a round, the page and its pictures.

No design is run here.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest

from tests.benchmarks import delivery_report, report
from tests.benchmarks.bars import Bar, bars, number
from tests.benchmarks.claims import NOT_MEASURED, Claim, claims, ratio


def figure(peer: str, rate: float, *, latency: int = 0, of_round: int = 1) -> dict[str, Any]:
    return {
        "peer": peer,
        "latency_ms": latency,
        "round": of_round,
        "orders": 100,
        "seconds": 100 / rate,
        "orders_per_s": rate,
        "cpu_ms_per_order": {"own": 3.0, "postgres": 1.0, "redis": 0.1},
        "gateway_calls_per_order": 3.0,
        "others_cpu_percent": 1.5,
    }


def run(**other: Any) -> dict[str, Any]:
    """Return a run of `orchestrator bench` as its document says it."""
    quick = {"p50": 4.0, "p95": 8.0, "p99": 12.5}
    none = {"p50": None, "p95": None, "p99": None}
    return {
        "rate": 100.0,
        "seconds": 60.0,
        "held": True,
        "lost": 0,
        "doubled": 0,
        "unequal": 0,
        "orders": 3000,
        "orders_per_s": 99.2,
        "latency_ms": {
            "intake": quick,
            "ready": quick,
            "completed": none,
            "callback": {**quick, "p99": 40.0},
        },
        "product_cpu_ms_per_order": 4.2,
        "worker_rss_mb": 150.0,
        **other,
    }


def document(*figures: dict[str, Any], **more: Any) -> dict[str, Any]:
    peers = [
        {
            "key": key,
            "title": title,
            "what": f"{title} in two lines.",
            "module": "m",
            "settings": {"0": "as usual", "200": "with more"},
        }
        for key, title in (("a", "usual"), ("c", "durable"), ("e", "bare limit"), ("product", "this product"))
    ]
    conditions = {
        "at": "2026-11-25 00:00 UTC",
        "cores": 2,
        "processor": "p",
        "memory_gb": 16.0,
        "system": "Linux",
        "python": "3.11.7",
        "postgres": "18.4",
        "durability": "fsync on",
        "redis": "6.2",
        "flush_ms": 0.12,
        "load_before": 0.0,
    }
    return {
        "conditions": conditions,
        "versions": {"celery": "5.7.0"},
        "rounds": 3,
        "arguments": "",
        "peers": peers,
        "figures": list(figures),
        **more,
    }


def claim(measured: float | None, *, more: bool = True, aim: float | None = 15) -> Claim:
    return Claim(key="k", what="w", at_least=10, aim=aim, unit="x", more=more, measured=measured)


def row(found: dict[str, Any], key: str) -> Claim:
    return next(claim for claim in claims(found) if claim.key == key)


@pytest.mark.parametrize(
    ("measured", "more", "verdict", "reached"),
    [
        (None, True, NOT_MEASURED, None),
        (9.99, True, "no", False),
        (10.0, True, "yes", True),
        (15.0, True, "yes, and the aim", True),
        (10.01, False, "no", False),
        (10.0, False, "yes", True),
    ],
)
def test_a_figure_is_judged_against_what_is_wanted(
    measured: float | None, more: bool, verdict: str, reached: bool | None
):
    figure = claim(measured, more=more, aim=15 if more else 5)
    assert (figure.verdict, figure.reached) == (verdict, reached)


def test_a_row_without_an_aim_is_only_reached_or_not():
    assert claim(100.0, aim=None).verdict == "yes"


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.0456, "0.05"), (0.5, "0.5"), (13.24, "13.2"), (150, "150"), (1234.5, "1,234"), (10.0, "10")]
)  # fmt: skip
def test_numbers_are_written_with_three_digits_that_count(value: float, text: str):
    assert number(value) == text


def test_a_ratio_is_taken_within_each_round_and_its_median_counts():
    found = document(
        figure("product", 1000, of_round=1),
        figure("a", 100, of_round=1),
        figure("product", 200, of_round=2),
        figure("a", 10, of_round=2),
        figure("product", 900, of_round=3),
        figure("a", 60, of_round=3),
        figure("product", 1, of_round=4),
        figure("a", 1, latency=200, of_round=4),
    )
    assert ratio(found, "product", "a", latency=0) == 15
    assert row(found, "celery_0").verdict == "yes, and the aim"


def test_a_ratio_is_taken_to_the_faster_of_two_forms_of_one_design():
    found = document(figure("product", 800), figure("c", 60), figure("c2", 80))
    assert row(found, "dbos_0").measured == 10


def test_what_was_left_out_is_not_measured_and_never_reached():
    rows = claims(document())
    assert {row.verdict for row in rows} == {NOT_MEASURED}
    assert {row.reached for row in rows} == {None}


def test_the_highest_rate_is_that_of_a_run_that_was_held_for_a_minute_without_a_wrong_order():
    runs = [run(rate=300.0, held=False), run(rate=255.0)]
    assert row(document(lifecycle={"highest": runs}), "highest").measured == 255
    assert row(document(lifecycle={"highest": runs[:1]}), "highest").verdict == "no"
    assert row(document(lifecycle={"highest": [run(doubled=1)]}), "highest").verdict == "no"
    assert row(document(lifecycle={"highest": [run(seconds=5.0)]}), "highest").verdict == NOT_MEASURED


@pytest.mark.parametrize(
    ("key", "name", "small"),
    [("answers", "steady", {"rate": 20.0}), ("memory", "in_flight", {"orders": 400})],
)
def test_a_run_that_is_too_small_shows_nothing(key: str, name: str, small: dict[str, Any]):
    assert row(document(lifecycle={name: run()}), key).measured is not None
    assert row(document(lifecycle={name: run(**small)}), key).verdict == NOT_MEASURED


def test_the_greater_of_both_answers_counts():
    found = document(lifecycle={"steady": run()})
    assert row(found, "answers").measured == 40


def test_the_processor_time_is_that_of_the_highest_rate_held():
    runs = [run(rate=300.0, held=False, product_cpu_ms_per_order=3.9), run(rate=255.0)]
    assert row(document(lifecycle={"highest": runs}), "cpu").measured == 4.2
    assert row(document(lifecycle={"highest": runs[:1]}), "cpu").verdict == NOT_MEASURED


def test_growth_counts_only_with_the_history_that_is_asked_for():
    rounds = [{"empty": 100.0, "full": 95.0}, {"empty": 100.0, "full": 80.0}, {"empty": 50.0, "full": 49.0}]
    assert row(document(growth={"finished": 2_000_000, "rounds": rounds}), "growth").measured == 0.95
    assert row(document(growth={"finished": 1000, "rounds": rounds}), "growth").measured is None


def test_a_quiet_merchant_is_compared_with_itself_alone():
    found = document(quiet_merchant={"alone_p99_ms": 50.0, "beside_p99_ms": 90.0})
    assert row(found, "quiet").measured == 1.8


def whole() -> dict[str, Any]:
    figures = [
        figure(peer, rate * of_round, latency=latency, of_round=of_round)
        for peer, rate in (("a", 50), ("c", 60), ("e", 1500), ("product", 800))
        for latency in (0, 200)
        for of_round in (1, 2, 3)
    ]
    runs = {
        "highest": [run(rate=250.0)],
        "steady": run(),
        "sequential": run(rate=None, held=None, beyond_gateway_ms={"p50": 9.0}),
        "in_flight": run(rate=None, held=None),
    }
    growth = {"finished": 2_000_000, "size_gb": 14.9, "rounds": [{"empty": 100.0, "full": 95.0}]}
    return document(*figures, lifecycle=runs, growth=growth, quiet_merchant=None)


def test_the_page_tells_conditions_rows_rates_and_settings():
    page = report.page(whole())
    assert "a flush takes 0.12 ms" in page
    assert "| the same against the bare limit | 0.5 × | 0.7 × | 0.53 × | yes |" in page
    assert "| usual | 100 | 50 – 150 | 3 | 1 | 0.1 | 100 | 1.5 % |" in page
    assert "200 ms: with more" in page
    assert "| highest rate | 250/s |" in page
    assert "2,000,000 finished checkouts" in page
    for name in report.pictures(whole()):
        assert f"]({name})" in page


def test_tables_of_the_page_have_as_many_cells_in_each_line():
    width = None
    for line in report.page({**whole(), "deliveries": delivered()}).splitlines():
        cells = line.count("|") if line.startswith("|") else None
        if cells is not None and width is not None:
            assert cells == width, line
        width = cells


def test_a_page_of_a_part_says_what_is_missing():
    page = report.page(document(figure("a", 50)))
    assert NOT_MEASURED in page
    assert "The product alone" not in page


def delivered(**more: Any) -> dict[str, Any]:
    """Return a run of events to endpoints as its document says it."""
    kinds = ("deliverer", "postgres", "endpoints", "writer and sequencer")
    used = {
        "cpu_ms": dict.fromkeys(kinds, 0.25),
        "cpu_percent": {**dict.fromkeys(kinds, 10.0), "others": 3.0},
    }
    times = {"events": 4000, "p50_ms": 18.0, "p95_ms": 36.5, "p99_ms": 44.0, "max_ms": 60.0}
    outage = {
        "bears": {"rate": 300.0, "at_once": 0, "seconds": 0.0},
        "events": 43_200,
        "seconds": 160.0,
        "per_second": 280.0,
        "requests": 50_000,
        "refused": 120,
        "refused_percent": 0.24,
        "other_alone": times,
        "other_beside": times,
        "ratio": 1.1,
    }
    bench = {
        "rate": 150.0,
        "orders_per_s": 140.0,
        "product_cpu_ms_per_order": 5.0,
        "cpu_ms_per_order": {"api": 2.0, "worker": 2.0, "scheduler": 1.0, "postgres": 2.0, "gateway": 0.2},
    }
    dearer = {**bench, "product_cpu_ms_per_order": 7.0, "orders_per_s": 133.0}
    return {
        "conditions": document()["conditions"],
        "stream": [{"rate": 200.0, "endpoints": 1, **times, **used}],
        "backlog": [
            {
                "deliverers": 1,
                "endpoints": 4,
                "checkouts": 1250,
                "deliveries": 20_000,
                "per_second": 1400.0,
                **used,
            }
        ],
        "poison": {"rate": 200.0, "without": [times], "with": [times], "refused": 90, "ratio": 1.3},
        "outage": [
            outage,
            {**outage, "bears": {"rate": 0.0, "at_once": 8, "seconds": 0.02}, "refused_percent": 1.0},
        ],
        "clients": {
            "deliveries": 4000,
            "at_once": 16,
            "cpu_ms": {"sender": 0.2, "aiohttp": 0.15, "httpx": 0.8, "httpx_aiohttp": 0.4},
        },
        "orders": {"rate": 150.0, "without": [bench], "with": [dearer]},
        "overload": {"rate": 350.0, "without": [bench], "with": [dearer]},
        **more,
    }


def test_each_line_about_events_is_judged_against_what_is_wanted():
    reached = [good for *_, good in delivery_report.lines(delivered())]
    assert reached == [True, True, False, True, True, False, True, True, False, False, True]
    assert delivery_report.order_ratios(delivered()) == (1.0, 1.4, 1.4, 0.95)


def test_the_page_of_a_run_ends_with_its_events_and_a_later_run_takes_their_place():
    page = report.page({**whole(), "deliveries": delivered()})
    assert page.count(delivery_report.TITLE) == 1
    assert "| 1 | 20,000 | 1,400 |" in page
    assert "httpx 0.8, which is 4 times as much as the sender's" in page
    later = delivery_report.placed(page, delivered(clients=delivered()["clients"] | {"at_once": 32}))
    assert (later.count(delivery_report.TITLE), "32 at a time" in later, "16 at a time" in later) == (
        1,
        True,
        False,
    )
    assert later.startswith(report.page(whole()).rstrip("\n"))
    assert delivery_report.placed(report.page(whole()), delivered()) == page
    followed = page + "\n## Another section\n\n## And one more\n"
    assert delivery_report.placed(followed, delivered()) == followed


def test_parts_about_events_that_were_not_measured_are_left_out():
    assert delivery_report.section({"rounds": 3}) == delivery_report.TITLE


def test_bars_are_as_long_as_what_they_stand_for_and_names_are_escaped():
    drawn = bars("a < b", [Bar("x & y", 50, 40, 60), Bar("z", 100, 90, 120)], unit="orders/s")
    svg = ET.fromstring(drawn)  # noqa: S314 - made a line above
    space = "{http://www.w3.org/2000/svg}"
    short, long = (float(bar.attrib["width"]) for bar in svg.iter(f"{space}rect"))
    assert long == pytest.approx(2 * short, abs=0.2)
    texts = [label.text for label in svg.iter(f"{space}text")]
    assert texts == ["a < b", "x & y", "50 orders/s", "z", "100 orders/s"]


def test_a_picture_of_nothing_is_a_picture():
    assert ET.fromstring(bars("nothing", [], unit="orders/s")) is not None  # noqa: S314 - as above

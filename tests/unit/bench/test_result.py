"""A run becomes figures, a page and an exit status, all from what was measured and from nothing else."""

from __future__ import annotations

import json

import pytest
from defusedxml.ElementTree import fromstring

from orchestrator.devkit.bench import display, ledger, load, report, result
from orchestrator.devkit.bench.database_probe import Left
from orchestrator.devkit.bench.run import Plan, _Bench
from orchestrator.devkit.bench.setup import Progress, Run
from orchestrator.devkit.bench.usage import Sample
from orchestrator.devkit.errors import BenchFailed
from orchestrator.devkit.local.terminal import Terminal

BEGAN = 1_000.0
CONDITIONS = result.Conditions(
    version="1", python="3.11", cpus=2, postgres="18", durable=True, flush_ms=0.1, workers=1, gateway_latency="0", faults=0.0, think_s=1.5
)  # fmt: skip


def made(count=200, *, whole=True, rows=None, statuses=None, **job):
    """A run at 20 orders a second: ready after 100 ms, paid a second later, completed 50 ms after that."""
    prefix, moments = "b-1", [number / 20 for number in range(count)]
    statuses = statuses or [202] * count
    if rows is None:
        rows = [
            ledger.Row(
                order_ref=f"{prefix}-{number}",
                state="completed" if whole else "awaiting_payment",
                offered_at=BEGAN + moment + 0.1,
                ended_at=BEGAN + moment + 1.15 if whole else None,
                amount=100,
                reserved=100 if whole else 0,
                completions=int(whole),
                accepted=int(whole),
            )
            for number, moment in enumerate(moments)
            if load.accepted(statuses[number])
        ]
    books = ledger.Books(
        payments=[
            ledger.Payment(order_ref=row.order_ref, at=row.ended_at - 0.05, amount=100, currency="DKK")
            for row in rows
            if row.ended_at is not None
        ],
        calls={"session": count},
        faults={"500": 1},
        callbacks={
            "success": ledger.CallbackResults([3.0], {"303": 1}),
            "notification": ledger.CallbackResults([4.0], {"200": 1}),
        },
    )
    taken = [f"{prefix}-{number}" for number, status in enumerate(statuses) if load.accepted(status)]
    return Run(
        whole=whole,
        job=load.Job("h", 1, "t", prefix, **({"rate": 20.0, "seconds": 10.0} | job)),
        sent=load.Sent(BEGAN, moments, [5.0 + number / 100 for number in range(count)], statuses),
        rows=rows,
        gateway=books,
        ledger=ledger.check(taken, rows, books, whole=whole),
        cpu={"api": 0.4, "worker": 0.6, "scheduler": 0.0, "postgres": 0.2},
        samples=[
            Sample(BEGAN, {}),
            Sample(BEGAN + 5, {"api": 0.2, "worker": 0.3}),
            Sample(BEGAN + 11, {"api": 0.4, "worker": 0.6}),
        ],
        workers=[(150.04, 149.0)],
        others=0.25,
    )


def bench(tmp_path=None):
    plan = Plan(report=None if tmp_path is None else tmp_path / "report.html")
    return _Bench(plan, None, Terminal(), CONDITIONS)


def test_the_object_holds_what_was_measured():
    document = json.loads(json.dumps(result.document(made(), CONDITIONS)))
    assert (document["orders"], document["lost"], document["doubled"], document["unequal"]) == (200, 0, 0, 0)
    assert document["orders_per_s"] == pytest.approx(20)
    assert document["cpu_ms_per_order"] == {"api": 2.0, "worker": 3.0, "scheduler": 0.0, "postgres": 1.0}
    assert document["product_cpu_ms_per_order"] == 5.0
    latency = document["latency_ms"]
    assert latency["intake"] == {"p50": 5.99, "p95": 6.89, "p99": 6.97}
    assert latency["ready"]["p99"] == pytest.approx(100)
    assert latency["completed"]["p50"] == pytest.approx(50)
    assert latency["callback"] == {"p50": 3.0, "p95": 4.0, "p99": 4.0}
    assert document["worker_rss_mb"] == 150.0
    # The last arrival at 9.95 s, its end 1.15 s later, of which its shopper may have thought 1.5.
    assert document["drained_after_s"] == pytest.approx(-0.35)
    assert document["held"] is True


def test_an_intent_that_was_not_taken_counts_in_no_time_and_no_throughput():
    run = made(statuses=[202, 503, 0, 200] * 50)
    document = result.document(run, CONDITIONS)
    assert (document["orders"], document["failed"], document["held"]) == (100, 100, False)
    assert len(result.latencies(run)["intake"]) == len(result.latencies(run)["ready"]) == 100


def test_a_batch_is_counted_from_its_beginning_to_the_last_that_is_ready():
    run = made(whole=False, orders=200, rate=0.0, seconds=0.0)
    document = result.document(run, CONDITIONS)
    assert document["stage"] == "ready"
    assert document["orders_per_s"] == pytest.approx(200 / 10.05, abs=0.01)
    assert document["latency_ms"]["completed"] == {"p50": None, "p95": None, "p99": None}


def test_orders_that_have_not_ended_are_a_backlog_that_did_not_drain():
    run = made()
    late = made(rows=run.rows[:-1])
    assert result.document(late, CONDITIONS)["drained_after_s"] is None
    assert result.tried(late, think=0).why == "lost, doubled or unequal orders"


def test_a_page_needs_nothing_else_and_has_every_plot():
    run = made()
    page = report.page(
        run, {**result.document(run, CONDITIONS), "ramp": [{"rate": 20, "held": True, "why": "a < b"}]}
    )
    root = fromstring(page.removeprefix("<!doctype html>"))
    assert len(root.findall(".//svg")) == 4
    assert len(root.findall(".//polyline")) == 4 + 3 + 2 + 4
    assert "a &lt; b" in page
    assert not [word for word in ("src=", "href=", "<script", "@import", "url(", "http") if word in page]


def test_a_page_about_nothing_says_so():
    run = made(rows=[])
    assert "lost" in report.page(run, result.document(run, CONDITIONS))


def test_clean_books_end_in_status_0_and_a_report(tmp_path, capsys):
    status, document = bench(tmp_path)._told(made(), ())
    assert status == 0
    assert document["lost"] == 0
    said = capsys.readouterr().out
    assert "nothing was lost or doubled" in said
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


def test_books_that_disagree_end_in_another_status(capsys):
    run = made()
    run.rows[7] = ledger.Row(order_ref="b-1-7", state="awaiting_payment", offered_at=BEGAN)
    books = ledger.Books(payments=[ledger.Payment(order_ref="b-1-7", at=BEGAN, amount=100, currency="DKK")])
    wrong = ledger.check([row.order_ref for row in run.rows], run.rows, books, whole=True)
    broken = made()
    object.__setattr__(broken, "ledger", wrong)
    status, document = bench()._told(broken, ())
    assert status == 1
    assert document["lost"] == 1
    said = capsys.readouterr().out
    assert "1 lost (b-1-7: paid, and not completed)" in said
    assert "do not agree" in said


def test_what_a_rate_of_the_ramp_did_twice_is_kept():
    run = bench()
    run._twice.append("at 50.0/s b-3-1: 2 completions")
    assert run._told(made(), ())[0] == 1


def test_a_run_of_which_nothing_was_taken_is_no_result():
    with pytest.raises(BenchFailed, match="took none"):
        bench()._told(made(rows=[], statuses=[503] * 200), ())


def test_a_line_says_how_far_a_run_is():
    progress = Progress(
        "20.0/s", sent=load.LoadProgress(sent=10, taken=9, failed=1, slowest=12.4), left=Left(5, 2)
    )
    line = display.line(progress)
    assert "10 sent, 1 not taken, 7 ready, 4 ended, 5 under way; slowest answer 12 ms" in line
    progress.over = True
    assert "waiting for the last" in display.line(progress)

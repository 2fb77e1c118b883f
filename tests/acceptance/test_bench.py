"""`orchestrator bench`, short: everything it starts processes the load, its figures are there, and the books
agree.
"""

from __future__ import annotations

import asyncio
import json

import pytest

from orchestrator.domain.states import State
from tests.conftest import SECRET_KEY
from tests.support.command import orchestrator

PERCENTILES = {"p50", "p95", "p99"}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A few seconds of load with faults; the object on stdout, and the page."""
    place = tmp_path_factory.mktemp("bench")
    ran = orchestrator(
        "bench",
        "--rate",
        "15",
        "--seconds",
        "2",
        "--faults",
        "0.05",
        "--gateway-latency",
        "lognormal:5,20",
        "--think",
        "0.2",
        "--webhook",
        "--json",
        "--report",
        place / "report.html",
        seconds=110,
        SECRET_KEYS=f'["{SECRET_KEY}"]',
    )
    return ran, place


def test_nothing_is_lost_or_doubled_though_calls_break(measured):
    ran, _ = measured
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = json.loads(ran.stdout)
    assert (found["lost"], found["doubled"], found["unequal"]) == (0, 0, 0)
    assert found["orders"] > 10
    assert sum(found["gateway"]["faults"].values()) > 0
    assert "agree to the minor unit" in " ".join(ran.stderr.split())


@pytest.mark.direct("it is about what the Postgres that it starts costs")
@pytest.mark.embedded_broker("it is about what the broker that it starts costs")
def test_every_figure_is_there(measured):
    found = json.loads(measured[0].stdout)
    assert found["orders_per_s"] > 0
    assert set(found["cpu_ms_per_order"]) >= {
        "api",
        "worker",
        "scheduler",
        "gateway",
        "load",
        "postgres",
        "redis",
    }
    assert found["cpu_ms_per_order"]["worker"] > 0
    assert set(found["latency_ms"]) == {"intake", "ready", "completed", "callback"}
    for values in found["latency_ms"].values():
        assert set(values) == PERCENTILES
        assert 0 < values["p50"] <= values["p95"] <= values["p99"]
    assert found["worker_rss_mb"] > 10
    assert found["flush_ms"] > 0
    assert found["conditions"]["durable"] is True
    assert sum(found["gateway"]["callbacks"]["notification"].values()) >= found["orders"]


def test_every_event_is_delivered_to_the_webhook(measured):
    found = json.loads(measured[0].stdout)
    assert found["webhook"]["written"] >= 2 * found["orders"]
    assert found["webhook"]["received"] == found["webhook"]["written"]


def test_the_report_is_a_page_with_plots(measured):
    page = (measured[1] / "report.html").read_text()
    assert page.count("<polyline") >= 10
    assert "Nothing was lost or doubled" in page


@pytest.mark.anyio
async def test_a_database_in_use_is_refused_before_anything_is_started(core):
    await core.checkout(State.AWAITING_PAYMENT)
    keys = f'["{SECRET_KEY}"]'
    ran = await asyncio.to_thread(orchestrator, "bench", "--json", DATABASE_URL=core.url, SECRET_KEYS=keys)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "1 unsettled checkouts" in ran.stderr
    assert "a database of its own" in ran.stderr


def test_nothing_is_written_to_a_database_under_keys_that_are_not_kept():
    ran = orchestrator("bench", DATABASE_URL="postgresql://nouser@127.0.0.1:9/none")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "ORCHESTRATOR_SECRET_KEYS is not set" in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--gateway-latency", "soon"], "lognormal:P50,P99"),
        (["--ramp", "--stage", "ready"], "leave --stage and --sequential out"),
        (["--faults", "2"], "--faults"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(arguments, says):
    ran = orchestrator("bench", *arguments)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert says in ran.stderr

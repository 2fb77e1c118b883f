"""Metrics are counts of rows: true after anything, cheap, and for the operator alone."""

from __future__ import annotations

import asyncio
import json
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from orchestrator import counters
from orchestrator.api import problems
from orchestrator.domain.states import State, Trigger
from orchestrator.monitoring import Monitor, catalogue, exposition
from orchestrator.store import checkouts as lifecycle
from orchestrator.store import due_work, heartbeats, readiness, status
from orchestrator.store.heartbeats import Heart
from tests.conftest import make_settings
from tests.support.api_scene import serving
from tests.support.factories import JOURNEY, arrival, payment
from tests.support.risk import STATEMENTS, recount

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.factories import Core

pytestmark = pytest.mark.anyio

GRACE = 60.0


class Page(dict[str, dict[tuple[str, ...], float]]):
    """The samples of a page, by name and by the values of their labels."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        for family in text_string_to_metric_families(page.decode()):
            for sample in family.samples:
                name = sample.name.removeprefix("orchestrator_")
                gauge = catalogue.GAUGES.get(name)
                labels = sample.labels if gauge is None else {key: sample.labels[key] for key in gauge.labels}
                self.setdefault(name, {})[tuple(labels.values())] = sample.value


async def fresh(monitor: Monitor) -> Page:
    """Return the page once every group of figures is read anew."""
    for group in monitor._groups.values():
        group.tried_at = float("-inf")
    await monitor.page()
    await asyncio.gather(*(group.reading for group in monitor._groups.values() if group.reading is not None))
    return Page(await monitor.page())


@pytest.fixture
async def monitor(core: Core) -> AsyncIterator[Monitor]:
    made = Monitor(core.url, grace=GRACE)
    yield made
    await made.close()


async def test_gauges_are_counts_of_rows(core: Core, monitor: Monitor) -> None:
    for state in JOURNEY:
        await core.checkout(state, due_in=None if state is State.COMPLETED else 600.0)
    held = await core.held(State.AWAITING_PAYMENT)
    held = await core.advance(held, Trigger.PAYMENT_FOUND, money=(13900, 4000, 0), due_in=600.0)
    stuck = await core.checkout(State.AWAITING_PAYMENT, due_in=600.0)
    await core.do(
        "UPDATE checkouts SET attention = 'late_payment', attention_since = clock() - interval '2 hours' WHERE id = :id",
        id=stuck,
    )
    told = await core.checkout(State.AWAITING_PAYMENT, due_in=600.0)
    await core.callbacks.store(arrival(told))
    await core.do("UPDATE callbacks SET received_at = clock() - interval '20 minutes'")
    await core.do(
        "INSERT INTO money_operations (id, merchant_id, checkout_id, transaction_id, kind, amount, currency, state, "
        "reconciliation_identifier, cause, actor, submitted_at) VALUES (gen_random_uuid(), 1, :id, 't-9', 'capture', 13900, 'DKK', "
        "'unknown', 'r-1', 'asked', 'test', clock() - interval '2 days')",
        id=held.id,
    )
    page = Page(await monitor.page())
    counted = {
        (state, status): float(number)
        for state, status, number in await core.all(
            f"SELECT state, {_status()} AS word, count(*) FROM checkouts GROUP BY 1, 2"
        )
    }
    assert page["checkouts"] == counted
    assert page["money"]["DKK", "captured"] == 40.0
    assert page["attention"] == {("late_payment",): 1.0}
    assert page["attention_oldest_seconds"]["late_payment",] == pytest.approx(7200, abs=30)
    assert page["operations"] == {("capture", "unknown"): 1.0}
    risk = page["money_at_risk"]
    assert risk == await recounted(core)
    assert risk["DKK", "operation", "over_1d"] == 139.0
    assert risk["DKK", "attention", "1h_to_1d"] == 139.0
    assert risk["DKK", "callback", "10m_to_1h"] == 139.0
    assert risk["DKK", "uncaptured", "under_10m"] == 99.0
    assert page["oldest_due_seconds"]["operations",] > 0
    assert page["database_up"] == {(): 1.0}
    ends = ("_total", "_bucket", "_count", "_sum")
    counts = {name + end for name in counters.known() for end in ends}
    assert page.keys() <= catalogue.GAUGES.keys() | counts


async def test_the_age_of_waiting_work_survives_the_sweeps_that_move_its_due_time(
    core: Core, monitor: Monitor
) -> None:
    late = await core.checkout(State.AWAITING_PAYMENT, due_in=-300.0)
    await core.do(
        "UPDATE checkouts SET updated_at = clock() - interval '400 seconds' WHERE id = :id", id=late
    )
    for _ in range(3):
        (found,) = await lifecycle.sweep(core.db, most=10, grace=0.05)
        assert found.id == late
        await asyncio.sleep(0.06)
    page = Page(await monitor.page())
    assert page["oldest_due_seconds"]["checkouts",] == pytest.approx(300, abs=10)
    assert page["oldest_hint_seconds"]["checkouts",] == pytest.approx(300, abs=10)
    assert page["waiting"]["checkouts",] == 1
    assert page["merchant_oldest_due_seconds"]["default",] == pytest.approx(300, abs=10)
    shown = {one.name: one for one in (await status.read(core.db, grace=0.05)).queues}
    assert shown["checkouts"].age == pytest.approx(300, abs=10)
    assert (await due_work.demand(core.db, grace=0.05)).workers == 21
    # A claim ends the wait; what is postponed then waits anew.
    (held,) = await core.claim(late)
    await core.release(held, due_in=0.2)
    await asyncio.sleep(0.4)
    await lifecycle.sweep(core.db, most=10, grace=60.0)
    again = await fresh(monitor)
    assert 0.2 <= again["oldest_due_seconds"]["checkouts",] < 100


async def test_counts_outlive_their_process_and_are_never_doubled(
    core: Core, monitor: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counted(number: float, *buckets: float) -> None:
        told = {"sweeps|hint": number, **{f"callback_lag_seconds|#{at}": n for at, n in enumerate(buckets)}}
        monkeypatch.setattr(counters, "snapshot", lambda _: {**told, "callback_lag_seconds|sum": 3.0})

    first, second = Heart(core.db, "worker"), Heart(core.db, "worker")
    counted(5.0, 1.0, 2.0)
    assert await first.beat({})
    assert await first.beat({})
    counted(2.0)
    assert await second.beat({})
    assert Page(await monitor.page())["sweeps_total"] == {("hint",): 7.0}
    # The first is killed and its row forgotten; the second was only silent for as long, and goes on.
    await core.do("UPDATE workers SET seen_at = clock() - interval '2 days'")
    await Heart(core.db, "worker").forget()
    counted(4.0)
    assert await second.beat({})
    page = await fresh(monitor)
    assert page["sweeps_total"] == {("hint",): 9.0}
    assert page["callback_lag_seconds_bucket"]["+Inf",] == 3.0
    counted(6.0)
    await second.end()
    assert (await fresh(monitor))["sweeps_total"] == {("hint",): 11.0}
    assert await core.all("SELECT count(*) FROM workers") == [0]


async def test_each_process_measures_how_far_postgres_is_from_its_clock(
    core: Core, monitor: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeats, "time", SimpleNamespace(time=lambda: time.time() - 40))
    heart = Heart(core.db, "worker")
    for _ in range(2):
        assert await heart.beat({})
    apart = (await fresh(monitor))["clock_difference_seconds"]
    assert apart["worker",] == pytest.approx(40, abs=2)
    assert abs(apart["api",]) < 1
    (found,) = await readiness.processes(core.db)
    assert found.progress["clockSeconds"] == pytest.approx(40, abs=2)


async def test_slow_figures_are_read_in_the_background_and_failed_ones_are_not_shown(
    core: Core, monitor: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    await core.checkout(due_in=600.0)
    await monitor.page()
    answered = asyncio.Event()

    async def slowly(db: object, grace: float) -> dict[str, dict[tuple[str, ...], float]]:
        await answered.wait()
        return {"checkouts": {("received", "unpaid"): 42.0}}

    monkeypatch.setitem(exposition.GROUPS, "books", slowly)
    monitor._groups["books"].tried_at = float("-inf")
    page = Page(await monitor.page())
    assert page["checkouts"] == {("received", "unpaid"): 1.0}
    answered.set()
    await asyncio.sleep(0.6)
    assert Page(await monitor.page())["checkouts"] == {("received", "unpaid"): 42.0}
    assert not monitor._groups["books"].due

    async def broken(db: object, grace: float) -> dict[str, dict[tuple[str, ...], float]]:
        raise TimeoutError

    monkeypatch.setitem(exposition.GROUPS, "now", broken)
    page = await fresh(monitor)
    assert page["database_up"] == {(): 0.0}
    assert "attention_oldest_seconds" not in page
    assert 0.5 < page["reading_age_seconds"]["now",] < 60


async def test_a_group_that_cannot_be_read_takes_nothing_from_the_others_and_its_age_shows(
    core: Core, monitor: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exposition, "FIRST", 1.0)
    monkeypatch.setattr(exposition, "STATEMENT", 1_000)
    held = Monitor(core.url, grace=GRACE)
    try:
        async with core.db.transaction() as tx:
            # Two groups of four wait for the lock, until their statements are ended.
            await tx.execute(text("LOCK TABLE checkouts IN ACCESS EXCLUSIVE MODE"))
            monkeypatch.setitem(exposition.GROUPS, "now", _nothing)
            began = time.monotonic()
            for _ in range(3):
                page = Page(await held.page())
                assert page["database_up"] == {(): 1.0}
                assert page["reading_age_seconds"]["waiting",] > 0.5
                assert "oldest_due_seconds" not in page
                assert "sweeps_total" in page or held._groups["counts"].read_at > began
                await asyncio.sleep(0.3)
            # What has failed is not tried again at each scrape.
            waiting = held._groups["waiting"]
            await asyncio.wait_for(waiting.reading, 5)
            assert waiting.failed
            waiting.tried_at = time.monotonic()
            assert not waiting.due
            assert 1.0 < exposition.SHARE * waiting.took < 10
    finally:
        await held.close()


async def _nothing(db: object, grace: float) -> dict[str, dict[tuple[str, ...], float]]:
    return {"processes": {("worker",): 1.0}}


async def test_only_the_operators_token_opens_the_metrics(database_url: str) -> None:
    async with serving(make_settings(database_url=database_url)) as api:
        missing = await api.client.get("/metrics")
        assert (missing.status_code, missing.json()["type"]) == (404, "about:blank")
        metrics = api.client._transport.app.state.metrics  # type: ignore[attr-defined]
        await metrics.prepare()
        assert metrics._monitor is None
    token = "a token of the operator"
    async with serving(make_settings(database_url=database_url, metrics_token=token)) as api:
        # The word for the method is the caller's, and no series is made of it.
        for word in ("BREW", "X" * 40):
            await api.client.request(word, "/healthz")
        methods = {method for method, _, _ in counters.http_requests.values}
        assert "other" in methods
        assert methods <= {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other"}
        metrics = api.client._transport.app.state.metrics  # type: ignore[attr-defined]
        # What the first scrape needs is read at the start.
        await metrics.prepare()
        assert all(group.read_at > 0 for group in metrics._monitor._groups.values())
        everything = api.bearer(scopes=("checkouts:read", "checkouts:write", "money:write", "ops"))
        for headers in ({}, everything, {"Authorization": "Bearer wrong"}):
            refused = await api.client.get("/metrics", headers=headers)
            assert (refused.status_code, refused.json()["type"]) == (401, f"{problems.TYPE}invalid-token")
            assert refused.headers["www-authenticate"].startswith("Bearer ")
        answer = await api.client.get("/metrics", headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert Page(answer.content)["database_up"] == {(): 1.0}
        await metrics.close()


def test_labels_are_bounded() -> None:
    few = counters.Counter("a_test_of_bounds", "", "name")
    try:
        for number in range(counters.MOST + 50):
            few.add(f"name|{number}")
        assert len(few.values) == counters.MOST + 1
        assert few.values[counters.OTHER,] == 50
        assert all(key.count("|") == 1 for key in counters.snapshot("test") if key.startswith("a_test"))
    finally:
        counters._ALL.pop("a_test_of_bounds")
    named = counters.Bounded(2)
    assert [named.of(name) for name in ("a", "b", "c", "a")] == ["a", "b", "other", "a"]


async def recounted(core: Core) -> dict[tuple[str, str, str], float]:
    """Return the money at risk by the rows themselves."""
    return recount({name: await core.all(statement) for name, statement in STATEMENTS.items()})


def _status() -> str:
    from orchestrator.domain.payment_status import IN_SQL

    return IN_SQL


async def test_a_payment_beside_the_accepted_one_is_money_at_risk(core: Core, monitor: Monitor) -> None:
    held = await core.held(State.COMPLETED)
    await core.release(held, payments=(payment("t-2", role="surplus"),))
    assert ("DKK", "surplus", "under_10m") not in Page(await monitor.page()).get("money_at_risk", {})
    await core.do("UPDATE checkouts SET attention = 'surplus_payment', attention_since = clock()")
    risk = (await fresh(monitor))["money_at_risk"]
    assert risk["DKK", "surplus", "under_10m"] == 139.0
    assert risk == await recounted(core)
    await core.do("UPDATE payments SET role = 'unknown', first_seen_at = clock() - interval '2 hours'")
    await core.do("UPDATE payments SET captured = reserved, refunded = 900, charged_back = 100")
    risk = (await fresh(monitor))["money_at_risk"]
    assert risk["DKK", "unknown", "1h_to_1d"] == 129.0
    assert risk == await recounted(core)


async def test_money_of_decisions_is_that_of_the_payments_which_they_name(
    core: Core, monitor: Monitor
) -> None:
    payments = {
        "payment_mismatch": [("SEK", 5000), ("DKK", 100)],
        "surplus_payment": [("DKK", 2000), ("DKK", 3000)],
        "payment_released": [("NOK", 0)],
        "unclear_payment": [("", None)],
        "charged_back": [("DKK", 0)],
        "late_payment": [],
    }
    for code, named in payments.items():
        details = [
            {"transaction_id": "t", "currency": currency, "amount": amount} for currency, amount in named
        ]
        await core.do(
            "UPDATE checkouts SET attention = :code, attention_details = CAST(:details AS jsonb), attention_since = clock(), "
            "charged_back = 700 WHERE id = :id",
            code=code,
            details=json.dumps({"payments": details} if details else {}),
            id=await core.checkout(State.AWAITING_PAYMENT),
        )
    risk = (await fresh(monitor))["money_at_risk"]
    assert risk == await recounted(core)
    found = {currency: amount for (currency, kind, _), amount in risk.items() if kind == "attention"}
    # In the order above. What holds nothing, or cannot be read, has no series.
    assert found == {"SEK": 50.0, "DKK": 1.0 + 50.0 + 7.0 + 139.0}

"""What `doctor` says of an installation: by what was written, whatever due times the sweeps have moved."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from orchestrator.cli import checks, database_checks
from orchestrator.domain.states import State
from orchestrator.store import checkouts, readiness
from orchestrator.store import events as feeds
from orchestrator.store.database import Database

pytestmark = pytest.mark.anyio

LONG = readiness.OVERDUE + 80


@pytest.fixture(autouse=True)
def _with_short_timeout(monkeypatch):
    monkeypatch.setattr(checks, "SECOND_CHECK_AFTER", 0.5)


class Report:
    def __init__(self):
        self.said = {}

    def well(self, what, found):
        self.said.setdefault(what, []).append(("ok", found))

    def ill(self, what, found):
        self.said.setdefault(what, []).append(("problem", found))


async def backlog(core):
    report = Report()
    await checks._due(core.db, report, stopped=False)
    return report.said


async def aged(core, **columns):
    """Move the times of every checkout into the past, by seconds."""
    moved = ", ".join(
        f"{name} = clock() - make_interval(secs => {seconds})" for name, seconds in columns.items()
    )
    await core.do(f"UPDATE checkouts SET {moved}")


async def test_orders_that_no_worker_has_touched_are_named_though_sweeps_move_their_due_time(core):
    await core.checkouts(3)
    await aged(core, created_at=LONG, updated_at=LONG, due_at=1)
    assert len(await checkouts.sweep(core.db, most=100, grace=5, overloaded=[], few=10)) == 3
    assert (await readiness.backlog(core.db)).overdue == 0, "as the sweep leaves it"
    ((status, said),) = (await backlog(core))["backlog"]
    assert status == "problem"
    assert "3 checkouts have waited for more than 2 min without a first step" in said


async def test_what_waits_while_nothing_progresses_is_named_though_sweeps_move_its_due_time(core):
    await core.checkout(State.AWAITING_PAYMENT)
    await aged(core, created_at=2 * LONG, updated_at=LONG, due_at=1)
    assert len(await checkouts.sweep(core.db, most=100, grace=5, overloaded=[], few=10)) == 1
    ((status, said),) = (await backlog(core))["backlog"]
    assert status == "problem"
    assert "1 checkouts wait, and none has progressed for 3 min" in said


async def test_the_first_order_after_a_quiet_time_is_checked_twice(core):
    waiting = await core.checkout(State.AWAITING_PAYMENT)
    await aged(core, created_at=2 * LONG, updated_at=LONG, due_at=1)
    assert (await readiness.backlog(core.db)).suspicious
    checking = asyncio.create_task(backlog(core))
    await asyncio.sleep(0.1)
    (held,) = await core.claim(waiting)
    await core.release(held)
    ((status, _),) = (await checking)["backlog"]
    assert status == "ok"


async def test_what_progresses_is_well_however_much_waits(core):
    ids = await core.checkouts(20)
    (held,) = await core.claim(ids[0])
    await core.release(held)
    found = await readiness.backlog(core.db)
    assert found.waiting >= 19
    assert not found.suspicious
    ((status, _),) = (await backlog(core))["backlog"]
    assert status == "ok"


async def test_a_stopped_installation_has_a_backlog_and_no_problem(core):
    await core.checkouts(2)
    await aged(core, created_at=LONG, updated_at=LONG)
    report = Report()
    await checks._due(core.db, report, stopped=True)
    assert report.said["backlog"] == [("ok", "2 checkouts are due, and wait for the next start")]


async def test_events_that_wait_for_their_position_in_the_feed_are_named_when_they_wait_for_long(core):
    async def events(*, stopped: bool = False):
        report = Report()
        await checks._events(core.db, report, stopped=stopped)
        return report.said["events"]

    assert await events() == [("ok", "0 wait for their place in the feed, none for long")]
    for _ in range(2):
        await core.held(State.AWAITING_PAYMENT)
    assert await events() == [("ok", "2 wait for their place in the feed, none for long")]
    await core.do(
        "UPDATE events SET created_at = clock() - make_interval(secs => :age)",
        age=readiness.EVENTS_OVERDUE + 30,
    )
    ((status, said),) = await events()
    assert (status, said.startswith("2 wait for their place in the feed, the oldest for 9")) == (
        "problem",
        True,
    )
    assert [status for status, _ in await events(stopped=True)] == ["ok"]
    while await feeds.place(core.db):
        pass
    assert [status for status, _ in await events()] == ["ok"]


@pytest.mark.parametrize("state", ["25006", "53100"])
async def test_doctor_writes_and_names_what_keeps_it_from_writing(core, state):
    async with await psycopg.AsyncConnection.connect(core.url, autocommit=True) as admin:
        await admin.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = '{state}'; END $$"
        )
        await admin.execute(
            "CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON workers FOR EACH ROW EXECUTE FUNCTION refuse()"
        )
        report = Report()
        await database_checks._writes(core.url, core.db, report)
        await admin.execute("DROP TRIGGER refuse ON workers")
        await admin.execute("DROP FUNCTION refuse")
    ((status, said),) = report.said["writes"]
    assert status == "problem"
    assert f"{readiness._STATES[state]}: " in said
    assert said.endswith(database_checks.REMEDIES[state])
    well = Report()
    await database_checks._writes(core.url, core.db, well)
    assert well.said == {"writes": [("ok", "the database takes writes")]}


async def test_doctor_names_a_server_that_is_not_there_or_not_for_writing(core):
    report = Report()
    async with Database("postgresql://shop@127.0.0.1:9/none") as db:
        assert not await database_checks.examine("postgresql://shop@127.0.0.1:9/none", db, report)
    ((status, said),) = report.said["database"]
    assert status == "problem"
    assert "127.0.0.1:9/none" in said

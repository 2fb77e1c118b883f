"""Claiming and waking: one holder at a time, and no wake-up is lost between any two moments."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from uuid import uuid4

import pytest
from sqlalchemy import text

from orchestrator.domain.states import ENDED, State, Trigger
from orchestrator.store import checkouts
from orchestrator.store.batch import Unwritten
from orchestrator.store.checkouts import LeaseLost, due_times
from tests.support.factories import arrival, row_held
from tests.support.factories import core as another

pytestmark = pytest.mark.anyio


async def test_two_workers_given_the_same_ids_claim_each_checkout_exactly_once(core):
    ids = await core.checkouts(200)
    async with another(core.url, core.encryptor) as other:
        rounds = await asyncio.gather(
            *(worker.claim(*random.sample(ids, 200)) for worker in (core, other) for _ in range(4))
        )
    claimed = Counter(held.id for round_ in rounds for held in round_)
    assert claimed == Counter(ids)
    assert await core.all("SELECT count(DISTINCT lease), max(claims) FROM checkouts") == [
        (sum(1 for claimed_once in rounds if claimed_once), 1)
    ]


async def test_a_hint_allows_one_claim(core):
    checkout = await core.accept()
    (held,) = await core.claim(checkout)
    await core.release(held, 60.0)
    assert await core.claim(checkout) == []
    await core.wake(checkout)
    (again,) = await core.claim(checkout)
    assert again.claims == 1


async def test_a_due_checkout_allows_a_claim_without_a_hint(core):
    checkout = await core.checkout(due_in=0.0)
    assert [held.id for held in await core.claim(checkout)] == [checkout]


async def test_no_worker_claims_under_a_living_lease_however_often_the_checkout_is_woken(core):
    held = await core.held()
    await core.wake(held.id)
    await core.wake(held.id)
    assert await core.claim(held.id) == []
    # Not even if the row is hinted at and due.
    await core.do("UPDATE checkouts SET hinted = true, due_at = clock()")
    assert await core.claim(held.id) == []


async def test_a_settled_checkout_is_claimed_only_after_a_wake_up(core):
    checkout = await core.checkout(State.COMPLETED, due_in=None)
    assert (await core.row(checkout)).due_at is None
    assert await core.claim(checkout) == []
    await core.wake(checkout)
    assert [held.id for held in await core.claim(checkout)] == [checkout]


async def test_claiming_no_id_or_an_unknown_id_claims_nothing(core):
    assert await core.claim() == []
    assert await core.claim(uuid4()) == []


async def test_a_row_locked_by_another_transaction_is_left_out_of_a_claim(core):
    ids = await core.checkouts(5)
    async with row_held(core.url, ids[2]), asyncio.timeout(5):
        assert {held.id for held in await core.claim(*ids)} == {*ids} - {ids[2]}


async def test_the_holder_knows_what_stands_beside_its_checkout(core):
    held = await core.held(State.AWAITING_PAYMENT, correlation_id="c-77")
    await core.callbacks.store(arrival(held.id, body=b"one"))
    await core.callbacks.store(arrival(held.id, kind="success", body=b"two"))
    await core.release(held)
    (held,) = await core.claim(held.id)
    assert (held.token, held.session_id, held.methods) == (b"a sealed token", "session-1", [{"id": "card"}])
    assert [callback.kind for callback in held.callbacks] == ["notification", "success"]
    assert (held.correlation_id, held.intent, held.accepted) == ("c-77", None, frozenset())
    (fresh,) = await core.claim(await core.accept())
    assert fresh.intent is not None
    assert fresh.callbacks == fresh.commands == ()
    assert 55 < fresh.lease_left() <= 60


async def test_claims_are_counted_until_a_holder_writes(core):
    checkout = await core.accept()
    for number in (1, 2, 3):
        (held,) = await core.claim(checkout, lease=0.01)
        assert held.claims == number
        await asyncio.sleep(0.03)
    (held,) = await core.claim(checkout)
    assert held.claims == 4
    assert (await core.advance(held, Trigger.AUTHENTICATED)).claims == 0
    assert (await core.row(checkout)).claims == 0


async def test_a_crash_between_claim_and_move_is_due_at_the_end_of_the_lease(core):
    checkout = await core.accept()
    await core.claim(checkout, lease=30)
    assert await checkouts.due(core.db, most=10) == []
    assert await checkouts.sweep(core.db, most=10, grace=60) == []
    await core.do("UPDATE clock_skew SET seconds = seconds + 31")
    assert [due.id for due in await checkouts.due(core.db, most=10)] == [checkout]
    (woken,) = await checkouts.sweep(core.db, most=10, grace=60)
    assert (woken.id, woken.woken) == (checkout, False)
    assert 0 <= woken.lag < 5
    assert [held.id for held in await core.claim(checkout)] == [checkout]


async def test_a_holder_past_its_lease_cannot_write_once_another_holds_it(core):
    old = await core.held(State.METHODS_FETCHED, lease=0.05)
    await asyncio.sleep(0.08)
    (new,) = await core.claim(old.id)
    with pytest.raises(LeaseLost, match=f"the lease on checkout {old.id} is no longer ours"):
        await core.advance(old, Trigger.OFFERED, offered=True)
    row = await core.row(old.id)
    assert (row.state, row.version, row.lease) == ("methods_fetched", new.version, new.lease)
    assert (await core.advance(new, Trigger.OFFERED)).state is State.AWAITING_PAYMENT


async def test_a_holder_past_its_lease_may_still_write_while_no_other_worker_has_claimed_it(core):
    held = await core.held(lease=0.01)
    await asyncio.sleep(0.03)
    assert (await core.advance(held, Trigger.AUTHENTICATED)).state is State.AUTHENTICATED


# ── Wake-ups ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_release_without_a_wake_up_sets_the_given_due_time(core):
    held = await core.held()
    assert not (await core.release(held, 1000.0)).woken
    ((seconds, lease),) = await core.all(
        "SELECT extract(epoch FROM due_at - clock())::float8, lease FROM checkouts"
    )
    assert 990 < seconds <= 1000
    assert lease is None


async def test_a_wake_up_between_lookup_and_release_makes_it_due_now(core):
    held = await core.held()
    await core.wake(held.id)
    row = await core.row(held.id)
    assert not row.is_due
    assert (await core.release(held, 1000.0)).woken
    assert (await core.row(held.id)).is_due


async def test_a_wake_up_before_the_claim_is_seen_by_it_and_not_again(core):
    checkout = await core.accept()
    await core.wake(checkout)
    (held,) = await core.claim(checkout)
    assert held.wake == 1
    assert not (await core.release(held, 1000.0)).woken
    assert not (await core.row(checkout)).is_due


async def test_a_wake_up_under_way_makes_the_release_wait_for_it(core):
    held = await core.held()
    async with core.db.transaction() as tx:
        await checkouts.wake(tx, [held.id], grace=60)
        releasing = asyncio.create_task(core.release(held, 1000.0))
        await asyncio.sleep(0.1)
        assert not releasing.done()
    assert (await releasing).woken
    assert (await core.row(held.id)).is_due


async def test_a_wake_up_of_a_free_checkout_stands_behind_its_hint_by_the_grace(core):
    checkout = await core.checkout(due_in=1000.0)
    await core.wake(checkout, grace=0.05)
    row = await core.row(checkout)
    assert (row.hinted, row.wake) == (True, 1)
    await asyncio.sleep(0.08)
    assert (await core.row(checkout)).is_due


async def test_a_wake_up_never_puts_a_due_time_off(core):
    checkout = await core.checkout(due_in=0.0)
    await core.wake(checkout, grace=1000.0)
    assert (await core.row(checkout)).is_due


@pytest.mark.parametrize("state", State)
async def test_only_what_has_ended_can_be_settled(core, state):
    held = await core.held(state)
    if state in ENDED:
        await core.release(held, None)
        assert (await core.row(held.id)).due_at is None
    else:
        with pytest.raises(Unwritten):
            await core.release(held, None)
        row = await core.row(held.id)
        assert (row.version, row.lease) == (held.version, held.lease)


async def test_settling_a_checkout_that_was_woken_meanwhile_makes_it_due_now(core):
    held = await core.held(State.EXPIRED)
    await core.wake(held.id)
    assert (await core.release(held, None)).woken
    assert (await core.row(held.id)).is_due


async def test_a_storm_of_wake_ups_against_claims_and_releases_loses_no_wake_up(core):
    """At the end every wake-up was seen by a claim (its `wake`), or the checkout is due or hinted."""
    ids = [await core.checkout(State.AWAITING_PAYMENT) for _ in range(8)]
    wakes, seen = Counter(), Counter()
    running = True

    async def waker():
        while running:
            some = random.sample(ids, random.randint(1, 4))
            await core.wake(*some)
            wakes.update(some)
            await asyncio.sleep(random.uniform(0, 0.01))

    async def worker(process):
        while running:
            for held in await process.claim(*random.sample(ids, 4)):
                seen[held.id] = max(seen[held.id], held.wake)
                await asyncio.sleep(random.uniform(0, 0.004))
                await process.release(held, 1000.0)
            await asyncio.sleep(0)

    async with another(core.url, core.encryptor) as other:
        tasks = [
            asyncio.create_task(work)
            for work in (
                *(waker() for _ in range(3)),
                *(worker(process) for process in (core, other) for _ in range(2)),
            )
        ]
        await asyncio.sleep(2.0)
        running = False
        await asyncio.gather(*tasks)
    assert all(wakes[each] for each in ids)  # a storm, also on a machine that has other things to do
    for checkout in ids:
        row = await core.row(checkout)
        assert row.wake == wakes[checkout]
        assert seen[checkout] == row.wake or row.is_due or row.hinted


# ── Sweeps ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_two_sweepers_at_once_take_each_due_checkout_once_and_put_it_off(core):
    ids = await core.checkouts(200)
    await core.do("UPDATE checkouts SET due_at = clock() - interval '1 s', hinted = false")
    async with another(core.url, core.encryptor) as other:
        sweeps = await asyncio.gather(
            *(checkouts.sweep(process.db, most=60, grace=60.0) for process in (core, other) for _ in range(4))
        )
        rest = [await checkouts.sweep(process.db, most=200, grace=60.0) for process in (core, other)]
    taken = Counter(due.id for sweep in (*sweeps, *rest) for due in sweep)
    assert taken == Counter(ids)
    assert await core.all(
        "SELECT count(*) FROM checkouts WHERE hinted AND due_at > clock() + interval '50 s'"
    ) == [200]
    assert await checkouts.sweep(core.db, most=200, grace=60.0) == []


async def test_the_longest_waiting_is_swept_first_and_says_whether_it_was_woken(core):
    ids = await core.checkouts(3)
    for number, checkout in enumerate(ids):
        await core.do(
            "UPDATE checkouts SET due_at = clock() - make_interval(secs => :s) WHERE id = :id",
            id=checkout,
            s=10.0 * (3 - number),
        )
    await core.wake(ids[0])
    assert [due.id for due in await checkouts.due(core.db, most=2)] == ids[:2]
    first, second = await checkouts.sweep(core.db, most=2, grace=60.0)
    assert {first.id, second.id} == {*ids[:2]}
    assert {hint.id: hint.woken for hint in (first, second)} == {ids[0]: True, ids[1]: False}
    assert {hint.id: round(hint.lag / 10) for hint in (first, second)} == {ids[0]: 3, ids[1]: 2}


async def test_what_was_claimed_before_without_a_result_is_a_suspect(core):
    """It may be what stops its worker, so the sweep sends it alone."""
    well, suspect = await core.checkouts(2)
    for _ in range(2):
        await core.claim(suspect, lease=0.01)
        await asyncio.sleep(0.02)
    await core.do("UPDATE checkouts SET due_at = clock() - interval '1 s'")
    assert {row.id: row.suspect for row in await checkouts.due(core.db, most=5)} == {
        well: False,
        suspect: True,
    }
    swept = await checkouts.sweep(core.db, most=5, grace=60)
    assert {hint.id: hint.suspect for hint in swept} == {well: False, suspect: True}


async def test_a_sweep_does_not_read_the_due_times_of_the_future(core):
    """A month of ended checkouts has due times; only what is due now may cost anything, every second."""
    checkout = await core.checkout(State.AWAITING_PAYMENT)
    await core.do("""
        INSERT INTO checkouts (id, merchant_id, order_ref, state, due_at, deadline, currency, amount, audit_sequence,
                               audit_head, correlation_id)
        SELECT gen_random_uuid(), 1, 'F-' || n, 'awaiting_payment', clock() + interval '9 days', clock(), 'DKK', 1, 1, '', ''
          FROM generate_series(1, 5000) n
    """)
    await core.do("UPDATE checkouts SET due_at = clock() - interval '1 s' WHERE id = :id", id=checkout)
    await core.do("ANALYZE checkouts")
    for statement in (due_times._SWEEP, due_times._DUE):
        asked = {"most": 2000, "grace": 5.0, "overloaded": [], "few": 50}
        plan = await core.db.read(text(f"EXPLAIN {statement.text}"), asked)
        told = "\n".join(row[0] for row in plan)
        assert "ix_checkouts_due" in told, told
        assert len(re.findall(r"Index Cond: \(\(merchant_id = m\w*\.id\) AND \(due_at", told)) == 2, told
        assert "Join Filter" not in told, told


async def test_a_sweep_skips_a_row_that_another_transaction_holds(core):
    ids = await core.checkouts(3)
    await core.do("UPDATE checkouts SET due_at = clock() - interval '1 s'")
    async with row_held(core.url, ids[0]), asyncio.timeout(5):
        assert {due.id for due in await checkouts.sweep(core.db, most=10, grace=60)} == {*ids[1:]}
    assert [due.id for due in await checkouts.sweep(core.db, most=10, grace=60)] == [ids[0]]

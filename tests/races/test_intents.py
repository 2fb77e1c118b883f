"""Intake: an intent becomes a checkout once, however often, by whichever process and with whichever key it is
sent.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

import psycopg
import pytest
from sqlalchemy import event

from orchestrator.domain.claimed_checkout import ClaimedCheckout
from orchestrator.domain.ids import uuid7
from orchestrator.domain.states import CLOSED, State, Trigger
from orchestrator.store.batch import Unwritten
from orchestrator.store.database import DatabaseAway
from orchestrator.store.inbox import Accepted, KeyReused, OrderTaken, intents
from tests.support.factories import Breaking, intake
from tests.support.factories import core as another
from tests.support.pooler import direct

pytestmark = pytest.mark.anyio

OTHER = b"g" * 32


def again(asked, **changes):
    """Return the same request, sent once more."""
    return replace(asked, id=uuid7(), **changes)


async def fates(*waiters):
    results = await asyncio.gather(*waiters, return_exceptions=True)
    return [type(result) if isinstance(result, BaseException) else result for result in results]


async def test_the_same_order_fifty_times_at_once_is_one_checkout_and_all_get_its_id(core):
    asked = intake()
    async with another(core.url, core.encryptor) as other:
        accepted = await asyncio.gather(
            *((core, other)[number % 2].intents.accept(again(asked)) for number in range(50))
        )
    assert len({checkout.id for checkout in accepted}) == 1
    assert sum(checkout.fresh for checkout in accepted) == 1
    assert {(checkout.deadline, checkout.order_ref) for checkout in accepted} == {
        (accepted[0].deadline, asked.order_ref)
    }
    for table in ("checkouts", "intents", "audit_entries"):
        assert await core.all(f"SELECT count(*) FROM {table}") == [1]


async def test_many_intents_with_one_order_number_or_one_key_do_not_wait_for_each_other(core):
    """If each waited for the intent before it, the last of many would wait ever longer."""
    commits = []
    asked, keyed = intake(), intake(idempotency_key="K-1")
    event.listen(core.db._engine.sync_engine, "commit", commits.append)
    accepted = await asyncio.gather(
        *(core.intents.accept(again(intent)) for intent in (asked, keyed) for _ in range(100))
    )
    assert len({checkout.id for checkout in accepted}) == 2
    assert sum(checkout.fresh for checkout in accepted) == 2
    assert len(commits) <= 3


async def test_orders_of_two_intakes_crossing_each_other_meet_without_a_deadlock(core):
    orders = [intake() for _ in range(100)]
    async with another(core.url, core.encryptor) as other:
        begun = asyncio.get_running_loop().time()
        accepted = await asyncio.gather(
            *(core.intents.accept(again(order)) for order in orders),
            *(other.intents.accept(again(order)) for order in reversed(orders)),
        )
    assert set(Counter(checkout.id for checkout in accepted).values()) == {2}
    assert await core.all("SELECT count(*) FROM checkouts") == [100]
    assert asyncio.get_running_loop().time() - begun < 10
    assert await core.all("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == [0]


async def test_keys_of_orders_that_are_there_cross_new_orders_without_a_deadlock(core):
    """The first holds a new order number and stores a key, the second holds the key and wants the
    order number.
    """
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    async with another(core.url, core.encryptor) as other:
        for _ in range(20):
            there, fresh = [intake() for _ in range(10)], [intake() for _ in range(10)]
            await asyncio.gather(*(core.intents.accept(intent) for intent in there))
            keys = [f"K-{intent.order_ref}" for intent in fresh]
            results = await asyncio.gather(
                *(core.intents.accept(again(intent)) for intent in fresh),
                *(
                    core.intents.accept(again(intent, idempotency_key=key))
                    for intent, key in zip(there, keys, strict=True)
                ),
                *(
                    other.intents.accept(again(intent, idempotency_key=key))
                    for intent, key in zip(fresh, keys, strict=True)
                ),
                return_exceptions=True,
            )
            assert {type(result) for result in results} <= {Accepted, KeyReused}
    await asyncio.sleep(0.1)  # a backend reports its counts when it ends
    assert await core.all(deadlocks) == [0]


@pytest.mark.parametrize("same", [True, False], ids=["same content", "other content"])
async def test_a_key_that_another_process_stores_first_is_found_by_the_second_process(
    core, monkeypatch, *, same
):
    keep_keys, there = intents._keep_keys, intake()
    mine = again(there, idempotency_key="K-1")
    theirs = again(there, idempotency_key="K-1") if same else intake(idempotency_key="K-1", fingerprint=OTHER)
    async with another(core.url, core.encryptor) as other:
        first = await core.intents.accept(there)

        async def late(*arguments):
            monkeypatch.setattr(intents, "_keep_keys", keep_keys)
            await other.intents.accept(theirs)
            return await keep_keys(*arguments)

        monkeypatch.setattr(intents, "_keep_keys", late)
        if same:
            accepted = await core.intents.accept(mine)
            assert (accepted.id, accepted.fresh) == (first.id, False)
        else:
            with pytest.raises(KeyReused):
                await core.intents.accept(mine)
    assert await core.all("SELECT key, checkout_id FROM idempotency_keys") == [
        ("K-1", first.id if same else theirs.id)
    ]


async def test_reopened_orders_meet_new_orders_without_a_deadlock(core):
    """Both take order numbers: a batch of moves in the order of its ids, a batch of intents in that of the
    numbers.
    """
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    async with another(core.url, core.encryptor) as other:
        for _ in range(10):
            closed = await asyncio.gather(*(core.held(State.CANCELLED) for _ in range(10)))
            orders = [checkout.order_ref for checkout in closed]
            ours = asyncio.gather(
                *(core.advance(checkout, Trigger.REOPENED) for checkout in reversed(closed)),
                return_exceptions=True,
            )
            theirs = [other.intents.accept(intake(order_ref=order, fingerprint=OTHER)) for order in orders]
            fresh = [
                checkout
                for checkout in await asyncio.gather(*theirs, return_exceptions=True)
                if isinstance(checkout, Accepted)
            ]
            reopened = [checkout for checkout in await ours if not isinstance(checkout, Unwritten)]
            assert all(isinstance(checkout, ClaimedCheckout) for checkout in reopened)
            assert len(reopened) + sum(checkout.fresh for checkout in fresh) == len(orders)
    await asyncio.sleep(0.1)
    assert await core.all(deadlocks) == [0]


async def test_a_new_checkout_is_received_with_a_due_time_behind_its_hint(core):
    accepted = await core.intents.accept(intake(expires_in=100.0))
    row = await core.row(accepted.id)
    assert (row.state, row.version, row.hinted, row.lease, row.audit_sequence) == (
        "received",
        1,
        True,
        None,
        1,
    )
    assert (row.due_at - row.created_at).total_seconds() == 60.0
    assert (row.deadline - row.created_at).total_seconds() == 100.0
    assert (accepted.state, accepted.fresh, accepted.deadline) == ("received", True, row.deadline)


async def test_other_content_under_a_living_order_number_is_refused_with_its_checkout(core):
    asked = intake()
    accepted = await core.intents.accept(asked)
    with pytest.raises(OrderTaken, match=f"already has checkout {accepted.id} with other content") as error:
        await core.intents.accept(again(asked, fingerprint=OTHER))
    assert (error.value.order_ref, error.value.checkout) == (asked.order_ref, accepted.id)
    assert await core.all("SELECT count(*) FROM checkouts") == [1]


async def test_two_contents_racing_for_one_order_number_are_one_checkout_and_one_refusal(core):
    for _ in range(10):
        intent = intake()
        async with another(core.url, core.encryptor) as other:
            results = await fates(
                core.intents.accept(intent), other.intents.accept(again(intent, fingerprint=OTHER))
            )
        assert sorted(result is OrderTaken for result in results) == [False, True]


async def test_the_same_order_number_of_two_merchants_is_two_checkouts(core):
    await core.do("INSERT INTO merchants (name) VALUES ('second')")
    (second,) = await core.all("SELECT id FROM merchants WHERE name = 'second'")
    intent = intake(idempotency_key="k")
    first, other = await asyncio.gather(
        core.intents.accept(intent), core.intents.accept(again(intent, merchant_id=second, fingerprint=OTHER))
    )
    assert first.fresh
    assert other.fresh


@pytest.mark.parametrize("state", sorted(CLOSED))
async def test_after_its_end_the_same_content_gets_its_checkout_and_other_content_gets_a_new_checkout(
    core, state
):
    checkout = await core.checkout(State(state), order_ref="T-closed")
    met = await core.intents.accept(intake(order_ref="T-closed"))
    assert (met.id, met.state, met.fresh) == (checkout, state, False)
    new = await core.intents.accept(intake(order_ref="T-closed", fingerprint=OTHER))
    assert new.fresh
    assert new.id != checkout
    with pytest.raises(OrderTaken):
        await core.intents.accept(intake(order_ref="T-closed"))


async def test_a_completed_order_number_is_never_free_again(core):
    checkout = await core.checkout(State.COMPLETED, order_ref="T-paid")
    assert (await core.intents.accept(intake(order_ref="T-paid"))).id == checkout
    with pytest.raises(OrderTaken):
        await core.intents.accept(intake(order_ref="T-paid", fingerprint=OTHER))


# ── Idempotency keys ──────────────────────────────────────────────────────────────────────────────────────


async def test_a_key_with_other_content_is_refused_whatever_order_it_names(core):
    asked = intake(idempotency_key="key-1")
    await core.intents.accept(asked)
    for changes in ({"order_ref": "T-elsewhere"}, {}):
        with pytest.raises(KeyReused, match="'key-1' was used before with other content") as error:
            await core.intents.accept(again(asked, fingerprint=OTHER, **changes))
        assert error.value.key == "key-1"
    assert await core.all("SELECT count(*) FROM checkouts") == [1]


async def test_a_key_with_the_same_content_meets_the_same_checkout(core):
    asked = intake(idempotency_key="key-1")
    first = await core.intents.accept(asked)
    assert {(await core.intents.accept(again(asked))).id for _ in range(3)} == {first.id}
    assert await core.all("SELECT key, checkout_id FROM idempotency_keys") == [("key-1", first.id)]


async def test_a_key_that_comes_with_a_repeat_is_kept_too(core):
    asked = intake()
    first = await core.intents.accept(asked)
    assert (await core.intents.accept(again(asked, idempotency_key="late"))).id == first.id
    with pytest.raises(KeyReused):
        await core.intents.accept(again(asked, idempotency_key="late", fingerprint=OTHER))


async def test_a_key_is_answered_with_its_own_checkout_whatever_became_of_the_order_number(core):
    asked = intake(order_ref="T-twice", idempotency_key="key-1")
    first = await core.intents.accept(asked)
    (held,) = await core.claim(first.id)
    await core.advance(held, Trigger.CANCELLED, due_in=60.0)
    second = await core.held(order_ref="T-twice", fingerprint=OTHER)
    assert (await core.intents.accept(again(asked))).id == first.id
    await core.advance(second, Trigger.CANCELLED, due_in=60.0)
    met = await core.intents.accept(again(asked))
    assert (met.id, met.state, met.fresh) == (first.id, "cancelled", False)


async def test_a_key_is_not_used_up_by_a_request_that_was_refused(core):
    asked = intake()
    await core.intents.accept(asked)
    with pytest.raises(OrderTaken):
        await core.intents.accept(again(asked, fingerprint=OTHER, idempotency_key="key-1"))
    assert (await core.intents.accept(intake(idempotency_key="key-1"))).fresh


async def test_one_key_for_two_orders_in_one_batch_is_one_checkout_and_one_refusal(core):
    results = await fates(
        core.intents.accept(intake(idempotency_key="key-1")),
        core.intents.accept(intake(idempotency_key="key-1", fingerprint=OTHER)),
        core.intents.accept(intake()),
    )
    assert sorted(result is KeyReused for result in results[:2]) == [False, True]
    assert results[2].fresh
    assert await core.all("SELECT count(*) FROM checkouts") == [2]


async def test_one_key_for_many_orders_through_two_processes_is_one_checkout(core):
    async with another(core.url, core.encryptor) as other:
        results = await fates(
            *(
                (core, other)[number % 2].intents.accept(
                    intake(idempotency_key="key-1", fingerprint=bytes([number]) * 32)
                )
                for number in range(40)
            )
        )
    assert sum(result is KeyReused for result in results) == 39
    assert await core.all("SELECT count(*) FROM checkouts") == [1]
    assert await core.all("SELECT checkout_id = (SELECT id FROM checkouts) FROM idempotency_keys") == [True]


async def test_an_intent_that_loses_the_race_for_an_order_number_points_its_key_at_the_stored_checkout(core):
    """The first intent commits between the read and the insert of the second."""
    asked = intake(idempotency_key="key-loser")
    async with await psycopg.AsyncConnection.connect(direct(core.url)) as winner:
        theirs = uuid7()
        await winner.execute(
            """INSERT INTO checkouts (id, merchant_id, order_ref, state, due_at, deadline, currency, amount, audit_sequence,
               audit_head, correlation_id) VALUES (%s, 1, %s, 'received', clock(), clock(), 'DKK', 13900, 1, '', 'c')""",
            [theirs, asked.order_ref],
        )
        await winner.execute(
            "INSERT INTO intents (checkout_id, fingerprint, body) VALUES (%s, %s, '')",
            [theirs, asked.fingerprint],
        )
        losing = asyncio.create_task(core.intents.accept(asked))
        await asyncio.sleep(0.2)
        assert not losing.done()
        await winner.commit()
    met = await losing
    assert (met.id, met.fresh) == (theirs, False)
    assert await core.all("SELECT key, checkout_id FROM idempotency_keys") == [("key-loser", theirs)]
    with pytest.raises(KeyReused):
        await core.intents.accept(again(asked, fingerprint=OTHER))


async def test_a_key_whose_checkout_is_not_there_makes_its_request_wait(core):
    asked = intake(idempotency_key="key-1")
    await core.do(
        "INSERT INTO idempotency_keys (merchant_id, key, fingerprint, checkout_id) VALUES (1, 'key-1', :f, :id)",
        f=asked.fingerprint,
        id=uuid7(),
    )
    async with another(core.url, core.encryptor, timeout=0.3) as hasty:
        with pytest.raises(DatabaseAway):
            await hasty.intents.accept(again(asked))
    waiting = asyncio.create_task(core.intents.accept(asked))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    await core.do("DELETE FROM idempotency_keys")
    assert (await waiting).fresh


# ── Broken connections ────────────────────────────────────────────────────────────────────────────────────


async def test_an_intent_stored_by_a_connection_that_was_lost_is_accepted_once(core):
    async with another(core.url, core.encryptor, database=Breaking) as breaking:
        breaking.db.lost_answers = 2
        accepted = await asyncio.gather(
            *(breaking.intents.accept(intake(idempotency_key=f"k{n}")) for n in range(10))
        )
    assert all(each.fresh for each in accepted)
    assert len({each.id for each in accepted}) == 10
    assert await core.all("SELECT count(*) FROM checkouts") == [10]
    assert await core.all("SELECT count(*) FROM idempotency_keys JOIN checkouts ON id = checkout_id") == [10]


async def test_an_intent_whose_connection_broke_before_the_commit_is_stored_all_the_same(core):
    async with another(core.url, core.encryptor, database=Breaking) as breaking:
        breaking.db.cut_before_commit = 1
        assert (await breaking.intents.accept(intake())).fresh
    assert await core.all("SELECT count(*) FROM checkouts") == [1]


async def test_an_order_closed_while_its_repeat_arrives_is_the_old_or_a_new_checkout_and_never_an_error(core):
    for number in range(8):
        held = await core.held(order_ref=f"T-race-{number}")
        closing = core.advance(held, Trigger.REFUSED, due_in=60.0)
        sent = core.intents.accept(intake(order_ref=f"T-race-{number}", fingerprint=OTHER))
        _, fate = await asyncio.gather(closing, sent, return_exceptions=True)
        assert isinstance(fate, OrderTaken) or fate.fresh

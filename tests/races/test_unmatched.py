"""The same unmatched payment at the same moment, in one process and in two: one checkout, one first entry,
every callback kept.
"""

from __future__ import annotations

import asyncio
import json
import math
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from uuid import uuid4

import pytest

from orchestrator import audit
from orchestrator.domain.ids import uuid7
from orchestrator.domain.states import State, Trigger
from orchestrator.store import checkouts
from orchestrator.store.batch import Unwritten
from orchestrator.store.checkouts import creation
from orchestrator.store.inbox import KeyReused, MerchantCallback, OrderTaken, UnmatchedCallbacks, intents
from tests.support.factories import Breaking, intake, payment, row_held
from tests.support.factories import core as another

pytestmark = pytest.mark.anyio


def unexpected_callback(order_ref: str | None = "OLD-1", **changes) -> MerchantCallback:
    told = {
        "merchant_id": 1,
        "order_ref": order_ref,
        "transaction_id": "1",
        "currency": "DKK",
        "amount": 13900,
        "named": None,
        "correlation_id": "c-1",
    }
    came = {
        "grade": "signed",
        "network": "inside",
        "content_type": "",
        "headers": {},
        "source": None,
        "body": b"status=succeeded",
    }
    told |= {name: value for name, value in changes.items() if name in told}
    came |= {name: value for name, value in changes.items() if name in came}
    return MerchantCallback(payment=checkouts.UnmatchedPayment(**told), **came)


@asynccontextmanager
async def takers(core, number: int = 2, **options):
    """As many processes as wanted, each with a writer of unmatched callbacks."""
    async with AsyncExitStack() as stack:
        made = []
        for _ in range(number):
            process = await stack.enter_async_context(another(core.url, core.encryptor, **options))
            intake = UnmatchedCallbacks(process.db, process.encryptor, process.callbacks, grace=60.0)
            stack.push_async_callback(intake.close)
            made.append((process, intake))
        yield made


async def test_the_same_unmatched_payment_from_two_processes_at_once_is_one_checkout(core):
    async with takers(core) as processes:
        for round_ in range(10):
            placed = await asyncio.gather(
                *(
                    processes[number % 2][1].store(
                        unexpected_callback(f"OLD-{round_}", body=b"%d" % (number // 2))
                    )
                    for number in range(20)
                )
            )
            assert len({payment.checkout_id for payment in placed}) == 1
            assert any(payment.created for payment in placed)
            assert all(payment.wakes for payment in placed)
    assert await core.all(
        "SELECT count(*) AS checkouts, count(DISTINCT order_ref) AS orders FROM checkouts"
    ) == [(10, 10)]
    assert await core.all("SELECT sum(times), count(*) FROM callbacks") == [(200, 100)]
    assert (await audit.verify(core.db, core.encryptor)).problems == []


async def test_different_orders_that_name_the_same_missing_id_are_stored_in_sequence(core):
    named = uuid7()
    async with takers(core) as processes:
        placed = await asyncio.gather(
            *(
                processes[number % 2][1].store(
                    unexpected_callback(f"OLD-{number}", named=named, body=b"%d" % number)
                )
                for number in range(10)
            ),
            return_exceptions=True,
        )
    assert not [payment for payment in placed if isinstance(payment, BaseException)]
    assert named in {payment.checkout_id for payment in placed}
    assert (await audit.verify(core.db, core.encryptor)).problems == []


async def test_processes_that_create_many_from_payments_in_every_order_never_lock_each_other_out(core):
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    (before,) = await core.all(deadlocks)
    orders = [f"OLD-{number}" for number in range(60)]
    async with takers(core, 3) as processes:
        await asyncio.gather(
            *(
                callbacks.store(unexpected_callback(order_ref, body=order_ref.encode()))
                for number, (_, callbacks) in enumerate(processes)
                for order_ref in (orders if number % 2 else reversed(orders))
            )
        )
    await asyncio.sleep(0.1)  # a backend reports its counts when it ends
    assert await core.all(deadlocks) == [before]
    assert await core.all("SELECT count(*) FROM checkouts") == [60]
    assert await core.all("SELECT sum(times) FROM callbacks") == [180]


async def test_an_order_whose_checkout_another_process_creates_before_us_is_met(core, monkeypatch):
    matches_of, quicker = creation._matches_of, []
    async with takers(core) as ((_, ours), (_, theirs)):

        async def late(*arguments):
            monkeypatch.setattr(creation, "_matches_of", matches_of)
            met = await matches_of(*arguments)
            quicker.append(await theirs.store(unexpected_callback(body=b"theirs")))
            return met

        monkeypatch.setattr(creation, "_matches_of", late)
        placed = await ours.store(unexpected_callback(body=b"ours"))
    assert (quicker[0].created, placed.created) == (True, False)
    assert placed.checkout_id == quicker[0].checkout_id
    assert await core.all("SELECT count(*) FROM checkouts") == [1]
    assert await core.all("SELECT count(*) FROM callbacks") == [2]


async def test_a_creation_whose_answer_was_lost_is_one_checkout(core):
    async with takers(core, 1, database=Breaking) as ((process, callbacks),):
        process.db.lost_answers = 1
        placed = await callbacks.store(unexpected_callback())
        process.db.cut_before_commit = 1
        assert (await callbacks.store(unexpected_callback(body=b"2"))).checkout_id == placed.checkout_id
        process.db.lost_answers = 1
        unmatched = await callbacks.store(unexpected_callback("OLD-2", amount=None, body=b"3"))
        assert (unmatched.checkout_id, unmatched.kept) == (None, True)
    assert await core.all("SELECT count(*) FROM checkouts") == [1]
    assert await core.all("SELECT count(*) FROM callbacks") == [3]


async def test_a_poisoned_unmatched_payment_fails_alone(core):
    async with takers(core, 1) as ((_, callbacks),):
        results = await asyncio.gather(
            *(callbacks.store(unexpected_callback(order_ref, body=b"x")) for order_ref in ("A", "B\0", "C")),
            return_exceptions=True,
        )
    assert [isinstance(result, Unwritten) for result in results] == [False, True, False]


async def test_an_unmatched_payment_becomes_the_checkout_of_its_order_number(core):
    checkout = await core.checkout(State.AWAITING_PAYMENT, order_ref="A-77")
    async with takers(core, 1) as ((_, callbacks),):
        for changes in (
            {"order_ref": "A-77"},
            {"order_ref": None, "named": checkout},
            {"order_ref": "other", "named": checkout},
        ):
            placed = await callbacks.store(unexpected_callback(**changes, body=repr(changes).encode()))
            assert (placed.checkout_id, placed.created) == (checkout, False)
        assert (await callbacks.store(unexpected_callback(None, named=uuid4()))).checkout_id is None
    (held,) = await core.claim(checkout)
    assert len(held.callbacks) == 3


async def test_a_checkout_created_from_a_payment_is_claimed_moved_and_verified_like_any_other(core):
    async with takers(core, 1) as ((_, callbacks),):
        placed = await callbacks.store(unexpected_callback())
    (held,) = await core.claim(placed.checkout_id)
    assert (held.state, held.amount, held.currency, held.order_ref) == (State.FAILED, 13900, "DKK", "OLD-1")
    assert [callback.network for callback in held.callbacks] == ["inside"]
    held = await core.advance(held, Trigger.PAYMENT_FOUND)
    assert held.state is State.COMPLETED
    assert (await audit.verify(core.db, core.encryptor)).problems == []


async def test_only_an_unmatched_payment_creates_a_checkout_as_failed(core):
    async with takers(core, 1) as ((_, callbacks),):
        await callbacks.store(unexpected_callback())
    (row,) = await core.all("SELECT checkout_id, at, entry FROM audit_entries")
    checkout, at, _ = row
    made = audit.make(
        core.encryptor,
        checkout=checkout,
        sequence=1,
        before=audit.START,
        at=at,
        action=audit.Action.CHECKOUT_RECEIVED,
        actor="x",
        correlation_id="c",
        state=None,
        to=State.FAILED,
        evidence={"unmatched_payment": "true"},
    )
    await core.tamper(
        "UPDATE audit_entries SET entry = :entry, mac = :mac",
        "UPDATE checkouts SET audit_head = :mac",
        entry=made.text,
        mac=made.mac,
    )
    (problem,) = (await audit.verify(core.db, core.encryptor)).problems
    assert "begins in failed" in problem


async def test_the_same_unproven_callback_many_times_at_once_is_kept_once_and_counted(core):
    async with takers(core, 1) as ((_, writer),):
        placed = await asyncio.gather(*(writer.store(unexpected_callback(grade="wrong")) for _ in range(20)))
    assert {(payment.checkout_id, payment.created, payment.wakes) for payment in placed} == {
        (None, False, False)
    }
    assert await core.all("SELECT count(*), sum(times) FROM callbacks WHERE checkout_id IS NULL") == [(1, 20)]
    assert await core.all("SELECT count(*) FROM checkouts") == [0]


# ── The order comes after its payment ─────────────────────────────────────────────────────────────────────


async def paid_before(core, taker, order_ref="OLD-1"):
    """Return the checkout of a payment for an unknown order that a lookup has shown, as a worker
    leaves it.
    """
    placed = await taker.store(unexpected_callback(order_ref, transaction_id=f"T-{order_ref}"))
    (held,) = await core.claim(placed.checkout_id)
    callbacks = tuple(callback.id for callback in held.callbacks)
    seen = payment(f"T-{order_ref}", order_ref=order_ref, binding="order_ref")
    await core.advance(
        held,
        Trigger.PAYMENT_FOUND,
        payments=(seen,),
        money=(13900, 0, 0),
        late=True,
        read=callbacks,
        due_in=60.0,
    )
    return placed.checkout_id


async def test_intents_for_one_payment_from_two_processes_are_one_order_and_its_key_is_noted(core):
    async with takers(core) as processes:
        paid = await paid_before(core, processes[0][1])
        asked = intake(order_ref="OLD-1", amount=13900, currency="DKK", idempotency_key="K-1")
        accepted = await asyncio.gather(
            *(processes[number % 2][0].intents.accept(replace(asked, id=uuid7())) for number in range(20))
        )
        assert {(order.id, order.fresh, order.state) for order in accepted} == {(paid, False, "completed")}
        with pytest.raises(KeyReused):
            await core.intents.accept(replace(asked, id=uuid7(), order_ref="OLD-2", fingerprint=b"g" * 32))
    assert await core.all("SELECT late, version, attention FROM checkouts") == [(False, 3, None)]
    assert await core.all("SELECT count(*) FROM audit_entries WHERE action = 'intent:matched'") == [1]


async def test_of_many_contents_that_meet_one_payment_at_once_one_is_its_order(core):
    wanted = partial(intake, amount=13900, currency="DKK")
    async with takers(core, 1) as ((_, taker),):
        for round_ in range(30):
            paid = await paid_before(core, taker, f"OLD-{round_}")
            asked = [wanted(fingerprint=b"%02d" % number * 16) for number in range(8)]
            found = await asyncio.gather(
                *(checkouts.match(core.db, core.encryptor, paid, content) for content in asked)
            )
            (first,) = [
                content
                for content, fate in zip(asked, found, strict=True)
                if isinstance(fate, checkouts.Matched)
            ]
            (stored,) = await core.all("SELECT fingerprint FROM intents WHERE checkout_id = :id", id=paid)
            assert bytes(stored) == first.fingerprint
    assert await core.all("SELECT DISTINCT version FROM checkouts") == [3]


@pytest.mark.parametrize("same", [True, False], ids=["same content", "other content"])
@pytest.mark.parametrize("first", ["the payment's checkout", "a checkout of its own"])
async def test_an_intent_that_another_process_was_quicker_than_meets_what_became_of_the_order(
    core, monkeypatch, *, first, same
):
    """Between our read of the payment's checkout and its match, another process matches it, or creates the
    order beside it.
    """
    async with takers(core, 1) as ((process, taker),):
        paid = await paid_before(core, taker)
        mine = intake(order_ref="OLD-1", amount=13900, currency="DKK")
        theirs = replace(mine, id=uuid7(), fingerprint=mine.fingerprint if same else b"g" * 32)
        meet, created = intents._meet, []

        async def late(*arguments):
            met = await meet(*arguments)
            monkeypatch.setattr(intents, "_meet", meet)
            if first == "the payment's checkout":
                created.append((await process.intents.accept(theirs)).id)
            else:
                created.append((await process.intents.accept(replace(theirs, order_ref="T-new"))).id)
                await core.do("UPDATE checkouts SET order_ref = 'OLD-1' WHERE id = :id", id=created[0])
            return met

        monkeypatch.setattr(intents, "_meet", late)
        accepting = core.intents.accept(mine)
        if same:
            accepted = await accepting
            assert (accepted.id, accepted.fresh) == (created[0], False)
        else:
            with pytest.raises(OrderTaken) as refused:
                await accepting
            assert refused.value.checkout == created[0]
    matched = first == "the payment's checkout"
    assert (created[0] == paid) == matched
    assert await core.all("SELECT late, version FROM checkouts WHERE id = :id", id=paid) == [
        (False, 3) if matched else (True, 2)
    ]
    assert await core.all("SELECT count(*) FROM checkouts") == [1 if matched else 2]
    assert await core.all("SELECT count(*) FROM audit_entries WHERE action = 'intent:matched'") == [
        int(matched)
    ]
    assert (await audit.verify(core.db, core.encryptor)).problems == []


async def test_of_two_intents_for_one_payment_in_one_batch_the_second_meets_the_order_of_the_first(core):
    async with takers(core, 1) as ((_, taker),):
        paid = await paid_before(core, taker)
    asked = intake(order_ref="OLD-1", amount=13900, currency="DKK")
    other = replace(asked, id=uuid7(), fingerprint=b"g" * 32)
    first, again, refused = await asyncio.gather(
        core.intents.accept(asked),
        core.intents.accept(replace(asked, id=uuid7())),
        core.intents.accept(other),
        return_exceptions=True,
    )
    assert (first.id, first.fresh) == (again.id, again.fresh) == (paid, False)
    assert isinstance(refused, OrderTaken)
    assert await core.all("SELECT count(*) FROM audit_entries WHERE action = 'intent:matched'") == [1]


async def test_an_intent_waits_while_another_process_has_the_row_of_the_payments_checkout(core, monkeypatch):
    async with takers(core, 1) as ((_, taker),):
        paid = await paid_before(core, taker)
    match, met, found = checkouts.match, asyncio.Event(), []

    async def told(*arguments):
        found.append(await match(*arguments))
        met.set()
        return found[-1]

    monkeypatch.setattr(checkouts, "match", told)
    async with row_held(core.url, paid):
        accepting = asyncio.create_task(
            core.intents.accept(intake(order_ref="OLD-1", amount=13900, currency="DKK"))
        )
        await asyncio.wait_for(met.wait(), 20)
        assert found[0] == checkouts.Undecided(math.inf)
        assert not accepting.done()
        assert await core.all("SELECT late, version FROM checkouts") == [(True, 2)]
    accepted = await accepting
    assert (accepted.id, accepted.fresh) == (paid, False)
    assert await core.all("SELECT late, version FROM checkouts") == [(False, 3)]
    assert await core.all("SELECT count(*) FROM audit_entries WHERE action = 'intent:matched'") == [1]


async def test_an_order_whose_checkout_lost_its_data_key_is_kept_under_a_new_key(core):
    """What was erased with the key stays erased; what comes now can be read."""
    async with takers(core, 1) as ((_, taker),):
        paid = await paid_before(core, taker)
    await core.do("UPDATE intents SET data_key = NULL")
    asked = intake(order_ref="OLD-1", amount=13900, currency="DKK")
    assert (await core.intents.accept(asked)).id == paid
    (stored,) = await core.all("SELECT data_key, body FROM intents")
    wrapped, body = map(bytes, stored)
    key = core.encryptor.data_key(paid, wrapped)
    assert key.decrypt(body, purpose="intent") == asked.document
    (entry,) = await core.all("SELECT entry FROM audit_entries WHERE action = 'intent:matched'")
    assert json.loads(entry)["evidence"]["intent"] == key.mac(asked.fingerprint).hex()
    assert (await audit.verify(core.db, core.encryptor)).problems == []

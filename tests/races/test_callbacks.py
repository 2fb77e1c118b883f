"""Callbacks and commands: stored before they are answered, counted once, waking the checkout until a worker
has acted on them.
"""

from __future__ import annotations

import asyncio
import random
from uuid import uuid4

import psycopg
import pytest

from orchestrator.crypto import EncryptionError
from orchestrator.domain.command_result import ResultCode, result
from orchestrator.domain.ids import uuid7
from orchestrator.domain.states import State
from orchestrator.store import inbox
from orchestrator.store.batch import Unwritten
from orchestrator.store.database import DatabaseAway
from orchestrator.store.free_text import Reasons
from orchestrator.store.inbox import decrypt_body, encrypt_body
from orchestrator.store.tables import metadata
from tests.support.factories import Breaking, arrival, row_held
from tests.support.factories import core as another
from tests.support.pooler import direct

pytestmark = pytest.mark.anyio

MARKER = "Anna-Berg-marker-7461"


async def read_and_release(core, checkout, due_in=1000.0):
    """Act on everything in the inbox of a checkout, as its holder does."""
    (held,) = await core.claim(checkout)
    return await core.release(held, due_in, read=tuple(callback.id for callback in held.callbacks))


async def test_the_same_callback_fifty_times_at_once_is_one_row_that_counts_to_fifty(core):
    checkout = await core.checkout(State.AWAITING_PAYMENT)
    async with another(core.url, core.encryptor) as other:
        stored = await asyncio.gather(
            *((core, other)[number % 2].callbacks.store(arrival(checkout)) for number in range(50))
        )
    assert all(callback.wakes for callback in stored)
    assert await core.all("SELECT times, repeated_at IS NOT NULL, handled_at FROM callbacks") == [
        (50, True, None)
    ]
    (held,) = await core.claim(checkout)
    assert len(held.callbacks) == 1
    assert held.wake >= 1


async def test_callbacks_that_differ_in_kind_or_body_are_kept_apart_and_in_order(core):
    checkout = await core.checkout(State.AWAITING_PAYMENT)
    for kind, body in (("notification", b"1"), ("success", b"1"), ("notification", b"2"), ("redirect", b"1")):
        await core.callbacks.store(arrival(checkout, kind=kind, body=body))
    (held,) = await core.claim(checkout)
    key = core.encryptor.data_key(held.id, held.data_key)
    assert [callback.kind for callback in held.callbacks] == [
        "notification",
        "success",
        "notification",
        "redirect",
    ]
    assert [key.decrypt(callback.body[1:], purpose="callback") for callback in held.callbacks] == [
        b"1",
        b"1",
        b"2",
        b"1",
    ]


async def test_a_repeat_of_an_unhandled_callback_wakes_and_of_a_handled_one_does_not(core):
    checkout = await core.checkout(State.AWAITING_PAYMENT)
    assert (await core.callbacks.store(arrival(checkout))).wakes
    before = await core.row(checkout)
    assert (await core.callbacks.store(arrival(checkout))).wakes
    assert (await core.row(checkout)).wake == before.wake + 1
    await read_and_release(core, checkout)
    before = await core.row(checkout)
    assert not (await core.callbacks.store(arrival(checkout))).wakes
    assert (await core.row(checkout)) == before
    assert await core.all("SELECT times FROM callbacks") == [3]


@pytest.mark.parametrize("kind", ["success", "failure", "notification", "redirect"])
async def test_an_empty_callback_always_wakes(core, kind):
    checkout = await core.checkout(State.AWAITING_PAYMENT)
    for number in (1, 2, 3):
        assert (await core.callbacks.store(arrival(checkout, kind=kind, body=b""))).wakes
        assert (await core.row(checkout)).wake == number
        await read_and_release(core, checkout)
    assert await core.all("SELECT times, handled_at IS NOT NULL FROM callbacks") == [(3, True)]


async def test_a_callback_that_beats_the_offer_is_kept_and_found_by_the_holder(core):
    held = await core.held(State.SESSION_CREATED)
    assert (await core.callbacks.store(arrival(held.id))).wakes
    assert (await core.release(held, 1000.0)).woken
    (held,) = await core.claim(held.id)
    assert len(held.callbacks) == 1


async def test_a_callback_wakes_a_settled_checkout(core):
    checkout = await core.checkout(State.COMPLETED, due_in=None)
    assert (await core.callbacks.store(arrival(checkout))).wakes
    assert [held.id for held in await core.claim(checkout)] == [checkout]


async def test_a_callback_for_a_checkout_that_does_not_exist_is_stored_and_harmless(core):
    known = await core.checkout(State.AWAITING_PAYMENT)
    foreign = uuid4()
    stored = await asyncio.gather(
        *map(core.callbacks.store, (arrival(foreign), arrival(known), arrival(foreign)))
    )
    assert all(callback.wakes for callback in stored)
    ((body, times),) = await core.all("SELECT body, times FROM callbacks WHERE checkout_id = :id", id=foreign)
    assert times == 2
    assert decrypt_body(core.encryptor, foreign, None, body) == b"status=succeeded"
    assert await core.claim(foreign) == []


async def test_the_callback_of_an_erased_customer_is_stored_and_what_came_before_stays_shut(core):
    checkout = await core.checkout(State.COMPLETED)
    (wrapped,) = await core.all("SELECT data_key FROM intents")
    await core.callbacks.store(arrival(checkout, body=b"before"))
    await core.do("UPDATE intents SET data_key = NULL, erased_at = clock()")
    assert (await core.callbacks.store(arrival(checkout, body=b"after"))).wakes
    before, after = await core.all("SELECT body FROM callbacks ORDER BY id")
    assert decrypt_body(core.encryptor, checkout, None, after) == b"", "nothing of it is kept"
    with pytest.raises(EncryptionError, match="was erased"):
        decrypt_body(core.encryptor, checkout, None, before)
    assert decrypt_body(core.encryptor, checkout, wrapped, before) == b"before"
    with pytest.raises(EncryptionError, match="was erased"):
        decrypt_body(core.encryptor, checkout, None, b"")


def test_a_sealed_callback_of_one_checkout_does_not_open_for_another(encryptor):
    checkout, other = uuid7(), uuid7()
    sealed = encrypt_body(encryptor, checkout, None, b"x")
    with pytest.raises(EncryptionError):
        decrypt_body(encryptor, other, None, sealed)


async def test_a_held_row_delays_only_its_own_callbacks(core):
    ids = [await core.checkout(State.AWAITING_PAYMENT) for _ in range(6)]
    async with row_held(core.url, ids[3]):
        taking = {each: asyncio.create_task(core.callbacks.store(arrival(each))) for each in ids}
        late = taking.pop(ids[3])
        async with asyncio.timeout(5):
            await asyncio.gather(*taking.values())
        assert not late.done()
    assert (await late).wakes
    assert await core.all("SELECT sum(times) FROM callbacks") == [6]


async def test_a_callback_stored_by_a_connection_that_was_lost_wakes_and_is_one_row(core):
    checkout = await core.checkout(State.AWAITING_PAYMENT)
    async with another(core.url, core.encryptor, database=Breaking) as breaking:
        breaking.db.lost_answers = 1
        assert (await breaking.callbacks.store(arrival(checkout))).wakes
        breaking.db.cut_before_commit = 1
        assert (await breaking.callbacks.store(arrival(checkout, body=b"2"))).wakes
    assert await core.all("SELECT count(*) FROM callbacks") == [2]
    (held,) = await core.claim(checkout)
    assert len(held.callbacks) == 2


async def test_a_callback_that_cannot_be_stored_is_never_called_stored(core):
    checkout = await core.checkout(State.AWAITING_PAYMENT)
    async with another(core.url, core.encryptor, database=Breaking, timeout=0.2) as breaking:
        breaking.db.cut_before_commit = 1_000
        with pytest.raises(DatabaseAway):
            await breaking.callbacks.store(arrival(checkout))
    assert await core.all("SELECT count(*) FROM callbacks") == [0]
    assert (await core.row(checkout)).wake == 0


async def test_a_poisoned_callback_fails_alone(core):
    ids = [await core.checkout(State.AWAITING_PAYMENT) for _ in range(3)]
    results = await asyncio.gather(
        *(core.callbacks.store(arrival(each, grade="\0" if each == ids[1] else "signed")) for each in ids),
        return_exceptions=True,
    )
    assert [isinstance(result, Unwritten) for result in results] == [False, True, False]


async def test_repeats_against_movers_that_mark_as_read_never_lock_each_other_out(core):
    """A mover locks the checkout and then its callbacks; so does intake.

    Deadlocks are counted by Postgres itself.
    """
    ids = [await core.checkout(State.AWAITING_PAYMENT, due_in=0.0) for _ in range(6)]
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    (before,) = await core.all(deadlocks)
    running = True

    async def gateway(process):
        while running:
            some = random.sample(ids, 4)
            await asyncio.gather(
                *(
                    process.callbacks.store(arrival(each, body=str(random.randrange(3)).encode()))
                    for each in some
                )
            )

    async def mover(process):
        while running:
            held = await process.claim(*ids)
            await asyncio.gather(
                *(
                    process.release(claim, 0.0, read=tuple(each.id for each in claim.callbacks))
                    for claim in held
                )
            )

    async with another(core.url, core.encryptor) as first, another(core.url, core.encryptor) as two:
        tasks = [
            asyncio.create_task(each)
            for each in (gateway(first), gateway(two), gateway(two), mover(first), mover(two))
        ]
        await asyncio.sleep(2.0)
        running = False
        await asyncio.gather(*tasks)
    await asyncio.sleep(0.1)  # a backend reports its counts when it ends
    assert await core.all(deadlocks) == [before]
    (times,) = await core.all("SELECT sum(times) FROM callbacks")
    assert times > 40  # many at once, also on a machine that has other things to do
    # An unhandled callback still wakes the checkout.
    for each in ids:
        (unread,) = await core.all(
            "SELECT count(*) FROM callbacks WHERE checkout_id = :id AND handled_at IS NULL", id=each
        )
        row = await core.row(each)
        assert not unread or row.is_due or row.hinted


# ── Commands ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_command_is_stored_with_who_asked_and_wakes_its_checkout(core):
    checkout = await core.checkout(State.AWAITING_PAYMENT)
    requested = await inbox.request(
        core.db,
        core.encryptor,
        checkout,
        merchant_id=1,
        kind="cancel",
        actor="client:shop",
        reason="no stock",
        expected_version=5,
        grace=60.0,
    )
    (held,) = await core.claim(checkout)
    (command,) = held.commands
    reason = (await Reasons.of(core.db, core.encryptor, checkout)).shown(command.reason)
    assert (command.id, command.kind, command.actor, reason, command.expected_version) == (
        requested.id,
        "cancel",
        "client:shop",
        "no stock",
        5,
    )
    told = await core.release(held, 60.0, done=((command.id, result(ResultCode.ACCEPTED)),))
    assert told.commands == ()
    assert await core.all("SELECT result, handled_at IS NOT NULL FROM commands") == [("accepted", True)]
    await core.wake(checkout)
    (held,) = await core.claim(checkout)
    assert held.commands == ()


@pytest.mark.parametrize("reason", [None, "no stock"])
@pytest.mark.parametrize("merchant_id", [1, 2])
async def test_a_command_for_no_checkout_of_this_merchant_is_nothing(core, merchant_id, reason):
    checkout = await core.checkout() if merchant_id == 2 else uuid4()
    asked = {"merchant_id": merchant_id, "kind": "cancel", "actor": "x", "reason": reason, "grace": 60.0}
    assert await inbox.request(core.db, core.encryptor, checkout, **asked) is None
    assert await core.all("SELECT count(*) FROM commands") == [0]


# ── Personal data ─────────────────────────────────────────────────────────────────────────────────────────


async def test_personal_data_is_not_readable_in_any_table(core):
    document = f'{{"order": {{"customer": {{"firstName": "{MARKER}"}}}}}}'.encode()
    checkout = await core.accept(document=document)
    await core.callbacks.store(arrival(checkout, body=f"cardholder={MARKER}".encode()))
    await core.callbacks.store(arrival(uuid4(), body=f"cardholder={MARKER}".encode()))
    (held,) = await core.claim(checkout)
    key = core.encryptor.data_key(checkout, held.data_key)
    assert key.decrypt(held.intent, purpose="intent") == document
    assert MARKER.encode() in key.decrypt(held.callbacks[0].body[1:], purpose="callback")
    forms = [MARKER, MARKER.encode().hex()]
    async with await psycopg.AsyncConnection.connect(direct(core.url)) as superuser:
        for table in metadata.tables:
            rows = await (await superuser.execute(f"SELECT t::text FROM {table} t")).fetchall()
            assert not [row for (row,) in rows for form in forms if form in row], table

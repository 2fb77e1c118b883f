"""Commands: one row for one request, however often and from wherever it is sent, and a wake-up for each that
is new.
"""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from orchestrator.crypto import EncryptionError
from orchestrator.domain.states import State
from orchestrator.store import inbox
from orchestrator.store.inbox import KeyReused, Requested
from tests.support.factories import core as another
from tests.support.factories import row_held

pytestmark = pytest.mark.anyio


async def ask(core, checkout, **changes):
    values = {
        "merchant_id": 1,
        "kind": "capture",
        "actor": "client:shop",
        "arguments": {"amount": 100, "transactionId": None},
        "idempotency_key": "k-1",
        "grace": 60.0,
        **changes,
    }
    return await inbox.request(core.db, core.encryptor, checkout, **values)


async def test_one_key_from_two_processes_at_once_is_one_command_and_both_get_its_id(core):
    checkouts = [await core.checkout(State.AWAITING_PAYMENT) for _ in range(20)]
    async with another(core.url, core.encryptor) as other:
        for number, checkout in enumerate(checkouts):
            asked = await asyncio.gather(
                *(
                    ask(process, checkout, idempotency_key=f"k-{number}")
                    for process in (core, other, core, other)
                )
            )
            assert len({command.id for command in asked}) == 1
            assert sorted(command.fresh for command in asked) == [False, False, False, True]
    assert await core.all("SELECT count(*) FROM commands") == [20]
    assert await core.all("SELECT DISTINCT wake FROM checkouts") == [1]


async def test_two_contents_racing_for_one_key_are_one_command_and_one_refusal(core):
    checkout = await core.checkout(State.AWAITING_PAYMENT)
    async with another(core.url, core.encryptor) as other:
        for number in range(20):
            asked = await asyncio.gather(
                *(
                    ask(process, checkout, idempotency_key=f"k-{number}", arguments={"amount": amount})
                    for process, amount in ((core, 1), (other, 2))
                ),
                return_exceptions=True,
            )
            assert sorted(type(answer).__name__ for answer in asked) == ["KeyReused", "Requested"]
    assert await core.all("SELECT count(*) FROM commands") == [20]


async def test_a_repeat_stores_nothing_and_wakes_nothing(core):
    checkout = await core.checkout(State.AWAITING_PAYMENT)
    first = await ask(core, checkout)
    await core.do("UPDATE commands SET handled_at = clock(), result = 'accepted'")
    assert await ask(core, checkout) == Requested(first.id, fresh=False)
    assert (await core.row(checkout)).wake == 1
    assert await core.all("SELECT result FROM commands") == ["accepted"]


@pytest.mark.parametrize(
    "change",
    [{"kind": "refund"}, {"arguments": {"amount": 101}}, {"reason": "x"}, {"expected_version": 1}, {"fingerprint": b"f" * 32}],
)  # fmt: skip
async def test_a_key_with_other_content_is_refused_and_stores_nothing(core, change):
    checkout = await core.checkout(State.AWAITING_PAYMENT)
    await ask(core, checkout)
    with pytest.raises(KeyReused, match="'k-1' was used before with other content"):
        await ask(core, checkout, **change)
    with pytest.raises(KeyReused):
        await ask(core, await core.checkout())
    assert await core.all("SELECT count(*) FROM commands") == [1]


async def test_the_content_is_what_the_caller_says_it_is(core):
    checkout = await core.checkout(State.AWAITING_PAYMENT)
    first = await ask(core, checkout, fingerprint=b"f" * 32, reason="a")
    assert await ask(core, checkout, fingerprint=b"f" * 32, reason="b") == Requested(first.id, fresh=False)


async def test_without_a_key_each_request_is_a_command_of_its_own(core):
    checkout = await core.checkout(State.AWAITING_PAYMENT)
    asked = [await ask(core, checkout, idempotency_key=None) for _ in range(3)]
    assert len({command.id for command in asked if command.fresh}) == 3
    assert (await core.row(checkout)).wake == 3


async def test_a_repeat_and_the_holder_that_executes_its_command_do_not_deadlock(core):
    """The holder has locked the checkout's row and waits for the command's; a repeat that woke it would have
    them the other way round.
    """
    checkout = await core.checkout(State.AWAITING_PAYMENT)
    first = await ask(core, checkout)
    async with another(core.url, core.encryptor) as other, row_held(core.url, checkout) as holder:
        asked = await asyncio.wait_for(ask(other, checkout), 10)
        await holder.execute("UPDATE commands SET handled_at = clock() WHERE id = %s", [first.id])
    assert asked == Requested(first.id, fresh=False)


async def test_one_request_for_many_is_a_command_for_each_and_a_wake_up(core):
    checkouts = await core.checkouts(30)
    commands = await inbox.request_all(
        core.db,
        core.encryptor,
        [*checkouts, *checkouts, uuid4()],
        kind="reconcile",
        actor="operator:x",
        grace=60.0,
    )
    assert set(commands) == set(checkouts)
    rows = await core.all(
        "SELECT checkout_id, id, kind, actor, reason, merchant_id, arguments, idempotency_key FROM commands"
    )
    assert {(row[0], row[1]) for row in rows} == set(commands.items())
    assert {row[2:4] for row in rows} == {("reconcile", "operator:x")}
    assert all(row[4:8] == (None, 1, {}, None) for row in rows)
    assert await core.all("SELECT DISTINCT wake FROM checkouts") == [1]
    (held,) = await core.claim(checkouts[0])
    assert [command.kind for command in held.commands] == ["reconcile"]


async def test_a_command_for_no_checkout_does_nothing(core):
    assert await inbox.request_all(core.db, core.encryptor, [], kind="reconcile", actor="x", grace=60.0) == {}


async def test_commands_for_the_same_many_from_two_sides_meet_without_a_deadlock(core):
    checkouts = await core.checkouts(100)
    async with another(core.url, core.encryptor) as other:
        both = await asyncio.gather(
            inbox.request_all(core.db, core.encryptor, checkouts, kind="reconcile", actor="x", grace=60.0),
            inbox.request_all(
                other.db, other.encryptor, checkouts[::-1], kind="reconcile", actor="y", grace=60.0
            ),
        )
    assert all(len(commands) == 100 for commands in both)
    assert await core.all("SELECT DISTINCT wake FROM checkouts") == [2]
    assert await core.all("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == [0]


# ── How it stands ─────────────────────────────────────────────────────────────────────────────────────────


async def test_how_a_checkout_stands_is_read_for_its_merchant_or_for_an_operator(core):
    checkout = await core.checkout(State.AWAITING_PAYMENT)
    view = await inbox.checkout_view(core.db, checkout, merchant_id=1)
    assert view == await inbox.checkout_view(core.db, checkout)
    assert (view.state, view.payments_seen, view.under_way, view.met, view.rival) == (
        State.AWAITING_PAYMENT,
        (),
        (),
        None,
        None,
    )
    assert await inbox.checkout_view(core.db, checkout, merchant_id=2) is None
    assert await inbox.checkout_view(core.db, uuid4()) is None
    first = await ask(core, checkout)
    view = await inbox.checkout_view(core.db, checkout, key="k-1")
    assert view.met[0] == first.id
    assert view.met[1] == inbox.fingerprint_of(checkout, "capture", {"transactionId": None, "amount": 100})
    assert [(operation.kind, operation.transaction_id, operation.amount) for operation in view.under_way] == [
        ("capture", None, 100)
    ]


async def test_the_order_of_a_checkout_is_read_with_the_key_of_its_personal_data(core):
    checkout = await core.checkout()
    order = await inbox.stored_order(core.db, core.encryptor, checkout)
    assert order.document == b'{"order": "of a lamp"}'
    sealed = order.key.encrypt(b"a change", purpose="change")
    again = await inbox.stored_order(core.db, core.encryptor, checkout)
    assert again.key.decrypt(sealed, purpose="change") == b"a change"
    await core.do("UPDATE intents SET data_key = NULL")
    with pytest.raises(EncryptionError, match="was erased"):
        await inbox.stored_order(core.db, core.encryptor, checkout)

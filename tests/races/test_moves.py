"""Moves: a move that lands is written whole and once, and a move that does not land writes nothing."""

from __future__ import annotations

import asyncio
import time
from uuid import uuid4

import msgspec
import pytest
from msgspec.structs import replace
from sqlalchemy.exc import OperationalError

from orchestrator import audit
from orchestrator.audit import Action
from orchestrator.domain import attention, events, sentences
from orchestrator.domain.attention import Attention, AttentionCode, PaymentAmount
from orchestrator.domain.claimed_checkout import ClaimedCheckout
from orchestrator.domain.command_result import ResultCode, result
from orchestrator.domain.last_error import ErrorCode, error
from orchestrator.domain.states import State, Trigger, UnknownTransition
from orchestrator.store import inbox
from orchestrator.store.batch import Unwritten
from orchestrator.store.checkouts import LeaseLost
from orchestrator.store.checkouts.change import ChangedOrder
from orchestrator.store.checkouts.transition import UnauditedMove
from tests.support.factories import COMPLETED, Breaking, arrival, move, payment
from tests.support.factories import core as another

pytestmark = pytest.mark.anyio

BESIDE = ("audit_entries", "events", "payments", "sessions")


async def everything(core, checkout):
    """Return all that is stored of a checkout."""
    stored = [tuple(await core.row(checkout))[:-1]]
    for table in (*BESIDE, "callbacks", "commands"):
        stored += await core.all(f"SELECT * FROM {table} WHERE checkout_id = :id ORDER BY 1, 2", id=checkout)
    return stored


async def laden(core, state=State.AWAITING_PAYMENT):
    """Return a held checkout with a callback and a command in its inbox."""
    held = await core.held(state)
    await core.callbacks.store(arrival(held.id))
    await inbox.request(
        core.db, core.encryptor, held.id, merchant_id=1, kind="cancel", actor="client:shop", grace=60.0
    )
    await core.release(held)
    (held,) = await core.claim(held.id)
    assert held.callbacks
    assert held.commands
    return held


ERROR = error(ErrorCode.NOT_SENT, reason="no connection")
ATTENTION = Attention(
    code=AttentionCode.SURPLUS_PAYMENT, payments=(PaymentAmount(transaction_id="8", amount=1, currency="DKK"),), facts={"released": True}
)  # fmt: skip


def full(held, **changes):
    """Return a move that writes everything a move can write."""
    values = {
        "evidence": {"by": "lookup"},
        "token": b"another token",
        "token_lifetime": 60.0,
        "session_id": "session-2",
        "methods": [{"id": "wallet"}],
        "events": (COMPLETED,),
        "payments": (payment(f"t-{held.id}"),),
        "money": (13900, 13900, 100),
        "lookups": 3,
        "session_count": 2,
        "attempts": 1,
        "last_error": ERROR,
        "attention": ATTENTION,
        "deadline_in": 7.0,
        "late": True,
        "cancel_requested": True,
        "read": tuple(callback.id for callback in held.callbacks),
        "done": tuple(
            (command.id, result(ResultCode.ACCEPTED, operations=["1"])) for command in held.commands
        ),
        **changes,
    }
    return move(held, Trigger.PAYMENT_FOUND, **values)


async def test_a_move_that_lands_writes_all_of_itself(core):
    held = await laden(core)
    after = await core.lifecycle.advance(full(held, due_in=50.0))
    row = await core.row(held.id)
    assert (row.state, row.version, row.lease, row.leased_until) == (
        "completed",
        held.version + 1,
        None,
        None,
    )
    assert (row.reserved, row.captured, row.refunded, row.late) == (13900, 13900, 100, True)
    assert (row.lookups, row.session_count, row.attempts, row.last_error, row.attention) == (
        3,
        2,
        1,
        "not_sent",
        "surplus_payment",
    )
    assert row.last_error_details == {"reason": "no connection"}
    assert attention.stored(row.attention, row.attention_details) == ATTENTION
    assert row.attention_since == row.updated_at
    assert row.cancel_requested_at
    assert row.ended_at
    assert (row.deadline - row.updated_at).total_seconds() == 7.0
    assert 49 < (row.due_at - row.updated_at).total_seconds() <= 50
    assert bytes(row.audit_head) == after.audit_head
    assert await core.all("SELECT handled_at IS NOT NULL FROM callbacks") == [True]
    assert await core.all("SELECT handled_at IS NOT NULL, result, result_details FROM commands") == [
        (True, "accepted", {"operations": ["1"]})
    ]
    assert await core.all("SELECT token, session_id, methods FROM sessions") == [
        (b"another token", "session-2", [{"id": "wallet"}])
    ]
    snapshot = {
        "orderId": held.order_ref,
        "state": "completed",
        "currency": "DKK",
        "amount": 13900,
        "reserved": 13900,
        "captured": 13900,
        "refunded": 100,
        "chargedBack": 0,
    }
    assert await core.all(
        "SELECT kind, payload FROM events WHERE sequence > :n ORDER BY sequence", n=held.event_sequence
    ) == [
        ("checkout.completed", {**snapshot, "facts": dict(COMPLETED.facts)}),
        (
            "checkout.attention",
            {
                **snapshot,
                "facts": {"attention": "surplus_payment"},
                "details": {"reason": sentences.of(ATTENTION)},
            },
        ),
    ]
    assert await core.all("SELECT transaction_id, role FROM payments") == [(f"t-{held.id}", "accepted")]


async def test_since_when_it_needs_a_decision_is_kept_while_the_code_stands(core):
    held = await core.held()
    held = await core.advance(held, attention=ATTENTION)
    first = (await core.row(held.id)).attention_since
    other = msgspec.structs.replace(ATTENTION, payments=())
    held = await core.advance(held, attention=other)
    row = await core.row(held.id)
    assert (row.attention_since, attention.stored(row.attention, row.attention_details)) == (first, other)
    held = await core.advance(held, attention=Attention(code=AttentionCode.LATE_PAYMENT))
    assert (await core.row(held.id)).attention_since > first
    held = await core.advance(held, attention=None)
    row = await core.row(held.id)
    assert (row.attention, row.attention_details, row.attention_since) == (None, None, None)
    await core.release(held)


async def test_what_the_mover_returns_is_what_the_next_claim_reads(core):
    held = await laden(core)
    told = await core.lifecycle.advance(full(held))
    told = await core.release(told, 0.0, attempts=1)
    (read,) = await core.claim(held.id)
    same = (
        "state",
        "version",
        "reserved",
        "captured",
        "refunded",
        "late",
        "lookups",
        "session_count",
        "last_error",
        "attention",
        "audit_sequence",
        "audit_head",
        "event_sequence",
        "token",
        "session_id",
        "methods",
        "callbacks",
        "commands",
        "attempts",
        "deadline",
    )
    assert {name: getattr(told, name) for name in same} == {name: getattr(read, name) for name in same}
    for name in ("offered_at", "cancel_requested_at", "ended_at", "token_expires_at"):
        assert abs((getattr(told, name) - getattr(read, name)).total_seconds()) < 1, name
    assert read.accepted == {f"t-{held.id}"}


async def test_a_mover_that_cannot_write_says_since_when_and_why_and_then_that_it_writes_again(core):
    held = await core.held()
    fares = core.lifecycle.writes
    assert (fares.name, fares.stalled, fares.error) == ("moves", 0.0, "")
    await core.do(
        "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'no space left' USING ERRCODE = '53100'; END $$"
    )
    await core.do(
        "CREATE TRIGGER full_disk BEFORE UPDATE ON checkouts FOR EACH ROW EXECUTE FUNCTION full_disk()"
    )
    try:
        begun = time.monotonic()
        moving = asyncio.create_task(core.advance(held, Trigger.AUTHENTICATED))
        async with asyncio.timeout(10):
            while not core.lifecycle.writes.error:  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0.01)
        fares = core.lifecycle.writes
        assert fares.error == "53100"
        assert 0 < fares.stalled <= time.monotonic() - begun
        assert not moving.done()
    finally:
        await core.do("DROP TRIGGER full_disk ON checkouts")
        await core.do("DROP FUNCTION full_disk")
    assert (await moving).state is State.AUTHENTICATED
    fares = core.lifecycle.writes
    assert (fares.stalled, fares.error) == (0.0, "")
    assert fares.committed is not None


async def test_values_that_a_move_does_not_name_stay(core):
    held = await core.lifecycle.advance(full(await laden(core)))
    before = await core.row(held.id)
    after = await core.advance(held, lookups=4)
    row = await core.row(held.id)
    stays = (
        "state",
        "session_count",
        "last_error",
        "attention",
        "deadline",
        "late",
        "reserved",
        "captured",
        "refunded",
        "cancel_requested_at",
        "ended_at",
        "offered_at",
        "lease",
        "due_at",
        "event_sequence",
    )
    assert {name: getattr(row, name) for name in stays} == {name: getattr(before, name) for name in stays}
    assert (row.lookups, row.attempts, after.attempts) == (4, 0, 0)
    assert await core.all("SELECT token, session_id FROM sessions") == [(b"another token", "session-2")]


async def test_a_lost_session_clears_its_id_and_methods_and_keeps_the_token(core):
    held = await core.held(State.AWAITING_PAYMENT)
    held = await core.advance(held, Trigger.SESSION_LOST, session_id=None, methods=None)
    assert (held.session_id, held.methods, held.token) == (None, None, b"a sealed token")
    assert await core.all("SELECT token, session_id, methods IS NULL FROM sessions") == [
        (b"a sealed token", None, True)
    ]


REFUSALS = {
    "a stale version": (lambda held: replace(held, version=held.version - 1), {}, LeaseLost),
    "a version from the future": (lambda held: replace(held, version=held.version + 1), {}, LeaseLost),
    "a foreign lease": (lambda held: replace(held, lease=uuid4()), {}, LeaseLost),
    "an event with a NUL character": (
        lambda held: held,
        {"events": (events.failed(error(ErrorCode.OTHER, text="of a test: \0")),)},
        Unwritten,
    ),
    "a payment of an impossible role": (
        lambda held: held,
        {"payments": (payment("t", role="thief"),)},
        Unwritten,
    ),
    "negative money": (lambda held: held, {"money": (-1, 0, 0)}, Unwritten),
    "an entry that exists already": (lambda held: replace(held, audit_sequence=1), {}, Unwritten),
    "an event that exists already": (lambda held: replace(held, event_sequence=0), {}, Unwritten),
}


@pytest.mark.parametrize(("seen", "changes", "error"), tuple(REFUSALS.values()), ids=tuple(REFUSALS))
async def test_of_a_refused_move_nothing_is_in_the_database(core, seen, changes, error):
    held = await laden(core)
    before = await everything(core, held.id)
    with pytest.raises(error):
        await core.lifecycle.advance(full(seen(held), **changes))
    assert await everything(core, held.id) == before
    assert (await audit.verify(core.db, core.encryptor)).problems == []


async def test_a_poisoned_move_among_a_hundred_fails_alone(core):
    held = await core.claim(*await core.checkouts(100))
    results = await asyncio.gather(
        *(
            core.advance(
                checkout,
                Trigger.AUTHENTICATED,
                last_error=error(ErrorCode.REFUSED, reason="\0") if number == 50 else None,
            )
            for number, checkout in enumerate(held)
        ),
        return_exceptions=True,
    )
    assert [number for number, result in enumerate(results) if isinstance(result, Unwritten)] == [50]
    assert await core.all("SELECT state, count(*) FROM checkouts GROUP BY 1 ORDER BY 1") == [
        ("authenticated", 99),
        ("received", 1),
    ]


async def test_a_path_that_the_table_does_not_have_is_refused_before_anything_is_written(core):
    held = await core.held()
    with pytest.raises(UnknownTransition):
        await core.advance(held, Trigger.OFFERED)
    with pytest.raises(UnauditedMove, match="by authenticated has no audit action"):
        await core.advance(held, Trigger.AUTHENTICATED, action=None)
    assert (await core.row(held.id)).version == held.version


async def test_the_same_move_twice_lands_once(core):
    held = await core.held()
    results = await asyncio.gather(
        *(core.advance(held, Trigger.AUTHENTICATED) for _ in range(20)), return_exceptions=True
    )
    # Word for word the same move is the same entry: the first landed, and the others are at most answered so.
    assert sum(not isinstance(result, LeaseLost) for result in results) >= 1
    assert await core.all("SELECT version, audit_sequence FROM checkouts") == [(held.version + 1, 2)]
    assert await core.all("SELECT count(*) FROM audit_entries") == [2]


async def test_a_move_committed_by_a_connection_that_was_lost_is_reported_as_landed(core):
    async with another(core.url, core.encryptor, database=Breaking) as breaking:
        held = await breaking.held()
        breaking.db.lost_answers = 2
        held = await breaking.advance(
            held, Trigger.AUTHENTICATED, events=(events.ready(methods=1),), deadline_in=99.0
        )
        assert held.state is State.AUTHENTICATED
        # What could not be read is supposed for the worst: it may have been woken.
        assert held.woken
        assert await core.all("SELECT count(*) FROM audit_entries") == [2]
        assert await core.all("SELECT sequence FROM events") == [1]
        assert (await breaking.advance(held, Trigger.SESSION_OPENED)).version == held.version + 1


async def test_a_move_that_was_not_committed_when_its_connection_broke_is_written_again(core):
    async with another(core.url, core.encryptor, database=Breaking) as breaking:
        held = await breaking.claim(*await breaking.checkouts(10))
        breaking.db.cut_before_commit = 2
        moved = await asyncio.gather(*(breaking.advance(each, Trigger.AUTHENTICATED) for each in held))
        assert {each.version for each in moved} == {2}
    assert await core.all("SELECT DISTINCT state, version FROM checkouts") == [("authenticated", 2)]


async def test_an_unaudited_release_with_a_lost_answer_is_called_lost_and_its_due_time_stands(core):
    """Nothing distinguishes such a write from another worker's, so it buys no side effect; the due time is
    what counts.
    """
    async with another(core.url, core.encryptor, database=Breaking) as breaking:
        held = await breaking.held()
        breaking.db.lost_answers = 1
        with pytest.raises(LeaseLost):
            await breaking.release(held, 0.0)
    row = await core.row(held.id)
    assert (row.lease, row.is_due) == (None, True)


async def test_a_claim_whose_answer_was_lost_comes_back_at_the_end_of_its_lease(core):
    async with another(core.url, core.encryptor, database=Breaking) as breaking:
        checkout = await breaking.accept()
        breaking.db.lost_answers = 1
        with pytest.raises(OperationalError):
            await breaking.claim(checkout, lease=30)
    assert await core.claim(checkout) == []
    await core.do("UPDATE clock_skew SET seconds = seconds + 31")
    assert [held.id for held in await core.claim(checkout)] == [checkout]


# ── Money ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_captured_and_refunded_never_shrink_even_when_a_move_says_less(core):
    held = await core.held(State.AWAITING_PAYMENT)
    held = await core.advance(
        held,
        Trigger.PAYMENT_FOUND,
        money=(13900, 13900, 500),
        payments=(payment("t", captured=13900, refunded=500),),
    )
    held = await core.advance(held, money=(100, 200, 0), payments=(payment("t", reserved=100, captured=200),))
    assert (held.reserved, held.captured, held.refunded) == (100, 13900, 500)
    row = await core.row(held.id)
    assert (row.reserved, row.captured, row.refunded) == (100, 13900, 500)
    assert await core.all("SELECT reserved, captured, refunded FROM payments") == [(100, 13900, 500)]


async def test_an_accepted_payment_is_never_demoted(core):
    held = await core.held(State.AWAITING_PAYMENT)
    held = await core.advance(
        held, Trigger.PAYMENT_FOUND, payments=(payment("t"), payment("u", role="surplus"))
    )
    held = await core.advance(
        held, payments=(payment("t", role="attempt", status="released"), payment("u", role="attempt"))
    )
    assert await core.all("SELECT transaction_id, role, status FROM payments ORDER BY 1") == [
        ("t", "accepted", "released"),
        ("u", "attempt", "preauth"),
    ]
    await core.release(held, 0.0)
    (again,) = await core.claim(held.id)
    assert again.accepted == {"t"}


async def test_the_same_transaction_seen_by_two_checkouts_at_once_breaks_no_batch(core):
    first, second = [await core.held(State.AWAITING_PAYMENT) for _ in range(2)]
    await asyncio.gather(
        core.advance(first, payments=(payment("t", role="attempt"),)),
        core.advance(second, Trigger.PAYMENT_FOUND, payments=(payment("t"),)),
    )
    # One row, and it belongs to the checkout that the money was accepted for.
    assert await core.all("SELECT checkout_id, role FROM payments") == [(second.id, "accepted")]


async def test_anothers_transaction_is_not_taken_over(core):
    first, second = [await core.held(State.AWAITING_PAYMENT) for _ in range(2)]
    await core.advance(first, Trigger.PAYMENT_FOUND, payments=(payment("t"),))
    await core.advance(second, payments=(payment("t", role="surplus", reserved=1),))
    assert await core.all("SELECT checkout_id, role, reserved FROM payments") == [
        (first.id, "accepted", 13900)
    ]


async def test_late_money_begins_a_watch_of_its_own(core):
    checkout = await core.checkout(State.EXPIRED, due_in=0.0)
    await core.do("UPDATE checkouts SET ended_at = ended_at - interval '40 days'")
    (held,) = await core.claim(checkout)
    told = await core.advance(held, Trigger.PAYMENT_FOUND, late=True)
    row = await core.row(checkout)
    assert row.late
    assert row.ended_at > held.claimed_at
    assert abs((row.ended_at - told.ended_at).total_seconds()) < 1


async def test_late_money_completes_its_checkout_beside_the_later_checkout_of_the_order_number(core):
    """An order number has one live checkout; a checkout that late money completed is beside it, and attention
    is raised of it.
    """
    late = await core.held(State.EXPIRED, order_ref="T-twice")
    later = await core.accept(order_ref="T-twice", fingerprint=b"g" * 32)
    landed = await core.advance(late, Trigger.PAYMENT_FOUND, late=True, payments=(payment("t"),))
    assert landed.state is State.COMPLETED
    assert await core.accept(order_ref="T-twice", fingerprint=b"g" * 32) == later


async def test_an_order_that_was_paid_late_takes_no_other_content(core):
    late = await core.held(State.EXPIRED, order_ref="T-paid")
    await core.advance(late, Trigger.PAYMENT_FOUND, late=True)
    with pytest.raises(inbox.OrderTaken):
        await core.accept(order_ref="T-paid", fingerprint=b"g" * 32)


async def test_a_reopened_checkout_is_no_longer_ended(core):
    held = await core.held(State.AWAITING_PAYMENT)
    held = await core.advance(held, cancel_requested=True)
    held = await core.advance(held, Trigger.CANCELLED)
    assert (held.ended_at, held.cancel_requested_at) != (None, None)
    held = await core.advance(
        held,
        Trigger.REOPENED,
        action=Action.CHECKOUT_REOPENED,
        session_id=None,
        methods=None,
        deadline_in=600.0,
    )
    assert (held.state, held.ended_at, held.cancel_requested_at) == (State.RECEIVED, None, None)
    row = await core.row(held.id)
    assert (row.state, row.ended_at, row.cancel_requested_at) == ("received", None, None)
    assert (await audit.verify(core.db, core.encryptor)).problems == []


async def test_a_holder_that_hung_is_in_no_batch_with_the_reopening_by_its_successor(core):
    """One row a checkout in a batch: with two, the values of the first would be written beside the entries of
    the other.
    """
    for first in ("successor", "hung"):
        hung = await core.advance(await core.held(State.AWAITING_PAYMENT, lease=0.1), Trigger.CANCELLED)
        await asyncio.sleep(0.2)
        (successor,) = await core.claim(hung.id)
        late = core.release(hung)
        reopening = core.advance(
            successor, Trigger.REOPENED, action=Action.CHECKOUT_REOPENED, deadline_in=60.0
        )
        both = (late, reopening) if first == "hung" else (reopening, late)
        fates = await asyncio.gather(*both, return_exceptions=True)
        assert (await audit.verify(core.db, core.encryptor)).problems == []
        row = await core.row(hung.id)
        assert (row.state, row.lease, row.version) == ("received", successor.lease, successor.version + 1)
        expected = [LeaseLost, ClaimedCheckout] if first == "hung" else [ClaimedCheckout, LeaseLost]
        assert [type(fate) for fate in fates] == expected


async def test_events_have_contiguous_sequences_whatever_move_they_came_with(core):
    held = await core.held(State.AWAITING_PAYMENT)
    for number in range(1, 5):
        told = tuple(events.ready(methods=n) for n in range(number % 3))
        if number == 3:
            with pytest.raises(LeaseLost):
                await core.advance(replace(held, version=1), events=(COMPLETED,))
        held = await core.advance(held, events=told)
    sequences = await core.all("SELECT sequence FROM events ORDER BY sequence")
    assert sequences == list(range(1, len(sequences) + 1))
    assert held.event_sequence == len(sequences) == 5
    assert (await core.row(held.id)).event_sequence == 5
    assert "checkout.completed" not in await core.all("SELECT kind FROM events")


# ── A changed order ───────────────────────────────────────────────────────────────────────────────────────

CHANGED = ChangedOrder(amount=9950, body=b"sealed anew", fingerprint=b"another fingerprint")


async def _order(core):
    return await core.all(
        "SELECT c.amount, i.body, i.fingerprint, s.session_id, s.outdated"
        " FROM checkouts c JOIN intents i ON i.checkout_id = c.id LEFT JOIN sessions s ON s.checkout_id = c.id"
    )


async def test_a_changed_order_is_written_with_its_move_and_marks_the_session(core):
    held = await core.held(State.AWAITING_PAYMENT)
    session = held.session_id
    after = await core.advance(held, Trigger.ORDER_CHANGED, order=CHANGED, outdated=True)
    assert await _order(core) == [(9950, b"sealed anew", b"another fingerprint", session, True)]
    assert (after.state, after.amount, after.intent, after.outdated) == (
        State.SESSION_CREATED,
        9950,
        b"sealed anew",
        True,
    )
    await core.release(after, due_in=0.0)
    (read,) = await core.claim(held.id)
    assert (read.amount, read.intent, read.outdated) == (9950, b"sealed anew", True)
    after = await core.advance(read, outdated=False)
    assert (after.outdated, after.amount) == (False, 9950)
    assert await _order(core) == [(9950, b"sealed anew", b"another fingerprint", session, False)]


async def test_an_order_without_a_session_is_changed_alone(core):
    held = await core.held()
    after = await core.advance(held, order=CHANGED)
    assert await _order(core) == [(9950, b"sealed anew", b"another fingerprint", None, None)]
    assert (after.state, after.amount, after.outdated) == (State.RECEIVED, 9950, False)


async def test_a_renewed_token_leaves_the_mark_and_another_session_takes_it_away(core):
    held = await core.held(State.AWAITING_PAYMENT)
    held = await core.advance(held, Trigger.ORDER_CHANGED, order=CHANGED, outdated=True)
    held = await core.advance(held, token=b"renewed", token_lifetime=60.0)
    assert held.outdated
    assert await core.all("SELECT token, outdated FROM sessions") == [(b"renewed", True)]
    held = await core.advance(held, Trigger.SESSION_LOST, session_id=None)
    assert not held.outdated
    assert await core.all("SELECT session_id, outdated FROM sessions") == [(None, False)]
    held = await core.advance(held, Trigger.SESSION_OPENED, session_id="session-2")
    assert not held.outdated
    assert await core.all("SELECT session_id, outdated FROM sessions") == [("session-2", False)]


async def test_a_changed_order_among_other_moves_changes_no_other(core):
    held = [await core.held(State.AWAITING_PAYMENT) for _ in range(3)]
    await asyncio.gather(
        core.advance(held[0], Trigger.ORDER_CHANGED, order=CHANGED, outdated=True),
        core.advance(held[1], token=b"renewed", token_lifetime=60.0),
        core.advance(held[2], Trigger.SESSION_LOST, session_id=None),
    )
    assert await core.all(
        "SELECT c.amount, s.outdated FROM checkouts c JOIN sessions s ON s.checkout_id = c.id ORDER BY c.id"
    ) == [(9950, True), (held[1].amount, False), (held[2].amount, False)]


async def test_a_changed_order_of_a_holder_that_lost_its_lease_changes_nothing(core):
    held = await core.held(State.AWAITING_PAYMENT)
    before = await _order(core)
    with pytest.raises(LeaseLost):
        await core.advance(replace(held, lease=uuid4()), Trigger.ORDER_CHANGED, order=CHANGED, outdated=True)
    assert await _order(core) == before

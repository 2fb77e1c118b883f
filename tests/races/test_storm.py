"""Everything at once: moves, wake-ups, intake and callbacks of two processes on the same checkouts, and an
auditor.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict

import pytest

from orchestrator import audit
from orchestrator.domain.states import CLOSED, TRANSITIONS, State, Trigger
from orchestrator.store import checkouts
from orchestrator.store.batch import Unwritten
from orchestrator.store.checkouts import LeaseLost
from orchestrator.store.inbox import KeyReused, OrderTaken
from tests.support.factories import COMPLETED, arrival, intake, payment
from tests.support.factories import core as another

pytestmark = pytest.mark.anyio

SECONDS = 4.0
"""Seconds that the storm lasts, and longer until each checkout has moved more than once in the mean."""
LONGEST = 60


class Storm:
    """What every task did, to be compared with what is in the database at the end."""

    def __init__(self):
        self.running = True
        self.landed = Counter()
        self.events = Counter()
        self.callbacks = Counter()
        self.captured = defaultdict(int)
        self.fresh = set()
        self.ids = []

    async def intake(self, core):
        while self.running:
            orders = [(random.randrange(60), random.randrange(2)) for _ in range(10)]
            asked = [
                intake(
                    order_ref=f"T-{order}",
                    fingerprint=bytes([order, content]) * 16,
                    idempotency_key=random.choice([None, f"k-{random.randrange(30)}"]),
                )
                for order, content in orders
            ]
            for result in await asyncio.gather(*map(core.intents.accept, asked), return_exceptions=True):
                if isinstance(result, BaseException):
                    assert isinstance(result, OrderTaken | KeyReused), result
                elif result.fresh:
                    self.fresh.add(result.id)
                    self.ids.append(result.id)
            await asyncio.sleep(0.05)

    async def gateway(self, core):
        while self.running:
            some = [random.choice(self.ids) for _ in range(10)]
            await asyncio.gather(
                *(core.callbacks.store(arrival(each, body=bytes([random.randrange(4)]))) for each in some)
            )
            self.callbacks.update(some)
            await asyncio.sleep(random.uniform(0, 0.02))

    async def waker(self, core):
        while self.running:
            await core.wake(*random.sample(self.ids, 5), grace=0.01)
            await asyncio.sleep(random.uniform(0, 0.02))

    async def worker(self, core):
        while self.running:
            hinted = [due.id for due in await checkouts.sweep(core.db, most=30, grace=0.05)]
            held = await core.claim(*hinted, *random.sample(self.ids, 5), lease=0.5)
            await asyncio.gather(*(self.process(core, claim) for claim in held))

    async def process(self, core, held):
        """Take some steps that the table has, hang now and then beyond the lease, and give the lease back."""
        try:
            for _ in range(random.randint(0, 3)):
                triggers = [trigger for state, trigger in TRANSITIONS if state is held.state]
                if not triggers:
                    break
                trigger = random.choice(triggers)
                events = tuple(COMPLETED for _ in range(random.randint(0, 2)))
                paid = random.randint(0, 13900)
                found = trigger is Trigger.PAYMENT_FOUND
                held = await core.advance(
                    held,
                    trigger,
                    events=events,
                    money=(13900, paid, 0),
                    token=b"t",
                    token_lifetime=1.0,
                    late=found and held.state in CLOSED,
                    payments=(
                        payment(f"t-{held.id}"),
                        payment(f"shared-{random.randrange(3)}", role="attempt"),
                    )
                    if found
                    else (),
                )
                self.landed[held.id] += 1
                self.events[held.id] += len(events)
                self.captured[held.id] = max(self.captured[held.id], paid)
            if random.random() < 0.02:
                await asyncio.sleep(0.6)
            await core.release(
                held, random.uniform(0, 0.05), read=tuple(callback.id for callback in held.callbacks)
            )
        except LeaseLost:
            pass
        except Unwritten:
            # The order number has a new checkout by now: a closed checkout does not reopen beside it.
            assert held.state in CLOSED

    async def auditor(self, core):
        rounds = 0
        while self.running or not rounds:
            assert (await audit.verify(core.db, core.encryptor)).problems == []
            await audit.seal(core.db, core.encryptor)
            rounds += 1
        assert rounds >= 1


async def test_everything_at_once_deadlocks_nothing_loses_nothing_and_verifies(core):
    storm = Storm()
    storm.ids = await core.checkouts(40)
    storm.fresh = {*storm.ids}
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    (before,) = await core.all(deadlocks)
    async with another(core.url, core.encryptor) as second, another(core.url, core.encryptor) as two:
        tasks = [
            asyncio.create_task(each)
            for process in (second, two)
            for each in (
                storm.intake(process),
                storm.gateway(process),
                storm.waker(process),
                storm.worker(process),
                storm.worker(process),
            )
        ] + [asyncio.create_task(storm.auditor(core))]
        await asyncio.sleep(SECONDS)
        for _ in range(LONGEST * 10):
            if sum(storm.landed.values()) > len(storm.fresh):
                break
            await asyncio.sleep(0.1)
        storm.running = False
        async with asyncio.timeout(30):
            await asyncio.gather(*tasks)
    await asyncio.sleep(0.1)  # a backend reports its counts when it ends
    assert await core.all(deadlocks) == [before]

    rows = {
        row[0]: row[1:]
        for row in await core.all(
            "SELECT id, state, version, captured, event_sequence, audit_sequence, due_at IS NOT NULL, claims FROM checkouts"
        )
    }
    assert set(rows) == storm.fresh
    assert sum(storm.landed.values()) > len(rows)
    for each, (state, version, captured, events, entries, due_in, _) in rows.items():
        # Every landed move counted once and every other not at all; giving a lease back makes no version.
        assert version == entries == 1 + storm.landed[each]
        assert captured == storm.captured[each]
        assert events == storm.events[each]
        assert await core.all("SELECT sequence FROM events WHERE checkout_id = :id ORDER BY 1", id=each) == [
            *range(1, events + 1)
        ]
        assert await core.all("SELECT max(sequence) FROM audit_entries WHERE checkout_id = :id", id=each) == [
            entries
        ]
        assert due_in
        assert State(state)
    stored = dict(await core.all("SELECT checkout_id, sum(times)::int FROM callbacks GROUP BY 1"))
    assert stored == {each: number for each, number in storm.callbacks.items() if number}
    live = await core.all(
        "SELECT order_ref FROM checkouts WHERE state NOT IN ('failed', 'expired', 'cancelled') AND NOT late GROUP BY 1 HAVING count(*) > 1"
    )
    assert live == []
    found = await audit.verify(core.db, core.encryptor)
    assert (found.problems, found.checkouts) == ([], len(rows))
    assert found.seals >= 1

"""The dispatcher: no merchant's backlog is in another's way, nothing is left behind without a due time, and
nothing is forgotten.

The gateway answers no call until the test lets it (`ClaimedCheckout`), so what is in flight and in which
order things end is the test's own decision.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from sqlalchemy.exc import OperationalError, ProgrammingError

from orchestrator.gateway.client import Gateway
from orchestrator.processing import Dispatcher, dispatcher
from orchestrator.store.checkouts import claims
from tests.support.scene import Scene, scene

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from uuid import UUID

pytestmark = pytest.mark.anyio


class PaymentView(Gateway):
    """The real client, whose calls for a merchant wait until they are let go."""

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        self.gates: dict[str, asyncio.Semaphore] = {}

    def hold(self, *merchants: str) -> None:
        self.gates |= {merchant: asyncio.Semaphore(0) for merchant in merchants}

    def let_go(self, merchant: str, calls: int = 100_000) -> None:
        for _ in range(calls):
            self.gates[merchant].release()

    async def _call(self, name: str, account: Any, *arguments: Any, **options: Any) -> Any:
        if account.merchant in self.gates:
            await self.gates[account.merchant].acquire()
        return await super()._call(name, account, *arguments, **options)


class Dispatching:
    """A scene with a dispatcher for ten checkouts at once, nine of them for the first that come."""

    def __init__(self, world: Scene, gateway: PaymentView, admitted: Dispatcher) -> None:
        self.world, self.gateway, self.dispatcher = world, gateway, admitted

    async def orders(self, number: int, merchant: int = 1) -> list[UUID]:
        return list(await asyncio.gather(*(self.world.accept(merchant=merchant) for _ in range(number))))

    async def leased(self) -> dict[int, int]:
        rows = await self.world.sql(
            "SELECT merchant_id, count(*) AS number FROM checkouts WHERE lease IS NOT NULL GROUP BY 1"
        )
        return {row.merchant_id: row.number for row in rows}

    async def until_leased(self, **wanted: int) -> None:
        async with asyncio.timeout(10):
            while await self.leased() != {int(name.removeprefix("m")): n for name, n in wanted.items() if n}:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def until_through(self, *ids: UUID, state: str = "awaiting_payment") -> None:
        for checkout in ids:
            await self.world.until_state(checkout, state)

    async def until_nothing_is_left_behind(self) -> None:
        """Wait for the round of the dispatcher that finds nothing more to claim."""
        async with asyncio.timeout(30):
            while self.dispatcher.overloaded:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def everything_waits_for_something(self) -> None:
        """Check that whatever is not held is hinted at or due, with a due time."""
        rows = await self.world.sql(
            "SELECT due_at, hinted OR due_at <= clock() AS waits FROM checkouts WHERE lease IS NULL AND state = 'received'"
        )
        assert all(row.due_at is not None and row.waits for row in rows)


@asynccontextmanager
async def dispatching(database_url: str, gateway_url: str, **changes: object) -> AsyncIterator[Dispatching]:
    tight = {"in_flight_limit": 10, "gateway_pool_size": 5, "hint_grace": 60.0, **changes}
    async with scene(database_url, gateway_url, **tight) as world, PaymentView(world.settings) as gateway:
        world.processor.context.gateway = gateway
        await world.merchants.everyone()
        admitted = Dispatcher(world.processor)
        try:
            yield Dispatching(world, gateway, admitted)
        finally:
            for merchant in gateway.gates:
                gateway.let_go(merchant)
            await admitted.close()


@pytest.fixture
async def few(database_url: str, gateway_url: str) -> AsyncIterator[Dispatching]:
    async with dispatching(database_url, gateway_url) as started:
        yield started


async def test_with_slots_for_all_everything_is_processed(few: Dispatching):
    ids = await few.orders(5)
    await few.dispatcher.admit(ids)
    await few.until_through(*ids)
    await few.dispatcher.admit([])
    await few.dispatcher.admit(ids)
    assert (few.dispatcher.fair_share.taken, few.dispatcher.overloaded) == (0, [])


async def test_a_hint_is_answered_when_it_is_claimed_and_not_when_it_is_processed(few: Dispatching):
    few.gateway.hold("default")
    ids = await few.orders(3)
    async with asyncio.timeout(5):
        await few.dispatcher.admit(ids)
    assert await few.leased() == {1: 3}


async def test_a_burst_of_one_merchant_delays_no_other_merchant(few: Dispatching):
    quiet = await few.world.second_merchant()
    few.gateway.hold("default")
    burst = await few.orders(40)
    await few.dispatcher.admit(burst)
    assert await few.leased() == {1: 9}, "alone, it has all but the reserve"
    await few.everything_waits_for_something()

    (order,) = await few.orders(1, quiet)
    await few.dispatcher.admit([order])
    await few.until_through(order)
    assert await few.leased() == {1: 9}, "nothing of the burst has moved meanwhile"

    few.gateway.let_go("default")
    await few.until_through(*burst)
    await few.until_nothing_is_left_behind()


async def test_what_is_left_behind_is_processed_without_another_hint_the_longest_waiting_first(
    few: Dispatching,
):
    few.gateway.hold("default")
    first = await few.orders(9)
    await few.dispatcher.admit(first)
    later = []
    for _ in range(12):
        later += await few.orders(1)
    await few.dispatcher.admit(later)
    assert (await few.leased(), few.dispatcher.overloaded) == ({1: 9}, [1])
    await few.world.sql(
        "UPDATE checkouts SET due_at = due_at - interval '5 s' WHERE id = ANY(:ids)", ids=later[-3:]
    )
    few.gateway.let_go(
        "default", 9
    )  # three calls each for three of them, or the first for all: either way places come free
    few.gateway.let_go("default")
    await few.until_through(*first, *later)
    rows = await few.world.sql(
        "SELECT checkout_id FROM audit_entries WHERE action = 'checkout:moved' AND sequence = 2 AND checkout_id = ANY(:ids) ORDER BY at",
        ids=later,
    )
    started = [row.checkout_id for row in rows]
    assert set(started[:9]) >= set(later[-3:]), "the longest waiting were in the first portion"


async def test_two_merchants_with_more_than_enough_come_to_have_the_same(few: Dispatching):
    quiet = await few.world.second_merchant()
    few.gateway.hold("default", "quiet")
    mine, theirs = await few.orders(30), await few.orders(30, quiet)
    await few.dispatcher.admit(mine)
    await few.dispatcher.admit(theirs)
    assert await few.leased() == {1: 9, quiet: 1}
    # Each order takes three calls. What the first gives up, the second gets, until they are even.
    few.gateway.let_go("default", 27)
    async with asyncio.timeout(30):
        while sorted((await few.leased()).values()) != [4, 5]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    few.gateway.let_go("default")
    few.gateway.let_go("quiet")
    await few.until_through(*mine, *theirs)


async def test_a_slow_gateway_holds_no_more_than_its_own_slots(database_url: str, gateway_url: str):
    async with dispatching(database_url, gateway_url, in_flight_limit=100) as many:
        quiet = await many.world.second_merchant(gateway_url=gateway_url.replace("127.0.0.1", "localhost"))
        many.gateway.hold("default", "quiet")
        await many.dispatcher.admit(await many.orders(50))
        await many.dispatcher.admit(await many.orders(50, quiet))
        assert await many.leased() == {1: 9, quiet: 9}


async def test_callbacks_do_not_wait_behind_their_own_merchants_new_orders(few: Dispatching):
    few.gateway.hold("default")
    paid = await few.orders(3)
    await few.world.sql(
        "UPDATE checkouts SET due_at = clock() + interval '1 hour', hinted = false WHERE id = ANY(:ids)",
        ids=paid,
    )
    burst = await few.orders(40)
    await few.dispatcher.admit(burst)
    for checkout in paid:
        await few.world.call_back(checkout)
    await few.dispatcher.admit(paid, "callbacks")
    rows = await few.world.sql(
        "SELECT id FROM checkouts WHERE lease IS NOT NULL AND id = ANY(:ids)", ids=paid
    )
    assert len(rows) == 1, "one order got the reserve's slot, and the others are deferred"
    # What comes free goes to them, since they have the fewest.
    few.gateway.let_go("default", 6)
    few.gateway.let_go("default")
    await few.until_through(*paid)
    await few.until_through(*burst)


async def test_a_wake_up_while_it_is_held_is_answered_at_once(few: Dispatching):
    few.gateway.hold("default")
    (order,) = await few.orders(1)
    await few.dispatcher.admit([order])
    await few.world.call_back(order)
    few.gateway.let_go("default")
    async with asyncio.timeout(10):
        while await few.world.sql("SELECT 1 FROM callbacks WHERE handled_at IS NULL"):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_hint_by_both_ways_is_processed_once(few: Dispatching):
    few.gateway.hold("default")
    (order,) = await few.orders(1)
    await asyncio.gather(
        few.dispatcher.admit([order]),
        few.dispatcher.admit([order], "callbacks"),
        few.dispatcher.admit([order]),
    )
    assert (await few.world.row(order)).claims == 1


async def test_with_no_free_slot_a_hint_waits_and_is_claimed_when_a_slot_is_free(few: Dispatching):
    quiet, third = await few.world.second_merchant(), await few.world.second_merchant("third")
    few.gateway.hold("default", "quiet", "third")
    await few.dispatcher.admit(await few.orders(9))
    await few.dispatcher.admit(await few.orders(1, quiet))
    (order,) = await few.orders(1, third)
    waiting = asyncio.create_task(few.dispatcher.admit([order]))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    few.gateway.let_go("quiet")
    await waiting
    assert (await few.world.row(order)).lease is not None


async def test_a_hint_waits_no_longer_than_a_lease(database_url: str, gateway_url: str):
    brief = {"lease_seconds": 1.0, "gateway_total_timeout": 0.3, "in_flight_limit": 1, "gateway_pool_size": 1}
    async with dispatching(database_url, gateway_url, **brief) as started:
        started.gateway.hold("default")
        first, second = await started.orders(2)
        await started.dispatcher.admit([first])
        with structlog.testing.capture_logs() as logs:
            await started.dispatcher.admit([second])
        assert [line["event"] for line in logs] == ["in_flight_limit_reached"]
        # It is claimed no more: its due time stays.
        started.gateway.let_go("default")
        await started.until_leased()
        row = await started.world.row(second)
        assert (row.claims, row.hinted) == (0, True)


async def test_while_the_event_loop_has_work_enough_only_newcomers_are_claimed(few: Dispatching, monkeypatch):
    quiet = await few.world.second_merchant()
    few.gateway.hold("default")
    await few.dispatcher.admit(await few.orders(2))
    monkeypatch.setattr(type(few.world.processor), "busy", property(lambda _: True))
    more = await few.orders(3)
    await few.dispatcher.admit(more)
    (order,) = await few.orders(1, quiet)
    await few.dispatcher.admit([order])
    await few.until_through(order)
    assert await few.leased() == {1: 2}
    monkeypatch.undo()
    few.gateway.let_go("default")
    await few.until_through(*more)


async def test_checkouts_beyond_the_size_of_one_claim_are_claimed_in_several_claims(
    database_url: str, gateway_url: str, monkeypatch
):
    monkeypatch.setattr(dispatcher, "MOST", 4)
    roomy = {"in_flight_limit": 100, "gateway_pool_size": 50}
    async with dispatching(database_url, gateway_url, **roomy) as many:
        many.gateway.hold("default")
        ids = await many.orders(22)
        await asyncio.gather(*(many.dispatcher.admit([checkout]) for checkout in ids[:10]))
        assert await many.leased() == {1: 10}
        # Where checkouts were deferred, a claim takes those that have waited longest, four at a time.
        many.dispatcher._deferred[dispatcher.FlowKey(1, "checkouts")] = {}
        await many.dispatcher.admit(ids[10:11])
        await many.until_leased(m1=22)


async def test_a_merchant_that_is_not_known_yet_has_its_share_too(few: Dispatching):
    few.world.merchants._read_at = float("-inf")
    ids = await few.orders(2)
    await few.dispatcher.admit(ids)
    await few.until_through(*ids)


# ── What goes wrong ───────────────────────────────────────────────────────────────────────────────────────


def breaking(monkeypatch, error: Exception) -> None:
    """Have the next claim fail."""
    real = claims._claim

    async def once(*arguments: Any) -> Any:
        monkeypatch.setattr(claims, "_claim", real)
        raise error

    monkeypatch.setattr(claims, "_claim", once)


@pytest.mark.parametrize(
    ("error", "event"),
    [
        (OperationalError("SELECT 1", {}, Exception("gone")), "claim_failed"),
        (ProgrammingError("UPDATE", {}, Exception("permission denied")), "claim_broke"),
        (ValueError("a mistake of ours"), "claim_broke"),
        (TimeoutError(), "claim_failed"),
    ],
)
async def test_a_claim_that_fails_is_reported_by_a_value_and_the_dispatcher_goes_on(
    few: Dispatching, monkeypatch, error, event
):
    ids = await few.orders(3)
    breaking(monkeypatch, error)
    with structlog.testing.capture_logs() as logs:
        answered = await asyncio.gather(*(few.dispatcher.admit([checkout]) for checkout in ids))
    assert not any(answered)
    assert [line["event"] for line in logs] == [event]
    rounds = few.dispatcher.rounds
    assert all(await asyncio.gather(*(few.dispatcher.admit([checkout]) for checkout in ids)))
    assert few.dispatcher.rounds > rounds
    assert (few.dispatcher.ended, few.dispatcher.waiting) == (False, 0)
    await few.until_through(*ids)


async def all_refused(*_: Any) -> Any:
    raise OperationalError("UPDATE", {}, Exception("gone"))


async def until_rounds(few: Dispatching, more: int) -> None:
    rounds = few.dispatcher.rounds
    async with asyncio.timeout(10):
        while few.dispatcher.rounds < rounds + more:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)


async def test_failing_claims_are_reported_until_they_work_again_without_any_hint(
    few: Dispatching, monkeypatch
):
    monkeypatch.setattr(dispatcher, "AGAIN", 0.02)
    real = claims._claim
    monkeypatch.setattr(claims, "_claim", all_refused)
    with structlog.testing.capture_logs() as logs:
        assert not await few.dispatcher.admit(await few.orders(1))
        await until_rounds(few, 5)
    assert few.dispatcher.failure == "the database is out of reach (gone)"
    assert [line["event"] for line in logs] == ["claim_failed"], "it is logged once, and not at every try"
    monkeypatch.setattr(claims, "_claim", real)
    async with asyncio.timeout(10):
        while few.dispatcher.failure is not None:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)


async def test_claims_that_fail_for_some_checkouts_are_reported_until_these_had_time_for_another_hint(
    few: Dispatching, monkeypatch
):
    monkeypatch.setattr(dispatcher, "AGAIN", 0.02)
    breaking(monkeypatch, ValueError("a mistake of ours"))
    assert not await few.dispatcher.admit(await few.orders(1))
    await until_rounds(few, 5)
    assert few.dispatcher.failure == "ValueError, see the log of the worker"
    monkeypatch.setattr(dispatcher, "FAILURE_STANDS", 0.0)
    async with asyncio.timeout(10):
        while few.dispatcher.failure is not None:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)


async def test_a_claim_that_works_ends_the_failure_at_once(few: Dispatching, monkeypatch):
    breaking(monkeypatch, ValueError("a mistake of ours"))
    (order,) = await few.orders(1)
    assert not await few.dispatcher.admit([order])
    assert few.dispatcher.failure is not None
    assert await few.dispatcher.admit([order])
    assert few.dispatcher.failure is None


async def test_a_claim_that_takes_longer_than_its_lease_is_given_up(
    database_url: str, gateway_url: str, monkeypatch
):
    brief = {"lease_seconds": 1.0, "gateway_total_timeout": 0.3}
    async with dispatching(database_url, gateway_url, **brief) as started:
        (order,) = await started.orders(1)
        real = claims._claim

        async def hangs(*_: Any) -> Any:
            monkeypatch.setattr(claims, "_claim", real)
            await asyncio.Event().wait()

        monkeypatch.setattr(claims, "_claim", hangs)
        async with asyncio.timeout(10):
            assert not await started.dispatcher.admit([order])
            while not await started.dispatcher.admit([order]):
                pass
        await started.until_through(order)


@pytest.mark.parametrize(
    "error", [OperationalError("UPDATE", {}, Exception("gone")), ValueError("a mistake of ours")]
)
async def test_a_renewal_of_leases_that_fails_is_logged_and_tried_again_before_they_end(
    database_url: str, gateway_url: str, monkeypatch, error
):
    async with dispatching(
        database_url, gateway_url, lease_seconds=8.0, gateway_total_timeout=2.0
    ) as started:
        ids = await started.orders(2)
        started.gateway.hold("default")
        real, renewed = dispatcher.renew, asyncio.Event()

        async def renews(*arguments: Any, **options: Any) -> None:
            await real(*arguments, **options)
            renewed.set()

        async def fails_once(*_: Any, **__: Any) -> None:
            monkeypatch.setattr(dispatcher, "renew", renews)
            raise error

        monkeypatch.setattr(dispatcher, "renew", fails_once)
        held = "SELECT id, lease, leased_until FROM checkouts ORDER BY id"
        with structlog.testing.capture_logs() as logs:
            await started.dispatcher.admit(ids)
            before = await started.world.sql(held)
            async with asyncio.timeout(30):
                await renewed.wait()
        (line,) = [line for line in logs if line["event"] == "leases_not_renewed"]
        assert (line["leases"], line["error"], line["log_level"]) == (2, type(error).__name__, "warning")
        after = await started.world.sql(held)
        assert [(row.id, row.lease) for row in after] == [(row.id, row.lease) for row in before]
        assert all(new.leased_until > old.leased_until for new, old in zip(after, before, strict=True))
        started.gateway.let_go("default")
        await started.until_through(*ids)
        versions = await started.world.sql("SELECT version, claims FROM checkouts")
        assert [tuple(row) for row in versions] == [(5, 0)] * 2, (
            "each step was taken once, by its first holder"
        )


async def test_the_age_of_a_round_is_shown_while_the_dispatcher_claims_nothing(few: Dispatching, monkeypatch):
    """By these health distinguishes a dispatcher that hangs from an idle dispatcher."""
    ids = await few.orders(2)
    loop, real = asyncio.get_running_loop(), claims._claim
    hanging, goes_on = asyncio.Event(), asyncio.Event()

    async def hangs(*arguments: Any) -> Any:
        hanging.set()
        await goes_on.wait()
        return await real(*arguments)

    monkeypatch.setattr(claims, "_claim", hangs)
    first = asyncio.create_task(few.dispatcher.admit(ids[:1]))
    await hanging.wait()
    second = asyncio.create_task(few.dispatcher.admit(ids[1:]))
    rounds, idle, began = few.dispatcher.rounds, few.dispatcher.idle_seconds, loop.time()
    await asyncio.sleep(0.1)
    passed = loop.time() - began
    assert few.dispatcher.idle_seconds >= idle + passed
    assert (few.dispatcher.waiting, few.dispatcher.rounds) == (1, rounds)
    resumed = loop.time()
    goes_on.set()
    assert await asyncio.gather(first, second) == [True, True]
    assert few.dispatcher.idle_seconds <= loop.time() - resumed
    assert (few.dispatcher.waiting, few.dispatcher.rounds) == (0, rounds + 2)
    await few.until_through(*ids)


async def test_a_dispatcher_that_ends_is_reported(few: Dispatching):
    with structlog.testing.capture_logs() as logs:
        few.dispatcher._runner.cancel()
        await asyncio.gather(few.dispatcher._runner, return_exceptions=True)
    assert few.dispatcher.ended
    assert [line["event"] for line in logs] == ["dispatcher_ended"]
    waiting = asyncio.create_task(few.dispatcher.admit(await few.orders(1)))
    await asyncio.sleep(0.05)
    assert few.dispatcher.waiting == 1
    few.dispatcher.stop()
    await waiting


async def test_deferred_checkouts_are_searched_again_when_a_claim_broke(few: Dispatching, monkeypatch):
    monkeypatch.setattr(dispatcher, "AGAIN", 0.05)
    few.gateway.hold("default")
    burst = await few.orders(12)
    await few.dispatcher.admit(burst)
    breaking(monkeypatch, ValueError("a mistake of ours"))
    with structlog.testing.capture_logs() as logs:
        few.gateway.let_go("default")
        await few.until_through(*burst)
    assert "claim_broke" in [line["event"] for line in logs]


async def test_a_shutdown_lets_every_hint_go_and_gives_every_lease_back(few: Dispatching):
    quiet = await few.world.second_merchant()
    few.gateway.hold("default", "quiet")
    await few.dispatcher.admit(await few.orders(9))
    await few.dispatcher.admit(await few.orders(1, quiet))
    waiting = asyncio.create_task(few.dispatcher.admit(await few.orders(1)))
    woken = asyncio.create_task(few.dispatcher.admit(await few.orders(1), "callbacks"))
    await asyncio.sleep(0.05)
    few.dispatcher.stop()
    await waiting
    await woken
    for merchant in ("default", "quiet"):
        few.gateway.let_go(merchant)
    await few.dispatcher.close()
    await few.dispatcher.admit(await few.orders(1))
    rows = await few.world.sql("SELECT lease, state, due_at FROM checkouts")
    assert all(row.lease is None and row.due_at is not None for row in rows)
    assert {row.state for row in rows} == {"received", "authenticated"}, "the calls under way were ended"

"""The limits of gateways, on real sockets: a slow gateway takes no other gateway's connections, and the
circuit of a gateway that does not work is opened.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
import structlog

from orchestrator.gateway import client
from orchestrator.gateway.client import Gateway, gateway_of
from orchestrator.gateway.limits import circuit_breaker
from orchestrator.gateway.outcomes import Busy, Done, NotSent, Refused, Throttled, Unauthorized, Unknown
from tests.integration.gateway.misbehaving import Exchange, Misbehaving, answering
from tests.integration.gateway.scene import account, gateway_that, settings, token_answer

WELL = answering(200, token_answer("opaque"))
BROKEN = answering(500)


class Slow:
    """A server's answers that come when the test says so, with whom they were for in order of arrival."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.free = asyncio.Semaphore(0)
        self.arrived = asyncio.Event()

    async def __call__(self, exchange: Exchange) -> None:
        self.asked.append(exchange.headers["authorization"])
        self.arrived.set()
        await self.free.acquire()
        await exchange.respond(200, token_answer("opaque"))


def test_a_slow_gateway_takes_no_connection_of_another(run):
    async def scene():
        slow = Slow()
        async with (
            gateway_that(slow, gateway_pool_size=2) as (gateway, _, merchant),
            Misbehaving(WELL) as quick,
        ):
            held = [asyncio.create_task(gateway.authenticate(merchant)) for _ in range(20)]
            await slow.arrived.wait()
            other = [await gateway.authenticate(account(quick.url)) for _ in range(5)]
            waiting = sum(not call.done() for call in held)
            slow.free = asyncio.Semaphore(100)
            for _ in range(2):
                slow.free.release()
            [call.cancel() for call in held]
            await asyncio.gather(*held, return_exceptions=True)
            return other, waiting, len(slow.asked)

    other, waiting, asked = run(scene())
    assert {type(outcome) for outcome in other} == {Done}
    assert (waiting, asked) == (20, 2)


def test_all_gateways_together_have_a_bound_and_share_it_in_turn(run):
    async def scene():
        first, second = Slow(), Slow()
        changed = {"gateway_pool_size": 10, "gateway_pool_total": 3}
        async with gateway_that(first, **changed) as (gateway, _, merchant), Misbehaving(second) as server:
            eight = [asyncio.create_task(gateway.authenticate(merchant)) for _ in range(8)]
            await first.arrived.wait()
            two = [asyncio.create_task(gateway.authenticate(account(server.url))) for _ in range(2)]
            await asyncio.sleep(0.1)
            before = len(first.asked), len(second.asked)
            for _ in range(2):
                first.free.release()
            await second.arrived.wait()
            for _ in range(20):
                first.free.release()
                second.free.release()
            await asyncio.gather(*eight, *two)
            return before

    assert run(scene()) == (3, 0)


def test_calls_that_wait_for_one_gateway_are_served_merchant_after_merchant(run):
    async def scene():
        slow = Slow()
        async with gateway_that(slow, gateway_pool_size=1) as (gateway, _, noisy):
            quiet = replace(noisy, merchant="quiet", username="quiet")
            calls = [asyncio.create_task(gateway.authenticate(noisy)) for _ in range(6)]
            await slow.arrived.wait()
            calls.append(asyncio.create_task(gateway.authenticate(quiet)))
            await asyncio.sleep(0)
            for _ in calls:
                slow.free.release()
            await asyncio.gather(*calls)
            return [header == slow.asked[0] for header in slow.asked]

    assert run(scene()) == [True, True, False, True, True, True, True], (
        "the quiet gateway's call waited for one turn"
    )


# ── Open circuits ─────────────────────────────────────────────────────────────────────────────────────────


def test_the_circuit_of_a_gateway_that_does_not_serve_is_opened_and_no_other(run):
    async def scene():
        async with (
            gateway_that(BROKEN, breaker_failures=3) as (gateway, server, merchant),
            Misbehaving(WELL) as quick,
        ):
            outcomes = [await gateway.authenticate(merchant) for _ in range(5)]
            return outcomes, len(server.asked), await gateway.authenticate(account(quick.url))

    with structlog.testing.capture_logs() as logs:
        outcomes, asked, other = run(scene())
    assert [type(outcome) for outcome in outcomes] == [Unknown, Unknown, Unknown, Busy, Busy]
    assert outcomes[-1].reason == client.CIRCUIT_OPEN
    assert 0 < outcomes[-1].retry_after <= circuit_breaker.FIRST_PAUSE
    assert asked == 3
    assert isinstance(other, Done)
    assert [line["reason"] for line in logs if line["event"] == "gateway_paused"] == [
        "The gateway answered HTTP 500."
    ]


def test_when_it_serves_again_all_calls_are_made(run, monkeypatch):
    monkeypatch.setattr(circuit_breaker, "FIRST_PAUSE", 0.05)

    async def scene():
        async with gateway_that(BROKEN, breaker_failures=2) as (gateway, server, merchant):
            await asyncio.gather(*(gateway.authenticate(merchant) for _ in range(2)))
            slow = Slow()
            server.answer = slow
            await asyncio.sleep(0.06)
            probes = [
                asyncio.create_task(gateway.authenticate(merchant)) for _ in range(circuit_breaker.PROBES)
            ]
            await slow.arrived.wait()
            beyond = await gateway.authenticate(merchant)
            server.answer = WELL
            for _ in probes:
                slow.free.release()
            results = await asyncio.gather(*probes)
            after = await asyncio.gather(*(gateway.authenticate(merchant) for _ in range(10)))
            return beyond, results, after

    with structlog.testing.capture_logs() as logs:
        beyond, results, after = run(scene())
    assert beyond == Busy(client.CIRCUIT_OPEN, circuit_breaker.PROBING)
    assert {type(outcome) for outcome in (*results, *after)} == {Done}
    told = [line["event"] for line in logs if line["event"] in {"gateway_paused", "gateway_back"}]
    assert told == ["gateway_paused", "gateway_back"]


def test_a_cancelled_probe_lets_the_next_probe_start(run, monkeypatch):
    monkeypatch.setattr(circuit_breaker, "FIRST_PAUSE", 0.01)

    async def scene():
        async with gateway_that(BROKEN, breaker_failures=1) as (gateway, server, merchant):
            await gateway.authenticate(merchant)
            slow = Slow()
            server.answer = slow
            await asyncio.sleep(0.02)
            probes = [
                asyncio.create_task(gateway.authenticate(merchant)) for _ in range(circuit_breaker.PROBES)
            ]
            await slow.arrived.wait()
            for probe in probes:
                probe.cancel()
            await asyncio.gather(*probes, return_exceptions=True)
            server.answer = WELL
            return await gateway.authenticate(merchant)

    assert isinstance(run(scene()), Done)


@pytest.mark.parametrize(
    ("status", "kind"), [(401, Unauthorized), (402, Refused), (403, Refused), (404, Refused), (422, Refused)]
)
def test_refusals_show_that_the_gateway_works(run, status, kind):
    async def scene():
        async with gateway_that(answering(status), breaker_failures=1) as (gateway, _, merchant):
            return [await gateway.authenticate(merchant) for _ in range(3)]

    assert [type(outcome) for outcome in run(scene())] == [kind] * 3


def test_a_call_that_a_lease_guard_withheld_does_not_count_against_the_gateway(run):
    async def scene():
        async with gateway_that(WELL, breaker_failures=1) as (gateway, server, merchant):
            for _ in range(3):
                withheld = await gateway.release(merchant, transaction_id="7", lease_guard=lambda: False)
                assert withheld == NotSent("The lease ran out before the call left.")
            return len(server.asked)

    assert run(scene()) == 0


def test_money_is_not_moved_at_a_gateway_whose_circuit_is_open_and_its_lease_guard_is_not_asked(run):
    asked = []

    async def scene():
        async with gateway_that(BROKEN, breaker_failures=1) as (gateway, server, merchant):
            await gateway.authenticate(merchant)
            outcome = await gateway.release(
                merchant, transaction_id="7", lease_guard=lambda: not asked.append(1)
            )
            return outcome, len(server.asked)

    outcome, received = run(scene())
    assert isinstance(outcome, Busy)
    assert (asked, received) == ([], 1)


def test_a_throttled_merchant_waits_and_the_others_do_not(run):
    async def scene():
        async with gateway_that(answering(429, retry_after="1"), breaker_failures=1) as (
            gateway,
            server,
            noisy,
        ):
            quiet = replace(noisy, merchant="quiet")
            first = await gateway.authenticate(noisy)
            second = await gateway.authenticate(noisy)
            server.answer = WELL
            other = await gateway.authenticate(quiet)
            async with asyncio.timeout(10):
                while isinstance(await gateway.authenticate(noisy), Busy):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            return first, second, other, await gateway.authenticate(noisy)

    with structlog.testing.capture_logs() as logs:
        first, second, other, later = run(scene())
    assert isinstance(first, Throttled)
    assert (type(second), second.reason) == (Busy, client.CIRCUIT_OPEN)
    assert (type(other), type(later)) == (Done, Done)
    told = [
        (line["event"], line["merchant"])
        for line in logs
        if line["event"] in {"gateway_paused", "gateway_back"}
    ]
    assert told == [("gateway_paused", "default"), ("gateway_back", "default")]


def test_a_late_answer_does_not_end_the_pause_that_was_asked_for(run):
    async def scene():
        slow = Slow()
        async with gateway_that(slow) as (gateway, server, merchant):
            early = asyncio.create_task(gateway.authenticate(merchant))
            await slow.arrived.wait()
            server.answer = answering(429, retry_after="30")
            await gateway.authenticate(merchant)
            await gateway.authenticate(merchant)
            slow.free.release()
            return await early, await gateway.authenticate(merchant)

    early, after = run(scene())
    assert (type(early), type(after)) == (Done, Busy)


def test_the_longer_pause_counts_and_no_pause_is_endless(run):
    async def scene():
        answers = iter(("10", "1", "3600"))

        async def throttled(exchange: Exchange) -> None:
            await exchange.respond(429, retry_after=next(answers))

        async with gateway_that(throttled) as (gateway, _, merchant):
            await asyncio.gather(*(gateway.authenticate(merchant) for _ in range(3)))
            return await gateway.authenticate(merchant)

    assert 10 < run(scene()).retry_after <= 60


def test_to_be_throttled_without_a_time_again_and_again_is_not_to_be_served(run):
    async def scene():
        async with gateway_that(answering(429), breaker_failures=2) as (gateway, _, merchant):
            return [type(await gateway.authenticate(merchant)) for _ in range(3)]

    assert run(scene()) == [Throttled, Throttled, Busy]


# ── Calls per second ──────────────────────────────────────────────────────────────────────────────────────


def test_a_gateway_gets_no_more_calls_in_a_second_than_its_budget(run):
    began: list[float] = []

    async def scene():
        times = []

        async def answer(exchange: Exchange) -> None:
            times.append(time.monotonic())
            await exchange.respond(200, token_answer("opaque"))

        async with gateway_that(answer, gateway_calls_per_second=40.0) as (gateway, _, merchant):
            began.append(time.monotonic())
            await asyncio.gather(*(gateway.authenticate(merchant) for _ in range(40)))
            await gateway.authenticate(merchant)
        return times

    times = run(scene())
    assert len(times) == 41
    # A fifth of a second's calls come early. A machine that stalls only makes it longer.
    assert times[-1] - began[0] >= (41 - 8 - 1) / 40


def test_a_call_that_gets_no_permit_in_time_is_busy(run):
    async def scene():
        # The next permit comes in a minute and more, and is waited for half of the time that a call has in
        # all.
        slow = {"gateway_calls_per_second": 0.01, "gateway_total_timeout": 6}
        async with gateway_that(WELL, **slow) as (gateway, server, merchant):
            return [await gateway.authenticate(merchant) for _ in range(2)], len(server.asked)

    outcomes, asked = run(scene())
    assert ([type(outcome) for outcome in outcomes], asked) == ([Done, Busy], 1)


def test_permits_in_hand_are_not_saved_up(run):
    async def scene():
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(Misbehaving(WELL))
            gateway = await stack.enter_async_context(Gateway(settings(gateway_calls_per_second=200.0)))
            merchant = account(server.url)
            await gateway.authenticate(merchant)
            permits = gateway.limits.of(gateway_of(server.url))._rate
            async with asyncio.timeout(5):
                while not permits._hand.free:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            permits._fetched_at -= 2.0
            taken = permits.take_now()
            return taken, isinstance(await gateway.authenticate(merchant), Done)

    assert run(scene()) == (False, True)


@pytest.mark.parametrize(
    ("url", "gateway"),
    [
        ("https://one.example/base", "https://one.example:443"),
        ("http://127.0.0.1:8001", "http://127.0.0.1:8001"),
        ("http://one.example", "http://one.example:80"),
        ("https://one.example:99999", "https://one.example:99999"),
        ("", ""),
    ],
)
def test_a_gateway_is_scheme_host_and_port(url, gateway):
    assert gateway_of(url) == gateway

"""What workers share about gateways in Redis, and that no call waits for Redis when it is away,
slow or empty.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
import redis
import structlog

from orchestrator.gateway.client import Gateway, gateway_of
from orchestrator.gateway.limits import rate, shared_state
from orchestrator.gateway.limits.shared_state import SharedGatewayState
from orchestrator.gateway.outcomes import Busy, Done
from orchestrator.settings import Settings
from orchestrator.settings.broker_url import read
from tests.integration.gateway.misbehaving import Misbehaving, answering
from tests.integration.gateway.scene import account, settings, token_answer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from orchestrator.devkit.local.servers import Embedded

pytestmark = pytest.mark.anyio

WELL = answering(200, token_answer("opaque"))


@pytest.fixture
def url(servers: Embedded) -> str:
    with redis.Redis.from_url(servers.redis_url) as client:
        client.flushall()
    return servers.redis_url


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - it happens in the background
            await asyncio.sleep(0.01)


class Way:
    """The connection to Redis: open, closed, or silent."""

    def __init__(self, url: str) -> None:
        self._to = urlsplit(url)
        self._connections: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.stuck = False
        self.port = 0

    @property
    def url(self) -> str:
        return f"redis://:{self._to.password}@127.0.0.1:{self.port}/0"

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        self._server.close()
        for writer in list(self._connections):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, onward = await asyncio.open_connection(self._to.hostname, self._to.port)
        self._connections |= {writer, onward}
        with suppress(ConnectionError):
            await asyncio.gather(self._pass(reader, onward), self._pass(there, writer))
        for connection in (writer, onward):
            self._connections.discard(connection)
            connection.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if not self.stuck:
                writer.write(data)
                await writer.drain()
        writer.close()


@asynccontextmanager
async def way_to(url: str) -> AsyncIterator[Way]:
    way = Way(url)
    await way.open()
    try:
        yield way
    finally:
        await way.close()


@asynccontextmanager
async def worker(
    url: str | None, name: str, **changed: float
) -> AsyncIterator[tuple[Gateway, SharedGatewayState]]:
    shared = SharedGatewayState(None if url is None else read(url), name=name)
    async with Gateway(settings(**changed), shared) as gateway:
        if url is not None:
            await until(lambda: not shared.away)
        yield gateway, shared


def test_the_shared_state_is_in_redis_its_own_or_the_brokers():
    def where(**urls: str) -> tuple[str, int] | None:
        found = Settings(**urls).redis
        return None if found is None else (found.host, found.db)

    assert where(redis_url="redis://a/1", broker_url="redis://b/2") == ("a", 1)
    assert where(broker_url="redis://b/2") == ("b", 2)
    assert where(broker_url="amqp://b") is None
    assert where() is None


async def test_a_circuit_that_one_worker_opens_is_open_for_all(url: str):
    async with (
        Misbehaving(answering(500)) as server,
        worker(url, "one", breaker_failures=2) as (first, _),
        worker(url, "two", breaker_failures=2) as (second, known),
    ):
        merchant = account(server.url)
        with structlog.testing.capture_logs() as logs:
            for _ in range(2):
                await first.authenticate(merchant)
            await until(lambda: known.any_circuit_open)
            outcome = await second.authenticate(merchant)
        assert isinstance(outcome, Busy)
        assert 0 < outcome.retry_after <= 2
        assert len(server.asked) == 2
        assert [line.get("heard") for line in logs if line["event"] == "gateway_paused"] == [None, True]
        assert list(await shared_state.circuits_open(read(url))) == [gateway_of(server.url)]
        # When the pause is over, each tries for itself.
        server.answer = WELL
        async with asyncio.timeout(20):
            while isinstance(await second.authenticate(merchant), Busy):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert await shared_state.circuits_open(read(url)) == {}


async def test_a_throttled_merchant_pauses_at_all_workers(url: str):
    async with (
        Misbehaving(answering(429, retry_after="20")) as server,
        worker(url, "one") as (first, _),
        worker(url, "two") as (second, known),
    ):
        await first.authenticate(account(server.url))
        await until(lambda: known.any_circuit_open)
        outcome = await second.authenticate(account(server.url))
        assert isinstance(outcome, Busy)
        assert 15 < outcome.retry_after <= 20
        assert list(await shared_state.circuits_open(read(url))) == [f"{gateway_of(server.url)} default"]


async def test_a_gateway_that_serves_while_its_circuit_is_open_has_it_closed_for_all(url: str):
    async with worker(url, "one") as (_, shared):
        shared.open_circuit("somewhere", 60.0)
        await until(lambda: shared.any_circuit_open)
        assert shared.open_until("somewhere") > time.monotonic() + 50
        shared.close_circuit("somewhere")
        assert not shared.any_circuit_open
        async with asyncio.timeout(10):
            while await shared_state.circuits_open(read(url)):  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_a_shorter_pause_does_not_shorten_a_longer_pause(url: str):
    async with worker(url, "one") as (_, shared):
        shared.open_circuit("somewhere", 60.0)
        shared.open_circuit("somewhere", 1.0)
        await until(lambda: shared.any_circuit_open)
        await asyncio.sleep(0.05)
        assert (await shared_state.circuits_open(read(url)))["somewhere"] > 50


@pytest.mark.parametrize("score", [86_400_000, 10**15, float("inf")])
async def test_an_entry_that_was_forged_closes_a_gateway_no_longer_than_our_own_pause(url: str, score: float):
    with redis.Redis.from_url(url) as foreign:
        seconds, _ = foreign.time()
        for name in ("https://gateway.example.com:443", "https://gateway.example.com:443 default"):
            foreign.zadd("orchestrator:gateways:alone", {name: seconds * 1000 + score})
        async with shared_state.SharedGatewayState(read(url), name="one", longest=2.0) as shared:
            await until(lambda: shared.any_circuit_open)
            assert shared.open_until("https://gateway.example.com:443") <= time.monotonic() + 2.1
            # It is not read again and again: in Redis too it ends.
            await until(lambda: not shared.any_circuit_open)
            assert await shared_state.circuits_open(read(url)) == {}


async def test_whatever_stands_in_redis_the_shared_state_goes_on(url: str):
    with redis.Redis.from_url(url) as foreign:
        foreign.set("orchestrator:gateways:workers", "no set at all")
        foreign.zadd(
            "orchestrator:gateways:alone", {b"\xff\xfe": 10**13, **{f"g{n}": 10**13 for n in range(3000)}}
        )
        async with shared_state.SharedGatewayState(read(url), name="one") as shared:
            await asyncio.sleep(1.2)
            assert shared.away
            foreign.delete("orchestrator:gateways:workers")
            await until(lambda: not shared.away)
            assert len(shared._open_circuits) <= shared_state.MOST


async def test_a_budget_that_was_forged_holds_calls_up_for_a_moment_only(url: str):
    with redis.Redis.from_url(url) as foreign:
        async with worker(url, "one") as (_, shared):
            for value in (10**18, -5, "no number"):
                foreign.set("orchestrator:gateways:rate:g", value)
                grant = await shared.permits("g", 10.0, 1)
                shared.away = False
                assert grant is None or grant.permits or grant.wait <= 2, value


async def test_workers_are_counted_while_they_read_redis(url: str):
    async with worker(url, "one") as (_, shared), worker(url, "two"):
        await until(lambda: shared.workers == 2)
    async with worker(url, "three") as (_, three):
        # A worker that was killed counts for a few seconds more.
        assert three.workers >= 1


async def test_all_workers_share_one_budget(url: str):
    async with (
        Misbehaving(WELL) as server,
        worker(url, "one", gateway_calls_per_second=40.0) as (first, shared_one),
        worker(url, "two", gateway_calls_per_second=40.0) as (second, shared_two),
    ):
        await until(lambda: shared_one.workers == shared_two.workers == 2)
        began = time.monotonic()
        outcomes = await asyncio.gather(
            *(gateway.authenticate(account(server.url)) for gateway in (first, second) for _ in range(20))
        )
        took = time.monotonic() - began
        assert {type(outcome) for outcome in outcomes} == {Done}
        # Eight come early, so it takes 0.8 s; alone each worker would have made its twenty calls in 0.3 s.
        # Where Redis answers late, a worker goes by its own share for a moment, and some calls more pass.
        assert took >= 0.5


async def test_a_client_that_ends_a_cancelled_call_with_another_error_does_not_keep_it_open(
    url: str, monkeypatch
):
    asked = asyncio.Event()

    async def swallows(*_):
        asked.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise redis.TimeoutError from None

    async with asyncio.timeout(20):
        async with SharedGatewayState(read(url), name="one") as shared:
            await until(lambda: not shared.away)
            monkeypatch.setattr(shared, "_run", swallows)
            await asked.wait()
    assert not shared._tasks


async def test_the_script_and_the_arithmetic_agree(url: str, monkeypatch):
    # It is not measured here how long Redis takes.
    monkeypatch.setattr(shared_state, "MOMENT", 5.0)
    monkeypatch.setattr(shared_state, "TIMEOUT", 5.0)
    async with worker(url, "one") as (_, shared):
        schedule, now, began = rate.Schedule(), 0.0, time.monotonic()
        for want in (3, 5, 1, 20):
            told = await shared.permits("g", 10.0, want)
            assert told is not None
            expected = schedule.take(want, 10.0, now)
            more = 1 + int(10.0 * (time.monotonic() - began))
            assert expected.permits <= told.permits <= expected.permits + more, "time goes on meanwhile"


# ── Redis is away ─────────────────────────────────────────────────────────────────────────────────────────


async def test_without_redis_calls_are_made_and_circuits_open_all_the_same():
    async with (
        worker(None, "one", breaker_failures=1) as (gateway, shared),
        Misbehaving(answering(500)) as server,
    ):
        await gateway.authenticate(account(server.url))
        assert isinstance(await gateway.authenticate(account(server.url)), Busy)
        assert await shared.permits("g", 10.0, 1) is None


async def test_a_lost_redis_is_logged_once_and_delays_no_call(url: str):
    async with (
        way_to(url) as way,
        Misbehaving(WELL) as server,
        worker(way.url, "one", gateway_calls_per_second=1000.0, breaker_failures=1) as (gateway, shared),
    ):
        assert isinstance(await gateway.authenticate(account(server.url)), Done)
        with structlog.testing.capture_logs() as logs:
            await way.close()
            await until(lambda: shared.away)
            server.answer = answering(500)
            await gateway.authenticate(account(server.url))
            assert isinstance(await gateway.authenticate(account(server.url)), Busy)
            await asyncio.sleep(1.2)
            await way.open()
            await until(lambda: not shared.away)
        told = [line["event"] for line in logs if line["event"].startswith("shared_gateway_state")]
        assert told == ["shared_gateway_state_away", "shared_gateway_state_back"]


async def test_redis_that_does_not_answer_holds_up_no_call(url: str):
    async with (
        way_to(url) as way,
        Misbehaving(WELL) as server,
        worker(way.url, "one", gateway_calls_per_second=1000.0, breaker_failures=1) as (gateway, shared),
    ):
        shared.workers = 4
        way.stuck = True
        # A permit is waited for a moment; then the process goes by its own part of the budget.
        assert await shared.permits("g", 10.0, 1) is None
        outcomes = [await gateway.authenticate(account(server.url)) for _ in range(20)]
        assert {type(outcome) for outcome in outcomes} == {Done}
        shared.away = False
        shared.open_circuit("somewhere", 60.0)
        await until(lambda: shared.away)

"""The load sends every intent once, at its moment, over kept connections, and records each answer, also the
missing.
"""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from orchestrator.devkit.bench import http_pool, load
from tests.integration.gateway.misbehaving import Misbehaving, answering

pytestmark = pytest.mark.anyio


def job(server, **what):
    host, port = server.url.removeprefix("http://").split(":")
    return load.Job(host=host, port=int(port), token="token", prefix="b-1", **what)


async def fired(answer, **what):
    told = []
    async with Misbehaving(answer) as server:
        sent = await load.fire(job(server, **what), tell=told.append)
        return sent, server, told[-1]


async def test_every_intent_is_sent_once_in_its_turn_with_the_token():
    sent, server, told = await fired(answering(202, b"{}"), rate=100, seconds=0.3, evenly=True)
    orders = [msgspec.json.decode(request.body)["order"]["orderId"] for request in server.asked]
    assert sorted(orders) == sorted(f"b-1-{number}" for number in range(30))
    assert {request.headers["authorization"] for request in server.asked} == {"Bearer token"}
    assert {request.request_line for request in server.asked} == {"POST /v1/checkouts HTTP/1.1"}
    assert sent.statuses == [202] * 30
    assert sent.moments == [number / 100 for number in range(30)]
    assert sent.due[0] == sent.began
    assert (told.sent, told.taken, told.failed) == (30, 30, 0)


async def test_a_late_answer_does_not_put_off_the_next_intent():
    gate = asyncio.Event()

    async def answer(exchange):
        if len(server_asked) < 20:
            server_asked.append(exchange)
            if len(server_asked) == 20:
                gate.set()
        await gate.wait()  # no request is answered before all have come
        await exchange.respond(202, b"{}")

    server_asked = []
    sent, server, _ = await fired(answer, rate=200, seconds=0.1, evenly=True)
    assert sent.statuses == [202] * 20
    assert server.connections == 20
    # The first waited for the last, which came 95 ms after it.
    assert sent.milliseconds[0] >= 90


async def test_latency_counts_from_the_scheduled_moment_although_the_load_itself_was_late():
    async def answer(exchange):
        await exchange.respond(202, b"{}")

    async with Misbehaving(answer) as server:
        loading = load._Load(job(server, rate=10, seconds=1))
        due = asyncio.get_running_loop().time() - 5.0  # it should have left five seconds ago
        await loading._send(0, due)
        loading._lines.close()
    assert loading.sent.milliseconds[0] >= 5000


async def test_a_batch_keeps_so_many_requests_open_and_no_more():
    open_now = most = 0

    async def answer(exchange):
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        await asyncio.sleep(0.002)
        open_now -= 1
        await exchange.respond(202, b"{}")

    sent, server, _ = await fired(answer, orders=50, at_once=7)
    assert sent.statuses == [202] * 50
    assert most == 7
    assert server.connections == 7


async def test_what_is_refused_or_never_answered_is_noted_and_not_sent_again():
    async def answer(exchange):
        number = int(msgspec.json.decode(exchange.body)["order"]["orderId"].rpartition("-")[2])
        if number == 1:
            exchange.close()
        elif number == 2:
            await exchange.write(b"this is not HTTP\r\n\r\n")
        else:
            await exchange.respond(503 if number == 3 else 202, b"{}")

    sent, server, told = await fired(answer, orders=5, at_once=5)
    assert sent.statuses == [202, 0, 0, 503, 202]
    assert len(server.asked) == 5
    assert (told.taken, told.failed) == (2, 3)


async def test_a_connection_that_was_closed_while_idle_costs_nothing():
    async with Misbehaving(answering(200, b"{}", connection="close")) as server:
        host, port = server.url.removeprefix("http://").split(":")
        lines = http_pool.HttpPool(host, int(port), most=1)
        for _ in range(3):
            assert (await lines.exchange(http_pool.request("GET", host, "/", headers={}))).status < 400
        assert server.connections == 3
        server.answer = silent_end
        with pytest.raises(ConnectionResetError):
            await lines.exchange(http_pool.request("GET", host, "/", headers={}))
        lines.close()


async def test_a_kept_connection_that_dies_under_its_next_request_is_replaced():
    async with Misbehaving(answering(200, b"{}")) as server:
        host, port = server.url.removeprefix("http://").split(":")
        lines = http_pool.HttpPool(host, int(port), most=1)
        await lines.exchange(http_pool.request("GET", host, "/", headers={}))

        async def once(exchange):
            server.answer = answering(200, b"again")
            exchange.close()

        server.answer = once
        answer = await lines.exchange(http_pool.request("GET", host, "/", headers={}))
        assert (answer.status, answer.body, server.connections) == (200, b"again", 2)
        lines.close()


async def test_an_answer_that_never_comes_ends_with_the_timeout():
    async def never(exchange):
        await asyncio.Event().wait()

    async with Misbehaving(never) as server:
        host, port = server.url.removeprefix("http://").split(":")
        lines = http_pool.HttpPool(host, int(port), most=1)
        with pytest.raises(TimeoutError):
            await lines.exchange(http_pool.request("GET", host, "/", headers={}), timeout=0.05)


async def silent_end(exchange):
    exchange.close()

"""How many transactions an order has: what is proved where an answer is as long as answers get, and what a
hostile answer costs.
"""

from __future__ import annotations

import asyncio
import json
import time
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest

from orchestrator.gateway.client import Gateway
from orchestrator.gateway.outcomes import Done, Refused, Unknown
from orchestrator.gateway.payments import DEFAULT_ROWS
from tests.integration.gateway.misbehaving import Exchange, Misbehaving, answering
from tests.integration.gateway.scene import account, gateway_that, settings, token_answer
from tests.unit.gateway.test_payments import row, xml
from tests.unit.gateway.test_xml import HOSTILE


def gateway_of(
    count: int, *, knows_limit: bool = True, knows_sort: bool = True, most: int = 100, tied: bool = False
):
    """Return an answerer that holds `count` declined attempts, one a minute, and supports what the arguments
    say.
    """
    attempts = [
        row(
            TransactionId=str(1000 + number),
            TransactionStatus="preauth_failed",
            ReservedAmount="0.00",
            CreatedDate="2026-01-02 03:00:00"
            if tied
            else f"2026-01-02 {number // 60:02}:{number % 60:02}:05",
        )
        for number in range(count)
    ]

    async def answer(exchange: Exchange) -> None:
        query = parse_qs(urlsplit(exchange.request_line.split()[1]).query)
        rows = attempts[::-1] if query["sort"] == ["desc"] or not knows_sort else attempts
        limit = int(query["limit"][0]) if knows_limit else DEFAULT_ROWS
        await exchange.respond(
            200, xml("".join(rows[: min(limit, most)]), result=""), content_type="text/xml"
        )

    return answer


def looked_up(answer, *, times: int = 1):
    async def scene():
        async with gateway_that(answer, gateway_answer_limit=2_000_000) as (
            gateway,
            server,
            merchant,
        ):
            outcomes = [await gateway.find_payments(merchant, order_ref="ORD-1") for _ in range(times)]
            assert all(isinstance(outcome, Done) for outcome in outcomes)
            queries = [exchange.request_line.split("&", 1)[1].split()[0] for exchange in server.asked]
            return outcomes[-1].value, queries

    return asyncio.run(scene())


DESC, FEWER, ASC = "sort=desc&limit=100", "sort=asc&limit=9", "sort=asc&limit=100"


@pytest.mark.parametrize("count", [0, 1, 9, 11, 99])
def test_an_ordinary_lookup_is_one_call(count):
    found, queries = looked_up(gateway_of(count))
    assert (len(found.transactions), found.at_limit, queries) == (count, False, [DESC])


@pytest.mark.parametrize("tied", [False, True])
def test_ten_rows_are_all_where_the_gateway_knows_a_limit_and_that_is_asked_once(tied):
    found, queries = looked_up(gateway_of(10, tied=tied), times=3)
    assert (len(found.transactions), found.at_limit) == (10, False)
    assert queries == [DESC, FEWER, DESC, DESC]


@pytest.mark.parametrize(("count", "whole"), [(10, True), (11, True), (18, True), (19, False), (40, False)])
def test_without_a_limit_ten_rows_are_all_where_both_ends_of_the_list_meet(count, whole):
    found, queries = looked_up(gateway_of(count, knows_limit=False))
    assert (len(found.transactions), found.at_limit) == (count if whole else 10, not whole)
    assert queries == [DESC, FEWER]
    assert len({transaction.transaction_id for transaction in found.transactions}) == len(found.transactions)


@pytest.mark.parametrize("count", [10, 11, 15, 40])
def test_a_gateway_that_knows_neither_limit_nor_order_proves_nothing(count):
    found, _ = looked_up(gateway_of(count, knows_limit=False, knows_sort=False))
    assert (len(found.transactions), found.at_limit) == (10, True)


def test_rows_of_one_second_prove_no_order():
    found, _ = looked_up(gateway_of(12, knows_limit=False, tied=True))
    assert found.at_limit


@pytest.mark.parametrize(
    ("count", "whole"), [(100, True), (150, True), (198, True), (199, False), (500, False)]
)
def test_a_hundred_rows_are_read_from_both_ends(count, whole):
    found, queries = looked_up(gateway_of(count))
    assert (len(found.transactions), found.at_limit) == (count if whole else 100, not whole)
    assert queries == [DESC, ASC]


def test_a_second_call_that_fails_leaves_the_doubt():
    first = gateway_of(10)

    async def answer(exchange: Exchange) -> None:
        await (first(exchange) if "sort=desc" in exchange.request_line else exchange.respond(503))

    found, queries = looked_up(answer)
    assert (len(found.transactions), found.at_limit, len(queries)) == (10, True, 2)


# ── Answers that are damaged ──────────────────────────────────────────────────────────────────────────────

MARK = b"\xef\xbb\xbf"
METHODS = {"methods": [{"id": "m-1", "type": "CARD", "name": "Kort å"}]}


@pytest.mark.parametrize(
    "damaged",
    [
        lambda raw: MARK + raw,
        lambda raw: MARK + MARK + b"\r\n" + raw,
        lambda raw: raw.decode().encode("utf-16"),
        lambda raw: raw + b"\x00",
        lambda raw: raw.decode().encode("cp1252"),
    ],
)
def test_json_behind_a_mark_or_in_another_encoding_is_read(damaged):
    async def scene():
        outcomes = []
        for body in (token_answer("abc"), b'{"sessionId":"s-1"}', msgspec.json.encode(METHODS)):
            async with gateway_that(answering(200, damaged(body))) as (gateway, _, merchant):
                outcomes.append(
                    [
                        await gateway.authenticate(merchant),
                        await gateway.open_session(merchant, "tok", {}, user_agent=None),
                        await gateway.list_methods(merchant, "tok", "s", user_agent=None),
                    ][len(outcomes)]
                )
        return outcomes

    fetched, opened, listed = asyncio.run(scene())
    assert (fetched.value.value, opened.value.session_id) == ("abc", "s-1")
    assert listed == Done(tuple(METHODS["methods"]))


@pytest.mark.parametrize(
    "odd",
    [
        None,
        7,
        "m",
        [],
        {},
        {"id": None},
        {"id": 7},
        {"id": " "},
        {"id": "x" * 256},
        {"id": "m", "name": "a\0b"},
    ],
)
def test_a_method_that_cannot_be_used_is_left_out_and_said_so(odd, capsys):
    usable = {"id": "m-1", "type": "CARD"}

    async def listed(methods):
        async with gateway_that(answering(200, json.dumps({"methods": methods}).encode())) as (
            gateway,
            _,
            merchant,
        ):
            return await gateway.list_methods(merchant, "tok", "s", user_agent=None)

    assert asyncio.run(listed([odd, usable, odd])) == Done((usable,))
    assert "methods_skipped" in capsys.readouterr().out
    assert isinstance(asyncio.run(listed([odd, odd])), Unknown)
    assert asyncio.run(listed([usable])) == Done((usable,))
    assert "methods_skipped" not in capsys.readouterr().out


# ── Answers that cost ─────────────────────────────────────────────────────────────────────────────────────


def test_many_values_of_json_are_refused_before_they_are_made():
    async def scene():
        body = b'{"methods":[' + b",".join([b"[]"] * 60_000) + b"]}"
        async with gateway_that(answering(200, body), gateway_answer_limit=2_000_000) as (
            gateway,
            _,
            merchant,
        ):
            return await gateway.list_methods(merchant, "tok", "s", user_agent=None)

    assert asyncio.run(scene()) == Unknown("The gateway's JSON holds more values than an answer has.")


def test_a_hostile_gateway_delays_no_other_merchant_and_its_circuit_is_opened():
    """The event loop is never held for long, and the hostile gateway's own breaker opens."""

    async def scene():
        bodies = list(HOSTILE.values())
        hostile_calls = 0

        async def hostile(exchange: Exchange) -> None:
            nonlocal hostile_calls
            hostile_calls += 1
            await exchange.respond(200, bodies[hostile_calls % len(bodies)], content_type="text/xml")

        longest = 0.0

        async def watch():
            nonlocal longest
            while True:
                before = time.perf_counter()
                await asyncio.sleep(0.001)
                longest = max(longest, time.perf_counter() - before)

        async with (
            Misbehaving(hostile) as bad,
            Misbehaving(answering(200, xml(row()), content_type="text/xml")) as good,
            Gateway(settings(gateway_answer_limit=2_000_000, breaker_failures=20)) as gateway,
        ):

            async def attack():
                return [await gateway.find_payments(account(bad.url), order_ref="ORD-1") for _ in range(10)]

            async def serve():
                return [await gateway.find_payments(account(good.url), order_ref="ORD-1") for _ in range(50)]

            watching = asyncio.create_task(watch())
            attacked, served, _ = await asyncio.gather(attack(), serve(), attack())
            watching.cancel()
            after = await gateway.find_payments(account(bad.url), order_ref="ORD-1")
        return attacked, served, longest, after

    attacked, served, longest, after = asyncio.run(scene())
    print(f"longest block of the loop: {longest * 1000:.1f} ms")
    assert all(
        isinstance(outcome, Unknown | Refused) or type(outcome).__name__ == "Busy" for outcome in attacked
    )
    assert any(isinstance(outcome, Unknown) and outcome.unreadable for outcome in attacked)
    assert all(isinstance(outcome, Done) for outcome in served)
    assert type(after).__name__ == "Busy", "the gateway's breaker counts what it cannot read"
    assert longest < 2.0

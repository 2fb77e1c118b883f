"""Shoppers pay once, and the shop's callbacks are graded as the gateway's by our real code."""

from __future__ import annotations

import time
from urllib.parse import parse_qs

import pytest

from orchestrator.devkit.bench.shoppers import ShopperProfile
from orchestrator.gateway.callbacks import Grade, grade, read_body
from tests.integration.bench.parties import AT_ONCE, CHECKOUT, SECRET, asked, light, offered, shop, until

pytestmark = pytest.mark.anyio


def graded(exchange, secret=SECRET):
    facts = read_body(exchange.headers["content-type"], exchange.body)
    header = exchange.headers.get("altapay-signature")
    return grade(header, exchange.body, lambda: facts, [secret], now=time.time()), facts


def document(exchange):
    """Return the XML that a callback brings, which the product itself never reads."""
    return parse_qs(exchange.body.decode())["xml"][0]


async def test_a_payment_has_two_callbacks_and_both_have_a_valid_proof():
    async with shop() as server, light(shoppers=AT_ONCE) as (gateway, client, account):
        await offered(client, account, asked(url=server.url))
        await until(
            lambda: (
                sum(map(len, (told.milliseconds for told in gateway.books.callback_results.values()))) == 2
            )
        )
        assert {request.request_line.split()[1] for request in server.asked} == {"/success", "/notification"}
        (found,) = (await client.find_payments(account, order_ref="b-1")).value.transactions
        for request in server.asked:
            proof, facts = graded(request)
            assert proof is Grade.SIGNED
            assert graded(request, "another secret")[0] is Grade.WRONG
            assert (facts.order_ref, facts.checkout, facts.status) == ("b-1", CHECKOUT, "succeeded")
            assert (facts.amount, facts.currency, facts.transaction_id) == (
                13900,
                "DKK",
                found.transaction_id,
            )
            assert facts.flags == ()
            assert document(request).endswith("</APIResponse>\n")
        assert gateway.books.callback_results["success"].answers == {"303": 1}
        assert gateway.books.callback_results["notification"].answers == {"200": 1}


async def test_the_document_in_a_callback_is_the_document_that_a_lookup_shows():
    from orchestrator.gateway import payments

    async with shop() as server, light(shoppers=AT_ONCE) as (gateway, client, account):
        await offered(client, account, asked(url=server.url, captures=True))
        await until(lambda: len(server.asked) == 2 and not gateway.books.telling)
        looked_up = (await client.find_payments(account, order_ref="b-1")).value.transactions
        assert payments.parse(document(server.asked[0]).encode()).transactions == looked_up


async def test_a_shopper_comes_once_however_often_the_methods_are_listed():
    async with light(shoppers=ShopperProfile(think=0.5)) as (gateway, client, account):
        token, session, _ = await offered(client, account, asked())
        assert gateway.books.thinking == 1
        await client.list_methods(account, token.value.value, session.value.session_id, user_agent=None)
        await until(lambda: not gateway.books.thinking)
        await client.list_methods(account, token.value.value, session.value.session_id, user_agent=None)
        assert gateway.books.thinking == 0
        assert len(gateway.books.orders["b-1"].paid) == 1


async def test_no_order_is_paid_where_there_are_no_shoppers():
    async with light() as (gateway, client, account):
        await offered(client, account, asked())
        assert gateway.books.thinking == 0


async def test_a_shopper_of_a_run_that_is_over_pays_nothing():
    async with light(shoppers=ShopperProfile(think=0.5, jitter=0.0)) as (gateway, client, account):
        await offered(client, account, asked())
        before = gateway.books.orders["b-1"]
        gateway.books.reset()
        await offered(client, account, asked("b-2"))
        await until(lambda: gateway.books.orders["b-2"].paid)
        assert before.paid == []
        assert gateway.books.thinking == 0


async def test_a_shop_that_is_away_is_noted_and_stops_no_shopper():
    async with light(shoppers=AT_ONCE) as (gateway, client, account):
        await offered(client, account, asked())  # no server listens there
        await until(lambda: gateway.books.orders["b-1"].paid and not gateway.books.telling)
        assert gateway.books.callback_results["success"].answers == {"ConnectionRefusedError": 1}
        assert len(gateway.books.callback_results["notification"].milliseconds) == 1


async def test_many_callbacks_go_over_few_connections():
    async with (
        shop() as server,
        light(shoppers=ShopperProfile(think=0.01, secret=SECRET)) as (gateway, client, account),
    ):
        for number in range(60):
            await offered(client, account, asked(f"b-{number}", url=server.url))
        await until(lambda: len(server.asked) == 120 and not gateway.books.telling)
        assert server.connections < 60

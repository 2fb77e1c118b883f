"""The light gateway works with our real client; its faults are faults to the client, and its books are
exact.
"""

from __future__ import annotations

from uuid import UUID

import msgspec
import pytest

from orchestrator.devkit.bench import http_pool
from orchestrator.devkit.bench.latency import Latency
from orchestrator.domain.payment_meaning import PaymentMeaning, read
from orchestrator.gateway.outcomes import Done, Refused, Unauthorized, Unknown
from tests.integration.bench.parties import AT_ONCE, CHECKOUT, asked, light, offered, until

pytestmark = pytest.mark.anyio


async def test_a_session_is_opened_and_its_methods_are_listed():
    async with light() as (gateway, client, account):
        token, session, methods = await offered(client, account, asked())
        assert token.value.lifetime == 3600.0
        assert UUID(session.value.session_id)
        assert [method["type"] for method in methods.value] == ["CARD", "MOBILE_WALLET"]
        nothing = await client.find_payments(account, order_ref="b-1")
        assert nothing.value.transactions == ()
        assert not nothing.value.at_limit
        assert gateway.books.calls == {"authenticate": 1, "session": 1, "payment-methods": 1, "payments": 1}


@pytest.mark.parametrize(
    ("captures", "status", "captured", "meaning"),
    [(False, "preauth", 0, PaymentMeaning.RESERVED), (True, "captured", 13900, PaymentMeaning.CAPTURED)],
)
async def test_a_payment_is_bound_to_the_checkout_that_asked_for_it(captures, status, captured, meaning):
    async with light(shoppers=AT_ONCE) as (gateway, client, account):
        await offered(client, account, asked(captures=captures))
        await until(lambda: gateway.books.orders["b-1"].paid)
        (paid,) = (await client.find_payments(account, order_ref="b-1")).value.transactions
        assert (paid.order_ref, paid.payment_infos) == ("b-1", {"checkout": CHECKOUT})
        assert (paid.status, paid.reserved, paid.captured, paid.currency) == (status, 13900, captured, "DKK")
        assert (read(paid), paid.raw_flags) == (meaning, ())
        assert paid.reserved_until is not None


async def test_two_payments_of_one_order_are_both_shown():
    async with light(shoppers=AT_ONCE) as (gateway, client, account):
        await offered(client, account, asked(checkout=None))
        order = gateway.books.orders["b-1"]
        await until(lambda: order.paid)
        order.paid.append(order.paid[0])
        found = (await client.find_payments(account, order_ref="b-1")).value.transactions
        assert [transaction.payment_infos for transaction in found] == [{}, {}]
        assert gateway.books.books().doubled == ["b-1"]


@pytest.mark.parametrize(("amount", "currency", "minor"), [("1000", "JPY", 1000), ("1.234", "KWD", 1234)])
async def test_currencies_keep_their_decimals(amount, currency, minor):
    async with light(shoppers=AT_ONCE) as (gateway, client, account):
        await offered(client, account, asked(amount=amount, currency=currency))
        await until(lambda: gateway.books.orders["b-1"].paid)
        (paid,) = (await client.find_payments(account, order_ref="b-1")).value.transactions
        assert (paid.reserved, paid.currency, paid.raw_flags) == (minor, currency, ())


async def test_what_is_not_known_is_refused():
    async with light() as (gateway, client, account):
        token, _, _ = await offered(client, account, asked())
        foreign = "header.payload.signature"
        assert isinstance(await client.open_session(account, foreign, asked(), user_agent=None), Unauthorized)
        assert isinstance(await client.list_methods(account, foreign, "x", user_agent=None), Unauthorized)
        unknown = await client.list_methods(account, token.value.value, "no-session", user_agent=None)
        assert isinstance(unknown, Refused)
        for body in ({"order": {}}, asked(order="b/1"), asked(checkout="<id>"), asked(currency="XXX")):
            refused = await client.open_session(account, token.value.value, body, user_agent=None)
            assert isinstance(refused, Refused), body
        assert list(gateway.books.orders) == ["b-1"]


async def test_a_token_stays_valid_when_a_new_token_is_signed():
    async with light() as (gateway, client, account):
        token, _, _ = await offered(client, account, asked())
        gateway._tokens.renew()
        newer = await client.authenticate(account)
        assert newer.value.value != token.value.value
        for granted in (token, newer):
            assert isinstance(
                await client.open_session(account, granted.value.value, asked(), user_agent=None), Done
            )


async def test_every_fault_is_unknown_to_the_client_and_nothing_was_done():
    async with light() as (gateway, client, account):
        token, _, _ = await offered(client, account, asked())
        gateway._faults = 1.0
        reasons = set()
        for _ in range(3):
            outcome = await client.open_session(account, token.value.value, asked("b-2"), user_agent=None)
            assert isinstance(outcome, Unknown)
            reasons.add(outcome.reason)
        assert len(reasons) == 3
        assert gateway.books.faults == {"500": 1, "503": 1, "closed": 1}
        assert "b-2" not in gateway.books.orders


async def test_a_share_of_calls_breaks():
    async with light(faults=0.3) as (gateway, client, account):
        outcomes = [await client.find_payments(account, order_ref="b-1") for _ in range(200)]
        broken = sum(isinstance(outcome, Unknown) for outcome in outcomes)
        # aiohttp itself repeats a GET on a connection that was closed.
        assert 20 <= broken <= sum(gateway.books.faults.values()) <= 120


async def test_an_answer_is_as_late_as_it_is_to_be_and_its_time_is_noted():
    async with light(latency=Latency(0.05)) as (gateway, client, account):
        await offered(client, account, asked())
        assert gateway.books.waited >= 0.149  # timers are exact to a millisecond


async def test_a_second_session_for_one_order_is_noted():
    async with light() as (gateway, client, account):
        await offered(client, account, asked())
        await offered(client, account, asked())
        assert gateway.books.books().doubled == ["b-1"]


async def test_the_books_can_be_read_and_cleared_over_http():
    async with light(shoppers=AT_ONCE) as (gateway, client, account):
        await offered(client, account, asked())
        await until(lambda: not gateway.books.telling and gateway.books.orders["b-1"].paid)
        host, port = account.url.removeprefix("http://").split(":")
        lines = http_pool.HttpPool(host, int(port), most=1)

        async def ask(method, path):
            answer = await lines.exchange(http_pool.request(method, account.url, path, headers={}))
            return answer.status, msgspec.json.decode(answer.body)

        assert await ask("GET", "/healthz") == (200, {"status": "ok"})
        _, books = await ask("GET", "/bench/books")
        (payment,) = books["payments"]
        paid = gateway.books.orders["b-1"].paid[0]
        assert payment == {
            "order_ref": "b-1",
            "checkout": CHECKOUT,
            "transaction_id": paid.transaction_id,
            "payment_id": paid.payment_id,
            "amount": 13900,
            "captured": 0,
            "currency": "DKK",
            "at": paid.at,
        }
        _, state = await ask("GET", "/bench/state")
        assert (state["paid"], state["thinking"], state["telling"]) == (1, 0, 0)
        delivery = http_pool.request(
            "POST", account.url, "/bench/webhook", headers={"webhook-id": f"{CHECKOUT}-1"}
        )
        assert [(await lines.exchange(delivery)).status for _ in range(2)] == [204, 204]
        assert (await ask("GET", "/bench/books"))[1]["events"] == [f"{CHECKOUT}-1"]
        assert await ask("POST", "/bench/reset") == (200, {})
        _, books = await ask("GET", "/bench/books")
        assert (books["payments"], books["calls"]["session"], books["events"]) == ([], 0, [])
        assert (await ask("GET", "/bench/else"))[0] == 404
        lines.close()

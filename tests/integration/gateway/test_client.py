"""The client against a gateway that misbehaves on a real socket: whatever happens gives the right
outcome.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import socket
from dataclasses import replace
from decimal import Decimal

import msgspec
import pytest
import structlog

from orchestrator.gateway import client, http
from orchestrator.gateway.answers import Reader
from orchestrator.gateway.client import Gateway, Session, Token
from orchestrator.gateway.outcomes import Busy, Done, NotSent, Refused, Unknown
from tests.integration.gateway.misbehaving import Exchange, Misbehaving, answering
from tests.integration.gateway.scene import (
    LIMIT,
    account,
    authenticated,
    gateway_that,
    settings,
    token,
    token_answer,
)
from tests.integration.gateway.tls import certified

METHODS = {
    "methods": [
        {"id": "m-1", "type": "CARD", "onInitiatePayment": {"type": "URL", "value": "https://example.com"}}
    ]
}
PAYMENTS = (
    b"<APIResponse><Header><ErrorCode>0</ErrorCode></Header><Body><Result>%s</Result>%s</Body></APIResponse>"
)
ROWS = (
    b"<Transactions><Transaction><TransactionId>7</TransactionId><TransactionStatus>preauth</TransactionStatus>"
    b"<MerchantCurrencyAlpha>DKK</MerchantCurrencyAlpha><ReservedAmount>139.00</ReservedAmount></Transaction></Transactions>"
)


# ── What is sent ──────────────────────────────────────────────────────────────────────────────────────────


def test_each_call_asks_as_the_gateway_documents_it(run):
    async def answer(exchange: Exchange) -> None:
        path = exchange.request_line.split()[1]
        body = PAYMENTS % (b"Success", ROWS)
        if path.endswith("/authenticate"):
            body = token_answer(token(iat=1000, exp=2800))
        elif path.endswith("/session"):
            body = b'{"sessionId":"5c2e-1"}'
        elif path.endswith("/payment-methods"):
            body = msgspec.json.encode(METHODS)
        await exchange.respond(200, body)

    async def scene():
        async with gateway_that(answer) as (gateway, server, merchant):
            intent = {
                "order": {"orderId": "ORD-1", "amount": {"value": Decimal("139.50"), "currency": "DKK"}}
            }
            outcomes = [
                await gateway.authenticate(merchant),
                await gateway.open_session(merchant, "tok", intent, user_agent="Phone/1\r\nX-Evil: 1é"),
                await gateway.list_methods(merchant, "tok", "5c2e-1", user_agent="Phone/1"),
                await gateway.list_methods(merchant, "tok", "a/b c", user_agent=None),
                await gateway.find_payments(merchant, order_ref="ORD-1"),
                await gateway.find_payments(merchant, transaction_id="7", order_ref="p"),
                await gateway.find_payments(merchant, order_ref="ä 1&b=/%:+"),
            ]
        return outcomes, server

    outcomes, server = run(scene())
    fetched, opened, listed, _, found, *_ = outcomes
    assert fetched == Done(Token(token(iat=1000, exp=2800), 1800.0))
    assert opened == Done(Session("5c2e-1"))
    assert listed == Done(tuple(METHODS["methods"]))
    assert isinstance(found, Done)
    assert [(t.transaction_id, t.reserved) for t in found.value.transactions] == [("7", 13900)]
    assert not found.value.at_limit

    assert [exchange.request_line for exchange in server.asked] == [
        "POST /checkout/v1/api/authenticate HTTP/1.1",
        "POST /checkout/v1/api/session HTTP/1.1",
        "GET /checkout/v1/api/session/5c2e-1/payment-methods HTTP/1.1",
        "GET /checkout/v1/api/session/a%2Fb%20c/payment-methods HTTP/1.1",
        "GET /merchant/API/payments?shop_orderid=ORD-1&sort=desc&limit=100 HTTP/1.1",
        "GET /merchant/API/payments?shop_orderid=p&transaction_id=7&sort=desc&limit=100 HTTP/1.1",
        "GET /merchant/API/payments?shop_orderid=%C3%A4+1%26b%3D/%25:%2B&sort=desc&limit=100 HTTP/1.1",
    ]
    basic = "Basic " + base64.b64encode("api@example.com:pass:wörd".encode()).decode()
    assert [exchange.headers["authorization"] for exchange in server.asked] == [
        basic,
        *["Bearer tok"] * 3,
        *[basic] * 3,
    ]
    agents = [exchange.headers["user-agent"] for exchange in server.asked]
    assert agents[1:4] == ["Phone/1X-Evil: 1", "Phone/1", client.USER_AGENT]
    assert {exchange.headers["accept-encoding"] for exchange in server.asked} == {"identity"}
    assert {exchange.headers["accept"][:16] for exchange in server.asked} == {"application/json"}
    assert server.asked[0].headers["content-length"] == "0"
    assert server.asked[1].headers["content-type"] == "application/json"
    assert server.asked[1].body == b'{"order":{"orderId":"ORD-1","amount":{"value":139.50,"currency":"DKK"}}}'
    assert server.connections == 1, "one connection is kept for all calls"


def test_no_cookie_is_kept_and_no_redirect_followed(run):
    async def scene():
        async with Misbehaving(answering(200, token_answer("opaque"))) as elsewhere:
            redirect = answering(307, b"", location=elsewhere.url, set_cookie="a=b; Path=/")
            async with gateway_that(redirect) as (gateway, server, merchant):
                first = await gateway.authenticate(merchant)
                await gateway.authenticate(merchant)
            return first, elsewhere.asked, ["cookie" in exchange.headers for exchange in server.asked]

    assert run(scene()) == (Unknown("The gateway answered HTTP 307."), [], [False, False])


def test_the_environment_names_no_proxy(run, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert isinstance(run(authenticated(answering(200, token_answer("opaque")))), Done)


# ── Nothing reached the gateway ───────────────────────────────────────────────────────────────────────────


def test_a_refused_connection_was_not_sent(run):
    with socket.socket() as taken:
        taken.bind(
            ("127.0.0.1", 0)
        )  # bound, not listening: no other process gets the port, and none answers on it

        async def scene():
            async with Gateway(settings()) as gateway:
                return await gateway.authenticate(account(f"http://127.0.0.1:{taken.getsockname()[1]}"))

        assert run(scene()) == NotSent("The gateway could not be connected to.")


def test_a_connection_that_is_never_taken_was_not_sent(run):
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        # The kernel completes what fits into the queue of a listener; the rest waits for an accept() that
        # never comes.
        clients = [socket.socket() for _ in range(3)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex(full.getsockname())

        async def scene():
            async with Gateway(settings(gateway_connect_timeout=0.5)) as gateway:
                return await gateway.authenticate(account(f"http://127.0.0.1:{full.getsockname()[1]}"))

        assert run(scene()) == NotSent("The gateway did not take the connection in time.")
        for client in clients:
            client.close()


@pytest.mark.parametrize(
    "url", ["http://gateway.invalid", "http://[::1", "ftp://127.0.0.1", "127.0.0.1", "http://", "http://a b"]
)
def test_a_url_that_leads_nowhere_was_not_sent(run, url):
    async def scene():
        async with Gateway(settings()) as gateway:
            return await gateway.authenticate(account(url))

    assert isinstance(run(scene()), NotSent)


def test_an_invalid_merchant_api_url_does_not_affect_the_checkout_api(run):
    async def scene():
        async with gateway_that(answering(200, token_answer("opaque"))) as (gateway, _, merchant):
            odd = replace(merchant, merchant_api_url="http://[::1")
            return await gateway.authenticate(odd), await gateway.find_payments(odd, order_ref="ORD-1")

    fetched, found = run(scene())
    assert isinstance(fetched, Done)
    assert found == NotSent("The gateway's URL of this merchant is not a URL.")


def test_with_an_untrusted_certificate_nothing_was_sent(run, tmp_path):
    context, _ = certified(tmp_path)

    async def scene():
        async with (
            Misbehaving(answering(200, token_answer("t")), tls=context) as server,
            Gateway(settings()) as gateway,
        ):
            return await gateway.authenticate(account(server.url)), server.asked

    assert run(scene()) == (NotSent("No secure connection to the gateway could be made."), [])


@pytest.mark.parametrize("greeting", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
def test_a_gateway_that_does_not_speak_tls_was_not_sent_anything(run, greeting):
    async def scene():
        def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(greeting)
            writer.close()

        server = await asyncio.start_server(greet, "127.0.0.1", 0)
        async with server, Gateway(settings()) as gateway:
            return await gateway.authenticate(
                account(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            )

    assert isinstance(run(scene()), NotSent)


def test_a_tls_handshake_that_never_ends_was_not_sent_anything(run):
    async def scene():
        async with gateway_that(says_nothing, gateway_connect_timeout=0.5) as (gateway, server, _):
            return await gateway.authenticate(account(server.url.replace("http", "https")))

    assert run(scene()) == NotSent("The gateway did not take the connection in time.")


def test_a_call_that_finds_no_free_connection_is_our_own_congestion_and_not_the_gateways_fault(run):
    async def scene():
        go_on = asyncio.Event()

        async def slow(exchange: Exchange) -> None:
            await go_on.wait()
            await exchange.respond(200, token_answer("opaque"))

        # A connection is waited for half of the time that a call has in all.
        async with gateway_that(slow, gateway_pool_size=2, gateway_total_timeout=6) as (
            gateway,
            server,
            merchant,
        ):
            served = [asyncio.create_task(gateway.authenticate(merchant)) for _ in range(2)]
            await asyncio.sleep(0)
            clients = await asyncio.gather(*[gateway.authenticate(merchant) for _ in range(3)])
            go_on.set()
            outcomes = [*await asyncio.gather(*served), await gateway.authenticate(merchant)]
        return outcomes, clients, len(server.asked)

    outcomes, clients, asked = run(scene())
    assert clients == [Busy("Every connection to the gateway was busy.")] * 3
    assert [type(outcome) for outcome in outcomes] == [Done] * 3, "slots come back"
    assert asked == 3


# ── Sent, and no usable answer ────────────────────────────────────────────────────────────────────────────


async def accepts_and_closes(exchange: Exchange) -> None:
    exchange.close()


async def resets(exchange: Exchange) -> None:
    exchange.reset()


async def stops_in_the_headers(exchange: Exchange) -> None:
    await exchange.write(b"HTTP/1.1 200 OK\r\nContent-Le")
    exchange.close()


async def closes_in_the_middle(exchange: Exchange) -> None:
    await exchange.write(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"token":')
    exchange.close()


async def resets_in_the_middle(exchange: Exchange) -> None:
    await exchange.write(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"token":')
    await asyncio.sleep(0.05)
    exchange.reset()


async def breaks_its_chunks(exchange: Exchange) -> None:
    await exchange.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n{}\r\n")


async def says_nothing(exchange: Exchange) -> None:
    await asyncio.sleep(60)


async def falls_silent(exchange: Exchange) -> None:
    await exchange.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
    await asyncio.sleep(60)


async def trickles(exchange: Exchange) -> None:
    await exchange.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n")
    while True:
        await exchange.write(b" ")
        await asyncio.sleep(0.1)


async def trickles_headers(exchange: Exchange) -> None:
    await exchange.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        await exchange.write(b"X: y\r\n")
        await asyncio.sleep(0.1)


async def does_not_speak_http(exchange: Exchange) -> None:
    await exchange.write(b"220 mail.example.com ESMTP\r\n\r\n")


async def sends_an_endless_header(exchange: Exchange) -> None:
    await exchange.write(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000 + b"\r\n\r\n")


async def announces_too_much(exchange: Exchange) -> None:
    await exchange.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n{")


async def sends_too_much(exchange: Exchange) -> None:
    await exchange.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    while True:
        await exchange.write(b" " * 4096)


LOST = "The connection to the gateway was lost before it answered."
CUT = "The connection to the gateway was lost in the middle of its answer."


@pytest.mark.parametrize(
    ("answer", "reasons"),
    [
        (accepts_and_closes, {LOST}),
        (resets, {LOST}),
        (stops_in_the_headers, {LOST, "The gateway's answer is not HTTP."}),
        (closes_in_the_middle, {CUT}),
        (resets_in_the_middle, {CUT, LOST}),
        (breaks_its_chunks, {CUT, "The gateway's answer is not HTTP."}),
        (does_not_speak_http, {"The gateway's answer is not HTTP."}),
        (sends_an_endless_header, {"The gateway's answer is not HTTP."}),
        (sends_too_much, {"The gateway's answer went beyond the size limit."}),
    ],
)
def test_a_call_that_left_and_brought_no_answer_is_unknown(run, answer, reasons):
    outcome = run(authenticated(answer))
    assert isinstance(outcome, Unknown)
    assert outcome.reason in reasons


@pytest.mark.parametrize("answer", [says_nothing, falls_silent, announces_too_much])
def test_a_gateway_that_falls_silent_is_waited_for_no_longer_than_a_byte_may_take(run, answer):
    outcome = run(authenticated(answer, gateway_read_timeout=0.3))
    assert outcome == Unknown("The gateway fell silent.")


@pytest.mark.parametrize("answer", [trickles, trickles_headers])
def test_an_answer_that_never_ends_is_waited_for_no_longer_than_a_call_may_take(run, answer):
    outcome = run(authenticated(answer, gateway_total_timeout=0.6))
    assert outcome == Unknown("The gateway did not finish its answer in time.")


def test_an_unexpected_fault_counts_as_sent():
    assert http._fault(OSError(5, "surprise")) == Unknown("The exchange with the gateway broke off.")


# ── Kept connections ──────────────────────────────────────────────────────────────────────────────────────


async def closes_when_used_again(exchange: Exchange) -> None:
    """Answer the first request of a connection and drop the second: a kept connection that just timed out
    over there.
    """
    if getattr(exchange.writer, "used", False):
        exchange.close()
        return
    exchange.writer.used = True  # type: ignore[attr-defined]
    is_get = exchange.request_line.startswith("GET")
    await exchange.respond(200, b'{"methods":[]}' if is_get else token_answer("opaque"))


def test_a_post_on_a_kept_connection_that_was_dropped_is_unknown_and_not_repeated(run):
    async def scene():
        async with gateway_that(closes_when_used_again) as (gateway, server, merchant):
            return [await gateway.authenticate(merchant) for _ in range(3)], len(server.asked)

    outcomes, asked = run(scene())
    assert [type(outcome) for outcome in outcomes] == [Done, Unknown, Done]
    assert asked == 3


def test_a_get_on_a_kept_connection_that_was_dropped_is_asked_once_more(run):
    async def scene():
        async with gateway_that(closes_when_used_again) as (gateway, server, merchant):
            outcomes = [await gateway.list_methods(merchant, "tok", "s", user_agent=None) for _ in range(2)]
            return outcomes, len(server.asked)

    assert run(scene()) == ([Done(()), Done(())], 3)


def test_a_kept_connection_that_was_closed_while_idle_is_not_used(run):
    async def answers_and_closes(exchange: Exchange) -> None:
        await exchange.respond(200, token_answer("opaque"))
        exchange.close()

    async def scene():
        async with gateway_that(answers_and_closes) as (gateway, server, merchant):
            outcomes = []
            for _ in range(3):
                outcomes.append(await gateway.authenticate(merchant))
                await asyncio.sleep(0.05)
            return outcomes, server.connections

    outcomes, connections = run(scene())
    assert ([type(outcome) for outcome in outcomes], connections) == ([Done] * 3, 3)


def test_an_answer_up_to_the_limit_is_read_and_what_is_not_read_to_its_end_closes_the_connection(run):
    async def goes_on(exchange: Exchange) -> None:
        await exchange.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n" + b" " * (LIMIT + 1))
        await asyncio.sleep(60)

    async def scene():
        fits = token_answer("opaque").ljust(LIMIT)
        async with gateway_that(answering(200, fits)) as (gateway, server, merchant):
            outcomes = []
            for answer in (
                answering(200, fits),
                answering(200, fits + b" "),
                goes_on,
                *[answering(403, b"no")] * 2,
            ):
                server.answer = answer
                outcomes.append(await gateway.authenticate(merchant))
            return outcomes, [exchange.connection for exchange in server.asked]

    outcomes, connections = run(scene())
    assert [type(outcome) for outcome in outcomes] == [Done, Unknown, Unknown, Refused, Refused]
    assert {outcome.reason for outcome in outcomes[1:3]} == {
        "The gateway's answer went beyond the size limit."
    }
    assert connections[0] == connections[1], "kept after an answer that fitted"
    assert connections[2] < connections[3] == connections[4], (
        "closed in the middle, kept after a whole refusal"
    )


# ── Cancellation, logs, secrets ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("answer", [says_nothing, falls_silent])
def test_cancellation_passes_through_and_gives_the_slot_back(run, answer):
    async def scene():
        async with gateway_that(answer, gateway_pool_size=1) as (gateway, server, merchant):
            for _ in range(3):
                call = asyncio.create_task(gateway.authenticate(merchant))
                waiting = asyncio.create_task(gateway.authenticate(merchant))
                await asyncio.sleep(0.1)
                waiting.cancel()
                call.cancel()
                results = await asyncio.gather(call, waiting, return_exceptions=True)
                assert [type(result) for result in results] == [asyncio.CancelledError] * 2
            server.answer = answering(200, token_answer("opaque"))
            return await gateway.authenticate(merchant)

    assert isinstance(run(scene()), Done)


def test_a_call_leaves_one_line_without_secrets_or_urls(caplog):
    caplog.set_level(logging.DEBUG, "orchestrator.gateway.client")

    async def scene():
        async with gateway_that(answering(200, token_answer("opaque-token"))) as (gateway, server, merchant):
            await gateway.authenticate(merchant)
            server.answer = answering(500, b"Anna at opaque-token")
            await gateway.list_methods(merchant, "opaque-token", "session-1", user_agent="Phone/1")

    with structlog.testing.capture_logs() as lines:
        asyncio.run(scene())
    assert [{key: value for key, value in line.items() if key != "ms"} for line in lines] == [
        {
            "event": "gateway_called",
            "log_level": "debug",
            "call": "authenticate",
            "merchant": "default",
            "outcome": "Done",
        },
        {
            "event": "gateway_called",
            "log_level": "info",
            "call": "list_methods",
            "merchant": "default",
            "outcome": "Unknown",
            "reason": "The gateway answered HTTP 500.",
        },
    ]


def test_secrets_are_not_printed():
    assert "wörd" not in repr(account("https://gateway.example"))
    assert "abc" not in repr(Token("abc", 1.0))


def test_content_that_cannot_be_written_is_refused_before_it_is_sent():
    async def scene():
        async with gateway_that(answering(200, b"{}")) as (gateway, server, merchant):
            return await gateway.open_session(merchant, "tok", {"a": "\ud800"}, user_agent=None), server.asked

    outcome, asked = asyncio.run(scene())
    assert (type(outcome), asked) == (Refused, [])


def test_a_change_of_a_session_is_put_where_the_session_is(run):
    async def scene():
        async with gateway_that(answering(200, b"{}")) as (gateway, server, merchant):
            content = {"order": {"amount": {"value": Decimal("99.50"), "currency": "DKK"}}}
            amount = Decimal("99.50")
            changed = await gateway.change_session(
                merchant, "tok", "a/b c", content, amount=amount, user_agent="Phone/1"
            )
            unsent = await gateway.change_session(
                merchant, "tok", "s-1", {"a": "\ud800"}, amount=amount, user_agent=None
            )
        return changed, unsent, server

    changed, unsent, server = run(scene())
    assert (changed, type(unsent)) == (Done(None), Refused)
    (exchange,) = server.asked
    assert exchange.request_line == "PUT /checkout/v1/api/session/a%2Fb%20c HTTP/1.1"
    assert exchange.body == b'{"order":{"amount":{"value":99.50,"currency":"DKK"}}}'
    assert (exchange.headers["authorization"], exchange.headers["user-agent"]) == ("Bearer tok", "Phone/1")
    assert exchange.headers["content-type"] == "application/json"


@pytest.mark.parametrize(("status", "changed"), [(200, False), (204, True)])
def test_a_change_that_is_answered_without_a_body_is_done_where_the_status_says_so(run, status, changed):
    async def scene():
        async with gateway_that(answering(status, b"")) as (gateway, _, merchant):
            return await gateway.change_session(
                merchant, "tok", "s-1", {}, amount=Decimal(1), user_agent=None
            )

    outcome = run(scene())
    assert (outcome == Done(None)) == changed
    assert changed or isinstance(outcome, Unknown)


@pytest.mark.parametrize(
    ("answer", "changed"),
    [
        (b"", True),
        (b" \n", False),
        (b"{}", True),
        (b'{"sessionId": "s-1"}', True),
        (b'{"order": {"amount": {"value": 99.5, "currency": "DKK"}}}', True),
        (b'{"order": {"amount": {"value": "99.50"}}}', True),
        (b'{"order": {"amount": {"value": 139.00}}}', False),
        (b'{"order": {"amount": {"value": 99}}}', False),
        (b"<html>", False),
        (b"[]", False),
    ],
)
def test_an_answer_to_a_change_is_believed_unless_it_shows_another_amount(answer: bytes, changed: bool):
    outcome = Reader("changed", "99.50").read(answer)
    assert isinstance(outcome, Done) == changed
    assert changed or (isinstance(outcome, Unknown) and outcome.unreadable)


def test_two_hundred_calls_at_once_share_the_pool(run):
    async def scene():
        async with gateway_that(answering(200, token_answer("opaque")), gateway_pool_size=10) as (
            gateway,
            server,
            merchant,
        ):
            outcomes = await asyncio.gather(*[gateway.authenticate(merchant) for _ in range(200)])
            return {type(outcome) for outcome in outcomes}, server.connections

    kinds, connections = run(scene())
    assert kinds == {Done}
    assert connections <= 10

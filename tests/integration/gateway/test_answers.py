"""Answers that arrive whole and are unusable, refusals or requests to retry later: each gives the right
outcome.
"""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import gzip
from email.utils import format_datetime

import msgspec
import pytest

from orchestrator.domain.transaction import Found
from orchestrator.gateway import http
from orchestrator.gateway.answers import ASSUMED_LIFETIME
from orchestrator.gateway.client import Gateway, Token
from orchestrator.gateway.outcomes import Done, Refused, Throttled, Unauthorized, Unknown
from tests.integration.gateway.misbehaving import Exchange, answering
from tests.integration.gateway.scene import (
    LIMIT,
    account,
    authenticated,
    gateway_that,
    settings,
    token,
    token_answer,
)

PAYMENTS = (
    b"<APIResponse><Header><ErrorCode>0</ErrorCode></Header><Body><Result>%s</Result>%s</Body></APIResponse>"
)

BOMB = gzip.compress(b" " * 50_000_000, mtime=0)


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (200, b"", {}),
        (204, b"", {}),
        (200, b"<html>log in</html>", {"content_type": "text/html"}),
        (200, b'{"token":"abc', {}),
        (200, b"[]", {}),
        (200, b'"abc"', {}),
        (200, b"null", {}),
        (200, b"[" * 15_000, {}),
        (200, b'{"a":' * 3_000, {}),
        (200, b'{"token":"\xff"}', {}),
        (200, b'{"token":"\\ud800"}', {}),
        (200, BOMB[:LIMIT], {"content_encoding": "gzip"}),
        (200, gzip.compress(b'{"token":"abc"}', mtime=0), {"content_encoding": "gzip"}),
        (200, b"{}", {}),
        (200, token_answer(None), {}),
        (200, token_answer(17), {}),
        (200, token_answer(["t"]), {}),
        (200, token_answer(""), {}),
        (200, token_answer("two words"), {}),
        (200, token_answer("line\r\nX-Evil: 1"), {}),
        (200, token_answer("t" * 9000), {}),
        (300, b"{}", {}),
        (304, b"", {}),
        (408, b"{}", {}),
        (409, b"{}", {}),
        (425, b"{}", {}),
        (500, b"{}", {}),
        (502, b"<html/>", {}),
        (503, b"{}", {}),
        (504, b"", {}),
        (999, b"", {}),
    ],
)
def test_an_answer_that_is_of_no_use_is_unknown(status, body, headers):
    outcome = asyncio.run(authenticated(answering(status, body, **headers)))
    assert isinstance(outcome, Unknown), outcome


def test_an_interim_answer_that_is_followed_by_nothing_is_unknown():
    outcome = asyncio.run(authenticated(answering(100), gateway_total_timeout=0.6))
    assert isinstance(outcome, Unknown)


@pytest.mark.parametrize("value", [None, 1, "", "../x", "a b", "x" * 200, ["s"]])
def test_a_session_without_a_usable_id_is_unknown(value):
    async def scene():
        async with gateway_that(answering(200, msgspec.json.encode({"sessionId": value}))) as (
            gateway,
            _,
            merchant,
        ):
            return await gateway.open_session(merchant, "tok", {}, user_agent=None)

    assert asyncio.run(scene()) == Unknown("The gateway's answer holds no usable sessionId.")


@pytest.mark.parametrize("body", [b"<html/>", b"[]", b""])
def test_no_call_takes_what_is_no_object(body):
    async def scene():
        async with gateway_that(answering(200, body)) as (gateway, _, merchant):
            return [
                await gateway.open_session(merchant, "tok", {}, user_agent=None),
                await gateway.list_methods(merchant, "tok", "s", user_agent=None),
                await gateway.find_payments(merchant, order_ref="ORD-1"),
            ]

    assert [type(outcome) for outcome in asyncio.run(scene())] == [Unknown] * 3


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"methods": None},
        {"methods": {}},
        {"methods": [[]]},
        {"methods": [{"type": "CARD"}]},
        {"methods": [{"id": 7}]},
        {"methods": [{"id": "m", "name": "a\0b"}]},
        {"methods": [{"id": "m", "deep": nested(100)}]},
    ],
)
def test_methods_that_are_none_are_unknown(answer):
    async def scene():
        async with gateway_that(answering(200, msgspec.json.encode(answer))) as (gateway, _, merchant):
            return await gateway.list_methods(merchant, "tok", "s", user_agent=None)

    assert isinstance(asyncio.run(scene()), Unknown)


def test_no_method_at_all_is_an_answer():
    async def scene():
        async with gateway_that(answering(200, b'{"methods":[]}')) as (gateway, _, merchant):
            return await gateway.list_methods(merchant, "tok", "s", user_agent=None)

    assert asyncio.run(scene()) == Done(())


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (PAYMENTS % (b"", b""), Done(Found(()))),
        (PAYMENTS % (b"Success", b""), Done(Found(()))),
        (
            PAYMENTS % (b"SystemError", b""),
            Unknown("The gateway's lookup ended neither in payments nor in success."),
        ),
        (b"<html/>", Unknown("The gateway's XML is not an APIResponse.")),
        (
            b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>',
            Unknown("The gateway's XML declares a DTD or an entity."),
        ),
        (
            b"<APIResponse><Header><ErrorCode>10000001</ErrorCode><ErrorMessage>Anna</ErrorMessage></Header><Body/></APIResponse>",
            Refused(200, "The gateway refused the lookup.", "10000001"),
        ),
    ],
)
def test_only_a_lookup_that_worked_can_show_that_there_is_no_payment(body, expected):
    async def scene():
        async with gateway_that(answering(200, body, content_type="text/xml")) as (gateway, _, merchant):
            return await gateway.find_payments(merchant, order_ref="ORD-1")

    assert asyncio.run(scene()) == expected


@pytest.mark.parametrize("asked", [{}, {"order_ref": ""}])
def test_a_lookup_of_everything_is_a_mistake_of_the_caller(asked):
    async def scene():
        async with Gateway(settings()) as gateway:
            await gateway.find_payments(account("http://127.0.0.1:9"), **asked)

    with pytest.raises(ValueError, match="needs a filter"):
        asyncio.run(scene())


# ── The gateway said no, or not now ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("status", [400, 402, 403, 404, 405, 410, 413, 415, 422, 451])
def test_a_4xx_is_a_refusal_with_its_status(status):
    outcome = asyncio.run(authenticated(answering(status, b'{"message":"Anna is not welcome"}')))
    assert outcome == Refused(status, f"The gateway refused with HTTP {status}.")


def test_a_401_is_about_the_token_or_the_credentials(run):
    assert isinstance(run(authenticated(answering(401, b"{}"))), Unauthorized)


def test_a_status_counts_even_when_its_body_never_ends(run):
    async def refuses_at_length(exchange: Exchange) -> None:
        await exchange.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 1000\r\n\r\n")
        await asyncio.sleep(60)

    async def scene():
        async with gateway_that(refuses_at_length) as (gateway, server, merchant):
            outcomes = [await gateway.authenticate(merchant) for _ in range(2)]
            return outcomes, server.connections

    assert run(scene()) == ([Refused(404, "The gateway refused with HTTP 404.")] * 2, 2)


LATER = dt.datetime(2026, 1, 5, 8, 0, 30, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (429, {}, None),
        (429, {"retry_after": "7"}, 7.0),
        (429, {"retry_after": " 0 "}, 0.0),
        (429, {"retry_after": "999999999999999999999"}, http.RETRY_AFTER_CAP),
        (429, {"retry_after": "-5"}, None),
        (429, {"retry_after": "soon"}, None),
        (429, {"retry_after": "1.5"}, None),
        (
            429,
            {"retry_after": format_datetime(LATER, usegmt=True), "date": "Mon, 05 Jan 2026 08:00:00 GMT"},
            30.0,
        ),
        (
            429,
            {"retry_after": format_datetime(LATER, usegmt=True), "date": "Mon, 05 Jan 2026 09:00:00 GMT"},
            0.0,
        ),
        (429, {"retry_after": "Wed, 01 Jan 2200 00:00:00 GMT"}, http.RETRY_AFTER_CAP),
        (429, {"retry_after": "Sat, 01 Jan 2000 00:00:00 GMT"}, 0.0),
        (429, {"retry_after": "Wed, 99 Jan 2200 00:00:00 GMT"}, None),
        (429, {"retry_after": "Wed, 01 Jan 2025 00:00:00"}, 0.0),
        (503, {"retry_after": "20"}, 20.0),
    ],
)
def test_a_gateways_retry_after_is_followed_within_bounds(status, headers, seconds):
    outcome = asyncio.run(authenticated(answering(status, b"", **headers)))
    assert isinstance(outcome, Throttled)
    assert outcome.retry_after == seconds


# ── Tokens ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("value", "lifetime"),
    [
        (token(iat=1000, exp=2800), 1800.0),
        (token(iat=1000.5, exp=4600.5), 3600.0),
        (token(exp=2800), ASSUMED_LIFETIME),
        (token(iat=1000), ASSUMED_LIFETIME),
        (token(iat=2800, exp=1000), ASSUMED_LIFETIME),
        (token(iat=1000, exp=1000), ASSUMED_LIFETIME),
        (token(iat=1000, exp=1000 + 10 * 86400), ASSUMED_LIFETIME),
        (token(iat="1000", exp="2800"), ASSUMED_LIFETIME),
        (token(iat=True, exp=2800), ASSUMED_LIFETIME),
        (token(iat=1000, exp=10**400), ASSUMED_LIFETIME),
        (token(iat=float("nan"), exp=float("inf")), ASSUMED_LIFETIME),
        ("opaque", ASSUMED_LIFETIME),
        ("a.b.c", ASSUMED_LIFETIME),
        (f"{base64.urlsafe_b64encode(b'[' * 5000).decode()}.e30.x", ASSUMED_LIFETIME),
        (f"e30.{base64.urlsafe_b64encode(b'[' * 5000).decode()}.x", ASSUMED_LIFETIME),
        (f"e30.{base64.urlsafe_b64encode(b'[1000, 2800]').decode()}.x", ASSUMED_LIFETIME),
        (f"e30.{base64.urlsafe_b64encode(bytes(range(128, 140))).decode()}.x", ASSUMED_LIFETIME),
    ],
)
def test_a_token_lives_as_long_as_it_says_or_as_long_as_is_safe(value, lifetime):
    assert asyncio.run(authenticated(answering(200, token_answer(value)))) == Done(Token(value, lifetime))

"""Limits of requests: for a merchant, a client token, an address; shared through Redis, kept without it."""

from __future__ import annotations

import asyncio
import time

import pytest

from orchestrator.api import limits
from orchestrator.api.limits import Limit, Limits
from orchestrator.api.problems import Refusal
from orchestrator.crypto import Encryptor
from tests.conftest import make_settings
from tests.integration.api.test_intake import problem
from tests.support.api_scene import intent, serving

pytestmark = pytest.mark.anyio

SLOW = {"merchant_requests_per_second": 0.4, "client_requests_per_second": 0.5}
"""Two requests at once, and the next after two seconds or more: no test waits for it."""


def one(**changes) -> Limits:
    settings = make_settings(**changes)
    return Limits(settings, Encryptor(settings.secret_keys))


def admitted(subject: Limits, limit: Limit, key: str = "1", *, tries: int = 100) -> int:
    number = 0
    for _ in range(tries):
        try:
            subject.take({}, limit, key)
        except Refusal:
            continue
        number += 1
    return number


async def test_a_merchant_beyond_its_limit_is_refused_and_told_when_to_come_again(database_url):
    async with serving(make_settings(database_url=database_url, **SLOW)) as api:
        await api.sql("INSERT INTO merchants (name) VALUES ('other')")
        first = await api.get("/v1/checkouts")
        assert first.status_code == 200
        assert first.headers["ratelimit-policy"] == '"merchant";q=2;w=5'
        assert first.headers["ratelimit"].startswith('"merchant";r=1;t=')
        assert (await api.post(intent())).status_code == 202
        refused = await api.post(intent())
        told = problem(refused, 429, "too-many-requests")
        assert told["limit"] == "merchant"
        assert 1 <= int(refused.headers["retry-after"]) <= 3
        assert refused.headers["ratelimit"].startswith('"merchant";r=0;t=')
        assert (await api.get("/v1/checkouts", merchant="other")).status_code == 200


async def test_callbacks_and_health_are_not_limited(database_url):
    async with serving(make_settings(database_url=database_url, **SLOW)) as api:
        urls = api.urls(await api.taken())
        for _ in range(5):
            assert (await api.client.post(urls.success)).status_code == 303
            assert (await api.client.get("/healthz")).status_code == 200


async def test_a_client_token_has_a_limit_of_its_own(database_url):
    async with serving(make_settings(database_url=database_url, client_requests_per_second=0.5)) as api:
        first, second = (await api.post(intent())).json(), (await api.post(intent())).json()

        async def ask(taken):
            headers = {"Authorization": f"Bearer {taken['clientToken']}"}
            return await api.client.get(f"/v1/checkouts/{taken['id']}/status", headers=headers)

        assert [(await ask(first)).status_code for _ in range(3)] == [200, 200, 429]
        assert problem(await ask(first), 429, "too-many-requests")["limit"] == "client-token"
        assert (await ask(second)).status_code == 200
        # Shoppers take nothing of what the merchant's own server may send.
        assert (await api.get(f"/v1/checkouts/{first['id']}")).headers["ratelimit"].startswith('"merchant"')


async def test_failed_authentications_are_limited_by_address(database_url):
    settings = make_settings(
        database_url=database_url, failed_authentications_per_minute=3, trusted_proxies=1
    )
    async with serving(settings) as api:
        taken = (await api.post(intent(), **{"X-Forwarded-For": "2001:db8::1"})).json()
        verified = api.bearer()
        assert (await api.client.get("/v1/checkouts", headers=verified)).status_code == 200

        async def ask(token: str, address: str):
            headers = {"Authorization": f"Bearer {token}", "X-Forwarded-For": address}
            return await api.client.get("/v1/checkouts", headers=headers)

        wrong = ["x.y.z", "a.b.c", "nothing", "again"]
        answers = [await ask(token, f"2001:db8::{number}") for number, token in enumerate(wrong)]
        assert [answer.status_code for answer in answers] == [401, 401, 401, 429]
        assert problem(answers[-1], 429, "too-many-requests")["limit"] == "failed-authentications"
        # A new token is not even looked at; one that was verified before, and a client token of ours, serve.
        new = api.bearer(lifetime=61)["Authorization"].removeprefix("Bearer ")
        assert (await ask(new, "2001:db8::9")).status_code == 429
        known = verified["Authorization"].removeprefix("Bearer ")
        assert (await ask(known, "2001:db8::9")).status_code == 200
        path, headers = f"/v1/checkouts/{taken['id']}/status", {"X-Forwarded-For": "2001:db8::9"}
        own = headers | {"Authorization": f"Bearer {taken['clientToken']}"}
        assert (await api.client.get(path, headers=own)).status_code == 200
        invented = headers | {"Authorization": f"Bearer {'A' * 43}"}
        problem(await api.client.get(path, headers=invented), 429, "too-many-requests")
        # Another network is another caller, and so is a refused scope no failure.
        assert (await ask(new, "2001:db8:0:1::9")).status_code == 200
        for _ in range(5):
            answer = await api.client.get(
                "/v1/events", headers=api.bearer() | {"X-Forwarded-For": "192.0.2.1"}
            )
            assert answer.status_code == 403


async def test_processes_share_a_limit_through_redis(servers, monkeypatch):
    monkeypatch.setattr(limits, "INTERVAL", 0.01)
    redis_url = servers.redis_url
    key = f"shared-{time.monotonic_ns()}"
    limit = Limit("merchant", 0.001, 10)
    first, second = one(redis_url=redis_url), one(redis_url=redis_url)
    for subject in (first, second):
        subject.start()
    try:
        assert admitted(first, limit, key, tries=6) == 6
        await _exchanged(first)
        # The second has not heard of it before its own first exchange.
        assert admitted(second, limit, key, tries=1) == 1
        await _exchanged(second)
        assert admitted(second, limit, key) == 3
        await _exchanged(second)
        second_more = admitted(second, limit, key)
        assert second_more == 0
    finally:
        await first.close()
        await second.close()


async def _exchanged(subject: Limits) -> None:
    async with asyncio.timeout(20):
        while subject.away or subject._untold():  # noqa: ASYNC110 - an exchange sets no event
            await asyncio.sleep(0.01)


async def test_without_redis_each_process_keeps_the_limits_by_itself(monkeypatch):
    monkeypatch.setattr(limits, "INTERVAL", 0.01)
    subject, limit = one(redis_url="redis://127.0.0.1:9/0"), Limit("merchant", 0.001, 10)
    subject.start()
    try:
        assert admitted(subject, limit) == 10
        async with asyncio.timeout(20):
            while subject._untold():  # noqa: ASYNC110 - a failed exchange forgets what it could not tell
                await asyncio.sleep(0.01)
        assert subject.away
        assert admitted(subject, limit) == 0
    finally:
        await subject.close()


async def test_a_moment_that_is_named_is_late_enough(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(limits.time, "monotonic", lambda: now)
    subject, limit = one(), Limit("client-token", 5, 20)
    assert admitted(subject, limit) == 20
    with pytest.raises(Refusal) as refused:
        subject.take({}, limit, "1")
    now += int(refused.value.headers["Retry-After"])
    assert admitted(subject, limit) == 5
    now += 1000
    assert admitted(subject, limit) == 20


def test_a_flood_of_keys_takes_bounded_memory_and_drops_no_merchant(monkeypatch):
    monkeypatch.setattr(limits, "MOST_KEYS", 100)
    subject, limit = one(), Limit("merchant", 0.001, 1)
    assert admitted(subject, limit) == 1
    for number in range(1000):
        subject.count_failure(f"192.0.{number // 256}.{number % 256}")
    assert len(subject._tables["failed-authentications"]) <= 100
    assert admitted(subject, limit) == 0


def test_a_limit_of_nothing_is_no_limit():
    subject = one(
        merchant_requests_per_second=0, client_requests_per_second=0, failed_authentications_per_minute=0
    )
    assert (subject.merchant, subject.client, subject.failures) == (None, None, None)
    subject.take({}, None, "1")
    subject.count_failure("192.0.2.1")
    subject.refuse_failing("192.0.2.1")

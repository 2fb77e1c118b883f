"""What is logged of requests: each of them where it is wanted, refused requests always and never in floods,
and nothing of a person.
"""

from __future__ import annotations

import asyncio
import io
import json
import sys

import pytest
import structlog

from orchestrator import log
from orchestrator.api import request_log
from tests.conftest import make_settings
from tests.support.api_scene import intent, path_of, serving

pytestmark = pytest.mark.anyio


@pytest.fixture
def lines(monkeypatch):
    """Set logging up as JSON; return the lines of one event that were written so far."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    log.configure(style="json", level="info")

    def read(event: str | None = None):
        found = [json.loads(line) for line in stream.getvalue().splitlines()]
        return [line for line in found if event is None or line["event"] == event]

    yield read
    structlog.contextvars.clear_contextvars()


async def answered(api, lines):
    """Wait for what has gathered to be written."""
    for _ in range(2):  # nothing gathered is nothing written
        api.client._transport.app.state.access_log.flush()
    return lines("request_answered")


async def test_each_request_is_a_line_with_its_route_and_nothing_that_could_be_secret(settings, lines):
    async with serving(settings.model_copy(update={"trusted_proxies": 1})) as api:
        await api.post(intent("A-1"), **{"X-Correlation-Id": "c-42", "X-Forwarded-For": "198.51.100.7"})
        checkout = await api.taken("A-2")
        await api.get(f"/v1/checkouts/{checkout}", merchant="default")
        await api.get("/v1/checkouts", orderId="A-secret-order")
        urls = api.urls(checkout)
        await api.client.post(path_of(urls.notification), content=b"shop_orderid=A-2&cardholder=Anna")
        await api.client.get(path_of(urls.redirect), headers={"X-Forwarded-For": "203.0.113.9"})
        await api.client.get("/nowhere/4111111111111111")
        found = await answered(api, lines)

    assert [(line["method"], line["route"], line["status"]) for line in found] == [
        ("POST", "/v1/checkouts", 202),
        ("POST", "/v1/checkouts", 202),
        ("GET", "/v1/checkouts/{checkout_id}", 200),
        ("GET", "/v1/checkouts", 200),
        ("POST", "/callbacks/{kind}/{checkout_id}/{signed}", 200),
        ("GET", "/callbacks/{kind}/{checkout_id}/{signed}", 303),
        ("GET", None, 404),
    ]
    assert (found[0]["correlation_id"], found[0]["source"]) == ("c-42", "198.51.100.7")
    assert all(line["ms"] >= 0 and line["level"] == "info" for line in found)
    assert found[2]["bytes"] > 100
    assert found[5]["source"] is None, "a shopper's address is a person's"
    text = json.dumps(lines())
    for secret in (
        "A-secret-order",
        "Anna",
        "4111111111111111",
        path_of(urls.redirect).rpartition("/")[2],
        "203.0.113.9",
    ):
        assert secret not in text


async def test_no_line_is_written_where_they_are_switched_off(settings, lines):
    async with serving(settings.model_copy(update={"access_log": False})) as api:
        assert (await api.post(intent())).status_code == 202
        assert api.client._transport.app.state.access_log is None
    assert lines("request_answered") == []


async def test_refused_callers_are_named_with_source_and_reason_and_without_their_token(settings, lines):
    async with serving(settings) as api:
        await api.client.post(
            "/v1/checkouts", json={}, headers={"Authorization": "Bearer not-a-token-of-ours"}
        )
        await api.client.get("/v1/checkouts")
        stale = api.bearer(lifetime=1)
        await asyncio.sleep(2)
        await api.client.get("/v1/checkouts", headers=stale)
        await api.client.get("/v1/checkouts", headers=api.bearer(scopes=("checkouts:write",)))
        await api.client.post("/v1/checkouts", json=intent(), headers=api.bearer(scopes=("ops",)))

    failed, forbidden = lines("authentication_failed"), lines("request_forbidden")
    assert [line["route"] for line in failed] == ["/v1/checkouts"] * 3
    assert [
        "not a JSON Web Token" in failed[0]["reason"],
        "needs a token" in failed[1]["reason"],
        "expired" in failed[2]["reason"],
    ] == [True] * 3
    assert [("needs the scope" in line["reason"], line["status"]) for line in forbidden] == [(True, 403)] * 2
    assert {line["source"] for line in (*failed, *forbidden)} == {"127.0.0.1"}
    assert "not-a-token" not in json.dumps(lines())


async def test_callbacks_without_proof_or_with_a_wrong_link_are_named(settings, lines):
    guarded = settings.model_copy(
        update=make_settings(gateway_secrets=("s" * 20,)).model_dump(include={"gateway_secrets"})
    )
    async with serving(guarded) as api:
        checkout = await api.taken()
        await api.services.merchants.named("default")
        path = path_of(api.urls(checkout).notification)
        await api.client.post(path, content=b"status=succeeded", headers={"AltaPay-Signature": "0" * 64})
        await api.client.post(path[:-3] + "xyz", content=b"status=succeeded")

    (unproven,), (wrong,) = lines("callback_without_proof"), lines("callback_link_refused")
    assert (unproven["route"], unproven["source"]) == (
        "/callbacks/{kind}/{checkout_id}/{signed}",
        "127.0.0.1",
    )
    assert wrong["status"] == 404
    assert path.rpartition("/")[2][:-3] not in json.dumps(lines())


async def test_a_flood_of_one_kind_is_bounded_and_counted_and_hides_no_other(settings, lines, monkeypatch):
    monkeypatch.setattr(request_log, "WINDOW", 0.5)
    settings = settings.model_copy(update={"failed_authentications_per_minute": 0.0})
    async with serving(settings) as api:
        for _ in range(100):
            await api.client.get("/v1/checkouts")
        await api.client.get("/v1/checkouts", headers=api.bearer(scopes=("ops",)))
        api.client._transport.app.state.security_log.flush()

    # A minute may have ended in between; what was written and what was left out are all of them, whatever the
    # pace.
    written, left_out = lines("authentication_failed"), lines("security_events_left_out")
    assert len(written) + sum(line["left_out"] for line in left_out) == 100
    assert len(written) < 100
    assert {line["kind"] for line in left_out} == {"authentication_failed"}
    assert len(lines("request_forbidden")) == 1


async def test_an_ordinary_refusal_is_no_matter_of_security(settings, lines):
    async with serving(settings) as api:
        await api.post({"order": {}})
        await api.get("/v1/checkouts/0190a5a0-0000-7000-8000-000000000001")
    assert [line for line in lines() if line["logger"] == "orchestrator.security"] == []

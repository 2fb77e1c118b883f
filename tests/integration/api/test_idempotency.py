"""`Idempotency-Key` of calls whose effect has no key of its own: webhooks."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator.store import idempotent_answers
from tests.integration.api.test_intake import problem
from tests.support.api_scene import serving

pytestmark = pytest.mark.anyio

URL = {"url": "https://shop.example/webhooks"}


def ask(api, path: str = "", body: object = None, *, key: str | None = "k-1", merchant: str = "default"):
    headers = api.bearer(merchant, ("webhooks:write",)) | ({} if key is None else {"Idempotency-Key": key})
    given = {} if body is None else {"json": body}
    return api.client.post(f"/v1/webhooks{path}", headers=headers, **given)


async def test_the_same_request_with_the_same_key_is_done_once_and_answered_the_same(api):
    first = await ask(api, body=URL)
    assert first.status_code == 201
    for _ in range(3):
        again = await ask(api, body=URL)
        assert (again.status_code, again.content) == (201, first.content)
        assert again.headers["location"] == first.headers["location"]
        assert again.headers["content-type"] == first.headers["content-type"]
    assert await api.count("webhook_endpoints") == 1
    # The kept answer has the secret, and is encrypted.
    (row,) = await api.sql("SELECT answer, claim FROM idempotent_answers")
    assert first.json()["secret"].encode() not in bytes(row.answer)
    assert row.claim is None
    # Without a key, or with another, it is another request.
    assert (await ask(api, body=URL, key=None)).json()["id"] != first.json()["id"]
    assert (await ask(api, body=URL, key="k-2")).json()["id"] != first.json()["id"]
    assert await api.count("webhook_endpoints") == 3


async def test_a_secret_is_rotated_once_for_each_key(api):
    webhook = (await ask(api, body=URL)).json()["id"]
    answers = [await ask(api, f"/{webhook}/rotate-secret", key="r") for _ in range(3)]
    assert len({answer.json()["secret"] for answer in answers}) == 1


async def test_a_key_that_was_used_for_another_request_is_refused(api):
    webhook = (await ask(api, body=URL)).json()["id"]
    for path, body in (
        ("", {**URL, "content": "full"}),
        (f"/{webhook}/resume", None),
        (f"/{webhook}/test", None),
    ):
        told = problem(await ask(api, path, body), 422, "idempotency-key-reused")
        assert told["errors"][0]["field"] == "Idempotency-Key"
    assert await api.count("webhook_endpoints") == 1
    # White space and the order of fields are not another request.
    headers = api.bearer(scopes=("webhooks:write",)) | {
        "Idempotency-Key": "order",
        "Content-Type": "application/json",
    }
    for content in (
        '{"url": "https://a.example", "content": "full"}',
        '{ "content":"full", "url":"https://a.example" }',
    ):
        assert (await api.client.post("/v1/webhooks", content=content, headers=headers)).status_code == 201
    assert await api.count("webhook_endpoints") == 2


async def test_a_request_that_comes_while_the_first_is_processed_is_told_to_come_again(api, monkeypatch):
    entered, go_on = asyncio.Event(), asyncio.Event()
    keep = idempotent_answers.keep

    async def slow(*arguments, **named) -> None:
        entered.set()
        await go_on.wait()
        await keep(*arguments, **named)

    monkeypatch.setattr(idempotent_answers, "keep", slow)
    first = asyncio.create_task(ask(api, body=URL))
    await entered.wait()
    busy = await ask(api, body=URL)
    problem(busy, 409, "request-in-progress")
    assert busy.headers["retry-after"] == "1"
    problem(await ask(api, body={**URL, "content": "full"}), 422, "idempotency-key-reused")
    go_on.set()
    assert (await ask(api, body=URL)).status_code in {201, 409}
    made = await first
    assert (await ask(api, body=URL)).content == made.content
    assert await api.count("webhook_endpoints") == 1


async def test_ten_requests_at_once_do_it_once(api):
    answers = await asyncio.gather(*(ask(api, body=URL) for _ in range(10)))
    assert {answer.status_code for answer in answers} <= {201, 409}
    assert len({answer.content for answer in answers if answer.status_code == 201}) == 1
    assert await api.count("webhook_endpoints") == 1


async def test_a_refused_request_uses_up_no_key(api):
    problem(await ask(api, body={"url": 1}), 422, "invalid-webhook")
    assert await api.count("idempotent_answers") == 0
    assert (await ask(api, body=URL)).status_code == 201


async def test_a_request_whose_process_died_is_done_again_after_a_minute(api):
    assert (await ask(api, body=URL)).status_code == 201
    await api.sql(
        "UPDATE idempotent_answers SET answer = NULL, claim = gen_random_uuid(), claimed_until = clock() + interval '1 minute'"
    )
    problem(await ask(api, body=URL), 409, "request-in-progress")
    await api.sql("UPDATE idempotent_answers SET claimed_until = clock() - interval '1 second'")
    assert (await ask(api, body=URL)).status_code == 201
    assert (await ask(api, body=URL)).status_code == 201
    assert await api.count("webhook_endpoints") == 2


async def test_a_repeat_whose_answer_no_key_opens_is_refused_and_does_nothing_again(api):
    assert (await ask(api, body=URL)).status_code == 201
    for answer in ("answer || '\\x00'", "'\\x01'", "'\\x00000000'::bytea || substring(answer FROM 5)"):
        await api.sql(f"UPDATE idempotent_answers SET answer = {answer}")
        problem(await ask(api, body=URL), 409, "answer-unreadable")
    assert await api.count("webhook_endpoints") == 1
    assert (await ask(api, body=URL, key="another")).status_code == 201


async def test_keys_of_merchants_are_unrelated_and_end_after_a_day(api):
    await api.sql("INSERT INTO merchants (name) VALUES ('other')")
    first, other = await ask(api, body=URL), await ask(api, body=URL, merchant="other")
    assert (first.status_code, other.status_code) == (201, 201)
    assert first.json()["id"] != other.json()["id"]
    await api.sql("UPDATE idempotent_answers SET created_at = clock() - interval '1 day 1 second'")
    assert (await ask(api, body=URL)).json()["id"] != first.json()["id"]
    assert await api.count("idempotent_answers") == 1


@pytest.mark.parametrize("key", ["", "x" * 256, "with blank"])
async def test_a_key_that_cannot_be_stored_is_refused(api, key):
    problem(await ask(api, body=URL, key=key), 422, "invalid-idempotency-key")


async def test_a_keyed_request_is_counted_once_and_needs_its_scope(database_url, settings):
    async with serving(settings) as api:
        answer = await ask(api, body=URL)
        burst = api.services.limits.merchant.burst
        assert answer.headers["ratelimit"].startswith(f'"merchant";r={burst - 1};')
        headers = api.bearer(scopes=("webhooks:read",)) | {"Idempotency-Key": "k-1"}
        problem(await api.client.post("/v1/webhooks", json=URL, headers=headers), 403, "insufficient-scope")

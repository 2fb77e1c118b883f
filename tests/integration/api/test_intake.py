from __future__ import annotations

import asyncio
import json
from uuid import UUID

import pytest
import structlog

from orchestrator import auth, callback_urls
from orchestrator.intents import BODY_LIMIT
from orchestrator.store.free_text import Reasons
from tests.conftest import make_settings
from tests.support.api_scene import Api, intent, serving, without_database

pytestmark = pytest.mark.anyio


def problem(answer, status: int, kind: str | None = None) -> dict:
    """The problem document of an answer that must be an error."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert {"type", "title", "status", "detail", "errors", "correlationId"} <= set(document)
    assert document["status"] == status
    assert document["correlationId"] == answer.headers["x-correlation-id"]
    assert kind is None or document["type"].endswith(f":{kind}")
    return document


@pytest.mark.parametrize(("asked", "expected"), [(True, True), (False, False), (None, False)])
async def test_a_checkout_knows_whether_the_gateway_captures_by_itself(api: Api, asked, expected):
    body = intent()
    body["configuration"].pop("autoCapture", None)
    if asked is not None:
        body["configuration"]["autoCapture"] = asked
    assert (await api.post(body)).status_code == 202
    assert [row.auto_capture for row in await api.sql("SELECT auto_capture FROM checkouts")] == [expected]


async def test_a_new_checkout_is_stored_answered_and_hinted_at(api: Api):
    answer = await api.post(intent("A-1"))
    assert answer.status_code == 202
    body = answer.json()
    checkout = UUID(body["id"])
    assert (body["orderId"], body["state"]) == ("A-1", "received")
    assert callback_urls.client_of(api.services.encryptor, body["clientToken"]) == checkout
    assert answer.headers["location"] == body["links"]["self"] == f"/v1/checkouts/{checkout}"
    assert api.hint_publisher.published == [("checkouts", checkout)]
    row = (
        await api.sql(
            "SELECT amount, currency, extract(epoch FROM deadline - created_at)::int AS life FROM checkouts"
        )
    )[0]
    assert (row.amount, row.currency, row.life) == (17900 - 4000 + 0, "DKK", 1800)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
async def test_a_body_with_a_byte_order_mark_is_read(api: Api, encoding):
    headers = api.bearer() | {"Content-Type": "application/json"}
    answer = await api.client.post(
        "/v1/checkouts", content=json.dumps(intent("A-1")).encode(encoding), headers=headers
    )
    assert answer.status_code == 202, answer.text
    rows = json.dumps([intent("A-2"), intent("A-3")]).encode(encoding)
    batch = await api.client.post("/v1/checkouts/batch", content=rows, headers=headers)
    assert [result["status"] for result in batch.json()["results"]] == [202, 202]
    cancel = await api.client.post(
        f"/v1/checkouts/{answer.json()['id']}/cancel",
        content=json.dumps({"reason": "sold out"}).encode(encoding),
        headers=headers,
    )
    assert cancel.status_code == 202, cancel.text
    (row,) = await api.sql("SELECT checkout_id, reason FROM commands")
    reasons = await Reasons.of(api.services.db, api.services.encryptor, row.checkout_id)
    assert (reasons.shown(row.reason), "sold out" in row.reason) == ("sold out", False)


async def test_without_a_life_of_its_own_a_checkout_gets_the_installations(api: Api):
    body = intent()
    del body["expiresIn"]
    await api.post(body)
    row = (await api.sql("SELECT extract(epoch FROM deadline - created_at)::int AS life FROM checkouts"))[0]
    assert row.life == api.services.settings.checkout_expires_in


async def test_the_same_order_with_the_same_content_is_the_same_checkout(api: Api):
    first, second = await api.post(intent("A-1")), await api.post(intent("A-1"))
    assert (first.status_code, second.status_code) == (202, 200)
    assert first.json() == second.json()
    assert len(api.hint_publisher.published) == 1


async def test_the_same_order_with_other_content_is_a_conflict_that_names_the_checkout(api: Api):
    first = await api.post(intent("A-1"))
    document = problem(await api.post(intent("A-1", expiresIn=60)), 409, "order-taken")
    assert document["checkoutId"] == first.json()["id"]
    assert "A-1" in document["detail"]


async def test_fifty_of_the_same_at_once_are_one_checkout(api: Api):
    answers = await asyncio.gather(*(api.post(intent("A-1")) for _ in range(50)))
    assert sorted(answer.status_code for answer in answers) == [200] * 49 + [202]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert await api.count("checkouts") == 1


async def test_an_idempotency_key_for_other_content_is_refused(api: Api):
    assert (await api.post(intent("A-1"), **{"Idempotency-Key": "k-1"})).status_code == 202
    assert (await api.post(intent("A-1"), **{"Idempotency-Key": "k-1"})).status_code == 200
    document = problem(
        await api.post(intent("A-2"), **{"Idempotency-Key": "k-1"}), 422, "idempotency-key-reused"
    )
    assert document["errors"][0]["field"] == "Idempotency-Key"
    assert await api.count("checkouts") == 1


@pytest.mark.parametrize("key", ["", "a b", "k" * 256])
async def test_an_idempotency_key_that_could_not_be_kept_is_refused(api: Api, key):
    problem(await api.post(intent(), **{"Idempotency-Key": key}), 422, "invalid-idempotency-key")


async def test_a_third_decimal_is_refused_with_one_sentence(api: Api):
    body = intent()
    body["order"]["amount"]["value"] = 10.005
    document = problem(await api.post(body), 422, "invalid-intent")
    assert [error["field"] for error in document["errors"]] == ["order.amount.value"]
    assert "10.005 DKK has more decimals than DKK has" in document["detail"]
    assert await api.count("checkouts") == 0


async def test_a_missing_field_is_named(api: Api):
    body = intent()
    del body["order"]["customer"]
    document = problem(await api.post(body), 422, "invalid-intent")
    assert document["errors"] == [{"field": "order.customer", "message": "is missing: it must be an object"}]


async def test_a_body_that_is_no_json_is_refused(api: Api):
    headers = api.bearer() | {"Content-Type": "application/json"}
    document = problem(await api.client.post("/v1/checkouts", content=b"{", headers=headers), 422)
    assert document["errors"][0]["field"] == "body"


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_another_content_type_is_refused(api: Api, content_type):
    headers = api.bearer() | {"Content-Type": content_type}
    problem(await api.client.post("/v1/checkouts", content=json.dumps(intent()), headers=headers), 415)


async def test_a_compressed_body_is_refused(api: Api):
    problem(await api.post(intent(), **{"Content-Encoding": "gzip"}), 415)


async def test_a_body_beyond_the_limit_is_refused_while_it_streams(api: Api):
    read = 0

    async def endless():
        nonlocal read
        while True:
            read += 65_536
            yield b" " * 65_536

    headers = api.bearer() | {"Content-Type": "application/json"}
    problem(await api.client.post("/v1/checkouts", content=endless(), headers=headers), 413, "too-large")
    assert read <= BODY_LIMIT + 2 * 65_536
    problem(await api.client.post("/v1/checkouts", content=b" " * (BODY_LIMIT + 1), headers=headers), 413)


# ── Who may ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_expired_token_is_refused_with_its_own_sentence(api: Api):
    headers = api.bearer(lifetime=1)
    await asyncio.sleep(2.1)
    answer = await api.client.post("/v1/checkouts", json=intent(), headers=headers)
    assert "expired" in problem(answer, 401, "invalid-token")["detail"]
    assert answer.headers["www-authenticate"].startswith("Bearer ")


async def test_a_foreign_token_and_none_at_all_are_refused(api: Api):
    foreign = auth.issue(
        make_settings(jwt_secrets=("another issuer's secret, just as long",)),
        merchant="default",
        scopes=["checkouts:write"],
        lifetime=60,
        subject="s",
    )
    headers = {"Authorization": f"Bearer {foreign}"}
    assert (
        "signature"
        in problem(await api.client.post("/v1/checkouts", json=intent(), headers=headers), 401)["detail"]
    )
    assert "Bearer <token>" in problem(await api.client.post("/v1/checkouts", json=intent()), 401)["detail"]


async def test_a_token_without_the_scope_is_forbidden(api: Api):
    headers = api.bearer(scopes=("checkouts:read",))
    document = problem(
        await api.client.post("/v1/checkouts", json=intent(), headers=headers), 403, "insufficient-scope"
    )
    assert "checkouts:write" in document["detail"]
    headers = api.bearer(scopes=("checkouts:write",))
    problem(await api.client.get("/v1/checkouts", headers=headers), 403, "insufficient-scope")


async def test_a_disabled_or_unknown_merchant_is_forbidden(api: Api):
    problem(await api.post(intent(), merchant="unknown"), 403, "unknown-merchant")
    await api.services.merchants.disable("default", disabled=True)
    problem(await api.post(intent()), 403, "merchant-disabled")
    assert await api.count("checkouts") == 0


# ── Many ──────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_batch_has_a_result_for_each_and_may_be_sent_again(api: Api):
    await api.taken("A-3")
    wrong = intent("A-2")
    wrong["order"]["amount"]["value"] = 10.005
    batch = [intent("A-1"), wrong, intent("A-3", expiresIn=60), intent("A-1"), {}]
    results = (await api.post(batch, path="/v1/checkouts/batch")).json()["results"]
    assert [result["status"] for result in results] == [202, 422, 409, 200, 422]
    assert results[0]["checkout"]["id"] == results[3]["checkout"]["id"]
    assert results[1]["problem"]["errors"][0]["field"] == "order.amount.value"
    again = (await api.post(batch, path="/v1/checkouts/batch")).json()["results"]
    assert [result["status"] for result in again] == [200, 422, 409, 200, 422]
    assert await api.count("checkouts") == 2


@pytest.mark.parametrize("body", [{}, [], "x", [{}] * 501])
async def test_a_batch_that_is_none_is_refused(api: Api, body):
    problem(await api.post(body, path="/v1/checkouts/batch"), 422, "invalid-batch")


async def test_a_batch_takes_no_idempotency_key(api: Api):
    problem(await api.post([intent()], path="/v1/checkouts/batch", **{"Idempotency-Key": "k"}), 422)


# ── What surrounds it ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_harmless_correlation_id_travels_with_the_checkout(api: Api):
    answer = await api.post(intent(), **{"X-Correlation-Id": "cart.7_a-B"})
    assert answer.headers["x-correlation-id"] == "cart.7_a-B"
    assert (await api.get(answer.json()["links"]["self"])).json()["correlationId"] == "cart.7_a-B"
    assert (await api.post(intent(), **{"X-Request-Id": "r-1"})).headers["x-correlation-id"] == "r-1"


@pytest.mark.parametrize("value", ["a b", "a" * 65, "a;b", ""])
async def test_any_other_correlation_id_is_replaced(api: Api, value):
    answer = await api.post(intent(), **{"X-Correlation-Id": value})
    assert answer.headers["x-correlation-id"] != value
    assert len(answer.headers["x-correlation-id"]) == 32


async def test_an_address_that_does_not_exist_is_a_problem(api: Api):
    problem(await api.client.get("/v2/else"), 404)
    problem(await api.client.get("/v1/checkouts/"), 404)


async def test_a_method_that_an_address_does_not_take_is_a_problem_that_names_those_it_takes(api: Api):
    answer = await api.client.put("/v1/checkouts", json={})
    problem(answer, 405)
    assert answer.headers["allow"] == "GET, HEAD, OPTIONS, POST"


async def test_options_and_head_are_answered(api: Api):
    options = await api.client.options("/v1/checkouts")
    assert (options.status_code, options.headers["allow"]) == (204, "GET, HEAD, OPTIONS, POST")
    head = await api.client.head("/v1/checkouts", headers=api.bearer())
    assert (head.status_code, head.content) == (200, b"")
    assert (await api.client.head("/healthz")).status_code == 200


async def test_while_postgres_is_away_an_intent_is_503_and_may_be_sent_again():
    async with serving(without_database(), timeout=1) as api:
        answer = await api.post(intent())
        problem(answer, 503, "database-away")
        assert int(answer.headers["retry-after"]) > 0
        assert api.hint_publisher.published == []


async def test_an_unexpected_error_is_a_problem_without_internal_details_and_a_line_in_the_log(api: Api):
    await api.sql("ALTER TABLE checkouts RENAME COLUMN late TO later")
    with structlog.testing.capture_logs() as lines:
        document = problem(await api.get("/v1/checkouts"), 500, "internal")
    assert "late" not in document["detail"]
    (line,) = [line for line in lines if line["event"] == "request_failed"]
    assert "late" in str(line["exc_info"])

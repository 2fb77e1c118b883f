"""`PATCH /v1/checkouts/{id}`: what is stored, what is refused before it is stored, and how often the same
request counts.
"""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode
from uuid import UUID, uuid4

import pytest

from orchestrator.crypto import Encryptor
from orchestrator.store import inbox
from orchestrator.store.free_text import Reasons
from tests.integration.api.test_commands import another_merchant, in_state, paid, payment
from tests.integration.api.test_intake import problem
from tests.support.api_scene import Api, intent

pytestmark = pytest.mark.anyio

MERGE_PATCH = "application/merge-patch+json"


def basket(amount: float = 99.0, **more: object) -> dict:
    line = {"itemId": "1", "description": "A lamp", "quantity": 1, "unitPrice": amount, "taxAmount": 0}
    return {"order": {"amount": {"value": amount}, "orderLines": [line], **more}}


async def patch(
    api: Api,
    checkout: str,
    body: object,
    *,
    key: str | None = None,
    prefer: str | None = None,
    kind: str = MERGE_PATCH,
    scopes: tuple[str, ...] = ("checkouts:write",),
    merchant: str = "default",
):
    headers = api.bearer(merchant, scopes) | {"Content-Type": kind}
    headers |= {} if key is None else {"Idempotency-Key": key}
    headers |= {} if prefer is None else {"Prefer": prefer}
    # As text, so that a number leaves with the digits that it was written with.
    content = body if isinstance(body, str) else json.dumps(body)
    return await api.client.patch(f"/v1/checkouts/{checkout}", content=content, headers=headers)


async def stored(api: Api) -> list:
    return list(await api.sql("SELECT * FROM commands ORDER BY id"))


# ── What is stored ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", [MERGE_PATCH, "application/json"])
async def test_a_change_is_stored_encrypted_and_wakes_its_checkout(api: Api, kind):
    checkout = await api.taken()
    body = basket(customer={"email": "other@shop.example"}) | {"reason": "one lamp less", "version": 1}
    answer = await patch(api, checkout, body, kind=kind)
    assert answer.status_code == 202
    told = answer.json()
    assert (told["id"], told["state"], told["command"]["kind"]) == (checkout, "received", "change")
    (command,) = await stored(api)
    assert answer.headers["Location"] == f"/v1/commands/{command.id}"
    assert (command.kind, command.expected_version) == ("change", 1)
    reasons = await Reasons.of(api.services.db, api.services.encryptor, UUID(checkout))
    assert "lamp" not in command.reason
    assert reasons.shown(command.reason) == "one lamp less"
    assert "other@shop.example" not in json.dumps(command.arguments)
    order = await inbox.stored_order(api.services.db, api.services.encryptor, UUID(checkout))
    change = order.key.decrypt(b64decode(command.arguments["change"]), purpose="change")
    assert json.loads(change) == basket(customer={"email": "other@shop.example"})
    assert (await api.sql("SELECT wake, hinted FROM checkouts"))[0].wake == 1
    assert api.hint_publisher.published[-1] == ("checkouts", UUID(checkout))
    # Nothing of it is shown where the command is followed.
    followed = (await api.get(answer.headers["Location"])).json()
    assert (followed["kind"], followed["state"]) == ("change", "pending")
    assert "lamp" not in json.dumps(followed).replace("one lamp less", "")


async def test_an_answer_that_is_waited_for_has_the_result(api: Api):
    checkout = await api.taken()
    asked = asyncio.create_task(patch(api, checkout, basket(), prefer="wait=20"))
    async with asyncio.timeout(10):
        while not await stored(api):  # noqa: ASYNC110 - it is in Postgres
            await asyncio.sleep(0.01)
    await api.sql("UPDATE commands SET handled_at = clock(), result = 'done_changed'")
    answer = await asked
    assert answer.status_code == 200
    assert answer.headers["Preference-Applied"] == "wait=20"
    assert (answer.json()["state"], answer.json()["result"]["code"]) == ("done", "done_changed")
    assert answer.json()["result"]["message"] == "the order is changed"


# ── How often the same request counts ─────────────────────────────────────────────────────────────────────


async def test_the_same_change_under_the_same_key_is_the_same_command(api: Api):
    checkout = await api.taken()
    bodies = [
        '{"order": {"customer": {"lastName": "B"}, "transactionInfo": {"a": "1"}}}',
        '{"order": {"transactionInfo": {"a": "1"}, "customer": {"lastName": "B"}}}',
    ]
    answers = [await patch(api, checkout, body, key="k-1") for body in bodies]
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["command"]["id"] for answer in answers}) == 1
    assert len(await stored(api)) == 1


async def test_a_repeat_meets_its_command_after_the_payment_and_after_other_changes(api: Api):
    """The answer to the first request was lost, and meanwhile the checkout went on."""
    checkout = await api.taken()
    first = await patch(api, checkout, basket(), key="k-1")
    await payment(api, checkout, role="unknown")
    await api.sql("UPDATE checkouts SET state = 'completed'")
    again = await patch(api, checkout, basket(), key="k-1")
    assert (again.status_code, again.json()["command"]) == (202, first.json()["command"])
    problem(await patch(api, checkout, basket(), key="k-2"), 409, "already-ended")


@pytest.mark.parametrize("other", ["amount", "reason", "version"])
async def test_a_key_for_another_change_is_refused(api: Api, other):
    checkout = await api.taken()
    assert (await patch(api, checkout, basket(), key="k-1")).status_code == 202
    body = basket(98.0) if other == "amount" else basket() | {other: 1 if other == "version" else "x"}
    document = problem(await patch(api, checkout, body, key="k-1"), 422, "idempotency-key-reused")
    assert document["errors"][0]["field"] == "Idempotency-Key"
    assert len(await stored(api)) == 1


async def test_two_requests_with_one_key_at_the_same_moment_are_one_command(api: Api):
    checkout = await api.taken()
    answers = await asyncio.gather(*(patch(api, checkout, basket(), key="k-1") for _ in range(5)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["command"]["id"] for answer in answers}) == 1
    assert len(await stored(api)) == 1


# ── What is refused ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("state", "kind", "instead"),
    [
        ("completed", "already-ended", "refund the difference"),
        ("failed", "already-ended", "reopen it before changing it"),
        ("expired", "already-ended", "reopen it before changing it"),
        ("cancelled", "already-ended", "reopen it before changing it"),
        ("callback_received", "payment-under-way", "read the checkout again"),
    ],
)
async def test_a_checkout_that_cannot_be_changed_says_what_to_do_instead(api: Api, state, kind, instead):
    document = problem(await patch(api, await in_state(api, state), basket()), 409, kind)
    assert instead in document["detail"]
    assert document["state"] == state
    assert await stored(api) == []


@pytest.mark.parametrize(
    ("meaning", "kind"),
    [
        ("open", "payment-under-way"),
        ("reserved", "payment-seen"),
        ("captured", "payment-seen"),
        ("unknown", "payment-seen"),
    ],
)
@pytest.mark.parametrize("state", ["awaiting_payment", "callback_received", "session_created"])
async def test_once_a_payment_is_seen_the_order_is_not_changed(api: Api, state, meaning, kind):
    checkout = await in_state(api, state)
    await payment(api, checkout, role="unknown", meaning=meaning)
    document = problem(await patch(api, checkout, basket()), 409, kind)
    assert "transaction 1" in document["detail"]
    assert await stored(api) == []


async def test_an_attempt_that_holds_no_money_does_not_keep_the_order_from_a_change(api: Api):
    checkout = await in_state(api, "awaiting_payment")
    await payment(api, checkout, role="attempt", meaning="nothing")
    assert (await patch(api, checkout, basket())).status_code == 202


async def test_a_checkout_that_is_being_cancelled_is_not_changed(api: Api):
    checkout = await in_state(api, "awaiting_payment")
    cancel = await api.client.post(f"/v1/checkouts/{checkout}/cancel", headers=api.bearer())
    assert cancel.status_code == 202
    problem(await patch(api, checkout, basket()), 409, "being-cancelled")


async def test_a_change_that_was_based_on_another_version_is_refused(api: Api):
    document = problem(await patch(api, await api.taken(), basket() | {"version": 7}), 409, "version-changed")
    assert document["version"] == 1


@pytest.mark.parametrize(
    ("body", "kind", "field"),
    [
        ({}, "invalid-command", "order"),
        ([], "invalid-command", "body"),
        ("{", "invalid-command", None),
        ('{"order": {}, "order": {}}', "invalid-command", "order"),
        ({"order": {"orderId": "B-1"}}, "invalid-command", "order.orderId"),
        ({"configuration": {"autoCapture": True}}, "invalid-command", "configuration"),
        (basket() | {"version": 0}, "invalid-command", "version"),
        (basket() | {"reason": 1}, "invalid-command", "reason"),
        ({"order": {"amount": {"value": 99.0}}}, "invalid-intent", "order.orderLines"),
        (basket(99.999), "invalid-intent", "order.amount.value"),
        (
            {"order": {"amount": {"value": 139.0, "currency": "EUR"}}},
            "invalid-intent",
            "order.amount.currency",
        ),
        ({"callbacks": {"success": None}}, "invalid-intent", "callbacks.success"),
    ],
)
async def test_what_makes_no_valid_order_is_refused_with_the_field(api: Api, body, kind, field):
    document = problem(await patch(api, await api.taken(), body), 422, kind)
    assert field is None or document["errors"][0]["field"] == field
    assert await stored(api) == []


async def test_the_content_must_be_json_and_no_longer_than_an_intent(api: Api):
    checkout = await api.taken()
    problem(await patch(api, checkout, basket(), kind="text/plain"), 415, "wrong-content")
    problem(await patch(api, checkout, '"' + "x" * 300_000 + '"'), 413, "too-large")


async def test_a_change_needs_its_scope_and_a_checkout_of_the_merchants(api: Api):
    checkout = await api.taken()
    document = problem(
        await patch(api, checkout, basket(), scopes=("checkouts:read", "money:write")),
        403,
        "insufficient-scope",
    )
    assert "checkouts:write" in document["detail"]
    problem(await patch(api, str(uuid4()), basket()), 404, "unknown-checkout")
    problem(await patch(api, "A-1", basket()), 404, "unknown-checkout")
    await another_merchant(api)
    problem(await patch(api, checkout, basket(), merchant="other"), 404, "unknown-checkout")
    problem(await patch(api, f"{checkout}?dryRun=1", basket()), 422, "invalid-request")
    assert await stored(api) == []


async def test_an_order_that_cannot_be_read_any_more_is_not_changed(api: Api):
    checkout = await api.taken()
    await api.sql("UPDATE intents SET data_key = NULL, erased_at = clock()")
    problem(await patch(api, checkout, basket()), 409, "order-unreadable")
    stranger = Encryptor((api.services.settings.secret_keys[0],))
    _, wrapped = stranger.new_data_key(checkout)
    await api.sql("UPDATE intents SET data_key = :key", key=wrapped)
    problem(await patch(api, checkout, basket()), 409, "order-unreadable")
    assert await stored(api) == []


async def test_a_paid_checkout_is_refused_whatever_its_books_say_of_payments(api: Api):
    problem(await patch(api, await paid(api), basket()), 409, "already-ended")


# ── The documentation ─────────────────────────────────────────────────────────────────────────────────────


async def test_the_change_is_documented_with_its_body_scope_and_key(api: Api):
    document = (await api.client.get("/openapi.json")).json()
    described = document["paths"]["/v1/checkouts/{checkout_id}"]["patch"]
    assert {one["name"] for one in described["parameters"]} == {"checkout_id", "Idempotency-Key", "Prefer"}
    assert set(described["requestBody"]["content"]) == {MERGE_PATCH, "application/json"}
    assert {"200", "202", "403", "404", "409", "422"} <= set(described["responses"])
    assert "checkouts:write" in described["description"]
    example = document["components"]["schemas"]["Change"]["example"]
    answer = await patch(api, await api.taken(), example)
    assert answer.status_code == 202, answer.text


async def test_the_same_content_again_is_that_of_the_changed_order(api: Api):
    """What was handed over first is other content once the order is changed."""
    body = intent()
    checkout = (await api.post(body)).json()["id"]
    await api.sql("UPDATE intents SET fingerprint = decode('00', 'hex')")
    answer = await api.post(body)
    assert problem(answer, 409, "order-taken")["checkoutId"] == checkout

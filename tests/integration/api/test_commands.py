"""Commands over HTTP: what is stored, what is refused before it is stored, and how often the same request
counts.
"""

from __future__ import annotations

import asyncio
import json
from base64 import urlsafe_b64encode
from decimal import Decimal
from uuid import UUID, uuid4

import msgspec
import pytest

from orchestrator import audit
from orchestrator.api import commands
from orchestrator.store.free_text import Reasons
from tests.integration.api.test_intake import problem
from tests.integration.api.test_reads import shown
from tests.support.api_scene import Api, intent

pytestmark = pytest.mark.anyio

EVERY = ("checkouts:read", "checkouts:write", "money:write", "ops")
KINDS = tuple(commands.CALLS)
NEED_AN_AMOUNT = ("capture", "refund")
"""`ask` asks these for all that is left, unless it is given a body."""


async def ask(
    api: Api,
    checkout: str,
    kind: str,
    body: object = None,
    *,
    key: str | None = None,
    prefer: str | None = None,
    scopes=EVERY,
):
    headers = api.bearer(scopes=scopes) | ({} if key is None else {"Idempotency-Key": key})
    headers |= {} if prefer is None else {"Prefer": prefer}
    path = f"/v1/checkouts/{checkout}/{kind}"
    if body is None and kind in NEED_AN_AMOUNT:
        body = {"amount": "all"}
    if body is None:
        return await api.client.post(path, headers=headers)
    # As text, so that a number leaves with the digits that it was written with.
    content = body if isinstance(body, str) else json.dumps(body)
    headers["Content-Type"] = "application/json"
    return await api.client.post(path, content=content, headers=headers)


async def stored(api: Api) -> list[tuple]:
    return [
        tuple(row)
        for row in await api.sql(
            "SELECT kind, arguments, actor, reason, expected_version, idempotency_key FROM commands ORDER BY id"
        )
    ]


async def paid(api: Api, **changes: object) -> str:
    """Return a completed checkout over 139.00 DKK, paid by transaction 1."""
    checkout = await api.taken()
    await api.sql(
        "UPDATE checkouts SET state = 'completed', reserved = 13900, ended_at = clock() WHERE id = :id",
        id=UUID(checkout),
    )
    await payment(api, checkout, **changes)
    return checkout


async def payment(api: Api, checkout: str | None, transaction: str = "1", **changes: object) -> None:
    values = {
        "transaction_id": transaction,
        "role": "accepted",
        "binding": "bound",
        "status": "preauth",
        "meaning": "reserved",
        "currency": "DKK",
        "reserved": 13900,
        "captured": 0,
        "refunded": 0,
        "charged_back": 0,
        "order_ref": "A-1",
        **changes,
        "checkout_id": None if checkout is None else UUID(checkout),
        "merchant_id": changes.get("merchant_id", 1),
    }
    columns = ", ".join(values)
    await api.sql(
        f"INSERT INTO payments ({columns}) VALUES ({', '.join(f':{name}' for name in values)})", **values
    )


async def operation(
    api: Api, checkout: str, kind: str, amount: int, *, state: str = "submitted", **changes
) -> None:
    values = {
        "id": uuid4(),
        "merchant_id": 1,
        "checkout_id": UUID(checkout),
        "transaction_id": "1",
        "kind": kind,
        "amount": amount,
        "currency": "DKK",
        "state": state,
        "reconciliation_identifier": str(uuid4()),
        "cause": "asked",
        "actor": "test:x",
        **changes,
    }
    columns = ", ".join(values)
    await api.sql(
        f"INSERT INTO money_operations ({columns}) VALUES ({', '.join(f':{name}' for name in values)})",
        **values,
    )


async def another_merchant(api: Api) -> None:
    await api.services.merchants.add(
        "other",
        gateway_url="http://127.0.0.1:9",
        merchant_api_url=None,
        username="u",
        password="p",
        callback_secrets=(),
    )


async def in_state(api: Api, state: str, *, attention: str | None = None) -> str:
    checkout = await api.taken()
    await api.sql(
        "UPDATE checkouts SET state = :state, attention = :attention WHERE id = :id",
        state=state,
        attention=attention,
        id=UUID(checkout),
    )
    return checkout


# ── What is stored ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("kind", "body", "arguments"),
    [
        ("cancel", None, {}),
        ("reopen", None, {"expiresIn": None}),
        ("reopen", '{"expiresIn": 90.5}', {"expiresIn": 90.5}),
        ("capture", '{"amount": "all"}', {"amount": None, "transactionId": None}),
        ("refund", '{"amount": "all", "transactionId": "1"}', {"amount": None, "transactionId": "1"}),
        ("capture", '{"amount": 10.10}', {"amount": 1010, "transactionId": None}),
        ("capture", '{"amount": 139}', {"amount": 13900, "transactionId": None}),
        ("refund", '{"amount": {"value": 0.5, "currency": "dkk"}, "transactionId": "1"}', {"amount": 50, "transactionId": "1"}),
        ("release", None, {"transactionId": None}),
        ("release", '{"transactionId": "1"}', {"transactionId": "1"}),
        ("retry", None, {}),
        ("reconcile", "{}", {}),
        ("resolve", '{"decision": "return"}', {"decision": "return"}),
    ],
)  # fmt: skip
async def test_a_command_is_stored_with_its_arguments_answered_and_wakes(api: Api, kind, body, arguments):
    checkout = await {
        "cancel": lambda: in_state(api, "awaiting_payment"),
        "reopen": lambda: in_state(api, "expired"),
        "resolve": lambda: in_state(api, "completed", attention="late_payment"),
        "refund": lambda: paid(api, captured=13900, status="captured"),
    }.get(kind, lambda: paid(api))()
    key = "k-1" if kind in {"capture", "refund"} else None
    answer = await ask(api, checkout, kind, body, key=key)
    assert answer.status_code == 202, answer.text
    told = answer.json()
    assert (told["id"], told["version"], told["command"]["kind"]) == (checkout, 1, kind)
    assert {"id", "orderId", "state", "version", "command", "links"} == set(told)
    assert await stored(api) == [(kind, arguments, "client:default/shop-1", None, None, key)]
    (row,) = await api.sql("SELECT id, merchant_id FROM commands")
    assert (str(row.id), row.merchant_id) == (told["command"]["id"], 1)
    assert (await api.sql("SELECT wake FROM checkouts WHERE id = :id", id=UUID(checkout)))[0].wake == 1
    assert api.hint_publisher.published[-1] == ("checkouts", UUID(checkout))


async def test_who_asked_why_and_on_which_version_goes_with_the_command(api: Api):
    checkout = await in_state(api, "awaiting_payment")
    assert (await ask(api, checkout, "cancel", {"reason": " out of stock ", "version": 1})).status_code == 202
    ((*told, reason, version, key),) = await stored(api)
    assert (told, version, key) == (["cancel", {}, "client:default/shop-1"], 1, None)
    reasons = await Reasons.of(api.services.db, api.services.encryptor, UUID(checkout))
    assert reasons.shown(reason) == "out of stock"
    assert "stock" not in reason


async def test_what_becomes_of_commands_and_operations_is_shown_with_the_checkout(api: Api):
    checkout = await paid(api)
    await operation(api, checkout, "capture", 1010, state="rejected", last_error="Card Declined")
    for number in range(22):
        await ask(api, checkout, "reconcile", {"reason": str(number)})
    await api.sql(
        "UPDATE commands SET handled_at = clock(), result = 'done_looked_up', result_details = '{\"finding\": \"nothing\"}' WHERE id = (SELECT max(CAST(id AS text)) FROM commands)::uuid"
    )
    await api.sql("UPDATE checkouts SET charged_back = 50, auto_capture = true, reserved_until = clock()")
    found = await shown(api, checkout)
    assert len(found["commands"]) == 20
    last, waiting = found["commands"][-1], found["commands"][-2]
    assert (last["kind"], last["resultCode"], last["result"]) == (
        "reconcile",
        "done_looked_up",
        "the gateway shows no attempt to pay",
    )
    assert [waiting[name] for name in ("handledAt", "result", "resultCode")] == [None, None, None]
    assert last["handledAt"] >= last["requestedAt"] > found["createdAt"]
    (refused,) = found["operations"]
    assert (
        refused["kind"],
        refused["amount"],
        refused["currency"],
        refused["state"],
        refused["cause"],
        refused["error"],
    ) == (
        "capture",
        Decimal("10.10"),
        "DKK",
        "rejected",
        "asked",
        "Card Declined",
    )
    assert {"id", "reconciliationIdentifier", "requestedAt", "submittedAt", "settledAt"} <= set(refused)
    assert (found["money"]["chargedBack"], found["autoCapture"]) == (Decimal("0.50"), True)
    assert found["reservedUntil"]
    assert found["payments"][0]["chargedBack"] == 0


# ── Who may, and how often ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
async def test_a_command_needs_its_scope(api: Api, kind):
    others = tuple(scope for scope in EVERY if scope != commands.CALLS[kind].scope)
    document = problem(await ask(api, await paid(api), kind, scopes=others), 403, "insufficient-scope")
    assert commands.CALLS[kind].scope in document["detail"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_command_for_an_unknown_checkout_or_anothers_is_404(api: Api, kind):
    body = {"decision": "keep"} if kind == "resolve" else None
    problem(await ask(api, str(uuid4()), kind, body, key="k"), 404, "unknown-checkout")
    problem(await ask(api, "A-1", kind, body, key="k"), 404, "unknown-checkout")
    checkout = await paid(api)
    await another_merchant(api)
    await api.sql("UPDATE checkouts SET merchant_id = (SELECT id FROM merchants WHERE name = 'other')")
    problem(await ask(api, checkout, kind, body, key="k"), 404, "unknown-checkout")
    assert await stored(api) == []


@pytest.mark.parametrize("kind", ["capture", "refund"])
async def test_money_is_not_moved_without_an_idempotency_key(api: Api, kind):
    document = problem(await ask(api, await paid(api), kind), 422, "idempotency-key-missing")
    assert document["errors"][0]["field"] == "Idempotency-Key"
    assert kind in document["detail"]


async def test_the_same_request_under_the_same_key_is_the_same_command(api: Api):
    checkout = await paid(api)
    bodies = ['{"amount": 10}', '{"amount": 10.00}', '{"amount": {"value": 10.0, "currency": "DKK"}}']
    answers = [await ask(api, checkout, "capture", body, key="k-1") for body in bodies]
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["command"]["id"] for answer in answers}) == 1
    assert len(await stored(api)) == 1
    assert (await api.sql("SELECT wake FROM checkouts"))[0].wake == 1


async def test_a_repeat_meets_its_command_even_when_nothing_is_left(api: Api):
    """The answer to the first request was lost, and meanwhile all of it was captured."""
    checkout = await paid(api)
    first = await ask(api, checkout, "capture", key="k-1")
    await api.sql("UPDATE commands SET handled_at = clock(), result = 'accepted'")
    await api.sql("UPDATE payments SET captured = 13900")
    again = await ask(api, checkout, "capture", key="k-1")
    assert (again.status_code, again.json()["command"]) == (202, first.json()["command"])
    problem(await ask(api, checkout, "capture", key="k-2"), 409, "nothing-left")


@pytest.mark.parametrize("other", ["amount", "kind", "checkout", "reason", "version"])
async def test_a_key_for_other_content_is_refused(api: Api, other):
    checkout = await paid(api, captured=5000)
    assert (await ask(api, checkout, "capture", {"amount": 10}, key="k-1")).status_code == 202
    kind, body = "capture", {"amount": 10}
    match other:
        case "amount":
            body = {"amount": 11}
        case "kind":
            kind = "refund"
        case "checkout":
            checkout = await api.taken()
        case _:
            body |= {other: 1 if other == "version" else "x"}
    document = problem(await ask(api, checkout, kind, body, key="k-1"), 422, "idempotency-key-reused")
    assert document["errors"][0]["field"] == "Idempotency-Key"
    assert len(await stored(api)) == 1


async def test_a_key_is_each_merchants_own(api: Api):
    first, second = await in_state(api, "expired"), await in_state(api, "expired")
    await another_merchant(api)
    await api.sql(
        "UPDATE checkouts SET merchant_id = (SELECT id FROM merchants WHERE name = 'other') WHERE id = :id",
        id=UUID(second),
    )
    assert (await ask(api, first, "reconcile", key="k")).status_code == 202
    headers = api.bearer("other", scopes=EVERY) | {"Idempotency-Key": "k"}
    answer = await api.client.post(f"/v1/checkouts/{second}/reconcile", headers=headers)
    assert answer.status_code == 202
    assert len(await stored(api)) == 2


async def test_fifty_of_the_same_at_once_are_one_command(api: Api):
    checkout = await paid(api)
    answers = await asyncio.gather(
        *(ask(api, checkout, "capture", {"amount": 10}, key="k-1") for _ in range(50))
    )
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["command"]["id"] for answer in answers}) == 1
    assert len(await stored(api)) == 1


async def test_other_content_that_wins_the_race_for_a_key_is_a_refusal_for_the_rest(api: Api):
    checkout = await paid(api)
    answers = await asyncio.gather(
        *(ask(api, checkout, "capture", {"amount": 10 + number % 2}, key="k-1") for number in range(20))
    )
    assert sorted(answer.status_code for answer in answers) == [202] * 10 + [422] * 10
    assert len(await stored(api)) == 1


# ── What cannot be read ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("kind", "body", "field"),
    [
        ("cancel", '{"reason": 7}', "reason"),
        ("cancel", '{"reason": "a\\u0000"}', "reason"),
        ("cancel", json.dumps({"reason": "r" * 501}), "reason"),
        ("cancel", '{"version": "1"}', "version"),
        ("cancel", '{"version": true}', "version"),
        ("cancel", '{"version": 0}', "version"),
        ("cancel", '{"raeson": "x"}', "raeson"),
        ("cancel", '{"amount": 1}', "amount"),
        ("cancel", "[]", "body"),
        ("capture", '{"amount": 10, "amount": 100}', "amount"),
        ("capture", '{"amount": {"value": 10, "value": 100, "currency": "DKK"}}', "value"),
        ("capture", "", "amount"),
        ("capture", "{}", "amount"),
        ("capture", '{"amount": null}', "amount"),
        ("refund", "{}", "amount"),
        ("refund", '{"transactionId": "1"}', "amount"),
        ("capture", '{"amount": "10.00"}', "amount"),
        ("capture", '{"amount": "ALL"}', "amount"),
        ("capture", '{"amount": ["all"]}', "amount"),
        ("capture", '{"amount": {"value": "all", "currency": "DKK"}}', "amount.value"),
        ("release", '{"amount": 10}', "amount"),
        ("capture", '{"amount": true}', "amount"),
        ("capture", '{"amount": 0}', "amount"),
        ("capture", '{"amount": -1.5}', "amount"),
        ("capture", '{"amount": 10.005}', "amount"),
        ("capture", '{"amount": 1e30}', "amount"),
        ("capture", '{"amount": {"value": 10, "currency": "EUR"}}', "amount.currency"),
        ("capture", '{"amount": {"value": 10, "curency": "DKK"}}', "amount.curency"),
        ("capture", '{"amount": {"currency": "DKK"}}', "amount.value"),
        ("capture", '{"amount": {"value": 0, "currency": "DKK"}}', "amount.value"),
        ("refund", '{"transactionId": 7}', "transactionId"),
        ("reopen", '{"expiresIn": 0}', "expiresIn"),
        ("reopen", '{"expiresIn": true}', "expiresIn"),
        ("reopen", '{"expiresIn": "1h"}', "expiresIn"),
        ("reopen", '{"expiresIn": 2592001}', "expiresIn"),
        ("resolve", "", "decision"),
        ("resolve", '{"decision": "refund"}', "decision"),
        ("resolve", '{"decision": 1}', "decision"),
    ],
)  # fmt: skip
async def test_a_field_that_is_wrong_is_named(api: Api, kind, body, field):
    answer = await ask(api, await paid(api), kind, body, key="k-1")
    document = problem(answer, 422, "invalid-command")
    assert document["errors"][0]["field"] == field
    assert field in document["detail"]
    assert await stored(api) == []


async def test_a_repeated_and_an_unknown_field_are_named_together(api: Api):
    body = '{"amount": 1, "amount": 2, "amuont": 3, "reason": 4}'
    document = problem(await ask(api, await paid(api), "capture", body, key="k-1"), 422, "invalid-command")
    assert [error["field"] for error in document["errors"]] == ["amount", "amuont", "reason"]
    assert await stored(api) == []


@pytest.mark.parametrize("kind", NEED_AN_AMOUNT)
async def test_money_is_not_moved_without_saying_how_much(api: Api, kind):
    checkout = await paid(api, captured=5000)
    document = problem(await ask(api, checkout, kind, {"reason": "x"}, key="k-1"), 422, "invalid-command")
    said = f'is missing: it must be how much to {kind}, or "all" for all that is left'
    assert document["errors"] == [{"field": "amount", "message": said}]
    assert await stored(api) == []
    assert (await ask(api, checkout, kind, {"amount": "all"}, key="k-1")).status_code == 202
    # "all" is what nothing meant before, so a repeat across the change is the same command.
    ((_, arguments, *_),) = await stored(api)
    assert arguments == {"amount": None, "transactionId": None}


@pytest.mark.parametrize("body", ["{", '{"amount": 1e99999999999999999999}', "[" * 5000])
async def test_a_body_that_is_no_json_is_refused(api: Api, body):
    problem(await ask(api, await paid(api), "capture", body, key="k-1"), 422)
    assert await stored(api) == []


async def test_a_body_beyond_the_limit_is_refused(api: Api):
    body = json.dumps({"reason": "r" * commands.COMMAND_BYTES})
    problem(await ask(api, await paid(api), "cancel", body), 413, "too-large")
    assert await stored(api) == []


# ── What is refused because of how the checkout stands ────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
async def test_a_command_on_an_old_version_is_a_conflict(api: Api, kind):
    checkout = await {
        "cancel": lambda: in_state(api, "awaiting_payment"),
        "reopen": lambda: in_state(api, "expired"),
        "resolve": lambda: in_state(api, "completed", attention="late_payment"),
        "refund": lambda: paid(api, captured=13900),
    }.get(kind, lambda: paid(api))()
    body = {"version": 7} | ({"decision": "keep"} if kind == "resolve" else {})
    body |= {"amount": "all"} if kind in NEED_AN_AMOUNT else {}
    document = problem(await ask(api, checkout, kind, body, key="k"), 409, "version-changed")
    assert document["version"] == 1
    assert await stored(api) == []


@pytest.mark.parametrize(
    ("state", "said"),
    [("completed", "refund"), ("cancelled", "already"), ("expired", "already"), ("failed", "already")],
)
async def test_what_has_ended_cannot_be_cancelled(api: Api, state, said):
    checkout = await in_state(api, state)
    assert said in problem(await ask(api, checkout, "cancel"), 409, "already-ended")["detail"]
    assert await stored(api) == []


async def test_a_cancel_withdraws_the_session_and_is_asked_for_once(api: Api):
    checkout = await api.taken()
    await api.offer(checkout)
    answers = [await ask(api, checkout, "cancel") for _ in range(2)]
    await api.sql("UPDATE commands SET handled_at = clock(), result = 'accepted'")
    await api.sql("UPDATE checkouts SET cancel_requested_at = clock()")
    answers.append(await ask(api, checkout, "cancel"))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["command"]["id"] for answer in answers}) == 1
    assert len(await stored(api)) == 1
    assert (await shown(api, checkout))["session"] is None


async def test_a_cancel_that_was_refused_may_be_asked_for_again(api: Api):
    checkout = await in_state(api, "awaiting_payment")
    first = await ask(api, checkout, "cancel")
    await api.sql("UPDATE commands SET handled_at = clock(), result = 'refused_version_changed'")
    assert (await ask(api, checkout, "cancel")).json()["command"] != first.json()["command"]
    assert len(await stored(api)) == 2


@pytest.mark.parametrize("state", ["received", "awaiting_payment", "callback_received", "completed"])
async def test_only_what_is_closed_is_reopened(api: Api, state):
    document = problem(await ask(api, await in_state(api, state), "reopen"), 409, "not-closed")
    assert state.replace("_", " ") in document["detail"]


async def test_a_checkout_whose_order_number_lives_elsewhere_is_not_reopened(api: Api):
    checkout = await api.taken("A-1")
    await api.sql("UPDATE checkouts SET state = 'expired'")
    rival = (await api.post(intent("A-1", expiresIn=60))).json()["id"]
    document = problem(await ask(api, checkout, "reopen"), 409, "order-taken")
    assert document["checkoutId"] == rival
    assert rival in document["detail"]
    await api.sql("UPDATE checkouts SET state = 'completed', late = true WHERE id = :id", id=UUID(rival))
    assert (await ask(api, checkout, "reopen")).status_code == 202


@pytest.mark.parametrize("word", audit.FROM_PAYMENT)
async def test_what_no_shop_has_handed_over_has_nothing_to_be_reopened_with(api: Api, word: str):
    """For either word that its first entry may have."""
    checkout = await in_state(api, "failed")
    await api.sql("ALTER TABLE audit_entries DISABLE TRIGGER USER")
    await api.sql(
        "UPDATE audit_entries SET entry = jsonb_set(entry::jsonb, ARRAY['evidence', CAST(:word AS text)], 'true')::text WHERE checkout_id = :id",
        id=UUID(checkout),
        word=word,
    )
    assert "hand the order over" in problem(await ask(api, checkout, "reopen"), 409, "not-an-order")["detail"]


async def test_only_what_waits_for_a_person_is_resolved(api: Api):
    checkout = await in_state(api, "completed")
    problem(await ask(api, checkout, "resolve", {"decision": "keep"}), 409, "nothing-to-resolve")


@pytest.mark.parametrize("kind", ["capture", "refund", "release"])
@pytest.mark.parametrize("state", ["awaiting_payment", "expired"])
async def test_what_is_not_paid_holds_no_money_to_move(api: Api, kind, state):
    checkout = await in_state(api, state)
    document = problem(await ask(api, checkout, kind, key="k"), 409, "not-paid")
    assert state.replace("_", " ") in document["detail"]


async def test_a_paid_checkout_whose_payment_is_not_in_our_books_says_to_reconcile_first(api: Api):
    checkout = await in_state(api, "completed")
    assert "reconcile" in problem(await ask(api, checkout, "capture", key="k"), 409, "not-paid")["detail"]


@pytest.mark.parametrize("kind", ["refund", "release"])
@pytest.mark.parametrize("state", ["awaiting_payment", "cancelled", "completed"])
@pytest.mark.parametrize("role", ["surplus", "unknown"])
async def test_money_that_is_too_much_may_be_returned_in_any_state(api: Api, kind, state, role):
    checkout = await in_state(api, state)
    await payment(api, checkout, "2", role=role, currency="EUR", captured=13900 if kind == "refund" else 0)
    much = {"amount": "all"} if kind in NEED_AN_AMOUNT else {}
    answer = await ask(api, checkout, kind, {"transactionId": "2", **much}, key="k")
    assert answer.status_code == 202, answer.text
    assert (await stored(api))[0][1]["transactionId"] == "2"


async def test_an_amount_is_meant_in_the_payments_own_currency(api: Api):
    checkout = await in_state(api, "completed")
    await payment(api, checkout, "2", role="surplus", currency="JPY", captured=100)
    answer = await ask(api, checkout, "refund", {"transactionId": "2", "amount": 0.5}, key="k")
    assert "JPY" in problem(answer, 422, "invalid-command")["detail"]
    body = {"transactionId": "2", "amount": {"value": 40, "currency": "JPY"}}
    assert (await ask(api, checkout, "refund", body, key="k")).status_code == 202
    assert (await stored(api))[0][1]["amount"] == 40


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("capture", {"role": "surplus"}, "only be returned"),
        ("release", {"role": "attempt", "reserved": 0}, "holds no money"),
        ("release", {"role": "unknown", "binding": "order_ref"}, "not surely"),
    ],
)
async def test_money_that_is_not_this_orders_is_not_touched(api: Api, kind, changes, said):
    checkout = await paid(api)
    await payment(api, checkout, "2", **changes)
    much = {"amount": "all"} if kind in NEED_AN_AMOUNT else {}
    document = problem(
        await ask(api, checkout, kind, {"transactionId": "2", **much}, key="k"), 422, "not-its-payment"
    )
    assert document["errors"][0]["field"] == "transactionId"
    assert said in document["detail"]


@pytest.mark.parametrize("kind", ["capture", "refund", "release"])
async def test_of_several_payments_of_one_order_the_request_names_the_payment(api: Api, kind):
    books = {"captured": 5000 if kind == "refund" else 0}
    checkout = await paid(api, transaction="21", reserved=5000, **books)
    await payment(api, checkout, "22", reserved=8900, **books)
    document = problem(await ask(api, checkout, kind, key="k-1"), 422, "several-payments")
    assert document["errors"][0]["field"] == "transactionId"
    assert "21, 22" in document["detail"]
    assert await stored(api) == []
    # Named, it is that payment's money alone.
    if kind != "release":
        too_much = {"amount": 50.01, "transactionId": "21"}
        problem(await ask(api, checkout, kind, too_much, key="k-2"), 422, "too-much")
    much = {"amount": "all"} if kind in NEED_AN_AMOUNT else {}
    assert (await ask(api, checkout, kind, {"transactionId": "21", **much}, key="k-3")).status_code == 202
    assert (await stored(api))[0][1]["transactionId"] == "21"


async def test_an_unknown_transaction_is_named(api: Api):
    answer = await ask(api, await paid(api), "release", {"transactionId": "9"})
    document = problem(answer, 422, "unknown-transaction")
    assert document["errors"][0]["field"] == "transactionId"
    assert "'9'" in document["detail"]


@pytest.mark.parametrize(
    ("kind", "books", "amounts"),
    [
        ("capture", {}, ("139.01", "139.00")),
        ("capture", {"captured": 10000}, ("39.01", "39.00")),
        ("refund", {"captured": 10000}, ("100.01", "100.00")),
        ("refund", {"captured": 10000, "refunded": 4000}, ("60.01", "60.00")),
        ("refund", {"captured": 10000, "refunded": 4000, "charged_back": 1000}, ("50.01", "50.00")),
    ],
)
async def test_more_than_is_left_is_refused_with_what_is_left(api: Api, kind, books, amounts):
    amount, left = amounts
    checkout = await paid(api, **books)
    answer = await ask(api, checkout, kind, f'{{"amount": {amount}}}', key="k")
    document = problem(answer, 422, "too-much")
    assert document["errors"][0]["field"] == "amount"
    assert f"ask for {left} DKK at most" in document["detail"]
    assert msgspec.json.decode(answer.content)["left"] == float(left)
    assert (await ask(api, checkout, kind, f'{{"amount": {left}}}', key="k")).status_code == 202


async def test_what_is_under_way_is_no_longer_left(api: Api):
    checkout = await paid(api, captured=5000)
    await operation(api, checkout, "capture", 2000)
    await operation(api, checkout, "capture", 900, state="succeeded")
    assert (await ask(api, checkout, "capture", {"amount": 30}, key="k-1")).status_code == 202
    assert (
        "39.00 DKK"
        in problem(await ask(api, checkout, "capture", {"amount": 39.01}, key="k"), 422, "too-much")["detail"]
    )
    # What is refunded comes out of what is captured, not out of the reservation.
    assert (await ask(api, checkout, "refund", {"amount": 50}, key="k-2")).status_code == 202
    document = problem(await ask(api, checkout, "refund", {"amount": 1}, key="k-3"), 422, "nothing-left")
    assert "under way" in document["detail"]


async def test_after_all_that_is_left_was_asked_for_nothing_is(api: Api):
    checkout = await paid(api)
    assert (await ask(api, checkout, "capture", key="k-1")).status_code == 202
    document = problem(await ask(api, checkout, "capture", key="k-2"), 409, "nothing-left")
    assert "under way" in document["detail"]
    problem(await ask(api, checkout, "release"), 409, "nothing-left")


@pytest.mark.parametrize(
    ("kind", "books", "said"),
    [
        ("refund", {}, "a reservation is released"),
        ("capture", {"captured": 13900}, "nothing is left to capture"),
        ("release", {"reserved": 0}, "it holds no money"),
    ],
)
async def test_where_nothing_is_left_the_way_out_is_named(api: Api, kind, books, said):
    checkout = await paid(api, **books)
    assert said in problem(await ask(api, checkout, kind, key="k"), 409, "nothing-left")["detail"]


async def test_a_release_gives_back_whole_reservations_only(api: Api):
    checkout = await paid(api, captured=1000)
    assert (
        "refund what is captured" in problem(await ask(api, checkout, "release"), 409, "captured")["detail"]
    )
    checkout = await paid(api, transaction="3")
    await operation(api, checkout, "capture", 1000, transaction_id="3")
    assert "wait for its end" in problem(await ask(api, checkout, "release"), 409, "under-way")["detail"]


# ── Payments ──────────────────────────────────────────────────────────────────────────────────────────────


async def listed(api: Api, **words: object) -> dict:
    answer = await api.get("/v1/payments", **words)
    assert answer.status_code == 200, answer.text
    return json.loads(answer.content, parse_float=Decimal)


async def test_pages_of_payments_follow_each_other_without_gap_or_repeat(api: Api):
    checkout = await api.taken("A-1")
    for number in range(7):
        # Some of the same moment: the transaction's number decides then.
        await payment(api, checkout, str(number), role="surplus", first_seen_at=_moment(number // 3))
    await payment(api, checkout, "x", role="attempt")
    await another_merchant(api)
    (other,) = await api.sql("SELECT id FROM merchants WHERE name = 'other'")
    await payment(api, None, "y", role="surplus", merchant_id=other.id)
    seen, cursor = [], None
    for size in (3, 3, 1):
        found = await listed(api, role="surplus", limit=3, **({"cursor": cursor} if cursor else {}))
        assert len(found["payments"]) == size
        seen += [payment["transactionId"] for payment in found["payments"]]
        cursor = found["nextCursor"]
    assert cursor is None
    assert seen == ["6", "5", "4", "3", "2", "1", "0"]


def _moment(second: int):
    from datetime import UTC, datetime

    return datetime(2026, 1, 5, 10, 0, second, 123456, tzinfo=UTC)


async def test_a_payment_is_shown_with_the_checkout_that_it_belongs_to_and_exact_money(api: Api):
    checkout = await api.taken("A-1")
    await payment(api, checkout, "1", role="unknown", reserved=1010, charged_back=5)
    await payment(api, None, "2", role="unknown", order_ref="A-1", currency="JPY", reserved=10)
    await payment(api, None, "3", role="surplus", order_ref="A-2")
    found = (await listed(api, orderId="A-1"))["payments"]
    assert [payment["transactionId"] for payment in found] == ["2", "1"]
    assert (found[1]["checkoutId"], found[1]["orderId"], found[1]["reserved"]) == (
        checkout,
        "A-1",
        Decimal("10.10"),
    )
    assert found[1]["chargedBack"] == Decimal("0.05")
    assert (found[0]["checkoutId"], found[0]["reserved"]) == (None, 10)
    assert [payment["transactionId"] for payment in (await listed(api, role="surplus"))["payments"]] == ["3"]
    assert [payment["transactionId"] for payment in (await listed(api))["payments"]] == ["3", "2", "1"]
    assert (await listed(api, orderId="A/1"))["payments"] == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("role", "lost"),
        ("limit", "0"),
        ("limit", "201"),
        ("cursor", "x"),
        ("cursor", "é"),
        ("cursor", "MjAyNi0wMS0wNSAx"),
        ("cursor", urlsafe_b64encode(b"2026-01-01T00:00:00+00:00 \0").decode()),
        ("cursor", urlsafe_b64encode(b"2026-01-01T00:00:00+00:00 1\x002").decode()),
    ],
)
async def test_a_parameter_of_the_payments_that_is_wrong_is_named(api: Api, name, value):
    document = problem(await api.get("/v1/payments", **{name: value}), 422, "invalid-request")
    assert document["errors"][0]["field"] == name


FILL = """
    INSERT INTO payments (merchant_id, transaction_id, checkout_id, order_ref, role, binding, status, meaning, currency, reserved,
                          captured, refunded)
    SELECT 1, n::text, gen_random_uuid(), 'o-' || n, CASE WHEN n % 5000 = 0 THEN 'surplus' ELSE 'accepted' END, 'bound', 'preauth',
           'reserved', 'DKK', 1, 0, 0 FROM generate_series(1, 20000) n
"""


async def test_unmatched_money_is_listed_without_reading_matched_money(api: Api):
    checkout = await api.taken("A-1")
    await payment(api, checkout, "x", order_ref="A-1")
    await api.sql(FILL)
    await api.sql("ANALYZE payments")
    before = await _scans(api)
    assert len((await listed(api, role="surplus"))["payments"]) == 4
    assert len((await listed(api, orderId="A-1"))["payments"]) == 1
    assert await _scans(api) == before


async def _scans(api: Api) -> int:
    await api.sql("SELECT pg_stat_force_next_flush()")
    (row,) = await api.sql("SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'payments'")
    return row.seq_scan


# ── Explain ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_checkout_is_explained_in_sentences(api: Api):
    checkout = await paid(api)
    await operation(api, checkout, "refund", 500, state="unknown")
    await ask(api, checkout, "reconcile")
    await api.sql("UPDATE checkouts SET attention = 'charged_back', charged_back = 1000")
    answer = await api.get(f"/v1/checkouts/{checkout}/explain")
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert {"summary", "because", "evidence", "next", "youMay"} == set(told)
    assert "is completed: its payment is " in told["summary"]
    assert any("10.00 DKK were charged back" in said for said in told["because"])
    assert any("refund of 5.00 DKK on transaction 1" in said for said in told["because"])
    assert "shop-1 created it" in told["evidence"][0]
    assert "the requested command (reconcile)" in told["next"]["what"]
    assert told["next"]["at"]
    assert any(f"orchestrator checkouts resolve {checkout} dismiss" in said for said in told["youMay"])


async def test_an_explanation_is_for_the_merchant_alone(api: Api):
    checkout = await paid(api)
    await another_merchant(api)
    problem(await api.get(f"/v1/checkouts/{checkout}/explain", merchant="other"), 404, "unknown-checkout")
    problem(await api.get(f"/v1/checkouts/{uuid4()}/explain"), 404, "unknown-checkout")


# ── The documentation ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
async def test_each_command_is_documented_with_its_body_and_key(api: Api, kind):
    document = (await api.client.get("/openapi.json")).json()
    described = document["paths"][f"/v1/checkouts/{{checkout_id}}/{kind}"]["post"]
    (key,) = [one for one in described["parameters"] if one["name"] == "Idempotency-Key"]
    assert "Prefer" in {one["name"] for one in described["parameters"]}
    assert key["required"] == (kind in {"capture", "refund"})
    name = described["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    assert "example" in document["components"]["schemas"][name]
    assert {"202", "403", "404", "409", "422"} <= set(described["responses"])
    assert commands.CALLS[kind].scope in described["description"]


async def test_every_example_of_a_body_is_accepted(api: Api):
    document = (await api.client.get("/openapi.json")).json()
    for kind in KINDS:
        example = document["components"]["schemas"][kind.capitalize()]["example"]
        if kind == "release":
            checkout = await paid(api, transaction="539101")
        elif kind == "refund":
            checkout = await paid(api, transaction="7", captured=13900)
        elif kind == "capture":
            checkout = await paid(api, transaction="8")
        elif kind == "reopen":
            checkout = await in_state(api, "expired")
        else:
            checkout = await in_state(api, "awaiting_payment", attention="open_payment")
        answer = await ask(api, checkout, kind, example, key=f"k-{kind}")
        assert answer.status_code == 202, (kind, answer.text)

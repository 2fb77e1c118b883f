"""The OpenAPI document is what the API does: every documented answer is given, and each is as its schema
says.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from itertools import product
from uuid import UUID

import msgspec
import pytest

from orchestrator import auth, intents
from orchestrator.api import commands, connections, contract
from orchestrator.api.contract import answers, bodies
from orchestrator.api.contract.examples import EXAMPLES
from orchestrator.api.contract.values import made
from orchestrator.api.limits import Limit
from orchestrator.auth import OPERATOR
from orchestrator.domain.payment_status import IN_SQL, PaymentStatus, payment_status
from orchestrator.domain.states import State
from orchestrator.intents import fields
from orchestrator.store import idempotent_answers
from tests.conftest import make_settings
from tests.integration.api.contract import wrong_in
from tests.integration.api.test_access import secured, unscoped
from tests.integration.api.test_basket import basket, patch
from tests.integration.api.test_callbacks import BODY, FORM, call
from tests.integration.api.test_commands import EVERY, KINDS, ask, in_state, operation, paid, payment
from tests.integration.api.test_evidence import SECRET, UNPROVEN, signed
from tests.integration.api.test_intake import problem
from tests.integration.api.test_merchant_callbacks import posted, send
from tests.integration.api.test_merchants import SHOP
from tests.support.api_scene import Api, intent, path_of, serving, without_database

pytestmark = pytest.mark.anyio

CALLBACK = "/callbacks/{kind}/{id}/{signed}"
# A shopper's browser is redirected in every case, and needs no proof; these answers belong to what is posted.
NEVER = {("get", CALLBACK, status) for status in ("200", "401", "413", "503")}
RICH = (
    "UPDATE checkouts SET last_error = 'throttled', last_error_details = '{\"reason\": \"slower\"}', reserved_until = clock(), cancel_requested_at = clock(), attention = 'late_payment', attention_since = clock(), "
    'attention_details = \'{"payments": [{"transaction_id": "1", "amount": 13900, "currency": "DKK"}]}\', '
    "late = true, captured = 100, refunded = 10, charged_back = 1 WHERE id = :id"
)


# ── Every documented answer ───────────────────────────────────────────────────────────────────────────────


async def test_every_documented_answer_is_given_and_is_as_documented(database_url):
    """`serving` compares each answer with the document; here each of them is asked for."""
    settings = make_settings(
        database_url=database_url, gateway_secrets=(SECRET,), failed_authentications_per_minute=0
    )
    async with serving(settings) as api:
        await api.services.merchants.everyone()
        await _intake(api)
        await _reads(api)
        await _commands(api)
        await _events(api)
        await _webhooks(api)
        await _merchants(api)
        await _callbacks(api)
        await _shopper(api)
        await _refused(api)
        await api.client.get("/healthz")
        scale = await api.client.get("/autoscale", headers=api.bearer(OPERATOR, ("ops",)))
        assert scale.status_code == 200
        problem(
            await api.client.get("/autoscale?verbose=1", headers=api.bearer(OPERATOR, ("ops",))),
            422,
            "invalid-request",
        )
        assert (await api.client.get("/readyz")).status_code == 200
        seen, document = api.contract.seen, api.client._transport.app.openapi()
    async with serving(without_database(gateway_secrets=(SECRET,))) as api:
        assert (await api.client.get("/readyz")).status_code == 503
        urls = api.urls("019aa000-0000-7000-8000-00000000000a")
        problem(await call(api, urls.notification), 503, "database-away")
        problem(await send(api, posted()), 503, "merchant-unreadable")
        problem(await api.get("/v1/checkouts"), 503, "database-away")
        seen |= api.contract.seen
    documented = {
        (method, path, status)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        for status in operation["responses"]
        if status != "default"
    }
    assert seen == documented - NEVER


async def _intake(api: Api) -> None:
    assert (await api.post(intent("A-1"))).status_code == 202
    assert (await api.post(intent("A-1"))).status_code == 200
    problem(await api.post(intent("A-1", expiresIn=60)), 409, "order-taken")
    problem(await api.post({"order": 1}), 422, "invalid-intent")
    problem(await api.client.post("/v1/checkouts"), 401, "invalid-token")
    rows = (await api.post([intent("A-1"), intent("A-2"), {}], path="/v1/checkouts/batch")).json()["results"]
    assert [row["status"] for row in rows] == [200, 202, 422]
    problem(await api.post({}, path="/v1/checkouts/batch"), 422, "invalid-batch")


async def _reads(api: Api) -> None:
    checkout = await paid(api, flags='["doubled"]', payment_id="p-1", raw_amounts='{"surcharge": "1,5"}')
    await payment(api, None, "lost", role="unknown", binding="none", currency="", order_ref="B/1")
    await operation(api, checkout, "capture", 100, state="succeeded")
    await operation(api, checkout, "refund", 10, state="requested")
    await ask(api, checkout, "reconcile", {"reason": "looked odd"})
    await api.sql(RICH, id=UUID(checkout))
    offered = await api.taken()
    await api.offer(offered)
    for checkout_id in (checkout, offered):
        for path in ("", "/audit", "/explain"):
            assert (await api.get(f"/v1/checkouts/{checkout_id}{path}")).status_code == 200
            problem(await api.get(f"/v1/checkouts/{checkout_id}{path}", verbose=1), 422, "invalid-request")
    problem(await api.get("/v1/checkouts/A-1"), 404, "unknown-checkout")
    for path in ("/v1/checkouts", "/v1/payments"):
        assert (await api.get(path)).status_code == 200
        assert (await api.get(path, limit=1)).json()["nextCursor"]
        problem(await api.get(path, limit=0), 422, "invalid-request")
    assert (await api.get("/v1/rejected-intents")).status_code == 200
    problem(await api.get("/v1/rejected-intents", limit=0), 422, "invalid-request")


async def _shopper(api: Api) -> None:
    checkout = await in_state(api, "cancelled")
    own = f"/v1/checkouts/{checkout}"
    assert (await api.get(f"{own}/status")).status_code == 200
    stream = await api.get(f"{own}/stream")
    assert stream.status_code == 200
    last = {"Last-Event-ID": re.findall("^id: (.*)$", stream.text, re.MULTILINE)[0]}
    assert (await api.client.get(f"{own}/stream", headers=api.bearer() | last)).status_code == 204
    unknown = "/v1/checkouts/019aa000-0000-7000-8000-000000000001"
    offered = (await api.post(intent())).json()
    await api.offer(offered["id"])
    assert (await api.get(f"/v1/checkouts/{offered['id']}/session")).status_code == 200
    problem(await api.get(f"{own}/session"), 409, "not-payable")
    for end in ("status", "stream", "session"):
        problem(await api.get(f"{own}/{end}", token="t"), 422, "invalid-request")
        problem(await api.get(f"{unknown}/{end}"), 404, "unknown-checkout")
    api.services.status_streams.most = 0
    problem(await api.get(f"{own}/stream"), 503, "too-many-streams")


async def _refused(api: Api) -> None:
    """Ask each call that needs a token without one, with one that has no scope, and beyond the limit."""
    token = {"Authorization": f"Bearer {unscoped(api)}"}
    limit = api.services.limits.merchant
    for method, path in secured(api.client._transport.app.openapi()):
        address = re.sub(r"{\w+}", "019aa000-0000-7000-8000-000000000001", path)
        problem(await api.client.request(method, address), 401, "invalid-token")
        problem(await api.client.request(method, address, headers=token), 403, "insufficient-scope")
        api.services.limits.merchant = Limit("merchant", 0.001, 0)
        own = auth.OPERATOR_SCOPES
        full = (
            api.bearer(auth.OPERATOR, tuple(own))
            if path.startswith("/v1/merchants")
            else api.bearer(scopes=tuple(auth.SCOPES - own))
        )
        problem(await api.client.request(method, address, headers=full), 429, "too-many-requests")
        api.services.limits.merchant = limit
        if method == "POST" and path.startswith(("/v1/webhooks", "/v1/deliveries")):
            content = hashlib.sha256(b"\0".join((b"POST", address.encode(), b""))).digest()
            await idempotent_answers.claim(
                api.services.db, api.services.encryptor, merchant_id=1, key=address, fingerprint=content
            )
            answer = await api.client.post(address, headers=full | {"Idempotency-Key": address})
            problem(answer, 409, "request-in-progress")


async def _commands(api: Api) -> None:
    for kind in KINDS:
        money = kind in {"capture", "refund", "release"}
        body = {
            "resolve": {"decision": "dismiss"},
            "capture": {"amount": "all"},
            "refund": {"amount": "all"},
        }.get(kind, {})

        async def fit(kind: str = kind, *, money: bool = money) -> str:
            if money:
                books = {"captured": 13900} if kind == "refund" else {}
                return await paid(api, transaction=await _unused(api), **books)
            state = "expired" if kind == "reopen" else "awaiting_payment"
            return await in_state(api, state, attention="open_payment")

        path = await fit()
        answer = await ask(api, path, kind, body, key=f"k-{kind}")
        assert answer.status_code == 202
        address = answer.headers["Location"]
        assert (await api.get(address)).status_code == 200
        problem(await api.get(address, verbose=1), 422, "invalid-request")
        problem(
            await ask(api, path, kind, body, key="k", scopes=("checkouts:read",)), 403, "insufficient-scope"
        )
        unknown = "019aa000-0000-7000-8000-000000000001"
        problem(await ask(api, unknown, kind, body, key="k"), 404, "unknown-checkout")
        problem(await ask(api, await fit(), kind, {**body, "version": 99}, key="v"), 409, "version-changed")
        problem(await ask(api, path, kind, {"colour": 1}, key="c"), 422, "invalid-command")
        await api.sql("UPDATE commands SET handled_at = clock(), result = 'refused_nothing_left'")
        finished = await ask(api, path, kind, body, key=f"k-{kind}", prefer="wait=1")
        assert finished.status_code == 200

    path = await in_state(api, "awaiting_payment")
    assert (await patch(api, path, basket(), key="k-change")).status_code == 202
    problem(await patch(api, path, basket(), scopes=("checkouts:read",)), 403, "insufficient-scope")
    problem(await patch(api, "019aa000-0000-7000-8000-000000000001", basket()), 404, "unknown-checkout")
    problem(await patch(api, path, basket() | {"version": 99}), 409, "version-changed")
    problem(await patch(api, path, {"order": {"amount": None}}), 422, "invalid-intent")
    await api.sql("UPDATE commands SET handled_at = clock(), result = 'refused_not_changeable'")
    assert (await patch(api, path, basket(), key="k-change", prefer="wait=1")).status_code == 200

    problem(await api.get("/v1/commands/019aa000-0000-7000-8000-000000000001"), 404, "unknown-command")


async def _webhooks(api: Api) -> None:
    headers, url = (
        api.bearer("default", ("webhooks:read", "webhooks:write")),
        "https://shop.example/webhooks",
    )
    reading = api.bearer("default", ("events:read",))

    async def ask(method: str, path: str = "", body: object = None, *, known: bool = True):
        given = {} if body is None else {"json": body}
        return await api.client.request(
            method, f"/v1/webhooks{path}", headers=headers if known else reading, **given
        )

    problem(await ask("POST", body={}), 422, "invalid-webhook")
    problem(await ask("POST", body={"url": url}, known=False), 403, "insufficient-scope")
    webhook = (await ask("POST", body={"url": url})).json()["id"]
    task = (await ask("POST", body={"kind": "celery", "task": "t", "queue": "events:default"})).json()["id"]
    problem(await ask("POST", f"/{task}/rotate-secret", {}), 409, "no-secret")
    assert (await ask("PATCH", f"/{task}", {"task": "other"})).is_success
    await api.sql(
        "INSERT INTO webhook_endpoints (id, merchant_id, url, secret) SELECT gen_random_uuid(), 1, 'https://a.example', '' "
        "FROM generate_series(3, 50)"
    )
    problem(await ask("POST", body={"url": url}), 409, "too-many-webhooks")
    assert (await ask("GET")).status_code == 200
    problem(await ask("GET", "?limit=0"), 422, "invalid-request")
    calls = (
        ("GET", "", None, None),
        ("PATCH", "", {"content": "full"}, {"content": 1}),
        ("POST", "/rotate-secret", {}, {"overlap": -1}),
        ("POST", "/test", None, None),
        ("POST", "/resume", None, None),
        ("POST", "/replay", {"failed": True}, {}),
        ("GET", "/deliveries", None, None),
    )
    for method, path, body, wrong in calls:
        unknown = f"/019aa000-0000-7000-8000-000000000001{path}"
        problem(await ask(method, unknown, body), 404, "unknown-webhook")
        problem(await ask(method, f"/{webhook}{path}", body, known=False), 403, "insufficient-scope")
        if wrong is None:
            problem(await ask(method, f"/{webhook}{path}?verbose=1", body), 422, "invalid-request")
        else:
            problem(await ask(method, f"/{webhook}{path}", wrong), 422, "invalid-webhook")
        assert (await ask(method, f"/{webhook}{path}", body)).is_success
    problem(await ask("GET", known=False), 403, "insufficient-scope")
    while (told := await ask("POST", f"/{webhook}/test")).is_success:
        pass
    problem(told, 429, "too-many-tests")
    await _delivery(api, webhook)
    problem(await ask("DELETE", f"/{webhook}?verbose=1"), 422, "invalid-request")
    problem(await ask("DELETE", f"/{webhook}", known=False), 403, "insufficient-scope")
    assert (await ask("DELETE", f"/{webhook}")).status_code == 204
    problem(await ask("DELETE", f"/{webhook}"), 404, "unknown-webhook")
    for table in ("delivery_attempts", "delivery_streams", "webhook_endpoints"):
        await api.sql(f"DELETE FROM {table}")


async def _delivery(api: Api, webhook: str) -> None:
    checkout, path = UUID(await api.taken()), f"/v1/deliveries/{webhook}/replay"
    headers, reading = (api.bearer("default", (scope,)) for scope in ("webhooks:write", "webhooks:read"))
    problem(await api.client.post(path, headers=reading), 403, "insufficient-scope")
    problem(await api.client.post(path, headers=headers), 404, "unknown-delivery")
    problem(await api.client.post(f"{path}?verbose=1", headers=headers), 422, "invalid-request")
    await api.sql(
        "INSERT INTO delivery_attempts (id, endpoint_id, checkout_id, sequence, kind, purpose, number, outcome, milliseconds) "
        "VALUES (:webhook, :webhook, :id, 1, 'checkout.ready', 'event', 1, 'delivered', 7)",
        webhook=UUID(webhook),
        id=checkout,
    )
    problem(await api.client.post(path, headers=headers), 410, "event-gone")
    await api.sql(
        "INSERT INTO events (checkout_id, sequence, merchant_id, kind, payload, correlation_id, position) "
        "VALUES (:id, 1, 1, 'checkout.ready', '{}', 'c', 1000000)",
        id=checkout,
    )
    assert (await api.client.post(path, headers=headers)).status_code == 202
    await api.sql("DELETE FROM events WHERE checkout_id = :id", id=checkout)


async def _merchants(api: Api) -> None:
    headers = api.bearer(OPERATOR, ("merchants:write",))

    async def ask(method: str, path: str = "", body: object = None, *, allowed: bool = True):
        given = {} if body is None else {"json": body}
        used = headers if allowed else api.bearer()
        return await api.client.request(method, f"/v1/merchants{path}", headers=used, **given)

    one = "/shop2"
    assert (await ask("POST", "", SHOP)).status_code == 201
    problem(await ask("POST", "", SHOP), 409, "merchant-exists")
    problem(await ask("POST", "", {}), 422, "invalid-merchant")
    problem(await ask("POST", "", SHOP, allowed=False), 403, "insufficient-scope")
    assert (await ask("GET")).status_code == 200
    for method, path, body in (
        ("GET", "", None),
        ("PATCH", "", {"policies": {"late": "keep"}}),
        ("POST", "/rotate-secret", {"overlap": 60}),
        ("POST", "/disable", None),
        ("POST", "/enable", None),
        ("POST", "/check", None),
        ("GET", "/changes", None),
    ):
        answer = await ask(method, one + path, body)
        assert answer.status_code == 200, answer.text
        problem(await ask(method, f"/absent{path}", body), 404, "unknown-merchant")
        problem(await ask(method, one + path, body, allowed=False), 403, "insufficient-scope")
        wrong = {"x": 1} if body is not None else None
        kind = "invalid-request" if wrong is None else "invalid-merchant"
        query = "" if wrong else "?verbose=1"
        problem(await ask(method, f"{one}{path}{query}", wrong), 422, kind)
    problem(await ask("GET", "?verbose=1"), 422, "invalid-request")
    problem(await ask("GET", "", allowed=False), 403, "insufficient-scope")
    await api.sql("UPDATE merchants SET username = 'another' WHERE name = 'shop2'")
    problem(await ask("POST", f"{one}/check"), 409, "merchant-unusable")
    await api.sql("DELETE FROM retired_callback_secrets")


async def _unused(api: Api) -> str:
    return f"t-{await api.count('payments')}"


async def _events(api: Api) -> None:
    async def ask(**params: object):
        headers = api.bearer("default", ("events:read",))
        return await api.client.get("/v1/events", params=params, headers=headers)

    await api.sql("INSERT INTO event_feeds (merchant_id, last_position, kept_after) VALUES (1, 7, 5)")
    assert (await ask()).json() == {"events": [], "next": "7"}
    assert problem(await ask(after=4), 410, "cursor-expired")["oldest"] == "5"
    problem(await ask(after=8), 422, "invalid-request")
    feed, most = api.services.event_feed, api.services.event_feed.most
    feed.most = 1
    waiting = asyncio.create_task(ask(wait=30))
    while not len(feed):  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(0.01)
    feed.most = 2
    problem(await ask(wait=30), 429, "too-many-waiting")
    feed.most = 1
    problem(await ask(wait=30), 503, "too-many-waiting")
    feed.most = most
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    headers = api.bearer("default", ("events:read",))
    assert (await api.client.get("/v1/event-types", headers=headers)).status_code == 200
    problem(await api.client.get("/v1/event-types?type=x", headers=headers), 422, "invalid-request")


async def _callbacks(api: Api) -> None:
    urls = api.urls(await api.taken())
    assert (await call(api, urls.notification, BODY, **signed())).status_code == 200
    assert (await call(api, urls.success, BODY, **signed())).status_code == 303
    problem(await call(api, urls.notification, BODY, **UNPROVEN["wrong"]), 401, "unproven-callback")
    problem(await call(api, urls.notification, b"x" * 262_145), 413, "too-large")
    address = path_of(urls.redirect)
    assert (await api.client.get(f"{address}?utm=1&lang=da")).status_code == 303
    problem(await api.client.get(address[:-4] + "AAAA"), 404, "unknown-callback")
    problem(await api.client.post(address[:-4] + "AAAA"), 404, "unknown-callback")
    assert (await send(api, posted())).status_code == 200
    problem(await send(api, posted(), headers={}), 401, "unproven-callback")
    problem(await send(api, b"x" * 262_145), 413, "too-large")
    problem(await api.client.post("/callbacks/merchant/default/AAAA", headers=FORM), 404, "unknown-callback")


async def test_an_answer_that_is_not_as_documented_is_noticed(api: Api):
    document = api.client._transport.app.openapi()
    shown = (await api.get(f"/v1/checkouts/{await api.taken()}")).json()
    schema = contract.ref(answers.Checkout)
    assert wrong_in(document, schema, shown) == []
    for change in (
        {"colour": 1},
        {"version": "1"},
        {"state": "lost"},
        {"deadline": 5},
        {"money": {}},
        {"paymentStatus": None},
        {"amount": {"value": "139.00", "currency": "DKK"}},
        {"links": {**shown["links"], "more": "x"}},
    ):
        assert wrong_in(document, schema, shown | change), change
    for name in shown:
        assert wrong_in(document, schema, {key: value for key, value in shown.items() if key != name}), name


# ── Shapes ────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_shape_and_each_field_that_needs_it_is_described():
    schemas = contract.schemas()
    assert [name for name, schema in schemas.items() if not schema.get("description")] == []
    # What a reference points at is described there.
    plain = {
        "id",
        "amount",
        "quantity",
        "street",
        "city",
        "zipCode",
        "itemId",
        "email",
        "firstName",
        "lastName",
        "createdAt",
        "updatedAt",
    }
    asked = [
        f"{name}.{field}"
        for name in ("Checkout", "Payment", "Problem", "Accepted", "AuditEntry", "Session", "Explanation")
        for field, schema in schemas[name]["properties"].items()
        if not schema.get("description") and "$ref" not in schema and field not in plain
    ]
    assert [
        field for field in asked if not re.search(r"\.(payments|operations|checkout|firstSeenAt)$", field)
    ] == []


async def test_the_examples_are_as_the_schemas_say(api: Api):
    document = api.client._transport.app.openapi()
    schemas = document["components"]["schemas"]
    assert {"Intent", "Checkout", "Problem", "Explanation"} < EXAMPLES.keys() < schemas.keys()
    shown = [(name, {"$ref": f"#/components/schemas/{name}"}, example) for name, example in EXAMPLES.items()]
    shown += [
        (f"{name}.{field}", described, example)
        for name, schema in schemas.items()
        for field, described in schema.get("properties", {}).items()
        for example in described.get("examples", ())
    ]
    shown += [
        (f"{method} {path} {status}", content["schema"], content["example"])
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        for status, response in operation["responses"].items()
        for content in response.get("content", {}).values()
        if "example" in content
    ]
    assert len(shown) > 100
    assert [name for name, schema, example in shown if wrong_in(document, schema, example)] == []


def test_what_is_answered_to_a_request_that_cannot_be_read_is_a_problem_too():
    document = {"components": {"schemas": contract.schemas()}}
    for said in connections._SENTENCES.values():
        told = msgspec.json.decode(connections._document(*said))
        assert wrong_in(document, contract.ref(answers.Problem), told) == []
        assert "correlationId" not in told


def test_the_bodies_have_the_fields_that_are_read():
    shapes = {
        "": bodies.Intent,
        "order": bodies.Order,
        "amount": bodies.Amount,
        "line": bodies.OrderLine,
        "customer": bodies.Customer,
        "address": bodies.Address,
        "callbacks": bodies.Callbacks,
        "page": bodies.Page,
        "configuration": bodies.Configuration,
    }
    for shape, kind in shapes.items():
        assert fields.NAMES[shape] == set(kind.__struct_encode_fields__), shape
    asked = {call.body for call in commands.CALLS.values()}
    assert asked | {bodies.Change} == set(bodies._Asked.__subclasses__())


def test_a_shape_is_made_of_its_own_names_only():
    assert made(answers.Next, {"what": "x"}, at=None) == answers.Next(what="x", at=None)
    with pytest.raises(KeyError):
        made(answers.Next, {"what": "x", "when": 1}, at=None)


async def test_an_entry_that_is_not_in_the_words_of_the_trail_is_shown_as_it_stands(api: Api):
    checkout = await api.taken()
    entry = msgspec.json.encode({"action": "checkout:stolen", "sequence": 2, "more": [1]}).decode()
    await api.sql(
        "INSERT INTO audit_entries (checkout_id, sequence, at, action, entry, key_id, mac) "
        "VALUES (:id, 2, clock(), 'checkout:stolen', :entry, 'k', '')",
        id=UUID(checkout),
        entry=entry,
    )
    api.contract.paths.clear()  # it is not as documented, and must be seen all the same
    trail = (await api.get(f"/v1/checkouts/{checkout}/audit")).json()
    assert trail["entries"][1] == {
        "action": "checkout:stolen",
        "sequence": 2,
        "more": [1],
        "keyId": "k",
        "mac": "",
    }


async def test_the_page_begins_with_checkouts_and_ends_with_callbacks_and_health(api: Api):
    for address in ("/openapi.json", "/docs/assets/openapi-3.0.json"):
        document = (await api.client.get(address)).json()
        tags = [
            *("checkouts", "commands", "payments", "events"),
            *("webhooks", "merchants", "callbacks", "health"),
        ]
        assert [tag["name"] for tag in document["tags"]] == tags
        assert all(tag["description"] for tag in document["tags"])
        met = [operation["tags"][0] for path in document["paths"].values() for operation in path.values()]
        assert list(dict.fromkeys(met)) == tags
        assert met == sorted(met, key=tags.index)
        assert list(document["paths"])[:3] == [
            "/v1/checkouts",
            "/v1/checkouts/batch",
            "/v1/checkouts/{checkout_id}",
        ]
        assert list(document["paths"]["/v1/checkouts"]) == ["post", "get"]


# ── Unknown parameters ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("path", "name", "said"),
    [
        ("/v1/checkouts", "order", "did you mean orderId?"),
        ("/v1/checkouts", "orderid", "did you mean orderId?"),
        ("/v1/checkouts", "payment_status", "did you mean paymentStatus?"),
        ("/v1/checkouts", "page", "known here are attention, cursor, limit, orderId, paymentStatus, state"),
        ("/v1/payments", "roles", "did you mean role?"),
        ("/v1/checkouts/{}", "limit", "this address takes none"),
        ("/v1/checkouts/{}/explain", "x", "this address takes none"),
        ("/v1/checkouts/{}/audit", "before", "known here are after, limit"),
    ],
)
async def test_a_parameter_that_is_not_known_is_refused_with_what_was_meant(api: Api, path, name, said):
    checkout = await api.taken()
    document = problem(await api.get(path.format(checkout), **{name: "A-1"}), 422, "invalid-request")
    message = f"is not a known parameter: {said}"
    assert document["errors"] == [{"field": name, "message": message}]
    assert document["detail"] == f"{name}: {message}"


async def test_what_is_posted_takes_no_parameters_and_nothing_is_stored(api: Api):
    checkout = await paid(api)
    before = await api.count("checkouts")
    problem(await api.post(intent(), path="/v1/checkouts?dryRun=true"), 422, "invalid-request")
    problem(await api.post([intent()], path="/v1/checkouts/batch?dryRun="), 422, "invalid-request")
    for kind in KINDS:
        answer = await ask(api, checkout, f"{kind}?amount=1", {}, key="k")
        assert problem(answer, 422, "invalid-request")["errors"][0]["field"] == "amount"
    assert (await api.count("checkouts"), await api.count("commands")) == (before, 0)


async def test_a_thousand_unknown_parameters_get_a_short_answer_and_no_control_characters(api: Api):
    many = "&".join(f"n{number}=1" for number in range(1000))
    document = problem(
        await api.client.get(f"/v1/checkouts?{many}", headers=api.bearer()), 422, "invalid-request"
    )
    assert len(document["errors"]) == 50
    odd = await api.client.get("/v1/checkouts?%1b%5B2J" + "x" * 500 + "=1", headers=api.bearer())
    (error,) = problem(odd, 422, "invalid-request")["errors"]
    assert "\x1b" not in odd.text
    assert len(error["field"]) <= 61


async def test_who_may_not_ask_learns_no_parameters(api: Api):
    problem(await api.client.get("/v1/checkouts?order=A-1"), 401, "invalid-token")
    refused = await api.client.get("/v1/checkouts?order=A-1", headers=api.bearer(scopes=("ops",)))
    problem(refused, 403, "insufficient-scope")


async def test_callbacks_and_health_take_whatever_stands_behind_the_question_mark(api: Api):
    checkout = await api.taken()
    for kind in ("success", "failure", "redirect", "notification"):
        url = path_of(getattr(api.urls(checkout), kind))
        answer = await api.client.post(f"{url}?transaction=1&x=", content=BODY, headers=FORM)
        assert answer.status_code == (200 if kind == "notification" else 303)
    for path in ("/healthz", "/readyz", "/docs", "/openapi.json"):
        assert (await api.client.get(f"{path}?verbose=1")).status_code == 200


# ── What is held of the money ─────────────────────────────────────────────────────────────────────────────

AMOUNTS = (0, 1, 99, 100)
MADE = """
    INSERT INTO checkouts (id, merchant_id, order_ref, state, deadline, due_at, currency, amount, reserved, captured, refunded, charged_back,
                           audit_sequence, audit_head, correlation_id)
    SELECT (lpad(to_hex(1700000000000 + row_number() OVER (ORDER BY s, r, c, f, b)), 12, '0') || '70008000000000000000')::uuid,
           1, 'o-' || row_number() OVER (ORDER BY s, r, c, f, b), s, clock() + interval '1 hour', clock(), 'DKK', 100, r, c, f, b, 1, '', ''
      FROM unnest(CAST(:states AS text[])) s, unnest(CAST(:amounts AS bigint[])) r, unnest(CAST(:amounts AS bigint[])) c,
           unnest(CAST(:amounts AS bigint[])) f, unnest(CAST(:amounts AS bigint[])) b
"""


async def test_the_rule_of_the_payment_status_is_the_same_in_sql_and_in_python(api: Api):
    await api.sql(MADE, states=[state.value for state in State], amounts=list(AMOUNTS))
    rows = await api.sql(
        f"SELECT state, reserved, captured, refunded, charged_back, ({IN_SQL}) AS word FROM checkouts"
    )
    assert len(rows) == len(State) * len(AMOUNTS) ** 4
    for row in rows:
        assert row.word == payment_status(State(row.state), row), row
    assert {row.word for row in rows} == set(PaymentStatus)


async def _all(api: Api, limit: int, **params: object) -> list[dict]:
    """Return the checkouts of all pages; each page but the last is full."""
    found, cursor = [], {}
    while True:
        page = (await api.get("/v1/checkouts", limit=limit, **params, **cursor)).json()
        found += page["checkouts"]
        if page["nextCursor"] is None:
            return found
        assert len(page["checkouts"]) == limit
        cursor = {"cursor": page["nextCursor"]}


async def test_a_list_is_filtered_by_what_is_held_page_by_page(api: Api):
    states = ["completed", "awaiting_payment", "failed"]
    await api.sql(MADE, states=states, amounts=[0, 50, 100])
    everything = await _all(api, 200)
    assert len(everything) == len(states) * 3**4
    held = [[status] for status in PaymentStatus] + [["captured", "refunded"], ["unpaid", "released"]]
    for statuses, state in product(held, ([], ["completed"], ["failed", "completed"], ["awaiting_payment"])):
        expected = [
            checkout["id"]
            for checkout in everything
            if checkout["paymentStatus"] in statuses and (not state or checkout["state"] in state)
        ]
        params = {"paymentStatus": statuses, **({"state": state} if state else {})}
        assert [checkout["id"] for checkout in await _all(api, 23, **params)] == expected, params
    number = next(checkout for checkout in everything if checkout["paymentStatus"] == "captured")["orderId"]
    assert [
        checkout["orderId"] for checkout in await _all(api, 5, orderId=number, paymentStatus="captured")
    ] == [number]
    assert await _all(api, 5, orderId=number, paymentStatus="unpaid") == []
    document = problem(await api.get("/v1/checkouts", paymentStatus="paid"), 422, "invalid-request")
    assert document["errors"][0]["field"].startswith("paymentStatus")


async def test_unpaid_checkouts_are_listed_without_reading_paid_checkouts(api: Api):
    await api.sql(MADE, states=["completed"], amounts=[1, 2, 3, 4, 5, 6, 7])
    waiting = await api.taken()
    await api.sql("ANALYZE checkouts")
    found = await api.get("/v1/checkouts", paymentStatus="unpaid", state=["received", "awaiting_payment"])
    assert [checkout["id"] for checkout in found.json()["checkouts"]] == [waiting]
    assert (
        await api.client.get("/v1/checkouts?paymentStatus=unpaid", headers=api.bearer(scopes=EVERY))
    ).json() == {"checkouts": [found.json()["checkouts"][0]], "nextCursor": None}


def _optional(schemas: dict, shape: str, value: dict, at: tuple = ()):
    """Yield the path of each optional field of a shape, and of the shapes inside it that a value has."""
    for name, said in schemas[shape]["properties"].items():
        if name not in schemas[shape].get("required", ()):
            yield (*at, name)
        inner = [choice.get("$ref") for choice in (said, *said.get("anyOf", ()))]
        for ref in filter(None, inner):
            if isinstance(value.get(name), dict):
                yield from _optional(schemas, ref.rpartition("/")[2], value[name], (*at, name))


def test_null_counts_as_absent_in_an_intent_as_the_document_says():
    schemas, base = contract.schemas(), intent("A-1")
    paths = list(_optional(schemas, "Intent", base))
    assert ("order", "customer", "email") in paths
    for path in paths:
        body = intent("A-1")
        place = body
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = None
        if any(value is not None for value in body["order"]["customer"].values()):
            assert intents.parse(msgspec.json.encode(body)).order_ref == "A-1", path
            document = {"components": {"schemas": schemas}}
            assert wrong_in(document, {"$ref": "#/components/schemas/Intent"}, body) == [], path

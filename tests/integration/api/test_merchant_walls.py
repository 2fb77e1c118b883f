"""Nothing of one merchant is shown to another: every call of the OpenAPI document is made with every kind of
id of another merchant, and answered as it is for an id that does not exist.

The walk is made from the document. A call that it cannot make (a new kind of id, query parameter or body)
fails `test_every_documented_call_can_be_walked` by itself.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest

from orchestrator import auth
from orchestrator.domain.ids import uuid7
from tests.integration.api.test_basket import basket
from tests.integration.api.test_intake import problem
from tests.support.api_scene import Api, intent, path_of, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    import httpx

pytestmark = pytest.mark.anyio

SCOPES = tuple(auth.SCOPES - auth.OPERATOR_SCOPES)
WEBHOOK = {"url": "https://shop.example/webhooks"}
BODIES: dict[tuple[str, str], Any] = {
    ("patch", "/v1/webhooks/{webhook_id}"): {"description": "mine"},
    ("post", "/v1/webhooks/{webhook_id}/replay"): {"failed": True},
    ("patch", "/v1/checkouts/{checkout_id}"): basket(),
    ("post", "/v1/checkouts/{checkout_id}/capture"): {"amount": "all"},
    ("post", "/v1/checkouts/{checkout_id}/refund"): {"amount": "all"},
    ("post", "/v1/checkouts/{checkout_id}/resolve"): {"decision": "dismiss"},
    ("patch", "/v1/merchants/{merchant}"): {"policies": {"late": "keep"}},
}
"""Bodies that are valid, of calls that name something in their path and need a body."""
OPERATORS = "merchants"
"""The tag of the operator's calls: they refuse a merchant's token before they read what is named."""


@dataclass
class Other:
    """What the other merchant has."""

    name: str
    merchant_id: int
    order: str
    key: str
    ids: dict[str, str]
    """By the names that a path has for them."""
    event: str
    transaction: str
    rejected: str
    signed: dict[str, str] = field(default_factory=dict)
    """Signed parts of the caller's own links, by the paths that they belong to."""

    def known(self) -> set[str]:
        """Return every text that would show something of it."""
        return {self.name, self.order, self.key, *self.ids.values(), self.transaction, self.rejected}


@dataclass
class Walk:
    """The caller, and the other merchant."""

    api: Api
    caller: str
    other: Other

    def headers(self, key: str | None = None) -> dict[str, str]:
        token = self.api.bearer(self.caller, SCOPES)
        return token | {"Idempotency-Key": key or uuid4().hex}

    async def ask(self, method: str, path: str, **given: Any) -> httpx.Response:
        headers = given.pop("headers", None) or self.headers()
        return await self.api.client.request(
            method.upper(), path, headers=headers, follow_redirects=False, **given
        )


async def merchant(api: Api, name: str) -> int:
    added = await api.services.merchants.add(
        name,
        gateway_url="http://127.0.0.1:9",
        merchant_api_url=None,
        username="u",
        password="p",
        callback_secrets=("a secret of callbacks",),
    )
    assert added
    found = await api.services.merchants.named(name)
    assert found is not None
    return found.id


@pytest.fixture
async def walk(settings) -> AsyncIterator[Walk]:
    async with serving(settings) as api:
        yield await walking(api)


async def walking(api: Api) -> Walk:
    """Make two merchants: one that asks, and one that has something of every kind."""
    suffix = uuid4().hex[:8]
    caller, name = f"caller-{suffix}", f"other-{suffix}"
    own_id, merchant_id = await merchant(api, caller), await merchant(api, name)
    headers = api.bearer(name, SCOPES)
    order, key = f"O-{uuid4().hex[:10]}", uuid4().hex
    created = await api.client.post(
        "/v1/checkouts", json=intent(order), headers=headers | {"Idempotency-Key": key}
    )
    checkout = created.json()["id"]
    await api.offer(checkout)
    asked = await api.client.post(f"/v1/checkouts/{checkout}/reconcile", json={}, headers=headers)
    assert asked.status_code == 202, asked.text
    webhook = (await api.client.post("/v1/webhooks", json=WEBHOOK, headers=headers)).json()["id"]
    delivery, transaction = str(uuid7()), f"t-{uuid4().hex[:10]}"
    await api.sql(
        "INSERT INTO delivery_attempts (id, endpoint_id, checkout_id, sequence, kind, purpose, number, outcome, milliseconds, result) "
        "VALUES (:id, :webhook, :checkout, 1, 'checkout.ready', 'event', 1, 'failed', 7, 'given_up')",
        id=UUID(delivery),
        webhook=UUID(webhook),
        checkout=UUID(checkout),
    )
    await api.sql(
        "INSERT INTO events (checkout_id, sequence, merchant_id, kind, payload, correlation_id, position) "
        "VALUES (:id, 1, :merchant, 'checkout.ready', '{}', 'c', 1)",
        id=UUID(checkout),
        merchant=merchant_id,
    )
    await api.sql(
        "INSERT INTO event_feeds (merchant_id, last_position) VALUES (:merchant, 1)", merchant=merchant_id
    )
    await api.sql(
        "INSERT INTO payments (merchant_id, transaction_id, checkout_id, order_ref, role, binding, status, meaning, currency, reserved, "
        "captured, refunded) VALUES (:merchant, :transaction, :checkout, :order, 'surplus', 'bound', 'preauth', 'reserved', 'DKK', 1, 0, 0)",
        merchant=merchant_id,
        transaction=transaction,
        checkout=UUID(checkout),
        order=order,
    )
    refused = str(uuid7())
    await store_rejected(api, UUID(refused), merchant_id, order)
    own = await api.client.post("/v1/checkouts", json=intent(), headers=api.bearer(caller, SCOPES))
    links = api.urls(own.json()["id"], merchant_id=own_id)
    return Walk(
        api,
        caller,
        Other(
            name=name,
            merchant_id=merchant_id,
            order=order,
            key=key,
            ids={
                "checkout_id": checkout,
                "id": checkout,
                "command_id": asked.json()["command"]["id"],
                "webhook_id": webhook,
                "delivery_id": delivery,
                "merchant": name,
            },
            event=f"{checkout}-1",
            transaction=transaction,
            rejected=refused,
            signed={
                kind: path_of(getattr(links, kind)).rsplit("/", 1)[1]
                for kind in ("success", "failure", "redirect", "notification")
            },
        ),
    )


async def store_rejected(api: Api, number: UUID, merchant_id: int, order: str) -> None:
    key, wrapped = api.services.encryptor.new_data_key(number)
    await api.sql(
        "INSERT INTO rejected_intents (id, merchant_id, digest, message_id, order_ref, code, errors, body, data_key) "
        "VALUES (:id, :merchant, :digest, 'm', :order, 'invalid_intent', '[]', :body, :wrapped)",
        id=number,
        merchant=merchant_id,
        digest=number.bytes,
        order=order,
        body=key.encrypt(b"{}", purpose="rejected-intent"),
        wrapped=wrapped,
    )


# ── The walk ──────────────────────────────────────────────────────────────────────────────────────────────

KINDS_OF_IDS = {"checkout_id", "id", "command_id", "webhook_id", "delivery_id", "merchant", "kind", "signed"}
QUERY = {
    *("orderId", "state", "paymentStatus", "attention", "role", "cursor", "limit"),
    *("after", "before", "wait", "type", "checkout", "content", "failed"),
}
CREATING = {
    ("post", "/v1/checkouts"),
    ("post", "/v1/checkouts/batch"),
    ("post", "/v1/webhooks"),
    ("post", "/v1/merchants"),
}
"""Calls that name nothing and take a body: each has a test below."""


def calls(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield method, path, operation


def named(operation: dict[str, Any], where: str) -> list[str]:
    return [one["name"] for one in operation.get("parameters", ()) if one["in"] == where]


def unwalked(document: dict[str, Any]) -> list[str]:
    """Return what of the document the walk cannot make, each with the reason."""
    found = []
    for method, path, operation in calls(document):
        where = f"{method} {path}"
        names, query = named(operation, "path"), named(operation, "query")
        found += [f"{where}: no id of the kind {name!r}" for name in names if name not in KINDS_OF_IDS]
        found += [f"{where}: no value for the parameter {name!r}" for name in query if name not in QUERY]
        body = operation.get("requestBody", {})
        known = (method, path) in BODIES if names else (method, path) in CREATING
        if body and (body.get("required") or not names) and not known:
            found.append(f"{where}: no body")
        if not names and not body and method != "get":
            found.append(f"{where}: names nothing and is no list")
    return found


async def test_every_documented_call_can_be_walked(walk: Walk):
    assert unwalked(walk.api.client._transport.app.openapi()) == []


@pytest.mark.parametrize(
    ("call", "operation", "said"),
    [
        ("get /v1/payouts/{payout_id}", {"parameters": [{"name": "payout_id", "in": "path"}]}, "no id of the kind 'payout_id'"),
        ("get /v1/payouts", {"parameters": [{"name": "payout", "in": "query"}]}, "no value for the parameter 'payout'"),
        ("post /v1/payouts", {"requestBody": {"required": True}}, "no body"),
        ("post /v1/checkouts/{checkout_id}/move", {"parameters": [{"name": "checkout_id", "in": "path"}], "requestBody": {"required": True}}, "no body"),
        ("delete /v1/payouts", {}, "names nothing and is no list"),
    ],
)  # fmt: skip
async def test_a_new_call_that_is_not_walked_is_noticed(walk: Walk, call, operation, said):
    method, path = call.split()
    document = copy.deepcopy(walk.api.client._transport.app.openapi())
    document["paths"][path] = {method: operation}
    assert unwalked(document) == [f"{call}: {said}"]


def bare(answer: httpx.Response, *, without: dict[str, str]) -> tuple[int, dict[str, str], str]:
    """Return an answer without what differs between any two: ids that were asked for, and the correlation
    id.
    """
    text = answer.text
    if answer.headers.get("content-type", "").endswith("json"):
        document = answer.json()
        if isinstance(document, dict):
            document.pop("correlationId", None)
        text = json.dumps(document, sort_keys=True)
    for name, value in without.items():
        text = text.replace(value, f"<{name}>")
    headers = {
        name: value for name, value in answer.headers.items() if name not in {"x-correlation-id", "date"}
    }
    return answer.status_code, headers, text


async def test_what_is_anothers_is_answered_like_what_does_not_exist(walk: Walk):
    document = walk.api.client._transport.app.openapi()
    walked = 0
    for method, path, operation in calls(document):
        names = named(operation, "path")
        if not names:
            continue
        kinds = next(
            (one["schema"]["enum"] for one in operation["parameters"] if one["name"] == "kind"), [""]
        )
        for kind in kinds:
            asked = []
            for ids in (walk.other.ids, _unused(walk.other.ids)):
                values = {name: ids[name] for name in names if name in ids}
                given = {"kind": kind, "signed": walk.other.signed.get(kind, walk.other.signed["success"])}
                address = path.format(**values, **given)
                body = BODIES.get((method, path), {} if "requestBody" in operation else None)
                answer = await walk.ask(method, address, **({} if body is None else {"json": body}))
                asked.append(bare(answer, without=values))
            wanted = 403 if OPERATORS in operation["tags"] else 404
            assert asked[0] == asked[1], (method, path)
            assert asked[0][0] == wanted, (method, path, asked[0])
            walked += 1
    assert walked > 25
    # And nothing came of any of it.
    (row,) = await walk.api.sql(
        "SELECT (SELECT count(*) FROM commands WHERE merchant_id = :merchant) AS commands, "
        "(SELECT description FROM webhook_endpoints WHERE merchant_id = :merchant AND deleted_at IS NULL) AS said, "
        "(SELECT count(*) FROM delivery_streams) AS streams, (SELECT count(*) FROM callbacks) AS callbacks",
        merchant=walk.other.merchant_id,
    )
    assert tuple(row) == (1, "", 0, 0)


def _unused(ids: dict[str, str]) -> dict[str, str]:
    """Return ids that do not exist, of the same lengths."""
    fresh = {value: str(uuid7()) for name, value in ids.items() if name != "merchant"}
    return {name: fresh[value] if name != "merchant" else f"x{value[1:]}" for name, value in ids.items()}


async def test_no_list_and_no_filter_shows_anything_of_another(walk: Walk):
    other = walk.other
    values: dict[str, list[Any]] = {
        "orderId": [other.order],
        "state": ["received", "awaiting_payment"],
        "paymentStatus": ["unpaid", "authorized"],
        "attention": ["late_payment"],
        "role": ["surplus"],
        "cursor": [*other.ids.values(), other.rejected],
        "limit": [1, 100],
        "after": ["0", "1"],
        "before": ["1"],
        "wait": [0],
        "type": ["checkout.ready"],
        "checkout": [other.ids["checkout_id"]],
        "content": ["thin", "full"],
        "failed": ["true"],
    }
    assert values.keys() == QUERY
    shown = 0
    for method, path, operation in calls(walk.api.client._transport.app.openapi()):
        if method != "get" or named(operation, "path"):
            continue
        queries: list[dict[str, Any]] = [{}]
        for name in named(operation, "query"):
            queries += [{name: value} for value in values[name]]
        for query in queries:
            answer = await walk.ask(method, path, params=query)
            wanted = {403} if OPERATORS in operation["tags"] else {200, 422}
            assert answer.status_code in wanted, (path, query, answer.text)
            assert answer.status_code != 422 or query, path
            # A wrong parameter may be repeated in the sentence about it.
            seen = {word for word in other.known() if word in answer.text} - set(map(str, query.values()))
            assert seen == set(), (path, query)
            shown += answer.status_code == 200
    assert shown > 25


async def test_events_of_another_are_in_no_feed_and_at_no_webhook(walk: Walk):
    other = walk.other
    feed = (await walk.ask("get", "/v1/events", params={"checkout": other.ids["checkout_id"]})).json()
    assert feed["events"] == []
    own = (await walk.ask("post", "/v1/webhooks", json=WEBHOOK)).json()["id"]
    asked = []
    for event in (other.event, f"{uuid7()}-1"):
        answer = await walk.ask("post", f"/v1/webhooks/{own}/replay", json={"eventId": event})
        asked.append(bare(answer, without={"event": event}))
    assert asked[0] == asked[1]
    period = {"since": "2020-01-01T00:00:00+00:00"}
    assert (await walk.ask("post", f"/v1/webhooks/{own}/replay", json=period)).json() == {"events": 0}
    assert (await walk.ask("post", f"/v1/webhooks/{own}/replay", json={"failed": True})).json() == {
        "events": 0
    }
    assert (await walk.ask("get", f"/v1/webhooks/{own}/deliveries")).json()["deliveries"] == []
    params = {"checkout": other.ids["checkout_id"], "cursor": other.ids["delivery_id"]}
    assert (await walk.ask("get", f"/v1/webhooks/{own}/deliveries", params=params)).json()["deliveries"] == []


async def test_order_numbers_and_idempotency_keys_of_another_are_free(walk: Walk):
    other = walk.other
    answer = await walk.ask(
        "post", "/v1/checkouts", json=intent(other.order), headers=walk.headers(other.key)
    )
    assert answer.status_code == 202, answer.text
    assert answer.json()["id"] != other.ids["checkout_id"]
    # A batch takes no key: its order numbers make it safe to send again.
    batch = await walk.ask(
        "post",
        "/v1/checkouts/batch",
        json=[intent(other.order), intent(other.order, expiresIn=77)],
        headers=walk.api.bearer(walk.caller, SCOPES),
    )
    assert len(batch.json()["results"]) == 2
    for row in batch.json()["results"]:
        assert other.ids["checkout_id"] not in json.dumps(row)
    (row,) = await walk.api.sql(
        "SELECT count(*) AS number FROM checkouts WHERE merchant_id = :merchant", merchant=other.merchant_id
    )
    assert row.number == 1
    problem(await walk.ask("post", "/v1/merchants", json={"name": other.name}), 403, "insufficient-scope")


async def test_health_and_documentation_name_no_merchant(walk: Walk):
    for path in ("/healthz", "/readyz", "/openapi.json", "/docs", "/"):
        text = (await walk.api.client.get(path)).text
        assert not {word for word in {*walk.other.known(), walk.caller} if word in text}, path

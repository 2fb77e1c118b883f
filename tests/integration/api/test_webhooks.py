"""Webhooks over HTTP: a secret is shown once, another merchant's do not exist, and every wrong field is
named.
"""

from __future__ import annotations

import base64
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from orchestrator.cli import checks
from orchestrator.cli.doctor import Report
from orchestrator.crypto import EncryptionError
from orchestrator.delivery import signature
from orchestrator.store import deliveries, replays, webhooks
from orchestrator.store import status as installation
from tests.conftest import make_settings
from tests.integration.api.test_intake import problem
from tests.support.api_scene import serving

pytestmark = pytest.mark.anyio

BOTH = ("webhooks:read", "webhooks:write")
URL = "https://shop.example/webhooks?token=a"
UNKNOWN = "019aa000-0000-7000-8000-00000000000a"


class Calls:
    def __init__(self, api, *, merchant: str = "default", scopes: tuple[str, ...] = BOTH) -> None:
        self._api, self._headers = api, api.bearer(merchant, scopes)

    async def __call__(self, method: str, path: str = "", body: object = None, **params: object):
        given = {} if body is None else {"json": body}
        return await self._api.client.request(
            method, f"/v1/webhooks{path}", headers=self._headers, params=params, **given
        )


@pytest.fixture
def calls(api) -> Calls:
    return Calls(api)


async def add(calls: Calls, **changes: object) -> dict:
    answer = await calls("POST", body={"url": URL, **changes})
    assert answer.status_code == 201, answer.text
    return answer.json()


async def test_an_endpoint_is_added_shown_changed_and_deleted(api, calls):
    made = await add(
        calls, description="orders", types=["checkout.completed", "checkout.completed"], content="full"
    )
    secret = made.pop("secret")
    assert len(base64.b64decode(secret.removeprefix("whsec_"))) == 32
    assert (made["status"], made["types"], made["url"]) == ("active", ["checkout.completed"], URL)
    path = f"/{made['id']}"
    shown = (await calls("GET", path)).json()
    assert shown == made
    (row,) = await api.sql("SELECT secret FROM webhook_endpoints")
    assert base64.b64decode(secret.removeprefix("whsec_")) not in bytes(row.secret)

    changed = (
        await calls("PATCH", path, {"types": ["*"], "url": "https://shop.example/other", "paused": True})
    ).json()
    assert (changed["types"], changed["status"], changed["pauseReason"]) == (["*"], "paused", "asked")
    assert (changed["description"], changed["content"]) == ("orders", "full")
    found = await webhooks.by_id(api.services.db, UUID(made["id"]), merchant_id=1)
    assert [signature.written(secret) for secret in found.secrets(api.services.encryptor)] == [secret]
    assert (await calls("PATCH", path, {"paused": False})).json()["status"] == "active"
    assert (await calls("PATCH", path, {})).json()["url"] == "https://shop.example/other"

    assert (await calls("DELETE", path)).status_code == 204
    for method, rest in (
        ("GET", ""),
        ("PATCH", ""),
        ("DELETE", ""),
        ("POST", "/test"),
        ("GET", "/deliveries"),
    ):
        body = {} if method == "PATCH" else None
        problem(await calls(method, path + rest, body), 404, "unknown-webhook")
    assert (await calls("GET")).json() == {"webhooks": [], "nextCursor": None}


async def test_events_may_come_as_a_celery_task_and_the_login_of_a_broker_is_not_shown(api, calls):
    broker = "amqps://shop:hidden@broker.shop.example/v"
    made = await add_task(calls, broker=broker, types=["checkout.completed"])
    assert (made["kind"], made["task"], made["queue"]) == ("celery", "shop.events", "shop-events")
    assert made["broker"] == "amqps://broker.shop.example:5671/v"
    assert (made["url"], made["secret"], made["status"]) == (None, None, "active")
    found = await stored_task(api, made)
    assert found.secrets(api.services.encryptor) == (broker.encode(),)
    path = f"/{made['id']}"
    listed = (await calls("GET")).json()
    assert "hidden" not in str(listed)
    assert listed["webhooks"][0] == (await calls("GET", path)).json()
    (row,) = await api.sql("SELECT * FROM webhook_endpoints")
    assert "hidden" not in str(row)
    assert b"hidden" not in bytes(row.secret)

    changed = (await calls("PATCH", path, {"task": "shop.other", "description": "d"})).json()
    assert (changed["task"], changed["queue"], changed["broker"]) == (
        "shop.other",
        "shop-events",
        made["broker"],
    )
    assert (await stored_task(api, made)).secrets(api.services.encryptor) == (broker.encode(),)
    told = problem(await calls("PATCH", path, {"broker": None}), 422, "invalid-webhook")
    assert [error["field"] for error in told["errors"]] == ["queue"], (
        "that queue is not the merchant's on ours"
    )
    changed = (await calls("PATCH", path, {"broker": None, "queue": "events:default:fast"})).json()
    assert (changed["broker"], changed["queue"]) == (None, "events:default:fast")
    assert (await stored_task(api, made)).secrets(api.services.encryptor) == (b"",)
    changed = (await calls("PATCH", path, {"broker": "rediss://:p@redis.shop.example/2"})).json()
    assert (changed["broker"], changed["queue"]) == (
        "rediss://redis.shop.example:6379/2",
        "events:default:fast",
    )
    problem(await calls("POST", f"{path}/rotate-secret", {}), 409, "no-secret")
    problem(await calls("PATCH", path, {"url": URL}), 422, "invalid-webhook")
    webhook = await add(calls)
    assert (webhook["kind"], webhook["task"], webhook["queue"], webhook["broker"]) == (
        "webhook",
        None,
        None,
        None,
    )
    problem(await calls("PATCH", f"/{webhook['id']}", {"queue": "a"}), 422, "invalid-webhook")

    # Another target in the row: the login does not open, and goes nowhere.
    await api.sql("UPDATE webhook_endpoints SET url = 'rediss://other.example:6379/2' WHERE kind = 'celery'")
    with pytest.raises(EncryptionError):
        (await stored_task(api, made)).secrets(api.services.encryptor)


async def test_two_changes_at_once_do_not_lead_to_a_queue_that_is_not_the_merchants(api, calls, monkeypatch):
    made = await add_task(calls, broker="amqps://u:p@broker.shop.example/", queue="events:default")
    change = webhooks.change

    async def after_another(db, encryptor, webhook, *, merchant_id, **given):
        await change(db, encryptor, webhook, merchant_id=merchant_id, changes={"queue": "checkouts"})
        return await change(db, encryptor, webhook, merchant_id=merchant_id, **given)

    monkeypatch.setattr(webhooks, "change", after_another)
    told = problem(await calls("PATCH", f"/{made['id']}", {"broker": None}), 422, "invalid-webhook")
    assert [error["field"] for error in told["errors"]] == ["queue"]
    after = await stored_task(api, made)
    assert (after.url, after.queue) == ("amqps://broker.shop.example:5671/", "checkouts")


async def add_task(calls: Calls, **changes: object) -> dict:
    body = {"kind": "celery", "task": "shop.events", "queue": "shop-events", **changes}
    answer = await calls("POST", body=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def stored_task(api, made: dict):
    found = await webhooks.by_id(api.services.db, UUID(made["id"]), merchant_id=1)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"task": None}, "task"), ({"queue": 1}, "queue"), ({"task": "a b"}, "task"), ({"queue": "a/b"}, "queue"), ({"url": URL}, "url"),
        ({"broker": "amqp://broker.shop.example/"}, "broker"), ({"broker": "amqps://127.0.0.1/"}, "broker"), ({"broker": "amqps://rabbitmq/"}, "broker"),
        ({"broker": "https://shop.example/"}, "broker"), ({"broker": 1}, "broker"), ({"broker": "amqps://h.example/?heartbeat=1"}, "broker"),
        ({"broker": None}, "queue"), ({"broker": None, "queue": "checkouts"}, "queue"), ({"broker": None, "queue": "events:other"}, "queue"),
        ({"kind": "sqs"}, "kind"), ({"kind": "webhook"}, "task"),
    ],
)  # fmt: skip
async def test_what_is_wrong_with_a_task_is_named(calls, body, field):
    given = {
        "kind": "celery",
        "task": "t",
        "queue": "q",
        "broker": "amqps://u:p@broker.shop.example/",
        **body,
    }
    told = problem(await calls("POST", body=given), 422, "invalid-webhook")
    assert field in [error["field"] for error in told["errors"]]
    assert (await calls("GET")).json()["webhooks"] == []


async def test_all_types_and_thin_documents_are_what_is_sent_if_nothing_else_is_asked_for(api, calls):
    for body in ({}, {"types": ["*"], "content": "thin"}):
        made = await add(calls, **body)
        assert {name: made[name] for name in ("url", "types", "content", "status")} == {
            "url": URL,
            "types": ["*"],
            "content": "thin",
            "status": "active",
        }
        assert made["secret"].startswith("whsec_")
        found = await webhooks.by_id(api.services.db, UUID(made["id"]), merchant_id=1)
        assert found.kinds is None


async def test_a_new_secret_is_shown_once_and_the_old_secret_signs_on_for_a_while(api, calls):
    made = await add(calls)
    path = f"/{made['id']}/rotate-secret"
    answer = (await calls("POST", path)).json()
    assert answer["secret"] != made["secret"]
    assert answer["previousSecretUntil"] is not None
    found = await webhooks.by_id(api.services.db, UUID(made["id"]), merchant_id=1)
    assert [signature.written(secret) for secret in found.secrets(api.services.encryptor)] == [
        answer["secret"],
        made["secret"],
    ]
    again = (await calls("POST", path, {"overlap": 0})).json()
    assert again["previousSecretUntil"] is None
    problem(await calls("POST", path, {"overlap": -1}), 422, "invalid-webhook")
    problem(await calls("POST", path, {"overlap": True}), 422, "invalid-webhook")


async def test_nothing_of_one_merchant_is_seen_by_another(api, calls):
    await second_merchant(api)
    other = Calls(api, merchant="second")
    made = await add(calls)
    path = f"/{made['id']}"
    assert (await other("GET")).json()["webhooks"] == []
    requests = [
        ("GET", "", None),
        ("PATCH", "", {"description": "mine"}),
        ("DELETE", "", None),
        ("POST", "/rotate-secret", None),
        ("POST", "/test", None),
        ("POST", "/resume", None),
        ("POST", "/replay", {"failed": True}),
        ("GET", "/deliveries", None),
    ]
    for method, rest, body in requests:
        answer = problem(await other(method, path + rest, body), 404, "unknown-webhook")
        unknown = problem(await other(method, f"/{UNKNOWN}{rest}", body), 404, "unknown-webhook")
        assert answer["detail"].replace(made["id"], "") == unknown["detail"].replace(UNKNOWN, "")
    assert (await calls("GET", path)).json()["description"] == ""


async def second_merchant(api) -> None:
    await api.sql(
        "INSERT INTO merchants (name, gateway_url, username) VALUES ('second', 'http://127.0.0.1:9', 'u')"
    )
    await api.sql("UPDATE merchants SET password = :password WHERE name = 'second'", password=_password(api))


def _password(api) -> bytes:
    from orchestrator.store.merchant_accounts import password_purpose

    purpose = password_purpose("second", "http://127.0.0.1:9", None, "u")
    return api.services.encryptor.encrypt(b"p", purpose=purpose)


async def test_scopes_are_asked_for(api):
    made = await add(Calls(api))
    reading, writing = Calls(api, scopes=("webhooks:read",)), Calls(api, scopes=("webhooks:write",))
    assert (await reading("GET", f"/{made['id']}")).status_code == 200
    for method, path in (
        ("POST", ""),
        ("PATCH", f"/{made['id']}"),
        ("DELETE", f"/{made['id']}"),
        ("POST", f"/{made['id']}/test"),
    ):
        body = {"url": URL} if method in {"POST", "PATCH"} else None
        assert (
            "webhooks:write"
            in problem(await reading(method, path, body), 403, "insufficient-scope")["detail"]
        )
    assert (await writing("GET", f"/{made['id']}")).status_code == 200
    assert (await writing("GET", f"/{made['id']}/deliveries")).status_code == 200
    told = problem(await Calls(api, scopes=("events:read",))("GET"), 403, "insufficient-scope")
    assert "webhooks:read or webhooks:write" in told["detail"]
    told = problem(await _replay(api, UNKNOWN, scopes=("webhooks:read",)), 403, "insufficient-scope")
    assert "webhooks:write" in told["detail"]
    problem(await api.client.get("/v1/webhooks"), 401, "invalid-token")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "url"), ({"url": None}, "url"), ({"url": 1}, "url"), ({"url": "http://shop.example/"}, "url"), ({"url": "https://127.0.0.1/"}, "url"),
        ({"url": "https://localhost/"}, "url"), ({"url": "https://a:b@shop.example/"}, "url"), ({"url": "https://shop.example/#a"}, "url"),
        ({"url": f"https://shop.example/{'a' * 3000}"}, "url"), ({"url": URL, "types": []}, "types"), ({"url": URL, "types": "all"}, "types"),
        ({"url": URL, "types": "*"}, "types"), ({"url": URL, "types": None}, "types"), ({"url": URL, "types": ["*", "checkout.completed"]}, "types"),
        ({"url": URL, "types": ["checkout.complete"]}, "types[0]"), ({"url": URL, "types": [1]}, "types[0]"), ({"url": URL, "content": "all"}, "content"),
        ({"url": URL, "content": ["thin"]}, "content"), ({"url": URL, "description": "a" * 201}, "description"), ({"url": URL, "description": "a\nb"}, "description"),
        ({"url": URL, "secret": "mine"}, "secret"), ([], "body"),
    ],
)  # fmt: skip
async def test_what_is_wrong_with_an_endpoint_is_named(calls, body, field):
    told = problem(await calls("POST", body=body), 422, "invalid-webhook")
    assert [error["field"] for error in told["errors"]] == [field]
    assert (await calls("GET")).json()["webhooks"] == []


async def test_a_private_network_may_be_called_where_the_setting_names_it(database_url):
    settings = make_settings(database_url=database_url, webhook_allowed_networks=("10.20.0.0/16",))
    async with serving(settings) as api:
        calls = Calls(api)
        assert (await calls("POST", body={"url": "http://10.20.1.1:8080/x"})).status_code == 201
        problem(await calls("POST", body={"url": "http://10.21.1.1:8080/x"}), 422, "invalid-webhook")


async def test_lists_go_page_by_page_and_unknown_parameters_are_refused(calls):
    made = [(await add(calls, description=str(number)))["id"] for number in range(5)]
    found, cursor = [], {}
    while True:
        page = (await calls("GET", limit=2, **cursor)).json()
        found += [webhook["id"] for webhook in page["webhooks"]]
        if page["nextCursor"] is None:
            break
        cursor = {"cursor": page["nextCursor"]}
    assert found == made
    problem(await calls("GET", state="active"), 422, "invalid-request")
    problem(await calls("GET", limit=0), 422, "invalid-request")
    problem(await calls("GET", f"/{made[0]}/deliveries", since=1), 422, "invalid-request")
    problem(await calls("GET", "/nonsense"), 404, "unknown-webhook")


async def test_a_merchant_has_so_many_endpoints_and_no_more(api, calls):
    await api.sql(
        f"INSERT INTO webhook_endpoints (id, merchant_id, url, secret) SELECT gen_random_uuid(), 1, 'https://a.example', '' "
        f"FROM generate_series(1, {webhooks.MOST_WEBHOOKS})"
    )
    problem(await calls("POST", body={"url": URL}), 409, "too-many-webhooks")


async def test_attempts_are_shown_youngest_first_with_what_was_answered(api, calls):
    made = await add(calls)
    endpoint, checkout = UUID(made["id"]), UUID(await api.taken())
    (row,) = await api.sql("SELECT data_key FROM intents WHERE checkout_id = :id", id=checkout)
    await _attempts(api, endpoint, checkout, bytes(row.data_key))
    page = (await calls("GET", f"/{made['id']}/deliveries", limit=2)).json()
    assert [(each["number"], each["outcome"], each["answer"]) for each in page["deliveries"]] == [
        (3, "delivered", None),
        (2, "timed_out", None),
    ]
    rest = (await calls("GET", f"/{made['id']}/deliveries", cursor=page["nextCursor"])).json()
    (first,) = rest["deliveries"]
    assert (first["eventId"], first["status"], first["answer"], first["result"]) == (
        f"{checkout}-1",
        500,
        "it \ufffd broke",
        None,
    )
    assert rest["nextCursor"] is None
    failed = (await calls("GET", f"/{made['id']}/deliveries", failed=True, checkout=str(checkout))).json()
    assert len(failed["deliveries"]) == 2
    assert (await calls("GET", f"/{made['id']}/deliveries", checkout=UNKNOWN)).json()["deliveries"] == []


async def test_a_page_of_some_attempts_only_ends_after_so_many_and_others_follow(api, calls, monkeypatch):
    monkeypatch.setattr(deliveries, "SCANNED_AT_ONCE", 1)
    made = await add(calls)
    endpoint, checkout = UUID(made["id"]), UUID(await api.taken())
    (row,) = await api.sql("SELECT data_key FROM intents WHERE checkout_id = :id", id=checkout)
    await _attempts(api, endpoint, checkout, bytes(row.data_key))
    sizes, outcomes, cursor = [], [], {}
    while True:
        page = (await calls("GET", f"/{endpoint}/deliveries", failed=True, **cursor)).json()
        sizes.append(len(page["deliveries"]))
        outcomes += [each["outcome"] for each in page["deliveries"]]
        if page["nextCursor"] is None:
            break
        cursor = {"cursor": page["nextCursor"]}
    assert (sizes, outcomes) == ([0, 1, 1, 0], ["timed_out", "server_error"])


async def test_a_period_with_too_many_events_is_refused(api, calls, monkeypatch):
    monkeypatch.setattr(replays, "MOST_REPLAYED", -1)
    made = await add(calls)
    await api.sql("INSERT INTO event_feeds (merchant_id, last_position) VALUES (1, 0)")
    told = problem(
        await calls("POST", f"/{made['id']}/replay", {"since": "2020-01-01T00:00:00Z"}),
        422,
        "invalid-webhook",
    )
    assert "shorter" in told["detail"]


async def _attempts(api, endpoint: UUID, checkout: UUID, key: bytes) -> None:
    from orchestrator.domain.ids import uuid7
    from orchestrator.store.deliveries import ANSWER, Attempt, Written

    sealed = api.services.encryptor.data_key(checkout, key).encrypt(b"it \xff broke", purpose=ANSWER).hex()
    told = [
        ("server_error", 500, sealed, None),
        ("timed_out", None, None, None),
        ("delivered", 204, None, "delivered"),
    ]
    for number, (outcome, status, answer, result) in enumerate(told, start=1):
        attempt = Attempt(
            id=uuid7(),
            kind="checkout.ready",
            number=number,
            outcome=outcome,
            status=status,
            milliseconds=7,
            answer=answer,
            result=result,
        )
        written = Written(
            endpoint_id=endpoint,
            checkout_id=checkout,
            purpose="event",
            lease=uuid7(),
            sequence=1,
            step="failed",
            attempt=attempt,
        )
        await deliveries.write(api.services.db, [written])


async def test_tests_and_replays_become_streams(api, calls):
    made = await add(calls)
    path = f"/{made['id']}"
    test = (await calls("POST", f"{path}/test")).json()["eventId"]
    checkout = UUID(await api.taken())
    await api.services.db.write(
        text(
            "INSERT INTO events (checkout_id, sequence, merchant_id, kind, payload, correlation_id, position) VALUES (:id, 1, 1, 'x', '{}', 'c', 1)"
        ),
        {"id": checkout},
    )
    await api.sql("INSERT INTO event_feeds (merchant_id, last_position) VALUES (1, 1)")
    answer = await calls("POST", f"{path}/replay", {"eventId": f"{checkout}-1"})
    assert (answer.status_code, answer.json()) == (202, {"events": 1})
    answer = await calls("POST", f"{path}/replay", {"since": "2020-01-01T00:00:00Z"})
    assert answer.json() == {"events": 1}
    assert (await calls("POST", f"{path}/replay", {"failed": True})).json() == {"events": 0}
    rows = await api.sql("SELECT checkout_id, purpose FROM delivery_streams ORDER BY purpose")
    assert [(str(row.checkout_id), row.purpose) for row in rows] == [
        (str(checkout), "replay"),
        (test.removesuffix("-1"), "test"),
    ]
    await api.sql("DELETE FROM events")


async def _replay(api, delivery: object, *, merchant: str = "default", scopes: tuple[str, ...] = BOTH):
    return await api.client.post(f"/v1/deliveries/{delivery}/replay", headers=api.bearer(merchant, scopes))


async def test_a_delivery_is_replayed_by_its_id_and_only_by_its_merchant(api, calls):
    await second_merchant(api)
    made = await add(calls)
    endpoint, checkout = UUID(made["id"]), UUID(await api.taken())
    (row,) = await api.sql("SELECT data_key FROM intents WHERE checkout_id = :id", id=checkout)
    await _attempts(api, endpoint, checkout, bytes(row.data_key))
    (shown, *_) = (await calls("GET", f"/{endpoint}/deliveries")).json()["deliveries"]
    problem(await _replay(api, shown["id"]), 410, "event-gone")
    await api.sql(
        "INSERT INTO events (checkout_id, sequence, merchant_id, kind, payload, correlation_id, position) VALUES (:id, 1, 1, 'x', '{}', 'c', 1)",
        id=checkout,
    )
    other = problem(await _replay(api, shown["id"], merchant="second"), 404, "unknown-delivery")
    unknown = problem(await _replay(api, UNKNOWN), 404, "unknown-delivery")
    assert other["detail"].replace(shown["id"], "") == unknown["detail"].replace(UNKNOWN, "")
    problem(await _replay(api, "nonsense"), 404, "unknown-delivery")
    problem(await _replay(api, f"{endpoint}-{uuid4()}"), 404, "unknown-delivery")
    assert await api.count("delivery_streams") == 0
    answer = await _replay(api, shown["id"])
    assert (answer.status_code, answer.json()) == (202, {"events": 1})
    (stream,) = await api.sql(
        "SELECT endpoint_id, checkout_id, purpose, next_sequence, last_sequence FROM delivery_streams"
    )
    assert tuple(stream) == (endpoint, checkout, "replay", 1, 1)
    assert (await calls("DELETE", f"/{endpoint}")).status_code == 204
    problem(await _replay(api, shown["id"]), 404, "unknown-delivery")
    await api.sql("DELETE FROM events")


@pytest.mark.parametrize(
    "body",
    [{}, {"eventId": "x"}, {"eventId": f"{UNKNOWN}-0"}, {"eventId": f"{UNKNOWN}-9999999999"}, {"failed": False}, {"since": "yesterday"},
     {"since": "2020-01-01T00:00:00"}, {"since": 1}, {"failed": True, "since": "2020-01-01T00:00:00Z"}, {"before": "2020-01-01T00:00:00Z"},
     {"everything": True}],
)  # fmt: skip
async def test_a_replay_says_what_is_meant(calls, body):
    made = await add(calls)
    problem(await calls("POST", f"/{made['id']}/replay", body), 422, "invalid-webhook")


async def test_readiness_names_endpoints_that_get_nothing(api, calls):
    made = await add(calls)
    told = await webhooks.troubles(api.services.db, [])
    assert told == ["no deliverer is alive: events for webhooks are stored, and wait"]
    await webhooks.pause(api.services.db, UUID(made["id"]), "gone")
    assert any(
        made["id"] in trouble and "410" in trouble for trouble in await webhooks.troubles(api.services.db, [])
    )
    assert URL not in str(await webhooks.troubles(api.services.db, []))
    resumed = (await calls("POST", f"/{made['id']}/resume")).json()
    assert resumed["status"] == "active"


async def test_doctor_and_status_name_endpoints_that_fail_for_a_minute(api, calls):
    made, fault = await add(calls), "UPDATE webhook_endpoints SET failing_since = clock() - interval '{}'"
    await api.sql(fault.format("50 seconds"))
    assert await webhooks.failing(api.services.db) == []
    await api.sql(fault.format("7 minutes"))
    [said] = await webhooks.failing(api.services.db)
    assert said == f"webhook {made['id']} of merchant default has failed for 7 min, and its events wait"
    report = Report(as_json=True)
    await checks._webhooks(api.services.db, report, [])
    assert said in [found["found"].partition(";")[0] for found in report._found]
    assert said in (await installation.read(api.services.db, grace=5.0)).problems

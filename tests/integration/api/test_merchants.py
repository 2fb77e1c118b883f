"""Merchants over HTTP: for the operator alone, every change recorded, and no secret in an answer but where it
was made.
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from orchestrator import audit, auth
from orchestrator.auth import OPERATOR
from orchestrator.devkit.sandbox import SandboxConfig
from orchestrator.devkit.sandbox import create_app as create_sandbox
from tests.conftest import make_settings
from tests.integration.api.test_callbacks import BODY, call
from tests.integration.api.test_evidence import signed
from tests.integration.api.test_intake import problem
from tests.support.api_scene import Api, intent, serving
from tests.support.parties import serving as serving_sandbox

pytestmark = pytest.mark.anyio

SECRET = "hush-secret-of-callbacks"
SHOP = {
    "name": "shop2",
    "gatewayUrl": "http://127.0.0.1:9",
    "username": "api",
    "password": "hush-password",
    "callbackSecrets": [SECRET],
    "policies": {"late": "keep"},
}
WRITING = ("merchants:write",)


class Operator:
    """Calls on merchants with a token of the operator."""

    def __init__(self, api: Api, scopes: tuple[str, ...] = WRITING) -> None:
        self._client, self._headers = api.client, api.bearer(OPERATOR, scopes)

    async def __call__(self, method: str, path: str = "", body: object = None, **params: object):
        given = {} if body is None else {"json": body}
        return await self._client.request(
            method, f"/v1/merchants{path}", headers=self._headers, params=params, **given
        )


@pytest.fixture
def operator(api: Api) -> Operator:
    return Operator(api)


async def add(operator: Operator, **changes: object) -> dict:
    answer = await operator("POST", "", {**SHOP, **changes})
    assert answer.status_code == 201, answer.text
    return answer.json()


async def test_a_merchant_is_added_shown_changed_and_takes_an_order_at_once(api, operator):
    made = await add(operator)
    assert (made["name"], made["status"], made["username"]) == ("shop2", "enabled", "api")
    assert (made["callbackSecrets"], made["ownPassword"], made["changes"]) == (1, True, 1)
    assert made["policies"]["late"] == "keep"
    assert (await api.post(intent(), merchant="shop2")).status_code == 202

    moved = {"username": "api-2", "password": "hush-again", "policies": {"capture": "automatic"}}
    changed = (await operator("PATCH", "/shop2", moved)).json()
    assert (changed["username"], changed["policies"]["capture"], changed["policies"]["late"]) == (
        "api-2",
        "automatic",
        "keep",
    )
    assert (await operator("GET", "/shop2")).json() == changed
    merchant = await api.services.merchants.named("shop2")
    assert (merchant.account.username, merchant.account.password) == ("api-2", "hush-again")


async def test_no_answer_and_no_log_line_holds_a_secret(api, operator):
    with capture_logs() as lines:
        answers = [
            await operator("POST", "", SHOP),
            await operator("POST", "", SHOP),
            await operator("PATCH", "/shop2", {"password": "hush-2"}),
            await operator("PATCH", "/shop2", {"password": "hush\n"}),
            await operator("PATCH", "/shop2", {"pasword": "hush-4"}),
            await operator("POST", "/shop2/rotate-secret", {"secret": "hush-secret-3"}),
            await operator("POST", "/shop2/rotate-secret", {"secret": "hush-secret-3"}),
            await operator("GET"),
            await operator("GET", "/shop2/changes"),
        ]
    assert [answer.status_code for answer in answers] == [201, 409, 200, 422, 422, 200, 422, 200, 200]
    assert [answer.text for answer in answers if "hush" in answer.text] == []
    assert "hush" not in str(lines)
    (row,) = await api.sql("SELECT merchants::text AS said FROM merchants WHERE name = 'shop2'")
    assert "hush" not in row.said
    for entry in await api.sql("SELECT entry FROM merchant_changes"):
        assert "hush" not in entry.entry


async def test_another_url_or_user_name_needs_the_password_again_and_nothing_is_changed_without(
    api, operator
):
    await add(operator)
    for body in (
        {"gatewayUrl": "http://127.0.0.1:8"},
        {"username": "thief"},
        {"merchantApiUrl": "http://127.0.0.1:7"},
    ):
        document = problem(await operator("PATCH", "/shop2", body), 422, "invalid-merchant")
        assert document["errors"][0]["field"] == "password"
    assert (await api.services.merchants.named("shop2")).account.password == "hush-password"
    assert (await operator("GET", "/shop2")).json()["changes"] == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": "Shop 2"}, "name"),
        ({"gatewayUrl": "ftp://x"}, "gatewayUrl"),
        ({"gatewayUrl": "http://gateway.example.com"}, "gatewayUrl"),
        ({"merchantApiUrl": "https://u:p@gateway.example.com"}, "merchantApiUrl"),
        ({"username": "a:b"}, "username"),
        ({"password": ""}, "password"),
        ({"password": None}, "password"),
        ({"callbackSecrets": ["long enough", "x"]}, "callbackSecrets[1]"),
        ({"callbackSecrets": "x"}, "callbackSecrets"),
        ({"policies": {"late": "never"}}, "policies"),
        ({"policies": []}, "policies"),
        ({"colour": "red"}, "colour"),
    ],
)
async def test_what_a_merchant_cannot_have_is_named_and_nothing_is_stored(api, operator, body, field):
    document = problem(await operator("POST", "", {**SHOP, **body}), 422, "invalid-merchant")
    assert document["errors"][0]["field"] == field
    assert await api.count("merchants") == 1
    assert await api.count("merchant_changes") == 0


async def test_a_token_of_a_merchant_gets_nothing_whatever_its_scopes_and_whatever_it_names(api, operator):
    await add(operator)
    settings = api.services.settings
    with pytest.raises(ValueError, match="of a merchant must be some of"):
        auth.issue(settings, merchant="shop2", scopes=WRITING, lifetime=60, subject="x")
    with pytest.raises(ValueError, match="of the operator must be some of"):
        auth.issue(settings, merchant=OPERATOR, scopes=("events:read",), lifetime=60, subject="x")
    # An identity provider could sign such a token all the same.
    forged = {"Authorization": f"Bearer {_signed_elsewhere(settings, merchant='shop2')}"}
    said = set()
    for headers in (api.bearer(), forged):
        for name in ("shop2", "default", "absent", "x" * 200):
            for method, path in (("GET", ""), ("PATCH", ""), ("POST", "/disable"), ("GET", "/changes")):
                answer = await api.client.request(method, f"/v1/merchants/{name}{path}", headers=headers)
                document = problem(answer, 403, "insufficient-scope")
                said.add((headers is forged, document["detail"]))
    assert len(said) == 3  # reading, writing, and the operator's alone
    # And the operator's token is no merchant's.
    problem(
        await api.client.get("/v1/checkouts", headers=api.bearer(OPERATOR, WRITING)),
        403,
        "insufficient-scope",
    )


def _signed_elsewhere(settings, *, merchant: str) -> str:
    import jwt

    key = settings.jwt_secrets[0].get_secret_value()
    claims = jwt.decode(
        auth.issue(settings, merchant=OPERATOR, scopes=WRITING, lifetime=60, subject="x"),
        key,
        algorithms=[auth.ALGORITHM],
        audience=settings.jwt_audience,
    )
    return jwt.encode({**claims, "merchant": merchant}, key, algorithm=auth.ALGORITHM)


async def test_reading_needs_no_right_to_write(api, operator):
    await add(operator)
    reader = Operator(api, ("merchants:read",))
    assert [merchant["name"] for merchant in (await reader("GET")).json()["merchants"]] == [
        "default",
        "shop2",
    ]
    assert (await reader("GET", "/shop2")).status_code == 200
    problem(await reader("PATCH", "/shop2", {"policies": {"late": "ask"}}), 403, "insufficient-scope")
    page = (await reader("GET", "", limit=1)).json()
    assert ([merchant["name"] for merchant in page["merchants"]], page["nextCursor"]) == (
        ["default"],
        "default",
    )
    page = (await reader("GET", "", limit=1, cursor="default")).json()
    assert ([merchant["name"] for merchant in page["merchants"]], page["nextCursor"]) == (["shop2"], None)


# ── Callback secrets ──────────────────────────────────────────────────────────────────────────────────────


async def test_both_secrets_are_accepted_during_the_overlap_and_the_new_one_alone_after_it(api, operator):
    await add(operator)
    checkout = (await api.post(intent(), merchant="shop2")).json()["id"]
    rotated = (await operator("POST", "/shop2/rotate-secret", {"overlap": 3600})).json()
    made, ends = rotated["secret"], datetime.fromisoformat(rotated["retiredUntil"])
    (row,) = await api.sql("SELECT clock() AS now, id FROM merchants WHERE name = 'shop2'")
    assert timedelta(seconds=3500) < ends - row.now <= timedelta(seconds=3600)

    async def answered(secret: str) -> int:
        await api.services.merchants.everyone()
        url = api.urls(checkout, merchant_id=row.id).notification
        return (await call(api, url, BODY, **signed(secret=secret))).status_code

    assert [await answered(SECRET), await answered(made)] == [200, 200]
    shown = (await operator("GET", "/shop2")).json()
    assert (shown["callbackSecrets"], shown["retiredUntil"]) == (1, [rotated["retiredUntil"]])
    await api.sql("UPDATE clock_skew SET seconds = 3601")
    api.services.merchants._changed()
    assert [await answered(SECRET), await answered(made)] == [401, 200]
    assert (await operator("GET", "/shop2")).json()["retiredUntil"] == []


async def test_a_change_leaves_no_moment_in_which_callbacks_are_not_proven(api, operator):
    await add(operator)
    await api.services.merchants.everyone()
    checkout = (await api.post(intent(), merchant="shop2")).json()["id"]
    (row,) = await api.sql("SELECT id FROM merchants WHERE name = 'shop2'")
    for body in ({"policies": {"late": "ask"}}, {"password": "hush-2"}):
        assert (await operator("PATCH", "/shop2", body)).status_code == 200
        url = api.urls(checkout, merchant_id=row.id).notification
        assert (await call(api, url, BODY, **signed(secret=SECRET))).status_code == 200


async def test_no_callback_is_refused_while_its_secret_is_rotated_under_load(api, operator):
    """The gateway signs with the secret before until the new one is there, and with that from then on."""
    await add(operator)
    (row,) = await api.sql("SELECT id FROM merchants WHERE name = 'shop2'")
    checkout = (await api.post(intent(), merchant="shop2")).json()["id"]
    await api.services.merchants.everyone()
    url = api.urls(checkout, merchant_id=row.id).notification
    used, ended, answered = [SECRET], asyncio.Event(), []

    async def gateway(number: int) -> None:
        sent = 0
        while not ended.is_set():
            body = BODY + f"&sender={number}-{sent}".encode()
            answered.append((await call(api, url, body, **signed(body, secret=used[-1]))).status_code)
            sent += 1

    senders = [asyncio.create_task(gateway(number)) for number in range(4)]
    for _ in range(5):
        before = len(answered)
        while len(answered) < before + 12:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)
        rotated = (await operator("POST", "/shop2/rotate-secret", {"overlap": 60})).json()
        used.append(rotated["secret"])
    ended.set()
    await asyncio.gather(*senders)
    assert set(answered) == {200}
    grades = await api.sql("SELECT DISTINCT grade FROM callbacks")
    assert [grade.grade for grade in grades] == ["signed"]


async def test_a_second_rotation_ends_no_secret_before_its_time_and_no_overlap_ends_all(api, operator):
    await add(operator)
    first = (await operator("POST", "/shop2/rotate-secret", {"overlap": 600})).json()
    second = (await operator("POST", "/shop2/rotate-secret")).json()
    merchant = await api.services.merchants.named("shop2")
    assert merchant.callback_secrets == (second["secret"], first["secret"], SECRET)
    third = (
        await operator("POST", "/shop2/rotate-secret", {"secret": "a secret of the gateway", "overlap": 0})
    ).json()
    assert third == {"secret": None, "retiredUntil": None}
    merchant = await api.services.merchants.named("shop2")
    # Without an overlap the secret before ends, and those that were retired keep their own end.
    assert merchant.callback_secrets == ("a secret of the gateway", first["secret"], SECRET)
    for _ in range(6):
        assert (await operator("POST", "/shop2/rotate-secret")).status_code == 200
    while (answer := await operator("POST", "/shop2/rotate-secret")).status_code == 200:
        pass
    assert "wait until one ends" in problem(answer, 422, "invalid-merchant")["detail"]
    assert len((await api.services.merchants.named("shop2")).callback_secrets) == 10
    assert await api.services.merchants.set_secrets("shop2", ("the only secret",))
    assert (await api.services.merchants.named("shop2")).callback_secrets == ("the only secret",)


async def test_a_secret_of_the_settings_is_rotated_out_like_one_of_the_row(database_url):
    settings = make_settings(database_url=database_url, gateway_secrets=("of the settings",))
    async with serving(settings) as api:
        made = (await Operator(api)("POST", "/default/rotate-secret")).json()["secret"]
        assert (await api.services.merchants.named("default")).callback_secrets == (made, "of the settings")


# ── Disabled ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_disabled_merchant_takes_no_order_and_its_callbacks_are_taken(api, operator):
    await add(operator)
    checkout = (await api.post(intent(), merchant="shop2")).json()["id"]
    assert (await operator("POST", "/shop2/disable")).json()["status"] == "disabled"
    assert (await operator("POST", "/shop2/disable")).json()["changes"] == 2
    problem(await api.post(intent(), merchant="shop2"), 403, "merchant-disabled")
    await api.services.merchants.everyone()
    (row,) = await api.sql("SELECT id FROM merchants WHERE name = 'shop2'")
    url = api.urls(checkout, merchant_id=row.id).notification
    assert (await call(api, url, BODY, **signed(secret=SECRET))).status_code == 200
    (woken,) = await api.sql("SELECT wake FROM checkouts WHERE id = :id", id=UUID(checkout))
    assert woken.wake == 1
    assert (await operator("POST", "/shop2/enable")).json()["status"] == "enabled"
    assert (await api.post(intent(), merchant="shop2")).status_code == 202


# ── Credentials ───────────────────────────────────────────────────────────────────────────────────────────


async def test_credentials_are_checked_at_the_gateway_without_beginning_anything(api, operator):
    config = SandboxConfig(username="api", password="hush-password")
    with serving_sandbox(create_sandbox(config)) as gateway:
        await add(operator, gatewayUrl=gateway)
        found = (await operator("POST", "/shop2/check")).json()
        assert (found["result"], found["reason"]) == ("accepted", "")
        await operator("PATCH", "/shop2", {"password": "wrong"})
        refused = (await operator("POST", "/shop2/check")).json()
        assert refused["result"] == "refused"
    away = (await operator("POST", "/shop2/check")).json()
    assert (away["result"], bool(away["reason"])) == ("unavailable", True)


async def test_the_api_says_that_it_does_not_hold_the_credentials_of_the_settings(database_url):
    async with serving(make_settings(database_url=database_url, gateway_password="")) as api:
        answer = await Operator(api)("POST", "/default/check")
        assert (
            "orchestrator merchants check default" in problem(answer, 409, "credentials-elsewhere")["detail"]
        )


# ── The record ────────────────────────────────────────────────────────────────────────────────────────────


async def test_every_change_says_who_changed_what_and_is_proven_by_its_chain(api, operator):
    await add(operator)
    await operator("PATCH", "/shop2", {"policies": {"late": "return"}, "password": "hush-3"})
    await operator("PATCH", "/shop2", {"policies": {"late": "return"}})
    await operator("POST", "/shop2/rotate-secret", {"overlap": 60})
    await operator("POST", "/shop2/disable")
    await operator("POST", "/shop2/enable")
    page = (await operator("GET", "/shop2/changes", limit=2)).json()
    rest = (await operator("GET", "/shop2/changes", before=page["nextBefore"])).json()
    entries = page["changes"] + rest["changes"]
    assert [entry["action"] for entry in reversed(entries)] == [
        "merchant:added",
        "merchant:changed",
        "callback_secret:rotated",
        "merchant:disabled",
        "merchant:enabled",
    ]
    assert {entry["actor"] for entry in entries} == {"operator:shop-1"}
    changed = entries[-2]["details"]
    assert changed == {"password": "changed", "policies": {"late": {"from": "keep", "to": "return"}}}
    verified = await audit.verify(api.services.db, api.services.encryptor)
    assert verified.problems == []
    lines = [line async for line in audit.export(api.services.db)]
    assert sum("merchantChange" in line for line in lines) == 5


@pytest.mark.parametrize(
    ("tampering", "said"),
    [
        (
            "UPDATE merchant_changes SET entry = replace(entry, 'return', 'keep') WHERE sequence = 2",
            "was changed",
        ),
        ("DELETE FROM merchant_changes WHERE sequence = 2", "change 2 of merchant"),
        ("UPDATE merchant_changes SET at = at + interval '1 hour' WHERE sequence = 2", "disagrees"),
        ("UPDATE merchant_changes SET key_id = 'deadbeef' WHERE sequence = 2", "SECRET_KEYS does not have"),
    ],
)
async def test_a_record_that_was_changed_is_found_and_cannot_be_changed_by_statements(
    api, operator, tampering, said
):
    await add(operator)
    await operator("PATCH", "/shop2", {"policies": {"late": "return"}})
    await operator("POST", "/shop2/disable")
    with pytest.raises(Exception, match="append-only"):
        await api.sql(tampering)
    async with api.services.db.transaction() as tx:
        from sqlalchemy import text

        await tx.execute(text("SET LOCAL session_replication_role = replica"))
        await tx.execute(text(tampering))
    verified = await audit.verify(api.services.db, api.services.encryptor)
    assert len(verified.problems) == 1
    assert said in verified.problems[0]

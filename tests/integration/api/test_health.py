from __future__ import annotations

import asyncio
import json
import re
import time
from uuid import uuid4

import httpx
import psycopg
import pytest
from openapi_spec_validator import OpenAPIV30SpecValidator, OpenAPIV31SpecValidator
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from orchestrator.api import create_app
from orchestrator.api.server import build
from orchestrator.store import schema
from tests.support.api_scene import Api, RecordingPublisher, path_of, serving, without_database
from tests.support.pooler import direct
from tests.support.postgres import Proxy, address, through

pytestmark = pytest.mark.anyio

SOON = 10.0
"""Seconds after which health is right again when a fault is over."""


@pytest.fixture(autouse=True)
def _checked_each_time(monkeypatch):
    monkeypatch.setattr("orchestrator.api.health.FRESH", 0.0)
    monkeypatch.setattr("orchestrator.api.health.SELDOM", 0.0)


async def found(api: Api) -> tuple[int, str]:
    """Return the status, and what is said to be wrong."""
    answer = await api.client.get("/readyz")
    return answer.status_code, "; ".join(answer.json()["problems"])


async def until_ready(api: Api) -> None:
    async with asyncio.timeout(SOON):
        while await found(api) != (200, ""):  # noqa: ASYNC110 - it has to be asked
            await asyncio.sleep(0.05)


async def others(api: Api) -> None:
    """Have a worker and a scheduler with fresh heartbeats."""
    await api.sql("INSERT INTO workers (name, kind) VALUES ('w-1', 'worker'), ('s-1', 'scheduler')")


async def test_with_everything_there_it_is_ready(api: Api):
    await others(api)
    answer = await api.client.get("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready", "problems": []})


async def test_without_broker_or_workers_it_is_degraded_and_still_ready(api: Api):
    api.hint_publisher.trouble = "connection refused"
    await others(api)
    answer = await api.client.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
    (said,) = answer.json()["problems"]
    assert "the broker takes no hints (connection refused)" in said
    api.hint_publisher.trouble = None
    assert await found(api) == (200, "")
    for kind, words in (("worker", "no worker is alive"), ("scheduler", "no scheduler publishes sweeps")):
        await api.sql(f"UPDATE workers SET seen_at = clock() - interval '1 hour' WHERE kind = '{kind}'")
        assert words in (await api.client.get("/readyz")).json()["problems"][-1]


async def test_with_another_schema_it_is_not_ready(api: Api):
    await api.sql("UPDATE alembic_version SET version_num = '0002'")
    answer = await api.client.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (503, "unavailable")
    assert "has schema 0002" in answer.json()["problems"][0]
    assert "orchestrator migrate" in answer.json()["problems"][0]
    await api.sql("UPDATE alembic_version SET version_num = '9999'")
    status, said = await found(api)
    assert status == 503
    assert "older than the schema, deploy the newer version" in said
    assert "migrate" not in said
    await api.sql("DROP TABLE alembic_version")
    assert "has no schema" in (await api.client.get("/readyz")).json()["problems"][0]


async def test_without_postgres_it_is_alive_and_not_ready():
    async with serving(without_database()) as api:
        assert (await api.client.get("/healthz")).json() == {"status": "alive"}
        answer = await api.client.get("/readyz")
        assert (answer.status_code, answer.json()["status"]) == (503, "unavailable")


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("25006", "read-only"),
        ("53100", "disk of the database is full"),
        ("42501", "refuses its role a right"),
    ],
)
async def test_a_database_that_takes_no_writes_is_named_and_named_well_again(api: Api, state: str, said: str):
    await others(api)
    await until_ready(api)
    await api.sql(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = '{state}'; END $$"
    )
    await api.sql(
        "CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON workers FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    status, problem = await found(api)
    assert status == 503
    assert said in problem
    async with api.services.db.transaction() as tx:
        await tx.execute(text("SET LOCAL session_replication_role = replica"))
        await tx.execute(text("DROP TRIGGER refuse ON workers"))
    await until_ready(api)


async def test_a_server_that_only_takes_sessions_that_read_is_named(api: Api, database_url):
    await others(api)
    with psycopg.connect(direct(database_url), autocommit=True) as admin:
        name = admin.info.dbname
        end_others = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()",
            [name],
        )
        admin.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        admin.execute(*end_others)
        status, problem = await found(api)
        assert status == 503
        assert "read-only" in problem
        admin.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        if database_url != direct(database_url):
            # A pooler keeps sessions, and they keep what they began with: operators send it RECONNECT.
            admin.execute(*end_others)
    await until_ready(api)


@pytest.fixture(name="limited")
async def _limited(settings, database_url):
    """An API whose rights can be revoked, and a superuser that revokes them."""
    role = f"limited_{uuid4().hex[:8]}"
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as admin:
        await admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'limited'")
        await asyncio.to_thread(schema.migrate, database_url, grant_to=role)
        url = f"postgresql://{role}:limited@{database_url.rpartition('@')[2]}"
        async with serving(settings.model_copy(update={"database_url": url})) as api:
            await admin.execute(
                "INSERT INTO workers (name, kind) VALUES ('w-1', 'worker'), ('s-1', 'scheduler')"
            )
            await until_ready(api)
            yield api, admin, role
        await admin.execute(f"DROP OWNED BY {role}")
        await admin.execute(f"DROP ROLE {role}")


async def test_a_right_that_its_role_lost_is_named_and_its_return_too(limited):
    api, admin, role = limited
    await admin.execute(f"REVOKE UPDATE, INSERT ON checkouts FROM {role}")
    await admin.execute(f"REVOKE SELECT ON intents FROM {role}")
    status, said = await found(api)
    assert status == 200
    assert re.search(r"refuses its role (INSERT, UPDATE|UPDATE, INSERT) on checkouts: grant it", said)
    assert "refuses its role SELECT on intents" in said
    await admin.execute(f"GRANT ALL ON checkouts, intents TO {role}")
    await until_ready(api)
    await admin.execute(f"REVOKE SELECT ON alembic_version FROM {role}")
    status, said = await found(api)
    assert status == 503
    assert "refuses its role a right (permission denied for table alembic_version)" in said
    assert "migrate" not in said
    await admin.execute(f"GRANT SELECT ON alembic_version TO {role}")
    await until_ready(api)


async def test_a_database_that_accepts_no_new_connection_is_named_though_its_connections_work(limited):
    api, admin, role = limited
    await admin.execute(f"ALTER ROLE {role} CONNECTION LIMIT 0")
    status, said = await found(api)
    assert status == 200
    assert "no new connection to the database is accepted" in said
    assert "too many connections for role" in said
    await admin.execute(f"ALTER ROLE {role} CONNECTION LIMIT -1")
    await until_ready(api)


async def test_lookups_that_wait_for_their_budget_are_named(api: Api):
    await others(api)
    await api.taken()
    await api.sql("UPDATE checkouts SET slot_reserved = true, due_at = clock() + interval '50 s'")
    await api.sql(
        "INSERT INTO lookup_budgets (merchant_id, taken_until) VALUES (1, clock() + interval '50 s')"
    )
    await until_ready(api)
    await api.sql("UPDATE checkouts SET updated_at = clock() - interval '125 s'")
    status, said = await found(api)
    assert status == 200
    assert "1 lookups of merchant default wait for their slot" in said
    await api.sql("UPDATE lookup_budgets SET taken_until = clock()")
    await until_ready(api)


async def test_silent_connections_make_it_not_ready_within_its_own_timeout(settings, database_url):
    with Proxy(address(database_url)) as proxy:
        async with serving(settings.model_copy(update={"database_url": through(database_url, proxy)})) as api:
            await others(api)
            await until_ready(api)
            proxy.silence(new_connections_too=True)
            began = time.monotonic()
            status, problem = await found(api)
            assert 1.5 < time.monotonic() - began < 6.0
            assert (status, problem) == (503, "the database does not answer")
            proxy.answers = True
            await until_ready(api)


async def test_however_many_ask_the_database_is_written_to_once_in_a_moment(api: Api, monkeypatch):
    monkeypatch.setattr("orchestrator.api.health.FRESH", 30.0)
    await others(api)

    async def written():
        return (
            await api.sql("SELECT count(*) AS rows, max(seen_at) AS at FROM workers WHERE kind = 'probe'")
        )[0]

    assert (await found(api))[0] == 200
    before = await written()
    assert before.rows == 1
    assert {status for status, _ in await asyncio.gather(*(found(api) for _ in range(50)))} == {200}
    assert await written() == before
    monkeypatch.setattr("orchestrator.api.health.FRESH", 0.0)
    await found(api)
    assert (await written()).at > before.at


WORKERS = {
    "writes nothing while moves wait": (
        {"stalledSeconds": 40, "stalledBy": "53100"}, "written nothing for 40 s (the disk of the database is full)"
    ),
    "claims nothing while hints wait": (
        {"waiting": 7, "dispatchedSecondsAgo": 90.5}, "claimed nothing for 90 s, and 7 hints wait"
    ),
    "cannot claim": (
        {"claimsFail": "the database refuses its role a right (permission denied for table checkouts)"},
        "worker w-1 claims nothing, because its claims fail: the database refuses its role a right (permission denied for table checkouts)",
    ),
    "does not hear the broker": ({"brokerTrouble": "connection refused"}, "has no broker (connection refused)"),
    "consumes no intents": (
        {"intentsTrouble": "PRECONDITION_FAILED"}, "worker w-1 consumes nothing of the queue intents: PRECONDITION_FAILED"
    ),
    "has nothing to do": ({"waiting": 0, "dispatchedSecondsAgo": 9000, "stalledSeconds": 0}, ""),
    "is at work": ({"waiting": 9, "dispatchedSecondsAgo": 0.3, "stalledSeconds": 0.2}, ""),
}  # fmt: skip


@pytest.mark.parametrize(("progress", "said"), WORKERS.values(), ids=WORKERS)
async def test_a_worker_that(api: Api, progress, said):
    await api.sql(
        "INSERT INTO workers (name, kind, progress) VALUES ('w-1', 'worker', CAST(:progress AS jsonb)), ('s-1', 'scheduler', '{}')",
        progress=json.dumps(progress),
    )
    status, problem = await found(api)
    assert status == 200
    assert said in problem
    assert bool(said) == bool(problem)


async def test_writers_that_cannot_write_are_named_while_it_lasts(api: Api, database_url, monkeypatch):
    monkeypatch.setattr("orchestrator.store.readiness.STALLED_AFTER", 0.3)
    await others(api)
    async with await psycopg.AsyncConnection.connect(direct(database_url)) as blocker:
        await blocker.execute("LOCK TABLE checkouts IN ACCESS EXCLUSIVE MODE")
        order = asyncio.create_task(api.taken())
        async with asyncio.timeout(SOON):
            while "intents could not be written for" not in (await found(api))[1]:  # noqa: ASYNC110 - it has to be asked
                await asyncio.sleep(0.05)
        await blocker.rollback()
    await order
    await until_ready(api)


async def test_slow_reads_delay_neither_health_nor_intake_nor_callbacks_and_end_themselves(
    settings, monkeypatch
):
    monkeypatch.setattr("orchestrator.api.server.READ_TIMEOUT", 5_000)
    services = build(settings, RecordingPublisher())
    transport = httpx.ASGITransport(create_app(services))
    async with httpx.AsyncClient(transport=transport, base_url="http://pay.example") as client:
        api = Api(client, services, RecordingPublisher())
        slow = [
            asyncio.create_task(services.db.read(text("SELECT pg_sleep(20)")))
            for _ in range(settings.database_pool)
        ]
        await asyncio.sleep(0.5)
        assert (await client.get("/readyz")).status_code == 200
        checkout = await api.taken()
        assert (await client.post(path_of(api.urls(checkout).notification))).status_code == 200
        assert not any(task.done() for task in slow)
        fates = await asyncio.gather(*slow, return_exceptions=True)
        assert {type(fate) for fate in fates} == {OperationalError}
        assert (await api.get(f"/v1/checkouts/{checkout}")).status_code == 200
    await services.close()


async def test_the_app_reads_the_merchants_before_the_first_request_and_drops_no_callback_when_it_ends(
    settings,
):
    services = build(settings, RecordingPublisher())
    app = create_app(services)
    async with app.router.lifespan_context(app):
        async with asyncio.timeout(10):
            while services.merchants.known(1) is None:  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0.02)
    assert "merchants" not in {task.get_name() for task in asyncio.all_tasks()}


# ── Documentation ─────────────────────────────────────────────────────────────────────────────────────────


WEBHOOK = "/v1/webhooks/{webhook_id}"


async def test_the_document_describes_every_address(api: Api):
    document = (await api.client.get("/openapi.json")).json()
    described = {(method, path) for path, operations in document["paths"].items() for method in operations}
    assert described == {
        ("get", "/v1/checkouts"),
        ("post", "/v1/checkouts"),
        ("post", "/v1/checkouts/batch"),
        ("get", "/v1/checkouts/{checkout_id}"),
        ("patch", "/v1/checkouts/{checkout_id}"),
        *(("get", f"/v1/checkouts/{{checkout_id}}/{call}") for call in ("status", "stream", "session")),
        *((method, "/v1/merchants") for method in ("get", "post")),
        *((method, "/v1/merchants/{merchant}") for method in ("get", "patch")),
        ("get", "/v1/merchants/{merchant}/changes"),
        *(
            ("post", f"/v1/merchants/{{merchant}}/{call}")
            for call in ("rotate-secret", "disable", "enable", "check")
        ),
        ("post", "/v1/checkouts/{checkout_id}/cancel"),
        *(
            ("post", f"/v1/checkouts/{{checkout_id}}/{kind}")
            for kind in ("reopen", "capture", "refund", "release", "retry", "reconcile", "resolve")
        ),
        ("get", "/v1/checkouts/{checkout_id}/explain"),
        ("get", "/v1/commands/{command_id}"),
        ("get", "/v1/payments"),
        ("get", "/v1/events"),
        ("get", "/v1/event-types"),
        ("get", "/v1/rejected-intents"),
        ("get", "/v1/webhooks"),
        ("post", "/v1/webhooks"),
        *((method, WEBHOOK) for method in ("get", "patch", "delete")),
        *(("post", f"{WEBHOOK}/{call}") for call in ("rotate-secret", "test", "resume", "replay")),
        ("get", f"{WEBHOOK}/deliveries"),
        ("post", "/v1/deliveries/{delivery_id}/replay"),
        ("get", "/v1/checkouts/{checkout_id}/audit"),
        ("post", "/callbacks/{kind}/{id}/{signed}"),
        ("get", "/callbacks/{kind}/{id}/{signed}"),
        ("post", "/callbacks/merchant/{merchant}/{signed}"),
        ("get", "/healthz"),
        ("get", "/readyz"),
        ("get", "/autoscale"),
    }
    text = (await api.client.get("/openapi.json")).text
    assert document["openapi"] == "3.1.0"
    for name in re.findall(r"#/components/schemas/(\w+)", text):
        assert name in document["components"]["schemas"]


async def test_the_document_is_valid_and_so_is_the_document_that_the_page_shows(api: Api):
    document = (await api.client.get("/openapi.json")).json()
    assert [str(error) for error in OpenAPIV31SpecValidator(document).iter_errors()] == []
    shown = (await api.client.get("/docs/assets/openapi-3.0.json")).json()
    assert shown["openapi"] == "3.0.3"
    assert [str(error) for error in OpenAPIV30SpecValidator(shown).iter_errors()] == []
    assert '"null"' not in json.dumps(shown)
    assert shown["paths"].keys() == document["paths"].keys()
    assert "openapi-3.0.json" in (await api.client.get("/docs/assets/start.js")).text


async def test_every_text_list_and_number_of_the_document_is_bounded(api: Api):
    document = (await api.client.get("/openapi.json")).json()
    bounds = {
        "string": {"maxLength", "enum", "const"},
        "array": {"maxItems"},
        "integer": {"maximum"},
        "number": {"maximum"},
    }
    without = []

    def walk(value: object, path: str) -> None:
        if isinstance(value, dict):
            # Named so, it is a schema and no property called `type`.
            kind = value.get("type")
            sized = value.get("format") == "uuid" or bounds.get(str(kind), set()) & value.keys()
            if isinstance(kind, str) and kind in bounds and not sized:
                without.append(path)
            for name, inner in value.items():
                if name not in {"example", "examples", "default"}:
                    walk(inner, f"{path}/{name}")
        elif isinstance(value, list):
            for number, inner in enumerate(value):
                walk(inner, f"{path}/{number}")

    walk(document, "")
    assert without == []


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/checkouts", "GET, HEAD, OPTIONS, POST"),
        ("/v1/checkouts/batch", "OPTIONS, POST"),
        ("/v1/checkouts/019aa000-0000-7000-8000-00000000000a", "GET, HEAD, OPTIONS, PATCH"),
        ("/v1/checkouts/019aa000-0000-7000-8000-00000000000a/capture", "OPTIONS, POST"),
        ("/v1/checkouts/019aa000-0000-7000-8000-00000000000a/audit", "GET, HEAD, OPTIONS"),
        ("/callbacks/success/a/b", "GET, HEAD, OPTIONS, POST"),
        ("/callbacks/notification/a/b", "OPTIONS, POST"),
        ("/callbacks/redirect/a/b", "GET, HEAD, OPTIONS, POST"),
        ("/callbacks/merchant/a/b", "OPTIONS, POST"),
        ("/healthz", "GET, HEAD, OPTIONS"),
        ("/openapi.json", "GET, HEAD, OPTIONS"),
        ("/docs", "GET, HEAD, OPTIONS"),
    ],
)
async def test_allow_names_what_an_address_takes(api: Api, path, allowed):
    for method in {"DELETE", "PUT", "PATCH", "TRACE", "PROPFIND"} - set(allowed.split(", ")):
        refused = await api.client.request(method, path)
        assert (refused.status_code, refused.headers["allow"]) == (405, allowed), method
        assert refused.headers["content-type"] == "application/problem+json"
    options = await api.client.options(path)
    assert (options.status_code, options.headers["allow"]) == (204, allowed)
    for method in {"GET", "POST"} - set(allowed.split(", ")):
        refused = await api.client.request(method, path)
        if path.startswith("/callbacks/"):
            assert refused.status_code == 404  # an address that we did not sign does not exist
        else:
            assert (refused.status_code, refused.headers["allow"]) == (405, allowed)


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS", "HEAD"])
@pytest.mark.parametrize(
    "path",
    [
        "/v1",
        "/v1/checkouts/",
        "/v1/%00",
        "/v1/nothing",
        "/callbacks/success/a",
        "//v1/checkouts",
        "/docs/",
    ],
)
async def test_an_unknown_address_is_a_problem_whatever_the_method(api: Api, method, path):
    refused = await api.client.request(method, f"http://pay.example{path}")
    assert refused.status_code == 404
    assert refused.headers["content-type"] == "application/problem+json"


async def test_a_question_with_a_thousand_wrong_parameters_gets_a_short_answer(api: Api):
    refused = await api.client.get("/v1/checkouts?" + "&".join(["state=x"] * 900), headers=api.bearer())
    assert refused.status_code == 422
    assert len(refused.json()["errors"]) <= 50


async def test_the_documented_example_is_taken(api: Api):
    document = (await api.client.get("/openapi.json")).json()
    answer = await api.post(document["components"]["schemas"]["Intent"]["example"])
    assert answer.status_code == 202, answer.text


async def test_what_is_shown_is_what_is_documented(api: Api):
    schemas = (await api.client.get("/openapi.json")).json()["components"]["schemas"]
    checkout = await api.taken("A-1")
    shown = (await api.get(f"/v1/checkouts/{checkout}")).json()
    assert set(shown) == set(schemas["Checkout"]["properties"])
    (summary,) = (await api.get("/v1/checkouts")).json()["checkouts"]
    assert set(summary) == set(schemas["CheckoutSummary"]["properties"])


async def test_the_page_loads_nothing_from_elsewhere(api: Api):
    page = await api.client.get("/docs")
    assert page.status_code == 200
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    assets = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(assets) == 4
    for asset in assets:
        assert asset.startswith("/docs/assets/")
        assert (await api.client.get(asset)).status_code == 200
    assert (await api.client.get("/docs/assets/index.html")).status_code == 404

from __future__ import annotations

import asyncio
import re

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from orchestrator.api import create_app
from orchestrator.api.server import build
from tests.integration.api.scene import Api, Rung, path_of, serving, without_database

pytestmark = pytest.mark.anyio


async def worker(api: Api) -> None:
    await api.sql("INSERT INTO workers (name, kind) VALUES ('w-1', 'worker')")


async def test_with_everything_there_it_is_ready(api: Api):
    await worker(api)
    answer = await api.client.get("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready", "problems": []})


async def test_without_broker_or_workers_it_is_degraded_and_still_ready(api: Api):
    api.doorbell.healthy = False
    await worker(api)
    answer = await api.client.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
    assert "broker" in answer.json()["problems"][0]
    api.doorbell.healthy = True
    await api.sql("UPDATE workers SET seen_at = clock() - interval '1 hour'")
    assert "no worker" in (await api.client.get("/readyz")).json()["problems"][0]


async def test_with_another_schema_it_is_not_ready(api: Api):
    await api.sql("UPDATE alembic_version SET version_num = 'older'")
    answer = await api.client.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (503, "unavailable")
    assert "orchestrator migrate" in answer.json()["problems"][0]
    await api.sql("DROP TABLE alembic_version")
    assert "has no schema" in (await api.client.get("/readyz")).json()["problems"][0]


async def test_without_postgres_it_is_alive_and_not_ready():
    async with serving(without_database()) as api:
        assert (await api.client.get("/healthz")).json() == {"status": "alive"}
        answer = await api.client.get("/readyz")
        assert (answer.status_code, answer.json()["status"]) == (503, "unavailable")


async def test_slow_reads_delay_neither_health_nor_intake_nor_callbacks_and_end_themselves(
    settings, monkeypatch
):
    monkeypatch.setattr("orchestrator.api.server.READ_PATIENCE", 5_000)
    services = build(settings, Rung())
    transport = httpx.ASGITransport(create_app(services))
    async with httpx.AsyncClient(transport=transport, base_url="http://pay.example") as client:
        api = Api(client, services, Rung())
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


async def test_the_app_learns_of_the_merchants_before_anybody_asks_and_forgets_nobody_when_it_ends(settings):
    services = build(settings, Rung())
    app = create_app(services)
    async with app.router.lifespan_context(app):
        async with asyncio.timeout(10):
            while services.merchants.known(1) is None:  # noqa: ASYNC110 - nobody tells us
                await asyncio.sleep(0.02)
    assert "merchants" not in {task.get_name() for task in asyncio.all_tasks()}


# ── Documentation ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_document_describes_every_address(api: Api):
    document = (await api.client.get("/openapi.json")).json()
    described = {(method, path) for path, operations in document["paths"].items() for method in operations}
    assert described == {
        ("get", "/v1/checkouts"), ("post", "/v1/checkouts"), ("post", "/v1/checkouts/batch"),
        ("get", "/v1/checkouts/{checkout_id}"), ("post", "/v1/checkouts/{checkout_id}/cancel"),
        *(
            ("post", f"/v1/checkouts/{{checkout_id}}/{kind}")
            for kind in ("reopen", "capture", "refund", "release", "retry", "reconcile", "resolve")
        ),
        ("get", "/v1/checkouts/{checkout_id}/explain"), ("get", "/v1/payments"),
        ("get", "/v1/checkouts/{checkout_id}/audit"), ("post", "/callbacks/{kind}/{id}/{signed}"),
        ("get", "/callbacks/{kind}/{id}/{signed}"), ("post", "/callbacks/merchant/{merchant}/{signed}"), ("get", "/healthz"), ("get", "/readyz"),
    }  # fmt: skip
    text = (await api.client.get("/openapi.json")).text
    assert document["openapi"].startswith("3.0.")
    assert '"null"' not in text
    for name in re.findall(r"#/components/schemas/(\w+)", text):
        assert name in document["components"]["schemas"]


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

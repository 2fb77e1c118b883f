"""The API on a real database, called over ASGI; the hint publisher is a list."""

from __future__ import annotations

import copy
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import httpx
from sqlalchemy import text

from orchestrator import auth, callback_urls
from orchestrator.api import Services, create_app
from orchestrator.api.contract.examples import INTENT
from orchestrator.crypto import Encryptor
from orchestrator.store import inbox
from orchestrator.store.database import Database
from orchestrator.store.merchants import Merchants
from tests.conftest import make_settings
from tests.integration.api.contract import Contract

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from orchestrator.settings import Settings

ALL = ("checkouts:read", "checkouts:write")
PAGES = {
    "success": "https://shop.example/paid?lang=da&orderId=A-1",
    "failure": "https://shop.example/not-paid?orderId=A-1",
    "redirect": "https://shop.example/done?orderId=A-1#end",
}


@dataclass
class RecordingPublisher:
    """A hint publisher that records what it is given."""

    trouble: str | None = None
    published: list[tuple[str, UUID]] = field(default_factory=list)

    def publish(self, ids, *, queue="checkouts", merchant_id=None):  # noqa: ARG002 - as the real publisher is called
        self.published += [(queue, checkout) for checkout in ids]


def intent(order_ref: str | None = None, **changes: object) -> dict:
    body = copy.deepcopy(INTENT)
    body["order"]["orderId"] = order_ref or f"A-{uuid4().hex[:12]}"
    return body | changes


@dataclass
class Api:
    client: httpx.AsyncClient
    services: Services
    hint_publisher: RecordingPublisher
    contract: Contract = field(default_factory=lambda: Contract({"paths": {}}))

    def bearer(
        self, merchant: str = "default", scopes: tuple[str, ...] = ALL, lifetime: float = 60
    ) -> dict[str, str]:
        token = auth.issue(
            self.services.settings, merchant=merchant, scopes=scopes, lifetime=lifetime, subject="shop-1"
        )
        return {"Authorization": f"Bearer {token}"}

    async def post(
        self, body: object, *, path: str = "/v1/checkouts", merchant: str = "default", **headers: str
    ):
        return await self.client.post(path, json=body, headers=self.bearer(merchant) | headers)

    async def get(self, path: str, *, merchant: str = "default", **params: object):
        return await self.client.get(path, params=params, headers=self.bearer(merchant))

    async def taken(self, order_ref: str | None = None) -> str:
        answer = await self.post(intent(order_ref))
        assert answer.status_code == 202, answer.text
        return answer.json()["id"]

    def urls(self, checkout: str | UUID, *, merchant_id: int = 1) -> callback_urls.CallbackUrls:
        return callback_urls.callback_urls(
            self.services.encryptor, "", UUID(str(checkout)), PAGES, merchant_id=merchant_id
        )

    async def sql(self, statement: str, **parameters: object):
        return await self.services.db.write(text(statement), parameters)

    async def count(self, table: str) -> int:
        return (await self.sql(f"SELECT count(*) AS number FROM {table}"))[0].number

    async def offer(self, checkout: str, *, token: str = "t-0") -> None:  # noqa: S107 - a test's own
        """Put a checkout in the state that a worker would have written."""
        checkout_id = UUID(checkout)
        row = (await self.sql("SELECT data_key FROM intents WHERE checkout_id = :id", id=checkout_id))[0]
        sealed = self.services.encryptor.data_key(checkout_id, row.data_key).encrypt(
            token.encode(), purpose="token"
        )
        await self.sql(
            "INSERT INTO sessions (checkout_id, token, token_expires_at, session_id, methods) "
            "VALUES (:id, :token, clock() + interval '20 minutes', 'session-1', '[{\"id\": \"m-1\"}]')",
            id=checkout_id,
            token=sealed,
        )
        await self.sql(
            "UPDATE checkouts SET state = 'awaiting_payment', offered_at = clock() WHERE id = :id",
            id=checkout_id,
        )


_made: list[dict[str, Any]] = []


@asynccontextmanager
async def serving(settings: Settings, *, timeout: float = 10.0, pages: Any = None) -> AsyncIterator[Api]:
    encryptor = Encryptor(settings.secret_keys)
    hint_publisher = RecordingPublisher()
    database_url = settings.database_url
    assert database_url is not None
    db = Database(database_url, pool_size=4, pool_timeout=5)
    inlet = Database(database_url, pool_size=3, pool_timeout=5)
    services = Services(
        settings=settings,
        db=db,
        inlet=inlet,
        encryptor=encryptor,
        intents=inbox.Intents(inlet, encryptor, grace=5, timeout=timeout),
        callbacks=inbox.Callbacks(
            inlet,
            encryptor,
            grace=5,
            timeout=3,
            strict_network=settings.require_gateway_network,
            caps=inbox.Caps(settings.callbacks_limit, settings.callbacks_unproven_limit),
        ),
        merchants=Merchants(inlet, encryptor, settings),
        hint_publisher=hint_publisher,
    )
    app = create_app(services, pages=pages)
    # One document for all apps of a process: no setting is in it, and making it takes longer than most tests.
    app.openapi_schema = _made[0] if _made else app.openapi()
    _made[:] = [app.openapi_schema]
    contract = Contract(app.openapi_schema)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://pay.example", event_hooks={"response": [contract.check]}
    ) as client:
        yield Api(client, services, hint_publisher, contract)
    await services.close()


def without_database(**changes: object) -> Settings:
    """Settings of an installation whose Postgres refuses every connection."""
    return make_settings(database_url="postgresql://nouser@127.0.0.1:9/none", **changes)


def path_of(url: str | None) -> str:
    assert url is not None
    return urlsplit(url).path

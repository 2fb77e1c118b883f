"""The API on a real database, asked over ASGI; the doorbell is a list."""

from __future__ import annotations

import copy
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import httpx
from sqlalchemy import text

from orchestrator import access, inbox, links
from orchestrator.api import Services, create_app
from orchestrator.api.schemas import EXAMPLE
from orchestrator.db import Database
from orchestrator.merchants import Merchants
from orchestrator.vault import Vault
from tests.conftest import make_settings

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
class Rung:
    """A doorbell that remembers who was rung for."""

    trouble: str | None = None
    rings: list[tuple[str, UUID]] = field(default_factory=list)

    def ring(self, ids, *, queue="checkouts", whose=None):  # noqa: ARG002 - as the real one is called
        self.rings += [(queue, one) for one in ids]


def intent(order_ref: str | None = None, **changes: object) -> dict:
    body = copy.deepcopy(EXAMPLE)
    body["order"]["orderId"] = order_ref or f"A-{uuid4().hex[:12]}"
    return body | changes


@dataclass
class Api:
    client: httpx.AsyncClient
    services: Services
    doorbell: Rung

    def bearer(
        self, merchant: str = "default", scopes: tuple[str, ...] = ALL, lifetime: float = 60
    ) -> dict[str, str]:
        token = access.issue(
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

    def urls(self, checkout: str | UUID, *, merchant_id: int = 1) -> links.CallbackUrls:
        return links.callback_urls(
            self.services.vault, "", UUID(str(checkout)), PAGES, merchant_id=merchant_id
        )

    async def sql(self, statement: str, **parameters: object):
        return await self.services.db.write(text(statement), parameters)

    async def count(self, table: str) -> int:
        return (await self.sql(f"SELECT count(*) AS number FROM {table}"))[0].number

    async def offer(self, checkout: str, *, token: str = "t-0") -> None:  # noqa: S107 - a test's own
        """Put a checkout where a worker would have brought it."""
        one = UUID(checkout)
        row = (await self.sql("SELECT data_key FROM intents WHERE checkout_id = :id", id=one))[0]
        sealed = self.services.vault.data_key(one, row.data_key).seal(token.encode(), purpose="token")
        await self.sql(
            "INSERT INTO sessions (checkout_id, token, token_expires_at, session_id, methods) "
            "VALUES (:id, :token, clock() + interval '20 minutes', 'session-1', '[{\"id\": \"m-1\"}]')",
            id=one, token=sealed,
        )  # fmt: skip
        await self.sql(
            "UPDATE checkouts SET state = 'awaiting_payment', offered_at = clock() WHERE id = :id", id=one
        )


@asynccontextmanager
async def serving(settings: Settings, *, patience: float = 10.0) -> AsyncIterator[Api]:
    vault = Vault(settings.secret_keys)
    doorbell = Rung()
    database_url = settings.database_url
    assert database_url is not None
    db = Database(database_url, pool_size=4, pool_timeout=5)
    inlet = Database(database_url, pool_size=3, pool_timeout=5)
    services = Services(
        settings=settings, db=db, inlet=inlet, vault=vault, intents=inbox.Intents(inlet, vault, grace=5, patience=patience),
        callbacks=inbox.Callbacks(
            inlet, vault, grace=5, patience=3, strict_network=settings.require_gateway_network,
            caps=inbox.Caps(settings.callbacks_limit, settings.callbacks_unproven_limit),
        ), merchants=Merchants(inlet, vault, settings), doorbell=doorbell,
    )  # fmt: skip
    transport = httpx.ASGITransport(create_app(services))
    async with httpx.AsyncClient(transport=transport, base_url="http://pay.example") as client:
        yield Api(client, services, doorbell)
    await services.close()


def without_database(**changes: object) -> Settings:
    """Settings of an installation whose Postgres refuses every connection."""
    return make_settings(database_url="postgresql://nobody@127.0.0.1:9/none", **changes)


def path_of(url: str | None) -> str:
    assert url is not None
    return urlsplit(url).path

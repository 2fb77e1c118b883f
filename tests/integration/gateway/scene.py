"""A gateway client of ours and a server that misbehaves.

Its limits of time are so generous that no busy machine meets them; a test that is about such a limit shortens
that limit.
"""

from __future__ import annotations

from contextlib import asynccontextmanager

import jwt
import msgspec

from orchestrator.gateway.client import Account, Gateway
from orchestrator.settings import Settings
from tests.integration.gateway.misbehaving import Misbehaving

LIMIT = 20_000
KEY = "k" * 32


def settings(**changed: float) -> Settings:
    values = {
        "gateway_connect_timeout": 20,
        "gateway_read_timeout": 25,
        "gateway_total_timeout": 30,
        "gateway_answer_limit": LIMIT,
        **changed,
    }
    return Settings(**values)


def account(url: str) -> Account:
    return Account(
        merchant="default", url=url, merchant_api_url=url, username="api@example.com", password="pass:wörd"
    )


@asynccontextmanager
async def gateway_that(answer, **changed):
    async with Misbehaving(answer) as server, Gateway(settings(**changed)) as gateway:
        yield gateway, server, account(server.url)


async def authenticated(answer, **changed):
    """Return what `authenticate` comes to; a POST, so nothing below repeats it."""
    async with gateway_that(answer, **changed) as (gateway, _, merchant):
        return await gateway.authenticate(merchant)


def token(**claims: object) -> str:
    return jwt.encode({"upn": "checkout_api", **claims}, KEY)


def token_answer(value: object) -> bytes:
    return msgspec.json.encode({"token": value})

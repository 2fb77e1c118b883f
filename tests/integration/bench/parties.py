"""A light gateway of ours, and a shop that records its callbacks."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from decimal import Decimal

from orchestrator.devkit.bench.gateway import GatewayProfile, listening
from orchestrator.devkit.bench.shoppers import ShopperProfile
from orchestrator.gateway.client import Account, Gateway
from orchestrator.settings import Settings
from tests.integration.gateway.misbehaving import Misbehaving

SECRET = "what the gateway signs its callbacks with"
CHECKOUT = "01920000-0000-7000-8000-000000000001"
AT_ONCE = ShopperProfile(think=0.0, secret=SECRET)


@asynccontextmanager
async def light(**profile):
    """The light gateway, our real client, and an account at it; no shopper pays by default."""
    profile = {"shoppers": None, **profile}
    async with (
        listening(GatewayProfile(**profile), "127.0.0.1") as (gateway, url),
        Gateway(Settings(gateway_total_timeout=5, gateway_read_timeout=4)) as client,
    ):
        yield gateway, client, Account("bench", url, url, "bench", "secret")


@asynccontextmanager
async def shop(*, success=303, notification=200):
    """A shop's callback addresses, and the callbacks that came."""

    async def answer(exchange):
        await exchange.respond(success if "/success" in exchange.request_line else notification)

    async with Misbehaving(answer) as server:
        yield server


def asked(
    order="b-1",
    *,
    url="http://127.0.0.1:9",
    checkout=CHECKOUT,
    captures=False,
    amount="139.00",
    currency="DKK",
):
    """The body of a session as the product sends it."""
    info = {} if checkout is None else {"transactionInfo": {"checkout": checkout}}
    return {
        "order": {
            "orderId": order,
            "amount": {"value": Decimal(amount), "currency": currency},
            "orderLines": [],
            "customer": {},
            **info,
        },
        "callbacks": {
            "success": {"type": "URL", "value": f"{url}/success"},
            "failure": {"type": "URL", "value": f"{url}/failure"},
            "notification": f"{url}/notification",
        },
        "configuration": {"paymentType": "PAYMENT", "autoCapture": captures},
    }


async def offered(client, account, body):
    """Go through the three calls; return the token, the session and the methods as they came back."""
    token = await client.authenticate(account)
    session = await client.open_session(account, token.value.value, body, user_agent=None)
    methods = await client.list_methods(account, token.value.value, session.value.session_id, user_agent=None)
    return token, session, methods


async def until(condition, *, seconds=10):
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in code that has no event of ours
            await asyncio.sleep(0.005)

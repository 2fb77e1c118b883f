"""The merchants of the demo, over plain HTTP: the API through our client, the sandbox's script API, the
gateway's own interface.

One `Shop` is one merchant: `default`, or a merchant of group `money`, with policies of its own. An answer
outside the contract ends in `Unscripted`.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import httpx

from orchestrator import auth, callback_urls
from orchestrator.crypto import Encryptor
from orchestrator.devkit.client import Client
from orchestrator.domain import money
from orchestrator.errors import OrchestratorError
from orchestrator.store.merchant_fields import UnknownMerchant
from orchestrator.store.merchants import Merchants

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from orchestrator.devkit.demo.orders import Order
    from orchestrator.devkit.local.up import Up
    from orchestrator.store.database import Database
    from orchestrator.store.merchants import Merchant

_UNKNOWN_FOR: Final = 1.0
"""Seconds for which a process that has just read the merchants does not have a new one."""
_KNOWN_WITHIN: Final = 30.0
_TOKEN_LIFETIME: Final = 3600.0
_SCOPES: Final = ("checkouts:write", "checkouts:read", "money:write", "ops")


class Unscripted(OrchestratorError):  # noqa: N818 - named for the fact
    """An order did not go by its script."""

    def __init__(self, *, expected: str, seen: str) -> None:
        super().__init__(f"expected {expected}, saw {seen}")


@dataclass(slots=True)
class Shop:
    """A merchant with everything it can reach.

    `encryptor` and `public_url` make the addresses that its gateway got.
    """

    http: httpx.AsyncClient
    client: Client
    sandbox: str
    merchant: Merchant
    public_url: str
    encryptor: Encryptor

    async def control(
        self, method: str, path: str, body: Mapping[str, object] | None = None, **params: str
    ) -> Any:
        url = f"{self.sandbox}/sandbox/{path}"
        answer = await self.http.request(
            method, url, params=params, json=None if body is None else dict(body)
        )
        need(answer, (200,), f"the sandbox's {method} {path}")
        return answer.json()

    async def ledger(self, order: Order) -> list[dict[str, Any]]:
        found = await self.control("GET", "ledger", orderId=order.id)
        return [row for entry in found["orders"] for row in entry["payments"]]

    async def pay_elsewhere(self, order: Order) -> None:
        """Pay an order number without an intent; its terminals have the merchant's own address."""
        url = callback_urls.merchant_url(self.encryptor, self.public_url, self.merchant.name)
        payment = {
            "orderId": order.id,
            "amountMinor": order.amount,
            "currency": order.currency,
            "notification": url,
        }
        await self.control("POST", "payments/unmatched", payment)

    async def capture_by_hand(self, order: Order, transaction: str) -> None:
        """Capture a payment in the gateway's own interface, as the shop's staff does."""
        amount, account = str(money.to_decimal(order.amount, order.currency)), self.merchant.account
        answer = await self.http.post(
            f"{self.sandbox}/merchant/API/captureReservation",
            data={"transaction_id": transaction, "amount": amount},
            auth=httpx.BasicAuth(account.username, account.password),
        )
        need(answer, (200,), "the gateway to capture by hand")

    async def forge(self, order: Order, checkout: UUID) -> int:
        """Send a success as a sender would who has no secret; return the answer's status."""
        pages = {"success": "", "failure": ""}
        urls = callback_urls.callback_urls(
            self.encryptor, self.public_url, checkout, pages, merchant_id=self.merchant.id
        )
        fields = {
            "shop_orderid": order.id,
            "currency": order.currency,
            "amount": str(money.to_decimal(order.amount, order.currency)),
            "transaction_id": "1",
            "payment_status": "captured",
            "status": "succeeded",
            "checksum": "0" * 32,
        }
        signature = f"t={int(time.time())};s0={'0' * 64}"
        answer = await self.http.post(
            urls.notification, data=fields, headers={"altapay-signature": signature}
        )
        return int(answer.status_code)


async def opened(
    up: Up,
    db: Database,
    http: httpx.AsyncClient,
    policies: Mapping[str, Mapping[str, object] | None],
    *,
    gateway: str,
) -> dict[str, Shop]:
    """Return a shop for each merchant by name, added or set to its policies where it has some."""
    encryptor = Encryptor(up.settings.secret_keys)
    merchants = Merchants(db, encryptor, up.settings)
    added = [
        await _configure(merchants, up, name, each) for name, each in policies.items() if each is not None
    ]
    if any(added):
        await asyncio.sleep(_UNKNOWN_FOR)
    shops = {}
    for name in policies:
        found = await merchants.named(name)
        if found is None:
            raise UnknownMerchant(name)
        token = auth.issue_own(
            up.settings, merchant=name, scopes=_SCOPES, lifetime=_TOKEN_LIFETIME, subject="demo"
        )
        client = Client(up.url, token, http=http)
        shops[name] = Shop(http, client, gateway, found, up.settings.public_url, encryptor)
    for shop in shops.values():
        await shop.client.until_known(_KNOWN_WITHIN)
    return shops


async def _configure(merchants: Merchants, up: Up, name: str, policies: Mapping[str, object]) -> bool:
    """Add a merchant, or set an existing one to what its scripts need; return whether it is new."""
    password = up.settings.gateway_password.get_secret_value()
    secrets = tuple(secret.get_secret_value() for secret in up.settings.gateway_secrets)
    # Without a gateway and user name of its own it has those of the settings, wherever the sandbox listens
    # the next time.
    added = await merchants.add(
        name, gateway_url="", merchant_api_url=None, username="", password=password, callback_secrets=secrets
    )
    if not added:
        await merchants.set_password(name, password)
        await merchants.set_secrets(name, secrets)
        await merchants.disable(name, disabled=False)
    await merchants.set_policies(name, dict(policies))
    return added


def need(answer: httpx.Response, wanted: tuple[int, ...], what: str) -> None:
    """Raise `Unscripted` unless an answer has one of these statuses."""
    if answer.status_code not in wanted:
        text = answer.text[:200].replace("\n", " ")
        raise Unscripted(
            expected=f"{what} to answer {' or '.join(map(str, wanted))}", seen=f"{answer.status_code}: {text}"
        )

"""The merchant's side of the demo, over plain HTTP: the API with a token, the sandbox with its script API, the gateway's own interface.

One `Shop` is one merchant. What does not answer as the contract says ends in `Unscripted`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import httpx

from orchestrator import callback_urls
from orchestrator.domain import money
from orchestrator.errors import OrchestratorError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.crypto import Encryptor
    from orchestrator.devkit.demo.orders import Order


class Unscripted(OrchestratorError):  # noqa: N818 - named for the fact
    """An order did not go by its script."""

    def __init__(self, *, expected: str, seen: str) -> None:
        super().__init__(f"expected {expected}, saw {seen}")
        self.expected, self.seen = expected, seen


@dataclass(frozen=True, slots=True)
class Account:
    """A merchant of the demo: its number here, and as whom it goes to the gateway."""

    merchant_id: int
    username: str
    password: str = field(repr=False)


@dataclass(slots=True)
class Shop:
    """One merchant with everything it can reach. `encryptor` and `public_url` make the addresses that its gateway was told."""

    http: httpx.AsyncClient
    api: str
    sandbox: str
    merchant: str
    account: Account
    public_url: str
    token: str = field(repr=False)
    encryptor: Encryptor = field(repr=False)

    # The API.

    async def create(self, order: Order) -> str:
        """Publish the intent; return the checkout's id."""
        accepted = await self._api("POST", "/v1/checkouts", body=order.intent(), wanted=(202,))
        return str(accepted["id"])

    async def read(self, checkout: str) -> dict[str, Any]:
        return await self._api("GET", f"/v1/checkouts/{checkout}")

    async def find(self, order: Order) -> list[str]:
        """Return the ids of the checkouts that have this order number."""
        page = await self._api("GET", f"/v1/checkouts?orderId={order.id}")
        return [str(one["id"]) for one in page["checkouts"]]

    async def trail(self, checkout: str) -> list[dict[str, Any]]:
        """Return the audit entries of a checkout, the oldest first."""
        entries: list[dict[str, Any]] = []
        after: int | None = 0
        while after is not None:
            page = await self._api("GET", f"/v1/checkouts/{checkout}/audit?after={after}")
            entries += page["entries"]
            after = page["nextAfter"]
        return entries

    async def explain(self, checkout: str) -> dict[str, Any]:
        """Return why the checkout is where it is, in sentences."""
        return await self._api("GET", f"/v1/checkouts/{checkout}/explain")

    async def cancel(self, checkout: str) -> None:
        await self._api(
            "POST",
            f"/v1/checkouts/{checkout}/cancel",
            body={"reason": "the shopper took too long"},
            wanted=(202,),
        )

    async def command(
        self, checkout: str, kind: str, body: Mapping[str, object], *, key: str | None = None
    ) -> str:
        """Ask something of a checkout under a key of its own (or this one); return the command's id."""
        accepted = await self._api(
            "POST",
            f"/v1/checkouts/{checkout}/{kind}",
            body=dict(body),
            key=key or str(uuid4()),
            wanted=(202,),
        )
        return str(accepted["command"]["id"])

    async def refused(
        self, checkout: str, kind: str, body: Mapping[str, object], *, why: str, key: str | None = None
    ) -> None:
        """Ask something that must be refused, and for this reason (the last word of the problem's type)."""
        problem = await self._api(
            "POST",
            f"/v1/checkouts/{checkout}/{kind}",
            body=dict(body),
            key=key or str(uuid4()),
            wanted=(409, 422),
        )
        if str(problem["type"]).rpartition(":")[2] != why:
            raise Unscripted(expected=f"the {kind} to be refused as {why}", seen=str(problem["detail"]))

    async def known(self) -> bool:
        """Say whether the API knows the merchant of the token: one that was added a moment ago it may not."""
        answer = await self.http.get(f"{self.api}/v1/checkouts?limit=1", headers=self._bearer())
        need(answer, (200, 403), "the list of checkouts")
        return answer.status_code == HTTPStatus.OK

    # The sandbox.

    async def plan(self, order: Order, plan: Mapping[str, object]) -> None:
        """Tell the sandbox what this order is to meet from now on."""
        answer = await self.http.put(f"{self.sandbox}/sandbox/orders/{order.id}", json=dict(plan))
        need(answer, (200,), "the sandbox to take the order's plan")

    async def ledger(self, order: Order) -> list[dict[str, Any]]:
        """Return what the sandbox knows of the order's payments."""
        answer = await self.http.get(f"{self.sandbox}/sandbox/ledger", params={"orderId": order.id})
        need(answer, (200,), "the sandbox's ledger")
        return [row for entry in answer.json()["orders"] for row in entry["payments"]]

    async def at_gateway(self, payment: str, what: str, body: Mapping[str, object]) -> None:
        """Have something happen to a payment at the gateway that nobody here asked for."""
        answer = await self.http.post(f"{self.sandbox}/sandbox/payments/{payment}/{what}", json=dict(body))
        need(answer, (200,), f"the sandbox to {what} the payment")

    async def pay_elsewhere(self, order: Order) -> None:
        """Pay an order number at the gateway that nobody has handed over; its terminals know the merchant's own address."""
        unexpected_payment = {
            "orderId": order.id,
            "amountMinor": order.amount,
            "currency": order.currency,
            "notification": callback_urls.merchant_url(self.encryptor, self.public_url, self.merchant),
        }
        answer = await self.http.post(f"{self.sandbox}/sandbox/payments/unmatched", json=unexpected_payment)
        need(answer, (200,), "the sandbox to make the payment")

    async def capture_by_hand(self, order: Order, transaction: str) -> None:
        """Capture a payment in the gateway's own interface, as somebody in the shop's office does."""
        answer = await self.http.post(
            f"{self.sandbox}/merchant/API/captureReservation",
            data={
                "transaction_id": transaction,
                "amount": str(money.to_decimal(order.amount, order.currency)),
            },
            auth=httpx.BasicAuth(self.account.username, self.account.password),
        )
        need(answer, (200,), "the gateway to capture by hand")

    async def forge(self, order: Order, checkout: str) -> int:
        """Send a success notification as somebody would who knows the address and no secret; return the answer's status."""
        urls = callback_urls.callback_urls(
            self.encryptor, self.public_url, UUID(checkout), {"success": "", "failure": ""},
            merchant_id=self.account.merchant_id,
        )  # fmt: skip
        fields = {
            "shop_orderid": order.id, "currency": order.currency, "amount": str(money.to_decimal(order.amount, order.currency)),
            "transaction_id": "1", "payment_status": "captured", "status": "succeeded", "checksum": "0" * 32,
        }  # fmt: skip
        signature = f"t={int(time.time())};s0={'0' * 64}"
        answer = await self.http.post(
            urls.notification, data=fields, headers={"altapay-signature": signature}
        )
        return int(answer.status_code)

    def _bearer(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token}"}

    async def _api(
        self, method: str, path: str, *, body: object = None, key: str | None = None, wanted: tuple[int, ...] = (200,)
    ) -> dict[str, Any]:  # fmt: skip
        headers = self._bearer() | ({"idempotency-key": key} if key is not None else {})
        answer = await self.http.request(method, f"{self.api}{path}", json=body, headers=headers)
        need(answer, wanted, f"{method} {path.partition('?')[0]}")
        found: dict[str, Any] = answer.json()
        return found


def need(answer: httpx.Response, wanted: tuple[int, ...], what: str) -> None:
    """Raise `Unscripted` unless an answer has one of these statuses."""
    if answer.status_code not in wanted:
        text = answer.text[:200].replace("\n", " ")
        raise Unscripted(
            expected=f"{what} to answer {' or '.join(map(str, wanted))}", seen=f"{answer.status_code}: {text}"
        )

"""The demo shop: its pages, and its start, at which it knows the secret of its webhook again, for events of
earlier orders.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from starlette.applications import Starlette

from orchestrator.devkit.shop import example, stage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

pytestmark = pytest.mark.anyio
URL, SECRET = "http://127.0.0.1:9", b"a secret of thirty-two bytes ....."


class Api:
    """The API's webhooks: the first `failures` calls are not served, or not answered."""

    def __init__(self, failures: int, known: list[dict[str, Any]]) -> None:
        self.failures, self.known, self.asked = failures, known, list[str]()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.failures > 0:
            self.failures -= 1
            if self.failures % 2:
                raise httpx.ConnectError("refused", request=request)
            return httpx.Response(503)
        self.asked.append(f"{request.method} {request.url.path}")
        if request.method == "GET":
            return httpx.Response(200, json={"webhooks": self.known})
        return httpx.Response(200, json={"secret": "whsec_" + base64.b64encode(SECRET).decode()})


@pytest.fixture(name="pauses")
def _pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    pauses: list[float] = []
    sleep = example.asyncio.sleep

    async def no_sleep(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr(example.asyncio, "sleep", no_sleep)
    return pauses


def shop(api: Callable[[httpx.Request], httpx.Response]) -> example.Shop:
    made = example.Shop(URL, "http://api.example", "token", script_url="", script_integrity="", policy="")
    made.http = httpx.AsyncClient(transport=httpx.MockTransport(api))
    return made


def offered(request: httpx.Request) -> httpx.Response:
    """Answer as API and gateway do for an order that can be paid, or that has ended as its id says."""
    if request.url.host == "gateway.example":
        return httpx.Response(200, json={"url": "http://gateway.example/page"})
    ended = request.url.path.rpartition("/")[2]
    start = {"type": "URL", "value": "http://gateway.example/payment"}
    card = {"id": "card", "type": "CARD", "name": "Card", "description": "", "onInitiatePayment": start}
    open_ = ended == "open"
    return httpx.Response(
        200,
        json={
            "id": ended,
            "outcome": None if open_ else ended,
            "amount": {"value": 139.0, "currency": "DKK"},
            "session": {"id": "s-1", "token": "t"} if open_ else None,
            "paymentMethods": [card],
        },
    )


@contextlib.asynccontextmanager
async def browsing(*checkouts: str) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a browser of a shop with an order for each checkout, under its id."""
    made = shop(offered)
    made.orders = {name: example.Order(name, f"S-{name}", checkout=name) for name in checkouts}
    transport = httpx.ASGITransport(Starlette(routes=made.routes()))
    async with httpx.AsyncClient(transport=transport, base_url=URL) as client:
        yield client


async def test_the_heading_of_an_order_is_what_its_checkout_says_and_not_its_address():
    """Anyone may open any of the addresses that a shopper comes back to."""
    async with browsing("open", "paid", "expired") as client:
        for name, arrived, heading in (
            ("open", "", "Pay for your order"),
            ("open", "/failure", "Your payment was not completed"),
            ("open", "/success", "Your order"),
            ("paid", "/failure", "Your order"),
            ("paid", "", "Your order"),
            ("expired", "/failure", "Your order"),
            ("expired", "/redirect", "Your order"),
        ):
            page = await client.get(f"/shop/orders/{name}{arrived}")
            assert f"<h1>{heading}</h1>" in page.text, (name, arrived)


@pytest.mark.parametrize(
    ("site", "status"),
    [("cross-site", 404), ("same-site", 404), ("same-origin", 303), ("none", 303), (None, 303)],
)
async def test_a_page_of_another_site_starts_no_payment(site, status):
    headers = {} if site is None else {"sec-fetch-site": site}
    async with browsing("open") as client:
        answer = await client.post("/shop/orders/open/pay", data={"method": "card"}, headers=headers)
    assert answer.status_code == status
    assert (answer.headers.get("location") == "http://gateway.example/page") == (status == 303)


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b'{"name": "methods", "count": 2}', 204),
        (b'{"name": "payment", "count": 0}', 422),
        (b"{", 422),
        (b'{"name": "\xff"}', 422),
    ],
)
async def test_a_browser_says_only_what_it_can_see(said, status):
    page = {"script_url": "", "script_integrity": "", "policy": ""}
    made = stage.DemoShop(URL, "http://api.example", "token", sandbox=URL, control="", **page)
    made.orders = {"k": example.Order("k", "S-k", checkout="c")}
    transport = httpx.ASGITransport(Starlette(routes=made.routes()))
    async with httpx.AsyncClient(transport=transport, base_url=URL) as client:
        assert (await client.post("/shop/orders/k/messages", content=said)).status_code == status
    await made.close()


MINE = {"id": "w-2", "url": f"{URL}/shop/webhooks"}


async def test_a_restart_has_the_secret_of_its_own_webhook_replaced_once_the_api_answers(pauses):
    api = Api(9, [{"id": "w-1", "url": "http://another.example/shop/webhooks"}, MINE])
    made = shop(api)
    await made.resume_webhook()
    assert api.asked == ["GET /v1/webhooks", "POST /v1/webhooks/w-2/rotate-secret"]
    assert made.secret == SECRET
    assert 1 < len(pauses) < 20
    await made.register_webhook()
    assert len(api.asked) == 2


async def test_a_first_start_registers_nothing_before_the_first_order(pauses):
    api = Api(0, [])
    made = shop(api)
    await made.resume_webhook()
    assert (made.secret, made.starting, api.asked) == (b"", False, ["GET /v1/webhooks"])
    await made.register_webhook()
    assert (made.secret, api.asked[1:]) == (SECRET, ["GET /v1/webhooks", "POST /v1/webhooks"])


async def test_an_api_that_never_answers_is_given_up_and_the_next_order_registers(pauses, caplog):
    api = Api(10_000, [MINE])
    made = shop(api)
    await made.resume_webhook()
    assert not made.starting
    assert "the webhook has no secret yet" in caplog.text
    assert max(pauses) <= example.LONGEST_PAUSE
    assert 10_000 - api.failures <= 2 * example.START_ATTEMPTS
    api.failures = 0
    await made.register_webhook()
    assert made.secret == SECRET


async def test_events_before_the_secret_is_known_are_sent_again_and_then_taken():
    made = shop(Api(0, [MINE]))
    body, at = b'{"data": {"orderId": "S-1"}}', str(int(time.time()))
    signature = base64.b64encode(hmac.digest(SECRET, f"1.{at}.".encode() + body, "sha256")).decode()
    headers = {"webhook-id": "1", "webhook-timestamp": at, "webhook-signature": f"v1,{signature}"}
    transport = httpx.ASGITransport(Starlette(routes=made.routes()))
    async with httpx.AsyncClient(transport=transport, base_url=URL) as client:
        early = await client.post("/shop/webhooks", content=body, headers=headers)
        assert (early.status_code, early.headers["retry-after"]) == (503, "1")
        await made.resume_webhook()
        assert (await client.post("/shop/webhooks", content=body, headers=headers)).status_code == 204
        forged = await client.post("/shop/webhooks", content=body + b" ", headers=headers)
        assert forged.status_code == 401

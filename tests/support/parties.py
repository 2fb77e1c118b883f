"""A sandbox and a merchant's server on free ports, each in a thread of its own, and a shopper who uses plain
HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import threading
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import httpx
import uvicorn
from defusedxml import ElementTree
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from orchestrator.devkit.sandbox import SandboxConfig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from xml.etree.ElementTree import Element

    from starlette.requests import Request

SECRET = "0123456789abcdef-callbacks"
TERMINAL_SECRET = "s3cret"
CONFIG = SandboxConfig(
    username="shop",
    password="correct horse",
    callback_secrets=(SECRET, "an older secret, still active"),
    terminal_secret=TERMINAL_SECRET,
    notification_timeout=0.5,
    browser_timeout=1.0,
    hang_seconds=1.0,
)


class Server:
    """An ASGI app served by uvicorn in a thread."""

    def __init__(self, app: Any) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        config = uvicorn.Config(
            app,
            http="httptools",
            loop="uvloop",
            lifespan="on",
            log_level="warning",
            timeout_graceful_shutdown=1,
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]})
        self.thread.start()
        until(lambda: self.server.started)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join()
        self.socket.close()


def until(condition: Any, *, seconds: float = 5.0) -> Any:
    """Wait for a condition and return what it returned."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "this did not happen in time"
        time.sleep(0.005)
    return found


@contextlib.contextmanager
def serving(app: Any) -> Iterator[str]:
    server = Server(app)
    try:
        yield server.url
    finally:
        server.stop()


@dataclasses.dataclass
class Call:
    kind: str
    order: str
    headers: dict[str, str]
    raw: bytes
    at: float

    @property
    def fields(self) -> dict[str, str]:
        return dict(parse_qsl(self.raw.decode(), keep_blank_values=True))

    @property
    def xml(self) -> Element:
        return ElementTree.fromstring(self.fields["xml"])


class Merchant:
    """The shop's callback endpoints: records every call and answers as it is set."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.answers: dict[str, Response] = {}
        self.delays: dict[str, float] = {}
        self.url = ""
        self.app = Starlette(routes=[Route("/{kind}/{order:path}", self._take, methods=["GET", "POST"])])

    async def _take(self, request: Request) -> Response:
        kind, order = request.path_params["kind"], request.path_params["order"]
        self.calls.append(Call(kind, order, dict(request.headers), await request.body(), time.monotonic()))
        await asyncio.sleep(self.delays.get(order, 0))
        if order in self.answers and kind != "notification":
            return self.answers[order]
        if kind == "notification":
            return Response("Acknowledged")
        return Response(
            status_code=303, headers={"location": f"https://shop.example/thanks?order={order}&kind={kind}"}
        )

    def heard(self, order: str, kind: str | None = None, *, status: str | None = None) -> list[Call]:
        return [
            call
            for call in list(self.calls)
            if call.order == order
            and kind in {None, call.kind}
            and (status is None or call.fields.get("status") == status)
        ]

    def wait(self, order: str, kind: str, *, count: int = 1, status: str | None = None) -> list[Call]:
        until(lambda: len(self.heard(order, kind, status=status)) >= count)
        return self.heard(order, kind, status=status)


class Gateway:
    """A client for the documented calls of the gateway."""

    def __init__(self, url: str, merchant: Merchant) -> None:
        self.http = httpx.Client(base_url=url, timeout=10, trust_env=False)
        self.url = url
        self.merchant = merchant
        self._token = ""

    basic = httpx.BasicAuth(CONFIG.username, CONFIG.password)

    def token(self) -> str:
        answer = self.http.post("/checkout/v1/api/authenticate", auth=self.basic)
        return str(answer.json()["token"])

    @property
    def bearer(self) -> dict[str, str]:
        if not self._token:
            self._token = self.token()
        return {"authorization": f"Bearer {self._token}"}

    def intent(
        self, order: str, amount: float = 139.0, currency: str = "DKK", **changes: Any
    ) -> dict[str, Any]:
        base = self.merchant.url
        content: dict[str, Any] = {
            "order": {
                "orderId": order,
                "amount": {"value": amount, "currency": currency},
                "orderLines": [
                    {"itemId": "1", "description": "Cap", "quantity": 1, "unitPrice": amount, "taxAmount": 0}
                ],
                "customer": {
                    "firstName": "Kim",
                    "lastName": "Sø & Co",
                    "email": "kim@example.com",
                    "billingAddress": {
                        "street": "Gade 1",
                        "city": "Aarhus",
                        "country": "DK",
                        "zipCode": "8000",
                    },
                },
                "transactionInfo": {"checkout": f"checkout-of-{order}"},
            },
            "callbacks": {
                "success": {"type": "URL", "value": f"{base}/success/{order}"},
                "failure": {"type": "URL", "value": f"{base}/failure/{order}"},
                "notification": f"{base}/notification/{order}",
                "redirect": f"{base}/redirect/{order}",
            },
            "configuration": {
                "paymentType": "PAYMENT",
                "autoCapture": False,
                "paymentDisplayType": "REDIRECT",
            },
        }
        for path, value in changes.items():
            *parents, last = path.split("__")
            target = content
            for parent in parents:
                target = target[parent]
            target[last] = value
        return content

    def session(self, order: str, amount: float = 139.0, currency: str = "DKK", **changes: Any) -> str:
        answer = self.http.post(
            "/checkout/v1/api/session",
            json=self.intent(order, amount, currency, **changes),
            headers=self.bearer,
        )
        assert answer.status_code == 200, answer.text
        return str(answer.json()["sessionId"])

    def methods(self, session: str, *, user_agent: str = "test") -> dict[str, dict[str, Any]]:
        headers = {**self.bearer, "user-agent": user_agent}
        answer = self.http.get(f"/checkout/v1/api/session/{session}/payment-methods", headers=headers)
        assert answer.status_code == 200, answer.text
        return {method["type"]: method for method in answer.json()["methods"]}

    def payment(self, session: str, method: str = "CARD") -> dict[str, Any]:
        chosen = self.methods(session)[method]
        content = {"paymentMethodId": chosen["id"], "sessionId": session}
        answer = self.http.post(chosen["onInitiatePayment"]["value"], json=content, headers=self.bearer)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def checkout(self, order: str, amount: float = 139.0, *, method: str = "CARD", **changes: Any) -> str:
        """Open session and payment and return the URL of the hosted page."""
        return str(self.payment(self.session(order, amount, **changes), method)["url"])

    def pay(self, url: str, pan: str = "4111111111111111", *, expiry: str = "12/30") -> httpx.Response:
        return self.http.post(url, data={"action": "pay", "card_number": pan, "expiry": expiry, "cvc": "444"})

    def act(self, url: str, action: str) -> httpx.Response:
        return self.http.post(url, data={"action": action})

    def control(self, method: str, path: str, content: Any = None) -> httpx.Response:
        answer = self.http.request(method, f"/sandbox/{path}", json=content)
        assert answer.status_code < 300, answer.text
        return answer

    def plan(self, order: str, **plan: Any) -> None:
        self.control("PUT", f"orders/{order}", plan)

    def ledger(self, order: str) -> list[dict[str, Any]]:
        entries = self.control("GET", f"ledger?orderId={order}").json()["orders"]
        return [row for entry in entries for row in entry["payments"]]

    def lookup(self, **fields: str) -> Element:
        return self.merchant_api("GET", "payments", fields)

    def merchant_api(self, method: str, name: str, fields: dict[str, str]) -> Element:
        key = "params" if method == "GET" else "data"
        answer = self.http.request(method, f"/merchant/API/{name}", auth=self.basic, **{key: fields})
        assert answer.status_code == 200, answer.text
        return ElementTree.fromstring(answer.content)

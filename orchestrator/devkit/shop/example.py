"""A shop to copy: cart, checkout with checkout.js and without JavaScript, return pages, webhooks.

It uses the public API alone. `script_url`, `script_integrity` and `policy` are what `orchestrator helper csp`
prints. Orders are in memory; a real shop has them in its database, and stores an event's id with its effect.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import re
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import jinja2
from starlette.requests import Request  # noqa: TC002 - without conditions, to copy
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

MOST_ORDERS, LARGEST_BODY, MAX_AGE = 1000, 1_000_000, 300  # orders, bytes, seconds
START_ATTEMPTS, LONGEST_PAUSE = 40, 10.0  # of the registration at the start; seconds
CART = re.compile(r"[A-Za-z0-9_-]{22}")
LINES = [
    {"itemId": "mug", "description": "Enamel mug", "quantity": 1, "unitPrice": 71.20, "taxAmount": 17.80},
    {
        "itemId": "beans",
        "description": "Coffee, 250 g",
        "quantity": 1,
        "unitPrice": 40.00,
        "taxAmount": 10.00,
    },
]
AMOUNT = {"value": 139.00, "currency": "DKK"}
CUSTOMER = {"firstName": "Test", "lastName": "Shopper", "email": "shopper@shop.example"}
ADDRESS = {"street": "Example Road 1", "city": "Exampletown", "country": "DK", "zipCode": "1000"}


@dataclass
class Order:
    """An order of the shop; `key` is in its addresses and cannot be guessed."""

    key: str
    number: str
    checkout: str = ""
    client_token: str = ""
    status: str = "unpaid"
    sequence: int = 0
    events: set[str] = field(default_factory=set)


def fits(request: Request) -> bool:
    """Say whether a body is of a known size that is not too large."""
    size = request.headers.get("content-length", "")
    return size.isascii() and size.isdigit() and int(size) <= LARGEST_BODY


def own(request: Request) -> bool:
    """Say whether a form was sent by a page of this shop, as far as the browser tells."""
    return request.headers.get("sec-fetch-site", "none") in {"same-origin", "none"}


class Shop:
    """The shop at `url`; `token` has the scopes checkouts:write, checkouts:read and webhooks:write."""

    def __init__(
        self, url: str, api: str, token: str, *, script_url: str, script_integrity: str, policy: str
    ) -> None:
        self.url, self.api, self.policy = url, api, policy
        self.http = httpx.AsyncClient(
            timeout=20, headers={"Authorization": f"Bearer {token}"}, trust_env=False
        )
        self.orders: dict[str, Order] = {}
        self.by_number: dict[str, Order] = {}
        self.secret, self.registering, self.starting = b"", asyncio.Lock(), True
        self.pages = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")), autoescape=True
        )
        self.pages.globals |= {"script_url": script_url, "integrity": script_integrity, "api": api}

    # The shopper's pages.

    async def show_cart(self, _: Request) -> Response:
        return self.page("cart.html", cart=secrets.token_urlsafe(16), lines=LINES, amount=AMOUNT)

    async def place_order(self, request: Request) -> Response:
        key = str((await request.form()).get("cart")) if own(request) and fits(request) else ""
        if not CART.fullmatch(key):
            return self.page("missing.html", status=400)
        # A second click is the same order, and the same intent again is the same checkout.
        order = self.orders.get(key) or Order(key, "S-" + hashlib.sha256(key.encode()).hexdigest()[:12])
        self.orders[key] = self.by_number[order.number] = order
        while len(self.orders) > MOST_ORDERS:
            self.by_number.pop(self.orders.pop(next(iter(self.orders))).number, None)
        if not order.checkout:
            await self.register_webhook()
            created = await self.create_checkout(order)
            order.checkout, order.client_token = created["id"], created["clientToken"]
        return RedirectResponse(f"/shop/orders/{key}", 303)

    async def show_order(self, request: Request) -> Response:
        order, arrived = self.order_of(request), request.path_params.get("arrived", "checkout")
        if order is None or arrived not in {"checkout", "success", "failure", "redirect"}:
            return self.page("missing.html", status=404)
        checkout = await self.call("GET", f"/v1/checkouts/{order.checkout}")
        return self.page("order.html", order=order, checkout=checkout, arrived=arrived)

    async def pay_without_script(self, request: Request) -> Response:
        """The same without JavaScript: our server starts the payment, and the browser is sent on.

        Each form that is sent makes another payment at the gateway. If two are paid, the second is surplus.
        """
        order = self.order_of(request)
        if order is None or not own(request) or not fits(request):
            return self.page("missing.html", status=404)
        checkout = await self.call("GET", f"/v1/checkouts/{order.checkout}")
        wanted, session = (await request.form()).get("method"), checkout["session"]
        method = next((each for each in checkout["paymentMethods"] if each["id"] == wanted), None)
        if method is None or session is None:
            return RedirectResponse(f"/shop/orders/{order.key}", 303)
        started = await self.http.post(
            method["onInitiatePayment"]["value"],
            json={"paymentMethodId": method["id"], "sessionId": session["id"]},
            headers={"Authorization": f"Bearer {session['token']}"},
        )
        return RedirectResponse(started.raise_for_status().json()["url"], 303)

    # The API.

    async def create_checkout(self, order: Order) -> Any:
        page = f"{self.url}/shop/orders/{order.key}"
        intent = {
            "order": {
                "orderId": order.number,
                "amount": AMOUNT,
                "orderLines": [{**line, "goodsType": "item"} for line in LINES],
                "customer": {**CUSTOMER, "billingAddress": ADDRESS},
            },
            "callbacks": {
                "success": {"type": "URL", "value": f"{page}/success"},
                "failure": {"type": "URL", "value": f"{page}/failure"},
                "redirect": f"{page}/redirect",
            },
            "configuration": {
                "paymentType": "PAYMENT",
                "autoCapture": False,
                "country": "DK",
                "language": "en",
            },
        }
        return await self.call("POST", "/v1/checkouts", intent)

    async def call(self, method: str, path: str, body: object = None) -> Any:
        """Call the API; once more after a pause where it was not served."""
        for last in (False, True):
            try:
                answer = await self.http.request(method, self.api + path, json=body)
            except httpx.TransportError:
                if last:
                    raise
            else:
                if answer.status_code not in {429, 502, 503, 504} or last:
                    return answer.raise_for_status().json()
            await asyncio.sleep(0.5 + secrets.randbelow(1000) / 1000)
        raise AssertionError("the second attempt returns or raises")

    # Events.

    async def resume_webhook(self) -> None:
        """At a start: where an earlier start registered, have the secret replaced, since it is shown once.

        Events of earlier orders come at once. It is tried again while the API does not answer; after the last
        attempt the next order does it.
        """
        pause, problem = 0.25, ""
        for _ in range(START_ATTEMPTS):
            try:
                await self.register_webhook(only_known=True)
            except httpx.HTTPError as error:
                problem = type(error).__name__
            else:
                problem = ""
                break
            await asyncio.sleep(pause * (1 + secrets.randbelow(1000) / 1000) / 2)
            pause = min(2 * pause, LONGEST_PAUSE)
        self.starting = False
        if problem:
            logging.getLogger(__name__).warning("the webhook has no secret yet: %s", problem)

    async def register_webhook(self, *, only_known: bool = False) -> None:
        """Have events sent here; `only_known`: where this shop's address is registered already."""
        async with self.registering:
            if self.secret:
                return
            url = f"{self.url}/shop/webhooks"
            known = (await self.call("GET", "/v1/webhooks"))["webhooks"]
            mine = next((each for each in known if each["url"] == url), None)
            if mine is None and only_known:
                return
            asked = {"url": url, "types": ["*"]}
            path = "/v1/webhooks" if mine is None else f"/v1/webhooks/{mine['id']}/rotate-secret"
            added = await self.call("POST", path, asked if mine is None else {})
            self.secret = base64.b64decode(added["secret"].removeprefix("whsec_"))

    async def receive(self, request: Request) -> Response:
        """Take an event (Standard Webhooks): check the signature, keep it once, answer fast."""
        if not fits(request):
            return JSONResponse({"error": "too large, or of unknown size"}, 413)
        if self.starting and not self.secret:  # it cannot be checked yet, and is sent again
            return JSONResponse({"error": "the shop is starting"}, 503, {"Retry-After": "1"})
        body = await request.body()
        number, at = request.headers.get("webhook-id", ""), request.headers.get("webhook-timestamp", "")
        digest = hmac.digest(self.secret, f"{number}.{at}.".encode() + body, "sha256")
        given = request.headers.get("webhook-signature", "").encode().split()
        signed = any(hmac.compare_digest(each, b"v1," + base64.b64encode(digest)) for each in given)
        if not (self.secret and signed and at.isdigit() and abs(time.time() - int(at)) < MAX_AGE):
            return JSONResponse({"error": "the signature is not ours"}, 401)
        event = json.loads(body)
        order = self.by_number.get(str(event["data"].get("orderId")))
        if order is not None and number not in order.events:  # each may come more than once
            order.events.add(number)
            if int(event["sequence"]) > order.sequence:  # an old event may be sent again
                order.sequence, order.status = int(event["sequence"]), event["data"]["paymentStatus"]
        return Response(status_code=204)

    def order_of(self, request: Request) -> Order | None:
        order = self.orders.get(request.path_params["key"])
        return order if order is not None and order.checkout else None

    def page(self, name: str, status: int = 200, **context: Any) -> Response:
        text = self.pages.get_template(name).render(**context)
        headers = {"Content-Security-Policy": self.policy, "Cache-Control": "no-store"}
        return HTMLResponse(text, status, {**headers, "Referrer-Policy": "no-referrer"})

    def routes(self) -> list[Route]:
        order = "/shop/orders/{key}"
        return [
            Route("/shop", self.show_cart),
            Route("/shop/orders", self.place_order, methods=["POST"]),
            Route(order, self.show_order),
            Route(order + "/pay", self.pay_without_script, methods=["POST"]),
            Route("/shop/webhooks", self.receive, methods=["POST"]),
            Route(order + "/{arrived}", self.show_order),
        ]

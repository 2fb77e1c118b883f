"""Beside the pages of the example: what is said between all parties, and trouble on the way.

Messages come from the shop itself, from the sandbox (`/sandbox/messages/…`) and from the shopper's browser;
none holds a token, a card number or anything of the customer. Trouble is a plan for one order number at the
sandbox, made before its checkout.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import time
from base64 import b64encode
from collections import deque
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal
from urllib.parse import urlencode

import httpx
import msgspec
from markupsafe import Markup
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from orchestrator.devkit.sandbox.config import ledger_proof
from orchestrator.devkit.shop import diagrams
from orchestrator.devkit.shop.example import AMOUNT, LINES, Order, Shop, fits

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

_STATIC: Final = Path(__file__).with_name("static")
_TYPES: Final = {"shop.css": "text/css", "stage.js": "text/javascript", "icon.svg": "image/svg+xml"}
_FROM_BROWSER: Final = {
    "methods": (("orchestrator", "browser"), "{count} payment methods"),
    "redirect": (("browser", "gateway"), "goes to the payment page"),
}
_BEFORE_A_RESULT: Final = frozenset({"checkout.created", "checkout.ready"})
_RETURNED: Final = frozenset({"payment.released", "payment.refunded"})
_MOST: Final = 100
_LARGEST: Final = 1000
_READY_WITHIN: Final = 60.0
_PAID_WITHIN: Final = 900.0
_POLL: Final = 0.7


class _BrowserMessage(msgspec.Struct, frozen=True):
    name: Literal["methods", "redirect"]
    count: Annotated[int, msgspec.Meta(ge=0, le=1000)]


@dataclass(frozen=True, slots=True)
class Trouble:
    """What goes wrong on purpose; `plan` is the sandbox's for the order.

    `mended` is said until the payment has a result, `past` from then on.
    """

    title: str
    about: str
    mended: str = ""
    past: tuple[str, str] = ("", "")
    plan: dict[str, Any] = field(default_factory=dict)
    second_tab: bool = False


TROUBLES: Final = {
    "none": Trouble("None", "Everything works"),
    "lost": Trouble(
        "Callbacks are lost",
        "No callback of the gateway arrives",
        "The orchestrator looks the payment up at the gateway: when you press “Continue to the shop” there, or two minutes after the offer.",
        (
            "Callbacks were lost",
            "No callback of the gateway arrived. The orchestrator looks the payment up at the gateway instead.",
        ),
        {"callbacks": {"success": False, "failure": False, "notification": False}},
    ),
    "doubled": Trouble(
        "Callbacks are doubled",
        "Each callback comes three times at once",
        "Every callback is stored, one lookup answers all of them, and the order is completed once.",
        ("Callbacks were doubled", "Every callback was stored, and one lookup answered all of them."),
        {"callbacks": {"times": 3, "simultaneous": True}},
    ),
    "late": Trouble(
        "Callbacks are late",
        "The gateway holds its answer back for five seconds",
        "Your browser waits at the gateway for as long. The order stays payable, and is completed when the callback comes.",
        ("Callbacks were late", "Your browser waited for the gateway; the order stayed payable for as long."),
        {"callbacks": {"delayMs": 5000}},
    ),
    "gateway": Trouble(
        "The gateway is down",
        "The first calls of this order are answered 503",
        "The orchestrator tries again, each time after a longer pause, and goes on where it was.",
        (
            "The gateway was down",
            "The orchestrator tried again, each time after a longer pause, and went on where it was.",
        ),
        {"fail": {"session": 2, "payment-methods": 1}},
    ),
    "second": Trouble(
        "A second tab pays too",
        "As soon as you have paid, another tab pays the same order",
        "The second payment is surplus money: it is kept apart, never captured, and waits for a decision.",
        (
            "A second tab pays too",
            "The second payment is surplus money: it is kept apart, never captured, and waits for a decision.",
        ),
        second_tab=True,
    ),
}


class DemoShop(Shop):
    """The example with its messages; `control` is the token of the control API of `sandbox`."""

    def __init__(self, url: str, api: str, token: str, *, sandbox: str, control: str, **page: str) -> None:
        super().__init__(url, api, token, **page)
        self._sandbox, self._control = sandbox, {"X-Sandbox-Token": control}
        self._said: dict[str, deque[dict[str, Any]]] = {}
        self._shown: dict[str, list[dict[str, Any]]] = {}
        self._trouble: dict[str, str] = {}
        self._chosen: dict[str, str] = {}
        self._tabs: set[asyncio.Task[None]] = set()
        self._outside = httpx.AsyncClient(timeout=20, trust_env=False)
        self.pages.globals |= {
            "stage": self._drawn,
            "troubles": lambda: self._rendered("troubles.html", troubles=TROUBLES),
            "stage_script": {"url": "/shop/static/stage.js", "integrity": integrity_of("stage.js")},
        }

    async def close(self) -> None:
        """Give up the second tabs, and close the connections."""
        for task in self._tabs:
            task.cancel()
        await asyncio.gather(*self._tabs, return_exceptions=True)
        await asyncio.gather(self.http.aclose(), self._outside.aclose())

    async def place_order(self, request: Request) -> Response:
        if not fits(request):
            return self.page("missing.html", status=413)
        form = await request.form()
        key = str(form.get("cart"))
        self._chosen[key] = str(form.get("trouble"))
        try:
            return await super().place_order(request)
        finally:
            self._chosen.pop(key, None)

    async def create_checkout(self, order: Order) -> Any:
        while len(self._said) > len(self.orders):
            gone = next(iter(self._said))
            for kept in (self._said, self._shown, self._trouble):
                kept.pop(gone, None)
        name = self._chosen.get(order.key, "none")
        trouble = TROUBLES.get(name, TROUBLES["none"])
        self._note(order.number, ("browser", "shop"), "order", "the cart")
        if trouble.plan:
            answer = await self._outside.put(
                f"{self._sandbox}/sandbox/orders/{order.number}", json=trouble.plan, headers=self._control
            )
            answer.raise_for_status()
        self._trouble[order.number] = name if name in TROUBLES else "none"
        asked = f"{order.number}, {AMOUNT['value']:.2f} {AMOUNT['currency']}, {len(LINES)} order lines"
        self._note(order.number, ("shop", "orchestrator"), "intent", asked)
        created = await super().create_checkout(order)
        self._note(
            order.number, ("orchestrator", "shop"), "intent:answer", "id and clientToken of the checkout"
        )
        if trouble.second_tab and not order.checkout:
            task = asyncio.create_task(self._second_tab(str(created["id"]), order.number))
            self._tabs.add(task)
            task.add_done_callback(self._tabs.discard)
        return created

    async def receive(self, request: Request) -> Response:
        answer = await super().receive(request)
        if answer.status_code == httpx.codes.NO_CONTENT:
            event = json.loads(await request.body())
            number = str(event["data"].get("orderId"))
            if number in self.by_number:
                said = f"{event['type']}, paymentStatus {event['data'].get('paymentStatus')}"
                self._note(number, ("orchestrator", "shop"), _name_of(event), said)
        return answer

    async def show_messages(self, request: Request) -> Response:
        """Return what was said about an order, by time; in a POST, take what only its browser sees."""
        order = self.order_of(request)
        if order is None:
            return JSONResponse({"error": "no such order"}, 404)
        if request.method == "POST":
            return await self._hear(request, order)
        return JSONResponse(
            {"messages": await self._messages(order), "status": self._status(order)},
            headers={"Cache-Control": "no-store"},
        )

    async def watch(self, request: Request) -> Response:
        """Show the messages alone, for a window beside the shopper's."""
        if (order := self.order_of(request)) is None:
            return self.page("missing.html", status=404)
        await self._messages(order)
        return self.page("watch.html", order=order, said=self._status(order))

    async def show_order(self, request: Request) -> Response:
        if (order := self.order_of(request)) is not None:
            await self._messages(order)
        return await super().show_order(request)

    def routes(self) -> list[Route]:
        order = "/shop/orders/{key}"
        return [
            Route(f"{order}/messages", self.show_messages, methods=["GET", "POST"]),
            Route(f"{order}/watch", self.watch),
            Route("/shop/static/{name}", static),
            *super().routes(),
        ]

    # Messages.

    async def _hear(self, request: Request, order: Order) -> Response:
        size = request.headers.get("content-length", "")
        if not (size.isascii() and size.isdigit() and int(size) <= _LARGEST):
            return JSONResponse({"error": "no message of a browser"}, 413)
        try:
            said = msgspec.json.decode(await request.body(), type=_BrowserMessage)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return JSONResponse({"error": "no message of a browser"}, 422)
        way, detail = _FROM_BROWSER[said.name]
        self._note(order.number, way, said.name, detail.format(count=said.count))
        return Response(status_code=204)

    def _note(self, number: str, way: tuple[str, str], name: str, detail: str) -> None:
        said = self._said.setdefault(number, deque(maxlen=_MOST))
        said.append({"at": time.time(), "from": way[0], "to": way[1], "name": name, "detail": detail})

    async def _messages(self, order: Order) -> list[dict[str, Any]]:
        """Return all messages about an order; those of the sandbox are kept for the page."""
        heard: list[dict[str, Any]] = []
        with contextlib.suppress(httpx.HTTPError, ValueError, KeyError):
            answer = await self._outside.get(
                f"{self._sandbox}/sandbox/messages/{order.number}", headers=self._control
            )
            heard = answer.raise_for_status().json()["messages"]
        both = sorted([*self._said.get(order.number, ()), *heard], key=lambda each: float(each["at"]))
        steps = diagrams.steps_in_order((each["name"], each["detail"]) for each in both)
        shown = self._shown[order.number] = [_shown(*each) for each in zip(both, steps, strict=True)]
        return shown

    def _drawn(self, order: Order | None, *, over: bool = False, alone: bool = False) -> Markup:
        """Draw what happened so far; `over`: the shopper comes from the payment, or it has a result."""
        messages = self._shown.get(order.number, []) if order is not None else []
        seen = {step for each in messages for step in each["steps"] if not each["lost"]}
        lost = {step for each in messages for step in each["steps"] if each["lost"]}
        name = self._trouble.get(order.number, "none") if order is not None else "none"
        trouble = TROUBLES[name]
        over = over or (order is not None and order.status != "unpaid")
        return self._rendered(
            "stage.html",
            order=order,
            leaves=not (over or alone),
            messages=messages,
            trouble=trouble,
            note=None if name == "none" else trouble.past if over else (trouble.title, trouble.mended),
            before=diagrams.draw(diagrams.BEFORE, seen, lost),
            during=diagrams.draw(diagrams.DURING, seen, lost),
            second=diagrams.draw(diagrams.SECOND, seen, lost) if trouble.second_tab else "",
            ledger="" if order is None else self._ledger_url(order.number),
        )

    def _status(self, order: Order) -> str:
        """Return the payment status in words, and what became of a surplus payment, by the events of both."""
        names = {message["name"] for message in self._said.get(order.number, ())}
        surplus = next((each for each in ("surplus-returned", "surplus") if each in names), None)
        said = "" if surplus is None else "; " + diagrams.LABELS[surplus].removeprefix("event: ")
        return order.status.replace("_", " ") + said

    def _ledger_url(self, number: str) -> str:
        """Return where a browser reads this order's money at the gateway, and of no other order."""
        proof = {"proof": ledger_proof(self._control["X-Sandbox-Token"], number)}
        return f"{self._sandbox}/sandbox/ledger?{urlencode({'orderId': number, **proof})}"

    def _rendered(self, name: str, **context: Any) -> Markup:
        return Markup(self.pages.get_template(name).render(**context))  # noqa: S704 - the templates escape

    # The second tab.

    async def _second_tab(self, checkout: str, number: str) -> None:
        """Open a second payment while the shopper chooses, and pay it once the first is completed."""
        browser = ("browser", "gateway")
        try:
            found = await self._until(checkout, lambda shown: bool(shown["session"]), _READY_WITHIN)
            method = next(each for each in found["paymentMethods"] if each["type"] == "CARD")
            started = await self._outside.post(
                method["onInitiatePayment"]["value"],
                json={"paymentMethodId": method["id"], "sessionId": found["session"]["id"]},
                headers={"Authorization": f"Bearer {found['session']['token']}", "Origin": self.url},
            )
            url = started.raise_for_status().json()["url"]
            await self._until(checkout, lambda shown: shown["state"] == "completed", _PAID_WITHIN)
            self._note(number, browser, "second-tab", "the second tab pays")
            card = {"action": "pay", "card_number": "4111000011110000", "expiry": "12/39", "cvc": "123"}
            paid = await self._outside.post(url, data=card)
            if paid.is_error:  # an answer that leads to the shop's page is none
                paid.raise_for_status()
        except (httpx.HTTPError, TimeoutError, LookupError, StopIteration) as error:
            self._note(
                number, browser, "second-tab:fault", f"the second tab has not paid: {type(error).__name__}"
            )

    async def _until(
        self, checkout: str, wanted: Callable[[dict[str, Any]], bool], seconds: float
    ) -> dict[str, Any]:
        """Return the checkout once it is as wanted; `TimeoutError` after so many seconds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found: dict[str, Any] = await self.call("GET", f"/v1/checkouts/{checkout}")
            if wanted(found):
                return found
            await asyncio.sleep(_POLL)
        raise TimeoutError


@cache
def content_of(name: str) -> bytes:
    return (_STATIC / name).read_bytes()


@cache
def integrity_of(name: str) -> str:
    """Return what the attribute `integrity` takes for one of our scripts."""
    return "sha384-" + b64encode(hashlib.sha384(content_of(name)).digest()).decode()


async def static(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in _TYPES:
        return Response(status_code=404)
    headers = {"Cache-Control": "max-age=60", "X-Content-Type-Options": "nosniff"}
    return Response(content_of(name), media_type=_TYPES[name], headers=headers)


def _name_of(event: dict[str, Any]) -> str:
    """Return the name of the message that an event is."""
    if event["type"] == "payment.surplus":
        return "surplus"
    if event["type"] in _RETURNED and event["data"].get("role") == "surplus":
        return "surplus-returned"
    return "notice" if event["type"] in _BEFORE_A_RESULT else "event"


def _shown(message: dict[str, Any], found: tuple[tuple[str, ...], bool]) -> dict[str, Any]:
    steps, lost = found
    return {
        "time": time.strftime("%H:%M:%S", time.localtime(message["at"])),
        "from": diagrams.PARTIES.get(message["from"], message["from"]),
        "to": diagrams.PARTIES.get(message["to"], message["to"]),
        "label": diagrams.label_of(message["name"]),
        "detail": message["detail"],
        "steps": steps,
        "lost": lost,
    }

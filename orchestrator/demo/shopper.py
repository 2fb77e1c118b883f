"""One shopper and the shop that serves them, over plain HTTP only: what a browser and a shop's server would send.

Every wait is bounded, and whatever does not go by the script ends in `Unscripted`, which says what was expected and what was seen.
The shop's own pages are never fetched: the shopper stops where the redirect leads.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urljoin, urlsplit

from orchestrator import money
from orchestrator.demo.orders import SORRY, THANKS
from orchestrator.errors import OrchestratorError
from orchestrator.states import ENDED, State

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import httpx

    from orchestrator.demo.orders import Order

APPROVED: Final = "4111 1111 1111 1111"
DECLINED: Final = "4180 0000 0000 0566"
CHALLENGED: Final = "4170 0000 0000 0568"
"""Documented test numbers."""

AGENT: Final = "Mozilla/5.0 (X11; Linux x86_64) Demo-Shopper"
_PAUSE: Final = 0.15
_LONGEST_PAUSE: Final = 1.2
"""Seconds between two looks at a checkout: soon at first, and ever more patiently."""
_LATECOMERS: Final = 5.0
_PAGES: Final = {"thanks": THANKS, "sorry": SORRY}


class Unscripted(OrchestratorError):  # noqa: N818 - named for the fact
    """An order did not go by its script."""

    def __init__(self, *, expected: str, seen: str) -> None:
        super().__init__(f"expected {expected}, saw {seen}")
        self.expected, self.seen = expected, seen


@dataclass(frozen=True, slots=True)
class Told:
    """What ledger, books and trail tell about one order when it has ended."""

    checkout: dict[str, Any]
    ledger: list[dict[str, Any]]
    trail: list[dict[str, Any]]

    @property
    def held_at_gateway(self) -> tuple[int, int, int]:
        """What the sandbox holds of the shopper's money, in minor units: reserved, captured, refunded."""
        paid = [row for row in self.ledger if row["outcome"] == "succeeded"]
        sums = [
            sum(row[name] for row in paid) for name in ("reservedMinor", "capturedMinor", "refundedMinor")
        ]
        return sums[0], sums[1], sums[2]

    @property
    def held_by_us(self) -> tuple[int, int, int]:
        """What our books say, in minor units."""
        currency = self.checkout["amount"]["currency"]
        amounts = self.checkout["money"]
        sums = [money.to_minor(str(amounts[name]), currency) for name in ("reserved", "captured", "refunded")]
        return sums[0], sums[1], sums[2]

    @property
    def attempts_without_money(self) -> int:
        return sum(row["transactionId"] is not None and row["outcome"] != "succeeded" for row in self.ledger)

    def delivered(self, kind: str, *, but: str = "") -> int:
        """Count the callbacks of a kind that we answered."""
        sent = [callback for row in self.ledger for callback in row["callbacks"]]
        return sum(
            each["kind"] == kind and each["status"] != but and each["answerStatus"] is not None
            for each in sent
        )

    def actions(self, action: str) -> int:
        """Count the entries of a kind in the trail."""
        return Counter(entry["action"] for entry in self.trail)[action]


@dataclass(slots=True)
class Shop:
    """The merchant's side: the API with a token, the sandbox with its script API."""

    http: httpx.AsyncClient
    api: str
    sandbox: str
    token: str = field(repr=False)

    async def create(self, order: Order) -> str:
        """Publish the intent; return the checkout's id."""
        accepted = await self._api("POST", "/v1/checkouts", body=order.intent(), wanted=(202,))
        return str(accepted["id"])

    async def read(self, checkout: str) -> dict[str, Any]:
        return await self._api("GET", f"/v1/checkouts/{checkout}")

    async def trail(self, checkout: str) -> list[dict[str, Any]]:
        """Return the audit entries of a checkout, the oldest first."""
        entries: list[dict[str, Any]] = []
        after: int | None = 0
        while after is not None:
            page = await self._api("GET", f"/v1/checkouts/{checkout}/audit?after={after}")
            entries += page["entries"]
            after = page["nextAfter"]
        return entries

    async def cancel(self, checkout: str) -> None:
        await self._api(
            "POST",
            f"/v1/checkouts/{checkout}/cancel",
            body={"reason": "the shopper took too long"},
            wanted=(202,),
        )

    async def plan(self, order: Order) -> None:
        """Tell the sandbox what this order is to meet."""
        if order.script.plan:
            answer = await self.http.put(f"{self.sandbox}/sandbox/orders/{order.id}", json=order.script.plan)
            _need(answer, (200,), "the sandbox to take the order's plan")

    async def ledger(self, order: Order) -> list[dict[str, Any]]:
        """Return what the sandbox knows of the order's payments."""
        answer = await self.http.get(f"{self.sandbox}/sandbox/ledger", params={"orderId": order.id})
        _need(answer, (200,), "the sandbox's ledger")
        return [row for entry in answer.json()["orders"] for row in entry["payments"]]

    async def _api(
        self, method: str, path: str, *, body: object = None, wanted: tuple[int, ...] = (200,)
    ) -> dict[str, Any]:
        answer = await self.http.request(
            method, f"{self.api}{path}", json=body, headers={"authorization": f"Bearer {self.token}"}
        )
        _need(answer, wanted, f"{method} {path.partition('?')[0]}")
        found: dict[str, Any] = answer.json()
        return found


class Shopper:
    """One shopper with one order; `play` lives the script and returns what came of it."""

    def __init__(self, shop: Shop, order: Order, *, patience: float) -> None:
        self.shop, self.order = shop, order
        self._patience = patience
        self._page: str | None = None
        self.checkout: str | None = None
        self.began: float | None = None
        self.ended: float | None = None

    async def play(self) -> Told:
        """Live through the script; `Unscripted` if it goes another way or takes longer than the patience."""
        script = self.order.script
        self.began = time.monotonic()
        await self.shop.plan(self.order)
        self.checkout = await self.shop.create(self.order)
        await self._until("the checkout to be offered", lambda found: bool(found["session"]))
        await script.act(self)
        found = await self._until(f"state {script.ends}", lambda found: found["state"] in ENDED)
        self.ended = time.monotonic()
        if found["state"] != script.ends:
            raise Unscripted(expected=f"state {script.ends}", seen=f"state {found['state']}")
        return await self._settled(self.checkout)

    async def _settled(self, checkout: str) -> Told:
        """Return what is told at the end; callbacks that were sent beside the one that counted get a moment to arrive."""
        deadline = time.monotonic() + _LATECOMERS
        while True:
            ledger = await self.shop.ledger(self.order)
            told = Told(await self.shop.read(checkout), ledger, await self.shop.trail(checkout))
            try:
                self._weigh(told)
            except Unscripted:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(_PAUSE)
            else:
                return told

    # What a script can have a shopper do.

    async def pay(self) -> None:
        """Pay with the method of choice; where the bank wants to know who pays, say so."""
        page = await self.open_page()
        card = CHALLENGED if self.order.challenged else APPROVED
        answer = await self._submit(page, self._form(card))
        if (where := answer.headers.get("location", "")).endswith("/3ds"):
            challenge = urljoin(page, where)
            await self._fetch(challenge, "the bank's 3-D Secure page")
            answer = await self._submit(challenge, {"result": "pass"})
        self._page = answer.headers.get("location")

    async def be_declined(self) -> None:
        """Try to pay with a card that the acquirer declines."""
        answer = await self._submit(await self.open_page(), self._form(DECLINED))
        self._page = answer.headers.get("location")

    async def open_page(self) -> str:
        """Choose the method, start a payment, open the gateway's page; return its address."""
        found = await self._until("a session to pay with", lambda found: bool(found["session"]))
        method = next((each for each in found["paymentMethods"] if each["type"] == self.order.method), None)
        if method is None:
            offered = ", ".join(each["type"] for each in found["paymentMethods"]) or "none"
            raise Unscripted(expected=f"{self.order.method} among the methods", seen=offered)
        session = found["session"]
        answer = await self.shop.http.post(
            method["onInitiatePayment"]["value"],
            json={"sessionId": session["id"], "paymentMethodId": method["id"]},
            headers={"authorization": f"Bearer {session['token']}", "user-agent": AGENT},
        )
        _need(answer, (200,), "the gateway to start a payment")
        page = str(answer.json()["url"])
        await self._fetch(page, "the gateway's payment page")
        return page

    async def merchant_cancels(self) -> None:
        """Have the shop cancel the checkout."""
        assert self.checkout is not None  # noqa: S101 - `play` has created it
        await self.shop.cancel(self.checkout)

    def expect_page(self, name: str | None) -> None:
        """See where the gateway sent the shopper: to a page of the shop's with the order's number, or nowhere."""
        seen = self._page or "no redirect"
        if name is None:
            if self._page is not None:
                raise Unscripted(expected="the gateway's own page at the end", seen=seen)
            return
        if not seen.startswith(f"{_PAGES[name]}?") or f"orderId={self.order.id}" not in seen:
            raise Unscripted(expected=f"a redirect to {_PAGES[name]} with the order number", seen=seen)

    def _form(self, card: str) -> dict[str, str]:
        if self.order.method != "CARD":
            return {"action": "accept"}
        return {"action": "pay", "card_number": card, "expiry": "12/39", "cvc": "123"}

    async def _submit(self, page: str, form: Mapping[str, str]) -> httpx.Response:
        answer = await self.shop.http.post(page, data=dict(form), headers={"user-agent": AGENT})
        _need(answer, (200, 303), f"the gateway to take the form of {urlsplit(page).path}")
        return answer

    async def _fetch(self, page: str, what: str) -> None:
        _need(await self.shop.http.get(page, headers={"user-agent": AGENT}), (200,), what)

    async def _until(self, what: str, there: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Read the checkout until something is there, or it has ended without it, or patience is out."""
        assert self.checkout is not None  # noqa: S101 - `play` has created it
        deadline = time.monotonic() + self._patience
        pause = _PAUSE
        while True:
            found = await self.shop.read(self.checkout)
            if there(found):
                return found
            overdue = time.monotonic() > deadline
            if overdue or State(found["state"]) in ENDED:
                waited = f" after {self._patience:g} s" if overdue else ""
                error = f", last error: {found['lastError']}" if found["lastError"] else ""
                raise Unscripted(expected=what, seen=f"state {found['state']}{waited}{error}")
            await asyncio.sleep(pause)
            pause = min(pause * 1.3, _LONGEST_PAUSE)

    def _weigh(self, told: Told) -> None:
        """Compare the sandbox's ledger with our books, and both with the script."""
        ours, gateways = told.held_by_us, told.held_at_gateway
        if ours != gateways:
            raise Unscripted(
                expected=f"the ledger's (reserved, captured, refunded) {gateways} in our books",
                seen=str(ours),
            )
        due = self.order.amount if self.order.script.paid else 0
        if ours[0] != due:
            raise Unscripted(
                expected=f"{money.to_decimal(due, self.order.currency)} {self.order.currency} reserved",
                seen=str(money.to_decimal(ours[0], self.order.currency)),
            )
        completions = sum(entry["to"] == "completed" and entry["from"] != "completed" for entry in told.trail)
        if completions != int(self.order.script.paid):
            raise Unscripted(
                expected=f"{int(self.order.script.paid)} moves to completed", seen=str(completions)
            )
        missing = self.order.script.evidence(told)
        if missing is not None:
            raise Unscripted(expected=missing, seen="no such thing")


def _need(answer: httpx.Response, wanted: tuple[int, ...], what: str) -> None:
    if answer.status_code not in wanted:
        text = answer.text[:200].replace("\n", " ")
        raise Unscripted(
            expected=f"{what} to answer {' or '.join(map(str, wanted))}", seen=f"{answer.status_code}: {text}"
        )

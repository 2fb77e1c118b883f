"""A shopper with an order, over plain HTTP only: what a browser would send, and the shop's requests
meanwhile.

Every wait is bounded, and any departure from the script ends in `Unscripted`, with what was expected and what
was seen. The shop's own pages are never fetched: the shopper stops where the redirect leads.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urljoin, urlsplit

from orchestrator.devkit.client import Conflict, Invalid
from orchestrator.devkit.demo.evidence import Observations, callbacks_of
from orchestrator.devkit.demo.orders import SORRY, THANKS
from orchestrator.devkit.demo.shop import Unscripted, need
from orchestrator.domain import money
from orchestrator.domain.command_result import REFUSED
from orchestrator.domain.records import CommandKind
from orchestrator.domain.states import ENDED, State

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from uuid import UUID

    import httpx

    from orchestrator.api.contract import answers
    from orchestrator.devkit.demo.orders import Order
    from orchestrator.devkit.demo.shop import Shop
    from orchestrator.domain.attention import AttentionCode

APPROVED: Final = "4111 0000 1111 0000"
DECLINED: Final = "4180 0000 0000 0566"
CHALLENGED: Final = "4170 0000 0000 0568"
"""Documented test numbers."""

AGENT: Final = "Mozilla/5.0 (X11; Linux x86_64) Demo-Shopper"
_PAUSE: Final = 0.15
_LONGEST_PAUSE: Final = 1.2
"""Seconds between two lookups of a checkout: short at first, then growing."""
_LATECOMERS: Final = 5.0
_PAGES: Final = {"thanks": THANKS, "sorry": SORRY}


class Shopper:
    """A shopper with an order; `run` plays the script and returns the result."""

    def __init__(self, shop: Shop, order: Order, *, timeout: float) -> None:
        self.shop, self.client, self.order = shop, shop.client, order
        self._timeout = timeout
        self._page: str | None = None
        self.checkout: UUID | None = None
        self.began: float | None = None
        self.ended: float | None = None

    async def run(self) -> Observations:
        """Run the script; `Unscripted` if it goes another way or takes longer than the timeout."""
        script = self.order.script
        self.began = time.monotonic()
        if script.plan:
            await self.shop.control("PUT", f"orders/{self.order.id}", script.plan)
        if script.handed_over:
            self.checkout = (await self.client.create(self.order.intent())).checkout.id
            await self.until(
                "the checkout to be offered", lambda found: found.session is not None, alive=True
            )
        await script.act(self)
        found = await self.until(f"state {script.ends}", lambda found: found.state in ENDED)
        self.ended = time.monotonic()
        if found.state != script.ends:
            raise Unscripted(expected=f"state {script.ends}", seen=f"state {found.state}")
        return await self._settled(self.known)

    async def _settled(self, checkout: UUID) -> Observations:
        """Return the evidence at the end; callbacks beside the one that counted get a moment to come."""
        deadline = time.monotonic() + _LATECOMERS
        while True:
            ledger = await self.shop.ledger(self.order)
            explained = await self.client.explain(checkout) if self.order.script.holds else None
            found, trail = await self.client.checkout(checkout), await self.client.trail(checkout)
            observed = Observations(found, ledger, trail, explained)
            try:
                self._compare(observed)
            except Unscripted:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(_PAUSE)
            else:
                return observed

    # What a script can have a shopper do.

    async def pay(self) -> None:
        """Pay with the method of choice; authenticate where the bank requires it."""
        await self.pay_on(await self.open_page())

    async def pay_on(self, page: str) -> None:
        """Pay on a page of the gateway that was opened before."""
        card = CHALLENGED if self.order.challenged else APPROVED
        answer = await self._submit(page, self._form(card))
        if (where := answer.headers.get("location", "")).endswith("/3ds"):
            challenge = urljoin(page, where)
            await self._fetch(challenge, "the bank's 3-D Secure page")
            answer = await self._submit(challenge, {"result": "pass"})
        self._page = answer.headers.get("location")

    async def leave_open(self) -> None:
        """Agree to pay, and leave the bank to say so some time."""
        await self._submit(await self.open_page(), {"action": "open"})

    async def be_declined(self) -> None:
        """Try to pay with a card that the acquirer declines."""
        answer = await self._submit(await self.open_page(), self._form(DECLINED))
        self._page = answer.headers.get("location")

    async def open_page(self) -> str:
        """Choose the method, start a payment, open the gateway's page; return its address."""
        found = await self.until("a session to pay with", lambda found: found.session is not None, alive=True)
        session, methods = found.session, found.payment_methods
        assert session is not None  # noqa: S101 - waited for above
        method = next((each for each in methods if each["type"] == self.order.method), None)
        if method is None:
            offered = ", ".join(each["type"] for each in methods) or "none"
            raise Unscripted(expected=f"{self.order.method} among the methods", seen=offered)
        answer = await self.shop.http.post(
            method["onInitiatePayment"]["value"],
            json={"sessionId": session.id, "paymentMethodId": method["id"]},
            headers={"authorization": f"Bearer {session.token}", "user-agent": AGENT},
        )
        need(answer, (200,), "the gateway to start a payment")
        page = str(answer.json()["url"])
        await self._fetch(page, "the gateway's payment page")
        return page

    async def merchant_cancels(self) -> None:
        await self.client.command(self.known, CommandKind.CANCEL, {"reason": "the shopper took too long"})

    def expect_page(self, name: str | None) -> None:
        """See where the gateway sent the shopper: to the shop's page for the order, or nowhere."""
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
        need(answer, (200, 303), f"the gateway to take the form of {urlsplit(page).path}")
        return answer

    async def _fetch(self, page: str, what: str) -> None:
        need(await self.shop.http.get(page, headers={"user-agent": AGENT}), (200,), what)

    # What a script can have the shop do, and its operator.

    @property
    def known(self) -> UUID:
        """The id of the checkout, which the script has by now."""
        if self.checkout is None:
            raise Unscripted(expected="a checkout of the order", seen="none")
        return self.checkout

    def price(self, minor: int) -> dict[str, object]:
        return {"value": float(money.to_decimal(minor, self.order.currency)), "currency": self.order.currency}

    async def ask(self, kind: CommandKind, *, fails: bool = False, **body: object) -> None:
        """Ask for something and wait until it is done, with all that it began.

        `fails`: the gateway is to refuse it.
        """
        accepted = await self.client.command(self.known, kind, body)
        await self.executed(accepted.command.id, fails=fails)

    async def executed(self, command: UUID, *, fails: bool = False) -> None:
        found = await self.until(
            "the command to be carried out", lambda found: _fate(found, command) is not None
        )
        fate = _fate(found, command)
        if fate != ("rejected" if fails else "done"):
            raise Unscripted(
                expected="the gateway to refuse it" if fails else "it to be done", seen=str(fate)
            )

    async def refused(self, kind: CommandKind, *, why: str, key: str | None = None, **body: object) -> None:
        """Ask for something that must be refused, for this reason (the last word of the problem's type)."""
        try:
            await self.client.command(self.known, kind, body, key=key)
        except (Conflict, Invalid) as refusal:
            if refusal.kind == why:
                return
            seen = refusal.detail
        else:
            seen = "that it was taken"
        raise Unscripted(expected=f"the {kind} to be refused as {why}", seen=seen)

    async def paid_row(self) -> dict[str, Any]:
        """Return the payment in the gateway's ledger that holds money."""
        rows = [row for row in await self.shop.ledger(self.order) if row["outcome"] == "succeeded"]
        if len(rows) != 1:
            raise Unscripted(expected="one payment with money in the ledger", seen=str(len(rows)))
        return rows[0]

    async def at_gateway(self, what: str, **body: object) -> None:
        """Change the payment that holds money at the gateway, without a request of the orchestrator."""
        await self.shop.control("POST", f"payments/{(await self.paid_row())['paymentId']}/{what}", body)

    async def paid(self) -> None:
        await self.until("state completed", lambda found: found.state == State.COMPLETED)

    async def attention(self, code: AttentionCode) -> answers.Checkout:
        """Wait until it needs a decision for this reason; return the checkout."""
        return await self.until(
            f"attention {code}", lambda found: found.attention is not None and found.attention.code is code
        )

    async def without_attention(self) -> None:
        await self.until("no attention", lambda found: found.attention is None)

    async def decide(self, code: AttentionCode, decision: str, *, reason: str) -> None:
        """Have a person decide once a decision is asked for, for this reason."""
        await self.attention(code)
        await self.ask(CommandKind.RESOLVE, decision=decision, reason=reason)
        await self.without_attention()

    async def callback(self, grade: str, *, status: str = "succeeded") -> None:
        """Wait until a callback of this grade that says this is read."""
        deadline = time.monotonic() + self._timeout
        while time.monotonic() < deadline:
            read = callbacks_of(await self.client.trail(self.known))
            if any((callback["grade"], callback["status"]) == (grade, status) for callback in read):
                return
            await asyncio.sleep(_LONGEST_PAUSE)
        raise Unscripted(expected=f"a callback {status} with grade {grade} in the trail", seen="none")

    async def until(
        self, what: str, there: Callable[[answers.Checkout], bool], *, alive: bool = False
    ) -> answers.Checkout:
        """Wait until a condition holds; fail at the timeout, and with `alive` if it ends without it."""
        deadline = time.monotonic() + self._timeout
        pause = _PAUSE
        while True:
            found = await self.client.checkout(self.known)
            if there(found):
                return found
            overdue = time.monotonic() > deadline
            if overdue or (alive and found.state in ENDED):
                waited = f" after {self._timeout:g} s" if overdue else ""
                error = f", last error: {found.last_error}" if found.last_error else ""
                attention = f", attention: {found.attention.message}" if found.attention else ""
                raise Unscripted(expected=what, seen=f"state {found.state}{waited}{error}{attention}")
            await asyncio.sleep(pause)
            pause = min(pause * 1.3, _LONGEST_PAUSE)

    def _compare(self, observed: Observations) -> None:
        """Compare the sandbox's ledger with our books, and both with the script."""
        script, order = self.order.script, self.order
        observed.check_money()
        observed.check_movements(script.moves)
        ours = observed.held_by_us
        # Without a word on it, what is captured is up to the seed.
        due = (
            tuple(share * order.amount for share in script.holds)
            if script.holds
            else (order.amount if script.paid else 0, *ours[1:])
        )
        if ours != due:
            wanted, seen = (
                [str(money.to_decimal(amount, order.currency)) for amount in sums] for sums in (due, ours)
            )
            raise Unscripted(
                expected=f"(reserved, captured, refunded) to be {', '.join(wanted)} {order.currency}",
                seen=", ".join(seen),
            )
        completions = observed.moves(State.COMPLETED)
        if completions != int(script.paid):
            raise Unscripted(expected=f"{int(script.paid)} moves to completed", seen=str(completions))
        missing = script.evidence(observed)
        if missing is not None:
            raise Unscripted(expected=missing, seen="no such thing")
        if script.holds:
            observed.check_explanation()


def _fate(found: answers.Checkout, command: UUID) -> str | None:
    """Return what became of a command: done, rejected (by the gateway), or why refused; None: open."""
    answer = next((found_command for found_command in found.commands if found_command.id == command), None)
    if answer is None or answer.result_code is None:
        return None
    if answer.result_code in REFUSED:
        return f"refused: {answer.result}"
    states = {operation.state for operation in found.operations if operation.command_id == command}
    if states - {"succeeded", "rejected"}:
        return None
    return "rejected" if "rejected" in states else "done"

"""Cases that are made on purpose, to see how they look and what is to be done: one order each, in a running
installation with a sandbox.

A shopper of the demo pays at the sandbox as a browser would, and its faults are ordered by its own routes;
the orchestrator does not know what is coming. A gateway that is no sandbox is refused before anything is
made.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import httpx

from orchestrator import auth
from orchestrator.crypto import Encryptor
from orchestrator.devkit.client import Client
from orchestrator.devkit.demo import steps
from orchestrator.devkit.demo.evidence import every
from orchestrator.devkit.demo.orders import Order
from orchestrator.devkit.demo.scripts import LOST, Script
from orchestrator.devkit.demo.shop import Shop, Unscripted
from orchestrator.devkit.demo.shopper import Shopper
from orchestrator.devkit.errors import NoSandbox
from orchestrator.domain.states import ENDED
from orchestrator.store.merchant_fields import UnknownMerchant
from orchestrator.store.merchants import Merchants

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from uuid import UUID

    from orchestrator.settings import Settings
    from orchestrator.store.database import Database

AMOUNT: Final = 13_900
"""Minor units of DKK."""
OTHER_AMOUNT: Final = 12_900
"""What is paid in the case `mismatch`."""
SHORT: Final = 5
"""Seconds that the shopper gets who pays late."""
TIMEOUT: Final = 30.0
"""Seconds for each step, beside the grace of the settings."""
DECIDED_WITHIN: Final = 5.0
_PAUSE: Final = 0.25
_SCOPES: Final = ("checkouts:write", "checkouts:read", "money:write")
_TOKEN_LIFETIME: Final = 600.0
_HTTP_TIMEOUT: Final = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One case: what it is about, what happens by itself after it was made, and what a person looks at.

    `plan` is the sandbox's for the order. Without `act` no order is made.
    """

    name: str
    about: str
    then: str
    act: Callable[[Shopper], Awaitable[object]] | None
    look: tuple[str, ...] = ()
    plan: dict[str, Any] = field(default_factory=dict)
    expires_in: int | None = None
    down: bool | None = None
    """Whether the sandbox answers every call of the gateway's API with 503 from now on (False: no longer)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Triggered:
    """A case that was made. `stands` are sentences of `explain`, `you_may` what a person may do."""

    case: Case
    order: str | None = None
    checkout: UUID | None = None
    stands: str = ""
    you_may: tuple[str, ...] = ()


async def _charge_back(shopper: Shopper) -> None:
    await steps.capture(shopper)
    await shopper.at_gateway("chargeback")
    await shopper.until("the chargeback", lambda found: bool(found.money.charged_back))


async def _pay_other_amount(shopper: Shopper) -> None:
    await shopper.pay()
    await shopper.until("a decision to be asked for", lambda found: found.attention is not None)


async def _fail(shopper: Shopper) -> None:
    await shopper.until("the first failed call", lambda found: found.last_error is not None, alive=True)


_EXPLAIN: Final = "orchestrator checkouts explain {order}"
_SHOW: Final = "orchestrator checkouts show {order}"
_DECISIONS: Final = "orchestrator checkouts list --attention"

CASES: Final = {
    case.name: case
    for case in (
        Case(
            name="late_payment",
            about="The order expires while the payment page is open, and is paid there afterwards.",
            then="The money is not ignored: the order is completed, marked late, and the merchant's policy `late` decides.",
            act=steps.pay_late,
            look=(_EXPLAIN, _DECISIONS, "orchestrator checkouts resolve {order} keep"),
            expires_in=SHORT,
        ),
        Case(
            name="chargeback",
            about="A captured payment is taken back by the shopper's bank.",
            then="The books show what was taken back, and a person is asked to dismiss it when it is dealt with.",
            act=_charge_back,
            look=(_SHOW, _EXPLAIN, "orchestrator checkouts resolve {order} dismiss"),
        ),
        Case(
            name="surplus",
            about="The shopper pays the same order in two tabs.",
            then="One payment pays the order; the other is surplus, and the merchant's policy `surplus` decides.",
            act=steps.pay_in_two_tabs,
            look=(_EXPLAIN, "orchestrator payments list --role surplus", "orchestrator checkouts resolve {order} return"),
        ),
        Case(
            name="mismatch",
            about="The gateway shows a payment of another amount than the order's.",
            then="It is never taken for the order: a person decides whether it pays the order or goes back.",
            act=_pay_other_amount,
            look=(_EXPLAIN, _DECISIONS, "orchestrator checkouts resolve {order} return"),
            plan={"amountMinor": OTHER_AMOUNT},
        ),
        Case(
            name="lost_callback",
            about="The order is paid, and every callback of the gateway is lost.",
            then="The gateway is asked at the next due time (FIRST_CHECK_AFTER, or sooner when the shopper comes back), and the order "
            "is completed.",
            act=Shopper.pay,
            look=("orchestrator checkouts watch {order}", _EXPLAIN),
            plan=LOST,
        ),
        Case(
            name="gateway_down",
            about="Every call to the gateway's API is answered 503 from now on; an order was handed over.",
            then="Calls are repeated after longer pauses, then the circuit of the gateway opens. Orders wait, and go on by themselves "
            "after `orchestrator trigger gateway_up`.",
            act=_fail,
            look=("orchestrator status", _EXPLAIN, "orchestrator trigger gateway_up"),
            down=True,
        ),
        Case(
            name="gateway_up",
            about="The gateway answers again.",
            then="The circuit closes with the first call that is answered. Each order that waits goes on at its next try, within about a "
            "minute or two; “Retry now” on its page in the console does it at once.",
            act=None,
            look=("orchestrator status",),
            down=False,
        ),
    )
}  # fmt: skip


async def trigger(
    case: Case, settings: Settings, db: Database, *, merchant: str, say: Callable[[str], None]
) -> Triggered:
    """Make a case for a merchant; `Unscripted` if something else happened, `NoSandbox` at a real gateway."""
    async with _shop(settings, db, merchant) as shop:
        try:
            return await _made(case, shop, settings, say)
        except httpx.HTTPError as error:
            seen = str(error) or type(error).__name__
            raise Unscripted(expected="an answer of the sandbox", seen=seen) from error


async def _made(case: Case, shop: Shop, settings: Settings, say: Callable[[str], None]) -> Triggered:
    order = _order(case)
    if case.down is not None:
        faults = await shop.control("GET", "faults")
        await shop.control("PUT", "faults", {**faults, "share": float(case.down), "shareStatus": 503})
    if case.act is None:
        return Triggered(case=case)
    grace = settings.deadline_grace if case.expires_in else 0.0
    shopper = Shopper(shop, order, timeout=TIMEOUT + grace)
    say(
        f"Order {order.id} is handed over{f'; it expires in about {case.expires_in + grace:.0f} s' if case.expires_in else ''}."
    )
    if case.plan:
        await shop.control("PUT", f"orders/{order.id}", case.plan)
    shopper.checkout = (await shop.client.create(order.intent())).checkout.id
    await case.act(shopper)
    if case.down is None:
        await _decision(shopper)
    explained = await shop.client.explain(shopper.known)
    return Triggered(
        case=case,
        order=order.id,
        checkout=shopper.known,
        stands=f"{explained.summary} {explained.next.what}",
        you_may=explained.you_may,
    )


async def _decision(shopper: Shopper) -> None:
    """Wait a moment for the question to a person, which a policy of the merchant may answer itself."""
    deadline = time.monotonic() + DECIDED_WITHIN
    while time.monotonic() < deadline:
        found = await shopper.client.checkout(shopper.known)
        if found.attention is not None or found.state not in ENDED:
            return
        await asyncio.sleep(_PAUSE)


@asynccontextmanager
async def _shop(settings: Settings, db: Database, name: str) -> AsyncIterator[Shop]:
    encryptor = Encryptor(settings.secret_keys)
    merchant = await Merchants(db, encryptor, settings).named(name)
    if merchant is None:
        raise UnknownMerchant(name)
    sandbox = (merchant.account.url or "").rstrip("/")
    token = auth.issue_own(
        settings, merchant=name, scopes=_SCOPES, lifetime=_TOKEN_LIFETIME, subject="trigger"
    )
    control = {"X-Sandbox-Token": settings.sandbox_token.get_secret_value()}
    async with (
        httpx.AsyncClient(timeout=_HTTP_TIMEOUT, trust_env=False, headers=control) as http,
        Client(settings.public_url, token) as client,
    ):
        await _check(http, name, sandbox)
        await client.until_known(TIMEOUT)
        yield Shop(http, client, sandbox, merchant, settings.public_url, encryptor)


async def _check(http: httpx.AsyncClient, merchant: str, sandbox: str) -> None:
    """Refuse what is no sandbox of ours, before anything is changed."""
    if not sandbox:
        raise NoSandbox(merchant, sandbox, "it has none")
    try:
        answer = await http.get(f"{sandbox}/sandbox/ledger", params={"limit": 1})
        known = answer.status_code == httpx.codes.OK and "orders" in answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise NoSandbox(merchant, sandbox, str(error) or type(error).__name__) from error
    if not known:
        raise NoSandbox(merchant, sandbox, f"HTTP {answer.status_code}")


def _order(case: Case) -> Order:
    script = Script(name=case.name, says=case.about, act=case.act or _fail, evidence=every())
    number = f"T-{case.name.replace('_', '-')}-{time.time_ns() // 1_000_000:x}"
    return Order(id=number, script=script, amount=AMOUNT, expires_in=case.expires_in)

"""The demo as a whole: shoppers arrive, a table shows their orders, and at the end it says whether every
order went by its script.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import httpx
from httpx_aiohttp import HttpxAiohttpClient
from sqlalchemy import text

from orchestrator.devkit.client import ClientError
from orchestrator.devkit.demo import display
from orchestrator.devkit.demo.evidence import balances_of
from orchestrator.devkit.demo.orders import prefix_of
from orchestrator.devkit.demo.scripts import MERCHANTS
from orchestrator.devkit.demo.shop import Unscripted, opened
from orchestrator.devkit.demo.shopper import Shopper
from orchestrator.devkit.local.terminal import LINE_EVERY
from orchestrator.store.database import Database, is_away

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from orchestrator.devkit.demo.evidence import Balance, Observations
    from orchestrator.devkit.demo.orders import Order
    from orchestrator.devkit.demo.shop import Shop
    from orchestrator.devkit.local.up import Up

TIMEOUT: Final = 30.0
"""Seconds that one order may take for one step of its script; all scripts wait less than ten."""
AT_ONCE: Final = 60
"""Shoppers who are there at the same time; more wait outside."""
_REDRAW: Final = 0.25

_STATES = text("""
    SELECT state, count(*) AS orders FROM checkouts WHERE order_ref LIKE :prefix AND created_at > clock() - interval '1 hour'
     GROUP BY state
""")


@dataclass(slots=True)
class Outcome:
    """The result of one order: its evidence at the end, or why it did not follow its script."""

    order: Order
    observed: Observations | None = None
    problem: str | None = None
    checkout: UUID | None = None
    seconds: float | None = None

    @property
    def over(self) -> bool:
        return self.observed is not None or self.problem is not None

    @property
    def scripted(self) -> bool:
        return self.observed is not None and self.problem is None


async def run_orders(up: Up, orders: Sequence[Order], *, run: str, gateway: str, stay: bool) -> int:
    """Play all orders and show them; 0 only if every order ended as scripted with its money in both books."""
    outcomes = [Outcome(order) for order in orders]
    limits = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
    timeout = httpx.Timeout(20.0, pool=TIMEOUT)
    sandbox_token = {"X-Sandbox-Token": up.settings.sandbox_token.get_secret_value()}
    async with (
        Database(up.settings.need("database_url"), pool_size=2, name="orchestrator-demo") as db,
        HttpxAiohttpClient(timeout=timeout, limits=limits, trust_env=False, headers=sandbox_token) as http,
    ):
        policies = {order.script.merchant: MERCHANTS.get(order.script.merchant) for order in orders}
        shops = await opened(up, db, http, policies, gateway=gateway)
        room = asyncio.Semaphore(AT_ONCE)
        shoppers = [
            asyncio.create_task(_live(shops[outcome.order.script.merchant], outcome, room))
            for outcome in outcomes
        ]
        watching = asyncio.create_task(_show(up, db, outcomes, run=run))
        try:
            await asyncio.gather(*shoppers)
        finally:
            for task in shoppers:
                task.cancel()
            watching.cancel()
            # The last drawing is made while it unwinds.
            await asyncio.gather(watching, *shoppers, return_exceptions=True)
        balances = await balances_of(http, gateway, db, prefix=prefix_of(run))
    _conclude(up, outcomes, balances, gateway=gateway, stay=stay)
    whole = all(outcome.scripted for outcome in outcomes) and all(balance.agrees for balance in balances)
    return 0 if whole else 1


async def _live(shop: Shop, outcome: Outcome, room: asyncio.Semaphore) -> None:
    await asyncio.sleep(outcome.order.arrives)
    async with room:
        shopper = Shopper(shop, outcome.order, timeout=TIMEOUT)
        try:
            observed = await shopper.run()
        except Unscripted as error:
            outcome.problem = str(error)
        except (ClientError, httpx.HTTPError, ValueError, KeyError) as error:
            # There was no answer, or one that the contract does not allow: this order's script ends, the
            # others go on.
            outcome.problem = f"expected an answer by the contract, saw {type(error).__name__}: {error}"
        else:
            outcome.observed = observed
        outcome.checkout = shopper.checkout
        if shopper.began is not None and shopper.ended is not None:
            outcome.seconds = shopper.ended - shopper.began


async def _show(up: Up, db: Database, outcomes: Sequence[Outcome], *, run: str) -> None:
    """Keep the board up to date until cancelled."""
    terminal, began = up.terminal, time.monotonic()
    states: dict[str, int] = {}
    with terminal.watching() as show:

        def draw() -> None:
            seconds = time.monotonic() - began
            show(
                lambda: display.shared_state(states, outcomes, seconds=seconds),
                lambda: display.line(states, outcomes, seconds=seconds),
            )

        try:
            while True:
                await asyncio.sleep(_REDRAW if terminal.live else LINE_EVERY)
                states = await _states(db, run, states)
                draw()
        finally:
            if terminal.live:
                states = await asyncio.shield(_states(db, run, states))
                draw()


async def _states(db: Database, run: str, before: dict[str, int]) -> dict[str, int]:
    """Count the orders by state; what was known before, while Postgres is away."""
    try:
        rows: Any = await db.read(_STATES, {"prefix": f"{prefix_of(run)}%"})
    except Exception as error:
        if not is_away(error):
            raise
        return before
    return {str(row.state): int(row.orders) for row in rows}


def _conclude(
    up: Up, outcomes: Sequence[Outcome], balances: Sequence[Balance], *, gateway: str, stay: bool
) -> None:
    terminal = up.terminal
    terminal.say()
    summary = display.summary(outcomes, width=terminal.console.width)
    for drawn in (summary, display.slowest(outcomes), display.explained(outcomes)):
        if drawn is not None:
            terminal.say(drawn)
            terminal.say()
    sample = next((item for item in outcomes if item.checkout), None)
    rows = display.places(up, gateway, sample, stay=stay)
    if rows:
        terminal.facts(*rows)
        terminal.say()
    agree = all(balance.agrees for balance in balances)
    moving = any(outcome.order.script.holds for outcome in outcomes)
    if moving or not agree:
        for line in display.balances(balances):
            terminal.line(line)
    bad = display.failures(outcomes)
    for line in bad:
        terminal.line(line)
    if bad or not agree:
        said = f"{len(bad)} of {len(outcomes)} orders did not end as scripted" if bad else ""
        unequal = "" if agree else "the sandbox's ledger and our books do not agree"
        terminal.line(f"{'; '.join(filter(None, (said, unequal)))}.", style="bold red")
        return
    if not moving:
        terminal.line(display.totals(outcomes))
    once = " No order was captured or refunded twice." if moving else ""
    terminal.line(
        f"All {len(outcomes)} orders ended as scripted; the sandbox's ledger and our books agree to the minor unit.{once}",
        style="bold green",
    )

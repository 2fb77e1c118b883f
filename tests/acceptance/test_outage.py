"""No callback of the gateway goes out for ten minutes, as happened in January 2023: whatever was paid is
found by a lookup alone.

Time is simulated by Postgres's clock, and only what is due is processed, so the lookups are those that
production would make.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from orchestrator.store import checkouts
from tests.support.factories import empty
from tests.support.mishaps import REPORT
from tests.support.shop import DECLINED_CARD, WHOLE, Shop, shop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from uuid import UUID

pytestmark = pytest.mark.anyio

OUTAGE = 600
"""Seconds for which no callback goes out."""
AFTER = 7200
"""Seconds until which everything is to be known: the rarest lookups are half an hour apart."""
TICK = 10


@dataclass
class Shopper:
    """What one shopper does, by the second of the outage, and how the order has to end."""

    ends: str
    expires_in: int = 3600
    does: dict[int, Callable[[UUID], Coroutine[None, None, None]]] = field(default_factory=dict)


@pytest.fixture
async def world(shared_database_url: str) -> AsyncIterator[Shop]:
    empty(shared_database_url)
    async with shop(shared_database_url) as opened:
        await opened.begin(shared_database_url)
        yield opened
        await opened.begin(shared_database_url)


async def pass_time(world: Shop, seconds: int) -> None:
    """Let time pass, and process what is due and nothing else."""
    await world.later(seconds=seconds)
    while due_now := await checkouts.due(world.db, most=1000):
        await world.take(*(due.id for due in due_now))


def shoppers(world: Shop, banks: dict[UUID, str]) -> list[Shopper]:
    async def pays(checkout: UUID) -> None:
        assert (await world.submit(await world.started(checkout))).status_code == 200, (
            "the shop cannot be reached"
        )

    async def is_declined(checkout: UUID) -> None:
        await world.submit(await world.started(checkout), card=DECLINED_CARD)

    async def goes_to_the_bank(checkout: UUID) -> None:
        banks[checkout] = await world.pay(checkout, method="BANK_PAYMENT", action="open")

    async def cancels(checkout: UUID) -> None:
        await world.command(checkout, "cancel")

    def bank_says(outcome: str) -> Callable[[UUID], Coroutine[None, None, None]]:
        async def say(checkout: UUID) -> None:
            await world.control("POST", f"payments/{banks[checkout]}/resolve", {"outcome": outcome})

        return say

    paid, lost = "completed", "expired"
    return [
        # At every moment of the outage; the deadline is far.
        *(Shopper(paid, does={at: pays}) for at in range(10, 600, 20)),
        # The deadline passes during the outage: paid long before it, just before it, and in the grace after
        # it.
        *(Shopper(paid, expires_in=180, does={at: pays}) for at in (10, 100, 170, 190, 200)),
        *(Shopper(paid, expires_in=400, does={at: pays}) for at in (130, 390, 410)),
        # Declined first.
        *(Shopper(paid, expires_in=300, does={at: is_declined, at + 60: pays}) for at in (50, 200)),
        # Open at the bank beyond the deadline; the bank answers during the outage, or after it.
        *(
            Shopper(paid, expires_in=120, does={60: goes_to_the_bank, at: bank_says("succeeded")})
            for at in (90, 300, 590)
        ),
        *(
            Shopper(lost, expires_in=120, does={60: goes_to_the_bank, at: bank_says("declined")})
            for at in (90, 400)
        ),
        # The merchant cancels while the shopper pays.
        *(Shopper(paid, does={200: cancels, at: pays}) for at in (210, 220)),
        # No payment.
        *(Shopper(lost, expires_in=seconds) for seconds in (60, 300, 560, 1800)),
        Shopper(lost, expires_in=300, does={100: is_declined}),
        Shopper("cancelled", does={300: cancels}),
    ]


@pytest.mark.mishap("gateway outage: no callbacks for minutes")
async def test_every_order_paid_while_no_callback_goes_out_is_completed_by_lookups_alone(
    world: Shop, record_property: Callable[[str, object], None]
):
    banks: dict[UUID, str] = {}
    known: dict[UUID, Shopper] = {}
    for shopper in shoppers(world, banks):
        assert all(at % TICK == 0 and at < OUTAGE for at in shopper.does), shopper
        known[await world.accept(expiresIn=shopper.expires_in)] = shopper
    await world.take(*known)
    before = {checkout: world.lookups(checkout) for checkout in known}
    await world.control("PUT", "faults", {"callbacks": "lost"})
    found: dict[UUID, int] = {}
    for now in range(TICK, OUTAGE + 1, TICK):
        for checkout, shopper in known.items():
            if now in shopper.does:
                await shopper.does[now](checkout)
        await pass_time(world, TICK)
        found |= await newly_completed(world, found, now)
    await world.control("DELETE", "faults")
    for now in range(OUTAGE + 60, AFTER + 1, 60):
        await pass_time(world, 60)
        found |= await newly_completed(world, found, now)

    assert not await world.sql("SELECT id FROM callbacks"), "no callback ever came"
    lookups: dict[str, list[int]] = {}
    for checkout, shopper in known.items():
        await ended(world, checkout, shopper)
        lookups.setdefault(shopper.ends, []).append(world.lookups(checkout) - before[checkout])
    await world.agree(*known)
    record_property(REPORT, report(known, found, lookups))


async def newly_completed(world: Shop, found: dict[UUID, int], now: int) -> dict[UUID, int]:
    rows = await world.sql("SELECT id FROM checkouts WHERE state = 'completed'")
    return {row.id: now for row in rows if row.id not in found}


async def ended(world: Shop, checkout: UUID, shopper: Shopper) -> None:
    """The order ended as it had to, on the evidence of a lookup, and never as unpaid while money was held."""
    row = await world.row(checkout)
    wanted = (shopper.ends, False, None, WHOLE if shopper.ends == "completed" else 0)
    assert (row.state, row.late, row.attention, row.reserved) == wanted, shopper
    moves = [entry for entry in await world.trail(checkout) if entry["action"] == "checkout:moved"]
    reached = [move["to"] for move in moves]
    assert reached[-1] == shopper.ends
    assert not {"expired", "cancelled", "failed"} & set(reached[:-1]), "it was never ended before"
    assert moves[-1]["evidence"]["by"] == "lookup"
    assert "callbacks" not in moves[-1]["evidence"]
    events = Counter(await world.events(checkout))
    assert [events[f"checkout.{kind}"] for kind in ("completed", "expired", "cancelled")] == [
        int(shopper.ends == kind) for kind in ("completed", "expired", "cancelled")
    ]
    moved = await world.movements(checkout)
    bank = any(banked.__name__ == "goes_to_the_bank" for banked in shopper.does.values())
    # A payment by bank transfer is captured at once, by the bank.
    assert moved == ([("captured", WHOLE)] if bank and shopper.ends == "completed" else [])


def report(known: dict[UUID, Shopper], found: dict[UUID, int], lookups: dict[str, list[int]]) -> str:
    """Report what the lookups cost, and how long the shops waited."""
    lines = [
        f"{len(known)} orders, {OUTAGE} s without callbacks; asks the gateway for each order in {AFTER} s:"
    ]
    for ends, numbers in sorted(lookups.items()):
        listed = " ".join(map(str, sorted(numbers)))
        lines.append(f"  {ends}: {listed} (mean {sum(numbers) / len(numbers):.1f}, most {max(numbers)})")
    waits = sorted(found[checkout] - max(known[checkout].does) for checkout in found)
    lines.append(f"  seconds from payment to completion: median {waits[len(waits) // 2]}, most {waits[-1]}")
    return "\n".join(lines)

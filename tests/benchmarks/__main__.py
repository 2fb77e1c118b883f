"""What gathering buys: intake and moves through the batch writers against one transaction each, in one run on one durable Postgres.

    python -m tests.benchmarks [--orders 1000]

Prints rates and ratios; only the ratios mean something on another machine, and no test depends on them.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from orchestrator import inbox, lifecycle
from orchestrator.audit import Action
from orchestrator.db import Database
from orchestrator.embedded import Embedded
from orchestrator.lifecycle import Held, Lifecycle, Move
from orchestrator.schema import migrate
from orchestrator.states import Trigger
from orchestrator.vault import Vault
from tests.conftest import make_settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from uuid import UUID

WAY = (Trigger.AUTHENTICATED, Trigger.SESSION_OPENED, Trigger.METHODS_LISTED, Trigger.OFFERED)


def intake() -> inbox.Intake:
    return inbox.Intake(
        merchant_id=1, order_ref=f"B-{uuid4().hex[:16]}", currency="DKK", amount=13900, expires_in=3600,
        document=b'{"order":{}}' * 60, fingerprint=b"f" * 32, actor="benchmark", correlation_id="benchmark",
    )  # fmt: skip


async def accepted(intents: inbox.Intents, orders: int, *, at_once: int) -> list[UUID]:
    gate = asyncio.Semaphore(at_once)

    async def one() -> UUID:
        async with gate:
            return (await intents.accept(intake())).id

    return list(await asyncio.gather(*(one() for _ in range(orders))))


async def carried(moves: Lifecycle, held: Sequence[Held], *, at_once: int) -> None:
    gate = asyncio.Semaphore(at_once)

    async def one(checkout: Held) -> None:
        async with gate:
            for trigger in WAY:
                last = trigger is Trigger.OFFERED
                checkout = await moves.advance(
                    Move(
                        held=checkout, trigger=trigger, action=Action.CHECKOUT_MOVED, offered=last,
                        **({"alarm": 60.0} if last else {}),
                    )
                )  # fmt: skip

    await asyncio.gather(*(one(checkout) for checkout in held))


async def rate(count: int, work: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    await work()
    return count / (time.perf_counter() - began)


async def compare(url: str, orders: int) -> None:
    vault = Vault(make_settings().secret_keys)
    async with Database(url, pool_size=6) as db:
        intents, moves = inbox.Intents(db, vault, grace=60), Lifecycle(db, vault)
        few = max(orders // 10, 50)
        rates: dict[str, list[float]] = {"intake": [], "four moves": []}
        for count, at_once in ((few, 1), (orders, 200)):
            ids: list[UUID] = []

            async def take(count: int = count, at_once: int = at_once, ids: list[UUID] = ids) -> None:
                ids += await accepted(intents, count, at_once=at_once)

            rates["intake"].append(await rate(count, take))
            held = await lifecycle.claim(db, ids, lease_seconds=600)
            rates["four moves"].append(
                await rate(count, lambda held=held, at_once=at_once: carried(moves, held, at_once=at_once))
            )
        await intents.close()
        await moves.close()
    print(f"{'':12} {'one at a time':>16} {'200 at once':>16} {'ratio':>8}")
    for name, (alone, together) in rates.items():
        print(f"{name:12} {alone:>10.0f} ord/s {together:>10.0f} ord/s {together / alone:>7.1f}x")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parser.add_argument("--orders", type=int, default=1000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, Embedded.start(Path(place), redis=False) as servers:
        migrate(servers.database_url)
        asyncio.run(compare(servers.database_url, given.orders))


if __name__ == "__main__":
    main()

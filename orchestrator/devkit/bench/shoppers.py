"""Shoppers at the light gateway: they pay after a time, and the gateway sends two callbacks to the shop at
the same moment.

A callback's time counts from the moment at which it was to be sent, so that waiting for a free connection is
not hidden. An answer is recorded and nothing follows from it: a callback that was not accepted is lost, and a
lookup has to find the payment.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit
from uuid import UUID

from orchestrator.devkit.bench import documents, http_pool
from orchestrator.devkit.bench.ledger import Payment

if TYPE_CHECKING:
    from random import Random

    from orchestrator.devkit.bench.ledger import GatewayLedger, Order

AT_ONCE: Final = 64
"""Connections to one shop; at a thousand callbacks a second that take 30 ms each, 30 are in use."""
TIMEOUT: Final = 30.0
FIRST_TRANSACTION: Final = 539_101


@dataclass(frozen=True, slots=True)
class ShopperProfile:
    """Shoppers think so many seconds, more or less a share `jitter`; the secret signs callbacks."""

    think: float = 1.0
    jitter: float = 0.5
    secret: str = ""


class Shoppers:
    """All shoppers of one gateway, on its event loop."""

    def __init__(self, ledger: GatewayLedger, profile: ShopperProfile, random: Random) -> None:
        self._ledger, self._profile, self._random = ledger, profile, random
        self._lines: dict[tuple[str, int], http_pool.HttpPool] = {}
        self._under_way: set[asyncio.Task[None]] = set()
        self._transactions = FIRST_TRANSACTION

    def add(self, order: Order) -> None:
        """Begin a shopper for an order, who has read its payment methods, once for each order."""
        if order.expected:
            return
        order.expected = True
        self._ledger.thinking += 1
        spread = self._random.uniform(-self._profile.jitter, self._profile.jitter)
        thinks = self._profile.think * (1 + spread)
        asyncio.get_running_loop().call_later(thinks, self._pay, order, self._ledger.epoch)

    def close(self) -> None:
        """Give up what is under way."""
        for task in self._under_way:
            task.cancel()
        for lines in self._lines.values():
            lines.close()

    def _pay(self, order: Order, epoch: int) -> None:
        if epoch != self._ledger.epoch:
            return
        ledger = self._ledger
        ledger.thinking -= 1
        number, self._transactions = str(self._transactions), self._transactions + 1
        paid = Payment(
            order_ref=order.order_ref,
            checkout=order.checkout,
            transaction_id=number,
            payment_id=str(UUID(int=self._random.getrandbits(128), version=4)),
            amount=order.amount,
            currency=order.currency,
            captured=order.amount if order.captures else 0,
            at=time.time(),
        )
        order.paid.append(paid)
        body = documents.callback(paid)
        headers = {"User-Agent": "AltaPay bench", "Content-Type": "application/x-www-form-urlencoded"}
        if self._profile.secret:
            headers[documents.SIGNATURE] = documents.signature(body, self._profile.secret, paid.at)
        for kind, url in (("success", order.success), ("notification", order.notification)):
            if url is not None:
                ledger.telling += 1
                task = asyncio.get_running_loop().create_task(
                    self._tell(kind, url, epoch, headers=headers, body=body)
                )
                self._under_way.add(task)
                task.add_done_callback(self._under_way.discard)

    async def _tell(self, kind: str, url: str, epoch: int, *, headers: dict[str, str], body: bytes) -> None:
        began = time.perf_counter()
        try:
            parts = urlsplit(url)
            address = parts.hostname or "", parts.port or 80
            lines = self._lines.setdefault(address, http_pool.HttpPool(*address, most=AT_ONCE))
            request = http_pool.request("POST", parts.netloc, parts.path, headers=headers, body=body)
            outcome = str((await lines.exchange(request, timeout=TIMEOUT)).status)
        except (OSError, ValueError) as error:
            outcome = type(error).__name__
        if epoch == self._ledger.epoch:
            self._ledger.telling -= 1
            results = self._ledger.callback_results[kind]
            results.milliseconds.append(round((time.perf_counter() - began) * 1000, 2))
            results.answers[outcome] = results.answers.get(outcome, 0) + 1

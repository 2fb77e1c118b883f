"""The orders of the demo's shoppers: one each, drawn from the seed alone, so that a run can be repeated.

Amounts stay above the test amounts that mean something to the gateway. Cards are documented test numbers.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from orchestrator.domain import money

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.devkit.demo.scripts import Method, Script

THANKS: Final = "https://shop.example/thanks"
SORRY: Final = "https://shop.example/sorry"

APART: Final = 0.08
BURST: Final = 60
BURST_FACTOR: Final = 2.5
LAST_ARRIVAL: Final = 20.0
"""Seconds between two shoppers, and at most until the last one."""

_MARKETS: Final = (("DKK", "DK"), ("DKK", "DK"), ("EUR", "DE"), ("SEK", "SE"), ("JPY", "JP"))
_METHODS: Final[dict[str, tuple[Method, ...]]] = {
    "DK": ("CARD", "CARD", "BANK_PAYMENT", "MOBILE_WALLET"),
    "DE": ("CARD", "CARD", "BANK_PAYMENT"),
    "SE": ("CARD", "CARD", "BANK_PAYMENT"),
    "JP": ("CARD",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One shopper's order. `amount` is minor units, `arrives` seconds after the demo begins."""

    id: str
    script: Script
    currency: str = "DKK"
    country: str = "DK"
    amount: int
    method: Method = "CARD"
    auto_capture: bool = False
    challenged: bool = False
    expires_in: float | None = None
    arrives: float = 0.0

    def intent(self) -> dict[str, Any]:
        value = float(money.to_decimal(self.amount, self.currency))
        intent: dict[str, Any] = {
            "order": {
                "orderId": self.id,
                "amount": {"value": value, "currency": self.currency},
                "orderLines": [
                    {"itemId": "blanket", "description": "Wool blanket", "quantity": 1, "unitPrice": value}
                ],
                "customer": {
                    "firstName": "Sam",
                    "lastName": "Shopper",
                    "email": "sam@example.com",
                    "billingAddress": {
                        "street": "Main Street 1",
                        "city": "Somewhere",
                        "zipCode": "1000",
                        "country": self.country,
                    },
                },
            },
            "callbacks": {
                "success": {"type": "URL", "value": THANKS},
                "failure": {"type": "URL", "value": SORRY},
            },
            "configuration": {
                "paymentType": "PAYMENT",
                "autoCapture": self.auto_capture,
                "country": self.country,
            },
        }
        if self.expires_in is not None:
            intent["expiresIn"] = self.expires_in
        return intent


def prefix_of(run: str) -> str:
    """Return what the order numbers of a run begin with, and no others."""
    return f"demo-{run}-"


def draw(scripts: Sequence[Script], *, count: int, seed: int, run: str) -> list[Order]:
    """Make the orders of one run: scripts spread evenly, in an order that the seed decides."""
    chance = random.Random(f"{seed}/demo")  # noqa: S311 - repeatable, not secret
    spread = [scripts[number % len(scripts)] for number in range(count)]
    chance.shuffle(spread)
    return [
        _order(script, chance, number=number, count=count, run=run)
        for number, script in enumerate(spread, start=1)
    ]


def _order(script: Script, chance: random.Random, *, number: int, count: int, run: str) -> Order:
    markets = (
        _MARKETS
        if script.method is None
        else [market for market in _MARKETS if script.method in _METHODS[market[1]]]
    )
    currency, country = chance.choice(markets)
    # Whole tens of the smallest unit would hide a slip of the decimal point.
    amount = chance.randrange(2_000, 200_000) | 1
    method: Method = chance.choice(_METHODS[country])
    challenged = chance.random() < 1 / 4
    return Order(
        id=f"{prefix_of(run)}{number:03}",
        script=script,
        currency=currency,
        country=country,
        amount=amount,
        method=script.method or method,
        auto_capture=chance.random() < 1 / 2 if script.auto_capture is None else script.auto_capture,
        challenged=challenged and script.method is None,
        # In a burst everything takes longer, and a shopper who will be declined must get that far.
        expires_in=script.expires_in and script.expires_in * (BURST_FACTOR if count > BURST else 1.0),
        arrives=number * min(APART, LAST_ARRIVAL / count),
    )

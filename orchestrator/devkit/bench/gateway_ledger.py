"""The light gateway's books: what every order was asked for, what was paid, what went wrong on purpose, and what was done twice.

They are the ledger of a run: whoever compares them with ours to the minor unit knows whether anything was lost or doubled. All in
memory, for one run; `epoch` tells shoppers of a run that is over that nobody waits for them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.devkit.bench.documents import Paid

KINDS = ("authenticate", "session", "payment-methods", "payments")


@dataclass(slots=True)
class Order:
    """One order number at the gateway; the newest session counts."""

    order_ref: str
    amount: int = 0
    """Minor units."""
    currency: str = ""
    checkout: str | None = None
    captures: bool = False
    success: str | None = None
    notification: str | None = None
    sessions: int = 0
    expected: bool = False
    """A shopper is there, or was."""
    paid: list[Paid] = field(default_factory=list)


@dataclass(slots=True)
class Told:
    """What came of one kind of callback: milliseconds until each answer, and the answers by status (or by what went wrong)."""

    milliseconds: list[float] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)


class GatewayLedger:
    """Everything that the gateway knows of one run."""

    def __init__(self) -> None:
        self.epoch = 0
        self.reset()

    def reset(self) -> None:
        """Forget everything; sessions of before are unknown from now on."""
        self.epoch += 1
        self.orders: dict[str, Order] = {}
        self.sessions: dict[str, Order] = {}
        self.calls: Counter[str] = Counter(dict.fromkeys(KINDS, 0))
        self.faults: Counter[str] = Counter()
        self.told = {"success": Told(), "notification": Told()}
        self.waited = 0.0
        """Seconds from a call to its answer, all calls together: the gateway's own time."""
        self.thinking = 0
        """Shoppers who have been offered payment methods and have not paid yet."""
        self.telling = 0
        """Callbacks that have not been answered yet."""

    def state(self) -> dict[str, object]:
        """Say in a few numbers how far the run is."""
        return {
            "calls": dict(self.calls), "faults": dict(self.faults), "orders": len(self.orders),
            "paid": sum(len(order.paid) for order in self.orders.values()), "thinking": self.thinking, "telling": self.telling,
            "waitedSeconds": self.waited,
        }  # fmt: skip

    def document(self) -> dict[str, object]:
        """Say everything."""
        return {
            **self.state(),
            "payments": [
                {
                    "orderId": paid.order_ref, "checkoutId": paid.checkout, "transactionId": paid.transaction_id,
                    "paidAt": paid.at, "amountMinor": paid.amount, "currency": paid.currency,
                    "capturedMinor": paid.amount if paid.captured else 0,
                }
                for order in self.orders.values() for paid in order.paid
            ],
            "doubled": {
                "sessions": [order.order_ref for order in self.orders.values() if order.sessions > 1],
                "payments": [order.order_ref for order in self.orders.values() if len(order.paid) > 1],
            },
            "callbacks": {
                kind: {"milliseconds": told.milliseconds, "answers": dict(told.answers)} for kind, told in self.told.items()
            },
        }  # fmt: skip

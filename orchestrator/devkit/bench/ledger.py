"""The light gateway's books, and the check at the end of a run: accepted intents, our tables and these books
must agree.

The books hold each order's request, what was paid, what failed on purpose, and what was done twice. All in
memory, for one run; `epoch` ends shoppers of an earlier run.

Lost is an order that the API accepted, or that its shopper paid, and that did not get to its end. Doubled is
an order that got something twice: a session, a payment, a checkout, a completion, a capture. Unequal is a
completed order whose money differs from the gateway's by as little as a minor unit, or that no shopper paid.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

# ── The gateway's books ──

KINDS = ("authenticate", "session", "payment-methods", "payments")


class Payment(msgspec.Struct, frozen=True, kw_only=True):
    """One payment that succeeded; `checkout` is our id as the session brought it (None: it brought none)."""

    order_ref: str
    checkout: str | None = None
    transaction_id: str = ""
    payment_id: str = ""
    amount: int
    """Minor units, as is what was captured of it."""
    captured: int = 0
    currency: str
    at: float
    """Seconds since 1970."""


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
    paid: list[Payment] = field(default_factory=list)


class CallbackResults(msgspec.Struct):
    """Of one kind of callback: milliseconds until each answer, and answers by status (or by error)."""

    milliseconds: list[float] = []
    answers: dict[str, int] = {}


class Books(msgspec.Struct, kw_only=True):
    """The gateway's side of a run; `doubled` are the orders with more than one session or payment."""

    payments: list[Payment] = []
    doubled: list[str] = []
    calls: dict[str, int] = {}
    faults: dict[str, int] = {}
    callbacks: dict[str, CallbackResults] = {}
    events: list[str] = []


class GatewayLedger:
    """Everything that the gateway has of one run."""

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
        self.callback_results = {"success": CallbackResults(), "notification": CallbackResults()}
        self.events: set[bytes] = set()
        """Ids of the events that were delivered here."""
        self.waited = 0.0
        """Seconds from a call to its answer, all calls together: the gateway's own time."""
        self.thinking = 0
        """Shoppers who have been offered payment methods and have not paid yet."""
        self.telling = 0
        """Callbacks that have not been answered yet."""

    def state(self) -> dict[str, object]:
        """Say in a few numbers how far the run is."""
        return {
            "calls": dict(self.calls),
            "faults": dict(self.faults),
            "orders": len(self.orders),
            "paid": sum(len(order.paid) for order in self.orders.values()),
            "thinking": self.thinking,
            "telling": self.telling,
            "waitedSeconds": self.waited,
        }

    def books(self) -> Books:
        orders = self.orders.values()
        return Books(
            payments=[payment for order in orders for payment in order.paid],
            doubled=[order.order_ref for order in orders if order.sessions > 1 or len(order.paid) > 1],
            calls=dict(self.calls),
            faults=dict(self.faults),
            callbacks=self.callback_results,
            events=[event_id.decode("ascii", "replace") for event_id in self.events],
        )


# ── The check ──

SHOWN: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What our tables hold of one checkout; times in seconds since 1970, money in minor units."""

    order_ref: str
    state: str
    offered_at: float | None = None
    ended_at: float | None = None
    currency: str = "DKK"
    amount: int = 0
    reserved: int = 0
    captured: int = 0
    completions: int = 0
    """Events `checkout.completed`."""
    accepted: int = 0
    """Payments that were taken for the order's."""
    surplus: int = 0

    @property
    def completed(self) -> bool:
        return self.state == "completed"


@dataclass(frozen=True, slots=True)
class Ledger:
    """The verdict: order numbers with what is wrong with each."""

    lost: Mapping[str, str]
    doubled: Mapping[str, str]
    unequal: Mapping[str, str]

    @property
    def clean(self) -> bool:
        return not (self.lost or self.doubled or self.unequal)

    def sentences(self) -> list[str]:
        """Say what is wrong, with a few examples of each kind."""
        said = []
        for word in ("lost", "doubled", "unequal"):
            if found := getattr(self, word):
                some = "; ".join(f"{order_ref}: {why}" for order_ref, why in list(found.items())[:SHOWN])
                more = " …" if len(found) > SHOWN else ""
                said.append(f"{len(found)} {word} ({some}{more})")
        return said


def check(taken: Collection[str], rows: Sequence[Row], books: Books, *, whole: bool) -> Ledger:
    """Compare the accepted intents, our tables and the gateway's books.

    `whole`: orders were to be completed; otherwise they were to be offered to the shopper, and no shopper
    paid.
    """
    by_order: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_order[row.order_ref].append(row)
    paid: defaultdict[str, list[Payment]] = defaultdict(list)
    for payment in books.payments:
        paid[payment.order_ref].append(payment)
    lost = {ref: why for ref in taken if (why := _unfinished(by_order.get(ref, ()), whole=whole))}
    lost |= {
        order_ref: "paid, and not completed"
        for order_ref in paid
        if not any(row.completed for row in by_order.get(order_ref, ()))
    }
    doubled = dict.fromkeys(books.doubled, "more than one session or payment at the gateway")
    unequal = {}
    for order_ref, ours in by_order.items():
        theirs = paid.get(order_ref, ())
        if twice := _twice(ours, sum(payment.captured for payment in theirs)):
            doubled[order_ref] = twice
        if differs := _differs(ours, theirs):
            unequal[order_ref] = differs
    return Ledger(lost, doubled, unequal)


def _unfinished(rows: Sequence[Row], *, whole: bool) -> str | None:
    if not rows:
        return "accepted, and there is no checkout"
    done = any(row.completed if whole else row.offered_at is not None for row in rows)
    return None if done else f"accepted, and still {rows[0].state}"


def _twice(rows: Sequence[Row], captured: int) -> str | None:
    if len(rows) > 1:
        return "more than one checkout"
    row = rows[0]
    if row.completions > 1:
        return f"{row.completions} completions"
    if row.accepted + row.surplus > 1:
        return f"{row.accepted + row.surplus} payments in our books"
    if row.captured > captured:
        return f"captured {row.captured}, the gateway {captured}"
    return None


def _differs(rows: Sequence[Row], payments: Sequence[Payment]) -> str | None:
    done = [row for row in rows if row.completed]
    if not done:
        return None
    if not payments:
        return "completed, and no shopper paid"
    ours = sum(row.reserved for row in done), sum(row.captured for row in done), done[0].currency
    theirs = (
        sum(payment.amount for payment in payments),
        sum(payment.captured for payment in payments),
        payments[0].currency,
    )
    return None if ours == theirs else f"ours {ours}, the gateway's {theirs}"

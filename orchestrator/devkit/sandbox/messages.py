"""What was said about each order: calls to the gateway, its pages, the bank, its callbacks; in memory alone.

For people who watch a purchase (the demo shop's diagrams): names, statuses and amounts, and never a token, a
card number, an address or anything of the customer. The newest orders are kept, a limited number of messages
of each.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict, deque
from typing import Final, Literal

import msgspec

MOST_ORDERS: Final = 500
MOST_OF_ORDER: Final = 200
_MOST_TOKENS: Final = 1000

Party = Literal["browser", "shop", "orchestrator", "gateway", "bank"]


class Message(msgspec.Struct, frozen=True, rename={"sender": "from", "receiver": "to"}):
    """One message; `name` is from a closed set, `at` is in seconds since 1970."""

    at: float
    sender: Party
    receiver: Party
    name: str
    detail: str = ""


class Messages:
    """The messages of the newest orders."""

    def __init__(self) -> None:
        self._orders: OrderedDict[str, deque[Message]] = OrderedDict()
        self._tokens: OrderedDict[bytes, float] = OrderedDict()

    def of(self, order_id: str) -> list[Message]:
        """Return what was said about an order, by time."""
        return sorted(self._orders.get(order_id, ()), key=lambda message: message.at)

    def note(
        self,
        order_id: str | None,
        way: tuple[Party, Party],
        name: str,
        detail: str = "",
        *,
        at: float | None = None,
    ) -> None:
        """Record a message about an order, by its sender and receiver; nothing without an order."""
        if not order_id:
            return
        known = self._orders.get(order_id)
        if known is None:
            known = self._orders[order_id] = deque(maxlen=MOST_OF_ORDER)
            while len(self._orders) > MOST_ORDERS:
                self._orders.popitem(last=False)
        known.append(Message(time.time() if at is None else at, *way, name, detail))

    def issued(self, token: str) -> None:
        """Remember when a token was issued: the call names no order, and the session that uses it does."""
        self._tokens[_digest(token)] = time.time()
        while len(self._tokens) > _MOST_TOKENS:
            self._tokens.popitem(last=False)

    def used(self, order_id: str | None, token: str) -> None:
        """Record the authentication of an order's token, at its first use."""
        at = self._tokens.pop(_digest(token), None)
        if at is not None:
            self.note(order_id, ("orchestrator", "gateway"), "authenticate", "POST /authenticate", at=at)
            self.note(order_id, ("gateway", "orchestrator"), "token", "200, a token for this shopper", at=at)


def _digest(token: str) -> bytes:
    return hashlib.blake2b(token.encode(), digest_size=16).digest()

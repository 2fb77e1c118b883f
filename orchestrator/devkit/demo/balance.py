"""The money of a whole run, in the sandbox's ledger and in our books: currency by currency, to the minor unit.

Neither side is asked order by order: the ledger is read as a whole, and our side is what the table of payments holds, whatever
checkout a payment belongs to, accepted, surplus or neither.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import text

from orchestrator.devkit.demo.shop import need

if TYPE_CHECKING:
    import httpx

    from orchestrator.devkit.demo.observations import Sums
    from orchestrator.store.database import Database

_BOOKS = text("""
    SELECT currency, sum(reserved) AS reserved, sum(captured) AS captured, sum(refunded) AS refunded
      FROM payments WHERE order_ref LIKE :prefix GROUP BY currency
""")
_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Balance:
    """Reserved, captured and refunded of one currency in minor units, by both sides. A reservation that was released is none."""

    currency: str
    ledger: Sums
    books: Sums

    @property
    def agrees(self) -> bool:
        return self.ledger == self.books


async def of_run(http: httpx.AsyncClient, gateway: str, db: Database, *, prefix: str) -> list[Balance]:
    """Return the money of all orders whose numbers begin with `prefix`."""
    ledger = await _ledger(http, gateway, prefix)
    rows = await db.read(_BOOKS, {"prefix": f"{prefix}%"})
    books = {row.currency: (int(row.reserved), int(row.captured), int(row.refunded)) for row in rows}
    nothing = (0, 0, 0)
    sides = [
        (name, ledger.get(name, nothing), books.get(name, nothing)) for name in sorted({*ledger, *books})
    ]
    return [Balance(*side) for side in sides if any(side[1]) or any(side[2])]


async def _ledger(http: httpx.AsyncClient, gateway: str, prefix: str) -> dict[str, Sums]:
    sums: defaultdict[str, Sums] = defaultdict(lambda: (0, 0, 0))
    after: int | None = 0
    while after is not None:
        answer = await http.get(f"{gateway}/sandbox/ledger", params={"after": after, "limit": _PAGE})
        need(answer, (200,), "the sandbox's ledger")
        page = answer.json()
        for order in page["orders"]:
            for row in order["payments"] if order["orderId"].startswith(prefix) else ():
                reserved, captured, refunded = sums[row["currency"]]
                held = 0 if row["status"] == "released" else row["reservedMinor"]
                sums[row["currency"]] = (
                    reserved + held, captured + row["capturedMinor"], refunded + row["refundedMinor"],
                )  # fmt: skip
        after = page["next"]
    return dict(sums)

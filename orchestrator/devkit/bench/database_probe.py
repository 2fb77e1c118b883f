"""What Postgres has of a run: its progress, now and then, by one cheap query; everything, once, at the end.

Readiness and completion are taken from the rows themselves (`offered_at`, `ended_at`: the moment of the
statement that wrote them), so that rare queries make nothing late. Reads only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from orchestrator.devkit.bench.ledger import Row
from orchestrator.store.tables import IS_OPEN

if TYPE_CHECKING:
    from orchestrator.store.database import Database

# Only what is under way is counted, by the partial index on it: what is done costs nothing.
_LEFT: Final = text(f"""
    SELECT count(*) AS open, count(*) FILTER (WHERE offered_at IS NULL) AS unready
      FROM checkouts WHERE merchant_id = :merchant AND {IS_OPEN} AND starts_with(order_ref, :prefix)
""")  # noqa: S608 - a constant of the schema
_ROWS: Final = text("""
    SELECT c.order_ref, c.state, c.currency, c.amount, c.reserved, c.captured,
           extract(epoch FROM c.offered_at)::float8 AS offered_at, extract(epoch FROM c.ended_at)::float8 AS ended_at,
           (SELECT count(*) FROM events e WHERE e.checkout_id = c.id AND e.kind = 'checkout.completed') AS completions,
           (SELECT count(*) FROM payments p WHERE p.checkout_id = c.id AND p.role = 'accepted') AS accepted,
           (SELECT count(*) FROM payments p WHERE p.checkout_id = c.id AND p.role = 'surplus') AS surplus
      FROM checkouts c WHERE c.merchant_id = :merchant AND starts_with(c.order_ref, :prefix)
""")
_OFFERED: Final = text("""
    SELECT extract(epoch FROM offered_at)::float8 AS offered_at FROM checkouts
     WHERE merchant_id = :merchant AND order_ref = :order_ref
""")
_EVENTS: Final = text("""
    SELECT e.checkout_id || '-' || e.sequence AS id FROM events e JOIN checkouts c ON c.id = e.checkout_id
     WHERE c.merchant_id = :merchant AND starts_with(c.order_ref, :prefix)
""")
_UNDELIVERED: Final = text("""
    SELECT EXISTS (SELECT FROM events WHERE position IS NULL) OR EXISTS (SELECT FROM delivery_streams) AS found
""")
_SERVER: Final = text("""
    SELECT current_setting('server_version') AS version, current_setting('fsync') AS fsync,
           current_setting('synchronous_commit') AS synchronous_commit
""")
_HAS_SCHEMA: Final = text("SELECT to_regclass('checkouts') IS NOT NULL AS known")
_OTHERS: Final = text("""
    SELECT (SELECT count(*) FROM (
                SELECT FROM checkouts c JOIN merchants m ON m.id = c.merchant_id
                 WHERE c.due_at IS NOT NULL AND NOT starts_with(m.name, :ours) LIMIT 1000) x) AS unsettled,
           (SELECT count(*) FROM workers WHERE kind NOT IN ('probe', 'api') AND seen_at > clock() - interval '30 seconds') AS workers
""")


@dataclass(frozen=True, slots=True)
class Left:
    """How many accepted orders have not ended, and how many of those are not even ready for the shopper."""

    open: int
    unready: int


@dataclass(frozen=True, slots=True)
class Server:
    """The database under the run."""

    version: str
    durable: bool
    """A commit is on disk when it is acknowledged."""


class DatabaseProbe:
    """The checkouts of one merchant."""

    def __init__(self, db: Database, merchant_id: int) -> None:
        self._db, self._merchant_id = db, merchant_id

    async def left(self, prefix: str) -> Left:
        row = (await self._db.read(_LEFT, self._of(prefix)))[0]
        return Left(row.open, row.unready)

    async def rows(self, prefix: str) -> list[Row]:
        return [Row(**row._asdict()) for row in await self._db.read(_ROWS, self._of(prefix))]

    async def offered_at(self, order_ref: str) -> float | None:
        """Return when an order was offered to its shopper, in seconds since 1970; None: not yet."""
        rows = await self._db.read(_OFFERED, {"merchant": self._merchant_id, "order_ref": order_ref})
        return rows[0].offered_at if rows else None

    async def events(self, prefix: str) -> set[str]:
        """Return the ids of all events of a run's orders."""
        return {row.id for row in await self._db.read(_EVENTS, self._of(prefix))}

    async def undelivered(self) -> bool:
        """Say whether any event waits for its delivery."""
        return bool((await self._db.read(_UNDELIVERED))[0].found)

    async def server(self) -> Server:
        row = (await self._db.read(_SERVER))[0]
        return Server(row.version, row.fsync == "on" and row.synchronous_commit != "off")

    def _of(self, prefix: str) -> dict[str, object]:
        return {"merchant": self._merchant_id, "prefix": f"{prefix}-"}


async def others(db: Database, *, ours: str) -> tuple[int, int]:
    """Return the unsettled checkouts that are no bench's (up to a thousand), and the running workers."""
    if not (await db.read(_HAS_SCHEMA))[0].known:
        return 0, 0
    row = (await db.read(_OTHERS, {"ours": ours}))[0]
    return row.unsettled, row.workers

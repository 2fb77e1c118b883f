"""Lists of the console, page by page, over all merchants; each page reads a bounded number of rows.

A list that is filtered reads a window of so many rows by an index, and the filter applies within it. Where a
window has fewer matches than a page, the page says up to where it was read, and the next one goes on there.
No statement depends on how rare a value is.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from sqlalchemy import text

from orchestrator.domain.ids import FIRST, LAST
from orchestrator.domain.payment_status import PaymentStatus, condition
from orchestrator.domain.states import ENDED, State
from orchestrator.store import columns, email_search
from orchestrator.store.database import run as execute
from orchestrator.store.read_model import LISTED, in_states, summary
from orchestrator.store.tables import IS_LISTED, IS_LIVE, IS_OPEN, quoted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from sqlalchemy import Row, TextClause

    from orchestrator.crypto import Encryptor
    from orchestrator.domain.attention import AttentionCode
    from orchestrator.domain.last_error import ErrorCode
    from orchestrator.store.database import Database
    from orchestrator.store.read_model import CheckoutSummary

WINDOW: Final = 5000
"""Checkouts that one page of a filtered list reads."""
MOST_READ: Final = 500_000
"""Checkouts that a bulk action or an export reads at the most."""

_NARROW: Final = "id, merchant_id, version, state, currency, amount, reserved, captured, refunded, charged_back, attention, last_error, due_at"
"""What a filter reads, and what a bulk action needs."""
_C: Final = columns.listed(LISTED, "c")


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """What checkouts are chosen by; None and empty: whatever. Amounts are in minor units of `currency`;
    `since` and `until` are ids, which are times.
    """

    merchant_id: int | None = None
    states: frozenset[State] = frozenset()
    status: PaymentStatus | None = None
    attention: AttentionCode | bool | None = None
    errors: frozenset[ErrorCode] = frozenset()
    """The last error of checkouts that have a next try."""
    currency: str | None = None
    least: int | None = None
    most: int | None = None
    since: UUID | None = None
    until: UUID | None = None

    @property
    def empty(self) -> bool:
        """Whether every row of a window matches."""
        return replace(self, merchant_id=None, since=None, until=None) == Filter()


@dataclass(frozen=True, slots=True)
class Found:
    """One page: rows, the id from which the next goes on (None: this is the last), and whether the window
    ended before the page was full.
    """

    rows: Sequence[CheckoutSummary]
    after: UUID | None
    scanned: bool


async def checkouts(db: Database, chosen: Filter, *, before: UUID | None, limit: int) -> Found:
    """Return a page of checkouts, the youngest first."""
    window = limit + 1 if chosen.empty else WINDOW
    rows = await db.read(_statement(chosen), {**_values(chosen, before), "window": window, "most": limit + 1})
    found = [summary(row) for row in rows if row.id is not None]
    if len(found) > limit:
        return Found(found[:limit], found[limit - 1].id, scanned=False)
    more = rows[0].rows == window
    return Found(found, rows[0].edge if more else None, scanned=more)


@dataclass(slots=True)
class Choice:
    """What a filter chooses, counted window by window: orders and minor units by merchant and currency.
    `cut`: it ended after `MOST_READ` checkouts, and older ones were not looked at.
    """

    number: int = 0
    amounts: dict[tuple[int, str], tuple[int, int]] = field(default_factory=dict)
    total: int = 0
    cut: bool = False

    @property
    def digest(self) -> str:
        """The same while the same checkouts of the same versions are chosen, in whatever windows."""
        return f"{self.number}/{self.total}"

    def add(self, row: Row[Any]) -> None:
        self.number += row.number
        for group in row.groups or ():
            key = group["merchant"], group["currency"]
            number, amount = self.amounts.get(key, (0, 0))
            self.amounts[key] = number + group["number"], amount + group["amount"]
        self.total += int(row.total)


async def chosen(
    read: Callable[[TextClause, Mapping[str, object]], Awaitable[Sequence[Row[Any]]]],
    wanted: Filter,
    *,
    before: UUID | None = None,
    most: int,
    run: UUID | None = None,
) -> Choice:
    """Count what a filter chooses below an id, at most so many, and store them as items of a run where one is
    named. `read` runs a statement: by itself, or within the transaction that stores the run.
    """
    found, window, read_rows = Choice(), 2 * WINDOW, 0
    statement = _choice(wanted, stored=run is not None)
    while found.number < most:
        values = {**_values(wanted, before), "window": window, "most": most - found.number, "run": run}
        (row,) = await read(statement, values)
        found.add(row)
        before = row.edge
        read_rows += row.rows
        if row.rows < window:
            break
        if read_rows >= MOST_READ:
            found.cut = True
            break
    return found


def _values(chosen: Filter, before: UUID | None) -> dict[str, object]:
    ends = [end for end in (before, chosen.until) if end is not None]
    return asdict(chosen) | {
        "before": min(ends, default=LAST),
        "since": chosen.since or FIRST,
        "largest": chosen.most,
    }


def _window(chosen: Filter) -> str:
    """Return what a window is read by, in the words of an index."""
    within = ["id < :before", "id >= :since"]
    if chosen.attention not in {None, False}:
        within.append("attention IS NOT NULL")
    elif chosen.merchant_id is not None:
        within.append(IS_OPEN if chosen.states and not chosen.states & ENDED else IS_LISTED)
    if chosen.merchant_id is not None:
        within.append("merchant_id = :merchant_id")
    return " AND ".join(within)


def _which(chosen: Filter) -> str:
    which = ["true"]
    if chosen.states:
        which.append(in_states(chosen.states))
    if chosen.status is not None:
        which.append(condition([chosen.status]))
    if chosen.attention is False:
        which.append("c.attention IS NULL")
    elif chosen.attention not in {None, True}:
        which.append("c.attention = :attention")
    if chosen.errors:
        which.append(f"c.last_error IN ({quoted(sorted(chosen.errors))}) AND c.due_at IS NOT NULL")
    if chosen.currency is not None:
        which.append("c.currency = :currency")
    if chosen.least is not None:
        which.append("c.amount >= :least")
    if chosen.most is not None:
        which.append("c.amount <= :largest")
    return " AND ".join(which)


def _statement(chosen: Filter) -> TextClause:
    return text(f"""
        WITH w AS MATERIALIZED (SELECT * FROM checkouts WHERE {_window(chosen)} ORDER BY id DESC LIMIT :window),
        r AS (SELECT (SELECT count(*) FROM w) AS rows, (SELECT id FROM w ORDER BY id LIMIT 1) AS edge)
        SELECT r.edge, r.rows, {_C}
          FROM r LEFT JOIN (SELECT * FROM w AS c WHERE {_which(chosen)} ORDER BY c.id DESC LIMIT :most) c ON true
         ORDER BY c.id DESC
    """)  # noqa: S608 - made of our own words


def _choice(chosen: Filter, *, stored: bool) -> TextClause:
    """Return the statement that counts a window's matches, and stores them as items of a run."""
    items = """, i AS (
        INSERT INTO console_run_items (run_id, checkout_id, merchant_id, version) SELECT :run, id, merchant_id, version FROM c
    )"""
    return text(f"""
        WITH w AS MATERIALIZED (SELECT {_NARROW} FROM checkouts WHERE {_window(chosen)} ORDER BY id DESC LIMIT :window),
        c AS MATERIALIZED (
            SELECT id, merchant_id, version, currency, amount FROM w AS c WHERE {_which(chosen)} ORDER BY id DESC LIMIT :most
        ){items if stored else ""}
        SELECT (SELECT count(*) FROM w) AS rows, (SELECT id FROM w ORDER BY id LIMIT 1) AS edge,
               (SELECT count(*) FROM c) AS number,
               (SELECT coalesce(sum(CAST(hashtextextended(id || '/' || version, 0) AS numeric)), 0) FROM c) AS total,
               (SELECT json_agg(json_build_object('merchant', merchant_id, 'currency', currency, 'number', number, 'amount', amount))
                  FROM (SELECT merchant_id, currency, count(*) AS number, sum(amount) AS amount FROM c GROUP BY 1, 2) g) AS groups
    """)  # noqa: S608 - made of our own words


# ── One thing by its name ─────────────────────────────────────────────────────────────────────────────────

_NAMED: Final = text(f"""
    WITH found AS MATERIALIZED (
        SELECT CAST(:id AS uuid) AS id
        UNION ALL
        SELECT c.id FROM merchants m CROSS JOIN LATERAL (
            (SELECT id FROM checkouts WHERE merchant_id = m.id AND order_ref = :name AND {IS_LIVE} LIMIT 50)
            UNION ALL
            (SELECT id FROM checkouts WHERE merchant_id = m.id AND order_ref = :name AND NOT ({IS_LIVE}) LIMIT 50)
            UNION ALL
            (SELECT checkout_id FROM payments WHERE merchant_id = m.id AND transaction_id = :name LIMIT 1)) c
    )
    SELECT {_C} FROM checkouts c WHERE c.id = ANY(ARRAY(SELECT id FROM found)) ORDER BY c.id DESC LIMIT 200
""")  # noqa: S608 - made of our own words


async def named(db: Database, name: str) -> list[CheckoutSummary]:
    """Return checkouts with this id, order number or transaction; of any merchant, the youngest first."""
    try:
        wanted: UUID | None = UUID(name)
    except ValueError:
        wanted = None
    return [summary(row) for row in await db.read(_NAMED, {"id": wanted, "name": name})]


_BY_EMAIL: Final = text(f"""
    SELECT {_C} FROM (SELECT checkout_id FROM intents WHERE email_tag = ANY(CAST(:tags AS bytea[]))
                       ORDER BY checkout_id DESC LIMIT :most) i
      JOIN checkouts c ON c.id = i.checkout_id ORDER BY c.id DESC
""")  # noqa: S608 - as above


async def of_email(
    db: Database, encryptor: Encryptor, email: str, *, limit: int
) -> Sequence[CheckoutSummary]:
    """Return the youngest checkouts of a customer's e-mail address, of any merchant."""
    rows = await db.read(_BY_EMAIL, {"tags": email_search.tags(encryptor, email), "most": limit})
    return [summary(row) for row in rows]


_MERCHANTS: Final = text("SELECT id, name FROM merchants ORDER BY id LIMIT 1000")
NAMED: Final = """CASE WHEN e.kind = 'celery'
    THEN 'Celery task ' || e.task || ' in ' || e.queue || ' at ' || coalesce(nullif(e.url, ''), 'our own broker') ELSE e.url END AS url"""
"""An endpoint for people; no URL of a broker has a login."""
_ENDPOINTS: Final = text(f"""
    SELECT e.id, e.merchant_id, m.name AS merchant, {NAMED}, e.description, e.content, e.paused_at, e.pause_reason, e.failing_since,
           e.delivered_at, e.open_until, e.open_until > clock() AS circuit_open, e.created_at, clock() AS now,
           (SELECT count(*) FROM (SELECT 1 FROM delivery_streams s WHERE s.endpoint_id = e.id LIMIT 100) s) AS waiting,
           (SELECT min(s.due_at) FROM (SELECT due_at FROM delivery_streams s WHERE s.endpoint_id = e.id
                                        ORDER BY s.due_at LIMIT 1) s) AS next_due
      FROM webhook_endpoints e JOIN merchants m ON m.id = e.merchant_id
     WHERE e.deleted_at IS NULL AND e.id > :after AND (CAST(:id AS uuid) IS NULL OR e.id = :id) ORDER BY e.id LIMIT :most
""")  # noqa: S608 - made of our own words
_FEED: Final = text("""
    WITH w AS MATERIALIZED (
        SELECT position, checkout_id, sequence, kind, payload, created_at FROM events
         WHERE merchant_id = :merchant_id AND position IS NOT NULL AND position < coalesce(CAST(:before AS int8), 9223372036854775807)
         ORDER BY position DESC LIMIT :window
    ),
    r AS (SELECT count(*) AS rows, min(position) AS edge FROM w)
    SELECT r.rows, r.edge, e.*, c.order_ref
      FROM r LEFT JOIN (SELECT * FROM w WHERE CAST(:kind AS text) IS NULL OR kind = :kind ORDER BY position DESC LIMIT :most) e ON true
      LEFT JOIN checkouts c ON c.id = e.checkout_id
     ORDER BY e.position DESC
""")
_REJECTED: Final = text("""
    SELECT r.id, r.order_ref, r.code, r.errors, r.created_at, r.message_id,
           (SELECT m.name FROM merchants m WHERE m.id = r.merchant_id) AS merchant
      FROM rejected_intents r WHERE r.id < :before ORDER BY r.id DESC LIMIT :most
""")
_SEALS: Final = text(
    "SELECT sequence, at, length(heads) AS size FROM audit_seals ORDER BY sequence DESC LIMIT :most"
)
_CALLBACKS: Final = text("""
    SELECT kind, grade, network, times, received_at, repeated_at, handled_at FROM callbacks
     WHERE checkout_id = :id ORDER BY received_at DESC LIMIT :most
""")
_EVENTS: Final = text("""
    SELECT sequence, kind, created_at, position FROM events WHERE checkout_id = :id ORDER BY sequence DESC LIMIT :most
""")
_STREAMS: Final = text(f"""
    SELECT s.endpoint_id, {NAMED}, s.purpose, s.next_sequence, s.last_sequence, s.due_at, s.attempts, s.failing_since
      FROM webhook_endpoints e JOIN delivery_streams s ON s.endpoint_id = e.id AND s.checkout_id = :id
     WHERE e.merchant_id = :merchant_id AND e.deleted_at IS NULL ORDER BY e.id LIMIT :most
""")  # noqa: S608 - as above
_CHAIN: Final = text("""
    SELECT c.id, c.audit_sequence, c.audit_head, c.state FROM checkouts c WHERE c.id = :id
""")
_ENTRIES: Final = text("""
    SELECT checkout_id, sequence, at, action, entry, key_id, mac FROM audit_entries
     WHERE checkout_id = :id ORDER BY sequence LIMIT :most
""")
_ARCHIVED: Final = text("""
    SELECT sequence, mac, state FROM archived_heads WHERE checkout_id = :id ORDER BY sequence DESC LIMIT 1
""")
_ORDER_REFS: Final = text("SELECT id, order_ref FROM checkouts WHERE id = ANY(CAST(:ids AS uuid[]))")
_DECISIONS: Final = text(f"""
    SELECT {_C}, m.name AS merchant,
           coalesce(extract(epoch FROM clock() - c.attention_since), 0)::float8 AS age
      FROM (SELECT * FROM checkouts WHERE attention IS NOT NULL AND id > :after ORDER BY id LIMIT :most) c
      JOIN merchants m ON m.id = c.merchant_id ORDER BY c.id
""")  # noqa: S608 - made of our own words


async def merchants(db: Database) -> dict[int, str]:
    """Return the names of merchants by number."""
    return {row.id: row.name for row in await db.read(_MERCHANTS)}


async def endpoints(
    db: Database, *, after: UUID = FIRST, endpoint: UUID | None = None, limit: int
) -> Sequence[Row[Any]]:
    """Return endpoints of all merchants, in the order in which they were made; or one."""
    return await db.read(_ENDPOINTS, {"after": after, "id": endpoint, "most": limit})


async def order_refs(db: Database, ids: Sequence[UUID]) -> dict[UUID, str]:
    return {row.id: row.order_ref for row in await db.read(_ORDER_REFS, {"ids": sorted(set(ids))})}


async def feed(
    db: Database, merchant_id: int, *, kind: str | None, before: int | None, limit: int
) -> tuple[Sequence[Row[Any]], int | None]:
    """Return a page of a merchant's feed, the youngest first, and the position from which the next goes on.
    With a kind it reads a window of so many events, and may have fewer than `limit`.
    """
    window = limit + 1 if kind is None else WINDOW
    asked = {"merchant_id": merchant_id, "before": before, "window": window, "kind": kind, "most": limit + 1}
    rows = await db.read(_FEED, asked)
    found = [row for row in rows if row.position is not None]
    if len(found) > limit:
        return found[:limit], found[limit - 1].position
    return found, rows[0].edge if rows[0].rows == window else None


async def rejected(db: Database, *, before: UUID | None, limit: int) -> Sequence[Row[Any]]:
    """Return rejected intents of all merchants and of none, the youngest first."""
    return await db.read(_REJECTED, {"before": before or LAST, "most": limit})


async def seals(db: Database, *, limit: int) -> Sequence[Row[Any]]:
    return await db.read(_SEALS, {"most": limit})


async def decisions(db: Database, *, after: UUID, limit: int) -> Sequence[Row[Any]]:
    """Return checkouts that need a decision, the oldest first, with merchant and age in seconds."""
    return await db.read(_DECISIONS, {"after": after, "most": limit})


async def callbacks(db: Database, checkout: UUID, *, limit: int) -> Sequence[Row[Any]]:
    """Return the last callbacks of a checkout, the oldest first, without their content."""
    return (await db.read(_CALLBACKS, {"id": checkout, "most": limit}))[::-1]


async def events(db: Database, checkout: UUID, *, limit: int) -> Sequence[Row[Any]]:
    """Return the last events of a checkout, the youngest first."""
    return await db.read(_EVENTS, {"id": checkout, "most": limit})


async def streams(db: Database, checkout: UUID, *, merchant_id: int, limit: int) -> Sequence[Row[Any]]:
    """Return what is still to be sent of a checkout, by endpoint."""
    return await db.read(_STREAMS, {"id": checkout, "merchant_id": merchant_id, "most": limit})


async def chain(
    db: Database, checkout: UUID, *, limit: int
) -> tuple[Row[Any] | None, Sequence[Row[Any]], Row[Any] | None]:
    """Return the head of a checkout's chain, its entries, and the head that an archive has, of one moment."""
    async with db.snapshot() as tx:
        heads = await execute(tx, _CHAIN, {"id": checkout})
        archived = await execute(tx, _ARCHIVED, {"id": checkout})
        entries = await execute(tx, _ENTRIES, {"id": checkout, "most": limit})
    return heads[0] if heads else None, entries, archived[0] if archived else None

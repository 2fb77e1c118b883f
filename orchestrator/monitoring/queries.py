"""The statements behind the gauges. Each reads one snapshot; none takes a lock, and none relies on the
planner's statistics for what is few among many: partial indexes cover it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from orchestrator import counters
from orchestrator.domain import money
from orchestrator.domain.payment_status import IN_SQL
from orchestrator.monitoring.catalogue import AGES, MERCHANTS, QUEUES
from orchestrator.processing import lookup_budget
from orchestrator.store import due_work, readiness, status

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from orchestrator.store.database import Database

Values = dict[str, dict[tuple[str, ...], float]]
"""Figures by metric, without the prefix, and by the values of its labels."""

OTHERS: Final = "(others)"


def _age(column: str) -> str:
    return f"coalesce(extract(epoch FROM t.now - {column}), 0)::float8"


# Calls of a paused merchant wait on purpose, and events of a disabled one are not sent: neither is a backlog.
_ACTIVE: Final = "NOT IN (SELECT id FROM merchants WHERE paused_at IS NOT NULL)"
_ENABLED: Final = "NOT IN (SELECT id FROM merchants WHERE disabled_at IS NOT NULL)"
_BUCKET: Final = (
    "CASE "
    + " ".join(f"WHEN age < {end:.0f} THEN '{name}'" for name, end in AGES[:-1])
    + f" ELSE '{AGES[-1][0]}' END"
)

_PROCESSES = text(f"""
    SELECT name, kind, progress - 'counters' AS progress, extract(epoch FROM clock() - seen_at)::float8 AS age,
           extract(epoch FROM now())::float8 AS now
      FROM workers WHERE kind <> 'probe' AND seen_at > clock() - interval '{readiness.SEEN_WITHIN:.0f} seconds'
""")  # noqa: S608 - our own number
_ATTENTION = text(f"""
    WITH t AS MATERIALIZED (SELECT clock() AS now)
    SELECT attention AS code, count(*) AS number, max({_age("attention_since")}) AS age FROM checkouts, t
     WHERE attention IS NOT NULL GROUP BY attention
""")  # noqa: S608 - our own names
_OPERATIONS = text("""
    SELECT kind, state, count(*) AS number FROM money_operations
     WHERE state IN ('requested', 'submitted', 'unknown') GROUP BY kind, state
""")
# What is left of a payment (`domain.records.left_to`) whose capture, release or decision is still to come.
_LEFT: Final = "CASE WHEN p.captured > 0 THEN p.captured - p.refunded - p.charged_back ELSE p.reserved END"
_RISK = text(f"""
    WITH t AS MATERIALIZED (SELECT clock() AS now),
    risk AS (
        SELECT 'operation' AS kind, currency, amount, {_age("coalesce(submitted_at, requested_at)")} AS age
          FROM money_operations, t WHERE state IN ('requested', 'submitted', 'unknown')
        UNION ALL
        SELECT 'attention', p.currency, p.amount, {_age("a.attention_since")} FROM t CROSS JOIN ({status.decisions(None)}) a {status.PAYMENTS}
         WHERE p.amount > 0
        UNION ALL
        -- What was decided, by a person or a policy, leaves no attention.
        SELECT 'surplus', p.currency, {_LEFT}, {_age("p.first_seen_at")} FROM payments p CROSS JOIN t LEFT JOIN checkouts c ON c.id = p.checkout_id
         WHERE p.role = 'surplus' AND (c.id IS NULL OR c.attention IS NOT NULL) AND p.meaning IN ('reserved', 'captured', 'refunded', 'unknown') AND {_LEFT} > 0
        UNION ALL
        SELECT 'unknown', p.currency, {_LEFT}, {_age("p.first_seen_at")} FROM payments p CROSS JOIN t LEFT JOIN checkouts c ON c.id = p.checkout_id
         WHERE p.role = 'unknown' AND (c.id IS NULL OR c.attention IS NOT NULL) AND p.meaning IN ('reserved', 'captured', 'refunded', 'unknown') AND {_LEFT} > 0
        UNION ALL
        SELECT 'callback', c.currency, c.amount, b.age FROM (
            SELECT b.checkout_id, max({_age("b.received_at")}) AS age FROM callbacks b, t
             WHERE b.handled_at IS NULL AND b.checkout_id IS NOT NULL AND b.kind IN ('success', 'notification')
               AND b.grade IN ('signed', 'checksum')
             GROUP BY b.checkout_id) b JOIN checkouts c ON c.id = b.checkout_id
         WHERE c.state <> 'completed' AND c.merchant_id {_ACTIVE}
    )
    SELECT kind, currency, {_BUCKET} AS bucket, sum(amount)::bigint AS amount FROM risk GROUP BY kind, currency, bucket
""")  # noqa: S608 - our own names
_WEBHOOKS = text(f"""
    SELECT CASE WHEN paused_at IS NULL AND opened > 0 THEN 'circuit_open' WHEN paused_at IS NULL THEN 'served'
                WHEN pause_reason = 'asked' THEN 'paused' ELSE 'off' END AS state, count(*) AS number
      FROM webhook_endpoints WHERE deleted_at IS NULL AND merchant_id {_ENABLED} GROUP BY 1
""")  # noqa: S608 - our own names
_WAITING = text(f"""
    WITH t AS MATERIALIZED (SELECT clock() AS now),
    w AS MATERIALIZED ({due_work.waiting(":grace")}),
    m AS (SELECT merchant AS name, count(*) AS number, max(age) AS age FROM w GROUP BY merchant),
    r AS (SELECT *, row_number() OVER (ORDER BY age DESC, name) > :merchants AS other FROM m)
    SELECT 'queue' AS what, CASE WHEN woken THEN 'callbacks' ELSE 'checkouts' END AS name, count(*) AS number,
           max(age) AS age, max(age) FILTER (WHERE hinted) AS hinted FROM w GROUP BY 2
    UNION ALL
    SELECT 'merchant', CASE WHEN other THEN '{OTHERS}' ELSE name END, sum(number)::bigint, max(age), NULL FROM r GROUP BY 2
    UNION ALL
    SELECT 'queue', 'commands', count(*), max({_age("requested_at")}), NULL FROM commands, t
     WHERE handled_at IS NULL AND merchant_id {_ACTIVE}
    UNION ALL
    SELECT 'queue', 'operations', count(*), max({_age("requested_at")}), NULL FROM money_operations, t
     WHERE state IN ('requested', 'submitted', 'unknown') AND merchant_id {_ACTIVE}
    UNION ALL
    SELECT 'queue', 'events', count(*), max({_age("created_at")}), NULL FROM events, t WHERE position IS NULL
    UNION ALL
    SELECT 'queue', 'deliveries', count(*), max({_age("least(d.due_at, d.failing_since)")}), NULL FROM webhook_endpoints e, t, LATERAL (
        SELECT due_at, failing_since FROM delivery_streams s
         WHERE s.endpoint_id = e.id AND s.purpose <> 'test' AND (s.due_at <= t.now OR s.failing_since IS NOT NULL)) d
     WHERE e.deleted_at IS NULL AND e.paused_at IS NULL AND e.merchant_id {_ENABLED}
""")  # noqa: S608 - our own names
_BOOKS = text(f"""
    WITH t AS MATERIALIZED (SELECT clock() AS now)
    SELECT state, payment_status, currency, bucket, count(*) AS number, sum(reserved)::bigint AS reserved, sum(captured)::bigint AS captured,
           sum(refunded)::bigint AS refunded, sum(charged_back)::bigint AS charged_back
      FROM (SELECT *, CASE WHEN age IS NOT NULL THEN {_BUCKET} END AS bucket
              FROM (SELECT state, {IN_SQL} AS payment_status, currency, reserved, captured, refunded, charged_back,
                           CASE WHEN state = 'completed' AND reserved > captured THEN {_age("ended_at")} END AS age
                      FROM checkouts, t) a) b
     GROUP BY 1, 2, 3, 4
""")  # noqa: S608 - our own names
_COUNTS = text("""
    SELECT series, sum(value)::float8 AS value FROM (
        SELECT series, value FROM counter_totals
        UNION ALL
        SELECT c.key, CAST(c.value AS float8) FROM workers w CROSS JOIN LATERAL jsonb_each_text(w.progress->'counters') c) s
     GROUP BY series
""")


async def read_now(db: Database, _: float) -> Values:
    """Read processes, circuits, attention, operations, money at risk and webhooks."""
    found: Values = {"broker_messages": {}, "circuit_open_seconds": {}}
    before = time.time()
    _put_processes(found, await db.read(_PROCESSES), before)
    rows = await db.read(_ATTENTION)
    found["attention"] = {(row.code,): float(row.number) for row in rows}
    found["attention_oldest_seconds"] = {(row.code,): row.age for row in rows}
    found["operations"] = {(row.kind, row.state): float(row.number) for row in await db.read(_OPERATIONS)}
    found["money_at_risk"] = {
        (row.currency, row.kind, row.bucket): _units(row.amount, row.currency) for row in await db.read(_RISK)
    }
    found["webhooks"] = {(row.state,): float(row.number) for row in await db.read(_WEBHOOKS)}
    return found


def _put_processes(found: Values, rows: Iterable[Any], before: float) -> None:
    for name in ("processes", "process_memory_bytes", "process_troubles"):
        found[name] = {(kind,): 0.0 for kind in ("api", "worker", "scheduler", "deliverer")}
    clocks = found["clock_difference_seconds"] = {}
    after = time.time()
    # The youngest comes last: what it says of a queue holds.
    for row in sorted(rows, key=lambda row: -row.age):
        # The clock of this host, and those that other processes have compared.
        own = row.now - min(max(row.now, before), after)
        for kind, apart in (("api", own), (row.kind, float(row.progress.get("clockSeconds", 0.0)))):
            clocks[kind,] = max(clocks.get((kind,), 0.0), apart, key=abs)
        process = readiness.Process(row.name, row.kind, row.age, row.progress)
        kind = (row.kind,)
        for name, value in (
            ("processes", 1.0),
            ("process_memory_bytes", float(row.progress.get("memoryBytes", 0))),
            ("process_troubles", float(len(process.troubles))),
        ):
            found[name][kind] = found[name].get(kind, 0.0) + value
        for queue, number in row.progress.get("queued", {}).items():
            found["broker_messages"][queue,] = float(number)
        for circuit in row.progress.get("circuits", ()):
            gateway = (str(circuit.get("gateway", ""))[:80],)
            since = float(circuit.get("since", 0.0)) + row.age
            found["circuit_open_seconds"][gateway] = max(
                found["circuit_open_seconds"].get(gateway, 0.0), since
            )


async def read_waiting(db: Database, grace: float) -> Values:
    """Read what waits, and for how long; `grace` are the seconds between a hint and its due time."""
    found: Values = {
        "waiting": {(queue,): 0.0 for queue in QUEUES},
        "oldest_due_seconds": {(queue,): 0.0 for queue in QUEUES},
        "oldest_hint_seconds": {("checkouts",): 0.0, ("callbacks",): 0.0},
        "merchant_waiting": {},
        "merchant_oldest_due_seconds": {},
    }
    for row in await db.read(_WAITING, {"grace": grace, "merchants": MERCHANTS}):
        if row.what == "merchant":
            found["merchant_waiting"][row.name,] = float(row.number)
            found["merchant_oldest_due_seconds"][row.name,] = row.age
            continue
        found["waiting"][row.name,] = float(row.number)
        found["oldest_due_seconds"][row.name,] = max(row.age or 0.0, 0.0)
        if row.hinted is not None:
            found["oldest_hint_seconds"][row.name,] = row.hinted
    queues = await lookup_budget.queues(db)
    found["waiting"]["lookups",] = float(sum(queue.waiting for queue in queues))
    found["oldest_due_seconds"]["lookups",] = max((queue.age for queue in queues), default=0.0)
    return found


async def read_books(db: Database, _: float) -> Values:
    """Count all checkouts, and add up their money."""
    numbers: dict[tuple[str, ...], float] = defaultdict(float)
    sums: dict[tuple[str, str], int] = defaultdict(int)
    uncaptured: dict[tuple[str, str], int] = defaultdict(int)
    for row in await db.read(_BOOKS):
        numbers[row.state, row.payment_status] += row.number
        for fact in ("reserved", "captured", "refunded", "charged_back"):
            sums[row.currency, fact] += getattr(row, fact)
        if row.bucket is not None:
            uncaptured[row.currency, row.bucket] += row.reserved - row.captured
    return {
        "checkouts": dict(numbers),
        "money": {key: _units(amount, key[0]) for key, amount in sums.items()},
        "money_at_risk": {
            (currency, "uncaptured", bucket): _units(amount, currency)
            for (currency, bucket), amount in uncaptured.items()
        },
    }


async def read_counts(db: Database, _: float) -> Values:
    """Read what all processes have counted: by the names and keys of `counters`."""
    found: Values = {}
    for row in await db.read(_COUNTS):
        name, *labels = row.series.split(counters.SEPARATOR)
        found.setdefault(name, {})[tuple(labels)] = row.value
    return found


GROUPS: Final[dict[str, Callable[[Database, float], Awaitable[Values]]]] = {
    "now": read_now,
    "waiting": read_waiting,
    "counts": read_counts,
    "books": read_books,
}


def _units(amount: int, currency: str) -> float:
    """Return minor units in units of the currency; of a currency that is not known, as they are."""
    decimal = money.decimal_or_none(amount, currency)
    return float(amount if decimal is None else decimal)

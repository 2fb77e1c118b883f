"""How an installation stands, for one screen: what waits for a person, for a worker and for the gateway.

Each statement reads at most `AT_MOST` rows of each kind by a partial index, and nothing of finished
checkouts: among millions of rows it costs milliseconds. A number that is `AT_MOST` may be more. Money that is
reserved and not captured is in no index, and is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from orchestrator.domain.ids import first_id
from orchestrator.domain.states import State
from orchestrator.store import due_work, readiness, webhooks
from orchestrator.store.columns import record
from orchestrator.store.tables import IS_OPEN
from orchestrator.text import duration

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from orchestrator.store.database import Database
    from orchestrator.store.readiness import Process

AT_MOST: Final = 5000
"""Rows of one kind that are read."""
RECENT: Final = 60
"""Seconds in which new checkouts are counted."""

_NOW = text("SELECT clock() AS clock, now() AS now")
_OPEN = text(f"""
    SELECT o.state AS name, count(*) AS number, count(o.last_error) AS failing,
           extract(epoch FROM clock() - min(o.created_at))::float8 AS age
      FROM (SELECT c.state, c.created_at, c.last_error FROM merchants m CROSS JOIN LATERAL (
                SELECT state, created_at, last_error FROM checkouts WHERE merchant_id = m.id AND {IS_OPEN} ORDER BY id LIMIT {AT_MOST}) c
             LIMIT {AT_MOST}) o
     GROUP BY o.state
""")  # noqa: S608 - made of our own words


def decisions(most: int | None) -> str:
    """Return the SELECT of checkouts that wait for a decision, at most so many (None: all), with the amount
    of their order; of a chargeback with what was taken back, which its payments no longer hold.
    """
    return f"""
        SELECT id, attention, attention_details AS details, attention_since, currency,
               CASE attention WHEN 'charged_back' THEN charged_back ELSE amount END AS amount FROM checkouts
         WHERE attention IS NOT NULL ORDER BY id LIMIT {"ALL" if most is None else most}
    """  # noqa: S608 - made of our own words


PAYMENTS: Final = """CROSS JOIN LATERAL (
    SELECT coalesce(x ->> 'currency', a.currency) AS currency,
           CASE WHEN x = '{}' THEN a.amount ELSE CAST(x ->> 'amount' AS int8) END AS amount
      FROM jsonb_array_elements(CASE WHEN a.attention <> 'charged_back' AND jsonb_typeof(a.details -> 'payments') = 'array'
                                      AND jsonb_array_length(a.details -> 'payments') > 0
                                THEN a.details -> 'payments' ELSE '[{}]' END) x) p"""
"""What a decision `a` is about: the payments that it names, or the whole order where it names none. The
amount of a payment that is not readable is null."""
_DECISIONS = text(f"""
    SELECT a.attention AS name, p.currency, coalesce(sum(p.amount), 0)::int8 AS amount, count(DISTINCT a.id) AS number,
           coalesce(extract(epoch FROM clock() - min(a.attention_since)), 0)::float8 AS age
      FROM ({decisions(AT_MOST)}) a {PAYMENTS}
     GROUP BY a.attention, p.currency ORDER BY age DESC
""")  # noqa: S608 - made of our own words
_OPERATIONS = text(f"""
    SELECT kind AS name, state, currency, sum(amount)::int8 AS amount, count(*) AS number,
           extract(epoch FROM clock() - min(coalesce(submitted_at, requested_at)))::float8 AS age
      FROM (SELECT * FROM money_operations WHERE state IN ('requested', 'submitted', 'unknown')
             ORDER BY merchant_id, transaction_id LIMIT {AT_MOST}) o
     GROUP BY kind, state, currency ORDER BY age DESC
""")  # noqa: S608 - made of our own numbers
_QUEUES = text(f"""
    WITH t AS MATERIALIZED (SELECT clock() AS now),
    due AS MATERIALIZED (SELECT age FROM ({due_work.waiting(":grace", most=AT_MOST)}) w LIMIT {AT_MOST}),
    callback AS MATERIALIZED (
        SELECT received_at AS since FROM callbacks WHERE handled_at IS NULL AND checkout_id IS NOT NULL
         ORDER BY checkout_id LIMIT {AT_MOST}
    ),
    command AS MATERIALIZED (
        SELECT requested_at AS since FROM commands WHERE handled_at IS NULL ORDER BY checkout_id LIMIT {AT_MOST}
    ),
    delivery AS MATERIALIZED (
        SELECT least(d.due_at, d.failing_since) AS since FROM webhook_endpoints e CROSS JOIN LATERAL (
            SELECT due_at, failing_since FROM delivery_streams WHERE endpoint_id = e.id AND due_at <= (SELECT now FROM t)
             ORDER BY due_at LIMIT {AT_MOST}) d
          JOIN merchants m ON m.id = e.merchant_id AND m.disabled_at IS NULL
         WHERE e.deleted_at IS NULL AND e.paused_at IS NULL LIMIT {AT_MOST}
    )
    SELECT 'checkouts' AS name, count(*) AS number, coalesce(max(age), 0)::float8 AS age FROM due
    UNION ALL
    SELECT q.name, q.number, coalesce(extract(epoch FROM t.now - q.since), 0)::float8 AS age FROM t CROSS JOIN LATERAL (
        SELECT 'callbacks' AS name, count(*) AS number, min(since) AS since FROM callback
        UNION ALL SELECT 'commands', count(*), min(since) FROM command
        UNION ALL SELECT 'deliveries', count(*), min(since) FROM delivery) q
""")  # noqa: S608 - made of our own numbers
# By the primary key: ids begin with the time at which they were made.
_CREATED = text(f"""
    SELECT count(*) AS number FROM (SELECT 1 FROM checkouts WHERE id >= CAST(:first AS uuid) ORDER BY id LIMIT {AT_MOST}) c
""")  # noqa: S608 - made of our own numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """So many of a kind, with the age of the oldest in seconds; `number` is at most `AT_MOST`."""

    name: str
    number: int
    age: float
    failing: int = 0
    """Of open checkouts those whose last step at the gateway failed, and will be tried again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Money:
    """Money that waits, in minor units; `name` is an attention's code, or an operation's kind."""

    name: str
    number: int
    currency: str
    amount: int
    age: float
    state: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """One reading, at a moment of the database's clock."""

    at: datetime
    decisions: Sequence[Money]
    operations: Sequence[Money]
    open: Sequence[Waiting]
    """Checkouts whose shopper may still pay, by state."""
    queues: Sequence[Waiting]
    created: int
    """Checkouts of the last `RECENT` seconds, at most `AT_MOST`."""
    processes: Sequence[Process]
    problems: Sequence[str]

    @property
    def alive(self) -> Mapping[str, tuple[int, float]]:
        """Live processes by kind: how many, and the age of the oldest heartbeat in seconds."""
        found: dict[str, tuple[int, float]] = {}
        for process in self.processes:
            if process.alive:
                number, age = found.get(process.kind, (0, 0.0))
                found[process.kind] = number + 1, max(age, process.age)
        return found


async def read(db: Database, *, grace: float) -> Status:
    """Read how the installation stands; `grace` are the seconds between a hint and its due time."""
    (now,) = await db.read(_NOW)
    opened = {row.name: record(Waiting, row) for row in await db.read(_OPEN)}
    queues = [record(Waiting, row, failing=0) for row in await db.read(_QUEUES, {"grace": grace})]
    unplaced = await readiness.unplaced(db)
    queues.append(Waiting(name="events", number=unplaced.number, age=unplaced.age))
    processes = await readiness.processes(db)
    (created,) = await db.read(_CREATED, {"first": first_id(now.now - timedelta(seconds=RECENT))})
    return Status(
        at=now.clock,
        decisions=[record(Money, row, state=None) for row in await db.read(_DECISIONS)],
        operations=[record(Money, row) for row in await db.read(_OPERATIONS)],
        open=[opened[state] for state in State if state in opened],
        queues=queues,
        created=created.number,
        processes=processes,
        problems=[
            *readiness.troubles(processes),
            *await webhooks.troubles(db, processes),
            *await webhooks.failing(db),
            *_overdue(queues, unplaced),
        ],
    )


def _overdue(queues: Sequence[Waiting], unplaced: readiness.Unplaced) -> list[str]:
    """Return which queues are not worked on, a sentence each."""
    found = [
        f"the oldest of the due checkouts has waited for {duration(queue.age)} for a worker"
        for queue in queues
        if queue.name == "checkouts" and queue.age > readiness.OVERDUE
    ]
    if unplaced.overdue:
        found.append(f"events have waited for {duration(unplaced.age)} for their place in the feed")
    return found

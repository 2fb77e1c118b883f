"""The overview: what is at stake and what waits, in one statement that reads a bounded number of rows.

Counts stop at a bound, and say so (`AT_MOST`, `full`). Each list of rows is read in the order of an index, or
the planner may read the whole table where its statistics are old. Money that is reserved and not captured is
in no index, so that nothing is added to the path of an order: `Held` reads it in slices by primary key, a
slice with each overview, and says how far it is.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from sqlalchemy import text

from orchestrator.domain.ids import first_id
from orchestrator.store.status import PAYMENTS, decisions
from orchestrator.store.tables import IS_OPEN
from orchestrator.store.tables.console import IS_UNFINISHED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from orchestrator.store.database import Database

AT_MOST: Final = 1000
"""Rows of one kind that are counted."""
SLICE: Final = 1500
"""Checkouts of which money is read with one overview."""
SAMPLED: Final = 60
"""Checkouts of each five minutes from which rate and latency are taken."""
HELD_FOR: Final = timedelta(days=35)
"""A reservation is at the gateway no longer than that (Visa: 7 days, others up to 30)."""
AGES: Final = (("under 1 day", 86_400.0), ("1 to 6 days", 6 * 86_400.0), ("over 6 days", float("inf")))
OLDEST: Final = AGES[-1][0]
BUCKETS: Final = 12
BUCKET: Final = 300

# Of a checkout the version changes with each write of a worker, `wake` with each arrival.
_MARKS: Final = f"""
    SELECT 'order:' || id AS topic, version || '/' || wake || '/' || (lease IS NOT NULL)::text || '/' || (
           SELECT count(*) FROM (SELECT 1 FROM commands k WHERE k.checkout_id = c.id AND handled_at IS NULL LIMIT 20) k) AS mark
      FROM checkouts c WHERE id = ANY(CAST(:checkouts AS uuid[]))
    UNION ALL
    SELECT 'run:' || id, state || '/' || accepted || '/' || refused FROM console_runs WHERE id = ANY(CAST(:runs AS uuid[]))
    UNION ALL
    SELECT 'decisions', md5(coalesce(string_agg(id || ' ' || version, ',' ORDER BY id), '')) FROM (
        SELECT id, version FROM checkouts WHERE :decisions AND attention IS NOT NULL ORDER BY id LIMIT 500) d
    UNION ALL
    SELECT 'approvals', md5(coalesce(string_agg(CAST(id AS text), ',' ORDER BY id), '')) FROM (
        SELECT id FROM console_approvals WHERE :approvals AND ({IS_UNFINISHED}) AND expires_at > clock() ORDER BY id LIMIT 100) a
"""  # noqa: S608 - made of our own words
_FOLLOWED: Final = text(_MARKS)
NOTHING_FOLLOWED: Final[Mapping[str, object]] = {
    "checkouts": [],
    "runs": [],
    "decisions": False,
    "approvals": False,
}

_OVERVIEW: Final = text(f"""
    WITH t AS MATERIALIZED (SELECT clock() AS now),
    opened AS MATERIALIZED (
        SELECT m.name AS merchant, c.state, c.created_at, c.last_error, c.last_error_details FROM merchants m CROSS JOIN LATERAL (
            SELECT state, created_at, last_error, last_error_details FROM checkouts WHERE merchant_id = m.id AND {IS_OPEN}
             ORDER BY id LIMIT {AT_MOST}) c LIMIT {AT_MOST}
    ),
    asked AS MATERIALIZED ({decisions(AT_MOST)}),
    moving AS MATERIALIZED (
        SELECT checkout_id, kind, state, currency, amount, coalesce(submitted_at, requested_at) AS since FROM money_operations
         WHERE state IN ('requested', 'submitted', 'unknown') ORDER BY merchant_id, transaction_id LIMIT {AT_MOST}
    ),
    due AS MATERIALIZED (
        SELECT d.due_at FROM merchants m CROSS JOIN LATERAL (
            SELECT due_at FROM checkouts WHERE merchant_id = m.id AND due_at IS NOT NULL AND due_at <= (SELECT now FROM t)
             ORDER BY due_at LIMIT {AT_MOST}) d LIMIT {AT_MOST}
    ),
    streams AS MATERIALIZED (
        SELECT s.checkout_id, s.purpose, s.due_at, s.failing_since FROM webhook_endpoints e CROSS JOIN LATERAL (
            SELECT checkout_id, purpose, due_at, failing_since FROM delivery_streams WHERE endpoint_id = e.id
             ORDER BY due_at LIMIT {AT_MOST}) s WHERE e.deleted_at IS NULL LIMIT {AT_MOST}
    ),
    unsent AS MATERIALIZED (
        SELECT s.checkout_id, s.since, c.currency, c.amount, c.ended_at, c.state FROM (
            SELECT checkout_id, min(coalesce(failing_since, due_at)) AS since FROM streams WHERE purpose = 'event' GROUP BY checkout_id) s
         CROSS JOIN LATERAL (SELECT currency, amount, ended_at, state FROM checkouts WHERE id = s.checkout_id LIMIT 1) c
    ),
    unread AS MATERIALIZED (
        SELECT received_at FROM callbacks WHERE handled_at IS NULL AND checkout_id IS NOT NULL ORDER BY checkout_id LIMIT {AT_MOST}
    ),
    slice AS MATERIALIZED (
        SELECT id, state, currency, reserved, captured, ended_at, created_at FROM checkouts WHERE id > :after ORDER BY id LIMIT {SLICE}
    )
    SELECT (SELECT now FROM t) AS now,
      (SELECT json_object_agg(name, number >= {AT_MOST}) FROM (
           SELECT 'open' AS name, count(*) AS number FROM opened UNION ALL SELECT 'attention', count(*) FROM asked
           UNION ALL SELECT 'moving', count(*) FROM moving UNION ALL SELECT 'due', count(*) FROM due
           UNION ALL SELECT 'unsent', count(*) FROM streams UNION ALL SELECT 'unread', count(*) FROM unread) f) AS "full",
      (SELECT json_agg(json_build_object('state', state, 'number', number, 'oldest', oldest)) FROM (
           SELECT state, count(*) AS number, min(created_at) AS oldest FROM opened GROUP BY state ORDER BY state) o) AS open,
      (SELECT json_agg(json_build_object('code', attention, 'currency', currency, 'number', number, 'amount', amount, 'oldest', oldest)) FROM (
           SELECT attention, p.currency, count(DISTINCT a.id) AS number, sum(p.amount) AS amount, min(attention_since) AS oldest
             FROM asked a {PAYMENTS} GROUP BY attention, p.currency ORDER BY oldest) a) AS attention,
      (SELECT json_agg(json_build_object('code', attention, 'number', number, 'oldest', oldest)) FROM (
           SELECT attention, count(*) AS number, min(attention_since) AS oldest FROM asked GROUP BY attention ORDER BY oldest) q) AS questions,
      (SELECT json_agg(json_build_object('kind', kind, 'state', state, 'currency', currency, 'number', number, 'amount', amount, 'oldest', oldest)) FROM (
           SELECT kind, state, currency, count(DISTINCT checkout_id) AS number, sum(amount) AS amount, min(since) AS oldest FROM moving
            GROUP BY kind, state, currency ORDER BY oldest) x) AS moving,
      (SELECT json_build_object('number', count(*), 'oldest', min(due_at)) FROM due) AS due,
      (SELECT json_build_object('number', count(*), 'oldest', min(received_at)) FROM unread) AS unread,
      (SELECT json_agg(json_build_object('currency', currency, 'number', number, 'amount', amount, 'oldest', oldest)) FROM (
           SELECT currency, count(*) AS number, sum(amount) AS amount, min(ended_at) AS oldest FROM unsent
            WHERE state = 'completed' AND ended_at < (SELECT now FROM t) - interval '1 minute' GROUP BY currency ORDER BY currency) u) AS untold,
      (SELECT json_build_object('number', count(*), 'oldest', min(since)) FROM unsent) AS unsent,
      (SELECT json_agg(json_build_object('grade', grade, 'number', number, 'lag', lag)) FROM (
           SELECT grade, count(*) AS number,
                  extract(epoch FROM percentile_cont(0.95) WITHIN GROUP (ORDER BY handled_at - received_at)) AS lag
             FROM (SELECT grade, received_at, handled_at FROM callbacks ORDER BY id DESC LIMIT 500) b
            GROUP BY grade ORDER BY number DESC) g) AS callbacks,
      (SELECT json_agg(json_build_object('at', at, 'number', number, 'seconds', seconds, 'half', half, 'most', most) ORDER BY at) FROM (
           SELECT b.at, count(s.created_at) AS number, extract(epoch FROM max(s.created_at) - min(s.created_at)) AS seconds,
                  percentile_cont(0.5) WITHIN GROUP (ORDER BY s.took) AS half, percentile_cont(0.99) WITHIN GROUP (ORDER BY s.took) AS most
             FROM (SELECT n, CAST(:ids AS uuid[]) AS ids, (SELECT now FROM t) - make_interval(secs => ({BUCKETS} - n) * {BUCKET}) AS at
                     FROM generate_series(0, {BUCKETS - 1}) n) b
             LEFT JOIN LATERAL (
                  SELECT created_at, extract(epoch FROM offered_at - created_at) AS took FROM checkouts c
                   WHERE c.id >= b.ids[b.n + 1] AND c.id < b.ids[b.n + 2] ORDER BY c.id LIMIT {SAMPLED}) s ON true
            GROUP BY b.at) r) AS rate,
      (SELECT json_agg(json_build_object('name', name, 'kind', kind, 'progress', progress - 'counters',
                                         'age', extract(epoch FROM (SELECT now FROM t) - seen_at)) ORDER BY kind, name)
         FROM (SELECT * FROM workers WHERE kind <> 'probe' ORDER BY seen_at DESC LIMIT 100) w) AS processes,
      (SELECT json_agg(json_build_object('merchant', merchant, 'code', last_error, 'reason', reason, 'number', number)) FROM (
           SELECT merchant, last_error, count(*) AS number, mode() WITHIN GROUP (ORDER BY last_error_details->>'reason') AS reason FROM opened
            WHERE last_error IS NOT NULL AND last_error <> 'needs_decision' GROUP BY merchant, last_error ORDER BY number DESC LIMIT 20) e) AS errors,
      (SELECT json_agg(json_build_object('id', e.id, 'url', CASE WHEN e.kind = 'celery' THEN 'Celery task ' || e.task ELSE e.url END, 'merchant', m.name, 'failing_since', e.failing_since,
                                         'pause_reason', e.pause_reason)) FROM (
           SELECT * FROM webhook_endpoints WHERE deleted_at IS NULL AND (failing_since IS NOT NULL OR pause_reason IS NOT NULL)
            ORDER BY failing_since LIMIT 20) e JOIN merchants m ON m.id = e.merchant_id) AS endpoints,
      (SELECT json_agg(json_build_object('merchant', name, 'since', paused_at)) FROM (
           SELECT name, paused_at FROM merchants WHERE paused_at IS NOT NULL ORDER BY paused_at LIMIT 20) p) AS paused,
      (SELECT count(*) FROM (SELECT 1 FROM console_approvals WHERE ({IS_UNFINISHED}) AND expires_at > (SELECT now FROM t) LIMIT 100) a) AS approvals,
      (SELECT json_agg(json_build_object('id', id, 'state', state, 'currency', currency, 'held', reserved - captured,
                                         'age', extract(epoch FROM (SELECT now FROM t) - coalesce(ended_at, created_at))))
         FROM slice WHERE state = 'completed' AND reserved > captured AND captured = 0) AS held,
      (SELECT json_object_agg(topic, mark) FROM ({_MARKS}) k) AS marks,
      (SELECT json_build_object('last', max(CAST(id AS text)), 'number', count(*)) FROM slice) AS reached
""")  # noqa: S608 - made of our own numbers and words


@dataclass(slots=True)
class Held:
    """Money that is reserved and not captured, by currency and age. `total` is of the last complete reading;
    `at` when that ended, by the clock of the database.
    """

    total: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    at: datetime | None = None
    reading: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    after: UUID | None = None

    def begin(self, now: datetime) -> UUID:
        """Return the id after which the next slice begins."""
        if self.after is None:
            self.after = first_id(now - HELD_FOR)
        return self.after

    def add(self, rows: Sequence[Mapping[str, Any]], last: str | None, number: int, now: datetime) -> None:
        """Take a slice; one that is not full is the last."""
        for row in rows:
            age = next(name for name, most in AGES if row["age"] < most)
            key = str(row["currency"]), age
            count, amount = self.reading.get(key, (0, 0))
            self.reading[key] = count + 1, amount + int(row["held"])
        if number == SLICE and last is not None:
            self.after = UUID(last)
        else:
            self.total, self.at, self.reading, self.after = self.reading, now, {}, None

    def share(self, now: datetime) -> float:
        """Return how much of the first reading is done, by time covered: 0 to 1."""
        if self.after is None:
            return 0.0
        covered = (self.after.int >> 80) / 1000 - (now - HELD_FOR).timestamp()
        return min(max(covered / HELD_FOR.total_seconds(), 0.0), 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """What the statement found; amounts in minor units, times by the clock of the database."""

    now: datetime
    found: Mapping[str, Any]
    marks: Mapping[str, str]
    held: Mapping[tuple[str, str], tuple[int, int]]
    held_at: datetime | None
    held_share: float
    took: float
    """Seconds."""


async def marks(db: Database, followed: Mapping[str, object]) -> dict[str, str]:
    """Return what changes when a followed page would show something else, by topic."""
    return {row.topic: row.mark for row in await db.read(_FOLLOWED, followed)}


async def read(db: Database, held: Held, followed: Mapping[str, object] = NOTHING_FOLLOWED) -> Overview:
    """Read the overview, the next slice of what is held, and the marks of pages that are followed."""
    started = time.perf_counter()
    now = datetime.now(UTC)
    bounds = [first_id(now - timedelta(seconds=(BUCKETS - n) * BUCKET)) for n in range(BUCKETS + 1)]
    (row,) = await db.read(_OVERVIEW, {**followed, "after": held.begin(now), "ids": bounds})
    found = row._asdict()
    reached = found.pop("reached")
    held.add(found.pop("held") or (), reached["last"], reached["number"], row.now)
    return Overview(
        now=row.now,
        marks=found.pop("marks") or {},
        found=found,
        held=dict(held.total),
        held_at=held.at,
        held_share=held.share(now),
        took=time.perf_counter() - started,
    )

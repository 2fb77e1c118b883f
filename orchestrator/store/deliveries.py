"""What is to be sent to endpoints: streams that are due, taken in lists and written in lists, and every
attempt.

Only the lowest unsent event of a checkout is ever due, and the deliverer that takes it holds the stream until
its lease ends. If the holder ends, the stream is due again after that, and the same event is sent with the
same id. The sequencer opens and extends streams in the transaction that gives positions (`store.events`); a
stream of which everything is sent is deleted.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal
from uuid import UUID, uuid4

import msgspec
from sqlalchemy import text

from orchestrator.crypto import EncryptionError
from orchestrator.domain.events import StoredEvent
from orchestrator.domain.ids import LAST, uuid7
from orchestrator.errors import OrchestratorError
from orchestrator.store.columns import json_text, record
from orchestrator.store.database import run
from orchestrator.store.notifications import notify

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sqlalchemy import Row
    from sqlalchemy.ext.asyncio import AsyncConnection

    from orchestrator.crypto import Encryptor
    from orchestrator.store.database import Database, Kept

TESTS_WAITING: Final = 3
"""Test events of one endpoint that may wait to be sent."""
DELETED_AT_ONCE: Final = 2000
SCANNED_AT_ONCE: Final = 5000
"""Attempts that one statement reads when only some of them are wanted."""

Purpose = Literal["event", "replay", "test"]
Result = Literal["delivered", "given_up"]

_TAKEN: Final = """
    leased AS (
        UPDATE delivery_streams s SET lease = :lease, due_at = clock() + make_interval(secs => :seconds)
         WHERE s.ctid = ANY(ARRAY(SELECT tid FROM picked))
        RETURNING s.endpoint_id, s.checkout_id, s.purpose, s.next_sequence, s.last_sequence, s.attempts,
                  s.failing_since
    )
    SELECT l.endpoint_id, l.checkout_id, l.purpose, l.last_sequence, l.attempts, clock() AS now,
           CASE WHEN l.failing_since IS NULL THEN 0
                ELSE extract(epoch FROM clock() - greatest(l.failing_since, e.resumed_at)) END::float8 AS failing_for,
           n.sequence, n.kind, n.payload, n.correlation_id, n.created_at, n.position, m.name AS merchant, i.data_key
      FROM leased l JOIN webhook_endpoints e ON e.id = l.endpoint_id JOIN merchants m ON m.id = e.merchant_id
      LEFT JOIN LATERAL (
           SELECT v.sequence, v.kind, v.payload, v.correlation_id, v.created_at, v.position FROM events v
            WHERE v.checkout_id = l.checkout_id AND v.sequence >= l.next_sequence AND v.sequence <= l.last_sequence
              AND (e.kinds IS NULL OR v.kind = ANY(e.kinds)) AND l.purpose <> 'test'
            ORDER BY v.sequence LIMIT 1) n ON true
      LEFT JOIN LATERAL (SELECT data_key FROM intents WHERE checkout_id = l.checkout_id LIMIT 1) i ON true
"""
# One index lookup for each endpoint, however much waits for another endpoint.
_TAKE = text(f"""
    WITH wanted AS MATERIALIZED (
        SELECT w.endpoint_id, w.slots
          FROM json_to_recordset(CAST(:wanted AS json)) AS w(endpoint_id uuid, slots int, probe boolean)
          JOIN webhook_endpoints e ON e.id = w.endpoint_id
         WHERE e.paused_at IS NULL AND e.deleted_at IS NULL AND (w.probe OR e.open_until IS NULL OR e.open_until <= clock())
    ),
    picked AS MATERIALIZED (
        SELECT p.* FROM wanted w CROSS JOIN LATERAL (
            SELECT s.ctid AS tid FROM delivery_streams s
             WHERE s.endpoint_id = w.endpoint_id AND s.due_at <= (SELECT clock()) AND s.purpose <> 'test'
             ORDER BY s.due_at LIMIT w.slots FOR UPDATE SKIP LOCKED) p
    ), {_TAKEN}
""")  # noqa: S608 - made of our own constants
_TAKE_TESTS = text(f"""
    WITH picked AS MATERIALIZED (
        SELECT s.ctid AS tid FROM delivery_streams s
         WHERE s.purpose = 'test' AND s.due_at <= (SELECT clock()) ORDER BY s.due_at LIMIT :most FOR UPDATE SKIP LOCKED
    ), {_TAKEN}
""")  # noqa: S608 - made of our own constants
# In the order in which the sequencer extends them. Rows are read one by one, or named by their places: a join
# might read the whole table.
_LOCK = text("""
    SELECT count(*)
      FROM json_to_recordset(CAST(:results AS json)) AS r(endpoint_id uuid, checkout_id uuid, purpose text)
     CROSS JOIN LATERAL (SELECT 1 FROM delivery_streams s
                          WHERE s.endpoint_id = r.endpoint_id AND s.checkout_id = r.checkout_id AND s.purpose = r.purpose
                          LIMIT 1 FOR UPDATE) s
""")
_WRITE = text("""
    WITH r AS MATERIALIZED (
        SELECT r.*, s.tid, r.step = 'done' AND s.last_sequence <= r.sequence AS finished
          FROM json_to_recordset(CAST(:results AS json)) AS r(
               endpoint_id uuid, checkout_id uuid, purpose text, lease uuid, sequence int, step text, due_in float8, attempt json)
          LEFT JOIN LATERAL (
               SELECT ctid AS tid, last_sequence FROM delivery_streams s
                WHERE s.endpoint_id = r.endpoint_id AND s.checkout_id = r.checkout_id AND s.purpose = r.purpose AND s.lease = r.lease
                LIMIT 1) s ON true
    ),
    gone AS (
        DELETE FROM delivery_streams s WHERE s.ctid = ANY(ARRAY(SELECT tid FROM r WHERE finished))
    ),
    moved AS (
        UPDATE delivery_streams s
           SET next_sequence = CASE r.step WHEN 'done' THEN r.sequence + 1 ELSE s.next_sequence END,
               attempts = CASE r.step WHEN 'done' THEN 0 WHEN 'failed' THEN s.attempts + 1 ELSE s.attempts END,
               failing_since = CASE r.step WHEN 'done' THEN NULL WHEN 'failed' THEN coalesce(s.failing_since, clock())
                                           ELSE s.failing_since END,
               due_at = clock() + make_interval(secs => r.due_in), lease = NULL
          FROM r
         WHERE s.ctid = r.tid AND NOT r.finished AND s.ctid = ANY(ARRAY(SELECT tid FROM r WHERE NOT finished))
        RETURNING s.endpoint_id, s.checkout_id, s.purpose
    ),
    noted AS (
    INSERT INTO delivery_attempts (id, endpoint_id, checkout_id, sequence, kind, purpose, number, at, outcome, status, milliseconds, answer, result)
    SELECT a.id, r.endpoint_id, r.checkout_id, r.sequence, a.kind, r.purpose, a.number, clock(), a.outcome, a.status, a.milliseconds,
           decode(a.answer, 'hex'), a.result
      FROM r CROSS JOIN LATERAL json_to_record(r.attempt) AS a(
           id uuid, kind text, number int, outcome text, status int, milliseconds int, answer text, result text)
     WHERE r.attempt IS NOT NULL
    ON CONFLICT (id) DO NOTHING
    )
    SELECT endpoint_id, checkout_id, purpose FROM moved
""")
# Locked in the order in which the sequencer extends streams, and in a statement of its own, as above.
_LOCK_FAILED = text("""
    SELECT count(*) FROM (SELECT 1 FROM delivery_streams WHERE endpoint_id = :id AND due_at > clock() AND lease IS NULL AND purpose <> 'test'
                           ORDER BY checkout_id, purpose FOR UPDATE) s
""")
_RETRY_NOW = text("""
    UPDATE delivery_streams SET due_at = clock()
     WHERE endpoint_id = :id AND due_at > clock() AND lease IS NULL AND purpose <> 'test'
""")
# Waiting tests are found by their own index, which is short; a long queue of an endpoint is not scanned.
_TEST = text(f"""
    WITH waiting AS MATERIALIZED (
        SELECT endpoint_id FROM delivery_streams WHERE purpose = 'test' ORDER BY due_at LIMIT 1000
    )
    INSERT INTO delivery_streams (endpoint_id, checkout_id, purpose, next_sequence, last_sequence, due_at)
    SELECT CAST(:endpoint_id AS uuid), CAST(:checkout_id AS uuid), 'test', 1, 1, clock()
     WHERE (SELECT count(*) FROM waiting WHERE endpoint_id = :endpoint_id) < {TESTS_WAITING}
    RETURNING 1
""")  # noqa: S608 - made of our own constants
_ATTEMPTS = text("""
    SELECT a.*, i.data_key FROM (
           SELECT * FROM delivery_attempts
            WHERE endpoint_id = :endpoint_id AND id < :before
            ORDER BY id DESC LIMIT :scanned) a
      LEFT JOIN intents i ON i.checkout_id = a.checkout_id
     WHERE (CAST(:checkout_id AS uuid) IS NULL OR a.checkout_id = :checkout_id)
       AND (CAST(:failed AS boolean) IS NULL OR (a.outcome <> 'delivered') = CAST(:failed AS boolean))
     ORDER BY a.id DESC LIMIT :most
""")
_SCANNED_TO = text("""
    SELECT id FROM delivery_attempts
     WHERE endpoint_id = :endpoint_id AND id < :before
     ORDER BY id DESC OFFSET :scanned - 1 LIMIT 1
""")
_OLDEST = text("""
    SELECT at < clock() - make_interval(secs => :seconds) AS old FROM delivery_attempts ORDER BY id LIMIT 1
""")
_FORGET = text("""
    WITH old AS MATERIALIZED (
        SELECT id, at FROM delivery_attempts ORDER BY id LIMIT :most
    )
    DELETE FROM delivery_attempts a USING old o WHERE a.id = o.id AND o.at < clock() - make_interval(secs => :seconds) RETURNING 1
""")
_DELETED = text("""
    SELECT id FROM webhook_endpoints WHERE deleted_at < clock() - interval '1 minute' ORDER BY deleted_at LIMIT 10
""")
_CLEAR: Final = tuple(
    text(f"""
        WITH gone AS (
            SELECT ctid FROM {table} WHERE endpoint_id = :id LIMIT :most FOR UPDATE SKIP LOCKED
        )
        DELETE FROM {table} t USING gone g WHERE t.ctid = g.ctid RETURNING 1
    """)  # noqa: S608 - made of our own constants
    for table in ("delivery_streams", "delivery_attempts")
)
_REMOVE = text("""
    DELETE FROM webhook_endpoints e WHERE id = :id AND deleted_at IS NOT NULL
       AND NOT EXISTS (SELECT FROM delivery_streams s WHERE s.endpoint_id = e.id)
       AND NOT EXISTS (SELECT FROM delivery_attempts a WHERE a.endpoint_id = e.id)
""")


class Due(msgspec.Struct, frozen=True, kw_only=True):
    """A stream that was taken, and its next event; durations are in seconds."""

    endpoint_id: UUID
    checkout_id: UUID
    purpose: Purpose
    lease: UUID
    sequence: int | None
    """Of the next event; None: nothing that the endpoint wants is left of the stream, or it is a test."""
    last_sequence: int
    attempts: int
    now: datetime
    """When it was taken."""
    failing_for: float
    """Since the first failure of the event, or since the endpoint was resumed, whichever is later."""
    event: StoredEvent | None
    merchant: str
    data_key: bytes | None

    def __repr__(self) -> str:
        """Name the stream alone: a log must not keep the key that an erasure destroys."""
        return f"Due({self.endpoint_id}, {self.checkout_id}, {self.purpose})"

    def written(
        self,
        step: Literal["done", "failed", "released"],
        *,
        due_in: float = 0.0,
        attempt: Attempt | None = None,
    ) -> Written:
        """Return what became of it; `due_in`: seconds until it is to be tried again."""
        return Written(
            endpoint_id=self.endpoint_id,
            checkout_id=self.checkout_id,
            purpose=self.purpose,
            lease=self.lease,
            sequence=self.last_sequence if self.sequence is None else self.sequence,
            step=step,
            due_in=due_in,
            attempt=attempt,
        )


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt, as it is stored; `answer` is encrypted, in hexadecimal digits."""

    id: UUID
    kind: str
    number: int
    outcome: str
    status: int | None
    milliseconds: int
    answer: str | None = None
    result: Result | None = None


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a stream: its event is done, or has failed, or the stream was given back untouched."""

    endpoint_id: UUID
    checkout_id: UUID
    purpose: Purpose
    lease: UUID
    sequence: int
    step: Literal["done", "failed", "released"]
    due_in: float = 0.0
    attempt: Attempt | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRow:
    id: UUID
    checkout_id: UUID
    sequence: int
    kind: str
    purpose: Purpose
    number: int
    at: datetime
    outcome: str
    status: int | None
    milliseconds: int
    answer: bytes | None
    result: Result | None


class TooManyTests(OrchestratorError):  # noqa: N818 - named for the fact
    """As many test events of an endpoint wait as may."""

    def __init__(self) -> None:
        super().__init__(f"{TESTS_WAITING} test events wait to be sent: see what comes of them first")


# ── Taken and written by deliverers ───────────────────────────────────────────────────────────────────────


async def take(
    db: Database | Kept, wanted: Mapping[UUID, int], *, probes: Collection[UUID] = (), seconds: float
) -> list[Due]:
    """Take streams that are due, of each endpoint at most so many, and hold them for so many seconds; none of
    an endpoint that is paused, or whose circuit is open unless it is among `probes`.
    """
    listed = [
        {"endpoint_id": endpoint_id, "slots": slots, "probe": endpoint_id in probes}
        for endpoint_id, slots in wanted.items()
    ]
    lease = uuid4()
    asked = {"wanted": json_text(listed), "lease": lease, "seconds": seconds}
    return [_due(row, lease) for row in await db.write(_TAKE, asked)]


async def take_tests(db: Database, *, most: int, seconds: float) -> list[Due]:
    """Take test events, at most so many, whatever their endpoints are like."""
    lease = uuid4()
    asked = {"lease": lease, "most": most, "seconds": seconds}
    return [_due(row, lease) for row in await db.write(_TAKE_TESTS, asked)]


def _due(row: Row[Any], lease: UUID) -> Due:
    event = None if row.sequence is None else record(StoredEvent, row)
    return record(Due, row, lease=lease, event=event)


async def write(db: Database, results: list[Written]) -> list[bool]:
    """Write the results of streams, no two of which are the same; return for each whether anything of it is
    still to be sent. Nothing is written for a stream whose lease has passed to another deliverer.
    """
    written = {"results": json_text(sorted(results, key=stream_of))}
    async with db.transaction() as tx:
        # In a statement of its own: the next one must see streams that are extended meanwhile.
        await run(tx, _LOCK, written)
        rows = await run(tx, _WRITE, written)
    left = set(map(stream_of, rows))
    return [stream_of(result) in left for result in results]


def stream_of(row: Written | Row[Any]) -> tuple[int, int, Purpose]:
    """Return which stream this is of, as a key in the order in which Postgres sorts streams: numbers, which
    Python hashes and compares several times as fast as UUIDs.
    """
    return row.endpoint_id.int, row.checkout_id.int, row.purpose


async def retry_now(tx: AsyncConnection, endpoint: UUID) -> None:
    """Have everything that failed at an endpoint tried again."""
    await run(tx, _LOCK_FAILED, {"id": endpoint})
    await run(tx, _RETRY_NOW, {"id": endpoint})


# ── Asked for by merchants ────────────────────────────────────────────────────────────────────────────────


async def test(db: Database, endpoint: UUID) -> UUID:
    """Have a test event sent; return the id that stands for its checkout. Raises `TooManyTests`."""
    made = uuid7()
    async with db.transaction() as tx:
        if not await run(tx, _TEST, {"endpoint_id": endpoint, "checkout_id": made}):
            raise TooManyTests
        await notify(tx, "")
    return made


async def attempts(
    db: Database,
    encryptor: Encryptor,
    endpoint: UUID,
    *,
    before: UUID | None,
    limit: int,
    checkout: UUID | None = None,
    failed: bool | None = None,
) -> list[AttemptRow]:
    """Return attempts to reach an endpoint, the youngest first; an answer whose key was destroyed is None.
    With a filter it reads `SCANNED_AT_ONCE` attempts at the most: see `scanned_to`.
    """
    asked = {
        "endpoint_id": endpoint,
        "before": before or LAST,
        "checkout_id": checkout,
        "failed": failed,
        "most": limit,
        "scanned": limit if checkout is None and failed is None else SCANNED_AT_ONCE,
    }
    return [
        record(AttemptRow, row, answer=_opened(encryptor, row)) for row in await db.read(_ATTEMPTS, asked)
    ]


async def scanned_to(db: Database, endpoint: UUID, *, before: UUID | None) -> UUID | None:
    """Return the last attempt that `attempts` reads with a filter; None if it reads all there are."""
    asked = {"endpoint_id": endpoint, "before": before or LAST, "scanned": SCANNED_AT_ONCE}
    rows = await db.read(_SCANNED_TO, asked)
    return rows[0].id if rows else None


ANSWER: Final = "webhook-answer"


def sealed(encryptor: Encryptor, due: Due, answer: bytes) -> str | None:
    """Encrypt an answer under the data key of its checkout; None where that was destroyed, or without one."""
    if not answer:
        return None
    if due.purpose == "test":
        return encryptor.encrypt(answer, purpose=f"{ANSWER}/{due.checkout_id}").hex()
    try:
        return encryptor.data_key(due.checkout_id, due.data_key).encrypt(answer, purpose=ANSWER).hex()
    except EncryptionError:
        return None


def _opened(encryptor: Encryptor, row: Row[Any]) -> bytes | None:
    """Decrypt the answer of an attempt; None where its key was destroyed, or there is no answer."""
    if row.answer is None:
        return None
    try:
        if row.purpose == "test":
            return encryptor.decrypt(row.answer, purpose=f"{ANSWER}/{row.checkout_id}")
        return encryptor.data_key(row.checkout_id, row.data_key).decrypt(row.answer, purpose=ANSWER)
    except EncryptionError:
        return None


# ── Retention ───────────────────────────────────────────────────────────────────────────────────────────────


async def forget(db: Database, *, older_than: float) -> int:
    """Delete some attempts that are older than so many seconds; return how many."""
    rows = await db.read(_OLDEST, {"seconds": older_than})
    if not rows or not rows[0].old:
        return 0
    return len(await db.write(_FORGET, {"seconds": older_than, "most": DELETED_AT_ONCE}))


async def clear(db: Database) -> int:
    """Delete some rows of endpoints that were deleted, and at last the endpoints; return how many rows."""
    number = 0
    for row in await db.read(_DELETED):
        for statement in _CLEAR:
            number += len(await db.write(statement, {"id": row.id, "most": DELETED_AT_ONCE}))
        await db.write(_REMOVE, {"id": row.id})
    return number

"""Claiming: taking the lease on checkouts, and what their holder knows of them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4

from sqlalchemy import text

from orchestrator.errors import OrchestratorError
from orchestrator.states import CARRIED, State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Row

    from orchestrator.db import Database


class LeaseLost(OrchestratorError):  # noqa: N818 - named for the fact
    """Somebody else holds this checkout now, or moved it: what was learned here is dropped, and the new holder looks again."""

    def __init__(self, checkout: UUID) -> None:
        super().__init__(f"the lease on checkout {checkout} is no longer ours")
        self.checkout = checkout


@dataclass(frozen=True, slots=True)
class Letter:
    """A callback in the inbox that nobody has acted on yet."""

    id: UUID
    kind: str
    grade: str
    content_type: str
    # Sealed; None where it is too large to be worth reading for its status.
    body: bytes | None
    digest: bytes


@dataclass(frozen=True, slots=True)
class Command:
    """What somebody asked for (cancel, …), stored and not yet acted on."""

    id: UUID
    kind: str
    actor: str
    reason: str | None
    expected_version: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A checkout under our lease, as it stood when claimed or after our own last move."""

    id: UUID
    merchant_id: int
    order_ref: str
    state: State
    version: int
    lease: UUID
    wake: int
    currency: str
    amount: int
    reserved: int
    captured: int
    refunded: int
    late: bool
    deadline: datetime
    offered_at: datetime | None
    withdrawn_at: datetime | None
    ended_at: datetime | None
    claims: int
    attempts: int
    looks: int
    openings: int
    last_error: str | None
    attention: str | None
    correlation_id: str
    audit_sequence: int
    audit_head: bytes
    event_sequence: int
    token: bytes | None
    token_expires_at: datetime | None
    session_id: str | None
    methods: list[dict[str, object]] | None
    intent: bytes | None
    data_key: bytes | None
    # The gateway transaction that completed it.
    accepted: str | None
    # Other checkouts have the same order number: what names only that may be theirs.
    shared: bool
    letters: tuple[Letter, ...] = ()
    commands: tuple[Command, ...] = ()
    # Postgres's clock when we claimed, our own then, and when our own clock says that the lease ends.
    claimed_at: datetime
    claimed_tick: float
    lease_ends: float
    # Somebody rang while we held it: the release has set the alarm to now.
    rung: bool = False

    def now(self) -> datetime:
        """Return Postgres's time, as far as our own clock has run since the claim."""
        return self.claimed_at + timedelta(seconds=time.monotonic() - self.claimed_tick)

    def lease_left(self) -> float:
        """Return how many seconds of the lease are left; nothing may be begun that could outlast it."""
        return self.lease_ends - time.monotonic()


# The claim takes what is due or hinted at and not under a living lease. A hint allows one claim: the second finds nothing.
_CLAIM = text("""
    WITH t AS MATERIALIZED (SELECT clock() AS now),
    free AS MATERIALIZED (
        SELECT c.id FROM checkouts c, t
         WHERE c.id = ANY(CAST(:ids AS uuid[])) AND c.due_at IS NOT NULL
           AND (c.hinted OR c.due_at <= t.now) AND (c.lease IS NULL OR c.leased_until <= t.now)
         ORDER BY c.id FOR NO KEY UPDATE OF c SKIP LOCKED
    )
    UPDATE checkouts c
       SET lease = :lease, leased_until = t.now + make_interval(secs => :seconds),
           due_at = t.now + make_interval(secs => :seconds), hinted = false, claims = c.claims + 1
      FROM free, t
     WHERE c.id = free.id
    RETURNING c.*, t.now
""")
_BESIDE = text("""
    SELECT i.checkout_id AS id, i.data_key,
           CASE WHEN i.checkout_id = ANY(CAST(:opening AS uuid[])) THEN i.body END AS intent,
           s.token, s.token_expires_at, s.session_id, s.methods,
           (SELECT transaction_id FROM payments p
             WHERE p.checkout_id = i.checkout_id AND p.role = 'accepted' LIMIT 1) AS accepted,
           EXISTS (SELECT 1 FROM checkouts o WHERE o.merchant_id = c.merchant_id AND o.order_ref = c.order_ref
                      AND o.id <> c.id AND state NOT IN ('cancelled', 'expired', 'failed') AND NOT late)
        OR EXISTS (SELECT 1 FROM checkouts o WHERE o.merchant_id = c.merchant_id AND o.order_ref = c.order_ref
                      AND o.id <> c.id AND NOT (state NOT IN ('cancelled', 'expired', 'failed') AND NOT late)) AS shared
      FROM intents i JOIN checkouts c ON c.id = i.checkout_id LEFT JOIN sessions s USING (checkout_id)
     WHERE i.checkout_id = ANY(CAST(:ids AS uuid[]))
""")
# A statement of its own, after the claim: its snapshot is younger than the row locks, so every ring that `wake` counts is seen.
# A few at a time: their bodies are large, and anybody who knows a link may send many.
_LETTERS = text("""
    SELECT b.* FROM unnest(CAST(:ids AS uuid[])) AS c(id) CROSS JOIN LATERAL (
        SELECT id, checkout_id, kind, grade, content_type, digest,
               CASE WHEN octet_length(body) <= 65536 THEN body END AS body FROM callbacks
         WHERE checkout_id = c.id AND handled_at IS NULL ORDER BY received_at, id LIMIT :most) b
""")
_COMMANDS = text("""
    SELECT id, checkout_id, kind, actor, reason, expected_version FROM commands
     WHERE checkout_id = ANY(CAST(:ids AS uuid[])) AND handled_at IS NULL ORDER BY requested_at, id
""")

LETTERS_AT_ONCE: Final = 20
"""Callbacks of one checkout that one claim takes; when there were so many, more may wait, and the release rings."""

_NEEDS_INTENT: Final = frozenset(CARRIED)


async def claim(db: Database, ids: Sequence[UUID], *, lease_seconds: float) -> list[Held]:
    """Take the lease on those of `ids` that are due or hinted at and free; return them with their inbox.

    The claim counts itself on the row (`claims`), so that a checkout whose holders die is known for it.
    """
    if not ids:
        return []
    tick, lease = time.monotonic(), uuid4()
    async with db.transaction() as tx:
        parameters = {"ids": list(ids), "lease": lease, "seconds": lease_seconds}
        rows = (await tx.execute(_CLAIM, parameters)).all()
        # Postgres's clock is read at this moment; the lease is counted from before, so that waiting for a connection shortens it.
        read = time.monotonic()
        if not rows:
            return []
        claimed = [row.id for row in rows]
        opening = [row.id for row in rows if row.state in _NEEDS_INTENT]
        beside = {row.id: row for row in await tx.execute(_BESIDE, {"ids": claimed, "opening": opening})}
        letters: dict[UUID, list[Letter]] = {}
        commands: dict[UUID, list[Command]] = {}
        rung = [row.id for row in rows if row.wake > 0]
        if rung:
            for row in await tx.execute(_LETTERS, {"ids": rung, "most": LETTERS_AT_ONCE}):
                letters.setdefault(row.checkout_id, []).append(
                    Letter(row.id, row.kind, row.grade, row.content_type, row.body, bytes(row.digest))
                )
            for row in await tx.execute(_COMMANDS, {"ids": rung}):
                commands.setdefault(row.checkout_id, []).append(
                    Command(row.id, row.kind, row.actor, row.reason, row.expected_version)
                )
    return [
        _held(
            row,
            beside[row.id],
            read=read,
            lease_ends=tick + lease_seconds,
            letters=tuple(letters.get(row.id, ())),
            commands=tuple(commands.get(row.id, ())),
        )
        for row in rows
    ]


def _held(
    row: Row[Any], beside: Row[Any], *, read: float, lease_ends: float, letters: tuple[Letter, ...],
    commands: tuple[Command, ...],
) -> Held:  # fmt: skip
    return Held(
        id=row.id,
        merchant_id=row.merchant_id,
        order_ref=row.order_ref,
        state=State(row.state),
        version=row.version,
        lease=row.lease,
        wake=row.wake,
        currency=row.currency,
        amount=row.amount,
        reserved=row.reserved,
        captured=row.captured,
        refunded=row.refunded,
        late=row.late,
        deadline=row.deadline,
        offered_at=row.offered_at,
        withdrawn_at=row.withdrawn_at,
        ended_at=row.ended_at,
        claims=row.claims,
        attempts=row.attempts,
        looks=row.looks,
        openings=row.openings,
        last_error=row.last_error,
        attention=row.attention,
        correlation_id=row.correlation_id,
        audit_sequence=row.audit_sequence,
        audit_head=bytes(row.audit_head),
        event_sequence=row.event_sequence,
        token=beside.token,
        token_expires_at=beside.token_expires_at,
        session_id=beside.session_id,
        methods=beside.methods,
        intent=beside.intent,
        data_key=beside.data_key,
        accepted=beside.accepted,
        shared=beside.shared,
        letters=letters,
        commands=commands,
        claimed_at=row.now,
        claimed_tick=read,
        lease_ends=lease_ends,
    )

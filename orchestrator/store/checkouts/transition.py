"""Moving: everything that one step of one checkout writes, for many checkouts in one statement."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, timedelta
from typing import TYPE_CHECKING, Any, Final

import msgspec
from sqlalchemy import text

from orchestrator import audit, counters
from orchestrator.domain.claimed_checkout import ClaimedCheckout, tick
from orchestrator.domain.records import Operation, OperationState, PaymentRecord, Role
from orchestrator.domain.states import TRANSITIONS, State, Trigger, UnknownTransition
from orchestrator.errors import OrchestratorError
from orchestrator.store.batch import AGAIN, Again, Batch, Batched
from orchestrator.store.checkouts.change import (
    GUARD,
    KEEP,
    KEPT,
    Fact,
    Move,
    event_rows,
    events_of,
    given,
    kept,
    row,
    rows_beside,
    totals,
)
from orchestrator.store.checkouts.claims import LeaseLost
from orchestrator.store.columns import OPERATION, PAYMENT, json_text, listed, typed, with_details, without
from orchestrator.store.tables import checkouts, money_operations, payments, sessions

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import Row, TextClause

    from orchestrator.crypto import Encryptor
    from orchestrator.domain.events import Totals
    from orchestrator.store.database import Database


class UnauditedMove(OrchestratorError):  # noqa: N818 - named for the fact
    """Code tried to move a checkout without saying so in the audit trail."""

    def __init__(self, checkout: UUID, trigger: Trigger) -> None:
        super().__init__(f"the move of checkout {checkout} by {trigger} has no audit action")
        self.checkout, self.trigger = checkout, trigger


# One statement writes everything of many moves. `locked` takes the rows in id order and leaves out those that
# another transaction has locked (they come again); `mine` is the lease guard; `already` recognises a move
# that landed before its connection was lost: the stored head of the chain is this move's. Postgres applies
# the update to the newest version of a row, so the lease guard holds in any race. Updated rows are named by
# arrays: for joins alone the planner expects so many rows that it reads a whole table while that is small.
_SESSION: Final = ("session_id", "methods")
_CARRIED: Final = tuple(
    "state attempts slot_reserved require_capture reserved audit_sequence event_sequence".split()
)
"""Columns of a row of `change.row` that the checkout has after the move."""
_WRITTEN: Final = (*_CARRIED, *with_details(without(KEPT, *_SESSION)))
_SEEN: Final = without(PAYMENT, "decided", "first_seen_at", "updated_at")
_SEEN_ANEW: Final = without(
    _SEEN, "transaction_id", "payment_id", "order_ref", "role", "currency", "captured", "refunded"
)
_OPERATED: Final = (
    "checkout_id", "reconciliation_identifier", *without(OPERATION, "requested_at", "submitted_at", "settled_at", "mac"),
)  # fmt: skip


def _advancing(*, columns: str = "", written: str = "", more: str = "") -> TextClause:
    """Return the statement that moves checkouts; with what a changed order writes beside it."""
    return text(f"""
    WITH t AS MATERIALIZED (SELECT clock() AS now),
    i AS MATERIALIZED (
        SELECT * FROM json_to_recordset(CAST(:moves AS json)) AS i(
            {typed(checkouts, GUARD)}, {typed(checkouts, _WRITTEN)}, {typed(sessions, _SESSION)},
            release boolean, due_in float8, extends float8, deadline_in float8, offered boolean, cancel_requested boolean, ended boolean,
            reopened boolean, late boolean, captured int8, refunded int8, decided jsonb, entries int, mac text,
            correlation_id text, keeps_session boolean, token text, token_lifetime float8{columns})
    ),
    handled AS MATERIALIZED (SELECT * FROM json_to_recordset(CAST(:read AS json)) AS r(id uuid, checkout_id uuid)),
    results as materialized (SELECT * FROM json_to_recordset(CAST(:done AS json)) AS r(id uuid, checkout_id uuid, result text, result_details jsonb)),
    locked AS MATERIALIZED (
        SELECT c.id, coalesce(c.lease = i.lease AND c.version = i.version, false) AS mine,
               c.audit_head = decode(i.mac, 'base64') AS already
          FROM checkouts c JOIN i ON i.id = c.id
         WHERE c.id = ANY(ARRAY(SELECT id FROM i))
         ORDER BY c.id FOR NO KEY UPDATE OF c SKIP LOCKED
    ),
    moved AS (
        UPDATE checkouts c
           SET {", ".join(f"{name} = i.{name}" for name in _WRITTEN)}, version = c.version + i.entries, claims = 0,
               lease = CASE WHEN i.release THEN NULL ELSE c.lease END,
               leased_until = CASE WHEN i.release THEN NULL WHEN i.extends IS NULL THEN c.leased_until
                                   ELSE greatest(c.leased_until, t.now + make_interval(secs => i.extends)) END,
               due_at = CASE WHEN NOT i.release AND i.extends IS NULL THEN c.due_at
                             WHEN NOT i.release THEN greatest(c.due_at, t.now + make_interval(secs => i.extends)) WHEN c.wake <> i.wake THEN t.now
                             ELSE t.now + make_interval(secs => i.due_in) END,
               attention_since = CASE WHEN i.attention IS NULL THEN NULL WHEN i.attention = c.attention THEN c.attention_since ELSE t.now END,
               deadline = CASE WHEN i.deadline_in IS NULL THEN c.deadline
                               ELSE t.now + make_interval(secs => i.deadline_in) END,
               offered_at = CASE WHEN i.offered THEN t.now ELSE c.offered_at END,
               cancel_requested_at = CASE WHEN i.reopened THEN NULL WHEN i.cancel_requested THEN t.now ELSE c.cancel_requested_at END,
               ended_at = CASE WHEN i.reopened THEN NULL WHEN i.ended THEN t.now ELSE c.ended_at END,
               late = c.late OR i.late, captured = greatest(c.captured, i.captured), refunded = greatest(c.refunded, i.refunded),
               audit_head = coalesce(decode(i.mac, 'base64'), c.audit_head), updated_at = t.now{written}
          FROM i, t
         WHERE c.id = i.id AND c.id = ANY(ARRAY(SELECT id FROM locked WHERE mine))
        RETURNING c.id, c.deadline, c.wake <> i.wake AS woken
    ),
    audited AS (
        INSERT INTO audit_entries (checkout_id, sequence, at, action, entry, key_id, mac)
        SELECT e.checkout_id, e.sequence, e.at, e.action, e.entry, e.key_id, decode(e.mac, 'base64')
          FROM json_to_recordset(CAST(:entries AS json)) AS e(
               checkout_id uuid, sequence int, at timestamptz, action text, entry text, key_id text, mac text)
          JOIN moved ON moved.id = e.checkout_id ORDER BY e.checkout_id, e.sequence
    ),
    opened AS (
        INSERT INTO sessions (checkout_id, token, token_expires_at, session_id, methods)
        SELECT i.id, decode(i.token, 'base64'), t.now + make_interval(secs => i.token_lifetime), i.session_id, i.methods
          FROM i JOIN moved USING (id), t WHERE NOT i.keeps_session ORDER BY i.id
        ON CONFLICT (checkout_id) DO UPDATE
           SET token = coalesce(excluded.token, sessions.token),
               token_expires_at = coalesce(excluded.token_expires_at, sessions.token_expires_at),
               session_id = excluded.session_id, methods = excluded.methods,
               outdated = sessions.outdated AND sessions.session_id IS NOT DISTINCT FROM excluded.session_id
    ),{more}
    announced AS (
        INSERT INTO events (checkout_id, sequence, merchant_id, kind, payload, correlation_id, created_at)
        SELECT e.checkout_id, e.sequence, i.merchant_id, e.kind, e.payload, i.correlation_id, t.now
          FROM json_to_recordset(CAST(:events AS json)) AS e(checkout_id uuid, sequence int, kind text, payload jsonb)
          JOIN i ON i.id = e.checkout_id JOIN moved ON moved.id = i.id, t ORDER BY e.checkout_id, e.sequence
    ),
    seen AS (
        INSERT INTO payments (merchant_id, checkout_id, {listed(_SEEN)})
        SELECT DISTINCT ON (i.merchant_id, p.transaction_id) i.merchant_id, p.checkout_id, {listed(_SEEN, "p")}
          FROM json_to_recordset(CAST(:payments AS json)) AS p(checkout_id uuid, {typed(payments, _SEEN)})
          JOIN i ON i.id = p.checkout_id JOIN moved ON moved.id = i.id
         ORDER BY i.merchant_id, p.transaction_id, p.role <> 'accepted', p.checkout_id
        ON CONFLICT (merchant_id, transaction_id) DO UPDATE
           SET role = CASE WHEN payments.role = 'accepted' THEN payments.role ELSE excluded.role END,
               currency = CASE WHEN excluded.currency = '' THEN payments.currency ELSE excluded.currency END,
               captured = greatest(payments.captured, excluded.captured), refunded = greatest(payments.refunded, excluded.refunded),
               {", ".join(f"{name} = excluded.{name}" for name in _SEEN_ANEW)}, updated_at = clock()
         WHERE payments.checkout_id = excluded.checkout_id
    ),
    ruled AS (
        UPDATE payments p SET decided = concat_ws(' ', p.decided, i.decided ->> p.transaction_id) FROM i JOIN moved USING (id)
         WHERE i.decided IS NOT NULL AND p.checkout_id = i.id AND i.decided ? p.transaction_id
           AND p.checkout_id = ANY(ARRAY(SELECT id FROM i WHERE decided IS NOT NULL))
    ),
    operated AS (
        INSERT INTO money_operations AS m (merchant_id, {listed(_OPERATED)}, mac, requested_at, submitted_at, settled_at)
        SELECT i.merchant_id, {listed(_OPERATED, "o")}, decode(o.mac, 'base64'), t.now,
               CASE WHEN o.state = 'submitted' THEN t.now END, CASE WHEN o.state IN ('succeeded', 'rejected') THEN t.now END
          FROM json_to_recordset(CAST(:operations AS json)) AS o({typed(money_operations, _OPERATED)}, mac text)
          JOIN i ON i.id = o.checkout_id JOIN moved ON moved.id = i.id, t ORDER BY i.merchant_id, o.transaction_id, o.id
        ON CONFLICT (id) DO UPDATE
           SET state = excluded.state, total_before = excluded.total_before, attempts = excluded.attempts,
               last_error = excluded.last_error, last_error_details = excluded.last_error_details, mac = excluded.mac, submitted_at = coalesce(excluded.submitted_at, m.submitted_at),
               settled_at = excluded.settled_at
    ),
    read AS (
        UPDATE callbacks b SET handled_at = t.now
          FROM handled r JOIN moved ON moved.id = r.checkout_id, t WHERE b.id = r.id AND b.id = ANY(ARRAY(SELECT id FROM handled))
    ),
    done AS (
        UPDATE commands d SET handled_at = t.now, result = r.result, result_details = r.result_details
          from results r JOIN moved ON moved.id = r.checkout_id, t WHERE d.id = r.id AND d.id = ANY(ARRAY(SELECT id FROM results))
    )
    SELECT i.id, l.mine, l.already, m.deadline, m.woken
      FROM i LEFT JOIN locked l USING (id) LEFT JOIN moved m USING (id)
""")  # noqa: S608 - made of our own names


_ADVANCE = _advancing()
# Only for batches with a changed order. `marked` leaves out the sessions that `opened` writes: Postgres makes
# one of two changes of a row in one statement.
_ADVANCE_ORDERS = _advancing(
    columns=", amount int8, body text, fingerprint text, email_tag text, outdated boolean",
    written=", amount = coalesce(i.amount, c.amount)",
    more="""
    ordered AS (
        UPDATE intents n SET body = decode(i.body, 'base64'), fingerprint = decode(i.fingerprint, 'base64'), email_tag = decode(i.email_tag, 'base64')
          FROM i JOIN moved USING (id)
         WHERE n.checkout_id = i.id AND i.body IS NOT NULL AND n.checkout_id = ANY(ARRAY(SELECT id FROM i))
    ),
    marked AS (
        UPDATE sessions s SET outdated = i.outdated
          FROM i JOIN moved USING (id)
         WHERE s.checkout_id = i.id AND i.outdated IS NOT NULL AND i.keeps_session AND s.checkout_id = ANY(ARRAY(SELECT id FROM i))
    ),""",
)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A move as it goes to Postgres; made once: a repeat is recognised by the mac of its last entry."""

    move: Move
    to: State
    row: dict[str, Any]
    rows_beside: dict[str, Sequence[dict[str, object]]]
    amounts: Totals
    kept: dict[str, Any]
    last_mac: bytes
    began: float


@dataclass(frozen=True, slots=True)
class _Landed:
    """A landed move; its deadline is unknown where it was recognised after a lost connection."""

    deadline: datetime | None
    woken: bool


class Transitions(Batched):
    """The mover: gathers moves from everything in flight in this process and writes them together."""

    def __init__(
        self,
        db: Database,
        encryptor: Encryptor,
        *,
        batch_limit: int = 500,
        timeout: float = 30.0,
        on_events: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_events` is called after a commit that wrote events; it may not wait."""
        self._db = db
        self._on_events = on_events
        self._encryptor = encryptor
        self._batch: Batch[_Prepared, _Landed] = Batch(
            self._write,
            keys=_places,
            limit=batch_limit,
            timeout=timeout,
            name="moves",
        )

    async def advance(self, move: Move) -> ClaimedCheckout:
        """Write one move together with the other gathered moves; return the checkout after it.

        Raises `LeaseLost` if the lease or the version has changed (nothing was written), `UnknownTransition`
        if the table does not have the move, `DatabaseAway` if it is not known whether it landed.
        """
        prepared = self._prepare(move)
        landed = await self._batch.put(prepared)
        if move.trigger is not None:
            counters.moves.add(prepared.to)
        return _after(prepared, landed)

    def _prepare(self, move: Move) -> _Prepared:
        held, to = move.held, move.held.state
        entries: list[audit.Entry] = []
        for fact in (Fact(move.trigger, move.evidence), *move.further):
            state = to
            if fact.trigger is not None:
                moved = TRANSITIONS.get((state, fact.trigger))
                if moved is None:
                    raise UnknownTransition(state, fact.trigger)
                if move.action is None:
                    raise UnauditedMove(held.id, fact.trigger)
                to = moved
            if move.action is None:
                continue
            entries.append(
                audit.make(
                    self._encryptor,
                    checkout=held.id,
                    sequence=held.audit_sequence + len(entries) + 1,
                    before=entries[-1].mac if entries else held.audit_head,
                    at=held.now().astimezone(UTC),
                    action=move.action,
                    actor=move.actor,
                    correlation_id=held.correlation_id,
                    state=state,
                    to=to,
                    trigger=fact.trigger,
                    evidence=fact.evidence,
                )
            )
        amounts, after = totals(move), kept(move)
        announced = event_rows(held, events_of(move), to, amounts)
        columns = row(move, to, entries, announced=len(announced), amounts=amounts, after=after)
        beside = rows_beside(self._encryptor, move, entries, announced)
        last_mac = entries[-1].mac if entries else held.audit_head
        return _Prepared(move, to, columns, beside, amounts, after, last_mac, tick())

    async def _write(self, batch: list[_Prepared]) -> list[_Landed | Again | LeaseLost]:
        changing = any(prepared.move.changes_order for prepared in batch)
        parameters = {
            name: json_text([row for prepared in batch for row in prepared.rows_beside[name]])
            for name in ("entries", "events", "operations", "payments", "read", "done")
        }
        parameters["moves"] = json_text([prepared.row for prepared in batch])
        rows = await self._db.write(_ADVANCE_ORDERS if changing else _ADVANCE, parameters)
        if any(prepared.rows_beside["events"] for prepared in batch):
            self._on_events()
        fates = {row.id: row for row in rows}
        return [_fate(fates[prepared.move.held.id]) for prepared in batch]


def _places(prepared: _Prepared) -> Sequence[Hashable]:
    """Return what no two moves of one batch may share: the checkout, and the reopening.

    The holder of an expired lease and its successor may both write, in one process; of two rows for a
    checkout Postgres would take either. A reopened checkout takes its order number again: two in one
    transaction could wait for an intake that holds the first number and waits for the second.
    """
    held, trigger = prepared.move.held, prepared.move.trigger
    return (held.id, trigger) if trigger is Trigger.REOPENED else (held.id,)


def _fate(row: Row[Any]) -> _Landed | Again | LeaseLost:
    if row.mine is None:
        return AGAIN
    if row.mine:
        return _Landed(row.deadline, row.woken)
    return _Landed(None, woken=True) if row.already else LeaseLost(row.id)


def _after(prepared: _Prepared, landed: _Landed) -> ClaimedCheckout:
    """Return the checkout as the landed move left it; under the same lease if the move kept it."""
    move, row, held = prepared.move, prepared.row, prepared.move.held
    done = {command for command, _ in move.done}
    now = held.now()
    return msgspec.structs.replace(
        held,
        **prepared.kept,
        **{name: row[name] for name in _CARRIED},
        version=held.version + row["entries"],
        claims=0,
        deadline=landed.deadline or held.deadline,
        offered_at=now if move.offered else held.offered_at,
        cancel_requested_at=None
        if row["reopened"]
        else now
        if move.cancel_requested
        else held.cancel_requested_at,
        ended_at=None if row["reopened"] else now if row["ended"] else held.ended_at,
        late=held.late or move.late,
        captured=prepared.amounts.captured,
        refunded=prepared.amounts.refunded,
        amount=held.amount if move.order is None else move.order.amount,
        intent=held.intent if move.order is None else move.order.body,
        outdated=_outdated(prepared),
        known=_known(held.known, move),
        operations=_operated(held, move.operations),
        audit_head=prepared.last_mac,
        token=given(move.token, held.token),
        token_expires_at=held.token_expires_at
        if move.token is KEEP
        else now + timedelta(seconds=move.token_lifetime),
        callbacks=tuple(callback for callback in held.callbacks if callback.id not in move.read),
        commands=tuple(command for command in held.commands if command.id not in done),
        woken=landed.woken,
        # Counted from before the write, so that waiting for it shortens it.
        lease_ends=held.lease_ends
        if move.extends is None
        else max(held.lease_ends, prepared.began + move.extends),
    )


def _outdated(prepared: _Prepared) -> bool:
    held = prepared.move.held
    same = bool(prepared.kept["session_id"] == held.session_id)
    return given(prepared.move.outdated, held.outdated and same)


def _known(before: tuple[PaymentRecord, ...], move: Move) -> tuple[PaymentRecord, ...]:
    """Return what is known of the gateway's transactions after a move, as its statement left them."""
    if move.decided is not None:
        return tuple(
            replace(
                payment, decided=f"{payment.decided or ''} {move.decided[payment.transaction_id]}".strip()
            )
            if payment.transaction_id in move.decided
            else payment
            for payment in before
        )
    known = {payment.transaction_id: payment for payment in before}
    for payment in move.payments:
        old = known.get(payment.transaction_id)
        known[payment.transaction_id] = (
            payment
            if old is None
            else replace(
                payment,
                role=old.role if old.role == Role.ACCEPTED else payment.role,
                currency=payment.currency or old.currency,
                captured=max(payment.captured, old.captured),
                refunded=max(payment.refunded, old.refunded),
                decided=old.decided,
            )
        )
    return tuple(known.values())


def _operated(held: ClaimedCheckout, changed: tuple[Operation, ...]) -> tuple[Operation, ...]:
    if not changed:
        return held.operations
    operations = {operation.id: operation for operation in held.operations}
    for operation in changed:
        submitted_at = held.now() if operation.state == OperationState.SUBMITTED else operation.submitted_at
        operations[operation.id] = replace(operation, submitted_at=submitted_at)
    return tuple(operations.values())

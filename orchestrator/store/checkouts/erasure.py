"""Erasing the personal data of checkouts: the data key is destroyed, and what was under it is overwritten.

State, money, payments, operations and the audit trail stay, with an entry that says so, written in the
same transaction. A checkout is erased only where nothing that is still to be done needs its data
(`Hindrance`). It cannot be undone.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from sqlalchemy import text

from orchestrator import audit
from orchestrator.domain.payment_status import PaymentStatus, payment_status
from orchestrator.domain.states import ENDED, State
from orchestrator.store.checkouts.matching import LOCK, NO_INTENT_PRINT, STANDING
from orchestrator.store.columns import json_text
from orchestrator.store.database import run
from orchestrator.store.tables import IS_LIVE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import Row

    from orchestrator.crypto import Encryptor
    from orchestrator.store.database import Database

ERASED_AT_ONCE: Final = 200
SCANNED_AT_ONCE: Final = 5000
"""Checkouts that one statement reads for those that may be erased."""

Cause = Literal["asked", "retention"]


class Hindrance(StrEnum):
    """Why the personal data of a checkout is still needed; `way` is what to do about it."""

    way: str

    def __new__(cls, value: str, way: str) -> Self:
        """Make a member of its text and of the way out."""
        made = str.__new__(cls, value)
        made._value_, made.way = value, way
        return made

    UNDER_WAY = "the shopper may still pay it", "cancel it, and erase it once it is cancelled"
    HELD = "a worker or another process is writing it", "try again in a minute"
    CALLBACK = "a callback waits to be read", "try again in a minute"
    COMMAND = "a command waits to be executed", "wait for its result"
    OPERATION = "a capture, refund or release is under way", "wait for its result, or resolve it"
    ATTENTION = "it needs a decision", "resolve it first"
    RESERVATION = "its payment is authorized and not captured", "capture or release it first"


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of one checkout: erased just now, erased before, or hindered."""

    id: UUID
    order_ref: str
    hindrance: Hindrance | None = None
    before: datetime | None = None

    @property
    def erased(self) -> bool:
        """Whether this call erases it, or would."""
        return self.hindrance is None and self.before is None


@dataclass(frozen=True, slots=True)
class Stretch:
    """Ids of checkouts that may be erased, and the last id that was read for them; None: no more are left."""

    ids: Sequence[UUID]
    until: UUID | None


_READ = text(f"""
    SELECT c.id, c.merchant_id, c.order_ref, c.state, c.correlation_id, c.audit_sequence, c.audit_head, c.attention,
           c.reserved, c.captured, c.refunded, c.charged_back, i.erased_at, i.data_key IS NULL AS keyless, {STANDING},
           EXISTS (SELECT FROM callbacks b WHERE b.checkout_id = c.id AND b.handled_at IS NULL) AS unread
      FROM checkouts c JOIN intents i ON i.checkout_id = c.id
     WHERE c.id = ANY(CAST(:ids AS uuid[])) ORDER BY c.id
""")  # noqa: S608 - made of our own constants
# Of the orders `e`. A refused message is erased as a whole, also where only one of its intents is of such an
# order. Rows are found by an index for each way: an OR might read the whole table.
REFUSED: Final = """
    refused AS (
        UPDATE rejected_intents SET data_key = NULL, body = '', errors = '[]' WHERE id = ANY(ARRAY(
            SELECT r.id FROM e JOIN rejected_intents r ON r.merchant_id = e.merchant_id AND r.order_ref = e.order_ref
             WHERE r.data_key IS NOT NULL
             UNION
            SELECT r.id FROM e JOIN rejected_intents r ON r.order_refs @> ARRAY[e.order_ref] AND r.merchant_id = e.merchant_id
             WHERE r.data_key IS NOT NULL))
        RETURNING id
    ),
    untold AS (
        UPDATE events SET payload = payload || '{"details": {}}' WHERE checkout_id = ANY(ARRAY(SELECT id FROM refused))
    )"""
# What has no key of its own, or could confirm a guess (a plain hash), is overwritten; the rest is unreadable
# without the data key. Order number, ids and amounts stay, and a used Idempotency-Key refuses any content.
_ERASE = text(f"""
    WITH e AS MATERIALIZED (
        SELECT * FROM json_to_recordset(CAST(:erased AS json)) AS e(
            id uuid, merchant_id int, order_ref text, sequence int, at timestamptz, action text, entry text, key_id text, mac text)
    ),
    audited AS (
        INSERT INTO audit_entries (checkout_id, sequence, at, action, entry, key_id, mac)
        SELECT id, sequence, at, action, entry, key_id, decode(mac, 'base64') FROM e ORDER BY id
    ),
    ordered AS (
        UPDATE intents SET data_key = NULL, body = '', email_tag = NULL, erased_at = clock(),
               fingerprint = CASE WHEN fingerprint = :no_intent THEN fingerprint ELSE '' END
         WHERE checkout_id = ANY(ARRAY(SELECT id FROM e))
    ),
    keyed AS (UPDATE idempotency_keys SET fingerprint = '' WHERE checkout_id = ANY(ARRAY(SELECT id FROM e))),
    offered AS (UPDATE sessions SET token = NULL, methods = NULL WHERE checkout_id = ANY(ARRAY(SELECT id FROM e))),
    called AS (
        UPDATE callbacks SET sender = NULL, body = '', digest = decode(replace(CAST(id AS text), '-', ''), 'hex')
         WHERE checkout_id = ANY(ARRAY(SELECT id FROM e))
    ),
    asked AS (
        UPDATE commands SET fingerprint = '' WHERE checkout_id = ANY(ARRAY(SELECT id FROM e)) AND idempotency_key IS NOT NULL
           AND (reason IS NOT NULL OR kind NOT IN ('cancel', 'reopen', 'capture', 'refund', 'release', 'retry', 'reconcile', 'resolve'))
    ),
    told AS (
        UPDATE events SET payload = jsonb_set(payload, '{{facts,reason}}', 'null')
         WHERE checkout_id = ANY(ARRAY(SELECT id FROM e)) AND kind = 'checkout.attempt_declined'
           AND payload #> '{{facts,reason}}' IS NOT NULL
    ),
    {REFUSED}
    UPDATE checkouts c
       SET version = c.version + 1, audit_sequence = e.sequence, audit_head = decode(e.mac, 'base64'), lease = NULL, leased_until = NULL,
           updated_at = clock()
      FROM e WHERE c.id = e.id AND c.id = ANY(ARRAY(SELECT id FROM e))
    RETURNING c.id
""")  # noqa: S608 - made of our own constants
# By ids alone, which are times: the stretch is bounded whatever is in it, and no index is needed.
_STRETCH = text("""
    WITH s AS MATERIALIZED (
        SELECT id, merchant_id, order_ref, due_at, attention, ended_at FROM checkouts
         WHERE id > coalesce(CAST(:after AS uuid), '00000000-0000-0000-0000-000000000000') ORDER BY id LIMIT :most
    )
    SELECT (SELECT count(*) FROM s) AS scanned, (SELECT id FROM s ORDER BY id DESC LIMIT 1) AS last,
           ARRAY(SELECT s.id FROM s JOIN intents i ON i.checkout_id = s.id
                  WHERE s.ended_at < coalesce(CAST(:before AS timestamptz), clock() - make_interval(secs => :seconds))
                    AND i.data_key IS NOT NULL AND (NOT :settled OR s.due_at IS NULL AND s.attention IS NULL)
                    AND s.merchant_id = coalesce(CAST(:merchant_id AS int), s.merchant_id)
                  ORDER BY s.id) AS ids
""")
_OF_ORDER = text(f"""
    SELECT id FROM checkouts WHERE merchant_id = :merchant_id AND order_ref = :order_ref AND {IS_LIVE}
    UNION ALL
    SELECT id FROM checkouts WHERE merchant_id = :merchant_id AND order_ref = :order_ref AND NOT ({IS_LIVE})
""")  # noqa: S608 - made of our own constants


async def of_order(db: Database, merchant_id: int, order_ref: str) -> list[UUID]:
    """Return all checkouts that a merchant's order number has had."""
    rows = await db.read(_OF_ORDER, {"merchant_id": merchant_id, "order_ref": order_ref})
    return sorted(row.id for row in rows)


async def ended_before(
    db: Database,
    *,
    before: datetime | None = None,
    seconds: float = 0.0,
    merchant_id: int | None = None,
    settled: bool = False,
    after: UUID | None = None,
) -> Stretch:
    """Return the next checkouts after `after`, by id, that have a data key and ended before a time, or so
    many seconds ago; `settled`: only those with no due time and no attention.
    """
    asked = {
        "before": before,
        "seconds": seconds,
        "merchant_id": merchant_id,
        "settled": settled,
        "after": after,
        "most": SCANNED_AT_ONCE,
    }
    (row,) = await db.read(_STRETCH, asked)
    return Stretch(row.ids, row.last if row.scanned == SCANNED_AT_ONCE else None)


def erasure_lists(ids: Sequence[UUID]) -> list[Sequence[UUID]]:
    """Return ids in lists of what is erased at once."""
    return [ids[first : first + ERASED_AT_ONCE] for first in range(0, len(ids), ERASED_AT_ONCE)]


async def erase(
    db: Database,
    encryptor: Encryptor,
    ids: Sequence[UUID],
    *,
    actor: str,
    cause: Cause,
    dry_run: bool = False,
) -> list[Fate]:
    """Erase checkouts, at most `ERASED_AT_ONCE`, in one transaction; return the fate of each that exists, in
    the order of ids. With `dry_run` nothing is written.
    """
    async with db.transaction() as tx:
        free = {row.id for row in await run(tx, LOCK, {"ids": sorted(ids)})}
        rows = await run(tx, _READ, {"ids": sorted(ids)})
        fates = [_fate(row, free=row.id in free) for row in rows]
        erased = [row for row, fate in zip(rows, fates, strict=True) if fate.erased]
        if erased and not dry_run:
            entries = [_entry(encryptor, row, actor=actor, cause=cause) for row in erased]
            await run(tx, _ERASE, {"erased": json_text(entries), "no_intent": NO_INTENT_PRINT})
    return fates


def _fate(row: Row[Any], *, free: bool) -> Fate:
    if row.erased_at is not None and row.keyless:
        return Fate(row.id, row.order_ref, before=row.erased_at)
    return Fate(row.id, row.order_ref, _hindrance(row, free=free))


def _hindrance(row: Row[Any], *, free: bool) -> Hindrance | None:
    state = State(row.state)
    found = {
        Hindrance.UNDER_WAY: state not in ENDED,
        Hindrance.HELD: row.leased or not free,
        Hindrance.CALLBACK: row.unread,
        Hindrance.COMMAND: row.asked,
        Hindrance.OPERATION: row.operating,
        Hindrance.ATTENTION: row.attention is not None,
        Hindrance.RESERVATION: payment_status(state, row) is PaymentStatus.AUTHORIZED,
    }
    return next((hindrance for hindrance, stands in found.items() if stands), None)


def _entry(encryptor: Encryptor, row: Row[Any], *, actor: str, cause: Cause) -> dict[str, object]:
    state = State(row.state)
    entry = audit.make(
        encryptor,
        checkout=row.id,
        sequence=row.audit_sequence + 1,
        before=bytes(row.audit_head),
        at=row.now,
        action=audit.Action.CHECKOUT_ERASED,
        actor=actor,
        correlation_id=row.correlation_id,
        state=state,
        to=state,
        evidence={"cause": cause},
    )
    return {
        "id": row.id,
        "merchant_id": row.merchant_id,
        "order_ref": row.order_ref,
        **entry.row,
    }

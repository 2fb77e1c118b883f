"""Intents of the queue that were refused: stored with their reasons, once for each message, and published as
events in the merchant's feed.

What was sent is personal data and encrypted under a data key of its own, as intents are. A message whose
token proves no merchant belongs to none: only the installation's operators see it, and it has no event.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from sqlalchemy import TextClause, text

from orchestrator.crypto import EncryptionError
from orchestrator.domain import events
from orchestrator.domain.events import EventType
from orchestrator.domain.ids import uuid7
from orchestrator.intents import Problem
from orchestrator.store.checkouts.erasure import REFUSED
from orchestrator.store.columns import json_text, named, picked

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import Row

    from orchestrator.crypto import Encryptor
    from orchestrator.store.database import Database

Code = Literal[
    "malformed",
    "access_denied",
    "token_expired",
    "merchant_refused",
    "invalid_intent",
    "order_taken",
    "not_storable",
    "internal",
]
"""Why it was refused; `errors` has the sentences."""

PURPOSE: Final = "rejected-intent"
KEPT_BYTES: Final = 262_144
"""Bytes of what was sent that are kept."""
WHOLE: Final = frozenset({"token_expired", "merchant_refused", "internal"})
"""Codes of messages that are kept whole, because they can be submitted once the cause is removed."""
DELETED_AT_ONCE: Final = 1000

_STORE = text("""
    WITH i AS MATERIALIZED (
        SELECT * FROM json_to_recordset(CAST(:rejected AS json)) AS i(
            id uuid, merchant_id int, digest text, message_id text, order_ref text, order_refs text[],
            code text, errors jsonb, body text, data_key text, payload jsonb, correlation_id text)
    ),
    stored AS (
        INSERT INTO rejected_intents (id, merchant_id, digest, message_id, order_ref, order_refs, code, errors, body, data_key)
        SELECT id, merchant_id, decode(digest, 'base64'), message_id, order_ref, order_refs, code, errors, decode(body, 'base64'), decode(data_key, 'base64')
          FROM i ORDER BY decode(digest, 'base64')
        ON CONFLICT (digest) DO NOTHING
        RETURNING id
    ),
    published AS (
        INSERT INTO events (checkout_id, sequence, merchant_id, kind, payload, correlation_id, created_at)
        SELECT i.id, 1, i.merchant_id, :kind, i.payload, i.correlation_id, clock()
          FROM i JOIN stored USING (id) WHERE i.merchant_id IS NOT NULL ORDER BY i.id
    )
    SELECT id FROM stored
""")
# Without a cursor the highest id: with `IS NULL OR`, a prepared plan reads every row younger than the page.
_BEFORE: Final = "r.id < COALESCE(CAST(:before AS uuid), 'ffffffff-ffff-ffff-ffff-ffffffffffff')"
_COLUMNS: Final = "r.id, r.merchant_id, r.message_id, r.order_ref, r.code, r.errors, r.created_at"


def _some(where: str, order: str = "r.id DESC") -> TextClause:
    return text(f"SELECT {_COLUMNS} FROM rejected_intents r WHERE {where} ORDER BY {order} LIMIT :most")  # noqa: S608 - our own words


_PAGE = _some(f"r.merchant_id = :merchant_id AND {_BEFORE}")
_OF_ORDER = _some(f"r.merchant_id = :merchant_id AND r.order_ref = :order_ref AND {_BEFORE}")
_ALL = _some("true")
_OF_CODE = _some(
    "r.code = :code AND (CAST(:merchant_id AS int) IS NULL OR r.merchant_id = :merchant_id) AND r.id > :after",
    "r.id",
)
_BY_ID = text(f"SELECT {_COLUMNS}, r.body, r.data_key FROM rejected_intents r WHERE r.id = :id")  # noqa: S608 - as above
_FORGET = text("""
    DELETE FROM rejected_intents WHERE id = ANY(ARRAY(
        SELECT id FROM rejected_intents WHERE created_at < clock() - make_interval(secs => :seconds)
         ORDER BY created_at LIMIT :most FOR UPDATE SKIP LOCKED))
    RETURNING id
""")
_READABLE = text("""
    SELECT count(*) AS number FROM rejected_intents
     WHERE merchant_id = :merchant_id AND (order_ref = :order_ref OR order_refs @> ARRAY[CAST(:order_ref AS text)])
       AND data_key IS NOT NULL
""")
_ERASE = text(f"""
    WITH e AS (SELECT CAST(:merchant_id AS int) AS merchant_id, CAST(:order_ref AS text) AS order_ref), {REFUSED}
    SELECT id FROM refused
""")  # noqa: S608 - made of our own constants
_OWN = text("UPDATE rejected_intents SET merchant_id = :merchant_id WHERE id = :id AND merchant_id IS NULL")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """An intent, or a whole message, that is refused; `merchant_id` is None where no merchant is proven.
    `message_id` and `number` (the place in the message, from 0; -1: the whole) distinguish a message that is
    delivered again from another one with the same content.
    """

    merchant_id: int | None
    message_id: str
    number: int
    order_ref: str | None
    order_refs: tuple[str, ...] = ()
    """Of a whole message, the order numbers of its intents."""
    code: Code
    problems: tuple[Problem, ...]
    body: bytes = field(repr=False)
    correlation_id: str
    id: UUID = field(default_factory=uuid7)

    @property
    def kept(self) -> bytes:
        """What is stored of what was sent."""
        return self.body if self.code in WHOLE else self.body[:KEPT_BYTES]

    @property
    def reason(self) -> str:
        """All problems in one text."""
        return "; ".join(f"{problem.field}: {problem.message}" for problem in self.problems)


_WRITTEN: Final = named(Rejection, "number", "problems", "body", "order_refs")


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedIntent:
    """A row, without what was sent."""

    id: UUID
    merchant_id: int | None
    message_id: str
    order_ref: str | None
    code: Code
    problems: tuple[Problem, ...]
    created_at: datetime


async def store(db: Database, encryptor: Encryptor, rejected: Sequence[Rejection]) -> int:
    """Store rejections and their events; return how many were not stored before."""
    if not rejected:
        return 0
    rows = [_row(encryptor, rejection) for rejection in rejected]
    parameters = {"rejected": json_text(rows), "kind": str(EventType.INTENT_REJECTED)}
    return len(await db.write(_STORE, parameters))


def _row(encryptor: Encryptor, rejection: Rejection) -> dict[str, object]:
    key, wrapped = encryptor.new_data_key(rejection.id)
    identity = b"\0".join((
        str(rejection.merchant_id).encode(), rejection.message_id.encode(), str(rejection.number).encode(), rejection.body,
    ))  # fmt: skip
    return {
        **picked(rejection, _WRITTEN),
        "digest": encryptor.sign(PURPOSE, identity),
        "order_refs": rejection.order_refs or None,
        "errors": [problem._asdict() for problem in rejection.problems],
        "body": key.encrypt(rejection.kept, purpose=PURPOSE),
        "data_key": wrapped,
        "payload": events.intent_rejected(
            intent=rejection.id, order_ref=rejection.order_ref, code=rejection.code, reason=rejection.reason
        ),
    }


async def page(
    db: Database, merchant_id: int, *, order_ref: str | None, before: UUID | None, limit: int
) -> list[RejectedIntent]:
    """Return a merchant's rejected intents, the youngest first; `before`: the last id of the page before."""
    asked = {"merchant_id": merchant_id, "order_ref": order_ref, "before": before, "most": limit}
    return await _found(db, _PAGE if order_ref is None else _OF_ORDER, asked)


async def latest(db: Database, *, limit: int) -> list[RejectedIntent]:
    """Return the rejected intents of all merchants and of none, the youngest first."""
    return await _found(db, _ALL, {"most": limit})


async def with_code(
    db: Database, code: Code, *, merchant_id: int | None, after: UUID, limit: int
) -> list[RejectedIntent]:
    """Return intents that were rejected with a code, the oldest first after an id, by a read of all."""
    asked = {"code": code, "merchant_id": merchant_id, "after": after, "most": limit}
    return await _found(db, _OF_CODE, asked)


async def _found(db: Database, statement: TextClause, asked: Mapping[str, object]) -> list[RejectedIntent]:
    return [_read(row) for row in await db.read(statement, asked)]


async def by_id(
    db: Database, encryptor: Encryptor, intent_id: UUID
) -> tuple[RejectedIntent, bytes | None] | None:
    """Return a rejected intent, if it exists, and what was sent (None where no key decrypts it)."""
    rows = await db.read(_BY_ID, {"id": intent_id})
    if not rows:
        return None
    try:
        body = encryptor.data_key(intent_id, rows[0].data_key).decrypt(rows[0].body, purpose=PURPOSE)
    except EncryptionError:
        body = None
    return _read(rows[0]), body


async def readable(db: Database, merchant_id: int, order_ref: str) -> int:
    """Return how many rejected intents of an order have their content."""
    (row,) = await db.read(_READABLE, {"merchant_id": merchant_id, "order_ref": order_ref})
    return int(row.number)


async def erase(db: Database, merchant_id: int, order_ref: str) -> int:
    """Erase the content of the rejected intents of an order, which cannot be undone; return how many."""
    return len(await db.write(_ERASE, {"merchant_id": merchant_id, "order_ref": order_ref}))


async def belongs_to(db: Database, intent_id: UUID, merchant_id: int) -> None:
    """Note whose a message is that proved no merchant, once an operator has said it: an erasure of an order
    reaches it from then on, and its merchant reads it.
    """
    await db.write(_OWN, {"id": intent_id, "merchant_id": merchant_id})


async def forget(db: Database, *, older_than: float) -> int:
    """Delete some of the intents that were rejected more than `older_than` seconds ago; return how many."""
    return len(await db.write(_FORGET, {"seconds": older_than, "most": DELETED_AT_ONCE}))


def _read(row: Row[Any]) -> RejectedIntent:
    return RejectedIntent(
        id=row.id,
        merchant_id=row.merchant_id,
        message_id=row.message_id,
        order_ref=row.order_ref,
        code=row.code,
        problems=tuple(Problem(**error) for error in row.errors),
        created_at=row.created_at,
    )

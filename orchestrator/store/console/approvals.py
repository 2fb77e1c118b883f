"""Money commands above the limit that wait for a second person.

An approval has what the first person asked for, with the version of the checkout that person saw, under our
MAC. It is decided once, by another person, and ends after a day. Deciding it here moves nothing: the command
is stored afterwards, under a key of its own, so that a repeat stores it once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
from sqlalchemy import text

from orchestrator.domain.records import CommandKind
from orchestrator.store import free_text
from orchestrator.store.columns import json_text, record
from orchestrator.store.tables.console import IS_UNFINISHED

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import Row

    from orchestrator.crypto import Encryptor
    from orchestrator.store.database import Database

State = Literal["waiting", "approved", "rejected", "outdated"]

LASTS: Final = 86_400.0
"""Seconds until an approval that no person decided ends."""
PURPOSE: Final = "console-approval"
MOST: Final = 100

_SIGNED: Final = (
    "id", "checkout_id", "merchant_id", "kind", "arguments", "version", "amount", "currency", "reason", "requested_by",
)  # fmt: skip
_ADD = text("""
    INSERT INTO console_approvals (id, merchant_id, checkout_id, kind, arguments, version, amount, currency, reason, requested_by,
                                   expires_at, mac)
    VALUES (:id, :merchant_id, :checkout_id, :kind, CAST(:arguments AS jsonb), :version, :amount, :currency, :reason,
            :requested_by, clock() + make_interval(secs => :seconds), :mac) ON CONFLICT (id) DO NOTHING RETURNING id
""")
_COLUMNS: Final = """a.id, a.merchant_id, a.checkout_id, a.kind, a.arguments, a.version, a.amount, a.currency, a.reason,
    a.requested_by, a.requested_at, a.expires_at, a.state, a.decided_by, a.decided_at, a.command_id, a.mac,
    a.expires_at <= clock() AS ended, (SELECT c.order_ref FROM checkouts c WHERE c.id = a.checkout_id) AS order_ref,
    (SELECT i.data_key FROM intents i WHERE i.checkout_id = a.checkout_id) AS data_key"""
_WAITING, _OF_CHECKOUT = (
    text(f"""
        SELECT {_COLUMNS} FROM console_approvals a WHERE {which} AND ({IS_UNFINISHED}) AND a.expires_at > clock()
         ORDER BY a.id LIMIT :most
    """)  # noqa: S608 - our own words
    for which in ("true", "a.checkout_id = :checkout")
)
_DECIDED = text(f"SELECT {_COLUMNS} FROM console_approvals a ORDER BY a.id DESC LIMIT :most")  # noqa: S608 - as above
_ONE = text(f"SELECT {_COLUMNS} FROM console_approvals a WHERE a.id = :id")  # noqa: S608 - as above
_DECIDE = text("""
    UPDATE console_approvals SET state = :state, decided_by = :actor, decided_at = clock()
     WHERE id = :id AND state = 'waiting' RETURNING id
""")
_OUTDATE = text(f"""
    UPDATE console_approvals SET state = 'outdated', decided_by = coalesce(decided_by, :actor),
           decided_at = coalesce(decided_at, clock()) WHERE id = :id AND ({IS_UNFINISHED}) RETURNING id
""")  # noqa: S608 - as above
# They would stay in the index of what waits.
_EXPIRE = text(f"""
    UPDATE console_approvals SET state = 'outdated' WHERE ({IS_UNFINISHED}) AND expires_at <= clock() - interval '30 days'
""")  # noqa: S608 - as above
_DONE = text("UPDATE console_approvals SET command_id = :command WHERE id = :id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """One approval; `amount` in minor units of `currency`, `reason` as text."""

    id: UUID
    merchant_id: int
    checkout_id: UUID
    order_ref: str | None
    kind: CommandKind
    arguments: Mapping[str, Any]
    version: int
    amount: int
    currency: str
    reason: str | None
    requested_by: str
    requested_at: datetime
    expires_at: datetime
    state: State
    decided_by: str | None
    decided_at: datetime | None
    command_id: UUID | None
    ended: bool
    authentic: bool
    """Whether it was stored by us, as it stands."""

    @property
    def unfinished(self) -> bool:
        """Whether it was approved, and the process ended before the command was stored."""
        return self.state == "approved" and self.command_id is None


async def ask(  # noqa: PLR0913 - the columns of an approval
    db: Database,
    encryptor: Encryptor,
    new: UUID,
    *,
    checkout: UUID,
    merchant_id: int,
    kind: CommandKind,
    arguments: Mapping[str, Any],
    version: int,
    amount: int,
    currency: str,
    actor: str,
    reason: str,
) -> bool:
    """Store what waits for a second person; False if it is stored already: the form was sent twice."""
    sealed = await free_text.sealed(db, encryptor, checkout, reason)
    row = {
        "id": new,
        "merchant_id": merchant_id,
        "checkout_id": checkout,
        "kind": kind,
        "arguments": arguments,
        "version": version,
        "amount": amount,
        "currency": currency,
        "reason": sealed,
        "requested_by": actor,
    }
    stored = {"arguments": json_text(arguments), "mac": encryptor.sign(PURPOSE, _signed(row))}
    await db.write(_EXPIRE, {})
    return bool(await db.write(_ADD, {**row, **stored, "seconds": LASTS}))


async def waiting(db: Database, encryptor: Encryptor, *, checkout: UUID | None = None) -> list[Approval]:
    """Return what waits for a second person, or was approved and is not stored yet, the oldest first."""
    asked = {"most": MOST, "checkout": checkout}
    rows = await db.read(_WAITING if checkout is None else _OF_CHECKOUT, asked)
    return [_read(row, encryptor) for row in rows]


async def latest(db: Database, encryptor: Encryptor) -> list[Approval]:
    """Return the last approvals, the youngest first, whatever became of them."""
    return [_read(row, encryptor) for row in await db.read(_DECIDED, {"most": MOST})]


async def by_id(db: Database, encryptor: Encryptor, approval: UUID) -> Approval | None:
    rows = await db.read(_ONE, {"id": approval})
    return _read(rows[0], encryptor) if rows else None


async def decide(db: Database, approval: UUID, state: State, *, actor: str) -> bool:
    """Decide an approval; False if it was decided before."""
    return bool(await db.write(_DECIDE, {"id": approval, "state": state, "actor": actor}))


async def outdate(db: Database, approval: UUID, *, actor: str) -> None:
    """End an approval that can be carried out no more, because its order has moved."""
    await db.write(_OUTDATE, {"id": approval, "actor": actor})


async def executed(db: Database, approval: UUID, command: UUID) -> None:
    """Note the command that came of an approval."""
    await db.write(_DONE, {"id": approval, "command": command})


def _read(row: Row[Any], encryptor: Encryptor) -> Approval:
    return record(
        Approval,
        row,
        kind=CommandKind(row.kind),
        reason=free_text.Reasons(encryptor, row.checkout_id, row.data_key).shown(row.reason),
        authentic=encryptor.signed(PURPOSE, _signed(row._asdict()), row.mac),
    )


def _signed(row: Mapping[str, object]) -> bytes:
    return msgspec.json.encode([row[name] for name in _SIGNED], order="sorted")

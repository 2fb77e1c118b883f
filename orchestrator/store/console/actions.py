"""What users did in the console: accepted, refused, or waiting for a second person. Rows are never changed.

What an accepted action changed is in the audit trail of its checkout or merchant; here is also what was
refused. A reason is free text and stands under the data key of its checkout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from sqlalchemy import text

from orchestrator.domain.ids import LAST, uuid7
from orchestrator.store.columns import json_text, record
from orchestrator.store.free_text import Reasons, sealed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from uuid import UUID

    from orchestrator.crypto import Encryptor
    from orchestrator.store.database import Database

Outcome = Literal["accepted", "refused", "waiting"]

_NOTE = text("""
    INSERT INTO console_actions (id, actor, action, outcome, merchant_id, checkout_id, command_id, subject, facts, reason)
    VALUES (:id, :actor, :action, :outcome, :merchant_id, :checkout_id, :command_id, :subject, CAST(:facts AS jsonb), :reason)
""")
_COLUMNS: Final = """a.id, a.at, a.actor, a.action, a.outcome, a.merchant_id, a.checkout_id, a.command_id, a.subject, a.facts,
    coalesce(a.reason, b.reason) AS reason, coalesce(a.checkout_id, b.checkout_id) AS reason_of,
    (SELECT c.order_ref FROM checkouts c WHERE c.id = a.checkout_id) AS order_ref,
    (SELECT i.data_key FROM intents i WHERE i.checkout_id = coalesce(a.checkout_id, b.checkout_id)) AS data_key"""
# The reason of a bulk action is kept with its commands alone, under the data keys of their checkouts: it is
# looked for at the first of them.
_OF_RUN: Final = """LEFT JOIN LATERAL (
    SELECT i.checkout_id, c.reason FROM (
           SELECT checkout_id, command_id FROM console_run_items
            WHERE run_id = CASE WHEN a.action = 'bulk:begun' AND a.subject <> '' THEN CAST(a.subject AS uuid) END
            ORDER BY checkout_id LIMIT 20) i
      JOIN commands c ON c.id = i.command_id JOIN intents n ON n.checkout_id = i.checkout_id
     WHERE c.reason IS NOT NULL AND n.data_key IS NOT NULL ORDER BY i.checkout_id LIMIT 1) b ON true"""
_PAGE, _OF_CHECKOUT = (
    text(f"""
        SELECT {_COLUMNS} FROM console_actions a {_OF_RUN} WHERE {which} AND a.id < :before ORDER BY a.id DESC LIMIT :most
    """)  # noqa: S608 - made of our own words
    for which in ("true", "a.checkout_id = :checkout")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionRow:
    """One action, with its reason as text."""

    id: UUID
    at: datetime
    actor: str
    action: str
    outcome: Outcome
    merchant_id: int | None
    checkout_id: UUID | None
    command_id: UUID | None
    subject: str
    facts: Mapping[str, Any]
    reason: str | None
    order_ref: str | None


async def note(  # noqa: PLR0913 - the columns of an action
    db: Database,
    encryptor: Encryptor,
    *,
    actor: str,
    action: str,
    outcome: Outcome,
    merchant_id: int | None = None,
    checkout: UUID | None = None,
    command: UUID | None = None,
    subject: str = "",
    facts: Mapping[str, object] | None = None,
    reason: str | None = None,
) -> None:
    """Store an action. The reason of one about a checkout whose data key was destroyed is left out."""
    row = {
        "id": uuid7(),
        "actor": actor,
        "action": action,
        "outcome": outcome,
        "merchant_id": merchant_id,
        "checkout_id": checkout,
        "command_id": command,
        "subject": subject,
        "facts": json_text(dict(facts or {})),
        "reason": await sealed(db, encryptor, checkout, reason) if checkout and reason else None,
    }
    await db.write(_NOTE, row)


async def page(
    db: Database,
    encryptor: Encryptor,
    *,
    checkout: UUID | None = None,
    before: UUID | None = None,
    limit: int,
) -> list[ActionRow]:
    """Return actions, the youngest first: of one checkout, or of all."""
    asked = {"before": before or LAST, "most": limit, "checkout": checkout}
    rows = await db.read(_PAGE if checkout is None else _OF_CHECKOUT, asked)
    return [
        record(ActionRow, row, reason=Reasons(encryptor, row.reason_of, row.data_key).shown(row.reason))
        for row in rows
    ]

"""What is read of a checkout for its shopper's browser: nothing of the customer, and nothing of our work.

Streams ask for versions, a few columns of many checkouts at once, and read only what has changed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from orchestrator.domain.states import State
from orchestrator.store.columns import record

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import Row

    from orchestrator.store.database import Database

# The intent has the pages of the shop, which are shown once the checkout has ended. Of declined attempts
# those count that came since the last offer.
_VIEWS: Final = text("""
    SELECT c.id, c.merchant_id, m.disabled_at IS NOT NULL AS disabled, c.state, c.version, c.reserved, c.captured, c.refunded,
           c.charged_back, c.deadline, c.ended_at, clock() AS now,
           c.cancel_requested_at IS NOT NULL OR EXISTS (
               SELECT FROM commands k WHERE k.checkout_id = c.id AND k.kind = 'cancel' AND k.handled_at IS NULL) AS cancelling,
           CASE WHEN s.session_id IS NOT NULL AND s.token_expires_at > clock() AND c.deadline > clock() THEN s.methods END AS methods,
           d.reason AS decline_reason, d.at AS declined_at,
           CASE WHEN c.ended_at IS NOT NULL THEN i.body END AS intent, i.data_key
      FROM checkouts c JOIN merchants m ON m.id = c.merchant_id
      LEFT JOIN sessions s ON s.checkout_id = c.id
      LEFT JOIN intents i ON i.checkout_id = c.id
      LEFT JOIN LATERAL (
           SELECT e.payload -> 'facts' ->> 'reason' AS reason, e.created_at AS at FROM events e
            WHERE e.checkout_id = c.id AND e.kind = 'checkout.attempt_declined' AND e.created_at >= c.offered_at
            ORDER BY e.sequence DESC LIMIT 1) d ON true
     WHERE c.id = ANY(CAST(:ids AS uuid[]))
""")
_SESSION: Final = text("""
    SELECT s.session_id, s.token, s.token_expires_at AS expires_at, i.data_key
      FROM sessions s JOIN intents i ON i.checkout_id = s.checkout_id
     WHERE s.checkout_id = :id AND s.session_id IS NOT NULL AND s.token IS NOT NULL AND s.token_expires_at > clock()
""")
_VERSIONS: Final = text("SELECT id, version FROM checkouts WHERE id = ANY(CAST(:ids AS uuid[]))")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShopperView:
    """A checkout as it was at `now`, amounts in minor units. `methods` are those of a session that is valid;
    `intent` is encrypted, and there once it has ended.
    """

    id: UUID
    merchant_id: int
    disabled: bool
    """Whether the merchant is."""
    state: State
    version: int
    reserved: int
    captured: int
    refunded: int
    charged_back: int
    deadline: datetime
    ended_at: datetime | None
    now: datetime
    cancelling: bool
    methods: list[dict[str, Any]] | None
    decline_reason: str | None
    declined_at: datetime | None
    intent: bytes | None = field(repr=False)
    data_key: bytes | None = field(repr=False)


async def views(db: Database, ids: Collection[UUID]) -> dict[UUID, ShopperView]:
    """Return checkouts by their ids; unknown ids are left out."""
    rows = await db.read(_VIEWS, {"ids": sorted(ids)})
    return {row.id: record(ShopperView, row, state=State(row.state)) for row in rows}


async def session(db: Database, checkout_id: UUID) -> Row[Any] | None:
    """Return `session_id`, `token` (under `data_key`) and `expires_at` of a session with a valid token."""
    rows = await db.read(_SESSION, {"id": checkout_id})
    return rows[0] if rows else None


async def versions(db: Database, ids: Collection[UUID]) -> dict[UUID, int]:
    rows = await db.read(_VERSIONS, {"ids": sorted(ids)})
    return {row.id: row.version for row in rows}

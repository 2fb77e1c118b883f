"""The view of a checkout for a command request, by the stored rows; the rule is `domain.command_rules`."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from orchestrator import audit, intents
from orchestrator.domain.command_rules import CheckoutView, Pending
from orchestrator.domain.states import State
from orchestrator.intents import changes
from orchestrator.store.columns import coded, payments, payments_of
from orchestrator.store.tables import IS_LIVE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from orchestrator.crypto import DataKey, Encryptor
    from orchestrator.store.database import Database

_FROM_PAYMENT: Final = " OR ".join(
    f"CAST(a.entry AS jsonb) #> '{{evidence,{word}}}' = 'true'" for word in audit.FROM_PAYMENT
)

# One statement, so that a used key and the rows are read in one snapshot: a repeated capture meets either the
# first request, or rows that do not include it yet.
_STANDING = text(f"""
    SELECT c.id, c.merchant_id, c.order_ref, c.state, c.version, c.currency, c.amount, c.attention, c.attention_details,
           m.id AS met, m.fingerprint AS met_print,
           EXISTS (SELECT FROM intents e WHERE e.checkout_id = c.id AND e.data_key IS NULL) AS erased,
           EXISTS (SELECT FROM audit_entries a
                    WHERE a.checkout_id = c.id AND a.sequence = 1
                      AND ({_FROM_PAYMENT})) AS from_payment,
           (SELECT k.id FROM commands k
             WHERE k.checkout_id = c.id AND k.kind = 'cancel'
               AND (k.handled_at IS NULL OR c.cancel_requested_at IS NOT NULL AND k.result = 'accepted')
             ORDER BY k.requested_at DESC LIMIT 1) AS cancelling,
           (SELECT o.id FROM checkouts o
             WHERE o.merchant_id = c.merchant_id AND o.order_ref = c.order_ref AND o.id <> c.id AND {IS_LIVE}) AS rival,
           {payments_of("c.id")} AS payments,
           (SELECT json_agg(json_build_object('kind', w.kind, 'transaction_id', w.transaction_id, 'amount', w.amount))
              FROM (SELECT o.kind, o.transaction_id, o.amount FROM money_operations o
                     WHERE o.checkout_id = c.id AND o.state IN ('requested', 'submitted', 'unknown')
                    UNION ALL
                    SELECT k.kind, k.arguments ->> 'transactionId', CAST(k.arguments ->> 'amount' AS int8) FROM commands k
                     WHERE k.checkout_id = c.id AND k.handled_at IS NULL AND k.kind IN ('capture', 'refund', 'release')
                   ) w) AS under_way
      FROM checkouts c LEFT JOIN commands m ON m.merchant_id = c.merchant_id AND m.idempotency_key = :key
     WHERE c.id = :id AND c.merchant_id = coalesce(CAST(:merchant_id AS int), c.merchant_id)
""")  # noqa: S608 - made of our own constant


_ORDER = text("SELECT body, data_key FROM intents WHERE checkout_id = :id")


@dataclass(frozen=True, slots=True)
class StoredOrder:
    """What was handed over for a checkout, or changed since (canonical JSON), and its data key."""

    document: bytes = field(repr=False)
    key: DataKey

    def sealed(self, change: Mapping[str, Any]) -> str:
        """Return a change as a command carries it; `IntentRejected` if it makes no valid order."""
        content = changes.encoded(change)
        intents.changed(self.document, content)
        return b64encode(self.key.encrypt(content, purpose="change")).decode()


async def stored_order(db: Database, encryptor: Encryptor, checkout_id: UUID) -> StoredOrder:
    """Return the order of a checkout; `EncryptionError` if it was erased, or no known key decrypts it."""
    (row,) = await db.read(_ORDER, {"id": checkout_id})
    key = encryptor.data_key(checkout_id, row.data_key)
    return StoredOrder(key.decrypt(row.body, purpose="intent"), key)


async def checkout_view(
    db: Database, checkout_id: UUID, *, merchant_id: int | None = None, key: str | None = None
) -> CheckoutView | None:
    """Return the view of a checkout; None if there is none of this id, or not this merchant's (None: any
    merchant's). `key` is the idempotency key of the request, if it has one.
    """
    rows = await db.read(_STANDING, {"id": checkout_id, "merchant_id": merchant_id, "key": key})
    if not rows:
        return None
    asked = coded(rows[0], "attention")
    row = rows[0]._asdict()
    met, print_ = row.pop("met"), row.pop("met_print")
    del row["attention_details"]
    return CheckoutView(
        payments_seen=payments(row.pop("payments")),
        under_way=tuple(Pending(**pending) for pending in row.pop("under_way") or ()),
        state=State(row.pop("state")),
        met=None if met is None else (met, bytes(print_)),
        **{**row, **asked},
    )

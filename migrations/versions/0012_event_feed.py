"""The feed of events: positions for each merchant, and what events say in the form of their documents.

Revision: 0012
Before: 0011
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

# Names of earlier versions. Money that had moved at the gateway had one kind for everything.
_RENAMED = {
    "checkout.declined": "checkout.attempt_declined",
    "checkout.captured": "payment.captured",
    "checkout.refunded": "payment.refunded",
    "checkout.released": "payment.released",
    "checkout.charged_back": "payment.chargeback",
    "checkout.surplus": "payment.surplus",
    "checkout.operation_rejected": "payment.operation_rejected",
    "checkout.money": "payment.captured",
}
_KINDS = " ".join(f"WHEN '{old}' THEN '{new}'" for old, new in _RENAMED.items())
_OLD_KINDS = " ".join(
    f"WHEN '{new}' THEN '{old}'" for old, new in _RENAMED.items() if old != "checkout.money"
)
# Amounts of the snapshot are those of now: what they were then is not stored.
_CONVERT = f"""
    WITH o AS (
        SELECT o.checkout_id, o.sequence, o.kind, o.payload AS p, c.currency, c.amount, c.reserved, c.captured, c.refunded,
               c.charged_back, substring(o.payload ->> 'reason' FROM '^([a-z][a-z0-9_]{{0,63}})(?::|$)') AS code,
               coalesce(o.payload -> 'transactionIds', CASE WHEN o.payload ? 'transactionId'
                        THEN jsonb_build_array(o.payload -> 'transactionId') ELSE '[]' END) AS transactions,
               coalesce((o.payload ->> 'chargedBack')::int8, 0) - coalesce((o.payload ->> 'before')::int8, 0) AS taken
          FROM events o JOIN checkouts c ON c.id = o.checkout_id
    ),
    n AS (
        SELECT o.*, CASE o.kind
               WHEN 'checkout.ready' THEN jsonb_build_object('paymentMethods', coalesce(p -> 'methods', '0'))
               WHEN 'checkout.declined' THEN jsonb_build_object('transactionIds', '[]'::jsonb, 'reason', NULL)
               WHEN 'checkout.completed' THEN jsonb_build_object(
                    'transactionIds', transactions, 'late', coalesce(p -> 'late', 'false'),
                    'policy', p -> 'policy', 'surcharge', coalesce(p -> 'surcharge', '0'))
               WHEN 'checkout.failed' THEN jsonb_build_object('code', code)
               WHEN 'checkout.attention' THEN jsonb_build_object('attention', code)
               WHEN 'checkout.charged_back' THEN jsonb_build_object(
                    'transactionId', NULL, 'change', abs(taken), 'reversal', taken < 0)
               WHEN 'checkout.surplus' THEN jsonb_build_object('transactionIds', transactions)
               WHEN 'checkout.operation_rejected' THEN jsonb_build_object(
                    'operation', p -> 'kind', 'transactionId', p -> 'transactionId',
                    'operationId', p -> 'operationId', 'commandId', p -> 'commandId')
               WHEN 'checkout.money' THEN jsonb_build_object(
                    'transactionId', NULL, 'change', 0, 'cause', 'gateway', 'operationId', NULL, 'role', 'accepted')
               ELSE CASE WHEN o.kind IN ('checkout.captured', 'checkout.refunded', 'checkout.released')
                         THEN jsonb_build_object(
                              'transactionId', p -> 'transactionId', 'change', coalesce(p -> 'amount', '0'), 'cause', p -> 'cause',
                              'operationId', p -> 'operationId', 'role', 'accepted')
                         ELSE '{{}}' END
               END AS facts
          FROM o
    )
    UPDATE events e
       SET kind = CASE n.kind {_KINDS} ELSE n.kind END,
           payload = jsonb_build_object(
               'orderId', n.p -> 'orderId', 'state', n.p -> 'state', 'currency', n.currency, 'amount', n.amount,
               'reserved', n.reserved, 'captured', n.captured, 'refunded', n.refunded, 'chargedBack', n.charged_back,
               'facts', n.facts, 'details', CASE WHEN n.p ->> 'reason' IS NOT NULL
                                                 THEN jsonb_build_object('reason', n.p -> 'reason') ELSE '{{}}' END)
      FROM n WHERE e.checkout_id = n.checkout_id AND e.sequence = n.sequence
"""  # noqa: S608 - made of our own constants


def upgrade() -> None:
    """Rewrite stored events, which no merchant has been sent, and let the feed be read by merchant.

    The index first, beside the traffic and again after an interruption: no event has a position yet, so it is
    empty.
    """
    with op.get_context().autocommit_block():
        op.execute("SET lock_timeout = '5s'")
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS uq_events_feed")
        op.execute("RESET lock_timeout")
        op.execute(
            "CREATE UNIQUE INDEX CONCURRENTLY uq_events_feed ON events (merchant_id, position) WHERE position IS NOT NULL"
        )
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "event_feeds",
        sa.Column("merchant_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("last_position", sa.BigInteger(), nullable=False),
        sa.Column("kept_after", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.ForeignKeyConstraint(
            ["merchant_id"], ["merchants.id"], name="fk_event_feeds_merchant_id_merchants"
        ),
        sa.PrimaryKeyConstraint("merchant_id", name="pk_event_feeds"),
        postgresql_with={"fillfactor": 50},
    )
    op.drop_constraint("uq_events_position", "events")
    op.execute(_CONVERT)


def downgrade() -> None:
    """Take it back; what events say stays as it is."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_index("uq_events_feed", "events")
    op.drop_table("event_feeds")
    op.execute("UPDATE events SET position = NULL WHERE position IS NOT NULL")
    op.execute(f"UPDATE events SET kind = CASE kind {_OLD_KINDS} ELSE kind END")  # noqa: S608 - our own constants
    op.create_unique_constraint("uq_events_position", "events", ["position"])

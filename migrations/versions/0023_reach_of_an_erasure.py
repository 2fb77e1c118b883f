"""Order numbers of refused messages, so that an erasure reaches them; since when an endpoint is served again.

Revision: 0023
Before: 0022

A message that was refused before this revision has no order numbers in its row: no erasure of an order
reaches it, and it is deleted at the end of its retention.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None

SERVES_EARLIER = True


def upgrade() -> None:
    """Add two columns without a rewrite, and an index on one of them, which is empty at first."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("webhook_endpoints", sa.Column("resumed_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("rejected_intents", sa.Column("order_refs", postgresql.ARRAY(sa.Text()), nullable=True))
    op.create_index(
        "ix_rejected_intents_order_refs", "rejected_intents", ["order_refs"], postgresql_using="gin"
    )


def downgrade() -> None:
    """Remove them."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_index("ix_rejected_intents_order_refs", "rejected_intents")
    op.drop_column("rejected_intents", "order_refs")
    op.drop_column("webhook_endpoints", "resumed_at")

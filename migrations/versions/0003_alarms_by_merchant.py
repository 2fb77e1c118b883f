"""Due times by merchant: sweeps and workers find each merchant's longest waiting checkout without reading
others.

Revision: 0003
Before: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Replace the index of alarms; it holds what is unsettled alone, so it is built in a moment."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_index(
        "ix_checkouts_alarm",
        "checkouts",
        ["merchant_id", "due_at"],
        unique=False,
        postgresql_where=sa.text("due_at IS NOT NULL"),
    )
    op.drop_index("ix_checkouts_due_at", table_name="checkouts")


def downgrade() -> None:
    """Take it back."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_index(
        "ix_checkouts_due_at",
        "checkouts",
        ["due_at"],
        unique=False,
        postgresql_where=sa.text("due_at IS NOT NULL"),
    )
    op.drop_index("ix_checkouts_alarm", table_name="checkouts")

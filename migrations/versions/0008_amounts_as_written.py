"""Amounts as the gateway wrote them, of payments whose amounts or currency cannot be read.

Revision: 0008
Before: 0007
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add a column that may be null, so that no table is rewritten."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("payments", sa.Column("raw_amounts", JSONB(), nullable=True))


def downgrade() -> None:
    """Take it back."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_column("payments", "raw_amounts")

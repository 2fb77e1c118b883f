"""Surcharges: what the gateway added to a payment for its way of payment.

Revision: 0006
Before: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add a column with a constant default, so that no table is rewritten."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column(
        "payments", sa.Column("surcharge", sa.BigInteger(), server_default=sa.text("0"), nullable=False)
    )


def downgrade() -> None:
    """Take it back."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_column("payments", "surcharge")

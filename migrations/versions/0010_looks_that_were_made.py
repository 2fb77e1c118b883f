"""The budget of looks counts what is made, not only which places are given.

Revision: 0010
Before: 0009
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add a column; the table has one row for each merchant."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column(
        "look_budgets",
        sa.Column(
            "made_until", sa.DateTime(timezone=True), server_default=sa.text("clock()"), nullable=False
        ),
    )


def downgrade() -> None:
    """Take it back."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_column("look_budgets", "made_until")

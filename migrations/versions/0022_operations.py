"""Since when a checkout has been due, and what ended processes have counted.

Revision: 0022
Before: 0021
"""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add a column without a rewrite, and a table."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("checkouts", sa.Column("due_since", sa.DateTime(timezone=True), nullable=True))
    op.create_table(
        "counter_totals",
        sa.Column("series", sa.Text(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("series", name="pk_counter_totals"),
    )


def downgrade() -> None:
    """Remove both; ages of waiting checkouts and counts of ended processes are lost."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_table("counter_totals")
    op.drop_column("checkouts", "due_since")

"""The budget of lookups counts lookups that are made; no statistics of nearly empty tables.

Revision: 0010
Before: 0009
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

# A plan made from statistics of a few rows is kept while thousands come, and reads them all until the next
# statistics.
GROWING = ("checkouts", "intents", "sessions", "callbacks", "commands", "payments")


def upgrade() -> None:
    """Add a column to a table with one row for each merchant; set when autovacuum analyzes it."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column(
        "look_budgets",
        sa.Column(
            "made_until", sa.DateTime(timezone=True), server_default=sa.text("clock()"), nullable=False
        ),
    )
    for table in GROWING:
        op.execute(f"ALTER TABLE {table} SET (autovacuum_analyze_threshold = 2000)")


def downgrade() -> None:
    """Take it back."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    for table in GROWING:
        op.execute(f"ALTER TABLE {table} RESET (autovacuum_analyze_threshold)")
    op.drop_column("look_budgets", "made_until")

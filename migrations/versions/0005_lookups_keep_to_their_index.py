"""Look-ups keep to their index: that of listings is for those who name its condition.

Revision: 0005
Before: 0004
"""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Build the index of listings again under a condition that always holds; beside the traffic, and again
    after an interruption.
    """
    _exchange("ix_checkouts_merchant", "ix_checkouts_listing", "WHERE amount > 0")


def downgrade() -> None:
    """Take it back."""
    _exchange("ix_checkouts_listing", "ix_checkouts_merchant", "")


def _exchange(old: str, new: str, condition: str) -> None:
    with op.get_context().autocommit_block():
        op.execute("SET lock_timeout = '5s'")
        # One that was interrupted is there, and invalid.
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {new}")
        op.execute("RESET lock_timeout")
        op.execute(f"CREATE INDEX CONCURRENTLY {new} ON checkouts (merchant_id, id) {condition}")
        op.execute("SET lock_timeout = '5s'")
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {old}")
        op.execute("RESET lock_timeout")

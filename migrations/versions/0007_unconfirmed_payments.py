"""Checkouts of payments that no lookup has confirmed yet are counted by an index.

Revision: 0007
Before: 0006
"""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_NAME = "ix_checkouts_unconfirmed"


def upgrade() -> None:
    """Build the index beside the traffic, and again after an interruption."""
    with op.get_context().autocommit_block():
        _drop()
        op.execute(
            f"CREATE INDEX CONCURRENTLY {_NAME} ON checkouts (merchant_id, created_at)"
            " WHERE state = 'failed' AND deadline = created_at"
        )


def downgrade() -> None:
    """Take it back."""
    with op.get_context().autocommit_block():
        _drop()


def _drop() -> None:
    # An index whose making was interrupted is there, and invalid.
    op.execute("SET lock_timeout = '5s'")
    op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {_NAME}")
    op.execute("RESET lock_timeout")

"""Who made the link of a user, the items of a bulk action under its MAC, approvals that are not stored yet.

Revision: 0024
Before: 0023
"""

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None

WAITING = "state = 'waiting'"
UNFINISHED = "state = 'waiting' OR state = 'approved' AND command_id IS NULL"


def upgrade() -> None:
    """Add two columns without a rewrite, and two indexes of small tables.

    A bulk action that is under way has no digest, and is stopped.
    """
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("console_users", sa.Column("linked_by", sa.Text(), nullable=True))
    op.add_column("console_runs", sa.Column("digest", sa.LargeBinary(), nullable=True))
    op.create_index("ix_console_sessions_actor", "console_sessions", ["actor", "id"])
    waiting(UNFINISHED)


def waiting(condition: str) -> None:
    """Make the index of what waits anew."""
    op.drop_index("ix_console_approvals_waiting", "console_approvals")
    op.create_index(
        "ix_console_approvals_waiting", "console_approvals", ["id"], postgresql_where=sa.text(condition)
    )


def downgrade() -> None:
    """Remove them; users that were added or changed since count as changed outside."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    waiting(WAITING)
    op.drop_index("ix_console_sessions_actor", "console_sessions")
    op.drop_column("console_runs", "digest")
    op.drop_column("console_users", "linked_by")

"""Changed baskets: a kind of command, and sessions that have the order as it was before.

Revision: 0016
Before: 0015
"""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

KINDS = "'cancel', 'reopen', 'capture', 'refund', 'release', 'retry', 'reconcile', 'resolve'"


def upgrade() -> None:
    """Add both: nothing is rewritten, and the commands are read once."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("sessions", sa.Column("outdated", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.execute("ALTER TABLE commands DROP CONSTRAINT ck_commands_kind")
    op.execute(f"ALTER TABLE commands ADD CONSTRAINT ck_commands_kind CHECK (kind IN ({KINDS}, 'change'))")


def downgrade() -> None:
    """Take both away, and commands of the kind with them."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("DELETE FROM commands WHERE kind = 'change'")
    op.execute("ALTER TABLE commands DROP CONSTRAINT ck_commands_kind")
    op.execute(f"ALTER TABLE commands ADD CONSTRAINT ck_commands_kind CHECK (kind IN ({KINDS}))")
    op.drop_column("sessions", "outdated")

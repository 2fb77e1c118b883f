"""${message}.

Revision: ${up_revision}
Before: ${down_revision | comma,n}
"""

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}
# True where processes of the version before work on with this schema, because it only adds: they are then replaced one after the other.
SERVES_EARLIER = False


def upgrade() -> None:
    """Apply; give up after five seconds rather than queue every query behind a lock."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    """Take back."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    ${downgrades if downgrades else "pass"}

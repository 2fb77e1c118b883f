"""Changes of merchants are kept, append-only and chained; retired callback secrets have an end.

Revision: 0017
Before: 0016
"""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add two tables; merchants are as they were."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "merchant_changes",
        sa.Column("merchant_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("sequence", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("entry", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["merchant_id"], ["merchants.id"], name="fk_merchant_changes_merchant_id_merchants"
        ),
        sa.PrimaryKeyConstraint("merchant_id", "sequence", name="pk_merchant_changes"),
    )
    op.create_table(
        "retired_callback_secrets",
        sa.Column("merchant_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("secrets", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["merchant_id"], ["merchants.id"], name="fk_retired_callback_secrets_merchant_id_merchants"
        ),
        sa.PrimaryKeyConstraint("merchant_id", name="pk_retired_callback_secrets"),
    )
    op.execute(
        "CREATE TRIGGER merchant_changes_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON merchant_changes "
        "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
    )


def downgrade() -> None:
    """Drop the tables: retired callback secrets end at once, and the record of changes is deleted."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_table("retired_callback_secrets")
    op.drop_table("merchant_changes")

"""Refused intents of the queue: by merchant, once for each message, encrypted as intents are.

Revision: 0015
Before: 0014
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Replace a table that no version has written to."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_table("rejected_intents")
    op.create_table(
        "rejected_intents",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("merchant_id", sa.Integer(), nullable=True),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("order_ref", sa.Text(), nullable=True),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("errors", postgresql.JSONB(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("data_key", sa.LargeBinary(), nullable=True),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("id", name="pk_rejected_intents"),
        sa.UniqueConstraint("digest", name="uq_rejected_intents_digest"),
    )
    for name, columns in (
        ("merchant_id", ["merchant_id", "id"]),
        ("order_ref", ["merchant_id", "order_ref", "id"]),
        ("created_at", ["created_at"]),
    ):
        op.create_index(f"ix_rejected_intents_{name}", "rejected_intents", columns)


def downgrade() -> None:
    """Restore the former table; the rows of refused intents are deleted."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_table("rejected_intents")
    op.create_table(
        "rejected_intents",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("merchant_id", sa.Integer(), nullable=True),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("errors", postgresql.JSONB(), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("id", name="pk_rejected_intents"),
    )

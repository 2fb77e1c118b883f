"""Webhooks: endpoints, what is to be sent to each, and every attempt.

Revision: 0014
Before: 0013
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def _time(name: str, *, now: bool = False, nullable: bool = True) -> sa.Column[object]:
    default = sa.text("clock()") if now else None
    return sa.Column(name, sa.DateTime(timezone=True), server_default=default, nullable=nullable and not now)


def upgrade() -> None:
    """Replace two tables that no version has written to."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_table("deliveries")
    op.drop_table("webhooks")
    op.create_table(
        "webhook_endpoints",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("merchant_id", sa.Integer(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("kinds", postgresql.ARRAY(sa.Text()), nullable=True),
        sa.Column("content", sa.Text(), server_default=sa.text("'thin'"), nullable=False),
        sa.Column("secret", sa.LargeBinary(), nullable=False),
        sa.Column("previous_secret", sa.LargeBinary(), nullable=True),
        _time("previous_until"),
        _time("paused_at"),
        sa.Column("pause_reason", sa.Text(), nullable=True),
        _time("failing_since"),
        _time("delivered_at"),
        _time("open_until"),
        sa.Column("opened", sa.Integer(), server_default=sa.text("0"), nullable=False),
        _time("created_at", now=True),
        _time("deleted_at"),
        sa.CheckConstraint("content IN ('thin', 'full')", name=op.f("ck_webhook_endpoints_content")),
        sa.CheckConstraint(
            "pause_reason IN ('asked', 'failing', 'gone')", name=op.f("ck_webhook_endpoints_pause_reason")
        ),
        sa.CheckConstraint(
            "(paused_at IS NULL) = (pause_reason IS NULL)", name=op.f("ck_webhook_endpoints_paused")
        ),
        sa.ForeignKeyConstraint(
            ["merchant_id"], ["merchants.id"], name="fk_webhook_endpoints_merchant_id_merchants"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_endpoints"),
    )
    op.create_index("ix_webhook_endpoints_merchant_id", "webhook_endpoints", ["merchant_id", "id"])
    op.create_table(
        "delivery_streams",
        sa.Column("endpoint_id", sa.Uuid(), nullable=False),
        sa.Column("checkout_id", sa.Uuid(), nullable=False),
        sa.Column("purpose", sa.Text(), server_default=sa.text("'event'"), nullable=False),
        sa.Column("next_sequence", sa.Integer(), nullable=False),
        sa.Column("last_sequence", sa.Integer(), nullable=False),
        _time("due_at", nullable=False),
        sa.Column("lease", sa.Uuid(), nullable=True),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        _time("failing_since"),
        sa.CheckConstraint(
            "purpose IN ('event', 'replay', 'test')", name=op.f("ck_delivery_streams_purpose")
        ),
        sa.PrimaryKeyConstraint("endpoint_id", "checkout_id", "purpose", name="pk_delivery_streams"),
        postgresql_with={"fillfactor": 70},
    )
    op.create_index("ix_delivery_streams_due", "delivery_streams", ["endpoint_id", "due_at"])
    op.create_index(
        "ix_delivery_streams_tests",
        "delivery_streams",
        ["due_at"],
        postgresql_where=sa.text("purpose = 'test'"),
    )
    op.create_table(
        "delivery_attempts",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("endpoint_id", sa.Uuid(), nullable=False),
        sa.Column("checkout_id", sa.Uuid(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        _time("at", now=True),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("milliseconds", sa.Integer(), nullable=False),
        sa.Column("answer", sa.LargeBinary(), nullable=True),
        sa.Column("result", sa.Text(), nullable=True),
        sa.CheckConstraint("result IN ('delivered', 'given_up')", name=op.f("ck_delivery_attempts_result")),
        sa.PrimaryKeyConstraint("id", name="pk_delivery_attempts"),
    )
    op.create_index("ix_delivery_attempts_endpoint_id", "delivery_attempts", ["endpoint_id", "id"])
    op.create_index(
        "ix_delivery_attempts_given_up",
        "delivery_attempts",
        ["endpoint_id", "id"],
        postgresql_where=sa.text("result = 'given_up'"),
    )


def downgrade() -> None:
    """Take it back; what was not sent yet can be read from the feed."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    for table in ("delivery_attempts", "delivery_streams", "webhook_endpoints"):
        op.drop_table(table)
    op.create_table(
        "webhooks",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("merchant_id", sa.Integer(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("secret", sa.LargeBinary(), nullable=False),
        sa.Column(
            "kinds", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'[]'"), nullable=False
        ),
        _time("created_at", now=True),
        _time("disabled_at"),
        sa.ForeignKeyConstraint(["merchant_id"], ["merchants.id"], name="fk_webhooks_merchant_id_merchants"),
        sa.PrimaryKeyConstraint("id", name="pk_webhooks"),
    )
    op.create_table(
        "deliveries",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("webhook_id", sa.Uuid(), nullable=False),
        sa.Column("checkout_id", sa.Uuid(), nullable=False),
        sa.Column("event_sequence", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("lease", sa.Uuid(), nullable=True),
        _time("leased_until"),
        _time("due_at"),
        sa.Column("last_status", sa.Integer(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        _time("delivered_at"),
        sa.ForeignKeyConstraint(["webhook_id"], ["webhooks.id"], name="fk_deliveries_webhook_id_webhooks"),
        sa.PrimaryKeyConstraint("id", name="pk_deliveries"),
        sa.UniqueConstraint(
            "webhook_id",
            "checkout_id",
            "event_sequence",
            name="uq_deliveries_webhook_id_checkout_id_event_sequence",
        ),
    )
    op.create_index(
        "ix_deliveries_due_at", "deliveries", ["due_at"], postgresql_where=sa.text("due_at IS NOT NULL")
    )

"""Money: operations with their causes, commands with keys, chargebacks, lapses, budgets of lookups.

Revision: 0002
Before: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Widen what is there; every new column has a constant default, so that no table is rewritten."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column(
        "checkouts", sa.Column("charged_back", sa.BigInteger(), server_default=sa.text("0"), nullable=False)
    )
    op.add_column("checkouts", sa.Column("reserved_until", sa.DateTime(timezone=True), nullable=True))
    op.add_column(
        "checkouts",
        sa.Column("auto_capture", sa.Boolean(), server_default=sa.text("false"), nullable=False),
    )
    op.add_column(
        "checkouts",
        sa.Column("require_capture", sa.Boolean(), server_default=sa.text("false"), nullable=False),
    )
    op.add_column(
        "checkouts", sa.Column("booked", sa.Boolean(), server_default=sa.text("false"), nullable=False)
    )
    op.add_column("checkouts", sa.Column("life", sa.Double(), nullable=True))
    op.drop_constraint(op.f("ck_checkouts_money"), "checkouts", type_="check")
    op.create_check_constraint(
        op.f("ck_checkouts_money"),
        "checkouts",
        "amount > 0 AND reserved >= 0 AND captured >= 0 AND refunded >= 0 AND charged_back >= 0",
    )
    op.add_column(
        "payments", sa.Column("charged_back", sa.BigInteger(), server_default=sa.text("0"), nullable=False)
    )
    op.create_index(
        "ix_payments_merchant", "payments", ["merchant_id", "first_seen_at", "transaction_id"], unique=False
    )
    op.create_index(
        "ix_payments_unknown",
        "payments",
        ["merchant_id", "first_seen_at", "transaction_id"],
        unique=False,
        postgresql_where=sa.text("role = 'unknown'"),
    )
    op.add_column("payments", sa.Column("decided", sa.Text(), nullable=True))
    op.add_column(
        "money_operations", sa.Column("cause", sa.Text(), server_default=sa.text("'asked'"), nullable=False)
    )
    op.alter_column("money_operations", "cause", server_default=None)
    op.add_column("money_operations", sa.Column("command_id", sa.Uuid(), nullable=True))
    op.add_column("money_operations", sa.Column("total_before", sa.BigInteger(), nullable=True))
    op.create_check_constraint(
        op.f("ck_money_operations_cause"), "money_operations", "cause IN ('asked', 'automatic', 'returned')"
    )
    op.add_column("commands", sa.Column("merchant_id", sa.Integer(), nullable=True))
    op.execute(
        "UPDATE commands SET merchant_id = c.merchant_id FROM checkouts c WHERE c.id = commands.checkout_id"
    )
    op.execute("DELETE FROM commands WHERE merchant_id IS NULL")
    op.alter_column("commands", "merchant_id", nullable=False)
    op.create_foreign_key(
        "fk_commands_merchant_id_merchants", "commands", "merchants", ["merchant_id"], ["id"]
    )
    op.add_column("commands", sa.Column("idempotency_key", sa.Text(), nullable=True))
    op.add_column("commands", sa.Column("fingerprint", sa.LargeBinary(), nullable=True))
    op.create_check_constraint(
        op.f("ck_commands_kind"),
        "commands",
        "kind IN ('cancel', 'reopen', 'capture', 'refund', 'release', 'retry', 'reconcile', 'resolve')",
    )
    op.create_index("ix_commands_checkout_id", "commands", ["checkout_id", "requested_at"], unique=False)
    op.create_index(
        "uq_commands_key",
        "commands",
        ["merchant_id", "idempotency_key"],
        unique=True,
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    )
    op.add_column(
        "callbacks", sa.Column("network", sa.Text(), server_default=sa.text("'unchecked'"), nullable=False)
    )
    op.create_table(
        "look_budgets",
        sa.Column("merchant_id", sa.Integer(), nullable=False),
        sa.Column(
            "taken_until", sa.DateTime(timezone=True), server_default=sa.text("clock()"), nullable=False
        ),
        sa.Column(
            "charged_at", sa.DateTime(timezone=True), server_default=sa.text("clock()"), nullable=False
        ),
        sa.ForeignKeyConstraint(
            ["merchant_id"], ["merchants.id"], name="fk_look_budgets_merchant_id_merchants"
        ),
        sa.PrimaryKeyConstraint("merchant_id", name="pk_look_budgets"),
    )


def downgrade() -> None:
    """Undo it; what only the new columns hold is lost."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_table("look_budgets")
    op.drop_column("callbacks", "network")
    op.drop_index("uq_commands_key", table_name="commands")
    op.drop_index("ix_commands_checkout_id", table_name="commands")
    op.drop_constraint(op.f("ck_commands_kind"), "commands", type_="check")
    for column in ("fingerprint", "idempotency_key", "merchant_id"):
        op.drop_column("commands", column)
    for column in ("total_before", "command_id", "cause"):
        op.drop_column("money_operations", column)
    for index in ("ix_payments_unknown", "ix_payments_merchant"):
        op.drop_index(index, table_name="payments")
    for column in ("decided", "charged_back"):
        op.drop_column("payments", column)
    op.drop_constraint(op.f("ck_checkouts_money"), "checkouts", type_="check")
    op.create_check_constraint(
        op.f("ck_checkouts_money"),
        "checkouts",
        "amount > 0 AND reserved >= 0 AND captured >= 0 AND refunded >= 0",
    )
    for column in ("life", "booked", "require_capture", "auto_capture", "reserved_until", "charged_back"):
        op.drop_column("checkouts", column)

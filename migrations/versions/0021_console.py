"""The operations console: persons, what they did, approvals, bulk actions; paused merchants; e-mail search.

Revision: 0021
Before: 0020
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables; what persons did is never changed."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("merchants", moment("paused_at"))
    op.add_column("intents", sa.Column("email_tag", sa.LargeBinary(), nullable=True))
    op.create_index(
        "ix_intents_email_tag",
        "intents",
        ["email_tag", "checkout_id"],
        postgresql_where=sa.text("email_tag IS NOT NULL"),
    )
    op.create_table(
        "console_users",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("password", sa.Text(), nullable=True),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        moment("created_at", now=True),
        moment("signed_in_at"),
        moment("disabled_at"),
        sa.CheckConstraint(
            "role IN ('viewer', 'operator', 'approver', 'admin')", name=op.f("ck_console_users_role")
        ),
        sa.PrimaryKeyConstraint("name", name="pk_console_users"),
    )
    op.create_table(
        "console_sessions",
        sa.Column("id", sa.LargeBinary(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("scopes", sa.Text(), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        moment("created_at", now=True),
        moment("expires_at", nullable=False),
        sa.CheckConstraint("kind IN ('link', 'session')", name=op.f("ck_console_sessions_kind")),
        sa.PrimaryKeyConstraint("id", name="pk_console_sessions"),
    )
    op.create_index("ix_console_sessions_expires_at", "console_sessions", ["expires_at"])
    op.create_table(
        "console_actions",
        sa.Column("id", sa.Uuid(), nullable=False),
        moment("at", now=True),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("merchant_id", sa.Integer(), nullable=True),
        sa.Column("checkout_id", sa.Uuid(), nullable=True),
        sa.Column("command_id", sa.Uuid(), nullable=True),
        sa.Column("subject", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("facts", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "outcome IN ('accepted', 'refused', 'waiting')", name=op.f("ck_console_actions_outcome")
        ),
        sa.PrimaryKeyConstraint("id", name="pk_console_actions"),
    )
    op.create_index(
        "ix_console_actions_checkout_id",
        "console_actions",
        ["checkout_id", "id"],
        postgresql_where=sa.text("checkout_id IS NOT NULL"),
    )
    op.execute(
        "CREATE TRIGGER console_actions_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON console_actions "
        "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
    )
    op.create_table(
        "console_approvals",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("merchant_id", sa.Integer(), nullable=False),
        sa.Column("checkout_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("arguments", postgresql.JSONB(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("requested_by", sa.Text(), nullable=False),
        moment("requested_at", now=True),
        moment("expires_at", nullable=False),
        sa.Column("state", sa.Text(), server_default=sa.text("'waiting'"), nullable=False),
        sa.Column("decided_by", sa.Text(), nullable=True),
        moment("decided_at"),
        sa.Column("command_id", sa.Uuid(), nullable=True),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint(
            "state IN ('waiting', 'approved', 'rejected', 'outdated')",
            name=op.f("ck_console_approvals_state"),
        ),
        sa.PrimaryKeyConstraint("id", name="pk_console_approvals"),
    )
    op.create_index(
        "ix_console_approvals_waiting",
        "console_approvals",
        ["id"],
        postgresql_where=sa.text("state = 'waiting'"),
    )
    op.create_index("ix_console_approvals_checkout_id", "console_approvals", ["checkout_id"])
    op.create_table(
        "console_runs",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("filter", postgresql.JSONB(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.LargeBinary(), nullable=True),
        sa.Column("state", sa.Text(), server_default=sa.text("'running'"), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("accepted", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("refused", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("lease", sa.Uuid(), nullable=True),
        moment("leased_until"),
        moment("created_at", now=True),
        moment("ended_at"),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("state IN ('running', 'stopped', 'done')", name=op.f("ck_console_runs_state")),
        sa.PrimaryKeyConstraint("id", name="pk_console_runs"),
    )
    op.create_index(
        "ix_console_runs_running", "console_runs", ["id"], postgresql_where=sa.text("state = 'running'")
    )
    op.create_table(
        "console_run_items",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("checkout_id", sa.Uuid(), nullable=False),
        sa.Column("merchant_id", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("command_id", sa.Uuid(), nullable=True),
        sa.Column("sentence", sa.Text(), nullable=True),
        sa.CheckConstraint("outcome IN ('accepted', 'refused')", name=op.f("ck_console_run_items_outcome")),
        sa.PrimaryKeyConstraint("run_id", "checkout_id", name="pk_console_run_items"),
    )
    op.create_index(
        "ix_console_run_items_open",
        "console_run_items",
        ["run_id", "checkout_id"],
        postgresql_where=sa.text("outcome IS NULL"),
    )


def moment(name: str, *, now: bool = False, nullable: bool = True) -> sa.Column[object]:
    """Return the column of a time."""
    return sa.Column(
        name,
        sa.DateTime(timezone=True),
        server_default=sa.text("clock()") if now else None,
        nullable=nullable and not now,
    )


def downgrade() -> None:
    """Drop them, with what persons did in the console."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    for table in ("run_items", "runs", "approvals", "actions", "sessions", "users"):
        op.drop_table(f"console_{table}")
    op.drop_index("ix_intents_email_tag", "intents")
    op.drop_column("intents", "email_tag")
    op.drop_column("merchants", "paused_at")

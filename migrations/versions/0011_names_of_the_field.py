"""Columns, a table and stored words have the usual names of the field.

Revision: 0011
Before: 0010

Names change in place. Only the policies of merchants and the last errors of unsettled rows are rewritten.
Audit entries keep their words, since they are never changed; their readers accept both.
"""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

TABLE = ("look_budgets", "lookup_budgets")
COLUMNS = (
    ("checkouts", "booked", "slot_reserved"),
    ("checkouts", "life", "expires_in"),
    ("checkouts", "withdrawn_at", "cancel_requested_at"),
    ("checkouts", "openings", "session_count"),
    ("checkouts", "looks", "lookups"),
    ("payments", "reading", "meaning"),
)
INDEXES = (("ix_checkouts_alarm", "ix_checkouts_due"), ("pk_look_budgets", "pk_lookup_budgets"))
CONSTRAINTS = (
    ("checkouts", "ck_checkouts_alarm", "ck_checkouts_due"),
    ("lookup_budgets", "fk_look_budgets_merchant_id_merchants", "fk_lookup_budgets_merchant_id_merchants"),
)
POLICY = ("looks_per_minute", "lookups_per_minute")
CIRCUIT = ("left_alone", "circuit_open")
"""How the last error begins while the circuit of a gateway is open."""

# From Postgres 18 on a NOT NULL has a name too, made of its table and column.
NOT_NULL = """
    DO $$ DECLARE one record; BEGIN
        FOR one IN SELECT conrelid::regclass AS tab, conname, '{table}_{new}_not_null' AS wanted
                     FROM pg_constraint WHERE contype = 'n' AND conrelid = '{table}'::regclass
                      AND conname = '{before}_{old}_not_null' LOOP
            EXECUTE format('ALTER TABLE %s RENAME CONSTRAINT %I TO %I', one.tab, one.conname, one.wanted);
        END LOOP;
    END $$
"""
BUDGET = ("merchant_id", "taken_until", "charged_at", "made_until")


def upgrade() -> None:
    """Rename; no lock is held for longer than the catalog takes, and none is waited for."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    _words(*POLICY, *CIRCUIT)
    old, new = TABLE
    op.execute(f"ALTER TABLE {old} RENAME TO {new}")
    for column in BUDGET:
        op.execute(NOT_NULL.format(table=new, before=old, old=column, new=column))
    for table, before, after in COLUMNS:
        op.execute(f"ALTER TABLE {table} RENAME COLUMN {before} TO {after}")
        op.execute(NOT_NULL.format(table=table, before=table, old=before, new=after))
    for before, after in INDEXES:
        op.execute(f"ALTER INDEX {before} RENAME TO {after}")
    for table, before, after in CONSTRAINTS:
        op.execute(f"ALTER TABLE {table} RENAME CONSTRAINT {before} TO {after}")


def downgrade() -> None:
    """Give the earlier names back."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    _words(*reversed(POLICY), *reversed(CIRCUIT))
    for table, before, after in CONSTRAINTS:
        op.execute(f"ALTER TABLE {table} RENAME CONSTRAINT {after} TO {before}")
    for before, after in INDEXES:
        op.execute(f"ALTER INDEX {after} RENAME TO {before}")
    for table, before, after in COLUMNS:
        op.execute(f"ALTER TABLE {table} RENAME COLUMN {after} TO {before}")
        op.execute(NOT_NULL.format(table=table, before=table, old=after, new=before))
    old, new = TABLE
    op.execute(f"ALTER TABLE {new} RENAME TO {old}")
    for column in BUDGET:
        op.execute(NOT_NULL.format(table=old, before=new, old=column, new=column))


def _words(policy: str, new_policy: str, code: str, new_code: str) -> None:
    """Rewrite the words in rows.

    The MAC over a merchant's policies does not cover this policy: it decides on no money.
    """
    op.execute(f"""
        UPDATE merchants
           SET policies = policies - '{policy}' || jsonb_build_object('{new_policy}', policies -> '{policy}')
         WHERE policies ? '{policy}'
    """)  # noqa: S608 - our own constants
    # Of checkouts and operations only those that are unsettled, which an index holds: settled ones may be
    # millions.
    for table, unsettled in (
        ("checkouts", "due_at IS NOT NULL"),
        ("money_operations", "state IN ('requested', 'submitted', 'unknown')"),
    ):
        op.execute(f"""
            UPDATE {table} SET last_error = '{new_code}' || substr(last_error, {len(code) + 1})
             WHERE {unsettled} AND starts_with(last_error, '{code}')
        """)  # noqa: S608 - our own constants

"""History by month: the audit trail in partitions by checkout id, and archives that it may move into.

Revision: 0004
Before: 0003
"""

from datetime import UTC, datetime
from uuid import UUID

import sqlalchemy as sa
from alembic import context, op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

MONTHS = 24
FAR = (9000, 1)

# An entry may leave only when the head of its chain, at or after it, is noted as archived; the archive itself
# is under our key.
GUARD = """
CREATE FUNCTION refuse_unarchived() RETURNS trigger LANGUAGE plpgsql
AS $$ BEGIN
    IF TG_OP = 'DELETE' AND EXISTS (SELECT FROM archived_heads h
                                     WHERE h.checkout_id = OLD.checkout_id AND h.sequence >= OLD.sequence) THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'audit_entries is append-only: % is refused', TG_OP USING ERRCODE = 'restrict_violation';
END $$
"""

APPEND_ONLY = (
    "CREATE TRIGGER audit_entries_append_only BEFORE UPDATE OR TRUNCATE ON {} "
    "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
)

Month = tuple[int, int]


def upgrade() -> None:
    """Make the existing trail the first partition of a new one: it is checked beside the traffic, and never
    rewritten.
    """
    cut, first = _cut()
    # Each in a transaction of its own: the long check holds no lock that stops a writer.
    with op.get_context().autocommit_block():
        op.execute("SET lock_timeout = '5s'")
        op.execute("ALTER TABLE audit_entries DROP CONSTRAINT IF EXISTS before_the_cut")
        op.execute(
            f"ALTER TABLE audit_entries ADD CONSTRAINT before_the_cut CHECK (checkout_id < '{cut}') NOT VALID"
        )
        op.execute("ALTER TABLE audit_entries VALIDATE CONSTRAINT before_the_cut")
        op.execute("RESET lock_timeout")
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "archives",
        sa.Column("sequence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("file", sa.Text(), nullable=False),
        sa.Column("manifest", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_archives"),
    )
    op.create_table(
        "archived_heads",
        sa.Column("checkout_id", sa.Uuid(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("archive", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["archive"],
            ["archives.sequence"],
            name="fk_archived_heads_archive_archives",
            initially="DEFERRED",
            deferrable=True,
        ),
        sa.PrimaryKeyConstraint("checkout_id", "sequence", name="pk_archived_heads"),
    )
    op.create_index("ix_archived_heads_archive", "archived_heads", ["archive", "checkout_id"], unique=False)
    op.execute(GUARD)
    for table in ("archives", "archived_heads"):
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
        )
    # The new table is made whole under a name of its own; only then is the old one locked, for the exchange.
    op.create_table(
        "audit_entries_new",
        sa.Column("checkout_id", sa.Uuid(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("entry", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("checkout_id", "sequence", name="pk_audit_entries_new"),
        postgresql_partition_by="RANGE (checkout_id)",
    )
    op.create_index(
        "ix_audit_entries_new_at", "audit_entries_new", ["at"], unique=False, postgresql_using="brin"
    )
    op.execute(
        "CREATE TRIGGER audit_entries_leave_when_archived BEFORE UPDATE OR DELETE ON audit_entries_new "
        "FOR EACH ROW EXECUTE FUNCTION refuse_unarchived()"
    )
    op.execute("CREATE TABLE audit_entries_rest PARTITION OF audit_entries_new DEFAULT")
    parts = ["audit_entries_new", "audit_entries_rest"]
    month, until = first, _later(first, MONTHS)
    while month < until and first < FAR:
        name, after = "audit_entries_{}_{:02}".format(*month), _later(month, 1)
        op.execute(
            f"CREATE TABLE {name} PARTITION OF audit_entries_new FOR VALUES FROM ('{_bound(month)}') TO ('{_bound(after)}')"
        )
        parts.append(name)
        month = after
    for table in parts:
        op.execute(APPEND_ONLY.format(table))
    op.execute("DROP TRIGGER audit_entries_append_only ON audit_entries")
    op.execute("ALTER TABLE audit_entries RENAME TO audit_entries_before")
    op.execute("ALTER INDEX pk_audit_entries RENAME TO pk_audit_entries_before")
    op.execute("ALTER INDEX ix_audit_entries_at RENAME TO ix_audit_entries_before_at")
    op.execute("ALTER TABLE audit_entries_new RENAME TO audit_entries")
    op.execute("ALTER INDEX pk_audit_entries_new RENAME TO pk_audit_entries")
    op.execute("ALTER INDEX ix_audit_entries_new_at RENAME TO ix_audit_entries_at")
    op.execute(
        f"ALTER TABLE audit_entries ATTACH PARTITION audit_entries_before FOR VALUES FROM (MINVALUE) TO ('{cut}')"
    )
    op.execute("ALTER TABLE audit_entries_before DROP CONSTRAINT before_the_cut")
    op.execute(APPEND_ONLY.format("audit_entries_before"))


def downgrade() -> None:
    """Make it one table again; refused once something was archived, whose entries are in files alone."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute(
        "DO $$ BEGIN IF EXISTS (SELECT FROM archives) THEN "
        "RAISE EXCEPTION 'there are archives, which schema 0003 does not know' USING ERRCODE = 'restrict_violation'; "
        "END IF; END $$"
    )
    op.execute("LOCK TABLE audit_entries IN ACCESS EXCLUSIVE MODE")
    op.execute("ALTER TABLE audit_entries DETACH PARTITION audit_entries_before")
    op.execute("DROP TRIGGER audit_entries_append_only ON audit_entries_before")
    op.execute("INSERT INTO audit_entries_before SELECT * FROM audit_entries")
    op.drop_table("audit_entries")
    op.execute("ALTER TABLE audit_entries_before RENAME TO audit_entries")
    op.execute("ALTER INDEX pk_audit_entries_before RENAME TO pk_audit_entries")
    op.execute("ALTER INDEX ix_audit_entries_before_at RENAME TO ix_audit_entries_at")
    op.execute(
        "CREATE TRIGGER audit_entries_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_entries "
        "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
    )
    op.drop_table("archived_heads")
    op.drop_table("archives")
    op.execute("DROP FUNCTION refuse_unarchived()")


def _cut() -> tuple[UUID, Month]:
    """Return where the present table ends, and the first month after it: next month is still in it, so that
    none ends meanwhile.
    """
    now = datetime.now(UTC)
    first = _later((now.year, now.month), 2)
    if context.is_offline_mode():
        return _bound(first), first
    youngest = op.get_bind().execute(
        sa.text("SELECT checkout_id FROM audit_entries ORDER BY checkout_id DESC LIMIT 1")
    )
    last = youngest.scalar_one_or_none()
    if last is None or last < _bound(first):
        return _bound(first), first
    # A payment may have named an id of the future. What it made stays where it is, and so does all that comes
    # before it.
    while first < FAR and _bound(first) <= last:
        first = _later(first, 1)
    return (_bound(first), first) if first < FAR else (UUID(int=2**128 - 1), FAR)


def _later(month: Month, months: int) -> Month:
    number = month[0] * 12 + month[1] - 1 + months
    return number // 12, number % 12 + 1


def _bound(month: Month) -> UUID:
    """Return the smallest UUIDv7 of a month."""
    return UUID(int=int(datetime(*month, 1, tzinfo=UTC).timestamp()) * 1000 << 80)

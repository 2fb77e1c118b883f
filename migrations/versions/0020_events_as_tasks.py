"""Endpoints of a second kind: events as Celery tasks, on a queue of a broker.

Revision: 0020
Before: 0019
"""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; every endpoint that there is receives webhooks."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column(
        "webhook_endpoints", sa.Column("kind", sa.Text(), server_default=sa.text("'webhook'"), nullable=False)
    )
    op.add_column("webhook_endpoints", sa.Column("task", sa.Text(), nullable=True))
    op.add_column("webhook_endpoints", sa.Column("queue", sa.Text(), nullable=True))
    op.create_check_constraint(
        op.f("ck_webhook_endpoints_kind"), "webhook_endpoints", "kind IN ('webhook', 'celery')"
    )
    op.create_check_constraint(
        op.f("ck_webhook_endpoints_target"),
        "webhook_endpoints",
        "(kind = 'celery') = (task IS NOT NULL) AND (task IS NULL) = (queue IS NULL)",
    )


def downgrade() -> None:
    """Delete endpoints of the second kind; what was not sent yet can be read from the feed."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    for table in ("delivery_attempts", "delivery_streams"):
        op.execute(
            f"DELETE FROM {table} t USING webhook_endpoints e WHERE e.id = t.endpoint_id AND e.kind = 'celery'"  # noqa: S608 - our own names
        )
    op.execute("DELETE FROM webhook_endpoints WHERE kind = 'celery'")
    for name in ("kind", "target"):
        op.drop_constraint(op.f(f"ck_webhook_endpoints_{name}"), "webhook_endpoints")
    for name in ("queue", "task", "kind"):
        op.drop_column("webhook_endpoints", name)

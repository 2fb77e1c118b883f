"""The tables of webhooks: merchants' endpoints, what is to be sent to each, and every attempt.

An endpoint is a URL that is called, or a Celery task on a queue of a broker.

A stream is one checkout's events for one endpoint: a row while something is unsent, and none otherwise. So
only the next event of a checkout is ever due, and a checkout of which everything is delivered costs nothing.
"""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    Table,
    Text,
    Uuid,
    text,
)

from orchestrator.store.tables.core import _time, metadata

webhook_endpoints = Table(
    "webhook_endpoints",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("merchant_id", Integer, ForeignKey("merchants.id"), nullable=False),
    Column("kind", Text, nullable=False, server_default=text("'webhook'")),
    # Of a Celery task the broker's URL without a login; empty: our own broker.
    Column("url", Text, nullable=False),
    Column("task", Text),
    Column("queue", Text),
    Column("description", Text, nullable=False, server_default=text("''")),
    # The types that it wants; null: all.
    Column("kinds", ARRAY(Text)),
    Column("content", Text, nullable=False, server_default=text("'thin'")),
    # The key that signs; of a Celery task the broker's URL with its login. Encrypted, and bound to id,
    # merchant and target: with another target it does not open, and nothing is sent there.
    Column("secret", LargeBinary, nullable=False),
    Column("previous_secret", LargeBinary),
    _time("previous_until"),
    _time("paused_at"),
    Column("pause_reason", Text),
    # The first failure since the last delivery, and the last delivery (to ten seconds).
    _time("failing_since"),
    _time("delivered_at"),
    # When it was last resumed, enabled with its merchant or given another target: failures before it do not
    # count when an event is given up.
    _time("resumed_at"),
    # While its circuit is open nothing is sent before this time, and then one probe; the number of openings
    # in a row.
    _time("open_until"),
    Column("opened", Integer, nullable=False, server_default=text("0")),
    _time("created_at", now=True),
    _time("deleted_at"),
    CheckConstraint("kind IN ('webhook', 'celery')", name="kind"),
    CheckConstraint(
        "(kind = 'celery') = (task IS NOT NULL) AND (task IS NULL) = (queue IS NULL)", name="target"
    ),
    CheckConstraint("content IN ('thin', 'full')", name="content"),
    CheckConstraint("pause_reason IN ('asked', 'failing', 'gone')", name="pause_reason"),
    CheckConstraint("(paused_at IS NULL) = (pause_reason IS NULL)", name="paused"),
    Index("ix_webhook_endpoints_merchant_id", "merchant_id", "id"),
)

delivery_streams = Table(
    "delivery_streams",
    metadata,
    Column("endpoint_id", Uuid, nullable=False),
    # Of a test event: an id of its own.
    Column("checkout_id", Uuid, nullable=False),
    Column("purpose", Text, nullable=False, server_default=text("'event'")),
    Column("next_sequence", Integer, nullable=False),
    Column("last_sequence", Integer, nullable=False),
    # The next moment at which it is to be worked on: the next try, or the end of the lease.
    _time("due_at", nullable=False),
    Column("lease", Uuid),
    # Failures of the next event, and the first of them.
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    _time("failing_since"),
    PrimaryKeyConstraint("endpoint_id", "checkout_id", "purpose"),
    CheckConstraint("purpose IN ('event', 'replay', 'test')", name="purpose"),
    Index("ix_delivery_streams_due", "endpoint_id", "due_at"),
    Index("ix_delivery_streams_tests", "due_at", postgresql_where=text("purpose = 'test'")),
    postgresql_with={"fillfactor": 70},
)

delivery_attempts = Table(
    "delivery_attempts",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("endpoint_id", Uuid, nullable=False),
    Column("checkout_id", Uuid, nullable=False),
    Column("sequence", Integer, nullable=False),
    Column("kind", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("number", Integer, nullable=False),
    _time("at", now=True),
    Column("outcome", Text, nullable=False),
    Column("status", Integer),
    Column("milliseconds", Integer, nullable=False),
    # Up to a kilobyte of the answer, under the checkout's data key.
    Column("answer", LargeBinary),
    # How the event stands after this attempt: null where it will be tried again.
    Column("result", Text),
    CheckConstraint("result IN ('delivered', 'given_up')", name="result"),
    Index("ix_delivery_attempts_endpoint_id", "endpoint_id", "id"),
    Index("ix_delivery_attempts_given_up", "endpoint_id", "id", postgresql_where=text("result = 'given_up'")),
)

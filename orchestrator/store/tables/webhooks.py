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
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    Text,
    Uuid,
)

from orchestrator.store.tables.core import _index, _merchant, _needed, _table, _time

webhook_endpoints = _table(
    "webhook_endpoints",
    Column("id", Uuid, primary_key=True),
    _merchant(nullable=False),
    _needed("kind", Text, "'webhook'"),
    # Of a Celery task the broker's URL without a login; empty: our own broker.
    _needed("url", Text),
    Column("task", Text),
    Column("queue", Text),
    _needed("description", Text, "''"),
    # The types that it wants; null: all.
    Column("kinds", ARRAY(Text)),
    _needed("content", Text, "'thin'"),
    # The key that signs; of a Celery task the broker's URL with its login. Encrypted, and bound to id,
    # merchant and target: with another target it does not open, and nothing is sent there.
    _needed("secret", LargeBinary),
    Column("previous_secret", LargeBinary),
    _time("previous_until"),
    _time("paused_at"),
    Column("pause_reason", Text),
    # The first failure since the last delivery, and the last delivery (to ten seconds).
    _time("failing_since"),
    _time("delivered_at"),
    # When it was last resumed, enabled with its merchant or retargeted: failures before it do not count.
    _time("resumed_at"),
    # While its circuit is open nothing is sent before this time, and then one probe; openings in a row.
    _time("open_until"),
    _needed("opened", Integer, "0"),
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

delivery_streams = _table(
    "delivery_streams",
    _needed("endpoint_id", Uuid),
    # Of a test event: an id of its own.
    _needed("checkout_id", Uuid),
    _needed("purpose", Text, "'event'"),
    _needed("next_sequence", Integer),
    _needed("last_sequence", Integer),
    # The next moment at which it is to be worked on: the next try, or the end of the lease.
    _time("due_at", nullable=False),
    Column("lease", Uuid),
    # Failures of the next event, and the first of them.
    _needed("attempts", Integer, "0"),
    _time("failing_since"),
    PrimaryKeyConstraint("endpoint_id", "checkout_id", "purpose"),
    CheckConstraint("purpose IN ('event', 'replay', 'test')", name="purpose"),
    Index("ix_delivery_streams_due", "endpoint_id", "due_at"),
    _index("ix_delivery_streams_tests", "due_at", where="purpose = 'test'"),
    postgresql_with={"fillfactor": 70},
)

delivery_attempts = _table(
    "delivery_attempts",
    Column("id", Uuid, primary_key=True),
    _needed("endpoint_id", Uuid),
    _needed("checkout_id", Uuid),
    _needed("sequence", Integer),
    _needed("kind", Text),
    _needed("purpose", Text),
    _needed("number", Integer),
    _time("at", now=True),
    _needed("outcome", Text),
    Column("status", Integer),
    _needed("milliseconds", Integer),
    # Up to a kilobyte of the answer, under the checkout's data key.
    Column("answer", LargeBinary),
    # How the event stands after this attempt: null where it will be tried again.
    Column("result", Text),
    CheckConstraint("result IN ('delivered', 'given_up')", name="result"),
    Index("ix_delivery_attempts_endpoint_id", "endpoint_id", "id"),
    _index("ix_delivery_attempts_given_up", "endpoint_id", "id", where="result = 'given_up'"),
)

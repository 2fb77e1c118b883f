"""The answers of calls with an Idempotency-Key whose effect has no key of its own: those of webhooks."""

from __future__ import annotations

from sqlalchemy import Column, DateTime, ForeignKey, Index, Integer, LargeBinary, Table, Text, Uuid, text

from orchestrator.store.tables.core import metadata

idempotent_answers = Table(
    "idempotent_answers",
    metadata,
    Column("merchant_id", Integer, ForeignKey("merchants.id"), primary_key=True, autoincrement=False),
    Column("key", Text, primary_key=True),
    Column("fingerprint", LargeBinary, nullable=False),
    # The request that works on it, and until when it is believed to; null once there is an answer.
    Column("claim", Uuid),
    Column("claimed_until", DateTime(timezone=True)),
    # Encrypted: it may have a webhook's secret.
    Column("answer", LargeBinary),
    Column("created_at", DateTime(timezone=True), server_default=text("clock()"), nullable=False),
    Index("ix_idempotent_answers_created_at", "created_at"),
)

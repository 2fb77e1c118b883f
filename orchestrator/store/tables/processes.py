"""The tables of processes: their heartbeats, and what those that have ended have counted."""

from __future__ import annotations

from sqlalchemy import Column, DateTime, Double, Table, Text, text
from sqlalchemy.dialects.postgresql import JSONB

from orchestrator.store.tables.core import metadata

workers = Table(
    "workers",
    metadata,
    Column("name", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    *(
        Column(name, DateTime(timezone=True), nullable=False, server_default=text("clock()"))
        for name in ("started_at", "seen_at")
    ),
    # What a process says of itself; `counters` in it are its counts since its start.
    Column("progress", JSONB, nullable=False, server_default=text("'{}'")),
)

counter_totals = Table(
    "counter_totals",
    metadata,
    Column("series", Text, primary_key=True),
    Column("value", Double, nullable=False),
)

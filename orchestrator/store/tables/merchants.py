"""The tables beside `merchants`: what was changed of each, and callback secrets that end soon."""

from __future__ import annotations

from sqlalchemy import Column, DateTime, ForeignKey, Integer, LargeBinary, Table, Text

from orchestrator.store.tables.core import metadata

merchant_changes = Table(
    "merchant_changes",
    metadata,
    Column("merchant_id", Integer, ForeignKey("merchants.id"), primary_key=True, autoincrement=False),
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("at", DateTime(timezone=True), nullable=False),
    # The canonical text, and over it a MAC that follows the MAC of the merchant's previous change.
    Column("entry", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("mac", LargeBinary, nullable=False),
)

retired_callback_secrets = Table(
    "retired_callback_secrets",
    metadata,
    Column("merchant_id", Integer, ForeignKey("merchants.id"), primary_key=True, autoincrement=False),
    # A list of secrets, each with its end, encrypted.
    Column("secrets", LargeBinary, nullable=False),
)

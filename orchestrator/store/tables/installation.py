"""The tables of the installation: merchants, what was changed of each, callback secrets that end soon; kept
answers; heartbeats, and what ended processes have counted; the clock of tests.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    Identity,
    Index,
    Integer,
    LargeBinary,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from orchestrator.store.tables.core import _merchant, _needed, _table, _time

merchants = _table(
    "merchants",
    Column("id", Integer, Identity(), primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    # Null: the settings of the process (merchant `default`).
    Column("gateway_url", Text),
    Column("merchant_api_url", Text),
    Column("username", Text),
    Column("password", LargeBinary),
    Column("callback_secrets", LargeBinary),
    _needed("policies", JSONB, "'{}'"),
    # Under our key, over those policies that move money; without it they are not followed.
    Column("policies_mac", LargeBinary),
    _time("disabled_at"),
    _time("created_at", now=True),
    _time("paused_at"),  # no gateway call is made for it, and nothing of it is swept
)

merchant_changes = _table(
    "merchant_changes",
    _merchant(primary_key=True, autoincrement=False),
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    _time("at", nullable=False),
    # The canonical text, and over it a MAC that follows the MAC of the merchant's previous change.
    _needed("entry", Text),
    _needed("key_id", Text),
    _needed("mac", LargeBinary),
)

retired_callback_secrets = _table(
    "retired_callback_secrets",
    _merchant(primary_key=True, autoincrement=False),
    # A list of secrets, each with its end, encrypted.
    _needed("secrets", LargeBinary),
)

# The answers of calls with an Idempotency-Key whose effect has no key of its own: those of webhooks.
idempotent_answers = _table(
    "idempotent_answers",
    _merchant(primary_key=True, autoincrement=False),
    Column("key", Text, primary_key=True),
    _needed("fingerprint", LargeBinary),
    # The request that works on it, and until when it is believed to; null once there is an answer.
    Column("claim", Uuid),
    _time("claimed_until"),
    # Encrypted: it may have a webhook's secret.
    Column("answer", LargeBinary),
    _time("created_at", now=True),
    Index("ix_idempotent_answers_created_at", "created_at"),
)

workers = _table(
    "workers",
    Column("name", Text, primary_key=True),
    _needed("kind", Text),
    *(_time(name, now=True) for name in ("started_at", "seen_at")),
    # What a process says of itself; `counters` in it are its counts since its start.
    _needed("progress", JSONB, "'{}'"),
)

counter_totals = _table(
    "counter_totals",
    Column("series", Text, primary_key=True),
    _needed("value", Double),
)

clock_skew = _table(
    "clock_skew",
    # One row. Production leaves it at zero; tests push it forward to live through days in seconds.
    Column("id", Boolean, primary_key=True, server_default=text("true")),
    _needed("seconds", BigInteger, "0"),
    CheckConstraint("id", name="single"),
)

"""The tables of the operations console: users, sessions, what users did, approvals, and bulk actions.

Write access to the database alone must neither open the console nor move money: sessions, approvals and runs
carry a MAC under our key, and without it they are as if they did not exist.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    Text,
    Uuid,
)
from sqlalchemy.dialects.postgresql import JSONB

from orchestrator.store.tables.core import _index, _needed, _table, _time

IS_UNFINISHED = "state = 'waiting' OR state = 'approved' AND command_id IS NULL"
"""An approval that no person has decided, or whose command is not stored yet."""

console_users = _table(
    "console_users",
    Column("name", Text, primary_key=True),
    _needed("role", Text),
    # Argon2id, as a PHC string; null until the person has chosen one.
    Column("password", Text),
    _needed("mac", LargeBinary),
    _needed("created_by", Text),
    # Who made the last link of the person; null in rows from before schema 0024.
    Column("linked_by", Text),
    _time("created_at", now=True),
    _time("signed_in_at"),
    _time("disabled_at"),
    CheckConstraint("role IN ('viewer', 'operator', 'approver', 'admin')", name="role"),
)

console_sessions = _table(
    "console_sessions",
    # SHA-256 of what the browser has: the table opens nothing by itself.
    Column("id", LargeBinary, primary_key=True),
    # A link is used once, for a session.
    _needed("kind", Text),
    _needed("actor", Text),
    _needed("scopes", Text),
    _needed("mac", LargeBinary),
    _time("created_at", now=True),
    _time("expires_at", nullable=False),
    CheckConstraint("kind IN ('link', 'session')", name="kind"),
    Index("ix_console_sessions_expires_at", "expires_at"),
    Index("ix_console_sessions_actor", "actor", "id"),
)

console_actions = _table(
    "console_actions",
    Column("id", Uuid, primary_key=True),
    _time("at", now=True),
    _needed("actor", Text),
    _needed("action", Text),
    _needed("outcome", Text),
    Column("merchant_id", Integer),
    Column("checkout_id", Uuid),
    Column("command_id", Uuid),
    # What it was about, where that is no checkout: the name of a merchant, the id of an endpoint.
    _needed("subject", Text, "''"),
    # Codes, ids and amounts.
    _needed("facts", JSONB, "'{}'"),
    # Under the data key of the checkout.
    Column("reason", Text),
    CheckConstraint("outcome IN ('accepted', 'refused', 'waiting')", name="outcome"),
    _index("ix_console_actions_checkout_id", "checkout_id", "id", where="checkout_id IS NOT NULL"),
)

console_approvals = _table(
    "console_approvals",
    Column("id", Uuid, primary_key=True),
    _needed("merchant_id", Integer),
    _needed("checkout_id", Uuid),
    _needed("kind", Text),
    _needed("arguments", JSONB),
    # Of the checkout, as the first person saw it.
    _needed("version", Integer),
    _needed("amount", BigInteger),
    _needed("currency", Text),
    # Under the data key of the checkout.
    Column("reason", Text),
    _needed("requested_by", Text),
    _time("requested_at", now=True),
    _time("expires_at", nullable=False),
    _needed("state", Text, "'waiting'"),
    Column("decided_by", Text),
    _time("decided_at"),
    Column("command_id", Uuid),
    # Over everything that the first person asked for.
    _needed("mac", LargeBinary),
    CheckConstraint("state IN ('waiting', 'approved', 'rejected', 'outdated')", name="state"),
    _index("ix_console_approvals_waiting", "id", where=IS_UNFINISHED),
    Index("ix_console_approvals_checkout_id", "checkout_id"),
)

console_runs = _table(
    "console_runs",
    Column("id", Uuid, primary_key=True),
    _needed("kind", Text),
    # What the checkouts were chosen by.
    _needed("filter", JSONB),
    _needed("actor", Text),
    # Under SECRET_KEYS, because it is about many checkouts; deleted at the end of the run.
    Column("reason", LargeBinary),
    _needed("state", Text, "'running'"),
    _needed("number", Integer),
    # SHA-256 over its items, under the MAC; null while they are being stored.
    Column("digest", LargeBinary),
    # Items with an outcome.
    _needed("accepted", Integer, "0"),
    _needed("refused", Integer, "0"),
    Column("lease", Uuid),
    _time("leased_until"),
    _time("created_at", now=True),
    _time("ended_at"),
    _needed("mac", LargeBinary),
    CheckConstraint("state IN ('running', 'stopped', 'done')", name="state"),
    _index("ix_console_runs_running", "id", where="state = 'running'"),
)

console_run_items = _table(
    "console_run_items",
    _needed("run_id", Uuid),
    _needed("checkout_id", Uuid),
    _needed("merchant_id", Integer),
    # Of the checkout, when it was chosen.
    _needed("version", Integer),
    # Null: not yet.
    Column("outcome", Text),
    Column("command_id", Uuid),
    Column("sentence", Text),
    PrimaryKeyConstraint("run_id", "checkout_id"),
    CheckConstraint("outcome IN ('accepted', 'refused')", name="outcome"),
    _index("ix_console_run_items_open", "run_id", "checkout_id", where="outcome IS NULL"),
)

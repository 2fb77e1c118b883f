"""The tables, as SQLAlchemy Core: the schema in one place, with the reason for each index.

`checkouts` is narrow and hot: what a move writes, and nothing else; the intent and the gateway's session are
in other tables and written once. Beyond the identity of a checkout (its id, its order number, its merchant),
indexes cover unsettled rows only, so that finished checkouts cost nothing to those under way. Rows that
belong to a checkout are written by the same statement as their checkout and carry no foreign key on it: the
check would cost more than the insert, and history can be moved away by id range. Times are Postgres's own,
through `clock()`; money is in integer minor units. This module holds no behaviour.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)  # fmt: skip
from sqlalchemy.dialects.postgresql import JSONB

from orchestrator.domain.states import CLOSED, ENDED, State

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID

    from sqlalchemy.sql.schema import SchemaItem
    from sqlalchemy.types import TypeEngine

T = TypeVar("T")

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

PARTITION = re.compile(r"audit_entries_(before|rest|\d{4,}_\d{2})")
"""The names of the partitions of the trail, which are not tables of their own."""


def quoted(words: Iterable[str]) -> str:
    """Return words as SQL lists them."""
    return ", ".join(f"'{word}'" for word in words)


IS_LIVE = f"state NOT IN ({quoted(sorted(CLOSED))}) AND NOT late"
"""SQL: the order number is taken by it. What money completed late may coexist with the one after it."""

IS_UNCONFIRMED = "state = 'failed' AND deadline = created_at"
"""SQL: created from a callback about a payment of an unknown order, which no lookup has shown to hold money.
An intent's deadline is later."""

IS_LISTED = "amount > 0"
"""SQL: true of every checkout. Statements that name it list a merchant's checkouts by their ids, and may use
the index for that. A lookup by order number must not: planned while there are no statistics, it would read
all of the merchant's checkouts for the youngest of them."""

IS_OPEN = f"state NOT IN ({quoted(state for state in State if state in ENDED)})"
"""SQL: the shopper may still act. Listings name it, for the sake of the partial index."""


def _table(name: str, *parts: SchemaItem, **options: Any) -> Table:
    return Table(name, metadata, *parts, **options)


def _time(name: str, *, now: bool = False, nullable: bool = True) -> Column[object]:
    return Column(
        name,
        DateTime(timezone=True),
        nullable=nullable and not now,
        server_default=text("clock()") if now else None,
    )


def _id(name: str = "id", **options: Any) -> Column[UUID]:
    return Column(name, Uuid, **options)


def _merchant(**options: Any) -> Column[int]:
    return Column("merchant_id", Integer, ForeignKey("merchants.id"), **options)


def _index(name: str, *columns: str, where: str, unique: bool = False) -> Index:
    """Make an index of the rows that meet a condition in SQL."""
    return Index(name, *columns, unique=unique, postgresql_where=text(where))


def _needed(name: str, kind: TypeEngine[T] | type[TypeEngine[T]], default: str | None = None) -> Column[T]:
    """Make a column that is never null; `default` is SQL."""
    return Column(name, kind, nullable=False, server_default=None if default is None else text(default))


checkouts = _table(
    "checkouts",
    _id(primary_key=True),
    _merchant(nullable=False),
    _needed("order_ref", Text),
    _needed("state", Text),
    # Incremented at each write by the holder; every such write names the version it read.
    _needed("version", Integer, "1"),
    Column("lease", Uuid),
    _time("leased_until"),
    # Incremented at each wake-up; the release compares it with the value at the claim.
    _needed("wake", Integer, "0"),
    # A hint has been published for the present due time: one claim may come before `due_at`.
    _needed("hinted", Boolean, "false"),
    _time("due_at"),
    # Since when it has been due, by the first sweep that saw it; it counts where not before `updated_at`.
    _time("due_since"),
    _time("deadline", nullable=False),
    _time("offered_at"),
    # Cancelling was asked for: the token is no longer handed out, and the grace runs.
    _time("cancel_requested_at"),
    _time("ended_at"),
    _needed("currency", Text),
    _needed("amount", BigInteger),
    *(_needed(name, BigInteger, "0") for name in ("reserved", "captured", "refunded")),
    # What the shopper's bank took back, as the gateway reports it; a reversal reduces it.
    _needed("charged_back", BigInteger, "0"),
    # Until when the reservation is sure to be worth a capture.
    _time("reserved_until"),
    _needed("late", Boolean, "false"),
    # The gateway was asked to capture by itself: we capture only if it says that it will not.
    _needed("auto_capture", Boolean, "false"),
    # The gateway was requested to capture, and reported that it will not.
    _needed("require_capture", Boolean, "false"),
    # Claims since a holder's last write (a crash loop), failures since a move, lookups since a wake-up.
    *(_needed(name, Integer, "0") for name in ("claims", "attempts", "lookups")),
    # A lookup that had to wait for the merchant's budget has its slot: the next one is made at once.
    _needed("slot_reserved", Boolean, "false"),
    # Seconds from the offer to the deadline where a reopening named them; else the intent says.
    Column("expires_in", Double),
    # Uses of this order number at the gateway: one id serves about four orders (D7, D8).
    _needed("session_count", Integer, "0"),
    _needed("audit_sequence", Integer),
    _needed("audit_head", LargeBinary),
    _needed("event_sequence", Integer, "0"),
    # Codes, and the facts that their sentences are made of (`domain.sentences`); since when the code stands.
    Column("last_error", Text),
    Column("last_error_details", JSONB),
    Column("attention", Text),
    Column("attention_details", JSONB),
    _time("attention_since"),
    _needed("correlation_id", Text),
    _time("created_at", now=True),
    _time("updated_at", now=True),
    CheckConstraint(f"state IN ({quoted(State)})", name="state"),
    CheckConstraint(
        "amount > 0 AND reserved >= 0 AND captured >= 0 AND refunded >= 0 AND charged_back >= 0", name="money"
    ),
    CheckConstraint("(lease IS NULL) = (leased_until IS NULL)", name="lease"),
    # Rule 2: null only when settled, and only ended checkouts are settled.
    CheckConstraint(
        "due_at IS NOT NULL OR state IN ('completed', 'failed', 'expired', 'cancelled')", name="due"
    ),
    # The due times, merchant by merchant: for sweeps, and for workers that claim what has waited longest.
    _index("ix_checkouts_due", "merchant_id", "due_at", where="due_at IS NOT NULL"),
    # An order number belongs to one live checkout of a merchant; also the lookup by order number.
    _index("uq_checkouts_live_order", "merchant_id", "order_ref", unique=True, where=IS_LIVE),
    # Closed ones by order number: replays of old requests, and support asking.
    _index("ix_checkouts_closed_order", "merchant_id", "order_ref", where=f"NOT ({IS_LIVE})"),
    # Listings, from the youngest on; without it a small merchant's would read every merchant's checkouts.
    _index("ix_checkouts_listing", "merchant_id", "id", where=IS_LISTED),
    # Listings of what is still under way, which among millions of ended ones is rare.
    _index("ix_checkouts_open", "merchant_id", "id", where=IS_OPEN),
    # Payments of unknown orders that no lookup has confirmed: they are counted before another is added.
    _index("ix_checkouts_unconfirmed", "merchant_id", "created_at", where=IS_UNCONFIRMED),
    # What needs a decision.
    _index("ix_checkouts_attention", "id", where="attention IS NOT NULL"),
    postgresql_with={"fillfactor": 70},
)

intents = _table(
    "intents",
    _id("checkout_id", primary_key=True),
    _needed("fingerprint", LargeBinary),
    _needed("body", LargeBinary),
    # The key of all personal data, wrapped by SECRET_KEYS; destroying it erases the customer.
    Column("data_key", LargeBinary),
    _time("erased_at"),
    Column("email_tag", LargeBinary),  # see `store.email_search`
    _index("ix_intents_email_tag", "email_tag", "checkout_id", where="email_tag IS NOT NULL"),
)

sessions = _table(
    "sessions",
    _id("checkout_id", primary_key=True),
    Column("token", LargeBinary),
    _time("token_expires_at"),
    Column("session_id", Text),
    Column("methods", JSONB),
    # It has the order as it was before a change.
    _needed("outdated", Boolean, "false"),
)

payments = _table(
    "payments",
    _merchant(primary_key=True),
    Column("transaction_id", Text, primary_key=True),
    Column("checkout_id", Uuid),
    Column("payment_id", Text),
    _needed("order_ref", Text),
    _needed("role", Text),
    # How the payment was matched with the checkout: bound (the checkout's own id came back), order_ref, none.
    _needed("binding", Text),
    _needed("status", Text),
    _needed("meaning", Text),
    _needed("currency", Text),
    *(_needed(name, BigInteger) for name in ("reserved", "captured", "refunded")),
    _needed("charged_back", BigInteger, "0"),
    # What the gateway added for the way of payment (SurchargeAmount): part of the amounts, or beside them.
    _needed("surcharge", BigInteger, "0"),
    # What persons decided on this transaction, each as word=decision@basis (see `decisions`).
    Column("decided", Text),
    _needed("flags", JSONB, "'[]'"),
    # What the gateway wrote for amounts, by name, and a currency that cannot be read. Null: all are read.
    Column("raw_amounts", JSONB),
    _time("first_seen_at", now=True),
    _time("updated_at", now=True),
    CheckConstraint("role IN ('accepted', 'surplus', 'attempt', 'unknown')", name="role"),
    Index("ix_payments_checkout_id", "checkout_id"),
    # Listings: all of a merchant's, and those that cannot be read.
    Index("ix_payments_merchant", "merchant_id", "first_seen_at", "transaction_id"),
    _index("ix_payments_unknown", "merchant_id", "first_seen_at", "transaction_id", where="role = 'unknown'"),
    _index("ix_payments_surplus", "merchant_id", "first_seen_at", where="role = 'surplus'"),
)

money_operations = _table(
    "money_operations",
    _id(primary_key=True),
    _merchant(nullable=False),
    _needed("checkout_id", Uuid),
    _needed("transaction_id", Text),
    _needed("kind", Text),
    _needed("amount", BigInteger),
    _needed("currency", Text),
    _needed("state", Text),
    Column("reconciliation_identifier", Text, nullable=False, unique=True),
    # Why: a merchant asked; the intent asked for its capture; policy or a person returns money.
    _needed("cause", Text),
    Column("command_id", Uuid),
    _needed("actor", Text),
    Column("reason", Text),
    # What the gateway had captured (for a refund: refunded) of this transaction before it was sent.
    Column("total_before", BigInteger),
    _needed("attempts", Integer, "0"),
    Column("last_error", Text),
    Column("last_error_details", JSONB),
    # Under our key, over what would be sent (checkouts.row_macs).
    Column("mac", LargeBinary),
    _time("requested_at", now=True),
    _time("submitted_at"),
    _time("settled_at"),
    CheckConstraint("kind IN ('capture', 'refund', 'release')", name="kind"),
    CheckConstraint("state IN ('requested', 'submitted', 'succeeded', 'rejected', 'unknown')", name="state"),
    CheckConstraint("amount > 0", name="amount"),
    CheckConstraint("cause IN ('asked', 'automatic', 'returned')", name="cause"),
    Index("ix_money_operations_checkout_id", "checkout_id"),
    # One open operation for a transaction.
    _index(
        "uq_money_operations_open",
        "merchant_id",
        "transaction_id",
        unique=True,
        where="state IN ('requested', 'submitted', 'unknown')",
    ),
)

commands = _table(
    "commands",
    _id(primary_key=True),
    _merchant(nullable=False),
    _needed("checkout_id", Uuid),
    _needed("kind", Text),
    _needed("actor", Text),
    Column("reason", Text),
    Column("expected_version", Integer),
    _needed("arguments", JSONB, "'{}'"),
    # A request with the same key again is the same command; with other content it is refused.
    Column("idempotency_key", Text),
    Column("fingerprint", LargeBinary),
    # Under our key, over what is asked (checkouts.row_macs).
    Column("mac", LargeBinary),
    _time("requested_at", now=True),
    _time("handled_at"),
    Column("result", Text),
    Column("result_details", JSONB),
    CheckConstraint(
        "kind IN ('cancel', 'reopen', 'capture', 'refund', 'release', 'retry', 'reconcile', 'resolve', 'change')",
        name="kind",
    ),
    _index("ix_commands_open", "checkout_id", where="handled_at IS NULL"),
    Index("ix_commands_checkout_id", "checkout_id", "requested_at"),
    _index(
        "uq_commands_key", "merchant_id", "idempotency_key", unique=True, where="idempotency_key IS NOT NULL"
    ),
)

callbacks = _table(
    "callbacks",
    _id(primary_key=True),
    Column("merchant_id", Integer),
    Column("checkout_id", Uuid),
    _needed("kind", Text),
    _needed("grade", Text),
    # Whether the sender's address is one of the gateway's: inside, outside, unchecked.
    _needed("network", Text, "'unchecked'"),
    # Content type, white-listed headers and address of the sender, and the raw body, under the data key.
    Column("sender", LargeBinary),
    _needed("body", LargeBinary),
    # SHA-256 of kind and raw body: what counts as the same callback.
    _needed("digest", LargeBinary),
    _needed("times", Integer, "1"),
    _time("received_at", now=True),
    _time("repeated_at"),
    _time("handled_at"),
    UniqueConstraint("checkout_id", "kind", "digest"),
    _index("ix_callbacks_open", "checkout_id", where="handled_at IS NULL"),
    CheckConstraint("kind IN ('success', 'failure', 'notification', 'redirect')", name="kind"),
)

# In partitions by month of the checkout id; migrations and `orchestrator archive` make them ahead.
audit_entries = _table(
    "audit_entries",
    _id("checkout_id", primary_key=True),
    Column("sequence", Integer, primary_key=True),
    _time("at", nullable=False),
    _needed("action", Text),
    # The canonical text, over which the chain is; the columns above only help to find it.
    _needed("entry", Text),
    _needed("key_id", Text),
    _needed("mac", LargeBinary),
    Index("ix_audit_entries_at", "at", postgresql_using="brin"),
    postgresql_partition_by="RANGE (checkout_id)",
)

archives = _table(
    "archives",
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    _time("at", nullable=False),
    # Its name, wherever it is kept.
    _needed("file", Text),
    # The last line of the file: counts and digests, and a MAC that follows the previous archive's.
    _needed("manifest", Text),
    _needed("key_id", Text),
    _needed("mac", LargeBinary),
)

# Up to where the chain of a checkout stands in an archive: an entry may leave only below such a head.
archived_heads = _table(
    "archived_heads",
    _id("checkout_id", primary_key=True),
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column(
        "archive",
        BigInteger,
        ForeignKey("archives.sequence", deferrable=True, initially="DEFERRED"),
        nullable=False,
    ),
    _needed("state", Text),
    _needed("mac", LargeBinary),
    Index("ix_archived_heads_archive", "archive", "checkout_id"),
)

audit_seals = _table(
    "audit_seals",
    Column("sequence", BigInteger, primary_key=True),
    _time("at", nullable=False),
    # The heads of all chains that grew since the previous seal, one line each: checkout, sequence, mac.
    _needed("heads", Text),
    _needed("key_id", Text),
    _needed("mac", LargeBinary),
)

events = _table(
    "events",
    _id("checkout_id", primary_key=True),
    Column("sequence", Integer, primary_key=True),
    _needed("merchant_id", Integer),
    _needed("kind", Text),
    _needed("payload", JSONB),
    _needed("correlation_id", Text),
    _time("created_at", now=True),
    # The place in the merchant's feed, from 1, given after the commit by one sequencer: no cursor skips.
    Column("position", BigInteger),
    _index("ix_events_unplaced", "created_at", where="position IS NULL"),
    _index("uq_events_feed", "merchant_id", "position", unique=True, where="position IS NOT NULL"),
)

# The range of a merchant's feed: the last position that was given, and the last one that is no longer kept.
event_feeds = _table(
    "event_feeds",
    _merchant(primary_key=True, autoincrement=False),
    _needed("last_position", BigInteger),
    _needed("kept_after", BigInteger, "0"),
    postgresql_with={"fillfactor": 50},
)

# A merchant's lookups: until when places are taken, and lookups were made (processing.lookup_budget).
lookup_budgets = _table(
    "lookup_budgets",
    _merchant(primary_key=True),
    *(_time(name, now=True) for name in ("taken_until", "charged_at", "made_until")),
)

idempotency_keys = _table(
    "idempotency_keys",
    Column("merchant_id", Integer, primary_key=True),
    Column("key", Text, primary_key=True),
    _needed("fingerprint", LargeBinary),
    _needed("checkout_id", Uuid),
    _time("created_at", now=True),
    # The keys of a checkout that is erased, or was not created.
    Index("ix_idempotency_keys_checkout_id", "checkout_id"),
)

# Refused intents of the queue `intents`; without a merchant where the token proves none.
rejected_intents = _table(
    "rejected_intents",
    _id(primary_key=True),
    Column("merchant_id", Integer),
    # A tag of message id, place in the message and content: a message that is delivered again adds no row.
    Column("digest", LargeBinary, nullable=False, unique=True),
    _needed("message_id", Text),
    Column("order_ref", Text),
    # Of a whole message the order numbers of its intents, so that an erasure reaches it.
    Column("order_refs", ARRAY(Text)),
    _needed("code", Text),
    # A list of {field, message}; a message contains no value of a customer.
    _needed("errors", JSONB),
    # What was sent, encrypted under the data key.
    _needed("body", LargeBinary),
    Column("data_key", LargeBinary),
    _time("created_at", now=True),
    Index("ix_rejected_intents_merchant_id", "merchant_id", "id"),
    Index("ix_rejected_intents_order_ref", "merchant_id", "order_ref", "id"),
    Index("ix_rejected_intents_order_refs", "order_refs", postgresql_using="gin"),
    Index("ix_rejected_intents_created_at", "created_at"),
)  # fmt: skip

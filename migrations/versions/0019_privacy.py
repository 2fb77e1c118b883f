"""Senders of callbacks and operators' reasons under the data key of their checkout.

Revision: 0019
Before: 0018

Stop the processes of the earlier version first. Rows are encrypted again in lists, in the transaction that
changes the columns; that takes SECRET_KEYS where there is anything to encrypt. Reasons in audit entries stay
as they are: the trail is never changed. What belongs to an erased customer is deleted.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa
from alembic import context, op
from alembic.util import CommandError
from sqlalchemy.dialects import postgresql

from orchestrator.crypto import EncryptionError, Encryptor, Erased

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

LIST = 1000
SEALED = "sealed:"
SENDERS = """
    SELECT b.id, b.checkout_id, i.data_key, b.content_type, b.headers, b.source
      FROM callbacks b LEFT JOIN intents i ON i.checkout_id = b.checkout_id
     WHERE b.id > %s AND (b.content_type <> '' OR b.headers <> '{}' OR b.source IS NOT NULL)
     ORDER BY b.id LIMIT %s
"""
SENDERS_BACK = """
    SELECT b.id, b.checkout_id, i.data_key, b.sender
      FROM callbacks b LEFT JOIN intents i ON i.checkout_id = b.checkout_id
     WHERE b.id > %s AND b.sender IS NOT NULL ORDER BY b.id LIMIT %s
"""
COMMANDS = """
    SELECT k.id, k.checkout_id, i.data_key, k.reason, k.merchant_id, k.kind, k.actor, k.expected_version,
           k.arguments, k.mac
      FROM commands k LEFT JOIN intents i ON i.checkout_id = k.checkout_id
     WHERE k.id > %s AND k.reason IS NOT NULL ORDER BY k.id LIMIT %s
"""
OPERATIONS = """
    SELECT o.id, o.checkout_id, i.data_key, o.reason, o.merchant_id, o.transaction_id, o.kind, o.amount,
           o.currency, o.cause, o.actor, o.command_id, o.state, o.total_before, o.attempts, o.mac
      FROM money_operations o LEFT JOIN intents i ON i.checkout_id = o.checkout_id
     WHERE o.id > %s AND o.reason IS NOT NULL AND o.cause = 'asked' ORDER BY o.id LIMIT %s
"""
FIRST = "00000000-0000-0000-0000-000000000000"


def upgrade() -> None:
    """Add the column, encrypt what is there, and drop the columns that had it."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_index("ix_idempotency_keys_checkout_id", "idempotency_keys", ["checkout_id"])
    op.add_column("callbacks", sa.Column("sender", sa.LargeBinary(), nullable=True))
    if not context.is_offline_mode():
        connection, keys = op.get_bind(), Keys()
        for rows in lists(connection, SENDERS):
            write(connection, "callbacks", {"sender": "bytea"}, [(row.id, sender(keys, row)) for row in rows])
        resign(connection, keys, seal)
    for name in ("content_type", "headers", "source"):
        op.drop_column("callbacks", name)


def downgrade() -> None:
    """Decrypt it again; of erased customers nothing comes back."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column(
        "callbacks", sa.Column("content_type", sa.Text(), server_default=sa.text("''"), nullable=False)
    )
    op.add_column(
        "callbacks", sa.Column("headers", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False)
    )
    op.add_column("callbacks", sa.Column("source", sa.Text(), nullable=True))
    if not context.is_offline_mode():
        connection, keys = op.get_bind(), Keys()
        columns = {"content_type": "text", "headers": "jsonb", "source": "text"}
        for rows in lists(connection, SENDERS_BACK):
            write(connection, "callbacks", columns, [(row.id, *facts(keys, row)) for row in rows])
        resign(connection, keys, unseal)
    for name in ("content_type", "headers"):
        op.alter_column("callbacks", name, server_default=None)
    op.drop_column("callbacks", "sender")
    op.drop_index("ix_idempotency_keys_checkout_id", "idempotency_keys")


class Keys:
    """The secret keys, read when something is to be encrypted or decrypted."""

    def __init__(self) -> None:
        self._encryptor: Encryptor | None = None

    @property
    def encryptor(self) -> Encryptor:
        """Raise an error where they are not set."""
        if self._encryptor is None:
            keys = context.config.attributes.get("secret_keys")
            if not keys:
                message = (
                    "there are callbacks or reasons of commands to be encrypted, and ORCHESTRATOR_SECRET_KEYS "
                    "is not set: give this migration the keys that the installation runs with"
                )
                raise CommandError(message)
            self._encryptor = Encryptor(keys)
        return self._encryptor


def lists(connection: Connection, statement: str) -> Iterator[list[Any]]:
    """Yield the rows of a statement in lists, by id."""
    after: object = FIRST
    while rows := list(connection.exec_driver_sql(statement, (after, LIST)).all()):
        yield rows
        after = rows[-1].id


def write(connection: Connection, table: str, columns: dict[str, str], rows: list[tuple[Any, ...]]) -> None:
    """Set columns of rows, which are an id and values, in one statement."""
    arrays = ", ".join(f"CAST(%s AS {kind}[])" for kind in columns.values())
    named = ", ".join(columns)
    values = [list(column) for column in zip(*rows, strict=True)]
    connection.exec_driver_sql(
        f"UPDATE {table} t SET {', '.join(f'{name} = n.{name}' for name in columns)} "  # noqa: S608 - our own names
        f"FROM unnest(CAST(%s AS uuid[]), {arrays}) AS n(id, {named}) WHERE t.id = n.id",
        tuple(values),
    )


def sender(keys: Keys, row: Any) -> bytes | None:
    """Return what is kept of a sender, under the data key; of a callback without a checkout, under ours."""
    plain = msgspec.json.encode(
        {"content_type": row.content_type, "headers": row.headers, "source": row.source}
    )
    owner = row.checkout_id or row.id
    if row.checkout_id is not None and row.data_key is None:
        return None
    try:
        if row.checkout_id is not None:
            return b"\0" + keys.encryptor.data_key(owner, row.data_key).encrypt(
                plain, purpose="callback-sender"
            )
    except EncryptionError:
        pass
    return b"\1" + keys.encryptor.encrypt(plain, purpose=f"callback-sender/{owner}")


def facts(keys: Keys, row: Any) -> tuple[str, str, str | None]:
    """Return content type, headers as JSON and address, as they were before."""
    owner, sealed = row.checkout_id or row.id, bytes(row.sender)
    try:
        if sealed[:1] == b"\1":
            plain = keys.encryptor.decrypt(sealed[1:], purpose=f"callback-sender/{owner}")
        else:
            plain = keys.encryptor.data_key(owner, row.data_key).decrypt(
                sealed[1:], purpose="callback-sender"
            )
    except EncryptionError:
        return "", "{}", None
    told = msgspec.json.decode(plain)
    return (
        told.get("content_type", ""),
        msgspec.json.encode(told.get("headers", {})).decode(),
        told.get("source"),
    )


def seal(keys: Keys, row: Any) -> str | None:
    """Return a reason under the data key; None of an erased customer."""
    try:
        key = keys.encryptor.data_key(row.checkout_id, row.data_key)
    except Erased:
        return None
    except EncryptionError:
        return str(row.reason)
    return SEALED + b64encode(key.encrypt(row.reason.encode(), purpose="reason")).decode()


def unseal(keys: Keys, row: Any) -> str | None:
    """Return a reason as text; None where its key was destroyed."""
    if not row.reason.startswith(SEALED):
        return str(row.reason)
    try:
        key = keys.encryptor.data_key(row.checkout_id, row.data_key)
        return key.decrypt(b64decode(row.reason[len(SEALED) :]), purpose="reason").decode()
    except EncryptionError:
        return None


def resign(connection: Connection, keys: Keys, change: Callable[[Keys, Any], str | None]) -> None:
    """Change every reason, and sign the rows again that were signed by us."""
    columns = {"reason": "text", "mac": "bytea"}
    for statement, table, purpose, told in (
        (COMMANDS, "commands", "command", command),
        (OPERATIONS, "money_operations", "money-operation", operation),
    ):
        for rows in lists(connection, statement):
            changed = []
            for row in rows:
                reason, mac = change(keys, row), row.mac
                if mac is not None and keys.encryptor.signed(purpose, told(row, row.reason), bytes(mac)):
                    mac = keys.encryptor.sign(purpose, told(row, reason))
                changed.append((row.id, reason, mac))
            write(connection, table, columns, changed)


def command(row: Any, reason: str | None) -> bytes:
    """Return what the MAC of a command is over."""
    arguments = row.arguments
    if isinstance(arguments, dict):
        arguments = {
            name: int(value) if isinstance(value, float) and value.is_integer() else value
            for name, value in arguments.items()
        }
    return msgspec.json.encode(
        (
            row.checkout_id,
            row.merchant_id,
            row.id,
            row.kind,
            row.actor,
            reason,
            row.expected_version,
            arguments,
        ),
        order="sorted",
    )


def operation(row: Any, reason: str | None) -> bytes:
    """Return what the MAC of a money operation is over."""
    return msgspec.json.encode(
        (
            row.checkout_id,
            row.merchant_id,
            row.id,
            row.transaction_id,
            row.kind,
            row.amount,
            row.currency,
            row.cause,
            row.actor,
            reason,
            row.command_id,
            row.state,
            row.total_before,
            row.attempts,
        ),
        order="sorted",
    )

"""Rows that move money or send secrets are bound to a key that the database does not have.

Revision: 0009
Before: 0008

Open rows are signed, and passwords are encrypted again, in the same transaction that adds the columns: a row
that is written without a MAC afterwards, by a process of an earlier version or from outside, is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa
from alembic import context, op
from alembic.util import CommandError

from orchestrator.crypto import EncryptionError, Encryptor

if TYPE_CHECKING:
    from sqlalchemy import Connection

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

COMMANDS = """
    SELECT id, checkout_id, merchant_id, kind, actor, reason, expected_version, arguments
      FROM commands WHERE handled_at IS NULL ORDER BY id
"""
OPERATIONS = """
    SELECT id, checkout_id, merchant_id, transaction_id, kind, amount, currency, cause, actor, reason, command_id, state, total_before,
           attempts
      FROM money_operations WHERE state IN ('requested', 'submitted', 'unknown') ORDER BY id
"""
MERCHANTS = """
    SELECT id, name, gateway_url, merchant_api_url, username, password, policies FROM merchants ORDER BY id
"""
MONEY = ("late", "surplus", "unknown_order", "capture", "surcharge")
"""Policies that decide on money."""


def upgrade() -> None:
    """Add the columns, and bind what is there; that takes SECRET_KEYS where anything is there."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("commands", sa.Column("mac", sa.LargeBinary(), nullable=True))
    op.add_column("money_operations", sa.Column("mac", sa.LargeBinary(), nullable=True))
    op.add_column("merchants", sa.Column("policies_mac", sa.LargeBinary(), nullable=True))
    if context.is_offline_mode():
        return
    connection = op.get_bind()
    commands = connection.exec_driver_sql(COMMANDS).all()
    operations = connection.exec_driver_sql(OPERATIONS).all()
    merchants = [
        row
        for row in connection.exec_driver_sql(MERCHANTS).all()
        if row.password is not None or _told(row.policies)
    ]
    if commands or operations or merchants:
        _bind(connection, _vault(), commands=commands, operations=operations, merchants=merchants)


def downgrade() -> None:
    """Take the columns back, and bind passwords to their merchant alone, as before."""
    op.execute("SET LOCAL lock_timeout = '5s'")
    if not context.is_offline_mode():
        connection = op.get_bind()
        sealed = [row for row in connection.exec_driver_sql(MERCHANTS).all() if row.password is not None]
        vault = _vault() if sealed else None
        for row in sealed:
            assert vault is not None  # noqa: S101 - there is something to open
            _again(connection, vault, row, before=_bound(row), after=_alone(row))
    op.drop_column("merchants", "policies_mac")
    op.drop_column("money_operations", "mac")
    op.drop_column("commands", "mac")


def _vault() -> Encryptor:
    keys = context.config.attributes.get("secret_keys")
    if not keys:
        message = (
            "there are merchants, commands or money operations to be bound to our key, and ORCHESTRATOR_SECRET_KEYS is not set: give "
            "this migration the keys that the installation runs with"
        )
        raise CommandError(message)
    return Encryptor(keys)


def _bind(
    connection: Connection, vault: Encryptor, *, commands: Any, operations: Any, merchants: Any
) -> None:
    for row in commands:
        arguments = {
            name: int(value) if isinstance(value, float) and value.is_integer() else value
            for name, value in row.arguments.items()
        }
        asked = (
            row.checkout_id,
            row.merchant_id,
            row.id,
            row.kind,
            row.actor,
            row.reason,
            row.expected_version,
        )
        _sign(connection, "commands", row.id, vault.sign("command", _text((*asked, arguments))))
    for number, checkout, merchant, *rest in operations:
        mac = vault.sign("money-operation", _text((checkout, merchant, number, *rest)))
        _sign(connection, "money_operations", number, mac)
    for row in merchants:
        if row.password is not None:
            _again(connection, vault, row, before=_alone(row), after=_bound(row))
        mac = vault.sign("merchant-policies", _text([row.name, _told(row.policies)]))
        connection.exec_driver_sql("UPDATE merchants SET policies_mac = %s WHERE id = %s", (mac, row.id))


def _sign(connection: Connection, table: str, row: Any, mac: bytes) -> None:
    connection.exec_driver_sql(f"UPDATE {table} SET mac = %s WHERE id = %s", (mac, row))  # noqa: S608 - one of two names


def _again(connection: Connection, vault: Encryptor, row: Any, *, before: str, after: str) -> None:
    """Encrypt a merchant's password again; a password that no key decrypts is left as it is: such a merchant
    could not be used before either.
    """
    try:
        sealed = vault.encrypt(vault.decrypt(bytes(row.password), purpose=before), purpose=after)
    except EncryptionError:
        return
    connection.exec_driver_sql("UPDATE merchants SET password = %s WHERE id = %s", (sealed, row.id))


def _alone(row: Any) -> str:
    return f"merchant/{row.name}/password"


def _bound(row: Any) -> str:
    bound = msgspec.json.encode([row.name, row.gateway_url, row.merchant_api_url, row.username]).decode()
    return f"merchant-password/{bound}"


def _told(policies: Any) -> dict[str, object]:
    return {name: policies[name] for name in MONEY if name in policies} if isinstance(policies, dict) else {}


def _text(parts: Any) -> bytes:
    return msgspec.json.encode(parts, order="sorted")

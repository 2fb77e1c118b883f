"""What makes commands and money operations ours: a MAC over their content, under a key that the database does
not have.

Whoever can write into the database could otherwise insert a command or an operation, and workers would move
money for it. The API and the command line sign a command when they store it; a worker signs an operation at
each write of it. Both are checked before anything is done for them. The key is derived from SECRET_KEYS: the
newest signs, all of them verify.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from orchestrator.crypto import Encryptor
    from orchestrator.domain.records import Command, Operation

COMMAND: Final = "command"
OPERATION: Final = "money-operation"
"""Purposes of the keys."""


def sign_command(encryptor: Encryptor, checkout_id: UUID, merchant_id: int, command: Command) -> bytes:
    """Return the MAC to be stored with a command."""
    return encryptor.sign(COMMAND, _command(checkout_id, merchant_id, command))


def command_holds(encryptor: Encryptor, checkout_id: UUID, merchant_id: int, command: Command) -> bool:
    """Return whether a command is stored as a process of this system wrote it, for this checkout."""
    return command.mac is not None and encryptor.signed(
        COMMAND, _command(checkout_id, merchant_id, command), bytes(command.mac)
    )


def sign_operation(encryptor: Encryptor, checkout_id: UUID, merchant_id: int, operation: Operation) -> bytes:
    """Return the MAC to be stored with a money operation as it stands now."""
    return encryptor.sign(OPERATION, _operation(checkout_id, merchant_id, operation))


def operation_holds(encryptor: Encryptor, checkout_id: UUID, merchant_id: int, operation: Operation) -> bool:
    """Say whether a money operation is stored as a worker wrote it, for this checkout."""
    return operation.mac is not None and encryptor.signed(
        OPERATION, _operation(checkout_id, merchant_id, operation), bytes(operation.mac)
    )


def _command(checkout_id: UUID, merchant_id: int, command: Command) -> bytes:
    return _text(
        checkout_id,
        merchant_id,
        command.id,
        command.kind,
        command.actor,
        command.reason,
        command.expected_version,
        _stored(command.arguments),
    )


def _operation(checkout_id: UUID, merchant_id: int, operation: Operation) -> bytes:
    """Include the state, the total before it and the attempts: with others it would be sent at another time,
    or once more.
    """
    return _text(
        checkout_id,
        merchant_id,
        operation.id,
        operation.transaction_id,
        operation.kind,
        operation.amount,
        operation.currency,
        operation.cause,
        operation.actor,
        operation.reason,
        operation.command_id,
        operation.state,
        operation.total_before,
        operation.attempts,
    )


def _text(*parts: object) -> bytes:
    return msgspec.json.encode(parts, order="sorted")


def _stored(arguments: Mapping[str, Any]) -> object:
    """Return arguments as Postgres's JSON gives them back: a whole number stays one, however it was
    written.
    """
    if not isinstance(arguments, dict):
        return arguments
    return {
        name: int(value) if isinstance(value, float) and value.is_integer() else value
        for name, value in arguments.items()
    }

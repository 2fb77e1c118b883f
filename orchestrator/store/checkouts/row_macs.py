"""What makes commands and money operations ours: a MAC under a key that the database does not have.

An account that can write into the database could otherwise insert a command or an operation, and workers
would move money for it. The API and the command line sign a command when they store it; a worker signs an
operation at each write of it. Both are checked before anything is done for them. The key is derived from
SECRET_KEYS: the newest signs, all of them verify.
"""

from __future__ import annotations

from operator import attrgetter
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


_COMMAND_SIGNED: Final = attrgetter("id", "kind", "actor", "reason", "expected_version")
# State, total and attempts too: with others it would be sent at another time, or once more.
_OPERATION_SIGNED: Final = attrgetter(
    *"id transaction_id kind amount currency cause actor reason command_id state total_before attempts".split()
)


def _command(checkout_id: UUID, merchant_id: int, command: Command) -> bytes:
    return _text(checkout_id, merchant_id, *_COMMAND_SIGNED(command), _stored(command.arguments))


def _operation(checkout_id: UUID, merchant_id: int, operation: Operation) -> bytes:
    return _text(checkout_id, merchant_id, *_OPERATION_SIGNED(operation))


def _text(*parts: object) -> bytes:
    return msgspec.json.encode(parts, order="sorted")


def _stored(arguments: Mapping[str, Any]) -> object:
    """Return arguments as Postgres's JSON gives them back: whole numbers are integers, however written."""
    if not isinstance(arguments, dict):
        return arguments
    return {
        name: int(value) if isinstance(value, float) and value.is_integer() else value
        for name, value in arguments.items()
    }

"""Operators' reasons: free text that may name a customer, so it is kept under the checkout's data key.

A reason is encrypted where its command is stored, and stands in that form in the command, in the operation
that the command becomes, and in the audit trail, whose chain holds before and after the key is destroyed. It
is decrypted where it is shown.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from orchestrator.crypto import EncryptionError, Erased

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from orchestrator.crypto import DataKey, Encryptor
    from orchestrator.store.database import Database

SEALED: Final = "sealed:"
"""What an encrypted reason begins with; the rest is base64. A reason without it was written by the system, or
by a version before migration 0019."""
PURPOSE: Final = "reason"
ERASED: Final = "(erased)"
UNREADABLE: Final = "(no key of this installation decrypts it)"

_DATA_KEY = text("SELECT data_key FROM intents WHERE checkout_id = :id")


def seal(key: DataKey, reason: str) -> str:
    """Return a reason as it is stored."""
    return SEALED + b64encode(key.encrypt(reason.encode(), purpose=PURPOSE)).decode()


async def sealed(db: Database, encryptor: Encryptor, checkout: UUID, reason: str) -> str | None:
    """Return a reason under the data key of a checkout; None where that was destroyed."""
    try:
        return seal(encryptor.data_key(checkout, await _data_key(db, checkout)), reason)
    except EncryptionError:
        return None


async def _data_key(db: Database, checkout: UUID) -> bytes | None:
    rows = await db.read(_DATA_KEY, {"id": checkout})
    return rows[0].data_key if rows else None


class Reasons:
    """Decrypts the reasons of one checkout."""

    def __init__(self, encryptor: Encryptor, checkout: UUID, wrapped: bytes | None) -> None:
        self._encryptor, self._checkout, self._wrapped = encryptor, checkout, wrapped

    @classmethod
    async def of(cls, db: Database, encryptor: Encryptor, checkout: UUID) -> Reasons:
        return cls(encryptor, checkout, await _data_key(db, checkout))

    def shown(self, reason: str | None) -> str | None:
        """Return a stored reason as text; where its key was destroyed or is not known, words that say so."""
        if reason is None or not reason.startswith(SEALED):
            return reason
        try:
            key = self._encryptor.data_key(self._checkout, self._wrapped)
            return key.decrypt(b64decode(reason[len(SEALED) :]), purpose=PURPOSE).decode()
        except Erased:
            return ERASED
        except (EncryptionError, ValueError):
            return UNREADABLE

    def in_evidence(self, evidence: Mapping[str, Any]) -> dict[str, Any]:
        """Return the evidence of an audit entry with its reason as text."""
        reason = evidence.get("reason")
        return {**evidence, "reason": self.shown(reason)} if isinstance(reason, str) else dict(evidence)

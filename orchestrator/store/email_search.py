"""Finding checkouts by the customer's e-mail address, which is stored encrypted.

Beside the intent stands a tag of the address: an HMAC under `SECRET_KEYS`, so that the table can be searched
by who has the keys, and says nothing to others. Upper and lower case are the same address. An erasure removes
the tag.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from orchestrator.crypto import Encryptor

PURPOSE: Final = "email-search"


def tag(encryptor: Encryptor, email: str | None) -> bytes | None:
    """Return what is stored of an address: 16 bytes under the newest key; None without an address."""
    return None if email is None else encryptor.sign(PURPOSE, _plain(email))


def tags(encryptor: Encryptor, email: str) -> list[bytes]:
    """Return what may be stored of an address, under each key of the installation."""
    return encryptor.tags(PURPOSE, _plain(email))


def _plain(email: str) -> bytes:
    return email.strip().lower().encode()

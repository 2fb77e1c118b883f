"""Encryption at rest and every key derived from ``SECRET_KEYS``.

Personal data of a checkout is encrypted with AES-256-GCM under a random data key of its own, which is stored
wrapped by the newest secret key; destroying the wrapped key erases the customer and leaves money and audit
trail intact. Data that belongs to no checkout (a merchant's gateway password) is encrypted under the secret
key itself. Old secret keys still decrypt, the newest one encrypts.

Each encrypted text is bound to its purpose and owner, so that a value moved to another row does not decrypt.
Keys for other uses (audit chain, callback links, client tokens) are derived by HKDF (RFC 5869) from the same
secrets, apart for each use.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from orchestrator.errors import OrchestratorError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import SecretStr

_NONCE: Final = 12
_ID: Final = 4


class EncryptionError(OrchestratorError):
    """Sealed data that no known key opens: a key is missing from SECRET_KEYS, or the data was changed."""


class Erased(EncryptionError):  # noqa: N818 - named for the fact
    """Data whose data key was destroyed: the customer was erased."""

    def __init__(self, owner: object) -> None:
        super().__init__(f"the personal data of {owner} was erased")
        self.owner = owner


@dataclass(frozen=True, slots=True)
class Key:
    """One secret key: its public id (eight hex digits) and what is derived from it."""

    id: str
    master: bytes = field(repr=False)

    def derived(self, purpose: str) -> bytes:
        """Return the 32-byte key for one purpose."""
        return _derive(self.master, purpose)


@lru_cache(maxsize=256)
def _derive(master: bytes, purpose: str) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=f"orchestrator/{purpose}".encode()).derive(
        master
    )


@lru_cache(maxsize=4096)
def _cipher(key: bytes) -> AESGCM:
    return AESGCM(key)


def _encrypt(key: bytes, plain: bytes, bound: bytes) -> bytes:
    nonce = os.urandom(_NONCE)
    return nonce + _cipher(key).encrypt(nonce, plain, bound)


def _decrypt(key: bytes, encrypted: bytes, bound: bytes) -> bytes:
    try:
        return _cipher(key).decrypt(encrypted[:_NONCE], encrypted[_NONCE:], bound)
    except (InvalidTag, ValueError) as error:
        message = "sealed data does not open: it was changed, moved, or sealed under another key"
        raise EncryptionError(message) from error


class Encryptor:
    """The secret keys of an installation, newest first."""

    def __init__(self, secret_keys: Sequence[SecretStr]) -> None:
        if not secret_keys:
            message = "ORCHESTRATOR_SECRET_KEYS is not set: give it a JSON array with one key (openssl rand -base64 32)"
            raise EncryptionError(message)
        masters = [base64.b64decode(key.get_secret_value()) for key in secret_keys]
        self._keys = [Key(_key_id(master), master) for master in masters]
        self._by_id = {key.id: key for key in self._keys}
        self.newest = self._keys[0]
        """The key that seals, signs and chains from now on."""

    def known(self, key_id: str) -> Key | None:
        """Return the key with this id, if the installation still has it."""
        return self._by_id.get(key_id)

    def encrypt(self, plain: bytes, *, purpose: str) -> bytes:
        """Seal what belongs to no checkout."""
        key = self.newest
        return bytes.fromhex(key.id) + _encrypt(key.derived("seal"), plain, purpose.encode())

    def decrypt(self, encrypted: bytes, *, purpose: str) -> bytes:
        """Open what `encrypt` made; `EncryptionError` if no known key does."""
        key = self._by_id.get(encrypted[:_ID].hex())
        if key is None:
            raise EncryptionError(
                f"sealed under key {encrypted[:_ID].hex()}, which ORCHESTRATOR_SECRET_KEYS does not have"
            )
        return _decrypt(key.derived("seal"), encrypted[_ID:], purpose.encode())

    def new_data_key(self, owner: object) -> tuple[DataKey, bytes]:
        """Make the data key of one checkout; return it with its wrapped form for the row."""
        key = os.urandom(32)
        return DataKey(key, str(owner)), self.encrypt(key, purpose=f"data-key/{owner}")

    def data_key(self, owner: object, wrapped: bytes | None) -> DataKey:
        """Unwrap a data key; `Erased` if it was destroyed, `EncryptionError` if no known key unwraps it."""
        if wrapped is None:
            raise Erased(owner)
        return DataKey(self.decrypt(bytes(wrapped), purpose=f"data-key/{owner}"), str(owner))

    def sign(self, purpose: str, message: bytes) -> bytes:
        """Return a 16-byte HMAC-SHA256 tag under the newest key."""
        return _tag(self.newest, purpose, message)

    def tags(self, purpose: str, message: bytes) -> list[bytes]:
        """Return the tag of a message under each known key, to find what was stored under any of them."""
        return [_tag(key, purpose, message) for key in self._keys]

    def signed(self, purpose: str, message: bytes, tag: bytes) -> bool:
        """Say whether any known key made this tag; constant time for each key."""
        return any([hmac.compare_digest(_tag(key, purpose, message), tag) for key in self._keys])  # noqa: C419 - all


@dataclass(frozen=True, slots=True)
class DataKey:
    """The key of one checkout's personal data."""

    key: bytes = field(repr=False)
    owner: str

    def encrypt(self, plain: bytes, *, purpose: str) -> bytes:
        """Encrypt personal data for one purpose (intent, token, callback)."""
        return _encrypt(self.key, plain, f"{purpose}/{self.owner}".encode())

    def decrypt(self, encrypted: bytes, *, purpose: str) -> bytes:
        """Open what `encrypt` made; `EncryptionError` if it was changed or belongs elsewhere."""
        return _decrypt(self.key, bytes(encrypted), f"{purpose}/{self.owner}".encode())

    def mac(self, message: bytes) -> bytes:
        """Return the HMAC-SHA256 of a message under this key."""
        return hmac.digest(self.key, message, "sha256")


def _key_id(master: bytes) -> str:
    return hashlib.sha256(b"orchestrator/key-id" + master).digest()[:_ID].hex()


def _tag(key: Key, purpose: str, message: bytes) -> bytes:
    return hmac.digest(key.derived(purpose), message, "sha256")[:16]

"""Passwords of persons: Argon2id (RFC 9106), as PHC strings with their parameters.

A hash takes about 50 ms and 19 MiB, so callers bound how many are made at once, and make them off the event
loop.
"""

from __future__ import annotations

import os
from typing import Final

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

SHORTEST: Final = 12
"""Characters; no other rule makes a password harder to guess (NIST SP 800-63B)."""
LONGEST: Final = 256
_SALT, _LENGTH = 16, 32
# The OWASP password storage cheat sheet's least for Argon2id.
_ITERATIONS, _LANES, _MEMORY = 2, 1, 19_456


def hashed(password: str) -> str:
    return Argon2id(
        salt=os.urandom(_SALT), length=_LENGTH, iterations=_ITERATIONS, lanes=_LANES, memory_cost=_MEMORY
    ).derive_phc_encoded(password.encode())


def matches(password: str, stored: str) -> bool:
    """Say whether a password is the stored one."""
    try:
        Argon2id.verify_phc_encoded(password.encode(), stored)
    except (InvalidKey, ValueError):
        return False
    return True

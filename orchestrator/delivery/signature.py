"""Signatures by Standard Webhooks (standardwebhooks.com), version 1: HMAC-SHA256 over id, time and body.

A secret is 32 random bytes, written `whsec_` and base64. While a secret is being replaced, both sign, the new
one first.
"""

from __future__ import annotations

import base64
import hmac
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

PREFIX: Final = "whsec_"
SIZE: Final = 32


def new_secret() -> bytes:
    """Return a new secret."""
    return os.urandom(SIZE)


def written(secret: bytes) -> str:
    """Return a secret as a merchant is shown it."""
    return PREFIX + base64.b64encode(secret).decode()


def headers(event_id: str, body: bytes, secrets: Iterable[bytes], *, at: int) -> dict[str, str]:
    """Return the three headers of a delivery; `at` is in seconds since 1970, `event_id` without a dot."""
    signed = b"%s.%d.%s" % (event_id.encode(), at, body)
    signatures = [
        f"v1,{base64.b64encode(hmac.digest(secret, signed, 'sha256')).decode()}" for secret in secrets
    ]
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(at),
        "webhook-signature": " ".join(signatures),
    }

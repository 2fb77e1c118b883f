"""How callbacks are made and signed on the wire: Java's form encoding, the MD5 checksum, the AltaPay-Signature header.

Both mechanisms are in use at once and are independent (part 2.4). The checksum covers neither status nor transaction; the
signature covers the raw body. The unit of `t` is not documented: seconds here.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING
from urllib.parse import quote_plus

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def form_encode(fields: Iterable[tuple[str, str]]) -> bytes:
    """Encode like Java's URLEncoder: space to `+`; letters, digits and `.-*_` as they are; all else in upper-case hex."""
    return "&".join(f"{_encoded(name)}={_encoded(value)}" for name, value in fields).encode("ascii")


def _encoded(text: str) -> str:
    return quote_plus(text, safe="*", errors="replace").replace("~", "%7E")


def checksum(*, amount: str, currency: str, shop_orderid: str, secret: str) -> str:
    """Return the terminal checksum over the fields exactly as posted (part 2.4, A)."""
    pairs = {"amount": amount, "currency": currency, "secret": secret, "shop_orderid": shop_orderid}
    text = ",".join(f"{name}={pairs[name]}" for name in sorted(pairs))
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()  # the vendor's algorithm


def signature(body: bytes, secret: str, timestamp: str) -> str:
    """Return one hexadecimal HMAC-SHA256 over the raw body, a dot and the timestamp (part 2.4, B)."""
    return hmac.new(secret.encode(), body + b"." + timestamp.encode(), hashlib.sha256).hexdigest()


def signature_header(body: bytes, secrets: Sequence[str], timestamp: int) -> str:
    """Return the AltaPay-Signature header with one signature for each active secret."""
    stamp = str(timestamp)
    signed = [f"s{number}={signature(body, secret, stamp)}" for number, secret in enumerate(secrets)]
    return ";".join([f"t={stamp}", *signed])

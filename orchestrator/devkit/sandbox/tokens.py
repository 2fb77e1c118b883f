"""The gateway's tokens: RS256 JWTs with the seven claims of the vendor's sample (D2).

The signing key is in the store, so tokens issued before a restart stay valid after it. The lifetime is `exp -
iat`; `expire_all` makes every token issued so far stale at once (tokens that expire early). Nothing here
depends on requests.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any

import jwt
import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

if TYPE_CHECKING:
    from orchestrator.devkit.sandbox.store import Store

ISSUER = "AltaPay Issuer"
_GROUPS = ["SessionUpdate", "ExecutePayment", "ListPaymentMethods"]
_CACHE_LIMIT = 50_000


class _KeyDocument(msgspec.Struct):
    """What the store keeps of the signing key."""

    pem: bytes
    stale_before: float = 0.0


class Tokens:
    """Issues and checks bearer tokens."""

    def __init__(self, store: Store, *, seconds: int, reuse_seconds: float = 0.0) -> None:
        """Load the signing key from the store or make one; `reuse_seconds` saves benchmarks the RSA work."""
        self._store = store
        self._seconds = seconds
        self._reuse_seconds = reuse_seconds
        self._last = ("", 0.0)
        self._good: dict[str, tuple[float, float]] = {}  # token -> (exp, issued): saves an RSA check per call
        stored = dict(store.load("key"))
        if "signing" in stored:
            self._document = msgspec.msgpack.decode(stored["signing"], type=_KeyDocument)
        else:
            self._document = _KeyDocument(pem=_new_key())
            store.put("key", "signing", self._document)
        loaded = serialization.load_pem_private_key(self._document.pem, password=None)
        if not isinstance(loaded, rsa.RSAPrivateKey):
            message = "the stored signing key is not an RSA key: remove the state file"
            raise TypeError(message)
        self._key = loaded
        self._public = loaded.public_key()

    def issue(self) -> str:
        """Return a new token: a merchant asks for one per customer session (D1)."""
        issued = time.time()
        last, last_issued = self._last
        if issued - last_issued < self._reuse_seconds and self.accepts(last):
            return last
        now = int(issued)
        claims: dict[str, Any] = {
            "iss": ISSUER,
            "upn": "checkout_api",
            "groups": _GROUPS,
            "authId": str(uuid.uuid4()),
            "iat": now,
            "exp": now + self._seconds,
            "jti": str(uuid.uuid4()),
        }
        token = jwt.encode(claims, self._key, algorithm="RS256")
        self._remember(token, now + self._seconds, issued)
        self._last = (token, issued)
        return token

    def accepts(self, token: str, *, lifetime: float | None = None) -> bool:
        """Say whether a token is ours, unexpired and not stale; `lifetime` (seconds) ends it earlier."""
        known = self._good.get(token)
        if known is None:
            known = self._checked(token)
            if known is None:
                return False
            self._remember(token, *known)
        expires, issued = known
        ends = expires if lifetime is None else min(expires, issued + lifetime)
        return time.time() < ends and issued >= self._document.stale_before

    def expire_all(self) -> None:
        """Make all tokens issued until now stale."""
        self._document.stale_before = time.time()
        self._store.put("key", "signing", self._document)

    def _checked(self, token: str) -> tuple[float, float] | None:
        try:
            claims = jwt.decode(token, self._public, algorithms=["RS256"], issuer=ISSUER)
            return float(claims["exp"]), float(claims["iat"])
        except (jwt.InvalidTokenError, KeyError, ValueError):
            return None

    def _remember(self, token: str, expires: float, issued: float) -> None:
        if len(self._good) >= _CACHE_LIMIT:
            self._good.clear()
        self._good[token] = (expires, issued)


def _new_key() -> bytes:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )

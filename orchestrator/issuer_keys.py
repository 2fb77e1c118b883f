"""Public keys that verify tokens: those of the settings, and those that an identity provider publishes by URL
(JWKS, RFC 7517).

A key verifies only the algorithms of its own kind, so no token can choose how it is checked. Keys by URL are
fetched when a token needs them, kept for ten minutes, and fetched again in the background; a token with an
unknown `kid` has them fetched at once, at most every half minute. While the provider cannot be reached the
last keys stay valid for a day.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from orchestrator import log

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

_log = log.get(__name__)

ALGORITHMS: Final = ("RS256", "PS256", "ES256", "ES384", "EdDSA")
"""The algorithms of tokens that a public key verifies."""
LEAST_RSA_BITS: Final = 2048
MOST_KEYS: Final = 64
LARGEST: Final = 262_144
"""Bytes of a key set; those of the usual identity providers have a few thousand."""
TIMEOUT: Final = 5.0
"""Seconds of one fetch in all."""
FRESH: Final = 600.0
"""Seconds after which keys are fetched again, while the old ones stay in use."""
USABLE: Final = 86_400.0
"""Seconds for which the last keys stay in use while they cannot be fetched."""
LEAST_PAUSE: Final = 30.0
"""Seconds between two fetches, whatever causes them; a tenth more or less. After a failure it grows up to
this, from a second on."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key, the algorithms that it verifies, and its name (`kid`) where it has one."""

    key: Any
    algorithms: tuple[str, ...]
    kid: str | None = None


class KeysUnavailable(Exception):  # noqa: N818 - named for the fact
    """The keys cannot be fetched; the text says why, without the URL."""


def of_pem(text: str) -> PublicKey:
    """Read a public key in PEM form; `ValueError` with the end of a sentence about what is wrong with it."""
    try:
        key = load_pem_public_key(text.encode())
    except Exception:  # noqa: BLE001 - the library has many ways to refuse
        message = "each key must be a public key in PEM form, from -----BEGIN PUBLIC KEY----- to its end"
        raise ValueError(message) from None
    algorithms = _algorithms(key)
    if not algorithms:
        raise ValueError(
            f"each key must be RSA with at least {LEAST_RSA_BITS} bits, a P-256 or P-384 curve, or Ed25519"
        )
    return PublicKey(key, algorithms)


def of_key_set(document: bytes) -> tuple[PublicKey, ...]:
    """Read the usable signature keys of a key set; `ValueError` for a document that is none."""
    try:
        found = msgspec.json.decode(document, type=_KeySet, strict=False).keys
    except (msgspec.DecodeError, RecursionError):
        raise ValueError("the answer is not a JSON Web Key Set") from None
    keys = [key for entry in found[:MOST_KEYS] if (key := _of_entry(entry)) is not None]
    if not keys:
        raise ValueError(f"the key set has no key for {', '.join(ALGORITHMS)}")
    return tuple(keys)


class _KeySet(msgspec.Struct):
    keys: list[dict[str, Any]]


def _of_entry(entry: dict[str, Any]) -> PublicKey | None:
    if entry.get("use", "sig") != "sig" or "d" in entry or entry.get("kty") not in {"RSA", "EC", "OKP"}:
        return None
    try:
        key = jwt.PyJWK(entry).key
    except Exception:  # noqa: BLE001 - an outsider's entry may be anything
        return None
    named, kid = entry.get("alg"), entry.get("kid")
    algorithms = tuple(known for known in _algorithms(key) if named in {None, known})
    return PublicKey(key, algorithms, kid if isinstance(kid, str) else None) if algorithms else None


def _algorithms(key: object) -> tuple[str, ...]:
    match key:
        case rsa.RSAPublicKey() if key.key_size >= LEAST_RSA_BITS:
            return ("RS256", "PS256")
        case ec.EllipticCurvePublicKey() if isinstance(key.curve, ec.SECP256R1):
            return ("ES256",)
        case ec.EllipticCurvePublicKey() if isinstance(key.curve, ec.SECP384R1):
            return ("ES384",)
        case ed25519.Ed25519PublicKey():
            return ("EdDSA",)
        case _:
            return ()


class KeySet:
    """The keys that an identity provider publishes at a URL; one for a process, on its event loop."""

    def __init__(
        self,
        url: str,
        *,
        fetch: Callable[[str], Awaitable[bytes]] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url, self._fetch, self._now = url, fetch or _fetch, now
        self._keys: tuple[PublicKey, ...] = ()
        self._fetched = self._next = float("-inf")
        self._trouble = "they have not been fetched yet"
        self._failures = 0
        self._task: asyncio.Task[None] | None = None

    async def for_token(self, kid: str | None) -> tuple[PublicKey, ...]:
        """Return the keys that may have signed a token; `KeysUnavailable` where none were fetched."""
        if not self._usable() or not (found := self._named(kid)):
            if (refresh := self._refresh()) is not None:
                await asyncio.shield(refresh)
            if not self._usable():
                raise KeysUnavailable(self._trouble)
            found = self._named(kid)
        elif self._now() - self._fetched > FRESH:
            self._refresh()
        return found

    async def close(self) -> None:
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task], timeout=TIMEOUT)

    def _usable(self) -> bool:
        return self._now() - self._fetched < USABLE

    def _named(self, kid: str | None) -> tuple[PublicKey, ...]:
        return tuple(key for key in self._keys if kid is None or key.kid in {None, kid})

    def _refresh(self) -> asyncio.Task[None] | None:
        """Return the fetch that is under way, or begin one if it is due; None if it is not."""
        if self._task is not None and not self._task.done():
            return self._task
        if self._now() < self._next:
            return None
        self._task = asyncio.create_task(self._load(), name="jwks")
        return self._task

    async def _load(self) -> None:
        try:
            async with asyncio.timeout(TIMEOUT):
                document = await self._fetch(self._url)
            keys = of_key_set(document)
        except Exception as error:  # noqa: BLE001 - whatever it is, the last keys serve and a later fetch tries again
            self._trouble = _reason(error)
            self._failures += 1
            self._wait(min(LEAST_PAUSE, 2.0 ** (self._failures - 1)))
            _log.warning("token_keys_not_fetched", reason=self._trouble, keys=len(self._keys))
            return
        self._keys, self._fetched, self._failures = keys, self._now(), 0
        self._wait(LEAST_PAUSE)

    def _wait(self, seconds: float) -> None:
        self._next = self._now() + seconds * random.uniform(0.9, 1.1)  # noqa: S311 - jitter


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT:g} s"
    return str(error) if isinstance(error, ValueError) else type(error).__name__


async def _fetch(url: str) -> bytes:
    """Return the document at a URL; `ValueError` for any answer other than a 200 of limited size."""
    import httpx  # noqa: PLC0415 - only where tokens are verified by such keys

    async with (
        httpx.AsyncClient(timeout=TIMEOUT, follow_redirects=False) as client,
        client.stream("GET", url, headers={"Accept": "application/json"}) as response,
    ):
        if response.status_code != httpx.codes.OK:
            raise ValueError(f"the answer was HTTP {response.status_code}")
        document = bytearray()
        async for piece in response.aiter_bytes():
            document += piece
            if len(document) > LARGEST:
                raise ValueError(f"the answer has more than {LARGEST} bytes")
        return bytes(document)


async def fetch_now(url: str) -> int:
    """Fetch a key set once; return how many keys it has. `KeysUnavailable` says why there are none."""
    keys = KeySet(url)
    try:
        return len(await keys.for_token(None))
    finally:
        await keys.close()


def may_verify(keys: Iterable[PublicKey], algorithm: str) -> list[PublicKey]:
    return [key for key in keys if algorithm in key.algorithms]

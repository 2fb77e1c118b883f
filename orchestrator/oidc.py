"""Sign-in of persons by an identity provider: OpenID Connect, authorization code with PKCE (RFC 7636).

The provider is the one that the settings name. Its answers are bounded in size and time, its ID token is
verified with the keys that it publishes (`issuer_keys`), and state, nonce and verifier belong to one browser.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import httpx
import jwt
import msgspec

from orchestrator import log
from orchestrator.errors import OrchestratorError
from orchestrator.issuer_keys import ALGORITHMS, KeySet, KeysUnavailable, may_verify
from orchestrator.settings.hosts import is_loopback

if TYPE_CHECKING:
    from collections.abc import Mapping

_log = log.get(__name__)

T = TypeVar("T")

TIMEOUT: Final = 5.0
"""Seconds of one answer of the provider in all."""
LARGEST: Final = 262_144
"""Bytes of an answer of the provider."""
PAUSE: Final = 10.0
"""Seconds for which a provider that could not be read is not asked again."""
KEPT: Final = 3600.0
"""Seconds for which the provider's description is used again."""
LEEWAY: Final = 60.0
"""Seconds by which the provider's clock may differ."""
LONGEST_CODE: Final = 4096


class SignInFailed(OrchestratorError):  # noqa: N818 - named for the fact
    """The provider does not sign this person in, or cannot be understood; the text says why."""


class Flow(msgspec.Struct, frozen=True):
    """One sign-in that has begun; it belongs to one browser, until `until` (seconds since 1970)."""

    state: str
    nonce: str
    verifier: str
    there: str
    until: float


class _Description(msgspec.Struct, frozen=True):
    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str


class _Tokens(msgspec.Struct, frozen=True):
    id_token: str


@dataclass(slots=True)
class _Known:
    description: _Description
    keys: KeySet
    until: float


class Provider:
    """The identity provider of an installation; one for a process, on its event loop."""

    def __init__(self, issuer: str, client_id: str, client_secret: str, redirect_uri: str) -> None:
        self._issuer, self._client_id, self._secret = issuer, client_id, client_secret
        self._redirect_uri = redirect_uri
        self._known: _Known | None = None
        self._trouble, self._again = "", float("-inf")
        self._reading = asyncio.Lock()

    async def begin(self, there: str, *, seconds: float) -> tuple[str, Flow]:
        """Return where the browser goes, and the sign-in that begins; it ends after so many seconds."""
        known = await self._describe()
        flow = Flow(
            state=secrets.token_urlsafe(24),
            nonce=secrets.token_urlsafe(24),
            verifier=secrets.token_urlsafe(48),
            there=there,
            until=time.time() + seconds,
        )
        challenge = hashlib.sha256(flow.verifier.encode()).digest()
        asked = {
            "response_type": "code",
            "client_id": self._client_id,
            "redirect_uri": self._redirect_uri,
            "scope": "openid profile email",
            "state": flow.state,
            "nonce": flow.nonce,
            "code_challenge": base64.urlsafe_b64encode(challenge).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
        }
        address = known.description.authorization_endpoint
        return f"{address}{'&' if '?' in address else '?'}{urlencode(asked)}", flow

    async def finish(self, flow: Flow, answer: Mapping[str, str]) -> dict[str, Any]:
        """Return the claims of who has signed in, by the redirect's query; raises `SignInFailed`."""
        if not hmac.compare_digest(answer.get("state", "").encode(), flow.state.encode()):
            raise SignInFailed("this sign-in was begun in another browser, or twice: begin again")
        if time.time() > flow.until:
            raise SignInFailed("this sign-in has taken too long: begin again")
        known = await self._describe()
        # RFC 9207: an answer of another provider is not taken for one of ours.
        if answer.get("iss", known.description.issuer) != known.description.issuer:
            raise SignInFailed("the answer is of another identity provider")
        if answer.get("error"):
            raise SignInFailed("the identity provider has refused the sign-in")
        code = answer.get("code", "")
        if not 0 < len(code) <= LONGEST_CODE:
            raise SignInFailed("the answer of the identity provider has no code")
        return await self._verified(known, await self._exchange(known, code, flow), flow)

    async def close(self) -> None:
        if self._known is not None:
            await self._known.keys.close()

    async def _describe(self) -> _Known:
        async with self._reading:
            if self._known is not None and time.monotonic() <= self._known.until:
                return self._known
            # However many persons sign in, a provider that does not answer is asked once in a while.
            if time.monotonic() < self._again:
                raise SignInFailed(self._trouble)
            try:
                return await self._described()
            except SignInFailed as error:
                self._trouble, self._again = str(error), time.monotonic() + PAUSE
                raise

    async def _described(self) -> _Known:
        found = _read(await _ask("GET", f"{self._issuer}/.well-known/openid-configuration"), _Description)
        if found.issuer.rstrip("/") != self._issuer:
            raise SignInFailed("the identity provider describes another issuer than the settings name")
        for url in (found.authorization_endpoint, found.token_endpoint, found.jwks_uri):
            parts = urlsplit(url)
            if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
                raise SignInFailed("the identity provider names an address that is not https")
        if self._known is not None:
            await self._known.keys.close()
        self._known = _Known(found, KeySet(found.jwks_uri), time.monotonic() + KEPT)
        return self._known

    async def _exchange(self, known: _Known, code: str, flow: Flow) -> str:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._redirect_uri,
            "client_id": self._client_id,
            "code_verifier": flow.verifier,
        }
        headers = {}
        if self._secret:
            pair = f"{quote(self._client_id, safe='')}:{quote(self._secret, safe='')}"
            headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        raw = await _ask("POST", known.description.token_endpoint, form=form, headers=headers)
        return _read(raw, _Tokens).id_token

    async def _verified(self, known: _Known, token: str, flow: Flow) -> dict[str, Any]:
        try:
            header = jwt.get_unverified_header(token)
            algorithm, kid = header.get("alg"), header.get("kid")
            if algorithm not in ALGORITHMS:
                raise SignInFailed("the ID token is signed by an algorithm that is not accepted")
            keys = may_verify(await known.keys.for_token(kid if isinstance(kid, str) else None), algorithm)
        except jwt.InvalidTokenError:
            raise SignInFailed("the ID token cannot be read") from None
        except KeysUnavailable as error:
            raise SignInFailed(f"the keys of the identity provider are not available: {error}") from None
        for key in keys:
            try:
                claims: dict[str, Any] = jwt.decode(
                    token,
                    key.key,
                    algorithms=[algorithm],
                    audience=self._client_id,
                    issuer=known.description.issuer,
                    leeway=LEEWAY,
                    options={"require": ["exp", "iat", "sub", "aud", "iss"]},
                )
            except jwt.InvalidSignatureError:
                continue
            except jwt.InvalidTokenError as error:
                raise SignInFailed(f"the ID token is not valid: {type(error).__name__}") from None
            nonce = claims.get("nonce")
            if not isinstance(nonce, str) or not hmac.compare_digest(nonce.encode(), flow.nonce.encode()):
                raise SignInFailed("the ID token is of another sign-in")
            if claims.get("azp", self._client_id) != self._client_id:
                raise SignInFailed("the ID token is for another application")
            return claims
        raise SignInFailed("the ID token is signed by no key of the identity provider")


def _read(raw: bytes, what: type[T]) -> T:
    try:
        return msgspec.json.decode(raw, type=what)
    except (msgspec.MsgspecError, RecursionError):
        raise SignInFailed("the answer of the identity provider cannot be read") from None


async def _ask(
    method: str, url: str, *, form: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
) -> bytes:
    """Return the body of a 200; `SignInFailed` for every other answer, and for none."""
    try:
        async with (
            asyncio.timeout(TIMEOUT),
            httpx.AsyncClient(timeout=TIMEOUT, follow_redirects=False) as client,
            client.stream(
                method, url, data=form, headers={"Accept": "application/json", **(headers or {})}
            ) as response,
        ):
            if response.status_code != httpx.codes.OK:
                raise SignInFailed(f"the identity provider has answered HTTP {response.status_code}")
            body = bytearray()
            async for piece in response.aiter_bytes():
                body += piece
                if len(body) > LARGEST:
                    raise SignInFailed(f"an answer of the identity provider has more than {LARGEST} bytes")
            return bytes(body)
    except (httpx.HTTPError, TimeoutError, OSError) as error:
        _log.warning("identity_provider_away", **log.cause(error))
        raise SignInFailed("the identity provider does not answer") from None

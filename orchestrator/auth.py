"""Authentication: bearer tokens (JWT) that name a merchant and the caller's scopes.

Three kinds of keys verify tokens: shared secrets (HS256), public keys, and the keys that an identity provider
publishes (see `issuer_keys`). The newest secret signs the tokens of `token issue`; every configured key
verifies, so that keys can be changed while tokens are in use. A refusal has a sentence of its own for each
cause: 401 for a token that proves nothing, 403 for a missing scope, 503 when the keys of the identity
provider cannot be fetched. Tokens and their content never reach a log.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import jwt

from orchestrator import issuer_keys
from orchestrator.errors import OrchestratorError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from orchestrator.issuer_keys import PublicKey
    from orchestrator.settings import Settings

SCOPES: Final = frozenset(
    {
        "checkouts:write",
        "checkouts:read",
        "events:read",
        "merchants:read",
        "merchants:write",
        "money:write",
        "ops",
        "webhooks:read",
        "webhooks:write",
    }
)
OPERATOR: Final = "*"
"""The claim `merchant` in a token of the operator, which no merchant can have as its name."""
OPERATOR_SCOPES: Final = frozenset({"merchants:read", "merchants:write"})
"""Scopes that only a token of the operator uses; beside `CONSOLE_SCOPES` and `ops` it uses no others."""
CONSOLE_SCOPES: Final = frozenset({"console:view", "console:operate", "console:approve", "console:admin"})
"""Scopes of a person in the console, also of the operator's tokens alone; no call of the API uses them."""
ALGORITHM: Final = "HS256"
LONGEST: Final = 4096
"""Characters of a token; ours have about 400."""
LONGEST_NAME: Final = 100

_SKEW: Final = 60.0
"""Seconds that an issuer's clock may be ahead of ours."""
_LAST_MOMENT: Final = 253_402_300_799
"""The end of the year 9999."""
_REMEMBERED: Final = 30.0
_MOST_REMEMBERED: Final = 4096
_CLAIMS: Final = ("iss", "aud", "sub", "exp", "iat", "merchant", "scope")


class AccessDenied(OrchestratorError):  # noqa: N818 - named for the fact
    """The request is refused: 401 (no valid token), 403 (no right) or 503 (the keys cannot be fetched)."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


@dataclass(frozen=True, slots=True)
class Caller:
    """The subject of a token, its merchant and its scopes."""

    merchant: str
    subject: str
    scopes: frozenset[str]

    @property
    def actor(self) -> str:
        """The caller's name in the audit trail."""
        return (
            f"client:{self.merchant}/{self.subject}"
            if self.merchant != OPERATOR
            else f"operator:{self.subject}"
        )

    def need(self, *scopes: str) -> None:
        """Raise `AccessDenied` unless the token has one of these scopes."""
        if self.scopes.isdisjoint(scopes):
            has = f"has the scopes {' '.join(sorted(self.scopes))}" if self.scopes else "has no scope"
            raise AccessDenied(
                403,
                f"this call needs the scope {' or '.join(scopes)}, and the token {has}: issue one that has it",
            )


def issue(settings: Settings, *, merchant: str, scopes: Iterable[str], lifetime: float, subject: str) -> str:
    """Make a token for a merchant, signed under the newest secret; `lifetime` in seconds from now.

    `merchant` is `OPERATOR` for a token of the operator. `ValueError` for a scope that does not exist or is
    not for this kind of token, a merchant or subject that no token can hold, or a lifetime beyond the longest
    accepted (`JWT_MAX_LIFETIME`).
    """
    wanted = frozenset(scopes)
    every = SCOPES | CONSOLE_SCOPES
    unknown = sorted(wanted - every)
    if unknown or not wanted:
        message = f"scope must be some of {', '.join(sorted(every))}, not {', '.join(unknown) or 'empty'}"
        raise ValueError(message)
    operators = OPERATOR_SCOPES | CONSOLE_SCOPES | {"ops"}
    known = operators if merchant == OPERATOR else SCOPES - OPERATOR_SCOPES
    if not wanted <= known:
        whose = "the operator" if merchant == OPERATOR else "a merchant"
        message = f"scope of a token of {whose} must be some of {', '.join(sorted(known))}, not {', '.join(sorted(wanted - known))}"
        raise ValueError(message)
    if not _fits(merchant) or not _fits(subject):
        raise ValueError(f"merchant and subject must be 1 to {LONGEST_NAME} printable characters")
    if lifetime > settings.jwt_max_lifetime:
        raise ValueError(
            f"a token may live {_days(settings.jwt_max_lifetime)} at the most, not {_days(lifetime)}: "
            "ask for less, or raise ORCHESTRATOR_JWT_MAX_LIFETIME"
        )
    now = int(time.time())
    claims = {
        "iss": settings.jwt_issuer,
        "aud": settings.jwt_audience,
        "sub": subject,
        "merchant": merchant,
        "scope": " ".join(sorted(wanted)),
        "iat": now,
        "exp": now + max(1, int(lifetime)),
        "jti": uuid4().hex,
    }
    if not settings.jwt_secrets:
        message = "this installation has no ORCHESTRATOR_JWT_SECRETS to sign a token with: set a JSON array with one"
        raise ValueError(message)
    return jwt.encode(claims, settings.jwt_secrets[0].get_secret_value(), algorithm=ALGORITHM)


def issue_own(
    settings: Settings, *, merchant: str, scopes: Iterable[str], lifetime: float, subject: str
) -> str:
    """Make a token for a process of ours, as `issue`; a lifetime beyond the longest accepted is that one."""
    shorter = min(lifetime, settings.jwt_max_lifetime)
    return issue(settings, merchant=merchant, scopes=scopes, lifetime=shorter, subject=subject)


def bearer_of(authorization: str) -> str | None:
    """Return the token of an Authorization header; None where it has none."""
    scheme, _, token = authorization.partition(" ")
    return (token.strip() or None) if scheme.lower() == "bearer" else None


class Authenticator:
    """Verifies tokens for a process; a result is kept for half a minute, never beyond the token's end."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        # Until when the result serves, and the token's own end.
        self._seen: OrderedDict[str, tuple[Caller, float, float]] = OrderedDict()
        self._published = issuer_keys.KeySet(settings.jwt_jwks_url) if settings.jwt_jwks_url else None

    async def admit(self, authorization: str | None) -> Caller:
        """Return the caller that an Authorization header proves, or raise `AccessDenied`."""
        if not authorization:
            raise AccessDenied(401, "this call needs a token: send the header Authorization: Bearer <token>")
        token = bearer_of(authorization)
        if token is None:
            raise AccessDenied(401, "the Authorization header must be Bearer <token>")
        known = self._seen.get(token)
        now = time.time()
        if known is not None and now < known[1]:
            self._seen.move_to_end(token)
            return known[0]
        try:
            caller, expires = verify(self._settings, token, await self._keys_for(token))
        except AccessDenied as error:
            if error.status == 401:  # noqa: PLR2004 - it proves nothing any more
                self._seen.pop(token, None)
            raise
        self._seen[token] = caller, min(now + _REMEMBERED, expires), expires
        if len(self._seen) > _MOST_REMEMBERED:
            self._seen.popitem(last=False)
        return caller

    async def expired(self, token: str) -> Caller | None:
        """Return the caller of a token that nothing refuses but its end; None for any other token. Raises
        `AccessDenied` where the keys cannot be fetched.
        """
        keys = await self._keys_for(token)
        try:
            caller, end = verify(self._settings, token, keys, expired=True)
        except AccessDenied:
            return None
        return caller if end <= time.time() else None

    def knows(self, authorization: str | None) -> bool:
        """Say whether this process has verified a header's token before, and its end has not come."""
        known = self._seen.get(bearer_of(authorization or "") or "")
        return known is not None and time.time() < known[2]

    def ends(self, token: str) -> float:
        """Return when a token ends that was just admitted: seconds since 1970."""
        known = self._seen.get(token)
        return time.time() if known is None else known[2]

    async def close(self) -> None:
        if self._published is not None:
            await self._published.close()

    async def _keys_for(self, token: str) -> Sequence[PublicKey]:
        """Return the published keys that may have signed a token."""
        if self._published is None:
            return ()
        header = _header(token)
        if header.get("alg") not in issuer_keys.ALGORITHMS:
            return ()
        kid = header.get("kid")
        try:
            return await self._published.for_token(kid if isinstance(kid, str) else None)
        except issuer_keys.KeysUnavailable as error:
            if issuer_keys.may_verify(self._settings.public_keys, str(header["alg"])):
                return ()
            raise AccessDenied(
                503,
                f"the keys of the identity provider cannot be fetched at the moment ({error}): send the request again",
            ) from None


def verify(
    settings: Settings, token: str, keys: Sequence[PublicKey] = (), *, expired: bool = False
) -> tuple[Caller, float]:
    """Return the caller that a token proves, also by `keys` of an identity provider, and the token's end
    (seconds since 1970), which with `expired` may have passed.

    `AccessDenied` gives the reason if it proves none.
    """
    if not accepts(settings):
        raise AccessDenied(
            401,
            "this installation has no ORCHESTRATOR_JWT_SECRETS, ORCHESTRATOR_JWT_PUBLIC_KEYS or ORCHESTRATOR_JWT_JWKS_URL and "
            "accepts no token: set one of them",
        )
    algorithm = _header(token).get("alg")
    failure: Exception | None = None
    for key in _candidates(settings, algorithm, keys):
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[str(algorithm)],
                issuer=settings.jwt_issuer,
                audience=settings.jwt_audience,
                options={"require": list(_CLAIMS), "verify_iat": False, "verify_exp": not expired},
            )
        except jwt.InvalidSignatureError as error:
            failure = error  # another key may have made it
            continue
        except (jwt.PyJWTError, ValueError, RecursionError, OverflowError) as error:
            failure = error  # a header from outside may hold anything
            break
        return _caller(settings, claims)
    raise AccessDenied(401, _sentence(settings, failure)) from None


def accepts(settings: Settings) -> bool:
    """Say whether any key is configured that can verify a token."""
    return bool(settings.jwt_secrets or settings.jwt_public_keys or settings.jwt_jwks_url)


def algorithms(settings: Settings) -> tuple[str, ...]:
    """Return the algorithms of the tokens that can be verified."""
    secret = (ALGORITHM,) if settings.jwt_secrets else ()
    if settings.jwt_jwks_url:
        return (*secret, *issuer_keys.ALGORITHMS)
    public = {known for key in settings.public_keys for known in key.algorithms}
    return (*secret, *(known for known in issuer_keys.ALGORITHMS if known in public))


def _candidates(settings: Settings, algorithm: object, published: Sequence[PublicKey]) -> Iterable[Any]:
    """Return the keys that may verify a token; a key serves the algorithms of its own kind only."""
    if algorithm == ALGORITHM and settings.jwt_secrets:
        return [secret.get_secret_value() for secret in settings.jwt_secrets]
    if algorithm not in algorithms(settings):
        raise AccessDenied(401, f"the token must be signed with {' or '.join(algorithms(settings))}")
    found = issuer_keys.may_verify((*settings.public_keys, *published), str(algorithm))
    if not found:
        raise AccessDenied(401, "the token names a key that its issuer does not publish: issue a new one")
    return [public.key for public in found]


def _header(token: str) -> dict[str, Any]:
    if len(token) > LONGEST:
        raise AccessDenied(
            401,
            f"the token has {len(token)} characters, and at most {LONGEST} are accepted: issue a shorter one",
        )
    try:
        return jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, RecursionError, OverflowError) as error:
        raise AccessDenied(401, _sentence(None, error)) from None


def _caller(settings: Settings, claims: dict[str, object]) -> tuple[Caller, float]:
    issued, expires = _moment(claims, "iat"), _moment(claims, "exp")
    if issued > time.time() + _SKEW:
        raise AccessDenied(401, "the token was issued in the future: set the issuer's clock right")
    if expires - issued > settings.jwt_max_lifetime:
        raise AccessDenied(
            401,
            f"the token lives for longer than {_days(settings.jwt_max_lifetime)} from its iat to its exp, which is the most "
            "that is accepted: issue one with a shorter life",
        )
    merchant, subject, scope = claims["merchant"], claims["sub"], claims["scope"]
    if not (isinstance(merchant, str) and isinstance(subject, str) and isinstance(scope, str)):
        raise AccessDenied(401, "the token's merchant, sub and scope must be texts: issue a new one")
    if not _fits(merchant) or not _fits(subject):
        raise AccessDenied(
            401, f"the token's merchant and sub must be 1 to {LONGEST_NAME} printable characters"
        )
    return Caller(merchant, subject, frozenset(scope.split())), expires


def _moment(claims: dict[str, object], name: str) -> float:
    """Return a time of a token as seconds since 1970; a value that is no time of the calendar is refused."""
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LAST_MOMENT:
        raise AccessDenied(401, f"the token's {name} must be a number of seconds since 1970: issue a new one")
    return float(value)


def _days(seconds: float) -> str:
    return f"{seconds / 86_400:g} days" if seconds >= 86_400 else f"{seconds:g} seconds"  # noqa: PLR2004 - a day


def _sentence(settings: Settings | None, failure: Exception | None) -> str:
    issuer, audience = (settings.jwt_issuer, settings.jwt_audience) if settings else ("", "")
    match failure:
        case jwt.ExpiredSignatureError():
            return "the token has expired: issue a new one"
        case jwt.InvalidSignatureError():
            return "the token's signature is wrong: no key of this installation made it"
        case jwt.InvalidIssuerError():
            return f"the token is from another issuer: its iss must be {issuer}"
        case jwt.InvalidAudienceError():
            return f"the token is for another audience: its aud must be {audience}"
        case jwt.MissingRequiredClaimError():
            return f"the token lacks the claim {failure.claim}: issue a new one"
        case jwt.ImmatureSignatureError():
            return "the token is not valid yet: set the issuer's clock right"
        case _:
            return "the token is not a JSON Web Token that can be read: issue a new one"


def _fits(name: str) -> bool:
    return 0 < len(name) <= LONGEST_NAME and name.isprintable()

"""Who may call: bearer tokens (JWT, HS256) that name a merchant and what the caller may do.

The newest secret signs, every configured one verifies, so that secrets can be changed while tokens are out. A token is refused with
a sentence of its own for each cause: 401 when it proves nothing, 403 when it proves somebody who may not do this. Tokens and
what is in them never reach a log.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from uuid import uuid4

import jwt

from orchestrator.errors import OrchestratorError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from orchestrator.settings import Settings

SCOPES: Final = frozenset(
    {
        "checkouts:write",
        "checkouts:read",
        "endpoints:read",
        "endpoints:write",
        "events:read",
        "money:write",
        "ops",
    }
)
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
    """The caller may not do this; `status` is 401 (not known) or 403 (known, and not allowed)."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, for which merchant, and what for."""

    merchant: str
    subject: str
    scopes: frozenset[str]

    @property
    def actor(self) -> str:
        """How the audit trail names them."""
        return f"client:{self.merchant}/{self.subject}"

    def need(self, scope: str) -> None:
        """Raise `AccessDenied` unless the token has this scope."""
        if scope not in self.scopes:
            has = f"has the scopes {' '.join(sorted(self.scopes))}" if self.scopes else "has no scope"
            raise AccessDenied(
                403, f"this call needs the scope {scope}, and the token {has}: issue one that has it"
            )


def issue(settings: Settings, *, merchant: str, scopes: Iterable[str], lifetime: float, subject: str) -> str:
    """Make a token for a merchant, signed under the newest secret; `lifetime` in seconds from now.

    `ValueError` for a scope that does not exist, a merchant or subject that no token could carry, or a lifetime beyond the
    longest that is accepted (`JWT_MAX_LIFETIME`).
    """
    wanted = frozenset(scopes)
    unknown = sorted(wanted - SCOPES)
    if unknown or not wanted:
        message = f"scope must be some of {', '.join(sorted(SCOPES))}, not {', '.join(unknown) or 'empty'}"
        raise ValueError(message)
    if not _fits(merchant) or not _fits(subject):
        message = f"merchant and subject must be 1 to {LONGEST_NAME} printable characters"
        raise ValueError(message)
    if lifetime > settings.jwt_max_lifetime:
        message = (
            f"a token may live {_days(settings.jwt_max_lifetime)} at the most, not {_days(lifetime)}: "
            "ask for less, or raise ORCHESTRATOR_JWT_MAX_LIFETIME"
        )
        raise ValueError(message)
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
    return jwt.encode(claims, _secrets(settings)[0], algorithm=ALGORITHM)


def verify(settings: Settings, token: str) -> Caller:
    """Return who a token proves; raise `AccessDenied` with the sentence that says why it proves nobody."""
    caller, _ = _verify(settings, token)
    return caller


class Authenticator:
    """Verifies tokens for one process and remembers them for half a minute, never beyond their end."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._seen: OrderedDict[str, tuple[Caller, float]] = OrderedDict()

    def admit(self, authorization: str | None) -> Caller:
        """Return who an Authorization header proves, or raise `AccessDenied`."""
        if not authorization:
            raise AccessDenied(401, "this call needs a token: send the header Authorization: Bearer <token>")
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise AccessDenied(401, "the Authorization header must be Bearer <token>")
        known = self._seen.get(token)
        now = time.time()
        if known is not None and now < known[1]:
            self._seen.move_to_end(token)
            return known[0]
        self._seen.pop(token, None)
        caller, expires = _verify(self._settings, token)
        self._seen[token] = caller, min(now + _REMEMBERED, expires)
        if len(self._seen) > _MOST_REMEMBERED:
            self._seen.popitem(last=False)
        return caller


def _verify(settings: Settings, token: str) -> tuple[Caller, float]:
    """Return the caller and when the token ends (seconds since 1970)."""
    if len(token) > LONGEST:
        raise AccessDenied(
            401, f"the token has {len(token)} characters, and ours never have more than {LONGEST}"
        )
    failure: Exception | None = None
    for secret in _secrets(settings):
        try:
            claims = jwt.decode(
                token,
                secret,
                algorithms=[ALGORITHM],
                issuer=settings.jwt_issuer,
                audience=settings.jwt_audience,
                options={"require": list(_CLAIMS), "verify_iat": False},
            )
        except jwt.InvalidSignatureError as error:
            failure = error  # perhaps an older secret made it
            continue
        except (jwt.PyJWTError, ValueError, RecursionError, OverflowError) as error:
            failure = error  # a stranger's header may hold anything
            break
        return _caller(settings, claims)
    raise AccessDenied(401, _sentence(settings, failure)) from None


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
    """Return a time of a token as seconds since 1970; whatever its issuer wrote there, it must be one that a clock can show."""
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LAST_MOMENT:
        raise AccessDenied(401, f"the token's {name} must be a number of seconds since 1970: issue a new one")
    return float(value)


def _days(seconds: float) -> str:
    return f"{seconds / 86_400:g} days" if seconds >= 86_400 else f"{seconds:g} seconds"  # noqa: PLR2004 - a day


def _sentence(settings: Settings, failure: Exception | None) -> str:
    match failure:
        case jwt.ExpiredSignatureError():
            return "the token has expired: issue a new one"
        case jwt.InvalidSignatureError():
            return "the token's signature is wrong: no secret of this installation made it"
        case jwt.InvalidIssuerError():
            return f"the token is from another issuer: its iss must be {settings.jwt_issuer}"
        case jwt.InvalidAudienceError():
            return f"the token is for another audience: its aud must be {settings.jwt_audience}"
        case jwt.MissingRequiredClaimError():
            return f"the token lacks the claim {failure.claim}: issue a new one"
        case jwt.InvalidAlgorithmError():
            return f"the token must be signed with {ALGORITHM}"
        case jwt.ImmatureSignatureError():
            return "the token is not valid yet: set the issuer's clock right"
        case _:
            return "the token is not a JSON Web Token that can be read: issue a new one"


def _secrets(settings: Settings) -> list[str]:
    if not settings.jwt_secrets:
        raise AccessDenied(
            401,
            "this installation has no ORCHESTRATOR_JWT_SECRETS and knows no token: set a JSON array with one",
        )
    return [secret.get_secret_value() for secret in settings.jwt_secrets]


def _fits(name: str) -> bool:
    return 0 < len(name) <= LONGEST_NAME and name.isprintable()

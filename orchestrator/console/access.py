"""Who is at the console: sign-in by password, by a token of the operator or by a link, sessions, and what a
request must prove.

The cookie is HttpOnly and SameSite=Strict. A request that changes something must come from a page of this
origin (Origin, Sec-Fetch-Site) and carry the token of its session. A session has the scopes of the role,
token or link that it was opened with; it ends with that token, and with any change of the person.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import urlsplit

from orchestrator import passwords
from orchestrator.api.request_log import caller_of
from orchestrator.auth import CONSOLE_SCOPES, OPERATOR, AccessDenied
from orchestrator.domain.console_roles import ROLES
from orchestrator.errors import OrchestratorError
from orchestrator.store.console import sessions, users
from orchestrator.text import sentence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from starlette.requests import Request
    from starlette.responses import Response

    from orchestrator.api.dependencies import Services
    from orchestrator.store.console.sessions import Session

Made = TypeVar("Made")
VIEW: Final = "console:view"
OPERATE: Final = "console:operate"
APPROVE: Final = "console:approve"
ADMIN: Final = "console:admin"
MAY: Final = {
    VIEW: "see the pages",
    OPERATE: "act on orders and deliveries",
    APPROVE: "approve what another person asked for above the limit",
    ADMIN: "pause and disable merchants, manage users and end sessions",
}
PURPOSE: Final = "console-form"
LONGEST_TOKEN: Final = 4096
SEEN_FOR: Final = 60.0
"""Seconds for which another process may still show pages to a session that was ended."""
MOST_SEEN: Final = 1000
MOST_HASHES: Final = 20
"""Passwords that wait to be checked at one process; more are refused."""
LONGEST_NAME: Final = 64


class Refused(OrchestratorError):  # noqa: N818 - named for the fact
    """A request that is answered with a page that says why."""

    def __init__(self, status: int, title: str, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.title, self.sentence = status, title, sentence


def not_found(sentence: str) -> Refused:
    """Return the refusal of what there is not."""
    return Refused(404, "Not found", sentence)


class SignedOut(OrchestratorError):  # noqa: N818 - named for the fact
    """The browser has no session that has not ended."""


def cookie_name(services: Services) -> str:
    """Return the name of the cookie; over https no other host and no page over http can set it."""
    return "__Host-console" if secure(services) else "console"


def secure(services: Services) -> bool:
    """Whether browsers come over https, so that cookies are for it alone."""
    return services.settings.public_url.startswith("https://")


class Sessions:
    """The sessions of one process, kept for a minute for what only shows, so that many open pages that draw
    themselves anew cost no query each. What changes something asks the database each time.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._seen: dict[bytes, tuple[Session, float]] = {}
        self._hashing = asyncio.Semaphore(1)
        self._hashes = 0

    async def of(self, request: Request) -> Session:
        """Return the session of a request; `SignedOut` where there is none."""
        services = self._services
        value = request.cookies.get(cookie_name(services), "")
        if not 16 <= len(value) <= 100:  # noqa: PLR2004 - ours have 43 characters
            raise SignedOut
        key, now = sessions.digest(value), time.monotonic()
        known = self._seen.get(key)
        if request.method == "GET" and known is not None and now < known[1]:
            return known[0]
        found = await sessions.find(services.db, services.encryptor, value)
        if found is None:
            self._seen.pop(key, None)
            raise SignedOut
        if len(self._seen) >= MOST_SEEN:
            self._seen.clear()
        self._seen[key] = found, now + min(SEEN_FOR, found.expires_at.timestamp() - time.time())
        return found

    def forget(self) -> None:
        """Ask the database for every session again."""
        self._seen.clear()

    async def matches(self, password: str, stored: str) -> bool:
        """Say whether a password is the stored one; off the event loop, one at a time."""
        return await self._hash(passwords.matches, password, stored)

    async def hashed(self, password: str) -> str:
        """Return what is stored of a password."""
        return await self._hash(passwords.hashed, password)

    async def _hash(self, call: Callable[..., Made], *given: str) -> Made:
        if self._hashes >= MOST_HASHES:
            raise Refused(503, "Busy", "Too many people sign in at this moment: try again.")
        self._hashes += 1
        try:
            async with self._hashing:
                return await asyncio.to_thread(call, *given)
        finally:
            self._hashes -= 1


def need(session: Session, scope: str) -> None:
    """Raise `Refused` unless the session has a scope."""
    if not session.may(scope):
        raise Refused(
            403,
            "Not allowed",
            f"To {MAY[scope]} a session needs the scope {scope}, and yours has {' '.join(sorted(session.scopes))}.",
        )


def form_token(services: Services, session: Session) -> str:
    """Return what each form of a session carries."""
    return services.encryptor.sign(PURPOSE, session.key).hex()


def check_origin(request: Request, services: Services) -> None:
    """Raise `Refused` unless a request comes from a page of this origin."""
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    host = request.headers.get("host", "")
    own = {urlsplit(services.settings.public_url).netloc, host}
    foreign = origin is not None and origin.partition("://")[2] not in own
    if site not in {None, "same-origin"} or foreign:
        raise Refused(403, "Refused", "The form came from another site, so nothing was done.")
    if site is None and origin is None:
        raise Refused(
            403, "Refused", "The browser does not say where the form came from, so nothing was done."
        )


def check_form(services: Services, session: Session, given: str) -> None:
    """Raise `Refused` unless a form is one of this session's."""
    try:
        tag = bytes.fromhex(given)
    except ValueError:
        tag = b""
    if not services.encryptor.signed(PURPOSE, session.key, tag):
        raise Refused(
            403, "Refused", "The form is not of this session: open the page again. Nothing was done."
        )


def source_of(request: Request, services: Services) -> str | None:
    """Return the address that signs in; refused where too many attempts from there have failed."""
    source = caller_of(request.scope, depth=services.settings.trusted_proxies)
    services.limits.refuse_failing(source)
    return source


async def begin(
    services: Services, name: str, scopes: Iterable[str], *, seconds: float = sessions.LONGEST_SESSION
) -> str:
    """Begin a session that may see the pages; return the cookie's value."""
    return await sessions.begin(
        services.db, services.encryptor, actor=name, scopes={*scopes, VIEW}, seconds=seconds
    )


async def sign_in(request: Request, services: Services, token: str) -> str:
    """Return the cookie's value for a token of the operator; `Refused` with the reason otherwise."""
    source = source_of(request, services)
    if not 0 < len(token) <= LONGEST_TOKEN:
        raise Refused(401, "Not signed in", "Paste a token of the operator.")
    try:
        caller = await services.authenticator.admit(f"Bearer {token}")
    except AccessDenied as error:
        if error.status == HTTPStatus.UNAUTHORIZED:
            services.limits.count_failure(source)
        raise Refused(error.status, "Not signed in", sentence(error.sentence)) from None
    scopes = caller.scopes & CONSOLE_SCOPES
    if caller.merchant != OPERATOR or not scopes:
        raise Refused(
            403,
            "Not signed in",
            "The token is not for the console: it must be one of the operator with a scope such as console:view.",
        )
    left = services.authenticator.ends(token) - time.time()
    return await begin(services, caller.subject, scopes, seconds=left)


async def sign_in_by_password(
    request: Request, services: Services, kept: Sessions, *, name: str, password: str
) -> str:
    """Return the cookie's value for a name and a password; `Refused` otherwise, in the same words and after
    the same time whether or not there is such a person.
    """
    source = source_of(request, services)
    known = None
    if len(name) <= LONGEST_NAME and 0 < len(password) <= passwords.LONGEST:
        known = await users.by_name(services.db, services.encryptor, name)
    stored = known.password if known is not None and known.usable else None
    matched = await kept.matches(password[: passwords.LONGEST], stored or _no_password())
    if known is None or stored is None or not matched:
        services.limits.count_failure(source)
        raise Refused(401, "Not signed in", "The name or the password is wrong.")
    value = await begin(services, known.name, ROLES[known.role])
    # A change of the user ends its sessions, and may have come before this one was stored.
    now = await users.by_name(services.db, services.encryptor, name)
    if now is None or not now.usable or (now.password, now.role) != (known.password, known.role):
        await sessions.end(services.db, sessions.digest(value))
        raise Refused(401, "Not signed in", "The user was changed at this moment: sign in again.")
    await users.signed_in(services.db, known.name)
    return value


@cache
def _no_password() -> str:
    """Return a stored password that no person has."""
    return passwords.hashed(secrets.token_urlsafe(32))


async def use_link(request: Request, services: Services, code: str) -> str:
    """Return the cookie's value for a link that was not used before; `Refused` otherwise."""
    source = source_of(request, services)
    found = None
    if len(code) <= 100:  # noqa: PLR2004 - ours have 43 characters
        found = await sessions.use_link(services.db, services.encryptor, code, (VIEW,))
    if found is None:
        services.limits.count_failure(source)
        raise Refused(
            403,
            "The link was used or has expired",
            "A link opens one session, within an hour. `orchestrator console link` prints a new one.",
        )
    return found


def set_cookie(response: Response, services: Services, value: str) -> None:
    """Give the browser its session."""
    response.set_cookie(
        cookie_name(services), value, httponly=True, samesite="strict", secure=secure(services), path="/"
    )


def drop_cookie(response: Response, services: Services) -> None:
    """Take the browser's session away."""
    response.delete_cookie(
        cookie_name(services), path="/", secure=secure(services), httponly=True, samesite="strict"
    )

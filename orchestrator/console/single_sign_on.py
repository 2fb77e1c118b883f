"""Sign-in to the console by an identity provider (OpenID Connect): its claim of roles says what a person may
do.

The cookie of the sign-in is SameSite=Lax, since the browser comes back from another site with it; it holds
nothing that opens anything. The session's own cookie is set on a page of ours, which goes on from there: a
redirect that began at another site would not send it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from orchestrator.console import access
from orchestrator.console.access import Refused
from orchestrator.crypto import EncryptionError
from orchestrator.domain.console_roles import ROLES
from orchestrator.oidc import Flow, Provider, SignInFailed
from orchestrator.text import sentence

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from orchestrator.api.dependencies import Services

PATH: Final = "/console/sso"
COOKIE: Final = "console-sso"
PURPOSE: Final = "console-sso"
SECONDS: Final = 600
LONGEST_NAME: Final = 100
_ANSWER: Final = ("code", "state", "iss", "error")


def provider(services: Services) -> Provider | None:
    """Return the provider of the settings, or None."""
    settings = services.settings
    if settings.console_oidc_issuer is None or not settings.console_oidc_client_id:
        return None
    return Provider(
        settings.console_oidc_issuer,
        settings.console_oidc_client_id,
        settings.console_oidc_client_secret.get_secret_value(),
        f"{settings.public_url}{PATH}/answer",
    )


async def begin(services: Services, known: Provider, there: str) -> tuple[str, str]:
    """Return where the browser goes, and the value of its cookie."""
    try:
        address, flow = await known.begin(there, seconds=SECONDS)
    except SignInFailed as error:
        raise Refused(502, "Not signed in", sentence(str(error))) from None
    return address, services.encryptor.encrypt(msgspec.json.encode(flow), purpose=PURPOSE).hex()


async def finish(request: Request, services: Services, known: Provider) -> tuple[str, str]:
    """Return the value of the session's cookie, and where to go; `Refused` with the reason otherwise."""
    source = access.source_of(request, services)
    try:
        flow = _flow(services, request.cookies.get(COOKIE, ""))
        answer = {name: value for name in _ANSWER if (value := request.query_params.get(name)) is not None}
        claims = await known.finish(flow, answer)
        name, roles = _person(services, claims)
    except SignInFailed as error:
        services.limits.count_failure(source)
        raise Refused(403, "Not signed in", sentence(str(error))) from None
    value = await access.begin(services, name, {scope for role in roles for scope in ROLES[role]})
    return value, flow.there


def remember(response: Response, services: Services, value: str) -> None:
    """Give the browser the cookie of a sign-in, or take it away where the value is empty."""
    response.set_cookie(
        COOKIE,
        value,
        max_age=SECONDS if value else 0,
        httponly=True,
        samesite="lax",
        secure=access.secure(services),
        path=PATH,
    )


def _flow(services: Services, value: str) -> Flow:
    try:
        plain = services.encryptor.decrypt(bytes.fromhex(value[:4000]), purpose=PURPOSE)
        return msgspec.json.decode(plain, type=Flow)
    except (ValueError, EncryptionError, msgspec.MsgspecError):
        raise SignInFailed(
            "this browser has begun no sign-in, or it has taken too long: begin again"
        ) from None


def _person(services: Services, claims: dict[str, Any]) -> tuple[str, list[str]]:
    """Return name and roles of a person; the provider is trusted with both."""
    settings = services.settings
    name = claims.get(settings.console_oidc_name_claim)
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        raise SignInFailed(f"the ID token has no usable claim {settings.console_oidc_name_claim}")
    if settings.console_oidc_name_claim == "email" and claims.get("email_verified") is not True:
        raise SignInFailed("the identity provider has not verified the e-mail address")
    given = claims.get(settings.console_oidc_role_claim, [])
    roles = [role for role in ([given] if isinstance(given, str) else given or []) if role in ROLES]
    if not roles:
        raise SignInFailed(
            f"the claim {settings.console_oidc_role_claim} has none of the roles {', '.join(ROLES)}"
        )
    return name, roles

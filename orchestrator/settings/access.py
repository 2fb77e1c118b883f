"""Settings of access over HTTP: browsers, limits, headers. `Settings` takes them from here."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import AfterValidator, Field, SecretStr
from pydantic_settings import SettingsConfigDict

from orchestrator.settings.hosts import is_loopback
from orchestrator.settings.monitoring import MonitoringSettings
from orchestrator.settings.values import HttpUrl, SafeUrl

ANY_ORIGIN: Final = "*"
_ORIGIN: Final = re.compile(r"(https?)://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[1-9][0-9]{0,4})?")


def origin(value: str) -> str:
    """Return an origin as browsers write it; `ValueError` with the end of a sentence about it."""
    if value == ANY_ORIGIN:
        return value
    found = _ORIGIN.fullmatch(value)
    if found is None:
        message = 'each entry must be an origin such as "https://shop.example" (no path, no final slash), or "*" for any'
        raise ValueError(message)
    if found[1] == "http" and not is_loopback(found[2].strip("[]")):
        message = "each entry must start with https:// unless it is on this machine"
        raise ValueError(message)
    return value.lower()


class AccessSettings(MonitoringSettings):
    """What `Settings` says of access over HTTP."""

    model_config = SettingsConfigDict(use_attribute_docstrings=True)

    browser_origins: tuple[Annotated[str, AfterValidator(origin)], ...] = ()
    """Origins whose pages may read status, stream and session of a checkout with its clientToken (CORS), such
    as "https://shop.example"; "*": any; empty: none."""
    console_oidc_issuer: SafeUrl | None = None
    """The identity provider (OpenID Connect) that signs persons in to the console; https unless on this
    machine. Its redirect address is PUBLIC_URL/console/sso/answer."""
    console_oidc_client_id: str = ""
    """The console's client id at that provider."""
    console_oidc_client_secret: SecretStr = SecretStr("")
    """Its secret; empty: a public client, with PKCE alone."""
    console_oidc_role_claim: str = "roles"
    """The claim of the ID token that has the roles: viewer, operator, approver, admin (one, or a list)."""
    console_oidc_name_claim: str = "sub"
    """The claim that names the person in the audit trail: one that no person can change at the provider."""
    demo_shop_url: HttpUrl | None = None
    """Where a demo shop is, which the root page and /shop lead to; `up` sets it beside the sandbox."""
    client_token_after_end: float = Field(default=3600.0, ge=0, le=30 * 86_400)
    """How long after the end of its checkout a clientToken still shows how it ended."""
    status_streams: int = Field(default=250, ge=0, le=50_000)
    """Streams of one API process at once, at most a quarter of API_CONNECTIONS; one merchant has half of
    them, and one checkout five."""
    merchant_requests_per_second: float = Field(default=2000.0, ge=0, le=1_000_000)
    """Requests of one merchant's tokens to all API processes, five seconds' worth of them at once; 0:
    unlimited."""
    client_requests_per_second: float = Field(default=5.0, ge=0, le=10_000)
    """Requests with one clientToken, four seconds' worth of them at once; 0: unlimited."""
    failed_authentications_per_minute: float = Field(default=60.0, ge=0, le=100_000)
    """Requests of one address (IPv6: of one /64) whose token proves nothing, before they are answered 429; 0:
    unlimited."""
    hsts_max_age: int = Field(default=0, ge=0, le=10 * 366 * 86_400)
    """`max-age` of the header Strict-Transport-Security on every answer, for an API behind TLS; 0: no such
    header."""

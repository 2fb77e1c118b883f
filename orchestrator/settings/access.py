"""Settings of access over HTTP (browsers, limits, headers), of metrics and of traces.

`Settings` takes them from here.
"""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import AfterValidator, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from orchestrator.settings.hosts import is_loopback
from orchestrator.settings.values import HOST, HttpUrl, SafeUrl

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
        raise ValueError("each entry must start with https:// unless it is on this machine")
    return value.lower()


_LAST_PORT = 65_535
_SHORTEST = 16
"""Characters of a token that cannot be guessed."""


def long_enough(value: SecretStr) -> SecretStr:
    """Return a token; `ValueError` with the end of a sentence about one that is too short."""
    if 0 < len(value.get_secret_value()) < _SHORTEST:
        raise ValueError(f"must have at least {_SHORTEST} characters")
    return value


def listening(value: str) -> str:
    """Return an address to listen on; `ValueError` with the end of a sentence about one that is none."""
    host, _, port = value.rpartition(":")
    if (
        not HOST.fullmatch(host)
        or not port.isascii()
        or not port.isdigit()
        or not 0 < int(port) <= _LAST_PORT
    ):
        raise ValueError("must be a host or an address and a port, such as 127.0.0.1:9100")
    return value


class AccessSettings(BaseSettings):
    """What `Settings` says of access over HTTP, metrics and traces."""

    model_config = SettingsConfigDict(use_attribute_docstrings=True)

    metrics_token: Annotated[SecretStr, AfterValidator(long_enough)] = SecretStr("")
    """The token that Prometheus shows at `/metrics` of the API (`Authorization: Bearer`); unset: there is no
    such address. It opens the figures of all merchants."""
    metrics_listen: Annotated[str, AfterValidator(listening)] | None = None
    """An address of its own on which the API serves `/metrics` without a token, such as 127.0.0.1:9100;
    unset: none. Only the operator's network may reach it."""
    traces_url: HttpUrl | None = None
    """Where spans are sent by OTLP over HTTP, such as http://collector:4318/v1/traces; unset: no traces.
    Needs the extra `traces`."""
    traces_sample: float = Field(default=0.1, ge=0, le=1)
    """The part of the traces that is kept; the trace id decides, so that all processes keep the same."""
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

"""A merchant's row, opened: the account, callback secrets and policies, and what each secret is bound to.

Secrets are encrypted in the row under the installation's secret keys. A changed row alone sends no password
to another address: a password decrypts only together with the URLs and the user name that it was given with,
the password of the settings goes only to the URLs of the settings, and policies that move money count only
with a MAC under our key. Pure: nothing here uses the database.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from orchestrator import log
from orchestrator.crypto import EncryptionError
from orchestrator.gateway.client import Account
from orchestrator.store.merchant_fields import BOUND, GatewayNotAllowed, Policies, PolicyRejected, policy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Row

    from orchestrator.crypto import Encryptor
    from orchestrator.settings import Settings

_log = log.get(__name__)

COLUMNS: Final = """m.id, m.name, m.gateway_url, m.merchant_api_url, m.username, m.password, m.callback_secrets, m.policies,
    m.policies_mac, m.disabled_at, m.paused_at, r.secrets AS retired, clock() AS now"""
"""What `opened` reads of a row of `TABLES`; the time is the last."""
TABLES: Final = "merchants m LEFT JOIN retired_callback_secrets r ON r.merchant_id = m.id"
POLICIES_PURPOSE: Final = "merchant-policies"
"""The purpose of the key under which policies are signed."""


@dataclass(frozen=True, slots=True)
class Merchant:
    """One merchant as the processes need it; its secrets are also the retired ones that have not ended."""

    id: int
    name: str
    disabled: bool
    account: Account
    callback_secrets: tuple[str, ...] = field(repr=False)
    policies: Policies = field(default_factory=Policies)
    paused: bool = False
    """No gateway call is made for its checkouts; they wait."""


class RetiredSecret(msgspec.Struct, frozen=True):
    """A callback secret that ends at `until` (seconds since 1970, by Postgres's clock)."""

    secret: str
    until: float

    def __repr__(self) -> str:
        """Hide the secret."""
        return f"RetiredSecret(until={self.until})"


def password_purpose(
    name: str, gateway_url: str | None, merchant_api_url: str | None, username: str | None
) -> str:
    """Return what a password is bound to: it opens for the same merchant, URLs and user name only."""
    bound = msgspec.json.encode([name, gateway_url, merchant_api_url, username]).decode()
    return f"merchant-password/{bound}"


def purpose_of(row: Row[Any]) -> str:
    return password_purpose(row.name, row.gateway_url, row.merchant_api_url, row.username)


def secrets_purpose(name: str) -> str:
    return f"merchant/{name}/secrets"


def retired_purpose(name: str) -> str:
    return f"merchant/{name}/retired-secrets"


def encrypted(encryptor: Encryptor, secrets: Sequence[str | RetiredSecret], purpose: str) -> bytes:
    return encryptor.encrypt(msgspec.json.encode(secrets), purpose=purpose)


def policies_text(name: str, policies: Mapping[str, object]) -> bytes:
    """Return what is signed of a merchant's policies: its name, and those that move money."""
    return msgspec.json.encode(
        [name, {key: policies[key] for key in BOUND if key in policies}], order="sorted"
    )


def genuine(encryptor: Encryptor, row: Row[Any]) -> dict[str, Any]:
    """Return the stored policies without those that move money, unless our MAC is on these."""
    stored = row.policies if isinstance(row.policies, dict) else {}
    told = [name for name in BOUND if name in stored]
    said = policies_text(row.name, stored)
    if not told or encryptor.signed(POLICIES_PURPOSE, said, row.policies_mac or b""):
        return dict(stored)
    _log.error("policies_not_authentic", security=True, merchant=row.name, ignored=told)
    return {name: value for name, value in stored.items() if name not in told}


def current_secrets(encryptor: Encryptor, row: Row[Any], settings: Settings) -> tuple[str, ...]:
    """Return the callback secrets of a row, newest first: its own, or those of the settings."""
    if row.callback_secrets is None:
        return tuple(secret.get_secret_value() for secret in settings.gateway_secrets)
    plain = encryptor.decrypt(row.callback_secrets, purpose=secrets_purpose(row.name))
    return msgspec.json.decode(plain, type=tuple[str, ...])


def retired_secrets(encryptor: Encryptor, row: Row[Any]) -> tuple[RetiredSecret, ...]:
    """Return the retired callback secrets of a row that have not ended at `row.now`."""
    if row.retired is None:
        return ()
    plain = encryptor.decrypt(row.retired, purpose=retired_purpose(row.name))
    now = row.now.timestamp()
    found = msgspec.json.decode(plain, type=tuple[RetiredSecret, ...])
    return tuple(secret for secret in found if secret.until > now)


def moment(until: float) -> datetime:
    return datetime.fromtimestamp(until, UTC)


def opened(encryptor: Encryptor, row: Row[Any], settings: Settings) -> Merchant:
    """Return the merchant of a row; `EncryptionError` or `GatewayNotAllowed` if it cannot be served."""
    url = row.gateway_url or settings.gateway_url or ""
    # A merchant's own gateway has its own Merchant API below it unless its row says otherwise.
    merchant_api = row.merchant_api_url or (row.gateway_url or settings.merchant_api)
    username = row.username or settings.gateway_username
    account = Account(row.name, url, merchant_api, username, _password(encryptor, row, settings))
    retired = tuple(secret.secret for secret in retired_secrets(encryptor, row))
    secrets = current_secrets(encryptor, row, settings) + retired
    for target in (account.url, account.merchant_api_url):
        if target and not settings.gateway_allowed(target):
            raise GatewayNotAllowed(target)
    policies = _policies(row.name, genuine(encryptor, row))
    return Merchant(
        row.id, row.name, row.disabled_at is not None, account, secrets, policies, row.paused_at is not None
    )


def _password(encryptor: Encryptor, row: Row[Any], settings: Settings) -> str:
    if row.password is not None:
        return encryptor.decrypt(row.password, purpose=purpose_of(row)).decode()
    usual = (
        (row.gateway_url, settings.gateway_url),
        (row.merchant_api_url, settings.merchant_api),
        (row.username, settings.gateway_username),
    )
    if any(own is not None and own != setting for own, setting in usual):
        message = "the row names a gateway or a user of its own and no password: the password of the settings is not for those"
        raise EncryptionError(message)
    return settings.gateway_password.get_secret_value()


def _policies(merchant: str, stored: Mapping[str, object]) -> Policies:
    """Read the policies of a row. What is not known, or says nothing known, counts as not set."""
    read: dict[str, Any] = {}
    for name, value in stored.items():
        try:
            read[name] = policy(name, value)
        except PolicyRejected as error:
            _log.warning("policy_ignored", merchant=merchant, policy=name, reason=str(error))
    return Policies(**read)

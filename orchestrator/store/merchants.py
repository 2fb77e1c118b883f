"""Merchants: gateway account, callback secrets and policies, from the merchant's row or from the settings.

The merchant `default` exists from the first migration on, and fields that its row leaves empty come from the
settings. Secrets are encrypted in the row under the installation's secret keys. A changed row alone sends no
password to another address: a password decrypts only together with the URLs and the user name that it was
given with, the password of the settings goes only to the URLs of the settings, and policies that move money
count only with a MAC under our key. A merchant whose row fails these checks is not served. Rows are read
again after half a minute, by one reader for all waiting callers; while Postgres is away, the rows read before
stay in use. `known` reads from memory only.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import msgspec
from sqlalchemy import text

from orchestrator import log
from orchestrator.crypto import EncryptionError
from orchestrator.gateway.client import Account
from orchestrator.store.columns import json_text
from orchestrator.store.database import DatabaseAway, is_away, run
from orchestrator.store.merchant_fields import (
    BOUND,
    NAME,
    GatewayNotAllowed,
    MerchantRejected,
    Policies,
    PolicyRejected,
    UnknownMerchant,
    checked_gateway_url,
    checked_password,
    checked_secrets,
    checked_username,
    policy,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Executable, Row

    from orchestrator.crypto import Encryptor
    from orchestrator.settings import Settings
    from orchestrator.store.database import Database

_log = log.get(__name__)

_FRESH: Final = 30.0
# Somebody who is not among the known may have been added a moment ago, and Postgres may be back a moment
# after it failed.
_MOMENT: Final = 1.0
_WATCHED: Final = 15.0
_STALE: Final = 60.0
_READ = text("""
    SELECT id, name, gateway_url, merchant_api_url, username, password, callback_secrets, policies, policies_mac, disabled_at
      FROM merchants
""")
_ADD = text("""
    INSERT INTO merchants (name, gateway_url, merchant_api_url, username, password, callback_secrets)
    VALUES (:name, :gateway_url, :merchant_api_url, :username, :password, :callback_secrets)
    ON CONFLICT (name) DO NOTHING RETURNING id
""")
_DISABLE = text("""
    UPDATE merchants SET disabled_at = CASE WHEN :disabled THEN clock() END WHERE name = :name RETURNING id
""")
_LOCK = text("""
    SELECT name, gateway_url, merchant_api_url, username, policies, policies_mac FROM merchants WHERE name = :name FOR NO KEY UPDATE
""")
_SET_PASSWORD = text("UPDATE merchants SET password = :password WHERE name = :name RETURNING id")
_SET_SECRETS = text("UPDATE merchants SET callback_secrets = :secrets WHERE name = :name RETURNING id")
_SET_POLICIES = text("""
    UPDATE merchants SET policies = CAST(:policies AS jsonb), policies_mac = :mac WHERE name = :name RETURNING id
""")


def _policies(merchant: str, stored: Mapping[str, object]) -> Policies:
    """Read the policies of a row.

    What is not known, or says nothing known, counts as not set: the cautious defaults stand.
    """
    read: dict[str, Any] = {}
    for name, value in stored.items() if isinstance(stored, dict) else ():
        try:
            read[name] = policy(name, value)
        except PolicyRejected as error:
            _log.warning("policy_ignored", merchant=merchant, policy=name, reason=str(error))
    return replace(Policies(), **read)


POLICIES_PURPOSE: Final = "merchant-policies"
"""The purpose of the key under which policies are signed."""


def password_purpose(
    name: str, gateway_url: str | None, merchant_api_url: str | None, username: str | None
) -> str:
    """Return what a merchant's password is bound to: it opens only for the same merchant, URLs
    and user name.
    """
    bound = msgspec.json.encode([name, gateway_url, merchant_api_url, username]).decode()
    return f"merchant-password/{bound}"


def policies_text(name: str, policies: Mapping[str, object]) -> bytes:
    """Return what is signed of a merchant's policies: its name, and those that move money."""
    return msgspec.json.encode(
        [name, {key: policies[key] for key in BOUND if key in policies}], order="sorted"
    )


def _purpose(row: Row[Any]) -> str:
    return password_purpose(row.name, row.gateway_url, row.merchant_api_url, row.username)


@dataclass(frozen=True, slots=True)
class Merchant:
    """One merchant as the processes need it."""

    id: int
    name: str
    disabled: bool
    account: Account
    callback_secrets: tuple[str, ...] = field(repr=False)
    policies: Policies = field(default_factory=Policies)


class Merchants:
    """All merchants of the installation, kept in memory for half a minute."""

    def __init__(self, db: Database, encryptor: Encryptor, settings: Settings) -> None:
        self._db, self._encryptor, self._settings = db, encryptor, settings
        self._by_id: dict[int, Merchant] = {}
        self._by_name: dict[str, Merchant] = {}
        self._read_at = self._failed_at = float("-inf")
        self._reading = asyncio.Lock()

    async def get(self, merchant_id: int) -> Merchant:
        """Return the merchant with this id; `UnknownMerchant` if there is none."""
        await self._refresh(missing=merchant_id not in self._by_id)
        try:
            return self._by_id[merchant_id]
        except KeyError:
            raise UnknownMerchant(merchant_id) from None

    async def named(self, name: str) -> Merchant | None:
        """Return the merchant with this name, or None."""
        await self._refresh(missing=name not in self._by_name)
        return self._by_name.get(name)

    async def everyone(self) -> list[Merchant]:
        """Return all merchants, by id."""
        await self._refresh(missing=True)
        return sorted(self._by_id.values(), key=lambda merchant: merchant.id)

    async def sharing(self, account: Account) -> list[int]:
        """Return the merchants whose payments a lookup with this account may show."""
        same = (account.merchant_api_url, account.username)
        return [
            merchant.id
            for merchant in await self.everyone()
            if (merchant.account.merchant_api_url, merchant.account.username) == same
        ]

    def known(self, merchant_id: int) -> Merchant | None:
        """Return a merchant from memory; None if it was last read more than a minute ago.

        Makes no query.
        """
        if time.monotonic() - self._read_at > _STALE:
            return None
        return self._by_id.get(merchant_id)

    async def watch(self) -> None:
        """Keep what is known young, for those who cannot wait for Postgres; until it is cancelled."""
        while True:
            try:
                await self.everyone()
            except Exception as error:  # noqa: BLE001 - each caller that needs a merchant gets the error, and the watch continues
                _log.warning("merchants_not_watched", **log.cause(error))
            await asyncio.sleep(_WATCHED)

    async def add(
        self,
        name: str,
        *,
        gateway_url: str,
        merchant_api_url: str | None,
        username: str,
        password: str,
        callback_secrets: tuple[str, ...],
    ) -> bool:
        """Add a merchant with a gateway account of its own; False if the name is taken.

        `MerchantRejected` if a value is wrong, `GatewayNotAllowed` if the installation names its gateways and
        not this one.
        """
        if not NAME.fullmatch(name):
            raise MerchantRejected(
                "name", "must be 1 to 63 small letters, digits, dots, hyphens or underscores"
            )
        # Without a gateway of its own a merchant has that of the settings, with its user name.
        if gateway_url:
            gateway_url = checked_gateway_url("gateway URL", gateway_url, self._settings)
        if merchant_api_url is not None:
            merchant_api_url = checked_gateway_url("Merchant API URL", merchant_api_url, self._settings)
        username = checked_username(username) if gateway_url or username else ""
        password = checked_password(password)
        for url in (gateway_url, merchant_api_url):
            if url and not self._settings.gateway_allowed(url):
                raise GatewayNotAllowed(url)
        purpose = password_purpose(name, gateway_url, merchant_api_url, username)
        row = {
            "name": name,
            "gateway_url": gateway_url,
            "merchant_api_url": merchant_api_url,
            "username": username,
            "password": self._encryptor.encrypt(password.encode(), purpose=purpose),
            "callback_secrets": self._encrypted_secrets(name, checked_secrets(callback_secrets)),
        }
        added = bool(await self._db.write(_ADD, row))
        self._read_at = float("-inf")
        return added

    async def disable(self, name: str, *, disabled: bool) -> bool:
        """Disable (or enable again) a merchant; False if there is none of this name."""
        return await self._change(_DISABLE, {"name": name, "disabled": disabled})

    async def set_password(self, name: str, password: str) -> bool:
        """Give a merchant's API user another password, for the URLs and user name of its row.

        False if there is none of this name, `MerchantRejected` if the password is wrong. The caller must have
        seen the URLs: the password is sent there from now on.
        """
        password = checked_password(password)
        async with self._db.transaction() as tx:
            found = await run(tx, _LOCK, {"name": name})
            for row in found:
                sealed = self._encryptor.encrypt(password.encode(), purpose=_purpose(row))
                await run(tx, _SET_PASSWORD, {"name": name, "password": sealed})
        self._read_at = float("-inf")
        return bool(found)

    async def set_secrets(self, name: str, secrets: tuple[str, ...]) -> bool:
        """Set a merchant's callback secrets, newest first; none: callbacks are not checked.

        False if there is no such merchant, `MerchantRejected` if a secret is too short or holds a control
        character.
        """
        return await self._change(
            _SET_SECRETS, {"name": name, "secrets": self._encrypted_secrets(name, checked_secrets(secrets))}
        )

    async def set_policies(self, name: str, changes: Mapping[str, object]) -> bool:
        """Change some policies; `PolicyRejected` for what is none, and then nothing is changed.

        False if there is no such merchant.
        """
        checked = {key: policy(key, value) for key, value in changes.items()}
        async with self._db.transaction() as tx:
            found = await run(tx, _LOCK, {"name": name})
            for row in found:
                # What did not count before must not be signed along with what is changed now.
                policies = self._genuine(row) | checked
                mac = self._encryptor.sign(POLICIES_PURPOSE, policies_text(name, policies))
                document = json_text(policies)
                await run(tx, _SET_POLICIES, {"name": name, "policies": document, "mac": mac})
        self._read_at = float("-inf")
        return bool(found)

    async def _change(self, statement: Executable, parameters: Mapping[str, object]) -> bool:
        known = bool(await self._db.write(statement, parameters))
        self._read_at = float("-inf")
        return known

    def _genuine(self, row: Row[Any]) -> dict[str, Any]:
        """Return the stored policies without those that move money, unless our MAC is on these."""
        stored = row.policies if isinstance(row.policies, dict) else {}
        told = [name for name in BOUND if name in stored]
        mac = bytes(row.policies_mac or b"")
        if not told or self._encryptor.signed(POLICIES_PURPOSE, policies_text(row.name, stored), mac):
            return dict(stored)
        _log.error("policies_not_authentic", security=True, merchant=row.name, ignored=told)
        return {name: value for name, value in stored.items() if name not in told}

    def _encrypted_secrets(self, name: str, secrets: tuple[str, ...]) -> bytes:
        return self._encryptor.encrypt(msgspec.json.encode(secrets), purpose=f"merchant/{name}/secrets")

    async def _refresh(self, *, missing: bool) -> None:
        if self._fresh(missing=missing):
            return
        async with self._reading:
            # Whoever was first has read, or failed, for all who waited.
            if self._fresh(missing=missing):
                return
            if time.monotonic() - self._failed_at < _MOMENT:
                if missing:
                    raise DatabaseAway(
                        "the merchants could not be read a moment ago: Postgres is out of reach"
                    )
                return
            try:
                rows = await self._db.read(_READ)
            except Exception as error:
                if not is_away(error):
                    raise
                self._failed_at = time.monotonic()
                _log.warning("merchants_not_read", known=len(self._by_id), **log.cause(error))
                # Nobody may be called unknown because Postgres is away.
                if missing:
                    raise
                return
            self._take(rows)

    def _fresh(self, *, missing: bool) -> bool:
        return time.monotonic() - self._read_at < (_MOMENT if missing else _FRESH)

    def _take(self, rows: Sequence[Row[Any]]) -> None:
        everyone = []
        for row in rows:
            try:
                everyone.append(self._merchant(row))
            except (EncryptionError, GatewayNotAllowed) as error:
                # One merchant whose secrets no key opens must not take the others along.
                _log.error("merchant_unreadable", merchant=row.name, reason=str(error))
        self._by_id = {merchant.id: merchant for merchant in everyone}
        self._by_name = {merchant.name: merchant for merchant in everyone}
        self._read_at = time.monotonic()

    def _merchant(self, row: Row[Any]) -> Merchant:
        known = self._settings
        url = row.gateway_url or known.gateway_url or ""
        # A merchant's own gateway has its own Merchant API below it unless its row says otherwise.
        merchant_api = row.merchant_api_url or (row.gateway_url or known.merchant_api)
        password = self._password(row)
        secrets = (
            msgspec.json.decode(
                self._encryptor.decrypt(bytes(row.callback_secrets), purpose=f"merchant/{row.name}/secrets"),
                type=tuple[str, ...],
            )
            if row.callback_secrets is not None
            else tuple(secret.get_secret_value() for secret in known.gateway_secrets)
        )
        account = Account(row.name, url, merchant_api, row.username or known.gateway_username, password)
        for target in (account.url, account.merchant_api_url):
            if target and not known.gateway_allowed(target):
                raise GatewayNotAllowed(target)
        policies = _policies(row.name, self._genuine(row))
        return Merchant(row.id, row.name, row.disabled_at is not None, account, secrets, policies)

    def _password(self, row: Row[Any]) -> str:
        known = self._settings
        if row.password is not None:
            return self._encryptor.decrypt(bytes(row.password), purpose=_purpose(row)).decode()
        usual = (
            (row.gateway_url, known.gateway_url),
            (row.merchant_api_url, known.merchant_api),
            (row.username, known.gateway_username),
        )
        if any(own is not None and own != setting for own, setting in usual):
            message = "the row names a gateway or a user of its own and no password: the password of the settings is not for those"
            raise EncryptionError(message)
        return known.gateway_password.get_secret_value()

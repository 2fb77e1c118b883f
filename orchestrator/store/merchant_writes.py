"""Changes of merchants: added, changed, disabled, callback secrets set or rotated.

Each change is one transaction with its entry in the record of changes (`audit.merchant_changes`), under the
lock on the merchant's row. What is wrong is found before anything is written; no sentence repeats a secret.
"""

from __future__ import annotations

import secrets as random_secrets
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from msgspec import UNSET, UnsetType
from sqlalchemy import text

from orchestrator.audit.merchant_changes import MerchantAction, record
from orchestrator.store import merchant_accounts as accounts
from orchestrator.store.columns import json_text
from orchestrator.store.database import run
from orchestrator.store.merchant_accounts import POLICIES_PURPOSE, RetiredSecret, policies_text
from orchestrator.store.merchant_fields import (
    MOST_SECRETS,
    NAME,
    GatewayNotAllowed,
    MerchantRejected,
    checked_gateway_url,
    checked_password,
    checked_secrets,
    checked_username,
    policy,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from datetime import datetime

    from sqlalchemy import Row
    from sqlalchemy.ext.asyncio import AsyncConnection

    from orchestrator.crypto import Encryptor
    from orchestrator.settings import Settings
    from orchestrator.store.database import Database

OPERATOR: Final = "operator:command-line"
"""Who changes merchants from the command line."""
LONGEST_OVERLAP: Final = 30 * 86_400
OVERLAP: Final = 86_400
"""Seconds for which the callback secrets before a new one are valid, where nothing else is said."""
_SECRET_BYTES: Final = 32
_TARGET: Final = {"gateway_url": "gatewayUrl", "merchant_api_url": "merchantApiUrl", "username": "username"}
"""What the password is bound to: columns, and their names in the record of changes."""

_ADD = text("""
    INSERT INTO merchants (name, gateway_url, merchant_api_url, username, password, callback_secrets, policies, policies_mac)
    VALUES (:name, :gateway_url, :merchant_api_url, :username, :password, :callback_secrets, CAST(:policies AS jsonb), :mac)
    ON CONFLICT (name) DO NOTHING RETURNING id, name
""")
_LOCK = text(f"""
    SELECT {accounts.COLUMNS} FROM {accounts.TABLES} WHERE m.name = :name FOR NO KEY UPDATE OF m
""")  # noqa: S608 - our own words
_SET = text("""
    UPDATE merchants
       SET gateway_url = :gateway_url, merchant_api_url = :merchant_api_url, username = :username, password = :password,
           policies = CAST(:policies AS jsonb), policies_mac = :mac,
           disabled_at = CASE WHEN :disabled THEN coalesce(disabled_at, clock()) END,
           paused_at = CASE WHEN :paused THEN coalesce(paused_at, clock()) END
     WHERE id = :id
""")
# While a merchant is disabled nothing is sent to its endpoints: that time is no failure of theirs.
_SERVE_ENDPOINTS = text("""
    UPDATE webhook_endpoints SET resumed_at = clock(), failing_since = NULL WHERE merchant_id = :id AND deleted_at IS NULL
""")
_SET_SECRETS = text("UPDATE merchants SET callback_secrets = :secrets WHERE id = :id")
_RETIRE = text("""
    INSERT INTO retired_callback_secrets (merchant_id, secrets) VALUES (:id, :secrets)
    ON CONFLICT (merchant_id) DO UPDATE SET secrets = excluded.secrets
""")
_FORGET = text("DELETE FROM retired_callback_secrets WHERE merchant_id = :id")


@dataclass(frozen=True, slots=True, kw_only=True)
class MerchantUpdate:
    """What is to change of a merchant; what is unset stays as it is."""

    gateway_url: str | UnsetType = UNSET
    merchant_api_url: str | UnsetType | None = UNSET
    username: str | UnsetType = UNSET
    password: str | UnsetType = field(default=UNSET, repr=False)
    policies: Mapping[str, object] | UnsetType = UNSET
    disabled: bool | UnsetType = UNSET
    paused: bool | UnsetType = UNSET


@dataclass(frozen=True, slots=True)
class Rotated:
    """A callback secret that is valid from now on; `made` where it is our own, and shown once. Those before
    it are valid until `retired_until`; None: they ended at once, or there were none.
    """

    made: str | None = field(repr=False)
    retired_until: datetime | None


class MerchantWrites:
    """The changes of merchants; `actor` of each is who asked for it.

    Each returns False, or None, where there is no merchant of this name. Where a value is wrong it raises
    `MerchantRejected`, `PolicyRejected`, or `GatewayNotAllowed` if the installation names its gateways and
    not this one, and nothing is changed.
    """

    def __init__(self, db: Database, encryptor: Encryptor, settings: Settings) -> None:
        self._db, self._encryptor, self._settings = db, encryptor, settings

    def _changed(self) -> None:
        """Take note that what was read before is outdated."""

    async def add(
        self,
        name: str,
        *,
        gateway_url: str,
        merchant_api_url: str | None,
        username: str,
        password: str,
        callback_secrets: tuple[str, ...],
        policies: Mapping[str, object] | None = None,
        actor: str = OPERATOR,
    ) -> bool:
        """Add a merchant with a gateway account of its own; False if the name is taken."""
        if not NAME.fullmatch(name):
            raise MerchantRejected(
                "name", "must be 1 to 63 small letters, digits, dots, hyphens or underscores"
            )
        # Without a gateway of its own a merchant has that of the settings, with its user name.
        if gateway_url:
            gateway_url = self._allowed("gateway URL", gateway_url)
        if merchant_api_url is not None:
            merchant_api_url = self._allowed("Merchant API URL", merchant_api_url)
        username = checked_username(username) if gateway_url or username else ""
        password = checked_password(password)
        secrets = checked_secrets(callback_secrets)
        chosen = {key: policy(key, value) for key, value in (policies or {}).items()}
        purpose = accounts.password_purpose(name, gateway_url, merchant_api_url, username)
        row: dict[str, object] = {
            "name": name,
            "gateway_url": gateway_url,
            "merchant_api_url": merchant_api_url,
            "username": username,
            "password": self._encryptor.encrypt(password.encode(), purpose=purpose),
            "callback_secrets": accounts.encrypted(self._encryptor, secrets, accounts.secrets_purpose(name)),
            "policies": json_text(chosen),
            "mac": self._encryptor.sign(POLICIES_PURPOSE, policies_text(name, chosen)) if chosen else None,
        }
        details = {shown: row[column] for column, shown in _TARGET.items()}
        details |= {"callbackSecrets": len(secrets), "policies": chosen}
        async with self._db.transaction() as tx:
            added = await run(tx, _ADD, row)
            for merchant in added:
                await self._record(tx, merchant, MerchantAction.ADDED, actor, details)
        self._changed()
        return bool(added)

    async def change(self, name: str, update: MerchantUpdate, *, actor: str = OPERATOR) -> bool:
        """Change some fields in one transaction.

        Another URL or user name needs the password again: the stored one is for the previous ones.
        """
        given = self._checked(update)
        async with self._locked(name) as (tx, row):
            if row is not None:
                await self._write(tx, row, given, actor)
        return row is not None

    async def disable(self, name: str, *, disabled: bool, actor: str = OPERATOR) -> bool:
        return await self.change(name, MerchantUpdate(disabled=disabled), actor=actor)

    async def pause(self, name: str, *, paused: bool, actor: str = OPERATOR) -> bool:
        """Pause gateway calls, or resume them. Checkouts wait with their commands; new ones are taken."""
        return await self.change(name, MerchantUpdate(paused=paused), actor=actor)

    async def set_password(self, name: str, password: str, *, actor: str = OPERATOR) -> bool:
        """Set the API user's password. The caller must have seen the URLs of the row: it is sent there."""
        return await self.change(name, MerchantUpdate(password=password), actor=actor)

    async def set_policies(self, name: str, changes: Mapping[str, object], *, actor: str = OPERATOR) -> bool:
        return await self.change(name, MerchantUpdate(policies=changes), actor=actor)

    async def set_secrets(self, name: str, secrets: tuple[str, ...], *, actor: str = OPERATOR) -> bool:
        """Set all callback secrets, newest first (none: callbacks are not checked). Retired ones end."""
        secrets = checked_secrets(secrets)
        async with self._locked(name) as (tx, row):
            if row is not None:
                await self._write_secrets(tx, row, secrets, retired=[])
                details = {"callbackSecrets": len(secrets)}
                await self._record(tx, row, MerchantAction.SECRETS_SET, actor, details)
        return row is not None

    async def rotate_secret(
        self, name: str, secret: str | None, *, overlap: float = OVERLAP, actor: str = OPERATOR
    ) -> Rotated | None:
        """Give a merchant a new callback secret: `secret`, or one that is made here. Those before it are
        valid for `overlap` seconds more, and those that were retired before until their own end.
        """
        made = secret is None
        (new,) = checked_secrets((random_secrets.token_urlsafe(_SECRET_BYTES) if secret is None else secret,))
        async with self._locked(name) as (tx, row):
            if row is None:
                return None
            current = accounts.current_secrets(self._encryptor, row, self._settings)
            earlier = accounts.retired_secrets(self._encryptor, row)
            if new in current or any(new == known.secret for known in earlier):
                raise MerchantRejected("callback secret", "is in use already: take another one")
            until = row.now.timestamp() + overlap
            retired = [RetiredSecret(known, until) for known in current] if overlap > 0 else []
            retired += earlier
            if len(retired) >= MOST_SECRETS:
                problem = f"would be {len(retired) + 1} at once, and the most is {MOST_SECRETS}: wait until one ends, or take a shorter overlap"
                raise MerchantRejected("callback secrets", problem)
            ends = accounts.moment(until) if current and overlap > 0 else None
            await self._write_secrets(tx, row, (new,), retired=retired)
            details = {
                "retired": len(retired),
                "retiredUntil": None if ends is None else ends.isoformat(timespec="seconds"),
                "made": made,
            }
            await self._record(tx, row, MerchantAction.SECRET_ROTATED, actor, details)
        return Rotated(new if made else None, ends)

    @asynccontextmanager
    async def _locked(self, name: str) -> AsyncIterator[tuple[AsyncConnection, Row[Any] | None]]:
        """Open the transaction of a change, with the lock on the merchant's row; None: there is none."""
        async with self._db.transaction() as tx:
            rows = await run(tx, _LOCK, {"name": name})
            yield tx, rows[0] if rows else None
        self._changed()

    async def _write_secrets(
        self, tx: AsyncConnection, row: Row[Any], secrets: tuple[str, ...], *, retired: list[RetiredSecret]
    ) -> None:
        encrypted = accounts.encrypted(self._encryptor, secrets, accounts.secrets_purpose(row.name))
        await run(tx, _SET_SECRETS, {"id": row.id, "secrets": encrypted})
        if retired:
            encrypted = accounts.encrypted(self._encryptor, retired, accounts.retired_purpose(row.name))
            await run(tx, _RETIRE, {"id": row.id, "secrets": encrypted})
        else:
            await run(tx, _FORGET, {"id": row.id})

    def _checked(self, update: MerchantUpdate) -> dict[str, Any]:
        """Return what is to be changed, by the names of the columns; raises what is wrong with it."""
        checks: dict[str, Callable[[Any], object]] = {
            "gateway_url": partial(self._allowed, "gateway URL"),
            "merchant_api_url": lambda url: None if url is None else self._allowed("Merchant API URL", url),
            "username": checked_username,
            "password": checked_password,
            "policies": lambda given: {key: policy(key, value) for key, value in given.items()},
            "disabled": bool,
            "paused": bool,
        }
        given = ((name, getattr(update, name)) for name in checks)
        return {name: checks[name](value) for name, value in given if value is not UNSET}

    async def _write(self, tx: AsyncConnection, row: Row[Any], given: dict[str, Any], actor: str) -> None:
        target = {name: given.get(name, getattr(row, name)) for name in _TARGET}
        moved = any(target[name] != getattr(row, name) for name in _TARGET)
        if moved and "password" not in given:
            problem = "must be given again with another gateway URL, Merchant API URL or user name: the stored one is for the previous ones"
            raise MerchantRejected("password", problem)
        sealed = row.password
        if "password" in given:
            purpose = accounts.password_purpose(row.name, **target)
            sealed = self._encryptor.encrypt(given["password"].encode(), purpose=purpose)
        # What did not count before must not be signed along with what is changed now.
        before = accounts.genuine(self._encryptor, row)
        after = before | given.get("policies", {})
        details = _difference(row, given, before)
        if not details:
            return
        mac = row.policies_mac
        if "policies" in given:
            mac = self._encryptor.sign(POLICIES_PURPOSE, policies_text(row.name, after))
        await run(
            tx,
            _SET,
            {
                **target,
                "id": row.id,
                "password": sealed,
                "policies": json_text(after if "policies" in given else row.policies),
                "mac": mac,
                "disabled": given.get("disabled", row.disabled_at is not None),
                "paused": given.get("paused", row.paused_at is not None),
            },
        )
        if details.get("disabled") is False:
            await run(tx, _SERVE_ENDPOINTS, {"id": row.id})
        action = MerchantAction.CHANGED
        if details.keys() == {"disabled"}:
            action = MerchantAction.DISABLED if given["disabled"] else MerchantAction.ENABLED
        if details.keys() == {"paused"}:
            action = MerchantAction.PAUSED if given["paused"] else MerchantAction.RESUMED
        await self._record(tx, row, action, actor, details)

    async def _record(  # noqa: PLR0917 - the words of an entry
        self,
        tx: AsyncConnection,
        row: Row[Any],
        action: MerchantAction,
        actor: str,
        details: Mapping[str, object],
    ) -> None:
        await record(
            tx,
            self._encryptor,
            merchant_id=row.id,
            merchant=row.name,
            action=action,
            actor=actor,
            details=details,
        )

    def _allowed(self, field_name: str, url: str) -> str:
        checked = checked_gateway_url(field_name, url, self._settings)
        if not self._settings.gateway_allowed(checked):
            raise GatewayNotAllowed(checked)
        return checked


def _difference(row: Row[Any], given: Mapping[str, Any], policies: Mapping[str, Any]) -> dict[str, object]:
    """Return what an update changes of a row, as it is recorded: from and to, and of a password only that."""
    found: dict[str, object] = {
        shown: {"from": getattr(row, name), "to": given[name]}
        for name, shown in _TARGET.items()
        if name in given and given[name] != getattr(row, name)
    }
    if "password" in given:
        found["password"] = "changed"  # noqa: S105 - a word of the record
    changed = {
        name: {"from": policies.get(name), "to": value}
        for name, value in given.get("policies", {}).items()
        if policies.get(name) != value
    }
    if changed:
        found["policies"] = changed
    for name in ("disabled", "paused"):
        if name in given and given[name] != (getattr(row, f"{name}_at") is not None):
            found[name] = given[name]
    return found

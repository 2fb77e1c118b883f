"""Whose money it is: a merchant's gateway account, callback secrets and policies, from its row or from the
settings.

The merchant `default` exists from the first migration on, and whatever its row leaves empty comes from the
settings. Secrets are sealed in the row under the installation's secret keys. A row alone sends no password
anywhere: a password opens only together with the URLs and the user name that it was given with, the password
of the settings goes only where the settings say, and policies that move money count only with a MAC under our
key. A merchant whose row does not hold is not served. Rows are read again after half a minute, by one reader
for all who wait; while Postgres is away, what was read before goes on being served. `known` asks nobody at
all.
"""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Final, Literal, get_args
from urllib.parse import urlsplit

import msgspec
from sqlalchemy import text

from orchestrator import log
from orchestrator.crypto import EncryptionError
from orchestrator.errors import OrchestratorError
from orchestrator.gateway.client import Account
from orchestrator.settings.hosts import reach_of
from orchestrator.settings.values import callback_secret, http_url
from orchestrator.store.columns import json_text
from orchestrator.store.database import DatabaseAway, is_away, run

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

UnexpectedPaymentPolicy = Literal["ask", "keep", "return"]
"""What becomes of money without an order to pay: a person decides; it completes the checkout; it is given
back."""
Capture = Literal["manual", "automatic"]
Surcharge = Literal["ask", "keep"]
MAX_LOOKUPS_PER_MINUTE: Final = 100_000
NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
LONGEST_CREDENTIAL: Final = 255
MOST_SECRETS: Final = 10


class UnknownMerchant(OrchestratorError):  # noqa: N818 - named for the fact
    """No merchant has this id or name, or no known key opens its secrets."""

    def __init__(self, merchant: object) -> None:
        super().__init__(
            f"there is no merchant {merchant} that can be used: see `orchestrator merchants list`, and SECRET_KEYS"
        )
        self.merchant = merchant


class GatewayNotAllowed(OrchestratorError):  # noqa: N818 - named for the fact
    """Credentials may not be sent to this URL."""

    def __init__(self, url: str) -> None:
        super().__init__(
            f"{url} is not among the hosts of ORCHESTRATOR_GATEWAY_ALLOWED_HOSTS: correct the URL, or add its host to that list"
        )
        self.url = url


class MerchantRejected(OrchestratorError):  # noqa: N818 - named for the fact
    """A value that a merchant cannot have; the sentence names the field and says what it takes, and never
    repeats a secret.
    """

    def __init__(self, field_name: str, problem: str) -> None:
        super().__init__(f"{field_name} {problem}")
        self.field = field_name


class PolicyRejected(OrchestratorError):  # noqa: N818 - named for the fact
    """There is no such policy, or it does not take this value; the sentence says what there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """What a merchant wants done without being asked.

    `late`: money for a checkout that had ended. `surplus`: a second payment for one order. `unknown_order`: a
    payment for an order number that nobody asked for. `capture`: whether we capture what is reserved, where
    the checkout's intent does not say. `surcharge`: a payment of the order's amount and a surcharge that the
    gateway added: a person decides, or it pays the order. `lookups_per_minute`: lookups at the gateway that
    no shopper waits for, at most (see `processing.lookup_budget`).
    """

    late: UnexpectedPaymentPolicy = "ask"
    surplus: UnexpectedPaymentPolicy = "ask"
    unknown_order: UnexpectedPaymentPolicy = "ask"
    capture: Capture = "manual"
    surcharge: Surcharge = "ask"
    lookups_per_minute: int = 3000


_WORDS: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(("late", "surplus", "unknown_order"), get_args(UnexpectedPaymentPolicy)),
    "capture": get_args(Capture),
    "surcharge": get_args(Surcharge),
}
BOUND: Final = ("late", "surplus", "unknown_order", "capture", "surcharge")
"""Policies that decide on money, with those of later versions; they count only under our MAC."""
POLICIES: Final = tuple(one.name for one in fields(Policies))
RENAMED: Final = {"looks_per_minute": "lookups_per_minute"}
"""Earlier names of policies, which are refused with the present one. Migration 0011 renames what is stored.
"""


def policy(name: str, value: object) -> str | int:
    """Return the value of a policy as it is stored, from text or from the row; `PolicyRejected` says what it
    takes.
    """
    if name in RENAMED:
        raise PolicyRejected(f"the policy {name} is now called {RENAMED[name]}")
    if name not in POLICIES:
        raise PolicyRejected(f"there is no policy {name!r}: there are {', '.join(POLICIES)}")
    if name in _WORDS:
        if value not in _WORDS[name]:
            raise PolicyRejected(f"{name} must be {' or '.join(_WORDS[name])}, not {value!r}")
        return str(value)
    try:
        number = int(value) if isinstance(value, int | str) and not isinstance(value, bool) else 0
    except ValueError:
        number = 0
    if not 1 <= number <= MAX_LOOKUPS_PER_MINUTE:
        raise PolicyRejected(
            f"{name} must be a whole number from 1 to {MAX_LOOKUPS_PER_MINUTE}, not {value!r}"
        )
    return number


def _gateway_url(field_name: str, url: str, settings: Settings) -> str:
    """Return the base URL of a merchant's gateway.

    HTTPS and a public host, unless the installation's own GATEWAY_URL is without them too: then it works with
    a sandbox, or behind a network of its own, and a private host may be called, over http:// as well.
    """
    try:
        checked = http_url(url)
    except ValueError as error:
        raise MerchantRejected(field_name, str(error)) from None
    private = _is_private(checked)
    if not private and checked.startswith("https://"):
        return checked
    if private and settings.gateway_url is not None and _is_private(settings.gateway_url):
        return checked
    if private:
        problem = "must name a public host: a private one is taken where the installation's own GATEWAY_URL names one too"
        raise MerchantRejected(field_name, problem)
    raise MerchantRejected(field_name, "must start with https://, since passwords are sent there")


def _is_private(url: str) -> bool:
    return reach_of(urlsplit(url).hostname or "") == "private"


def _username(username: str) -> str:
    if not 1 <= len(username) <= LONGEST_CREDENTIAL:
        raise MerchantRejected("username", f"must have 1 to {LONGEST_CREDENTIAL} characters")
    if not username.isprintable() or ":" in username or username != username.strip():
        # RFC 7617: the colon ends the user name.
        problem = "must not hold a colon, control characters, or spaces at its ends: take it as the gateway shows it"
        raise MerchantRejected("username", problem)
    return username


def _password(password: str) -> str:
    if not 1 <= len(password) <= LONGEST_CREDENTIAL:
        raise MerchantRejected("password", f"must have 1 to {LONGEST_CREDENTIAL} characters")
    if not password.isprintable():
        raise MerchantRejected("password", "must not hold control characters: copy it without the line break")
    return password


def _secrets(secrets: tuple[str, ...]) -> tuple[str, ...]:
    if len(secrets) > MOST_SECRETS:
        raise MerchantRejected("callback secrets", f"are {len(secrets)}, and the most is {MOST_SECRETS}")
    for number, secret in enumerate(secrets, start=1):
        try:
            callback_secret(secret)
        except ValueError as error:
            raise MerchantRejected(f"callback secret {number}", str(error)) from None
    return secrets


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
            one.id
            for one in await self.everyone()
            if (one.account.merchant_api_url, one.account.username) == same
        ]

    def known(self, merchant_id: int) -> Merchant | None:
        """Return a merchant as it was when it was last read; None if that was more than a minute ago.

        Asks nobody.
        """
        if time.monotonic() - self._read_at > _STALE:
            return None
        return self._by_id.get(merchant_id)

    async def watch(self) -> None:
        """Keep what is known young, for those who cannot wait for Postgres; until it is cancelled."""
        while True:
            try:
                await self.everyone()
            except Exception as error:  # noqa: BLE001 - whoever needs a merchant meets the error, and the watch goes on
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
            gateway_url = _gateway_url("gateway URL", gateway_url, self._settings)
        if merchant_api_url is not None:
            merchant_api_url = _gateway_url("Merchant API URL", merchant_api_url, self._settings)
        username = _username(username) if gateway_url or username else ""
        password = _password(password)
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
            "callback_secrets": self._encrypted_secrets(name, _secrets(callback_secrets)),
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
        password = _password(password)
        async with self._db.transaction() as tx:
            found = await run(tx, _LOCK, {"name": name})
            for row in found:
                sealed = self._encryptor.encrypt(password.encode(), purpose=_purpose(row))
                await run(tx, _SET_PASSWORD, {"name": name, "password": sealed})
        self._read_at = float("-inf")
        return bool(found)

    async def set_secrets(self, name: str, secrets: tuple[str, ...]) -> bool:
        """Set a merchant's callback secrets, newest first; none: callbacks are not checked.

        False if there is no such merchant, `MerchantRejected` if one of them is too short or holds a control
        character.
        """
        return await self._change(
            _SET_SECRETS, {"name": name, "secrets": self._encrypted_secrets(name, _secrets(secrets))}
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

"""The merchants of the demo: `default`, and those of group `money`, each with policies of its own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from orchestrator.crypto import Encryptor
from orchestrator.devkit.demo.failure_scenarios import MERCHANTS
from orchestrator.devkit.demo.shop import Account
from orchestrator.store.merchants import Merchants, UnknownMerchant

if TYPE_CHECKING:
    from collections.abc import Iterable

    from orchestrator.settings import Settings
    from orchestrator.store.database import Database

_UNKNOWN_FOR: Final = 1.0
"""Seconds for which a process that has just read the merchants does not know a new one."""


async def prepare(db: Database, settings: Settings, names: Iterable[str]) -> dict[str, Account]:
    """Return the merchants of these names, added or set to what the demo needs of them; `default` stays as it is."""
    merchants = Merchants(db, Encryptor(settings.secret_keys), settings)
    names, accounts = list(names), {}
    added = [await _bring_about(merchants, settings, name) for name in names if name in MERCHANTS]
    if any(added):
        await asyncio.sleep(_UNKNOWN_FOR)
    for name in names:
        found = await merchants.named(name)
        if found is None:
            raise UnknownMerchant(name)
        accounts[name] = Account(found.id, found.account.username, found.account.password)
    return accounts


async def _bring_about(merchants: Merchants, settings: Settings, name: str) -> bool:
    """Add a merchant, or set the one that is there to what its scripts need; say whether it is new."""
    password = settings.gateway_password.get_secret_value()
    secrets = tuple(secret.get_secret_value() for secret in settings.gateway_secrets)
    # Without a gateway and user name of its own it has those of the settings, wherever the sandbox listens the next time.
    added = await merchants.add(
        name, gateway_url="", merchant_api_url=None, username="", password=password, callback_secrets=secrets
    )
    if not added:
        await merchants.set_password(name, password)
        await merchants.set_secrets(name, secrets)
        await merchants.disable(name, disabled=False)
    await merchants.set_policies(name, MERCHANTS[name])
    return added

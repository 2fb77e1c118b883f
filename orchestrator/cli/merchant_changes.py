"""What the commands about one merchant share: how it is named and found, and how a change of it is made and
told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

from orchestrator.cli.attached import data_dir, on_database
from orchestrator.cli.confirmation import as_option
from orchestrator.cli.merchant_lines import facts
from orchestrator.cli.output import plain_json_option, say, say_document

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from orchestrator.settings import Settings
    from orchestrator.store.database import Database
    from orchestrator.store.merchant_records import MerchantRecord
    from orchestrator.store.merchants import Merchants

F = TypeVar("F", bound="Callable[..., Any]")

NAME = click.argument("name")


def changing(command: F) -> F:
    """Give a command what every change of a merchant takes: where, which merchant, who asks, and how it
    is told.
    """
    return data_dir(NAME(as_option(plain_json_option(command))))


def change(
    name: str,
    make: Callable[[Merchants], Awaitable[bool]],
    said: str,
    *,
    data_dir: Path,
    as_json: bool,
    then: Callable[[Database], Awaitable[None]] | None = None,
) -> int:
    """Change one merchant, run what follows from it, and print the result."""

    async def write(settings: Settings, db: Database) -> int:
        if not await make(merchants_of(settings, db)):
            raise unknown(name)
        if then is not None:
            await then(db)
        if as_json:
            say_document(facts(await find(settings, db, name)))
        else:
            say(f"{said.format(name)}; within ten seconds everywhere.")
        return 0

    return on_database(data_dir, write)


def unknown(name: str) -> Exception:
    """Return the sentence for a merchant that does not exist."""
    from orchestrator.store.merchant_fields import UnknownMerchant

    return UnknownMerchant(name)


def merchants_of(settings: Settings, db: Database) -> Merchants:
    """Return the merchants of a database."""
    from orchestrator.crypto import Encryptor
    from orchestrator.store.merchants import Merchants

    return Merchants(db, Encryptor(settings.secret_keys), settings)


async def find(settings: Settings, db: Database, name: str) -> MerchantRecord:
    """Return a merchant by its name; a sentence where there is none."""
    from orchestrator.crypto import Encryptor
    from orchestrator.store import merchant_records

    found = await merchant_records.by_name(db, Encryptor(settings.secret_keys), settings, name)
    if found is None:
        raise unknown(name)
    return found

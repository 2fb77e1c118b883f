"""What the commands about merchants share: how one is named and found, how a change of it is made and told,
and what is printed of it, lines for people and JSON for programs; no secret.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import click

from orchestrator.cli.attached import Installation, data_dir, on_database, options
from orchestrator.cli.lookup import moment
from orchestrator.cli.output import plain_json_option, say, say_document
from orchestrator.cli.questions import as_option

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from orchestrator.store.database import Database
    from orchestrator.store.merchant_records import MerchantRecord
    from orchestrator.store.merchants import Merchants

NAME: Final = click.argument("name")

changing = options(data_dir, NAME, as_option, plain_json_option)
"""What every change of a merchant takes: where, which merchant, who asks, and how it is told."""


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

    async def write(here: Installation) -> None:
        if not await make(merchants_of(here)):
            raise unknown(name)
        if then is not None:
            await then(here.db)
        if as_json:
            say_document(facts(await find(here, name)))
        else:
            say(f"{said}; within ten seconds everywhere.")

    return on_database(data_dir, write)


def unknown(name: str) -> Exception:
    """Return the sentence for a merchant that does not exist."""
    from orchestrator.store.merchant_fields import UnknownMerchant

    return UnknownMerchant(name)


def merchants_of(here: Installation) -> Merchants:
    """Return the merchants of a database."""
    from orchestrator.store.merchants import Merchants

    return Merchants(here.db, here.encryptor, here.settings)


async def find(here: Installation, name: str) -> MerchantRecord:
    """Return a merchant by its name; a sentence where there is none."""
    from orchestrator.store import merchant_records

    found = await merchant_records.by_name(here.db, here.encryptor, here.settings, name)
    if found is None:
        raise unknown(name)
    return found


def lines_about(record: MerchantRecord) -> list[tuple[str, str]]:
    """Return what is shown of a merchant to people: label and value."""
    used = record.account
    account = (
        ("gateway URL", record.gateway_url or (used.url if used else "")),
        ("Merchant API URL", record.merchant_api_url or (used.merchant_api_url if used else "")),
        ("user name", record.username or (used.username if used else "")),
    )
    ends = "".join(f", one more until {moment(end)} UTC" for end in record.retired_until)
    return [
        ("name", record.name),
        ("state", record.status + (f": {record.problem}" if record.problem else "")),
        *([("gateway calls", f"paused since {moment(record.paused_at)} UTC")] if record.paused_at else []),
        *((label, value or "not set") for label, value in account),
        ("password", "its own" if record.own_password else "that of the settings"),
        ("callback secrets", f"{record.callback_secrets}{ends}"),
        *((name, str(value)) for name, value in record.policies.items()),
        ("webhooks", f"{record.webhooks} (orchestrator webhooks list --merchant {record.name})"),
        ("added", moment(record.created_at)),
        ("changes", f"{record.changes} (orchestrator merchants history {record.name})"),
    ]


def facts(record: MerchantRecord) -> dict[str, Any]:
    """Return what is shown of a merchant as JSON: no secret, and no account."""
    found = asdict(record)
    del found["account"]
    return found


def policies_of(given: Sequence[str]) -> dict[str, str]:
    """Read policies and their values, as in late=keep."""
    from orchestrator.store.merchant_fields import policy

    changes = {}
    for pair in given:
        key, equals, value = pair.partition("=")
        if not equals:
            raise click.UsageError(f"{pair!r} must be a policy and its value, as in late=keep")
        changes[key.strip().replace("-", "_")] = value.strip()
    for key, value in changes.items():
        policy(key, value)  # what is wrong is said before anything is opened
    return changes


def url_of(option: str, value: str) -> str:
    """Read the URL of an option."""
    from orchestrator.settings.values import http_url

    try:
        return http_url(value)
    except ValueError as error:
        raise click.UsageError(f"{option} {error}") from None

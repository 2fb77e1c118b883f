"""Merchants as commands print them, lines for people and JSON for programs, and take them: policies and URLs;
no secret.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from orchestrator.store.merchant_records import MerchantRecord

LABEL: Final = 20
"""Columns of a label."""


def lines_about(record: MerchantRecord) -> list[tuple[str, str]]:
    """Return what is shown of a merchant to people: label and value."""
    account = record.account
    used = (account.url, account.merchant_api_url, account.username) if account else ("", "", "")
    own = (record.gateway_url, record.merchant_api_url, record.username)
    ends = "".join(f", one more until {moment(end)} UTC" for end in record.retired_until)
    return [
        ("name", record.name),
        ("state", record.status + (f": {record.problem}" if record.problem else "")),
        *(
            []
            if record.paused_at is None
            else [("gateway calls", f"paused since {moment(record.paused_at)} UTC")]
        ),
        *(
            (label, own[number] or used[number] or "not set")
            for number, label in enumerate(("gateway URL", "Merchant API URL", "user name"))
        ),
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


def moment(at: datetime) -> str:
    """Return a time for people."""
    return f"{at:%Y-%m-%d %H:%M:%S}"


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

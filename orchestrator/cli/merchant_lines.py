"""Merchants as commands print them: lines for people, and JSON for programs; no secret."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
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


def json_of(document: object) -> str:
    """Return a document as JSON."""
    return msgspec.json.encode(document).decode()


def moment(at: datetime) -> str:
    """Return a time for people."""
    return f"{at:%Y-%m-%d %H:%M:%S}"

"""Merchants as an operator sees them: what is set in the row of each, and no secret."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import text

from orchestrator.crypto import EncryptionError
from orchestrator.store import merchant_accounts as accounts
from orchestrator.store.columns import record
from orchestrator.store.merchant_fields import GatewayNotAllowed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from sqlalchemy import Row

    from orchestrator.crypto import Encryptor
    from orchestrator.gateway.client import Account
    from orchestrator.settings import Settings
    from orchestrator.store.database import Database

Status = Literal["enabled", "disabled", "unusable"]

_PAGE = text(f"""
    SELECT {accounts.COLUMNS}, m.created_at,
           (SELECT coalesce(max(sequence), 0) FROM merchant_changes c WHERE c.merchant_id = m.id)::int4 AS changes,
           (SELECT count(*) FROM webhook_endpoints w WHERE w.merchant_id = m.id AND w.deleted_at IS NULL)::int4 AS webhooks
      FROM {accounts.TABLES}
     WHERE (CAST(:name AS text) IS NULL OR m.name = :name) AND (CAST(:after AS text) IS NULL OR m.name > :after)
     ORDER BY m.name LIMIT :most
""")  # noqa: S608 - made of our own words


@dataclass(frozen=True, slots=True, kw_only=True)
class MerchantRecord:
    """One merchant. `gateway_url`, `merchant_api_url` and `username` are those of the row; null: those of the
    settings, and so is the password unless `own_password`. `problem`: why an unusable merchant cannot be
    served. `callback_secrets` are those that are valid without an end, `retired_until` the ends of the
    others. `account` is what calls are made with; None where the merchant is unusable.
    """

    id: int
    name: str
    status: Status
    problem: str | None
    gateway_url: str | None
    merchant_api_url: str | None
    username: str | None
    own_password: bool
    callback_secrets: int
    retired_until: tuple[datetime, ...]
    policies: Mapping[str, Any]
    webhooks: int
    changes: int
    created_at: datetime
    disabled_at: datetime | None
    paused_at: datetime | None
    account: Account | None


async def page(
    db: Database, encryptor: Encryptor, settings: Settings, *, after: str | None = None, limit: int
) -> list[MerchantRecord]:
    """Return merchants by name, at most `limit`; `after`: the name of the last one of the previous page."""
    rows = await db.read(_PAGE, {"name": None, "after": after, "most": limit})
    return [_record(row, encryptor, settings) for row in rows]


async def by_name(db: Database, encryptor: Encryptor, settings: Settings, name: str) -> MerchantRecord | None:
    rows = await db.read(_PAGE, {"name": name, "after": None, "most": 1})
    return _record(rows[0], encryptor, settings) if rows else None


def _record(row: Row[Any], encryptor: Encryptor, settings: Settings) -> MerchantRecord:
    problem = account = None
    policies: dict[str, Any] = {}
    secrets, ends = 0, list[float]()
    try:
        merchant = accounts.opened(encryptor, row, settings)
        account, policies = merchant.account, asdict(merchant.policies)
        secrets = len(accounts.current_secrets(encryptor, row, settings))
        ends = [secret.until for secret in accounts.retired_secrets(encryptor, row)]
    except (EncryptionError, GatewayNotAllowed) as error:
        problem = str(error)
    status: Status = "disabled" if row.disabled_at is not None else "enabled"
    return record(
        MerchantRecord,
        row,
        status=status if problem is None else "unusable",
        problem=problem,
        gateway_url=row.gateway_url or None,
        username=row.username or None,
        own_password=row.password is not None,
        callback_secrets=secrets,
        retired_until=tuple(sorted(accounts.moment(end) for end in ends)),
        policies=policies,
        account=account,
    )

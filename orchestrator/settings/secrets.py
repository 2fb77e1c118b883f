"""Which process needs which of the settings that are secret."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_GATEWAY: Final = frozenset({"gateway_username", "gateway_password", "gateway_secrets"})
SECRETS: Final[Mapping[str, frozenset[str]]] = {
    "api": frozenset({"database_url", "broker_url", "redis_url", "secret_keys", "jwt_secrets", "gateway_secrets", "console_oidc_client_secret", "metrics_token"}),
    "worker": frozenset({"database_url", "broker_url", "redis_url", "secret_keys", "jwt_secrets", "gateway_username", "gateway_password"}),
    "scheduler": frozenset({"database_url", "broker_url"}),
    "deliverer": frozenset({"database_url", "broker_url", "secret_keys"}),
    "sandbox": _GATEWAY,
    "shop": frozenset({"jwt_secrets"}),
    "migrate": frozenset({"migration_url", "secret_keys"}),
}  # fmt: skip
"""The settings with a secret that each process needs, and the only such settings it should be given."""
SECRET: Final = frozenset().union(*SECRETS.values())

"""The generated secrets of one installation, in `keys.json` of its data directory (mode 0600).

Made once, at the first start, and never changed: what they encrypted must decrypt at the next start. A
setting takes precedence over the key of the same name. The gateway's credentials here are those of the
sandbox and are given to no other gateway.
"""

from __future__ import annotations

import base64
import secrets
from typing import TYPE_CHECKING, Final

import msgspec

from orchestrator.devkit.errors import UpFailed
from orchestrator.devkit.local.servers.files import kept, private

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.settings import Settings

NAME: Final = "keys.json"


class Keys(msgspec.Struct, rename="camel", frozen=True):
    """What is generated where no setting says otherwise."""

    secret_keys: tuple[str, ...]
    jwt_secrets: tuple[str, ...]
    gateway_username: str
    gateway_password: str
    gateway_secrets: tuple[str, ...]

    def __repr__(self) -> str:
        """Hide every secret."""
        return "Keys(...)"

    def missing_from(self, settings: Settings, *, sandbox: bool) -> dict[str, object]:
        """Return the settings that are not set and these keys have; the gateway's for the sandbox."""
        names = ["secret_keys", "jwt_secrets"]
        if sandbox:
            names += ["gateway_username", "gateway_password", "gateway_secrets"]
        return {name: getattr(self, name) for name in names if not getattr(settings, name)}


def keys_of(data_dir: Path) -> Keys | None:
    """Return the keys of a data directory, or None if it has none; `UpFailed` if they cannot be read."""
    path = data_dir / NAME
    try:
        return None if (raw := kept(path)) is None else msgspec.json.decode(raw, type=Keys)
    except msgspec.DecodeError as error:
        raise UpFailed(
            f"{path} is damaged ({error}): restore it, what it sealed opens with no other keys"
        ) from error


def generated(data_dir: Path) -> Keys:
    """Return the keys of a data directory, made now if it has none."""
    known = keys_of(data_dir)
    if known is not None:
        return known
    made = Keys(
        secret_keys=(base64.b64encode(secrets.token_bytes(32)).decode(),),
        jwt_secrets=(secrets.token_urlsafe(36),),
        gateway_username="sandbox",
        gateway_password=secrets.token_urlsafe(18),
        # A secret that signs callbacks, and a secret for their checksums.
        gateway_secrets=(secrets.token_urlsafe(24), secrets.token_urlsafe(24)),
    )
    private(data_dir / NAME, msgspec.json.format(msgspec.json.encode(made), indent=2))
    return made

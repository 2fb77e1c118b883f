"""The settings of one sandbox: callers, signatures, store.

Frozen; read by every module and changed by none. Secrets never appear in its printed form. Times that the
vendor does not document (of the browser's callback, of hanging calls) are fields with a default.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from orchestrator.devkit.sandbox.methods import METHODS, Method

if TYPE_CHECKING:
    from pathlib import Path


def is_loopback(host: str) -> bool:
    """Say whether a host of a URL is this machine, by its text alone."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def ledger_proof(control_token: str, order_id: str) -> str:
    """Return what opens the ledger of one order to a browser, made with the token and without showing it."""
    return hmac.digest(control_token.encode(), f"ledger {order_id}".encode(), "sha256").hex()


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxConfig:
    """The settings of one sandbox; durations in seconds."""

    username: str
    password: str = field(repr=False)
    callback_secrets: tuple[str, ...] = field(default=(), repr=False)
    terminal_secret: str = field(default="", repr=False)
    control_token: str = field(default="", repr=False)
    """The token of the control API; empty: none, for a sandbox inside a test's own process."""
    callback_hosts: frozenset[str] = frozenset()
    """Hosts, beside loopback, that callbacks are sent to."""
    seed: int = 1
    state_file: Path | None = None
    token_seconds: int = 1800
    token_reuse_seconds: float = 0.0
    """The same token is given out again within this time: half the CPU per order."""
    notification_timeout: float = 5.0
    browser_timeout: float = 15.0
    hang_seconds: float = 60.0
    methods: tuple[Method, ...] = METHODS

    def may_call(self, url: str) -> bool:
        """Say whether callbacks are sent to a URL: to loopback and the known hosts alone."""
        try:
            parts = urlsplit(url)
            host = parts.hostname or ""
        except ValueError:
            return False
        return parts.scheme in {"http", "https"} and (host in self.callback_hosts or is_loopback(host))

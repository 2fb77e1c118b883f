"""What one sandbox is told: who may call it, how it signs, where it remembers.

Frozen; read by every room and changed by none. Secrets never appear in its printed form. Policies that the vendor does
not document (callback retries, the browser callback's timeout, the size of hanging calls) are fields with a default.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from orchestrator.sandbox.methods import METHODS, Method

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often a notification is tried; whether the real gateway retries at all is not documented (part 2.5)."""

    attempts: int = 1
    first_delay: float = 1.0
    factor: float = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxConfig:
    """The settings of one sandbox; durations in seconds."""

    username: str
    password: str = field(repr=False)
    callback_secrets: tuple[str, ...] = field(default=(), repr=False)
    terminal_secret: str = field(default="", repr=False)
    seed: int = 1
    state_file: Path | None = None
    token_seconds: int = 1800
    token_reuse_seconds: float = (
        0.0  # the same token again within this time: for benchmarks, half the CPU per order
    )
    callback_retry: RetryPolicy = RetryPolicy()
    notification_timeout: float = 5.0
    browser_timeout: float = 15.0
    hang_seconds: float = 60.0
    timezone: str = "UTC"
    shop: str = "Sandbox Shop"
    methods: tuple[Method, ...] = METHODS

    @property
    def zone(self) -> dt.tzinfo:
        """The zone of the dates in XML answers, which carry no offset."""
        return dt.UTC if self.timezone == "UTC" else ZoneInfo(self.timezone)

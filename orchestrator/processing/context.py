"""What the steps of all checkouts of a process share.

It depends neither on a checkout nor on the processor.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from orchestrator.crypto import Encryptor
    from orchestrator.gateway.client import Gateway
    from orchestrator.settings import Settings
    from orchestrator.store.checkouts import Transitions
    from orchestrator.store.database import Database
    from orchestrator.store.merchants import Merchants

CREDENTIALS_PAUSE: Final = 60.0
"""Seconds for which no call is made to a merchant's gateway after it refused the merchant's credentials."""


class CredentialsCircuit:
    """Merchants, by id, whose credentials were refused, and until when (monotonic) no call is
    made for them.
    """

    def __init__(self) -> None:
        self._until: dict[int, float] = {}

    def open(self, merchant_id: int) -> None:
        self._until[merchant_id] = time.monotonic() + CREDENTIALS_PAUSE

    def close(self, merchant_id: int) -> None:
        self._until.pop(merchant_id, None)

    def left(self, merchant_id: int) -> float:
        """Return the seconds until calls are made again; 0 or less where they are made."""
        return self._until.get(merchant_id, 0.0) - time.monotonic()


@dataclass(slots=True, kw_only=True)
class StepContext:
    """The settings, and the clients of the steps: Postgres, the gateway, and the batch writer of moves."""

    settings: Settings
    db: Database
    encryptor: Encryptor
    gateway: Gateway
    transitions: Transitions
    merchants: Merchants
    circuit: CredentialsCircuit = field(default_factory=CredentialsCircuit)

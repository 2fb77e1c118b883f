"""What the steps of all checkouts of a process share.

It depends neither on a checkout nor on the processor.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from orchestrator.crypto import Encryptor
    from orchestrator.gateway.client import Account, Gateway
    from orchestrator.settings import Settings
    from orchestrator.store.checkouts import Transitions
    from orchestrator.store.database import Database
    from orchestrator.store.merchants import Merchants

CREDENTIALS_PAUSE: Final = 60.0
"""Seconds for which no call is made to a merchant's gateway after it refused the merchant's credentials."""


class CredentialsCircuit:
    """Merchants, by id, whose credentials were refused: which account, and until when (monotonic) no call is
    made with it. Other credentials are tried at once.
    """

    def __init__(self) -> None:
        self._refused: dict[int, tuple[Account, float]] = {}

    def open(self, merchant_id: int, account: Account) -> None:
        self._refused[merchant_id] = account, time.monotonic() + CREDENTIALS_PAUSE

    def close(self, merchant_id: int) -> None:
        self._refused.pop(merchant_id, None)

    def left(self, merchant_id: int, account: Account) -> float:
        """Return the seconds until calls are made again; 0 or less where they are made."""
        refused, until = self._refused.get(merchant_id, (None, 0.0))
        return until - time.monotonic() if refused == account else 0.0


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

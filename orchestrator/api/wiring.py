"""What the endpoints work with: one object, made once on the event loop that serves."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from orchestrator import log
from orchestrator.access import Caller, Doorkeeper
from orchestrator.api.problems import Refusal
from orchestrator.inbox import Strays

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID

    from fastapi import Request

    from orchestrator.db import Database
    from orchestrator.inbox import Callbacks, Intents
    from orchestrator.merchants import Merchant, Merchants
    from orchestrator.settings import Settings
    from orchestrator.vault import Vault

DATABASE_PATIENCE = 15.0
"""Seconds that a request waits for Postgres in all, before it answers 503."""
CLOSING_PATIENCE = 5.0
"""Seconds that writes which are still waiting get when the process ends, or a fifth of SHUTDOWN_TIMEOUT where that is less."""

_log = log.get(__name__)


class Doorbell(Protocol):
    """Publishes hints without making a request wait. A lost hint costs delay only."""

    @property
    def trouble(self) -> str | None:
        """Say why hints do not reach the broker; None while they do."""

    def ring(
        self,
        ids: Iterable[UUID],
        *,
        queue: Literal["checkouts", "callbacks"] = "checkouts",
        whose: int | None = None,
    ) -> None:
        """Hint at checkouts of a merchant; returns at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything that an endpoint needs.

    `db` answers merchants' questions and takes their commands. Intents, callbacks, merchants and health go through connections
    of their own (`inlet`): however long a listing takes, none of them waits for it.
    """

    settings: Settings
    db: Database
    inlet: Database
    vault: Vault
    intents: Intents
    callbacks: Callbacks
    merchants: Merchants
    doorbell: Doorbell
    doorkeeper: Doorkeeper = field(init=False)
    strays: Strays = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "doorkeeper", Doorkeeper(self.settings))
        strays = Strays(self.inlet, self.vault, self.callbacks, grace=self.settings.hint_grace)
        object.__setattr__(self, "strays", strays)

    async def close(self) -> None:
        """Write what has gathered, then let go of Postgres; what it does not take in time was never acknowledged."""
        patience = min(CLOSING_PATIENCE, self.settings.shutdown_timeout / 5)
        try:
            async with asyncio.timeout(patience):
                await self.strays.close()
                await asyncio.gather(self.intents.close(), self.callbacks.close())
        except TimeoutError:
            _log.warning("closing_cut_short", seconds=patience)
        finally:
            await asyncio.gather(self.db.close(), self.inlet.close())


def of(request: Request) -> Services:
    """Return the services of the app that serves this request."""
    services: Services = request.app.state.services
    return services


async def admit(request: Request, scope: str) -> tuple[Caller, Merchant]:
    """Return who calls and for which merchant; 401 or 403 with the reason otherwise."""
    services = of(request)
    caller = services.doorkeeper.admit(request.headers.get("authorization"))
    caller.need(scope)
    async with asyncio.timeout(DATABASE_PATIENCE):
        merchant = await services.merchants.named(caller.merchant)
    if merchant is None:
        raise Refusal(
            403, f"the token's merchant {caller.merchant!r} does not exist here", kind="unknown-merchant"
        )
    if merchant.disabled:
        raise Refusal(
            403,
            f"merchant {merchant.name!r} is disabled: ask the operator to enable it",
            kind="merchant-disabled",
        )
    return caller, merchant

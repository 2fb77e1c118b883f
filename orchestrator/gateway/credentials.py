"""Whether a gateway accepts a merchant's credentials, by the call that fetches a token.

The call is bounded by the settings of gateway calls, and begins nothing at the gateway.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Literal

from orchestrator.gateway.client import Gateway
from orchestrator.gateway.outcomes import FINAL_STATUSES, Done, Refused, Unauthorized

if TYPE_CHECKING:
    from orchestrator.gateway.client import Account
    from orchestrator.settings import Settings

Result = Literal["accepted", "refused", "unavailable"]


@dataclass(frozen=True, slots=True)
class CredentialsCheck:
    """`unavailable`: nothing was said of the credentials, and `reason` says why. `reason` is empty where they
    were accepted, and holds neither a secret nor a text of the gateway.
    """

    result: Result
    reason: str
    milliseconds: int


async def check(settings: Settings, account: Account) -> CredentialsCheck:
    if not account.url:
        return CredentialsCheck("unavailable", "The merchant has no gateway URL.", 0)
    began = time.monotonic()
    async with Gateway(settings) as gateway:
        outcome = await gateway.authenticate(account)
    took = round((time.monotonic() - began) * 1000)
    match outcome:
        case Done():
            return CredentialsCheck("accepted", "", took)
        case Refused() if outcome.status not in FINAL_STATUSES | {HTTPStatus.FORBIDDEN}:
            # A proxy, a firewall or a wrong URL: nothing was said of the credentials.
            return CredentialsCheck("unavailable", outcome.reason, took)
        case Refused() | Unauthorized():
            return CredentialsCheck("refused", outcome.reason, took)
        case _:
            return CredentialsCheck("unavailable", outcome.reason, took)

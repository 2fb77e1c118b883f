"""What `doctor` says of gateways: a login that is refused, a gateway that is down, and open circuits, each in
words of its own.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from orchestrator import log
from orchestrator.cli.merchant_changes import merchants_of
from orchestrator.errors import OrchestratorError
from orchestrator.gateway.client import Gateway, gateway_of
from orchestrator.gateway.limits import shared_state
from orchestrator.gateway.outcomes import FINAL_STATUSES, Busy, Done, NotSent, Refused, Unauthorized
from orchestrator.text import duration

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from orchestrator.cli.attached import Installation
    from orchestrator.cli.doctor import Report
    from orchestrator.gateway.client import Account
    from orchestrator.gateway.outcomes import Outcome
    from orchestrator.settings import Settings
    from orchestrator.store.readiness import Process

MOST: Final = 50
"""Merchants whose gateways are called."""
REDIS_TIMEOUT: Final = 2.0


async def logins(here: Installation, processes: Sequence[Process], report: Report) -> None:
    """Log in at the gateway of each merchant, and say what came of it."""
    try:
        everyone = await merchants_of(here).everyone()
    except OrchestratorError as error:
        report.ill("merchants", str(error))
        return
    told = failing(processes)
    serving = [merchant for merchant in everyone if not merchant.disabled]
    async with Gateway(here.settings) as gateway:
        for merchant in serving[:MOST]:
            if not merchant.account.url:
                report.ill(
                    "gateway", f"merchant {merchant.name} has no gateway: set ORCHESTRATOR_GATEWAY_URL"
                )
                continue
            began = time.monotonic()
            outcome = await gateway.authenticate(merchant.account)
            if isinstance(outcome, Done):
                took = (time.monotonic() - began) * 1000
                report.well(
                    "gateway",
                    f"the credentials of merchant {merchant.name} are accepted by {merchant.account.url} in {took:.0f} ms",
                )
            else:
                report.ill("gateway", sentence(merchant.name, merchant.account, outcome, told))
    if len(serving) > MOST:
        report.well(
            "gateway",
            f"{len(serving) - MOST} more merchants were not called: `orchestrator merchants check NAME`",
        )


def sentence(merchant: str, account: Account, outcome: Outcome[object], told: Mapping[str, Failing]) -> str:
    """Say what a login that failed means, and what to do: the credentials, the address, or the gateway."""
    assert not isinstance(outcome, Done)  # noqa: S101 - the caller's
    url, why = account.url, outcome.reason.rstrip(".")
    match outcome:
        case Unauthorized():
            return f"the credentials of merchant {merchant} are refused by {url} ({why}): check the user name and the password"
        case Refused() if outcome.status in FINAL_STATUSES | {403}:
            return (
                f"the login of merchant {merchant} is refused by {url} ({why}), and the gateway itself works: check the user name, "
                "the password, and whether the account may use the Checkout API"
            )
        case Refused():
            return (
                f"no gateway answers merchant {merchant} at {url} ({why}): check the URL; a proxy or a firewall may answer instead. "
                "That says nothing about user name and password"
            )
        case Busy():
            return f"the gateway of merchant {merchant} was not called at {url} ({why})"
        case _:
            known = told.get(gateway_of(url))
            since = f", since {known.moment}" if known is not None else ""
            cause = (
                "it is down, or the way to it is broken"
                if isinstance(outcome, NotSent)
                else "ask its support"
            )
            return (
                f"the gateway of merchant {merchant} is unavailable at {url} ({why}{since}): {cause}; "
                "user name and password are not the cause. Orders wait and continue by themselves"
            )


class Failing:
    """What a live worker says of a gateway whose circuit is open: since when, why, and for how long."""

    def __init__(self, told: Mapping[str, object], age: float) -> None:
        since, left = told.get("since"), told.get("seconds")
        self.ago = (float(since) if isinstance(since, int | float) else 0.0) + age
        self.left = max((float(left) if isinstance(left, int | float) else 0.0) - age, 0.0)
        self.reason = log.scrub(str(told.get("reason", ""))).rstrip(".")

    @property
    def moment(self) -> str:
        """When the first call failed, in UTC."""
        return f"{datetime.now(UTC) - timedelta(seconds=self.ago):%Y-%m-%dT%H:%M:%SZ}"


def failing(processes: Sequence[Process]) -> dict[str, Failing]:
    """Return by gateway what live workers say of open circuits; of several the worker that saw it first."""
    found: dict[str, Failing] = {}
    for process in processes:
        for told in process.progress.get("circuits", ()) if process.alive else ():
            mine = Failing(told, process.age)
            name = str(told.get("gateway", ""))
            if name not in found or mine.ago > found[name].ago:
                found[name] = mine
    return found


def circuits(shared: dict[str, float] | str | None, processes: Sequence[Process], report: Report) -> None:
    """Name the gateways whose circuit is open, with the last failure and when calls start again.

    The times are those that workers share in Redis (`shared_circuits`); where that is away, those of each
    worker.
    """
    told = failing(processes)
    alone = {name: known.left for name, known in told.items()}
    if isinstance(shared, str):
        report.ill(
            "redis",
            f"does not answer ({shared}): until it does, workers do not share what they know of gateways",
        )
    elif shared is not None:
        alone = shared
    for name, seconds in alone.items():
        gateway, _, merchant = name.partition(" ")
        if merchant:
            why = f"it told merchant {merchant} to come later"
        elif gateway in told:
            known = told[gateway]
            why = f"its calls fail since {known.moment}, the last one because of this: {known.reason}"
        else:
            why = "its calls failed one after the other"
        report.ill("gateway", f"{gateway} is not called for another {duration(seconds)}: {why}")


async def shared_circuits(settings: Settings) -> dict[str, float] | str | None:
    """Return the gateways that workers do not call, with the seconds for which, as they share it in Redis; or
    why Redis does not answer; None without one.
    """
    if settings.redis is None:
        return None
    try:
        async with asyncio.timeout(REDIS_TIMEOUT):
            return await shared_state.circuits_open(settings.redis)
    except Exception as error:  # noqa: BLE001 - each client of Redis has errors of its own
        return log.scrub(str(error)) or type(error).__name__

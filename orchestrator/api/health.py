"""Health: whether the process is alive, whether it can do its work, and how many workers the waiting work
calls for (`/autoscale`).

Ready means database and schema: the database takes a write, and the schema is the one that this code needs. A
broker, workers or a scheduler that are away make it degraded, and still ready: callbacks must be accepted,
and they wait in Postgres. So do a right that the database refuses, new connections that it refuses, and
lookups that wait for long for their merchant's budget. However many requests come, the database is queried
once in a second, and once in five for the expensive checks.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from typing import TYPE_CHECKING, Final

from fastapi import Request  # noqa: TC002 - read at run time
from starlette.responses import Response  # noqa: TC002 - as above

from orchestrator import log
from orchestrator.api.contract import answers
from orchestrator.api.contract.autoscale import Autoscale
from orchestrator.api.contract.values import like
from orchestrator.api.dependencies import admit_any, in_time
from orchestrator.api.problems import answer
from orchestrator.processing import lookup_budget
from orchestrator.store import due_work, readiness, schema, webhooks
from orchestrator.store.database import is_away

if TYPE_CHECKING:
    from orchestrator.api.dependencies import Services

_log = log.get(__name__)

AUTOSCALE: Final = "/autoscale"
AUTOSCALE_SCOPE: Final = "ops"
TIMEOUT: Final = 2.0
"""Seconds that Postgres gets to take the probe and to answer."""
FRESH: Final = 1.0
"""Seconds for which a result is used again without a query."""
SELDOM: Final = 5.0
"""The same for refusals and lookups."""


async def alive() -> Response:
    """Say that the process answers."""
    return answer(answers.Health(status="alive"))


async def ready(request: Request) -> Response:
    """Say whether requests can be served, and what is missing."""
    broken, degraded = await request.app.state.health.check()
    if broken is not None:
        return answer(answers.Health(status="unavailable", problems=[broken]), 503, {"Retry-After": "5"})
    return answer(answers.Health(status="degraded" if degraded else "ready", problems=degraded))


async def show_demand(request: Request) -> Response:
    """Say how many workers there should be: by checkouts that are due and that no worker has taken. The
    operator's token counts those of all merchants, a merchant's token its own.
    """
    services, merchant = await admit_any(request, AUTOSCALE_SCOPE)
    merchant_id = None if merchant is None else merchant.id
    found = await in_time(
        due_work.demand(services.inlet, grace=services.settings.hint_grace, merchant_id=merchant_id)
    )
    return answer(like(Autoscale, found, oldest_due_seconds=round(max(found.oldest, 0.0), 1)))


class Health:
    """The last results, and the checks; one for each process."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._name = f"probe:{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._found: tuple[str | None, list[str]] = (None, [])
        self._at = self._seldom_at = float("-inf")
        self._seldom: list[str] = []
        self._looking = asyncio.Lock()

    async def check(self) -> tuple[str | None, list[str]]:
        """Return why nothing can be served (or None), and what else is wrong."""
        async with self._looking:
            if time.monotonic() - self._at >= FRESH:
                self._found = await self._check()
                self._at = time.monotonic()
        return self._found

    async def _check(self) -> tuple[str | None, list[str]]:
        services = self._services
        try:
            async with asyncio.timeout(TIMEOUT):
                other = schema.difference(await schema.current(services.inlet))
                if other is not None:
                    return other, []
                await readiness.probe(services.inlet, self._name)
                found = await readiness.processes(services.inlet)
        except Exception as error:
            if not is_away(error):
                raise
            why = readiness.reason(error)
            _log.warning("not_ready", reason=why, **log.cause(error))
            return why, []
        if time.monotonic() - self._seldom_at >= SELDOM:
            self._seldom = await self._check_more()
            self._seldom_at = time.monotonic()
        degraded = readiness.stalled(
            [services.intents.writes, services.callbacks.writes, services.unmatched.writes]
        )
        if (trouble := services.hint_publisher.trouble) is not None:
            degraded.append(
                f"the broker takes no hints ({trouble}): checkouts wait for the workers' own sweep"
            )
        return None, degraded + readiness.troubles(found) + self._seldom

    async def _check_more(self) -> list[str]:
        inlet = self._services.inlet
        try:
            async with asyncio.timeout(TIMEOUT):
                refused = await readiness.refusals(inlet)
                told = await webhooks.troubles(inlet, await readiness.processes(inlet))
                waiting = [queue.summary for queue in await lookup_budget.queues(inlet) if queue.overdue]
                return refused + waiting + told
        except Exception as error:
            if not is_away(error):
                raise
            return [readiness.reason(error)]

"""Health: is the process alive, and can it do its work.

Ready means database and schema. A broker or workers that are away make it degraded, and still ready: callbacks must be taken, and
what is taken waits for them.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from fastapi import Request  # noqa: TC002 - read at run time
from starlette.responses import Response  # noqa: TC002 - as above

from orchestrator import log, schema
from orchestrator.api import reads, wiring
from orchestrator.api.problems import answer
from orchestrator.db import is_away

if TYPE_CHECKING:
    from orchestrator.api.wiring import Services

_log = log.get(__name__)

PATIENCE: Final = 2.0
SEEN_WITHIN: Final = 45.0
"""Seconds since the last sign of life after which a worker counts as away; they give one every ten."""


async def alive() -> Response:
    """Say that the process answers."""
    return answer({"status": "alive"})


async def ready(request: Request) -> Response:
    """Say whether requests can be served, and what is missing."""
    known = wiring.of(request)
    broken, degraded = await _look(known)
    if broken is not None:
        return answer({"status": "unavailable", "problems": [broken]}, 503, {"Retry-After": "5"})
    return answer({"status": "degraded" if degraded else "ready", "problems": degraded})


async def _look(known: Services) -> tuple[str | None, list[str]]:
    """Return why nothing can be served (or None), and what else is away."""
    try:
        async with asyncio.timeout(PATIENCE):
            revision = await schema.current(known.inlet)
            if revision != known.schema:
                has = f"has schema {revision}" if revision else "has no schema"
                return f"the database {has} and needs {known.schema}: run `orchestrator migrate`", []
            workers = await reads.workers_alive(known.inlet, within=SEEN_WITHIN)
    except Exception as error:
        if not is_away(error):
            raise
        _log.warning("not_ready", **log.cause(error))
        return "the database is out of reach", []
    degraded = []
    if not known.doorbell.healthy:
        degraded.append("the broker is out of reach: checkouts wait for the workers' own sweep")
    if workers == 0:
        degraded.append("no worker is alive: checkouts and callbacks are stored, and wait")
    return None, degraded

"""`/autoscale`: how many workers the waiting work calls for, for what chooses their number.

A token of the operator with the scope `ops` is told of all merchants, a token of a merchant of its own
checkouts alone.
"""

from __future__ import annotations

import asyncio
from typing import Final

from fastapi import Request  # noqa: TC002 - read at run time
from starlette.responses import Response  # noqa: TC002 - as above

from orchestrator.api import dependencies
from orchestrator.api.contract.autoscale import Autoscale
from orchestrator.api.problems import answer
from orchestrator.store import due_work

PATH: Final = "/autoscale"
SCOPE: Final = "ops"


async def show(request: Request) -> Response:
    """Say how many workers there should be: by checkouts that are due and that no worker has taken. The
    operator's token counts those of all merchants, a merchant's token its own.
    """
    services = dependencies.of(request)
    merchant = await dependencies.admit_any(request, SCOPE)
    async with asyncio.timeout(dependencies.DATABASE_TIMEOUT):
        found = await due_work.demand(
            services.inlet,
            grace=services.settings.hint_grace,
            merchant_id=None if merchant is None else merchant.id,
        )
    return answer(
        Autoscale(
            workers=found.workers, waiting=found.waiting, oldest_due_seconds=round(max(found.oldest, 0.0), 1)
        )
    )

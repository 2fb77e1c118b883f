"""How far a command is: what became of it, and of the money operations that it began."""

from __future__ import annotations

import asyncio
from uuid import UUID

from fastapi import Request  # noqa: TC002 - FastAPI reads the annotations of what it calls
from starlette.responses import Response  # noqa: TC002 - as above

from orchestrator.api import dependencies, reads
from orchestrator.api.checkouts import LONGEST_SHOWN
from orchestrator.api.dependencies import DATABASE_TIMEOUT
from orchestrator.api.problems import Refusal, answer


async def show(request: Request, command_id: str) -> Response:
    """One command: how far it is, and what it came to."""
    services = dependencies.of(request)
    _, merchant = await dependencies.admit(request, "checkouts:read")
    try:
        number = UUID(command_id)
    except ValueError:
        raise _unknown(command_id) from None
    async with asyncio.timeout(DATABASE_TIMEOUT):
        found = await reads.command(services.db, merchant.id, number)
    if found is None:
        raise _unknown(command_id)
    return answer(found)


def _unknown(command_id: str) -> Refusal:
    shown = command_id if len(command_id) <= LONGEST_SHOWN else command_id[:LONGEST_SHOWN] + "…"
    said = f"there is no command {shown!r} here: check the id and the merchant, or its checkout was archived"
    return Refusal(404, said, kind="unknown-command")

"""Intents of the queue `intents` that were refused: a merchant reads its own, with the reasons."""

from __future__ import annotations

import asyncio
from typing import Annotated, Final
from uuid import UUID  # noqa: TC003 - FastAPI reads the annotations of what it calls

from fastapi import Query, Request
from starlette.responses import Response  # noqa: TC002 - as above

from orchestrator import intents
from orchestrator.api import dependencies
from orchestrator.api.contract import answers
from orchestrator.api.dependencies import DATABASE_TIMEOUT
from orchestrator.api.problems import answer
from orchestrator.store.inbox import rejected

PATH: Final = "/v1/rejected-intents"


async def search(
    request: Request,
    order_id: Annotated[
        str | None,
        Query(alias="orderId", max_length=intents.LONGEST_ORDER, description="The shop's order number"),
    ] = None,
    cursor: Annotated[UUID | None, Query(description="`nextCursor` of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=answers.PAGE)] = 50,
) -> Response:
    """Refused intents of the merchant, the youngest first, page by page."""
    services = dependencies.of(request)
    _, merchant = await dependencies.admit(request, "checkouts:read")
    if order_id is not None and not intents.may_be_order(order_id):
        return answer(answers.RejectedIntentPage(rejected_intents=[], next_cursor=None))
    async with asyncio.timeout(DATABASE_TIMEOUT):
        rows = await rejected.page(
            services.db, merchant.id, order_ref=order_id, before=cursor, limit=limit + 1
        )
    found = [
        answers.RejectedIntent(
            id=row.id,
            message_id=row.message_id,
            order_id=row.order_ref,
            code=row.code,
            errors=tuple(
                answers.FieldProblem(field=problem.field, message=problem.message) for problem in row.problems
            ),
            rejected_at=row.created_at,
        )
        for row in rows[:limit]
    ]
    more = rows[limit - 1].id if len(rows) > limit else None
    return answer(answers.RejectedIntentPage(rejected_intents=found, next_cursor=more))

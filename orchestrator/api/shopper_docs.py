"""What the OpenAPI document says of the status and the stream of a checkout."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec

from orchestrator.api.contract.examples import EXAMPLES
from orchestrator.api.contract.shopper import CheckoutStatus
from orchestrator.api.docs import LONGEST_HEADER, described, described_problems, parameter, secured
from orchestrator.api.shopper import SCOPE
from orchestrator.api.status_streams import MEDIA_TYPE, RETRY


def shown_status() -> dict[str, Any]:
    """Return FastAPI's description of the route that shows a checkout to its shopper."""
    told = described(CheckoutStatus)
    told["openapi_extra"]["security"] = [{"clientToken": []}, *secured(SCOPE)]
    told["responses"] |= described_problems(
        unknown_checkout=(HTTPStatus.NOT_FOUND, "The merchant has no such checkout")
    )
    return {**told, "summary": "Show a checkout to its shopper's browser"}


def streamed_status() -> dict[str, Any]:
    """Return FastAPI's description of the stream."""
    told = shown_status()
    status = EXAMPLES["CheckoutStatus"]
    shown = "".join(
        f"{line}\n"
        for line in (
            *(f"retry: {RETRY}", "", "id: 21bff5d5cef44ca7", "event: status"),
            *(
                f"data: {msgspec.json.encode(status).decode()}",
                "",
                "event: end",
                'data: {"reason":"final"}',
                "",
            ),
        )
    )
    told["responses"] = {
        **told["responses"],
        200: {"description": "Server-sent events", "content": {MEDIA_TYPE: {"example": shown}}},
        204: {"description": "The browser has the final state already: it need not connect again"},
        **described_problems(
            too_many_streams=(
                HTTPStatus.TOO_MANY_REQUESTS,
                "As many streams of the checkout or the merchant are open as may, or a limit of requests is reached",
            ),
            database_away=(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "Postgres is away, or as many streams are open as may: ask /status, or again later",
            ),
        ),
    }
    told["openapi_extra"]["parameters"] = [
        parameter(
            "Last-Event-ID",
            "header",
            "The `id` of the last event: the same is not sent again",
            maxLength=LONGEST_HEADER,
        )
    ]
    return {**told, "summary": "Follow a checkout as server-sent events"}

"""What the OpenAPI document says of the status and the stream of a checkout."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from orchestrator.api.contract.shopper import CheckoutStatus
from orchestrator.api.docs import described, described_problems, parameter, secured
from orchestrator.api.shopper import SCOPE
from orchestrator.api.status_streams import MEDIA_TYPE


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
    text = {"type": "string", "maxLength": 100_000_000}
    told["responses"] = {
        **told["responses"],
        200: {"description": "Server-sent events", "content": {MEDIA_TYPE: {"schema": text}}},
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
            "Last-Event-ID", "header", "The `id` of the last event: the same is not sent again", maxLength=100
        )
    ]
    return {**told, "summary": "Follow a checkout as server-sent events"}

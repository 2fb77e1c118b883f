"""What the OpenAPI document says of the addresses of a shopper's browser."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

from starlette.responses import Response

from orchestrator.api.contract.answers import Session
from orchestrator.api.contract.shopper import CheckoutStatus
from orchestrator.api.docs import LONGEST_HEADER, described, described_problems, parameter, secured
from orchestrator.api.shopper import SCOPE
from orchestrator.api.status_streams import MEDIA_TYPE

_EVENTS: Final = (
    "Server-sent events: `status` with a `CheckoutStatus` as data and its digest as id, at once and at each change; "
    '`end` with `{"reason": "final"}`, `lifetime` or `shutdown` as the last'
)


def shown_status() -> dict[str, Any]:
    """Return FastAPI's description of the route that shows a checkout to its shopper."""
    told = described(CheckoutStatus)
    told["openapi_extra"]["security"] = [{"clientToken": []}, *secured(SCOPE)]
    told["responses"] |= described_problems(
        unknown_checkout=(HTTPStatus.NOT_FOUND, "The merchant has no such checkout")
    )
    return {**told, "summary": "Show a checkout to its shopper's browser"}


def shown_session() -> dict[str, Any]:
    """Return FastAPI's description of the route that gives the session to the shopper's browser."""
    told = described(Session)
    told["openapi_extra"]["security"] = [{"clientToken": []}, *secured(SCOPE)]
    told["responses"] |= described_problems(
        unknown_checkout=(HTTPStatus.NOT_FOUND, "The merchant has no such checkout"),
        not_payable=(HTTPStatus.CONFLICT, "The checkout is not offered, or has ended"),
    )
    return {**told, "summary": "Show the session with which the shopper's browser pays"}


def streamed_status() -> dict[str, Any]:
    """Return FastAPI's description of the stream."""
    told = shown_status()
    told["responses"] = {
        **told["responses"],
        200: {"description": _EVENTS, "content": {MEDIA_TYPE: {}}},
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
    # Of the class alone FastAPI would say that it also answers JSON.
    return {**told, "summary": "Follow a checkout as server-sent events", "response_class": Response}

"""What the OpenAPI document says of webhooks."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from orchestrator.api.contract import answers, ref, webhooks
from orchestrator.api.docs import KEY_BOUNDS, described, described_problems, json_body, parameter


def of_webhook(
    shape: type | None,
    about: str,
    scopes: tuple[str, ...],
    *,
    status: int = 200,
    body: type | None = None,
    required: bool = True,
) -> dict[str, Any]:
    """Return FastAPI's description of a route of a webhook; `scopes`: one of them is needed."""
    described_body = None if body is None else json_body(ref(body), required=required)
    told = described(shape or answers.Health, about, status, described_body, scopes=scopes)
    if shape is None:
        told["responses"] = {status: {"description": about}}
    told["responses"] |= described_problems(
        unknown_webhook=(HTTPStatus.NOT_FOUND, "The merchant has no such webhook"),
        **(
            {} if body is None else {"invalid_webhook": (HTTPStatus.UNPROCESSABLE_ENTITY, "A field is wrong")}
        ),
    )
    return told


def keyed(told: dict[str, Any]) -> dict[str, Any]:
    """Add to the description of a route that it takes an Idempotency-Key."""
    key = parameter(
        "Idempotency-Key", "header", "The same request with the same key has the same answer", **KEY_BOUNDS
    )
    told["openapi_extra"]["parameters"] = [key]
    busy = described_problems(
        request_in_progress=(
            HTTPStatus.CONFLICT,
            "A request with this Idempotency-Key is being processed, or its answer cannot be read any more",
        )
    )
    told["responses"] = {**busy, **told["responses"]}
    return told


def added_webhook(scopes: tuple[str, ...]) -> dict[str, Any]:
    """Return FastAPI's description of the route that adds a webhook."""
    told = of_webhook(
        webhooks.NewWebhook,
        "Added; the secret of a webhook is shown this once",
        scopes,
        status=201,
        body=webhooks.AddWebhook,
    )
    del told["responses"]["404"]
    told["responses"] |= described_problems(
        too_many_webhooks=(
            HTTPStatus.CONFLICT,
            "The merchant has as many as it may, or a request with this Idempotency-Key is being processed",
        )
    )
    return told


def listed_webhooks(scopes: tuple[str, ...]) -> dict[str, Any]:
    """Return FastAPI's description of the route that lists webhooks."""
    told = of_webhook(webhooks.WebhookPage, "Found", scopes)
    del told["responses"]["404"]
    return told


def tested_webhook(scopes: tuple[str, ...]) -> dict[str, Any]:
    """Return FastAPI's description of the route that sends a test event."""
    told = of_webhook(webhooks.TestSent, "It will be sent once", scopes, status=202)
    told["responses"] |= described_problems(
        too_many_tests=(HTTPStatus.TOO_MANY_REQUESTS, "As many test events wait to be sent as may")
    )
    return told


def rotated_webhook(scopes: tuple[str, ...]) -> dict[str, Any]:
    """Return FastAPI's description of the route that makes a new secret."""
    told = of_webhook(
        webhooks.NewWebhook,
        "Replaced",
        scopes,
        body=webhooks.RotateSecret,
        required=False,
    )
    told["responses"] |= described_problems(
        no_secret=(
            HTTPStatus.CONFLICT,
            "A Celery task has no secret, or a request with this Idempotency-Key is being processed",
        )
    )
    return told


def replayed_delivery(scopes: tuple[str, ...]) -> dict[str, Any]:
    """Return FastAPI's description of the route that sends the event of one delivery again."""
    told = of_webhook(webhooks.Replayed, "It will be sent", scopes, status=202)
    told["responses"] |= described_problems(
        unknown_delivery=(HTTPStatus.NOT_FOUND, "The merchant has no such delivery"),
        event_gone=(
            HTTPStatus.GONE,
            "A test, or an event that the feed does not keep or the webhook does not want any more",
        ),
    )
    return told

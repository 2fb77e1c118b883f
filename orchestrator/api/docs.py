"""The OpenAPI document and the page that shows it; all assets are served from here, and the page loads
nothing from elsewhere.

FastAPI writes the document for the routes that it knows (`routes`); the bare ones are described here, and
shapes come from `contract`. The document is OpenAPI 3.1. The page shows the same as
OpenAPI 3.0, the newest version that the packaged Swagger UI supports.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, lru_cache
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from fastapi.openapi.utils import get_openapi
from starlette.responses import HTMLResponse, Response
from swagger_ui_bundle import swagger_ui_path

from orchestrator.api import contract
from orchestrator.api.contract import Schema, answers, bodies, ref
from orchestrator.api.contract.examples import EXAMPLES
from orchestrator.api.problems import TYPE, Refusal
from orchestrator.callback_urls import LONGEST
from orchestrator.store.merchant_fields import NAME

if TYPE_CHECKING:
    from fastapi import FastAPI, Request

Problems = Mapping[str, tuple[int, str]]
"""Problems that a call is answered with, by their kinds: status, and when that is."""

LONGEST_HEADER: Final = 100_000
"""More than a request's head may have: such a header is not bounded by itself."""
KEY_BOUNDS: Final[Schema] = {"pattern": r"^[\x21-\x7e]+$", "minLength": 1, "maxLength": 255}
_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Checkout orchestrator: API</title>
<link rel="icon" type="image/png" href="/docs/assets/favicon-32x32.png">
<link rel="stylesheet" href="/docs/assets/swagger-ui.css">
<style>
.swagger-ui .response-col_links { display: none }
@media (max-width: 640px) {
  .swagger-ui .opblock-tag, .swagger-ui .opblock .opblock-summary-control { flex-wrap: wrap }
  .swagger-ui .opblock-tag small { flex-basis: 100%; padding: 0 }
  .swagger-ui .opblock .opblock-summary-path { max-width: calc(100% - 7rem) }
  .swagger-ui .opblock .opblock-summary-description { flex-basis: 70%; padding: .3rem 0 0 .6rem }
  .swagger-ui .opblock .opblock-section-header { flex-wrap: wrap }
}
</style>
</head>
<body>
<div id="api"></div>
<script src="/docs/assets/swagger-ui-bundle.js"></script>
<script src="/docs/assets/start.js"></script>
</body>
</html>
"""
# The validator would send the document to another server.
_START: Final = b"""SwaggerUIBundle({url: "/docs/assets/openapi-3.0.json", dom_id: "#api", validatorUrl: null, deepLinking: true, defaultModelsExpandDepth: 0});
"""
_ASSETS: Final = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "favicon-32x32.png": "image/png",
}
_POLICY: Final = (
    "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"
)

_TAGS: Final = {
    "checkouts": "Orders handed over, and how each of them stands.",
    "commands": "Commands on a checkout. Each is stored, answered at once, and executed by the worker that holds the checkout; the "
    "result is shown at the `Location` of the answer, and among the checkout's `commands`.",
    "payments": "Payments as the gateway showed them, also those that belong to no order.",
    "events": "What happened to a merchant's checkouts, in a feed that is read from a position on.",
    "webhooks": "URLs of the merchant's that events are sent to, and what became of each delivery.",
    "merchants": "Merchants and their gateway accounts, for a token of the operator alone.",
    "callbacks": "For the gateway and for shoppers' browsers: signed addresses that the orchestrator hands out itself.",
    "health": "For probes and load balancers.",
}
"""In the order of the page."""

_WRONG: Final = {
    "invalid-intent": ("order.amount.value", "must be more than 0: there is nothing to pay otherwise"),
    "invalid-command": ("amount", "must be more than 0, and 0.00 is not"),
    "invalid-request": ("order", "is not a known parameter: did you mean orderId?"),
}
"""What an example of a problem is about, by its kind: a field or parameter, and what is said of it."""

_ID: Final[Schema] = {"format": "uuid", "maxLength": 36}
_IN_PATH: Final[dict[str, Schema]] = {
    **dict.fromkeys(("checkout_id", "command_id", "webhook_id", "delivery_id"), _ID),
    "merchant": {"pattern": f"^{NAME.pattern}$", "maxLength": 63},
}
"""What FastAPI does not know of the parts of an address."""
_ABOUT: Final = """Processes checkouts at the payment gateway until their money is settled.

Every call but callbacks and health needs `Authorization: Bearer <token>`; `orchestrator token issue` makes one. Errors are
`application/problem+json` and name each field that is wrong. Fields and query parameters that are not known are refused.
"""


async def page(_: Request) -> Response:
    """Show the documentation."""
    return HTMLResponse(_PAGE, headers={"Content-Security-Policy": _POLICY})


async def asset(request: Request) -> Response:
    """Serve one file of the documentation's page."""
    name = request.path_params["name"]
    if name == "start.js":
        return Response(_START, media_type="text/javascript")
    if name == "openapi-3.0.json":
        return Response(_older(request.app), media_type="application/json")
    if name not in _ASSETS:
        raise Refusal(404, "the documentation has no such file")
    return Response(
        _asset(name), media_type=_ASSETS[name], headers={"Cache-Control": "public, max-age=86400"}
    )


@lru_cache(maxsize=1)
def _older(app: FastAPI) -> bytes:
    document = _as_30(app.openapi())
    for operations in document["paths"].values():
        for operation in operations.values():
            for way in operation.get("security", ()):
                way.update(dict.fromkeys(way, ()))  # 3.0 names scopes for OAuth 2 alone
    return msgspec.json.encode({**document, "openapi": "3.0.3"})


@cache
def _asset(name: str) -> bytes:
    return (Path(swagger_ui_path) / name).read_bytes()


def install(app: FastAPI) -> None:
    """Make the app's document, once, when it is first asked for."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way


def _document(app: FastAPI) -> dict[str, Any]:
    document: dict[str, Any] = get_openapi(
        title=app.title,
        version=app.version,
        openapi_version="3.1.0",
        description=_ABOUT,
        routes=app.routes,
        tags=[{"name": name, "description": about} for name, about in _TAGS.items()],
    )
    # FastAPI's own shapes describe its validation errors, which are problems here, and enums that the
    # contract has too.
    document["components"] = {
        "schemas": contract.schemas(),
        "securitySchemes": {
            "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
            "clientToken": {
                "type": "http",
                "scheme": "bearer",
                "description": "The `clientToken` of the checkout, for its shopper's browser",
            },
        },
    }
    raw, generated = _raw(), document["paths"]
    paths = {path: {**raw.get(path, {}), **generated.get(path, {})} for path in (*raw, *generated)}
    for operations in paths.values():
        for operation in operations.values():
            responses = operation["responses"]
            if "HTTPValidationError" in str(responses.get("422")):
                responses["422"] = _problem("A parameter is wrong, or not known", "invalid-request", 422)
            for part in operation.get("parameters", ()):
                if part["in"] == "path":
                    part["schema"] |= _IN_PATH.get(part["name"], {})
            if "security" in operation:
                _secure(operation)
            operation["responses"].setdefault(
                "default", _problem("Whatever else goes wrong", "internal", 500)
            )
    # By tag, and within a tag in the order of this file and of `routes`.
    tags = {path: next(iter(operations.values()))["tags"][0] for path, operations in paths.items()}
    document["paths"] = dict(sorted(paths.items(), key=lambda item: list(_TAGS).index(tags[item[0]])))
    return document


def _secure(operation: dict[str, Any]) -> None:
    """Say of a call which scopes open it, and what it answers where none does."""
    scopes = [scope for way in operation["security"] for scope in way.get("bearer", ())]
    named = " or ".join(f"`{scope}`" for scope in scopes)
    also = (
        ", or the checkout's client token"
        if any("clientToken" in way for way in operation["security"])
        else ""
    )
    operation["description"] = f"{operation.get('description', '')}\n\nNeeds the scope {named}{also}.".strip()
    told = described_problems(
        {
            "invalid-token": (401, "The token proves nothing, or there is none"),
            "insufficient-scope": (403, f"The token lacks the scope {' or '.join(scopes)}"),
            "too-many-requests": (429, "A limit of requests is reached: see Retry-After"),
        }
    )
    operation["responses"] = dict(sorted((told | operation["responses"]).items()))


def _as_30(value: Any) -> Any:
    """Say what only 3.1 can say as 3.0 says it: "or null", examples of a value, and what stands beside a
    reference.
    """
    if isinstance(value, list):
        return [_as_30(item) for item in value]
    if not isinstance(value, dict):
        return value
    read = {name: _as_30(item) for name, item in value.items()}
    if isinstance(read.get("examples"), list):
        read["example"] = read.pop("examples")[0]
    choices = read.get("anyOf")
    if isinstance(choices, list) and {"type": "null"} in choices:
        others = [choice for choice in choices if choice != {"type": "null"}]
        del read["anyOf"]
        read = {**others[0], **read} if len(others) == 1 else {**read, "anyOf": others}
        read["nullable"] = True
    if "$ref" in read and len(read) > 1:
        read["allOf"] = [{"$ref": read.pop("$ref")}]
    return read


def json_answer(about: str, shape: type) -> Schema:
    """Describe an answer."""
    return {"description": about, "content": {"application/json": {"schema": ref(shape)}}}


def _problem(about: str, kind: str, status: int) -> Schema:
    """Describe a problem, with an example of one kind."""
    example = {
        "type": TYPE + kind,
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": about,
        "errors": [],
        "correlationId": EXAMPLES["Problem"]["correlationId"],
    }
    if kind in _WRONG:
        field, message = _WRONG[kind]
        example |= {"detail": f"{field}: {message}", "errors": [{"field": field, "message": message}]}
    content = {"schema": ref(answers.Problem), "example": example}
    return {"description": about, "content": {"application/problem+json": content}}


def described_problems(problems: Problems) -> dict[str, Schema]:
    """Describe problems; of two with one status the later counts."""
    return {str(status): _problem(about, kind, status) for kind, (status, about) in problems.items()}


def _json_body(schema: Schema) -> Schema:
    """Describe a body, which is required."""
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def secured(*scopes: str) -> list[Schema]:
    """Describe that a call needs a token with one of these scopes."""
    return [{"bearer": [scope]} for scope in scopes]


def parameter(name: str, where: str, about: str, **schema: object) -> Schema:
    """Describe a parameter, which is a text."""
    return {
        "name": name,
        "in": where,
        "required": where == "path",
        "description": about,
        "schema": {"type": "string", **schema},
    }


def _raw() -> dict[str, dict[str, Schema]]:
    """Describe what FastAPI does not know: the bare routes of intake and callbacks."""
    no_link = (404, "Not an address of ours; nothing is stored")
    callback: Schema = {
        "tags": ["callbacks"],
        "parameters": [
            parameter("kind", "path", "", enum=["success", "failure", "notification", "redirect"]),
            parameter("id", "path", "The checkout", format="uuid", maxLength=36),
            parameter("signed", "path", "The shop's own page under our signature", maxLength=LONGEST),
        ],
        "responses": {
            "200": {"description": "Acknowledged (notification)"},
            "303": {"description": "On to the shop's page (success, failure, redirect)"},
            **described_problems(
                {
                    "unproven-callback": (
                        401,
                        (
                            "Nothing proves that the gateway sent it; it is looked into all the same. A page that leads on "
                            "to the shop for success and failure, a problem for a notification, and never for redirect"
                        ),
                    ),
                    "unknown-callback": no_link,
                    "too-large": (413, "Notification only: more than 256 KB, as sent or inflated"),
                    "database-away": (503, "Notification only: Postgres is away, send it again"),
                }
            ),
        },
    }
    merchant_callback = {
        "tags": ["callbacks"],
        "summary": "What names no checkout comes in",
        "operationId": "takeMerchantCallback",
        "parameters": [
            parameter("merchant", "path", "Its name, as `orchestrator merchants url` prints it"),
            parameter("signed", "path", "Our signature", maxLength=LONGEST),
        ],
        "responses": {
            "200": {"description": "Acknowledged"},
            **described_problems(
                {
                    "unproven-callback": (
                        401,
                        "Nothing proves that the gateway sent it; nothing comes of it",
                    ),
                    "unknown-callback": no_link,
                    "too-large": (413, "More than 256 KB, as sent or inflated"),
                    "unconfirmed-payments": (
                        503,
                        (
                            "Postgres is away, or too many payments of unknown orders wait for a lookup that confirms "
                            "them: send it again"
                        ),
                    ),
                }
            ),
        },
    }
    correlation = (
        "Travels with the checkout: 1 to 64 of A-Z a-z 0-9 . _ -; any other is replaced by one of ours"
    )
    accept = {
        "tags": ["checkouts"],
        "summary": "Create a checkout",
        "operationId": "accept",
        "security": secured("checkouts:write"),
        "parameters": [
            parameter("Idempotency-Key", "header", "Refuses other content from now on", **KEY_BOUNDS),
            parameter("X-Correlation-Id", "header", correlation, maxLength=LONGEST_HEADER),
        ],
        "requestBody": _json_body(ref(bodies.Intent)),
        "responses": {
            "202": json_answer("Accepted", answers.Accepted),
            "200": json_answer("It was there already with the same content", answers.Accepted),
            **described_problems(
                {
                    "order-taken": (409, "The order number has a live checkout with other content"),
                    "invalid-intent": (
                        422,
                        "The intent is wrong, or the Idempotency-Key was used for other content",
                    ),
                }
            ),
        },
    }
    rows = {
        "type": "array",
        # A row that is no intent is answered with a problem in its place.
        "items": {"anyOf": [ref(bodies.Intent), {}]},
        "minItems": 1,
        "maxItems": answers.MOST_CHECKOUTS,
    }
    accept_batch = {
        "tags": ["checkouts"],
        "summary": "Create many checkouts, each with a result of its own",
        "operationId": "acceptBatch",
        "security": secured("checkouts:write"),
        "requestBody": _json_body(rows),
        "responses": {"200": json_answer("A result for each, in order", answers.BatchResults)},
    }
    comes = "A shopper's browser comes (redirect, success, failure)"
    return {
        "/v1/checkouts": {"post": accept},
        "/v1/checkouts/batch": {"post": accept_batch},
        "/callbacks/merchant/{merchant}/{signed}": {"post": merchant_callback},
        "/callbacks/{kind}/{id}/{signed}": {
            "post": {"summary": "The gateway calls back", "operationId": "takeCallback", **callback},
            "get": {"summary": comes, "operationId": "takeRedirect", **callback},
        },
    }

"""The OpenAPI document and the page that shows it; every asset comes from us and the page loads nothing from elsewhere.

FastAPI writes the document for its own routes; the two hot endpoints and the bodies that are read raw are described here. The document
is OpenAPI 3.1. The page shows the same as OpenAPI 3.0, the newest version that the packaged Swagger UI knows.
"""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from fastapi.openapi.utils import get_openapi
from starlette.responses import HTMLResponse, Response
from swagger_ui_bundle import swagger_ui_path

from orchestrator.api.commands import KEYED, SCOPES
from orchestrator.api.connections import URL_LIMIT
from orchestrator.api.problems import Refusal
from orchestrator.api.schemas import SCHEMAS, Schema, ref
from orchestrator.store.merchants import NAME

if TYPE_CHECKING:
    from fastapi import FastAPI, Request

    from orchestrator.store.inbox import CommandKind

_KEY_BOUNDS: Final[Schema] = {"pattern": r"^[\x21-\x7e]+$", "minLength": 1, "maxLength": 255}
_SECURE: Final[list[Schema]] = [{"bearer": []}]
_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Checkout orchestrator: API</title>
<link rel="icon" type="image/png" href="/docs/assets/favicon-32x32.png">
<link rel="stylesheet" href="/docs/assets/swagger-ui.css">
</head>
<body>
<div id="api"></div>
<script src="/docs/assets/swagger-ui-bundle.js"></script>
<script src="/docs/assets/start.js"></script>
</body>
</html>
"""
# The validator would send the document to a server of somebody else.
_START: Final = b"""SwaggerUIBundle({url: "/docs/assets/openapi-3.0.json", dom_id: "#api", validatorUrl: null, deepLinking: true});
"""
_ASSETS: Final = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "favicon-32x32.png": "image/png",
}
_POLICY: Final = (
    "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"
)

_ABOUT: Final = """Carries checkouts through the payment gateway until their money is settled.

Every call but callbacks and health needs `Authorization: Bearer <token>`; `orchestrator token issue` makes one. Errors are
`application/problem+json` and name each field that is wrong.
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
    return msgspec.json.encode({**_as_30(app.openapi()), "openapi": "3.0.3"})


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
        title=app.title, version=app.version, openapi_version="3.1.0", description=_ABOUT, routes=app.routes
    )
    components = document.setdefault("components", {})
    # Validation errors are problems here, so FastAPI's own shapes of them describe nothing.
    unused = {"HTTPValidationError", "ValidationError"}
    made_schemas = {name: one for name, one in components.get("schemas", {}).items() if name not in unused}
    components["schemas"] = {**made_schemas, **SCHEMAS}
    components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}}
    for path, operations in _RAW.items():
        document["paths"].setdefault(path, {}).update(operations)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            answers = operation["responses"]
            if operation not in _RAW.get(path, {}).values() and "422" in answers:
                answers["422"] = _problem("A parameter or the body is wrong")
            answers.setdefault("default", _problem("Whatever else goes wrong"))
            for parameter in operation.get("parameters", ()):
                if parameter["name"] == "checkout_id":
                    parameter["schema"] |= {"format": "uuid", "maxLength": 36}
    document["paths"] = dict(sorted(document["paths"].items()))
    return document


def _as_30(value: Any) -> Any:
    """Say "or null" as OpenAPI 3.0 says it."""
    if isinstance(value, list):
        return [_as_30(one) for one in value]
    if not isinstance(value, dict):
        return value
    read = {name: _as_30(one) for name, one in value.items()}
    choices = read.get("anyOf")
    if isinstance(choices, list) and {"type": "null"} in choices:
        others = [one for one in choices if one != {"type": "null"}]
        del read["anyOf"]
        # In 3.0 nothing may stand beside a reference.
        single = len(others) == 1 and "$ref" not in others[0]
        read |= {**others[0], "nullable": True} if single else {"anyOf": others, "nullable": True}
    return read


def json_answer(about: str, name: str) -> Schema:
    """Describe an answer."""
    return {"description": about, "content": {"application/json": {"schema": ref(name)}}}


def _problem(about: str) -> Schema:
    return {"description": about, "content": {"application/problem+json": {"schema": ref("Problem")}}}


def json_body(schema: Schema, *, required: bool = True) -> Schema:
    """Describe a body."""
    return {"required": required, "content": {"application/json": {"schema": schema}}}


def described(
    name: str, about: str = "Found", status: int = 200, body: Schema | None = None
) -> dict[str, Any]:
    """Return what FastAPI is told about a route that needs a token."""
    extra: Schema = {"security": _SECURE}
    if body is not None:
        extra["requestBody"] = body
    return {"responses": {status: json_answer(about, name)}, "status_code": status, "openapi_extra": extra}


def commanded(kind: CommandKind, about: str) -> dict[str, Any]:
    """Return what FastAPI is told about the route of a command."""
    body = {**json_body(ref(kind.capitalize()), required=kind == "resolve")}
    told = described(
        "CommandAccepted", "Stored; what becomes of it stands among the checkout's commands", 202, body
    )
    key = _parameter(
        "Idempotency-Key",
        "header",
        "The same key with the same content is the same command; with other content it is refused",
        **_KEY_BOUNDS,
    )
    told["openapi_extra"]["parameters"] = [{**key, "required": kind in KEYED}]
    told["responses"] |= {
        403: _problem(f"The token lacks the scope {SCOPES[kind]}"),
        404: _problem("The merchant has no such checkout"),
        409: _problem("Not as the checkout stands now, or not at this version"),
        422: _problem("A field or the Idempotency-Key is wrong, or the amount is more than is left"),
    }
    return {**told, "summary": about, "description": f"Needs the scope `{SCOPES[kind]}`."}


def _parameter(name: str, where: str, about: str, **schema: object) -> Schema:
    return {
        "name": name,
        "in": where,
        "required": where == "path",
        "description": about,
        "schema": {"type": "string", **schema},
    }


_CALLBACK: Final[Schema] = {
    "tags": ["callbacks"],
    "parameters": [
        _parameter("kind", "path", "", enum=["success", "failure", "notification", "redirect"]),
        _parameter("id", "path", "The checkout", format="uuid", maxLength=36),
        _parameter("signed", "path", "The shop's own page under our signature", maxLength=URL_LIMIT),
    ],
    "responses": {
        "200": {"description": "Acknowledged (notification)"},
        "303": {"description": "On to the shop's page (success, failure, redirect)"},
        "401": _problem(
            "Nothing proves that the gateway sent it; it is looked into all the same. A page that leads on to the shop for success "
            "and failure, a problem for a notification, and never for redirect"
        ),
        "404": _problem("Not an address of ours; nothing is stored"),
        "413": _problem("Notification only: more than 256 KB, as sent or inflated"),
        "503": _problem("Notification only: Postgres is away, send it again"),
    },
}
_MERCHANT_CALLBACK: Final[Schema] = {
    "tags": ["callbacks"],
    "summary": "What names no checkout comes in",
    "operationId": "takeMerchantCallback",
    "parameters": [
        _parameter(
            "merchant",
            "path",
            "Its name, as `orchestrator merchants url` prints it",
            pattern=f"^{NAME.pattern}$",
            maxLength=63,
        ),
        _parameter("signed", "path", "Our signature", maxLength=URL_LIMIT),
    ],
    "responses": {
        "200": {"description": "Acknowledged"},
        "401": _problem("Nothing proves that the gateway sent it; nothing comes of it"),
        "404": _problem("Not an address of ours; nothing is stored"),
        "413": _problem("More than 256 KB, as sent or inflated"),
        "503": _problem(
            "Postgres is away, or too many payments of unknown orders wait for a lookup that confirms them: send it again"
        ),
    },
}
_RAW: Final[dict[str, dict[str, Schema]]] = {
    "/v1/checkouts": {
        "post": {
            "tags": ["checkouts"],
            "summary": "Take a checkout",
            "operationId": "accept",
            "security": _SECURE,
            "parameters": [
                _parameter("Idempotency-Key", "header", "Refuses other content from now on", **_KEY_BOUNDS),
                _parameter(
                    "X-Correlation-Id",
                    "header",
                    "Travels with the checkout",
                    pattern="^[A-Za-z0-9._-]{1,64}$",
                    maxLength=64,
                ),
            ],
            "requestBody": json_body(ref("Intent")),
            "responses": {
                "202": json_answer("Accepted", "Accepted"),
                "200": json_answer("It was there already with the same content", "Accepted"),
                "409": _problem("The order number has a live checkout with other content"),
                "422": _problem("The intent is wrong, or the Idempotency-Key was used for other content"),
            },
        }
    },
    "/v1/checkouts/batch": {
        "post": {
            "tags": ["checkouts"],
            "summary": "Take many checkouts, each with a result of its own",
            "operationId": "acceptBatch",
            "security": _SECURE,
            "requestBody": json_body(
                {"type": "array", "items": ref("Intent"), "minItems": 1, "maxItems": 500}
            ),
            "responses": {"200": json_answer("A result for each, in order", "BatchResults")},
        }
    },
    "/callbacks/merchant/{merchant}/{signed}": {"post": _MERCHANT_CALLBACK},
    "/callbacks/{kind}/{id}/{signed}": {
        "post": {"summary": "The gateway calls back", "operationId": "takeCallback", **_CALLBACK},
        "get": {
            "summary": "A shopper's browser comes (redirect, success, failure)",
            "operationId": "takeRedirect",
            **_CALLBACK,
        },
    },
}

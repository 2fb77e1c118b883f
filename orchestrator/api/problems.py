"""Answers: JSON with exact money, and problem+json (RFC 9457) for everything that goes wrong.

A problem names each wrong field and has the correlation id. Internal faults are logged and never shown.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Literal
from uuid import UUID

import msgspec
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from orchestrator import intents
from orchestrator.api import correlation
from orchestrator.api.contract import answers
from orchestrator.api.contract.values import like, made
from orchestrator.api.request_log import DENIED
from orchestrator.auth import AccessDenied
from orchestrator.errors import OrchestratorError
from orchestrator.intents import IntentRejected, Problem
from orchestrator.intents.fields import MOST_PROBLEMS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fastapi import FastAPI, Request
    from starlette.types import Scope

    from orchestrator.store.inbox import KeyReused

_ENCODER: Final = msgspec.json.Encoder(decimal_format="number")
TYPE: Final = "urn:checkout-orchestrator:problem:"
RETRY_AFTER: Final = "5"
_LONGEST_SHOWN: Final = 40
"""Characters of an id in a sentence; an id has 36."""

Identified = Literal["checkout", "command", "webhook", "delivery"]


class Refusal(OrchestratorError):  # noqa: N818 - named for the fact
    """A request that is answered with a problem: status, sentence, and which fields are wrong."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        kind: str | None = None,
        errors: Sequence[Problem] = (),
        headers: Mapping[str, str] | None = None,
        facts: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.kind = status, detail, kind
        self.errors, self.headers, self.facts = errors, headers, facts


def wrong(field: str, message: str, *, kind: str, said: str | None = None) -> Refusal:
    """Return the refusal of a request of which one field is wrong; `said`: the whole sentence."""
    return Refusal(422, said or f"{field}: {message}", kind=kind, errors=[Problem(field, message)])


def key_reused(error: KeyReused) -> Refusal:
    """Return the answer to a request whose Idempotency-Key was used with another content."""
    return wrong("Idempotency-Key", str(error), kind="idempotency-key-reused", said=str(error))


def id_of(what: Identified, given: str) -> UUID:
    """Read the id in a path; 404 for a text that cannot be an id."""
    try:
        return UUID(given)
    except ValueError:
        raise unknown(what, given) from None


def unknown(what: Identified, given: str) -> Refusal:
    """Return the refusal of an id that this merchant does not have, with the way to find a checkout where it
    is an order number.
    """
    shown = given if len(given) <= _LONGEST_SHOWN else given[:_LONGEST_SHOWN] + "…"
    said = f"there is no {what} {shown!r} here: check the id and the merchant"
    if what == "command":
        said += ", or its checkout was archived"
    elif what == "checkout" and intents.ORDER_NUMBER.fullmatch(given) and not _is_spelled_as_an_id(given):
        said = (
            f"{shown!r} is not the id of a checkout here; if it is an order number, ask for "
            f"GET /v1/checkouts?orderId={given}"
        )
    return Refusal(404, said, kind=f"unknown-{what}")


def _is_spelled_as_an_id(text: str) -> bool:
    try:
        return str(UUID(text)) == text.lower()
    except ValueError:
        return False


def answer(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Answer JSON; `Decimal` becomes a number with exactly its digits."""
    return Response(encoded(value), status, headers, "application/json")


def encoded(value: object) -> bytes:
    """Return an answer as JSON; `Decimal` becomes a number with exactly its digits."""
    return _ENCODER.encode(value)


def body_of(refusal: Refusal) -> answers.Problem:
    """Return the problem document of a refusal."""
    errors = tuple(like(answers.FieldProblem, error) for error in refusal.errors)
    return made(
        answers.Problem,
        refusal.facts or {},
        kind=TYPE + refusal.kind if refusal.kind else "about:blank",
        title=HTTPStatus(refusal.status).phrase,
        status=refusal.status,
        detail=refusal.detail,
        errors=errors,
        correlation_id=correlation.current(),
    )


def problem(refusal: Refusal) -> Response:
    """Answer a refusal."""
    return Response(
        _ENCODER.encode(body_of(refusal)), refusal.status, refusal.headers, "application/problem+json"
    )


def away() -> Refusal:
    """Return what is answered while Postgres is out of reach."""
    return Refusal(
        503,
        "the database is out of reach at the moment, and whether this request was stored is not known: send it again",
        kind="database-away",
        headers={"Retry-After": RETRY_AFTER},
    )


def nothing_here() -> Refusal:
    """Return what is answered at an address that does not exist."""
    return Refusal(404, "there is nothing at this address: /docs lists what there is")


def rejected(error: IntentRejected) -> Refusal:
    """Return the refusal of an intent with everything that is wrong with it."""
    number = len(error.problems)
    said = "one field is wrong" if number == 1 else f"{number} fields are wrong"
    return Refusal(422, f"{said}: {error}", kind="invalid-intent", errors=error.problems)


def denied(error: AccessDenied) -> Refusal:
    """Return the refusal of a caller."""
    if error.status == HTTPStatus.SERVICE_UNAVAILABLE:
        return Refusal(
            503, error.sentence, kind="token-keys-unavailable", headers={"Retry-After": RETRY_AFTER}
        )
    kind = "insufficient_scope" if error.status == HTTPStatus.FORBIDDEN else "invalid_token"
    headers = {"WWW-Authenticate": f'Bearer realm="orchestrator", error="{kind}"'}
    return Refusal(error.status, error.sentence, kind=kind.replace("_", "-"), headers=headers)


def refused(error: Refusal | AccessDenied) -> Response:
    """Answer an error of ours."""
    return problem(denied(error) if isinstance(error, AccessDenied) else error)


def note_denied(scope: Scope, error: Refusal | AccessDenied) -> None:
    """Leave for the security log why a caller was denied."""
    if isinstance(error, AccessDenied):
        scope[DENIED] = error.sentence


def install(app: FastAPI) -> None:
    """Make the app answer its own errors, and those of the frameworks below it, as problems."""
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(AccessDenied, _refused)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)


# The handlers' signature is Starlette's: any exception, though each gets only its own kind.


async def _refused(request: Request, error: Any) -> Response:
    note_denied(request.scope, error)
    return refused(error)


async def _invalid(_: Request, error: Any) -> Response:
    problems = [Problem(_field(fault["loc"]), str(fault["msg"])) for fault in error.errors()[:MOST_PROBLEMS]]
    named = ", ".join(field_problem.field for field_problem in problems)
    return problem(Refusal(422, f"the request is wrong in {named}", kind="invalid-request", errors=problems))


def _field(where: tuple[str | int, ...]) -> str:
    """Return the name of a parameter from FastAPI's place of it, such as ("query", "state", 0)."""
    name, *inside = where[1:] or ("request",)
    return str(name) + "".join(f"[{part}]" for part in inside)


async def _http(request: Request, error: Any) -> Response:
    match error.status_code:
        case HTTPStatus.NOT_FOUND:
            return problem(nothing_here())
        case HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = _methods(request)
            headers = {"Allow": ", ".join(allowed)}
            if request.method == "OPTIONS":
                return Response(status_code=204, headers=headers)
            return problem(Refusal(405, f"this address takes {' and '.join(allowed)}", headers=headers))
        case _:
            return problem(Refusal(error.status_code, str(error.detail), headers=error.headers))


def _methods(request: Request) -> list[str]:
    """Return what an address takes, over all routes that share its first match; a less specific route answers
    it with 404.
    """
    methods = {"OPTIONS"}
    shape: str | None = None
    for route in request.app.routes:
        found, _ = route.matches(request.scope)
        if found is Match.NONE:
            continue
        shape = shape or route.path
        if route.path == shape and route.endpoint is not only_post:
            methods |= route.methods or set()
    if request.url.path.startswith(("/callbacks/notification/", "/callbacks/merchant/")):
        methods -= {"GET", "HEAD"}  # no shopper's browser comes there
    if "GET" in methods:
        methods.add("HEAD")
    return sorted(methods)


async def only_post(_: Request) -> Response:
    """Refuse every other method at an address that takes POST alone, which a less specific route would answer
    with 404.
    """
    raise HTTPException(HTTPStatus.METHOD_NOT_ALLOWED)

"""What the OpenAPI document says of commands."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from orchestrator.api.command_waits import LONGEST_WAIT
from orchestrator.api.commands import KEYED, SCOPES
from orchestrator.api.contract import Schema, answers, bodies, ref
from orchestrator.api.docs import (
    KEY_BOUNDS,
    LONGEST_HEADER,
    described,
    described_problems,
    json_answer,
    json_body,
    parameter,
)

if TYPE_CHECKING:
    from orchestrator.domain.records import CommandKind

_LOCATION: Final[Schema] = {
    "Location": {
        "description": "Where the command is followed",
        "schema": {"type": "string", "maxLength": 100},
    }
}
_APPLIED: Final[Schema] = {
    "Preference-Applied": {
        "description": "The seconds that were waited for at most; absent where nothing was waited for",
        "schema": {"type": "string", "maxLength": 100},
    }
}


def commanded(kind: CommandKind, about: str) -> dict[str, Any]:
    """Return what FastAPI is told about the route of a command."""
    body = {**json_body(ref(bodies.COMMANDS[kind]), required=kind in bodies.NEEDED)}
    told = described(
        answers.CommandAccepted,
        "Stored; what becomes of it is shown at the `Location`",
        202,
        body,
        scopes=(SCOPES[kind],),
    )
    stored = told["responses"][202]
    stored["headers"] = {**_LOCATION, **_APPLIED}
    stored["content"]["application/json"]["schema"] = {
        "anyOf": [ref(answers.CommandAccepted), ref(answers.CommandProgress)]
    }
    stored["description"] += "; with `Prefer: wait`, as it stands when the time is over"
    finished = json_answer("With `Prefer: wait`: it is finished", answers.CommandProgress)
    told["responses"][200] = {**finished, "headers": {**_LOCATION, **_APPLIED}}
    key = parameter(
        "Idempotency-Key",
        "header",
        "The same key with the same content is the same command; with other content it is refused",
        **KEY_BOUNDS,
    )
    prefer = parameter(
        "Prefer",
        "header",
        f"`wait=10` (RFC 7240): seconds to wait until the command is finished, at most {LONGEST_WAIT}; what else is preferred is ignored",
        maxLength=LONGEST_HEADER,
    )
    told["openapi_extra"]["parameters"] = [{**key, "required": kind in KEYED}, prefer]
    told["responses"] |= described_problems(
        unknown_checkout=(HTTPStatus.NOT_FOUND, "The merchant has no such checkout"),
        version_changed=(HTTPStatus.CONFLICT, "Not as the checkout stands now, or not at this version"),
        invalid_command=(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "A field or the Idempotency-Key is wrong, or the amount is more than is left",
        ),
    )
    # Its function is made for all kinds, and has no description.
    return {**told, "summary": about, "description": ""}


def followed_command() -> dict[str, Any]:
    """Return what FastAPI is told about the route that shows a command."""
    told = described(answers.CommandProgress)
    told["responses"] |= described_problems(
        unknown_command=(
            HTTPStatus.NOT_FOUND,
            "The merchant has no such command, or its checkout was archived, and the command had no Idempotency-Key",
        ),
    )
    return told
